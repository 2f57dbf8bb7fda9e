//! The node's side of NodeLink: dial any control replica, say Hello, hold the link, hand wants and
//! actions to the node, carry its reports. Knows messages, not media. Invariant: losing the link
//! changes nothing on the node. What it was told to run it keeps running, and what it has to say
//! waits, latest state first, up to a bound.
//!
//! A node implements [`LinkHandler`] and calls [`LinkClient::spawn`]. Applies and actions reach the
//! handler one at a time, in order, across links.

mod dial;
pub mod digest;
mod held;
mod pending;
mod session;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use fanlight_proto::{
    id::NodeId,
    node::v1::{Ack, Action, Apply, DeviceStatus, Hello, Report, Running, StreamGauge},
    types::v1::{NodeAddresses, NodeCapacity, NodeKind, NodeLoad, NodeRef, NodeState},
};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    pki::{NodeIdentity, SERVER_NAME},
    shutdown::Shutdown,
};

use self::{dial::Dialer, held::Held, pending::Pending};
pub use self::{
    digest::{run_digest, want_digest},
    held::refused,
};

/// Version of the protocol that this client speaks, as Hello gives it.
pub const PROTOCOL: u32 = 1;

/// Applies and actions that may wait for the handler. A node that far behind drops the link: the
/// next Hello says what it holds, and it is told the rest again.
const WORK_QUEUE: usize = 64;

/// Most endpoints that are used of a configuration or of a Redirect.
const MAX_ENDPOINTS: usize = 64;

/// What a node does with what it is told.
///
/// Ownership of time: `apply` and `action` should answer within a heartbeat; longer work is begun
/// and reported later. The other calls must not block.
pub trait LinkHandler: Send + Sync + 'static {
    /// Takes wants. Refused items are named in the Ack ([`refused`]); the rest was taken. The
    /// client fills in `want_version`. A full Apply lists everything: what is not in it stops.
    fn apply(&self, apply: Apply) -> BoxFuture<'_, Ack>;
    /// Does a one-off command; called once per id. The client fills in `action_id`.
    fn action(&self, action: Action) -> BoxFuture<'_, Ack>;
    /// Load of the last interval.
    fn load(&self) -> NodeLoad;
    /// Everything that runs now.
    fn running(&self) -> Vec<Running>;
    /// All devices of an ingest worker.
    fn devices(&self) -> Vec<DeviceStatus> {
        Vec::new()
    }
    /// Viewers per stream; only changes are sent.
    fn gauges(&self) -> Vec<StreamGauge> {
        Vec::new()
    }
    /// State to report with heartbeats.
    fn state(&self) -> NodeState {
        NodeState::Serving
    }
    /// Whether, as the control API sees it, a draining node has no other to give its work to. Told
    /// with each answer to a heartbeat.
    fn nowhere_to_go(&self, _nowhere: bool) {}
    /// Greatest epoch ever seen for any stream.
    fn max_epoch_seen(&self) -> u64;
    /// New public keys for viewer tokens, as a JWK set.
    fn key_set(&self, jwks_json: String);
}

/// Who the node is; the changing parts of Hello are filled in at each link.
#[derive(Clone, Debug)]
pub struct HelloTemplate {
    /// Name, as in the node's certificate.
    pub node: NodeId,
    /// Router or ingest worker.
    pub kind: NodeKind,
    /// Microseconds of the process start; [`crate::process::started_unix_us`] unless several lives
    /// of a node share a process (tests).
    pub incarnation: u64,
    /// Region, for placement.
    pub region: String,
    /// Zone within the region.
    pub zone: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// How it is reached.
    pub addresses: NodeAddresses,
    /// Its limits.
    pub capacity: NodeCapacity,
}

/// How to link.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// `https://host:port` of control replicas; tried in random order.
    pub endpoints: Vec<String>,
    /// The node's certificate.
    pub identity: NodeIdentity,
    /// DNS name that the replica's certificate must carry.
    pub server_name: String,
    /// Who the node is.
    pub hello: HelloTemplate,
    /// First pause after a failure; doubles up to `backoff_max`, with full jitter.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
}

impl LinkConfig {
    /// With the usual pauses, 0.1 to 5 s.
    pub fn new(endpoints: Vec<String>, identity: NodeIdentity, hello: HelloTemplate) -> Self {
        Self {
            endpoints,
            identity,
            server_name: SERVER_NAME.to_owned(),
            hello,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// Why a client could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No endpoint was given. The operator's to mend.
    #[error("no control endpoint is configured")]
    NoEndpoint,
    /// An endpoint is not a URL that can be dialled. The operator's to mend.
    #[error("control endpoint {endpoint:?} cannot be used: {why}")]
    BadEndpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong.
        why: String,
    },
}

/// Starts links.
#[derive(Clone, Copy, Debug)]
pub struct LinkClient;

impl LinkClient {
    /// Checks the configuration and keeps a link up until the shutdown is triggered.
    pub fn spawn(
        cfg: LinkConfig,
        handler: Arc<dyn LinkHandler>,
        shutdown: &Shutdown,
    ) -> Result<LinkHandle, LinkError> {
        let dialer = dial::tls_dialer(&cfg)?;
        Ok(Self::spawn_with(cfg, handler, shutdown, dialer))
    }

    fn spawn_with(
        cfg: LinkConfig,
        handler: Arc<dyn LinkHandler>,
        shutdown: &Shutdown,
        dialer: Dialer,
    ) -> LinkHandle {
        let (work, queue) = mpsc::channel(WORK_QUEUE);
        let shared = Arc::new(Shared {
            label: cfg.hello.node.as_str().to_owned(),
            cfg,
            handler,
            held: Mutex::default(),
            pending: Mutex::default(),
            wake: Notify::new(),
            beat: Notify::new(),
            linked: watch::Sender::new(false),
            work,
        });
        // There from the start, so that an alert sees a node that never linked.
        shared.count("fanlight_nodelink_links_opened_total", 0);
        shared.count("fanlight_nodelink_links_closed_total", 0);
        shared.count("fanlight_nodelink_dials_failed_total", 0);
        let name = shared.label.clone();
        let token = shutdown.token();
        let worker = session::work(Arc::clone(&shared), queue);
        let end = token.clone();
        shutdown.spawn(format!("nodelink work {name}"), async move {
            tokio::select! {
                () = worker => {}
                () = end.cancelled() => {}
            }
        });
        let run = session::run(Arc::clone(&shared), dialer, token);
        shutdown.spawn(format!("nodelink {name}"), run);
        LinkHandle { shared }
    }
}

struct Shared {
    /// Node name, as a metric label.
    label: String,
    cfg: LinkConfig,
    handler: Arc<dyn LinkHandler>,
    held: Mutex<Held>,
    pending: Mutex<Pending>,
    wake: Notify,
    beat: Notify,
    linked: watch::Sender<bool>,
    work: mpsc::Sender<session::Work>,
}

impl Shared {
    fn count(&self, name: &'static str, n: u64) {
        metrics::counter!(name, "node" => self.label.clone()).increment(n);
    }

    fn hello(&self) -> Hello {
        let t = &self.cfg.hello;
        let (want_version, want_digest) = self.held.lock().summary();
        Hello {
            node: Some(NodeRef { node: t.node.resource_name(), incarnation: t.incarnation }),
            kind: t.kind.into(),
            region: t.region.clone(),
            zone: t.zone.clone(),
            version: crate::VERSION.to_owned(),
            labels: t.labels.clone(),
            addresses: Some(t.addresses.clone()),
            capacity: Some(t.capacity),
            protocol: PROTOCOL,
            want_version,
            want_digest,
            max_epoch_seen: self.handler.max_epoch_seen(),
            devices: self.handler.devices(),
        }
    }
}

/// Handle to the link of a node. Cheap to clone.
#[derive(Clone)]
pub struct LinkHandle {
    shared: Arc<Shared>,
}

impl LinkHandle {
    /// Says what happened. Never blocks: entries wait for the link, later states of the same stream
    /// or device replace earlier ones, and viewer entries beyond the bound are dropped and counted.
    pub fn report(&self, report: Report) {
        let dropped = self.shared.pending.lock().add(report);
        if dropped > 0 {
            self.shared.count("fanlight_nodelink_reports_dropped_total", dropped);
        }
        self.shared.wake.notify_one();
    }

    /// Sends the next heartbeat at once: the node's state has changed.
    pub fn beat(&self) {
        self.shared.beat.notify_one();
    }

    /// Whether a link is up, as a value to watch.
    pub fn linked(&self) -> watch::Receiver<bool> {
        self.shared.linked.subscribe()
    }

    /// Whether a link is up now.
    pub fn is_linked(&self) -> bool {
        *self.shared.linked.borrow()
    }
}

impl fmt::Debug for LinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkHandle")
            .field("node", &self.shared.label)
            .field("linked", &self.is_linked())
            .finish()
    }
}

#[cfg(test)]
#[path = "link/tests.rs"]
mod tests;
