//! A shard's UDP socket: binding, buffer sizes, the addresses that viewers are told, receive and
//! send. Not a demultiplexer; datagrams are opaque here. Invariant: nothing in this file blocks;
//! a socket that cannot take a datagram drops it, and the caller counts.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use mio::net::UdpSocket;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{config::IceConfig, error::RouterError};

/// Largest datagram read. WebRTC stays below 1,500; the rest of a longer one is cut off, and what
/// is left fails its checks.
const DATAGRAM_BYTES_MAX: usize = 2_048;

/// A bound socket and what viewers know it by.
#[derive(Debug)]
pub(crate) struct ShardSocket {
    socket: UdpSocket,
    candidates: Vec<SocketAddr>,
    buffer: Vec<u8>,
}

/// What became of a datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The kernel took it.
    Done,
    /// The socket's buffer is full; it is dropped.
    Full,
    /// The kernel refused it (no route, for example); it is dropped.
    Refused,
}

impl ShardSocket {
    /// Binds the socket of shard `index`.
    pub(crate) fn bind(ice: &IceConfig, index: usize) -> Result<Self, RouterError> {
        // Validation keeps `port + shards` within 16 bits.
        let port = match ice.port {
            0 => 0,
            first => first.saturating_add(u16::try_from(index).unwrap_or(u16::MAX)),
        };
        let address = SocketAddr::new(ice.bind, port);
        let failed = |source| RouterError::Bind { what: "viewers' UDP socket", address, source };
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
        set_buffers(&socket, ice.socket_buffer_bytes, address);
        socket.set_nonblocking(true).map_err(failed)?;
        socket.bind(&address.into()).map_err(failed)?;
        let socket = UdpSocket::from_std(socket.into());
        let bound = socket.local_addr().map_err(failed)?;
        let candidates = candidates(ice, bound);
        Ok(Self { socket, candidates, buffer: vec![0; DATAGRAM_BYTES_MAX] })
    }

    /// What is put in answers.
    pub(crate) fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// For registration with the shard's poll.
    pub(crate) fn source(&mut self) -> &mut UdpSocket {
        &mut self.socket
    }

    /// The next datagram: sender, the candidate it was sent to, bytes. None when there is none.
    pub(crate) fn receive(&mut self) -> io::Result<Option<(SocketAddr, SocketAddr, &[u8])>> {
        loop {
            match self.socket.recv_from(&mut self.buffer) {
                Ok((len, from)) => {
                    let to = candidate_for(&self.candidates, from);
                    return Ok(Some((from, to, &self.buffer[..len])));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends one datagram or drops it.
    pub(crate) fn send(&self, to: SocketAddr, bytes: &[u8]) -> Sent {
        loop {
            match self.socket.send_to(bytes, to) {
                Ok(_) => return Sent::Done,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Sent::Full,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Sent::Refused,
            }
        }
    }
}

/// Asks for large buffers and says what the kernel gave: its default of 208 KiB overflows in
/// milliseconds.
fn set_buffers(socket: &Socket, wanted_bytes: usize, address: SocketAddr) {
    let asked = socket
        .set_recv_buffer_size(wanted_bytes)
        .and_then(|()| socket.set_send_buffer_size(wanted_bytes));
    let got_bytes =
        socket.recv_buffer_size().unwrap_or(0).min(socket.send_buffer_size().unwrap_or(0));
    if asked.is_err() || got_bytes < wanted_bytes {
        tracing::warn!(
            %address,
            wanted_bytes,
            got_bytes,
            "small socket buffers: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
}

/// Addresses in order of preference.
fn candidates(ice: &IceConfig, bound: SocketAddr) -> Vec<SocketAddr> {
    let with_port = |ip| SocketAddr::new(ip, bound.port());
    if !ice.announce.is_empty() {
        return ice.announce.iter().copied().map(with_port).collect();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let loopback = match bound.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    match outward_ip(bound.is_ipv4()) {
        Some(ip) if !ip.is_loopback() => vec![with_port(ip), with_port(loopback)],
        _ => vec![with_port(loopback)],
    }
}

/// This machine's address towards its default route. Connecting a UDP socket sends nothing; the
/// destinations are documentation addresses.
fn outward_ip(v4: bool) -> Option<IpAddr> {
    let (bind, to): (IpAddr, IpAddr) = if v4 {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into())
    } else {
        let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        (Ipv6Addr::UNSPECIFIED.into(), documentation.into())
    };
    let socket = std::net::UdpSocket::bind((bind, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Which candidate a sender must have used. A wildcard socket does not say, but a datagram from
/// loopback can only have been sent to loopback, and none from elsewhere can.
fn candidate_for(candidates: &[SocketAddr], from: SocketAddr) -> SocketAddr {
    let same = |c: &&SocketAddr| {
        c.is_ipv4() == from.is_ipv4() && c.ip().is_loopback() == from.ip().is_loopback()
    };
    // There is always one: `candidates` never returns an empty list.
    candidates.iter().find(same).or_else(|| candidates.first()).copied().unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ice(bind: &str, announce: &[&str]) -> IceConfig {
        IceConfig {
            bind: bind.parse().unwrap(),
            announce: announce.iter().map(|a| a.parse().unwrap()).collect(),
            ..IceConfig::default()
        }
    }

    #[test]
    fn a_specific_bind_is_its_own_candidate() {
        let socket = ShardSocket::bind(&ice("127.0.0.1", &[]), 0).unwrap();
        let [only] = socket.candidates() else { panic!("{:?}", socket.candidates()) };
        assert_eq!(only.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_ne!(only.port(), 0);
    }

    #[test]
    fn announced_addresses_take_the_bound_port() {
        let socket = ShardSocket::bind(&ice("127.0.0.1", &["198.51.100.7"]), 0).unwrap();
        assert_eq!(socket.candidates()[0].ip().to_string(), "198.51.100.7");
    }

    #[test]
    fn a_wildcard_bind_never_announces_the_wildcard() {
        let socket = ShardSocket::bind(&ice("0.0.0.0", &[]), 0).unwrap();
        assert!(!socket.candidates().is_empty());
        assert!(socket.candidates().iter().all(|c| !c.ip().is_unspecified()));
    }

    #[test]
    fn loopback_senders_used_the_loopback_candidate() {
        let all: Vec<SocketAddr> =
            vec!["198.51.100.7:5".parse().unwrap(), "127.0.0.1:5".parse().unwrap()];
        assert_eq!(candidate_for(&all, "127.0.0.1:9".parse().unwrap()), all[1]);
        assert_eq!(candidate_for(&all, "203.0.113.5:9".parse().unwrap()), all[0]);
    }

    #[test]
    fn a_port_in_use_is_an_error_that_names_it() {
        let first = ShardSocket::bind(&ice("127.0.0.1", &[]), 0).unwrap();
        let port = first.candidates()[0].port();
        let taken = IceConfig { port, ..ice("127.0.0.1", &[]) };
        let error = ShardSocket::bind(&taken, 0).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()), "{error}");
    }
}
