//! Which addresses viewers are told, and which of them a sender must have used. Not discovery:
//! interfaces are not listed, the routing table is asked once. Invariant: there is always at least
//! one candidate, and none is a wildcard.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::IceConfig;

/// Addresses in order of preference, of each family that the socket is of.
pub(crate) fn all(ice: &IceConfig, bound: SocketAddr) -> Vec<SocketAddr> {
    let with_port = |ip| SocketAddr::new(ip, bound.port());
    if !ice.announce.is_empty() {
        return ice.announce.iter().copied().map(with_port).collect();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let v4 = (IpAddr::V4(Ipv4Addr::LOCALHOST), outward_ip(true));
    let v6 = (IpAddr::V6(Ipv6Addr::LOCALHOST), outward_ip(false));
    let families = if bound.is_ipv4() { vec![v4] } else { vec![v4, v6] };
    let outward = families.iter().filter_map(|(_, ip)| *ip).filter(|ip| !ip.is_loopback());
    let loopback = families.iter().map(|(ip, _)| *ip);
    outward.chain(loopback).map(with_port).collect()
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
pub(crate) fn used_by(candidates: &[SocketAddr], from: SocketAddr) -> SocketAddr {
    let same = |c: &&SocketAddr| {
        c.is_ipv4() == from.is_ipv4() && c.ip().is_loopback() == from.ip().is_loopback()
    };
    // There is always one: `all` never returns an empty list.
    candidates.iter().find(same).or_else(|| candidates.first()).copied().unwrap_or(from)
}
