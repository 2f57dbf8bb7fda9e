//! A shard's UDP socket: binding, buffer sizes, receive and send. Not a demultiplexer; datagrams
//! are opaque here. Invariant: nothing in these files blocks. A single datagram that the socket
//! cannot take is dropped and the caller counts; a batch is kept by the caller and sent on later.
//!
//! `batch` sends many viewers' datagrams at once, `receive` takes many at once, `candidates` says
//! where viewers reach the socket, and `kernel` holds the system calls (the only `unsafe`).
//!
//! A socket bound to `::` is of both families; one bound to an IPv4 address is of that alone.

mod batch;
pub(crate) mod candidates;
#[allow(unsafe_code, reason = "system calls over many datagrams; each block says why it is sound")]
mod kernel;
mod receive;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
};

use fanlight_router_core::{Batch, Run};
use mio::net::UdpSocket;
use socket2::{Domain, Protocol, Socket, Type};

pub use batch::{BatchSender, Cursor, EgressCounts, Fate, Flow, Mode};
pub use receive::IngressCounts;

use crate::{config::IceConfig, error::RouterError};
use kernel::Message;
use receive::BatchReceiver;

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// A bound socket and what viewers know it by.
#[derive(Debug)]
pub struct ShardSocket {
    socket: UdpSocket,
    sender: BatchSender,
    receiver: BatchReceiver,
    candidates: Vec<SocketAddr>,
    /// The last sender and the candidate it uses: most datagrams come in rows.
    last: Option<(IpAddr, SocketAddr)>,
}

/// What became of a datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took it.
    Done,
    /// The socket's buffer is full; it is dropped.
    Full,
    /// The kernel refused it (no route, for example); it is dropped.
    Refused,
}

impl ShardSocket {
    /// Binds the socket of shard `index`.
    pub fn bind(ice: &IceConfig, index: usize) -> Result<Self, RouterError> {
        // Validation keeps `port + shards` within 16 bits.
        let port = match ice.port {
            0 => 0,
            first => first.saturating_add(u16::try_from(index).unwrap_or(u16::MAX)),
        };
        let address = SocketAddr::new(ice.bind, port);
        let failed = |source| RouterError::Bind { what: "viewers' UDP socket", address, source };
        let socket = match bound(ice, address) {
            Err(e) if lacks_ipv6(&e) && address == SocketAddr::new(ANY_V6, port) => {
                tracing::warn!(error = %e, "this machine has no IPv6: viewers reach IPv4 alone");
                bound(ice, SocketAddr::new(ANY_V4, port))
            }
            other => other,
        };
        let socket = socket.map_err(failed)?;
        let sender = BatchSender::new(&socket, ice.egress).map_err(failed)?;
        let candidates = candidates::all(ice, socket.local_addr().map_err(failed)?);
        tracing::debug!(%address, mode = ?sender.mode(), "viewers' socket bound");
        let receiver = BatchReceiver::new(&socket);
        Ok(Self { socket, sender, receiver, candidates, last: None })
    }

    /// What is put in answers.
    #[must_use]
    pub fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// What it is bound to.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// For registration with the shard's poll.
    pub fn source(&mut self) -> &mut UdpSocket {
        &mut self.socket
    }

    /// The socket was told to be readable, or may have become so.
    pub fn look_again(&mut self) {
        self.receiver.look_again();
    }

    /// The next datagram: sender, the candidate it was sent to, bytes. None when there is none, or
    /// none was left after the last one and nobody said [`Self::look_again`] since.
    pub fn receive(&mut self) -> io::Result<Option<(SocketAddr, SocketAddr, &[u8])>> {
        let Some((from, bytes)) = self.receiver.next(&self.socket)? else { return Ok(None) };
        let to = match self.last {
            Some((ip, to)) if ip == from.ip() => to,
            _ => candidates::used_by(&self.candidates, from),
        };
        self.last = Some((from.ip(), to));
        Ok(Some((from, to, bytes)))
    }

    /// Sends one datagram or drops it.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> Sent {
        let to = self.sender.destination(to);
        loop {
            match self.socket.send_to(bytes, to) {
                Ok(_) => return Sent::Done,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Sent::Full,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Sent::Refused,
            }
        }
    }

    /// Sends a batch from `cursor` on; see [`BatchSender::send`].
    pub fn send_batch(
        &mut self,
        batch: &Batch,
        cursor: &mut Cursor,
        told: impl FnMut(&Run, Fate),
    ) -> Flow {
        self.sender.send(&self.socket, batch, cursor, told)
    }

    /// Totals of [`Self::send_batch`].
    #[must_use]
    pub fn egress_counts(&self) -> EgressCounts {
        self.sender.counts()
    }

    /// Totals of [`Self::receive`].
    #[must_use]
    pub fn ingress_counts(&self) -> IngressCounts {
        self.receiver.counts()
    }
}

/// One bare call without any of [`BatchSender`]'s care: what benchmarks compare it with. Each
/// message is a destination, bytes, and the size of its datagrams when there are several.
#[doc(hidden)]
pub fn send_bare(
    socket: &UdpSocket,
    messages: &[(SocketAddr, &[u8], Option<u16>)],
) -> io::Result<usize> {
    let messages = messages.iter().map(|&(to, bytes, segment)| Message { to, bytes, segment });
    kernel::send_messages(socket.as_fd(), messages)
}

/// Whether it is the machine that has no IPv6, rather than this address that is wrong.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// A socket that does not block, with large buffers.
fn bound(ice: &IceConfig, address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // Said outright, because the system's default can be either.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    set_buffers(&socket, ice.socket_buffer_bytes, address);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(UdpSocket::from_std(socket.into()))
}

/// Asks for large buffers and says what the kernel gave: its default of 208 KiB overflows in
/// milliseconds.
fn set_buffers(socket: &Socket, wanted_bytes: usize, address: SocketAddr) {
    if kernel::force_buffers(socket.as_fd(), wanted_bytes).is_err() {
        // Not allowed to go beyond the system's bound: take what it gives.
        let _ = socket.set_recv_buffer_size(wanted_bytes);
        let _ = socket.set_send_buffer_size(wanted_bytes);
    }
    let got_bytes =
        socket.recv_buffer_size().unwrap_or(0).min(socket.send_buffer_size().unwrap_or(0));
    if got_bytes < wanted_bytes {
        tracing::warn!(
            %address,
            wanted_bytes,
            got_bytes,
            "small socket buffers: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
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
        assert_eq!(candidates::used_by(&all, "127.0.0.1:9".parse().unwrap()), all[1]);
        assert_eq!(candidates::used_by(&all, "203.0.113.5:9".parse().unwrap()), all[0]);
    }

    #[test]
    fn a_port_in_use_is_an_error_that_names_it() {
        let first = ShardSocket::bind(&ice("127.0.0.1", &[]), 0).unwrap();
        let port = first.candidates()[0].port();
        let taken = IceConfig { port, ..ice("127.0.0.1", &[]) };
        let error = ShardSocket::bind(&taken, 0).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()), "{error}");
    }

    #[test]
    fn a_socket_of_both_families_announces_both_and_knows_which_was_used() {
        let mut socket = ShardSocket::bind(&ice("::", &[]), 0).unwrap();
        let candidates = socket.candidates().to_vec();
        assert!(candidates.iter().all(|c| !c.ip().is_unspecified()));
        for ip in ["127.0.0.1", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let candidate = *candidates.iter().find(|c| c.ip() == ip).expect("loopback candidate");
            let viewer = std::net::UdpSocket::bind((ip, 0)).unwrap();
            viewer.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            viewer.send_to(b"to", candidate).unwrap();
            socket.look_again();
            let (from, to, bytes) = socket.receive().unwrap().expect("a datagram");
            assert_eq!((from, to, bytes), (viewer.local_addr().unwrap(), candidate, &b"to"[..]));
            assert_eq!(socket.send(from, b"back"), Sent::Done);
            let mut buffer = [0; 16];
            let (len, from) = viewer.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (&b"back"[..], candidate));
        }
    }

    #[test]
    fn each_forced_egress_binds_on_this_kernel() {
        use crate::config::Egress;
        for (egress, mode) in [
            (Egress::Auto, Mode::Segmented),
            (Egress::Gso, Mode::Segmented),
            (Egress::Sendmmsg, Mode::Messages),
            (Egress::Sendto, Mode::Single),
        ] {
            let cfg = IceConfig { egress, ..ice("127.0.0.1", &[]) };
            assert_eq!(ShardSocket::bind(&cfg, 0).unwrap().sender.mode(), mode);
        }
    }
}
