//! The host side over direct TCP: connect to a device's adbd and open its services.
//!
//! Not here: going through an adb server (`server`), the choice between the two (`access`), retry
//! (callers own their back-off). Invariant: one connection, any number of streams, none of which
//! can stop another.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpStream, sync::mpsc};

use crate::{
    auth::AdbKey,
    counters::{Counters, add},
    error::{AdbError, Disconnect},
    features::{DELAYED_ACK, DeviceBanner, FeatureSet},
    handshake::{self, Offer},
    link::{Link, LinkHandle},
    mux::MuxConfig,
    stream::AdbStream,
};

/// Streams a device has opened for one [`ReverseListener`] that nobody took yet; more are refused.
const REVERSE_BACKLOG: usize = 16;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The key to authenticate with, if the device asks.
    pub key: Option<Arc<AdbKey>>,
    /// Features to announce, without `delayed_ack`.
    pub features: FeatureSet,
    /// Announce `delayed_ack`.
    pub delayed_ack: bool,
    /// Bound on TCP connect and handshake together. A device that asks its user to trust the key
    /// answers only when the user did.
    pub timeout: Duration,
    /// Bound on the answer to one OPEN.
    pub open_timeout: Duration,
    /// Largest packet to announce.
    pub max_payload: u32,
    /// Buffers and limits; `delayed_ack` and `max_payload` in it are set by the handshake.
    pub limits: MuxConfig,
    /// Where this connection is counted.
    pub counters: Arc<Counters>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            key: None,
            features: FeatureSet::host_default(),
            delayed_ack: true,
            timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(10),
            max_payload: crate::packet::MAX_PAYLOAD,
            limits: MuxConfig::default(),
            counters: Arc::default(),
        }
    }
}

/// A connection to one device. Clones share it; it ends when the last clone and stream are gone.
#[derive(Clone)]
pub struct AdbConnection {
    handle: Arc<LinkHandle>,
    shared: Arc<Shared>,
}

struct Shared {
    banner: DeviceBanner,
    common: FeatureSet,
    open_timeout: Duration,
    reverse: ReverseTable,
}

/// Names the device may open, and who takes the streams.
type ReverseTable = Arc<Mutex<HashMap<String, mpsc::Sender<AdbStream>>>>;

impl fmt::Debug for AdbConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdbConnection")
            .field("banner", &self.shared.banner)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl AdbConnection {
    /// Connects to `host:port` (or a socket address) and completes the handshake.
    pub async fn connect(addr: impl ToString, options: ConnectOptions) -> Result<Self, AdbError> {
        let addr = addr.to_string();
        let counters = Arc::clone(&options.counters);
        let key_offered = AtomicBool::new(false);
        let connecting = Self::try_connect(addr, &key_offered, &options);
        let result = match tokio::time::timeout(options.timeout, connecting).await {
            Ok(result) => result,
            // The device shows our key to its user, who has not said yes.
            Err(_) if key_offered.load(Ordering::Relaxed) => Err(AdbError::Unauthorized),
            Err(_) => Err(AdbError::Timeout("connecting to the device")),
        };
        match &result {
            Ok(_) | Err(AdbError::Connect { .. }) => {}
            Err(AdbError::Unauthorized | AdbError::AuthRequired) => add(&counters.auth_failed, 1),
            Err(_) => add(&counters.handshakes_failed, 1),
        }
        result
    }

    async fn try_connect(
        addr: String,
        key_offered: &AtomicBool,
        options: &ConnectOptions,
    ) -> Result<Self, AdbError> {
        let mut tcp = TcpStream::connect(&addr)
            .await
            .map_err(|source| AdbError::Connect { addr: addr.clone(), source })?;
        prepare_socket(&tcp)
            .map_err(|source| AdbError::Io { doing: "setting socket options", source })?;
        let features = options.features.clone().with(DELAYED_ACK, options.delayed_ack);
        let offer = Offer { max_payload: options.max_payload, ..Offer::default() };
        let key = options.key.as_deref();
        let (banner, agreed) = handshake::as_host(
            &mut tcp,
            offer,
            &features,
            key,
            key_offered,
            options.limits.clone(),
        )
        .await?;
        tracing::debug!(
            addr,
            model = banner.model,
            delayed_ack = agreed.mux.delayed_ack,
            max_payload = agreed.mux.max_payload,
            "adb connected"
        );
        let (reader, writer) = tcp.into_split();
        let handle = Arc::new(Link::spawn(reader, writer, agreed, Arc::clone(&options.counters)));
        let reverse = ReverseTable::default();
        let weak = Arc::downgrade(&handle);
        tokio::spawn(take_device_opens(Arc::clone(handle.link()), weak, Arc::clone(&reverse)));
        let common = features.common(&banner.features);
        let shared = Shared { banner, common, open_timeout: options.open_timeout, reverse };
        Ok(Self { handle, shared: Arc::new(shared) })
    }

    /// What the device says about itself.
    #[must_use]
    pub fn banner(&self) -> &DeviceBanner {
        &self.shared.banner
    }

    /// The features both ends have.
    #[must_use]
    pub fn features(&self) -> &FeatureSet {
        &self.shared.common
    }

    /// Waits until the connection is over.
    pub async fn closed(&self) -> Disconnect {
        self.handle.link().closed().await
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.link().is_over()
    }

    /// Ends the connection now; every stream on it fails.
    pub fn close(&self) {
        self.handle.link().finish(Disconnect::ByUs);
    }

    /// Opens a service by its name. A name nobody serves is [`AdbError::Refused`].
    pub async fn open(&self, service: &str) -> Result<AdbStream, AdbError> {
        let opening = self.handle.link().open(&self.handle, service);
        match tokio::time::timeout(self.shared.open_timeout, opening).await {
            Ok(opened) => opened.map(AdbStream::from),
            Err(_) => Err(AdbError::Timeout("opening a service")),
        }
    }

    /// Asks the device to listen on `remote` (`localabstract:NAME`) and to open a stream to us for
    /// each connection there.
    pub async fn reverse(&self, remote: &str) -> Result<ReverseListener, AdbError> {
        // Real adbd wants a well-formed address here, though only this end ever interprets it.
        let name = format!("localabstract:fanlight-reverse-{:016x}", rand::random::<u64>());
        let (sender, streams) = mpsc::channel(REVERSE_BACKLOG);
        table(&self.shared.reverse).insert(name.clone(), sender);
        let listener = ReverseListener { streams, name, table: Arc::clone(&self.shared.reverse) };
        let service = format!("reverse:forward:{remote};{}", listener.name);
        let stream = self.open(&service).await?;
        crate::service::reverse::read_status(stream).await?;
        Ok(listener)
    }

    /// Takes a listener back on the device.
    pub async fn reverse_remove(&self, remote: &str) -> Result<(), AdbError> {
        let stream = self.open(&format!("reverse:killforward:{remote}")).await?;
        crate::service::reverse::read_status(stream).await
    }

    /// Unread and unsent bytes held for all streams, in this order.
    #[must_use]
    pub fn buffered(&self) -> (usize, usize) {
        self.handle.link().buffered()
    }

    /// Streams the connection knows, in whatever state.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.handle.link().streams()
    }
}

/// Streams a device opens because of one `reverse:forward`.
#[derive(Debug)]
pub struct ReverseListener {
    streams: mpsc::Receiver<AdbStream>,
    name: String,
    table: ReverseTable,
}

impl ReverseListener {
    /// The next stream; `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<AdbStream> {
        self.streams.recv().await
    }
}

impl Drop for ReverseListener {
    fn drop(&mut self) {
        table(&self.table).remove(&self.name);
    }
}

fn table(
    table: &ReverseTable,
) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::Sender<AdbStream>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers every OPEN of the device: a name nobody asked it to open is refused.
async fn take_device_opens(
    link: Arc<Link>,
    handle: std::sync::Weak<LinkHandle>,
    reverse: ReverseTable,
) {
    while let Some((id, service)) = link.next_incoming().await {
        let permit =
            table(&reverse).get(&service).and_then(|to| to.clone().try_reserve_owned().ok());
        match (permit, handle.upgrade()) {
            (Some(permit), Some(handle)) => {
                if let Some(stream) = link.accept(&handle, id) {
                    permit.send(stream.into());
                }
            }
            _ => {
                tracing::debug!(service, "device opened a stream nobody waits for");
                link.refuse(id);
            }
        }
    }
    // Listeners learn of the end by their channel closing.
    table(&reverse).clear();
}

/// No Nagle delay, and a dead path is noticed within half a minute although ADB has no ping.
pub(crate) fn prepare_socket(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    let socket = socket2::SockRef::from(tcp);
    // Keepalive is silent while sent data waits for its TCP acknowledgement; this is not.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(25)))?;
    socket.set_tcp_keepalive(&keepalive)
}
