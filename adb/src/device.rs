//! The device side: accept hosts, authenticate them, hand their OPENs to a table of services.
//!
//! Not here: what a device can do; that is behind [`DeviceServices`]. Each service runs in its own
//! task, so that none can hold up the packets of another (a service that answered from the packet
//! reader would wait for an OKAY which only that reader can read).
//! Invariant: when a connection ends, its services end: their streams fail, and what still runs a
//! moment later is cancelled.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::AdbPublicKey,
    counters::{Counters, add},
    error::{AdbError, Disconnect},
    features::{DELAYED_ACK, DeviceBanner, FeatureSet},
    handshake::{self, Offer},
    host::prepare_socket,
    link::{Link, LinkHandle},
    mux::MuxConfig,
    packet::{MAX_PAYLOAD, VERSION_SKIP_CHECKSUM},
    stream::AdbStream,
};

/// How long services may take to notice that their connection is over.
const GRACE: Duration = Duration::from_secs(1);

/// Services running for one connection. More than its streams, as a service may outlive its own
/// (`reverse:` does); further OPENs are refused.
const SERVICES_MAX: usize = 1024;

/// A service ended badly. The stream is closed; the connection is not affected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Its stream failed.
    #[error("service stream failed")]
    Io(#[from] std::io::Error),
    /// Anything else, in words for the log.
    #[error("{0}")]
    Failed(String),
}

/// What a device offers.
pub trait DeviceServices: Send + Sync + 'static {
    /// What the device says about itself. Its features are replaced by those of the options.
    fn banner(&self) -> DeviceBanner;

    /// Whether somebody serves this name now; a false answer refuses the OPEN.
    fn accepts(&self, service: &str) -> bool;

    /// Serves one stream; it closes when the stream is dropped. `connection` opens streams back
    /// to the host, for `reverse:`.
    fn open<'a>(
        &'a self,
        connection: DeviceConnection,
        service: String,
        stream: AdbStream,
    ) -> BoxFuture<'a, Result<(), ServiceError>>;
}

/// Whom a device lets in.
#[derive(Debug, Clone, Default)]
pub enum AuthPolicy {
    /// Everybody, without asking for a key.
    #[default]
    None,
    /// Hosts that hold one of these keys.
    Keys {
        /// The keys.
        trusted: Vec<AdbPublicKey>,
        /// Let in whoever offers a public key, as if the user had tapped "allow".
        accept_unknown: bool,
    },
}

/// How a device serves connections.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Whom to let in.
    pub auth: AuthPolicy,
    /// Announce `delayed_ack`.
    pub delayed_ack: bool,
    /// Features to announce, without `delayed_ack`.
    pub features: FeatureSet,
    /// Bound on the handshake.
    pub handshake_timeout: Duration,
    /// Protocol version to announce.
    pub version: u32,
    /// Largest packet to announce.
    pub max_payload: u32,
    /// Connections served at the same time; more are closed at once.
    pub connections_max: usize,
    /// Buffers and limits; `delayed_ack` and `max_payload` in it are set by the handshake.
    pub limits: MuxConfig,
    /// Where connections are counted.
    pub counters: Arc<Counters>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            auth: AuthPolicy::None,
            delayed_ack: true,
            features: FeatureSet::device_default(),
            handshake_timeout: Duration::from_secs(10),
            version: VERSION_SKIP_CHECKSUM,
            max_payload: MAX_PAYLOAD,
            connections_max: 16,
            limits: MuxConfig::default(),
            counters: Arc::default(),
        }
    }
}

/// A device's handle of one host connection.
#[derive(Clone)]
pub struct DeviceConnection {
    link: Arc<Link>,
    handle: std::sync::Weak<LinkHandle>,
    host_features: Arc<FeatureSet>,
}

impl fmt::Debug for DeviceConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceConnection")
            .field("host_features", &self.host_features)
            .finish_non_exhaustive()
    }
}

impl DeviceConnection {
    /// Opens a stream to the host, as `reverse:forward` promises.
    pub async fn open(&self, service: &str) -> Result<AdbStream, AdbError> {
        let handle = self.handle.upgrade().ok_or(Disconnect::ByUs)?;
        self.link.open(&handle, service).await.map(AdbStream::from)
    }

    /// The features the host announced.
    #[must_use]
    pub fn host_features(&self) -> &FeatureSet {
        &self.host_features
    }

    /// Waits until the connection is over.
    pub async fn closed(&self) -> Disconnect {
        self.link.closed().await
    }
}

/// Serves one host until the connection ends, and says how it ended.
pub async fn serve_connection(
    mut tcp: TcpStream,
    services: Arc<dyn DeviceServices>,
    options: DeviceOptions,
) -> Result<Disconnect, AdbError> {
    prepare_socket(&tcp)
        .map_err(|source| AdbError::Io { doing: "setting socket options", source })?;
    let mut banner = services.banner();
    banner.features = options.features.clone().with(DELAYED_ACK, options.delayed_ack);
    let offer = Offer { version: options.version, max_payload: options.max_payload };
    let shaking =
        handshake::as_device(&mut tcp, offer, &banner, &options.auth, options.limits.clone());
    let shaken = tokio::time::timeout(options.handshake_timeout, shaking).await;
    let counters = Arc::clone(&options.counters);
    let (host_features, agreed) = match shaken.unwrap_or(Err(AdbError::Timeout("ADB handshake"))) {
        Ok(agreed) => agreed,
        Err(error) => {
            let counter = match &error {
                AdbError::Unauthorized => &counters.auth_failed,
                _ => &counters.handshakes_failed,
            };
            add(counter, 1);
            return Err(error);
        }
    };
    let (reader, writer) = tcp.into_split();
    let handle = Arc::new(Link::spawn(reader, writer, agreed, options.counters));
    let _end = EndOnDrop(Arc::clone(handle.link()));
    let connection = DeviceConnection {
        link: Arc::clone(handle.link()),
        handle: Arc::downgrade(&handle),
        host_features: Arc::new(host_features),
    };
    let mut running = JoinSet::new();
    let link = Arc::clone(handle.link());
    loop {
        let next = tokio::select! {
            next = link.next_incoming() => next,
            Some(_) = running.join_next() => continue,
        };
        let Some((id, service)) = next else { break };
        if running.len() >= SERVICES_MAX || !services.accepts(&service) {
            tracing::debug!(service, "service refused");
            link.refuse(id);
        } else if let Some(stream) = link.accept(&handle, id) {
            let (services, connection) = (Arc::clone(&services), connection.clone());
            running.spawn(run_service(services, connection, service, stream.into()));
        }
    }
    let ended = async { while running.join_next().await.is_some() {} };
    // What does not end by itself is aborted when `running` is dropped.
    let _ = tokio::time::timeout(GRACE, ended).await;
    Ok(link.closed().await)
}

/// Ends the connection when its serving task is cancelled, whatever its services still hold.
struct EndOnDrop(Arc<Link>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.finish(Disconnect::ByUs);
    }
}

async fn run_service(
    services: Arc<dyn DeviceServices>,
    connection: DeviceConnection,
    service: String,
    stream: AdbStream,
) {
    tracing::trace!(service, "service opened");
    if let Err(error) = services.open(connection, service.clone(), stream).await {
        tracing::debug!(service, %error, "service ended badly");
    }
}

/// A device's listening port.
pub struct DeviceListener {
    listener: TcpListener,
    local_addr: SocketAddr,
    services: Arc<dyn DeviceServices>,
    options: DeviceOptions,
    drop_all: watch::Sender<()>,
}

/// Drops a listener's connections while it goes on listening, as a flaky device does.
#[derive(Debug, Clone)]
pub struct ConnectionDropper(watch::Sender<()>);

impl ConnectionDropper {
    /// Drops every connection that stands now.
    pub fn drop_all(&self) {
        self.0.send_replace(());
    }
}

impl fmt::Debug for DeviceListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceListener").field("addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl DeviceListener {
    /// Binds; port 0 takes a free one.
    pub async fn bind(
        addr: SocketAddr,
        services: Arc<dyn DeviceServices>,
        options: DeviceOptions,
    ) -> Result<Self, AdbError> {
        let failed = |source| AdbError::Connect { addr: addr.to_string(), source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, local_addr, services, options, drop_all: watch::Sender::new(()) })
    }

    /// The address that was bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// A switch that drops the connections standing at the time.
    #[must_use]
    pub fn dropper(&self) -> ConnectionDropper {
        ConnectionDropper(self.drop_all.clone())
    }

    /// Accepts hosts until `shutdown`, then drops every connection.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors and the like: give others time to release some.
                    tracing::warn!(%error, "cannot accept an adb connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if connections.len() >= self.options.connections_max {
                tracing::warn!(%peer, "too many adb connections");
                continue;
            }
            let (services, options) = (Arc::clone(&self.services), self.options.clone());
            let mut dropped = self.drop_all.subscribe();
            connections.spawn(async move {
                let served = tokio::select! {
                    served = serve_connection(tcp, services, options) => served,
                    // The listener holds the sender, so this cannot end in an error.
                    _ = dropped.changed() => Ok(Disconnect::ByUs),
                };
                match served {
                    Ok(reason) => tracing::debug!(%peer, %reason, "adb host gone"),
                    Err(error) => tracing::debug!(%peer, %error, "adb host not let in"),
                }
            });
        }
    }
}
