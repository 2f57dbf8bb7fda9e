//! The QUIC endpoint that ingest workers dial: limits, handshakes, and the end. Not what a
//! connection says ([`crate::hop`]). Invariants: a failed handshake is counted and changes nothing
//! else; the number of connections and of handshakes at once is bounded; no early data is taken,
//! because it would come before the client's certificate has been checked.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fanlight_ops::pki::{self, NodeIdentity};
use fanlight_wire::roq::{ALPN_FANLIGHT, error_code};
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime,
    TransportConfig, VarInt, crypto::rustls::QuicServerConfig,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{LimitsConfig, RouterConfig},
    error::RouterError,
    hop::{self, Hop},
};

/// Longest handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for connections to end by themselves, and then for closing packets to leave.
const END_DEADLINE: Duration = Duration::from_millis(300);
/// Size asked for the socket's buffers: the system's 208 KiB overflow in milliseconds.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// The endpoint, bound.
#[derive(Debug)]
pub(crate) struct Ingest {
    endpoint: Endpoint,
    hop: Arc<Hop>,
    connections_max: usize,
    handshakes_max: usize,
}

impl Ingest {
    pub(crate) fn bind(
        cfg: &RouterConfig,
        identity: &NodeIdentity,
        hop: Hop,
    ) -> Result<Self, RouterError> {
        let address = cfg.quic_listen;
        let failed = |source| RouterError::Bind { what: "ingest QUIC socket", address, source };
        let server = server_config(identity, &cfg.limits)?;
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
        let asked = socket
            .set_recv_buffer_size(SOCKET_BUFFER_BYTES)
            .and_then(|()| socket.set_send_buffer_size(SOCKET_BUFFER_BYTES));
        let got_bytes = socket.recv_buffer_size().unwrap_or(0);
        if asked.is_err() || got_bytes < SOCKET_BUFFER_BYTES {
            tracing::warn!(%address, got_bytes, "small socket buffers: raise net.core.rmem_max");
        }
        socket.bind(&address.into()).map_err(failed)?;
        let config = EndpointConfig::default();
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new(config, Some(server), socket.into(), runtime).map_err(failed)?;
        Ok(Self {
            endpoint,
            hop: Arc::new(hop),
            connections_max: cfg.limits.hop_connections_max,
            handshakes_max: cfg.limits.hop_handshakes_max,
        })
    }

    pub(crate) fn local_addr(&self) -> Result<SocketAddr, RouterError> {
        let what = "ingest QUIC socket";
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        self.endpoint.local_addr().map_err(|source| RouterError::Bind { what, address, source })
    }

    /// Serves until `end`; `going_away` comes first and makes publishers go elsewhere.
    pub(crate) async fn run(self, going_away: CancellationToken, end: CancellationToken) {
        let mut connections = JoinSet::new();
        let handshakes = Arc::new(Semaphore::new(self.handshakes_max));
        loop {
            tokio::select! {
                () = end.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    if going_away.is_cancelled() || connections.len() >= self.connections_max {
                        self.refused("full");
                        incoming.refuse();
                        continue;
                    }
                    let Some(incoming) = self.admit(incoming, &handshakes) else { continue };
                    let hop = Arc::clone(&self.hop);
                    let handshakes = Arc::clone(&handshakes);
                    let (going_away, end) = (going_away.clone(), end.clone());
                    connections.spawn(async move {
                        if let Some(conn) = handshake(incoming, &hop, &handshakes).await {
                            hop::serve(conn, hop, going_away, end).await;
                        }
                    });
                }
            }
        }
        // Each connection's task says its last words, closes and returns; the endpoint's close is
        // for those that do not.
        let _ =
            timeout(END_DEADLINE, async { while connections.join_next().await.is_some() {} }).await;
        let done = VarInt::from_u64(error_code::GOAWAY_DONE).unwrap_or(VarInt::from_u32(0));
        self.endpoint.close(done, b"going_away");
        let _ = timeout(END_DEADLINE, self.endpoint.wait_idle()).await;
    }

    /// While many handshakes are under way, an address first has to prove that it is its own.
    fn admit(&self, incoming: Incoming, handshakes: &Semaphore) -> Option<Incoming> {
        if handshakes.available_permits() > 0 || incoming.remote_address_validated() {
            return Some(incoming);
        }
        self.refused("retry");
        if let Err(e) = incoming.retry() {
            e.into_incoming().refuse();
        }
        None
    }

    fn refused(&self, word: &'static str) {
        let name = "fanlight_router_hop_handshakes_failed_total";
        self.hop.metrics.count_reason(name, word);
    }
}

async fn handshake(
    incoming: Incoming,
    hop: &Hop,
    handshakes: &Semaphore,
) -> Option<quinn::Connection> {
    // A validated address may start while the permits are out: it only counts then.
    let _permit = handshakes.try_acquire();
    let remote = incoming.remote_address();
    let failed = |word: &'static str, detail: &dyn std::fmt::Display| {
        hop.metrics.count_reason("fanlight_router_hop_handshakes_failed_total", word);
        tracing::warn!(%remote, reason = word, %detail, "hop handshake failed");
    };
    // Both steps fail for a client without a certificate or with another protocol.
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(e) => {
            failed(word(&e), &e);
            return None;
        }
    };
    match timeout(HANDSHAKE_DEADLINE, connecting).await {
        Ok(Ok(conn)) => Some(conn),
        Ok(Err(e)) => {
            failed(word(&e), &e);
            None
        }
        Err(_) => {
            failed("timeout", &"took too long");
            None
        }
    }
}

fn word(e: &ConnectionError) -> &'static str {
    /// TLS alert `no_application_protocol` as a QUIC crypto error.
    const NO_ALPN: u64 = 0x178;
    match e {
        ConnectionError::TransportError(e) if u64::from(e.code) == NO_ALPN => "wrong_protocol",
        ConnectionError::TransportError(e) if (0x100..0x200).contains(&u64::from(e.code)) => "tls",
        ConnectionError::TransportError(_) => "transport",
        ConnectionError::TimedOut => "timeout",
        ConnectionError::VersionMismatch => "version",
        _ => "closed",
    }
}

fn server_config(
    identity: &NodeIdentity,
    limits: &LimitsConfig,
) -> Result<ServerConfig, RouterError> {
    let unusable = |e: &dyn std::fmt::Display| RouterError::Identity(e.to_string());
    let tls = pki::server_config_mtls(identity, &[ALPN_FANLIGHT]).map_err(|e| unusable(&e))?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| unusable(&e))?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(transport(limits)))
        .max_incoming(1_024)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(16 << 20);
    Ok(server)
}

/// Why each value: the note on the hop's measurements. In short: uni streams are frames (64 slots
/// of 60 frames/s over 0.25 s and more), windows bound memory above one keyframe per slot,
/// reordering must not read as loss, and a dead worker is noticed in about a second.
fn transport(limits: &LimitsConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(4_096))
        .max_concurrent_bidi_streams(VarInt::from_u32(8))
        .stream_receive_window(VarInt::from_u32(1 << 20))
        .receive_window(VarInt::from_u32(32 << 20))
        .send_window(8 << 20)
        .send_fairness(false)
        .packet_threshold(16)
        .initial_rtt(Duration::from_millis(50))
        .keep_alive_interval(Some(Duration::from_millis(limits.hop_idle_ms / 4)))
        .crypto_buffer_size(16 << 10)
        .datagram_receive_buffer_size(Some(1 << 20))
        .datagram_send_buffer_size(64 << 10);
    // Within a varint by the configuration's bounds.
    if let Ok(idle) = IdleTimeout::try_from(Duration::from_millis(limits.hop_idle_ms)) {
        transport.max_idle_timeout(Some(idle));
    }
    transport
}
