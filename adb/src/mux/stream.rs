//! One stream inside the multiplexer: its phase, its two buffers and its flow-control arithmetic.
//!
//! Not here: the table of streams, ids, events (`mux`). Invariant: `owed` acknowledgements are
//! numbers, so that a peer which does not read costs no memory.

use bytes::{Buf as _, Bytes, BytesMut};

use super::MuxConfig;
use crate::{
    error::StreamFailure,
    packet::{Command, Packet},
};

/// A drained buffer larger than this is given back instead of kept for the next burst.
const KEPT_CAPACITY_MAX: usize = 256 * 1024;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// One side closed it.
    Orderly,
    /// The peer refused to open it.
    Refused,
    /// It broke a rule of flow control.
    Failed(StreamFailure),
    /// The connection went away under it.
    Disconnected,
}

/// Where a stream stands, seen by the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The answer to OPEN is outstanding.
    Opening,
    /// The peer waits for an answer to its OPEN.
    Incoming,
    /// Bytes flow.
    Open,
    /// Closed here; what was written is still on its way.
    Closing,
    /// Over.
    Over(End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Opening,
    Incoming,
    Open,
    Closing,
    Over(End),
}

impl Phase {
    pub(super) fn status(self) -> Status {
        match self {
            Self::Opening => Status::Opening,
            Self::Incoming => Status::Incoming,
            Self::Open => Status::Open,
            Self::Closing => Status::Closing,
            Self::Over(end) => Status::Over(end),
        }
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) phase: Phase,
    /// The peer's id; 0 until it is known.
    pub(super) remote: u32,
    /// The application still has a handle.
    pub(super) held: bool,
    /// The id is in the ready queue.
    pub(super) queued: bool,
    /// OPEN payload not sent yet.
    pub(super) open: Option<Bytes>,
    /// The OKAY that answers the peer's OPEN is owed.
    pub(super) accept_owed: bool,
    /// A CLSE is owed although the stream is over for the application.
    pub(super) close_owed: bool,
    /// Arrived, not yet read by the application.
    pub(super) recv: BytesMut,
    /// Written by the application, not yet sent.
    pub(super) send: BytesMut,
    /// With delayed acks: bytes the peer still takes; below 0 by at most one packet.
    balance: i64,
    /// With delayed acks: bytes read by the application that the peer has not been told of.
    flushed: usize,
    /// Without: a WRTE of ours is unanswered.
    in_flight: bool,
    /// Without: OKAYs to send now, and those held back until the application has read.
    okays_owed: u32,
    okays_held: u32,
}

impl Stream {
    fn new(phase: Phase, remote: u32) -> Self {
        Self {
            phase,
            remote,
            held: true,
            queued: false,
            open: None,
            accept_owed: false,
            close_owed: false,
            recv: BytesMut::new(),
            send: BytesMut::new(),
            balance: 0,
            flushed: 0,
            in_flight: false,
            okays_owed: 0,
            okays_held: 0,
        }
    }

    pub(super) fn opening(service: &str) -> Self {
        let mut payload = Vec::with_capacity(service.len() + 1);
        payload.extend_from_slice(service.as_bytes());
        payload.push(0);
        let mut stream = Self::new(Phase::Opening, 0);
        stream.open = Some(payload.into());
        stream
    }

    pub(super) fn incoming(remote: u32, window: u32) -> Self {
        let mut stream = Self::new(Phase::Incoming, remote);
        stream.balance = i64::from(window);
        stream
    }

    /// The peer is told of read bytes in steps of an eighth of the window: often enough never to
    /// stall it (its balance stays above seven eighths), rarely enough to cost nothing.
    fn flush_step(config: &MuxConfig) -> usize {
        (config.recv_window as usize / 8).max(1)
    }

    /// Whether `len` more bytes are more than the peer may have outstanding.
    pub(super) fn overruns(&self, len: usize, config: &MuxConfig) -> bool {
        let window = config.recv_window as usize;
        // A sender may go over by one packet; ours announce at most MAX_PAYLOAD.
        let slack = crate::packet::MAX_PAYLOAD as usize;
        if config.delayed_ack {
            self.recv.len() + self.flushed + len > window + slack
        } else {
            self.recv.len() + len > window + slack
        }
    }

    /// Takes data in and decides when it is acknowledged.
    pub(super) fn received(&mut self, data: &[u8], config: &MuxConfig) {
        if self.held {
            self.recv.extend_from_slice(data);
        }
        if config.delayed_ack {
            if !self.held {
                self.flushed += data.len();
            }
        } else if self.recv.len() <= config.recv_window as usize {
            // Acknowledged on arrival, not on reading: with one packet in flight this is what
            // keeps a stream moving while its reader is busy for a moment.
            self.okays_owed = self.okays_owed.saturating_add(1);
        } else {
            self.okays_held = self.okays_held.saturating_add(1);
        }
    }

    /// Drops `n` bytes off the front of the unread ones.
    pub(super) fn take(&mut self, n: usize) {
        self.recv.advance(n);
        if self.recv.is_empty() && self.recv.capacity() > KEPT_CAPACITY_MAX {
            self.recv = BytesMut::new();
        }
    }

    /// The application has read `n` bytes (already taken off).
    pub(super) fn note_flushed(&mut self, n: usize, config: &MuxConfig) {
        if config.delayed_ack {
            self.flushed += n;
        } else if self.recv.len() <= config.recv_window as usize {
            self.okays_owed = self.okays_owed.saturating_add(self.okays_held);
            self.okays_held = 0;
        }
    }

    /// Takes an OKAY of the peer; false when its form is not the agreed one.
    pub(super) fn acknowledged(&mut self, payload: &[u8], delayed_ack: bool) -> bool {
        match (<[u8; 4]>::try_from(payload), delayed_ack) {
            (Ok(delta), true) => {
                // Signed: a peer may take back part of its window.
                self.balance = self.balance.saturating_add(i32::from_le_bytes(delta).into());
                true
            }
            // adbd ignores a count that was not agreed; so do we.
            (Ok(_), false) => {
                self.in_flight = false;
                true
            }
            (Err(_), false) => {
                self.in_flight = false;
                payload.is_empty()
            }
            (Err(_), true) => false,
        }
    }

    fn may_send(&self, config: &MuxConfig) -> bool {
        if config.delayed_ack { self.balance > 0 } else { !self.in_flight }
    }

    pub(super) fn has_output(&self, config: &MuxConfig) -> bool {
        match self.phase {
            Phase::Opening => self.open.is_some(),
            Phase::Incoming => false,
            Phase::Over(_) => self.close_owed,
            Phase::Open | Phase::Closing => {
                self.accept_owed
                    || self.okays_owed > 0
                    || (config.delayed_ack && self.flushed >= Self::flush_step(config))
                    || (!self.send.is_empty() && self.may_send(config))
                    || (self.send.is_empty() && self.phase == Phase::Closing)
            }
        }
    }

    /// The next packet of this stream. A CLSE is its last.
    pub(super) fn produce(&mut self, id: u32, config: &MuxConfig) -> Option<Packet> {
        let okay = |remote: u32, count: Option<usize>| {
            let payload = count.map_or_else(Bytes::new, |n| {
                let n = i32::try_from(n).unwrap_or(i32::MAX);
                Bytes::copy_from_slice(&n.to_le_bytes())
            });
            Some(Packet::new(Command::Okay, id, remote, payload))
        };
        match self.phase {
            Phase::Opening => {
                let window = if config.delayed_ack { config.recv_window } else { 0 };
                self.open.take().map(|name| Packet::new(Command::Open, id, window, name))
            }
            Phase::Incoming => None,
            Phase::Over(_) => std::mem::take(&mut self.close_owed).then(|| self.close_packet(id)),
            Phase::Open | Phase::Closing => {
                if std::mem::take(&mut self.accept_owed) {
                    return okay(
                        self.remote,
                        config.delayed_ack.then_some(config.recv_window as usize),
                    );
                }
                if config.delayed_ack && self.flushed >= Self::flush_step(config) {
                    return okay(self.remote, Some(std::mem::take(&mut self.flushed)));
                }
                if self.okays_owed > 0 {
                    self.okays_owed -= 1;
                    return okay(self.remote, None);
                }
                if !self.send.is_empty() {
                    return self.may_send(config).then(|| self.data_packet(id, config));
                }
                (self.phase == Phase::Closing).then(|| self.close_packet(id))
            }
        }
    }

    fn data_packet(&mut self, id: u32, config: &MuxConfig) -> Packet {
        let n = self.send.len().min(config.max_payload as usize);
        let data = self.send.split_to(n).freeze();
        self.balance = self.balance.saturating_sub_unsigned(n as u64);
        self.in_flight = true;
        if self.send.is_empty() {
            // Lets go of the shared allocation, so that it is freed with the packet.
            self.send = BytesMut::new();
        }
        Packet::new(Command::Wrte, id, self.remote, data)
    }

    fn close_packet(&self, id: u32) -> Packet {
        Packet::new(Command::Clse, id, self.remote, Bytes::new())
    }
}
