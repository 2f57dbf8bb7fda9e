//! Offer in, answer out: the two halves of a join.
//!
//! [`parse_offer`] is the expensive half and runs off the shard; [`accept`] is what the shard
//! does. Not here: who may watch, and what happens after the answer. Invariant: the protocol
//! library reads only offers that [`crate::canonical`] wrote, and even so behind `catch_unwind`.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanlight_rtc::keys::{self, Decoy, KeySlot};
use fanlight_wire::h264::SpsFacts;
use str0m::change::SdpOffer;
use str0m::config::DtlsCert;
use str0m::crypto::CryptoProvider;
use str0m::media::{Mid, Pt};
use str0m::net::TcpType;
use str0m::rtp::{Extension, ExtensionMap};
use str0m::{Candidate, IceCreds, Rtc, RtcConfig};

use crate::answer;
use crate::canonical;
use crate::codec::{self, OfferedH264};
use crate::error::JoinError;
use crate::header::Terms;
use crate::limits::OFFER_BYTES_MAX;
use crate::sdp::{self, OfferFacts, Plan};

/// An offer, read, checked and trimmed. `Send`, so that it can be made off the shard.
#[derive(Debug)]
pub struct ParsedOffer {
    facts: OfferFacts,
    offer: SdpOffer,
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

/// Reads a client's offer. Runs off the shard: it is the most expensive part of a join.
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
    let text = canonical::canonical_offer(&facts);
    // The library's error texts contain pointer values, so that none of them goes to the client.
    let offer = catch_unwind(AssertUnwindSafe(|| SdpOffer::from_sdp_string(&text)))
        .map_err(|_| JoinError::Internal)?
        .map_err(|_| JoinError::BadOffer("it could not be parsed".into()))?;
    Ok(ParsedOffer { facts, offer })
}

/// How often the library makes a report that nobody gets.
const LIBRARY_REPORT_INTERVAL: Duration = Duration::from_secs(10);

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

/// A join that the library accepted.
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

/// Answers an offer for a stream.
pub(crate) fn accept(
    shared: &Shared,
    now: Instant,
    offer: ParsedOffer,
    credentials: IceCreds,
    stream: Option<&SpsFacts>,
    user_agent: Option<&str>,
) -> Result<Accepted, JoinError> {
    let ParsedOffer { facts, offer } = offer;
    let chosen = codec::choose(&facts.h264, &facts.offered, stream, user_agent)?.clone();
    let outcome =
        catch_unwind(AssertUnwindSafe(|| build(shared, now, &facts, offer, credentials, &chosen)));
    outcome.unwrap_or_else(|_| {
        tracing::warn!("the protocol library panicked on an offer");
        Err(JoinError::Internal)
    })
}

fn build(
    shared: &Shared,
    now: Instant,
    facts: &OfferFacts,
    offer: SdpOffer,
    credentials: IceCreds,
    chosen: &OfferedH264,
) -> Result<Accepted, JoinError> {
    let ufrag = credentials.ufrag.clone();
    let config = configure(shared, facts, chosen).set_local_ice_credentials(credentials);
    // The library is given other keys than ours, so that whatever it might still send as media can
    // never be sealed under the same key and nonce.
    let slot = KeySlot::new(Decoy::Yes);
    let mut rtc = keys::with_slot(&slot, || config.build(now));
    for candidate in &shared.candidates {
        rtc.add_local_candidate(candidate.clone());
    }
    let library_answer = rtc.sdp_api().accept_offer(offer).map_err(|error| {
        // To the log only: the text may contain pointer values and the client's own bytes.
        tracing::debug!(%error, "the protocol library refused an offer");
        JoinError::BadOffer("it is inconsistent".into())
    })?;
    // `read_offer` refuses an offer without a video section that we can send on.
    let video = facts.section(Plan::Video).ok_or(JoinError::Internal)?;
    let mid = Mid::from(canonical::library_mid(video).0);
    let pt = Pt::from(chosen.pt);
    let agreed = rtc.media(mid).is_some_and(|m| m.remote_pts().contains(&pt));
    let sources = rtc
        .direct_api()
        .stream_tx_by_mid(mid, None)
        .map(|tx| (*tx.ssrc(), tx.rtx().map(|ssrc| *ssrc)));
    let (true, Some((ssrc, repair))) = (agreed, sources) else {
        return Err(JoinError::BadOffer("its video cannot be sent to".into()));
    };
    let library_answer = library_answer.to_sdp_string();
    let offered = &facts.extensions;
    let (mid, mid_survives) = canonical::library_mid(video);
    let terms = Terms {
        pt: chosen.pt,
        ssrc,
        rtx: chosen.rtx.filter(|_| chosen.nack).zip(repair),
        twcc: offered.twcc.filter(|_| chosen.twcc),
        playout_delay: offered.playout_delay,
        capture_time: offered.capture_time,
        mid: offered.mid.filter(|_| mid_survives).map(|id| (id, mid.as_bytes().into())),
        cname: answer::cname(&library_answer).into(),
    };
    Ok(Accepted {
        answer: answer::assemble(&library_answer, facts),
        ufrag,
        terms,
        keys: slot,
        profile_level_id: chosen.id,
        rtc,
    })
}

/// A candidate that is connected to, never from (RFC 6544).
fn tcp_candidate(address: SocketAddr) -> Option<Candidate> {
    Candidate::builder().tcp().host(address).tcptype(TcpType::Passive).build().ok()
}

/// The configuration of one viewer's protocol state. Only the chosen format is registered, so
/// that the answer names it alone, and exactly as offered, so that no level above 3.1 is refused.
fn configure(shared: &Shared, facts: &OfferFacts, chosen: &OfferedH264) -> RtcConfig {
    let mut extensions = ExtensionMap::empty();
    let offered = &facts.extensions;
    let mid_survives = facts.section(Plan::Video).is_some_and(|s| canonical::library_mid(s).1);
    for (id, extension) in [
        (offered.mid.filter(|_| mid_survives), Extension::RtpMid),
        (offered.twcc.filter(|_| chosen.twcc), Extension::TransportSequenceNumber),
        (offered.playout_delay, Extension::PlayoutDelay),
        (offered.capture_time, Extension::AbsoluteCaptureTime),
    ] {
        if let Some(id) = id {
            extensions.set(id, extension);
        }
    }
    let mut config = RtcConfig::new()
        .set_crypto_provider(Arc::clone(&shared.crypto))
        .set_ice_lite(true)
        .set_rtp_mode(true)
        .clear_codecs()
        .set_extension_map(extensions)
        // Its reports are dropped, ours go out instead; each costs a poll.
        .set_rtcp_report_interval_video(LIBRARY_REPORT_INTERVAL);
    if let Some(certificate) = &shared.certificate {
        config = config.set_dtls_cert(certificate.clone());
    }
    let [a, b, c] = chosen.id;
    let codecs = config.codec_config();
    codecs.add_config(
        Pt::from(chosen.pt),
        chosen.rtx.map(Pt::from),
        str0m::format::Codec::H264,
        str0m::media::Frequency::NINETY_KHZ,
        None,
        str0m::format::FormatParams {
            level_asymmetry_allowed: Some(chosen.level_asymmetry),
            packetization_mode: Some(1),
            profile_level_id: Some(u32::from_be_bytes([0, a, b, c])),
            ..Default::default()
        },
    );
    for params in codecs.iter_mut() {
        params.set_fb_transport_cc(chosen.twcc && facts.extensions.twcc.is_some());
        params.set_fb_remb(false);
        params.set_fb_nack(chosen.nack);
        params.set_fb_pli(chosen.pli);
        params.set_fb_fir(chosen.fir);
    }
    config
}
