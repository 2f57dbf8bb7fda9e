//! Nodes that are nothing but their link: routers that take every want, workers whose devices are
//! online and whose pushes are live as soon as they are asked for. Real NodeLink over mTLS, no
//! media. Invariant: what a fake node says it runs is what it was told last.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use fanlight_ops::{
    link::{HelloTemplate, LinkClient, LinkConfig, LinkHandle, LinkHandler},
    pki::{Ca, NodeIdentity},
    process,
    shutdown::Shutdown,
};
use fanlight_proto::{
    id::NodeId,
    node::v1::{
        Ack, Action, Apply, DeviceStatus, Report, Running, StreamReport, Want, device_status,
    },
    types::v1::{NodeAddresses, NodeCapacity, NodeKind, NodeLoad, StreamState},
};
use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;

/// Time for the control API to take a link.
const LINK: Duration = Duration::from_secs(20);
/// What a fake router says of its load: a thousand viewers that cost it a twentieth, so that
/// placement has room for ten thousand more until the next heartbeat.
const VIEWERS: u32 = 1_000;
const STRESS_PERMILLE: u32 = 50;

/// How many fake nodes of which kind.
#[derive(Clone, Debug)]
pub struct FakeFleetConfig {
    /// `https://host:port` of the control replicas' node listeners.
    pub endpoints: Vec<String>,
    /// Routers.
    pub routers: usize,
    /// Ingest workers.
    pub workers: usize,
    /// Names of the devices; spread over the workers in turn.
    pub devices: Vec<String>,
}

/// Linked fake nodes; they end with the shutdown they were given.
#[derive(Debug)]
pub struct FakeFleet {
    nodes: Vec<Arc<FakeNode>>,
}

#[derive(Debug)]
struct FakeNode {
    kind: NodeKind,
    devices: Vec<String>,
    wanted: Mutex<BTreeMap<String, Want>>,
    max_epoch: AtomicU64,
    link: OnceLock<LinkHandle>,
}

impl FakeFleet {
    /// Links all of them.
    ///
    /// # Errors
    /// A certificate that cannot be issued, or a link that is not taken in time.
    pub async fn link(
        config: &FakeFleetConfig,
        ca: &Ca,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for n in 0..config.routers {
            let node = FakeNode::new(NodeKind::Router, Vec::new());
            nodes.push(node.dial(&format!("fake-router-{n}"), &config.endpoints, ca, shutdown)?);
        }
        for n in 0..config.workers {
            let devices = config.devices.iter().skip(n).step_by(config.workers.max(1));
            let node = FakeNode::new(NodeKind::IngestWorker, devices.cloned().collect());
            nodes.push(node.dial(&format!("fake-worker-{n}"), &config.endpoints, ca, shutdown)?);
        }
        for node in &nodes {
            let mut linked = node.link.get().context("it was dialled")?.linked();
            let up = linked.wait_for(|up| *up);
            let up = tokio::time::timeout(LINK, up).await;
            up.context("the control API does not take a fake node's link")??;
        }
        Ok(Self { nodes })
    }

    /// Work that the nodes hold, counted once per node and stream.
    pub fn held(&self) -> usize {
        self.nodes.iter().map(|node| node.wanted.lock().len()).sum()
    }
}

impl FakeNode {
    fn new(kind: NodeKind, devices: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            kind,
            devices,
            wanted: Mutex::default(),
            max_epoch: AtomicU64::new(0),
            link: OnceLock::new(),
        })
    }

    fn dial(
        self: Arc<Self>,
        name: &str,
        endpoints: &[String],
        ca: &Ca,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Arc<Self>> {
        let id = NodeId::parse(name)?;
        let identity = NodeIdentity::from_pem(ca.issue_node(&id, &[])?)?;
        let router = self.kind == NodeKind::Router;
        let addresses = NodeAddresses {
            quic: vec!["127.0.0.1:9".to_owned()],
            whep_base_url: format!("http://{name}.invalid"),
            ..NodeAddresses::default()
        };
        let hello = HelloTemplate {
            node: id,
            kind: self.kind,
            incarnation: process::started_unix_us(),
            region: "local".to_owned(),
            zone: String::new(),
            labels: BTreeMap::new(),
            addresses: if router { addresses } else { NodeAddresses::default() },
            capacity: NodeCapacity::default(),
        };
        let config = LinkConfig::new(endpoints.to_vec(), identity, hello);
        let link = LinkClient::spawn(config, Arc::clone(&self) as Arc<dyn LinkHandler>, shutdown)?;
        let _ = self.link.set(link);
        Ok(self)
    }

    /// Says that everything of an Apply runs.
    fn confirm(&self, apply: &Apply) {
        let live = |want: &Want| {
            let assignment = want.assignment.as_ref()?;
            Some(StreamReport {
                stream: assignment.stream.clone(),
                epoch: assignment.epoch,
                state: StreamState::Live.into(),
                reason: String::new(),
            })
        };
        let streams: Vec<StreamReport> = apply.wants.iter().filter_map(live).collect();
        if let Some(link) = self.link.get()
            && !streams.is_empty()
        {
            link.report(Report { streams, ..Report::default() });
        }
    }
}

impl LinkHandler for FakeNode {
    fn apply(&self, apply: Apply) -> BoxFuture<'_, Ack> {
        let mut wanted = self.wanted.lock();
        if apply.full {
            wanted.clear();
        }
        for stop in &apply.stops {
            wanted.remove(&stop.stream);
        }
        for want in &apply.wants {
            let Some(assignment) = &want.assignment else { continue };
            self.max_epoch.fetch_max(assignment.epoch, Ordering::Relaxed);
            wanted.insert(assignment.stream.clone(), want.clone());
        }
        drop(wanted);
        self.confirm(&apply);
        std::future::ready(Ack { want_version: apply.want_version, ..Ack::default() }).boxed()
    }

    fn action(&self, action: Action) -> BoxFuture<'_, Ack> {
        std::future::ready(Ack { action_id: action.id, ..Ack::default() }).boxed()
    }

    fn load(&self) -> NodeLoad {
        if self.kind != NodeKind::Router {
            return NodeLoad::default();
        }
        NodeLoad { stress_permille: STRESS_PERMILLE, viewers: VIEWERS, ..NodeLoad::default() }
    }

    fn running(&self) -> Vec<Running> {
        let running = |want: &Want| {
            let assignment = Some(want.assignment.clone()?);
            Some(Running { assignment, state: StreamState::Live.into(), ..Running::default() })
        };
        self.wanted.lock().values().filter_map(running).collect()
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        let status = |device: &String| DeviceStatus {
            device: format!("devices/{device}"),
            state: device_status::State::Online.into(),
            reason: String::new(),
        };
        self.devices.iter().map(status).collect()
    }

    fn max_epoch_seen(&self) -> u64 {
        self.max_epoch.load(Ordering::Relaxed)
    }

    fn key_set(&self, _jwks_json: String) {}
}
