//! Tables and dispatch: which viewer, which stream, what is dirty, what is due.
//!
//! No policy: what a viewer gets is decided in `feed`, what a device gets in `input`, what an
//! encoder is asked in `keyframe`. Invariants: a viewer is in the tables as a whole or not at all,
//! and it has at most one timer.

mod media;
mod viewers;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use fanlight_wire::input::MESSAGE_MAX;
use rand::SeedableRng;
use rand::rngs::StdRng;
use slab::Slab;
use str0m::Event;

use crate::api::{
    Answer, CoreConfig, DownReason, GoneReason, JoinRequest, KeyframeReason, LeaveReason, Output,
    Role, SessionId, StreamInfo, StreamKey, ViewerState, ViewerStats,
};
use crate::counters::Counters;
use crate::demux::{self, Demux};
use crate::egress::RtpModePath;
use crate::error::JoinError;
use crate::frame::Frame;
use crate::join::Shared;
use crate::limits::Limits;
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

/// All streams and viewers of one shard. See the crate's documentation for the contract.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    candidates: Vec<SocketAddr>,
    shared: Shared,
    path: RtpModePath,
    random: StdRng,
    /// Seeded by the system, for what must not be guessed.
    secrets: StdRng,
    /// The latest moment seen; inputs with an earlier one happen now.
    now: Instant,
    serial: u64,
    streams: AHashMap<StreamKey, Stream>,
    viewers: Slab<Viewer>,
    sessions: AHashMap<SessionId, usize>,
    demux: Demux,
    timers: BTreeSet<(Instant, Due)>,
    /// Viewers whose protocol state must be polled. A key may be stale; the viewer's flag decides.
    dirty: VecDeque<usize>,
    out: VecDeque<Output>,
    /// Reused between calls.
    turn: Vec<usize>,
    events: Vec<Event>,
    counters: Counters,
}

/// Inputs.
impl Core {
    /// A core without streams or viewers. `seed` drives what need not be secret (first sequence
    /// numbers); ICE credentials and keys come from the system.
    #[must_use]
    pub fn new(cfg: CoreConfig, now: Instant, seed: u64) -> Self {
        let CoreConfig { candidates, limits, stats_interval } = cfg;
        Self {
            shared: Shared::new(&candidates, stats_interval, limits.rtx_packets),
            limits,
            candidates,
            path: RtpModePath,
            random: StdRng::seed_from_u64(seed),
            secrets: StdRng::from_os_rng(),
            now,
            serial: 0,
            streams: AHashMap::new(),
            viewers: Slab::new(),
            sessions: AHashMap::new(),
            demux: Demux::default(),
            timers: BTreeSet::new(),
            dirty: VecDeque::new(),
            out: VecDeque::new(),
            turn: Vec::new(),
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

    /// A picture arrived: cached, and given to every live viewer of the stream.
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
        match s.take(&frame, &self.limits, &mut self.counters) {
            Taken::Refused => self.counters.frames_refused += 1,
            Taken::Undecodable { first } => {
                self.counters.frames_skipped += s.viewer_count() as u64;
                if first {
                    for key in s.viewers() {
                        if let Some(viewer) = self.viewers.get_mut(key) {
                            viewer.feed.wait_key(false);
                        }
                    }
                    self.need_keyframe(stream, KeyframeReason::Gap);
                }
            }
            Taken::Forward { resized } => {
                self.fan_out(stream, &frame);
                self.arm_stream(stream);
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

    /// A datagram arrived on the shard's socket. `to` may be any local address: one that is not a
    /// configured candidate (wildcard bind, NAT) is replaced by the first of the same family.
    pub fn datagram(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
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
        let to = local_address(&self.candidates, to);
        let Some(receive) = parse_datagram(from, to, bytes) else {
            self.counters.datagrams_malformed += 1;
            return;
        };
        if kind == demux::Kind::Stun && known != Some(key) {
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
    }
}

/// The address that a viewer knows us by, for a datagram that arrived on `to`.
fn local_address(candidates: &[SocketAddr], to: SocketAddr) -> SocketAddr {
    if candidates.contains(&to) {
        return to;
    }
    candidates.iter().find(|c| c.is_ipv4() == to.is_ipv4()).copied().unwrap_or(to)
}
