//! Tables and dispatch: which viewer, which stream, what is dirty, what is due.
//!
//! No policy: what a viewer gets is decided in `feed`, what a device gets in `input`, what an
//! encoder is asked in `keyframe`. Invariants: a viewer is in the tables as a whole or not at all,
//! and it has at most one timer.

mod feedback;
mod media;
mod viewers;

pub(crate) use media::Scratch;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use fanlight_wire::input::MESSAGE_MAX;
use rand::SeedableRng;
use rand::rngs::StdRng;
use slab::Slab;
use str0m::{Event, IceCreds};

use crate::api::{
    Answer, CoreConfig, DownReason, GoneReason, IceCredentials, JoinRequest, KeyframeReason,
    LeaveReason, Output, Proto, Role, Route, SessionId, StreamInfo, StreamKey, ViewerState,
    ViewerStats,
};
use crate::counters::Counters;
use crate::demux::{self, Demux};
use crate::error::JoinError;
use crate::frame::Frame;
use crate::gcc::PacketResult;
use crate::join::Shared;
use crate::limits::Limits;
use crate::sent::Found;
use crate::stream::{Stream, Taken};
use crate::viewer::{Fault, Viewer, parse_datagram};

/// Least time between two timers of one viewer: the protocol library may ask for "now" again and
/// again, and a shard wakes for a batch of timers rather than for each.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Viewer(usize),
    Stream(StreamKey),
}

/// A packet to be sent again.
#[derive(Debug, Clone, Copy)]
struct Repair {
    viewer: usize,
    /// Of the viewer: its slot may be another's by now.
    serial: u64,
    seq: u16,
    found: Found,
}

/// Where viewers reach the shard.
#[derive(Debug)]
struct Reached {
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
}

impl Reached {
    fn by(&self, proto: Proto) -> &[SocketAddr] {
        match proto {
            Proto::Udp => &self.udp,
            Proto::Tcp => &self.tcp,
        }
    }
}

/// All streams and viewers of one shard. See the crate's documentation for the contract.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    reached: Reached,
    shared: Shared,
    random: StdRng,
    /// Seeded by the system, for what must not be guessed.
    secrets: StdRng,
    /// The latest moment seen; inputs with an earlier one happen now.
    now: Instant,
    start: Instant,
    start_unix_us: u64,
    serial: u64,
    streams: AHashMap<StreamKey, Stream>,
    viewers: Slab<Viewer>,
    sessions: AHashMap<SessionId, usize>,
    demux: Demux,
    timers: BTreeSet<(Instant, Due)>,
    /// Viewers whose protocol state must be polled. A key may be stale; the viewer's flag decides.
    dirty: VecDeque<usize>,
    out: VecDeque<Output>,
    /// Media work, in order of precedence: streams whose controllers are to be served, ...
    lead: VecDeque<StreamKey>,
    /// ... packets to be sent again (bounded by [`crate::limits::REPAIRS_MAX`]), ...
    repairs: VecDeque<Repair>,
    /// ... streams whose observers are to be served, ...
    rest: VecDeque<StreamKey>,
    /// ... and viewers whose pacing lets them go on, each once.
    ready: VecDeque<usize>,
    /// Reused between calls.
    paced: Vec<usize>,
    scratch: Scratch,
    opened: Vec<u8>,
    arrived: Vec<PacketResult>,
    events: Vec<Event>,
    counters: Counters,
}

/// Inputs.
impl Core {
    /// A core without streams or viewers. `seed` drives what need not be secret (first sequence
    /// numbers); ICE credentials and keys come from the system.
    #[must_use]
    pub fn new(cfg: CoreConfig, now: Instant, seed: u64) -> Self {
        let CoreConfig { candidates, tcp_candidates, limits, start_unix_us } = cfg;
        Self {
            shared: Shared::new(&candidates, &tcp_candidates),
            limits,
            reached: Reached { udp: candidates, tcp: tcp_candidates },
            random: StdRng::seed_from_u64(seed),
            secrets: StdRng::from_os_rng(),
            now,
            start: now,
            start_unix_us,
            serial: 0,
            streams: AHashMap::new(),
            viewers: Slab::new(),
            sessions: AHashMap::new(),
            demux: Demux::default(),
            timers: BTreeSet::new(),
            dirty: VecDeque::new(),
            out: VecDeque::new(),
            lead: VecDeque::new(),
            repairs: VecDeque::new(),
            rest: VecDeque::new(),
            ready: VecDeque::new(),
            paced: Vec::new(),
            scratch: Scratch::default(),
            opened: Vec::with_capacity(2_048),
            arrived: Vec::with_capacity(256),
            events: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// A stream has a source: it is new, it came back, or its source restarted with a higher
    /// epoch. Viewers that waited go on with its next keyframe.
    pub fn stream_up(&mut self, now: Instant, stream: StreamKey, info: StreamInfo) {
        self.advance(now);
        if let Some(known) = self.streams.get_mut(&stream) {
            if known.up(info) {
                self.restart_feeds(stream);
                self.tell_session(stream);
            }
            return;
        }
        if self.streams.len() >= self.limits.streams_max {
            self.counters.streams_refused += 1;
            return;
        }
        self.counters.streams_opened += 1;
        self.streams.insert(stream, Stream::new(info));
    }

    /// A stream lost its source. Viewers stay connected and wait.
    pub fn stream_down(&mut self, now: Instant, stream: StreamKey, reason: DownReason) {
        self.advance(now);
        if let Some(known) = self.streams.get_mut(&stream) {
            tracing::debug!(stream = %known.name, ?reason, "stream down");
            known.down();
            self.restart_feeds(stream);
            self.arm_stream(stream);
        }
    }

    /// A stream is no longer served here. Its viewers are closed.
    pub fn stream_removed(&mut self, now: Instant, stream: StreamKey, reason: DownReason) {
        self.advance(now);
        let Some(known) = self.streams.get(&stream) else { return };
        let viewers: Vec<usize> = known.viewers().collect();
        for key in viewers {
            self.begin_close(key, GoneReason::StreamRemoved(reason));
        }
        if let Some(gone) = self.streams.remove(&stream) {
            self.counters.streams_closed += 1;
            if let Some(at) = gone.timer {
                self.timers.remove(&(at, Due::Stream(stream)));
            }
        }
    }

    /// A picture arrived: it is cached, and its viewers are to be served by [`Core::poll_media`].
    pub fn frame(&mut self, now: Instant, stream: StreamKey, frame: Arc<Frame>) {
        self.advance(now);
        self.counters.frames_in += 1;
        let newer = match self.streams.get_mut(&stream) {
            Some(s) if s.live && frame.epoch >= s.epoch => frame.epoch > s.epoch,
            _ => {
                self.counters.frames_refused += 1;
                return;
            }
        };
        if newer && let Some(s) = self.streams.get_mut(&stream) {
            s.new_epoch(frame.epoch);
            self.restart_feeds(stream);
        }
        let Some(s) = self.streams.get_mut(&stream) else { return };
        match s.take(self.now, &frame, &self.limits, &mut self.counters) {
            Taken::Refused => self.counters.frames_refused += 1,
            Taken::Undecodable { first } => {
                self.counters.frames_skipped += s.viewer_count() as u64;
                if first {
                    for key in s.viewers() {
                        if let Some(viewer) = self.viewers.get_mut(key) {
                            viewer.hot.feed.wait_key(false);
                        }
                    }
                    self.need_keyframe(stream, KeyframeReason::Gap);
                }
            }
            Taken::Forward { resized, overflowed } => {
                self.begin_pass(stream);
                self.arm_stream(stream);
                if overflowed {
                    self.need_keyframe(stream, KeyframeReason::Cache);
                }
                if resized {
                    self.tell_session(stream);
                }
            }
        }
    }

    /// A message from the device (clipboard, for example): goes to the `input` channel of every
    /// controller of the stream.
    pub fn device_output(&mut self, now: Instant, stream: StreamKey, bytes: &[u8]) {
        self.advance(now);
        let Some(known) = self.streams.get(&stream) else { return };
        if bytes.len() > MESSAGE_MAX {
            self.counters.channel_messages_dropped += 1;
            return;
        }
        for key in known.controllers().to_vec() {
            self.write_input(key, bytes);
        }
    }

    /// Answers an offer.
    ///
    /// # Errors
    /// See [`JoinError`]. Nothing of a refused join is kept.
    pub fn join(&mut self, now: Instant, request: JoinRequest) -> Result<Answer, JoinError> {
        self.advance(now);
        let answer = self.try_join(request);
        match answer {
            Ok(_) => self.counters.viewers_joined += 1,
            Err(_) => self.counters.joins_refused += 1,
        }
        answer
    }

    /// Sends a viewer elsewhere: it is told this address on its `input` channel, when that opens if
    /// it is not open yet. The session goes on until its viewer ends it. Unknown sessions are
    /// ignored.
    pub fn reconnect(&mut self, now: Instant, session: SessionId, url: &str) {
        self.advance(now);
        if let Some(key) = self.sessions.get(&session).copied() {
            if let Some(viewer) = self.viewers.get_mut(key) {
                viewer.reconnect = Some(url.into());
            }
            self.send_reconnect(key);
        }
    }

    /// Ends a viewer's session. Unknown sessions are ignored.
    pub fn leave(&mut self, now: Instant, session: SessionId, reason: LeaveReason) {
        self.advance(now);
        if let Some(key) = self.sessions.get(&session).copied() {
            self.begin_close(key, GoneReason::Left(reason));
        }
    }

    /// Changes what a viewer may do; it is told by a session message.
    pub fn set_role(&mut self, now: Instant, session: SessionId, role: Role) {
        self.advance(now);
        let Some(key) = self.sessions.get(&session).copied() else { return };
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.role == role || viewer.state == ViewerState::Closing {
            return;
        }
        viewer.role = role;
        viewer.hot.controller = role == Role::Controller;
        if let Some(media) = &mut viewer.hot.media {
            media.set_role(role);
        }
        let stream = viewer.stream;
        if let Some(known) = self.streams.get_mut(&stream) {
            known.remove(key);
            known.add(key, role);
        }
        if role == Role::Observer {
            self.release_all(key);
        }
        self.send_session(key);
    }

    /// A viewer asks to be reached in another way (RFC 8445, 9): new credentials for checks, its own
    /// and ours. What flows goes on until its checks have chosen a path. `None`: no such session.
    pub fn restart_ice(
        &mut self,
        now: Instant,
        session: SessionId,
        remote: IceCredentials,
    ) -> Option<IceCredentials> {
        self.advance(now);
        let key = self.sessions.get(&session).copied()?;
        let local = self.demux.fresh_credentials(&mut self.secrets);
        let viewer = self.viewers.get_mut(key).filter(|v| v.state != ViewerState::Closing)?;
        let remote = IceCreds { ufrag: remote.ufrag, pass: remote.pwd };
        if let Err(fault) = viewer.restart_ice(local.clone(), remote) {
            self.fail(key, fault);
            return None;
        }
        self.demux.rename(key, &mut viewer.entries, &local.ufrag);
        self.counters.ice_restarts += 1;
        Some(IceCredentials { ufrag: local.ufrag, pwd: local.pass })
    }

    /// A datagram arrived on the shard's socket. `to` may be any local address: one that is not a
    /// configured candidate (wildcard bind, NAT) is replaced by the first of the same family.
    pub fn datagram(&mut self, now: Instant, from: Route, to: SocketAddr, bytes: &[u8]) {
        self.advance(now);
        self.counters.datagrams_in += 1;
        let Some(kind) = demux::kind(bytes) else {
            self.counters.datagrams_malformed += 1;
            self.counters.datagrams_unknown += 1;
            return;
        };
        let known = self.demux.by_address(from);
        let found = match kind {
            demux::Kind::Stun => self.demux.by_stun(bytes),
            demux::Kind::Dtls | demux::Kind::Media => known,
        };
        let Some((key, viewer)) = found.and_then(|k| Some((k, self.viewers.get_mut(k)?))) else {
            self.counters.datagrams_unknown += 1;
            return;
        };
        if kind == demux::Kind::Media {
            return self.media_datagram(key, bytes);
        }
        let proved = known == Some(key);
        let budgets = &mut viewer.budgets;
        if !proved && !budgets.strangers.take(self.now, 1) {
            self.counters.stun_denied_rate += 1;
            return;
        }
        if proved && !budgets.protocol.take(self.now, 1) {
            self.counters.protocol_denied_rate += 1;
            return;
        }
        let to = local_address(self.reached.by(from.proto), to);
        let Some(receive) = parse_datagram(from, to, bytes) else {
            self.counters.datagrams_malformed += 1;
            return;
        };
        if kind == demux::Kind::Stun && !proved {
            if !Demux::may_learn(&viewer.entries) {
                self.counters.candidates_refused += 1;
                return;
            }
            // The message is parsed twice on this path only: once per new address.
            let check = parse_datagram(from, to, bytes);
            match check.map(|check| viewer.accepts(self.now, check)) {
                Some(Ok(true)) => self.demux.learn(key, &mut viewer.entries, from),
                Some(Err(fault)) => return self.fail(key, fault),
                _ => {
                    self.counters.stun_rejected += 1;
                    return;
                }
            }
        }
        viewer.remote = Some(from);
        // Media follows at once when the viewer's side chooses another path, and only on its word.
        let moves = viewer.hot.route.is_some_and(|route| route != from);
        if moves && kind == demux::Kind::Stun && demux::nominates(bytes) {
            let check = parse_datagram(from, to, bytes);
            match check.map(|check| viewer.accepts(self.now, check)) {
                Some(Ok(true)) => {
                    viewer.hot.route = Some(from);
                    viewer.chose_path = true;
                    self.counters.paths_changed += 1;
                }
                Some(Err(fault)) => return self.fail(key, fault),
                _ => self.counters.stun_rejected += 1,
            }
        }
        match viewer.receive(self.now, receive) {
            Ok(()) => {}
            // Anybody can send a broken record from a forged address: that is no reason to drop
            // the viewer. If its own state is broken, the poll says so.
            Err(Fault::Error) => {
                self.counters.datagrams_malformed += 1;
                viewer.stale = true;
            }
            Err(Fault::Panic) => return self.fail(key, Fault::Panic),
        }
        self.mark(key);
    }

    /// The moment of [`Self::next_timeout`] has come (calling it early is harmless).
    pub fn timeout(&mut self, now: Instant) {
        self.advance(now);
        while let Some((at, due)) = self.timers.first().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop_first();
            match due {
                Due::Viewer(key) => self.viewer_due(key),
                Due::Stream(key) => {
                    if let Some(stream) = self.streams.get_mut(&key) {
                        stream.timer = None;
                    }
                    self.arm_stream(key);
                }
            }
        }
    }

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    fn since_start_us(&self) -> u64 {
        let passed = self.now.saturating_duration_since(self.start);
        u64::try_from(passed.as_micros()).unwrap_or(u64::MAX)
    }

    fn unix_us(&self) -> u64 {
        self.start_unix_us.saturating_add(self.since_start_us())
    }
}

/// Outputs and figures.
impl Core {
    /// The next thing to do, or `None` when there is nothing until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.out.pop_front() {
                if let Output::Transmit { bytes, .. } = &output {
                    self.counters.datagrams_out += 1;
                    self.counters.bytes_out += bytes.len() as u64;
                }
                return Some(output);
            }
            let key = self.dirty.pop_front()?;
            self.settle(key);
        }
    }

    /// When [`Self::timeout`] must be called at the latest. Ask after draining.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Viewers that have state here, those that are closing included.
    #[must_use]
    pub fn viewer_count(&self) -> usize {
        self.viewers.len()
    }

    /// Streams that have state here.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Viewers of one stream that are not closing.
    #[must_use]
    pub fn viewers_of(&self, stream: StreamKey) -> usize {
        self.streams.get(&stream).map_or(0, Stream::viewer_count)
    }

    /// One viewer's figures.
    #[must_use]
    pub fn viewer_stats(&self, session: SessionId) -> Option<ViewerStats> {
        self.sessions.get(&session).and_then(|key| self.viewers.get(*key)).map(Viewer::stats)
    }

    /// Every viewer's figures. Costs time in proportion to the viewers: for reports, about once a
    /// second.
    pub fn all_viewer_stats(&self) -> impl Iterator<Item = ViewerStats> + '_ {
        self.viewers.iter().map(|(_, viewer)| viewer.stats())
    }

    /// Entries in all tables that belong to viewers, for tests that look for what was left behind.
    #[must_use]
    pub fn viewer_entries(&self) -> usize {
        let timers = self.timers.iter().filter(|(_, due)| matches!(due, Due::Viewer(_))).count();
        let subscribed: usize = self.streams.values().map(Stream::viewer_count).sum();
        self.viewers.len()
            + self.sessions.len()
            + self.demux.len()
            + timers
            + subscribed
            + self.dirty.len()
            + self.out.len()
            + self.repairs.len()
            + self.ready.len()
    }
}

/// The address that a viewer knows us by, for a datagram that arrived on `to`.
fn local_address(candidates: &[SocketAddr], to: SocketAddr) -> SocketAddr {
    if candidates.contains(&to) {
        return to;
    }
    candidates.iter().find(|c| c.is_ipv4() == to.is_ipv4()).copied().unwrap_or(to)
}

/// The candidate from which a viewer at `to` is spoken to.
fn local_for(candidates: &[SocketAddr], to: Route) -> SocketAddr {
    let found = candidates.iter().find(|c| c.is_ipv4() == to.addr.is_ipv4());
    found.or_else(|| candidates.first()).copied().unwrap_or(to.addr)
}
