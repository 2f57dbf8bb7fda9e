//! Links of nodes: who is let in, what is agreed, what is told again.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    FakeNode, Manners, Replica, create, foreign_ca, held_digest, node_channel, reason, router_hello,
};
use fanlight_ops::{
    link::{HelloTemplate, LinkClient, LinkConfig, LinkHandler},
    pki::NodeIdentity,
    shutdown::Shutdown,
};
use fanlight_proto::{
    control::v1::{GetNodeRequest, ListNodesRequest},
    id::NodeId,
    node::v1::{
        Ack, Action, Apply, Hello, LinkRequest, Running, link_request::Body as Up,
        node_link_service_client::NodeLinkServiceClient,
    },
    types::v1::{NodeAddresses, NodeCapacity, NodeKind, NodeLoad, NodeState},
};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tonic::Code;

async fn ended(node: &mut FakeNode) -> tonic::Status {
    node.until("ended", |h| h.ended.is_some()).await.ended.unwrap()
}

#[tokio::test]
async fn a_link_is_welcomed_with_its_terms_and_the_node_is_listed() {
    let replica = Replica::start().await;
    let mut router = replica.router("r1").await;
    let heard = router.until("has keys", |h| h.jwks.is_some()).await;
    let welcome = heard.welcome.unwrap();
    assert_eq!(welcome.heartbeat_interval.unwrap().nanos, 100_000_000);
    assert_eq!(welcome.replica, "control");
    let worker = replica.worker("w1", &["a"]).await;
    let mut nodes = replica.nodes().await;
    let list = nodes.list_nodes(ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    let states: Vec<_> = list.iter().map(|n| (n.name.as_str(), n.state())).collect();
    assert_eq!(states, [("nodes/r1", NodeState::Serving), ("nodes/w1", NodeState::Serving)]);
    assert_eq!(list[1].devices, ["devices/a"]);
    // Token keys are for those who check tokens.
    assert!(worker.heard().jwks.is_none());
    let none = nodes.get_node(GetNodeRequest { name: "nodes/x".into() }).await.unwrap_err();
    assert_eq!((none.code(), reason(&none).as_str()), (Code::NotFound, "NODE_NOT_FOUND"));
}

#[tokio::test]
async fn without_a_certificate_of_our_ca_there_is_no_link() {
    let replica = Replica::start().await;
    let ours = replica.api.ca().unwrap().cert_pem().to_owned();
    let id = NodeId::parse("r1").unwrap();
    let foreign = foreign_ca().issue_node(&id, &[]).unwrap();
    for cert in [None, Some(&foreign)] {
        // TLS 1.3 clients learn of the refusal with the first read.
        let refused = match node_channel(&replica, cert, &ours).await {
            Err(_) => true,
            Ok(channel) => {
                let hello = LinkRequest { seq: 1, body: Some(Up::Hello(router_hello("r1", 1))) };
                let mut client = NodeLinkServiceClient::new(channel);
                let answer = client.link(tokio_stream::once(hello)).await;
                match answer {
                    Err(_) => true,
                    Ok(stream) => stream.into_inner().message().await.is_err(),
                }
            }
        };
        assert!(refused, "{}", cert.is_some());
    }
    let listed = replica.nodes().await.list_nodes(ListNodesRequest::default()).await.unwrap();
    assert!(listed.into_inner().nodes.is_empty());
}

#[tokio::test]
async fn a_node_cannot_pose_as_another() {
    let replica = Replica::start().await;
    let cert = replica.api.issue_node(&NodeId::parse("r2").unwrap(), &[]).unwrap();
    let manners = Manners::default();
    let mut node = FakeNode::link_as(&replica, router_hello("r1", 1), manners, &cert).await;
    let status = ended(&mut node).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::PermissionDenied, "NODE_IDENTITY")
    );
}

#[tokio::test]
async fn an_older_life_of_a_node_is_refused_and_a_newer_one_replaces_it() {
    let replica = Replica::start().await;
    let mut first = FakeNode::link(&replica, router_hello("r1", 5)).await;
    replica.serving("r1").await;
    let mut stale = FakeNode::link(&replica, router_hello("r1", 4)).await;
    let status = ended(&mut stale).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "STALE_INCARNATION")
    );
    let mut next = FakeNode::link(&replica, router_hello("r1", 6)).await;
    assert_eq!(ended(&mut first).await.code(), Code::Aborted);
    next.until("welcomed", |h| h.welcome.is_some()).await;
    replica.serving("r1").await;
}

#[tokio::test]
async fn a_hello_that_is_none_ends_the_link_with_the_field() {
    let replica = Replica::start().await;
    type Spoil = fn(&mut Hello);
    let cases: [(&str, Spoil); 3] = [
        ("hello.node.incarnation", |h| h.node.as_mut().unwrap().incarnation = 0),
        ("hello.kind", |h| h.kind = 0),
        ("hello.max_epoch_seen", |h| h.max_epoch_seen = u64::MAX),
    ];
    for (field, spoil) in cases {
        let mut hello = router_hello("r1", 1);
        spoil(&mut hello);
        let cert = replica.api.issue_node(&NodeId::parse("r1").unwrap(), &[]).unwrap();
        let mut node = FakeNode::link_as(&replica, hello, Manners::default(), &cert).await;
        let status = ended(&mut node).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        assert_eq!(common::fields(&status), [field.to_owned()].into());
    }
}

#[tokio::test]
async fn a_node_that_runs_something_else_is_told_everything_again() {
    let replica = Replica::start().await;
    let mut router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    replica.streams().await.create_stream(create("a")).await.unwrap();
    let told = router.heard().applies.len();
    router.manners.send_replace(Manners { runs: false, ..Manners::default() });
    let heard = router.until("told again", |h| h.applies.len() > told).await;
    let again = heard.applies.last().unwrap();
    assert!(again.full);
    assert_eq!(again.wants.len(), 1);
}

#[tokio::test]
async fn a_node_that_still_holds_its_wants_is_not_told_again() {
    let replica = Replica::start().await;
    let router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    replica.streams().await.create_stream(create("a")).await.unwrap();
    let before = router.heard();
    router.die();
    let mut hello = router_hello("r1", 1);
    (hello.want_version, hello.want_digest) = (before.version, held_digest(&before));
    let mut again = FakeNode::link(&replica, hello).await;
    again.until("heartbeats answered", |h| h.acked_heartbeats >= 2).await;
    assert!(again.heard().applies.is_empty());
    replica.serving("r1").await;
}

#[tokio::test]
async fn a_goodbye_ends_the_lease_at_once() {
    let replica = Replica::with(|cfg| cfg.lease = Duration::from_secs(3600)).await;
    let router = replica.router("r1").await;
    router.goodbye().await;
    replica.node_state("r1", NodeState::Lost).await;
}

#[tokio::test]
async fn a_draining_node_takes_no_new_streams() {
    let replica = Replica::start().await;
    let router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    router.manners.send_replace(Manners { beats: false, ..Manners::default() });
    let beat = fanlight_proto::node::v1::Heartbeat {
        state: NodeState::Draining.into(),
        ..Default::default()
    };
    router.send(Up::Heartbeat(beat)).await;
    replica.node_state("r1", NodeState::Draining).await;
    let refused = replica.streams().await.create_stream(create("a")).await.unwrap_err();
    assert_eq!(reason(&refused), "NODE_AT_CAPACITY");
}

#[tokio::test]
async fn the_end_of_the_replica_ends_links_and_releases_its_ports() {
    let replica = Replica::start().await;
    let mut router = replica.router("r1").await;
    let began = std::time::Instant::now();
    replica.api.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2));
    ended(&mut router).await;
    tokio::net::TcpListener::bind(replica.api.grpc_addr()).await.unwrap();
    tokio::net::TcpListener::bind(replica.api.node_addr()).await.unwrap();
}

/// The client that real nodes use.
#[derive(Default)]
struct Node {
    applies: Mutex<Vec<Apply>>,
    keys: Mutex<Option<String>>,
}

impl LinkHandler for Node {
    fn apply(&self, apply: Apply) -> BoxFuture<'_, Ack> {
        self.applies.lock().push(apply);
        Box::pin(async { Ack::default() })
    }
    fn action(&self, _: Action) -> BoxFuture<'_, Ack> {
        Box::pin(async { Ack::default() })
    }
    fn load(&self) -> NodeLoad {
        NodeLoad::default()
    }
    fn running(&self) -> Vec<Running> {
        let applies = self.applies.lock();
        let wants = applies.iter().flat_map(|a| &a.wants);
        wants.map(|w| Running { assignment: w.assignment.clone(), ..Default::default() }).collect()
    }
    fn max_epoch_seen(&self) -> u64 {
        0
    }
    fn key_set(&self, jwks_json: String) {
        *self.keys.lock() = Some(jwks_json);
    }
}

#[tokio::test]
async fn the_client_of_real_nodes_links_and_serves() {
    let replica = Replica::start().await;
    let id = NodeId::parse("r1").unwrap();
    let identity = NodeIdentity::from_pem(replica.api.issue_node(&id, &[]).unwrap()).unwrap();
    let hello = HelloTemplate {
        node: id,
        kind: NodeKind::Router,
        incarnation: 1,
        region: String::new(),
        zone: String::new(),
        labels: Default::default(),
        addresses: NodeAddresses {
            quic: vec!["127.0.0.1:1".into()],
            whep_base_url: "http://x".into(),
            ..Default::default()
        },
        capacity: NodeCapacity::default(),
    };
    let endpoint = format!("https://{}", replica.api.node_addr());
    let node = Arc::new(Node::default());
    let shutdown = Shutdown::new(Duration::from_secs(2));
    let handler: Arc<dyn LinkHandler> = Arc::clone(&node) as _;
    LinkClient::spawn(LinkConfig::new(vec![endpoint], identity, hello), handler, &shutdown)
        .unwrap();
    replica.serving("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    replica.streams().await.create_stream(create("a")).await.unwrap();
    assert_eq!(node.applies.lock().iter().flat_map(|a| &a.wants).count(), 1);
    assert!(node.keys.lock().is_some());
    shutdown.trigger();
    shutdown.wait().await.unwrap();
    replica.node_state("r1", NodeState::Lost).await;
}
