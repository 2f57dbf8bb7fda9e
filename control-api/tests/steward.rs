//! The steward in virtual time: no sockets, only the store, the clock and the table.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use fanlight_control::{
    clock::Clock,
    lease::{Timing, node_state},
    steward::{Created, Steward},
    store::{
        CreateStream, JoinViewer, LinkId, LinkNode, Store,
        memory::{Limits, MemoryStore},
        rows::{StreamRow, ViewerPhase, ViewerRow},
    },
};
use fanlight_proto::{
    claims::Role,
    id::{NodeId, StreamId, ViewerName},
    node::v1::{DeviceStatus, Hello, StreamReport, device_status::State as Device},
    types::v1::{NodeAddresses, NodeKind, NodeLoad, NodeState, StreamState, ViewerGrants},
};
use tokio::time::{Instant, advance, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

struct World {
    store: Arc<dyn Store>,
    steward: Arc<Steward>,
    _end: DropGuard,
}

fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn stream(name: &str) -> StreamId {
    StreamId::parse(name).unwrap()
}

impl World {
    fn new() -> Self {
        let clock = Clock::start();
        let store: Arc<dyn Store> =
            Arc::new(MemoryStore::new(Limits::default(), Timing::default(), clock));
        let steward = Arc::new(Steward::new(Arc::clone(&store)));
        let end = CancellationToken::new();
        tokio::spawn({
            let (steward, end) = (Arc::clone(&steward), end.clone());
            async move { steward.run(end).await }
        });
        Self { store, steward, _end: end.drop_guard() }
    }

    async fn link(&self, name: &str, kind: NodeKind, incarnation: u64, devices: &[&str]) -> LinkId {
        let devices = devices.iter().map(|d| DeviceStatus {
            device: format!("devices/{d}"),
            state: Device::Online.into(),
            reason: String::new(),
        });
        let addresses = NodeAddresses {
            quic: vec!["127.0.0.1:1".into()],
            whep_base_url: "http://x".into(),
            ..Default::default()
        };
        let hello =
            Hello { addresses: Some(addresses), devices: devices.collect(), ..Hello::default() };
        let intent = LinkNode {
            id: id(name),
            kind,
            incarnation,
            hello: Arc::new(hello),
            replica: "c".to_owned(),
        };
        let link = self.store.link_node(intent).await.unwrap();
        self.store.agree_node(link.clone()).await.unwrap();
        link
    }

    async fn router(&self, name: &str) -> LinkId {
        self.link(name, NodeKind::Router, 1, &[]).await
    }

    /// Creates a stream while its router accepts whatever it is given.
    async fn create(&self, name: &str, routers: &[&LinkId]) -> Arc<StreamRow> {
        let intent = CreateStream {
            id: stream(name),
            device: name.parse().unwrap(),
            spec: Arc::default(),
            request: None,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        let steward = Arc::clone(&self.steward);
        let created = tokio::spawn(async move { steward.create(intent, deadline, false).await });
        self.accept(name, routers).await;
        match created.await.unwrap().unwrap() {
            Created::Row(row) => row,
            Created::Answered(_) => panic!("answered without a request id"),
        }
    }

    /// Waits for an assignment to one of these routers and accepts it as that router.
    async fn accept(&self, name: &str, routers: &[&LinkId]) -> u64 {
        let give_up = Instant::now() + Duration::from_secs(60);
        while Instant::now() < give_up {
            if let Some(row) = self.store.stream(stream(name)).await.unwrap()
                && let Some(a) = row.assigned.as_ref().filter(|_| !row.is_accepted())
                && let Some(link) = routers.iter().find(|l| l.node == a.node)
            {
                let link = LinkId::clone(link);
                self.store.accept_origin(link, stream(name), a.epoch).await.unwrap();
                return a.epoch;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} is assigned to none of them");
    }

    async fn beat(&self, links: &[&LinkId], seconds: u64) {
        for _ in 0..seconds {
            sleep(Duration::from_secs(1)).await;
            for link in links {
                let link = LinkId::clone(link);
                self.store.renew_node(link, NodeLoad::default(), false).await.unwrap();
            }
        }
    }

    async fn row(&self, name: &str) -> Arc<StreamRow> {
        self.store.stream(stream(name)).await.unwrap().unwrap()
    }

    async fn state(&self, name: &str) -> NodeState {
        node_state(&self.store.node(id(name)).await.unwrap().unwrap())
    }

    async fn worker_says(&self, worker: &LinkId, name: &str, epoch: u64, state: StreamState) {
        let report = StreamReport {
            stream: format!("streams/{name}"),
            epoch,
            state: state.into(),
            reason: String::new(),
        };
        self.store.report_stream(worker.clone(), report).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn silence_makes_suspect_at_three_seconds_lost_at_eight_and_then_moves() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let epoch = world.create("a", &[&r1]).await.epoch;
    let r2 = world.router("r2").await;
    world.beat(&[&r2, &worker], 4).await;
    assert_eq!(world.state("r1").await, NodeState::Suspect);
    assert_eq!(world.row("a").await.epoch, epoch, "silence alone moves nothing");
    world.beat(&[&r2, &worker], 3).await;
    assert_eq!(world.row("a").await.epoch, epoch);
    world.beat(&[&r2, &worker], 2).await;
    assert_eq!(world.state("r1").await, NodeState::Lost);
    let moved = world.accept("a", &[&r2]).await;
    assert!(moved > epoch);
    let row = world.row("a").await;
    assert_eq!((row.assigned.as_ref().unwrap().node.as_str(), row.is_accepted()), ("r2", true));
    // The old router comes back with its old life: its word is too late.
    let back = world.link("r1", NodeKind::Router, 1, &[]).await;
    world.store.accept_origin(back, stream("a"), epoch).await.unwrap();
    assert_eq!(world.row("a").await.epoch, moved);
}

#[tokio::test(start_paused = true)]
async fn a_silent_router_and_a_worker_that_cannot_push_are_two_witnesses() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let epoch = world.create("a", &[&r1]).await.epoch;
    let r2 = world.router("r2").await;
    world.store.unlink_node(r1, false).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(world.row("a").await.epoch, epoch, "one witness is not enough");
    world.worker_says(&worker, "a", epoch, StreamState::Starved).await;
    let began = Instant::now();
    assert!(world.accept("a", &[&r2]).await > epoch);
    assert!(began.elapsed() < Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn with_nowhere_to_go_a_stream_stays_where_it_is() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let before = world.create("a", &[&r1]).await;
    world.beat(&[&worker], 30).await;
    let row = world.row("a").await;
    assert_eq!(world.state("r1").await, NodeState::Lost);
    assert_eq!((row.epoch, &row.assigned), (before.epoch, &before.assigned));
    // The same life comes back: nothing has to change.
    let back = world.link("r1", NodeKind::Router, 1, &[]).await;
    world.beat(&[&worker, &back], 30).await;
    assert_eq!(world.row("a").await.epoch, before.epoch);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_takes_is_tried_with_growing_pauses_and_placed_when_one_comes() {
    let world = World::new();
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let intent = CreateStream {
        id: stream("a"),
        device: "a".parse().unwrap(),
        spec: Arc::default(),
        request: None,
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    world.steward.create(intent, deadline, true).await.unwrap();
    world.beat(&[&worker], 100).await;
    let row = world.row("a").await;
    assert_eq!(row.state, StreamState::Starved);
    assert!((5..12).contains(&row.attempts), "{} attempts in 100 s", row.attempts);
    let began = Instant::now();
    let r1 = world.router("r1").await;
    world.accept("a", &[&r1]).await;
    assert!(began.elapsed() < Duration::from_secs(1), "a new router is used at once");
}

#[tokio::test(start_paused = true)]
async fn an_invitation_nobody_used_ends_with_its_token() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let epoch = world.create("a", &[&r1]).await.epoch;
    let name = ViewerName::parse("streams/a/viewers/ann").unwrap();
    let now = world.store.now_us();
    let row = ViewerRow {
        name: name.clone(),
        user: String::new(),
        grants: ViewerGrants::default(),
        role: Role::Observer,
        phase: ViewerPhase::Invited,
        reason: String::new(),
        kicked: false,
        edge: id("r1"),
        epoch,
        jti: "j".to_owned(),
        join_until_us: now + 90_000_000,
        create_us: now,
        connect_us: None,
        due_us: 0,
    };
    world.store.join_viewer(JoinViewer { row, request: None }).await.unwrap();
    world.beat(&[&r1, &worker], 89).await;
    assert!(world.store.viewer(name.clone()).await.unwrap().is_some());
    world.beat(&[&r1, &worker], 2).await;
    assert!(world.store.viewer(name).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_left_is_forgotten_after_an_hour() {
    let world = World::new();
    let r1 = world.router("r1").await;
    world.store.unlink_node(r1, true).await.unwrap();
    assert_eq!(world.state("r1").await, NodeState::Lost);
    advance(Duration::from_secs(3601)).await;
    sleep(Duration::from_secs(1)).await;
    assert!(world.store.node(id("r1")).await.unwrap().is_none());
}

impl World {
    async fn says(&self, link: &LinkId, name: &str, epoch: u64, state: StreamState) {
        let report = StreamReport {
            stream: stream(name).resource_name(),
            epoch,
            state: state.into(),
            reason: String::new(),
        };
        self.store.report_stream(link.clone(), report).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_drained_router_is_left_make_before_break_and_takes_nothing_back_until_undrained() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let first = world.create("a", &[&r1]).await;
    world.says(&r1, "a", first.epoch, StreamState::Live).await;
    world.store.drain_node(id("r1"), Duration::from_secs(20)).await.unwrap();
    world.beat(&[&r1, &worker], 5).await;
    let row = world.row("a").await;
    assert_eq!((row.epoch, row.state), (first.epoch, StreamState::Live), "nowhere to go");

    // Another router comes: it is used within a moment, and both carry the stream.
    let r2 = world.router("r2").await;
    let began = Instant::now();
    let epoch = world.accept("a", &[&r2]).await;
    assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
    let row = world.row("a").await;
    assert_eq!((row.state, row.reason.as_str()), (StreamState::Moving, ""));
    assert!(row.leaving.as_ref().is_some_and(|l| l.push && l.from.epoch == first.epoch));
    world.says(&r2, "a", epoch, StreamState::Live).await;
    world.says(&r1, "a", first.epoch, StreamState::Ended).await;
    let row = world.row("a").await;
    assert_eq!((row.leaving.as_ref(), row.state), (None, StreamState::Live));

    // Its new router drains too, and the old one still does: it stays.
    world.store.drain_node(id("r2"), Duration::from_secs(20)).await.unwrap();
    world.beat(&[&r1, &r2, &worker], 5).await;
    assert_eq!(world.row("a").await.epoch, epoch);
    world.store.undrain_node(id("r1")).await.unwrap();
    assert_eq!(world.state("r1").await, NodeState::Serving);
    assert!(world.accept("a", &[&r1]).await > epoch);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_says_it_drains_is_left_as_one_that_is_told_to() {
    let world = World::new();
    let (r1, worker) =
        (world.router("r1").await, world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await);
    let first = world.create("a", &[&r1]).await;
    world.says(&r1, "a", first.epoch, StreamState::Live).await;
    let r2 = world.router("r2").await;
    world.beat(&[&r1, &r2, &worker], 2).await;
    assert_eq!(world.row("a").await.epoch, first.epoch, "nothing moves without a reason");
    world.store.renew_node(r1.clone(), NodeLoad::default(), true).await.unwrap();
    world.accept("a", &[&r2]).await;
    assert!(world.row("a").await.leaving.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_moved_when_asked_to_where_asked_and_one_move_at_a_time() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let _worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let first = world.create("a", &[&r1]).await;
    world.says(&r1, "a", first.epoch, StreamState::Live).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    let alone = world.steward.move_stream(&stream("a"), None, deadline).await.unwrap_err();
    assert_eq!(alone.reason.as_str(), "NODE_AT_CAPACITY");
    let (r2, r3) = (world.router("r2").await, world.router("r3").await);
    let same = world.steward.move_stream(&stream("a"), Some(&id("r1")), deadline).await.unwrap();
    assert_eq!(same.epoch, first.epoch, "it is there already");
    let steward = Arc::clone(&world.steward);
    let moving =
        tokio::spawn(
            async move { steward.move_stream(&stream("a"), Some(&id("r3")), deadline).await },
        );
    let epoch = world.accept("a", &[&r2, &r3]).await;
    let row = moving.await.unwrap().unwrap();
    assert_eq!(row.accepted.as_ref().map(|a| a.node.clone()), Some(id("r3")));
    assert_eq!((row.epoch, row.state), (epoch, StreamState::Moving));
    let busy = world.steward.move_stream(&stream("a"), None, deadline).await.unwrap_err();
    assert!(busy.retry.is_some(), "{busy}");
}

#[tokio::test(start_paused = true)]
async fn a_router_that_dies_is_left_at_the_second_witness() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let first = world.create("a", &[&r1]).await;
    world.says(&r1, "a", first.epoch, StreamState::Live).await;
    world.says(&worker, "a", first.epoch, StreamState::Live).await;
    let r2 = world.router("r2").await;
    world.store.unlink_node(r1.clone(), false).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.row("a").await.epoch, first.epoch, "its link alone moves nothing");
    world.says(&worker, "a", first.epoch, StreamState::Starved).await;
    let began = Instant::now();
    world.accept("a", &[&r2]).await;
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    assert!(world.row("a").await.leaving.as_ref().is_some_and(|l| !l.push));
}

#[tokio::test(start_paused = true)]
async fn a_move_to_a_router_that_the_worker_cannot_reach_goes_to_another_one() {
    let world = World::new();
    let r1 = world.router("r1").await;
    let worker = world.link("w1", NodeKind::IngestWorker, 1, &["a"]).await;
    let first = world.create("a", &[&r1]).await;
    world.says(&r1, "a", first.epoch, StreamState::Live).await;
    let r2 = world.router("r2").await;
    world.store.drain_node(id("r1"), Duration::from_secs(20)).await.unwrap();
    let second = world.accept("a", &[&r2]).await;
    let r3 = world.router("r3").await;
    world.says(&worker, "a", second, StreamState::Starved).await;
    let third = world.accept("a", &[&r3]).await;
    assert!(third > second);
    let row = world.row("a").await;
    // What is left is still the router that has the picture, and never the one that had none.
    assert!(row.leaving.as_ref().is_some_and(|l| l.push && l.from.epoch == first.epoch));
    assert_eq!(row.accepted.as_ref().map(|a| a.node.clone()), Some(id("r3")));
}
