//! Moves over real links: what each node is told, and when, while a stream leaves a router.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{FakeNode, Replica, create, fields, reason};
use fanlight_control::token::TokenKey;
use fanlight_ops::ticket;
use fanlight_proto::{
    claims::{JOIN_AUDIENCE, JOIN_ISSUER, JoinClaims, Role as Claim},
    control::v1::{
        CreateViewerRequest, DrainNodeRequest, GetNodeRequest, GetStreamRequest, KickViewerRequest,
        MoveStreamRequest, UndrainNodeRequest,
    },
    id::ViewerName,
    node::v1::{
        IngestRole, OriginRole, Want, action::Action as Body, viewer_report::Kind, want::Role,
    },
    types::v1::{NodeState, StreamState},
};
use tonic::Code;

fn origin(want: &Want) -> OriginRole {
    match &want.role {
        Some(Role::Origin(origin)) => origin.clone(),
        other => panic!("{other:?}"),
    }
}

fn ingest(want: &Want) -> IngestRole {
    match &want.role {
        Some(Role::Ingest(ingest)) => ingest.clone(),
        other => panic!("{other:?}"),
    }
}

fn epoch(want: &Want) -> u64 {
    want.assignment.as_ref().unwrap().epoch
}

/// A stream `a` that is live on `r1`, and nothing on `r2`.
async fn scene() -> (Replica, FakeNode, FakeNode, FakeNode, u64) {
    let replica = Replica::with(|cfg| cfg.public_url = "https://control.example/".into()).await;
    let mut r1 = replica.router("r1").await;
    let mut worker = replica.worker("w1", &["a"]).await;
    replica.streams().await.create_stream(create("a")).await.unwrap();
    let at = epoch(&r1.want("a", 0).await);
    worker.want("a", 0).await;
    r1.report_stream("a", at, StreamState::Live).await;
    state(&replica, StreamState::Live).await;
    let r2 = replica.router("r2").await;
    (replica, r1, r2, worker, at)
}

async fn state(replica: &Replica, wanted: StreamState) {
    let store = Arc::clone(replica.api.store());
    let mut events = store.subscribe();
    let reached = async {
        while store.stream("a".parse().unwrap()).await.unwrap().unwrap().state != wanted {
            let _ = events.recv().await;
        }
    };
    tokio::time::timeout(common::SOON, reached).await.unwrap();
}

async fn watching(replica: &Replica, router: &FakeNode, viewer: &str) {
    let request = CreateViewerRequest {
        parent: "streams/a".into(),
        viewer_id: viewer.into(),
        ..CreateViewerRequest::default()
    };
    let made = replica.viewers().await.create_viewer(request).await.unwrap().into_inner();
    assert_eq!(made.fallback_whep_urls, ["https://control.example/whep/a"]);
    router.report_viewer(&format!("streams/a/viewers/{viewer}"), Kind::Connected).await;
    let store = Arc::clone(replica.api.store());
    let name = ViewerName::parse(&format!("streams/a/viewers/{viewer}")).unwrap();
    let mut events = store.subscribe();
    let connected = async {
        while store.viewer(name.clone()).await.unwrap().unwrap().connect_us.is_none() {
            let _ = events.recv().await;
        }
    };
    tokio::time::timeout(common::SOON, connected).await.unwrap();
}

#[tokio::test]
async fn a_drained_router_keeps_its_push_until_its_viewers_have_followed() {
    let (replica, mut r1, mut r2, mut worker, first) = scene().await;
    watching(&replica, &r1, "ann").await;
    watching(&replica, &r1, "bob").await;
    let kick =
        KickViewerRequest { name: "streams/a/viewers/bob".into(), ..KickViewerRequest::default() };
    replica.viewers().await.kick_viewer(kick).await.unwrap();

    let mut nodes = replica.nodes().await;
    let drain = DrainNodeRequest { name: "nodes/r1".into(), deadline: None };
    let node = nodes.drain_node(drain.clone()).await.unwrap().into_inner();
    assert_eq!(node.state(), NodeState::Draining);
    assert!(node.drain_deadline_time.is_some());
    let drained = |a: &fanlight_proto::node::v1::Action, on: bool| matches!(&a.action, Some(Body::Drain(d)) if d.on == on && d.deadline.is_some() == on);
    r1.until("told to drain", |h| h.actions.iter().any(|a| drained(a, true))).await;

    // The new origin, and before it whom it must not let in.
    let there = r2.want("a", first).await;
    let next = epoch(&there);
    let barred = |a: &fanlight_proto::node::v1::Action| matches!(&a.action, Some(Body::Bar(b)) if b.stream == "streams/a" && b.token_ids.len() == 1);
    assert!(r2.heard().actions.iter().any(barred), "{:?}", r2.heard().actions);
    // The worker pushes to both, under both epochs.
    let role = ingest(&worker.want("a", first).await);
    assert_eq!(
        (role.also_epoch, role.also.is_some(), role.also_push_token.len()),
        (first, true, 32)
    );
    assert_eq!(role.also_origin.unwrap().node, "nodes/r1");
    assert_eq!(origin(&r1.heard().wants["streams/a"]).moved, None, "nobody is sent to no picture");
    let ask = GetStreamRequest { name: "streams/a".into() };
    let row = replica.streams().await.get_stream(ask).await;
    assert_eq!(row.unwrap().into_inner().state(), StreamState::Moving);

    r2.report_stream("a", next, StreamState::Live).await;
    let told = |h: &common::Heard| origin(&h.wants["streams/a"]).moved.is_some();
    let here = r1.until("told where to", told).await.wants["streams/a"].clone();
    let moved = origin(&here).moved.unwrap();
    assert_eq!((epoch(&here), moved.whep_url.as_str()), (first, "http://r2.example:8080/whep/a"));
    assert_eq!(moved.ticket_key, origin(&there).ticket_key);

    // The last viewer has left: the old origin ends, and so does its push.
    r1.report_stream("a", first, StreamState::Ended).await;
    r1.until("idle", |h| h.wants.is_empty()).await;
    worker.until("one push", |h| ingest(&h.wants["streams/a"]).also.is_none()).await;

    replica.node_state("r1", NodeState::Draining).await;
    let undrain = UndrainNodeRequest { name: "nodes/r1".into() };
    nodes.undrain_node(undrain).await.unwrap();
    r1.until("told to serve", |h| h.actions.iter().any(|a| drained(a, false))).await;
    replica.serving("r1").await;
}

#[tokio::test]
async fn a_drain_outlives_the_routers_process_and_is_told_to_the_next_one() {
    let replica = Replica::start().await;
    let r1 = replica.router("r1").await;
    let mut nodes = replica.nodes().await;
    let deadline = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    nodes.drain_node(DrainNodeRequest { name: "nodes/r1".into(), deadline }).await.unwrap();
    r1.die();
    let mut reborn = FakeNode::link(&replica, common::router_hello("r1", 2)).await;
    reborn
        .until("told", |h| {
            h.actions.iter().any(|a| matches!(&a.action, Some(Body::Drain(d)) if d.on))
        })
        .await;
    let node = nodes.get_node(GetNodeRequest { name: "nodes/r1".into() }).await.unwrap();
    assert_eq!(node.into_inner().state(), NodeState::Draining);
}

#[tokio::test]
async fn what_cannot_be_drained_or_moved_is_refused_with_its_reason() {
    let (replica, _r1, r2, _worker, first) = scene().await;
    let mut nodes = replica.nodes().await;
    let drain = |name: &str| DrainNodeRequest { name: name.into(), deadline: None };
    let unknown = nodes.drain_node(drain("nodes/nobody")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "NODE_NOT_FOUND"));
    let worker = nodes.drain_node(drain("nodes/w1")).await.unwrap_err();
    assert_eq!(worker.code(), Code::InvalidArgument, "{worker}");
    let odd = nodes.drain_node(drain("r1")).await.unwrap_err();
    assert!(fields(&odd).contains("name"), "{odd}");
    let mut streams = replica.streams().await;
    let to = |node: &str| MoveStreamRequest { name: "streams/a".into(), target_node: node.into() };
    let here = streams.move_stream(to("nodes/r1")).await.unwrap().into_inner();
    assert_eq!(here.assignment.unwrap().epoch, first, "it is there already");
    let full = streams.move_stream(to("nodes/w1")).await.unwrap_err();
    assert_eq!(reason(&full), "NODE_AT_CAPACITY");
    let moved = streams.move_stream(to("")).await.unwrap().into_inner();
    assert_eq!(moved.assignment.unwrap().origin.unwrap().node, r2.name);
    let again = streams.move_stream(to("")).await.unwrap_err();
    assert!(common::retryable(&again), "{again}");
}

#[tokio::test]
async fn a_watching_viewer_of_a_dead_router_is_redirected_with_a_ticket_and_nobody_else() {
    let (replica, r1, mut r2, worker, first) = scene().await;
    watching(&replica, &r1, "ann").await;
    watching(&replica, &r1, "bob").await;
    let key = TokenKey::load_or_create(&replica.dir.path().join("token.pem")).unwrap();
    let store = Arc::clone(replica.api.store());
    let name = |viewer: &str| ViewerName::parse(&format!("streams/a/viewers/{viewer}")).unwrap();
    let jti = store.viewer(name("ann")).await.unwrap().unwrap().jti.clone();
    let claims = |viewer: &str, jti: &str, exp: u64| JoinClaims {
        iss: JOIN_ISSUER.into(),
        aud: JOIN_AUDIENCE.into(),
        jti: jti.into(),
        sub: viewer.parse().unwrap(),
        s: "a".parse().unwrap(),
        n: None,
        e: 0,
        r: Claim::Observer,
        br: 0,
        exp,
        ms: 0,
        multi: false,
    };
    let now = fanlight_control::clock::unix_seconds();
    let expired = key.mint(&claims("ann", &jti, now - 5)).unwrap();
    let ask = |token: String| {
        let request = format!("POST /whep/a HTTP/1.1\r\nauthorization: Bearer {token}");
        let replica = &replica;
        async move {
            let answer = replica.http(&request).await;
            assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
            let line = answer.lines().find_map(|l| l.strip_prefix("location: "));
            line.unwrap().to_owned()
        }
    };
    let plain = "http://r1.example:8080/whep/a";
    assert_eq!(ask(expired.clone()).await, plain, "it is where it belongs: a token must be fresh");

    // Two witnesses: the stream moves.
    worker.report_stream("a", first, StreamState::Starved).await;
    r1.die();
    let key_there = origin(&r2.want("a", first).await).ticket_key;
    r2.report_stream("a", epoch(&r2.heard().wants["streams/a"]), StreamState::Live).await;
    state(&replica, StreamState::Live).await;
    let plain = "http://r2.example:8080/whep/a";
    let sent = ask(expired).await;
    let given = sent.strip_prefix(&format!("{plain}?ticket=")).unwrap_or_else(|| panic!("{sent}"));
    assert!(ticket::is_good(&key_there, "a", &jti, given, now));
    let fresh = key.mint(&claims("ann", &jti, now + 60)).unwrap();
    assert_eq!(ask(fresh).await, plain, "a token that is good by itself needs none");
    let other = key.mint(&claims("ann", "made-up", now - 5)).unwrap();
    assert_eq!(ask(other).await, plain, "not the token that she watches with");
    let stranger = TokenKey::generate().unwrap().mint(&claims("ann", &jti, now - 5)).unwrap();
    assert_eq!(ask(stranger).await, plain, "not a token of ours");
    let never = key.mint(&claims("eve", &jti, now - 5)).unwrap();
    assert_eq!(ask(never).await, plain, "nobody");
    let bobs = store.viewer(name("bob")).await.unwrap().unwrap().jti.clone();
    let kick =
        KickViewerRequest { name: "streams/a/viewers/bob".into(), ..KickViewerRequest::default() };
    replica.viewers().await.kick_viewer(kick).await.unwrap();
    let kicked = key.mint(&claims("bob", &bobs, now - 5)).unwrap();
    assert_eq!(ask(kicked.clone()).await, plain, "whoever was thrown out stays out");
    // The dead router is back already: its viewers are gone from there, and did not leave.
    let _reborn = FakeNode::link(&replica, common::router_hello("r1", 2)).await;
    replica.serving("r1").await;
    let back = key.mint(&claims("ann", &jti, now - 5)).unwrap();
    assert!(ask(back).await.starts_with(&format!("{plain}?ticket=")));
    assert_eq!(ask(kicked).await, plain);
}
