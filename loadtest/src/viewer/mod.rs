//! One viewer without a socket: the protocol library for SDP, ICE, DTLS and data channels, our own
//! code for media. Time and datagrams come in, datagrams and what was seen go out. Invariant: the
//! protocol library never sees media keys (it has decoys), nor a media packet.

mod answer;
mod feedback;
mod hostile;
mod media;
mod reassembly;
mod verify;

use std::{
    net::SocketAddr,
    sync::LazyLock,
    time::{Duration, Instant},
};

use fanlight_rtc::{
    keys::{self, Decoy, KeySlot},
    srtp::Contexts,
};
use fanlight_wire::rtp::Ssrc;
use str0m::{
    Candidate, Event, Input, Output, Rtc, RtcConfig,
    change::{SdpAnswer, SdpPendingOffer},
    channel::ChannelId,
    config::DtlsCert,
    media::{Direction, MediaKind},
    net::{Protocol, Receive},
    rtp::Extension,
};

use hostile::Hostile;

pub use answer::{NoVideo, Terms, with_candidates};
pub use hostile::Abuse;
pub use media::Counts as MediaCounts;
pub use reassembly::Counts as OrderCounts;
pub use verify::{Seen, Shown, Verifier, Window};

/// Label of the channel that carries input.
const INPUT: &str = "input";
/// Least time between two timeouts of the protocol library.
const RTC_NAP_MIN: Duration = Duration::from_micros(500);

/// One certificate for all viewers, as browsers have theirs ready before they join.
static CERTIFICATE: LazyLock<Option<DtlsCert>> =
    LazyLock::new(|| keys::crypto().dtls_provider.generate_certificate());

/// Why a viewer cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewerError {
    /// The protocol library refuses something.
    #[error("protocol library: {0}")]
    Rtc(String),
    /// The answer is of no use.
    #[error(transparent)]
    Answer(#[from] NoVideo),
    /// It was answered before, or never offered.
    #[error("no offer waits for an answer")]
    NoOffer,
}

/// Where a viewer's output goes.
pub trait Outlet {
    /// A datagram for the router.
    fn send(&mut self, bytes: &[u8]);
    /// A datagram for this address, from the protocol library.
    fn send_to(&mut self, to: SocketAddr, bytes: &[u8]);
    /// A right picture is complete.
    fn shown(&mut self, now: Instant, shown: &Shown);
    /// Age of the newest decodable picture, twenty times a second.
    fn age(&mut self, age: Duration);
    /// ICE and DTLS are up.
    fn connected(&mut self, now: Instant);
    /// The input channel is open.
    fn channel_open(&mut self, now: Instant);
    /// It is over.
    fn closed(&mut self, now: Instant);
    /// A message came on the input channel.
    fn message(&mut self, now: Instant, bytes: &[u8]);
}

/// A viewer.
pub struct Viewer {
    rtc: Rtc,
    pending: Option<SdpPendingOffer>,
    slot: KeySlot,
    local: SocketAddr,
    terms: Option<Terms>,
    verifier: Option<Verifier>,
    media: Option<media::Media>,
    input: ChannelId,
    rtc_due: Instant,
    tick_due: Option<Instant>,
    connected: bool,
    closed: bool,
    /// Takes and says nothing any more.
    mute: bool,
}

impl std::fmt::Debug for Viewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Viewer").field("local", &self.local).finish_non_exhaustive()
    }
}

/// What one viewer came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Pictures.
    pub seen: Seen,
    /// Packets and feedback.
    pub media: MediaCounts,
    /// Order and loss.
    pub order: OrderCounts,
}

impl Viewer {
    /// A viewer with an offer for a video and the input channel.
    ///
    /// # Errors
    /// The protocol library makes no offer.
    pub fn offer(
        now: Instant,
        local: SocketAddr,
        verifier: Verifier,
    ) -> Result<(Self, String), ViewerError> {
        let slot = KeySlot::new(Decoy::Yes);
        let mut config = RtcConfig::new()
            .set_crypto_provider(keys::crypto())
            .set_rtp_mode(true)
            .set_extension(9, Extension::AbsoluteCaptureTime)
            .set_extension(10, Extension::PlayoutDelay);
        if let Some(certificate) = CERTIFICATE.clone() {
            config = config.set_dtls_cert(certificate);
        }
        let mut rtc = keys::with_slot(&slot, || config.build(now));
        let host = Candidate::host(local, "udp").map_err(|e| ViewerError::Rtc(e.to_string()))?;
        rtc.add_local_candidate(host);
        let mut api = rtc.sdp_api();
        api.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        let input = api.add_channel(INPUT.to_owned());
        let (offer, pending) =
            api.apply().ok_or_else(|| ViewerError::Rtc("it has nothing to offer".to_owned()))?;
        let viewer = Self {
            rtc,
            pending: Some(pending),
            slot,
            local,
            terms: None,
            verifier: Some(verifier),
            media: None,
            input,
            rtc_due: now,
            tick_due: None,
            connected: false,
            closed: false,
            mute: false,
        };
        Ok((viewer, offer.to_sdp_string()))
    }

    /// Takes the answer.
    ///
    /// # Errors
    /// An answer that does not fit the offer, or has no video.
    pub fn answer(&mut self, now: Instant, sdp: &str) -> Result<(), ViewerError> {
        let failed = |e: &dyn std::fmt::Display| ViewerError::Rtc(e.to_string());
        self.terms = Some(Terms::read(sdp)?);
        let answer = SdpAnswer::from_sdp_string(sdp).map_err(|e| failed(&e))?;
        let pending = self.pending.take().ok_or(ViewerError::NoOffer)?;
        self.rtc.sdp_api().accept_answer(pending, answer).map_err(|e| failed(&e))?;
        self.rtc_due = now;
        Ok(())
    }

    /// Takes a datagram.
    pub fn datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut impl Outlet,
    ) {
        if self.mute {
            return;
        }
        if matches!(bytes.first(), Some(128..=191)) {
            if self.media.is_none() {
                self.take_keys(now);
            }
            if let Some(media) = &mut self.media {
                media.datagram(now, bytes, out);
            }
            return;
        }
        let Ok(contents) = bytes.try_into() else { return };
        let receive =
            Receive { proto: Protocol::Udp, source: from, destination: self.local, contents };
        if self.rtc.handle_input(Input::Receive(now, receive)).is_err() {
            self.rtc.disconnect();
        }
        self.drain(now, out);
    }

    /// When [`Self::timeout`] is due.
    pub fn due(&self) -> Instant {
        self.tick_due.map_or(self.rtc_due, |tick| tick.min(self.rtc_due))
    }

    /// Sends `count` hostile packets; gives how many it sent.
    pub fn abuse(&mut self, now: Instant, kind: Abuse, count: u32, out: &mut impl Outlet) -> u32 {
        for n in 0..count {
            let Some(media) = &mut self.media else { return n };
            let Some(knows) = media.knows() else { return n };
            match kind.packet(&knows) {
                Hostile::Seal(plain) => media.send_sealed(&plain, out),
                Hostile::SealOnce(plain) => media.send_again(&plain, out),
                Hostile::Raw(bytes) => out.send(&bytes),
                Hostile::Channel(message) => {
                    if !self.send_input(now, &message, out) {
                        return n;
                    }
                }
                Hostile::Silence => {
                    self.mute = true;
                    return n;
                }
            }
        }
        count
    }

    /// Does what is due.
    pub fn timeout(&mut self, now: Instant, out: &mut impl Outlet) {
        if self.mute {
            // Nothing is ever due again.
            self.rtc_due = now + Duration::from_secs(3_600);
            self.tick_due = None;
            return;
        }
        if now >= self.rtc_due {
            if self.rtc.handle_input(Input::Timeout(now)).is_err() {
                self.rtc.disconnect();
            }
            self.drain(now, out);
        }
        if let Some(due) = self.tick_due
            && now >= due
        {
            // Late ticks are not made up for.
            self.tick_due = Some((due + media::FEEDBACK).max(now + media::FEEDBACK / 2));
            if let Some(media) = &mut self.media {
                media.tick(now, out);
            }
        }
    }

    /// Sends on the input channel; `false`: it is not open or has no room.
    pub fn send_input(&mut self, now: Instant, message: &[u8], out: &mut impl Outlet) -> bool {
        let Some(mut channel) = self.rtc.channel(self.input) else { return false };
        let sent = channel.write(true, message).unwrap_or(false);
        let _ = self.rtc.handle_input(Input::Timeout(now));
        self.drain(now, out);
        sent
    }

    /// Ends it properly: DTLS is told.
    pub fn close(&mut self, now: Instant, out: &mut impl Outlet) {
        if self.rtc.is_alive() {
            let _ = self.rtc.close();
            let _ = self.rtc.handle_input(Input::Timeout(now));
            self.drain(now, out);
        }
        self.closed = true;
    }

    /// Packets of media that it got so far.
    pub fn packets(&self) -> u64 {
        self.media.as_ref().map_or(0, |media| media.counts.packets)
    }

    /// What it came to so far.
    pub fn outcome(&self) -> Outcome {
        self.media.as_ref().map_or_else(Outcome::default, |media| Outcome {
            seen: media.verifier.seen(),
            media: media.counts,
            order: media.order(),
        })
    }

    fn take_keys(&mut self, now: Instant) {
        let Some(keying) = self.slot.take() else { return };
        let (Some(terms), Some(verifier)) = (self.terms.clone(), self.verifier.take()) else {
            return;
        };
        match Contexts::derive(&keying) {
            Ok(contexts) => {
                let ours = Ssrc(rand::random());
                self.media = Some(media::Media::new(now, contexts, terms, verifier, ours));
                // Viewers tick at different moments, as people join at different moments.
                let phase = rand::random_range(Duration::ZERO..media::FEEDBACK);
                self.tick_due = Some(now + phase);
            }
            Err(error) => tracing::warn!(%error, "the media keys are of no use"),
        }
    }

    fn drain(&mut self, now: Instant, out: &mut impl Outlet) {
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(at)) => {
                    // A moment that is over would make the caller's timers turn on the spot.
                    self.rtc_due = at.max(now + RTC_NAP_MIN);
                    break;
                }
                Ok(Output::Transmit(send)) => {
                    // Media that the library would send is sealed with decoys: nobody can read it.
                    if !matches!(send.contents.first(), Some(128..=191)) {
                        out.send_to(send.destination, &send.contents);
                    }
                }
                Ok(Output::Event(event)) => self.event(now, event, out),
                Err(_) => {
                    self.rtc.disconnect();
                    self.end(now, out);
                    break;
                }
            }
        }
        if !self.rtc.is_alive() {
            self.end(now, out);
        }
    }

    fn event(&mut self, now: Instant, event: Event, out: &mut impl Outlet) {
        match event {
            Event::Connected => {
                if self.media.is_none() {
                    self.take_keys(now);
                }
                if !std::mem::replace(&mut self.connected, true) {
                    out.connected(now);
                }
            }
            Event::ChannelOpen(id, _) if id == self.input => out.channel_open(now),
            Event::ChannelData(data) if data.id == self.input => out.message(now, &data.data),
            Event::Closed => self.end(now, out),
            _ => {}
        }
    }

    fn end(&mut self, now: Instant, out: &mut impl Outlet) {
        // A dead library has no next moment.
        self.rtc_due = now + Duration::from_secs(3_600);
        if !std::mem::replace(&mut self.closed, true) {
            out.closed(now);
        }
    }
}
