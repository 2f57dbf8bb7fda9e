//! Takes datagrams from a socket, many per system call, and hands them out one by one. Not a
//! demultiplexer: bytes are opaque. Invariant: a datagram that is handed out is whole; one that is
//! cut off or longer than any that WebRTC sends is dropped and counted.
//!
//! With GRO the kernel hands over several datagrams of one sender as one message, which is cut
//! apart here by the size that it names. Without `recvmmsg` each call takes one datagram.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
};

use mio::net::UdpSocket;

use super::kernel::{self, RECEIVE_MESSAGES_MAX, Received};

/// Largest datagram taken. WebRTC stays below 1,500.
pub(super) const DATAGRAM_BYTES_MAX: usize = 2_048;
/// Room for one message: the most that the kernel joins. The odd cache lines keep the starts of
/// the messages from all falling into the same set of a cache.
const STRIDE_WITH_GRO: usize = 65_536 + 5 * 64;
const STRIDE_WITHOUT: usize = DATAGRAM_BYTES_MAX + 64;

/// Messages asked for when nothing says that many wait: a look at an empty socket is the most
/// frequent call, and preparing for each message has its price.
const MESSAGES_AT_FIRST: usize = 4;

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IngressCounts {
    /// System calls.
    pub calls: u64,
    /// Datagrams handed out.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams dropped because they were cut off or too long.
    pub oversized: u64,
}

/// A socket's inbound side. Its buffers take 2 MiB with GRO, of which only what is written is
/// ever resident.
#[derive(Debug)]
pub(super) struct BatchReceiver {
    buffer: Box<[u8]>,
    stride: usize,
    one_by_one: bool,
    messages: [Received; RECEIVE_MESSAGES_MAX],
    /// Messages to ask for next.
    ask: usize,
    /// Messages in the buffer.
    filled: usize,
    /// The message that is being handed out, and where in it.
    at: usize,
    offset: usize,
    /// The last call took all that the socket had: a second one would only say so.
    emptied: bool,
    counts: IngressCounts,
}

impl BatchReceiver {
    /// A receiver for this socket, with GRO where the kernel has it.
    pub(super) fn new(socket: &UdpSocket) -> Self {
        let fd = socket.as_fd();
        let one_by_one = !kernel::has_recvmmsg(fd);
        // Only `recvmmsg` tells the size by which joined datagrams are cut apart.
        let joined = !one_by_one && kernel::enable_gro(fd).is_ok();
        Self::with(one_by_one, if joined { STRIDE_WITH_GRO } else { STRIDE_WITHOUT })
    }

    fn with(one_by_one: bool, stride: usize) -> Self {
        let messages = if one_by_one { 1 } else { RECEIVE_MESSAGES_MAX };
        Self {
            buffer: vec![0; stride * messages].into(),
            stride,
            one_by_one,
            messages: [Received::NONE; RECEIVE_MESSAGES_MAX],
            ask: MESSAGES_AT_FIRST,
            filled: 0,
            at: 0,
            offset: 0,
            emptied: false,
            counts: IngressCounts::default(),
        }
    }

    /// Totals so far.
    pub(super) fn counts(&self) -> IngressCounts {
        self.counts
    }

    /// The socket may hold datagrams that came after the last call.
    pub(super) fn look_again(&mut self) {
        self.emptied = false;
    }

    /// The next datagram and its sender. `None` when the socket has none, or had none left when
    /// the last one was taken: say [`Self::look_again`] when it is told to be readable.
    pub(super) fn next(&mut self, socket: &UdpSocket) -> io::Result<Option<(SocketAddr, &[u8])>> {
        loop {
            while self.at < self.filled {
                if let Some((from, start, len)) = self.take_one() {
                    self.counts.datagrams += 1;
                    self.counts.bytes += len as u64;
                    return Ok(Some((from, &self.buffer[start..start + len])));
                }
            }
            if std::mem::take(&mut self.emptied) || !self.refill(socket)? {
                return Ok(None);
            }
        }
    }

    /// Moves over one datagram of the buffer. `None` when it is not to be handed out.
    fn take_one(&mut self) -> Option<(SocketAddr, usize, usize)> {
        let message = self.messages[self.at];
        let rest = message.len.saturating_sub(self.offset);
        let len = if message.segment == 0 { rest } else { rest.min(message.segment) };
        let start = self.at * self.stride + self.offset;
        self.offset += len;
        let is_last = self.offset >= message.len;
        if is_last {
            self.at += 1;
            self.offset = 0;
        }
        // What is cut off is the end, so that only the last datagram is not whole.
        if len > DATAGRAM_BYTES_MAX || (is_last && message.truncated) {
            self.counts.oversized += 1;
            return None;
        }
        if len == 0 {
            return None;
        }
        Some((unmapped(message.from?), start, len))
    }

    /// Receives what there is. False when there is nothing.
    fn refill(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        (self.filled, self.at, self.offset) = (0, 0, 0);
        loop {
            self.counts.calls += 1;
            let got = if self.one_by_one {
                socket.recv_from(&mut self.buffer[..self.stride]).map(|(len, from)| {
                    let truncated = len == self.stride;
                    self.messages[0] = Received { from: Some(from), len, segment: 0, truncated };
                    1
                })
            } else {
                let out = &mut self.messages[..self.ask];
                kernel::receive_messages(socket.as_fd(), &mut self.buffer, self.stride, out)
            };
            match got {
                Ok(messages) => {
                    let all = messages == self.ask;
                    self.emptied = !all && !self.one_by_one;
                    self.ask = if all { RECEIVE_MESSAGES_MAX } else { MESSAGES_AT_FIRST };
                    self.filled = messages;
                    return Ok(messages > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.ask = MESSAGES_AT_FIRST;
                    return Ok(false);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// A socket of IPv6 that also takes IPv4 names such senders in the mapped form; viewers are known
/// by their plain address.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        // A link-local address is nothing without its scope, so it stays as it is.
        _ => address,
    }
}

#[cfg(test)]
mod tests;
