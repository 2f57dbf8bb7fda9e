//! Sockets that are bound and never read, with the smallest buffer: the sender pays for the
//! receive path of the loopback device and for the kernel's cutting of segments, and nobody else
//! works. Invariant: what is sent to a sink is dropped there.

use std::net::{SocketAddr, UdpSocket};

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
}
