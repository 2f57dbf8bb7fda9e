//! One viewer's TCP connection: what it may send first, what waits to be written, when it is too
//! old. Not an owner of viewers. Invariant: it keeps at most one unfinished frame inbound and
//! [`UNSENT_BYTES_MAX`] bytes outbound, and only ever writes whole frames.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use mio::net::TcpStream;

use super::framer::{self, FrameTooLong, Framer, LENGTH_BYTES};
use crate::udp::Sent;

/// Time in which a connection must begin with a STUN binding request and be answered: the core
/// answers only whoever knows a viewer's credentials.
pub(super) const PROOF_TIME: Duration = Duration::from_secs(5);
/// Silence after which a connection is closed. A viewer checks its path every few seconds.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(30);
/// Bytes that wait for a slow viewer; beyond them whole frames are dropped.
pub(super) const UNSENT_BYTES_MAX: usize = 256 << 10;
/// Reads without a whole frame before other connections have their turn.
const READS_PER_TURN: usize = 4;
/// Memory that a connection keeps when nothing waits.
const UNSENT_BYTES_KEPT: usize = 16 << 10;

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// By the viewer, or by the network.
    ByPeer,
    /// It did not begin with a STUN binding request.
    NotStun,
    /// A frame longer than allowed.
    TooLong,
    /// Its time is over.
    Late,
}

impl From<FrameTooLong> for Closed {
    fn from(_: FrameTooLong) -> Self {
        Self::TooLong
    }
}

/// What reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A whole frame.
    Frame,
    /// No whole frame, and nothing more until the next event.
    Dry,
    /// No whole frame yet, though much was read: others first.
    Later,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    pub(super) peer: SocketAddr,
    framer: Framer,
    /// Has begun with a STUN binding request.
    greeted: bool,
    /// Something was sent to it.
    answered: bool,
    /// What waits, from `unsent_from` on.
    unsent: Vec<u8>,
    unsent_from: usize,
    opened: Instant,
    heard: Instant,
    /// When the owner looks at it, and whether it is among those to be read: the owner's notes.
    pub(super) look: Instant,
    pub(super) queued: bool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, now: Instant) -> Self {
        Self {
            stream,
            peer: unmapped(peer),
            framer: Framer::default(),
            greeted: false,
            answered: false,
            unsent: Vec::new(),
            unsent_from: 0,
            opened: now,
            heard: now,
            look: now + PROOF_TIME,
            queued: false,
        }
    }

    pub(super) fn source(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// When it is closed if nothing happens until then.
    pub(super) fn deadline(&self) -> Instant {
        let proof = self.opened + PROOF_TIME;
        if self.greeted && self.answered { self.heard + IDLE_TIME } else { proof }
    }

    /// Reads until a frame is whole, a few times at most.
    pub(super) fn read(&mut self, now: Instant) -> Result<Progress, Closed> {
        for _ in 0..READS_PER_TURN {
            if self.framer.whole()?.is_some() {
                return Ok(Progress::Frame);
            }
            match self.stream.read(self.framer.space()) {
                Ok(0) => return Err(Closed::ByPeer),
                Ok(len) => {
                    self.framer.filled(len);
                    self.heard = now;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Dry),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed::ByPeer),
            }
        }
        Ok(Progress::Later)
    }

    /// Checks the first frame, before it is taken: whoever is not a viewer shows it there.
    pub(super) fn greet(&mut self) -> Result<(), Closed> {
        if !self.greeted {
            self.greeted = self.framer.peek()?.is_some_and(is_binding_request);
        }
        if self.greeted { Ok(()) } else { Err(Closed::NotStun) }
    }

    /// The frame that [`Self::read`] has said to be there.
    pub(super) fn take_frame(&mut self) -> Option<&[u8]> {
        self.framer.next().ok().flatten()
    }

    /// Takes all of these datagrams, each of `segment` bytes but the last, or none of them.
    pub(super) fn send(&mut self, bytes: &[u8], segment: usize) -> Result<Sent, Closed> {
        let datagrams = bytes.chunks(segment.max(1));
        let framed = bytes.len() + datagrams.len() * LENGTH_BYTES;
        if self.waiting() + framed > UNSENT_BYTES_MAX {
            return Ok(Sent::Full);
        }
        self.answered = true;
        self.unsent.drain(..self.unsent_from);
        self.unsent_from = 0;
        let before = self.unsent.len();
        for datagram in datagrams {
            if !framer::write(datagram, &mut self.unsent) {
                self.unsent.truncate(before);
                return Ok(Sent::Refused);
            }
        }
        // If something waited already, the socket is full and will say when it is not.
        if before == 0 {
            self.flush()?;
        }
        Ok(Sent::Done)
    }

    /// Writes what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        while self.waiting() > 0 {
            match self.stream.write(&self.unsent[self.unsent_from..]) {
                Ok(0) => return Err(Closed::ByPeer),
                Ok(len) => self.unsent_from += len,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed::ByPeer),
            }
        }
        self.unsent.clear();
        self.unsent.shrink_to(UNSENT_BYTES_KEPT);
        self.unsent_from = 0;
        Ok(())
    }

    pub(super) fn waiting(&self) -> usize {
        self.unsent.len() - self.unsent_from
    }
}

/// Whether this is a STUN binding request by its header; the core checks its credentials.
fn is_binding_request(frame: &[u8]) -> bool {
    let Some((header, attributes)) = frame.split_first_chunk::<20>() else { return false };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    header[..2] == [0x00, 0x01]
        && header[4..8] == [0x21, 0x12, 0xA4, 0x42]
        && length == attributes.len()
        && length % 4 == 0
}

/// A socket of IPv6 names a viewer of IPv4 in the mapped form; it is known by its plain address.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
