//! A viewer's socket: bound to loopback, with a receive buffer that holds a burst, read in batches
//! of coalesced datagrams. Invariant: datagrams come out one by one, however the kernel gave them.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket},
};

use mio::net::UdpSocket;
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};

/// Receive buffer asked for: a group of pictures that is replayed to a joiner.
const RECEIVE_BYTES: usize = 2 << 20;
/// Messages read at once; each may hold many datagrams.
const BATCH: usize = 8;
/// What a coalesced message may have.
const MESSAGE_BYTES: usize = 64 << 10;

/// A socket.
pub(super) struct Socket {
    pub(super) io: UdpSocket,
    state: UdpSocketState,
    pub(super) local: SocketAddr,
}

impl Socket {
    pub(super) fn bind() -> io::Result<Self> {
        let socket = StdSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let local = socket.local_addr()?;
        // Both make it larger; the second is capped by the system, the first needs a privilege.
        let forced =
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES);
        if forced.is_err() {
            socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BYTES)?;
        }
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self { io: UdpSocket::from_std(socket), state, local })
    }

    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8]) -> bool {
        self.io.send_to(bytes, to).is_ok()
    }
}

/// Memory to read into; one per thread.
pub(super) struct Inbox {
    buffers: Vec<Box<[u8]>>,
    metas: Vec<RecvMeta>,
    filled: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buffers: (0..BATCH).map(|_| vec![0; MESSAGE_BYTES].into()).collect(),
            metas: vec![RecvMeta::default(); BATCH],
            filled: 0,
        }
    }

    /// Reads what waits; `true`: there may be more.
    pub(super) fn fill(&mut self, socket: &Socket) -> bool {
        self.filled = 0;
        let mut slices: Vec<IoSliceMut<'_>> =
            self.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let socket_ref = UdpSockRef::from(&socket.io);
        match socket.state.recv(socket_ref, &mut slices, &mut self.metas) {
            Ok(count) => {
                self.filled = count;
                count == BATCH
            }
            // Nothing there, or an error of a datagram of ours that came back.
            Err(_) => false,
        }
    }

    /// The datagrams that were read.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.buffers.iter().zip(&self.metas).take(self.filled).flat_map(|(buffer, meta)| {
            let bytes = buffer.get(..meta.len).unwrap_or_default();
            bytes.chunks(meta.stride.max(1)).map(|datagram| (meta.addr, datagram))
        })
    }
}
