//! The stream multiplexer of one connection: a pure state machine, the same for host and device.
//!
//! Packets go in by [`Mux::on_packet`], come out by [`Mux::poll_packet`]; the application opens,
//! reads, writes and closes streams by id. No socket, no clock, no task: `link` drives it.
//!
//! Contract: after **any** call drain [`Mux::poll_event`], then [`Mux::poll_packet`] (which may
//! raise events again).
//! Invariant: nothing here grows without bound whatever the peer sends. Owed acknowledgements are
//! counters, not queue entries; unread data is bounded per stream by its window and per connection
//! by a budget; at a bound the offending stream is closed, and only a peer that floods refusals
//! costs the connection.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::BytesMut;

use crate::{
    counters::{Counters, add},
    error::{ProtocolError, StreamFailure},
    packet::{Command, Packet},
};

mod receive;
mod stream;
pub use stream::{End, Status};
use stream::{Phase, Stream};

/// Longest service name taken from the peer; shell commands are the longest of them.
pub const SERVICE_LEN_MAX: usize = 64 * 1024;
/// Refusals waiting to be written. A peer that opens more without reading is not serving itself.
const REFUSALS_MAX: usize = 1024;

/// This end's id of a stream; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u32);

/// What was agreed in the handshake, and the bounds.
#[derive(Debug, Clone)]
pub struct MuxConfig {
    /// Both banners list `delayed_ack`.
    pub delayed_ack: bool,
    /// Largest WRTE and OPEN the peer takes.
    pub max_payload: u32,
    /// Unread bytes held for one stream before the peer has to stop.
    pub recv_window: u32,
    /// Unsent bytes held for one stream before writers have to wait.
    pub send_buffer: usize,
    /// Streams at the same time, from both ends together.
    pub streams_max: usize,
    /// Unread bytes held for all streams together; the stream that exceeds it is closed.
    pub unread_budget: usize,
}

impl Default for MuxConfig {
    fn default() -> Self {
        Self {
            delayed_ack: false,
            max_payload: crate::packet::MAX_PAYLOAD,
            // 2 MiB: half a second of the best video asked for, twice the largest packet.
            recv_window: 2 * 1024 * 1024,
            send_buffer: 1024 * 1024,
            // A phone in use has about five; adb installs and shells of several people fit too.
            streams_max: 256,
            unread_budget: 64 * 1024 * 1024,
        }
    }
}

/// Something the application may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream opened from here stands.
    Opened(StreamId),
    /// A stream opened from here was refused.
    Refused(StreamId),
    /// The peer wants this service: answer with [`Mux::accept`] or [`Mux::refuse`].
    Incoming {
        /// Its id at this end.
        id: StreamId,
        /// The name asked for, without its NUL.
        service: String,
    },
    /// Data arrived.
    Readable(StreamId),
    /// Room for writing appeared.
    Writable(StreamId),
    /// The stream is over; unread data can still be read.
    Closed(StreamId),
}

/// Why a stream could not be opened from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// `streams_max` is reached.
    TooMany(usize),
    /// The name is empty, holds a NUL or does not fit the peer's packets.
    BadName(&'static str),
}

/// All streams of one connection.
#[derive(Debug)]
pub struct Mux {
    config: MuxConfig,
    streams: HashMap<u32, Stream>,
    last_id: u32,
    /// Ids with something to send, each at most once; served in turn.
    ready: VecDeque<u32>,
    /// Remote ids whose OPEN is refused.
    refusals: VecDeque<u32>,
    events: VecDeque<Event>,
    unread: usize,
    counters: Arc<Counters>,
}

impl Mux {
    /// A multiplexer without streams.
    #[must_use]
    pub fn new(mut config: MuxConfig, counters: Arc<Counters>) -> Self {
        // Windows travel as int32 and must not be 0.
        config.recv_window = config.recv_window.clamp(1, 1 << 30);
        config.max_payload = config.max_payload.max(1);
        config.send_buffer = config.send_buffer.max(1);
        Self {
            config,
            streams: HashMap::new(),
            last_id: 0,
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            events: VecDeque::new(),
            unread: 0,
            counters,
        }
    }

    /// Asks the peer for a service; [`Event::Opened`] or [`Event::Refused`] follows.
    pub fn open(&mut self, service: &str) -> Result<StreamId, OpenError> {
        if service.is_empty() || service.contains('\0') {
            return Err(OpenError::BadName("empty or with a NUL inside"));
        }
        if service.len() >= self.config.max_payload as usize {
            return Err(OpenError::BadName("longer than a packet of the other end"));
        }
        if self.streams.len() >= self.config.streams_max {
            return Err(OpenError::TooMany(self.config.streams_max));
        }
        let id = self.fresh_id();
        self.streams.insert(id, Stream::opening(service));
        self.queue(id);
        Ok(StreamId(id))
    }

    /// Accepts a stream the peer opened. False when it is gone again.
    pub fn accept(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id.0).filter(|s| s.phase == Phase::Incoming)
        else {
            return false;
        };
        stream.phase = Phase::Open;
        stream.accept_owed = true;
        add(&self.counters.streams_opened, 1);
        self.queue(id.0);
        true
    }

    /// Refuses a stream the peer opened.
    pub fn refuse(&mut self, id: StreamId) {
        if self.streams.get(&id.0).is_some_and(|s| s.phase == Phase::Incoming)
            && let Some(stream) = self.streams.remove(&id.0)
        {
            // Bounded: at most `streams_max` of these on top of what `on_open` lets in.
            self.refusals.push_back(stream.remote);
            add(&self.counters.streams_refused, 1);
        }
    }

    /// Where a stream stands; a released stream is over.
    #[must_use]
    pub fn status(&self, id: StreamId) -> Status {
        self.streams.get(&id.0).map_or(Status::Over(End::Orderly), |s| s.phase.status())
    }

    /// Unread bytes of a stream.
    #[must_use]
    pub fn peek(&self, id: StreamId) -> &[u8] {
        self.streams.get(&id.0).map_or(&[], |s| &s.recv)
    }

    /// Takes `n` bytes off the front of what [`Mux::peek`] showed and tells the peer in time.
    pub fn consume(&mut self, id: StreamId, n: usize) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        let n = n.min(stream.recv.len());
        stream.take(n);
        self.unread -= n;
        stream.note_flushed(n, &self.config);
        if stream.has_output(&self.config) {
            self.queue(id.0);
        }
    }

    /// Queues bytes; returns how many were taken, 0 when the buffer is full, or how the stream
    /// ended. One call with room makes one WRTE, as far as the peer's packet size allows.
    pub fn write(&mut self, id: StreamId, data: &[u8]) -> Result<usize, End> {
        let Some(stream) = self.streams.get_mut(&id.0) else { return Err(End::Orderly) };
        match stream.phase {
            Phase::Open => {}
            Phase::Over(end) => return Err(end),
            Phase::Opening | Phase::Incoming | Phase::Closing => return Err(End::Orderly),
        }
        if stream.send.len() >= self.config.send_buffer {
            return Ok(0);
        }
        let n = data.len().min(self.config.max_payload as usize);
        stream.send.extend_from_slice(&data[..n]);
        if stream.has_output(&self.config) {
            self.queue(id.0);
        }
        Ok(n)
    }

    /// Closes in order: what was written is sent first. Reading goes on until the end.
    pub fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        match stream.phase {
            Phase::Open => {
                stream.phase = Phase::Closing;
                self.queue(id.0);
            }
            Phase::Opening | Phase::Incoming | Phase::Closing | Phase::Over(_) => {}
        }
    }

    /// The application lets go of the stream: closes in order, drops what is unread and comes.
    pub fn release(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        stream.held = false;
        let unread = stream.recv.len();
        stream.take(unread);
        self.unread -= unread;
        stream.note_flushed(unread, &self.config);
        match stream.phase {
            Phase::Incoming => self.refuse(id),
            // Never announced to the peer: nothing to undo.
            Phase::Opening if stream.open.is_some() => self.remove(id.0),
            // Closed when the answer comes.
            Phase::Opening => {}
            Phase::Open => self.close(id),
            // The bytes just dropped may have to be reported to a peer that waits for it.
            Phase::Closing => self.queue(id.0),
            Phase::Over(_) => self.remove_if_done(id.0),
        }
    }

    /// Takes a packet from the peer. An error means the connection must be closed.
    pub fn on_packet(&mut self, packet: Packet) -> Result<(), ProtocolError> {
        match packet.command {
            Command::Open => self.on_open(&packet),
            Command::Okay => self.on_okay(&packet),
            Command::Wrte => self.on_write(&packet),
            Command::Clse => self.on_close(&packet),
            Command::Cnxn | Command::Auth | Command::Stls => Err(ProtocolError::Unexpected {
                command: packet.command.name(),
                when: "after the handshake",
            }),
        }
    }

    /// The next packet to write, streams taking turns.
    pub fn poll_packet(&mut self) -> Option<Packet> {
        if let Some(remote) = self.refusals.pop_front() {
            return Some(Packet::new(Command::Clse, 0, remote, &b""[..]));
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.queued = false;
            let Some(packet) = stream.produce(id, &self.config) else { continue };
            match packet.command {
                Command::Wrte => self.events.push_back(Event::Writable(StreamId(id))),
                Command::Clse => self.finish(id, End::Orderly),
                _ => {}
            }
            if self.streams.get(&id).is_some_and(|s| s.has_output(&self.config)) {
                self.queue(id);
            }
            return Some(packet);
        }
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Mux::poll_packet`] has something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// Whether nothing is left that a released stream still owes the peer.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.has_output() && self.streams.values().all(|s| s.held || s.send.is_empty())
    }

    /// The connection is gone: every stream that stood ends with [`End::Disconnected`].
    pub fn disconnect(&mut self) {
        self.ready.clear();
        self.refusals.clear();
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            self.finish(id, End::Disconnected);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.close_owed = false;
            }
            self.remove_if_done(id);
        }
    }

    /// Streams known, in whatever state.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Bytes held for the application and for the peer.
    #[must_use]
    pub fn buffered(&self) -> (usize, usize) {
        (self.unread, self.streams.values().map(|s| s.send.len()).sum())
    }

    /// Ends a stream, tells the application and, unless the peer said it first, the peer.
    fn fail(&mut self, id: u32, failure: StreamFailure) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let unread = stream.recv.len();
            stream.recv = BytesMut::new();
            self.unread -= unread;
            stream.close_owed = true;
            add(&self.counters.streams_failed, 1);
            self.finish(id, End::Failed(failure));
            self.queue(id);
        }
    }

    fn finish(&mut self, id: u32, end: End) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.phase {
            Phase::Over(_) => {}
            before => {
                if matches!(before, Phase::Open | Phase::Closing) {
                    add(&self.counters.streams_closed, 1);
                }
                stream.phase = Phase::Over(end);
                stream.send = BytesMut::new();
                self.events.push_back(match end {
                    End::Refused => Event::Refused(StreamId(id)),
                    _ => Event::Closed(StreamId(id)),
                });
            }
        }
        self.remove_if_done(id);
    }

    fn remove_if_done(&mut self, id: u32) {
        let done = self
            .streams
            .get(&id)
            .is_some_and(|s| !s.held && !s.close_owed && matches!(s.phase, Phase::Over(_)));
        if done {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(stream) = self.streams.remove(&id) {
            self.unread -= stream.recv.len();
            if stream.queued {
                // Short: the queue holds live streams only, each once.
                self.ready.retain(|other| *other != id);
            }
        }
    }

    fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
        {
            stream.queued = true;
            self.ready.push_back(id);
            debug_assert!(self.ready.len() <= self.streams.len(), "a dead stream is queued");
        }
    }

    fn fresh_id(&mut self) -> u32 {
        // Ends: at most `streams_max` ids are taken.
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.streams.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

impl StreamId {
    /// The number as it travels.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}
