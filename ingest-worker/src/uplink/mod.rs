//! The hop to routers: one QUIC connection per router for all devices of the host. Not the frames
//! (`publish.rs`) and not the control messages' meaning. Invariant: a connection counts as up only
//! after the router's Welcome, because a client whose certificate is refused sees `connect` succeed
//! first; and this layer alone redials.

mod link;
mod publish;
mod transport;

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use fanlight_ops::pki::{self, NodeIdentity, PkiError, SERVER_NAME};
use fanlight_proto::{
    id::NodeId,
    node::v1::{HopHello, HopMessage, hop_message::Body},
};
use fanlight_wire::roq::{ALPN_FANLIGHT, ControlFramer, error_code};
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, VarInt};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::backoff::Backoff;

pub use self::{
    link::{Link, SlotEvent},
    publish::{Host, PublishSpec, Published, Source, run as publish},
    transport::client_config,
};

/// From dialling to Welcome. A router that is up answers in two round trips.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that lived this long was sound: the next dial is made at once.
const SOUND_LIFE: Duration = Duration::from_secs(5);
/// How long a connection without users is kept: a stream that changes its epoch is at once back.
const LINGER: Duration = Duration::from_secs(2);
/// How long a router may take to acknowledge the last control messages.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(300);
/// Minor version of the hop that is spoken.
const HOP_VERSION: u32 = 1;

/// Which router: its addresses, tried in order, and who must answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouterKey {
    /// `host:port`, tried in turn.
    pub addresses: Vec<String>,
    /// The node that the certificate must name; none: any node of ours.
    pub node: Option<NodeId>,
}

/// Why there is no connection to a router. All but [`UplinkError::Pki`] are tried again for ever.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UplinkError {
    /// Our own certificate cannot be used; the operator's to mend.
    #[error("the hop's TLS cannot be set up: {0}")]
    Pki(#[from] PkiError),
    /// No UDP socket could be bound.
    #[error("no UDP socket for the hop: {0}")]
    Socket(#[source] std::io::Error),
    /// None of its names could be resolved.
    #[error("router address {0:?} cannot be resolved")]
    Unresolved(String),
    /// The handshake did not start.
    #[error("router {address} cannot be dialled: {source}")]
    Dial {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
    /// The connection could not be made or was lost.
    #[error("connection to router {address}: {source}")]
    Connection {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectionError,
    },
    /// Somebody else answered.
    #[error("router {address} is {actual}, expected {expected}")]
    OtherNode {
        /// Where.
        address: SocketAddr,
        /// Who was expected.
        expected: String,
        /// Who answered.
        actual: String,
    },
    /// The router did not keep to the protocol.
    #[error("router {address} broke the hop protocol: {what}")]
    Protocol {
        /// Where.
        address: SocketAddr,
        /// What it did.
        what: String,
    },
    /// No Welcome came in time.
    #[error("router {0} did not welcome in time")]
    NoWelcome(SocketAddr),
}

/// All connections of a worker. Connections are shared by key and end soon after their last user.
#[derive(Clone, Debug)]
pub struct Uplinks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    hello: HopHello,
    up: Mutex<HashMap<RouterKey, Entry>>,
    tasks: TaskTracker,
    end: CancellationToken,
}

#[derive(Debug)]
struct Entry {
    state: watch::Receiver<Option<Arc<Link>>>,
    /// Tells the connection's task how many use it.
    users: watch::Sender<usize>,
}

/// One user's hold on a router's connection, which is up or being dialled.
#[derive(Debug)]
pub struct Uplink {
    state: watch::Receiver<Option<Arc<Link>>>,
    users: watch::Sender<usize>,
}

impl Uplink {
    /// The connection while it is up.
    pub fn state(&self) -> watch::Receiver<Option<Arc<Link>>> {
        self.state.clone()
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.users.send_modify(|n| *n = n.saturating_sub(1));
    }
}

impl Uplinks {
    /// Prepares to dial. `target_bps` is what one connection may carry. Must be called on a runtime.
    pub fn new(
        identity: &NodeIdentity,
        incarnation: u64,
        target_bps: u64,
    ) -> Result<Self, UplinkError> {
        let tls = pki::client_config_mtls(identity, &[ALPN_FANLIGHT])?;
        let mut endpoint = transport::bind().map_err(UplinkError::Socket)?;
        let config = client_config(tls, target_bps).map_err(|e| UplinkError::Protocol {
            address: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            what: e,
        })?;
        endpoint.set_default_client_config(config);
        let hello =
            HopHello { version: HOP_VERSION, node: identity.node().resource_name(), incarnation };
        Ok(Self {
            inner: Arc::new(Inner {
                endpoint,
                hello,
                up: Mutex::default(),
                tasks: TaskTracker::new(),
                end: CancellationToken::new(),
            }),
        })
    }

    /// The connection to a router, dialled if nobody uses it yet.
    pub fn get(&self, key: &RouterKey) -> Uplink {
        let mut up = self.inner.up.lock();
        let entry = up.entry(key.clone()).or_insert_with(|| {
            let (sender, state) = watch::channel(None);
            let users = watch::Sender::new(0);
            let task = keep_up(Arc::clone(&self.inner), key.clone(), sender, users.subscribe());
            self.inner.tasks.spawn(task);
            Entry { state, users }
        });
        entry.users.send_modify(|n| *n += 1);
        Uplink { state: entry.state.clone(), users: entry.users.clone() }
    }

    /// Closes all connections and waits until the peers know, for at most `limit`.
    pub async fn close(&self, limit: Duration) {
        self.inner.end.cancel();
        self.inner.tasks.close();
        let _ = tokio::time::timeout(limit, async {
            self.inner.tasks.wait().await;
            self.inner.endpoint.close(code(error_code::NO_ERROR), b"stopped");
            self.inner.endpoint.wait_idle().await;
        })
        .await;
    }
}

pub(crate) fn code(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

/// Dials for ever, one address after the other, while anybody uses the connection.
async fn keep_up(
    inner: Arc<Inner>,
    key: RouterKey,
    state: watch::Sender<Option<Arc<Link>>>,
    mut users: watch::Receiver<usize>,
) {
    let dialling = dial_for_ever(&inner, &key, &state);
    tokio::pin!(dialling);
    loop {
        tokio::select! {
            never = &mut dialling => match never {},
            () = unused(&mut users) => {}
            () = inner.end.cancelled() => break,
        }
        let mut up = inner.up.lock();
        // Under the lock of the table, so nobody can start to use it now.
        if *users.borrow() == 0 {
            up.remove(&key);
            break;
        }
    }
    if let Some(link) = state.send_replace(None) {
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, link.goodbye()).await;
        link.close(error_code::NO_ERROR, "stopped");
    }
}

/// Ends when nobody has used the connection for [`LINGER`].
async fn unused(users: &mut watch::Receiver<usize>) {
    loop {
        if users.wait_for(|n| *n == 0).await.is_err() {
            return;
        }
        let again = tokio::time::timeout(LINGER, users.wait_for(|n| *n > 0)).await.is_ok();
        if !again {
            return;
        }
    }
}

async fn dial_for_ever(
    inner: &Inner,
    key: &RouterKey,
    state: &watch::Sender<Option<Arc<Link>>>,
) -> Infallible {
    let mut backoff = Backoff::default();
    let mut told = String::new();
    for turn in (0..usize::MAX).cycle() {
        let started = tokio::time::Instant::now();
        let text = once(inner, key, turn, state).await.to_string();
        state.send_replace(None);
        if told != text {
            tracing::warn!(router = ?key.addresses, "{text}");
            told = text;
        }
        if started.elapsed() >= SOUND_LIFE {
            backoff.reset();
            told.clear();
        }
        tokio::time::sleep(backoff.next_random()).await;
    }
    std::future::pending().await
}

/// One life of the connection; returns why it ended.
async fn once(
    inner: &Inner,
    key: &RouterKey,
    turn: usize,
    state: &watch::Sender<Option<Arc<Link>>>,
) -> UplinkError {
    let Some(name) = key.addresses.get(turn % key.addresses.len().max(1)) else {
        return UplinkError::Unresolved(String::new());
    };
    metrics::counter!("fanlight_ingest_hop_dials_total").increment(1);
    let (connection, address) = match dial(inner, key, name).await {
        Ok(connected) => connected,
        Err(error) => return error,
    };
    let welcomed = tokio::time::timeout(WELCOME_TIMEOUT, greet(inner, &connection, address)).await;
    let (link, reader) = match welcomed {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return error,
        Err(_) => {
            connection.close(code(error_code::EXPECTATION_UNMET), b"no welcome");
            return UplinkError::NoWelcome(address);
        }
    };
    tracing::info!(router = %address, node = %link.peer(), "connected to router");
    metrics::counter!("fanlight_ingest_hop_connections_opened_total").increment(1);
    let _closed = Closed;
    let link = Arc::new(link);
    state.send_replace(Some(Arc::clone(&link)));
    link::serve(&link, reader, address).await
}

/// Counts the end of a connection, however it comes.
struct Closed;

impl Drop for Closed {
    fn drop(&mut self) {
        metrics::counter!("fanlight_ingest_hop_connections_closed_total").increment(1);
    }
}

async fn dial(
    inner: &Inner,
    key: &RouterKey,
    name: &str,
) -> Result<(Connection, SocketAddr), UplinkError> {
    let unresolved = || UplinkError::Unresolved(name.to_owned());
    let address = tokio::net::lookup_host(name)
        .await
        .map_err(|_| unresolved())?
        .next()
        .ok_or_else(unresolved)?;
    let connecting = inner
        .endpoint
        .connect(transport::reachable(&inner.endpoint, address), SERVER_NAME)
        .map_err(|source| UplinkError::Dial { address, source })?;
    let connection = tokio::time::timeout(WELCOME_TIMEOUT, connecting)
        .await
        .map_err(|_| UplinkError::NoWelcome(address))?
        .map_err(|source| UplinkError::Connection { address, source })?;
    let actual = transport::peer_node(&connection);
    if let Some(expected) = &key.node
        && actual.as_ref() != Some(expected)
    {
        connection.close(code(error_code::AUTH_FAILED), b"not the expected node");
        return Err(UplinkError::OtherNode {
            address,
            expected: expected.to_string(),
            actual: actual.map_or_else(|| "nobody".to_owned(), |n| n.to_string()),
        });
    }
    Ok((connection, address))
}

/// Hello and Welcome.
async fn greet(
    inner: &Inner,
    connection: &Connection,
    address: SocketAddr,
) -> Result<(Link, link::Reader), UplinkError> {
    let lost = |source| UplinkError::Connection { address, source };
    let broke = |what: String| UplinkError::Protocol { address, what };
    let (send, recv) = connection.open_bi().await.map_err(lost)?;
    let hello = HopMessage { body: Some(Body::Hello(inner.hello.clone())) };
    let writer = link::begin(send, &hello).await.map_err(|e| broke(e.to_string()))?;
    let mut reader = link::Reader { recv, framer: ControlFramer::new() };
    match reader
        .next()
        .await
        .map_err(|what| connection.close_reason().map_or_else(|| broke(what), lost))?
    {
        HopMessage { body: Some(Body::Welcome(welcome)) } => {
            let link = Link::new(connection.clone(), writer, &welcome);
            Ok((link, reader))
        }
        other => {
            Err(broke(format!("the first message is {} in place of welcome", link::name(&other))))
        }
    }
}
