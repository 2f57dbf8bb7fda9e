//! QUIC settings of the hop, each with its reason, and the socket. Not the protocol on top.
//! Invariant: the controller is never Cubic or NewReno, which ruin a stream from 0.3 % loss up.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use fanlight_ops::pki;
use fanlight_proto::id::NodeId;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};
use rustls_pki_types::CertificateDer;

use crate::cc::MediaConfig;

/// A dead router is noticed within this.
const MAX_IDLE: Duration = Duration::from_millis(750);
/// Three keep-alives fit into the idle time.
const KEEP_ALIVE: Duration = Duration::from_millis(200);
/// Reordering below this many packets is not loss.
const PACKET_THRESHOLD: u32 = 16;
/// A keyframe at full rate leaves at once.
const FLOOR_BYTES: u64 = 140_000;

/// Client settings for the hop.
pub fn client_config(tls: rustls::ClientConfig, target_bps: u64) -> Result<ClientConfig, String> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| e.to_string())?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(target_bps)));
    Ok(config)
}

fn transport(target_bps: u64) -> TransportConfig {
    let mut t = TransportConfig::default();
    let media = MediaConfig { target_bps: target_bps.max(1_000_000), floor_bytes: FLOOR_BYTES };
    t.congestion_controller_factory(Arc::new(media))
        .packet_threshold(PACKET_THRESHOLD)
        // Only the handshake's probe timeout depends on it; routers are in the region.
        .initial_rtt(Duration::from_millis(50))
        // Frames of one device leave in order; priorities separate only classes.
        .send_fairness(false)
        .datagram_send_buffer_size(64 * 1024)
        .datagram_receive_buffer_size(Some(4 * 1024 * 1024))
        // The router opens no streams today; relays and RTCP will.
        .max_concurrent_uni_streams(VarInt::from_u32(4_096))
        .max_concurrent_bidi_streams(VarInt::from_u32(8))
        .stream_receive_window(VarInt::from_u32(1024 * 1024))
        .receive_window(VarInt::from_u32(32 * 1024 * 1024))
        .send_window(8 * 1024 * 1024)
        .crypto_buffer_size(16 * 1024)
        .keep_alive_interval(Some(KEEP_ALIVE));
    // 750 ms fits a varint of milliseconds.
    t.max_idle_timeout(IdleTimeout::try_from(MAX_IDLE).ok());
    t
}

/// A UDP socket with buffers that hold a burst of keyframes; dual-stack where the host is.
pub(super) fn bind() -> io::Result<Endpoint> {
    let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let any4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let socket = dual_stack(any6).or_else(|_| UdpSocket::bind(any4))?;
    enlarge(&socket);
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("the hop needs an async runtime"))?;
    Endpoint::new(EndpointConfig::default(), None, socket, runtime)
}

fn dual_stack(address: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Asks for 8 MiB each way and says so once when the kernel gives less than a burst needs.
fn enlarge(socket: &UdpSocket) {
    const WANTED: usize = 8 * 1024 * 1024;
    const ENOUGH: usize = 1024 * 1024;
    let socket = socket2::SockRef::from(socket);
    let _ = socket.set_send_buffer_size(WANTED);
    let _ = socket.set_recv_buffer_size(WANTED);
    let got = socket.send_buffer_size().unwrap_or(0);
    if got < ENOUGH {
        tracing::warn!(got, "small UDP send buffer; raise net.core.wmem_max to {WANTED}");
    }
}

/// The address as this endpoint's socket must be given it.
pub(super) fn reachable(endpoint: &Endpoint, address: SocketAddr) -> SocketAddr {
    match (endpoint.local_addr(), address.ip()) {
        (Ok(local), IpAddr::V4(v4)) if local.is_ipv6() => {
            SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), address.port())
        }
        _ => address,
    }
}

/// Node named in the peer's certificate, which the handshake has checked against our CA.
pub(super) fn peer_node(connection: &Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    pki::peer_node(chain.first()?)
}
