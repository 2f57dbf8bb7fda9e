//! A shard: one thread, one UDP socket, one [`Core`], one clock. The loop is: receive, tell the
//! core, send what it has in batches, receiving in between, arm the timer. It decides nothing.
//! Back-pressure: the inbox is bounded, its producers never wait (a frame that finds it full is
//! dropped, and so are those after it until the next keyframe). Media that finds the socket full
//! waits, one batch here and the rest as numbers in the core, until the socket is writable; small
//! datagrams (STUN, DTLS) that find it full are dropped. All counted. Invariant: the core is touched
//! by this thread alone.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use fanlight_router_core::{
    Answer, Batch, Core, CoreConfig, DownReason, Frame, GoneReason, IceCredentials, JoinError,
    JoinRequest, KeyframeReason, LeaveReason, Limits, Output, Proto, Role, Route, SessionId,
    StreamInfo, StreamKey, ViewerStats,
};
use mio::{Events, Interest, Poll, Token, Waker, event::Event};
use tokio::sync::{mpsc, oneshot};

use crate::{
    config::RouterConfig,
    error::RouterError,
    latency::Latency,
    metrics::ShardMetrics,
    pin::pin_shard,
    tcp::TcpSide,
    udp::{Cursor, Fate, Flow, Sent, ShardSocket},
};

/// What the rest of the router asks of a shard.
#[derive(Debug)]
pub(crate) enum Command {
    /// The stream has a source. `gop` is its current group of pictures, so that a shard that did
    /// not carry the stream can serve a joiner at once.
    StreamUp { key: StreamKey, info: StreamInfo, gop: Vec<Arc<Frame>> },
    /// The source is gone; viewers wait.
    StreamDown { key: StreamKey, reason: DownReason },
    /// The stream is no longer served by this shard.
    StreamRemoved { key: StreamKey, reason: DownReason },
    /// One picture.
    Frame { key: StreamKey, frame: Arc<Frame> },
    /// A message of the device for its controllers.
    DeviceOutput { key: StreamKey, message: Arc<[u8]> },
    /// A join; the answer goes to `reply`.
    Join { request: Box<JoinRequest>, reply: oneshot::Sender<Result<Answer, JoinError>> },
    /// Ends a session.
    Leave { session: SessionId, reason: LeaveReason },
    /// Changes what a viewer may do.
    SetRole { session: SessionId, role: Role },
    /// Tells a viewer to join elsewhere.
    Reconnect { session: SessionId, url: Arc<str> },
    /// A viewer asks for an ICE restart with these credentials of its own; ours go to `reply`.
    RestartIce {
        session: SessionId,
        remote: IceCredentials,
        reply: oneshot::Sender<Option<IceCredentials>>,
    },
    /// Every viewer's figures go to `reply`.
    Stats { reply: oneshot::Sender<Vec<ViewerStats>> },
    /// Closes all sessions properly, then ends the thread, at the latest at `until`.
    Stop { until: Instant },
}

/// What a shard tells the rest of the router.
#[derive(Debug)]
pub(crate) enum ShardEvent {
    /// Input for a device.
    ToDevice { stream: StreamKey, viewer: SessionId, message: Vec<u8> },
    /// The encoder should make a keyframe.
    KeyframeRequest { stream: StreamKey, reason: KeyframeReason },
    /// ICE and DTLS completed.
    ViewerConnected { session: SessionId },
    /// The session is over.
    ViewerGone { session: SessionId, reason: GoneReason },
    /// The shard's thread has failed; nothing more comes from it.
    Died { shard: usize },
}

/// Figures of one shard that others read; written once a second.
#[derive(Debug, Default)]
pub(crate) struct ShardStats {
    /// The thread runs.
    pub(crate) alive: AtomicBool,
    /// Viewers with state.
    pub(crate) viewers: AtomicU64,
    /// Share of the last second in which the thread worked, 0 to 1000.
    pub(crate) busy_permille: AtomicU64,
    /// Bytes sent so far.
    pub(crate) bytes_out: AtomicU64,
    /// Frames dropped at the full inbox.
    pub(crate) inbox_frames_dropped: AtomicU64,
    /// Commands lost at the full inbox: the shard has been stuck for seconds.
    pub(crate) inbox_commands_lost: AtomicU64,
}

/// The way into a shard.
#[derive(Clone, Debug)]
pub(crate) struct ShardHandle {
    pub(crate) index: usize,
    pub(crate) candidates: Arc<[SocketAddr]>,
    pub(crate) stats: Arc<ShardStats>,
    inbox: Sender<Command>,
    inbox_max: usize,
    waker: Arc<Waker>,
    /// Set while the shard is known to look at its inbox soon, so that a burst costs one wake.
    signalled: Arc<AtomicBool>,
}

/// The inbox had no room for this kind of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InboxFull;

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotTaken {
    Full,
    /// The shard's thread has ended.
    Ended,
}

#[cfg(test)]
impl ShardHandle {
    /// A handle whose commands a test takes itself.
    pub(crate) fn for_test(index: usize, inbox_max: usize) -> (Self, Receiver<Command>) {
        let poll = Poll::new().expect("a poll");
        let (inbox, commands) = crossbeam_channel::bounded(inbox_max);
        let stats = Arc::new(ShardStats::default());
        stats.alive.store(true, Ordering::Relaxed);
        let handle = Self {
            index,
            candidates: Arc::new([]),
            stats,
            inbox,
            inbox_max,
            waker: Arc::new(Waker::new(poll.registry(), WAKE).expect("a waker")),
            signalled: Arc::new(AtomicBool::new(false)),
        };
        (handle, commands)
    }
}

impl ShardHandle {
    /// Hands over a frame or device output; takes up to half of the inbox.
    pub(crate) fn offer(&self, command: Command) -> Result<(), InboxFull> {
        self.send_below(command, self.inbox_max / 2).map_err(|_| {
            self.stats.inbox_frames_dropped.fetch_add(1, Ordering::Relaxed);
            InboxFull
        })
    }

    /// Hands over a join; takes up to three quarters of the inbox.
    pub(crate) fn join(&self, command: Command) -> Result<(), InboxFull> {
        self.send_below(command, self.inbox_max / 4 * 3).map_err(|_| InboxFull)
    }

    /// Hands over what must not be lost; takes all of the inbox. A shard with that much before it
    /// has been stuck for seconds, and is reported as such. One that has ended holds nothing that
    /// the command could be about.
    pub(crate) fn must(&self, command: Command) {
        if self.send_below(command, self.inbox_max) == Err(NotTaken::Full) {
            self.stats.inbox_commands_lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!(shard = self.index, "the shard's inbox is full: a command is lost");
        }
    }

    fn send_below(&self, command: Command, max: usize) -> Result<(), NotTaken> {
        if self.inbox.len() >= max {
            return Err(NotTaken::Full);
        }
        self.inbox.try_send(command).map_err(|e| match e {
            TrySendError::Full(_) => NotTaken::Full,
            TrySendError::Disconnected(_) => NotTaken::Ended,
        })?;
        if !self.signalled.swap(true, Ordering::SeqCst) && self.waker.wake().is_err() {
            self.signalled.store(false, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// A running shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) handle: ShardHandle,
    pub(crate) thread: JoinHandle<()>,
}

const WAKE: Token = Token(0);
const SOCKET: Token = Token(1);
/// The first of those of [`TcpSide`], which takes all from here on.
const TCP: Token = Token(2);
/// Commands taken per turn, so that datagrams are not starved by a burst.
const COMMANDS_PER_TURN: usize = 256;
/// Joins taken per turn: each costs about 0.3 ms, as much as sending 250 packets.
const JOINS_PER_TURN: usize = 4;
/// Datagrams taken between two batches, so that frames are not starved by a flood.
const DATAGRAMS_PER_TURN: usize = 64;
/// Time after which a turn of datagrams ends, because a handshake costs as much as 250 packets.
const DATAGRAMS_TIME: Duration = Duration::from_micros(300);
/// Viewers' runs per batch. Eight save nearly all of the system calls' cost; sixteen still leave the
/// socket unwatched for less than a tenth of a millisecond.
const BATCH_RUNS: usize = 16;
/// Bytes per batch: sixteen ordinary frames, or a pacing tick and a half of a replay. Sealing and
/// sending that much takes 0.1 ms, which is what a controller's frame may have to wait for.
const BATCH_BYTES: usize = 96 * 1024;
/// Batches sent before timers are looked at again.
const BATCHES_PER_TURN: usize = 64;
/// Most events of the kinds that may be lost held back while the event queue is full.
const BACKLOG_MAX: usize = 1_024;
/// How soon a full event queue is tried again.
const BACKLOG_RETRY: Duration = Duration::from_millis(5);

/// Binds the socket and starts the thread of shard `index`.
pub(crate) fn spawn(
    cfg: &RouterConfig,
    index: usize,
    events: mpsc::Sender<ShardEvent>,
) -> Result<Shard, RouterError> {
    let failed = |source| RouterError::Shard { shard: index, source };
    let mut socket = ShardSocket::bind(&cfg.ice, index)?;
    let poll = Poll::new().map_err(failed)?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE).map_err(failed)?);
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(socket.source(), SOCKET, both).map_err(failed)?;
    let address = socket.address().map_err(failed)?;
    let mut tcp = cfg.ice.tcp.then(|| TcpSide::listen(&cfg.ice, address)).transpose()?;
    if let Some(tcp) = &mut tcp {
        tcp.register(poll.registry(), TCP).map_err(failed)?;
    }
    let (inbox, commands) = crossbeam_channel::bounded(cfg.limits.shard_inbox_messages_max);
    let stats = Arc::new(ShardStats::default());
    stats.alive.store(true, Ordering::Relaxed);
    let handle = ShardHandle {
        index,
        candidates: socket.candidates().into(),
        stats: Arc::clone(&stats),
        inbox,
        inbox_max: cfg.limits.shard_inbox_messages_max,
        waker,
        signalled: Arc::new(AtomicBool::new(false)),
    };
    let mut core_config = CoreConfig::new(socket.candidates().to_vec());
    core_config.limits = Limits {
        viewers_max: cfg.limits.sessions_max,
        streams_max: cfg.limits.streams_max,
        ..Limits::default()
    };
    if let Some(tcp) = &tcp {
        core_config.tcp_candidates = tcp.candidates().to_vec();
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    core_config.start_unix_us = u64::try_from(since_epoch.as_micros()).unwrap_or(0);
    let now = Instant::now();
    let obituary = events.clone();
    let run = Run {
        core: Core::new(core_config, now, rand::random()),
        socket,
        tcp,
        readable: true,
        batch: Batch::new(BATCH_RUNS, BATCH_BYTES),
        unsent: None,
        more_media: false,
        latency: Latencies::default(),
        poll,
        commands,
        signalled: Arc::clone(&handle.signalled),
        events,
        backlog: VecDeque::new(),
        stop_at: None,
        metrics: ShardMetrics::new(&cfg.node, index),
        stats: Arc::clone(&stats),
        second: Second { since: now, busy: Duration::ZERO },
    };
    let pinned = cfg.pin_shards;
    let thread = std::thread::Builder::new()
        .name(format!("fl-shard-{index}"))
        .spawn(move || {
            if pinned {
                match pin_shard(index) {
                    Ok(cpu) => tracing::info!(shard = index, cpu, "pinned"),
                    Err(e) => tracing::warn!(shard = index, error = %e, "cannot be pinned"),
                }
            }
            // The core catches what a viewer's bytes can cause; anything else is our own fault,
            // and must not take the other shards with it.
            if catch_unwind(AssertUnwindSafe(|| run.run())).is_err() {
                tracing::error!(shard = index, "the shard panicked; its viewers are lost");
                stats.alive.store(false, Ordering::Relaxed);
                // This thread has nothing else to do any more, so it may wait.
                let _ = obituary.blocking_send(ShardEvent::Died { shard: index });
            }
            stats.alive.store(false, Ordering::Relaxed);
        })
        .map_err(failed)?;
    Ok(Shard { handle, thread })
}

struct Second {
    since: Instant,
    busy: Duration,
}

/// The time that frames spend here, by kind of viewer.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    pub(crate) controllers: Latency,
    pub(crate) observers: Latency,
}

struct Run {
    core: Core,
    socket: ShardSocket,
    /// Viewers whose network lets no UDP through.
    tcp: Option<TcpSide>,
    /// The socket may hold datagrams: readiness is only told when it changes.
    readable: bool,
    batch: Batch,
    /// The socket is full: the batch is not sent beyond here.
    unsent: Option<Cursor>,
    /// The turn ended before all media was sent.
    more_media: bool,
    latency: Latencies,
    poll: Poll,
    commands: Receiver<Command>,
    signalled: Arc<AtomicBool>,
    events: mpsc::Sender<ShardEvent>,
    backlog: VecDeque<ShardEvent>,
    stop_at: Option<Instant>,
    metrics: ShardMetrics,
    stats: Arc<ShardStats>,
    second: Second,
}

impl Run {
    fn run(mut self) {
        let mut events = Events::with_capacity(8);
        loop {
            let wait = self.wait_time(Instant::now());
            if let Err(e) = self.poll.poll(&mut events, wait)
                && e.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(error = %e, "the shard's poll failed");
                return;
            }
            let start = Instant::now();
            for event in &events {
                self.heard(event);
            }
            self.take_commands(start);
            self.send_media();
            self.take_datagrams();
            self.take_framed();
            let now = Instant::now();
            if self.core.next_timeout().is_some_and(|at| at <= now) {
                self.core.timeout(now);
                self.drain();
            }
            let more_media = self.send_media();
            let now = Instant::now();
            self.flush_backlog();
            self.second.busy += start.elapsed();
            self.each_second(now);
            if self.is_done(now) {
                return;
            }
            self.more_media = more_media;
        }
    }

    fn heard(&mut self, event: &Event) {
        if event.token() == SOCKET {
            if event.is_readable() {
                self.look_again();
            }
            if event.is_writable() && self.unsent.is_some() {
                self.flush();
            }
        } else if let Some(tcp) = &mut self.tcp {
            tcp.ready(event);
        }
    }

    fn wait_time(&self, now: Instant) -> Option<Duration> {
        let framed = self.tcp.as_ref().is_some_and(TcpSide::has_more);
        if self.readable || framed || self.more_media || !self.commands.is_empty() {
            return Some(Duration::ZERO);
        }
        let mut until = self.second.since + Duration::from_secs(1);
        if let Some(at) = self.core.next_timeout() {
            until = until.min(at);
        }
        if let Some(at) = self.tcp.as_ref().and_then(TcpSide::next_timeout) {
            until = until.min(at);
        }
        if let Some(at) = self.stop_at {
            until = until.min(at);
        }
        if !self.backlog.is_empty() {
            until = until.min(now + BACKLOG_RETRY);
        }
        Some(until.saturating_duration_since(now))
    }

    fn take_commands(&mut self, now: Instant) {
        // Cleared before looking, so that a command that comes meanwhile wakes again.
        self.signalled.store(false, Ordering::SeqCst);
        let mut joins = 0;
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.commands.try_recv() else { return };
            joins += usize::from(matches!(command, Command::Join { .. }));
            self.command(now, command);
            self.drain();
            if joins == JOINS_PER_TURN {
                return;
            }
        }
    }

    fn command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Frame { key, frame } => self.core.frame(now, key, frame),
            Command::StreamUp { key, info, gop } => {
                self.core.stream_up(now, key, info);
                for frame in gop {
                    self.core.frame(now, key, frame);
                }
            }
            Command::StreamDown { key, reason } => self.core.stream_down(now, key, reason),
            Command::StreamRemoved { key, reason } => self.core.stream_removed(now, key, reason),
            Command::DeviceOutput { key, message } => self.core.device_output(now, key, &message),
            Command::Join { request, reply } => self.join(now, *request, reply),
            Command::Leave { session, reason } => self.core.leave(now, session, reason),
            Command::SetRole { session, role } => self.core.set_role(now, session, role),
            Command::Reconnect { session, url } => self.core.reconnect(now, session, &url),
            Command::RestartIce { session, remote, reply } => {
                // Nobody waits any more if this fails.
                let _ = reply.send(self.core.restart_ice(now, session, remote));
            }
            Command::Stats { reply } => {
                let _ = reply.send(self.core.all_viewer_stats().collect());
            }
            Command::Stop { until } => self.stop(now, until),
        }
    }

    fn join(
        &mut self,
        now: Instant,
        request: JoinRequest,
        reply: oneshot::Sender<Result<Answer, JoinError>>,
    ) {
        let session = request.id;
        let joined = self.core.join(now, request);
        let ok = joined.is_ok();
        if reply.send(joined).is_err() && ok {
            // The client hung up before its answer: nobody would ever leave for it.
            self.core.leave(now, session, LeaveReason::Deleted);
        }
    }

    fn stop(&mut self, now: Instant, until: Instant) {
        self.stop_at = Some(until);
        let sessions: Vec<SessionId> = self.core.all_viewer_stats().map(|v| v.session).collect();
        for session in sessions {
            self.core.leave(now, session, LeaveReason::Draining);
        }
    }

    fn is_done(&self, now: Instant) -> bool {
        let Some(at) = self.stop_at else { return false };
        at <= now || (self.core.viewer_count() == 0 && self.backlog.is_empty())
    }

    fn look_again(&mut self) {
        self.readable = true;
        self.socket.look_again();
    }

    fn take_datagrams(&mut self) {
        let start = Instant::now();
        let mut now = start;
        for n in 1..=DATAGRAMS_PER_TURN {
            if !self.readable {
                return;
            }
            let mut is_handshake = false;
            match self.socket.receive() {
                Ok(Some((from, to, bytes))) => {
                    is_handshake = bytes.first().is_some_and(|first| (20..64).contains(first));
                    self.core.datagram(now, Route::udp(from), to, bytes);
                }
                Ok(None) => self.readable = false,
                Err(e) => {
                    self.readable = false;
                    self.metrics.receive_errors += 1;
                    tracing::debug!(error = %e, "receive failed");
                }
            }
            self.drain();
            // Only DTLS takes long; the clock costs as much as telling whose a datagram is.
            if is_handshake || n % 8 == 0 {
                now = Instant::now();
                // A command may be the next frame.
                if now - start > DATAGRAMS_TIME || !self.commands.is_empty() {
                    return;
                }
            }
        }
    }

    /// Takes datagrams that came by TCP, and closes connections whose time is over.
    fn take_framed(&mut self) {
        let now = Instant::now();
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(tcp) = &mut self.tcp else { return };
            tcp.close_late(now);
            let Some((addr, to, bytes)) = tcp.receive(now) else { return };
            self.core.datagram(now, Route { proto: Proto::Tcp, addr }, to, bytes);
            self.drain();
        }
    }

    /// Sends what the core has for viewers, looking at the socket between batches. `true`: there is
    /// more.
    fn send_media(&mut self) -> bool {
        let mut looked = true;
        for _ in 0..BATCHES_PER_TURN {
            if self.unsent.is_some() {
                return false;
            }
            if !self.core.poll_media(Instant::now(), &mut self.batch) {
                return false;
            }
            self.unsent = Some(Cursor::default());
            self.flush();
            // The next frame, or another stream's, has a controller to be served before the rest
            // of this one's, and before datagrams; but these are not passed over twice in a row.
            if !self.commands.is_empty() {
                self.take_commands(Instant::now());
            }
            looked = !(looked && self.core.controllers_wait());
            if looked {
                self.look_again();
                self.take_datagrams();
            }
        }
        self.drain();
        true
    }

    /// Sends the batch from where it stopped.
    fn flush(&mut self) {
        let Some(cursor) = &mut self.unsent else { return };
        let now = Instant::now();
        let (latency, metrics) = (&mut self.latency, &mut self.metrics);
        let (batch, tcp) = (&self.batch, &mut self.tcp);
        let flow = self.socket.send_batch(batch, cursor, |run, fate| {
            let sent = match fate {
                Fate::Sent => Sent::Done,
                Fate::Refused => Sent::Refused,
                Fate::Elsewhere => by_tcp(tcp, run.to.addr, batch.bytes(run), run.segment),
            };
            match (sent, run.arrived) {
                (Sent::Done, Some(arrived)) => {
                    let kind = if run.controller {
                        &mut latency.controllers
                    } else {
                        &mut latency.observers
                    };
                    kind.record(now.saturating_duration_since(arrived));
                }
                (Sent::Done, None) => {}
                // A slow connection: its viewer asks for what is missing, or is thinned.
                (Sent::Full, _) => {}
                (Sent::Refused, _) => metrics.send_refused += run.count as u64,
            }
        });
        match flow {
            Flow::Done => self.unsent = None,
            Flow::Blocked => self.metrics.send_full += 1,
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            let event = match output {
                Output::Transmit { to, bytes, .. } => {
                    let sent = match to.proto {
                        Proto::Udp => self.socket.send(to.addr, &bytes),
                        Proto::Tcp => by_tcp(&mut self.tcp, to.addr, &bytes, bytes.len()),
                    };
                    match sent {
                        Sent::Done => {}
                        Sent::Full => self.metrics.send_full += 1,
                        Sent::Refused => self.metrics.send_refused += 1,
                    }
                    continue;
                }
                Output::ToDevice { stream, viewer, message } => {
                    ShardEvent::ToDevice { stream, viewer, message }
                }
                Output::KeyframeRequest { stream, reason } => {
                    ShardEvent::KeyframeRequest { stream, reason }
                }
                Output::ViewerConnected { session } => ShardEvent::ViewerConnected { session },
                Output::ViewerGone { session, reason } => {
                    ShardEvent::ViewerGone { session, reason }
                }
            };
            self.tell(event);
        }
    }

    /// Events keep their order. While the queue is full they wait here: what may be lost up to
    /// [`BACKLOG_MAX`], the life of viewers always (at most two per viewer, so bounded by them).
    fn tell(&mut self, event: ShardEvent) {
        let event = if self.backlog.is_empty() {
            match self.events.try_send(event) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Closed(_)) => return,
                Err(mpsc::error::TrySendError::Full(event)) => event,
            }
        } else {
            event
        };
        let keep =
            matches!(event, ShardEvent::ViewerConnected { .. } | ShardEvent::ViewerGone { .. });
        if keep || self.backlog.len() < BACKLOG_MAX {
            self.backlog.push_back(event);
        } else {
            self.metrics.events_dropped += 1;
        }
    }

    fn flush_backlog(&mut self) {
        while let Some(event) = self.backlog.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => self.backlog.clear(),
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.backlog.push_front(event);
                    return;
                }
            }
        }
    }

    fn each_second(&mut self, now: Instant) {
        let spent = now - self.second.since;
        if spent < Duration::from_secs(1) {
            return;
        }
        let busy = self.second.busy.as_micros() * 1_000 / spent.as_micros().max(1);
        self.second = Second { since: now, busy: Duration::ZERO };
        let stats = &self.stats;
        stats
            .busy_permille
            .store(u64::try_from(busy).unwrap_or(1_000).min(1_000), Ordering::Relaxed);
        stats.viewers.store(self.core.viewer_count() as u64, Ordering::Relaxed);
        stats.bytes_out.store(self.core.counters().bytes_out, Ordering::Relaxed);
        let tcp = self.tcp.as_ref().map(TcpSide::counts).unwrap_or_default();
        self.metrics.publish(self.core.counters(), stats, &self.latency, tcp);
    }
}

/// Sends datagrams over a viewer's TCP connection. Refused when there is none.
fn by_tcp(tcp: &mut Option<TcpSide>, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent {
    tcp.as_mut().map_or(Sent::Refused, |tcp| tcp.send(to, bytes, segment))
}
