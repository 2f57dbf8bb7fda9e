//! Offer in, answer out: the two halves of a join.
//!
//! [`parse_offer`] runs off the shard; [`accept`] is what the shard does. Not here: who may watch,
//! and what happens after the answer. Invariant: the protocol library reads no SDP and knows of no
//! media. It is told the client's credentials and fingerprint, which were checked character by
//! character, and has ICE, DTLS and SCTP to do.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use fanlight_rtc::keys::{self, Decoy, KeySlot};
use fanlight_wire::h264::SpsFacts;
use rand::Rng;
use str0m::config::{DtlsCert, Fingerprint};
use str0m::crypto::CryptoProvider;
use str0m::net::TcpType;
use str0m::{Candidate, IceCreds, Rtc, RtcConfig, RtcError};

use crate::answer::{self, Agreed};
use crate::codec::{self, OfferedH264};
use crate::error::JoinError;
use crate::header::Terms;
use crate::limits::OFFER_BYTES_MAX;
use crate::sdp::{self, OfferFacts, Plan};

/// Longest media identification that the one-byte header extension carries (RFC 8285, 4.2).
const MID_BYTES_MAX: usize = 16;

/// An offer, read and checked. `Send`, so that it can be made off the shard.
#[derive(Debug)]
pub struct ParsedOffer {
    facts: OfferFacts,
}

impl ParsedOffer {
    /// The video formats of the offer in words, for logs.
    #[must_use]
    pub fn offered_video(&self) -> &[String] {
        &self.facts.offered
    }

    /// The client's ICE user fragment.
    #[must_use]
    pub fn ice_ufrag(&self) -> &str {
        &self.facts.ufrag
    }

    /// Whether the offer asks for data channels.
    #[must_use]
    pub fn wants_data(&self) -> bool {
        self.facts.section(Plan::Data).is_some()
    }
}

/// Reads a client's offer.
///
/// # Errors
/// [`JoinError::OfferTooLarge`], [`JoinError::BadOffer`], or [`JoinError::NoCommonCodec`] when
/// there is no H.264 in packetization mode 1 at all.
pub fn parse_offer(sdp: &str) -> Result<ParsedOffer, JoinError> {
    if sdp.len() > OFFER_BYTES_MAX {
        return Err(JoinError::OfferTooLarge { bytes: sdp.len(), max: OFFER_BYTES_MAX });
    }
    let facts = sdp::read_offer(sdp)?;
    if facts.h264.is_empty() {
        return Err(JoinError::NoCommonCodec {
            offered: facts.offered,
            needed: "H264 packetization-mode=1".into(),
        });
    }
    Ok(ParsedOffer { facts })
}

/// What all viewers of a core share.
pub(crate) struct Shared {
    crypto: Arc<CryptoProvider>,
    certificate: Option<DtlsCert>,
    candidates: Vec<Candidate>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("candidates", &self.candidates).finish_non_exhaustive()
    }
}

impl Shared {
    /// One certificate for all viewers of a core: making one per viewer costs 0.07 ms each.
    pub(crate) fn new(candidates: &[SocketAddr], tcp_candidates: &[SocketAddr]) -> Self {
        let crypto = keys::crypto();
        let certificate = crypto.dtls_provider.generate_certificate();
        // An address that cannot be a candidate (unspecified, multicast) is left out.
        let tcp = tcp_candidates.iter().filter_map(|a| tcp_candidate(*a));
        let candidates =
            candidates.iter().filter_map(|a| Candidate::host(*a, "udp").ok()).chain(tcp).collect();
        Self { crypto, certificate, candidates }
    }
}

/// A join that was accepted.
pub(crate) struct Accepted {
    pub(crate) rtc: Rtc,
    pub(crate) answer: String,
    /// The local ICE user fragment, by which the first datagrams find the viewer.
    pub(crate) ufrag: String,
    pub(crate) terms: Terms,
    /// Where the media keys will be once DTLS agreed on them.
    pub(crate) keys: KeySlot,
    pub(crate) profile_level_id: [u8; 3],
}

/// Answers an offer for a stream. `random` names sources, which need not be secret.
pub(crate) fn accept(
    shared: &Shared,
    now: Instant,
    offer: &ParsedOffer,
    credentials: IceCreds,
    stream: Option<&SpsFacts>,
    user_agent: Option<&str>,
    random: &mut impl Rng,
) -> Result<Accepted, JoinError> {
    let facts = &offer.facts;
    let format = codec::choose(&facts.h264, &facts.offered, stream, user_agent)?;
    let terms = terms(facts, format, random)?;
    // The library is given other keys than ours, so that whatever it might still send as media can
    // never be sealed under the same key and nonce.
    let keys = KeySlot::new(Decoy::Yes);
    let connect = || connect(shared, now, facts, credentials.clone(), &keys);
    let rtc = catch_unwind(AssertUnwindSafe(connect));
    let Connecting { rtc, fingerprint, candidates } = match rtc {
        Ok(Ok(made)) => made,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the protocol library refused a session");
            return Err(JoinError::Internal);
        }
        Err(_) => {
            tracing::warn!("the protocol library panicked on a session");
            return Err(JoinError::Internal);
        }
    };
    let agreed = Agreed {
        session: random.random_range(1..1 << 62),
        ufrag: &credentials.ufrag,
        pwd: &credentials.pass,
        fingerprint: &fingerprint,
        active: facts.we_begin(),
        candidates: &candidates,
        format,
        terms: &terms,
    };
    Ok(Accepted {
        answer: answer::write(facts, &agreed),
        ufrag: credentials.ufrag,
        profile_level_id: format.id,
        rtc,
        terms,
        keys,
    })
}

/// What is agreed about media.
fn terms(
    facts: &OfferFacts,
    format: &OfferedH264,
    random: &mut impl Rng,
) -> Result<Terms, JoinError> {
    // `read_offer` refuses an offer without a video section that we can send on.
    let video = facts.section(Plan::Video).ok_or(JoinError::Internal)?;
    let offered = &facts.extensions;
    let ssrc = random.random_range(1..u32::MAX);
    Ok(Terms {
        pt: format.pt,
        ssrc,
        // Any other one: the next is as good as a random one.
        rtx: format.rtx.filter(|_| format.nack).map(|pt| (pt, ssrc + 1)),
        twcc: offered.twcc.filter(|_| format.twcc),
        playout_delay: offered.playout_delay,
        capture_time: offered.capture_time,
        mid: offered
            .mid
            .filter(|_| video.mid.len() <= MID_BYTES_MAX)
            .map(|id| (id, video.mid.as_bytes().into())),
        cname: format!("{:016x}", random.random::<u64>()).into(),
    })
}

/// A viewer's protocol state, and what an answer says of it.
struct Connecting {
    rtc: Rtc,
    fingerprint: String,
    candidates: Vec<String>,
}

/// The protocol state of one viewer: ICE-lite, DTLS and, if asked for, SCTP.
fn connect(
    shared: &Shared,
    now: Instant,
    facts: &OfferFacts,
    credentials: IceCreds,
    slot: &KeySlot,
) -> Result<Connecting, RtcError> {
    let mut config = RtcConfig::new()
        .set_crypto_provider(Arc::clone(&shared.crypto))
        .set_ice_lite(true)
        .set_rtp_mode(true)
        .clear_codecs()
        .set_local_ice_credentials(credentials);
    if let Some(certificate) = &shared.certificate {
        config = config.set_dtls_cert(certificate.clone());
    }
    let mut rtc = keys::with_slot(slot, || config.build(now));
    // As it gives them back they have priorities that fall in this order.
    let add = |c: &Candidate| rtc.add_local_candidate(c.clone()).map(Candidate::to_sdp_string);
    let candidates = shared.candidates.iter().filter_map(add).collect();
    let active = facts.we_begin();
    let mut api = rtc.direct_api();
    api.set_ice_controlling(false);
    api.set_remote_ice_credentials(IceCreds {
        ufrag: facts.ufrag.clone(),
        pass: facts.pwd.clone(),
    });
    api.set_remote_fingerprint(Fingerprint {
        hash_func: "sha-256".into(),
        bytes: facts.fingerprint.to_vec(),
    });
    api.start_dtls(active)?;
    if facts.section(Plan::Data).is_some() {
        api.start_sctp(active);
    }
    let fingerprint = api.local_dtls_fingerprint().to_string();
    Ok(Connecting { rtc, fingerprint, candidates })
}

/// A candidate that is connected to, never from (RFC 6544).
fn tcp_candidate(address: SocketAddr) -> Option<Candidate> {
    Candidate::builder().tcp().host(address).tcptype(TcpType::Passive).build().ok()
}
