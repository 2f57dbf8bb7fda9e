//! Tests of `link` in virtual time, against a tonic server in the same process over pipes that can
//! be cut or made silent.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use fanlight_proto::{
    node::v1::{
        Heartbeat, HeartbeatAck, InventoryRequest, KeySet, LinkRequest, LinkResponse, OriginRole,
        Redirect, StreamReport, Want, Welcome,
        link_request::Body as Up,
        link_response::Body as Down,
        node_link_service_server::{NodeLinkService, NodeLinkServiceServer},
        want::Role,
    },
    reason::Reason,
    types::v1::{Assignment, StreamState},
};
use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Endpoint};

use super::*;
use crate::pki::Ca;

const LEASE: Duration = Duration::from_secs(8);

/// One link as the control API sees it.
struct Peer {
    endpoint: String,
    from_node: Streaming<LinkRequest>,
    to_node: mpsc::Sender<Result<LinkResponse, Status>>,
    at: Instant,
}

impl Peer {
    async fn say(&self, body: Down) {
        self.to_node.send(Ok(LinkResponse { seq: 0, body: Some(body) })).await.unwrap();
    }

    async fn hear(&mut self) -> Up {
        let next = timeout(Duration::from_secs(30), self.from_node.message());
        next.await.expect("the node says nothing").unwrap().expect("the node closed").body.unwrap()
    }

    /// The next message that `pick` wants; heartbeats on the way are answered.
    async fn hear_until<T>(&mut self, pick: impl Fn(&Up) -> Option<T>) -> T {
        for _ in 0..100 {
            let body = self.hear().await;
            if let Some(found) = pick(&body) {
                return found;
            }
            if let Up::Heartbeat(_) = body {
                self.say(Down::HeartbeatAck(HeartbeatAck::default())).await;
            }
        }
        panic!("not said within 100 messages");
    }

    async fn beat(&mut self) -> Heartbeat {
        let beat = self
            .hear_until(|m| match m {
                Up::Heartbeat(beat) => Some(beat.clone()),
                _ => None,
            })
            .await;
        self.say(Down::HeartbeatAck(HeartbeatAck::default())).await;
        beat
    }

    async fn ack(&mut self) -> Ack {
        self.hear_until(|m| if let Up::Ack(ack) = m { Some(ack.clone()) } else { None }).await
    }

    async fn report(&mut self) -> Report {
        self.hear_until(|m| if let Up::Report(r) = m { Some(r.clone()) } else { None }).await
    }

    async fn inventory(&mut self) -> Vec<Running> {
        let pick = |m: &Up| if let Up::Inventory(i) = m { Some(i.running.clone()) } else { None };
        self.hear_until(pick).await
    }

    /// Answers Hello with Welcome.
    async fn welcome(&mut self, resync: bool) -> Hello {
        let Up::Hello(hello) = self.hear().await else { panic!("the first message is Hello") };
        self.say(Down::Welcome(Welcome {
            heartbeat_interval: Some(Duration::from_secs(1).try_into().unwrap()),
            lease: Some(LEASE.try_into().unwrap()),
            resync,
            ..Welcome::default()
        }))
        .await;
        hello
    }
}

struct Replica {
    endpoint: String,
    peers: mpsc::UnboundedSender<Peer>,
}

#[tonic::async_trait]
impl NodeLinkService for Replica {
    type LinkStream = BoxStream<'static, Result<LinkResponse, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let (to_node, answers) = mpsc::channel(64);
        let from_node = request.into_inner();
        let peer = Peer { endpoint: self.endpoint.clone(), from_node, to_node, at: Instant::now() };
        self.peers.send(peer).map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }
}

/// How the network is: bytes flow, are held (silence), or every pipe is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    Flows,
    Silent,
    Cut,
}

async fn pump(mut a: DuplexStream, mut b: DuplexStream, mut net: watch::Receiver<Net>) {
    let (mut from_a, mut from_b) = (vec![0; 4096], vec![0; 4096]);
    loop {
        let state = *net.borrow_and_update();
        match state {
            Net::Cut => return,
            Net::Silent => {
                if net.changed().await.is_err() {
                    return;
                }
            }
            Net::Flows => {
                let moved = tokio::select! {
                    n = a.read(&mut from_a) => match n {
                        Ok(n) if n > 0 => b.write_all(&from_a[..n]).await,
                        _ => return,
                    },
                    n = b.read(&mut from_b) => match n {
                        Ok(n) if n > 0 => a.write_all(&from_b[..n]).await,
                        _ => return,
                    },
                    changed = net.changed() => match changed {
                        Ok(()) => Ok(()),
                        Err(_) => return,
                    },
                };
                if moved.is_err() {
                    return;
                }
            }
        }
    }
}

/// A node that notes what it is told.
#[derive(Default)]
struct Node {
    applied: Mutex<Vec<Apply>>,
    actions: Mutex<Vec<String>>,
    keys: Mutex<Vec<String>>,
    running: Mutex<Vec<Running>>,
    refuse: Mutex<Option<String>>,
    gauges: Mutex<HashMap<String, u32>>,
    stuck: AtomicBool,
    epoch: AtomicU64,
}

impl LinkHandler for Node {
    fn apply(&self, apply: Apply) -> BoxFuture<'_, Ack> {
        async move {
            if self.stuck.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let refuse = self.refuse.lock().clone();
            self.applied.lock().push(apply);
            let no = |s| refused(s, 1, Code::ResourceExhausted, Reason::NodeAtCapacity, "full");
            Ack { refusals: refuse.as_deref().map(no).into_iter().collect(), ..Ack::default() }
        }
        .boxed()
    }

    fn action(&self, action: Action) -> BoxFuture<'_, Ack> {
        self.actions.lock().push(action.id);
        async { Ack::default() }.boxed()
    }

    fn load(&self) -> NodeLoad {
        NodeLoad { viewers: 3, ..NodeLoad::default() }
    }

    fn running(&self) -> Vec<Running> {
        self.running.lock().clone()
    }

    fn gauges(&self) -> Vec<StreamGauge> {
        let gauge =
            |(s, v): (&String, &u32)| StreamGauge { stream: s.clone(), viewers: *v, egress_bps: 0 };
        self.gauges.lock().iter().map(gauge).collect()
    }

    fn max_epoch_seen(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    fn key_set(&self, jwks_json: String) {
        self.keys.lock().push(jwks_json);
    }
}

struct World {
    net: watch::Sender<Net>,
    peers: mpsc::UnboundedReceiver<Peer>,
    dials: Arc<Mutex<Vec<Instant>>>,
    node: Arc<Node>,
    handle: LinkHandle,
    shutdown: Shutdown,
}

impl World {
    fn start(endpoints: &[&str]) -> Self {
        let net = watch::Sender::new(Net::Flows);
        let (peers_in, peers) = mpsc::unbounded_channel();
        let dials = Arc::new(Mutex::new(Vec::new()));
        let dialer = dialer(net.clone(), peers_in, Arc::clone(&dials));
        let identity = NodeIdentity::from_pem(
            Ca::generate().unwrap().issue_node(&NodeId::parse("r1").unwrap(), &[]).unwrap(),
        )
        .unwrap();
        let hello = HelloTemplate {
            node: NodeId::parse("r1").unwrap(),
            kind: NodeKind::Router,
            incarnation: 7,
            region: String::new(),
            zone: String::new(),
            labels: BTreeMap::new(),
            addresses: NodeAddresses::default(),
            capacity: NodeCapacity::default(),
        };
        let endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
        let (node, shutdown) = (Arc::new(Node::default()), Shutdown::new(Duration::from_secs(2)));
        let cfg = LinkConfig::new(endpoints, identity, hello);
        let handler: Arc<dyn LinkHandler> = node.clone();
        let handle = LinkClient::spawn_with(cfg, handler, &shutdown, dialer);
        Self { net, peers, dials, node, handle, shutdown }
    }

    async fn peer(&mut self) -> Peer {
        timeout(Duration::from_secs(60), self.peers.recv()).await.expect("no link").unwrap()
    }

    async fn linked(&mut self) -> (Peer, Hello) {
        let mut peer = self.peer().await;
        let hello = peer.welcome(false).await;
        self.wait_linked(true).await;
        (peer, hello)
    }

    async fn wait_linked(&self, up: bool) {
        let mut linked = self.handle.linked();
        timeout(Duration::from_secs(60), linked.wait_for(|l| *l == up)).await.unwrap().unwrap();
    }
}

fn dialer(
    net: watch::Sender<Net>,
    peers: mpsc::UnboundedSender<Peer>,
    dials: Arc<Mutex<Vec<Instant>>>,
) -> Dialer {
    Arc::new(move |endpoint| {
        dials.lock().push(Instant::now());
        let (net, peers) = (net.subscribe(), peers.clone());
        async move {
            if *net.borrow() != Net::Flows {
                return Err("network is down".into());
            }
            let (client, near) = tokio::io::duplex(1 << 16);
            let (far, server) = tokio::io::duplex(1 << 16);
            tokio::spawn(pump(near, far, net));
            let (one, incoming) = mpsc::unbounded_channel();
            one.send(Ok::<_, std::io::Error>(server))?;
            let service = NodeLinkServiceServer::new(Replica { endpoint: endpoint.clone(), peers });
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(UnboundedReceiverStream::new(incoming)),
            );
            let mut client = Some(client);
            let connect = tower::service_fn(move |_| {
                let io =
                    client.take().map(TokioIo::new).ok_or_else(|| std::io::Error::other("used"));
                std::future::ready(io)
            });
            let endpoint = dial::tuned(Endpoint::from_static("http://test.invalid"));
            Ok(endpoint.connect_with_connector(connect).await?)
        }
        .boxed()
    })
}

fn want(stream: &str, epoch: u64) -> Want {
    let assignment = Assignment { stream: stream.to_owned(), epoch, origin: None };
    let role = Some(Role::Origin(OriginRole::default()));
    Want { assignment: Some(assignment), role }
}

fn full(version: u64, wants: &[Want]) -> Down {
    Down::Apply(Apply { full: true, want_version: version, wants: wants.to_vec(), stops: vec![] })
}

fn live(stream: &str) -> Report {
    let state = StreamState::Live.into();
    let report = StreamReport { stream: stream.into(), epoch: 1, state, reason: String::new() };
    Report { streams: vec![report], ..Report::default() }
}

#[tokio::test(start_paused = true)]
async fn it_says_hello_beats_and_takes_wants() {
    let mut world = World::start(&["https://a:1"]);
    let (mut peer, hello) = world.linked().await;
    assert_eq!(hello.node.unwrap(), NodeRef { node: "nodes/r1".into(), incarnation: 7 });
    assert_eq!((hello.want_version, hello.want_digest), (0, 0));
    world.wait_linked(true).await;

    let first = peer.beat().await;
    assert_eq!(first.load.unwrap().viewers, 3);
    let (start, beats) = (Instant::now(), 20);
    for _ in 0..beats {
        peer.beat().await;
    }
    let each = start.elapsed() / beats;
    assert!(each > Duration::from_millis(850) && each < Duration::from_millis(1150), "{each:?}");

    peer.say(full(4, &[want("streams/a", 1)])).await;
    assert_eq!(peer.ack().await.want_version, 4);
    assert_eq!(world.node.applied.lock().len(), 1);
    assert_eq!(peer.beat().await.want_version, 4);
    peer.say(Down::KeySet(KeySet { jwks_json: "{}".into(), expire_time: None })).await;
    peer.beat().await;
    assert_eq!(*world.node.keys.lock(), ["{}"]);
}

#[tokio::test(start_paused = true)]
async fn wants_survive_the_loss_of_the_link() {
    let mut world = World::start(&["https://a:1"]);
    let (mut peer, _) = world.linked().await;
    let wants = [want("streams/a", 1), want("streams/b", 2)];
    peer.say(full(9, &wants)).await;
    peer.ack().await;
    world.node.epoch.store(2, Ordering::Relaxed);

    world.net.send_replace(Net::Cut);
    world.wait_linked(false).await;
    world.net.send_replace(Net::Flows);
    let (mut peer, hello) = world.linked().await;
    assert_eq!((hello.want_version, hello.want_digest), (9, want_digest(&wants)));
    assert_eq!(hello.max_epoch_seen, 2);
    peer.beat().await;
    assert_eq!(world.node.applied.lock().len(), 1, "nothing was applied or stopped meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_refused_item_is_not_held() {
    let mut world = World::start(&["https://a:1"]);
    let (mut peer, _) = world.linked().await;
    *world.node.refuse.lock() = Some("streams/b".into());
    peer.say(full(1, &[want("streams/a", 1), want("streams/b", 1)])).await;
    assert_eq!(peer.ack().await.refusals[0].stream, "streams/b");
    drop(peer);
    let (_peer, hello) = world.linked().await;
    assert_eq!(hello.want_digest, want_digest(&[want("streams/a", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_silent_network_is_noticed_within_the_lease() {
    let mut world = World::start(&["https://a:1"]);
    let (mut peer, _) = world.linked().await;
    peer.beat().await;
    world.net.send_replace(Net::Silent);
    let since = Instant::now();
    world.wait_linked(false).await;
    assert!(since.elapsed() <= LEASE + Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_answers_no_heartbeat_is_left() {
    let mut world = World::start(&["https://a:1"]);
    let (peer, _) = world.linked().await;
    let since = Instant::now();
    let (next, _) = world.linked().await;
    assert!(next.at - since >= LEASE, "{:?}", next.at - since);
    assert!(next.at - since < LEASE + Duration::from_secs(1));
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn dials_back_off_with_jitter_up_to_five_seconds() {
    let world = World::start(&["https://a:1", "https://b:1"]);
    world.net.send_replace(Net::Cut);
    world.dials.lock().clear();
    tokio::time::advance(Duration::from_millis(1)).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let dials = world.dials.lock().clone();
    let gaps: Vec<Duration> = dials.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps.iter().all(|g| *g <= Duration::from_millis(5100)), "{gaps:?}");
    assert!(gaps.iter().all(|g| *g >= Duration::from_millis(100)), "{gaps:?}");
    // A mean pause of 2.5 s: about 120 dials in 300 s; a loop without pauses makes thousands.
    assert!((80..200).contains(&dials.len()), "{}", dials.len());
}

#[tokio::test(start_paused = true)]
async fn reports_wait_for_the_link_and_only_the_latest_is_said() {
    let mut world = World::start(&["https://a:1"]);
    let (peer, _) = world.linked().await;
    world.net.send_replace(Net::Cut);
    world.wait_linked(false).await;
    drop(peer);
    let assigned = StreamReport {
        stream: "streams/a".into(),
        epoch: 1,
        state: StreamState::Assigned.into(),
        reason: String::new(),
    };
    world.handle.report(Report { streams: vec![assigned], ..Report::default() });
    world.handle.report(live("streams/a"));
    world.net.send_replace(Net::Flows);
    let (mut peer, _) = world.linked().await;
    assert!(peer.inventory().await.is_empty(), "after a loss the node says what it runs");
    let report = peer.report().await;
    assert_eq!(report.streams.len(), 1);
    assert_eq!(report.streams[0].state(), StreamState::Live);
}

#[tokio::test(start_paused = true)]
async fn reports_are_batched_for_a_tenth_of_a_second() {
    let mut world = World::start(&["https://a:1"]);
    let (mut peer, _) = world.linked().await;
    peer.beat().await;
    let since = Instant::now();
    world.handle.report(live("streams/a"));
    world.handle.report(live("streams/b"));
    let report = peer.report().await;
    assert_eq!(report.streams.len(), 2);
    assert!(since.elapsed() <= Duration::from_millis(110), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_inventory_comes_in_parts_and_before_anything_else_on_resync() {
    let mut world = World::start(&["https://a:1"]);
    let assignment = |i| Assignment { stream: format!("streams/{i}"), epoch: 1, origin: None };
    let running = |i| Running { assignment: Some(assignment(i)), ..Running::default() };
    *world.node.running.lock() = (0..1201).map(running).collect();
    let mut peer = world.peer().await;
    peer.welcome(true).await;
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let Up::Inventory(part) = peer.hear().await else { panic!("inventory first") };
        sizes.push((part.running.len(), part.last));
    }
    assert_eq!(sizes, [(500, false), (500, false), (201, true)]);
    peer.say(Down::InventoryRequest(InventoryRequest {})).await;
    assert_eq!(peer.inventory().await.len(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_brings_up_the_new_link_before_the_old_one_ends() {
    let mut world = World::start(&["https://a:1"]);
    let (mut old, _) = world.linked().await;
    old.say(Down::Redirect(Redirect { endpoints: vec!["https://b:1".into()], within: None })).await;
    let mut new = world.peer().await;
    assert_eq!(new.endpoint, "https://b:1");
    old.beat().await;
    assert!(world.handle.is_linked());
    new.welcome(false).await;
    let goodbye = |m: &Up| if let Up::Goodbye(g) = m { Some(g.reason.clone()) } else { None };
    assert_eq!(old.hear_until(goodbye).await, "redirected");
    assert!(world.handle.is_linked());
    new.beat().await;
}

#[tokio::test(start_paused = true)]
async fn a_redirect_to_nowhere_keeps_the_old_link() {
    let mut world = World::start(&["https://a:1"]);
    let (mut old, _) = world.linked().await;
    old.say(Down::Redirect(Redirect::default())).await;
    for _ in 0..10 {
        old.beat().await;
    }
    assert!(world.handle.is_linked());
}

#[tokio::test(start_paused = true)]
async fn an_action_sent_twice_is_done_once_and_answered_twice() {
    let mut world = World::start(&["https://a:1"]);
    let (mut peer, _) = world.linked().await;
    let action = Action { id: "kick-1".into(), ..Action::default() };
    for _ in 0..2 {
        peer.say(Down::Action(action.clone())).await;
        assert_eq!(peer.ack().await.action_id, "kick-1");
    }
    assert_eq!(*world.node.actions.lock(), ["kick-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_costs_no_heartbeat_and_its_queue_is_bounded() {
    let mut world = World::start(&["https://a:1"]);
    world.node.stuck.store(true, Ordering::Relaxed);
    let (mut peer, _) = world.linked().await;
    peer.say(full(1, &[])).await;
    for _ in 0..5 {
        peer.beat().await;
    }
    for version in 2..200 {
        if peer
            .to_node
            .send(Ok(LinkResponse { seq: 0, body: Some(full(version, &[])) }))
            .await
            .is_err()
        {
            break;
        }
    }
    world.wait_linked(false).await;
}

#[tokio::test(start_paused = true)]
async fn only_changed_gauges_are_sent_and_an_ended_stream_once_as_zero() {
    let mut world = World::start(&["https://a:1"]);
    world.node.gauges.lock().insert("streams/a".into(), 2);
    let (mut peer, _) = world.linked().await;
    let viewers = |beat: Heartbeat| beat.gauges.iter().map(|g| g.viewers).collect::<Vec<_>>();
    assert_eq!(viewers(peer.beat().await), [2]);
    assert!(viewers(peer.beat().await).is_empty());
    world.node.gauges.lock().clear();
    assert_eq!(viewers(peer.beat().await), [0]);
    assert!(viewers(peer.beat().await).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_hello_is_tried_again() {
    let mut world = World::start(&["https://a:1"]);
    let peer = world.peer().await;
    let status = Status::failed_precondition("a greater incarnation is linked");
    peer.to_node.send(Err(status)).await.unwrap();
    assert!(!world.handle.is_linked());
    world.linked().await;
    world.wait_linked(true).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_says_goodbye_and_leaves_no_task() {
    let mut world = World::start(&["https://a:1"]);
    let (mut peer, _) = world.linked().await;
    peer.beat().await;
    world.handle.report(live("streams/last"));
    world.shutdown.trigger();
    assert_eq!(peer.report().await.streams[0].stream, "streams/last");
    let Up::Goodbye(goodbye) = peer.hear().await else { panic!("goodbye last") };
    assert_eq!(goodbye.reason, "shutting down");
    drop(peer);
    world.shutdown.wait().await.unwrap();
    assert!(!world.handle.is_linked());
}

#[tokio::test]
async fn a_misspelt_endpoint_is_a_mistake_at_start() {
    let ca = Ca::generate().unwrap();
    let id =
        NodeIdentity::from_pem(ca.issue_node(&NodeId::parse("r").unwrap(), &[]).unwrap()).unwrap();
    let hello = World::start(&["https://a:1"]).handle.shared.cfg.hello.clone();
    let shutdown = Shutdown::new(Duration::from_secs(1));
    for bad in ["http://plain:1", "https://", "no url"] {
        let cfg = LinkConfig::new(vec![bad.into()], id.clone(), hello.clone());
        let error = LinkClient::spawn(cfg, Arc::new(Node::default()), &shutdown).unwrap_err();
        assert!(error.to_string().contains(bad), "{error}");
    }
    let cfg = LinkConfig::new(vec![], id, hello);
    let error = LinkClient::spawn(cfg, Arc::new(Node::default()), &shutdown).unwrap_err();
    assert!(matches!(error, LinkError::NoEndpoint));
}
