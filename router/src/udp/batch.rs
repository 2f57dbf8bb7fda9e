//! Sends a [`Batch`]: many viewers' datagrams in as few system calls as the machine allows. Not a
//! queue: what the socket does not take stays in the batch, and the caller's [`Cursor`] says where
//! to go on. Invariant: every run's fate is told exactly once, in order, and a destination that the
//! system refuses never holds up another one.
//!
//! # Modes
//!
//! | mode | one call carries |
//! |---|---|
//! | [`Mode::Segmented`] | up to 64 messages, each of up to 64 datagrams that the kernel cuts apart |
//! | [`Mode::Messages`] | up to 64 datagrams |
//! | [`Mode::Single`] | one datagram |
//!
//! [`Egress`] chooses: `auto` takes the first that the kernel knows, the others force one. A run
//! whose segmented message is refused is sent again datagram by datagram, because the reason may
//! be its path alone (IPsec, a small MTU). When that works [`STRIKES_MAX`] times and no segmented
//! message was taken in between, segmentation itself is what does not work here, and the sender
//! falls back for good.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use fanlight_router_core::{Batch, Proto, Run};
use mio::net::UdpSocket;

use super::kernel::{self, Message};
use crate::config::Egress;

/// Most datagrams that older kernels cut from one message.
const SEGMENTS_MAX: usize = 64;
/// Largest payload of an IPv4 datagram, which also bounds what is cut into several.
const MESSAGE_BYTES_MAX: usize = 65_507;
/// Runs in a row that must go through only without segmentation before it is given up.
const STRIKES_MAX: u32 = 8;

/// How datagrams are given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `sendmmsg` of `UDP_SEGMENT` messages.
    Segmented,
    /// `sendmmsg` of single datagrams.
    Messages,
    /// `sendto`.
    Single,
}

/// Where in a batch sending goes on. Start each batch with a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Runs whose fate has been told.
    run: usize,
    /// Bytes of the next run that the kernel has taken.
    offset: usize,
    /// The next run goes out datagram by datagram.
    plain: bool,
}

impl Cursor {
    /// Whether all runs are done with.
    #[must_use]
    pub fn is_done(&self, batch: &Batch) -> bool {
        self.run >= batch.runs().len()
    }

    /// Runs whose fate has been told.
    #[must_use]
    pub fn runs_done(&self) -> usize {
        self.run
    }

    fn next_run(&mut self) {
        *self = Self { run: self.run + 1, ..Self::default() };
    }
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel took all of it.
    Sent,
    /// The system refused its destination (no route, a firewall): what was left of it is dropped.
    Refused,
    /// It does not travel as datagrams; the caller sends it another way.
    Elsewhere,
}

/// How a call to [`BatchSender::send`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The whole batch is done with.
    Done,
    /// The socket's buffer is full. Go on with the same cursor when the socket is writable.
    Blocked,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EgressCounts {
    /// System calls.
    pub calls: u64,
    /// Datagrams taken by the kernel.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Runs whose destination was refused.
    pub runs_refused: u64,
    /// Times that the socket's buffer was full.
    pub blocked: u64,
    /// Segmented messages that were refused and sent again without.
    pub segmented_refused: u64,
    /// Changes to a lesser mode.
    pub fallbacks: u64,
}

/// Sends batches over one socket. Allocates nothing while sending.
#[derive(Debug)]
pub struct BatchSender {
    mode: Mode,
    /// The socket is of IPv6 and takes IPv4 addresses in their mapped form.
    mapped: bool,
    strikes: u32,
    counts: EgressCounts,
}

/// What takes messages: the kernel, or a test that says how it behaves.
trait Outlet {
    /// Takes as many as it can and says how many; an error is about the first.
    fn many<'a>(&self, messages: impl Iterator<Item = Message<'a>>) -> io::Result<usize>;
    /// Takes one.
    fn one(&self, message: Message<'_>) -> io::Result<()>;
}

impl Outlet for UdpSocket {
    fn many<'a>(&self, messages: impl Iterator<Item = Message<'a>>) -> io::Result<usize> {
        kernel::send_messages(self.as_fd(), messages)
    }

    fn one(&self, message: Message<'_>) -> io::Result<()> {
        self.send_to(message.bytes, message.to).map(drop)
    }
}

/// A part of a run that one message carries.
#[derive(Clone, Copy)]
struct Piece<'a> {
    run: &'a Run,
    message: Message<'a>,
    datagrams: usize,
}

impl BatchSender {
    /// A sender for this socket. An error when a mode is forced that the kernel does not have.
    pub fn new(socket: &UdpSocket, wanted: Egress) -> io::Result<Self> {
        let fd = socket.as_fd();
        let can_message = kernel::has_sendmmsg(fd);
        let can_segment = can_message && kernel::has_gso(fd);
        let lacks = |what| io::Error::new(io::ErrorKind::Unsupported, what);
        let mode = match wanted {
            Egress::Auto | Egress::Gso if can_segment => Mode::Segmented,
            Egress::Gso => {
                return Err(lacks("ice.egress is gso, but the kernel lacks UDP_SEGMENT"));
            }
            Egress::Auto | Egress::Sendmmsg if can_message => Mode::Messages,
            Egress::Sendmmsg => {
                return Err(lacks("ice.egress is sendmmsg, which the kernel lacks"));
            }
            Egress::Auto | Egress::Sendto => Mode::Single,
        };
        Ok(Self::with(mode, socket.local_addr()?.is_ipv6()))
    }

    fn with(mode: Mode, mapped: bool) -> Self {
        Self { mode, mapped, strikes: 0, counts: EgressCounts::default() }
    }

    /// The mode now in use.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Totals so far.
    #[must_use]
    pub fn counts(&self) -> EgressCounts {
        self.counts
    }

    /// Sends from `cursor` on and moves it. `told` hears each run's fate, in the batch's order.
    /// Never waits.
    pub fn send(
        &mut self,
        socket: &UdpSocket,
        batch: &Batch,
        cursor: &mut Cursor,
        told: impl FnMut(&Run, Fate),
    ) -> Flow {
        self.send_over(socket, batch, cursor, told)
    }

    fn send_over(
        &mut self,
        socket: &impl Outlet,
        batch: &Batch,
        cursor: &mut Cursor,
        mut told: impl FnMut(&Run, Fate),
    ) -> Flow {
        loop {
            pass_elsewhere(batch, cursor, &mut told);
            if cursor.is_done(batch) {
                return Flow::Done;
            }
            self.counts.calls += 1;
            match self.call(socket, batch, *cursor) {
                // Nothing is sent by mistake when the kernel claims to have taken nothing.
                Ok(0) => return self.blocked(),
                Ok(messages) => self.advance(batch, cursor, messages, &mut told),
                Err(e) => match e.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return self.blocked(),
                    _ => self.refused(&e, batch, cursor, &mut told),
                },
            }
        }
    }

    fn blocked(&mut self) -> Flow {
        self.counts.blocked += 1;
        Flow::Blocked
    }

    /// One system call. Gives how many pieces the kernel took.
    fn call(&self, socket: &impl Outlet, batch: &Batch, cursor: Cursor) -> io::Result<usize> {
        let mut pieces = self.pieces(batch, cursor).map(|piece| piece.message);
        if self.mode == Mode::Single {
            let Some(message) = pieces.next() else { return Ok(0) };
            return socket.one(message).map(|()| 1);
        }
        socket.many(pieces)
    }

    /// What remains of the batch, cut into messages of this mode.
    fn pieces<'a>(
        &'a self,
        batch: &'a Batch,
        cursor: Cursor,
    ) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let runs = batch.runs().get(cursor.run..).unwrap_or_default();
        runs.iter().enumerate().filter(|(_, run)| run.to.proto == Proto::Udp).flat_map(
            move |(n, run)| {
                let (done, plain) = if n == 0 { (cursor.offset, cursor.plain) } else { (0, false) };
                let together = if plain { 1 } else { self.together(run.segment) };
                let rest = batch.bytes(run).get(done..).unwrap_or_default();
                let to = self.destination(run.to.addr);
                rest.chunks(run.segment.max(1) * together).map(move |bytes| {
                    let datagrams = bytes.len().div_ceil(run.segment.max(1));
                    let segment =
                        if datagrams > 1 { u16::try_from(run.segment).ok() } else { None };
                    Piece { run, message: Message { to, bytes, segment }, datagrams }
                })
            },
        )
    }

    /// How many datagrams of this size one message carries.
    fn together(&self, segment: usize) -> usize {
        match self.mode {
            Mode::Segmented => (MESSAGE_BYTES_MAX / segment.max(1)).clamp(1, SEGMENTS_MAX),
            Mode::Messages | Mode::Single => 1,
        }
    }

    /// The address in the form that the socket's family wants.
    pub(super) fn destination(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        }
    }

    /// Moves the cursor over what the kernel took.
    fn advance(
        &mut self,
        batch: &Batch,
        cursor: &mut Cursor,
        messages: usize,
        told: &mut impl FnMut(&Run, Fate),
    ) {
        let start = *cursor;
        let mut counts = self.counts;
        let mut strikes = self.strikes;
        for piece in self.pieces(batch, start).take(messages) {
            // A run that went elsewhere may stand between two pieces.
            pass_elsewhere(batch, cursor, told);
            counts.datagrams += piece.datagrams as u64;
            counts.bytes += piece.message.bytes.len() as u64;
            if piece.message.segment.is_some() {
                strikes = 0;
            }
            cursor.offset += piece.message.bytes.len();
            if cursor.offset >= piece.run.len {
                strikes += u32::from(cursor.plain);
                cursor.next_run();
                told(piece.run, Fate::Sent);
            }
        }
        self.counts = counts;
        self.strikes = strikes;
        if strikes >= STRIKES_MAX && self.mode == Mode::Segmented {
            self.fall_back(Mode::Messages);
        }
    }

    /// The kernel did not take the first piece, and not because of a full buffer.
    fn refused(
        &mut self,
        error: &io::Error,
        batch: &Batch,
        cursor: &mut Cursor,
        told: &mut impl FnMut(&Run, Fate),
    ) {
        if self.mode == Mode::Messages && error.raw_os_error() == Some(libc::ENOSYS) {
            return self.fall_back(Mode::Single);
        }
        let segmented =
            self.pieces(batch, *cursor).next().is_some_and(|p| p.message.segment.is_some());
        if segmented && is_about_segmentation(error) {
            self.counts.segmented_refused += 1;
            cursor.plain = true;
            return;
        }
        let Some(run) = batch.runs().get(cursor.run) else { return };
        self.counts.runs_refused += 1;
        cursor.next_run();
        told(run, Fate::Refused);
    }

    fn fall_back(&mut self, mode: Mode) {
        tracing::warn!(from = ?self.mode, to = ?mode, "the system refuses how datagrams are sent");
        self.mode = mode;
        self.strikes = 0;
        self.counts.fallbacks += 1;
    }
}

/// Tells the fate of the runs at the cursor that are not sent here.
fn pass_elsewhere(batch: &Batch, cursor: &mut Cursor, told: &mut impl FnMut(&Run, Fate)) {
    while let Some(run) = batch.runs().get(cursor.run) {
        // An empty run makes no message: nothing of it is left to send.
        let fate = match run.to.proto {
            Proto::Tcp => Fate::Elsewhere,
            Proto::Udp if batch.bytes(run).is_empty() => Fate::Sent,
            Proto::Udp => return,
        };
        cursor.next_run();
        told(run, fate);
    }
}

/// Whether sending without segmentation may work where this error came up. `EINVAL` also stands
/// for an address that can never be sent to; the second try tells.
fn is_about_segmentation(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

#[cfg(test)]
mod tests;
