//! The life of one viewer: Joining, Live, Closing; its protocol state, feed, input and timers.
//!
//! Not the tables it stands in (`core`). Invariant: every call into the protocol library goes
//! through [`Viewer::guard`], so that whatever a viewer's bytes do to it stays with that viewer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanlight_rtc::keys::KeySlot;
use fanlight_rtc::srtp::Contexts;
use str0m::channel::ChannelId;
use str0m::net::{Protocol, Receive};
use str0m::{Event, Input, Output as RtcOutput, Rtc};

use crate::api::{
    GoneReason, Proto, Role, Route, SessionId, Share, StreamKey, ViewerState, ViewerStats,
};
use crate::budget::Budget;
use crate::demux::Entries;
use crate::egress::Media;
use crate::feed::Feed;
use crate::feedback::Reported;
use crate::gcc::{Estimator, Usage};
use crate::header::Terms;
use crate::input::Inputs;
use crate::limits::{
    PROTOCOL_DATAGRAMS, REPAIR_BYTES, REPAIR_REQUESTS, RTCP_DATAGRAMS, STUN_STRANGERS,
};
use crate::pressure::{Level, Pressure, Transitions};

/// Protocol timers further away than this are not set: the library says "never" with a moment a
/// century away.
const TIMER_MAX: Duration = Duration::from_secs(3_600);

/// How a guarded call into the protocol library failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Panic,
    Error,
}

/// What a frame's way to one viewer touches, side by side in memory.
#[derive(Debug)]
pub(crate) struct Hot {
    pub(crate) feed: Feed,
    pub(crate) pressure: Pressure,
    /// What of its transitions is counted already.
    pub(crate) noted: Transitions,
    /// Where media goes; known once the viewer is connected.
    pub(crate) route: Option<Route>,
    /// Made when DTLS agreed on keys.
    pub(crate) media: Option<Media>,
    /// Whether it is served before others.
    pub(crate) controller: bool,
    pub(crate) frames_thinned: u64,
    /// In the list of viewers whose pacing let them go on.
    pub(crate) ready: bool,
}

/// What a viewer may cost; see [`crate::limits`].
#[derive(Debug)]
pub(crate) struct Budgets {
    pub(crate) rtcp: Budget,
    pub(crate) strangers: Budget,
    pub(crate) protocol: Budget,
    pub(crate) repair_requests: Budget,
    pub(crate) repair_bytes: Budget,
}

impl Budgets {
    fn new(now: Instant) -> Self {
        let budget = |(per_second, burst)| Budget::new(now, per_second, burst);
        Self {
            rtcp: budget(RTCP_DATAGRAMS),
            strangers: budget(STUN_STRANGERS),
            protocol: budget(PROTOCOL_DATAGRAMS),
            repair_requests: budget(REPAIR_REQUESTS),
            repair_bytes: budget(REPAIR_BYTES),
        }
    }
}

/// One viewer.
#[derive(Debug)]
pub(crate) struct Viewer {
    pub(crate) hot: Hot,
    /// Distinguishes this viewer from an earlier one in the same slot.
    pub(crate) serial: u64,
    pub(crate) session: SessionId,
    pub(crate) stream: StreamKey,
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
    pub(crate) state: ViewerState,
    /// Boxed: 10 kB that the viewer table should not move about when it grows.
    rtc: Box<Rtc>,
    pub(crate) entries: Entries,
    /// What was agreed, until the media sender is made of it.
    terms: Option<Terms>,
    keys: KeySlot,
    pub(crate) estimator: Estimator,
    pub(crate) reported: Reported,
    pub(crate) budgets: Budgets,
    pub(crate) inputs: Inputs,
    pub(crate) input_channel: Option<ChannelId>,
    /// Where it shall go; told when the `input` channel is open.
    pub(crate) reconnect: Option<Box<str>>,
    pub(crate) moves_channel: Option<ChannelId>,
    pub(crate) channels_opened: usize,
    /// In the dirty list.
    pub(crate) dirty: bool,
    /// The protocol state must see the clock before it is polled.
    pub(crate) stale: bool,
    /// End of Joining or of Closing.
    pub(crate) deadline: Option<Instant>,
    pub(crate) session_end: Option<Instant>,
    /// Why it is Closing.
    pub(crate) closing: Option<GoneReason>,
    rtc_timeout: Option<Instant>,
    /// The moment for which this viewer's timer is set.
    pub(crate) timer: Option<Instant>,
    pub(crate) remote: Option<Route>,
    /// Where the protocol library sends to: where media goes until the viewer chooses another path.
    pub(crate) path: Option<Route>,
    pub(crate) chose_path: bool,
    pub(crate) keyframe_requests: u64,
}

/// What a new viewer is made of.
pub(crate) struct Parts {
    pub(crate) serial: u64,
    pub(crate) session: SessionId,
    pub(crate) stream: StreamKey,
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
    pub(crate) rtc: Rtc,
    pub(crate) entries: Entries,
    pub(crate) terms: Terms,
    pub(crate) keys: KeySlot,
    pub(crate) feed: Feed,
    pub(crate) inputs: Inputs,
    pub(crate) now: Instant,
    pub(crate) deadline: Instant,
    pub(crate) session_end: Option<Instant>,
}

impl Viewer {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            hot: Hot {
                feed: parts.feed,
                pressure: Pressure::new(),
                noted: Transitions::default(),
                route: None,
                media: None,
                controller: parts.role == Role::Controller,
                frames_thinned: 0,
                ready: false,
            },
            serial: parts.serial,
            session: parts.session,
            stream: parts.stream,
            name: parts.name,
            role: parts.role,
            state: ViewerState::Joining,
            rtc: Box::new(parts.rtc),
            entries: parts.entries,
            terms: Some(parts.terms),
            keys: parts.keys,
            estimator: Estimator::new(),
            reported: Reported::default(),
            budgets: Budgets::new(parts.now),
            inputs: parts.inputs,
            input_channel: None,
            reconnect: None,
            moves_channel: None,
            channels_opened: 0,
            dirty: false,
            stale: false,
            deadline: Some(parts.deadline),
            session_end: parts.session_end,
            closing: None,
            rtc_timeout: None,
            timer: None,
            remote: None,
            path: None,
            chose_path: false,
            keyframe_requests: 0,
        }
    }

    /// Runs a call into the protocol library such that its panic is this viewer's end, not the
    /// shard's. The state is not used again after a panic, but to be dropped.
    fn guard<T>(
        &mut self,
        call: impl FnOnce(&mut Rtc) -> Result<T, str0m::RtcError>,
    ) -> Result<T, Fault> {
        let rtc = &mut self.rtc;
        match catch_unwind(AssertUnwindSafe(|| call(rtc))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::debug!(session = %self.session, %error, "viewer's protocol error");
                Err(Fault::Error)
            }
            Err(_) => {
                tracing::warn!(session = %self.session, "viewer's bytes made the protocol library panic");
                Err(Fault::Panic)
            }
        }
    }

    /// Whether a STUN request carries this viewer's credentials.
    pub(crate) fn accepts(&mut self, now: Instant, receive: Receive<'_>) -> Result<bool, Fault> {
        self.guard(|rtc| Ok(rtc.accepts(&Input::Receive(now, receive))))
    }

    /// Gives a datagram to the protocol state.
    pub(crate) fn receive(&mut self, now: Instant, receive: Receive<'_>) -> Result<(), Fault> {
        self.guard(|rtc| rtc.handle_input(Input::Receive(now, receive)))
    }

    /// Drains the protocol state into `transmit` and `events`.
    pub(crate) fn drain(
        &mut self,
        now: Instant,
        mut transmit: impl FnMut(str0m::net::Transmit),
        events: &mut Vec<Event>,
    ) -> Result<(), Fault> {
        let stale = std::mem::take(&mut self.stale);
        let timeout = self.guard(|rtc| {
            if stale {
                rtc.handle_input(Input::Timeout(now))?;
            }
            // After sending media the library asks for the clock at once, only to note that it
            // need not have: said here, that costs a call instead of a timer.
            let mut again = true;
            loop {
                match rtc.poll_output()? {
                    RtcOutput::Timeout(at) if at <= now && again => {
                        again = false;
                        rtc.handle_input(Input::Timeout(now))?;
                    }
                    RtcOutput::Timeout(at) => return Ok(at),
                    RtcOutput::Transmit(t) => transmit(t),
                    RtcOutput::Event(e) => events.push(e),
                }
            }
        })?;
        self.rtc_timeout = (timeout.saturating_duration_since(now) < TIMER_MAX).then_some(timeout);
        Ok(())
    }

    /// Makes the media sender if DTLS has agreed on keys. `false`: it has not, or the keys cannot
    /// be used.
    pub(crate) fn take_keys(&mut self) -> bool {
        if self.hot.media.is_some() {
            return true;
        }
        let Some(keying) = self.keys.take() else { return false };
        let Ok(Contexts { rtp, rtcp, rtcp_in, .. }) = Contexts::derive(&keying) else {
            return false;
        };
        let Some(terms) = self.terms.take() else { return false };
        self.hot.media = Some(Media::new(terms, self.role, rtp, rtcp, rtcp_in));
        true
    }

    /// Gives the viewer new ICE credentials, ours and its own: the old path works until checks with
    /// the new ones choose another.
    pub(crate) fn restart_ice(
        &mut self,
        local: str0m::IceCreds,
        remote: str0m::IceCreds,
    ) -> Result<(), Fault> {
        self.guard(|rtc| {
            let mut api = rtc.direct_api();
            api.set_local_ice_credentials(local);
            api.set_remote_ice_credentials(remote);
            Ok(())
        })
    }

    /// Writes a message to a channel. `Ok(false)`: there is no room, or no channel.
    pub(crate) fn write(&mut self, channel: ChannelId, bytes: &[u8]) -> Result<bool, Fault> {
        self.guard(|rtc| match rtc.channel(channel) {
            Some(mut channel) => channel.write(true, bytes),
            None => Ok(false),
        })
    }

    /// Says goodbye to the peer.
    pub(crate) fn close(&mut self) -> Result<(), Fault> {
        self.guard(Rtc::close)
    }

    /// Whether the farewell is complete.
    pub(crate) fn is_closed(&self) -> bool {
        !self.rtc.is_alive()
    }

    /// The next moment at which something is due.
    pub(crate) fn next_wake(&self, limits: &crate::limits::Limits) -> Option<Instant> {
        let feed = if self.state == ViewerState::Live { self.hot.feed.wake(limits) } else { None };
        [self.rtc_timeout, self.deadline, self.session_end, feed, self.inputs.wake()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the protocol state's own timer is due.
    pub(crate) fn rtc_due(&self, now: Instant) -> bool {
        self.rtc_timeout.is_some_and(|at| at <= now)
    }

    pub(crate) fn stats(&self) -> ViewerStats {
        ViewerStats {
            session: self.session,
            stream: self.stream,
            viewer: Arc::clone(&self.name),
            role: self.role,
            state: self.state,
            remote: self.remote,
            frames_sent: self.hot.feed.frames_sent,
            packets_sent: self.hot.feed.packets_sent,
            bytes_sent: self.hot.feed.bytes_sent,
            keyframe_requests: self.keyframe_requests,
            inputs: self.inputs.accepted,
            inputs_denied: self.inputs.denied,
            rtt: self.reported.rtt,
            loss: self.reported.loss,
            jitter: self.reported.jitter,
            estimate_bps: self.estimator.estimate_bps(),
            acked_bps: self.estimator.acked_bps(),
            path_loss: self.estimator.loss(),
            delay: match self.estimator.usage() {
                Usage::Normal => "steady",
                Usage::Overuse => "growing",
                Usage::Underuse => "shrinking",
            },
            share: share(self.hot.pressure.level()),
            nacks: self.reported.nacks,
            repairs: self.reported.repairs,
            frames_thinned: self.hot.frames_thinned,
        }
    }
}

#[cfg(test)]
impl Viewer {
    /// Declares media to the protocol library, which then reports on it.
    pub(crate) fn provoke_media(&mut self) {
        let mut api = self.rtc.direct_api();
        let mid = str0m::media::Mid::from("0");
        api.declare_media(mid, str0m::media::MediaKind::Video);
        api.declare_stream_tx(7.into(), None, mid, None);
    }

    /// Stands in for bytes that make the protocol library panic.
    pub(crate) fn provoke_panic(&mut self) -> Fault {
        self.guard::<()>(|_| panic!("provoked by a test")).unwrap_err()
    }
}

/// A level of thinning in the words of the core's border.
fn share(level: Level) -> Share {
    match level {
        Level::Full => Share::Full,
        Level::NoDisposable => Share::References,
        Level::KeyframesOnly => Share::Keyframes,
    }
}

/// The library's word for a way.
fn protocol(proto: Proto) -> Protocol {
    match proto {
        Proto::Udp => Protocol::Udp,
        Proto::Tcp => Protocol::Tcp,
    }
}

/// Our word for the library's.
pub(crate) fn proto(protocol: Protocol) -> Proto {
    match protocol {
        Protocol::Tcp | Protocol::SslTcp | Protocol::Tls => Proto::Tcp,
        Protocol::Udp => Proto::Udp,
    }
}

/// Reads a datagram as the protocol library does. `None`: it is malformed, or made the parser
/// panic.
pub(crate) fn parse_datagram(
    from: Route,
    to: std::net::SocketAddr,
    bytes: &[u8],
) -> Option<Receive<'_>> {
    let read = || Receive::new(protocol(from.proto), from.addr, to, bytes).ok();
    catch_unwind(AssertUnwindSafe(read)).ok().flatten()
}
