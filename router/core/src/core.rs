//! Tables and dispatch: which viewer, which stream, what is dirty, what is due.
//!
//! No policy: what a viewer gets is decided in `feed`, what a device gets in `input`, what an
//! encoder is asked in `keyframe`. Invariants: a viewer is in the tables as a whole or not at all
//! ([`Core::remove`] is the only exit), and it has at most one timer.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use fanlight_wire::input::{
    CHANNEL_INPUT, CHANNEL_MOVES, DeviceBody, DeviceMessage, MESSAGE_MAX, Role as WireRole,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use slab::Slab;
use str0m::{Event, IceConnectionState};

use crate::api::{
    Answer, CoreConfig, DownReason, GoneReason, JoinRequest, KeyframeReason, LeaveReason, Output,
    Role, SessionId, StreamInfo, StreamKey, ViewerState, ViewerStats,
};
use crate::counters::Counters;
use crate::demux::{self, Demux};
use crate::egress::{EgressPath, RtpModePath};
use crate::error::JoinError;
use crate::feed::{Feed, Offered};
use crate::frame::Frame;
use crate::input::{Inputs, Standing};
use crate::join::{self, Shared};
use crate::limits::{CHANNELS_PER_VIEWER_MAX, Limits};
use crate::stream::{Stream, Taken};
use crate::viewer::{Fault, Parts, Viewer, parse_datagram};

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

/// Viewers: in, out, and what happens to them.
impl Core {
    fn try_join(&mut self, request: JoinRequest) -> Result<Answer, JoinError> {
        let JoinRequest { id, stream, offer, viewer: name, role, max_session, user_agent } =
            request;
        if self.sessions.contains_key(&id) {
            return Err(JoinError::DuplicateSession);
        }
        if self.viewers.len() >= self.limits.viewers_max {
            return Err(JoinError::Full);
        }
        let known = self.streams.get_mut(&stream).ok_or(JoinError::UnknownStream)?;
        if !known.live {
            return Err(JoinError::DeviceOffline);
        }
        let credentials = self.demux.fresh_credentials(&mut self.secrets);
        let agent = user_agent.as_deref();
        let accepted = join::accept(
            &self.shared,
            self.now,
            offer,
            credentials,
            known.params.as_deref(),
            agent,
        )?;
        let slot = self.viewers.vacant_entry();
        let key = slot.key();
        self.serial += 1;
        slot.insert(Viewer::new(Parts {
            serial: self.serial,
            session: id,
            stream,
            name,
            role,
            rtc: accepted.rtc,
            entries: self.demux.insert(key, &accepted.ufrag),
            egress: self.path.attach(accepted.terms),
            feed: Feed::new(self.random.random()),
            inputs: Inputs::new(self.now, &self.limits),
            deadline: self.now + self.limits.connect_deadline,
            session_end: max_session.map(|max| self.now + max),
        }));
        known.add(key, role);
        self.sessions.insert(id, key);
        self.mark(key);
        Ok(Answer { sdp: accepted.answer, profile_level_id: accepted.profile_level_id })
    }

    /// Says goodbye, and removes the viewer when that is done. One that never connected has
    /// nobody to say goodbye to.
    fn begin_close(&mut self, key: usize, reason: GoneReason) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        match viewer.state {
            ViewerState::Closing => return,
            ViewerState::Joining => return self.remove(key, reason),
            ViewerState::Live => {}
        }
        self.release_all(key);
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        viewer.state = ViewerState::Closing;
        viewer.closing = Some(reason);
        viewer.deadline = Some(self.now + self.limits.close_deadline);
        viewer.session_end = None;
        viewer.stale = true;
        if let Some(stream) = self.streams.get_mut(&viewer.stream) {
            stream.remove(key);
        }
        match viewer.close() {
            Ok(()) => self.mark(key),
            Err(_) => self.remove(key, reason),
        }
    }

    /// Drops all that is known of a viewer. The only way out of the tables.
    fn remove(&mut self, key: usize, reason: GoneReason) {
        self.release_all(key);
        let Some(viewer) = self.viewers.try_remove(key) else { return };
        if let Some(stream) = self.streams.get_mut(&viewer.stream) {
            stream.remove(key);
        }
        if let Some(at) = viewer.timer {
            self.timers.remove(&(at, Due::Viewer(key)));
        }
        self.demux.remove(&viewer.entries);
        self.sessions.remove(&viewer.session);
        self.counters.viewers_gone += 1;
        let session = viewer.session;
        tracing::debug!(%session, serial = viewer.serial, ?reason, "viewer gone");
        // After a panic its state may be anything, its destructor's behaviour included.
        if catch_unwind(AssertUnwindSafe(|| drop(viewer))).is_err() {
            self.counters.viewer_panics += 1;
        }
        self.out.push_back(Output::ViewerGone { session, reason });
    }

    /// The protocol library gave up on a viewer.
    fn fail(&mut self, key: usize, fault: Fault) {
        match fault {
            Fault::Panic => self.counters.viewer_panics += 1,
            Fault::Error => self.counters.viewer_errors += 1,
        }
        let closing = self.viewers.get(key).and_then(|v| v.closing);
        self.remove(key, closing.unwrap_or(GoneReason::ProtocolError));
    }

    /// A viewer's timer went off.
    fn viewer_due(&mut self, key: usize) {
        let now = self.now;
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        viewer.timer = None;
        if viewer.deadline.is_some_and(|at| at <= now) {
            let never = viewer.state == ViewerState::Joining;
            self.counters.viewers_never_connected += u64::from(never);
            let reason = viewer.closing.unwrap_or(GoneReason::NeverConnected);
            return self.remove(key, reason);
        }
        if viewer.session_end.is_some_and(|at| at <= now) {
            return self.begin_close(key, GoneReason::SessionOver);
        }
        if viewer.inputs.wake().is_some_and(|at| at <= now) {
            let messages = viewer.inputs.release_waiting(now, &self.limits, &mut self.counters);
            let (stream, session) = (viewer.stream, viewer.session);
            for message in messages {
                self.out.push_back(Output::ToDevice { stream, viewer: session, message });
            }
        }
        if viewer.rtc_due(now) {
            viewer.stale = true;
            self.mark(key);
        }
        self.pump(key);
        self.arm(key);
    }

    /// Polls a dirty viewer until it has nothing to say, and reacts to what it said.
    fn settle(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if !std::mem::take(&mut viewer.dirty) {
            return;
        }
        self.counters.rtc_polls += 1;
        let out = &mut self.out;
        let mut events = std::mem::take(&mut self.events);
        let drained = viewer.drain(
            self.now,
            |t| {
                out.push_back(Output::Transmit {
                    to: t.destination,
                    from: t.source,
                    bytes: t.contents.into(),
                });
            },
            &mut events,
        );
        for event in events.drain(..) {
            self.event(key, event);
        }
        self.events = events;
        if let Err(fault) = drained {
            return self.fail(key, fault);
        }
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.is_closed() {
            let reason = viewer.closing.unwrap_or(GoneReason::ProtocolError);
            return self.remove(key, reason);
        }
        self.arm(key);
    }

    fn event(&mut self, key: usize, event: Event) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        match event {
            Event::Connected => self.connected(key),
            Event::IceConnectionStateChange(IceConnectionState::Disconnected)
                if viewer.state == ViewerState::Live =>
            {
                self.remove(key, GoneReason::ConnectionLost);
            }
            Event::Closed => {
                // The library is already answering the farewell.
                if viewer.state == ViewerState::Joining {
                    self.remove(key, GoneReason::ClosedByViewer);
                } else {
                    self.begin_close(key, GoneReason::ClosedByViewer);
                }
            }
            Event::KeyframeRequest(_) => self.keyframe_wanted(key),
            Event::ChannelOpen(id, label) => {
                viewer.channels_opened += 1;
                if viewer.channels_opened > CHANNELS_PER_VIEWER_MAX {
                    return self.fail(key, Fault::Error);
                }
                if label == CHANNEL_INPUT && viewer.input_channel.is_none() {
                    viewer.input_channel = Some(id);
                    self.send_session(key);
                } else if label == CHANNEL_MOVES && viewer.moves_channel.is_none() {
                    viewer.moves_channel = Some(id);
                }
            }
            Event::ChannelClose(id) => {
                for channel in [&mut viewer.input_channel, &mut viewer.moves_channel] {
                    if *channel == Some(id) {
                        *channel = None;
                    }
                }
            }
            Event::ChannelData(data)
                if [viewer.input_channel, viewer.moves_channel].contains(&Some(data.id)) =>
            {
                self.input(key, &data.data);
            }
            Event::PeerStats(stats) => {
                viewer.rtt = stats.rtt.or(viewer.rtt);
                viewer.loss = stats.egress_loss_fraction.or(viewer.loss);
            }
            _ => {}
        }
    }

    fn connected(&mut self, key: usize) {
        let now = self.now;
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.state != ViewerState::Joining {
            return;
        }
        viewer.state = ViewerState::Live;
        viewer.deadline = None;
        viewer.feed.connected(now);
        let (session, stream) = (viewer.session, viewer.stream);
        self.counters.viewers_connected += 1;
        self.out.push_back(Output::ViewerConnected { session });
        if !self.replay(key) {
            self.need_keyframe(stream, KeyframeReason::Join);
        }
    }

    /// An input message arrived from a viewer.
    fn input(&mut self, key: usize, bytes: &[u8]) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.state != ViewerState::Live {
            return;
        }
        let (stream, session) = (viewer.stream, viewer.session);
        let online = self.streams.get(&stream).is_some_and(|s| s.live);
        let standing = Standing { role: viewer.role, online };
        let handled =
            viewer.inputs.handle(self.now, standing, bytes, &self.limits, &mut self.counters);
        for message in handled.to_device {
            self.out.push_back(Output::ToDevice { stream, viewer: session, message });
        }
        if let Some(reply) = handled.reply {
            self.send_message(key, &reply);
        }
    }

    /// Lets go of everything that a viewer holds on the device.
    fn release_all(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if let Some(message) = viewer.inputs.release_all() {
            let (stream, session) = (viewer.stream, viewer.session);
            self.out.push_back(Output::ToDevice { stream, viewer: session, message });
        }
    }

    fn send_session(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get(key) else { return };
        let Some(stream) = self.streams.get(&viewer.stream) else { return };
        let side = |side: u32| u16::try_from(side).unwrap_or(0);
        let (w, h) = stream.params.as_deref().map_or((0, 0), |p| (side(p.width), side(p.height)));
        let role = match viewer.role {
            Role::Observer => WireRole::Observer,
            Role::Controller => WireRole::Controller,
        };
        let body = DeviceBody::Session { w, h, rotation: stream.rotation & 3, role };
        self.send_message(key, &DeviceMessage { seq: 0, lease_epoch: 0, body });
    }

    /// Tells every viewer of a stream its size.
    fn tell_session(&mut self, stream: StreamKey) {
        let Some(known) = self.streams.get(&stream) else { return };
        for key in known.viewers().collect::<Vec<_>>() {
            self.send_session(key);
        }
    }

    fn send_message(&mut self, key: usize, message: &DeviceMessage) {
        let mut bytes = Vec::with_capacity(24);
        if message.encode(&mut bytes).is_ok() {
            self.write_input(key, &bytes);
        }
    }

    /// Writes to a viewer's `input` channel, if it has one.
    fn write_input(&mut self, key: usize, bytes: &[u8]) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        let Some(channel) = viewer.input_channel else { return };
        match viewer.write(channel, bytes) {
            Ok(true) => {}
            Ok(false) | Err(Fault::Error) => self.counters.channel_messages_dropped += 1,
            Err(Fault::Panic) => return self.fail(key, Fault::Panic),
        }
        if let Some(viewer) = self.viewers.get_mut(key) {
            viewer.stale = true;
        }
        self.mark(key);
    }

    fn mark(&mut self, key: usize) {
        if let Some(viewer) = self.viewers.get_mut(key)
            && !std::mem::replace(&mut viewer.dirty, true)
        {
            self.dirty.push_back(key);
        }
    }

    /// Sets a viewer's one timer to its next moment.
    fn arm(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        let soonest = self.now + TIMER_GRAIN;
        // A timer that is already as near as may be stays: moving it on each time would mean that
        // a busy viewer's timer never comes.
        let wake = viewer.next_wake(&self.limits).map(|at| match viewer.timer {
            Some(set) if (at..=soonest).contains(&set) => set,
            _ => at.max(soonest),
        });
        if wake == viewer.timer {
            return;
        }
        if let Some(old) = viewer.timer {
            self.timers.remove(&(old, Due::Viewer(key)));
        }
        viewer.timer = wake;
        if let Some(at) = wake {
            self.timers.insert((at, Due::Viewer(key)));
        }
    }
}

/// Media.
impl Core {
    /// Gives a frame to every viewer of its stream.
    fn fan_out(&mut self, stream: StreamKey, frame: &Arc<Frame>) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        let mut turn = std::mem::take(&mut self.turn);
        turn.clear();
        turn.extend(known.in_turn());
        let mut overflowed = false;
        for key in turn.iter().copied() {
            let Some(viewer) = self.viewers.get_mut(key) else { continue };
            match viewer.feed.live(self.now, frame, &self.limits) {
                Offered::Taken => {
                    self.counters.frames_forwarded += 1;
                    self.pump(key);
                    self.arm(key);
                }
                Offered::Skipped => self.counters.frames_skipped += 1,
                Offered::Overflowed => {
                    self.counters.frames_skipped += 1;
                    overflowed = true;
                }
            }
        }
        self.turn = turn;
        if overflowed {
            self.need_keyframe(stream, KeyframeReason::Loss);
        }
    }

    /// Sends what a viewer's pacing allows.
    fn pump(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        let before = (viewer.feed.packets_sent, viewer.feed.bytes_sent);
        match viewer.pump(self.now, &self.path, &self.limits) {
            Ok(false) => {}
            Ok(true) => {
                viewer.stale = true;
                self.counters.packets_forwarded += viewer.feed.packets_sent - before.0;
                self.counters.bytes_forwarded += viewer.feed.bytes_sent - before.1;
                self.mark(key);
            }
            Err(fault) => self.fail(key, fault),
        }
    }

    /// Replays the cache to a viewer. `false`: there is nothing to replay.
    fn replay(&mut self, key: usize) -> bool {
        let Some(viewer) = self.viewers.get_mut(key) else { return true };
        let Some(stream) = self.streams.get(&viewer.stream).filter(|s| !s.gop.is_empty()) else {
            return false;
        };
        let count = viewer.feed.replay(self.now, stream.gop.replay());
        self.counters.gop_replays += 1;
        self.counters.frames_replayed += count as u64;
        self.pump(key);
        self.arm(key);
        true
    }

    /// A viewer sent PLI or FIR.
    fn keyframe_wanted(&mut self, key: usize) {
        let (now, interval) = (self.now, self.limits.keyframe_interval);
        self.counters.keyframe_wanted += 1;
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        viewer.keyframe_requests += 1;
        let stream = viewer.stream;
        if viewer.feed.replay_under_way(now, interval) {
            self.counters.keyframe_from_cache += 1;
            return;
        }
        if viewer.feed.may_replay(now, interval) && self.replay(key) {
            self.counters.keyframe_from_cache += 1;
            return;
        }
        self.need_keyframe(stream, KeyframeReason::Loss);
    }

    fn need_keyframe(&mut self, stream: StreamKey, reason: KeyframeReason) {
        if let Some(known) = self.streams.get_mut(&stream)
            && known.live
            && known.viewer_count() > 0
        {
            known.keyframes.need(self.now, self.limits.keyframe_interval, reason);
            self.arm_stream(stream);
        }
    }

    /// Sends a stream's due keyframe request and sets its timer to the next.
    fn arm_stream(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if stream.viewer_count() == 0 {
            stream.keyframes.met();
        }
        if let Some(reason) = stream.keyframes.poll(self.now, self.limits.keyframe_retry) {
            self.counters.keyframe_requested += 1;
            self.out.push_back(Output::KeyframeRequest { stream: key, reason });
        }
        let due = stream.keyframes.due();
        if due == stream.timer {
            return;
        }
        if let Some(old) = stream.timer {
            self.timers.remove(&(old, Due::Stream(key)));
        }
        stream.timer = due;
        if let Some(at) = due {
            self.timers.insert((at, Due::Stream(key)));
        }
    }

    /// The source of a stream is gone or another: nothing decodes until its next keyframe.
    fn restart_feeds(&mut self, stream: StreamKey) {
        let Some(known) = self.streams.get(&stream) else { return };
        for key in known.viewers() {
            if let Some(viewer) = self.viewers.get_mut(key) {
                viewer.feed.wait_key(true);
            }
        }
    }
}

#[cfg(test)]
impl Core {
    /// Has a viewer's protocol state panic, as bytes from that viewer might.
    pub(crate) fn provoke_panic(&mut self, session: SessionId) {
        let key = self.sessions[&session];
        let fault = self.viewers[key].provoke_panic();
        self.fail(key, fault);
    }
}

/// The address that a viewer knows us by, for a datagram that arrived on `to`.
fn local_address(candidates: &[SocketAddr], to: SocketAddr) -> SocketAddr {
    if candidates.contains(&to) {
        return to;
    }
    candidates.iter().find(|c| c.is_ipv4() == to.is_ipv4()).copied().unwrap_or(to)
}
