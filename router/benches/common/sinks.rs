//! Sockets that are bound and never read, with the smallest buffer: the sender pays for the
//! receive path of the loopback device and for the kernel's cutting of segments, and nobody else
//! works. Invariant: what is sent to a sink is dropped there.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result};

pub struct Sinks {
    sockets: Vec<UdpSocket>,
    pub addresses: Vec<SocketAddr>,
}

impl Sinks {
    pub fn new(count: usize) -> Result<Self> {
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            let socket = UdpSocket::bind("127.0.0.1:0").context("bind a sink")?;
            socket2::SockRef::from(&socket).set_recv_buffer_size(1)?;
            sockets.push(socket);
        }
        let addresses = sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?;
        Ok(Self { sockets, addresses })
    }

    /// Sends from the address of a sink, as its viewer would.
    pub fn send(&self, sink: usize, bytes: &[u8], to: SocketAddr) -> Result<()> {
        self.sockets[sink].send_to(bytes, to).context("send from a sink")?;
        Ok(())
    }

    /// Whether what is sent over loopback arrives: not in a blackhole.
    pub fn is_connected() -> Result<bool> {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        b.set_read_timeout(Some(Duration::from_millis(200)))?;
        a.send_to(b"?", b.local_addr()?)?;
        Ok(b.recv(&mut [0; 4]).is_ok())
    }
}

/// A socket to send with.
pub fn sender(address: &str) -> Result<mio::net::UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    socket2::SockRef::from(&socket).set_send_buffer_size(4 << 20)?;
    socket.set_nonblocking(true)?;
    Ok(mio::net::UdpSocket::from_std(socket))
}
