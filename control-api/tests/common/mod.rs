//! A replica on free ports, clients of it, and nodes that speak NodeLink over mTLS.

#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "tests; not every file uses all of it"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Once},
    time::Duration,
};

use fanlight_control::{ControlApi, ControlConfig};
use fanlight_ops::{
    link::{digest::want_digest, run_digest},
    pki::{Ca, NodeCert, SERVER_NAME},
    shutdown::Shutdown,
};
use fanlight_proto::{
    control::v1::{
        CreateStreamRequest, Stream, node_service_client::NodeServiceClient,
        stream_service_client::StreamServiceClient, viewer_service_client::ViewerServiceClient,
    },
    id::NodeId,
    node::v1::{
        Ack, Action, Apply, DeviceStatus, Goodbye, Heartbeat, Hello, LinkRequest, Refusal, Report,
        Running, StreamReport, ViewerReport, Want, Welcome, action, device_status,
        link_request::Body as Up, link_response::Body as Down,
        node_link_service_client::NodeLinkServiceClient, viewer_report,
    },
    types::v1::{ItemStatus, NodeAddresses, NodeCapacity, NodeKind, NodeRef, StreamState},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

/// Time within which anything expected has to happen.
pub const SOON: Duration = Duration::from_secs(10);

/// A replica with its state in a folder of its own.
pub struct Replica {
    pub api: ControlApi,
    pub shutdown: Shutdown,
    pub dir: tempfile::TempDir,
}

pub fn config(dir: &std::path::Path) -> ControlConfig {
    let any = "127.0.0.1:0".parse().unwrap();
    ControlConfig {
        grpc_listen: any,
        node_listen: any,
        pki_dir: dir.join("pki"),
        token_key_file: dir.join("token.pem"),
        // The lease stays long: a test that stands still for a while must not lose its nodes.
        heartbeat: Duration::from_millis(100),
        demo: true,
        ..ControlConfig::default()
    }
}

impl Replica {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cfg = config(dir.path());
        change(&mut cfg);
        let shutdown = Shutdown::new(Duration::from_secs(2));
        let api = ControlApi::start(cfg, &shutdown).await.unwrap();
        Self { api, shutdown, dir }
    }

    pub async fn channel(&self) -> Channel {
        let url = format!("http://{}", self.api.grpc_addr());
        Channel::from_shared(url).unwrap().connect().await.unwrap()
    }

    pub async fn streams(&self) -> StreamServiceClient<Channel> {
        StreamServiceClient::new(self.channel().await)
    }

    pub async fn viewers(&self) -> ViewerServiceClient<Channel> {
        ViewerServiceClient::new(self.channel().await)
    }

    pub async fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel().await)
    }

    /// A router that is linked and serving.
    pub async fn router(&self, name: &str) -> FakeNode {
        let node = FakeNode::link(self, router_hello(name, 1)).await;
        self.serving(name).await;
        node
    }

    /// A worker that is linked and has these devices online.
    pub async fn worker(&self, name: &str, devices: &[&str]) -> FakeNode {
        let node = FakeNode::link(self, worker_hello(name, 1, devices)).await;
        self.serving(name).await;
        node
    }

    pub async fn serving(&self, name: &str) {
        use fanlight_proto::types::v1::NodeState;
        self.node_state(name, NodeState::Serving).await;
    }

    pub async fn node_state(&self, name: &str, state: fanlight_proto::types::v1::NodeState) {
        let id = NodeId::parse(name).unwrap();
        let store = Arc::clone(self.api.store());
        let mut events = store.subscribe();
        let reached = async {
            loop {
                let row = store.node(id.clone()).await.unwrap();
                if row.is_some_and(|r| fanlight_control::lease::node_state(&r) == state) {
                    return;
                }
                let _ = events.recv().await;
            }
        };
        tokio::time::timeout(SOON, reached)
            .await
            .unwrap_or_else(|_| panic!("{name} never {state:?}"));
    }

    pub async fn http(&self, request: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut tcp = tokio::net::TcpStream::connect(self.api.grpc_addr()).await.unwrap();
        let request =
            format!("{request}\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

pub fn create(device: &str) -> CreateStreamRequest {
    CreateStreamRequest {
        stream: Some(Stream { device: format!("devices/{device}"), ..Stream::default() }),
        ..CreateStreamRequest::default()
    }
}

pub fn router_hello(name: &str, incarnation: u64) -> Hello {
    Hello {
        node: Some(NodeRef { node: format!("nodes/{name}"), incarnation }),
        kind: NodeKind::Router.into(),
        addresses: Some(NodeAddresses {
            quic: vec!["127.0.0.1:4433".to_owned()],
            whep_base_url: format!("http://{name}.example:8080"),
            ..NodeAddresses::default()
        }),
        capacity: Some(NodeCapacity::default()),
        protocol: 1,
        ..Hello::default()
    }
}

pub fn worker_hello(name: &str, incarnation: u64, devices: &[&str]) -> Hello {
    Hello {
        node: Some(NodeRef { node: format!("nodes/{name}"), incarnation }),
        kind: NodeKind::IngestWorker.into(),
        capacity: Some(NodeCapacity::default()),
        protocol: 1,
        devices: devices.iter().map(|d| device(d, device_status::State::Online)).collect(),
        ..Hello::default()
    }
}

pub fn device(name: &str, state: device_status::State) -> DeviceStatus {
    DeviceStatus { device: format!("devices/{name}"), state: state.into(), reason: String::new() }
}

/// What a node heard.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub welcome: Option<Welcome>,
    pub jwks: Option<String>,
    pub applies: Vec<Apply>,
    pub actions: Vec<Action>,
    pub acked_heartbeats: u32,
    /// What it shall run, by stream.
    pub wants: BTreeMap<String, Want>,
    pub version: u64,
    pub ended: Option<Status>,
}

/// How a node behaves.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Acknowledges Applies and Actions.
    pub acks: bool,
    /// Refuses every want with this reason.
    pub refuses: Option<&'static str>,
    /// Sends heartbeats.
    pub beats: bool,
    /// Runs what it is told; false: says that it runs nothing.
    pub runs: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self { acks: true, refuses: None, beats: true, runs: true }
    }
}

/// A node made of messages.
pub struct FakeNode {
    pub name: String,
    up: mpsc::Sender<LinkRequest>,
    heard: watch::Receiver<Heard>,
    pub manners: watch::Sender<Manners>,
    task: tokio::task::JoinHandle<()>,
}

static PROVIDER: Once = Once::new();

/// A channel to the node listener that shows a certificate, or none.
pub async fn node_channel(
    replica: &Replica,
    cert: Option<&NodeCert>,
    ca_pem: &str,
) -> Result<Channel, tonic::transport::Error> {
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca_pem))
        .domain_name(SERVER_NAME);
    if let Some(cert) = cert {
        tls = tls.identity(Identity::from_pem(&cert.cert_pem, &cert.key_pem));
    }
    let url = format!("https://{}", replica.api.node_addr());
    Channel::from_shared(url).unwrap().tls_config(tls)?.connect().await
}

impl FakeNode {
    pub async fn link(replica: &Replica, hello: Hello) -> Self {
        Self::link_with(replica, hello, Manners::default()).await
    }

    pub async fn link_with(replica: &Replica, hello: Hello, manners: Manners) -> Self {
        let name = hello.node.clone().unwrap().node.trim_start_matches("nodes/").to_owned();
        let cert = replica.api.issue_node(&NodeId::parse(&name).unwrap(), &[]).unwrap();
        Self::link_as(replica, hello, manners, &cert).await
    }

    /// Links with any certificate of the replica's CA.
    pub async fn link_as(
        replica: &Replica,
        hello: Hello,
        manners: Manners,
        cert: &NodeCert,
    ) -> Self {
        let channel = node_channel(replica, Some(cert), &cert.ca_pem).await.unwrap();
        let name = hello.node.clone().unwrap_or_default().node;
        let kind = hello.kind();
        let (up, queue) = mpsc::channel(256);
        let (heard_tx, heard) = watch::channel(Heard::default());
        let (manners, manners_rx) = watch::channel(manners);
        up.send(LinkRequest { seq: 1, body: Some(Up::Hello(hello)) }).await.unwrap();
        let mut client = NodeLinkServiceClient::new(channel);
        let inbound =
            client.link(ReceiverStream::new(queue)).await.map(tonic::Response::into_inner);
        let task = tokio::spawn(live(inbound, up.clone(), heard_tx, manners_rx, kind));
        Self { name, up, heard, manners, task }
    }

    pub async fn send(&self, body: Up) {
        self.up.send(LinkRequest { seq: 0, body: Some(body) }).await.unwrap();
    }

    pub fn heard(&self) -> Heard {
        self.heard.borrow().clone()
    }

    /// Waits until what was heard satisfies a condition.
    pub async fn until(&mut self, what: &str, mut holds: impl FnMut(&Heard) -> bool) -> Heard {
        let waited = async { self.heard.wait_for(|h| holds(h)).await.ok().map(|h| h.clone()) };
        let heard = tokio::time::timeout(SOON, waited).await.ok().flatten();
        heard.unwrap_or_else(|| panic!("{}: never {what}; heard {:?}", self.name, self.heard()))
    }

    /// The want for a stream, at an epoch above `epoch`.
    pub async fn want(&mut self, stream: &str, epoch: u64) -> Want {
        let name = format!("streams/{stream}");
        let above = |w: &Want| w.assignment.as_ref().is_some_and(|a| a.epoch > epoch);
        let what = format!("wants {name} above {epoch}");
        let heard = self.until(&what, |h| h.wants.get(&name).is_some_and(above)).await;
        heard.wants[&name].clone()
    }

    pub async fn report_stream(&self, stream: &str, epoch: u64, state: StreamState) {
        let report = StreamReport {
            stream: format!("streams/{stream}"),
            epoch,
            state: state.into(),
            reason: String::new(),
        };
        self.send(Up::Report(Report { streams: vec![report], ..Report::default() })).await;
    }

    pub async fn report_viewer(&self, viewer: &str, kind: viewer_report::Kind) {
        let report = ViewerReport {
            viewer: viewer.to_owned(),
            kind: kind.into(),
            ..ViewerReport::default()
        };
        self.send(Up::Report(Report { viewers: vec![report], ..Report::default() })).await;
    }

    pub async fn report_device(&self, status: DeviceStatus) {
        self.send(Up::Report(Report { devices: vec![status], ..Report::default() })).await;
    }

    pub async fn goodbye(&self) {
        self.send(Up::Goodbye(Goodbye { reason: "test".to_owned() })).await;
    }

    /// Breaks the connection without a word.
    pub fn die(self) {
        self.task.abort();
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads, answers, beats.
async fn live(
    inbound: Result<tonic::Streaming<fanlight_proto::node::v1::LinkResponse>, Status>,
    up: mpsc::Sender<LinkRequest>,
    heard: watch::Sender<Heard>,
    manners: watch::Receiver<Manners>,
    kind: NodeKind,
) {
    let mut inbound = match inbound {
        Ok(inbound) => inbound,
        Err(status) => return heard.send_modify(|h| h.ended = Some(status)),
    };
    let mut beats = tokio::time::interval(Duration::from_millis(100));
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seq = 1;
    loop {
        let answer = tokio::select! {
            message = inbound.message() => match message {
                Ok(Some(message)) => take(message.body.unwrap(), &heard, &manners.borrow()),
                Ok(None) => return heard.send_modify(|h| h.ended = Some(Status::ok("closed"))),
                Err(status) => return heard.send_modify(|h| h.ended = Some(status)),
            },
            _ = beats.tick() => {
                let welcomed = heard.borrow().welcome.is_some();
                let manners = manners.borrow().clone();
                (welcomed && manners.beats).then(|| Up::Heartbeat(beat(&heard.borrow(), kind, manners.runs)))
            }
        };
        if let Some(body) = answer {
            seq += 1;
            if up.send(LinkRequest { seq, body: Some(body) }).await.is_err() {
                return;
            }
        }
    }
}

fn beat(heard: &Heard, kind: NodeKind, runs: bool) -> Heartbeat {
    let running: Vec<Running> = heard
        .wants
        .values()
        .filter(|_| runs)
        .map(|w| Running { assignment: w.assignment.clone(), ..Running::default() })
        .collect();
    Heartbeat {
        load: Some(Default::default()),
        want_version: heard.version,
        run_digest: run_digest(kind, &running),
        ..Heartbeat::default()
    }
}

fn take(body: Down, heard: &watch::Sender<Heard>, manners: &Manners) -> Option<Up> {
    let mut answer = None;
    heard.send_modify(|h| match body {
        Down::Welcome(welcome) => h.welcome = Some(welcome),
        Down::KeySet(keys) => h.jwks = Some(keys.jwks_json),
        Down::HeartbeatAck(_) => h.acked_heartbeats += 1,
        Down::Action(action) => {
            // As a router does: the bar has closed the session by the time of the kick.
            let is_kick = matches!(action.action, Some(action::Action::Kick(_)));
            let status = is_kick.then(|| ItemStatus { code: 5, ..ItemStatus::default() });
            let ack = Ack { action_id: action.id.clone(), status, ..Ack::default() };
            answer = manners.acks.then_some(Up::Ack(ack));
            h.actions.push(action);
        }
        Down::Apply(apply) => {
            answer = manners.acks.then(|| Up::Ack(applied(h, &apply, manners.refuses)));
            h.applies.push(apply);
        }
        other => panic!("unexpected {other:?}"),
    });
    answer
}

fn applied(h: &mut Heard, apply: &Apply, refuses: Option<&str>) -> Ack {
    if apply.full {
        h.wants.clear();
    }
    h.version = apply.want_version;
    for stop in &apply.stops {
        h.wants.remove(&stop.stream);
    }
    let mut refusals = Vec::new();
    for want in &apply.wants {
        let a = want.assignment.clone().unwrap();
        match refuses {
            None => drop(h.wants.insert(a.stream.clone(), want.clone())),
            Some(reason) => refusals.push(Refusal {
                stream: a.stream,
                epoch: a.epoch,
                status: Some(ItemStatus {
                    code: 8,
                    reason: reason.to_owned(),
                    ..Default::default()
                }),
            }),
        }
    }
    Ack { want_version: apply.want_version, refusals, ..Ack::default() }
}

/// Digest of what a node holds, for Hello.
pub fn held_digest(heard: &Heard) -> u64 {
    want_digest(heard.wants.values())
}

/// A CA that the replica does not know.
pub fn foreign_ca() -> Ca {
    Ca::generate().unwrap()
}

/// The machine word of a refusal.
pub fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map(|i| i.reason).unwrap_or_default()
}

/// The fields a refusal names.
pub fn fields(status: &Status) -> BTreeSet<String> {
    use tonic_types::StatusExt as _;
    let bad = status.get_details_bad_request().map(|b| b.field_violations);
    bad.into_iter().flatten().map(|v| v.field).collect()
}

/// Whether a refusal says that trying again helps.
pub fn retryable(status: &Status) -> bool {
    use tonic_types::StatusExt as _;
    status.get_details_retry_info().is_some()
}
