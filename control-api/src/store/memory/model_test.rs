//! Property test of the memory store: random intents at random times, invariants after each step.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fanlight_proto::{
    claims::Role,
    id::{DeviceId, NodeId, StreamId, ViewerName},
    node::v1::{
        DeviceStatus, Hello, StreamReport, ViewerReport, device_status::State as Device,
        viewer_report::Kind,
    },
    types::v1::{NodeKind, NodeLoad, StreamState, ViewerGrants, ViewerRole},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    Limits, State,
    fixtures::{hello, id},
    state::Counts,
};
use crate::{
    clock::us,
    error::ControlError,
    lease::Timing,
    store::{
        AssignOrigin, CreateStream, DeleteStream, Event, JoinViewer, KickViewer, LinkId, LinkNode,
        Once, RequestKey, StarveStream,
        outbox::{Record, RecordKind},
        rows::{PushToken, StreamRow, ViewerPhase, ViewerRow},
    },
    want::{WantList, wants},
};

/// One random step. Small numbers name streams, viewers, nodes and request ids.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Create { stream: u8, request: Option<u8>, tenant: u8 },
    Delete { stream: u8, request: Option<u8> },
    Assign { stream: u8, node: u8, stale: bool },
    Accept { stream: u8, node: u8 },
    Refuse { stream: u8, node: u8 },
    Starve { stream: u8 },
    Defer { stream: u8 },
    Report { stream: u8, node: u8, state: i32 },
    Join { stream: u8, viewer: u8, user: u8, request: Option<u8> },
    Viewer { stream: u8, viewer: u8, node: u8, kind: i32 },
    Kick { stream: u8, viewer: u8, ban: bool },
    Link { node: u8, incarnation: u64, floor: u64 },
    Renew { node: u8 },
    Agree { node: u8 },
    Unlink { node: u8, goodbye: bool },
    Devices { node: u8, stream: u8, state: i32 },
    Stale { node: u8, stream: u8 },
    Drain { node: u8, on: bool },
    Left { stream: u8, node: u8 },
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let (s, v, n) = (0u8..5, 0u8..4, 0u8..4);
    let r = || proptest::option::of(0u8..6);
    prop_oneof![
        2 => (0u64..12_000_000).prop_map(Step::Wait),
        4 => (s.clone(), r(), 0u8..2).prop_map(|(stream, request, tenant)| Step::Create { stream, request, tenant }),
        1 => (s.clone(), r()).prop_map(|(stream, request)| Step::Delete { stream, request }),
        6 => (s.clone(), n.clone(), prop::bool::weighted(0.2)).prop_map(|(stream, node, stale)| Step::Assign { stream, node, stale }),
        6 => (s.clone(), n.clone()).prop_map(|(stream, node)| Step::Accept { stream, node }),
        2 => (s.clone(), n.clone()).prop_map(|(stream, node)| Step::Refuse { stream, node }),
        1 => s.clone().prop_map(|stream| Step::Starve { stream }),
        1 => s.clone().prop_map(|stream| Step::Defer { stream }),
        3 => (s.clone(), n.clone(), 0i32..7).prop_map(|(stream, node, state)| Step::Report { stream, node, state }),
        5 => (s.clone(), v.clone(), 0u8..2, r()).prop_map(|(stream, viewer, user, request)| Step::Join { stream, viewer, user, request }),
        4 => (s.clone(), v.clone(), n.clone(), 0i32..4).prop_map(|(stream, viewer, node, kind)| Step::Viewer { stream, viewer, node, kind }),
        2 => (s.clone(), v, any::<bool>()).prop_map(|(stream, viewer, ban)| Step::Kick { stream, viewer, ban }),
        4 => (n.clone(), 1u64..4, 0u64..3_000_000_000).prop_map(|(node, incarnation, floor)| Step::Link { node, incarnation, floor }),
        4 => n.clone().prop_map(|node| Step::Renew { node }),
        2 => n.clone().prop_map(|node| Step::Agree { node }),
        1 => (n.clone(), any::<bool>()).prop_map(|(node, goodbye)| Step::Unlink { node, goodbye }),
        2 => (n.clone(), s.clone(), 0i32..4).prop_map(|(node, stream, state)| Step::Devices { node, stream, state }),
        2 => (n.clone(), any::<bool>()).prop_map(|(node, on)| Step::Drain { node, on }),
        2 => (s.clone(), n.clone()).prop_map(|(stream, node)| Step::Left { stream, node }),
        1 => (n, s).prop_map(|(node, stream)| Step::Stale { node, stream }),
        3 => Just(Step::Sweep),
    ]
}

fn stream(n: u8) -> StreamId {
    format!("s{n}").parse().unwrap()
}

fn node(n: u8) -> NodeId {
    id(&format!("n{n}"))
}

fn viewer_name(stream_n: u8, n: u8) -> ViewerName {
    ViewerName { stream: stream(stream_n), viewer: format!("v{n}").parse().unwrap() }
}

/// The state and what the test remembers of its past.
struct World {
    state: State,
    now: u64,
    /// Greatest epoch seen per stream, across deletions.
    epochs: BTreeMap<StreamId, u64>,
    /// Last answer per request id and fingerprint.
    deleted: BTreeMap<u8, u32>,
    links: BTreeMap<NodeId, LinkId>,
    told: Told,
}

/// What somebody knows who reads the outbox and nothing else.
#[derive(Debug, Default)]
struct Told {
    at: u64,
    streams: BTreeMap<StreamId, Option<StreamState>>,
    viewers: BTreeMap<ViewerName, ViewerPhase>,
    nodes: BTreeMap<NodeId, RecordKind>,
    devices: BTreeSet<DeviceId>,
}

impl Told {
    fn hear(&mut self, r: &Record) {
        use RecordKind as K;
        assert!(r.position > self.at, "positions grow");
        self.at = r.position;
        let stream = || r.stream.clone().unwrap();
        let viewer = || r.viewer_name().unwrap();
        let node = || r.node.clone().unwrap();
        match r.kind {
            K::StreamCreated => assert!(self.streams.insert(stream(), r.state).is_none()),
            K::StreamDeleted => {
                assert!(self.streams.remove(&stream()).is_some());
                assert!(!self.viewers.keys().any(|v| v.stream == stream()), "viewers end first");
            }
            K::StreamAssigned
            | K::StreamLive
            | K::StreamMoved
            | K::StreamStarved
            | K::StreamUpdated => assert!(self.streams.insert(stream(), r.state).is_some()),
            K::ViewerInvited => drop(self.viewers.insert(viewer(), ViewerPhase::Invited)),
            K::ViewerConnected => drop(self.viewers.insert(viewer(), ViewerPhase::Connected)),
            K::ViewerGone | K::ViewerExpired => assert!(self.viewers.remove(&viewer()).is_some()),
            // One that was gone already may be kicked as well, so that it stays gone.
            K::ViewerKicked => drop(self.viewers.remove(&viewer())),
            K::NodeForgotten => assert!(self.nodes.remove(&node()).is_some()),
            K::DeviceOnline => assert!(self.devices.insert(r.device.clone().unwrap())),
            K::DeviceOffline => assert!(self.devices.remove(r.device.as_ref().unwrap())),
            kind => drop(self.nodes.insert(node(), kind)),
        }
    }
}

fn limits() -> Limits {
    Limits {
        streams: 4,
        viewers: 12,
        viewers_per_stream: 3,
        nodes: 3,
        devices_per_node: 4,
        requests: 4,
        bars_per_stream: 2,
        events: 64,
    }
}

impl World {
    fn new() -> Self {
        Self {
            state: State::new(limits(), Timing::default()),
            now: 1_000_000_000,
            epochs: BTreeMap::new(),
            deleted: BTreeMap::new(),
            links: BTreeMap::new(),
            told: Told::default(),
        }
    }

    /// Applies an intent and checks what must hold for any intent.
    fn apply<T>(&mut self, intent: impl FnOnce(&mut State, u64) -> T) -> T {
        let before = self.all_wants();
        self.now += 1;
        let (answer, events) = self.state.apply(self.now, intent);
        let after = self.all_wants();
        for (node, wants) in &after {
            if before.get(node) != Some(wants) {
                assert!(
                    events.contains(&Event::Wants(node.clone())),
                    "{node} is not told: {events:?}"
                );
            }
        }
        self.check();
        answer
    }

    fn all_wants(&self) -> BTreeMap<NodeId, WantList> {
        let of = |n: &NodeId| {
            let incarnation = self.state.node(n).map_or(0, |row| row.incarnation);
            wants(n, incarnation, &self.state.wants(n))
        };
        self.state.nodes.keys().map(|n| (n.clone(), of(n))).collect()
    }

    /// The outbox alone tells what there is.
    fn check_told(&mut self) {
        let page = self.state.read_events(self.told.at, usize::MAX).unwrap();
        for record in &page.records {
            self.told.hear(record);
        }
        let s = &self.state;
        let streams: BTreeMap<_, _> =
            s.streams.values().map(|r| (r.id.clone(), Some(r.state))).collect();
        assert_eq!(self.told.streams, streams);
        let viewers = s.viewers.values().flat_map(BTreeMap::values);
        let viewers = viewers.filter(|v| v.phase != ViewerPhase::Gone);
        let viewers: BTreeMap<_, _> = viewers.map(|v| (v.name.clone(), v.phase)).collect();
        assert_eq!(self.told.viewers, viewers);
        let nodes: BTreeSet<_> = s.nodes.keys().collect();
        assert_eq!(self.told.nodes.keys().collect::<BTreeSet<_>>(), nodes);
        let online: BTreeSet<_> = s.nodes.keys().flat_map(|n| s.devices_online(n)).collect();
        assert_eq!(self.told.devices, online);
    }

    fn check(&mut self) {
        self.check_told();
        self.check_streams();
        self.check_viewers();
        let s = &self.state;
        assert!(s.nodes.len() <= limits().nodes);
        assert!(s.requests.len() <= limits().requests);
        assert_eq!(s.requests.len(), s.due_requests.len());
        for bars in s.bars.values() {
            assert!(bars.len() <= limits().bars_per_stream);
        }
        let named: BTreeSet<_> = s
            .nodes
            .values()
            .flat_map(|n| n.devices.keys().map(|d| (d.clone(), n.id.clone())))
            .collect();
        let indexed: BTreeSet<_> = s
            .devices
            .iter()
            .flat_map(|(d, at)| at.iter().map(|n| (d.clone(), n.clone())))
            .collect();
        assert_eq!(named, indexed);
    }

    fn check_streams(&mut self) {
        let s = &self.state;
        assert!(s.streams.len() <= limits().streams);
        let mut by_node: BTreeMap<NodeId, BTreeSet<StreamId>> = BTreeMap::new();
        let (mut unplaced, mut due, mut moves) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for row in s.streams.values() {
            for n in row.nodes() {
                by_node.entry(n.clone()).or_default().insert(row.id.clone());
            }
            if !row.is_accepted() {
                unplaced.insert(row.id.clone());
            }
            if row.due_us > 0 {
                due.insert((row.due_us, row.id.clone()));
            }
            if let Some(l) = &row.leaving {
                moves.insert((l.until_us, row.id.clone()));
                // Two origins at most, the one that is left below the one that is kept.
                let kept = row.accepted.as_ref().unwrap();
                assert!(l.from.epoch < kept.epoch && l.from.node != kept.node, "{row:?}");
            }
            assert!(!row.gentle || !row.is_accepted(), "{row:?}");
            let last = self.epochs.entry(row.id.clone()).or_default();
            assert!(row.epoch == 0 || row.epoch >= *last, "{} went back", row.id);
            *last = row.epoch.max(*last);
            for a in row.assigned.iter().chain(&row.accepted) {
                assert!(a.epoch <= row.epoch && a.epoch <= s.floor);
            }
        }
        assert_eq!(by_node, s.by_node);
        let shown: BTreeSet<_> = s.streams.values().map(|r| (&r.device, &r.id)).collect();
        let indexed = s.by_device.iter().flat_map(|(d, ids)| ids.iter().map(move |id| (d, id)));
        assert_eq!(shown, indexed.collect());
        assert_eq!(unplaced, s.unplaced);
        assert_eq!(due, s.due_streams);
        assert_eq!(moves, s.due_moves);
        for n in s.nodes.values() {
            let carried = by_node.get(&n.id).map_or(0, BTreeSet::len);
            assert_eq!(n.assignments as usize, carried, "{}", n.id);
        }
    }

    fn check_viewers(&self) {
        let s = &self.state;
        let mut counts: BTreeMap<StreamId, Counts> = BTreeMap::new();
        let (mut rows, mut due) = (0, BTreeSet::new());
        for (id, of_stream) in &s.viewers {
            assert!(!of_stream.is_empty() && of_stream.len() <= limits().viewers_per_stream);
            for row in of_stream.values() {
                rows += 1;
                assert!(!(row.kicked && row.phase != ViewerPhase::Gone), "{} is back", row.name);
                if row.due_us > 0 {
                    due.insert((row.due_us, id.clone(), row.name.viewer.clone()));
                }
                if row.phase != ViewerPhase::Gone {
                    let c = counts.entry(id.clone()).or_default();
                    c.present += 1;
                    c.controllers += u32::from(row.grants.role() == ViewerRole::Controller);
                    c.connected += u32::from(row.phase == ViewerPhase::Connected);
                }
            }
        }
        assert_eq!(rows, s.viewer_rows);
        assert!(rows <= limits().viewers);
        assert_eq!(due, s.due_viewers);
        assert_eq!(counts, s.counts);
        for stream in s.streams.values() {
            let connected = counts.get(&stream.id).map_or(0, |c| c.connected);
            assert_eq!(stream.viewers, connected);
        }
    }

    /// The newest link of a node, or one that never was.
    fn link(&self, n: u8) -> LinkId {
        let unknown = LinkId { node: node(n), incarnation: 1, epoch: 0 };
        self.links.get(&node(n)).cloned().unwrap_or(unknown)
    }

    fn epoch(&self, n: u8) -> u64 {
        self.state.stream(&stream(n)).map_or(0, |r| r.epoch)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Wait(us) => self.now += us,
            Step::Sweep => drop(self.apply(|s, now| s.sweep(now))),
            Step::Create { stream: n, request, tenant } => self.create(n, request, tenant),
            Step::Delete { stream: n, request } => self.delete(n, request),
            Step::Assign { stream: n, node: at, stale } => self.assign(n, at, stale),
            Step::Accept { stream: n, node: at } => {
                let (link, epoch) = (self.link(at), self.epoch(n));
                let _ = self.apply(|s, now| s.accept_origin(now, &link, &stream(n), epoch));
            }
            Step::Refuse { stream: n, node: at } => {
                let (link, epoch) = (self.link(at), self.epoch(n));
                let _ = self.apply(|s, now| s.refuse_origin(now, &link, &stream(n), epoch, "full"));
            }
            Step::Starve { stream: n } => {
                let reason = fanlight_proto::reason::Reason::NodeAtCapacity;
                let retry = Duration::from_secs(1);
                let intent =
                    StarveStream { stream: stream(n), expect_epoch: self.epoch(n), reason, retry };
                self.apply(|s, now| s.starve_stream(now, &intent)).unwrap();
            }
            Step::Defer { stream: n } => {
                self.apply(|s, now| s.defer_stream(now, &stream(n), Duration::from_secs(2)))
                    .unwrap();
            }
            Step::Report { stream: n, node: at, state } => {
                let report = StreamReport {
                    stream: stream(n).resource_name(),
                    epoch: self.epoch(n),
                    state,
                    reason: "r".to_owned(),
                };
                let link = self.link(at);
                let _ = self.apply(|s, now| s.report_stream(now, &link, &report));
            }
            Step::Join { stream: n, viewer, user, request } => self.join(n, viewer, user, request),
            Step::Viewer { stream: n, viewer, node: at, kind } => {
                let report = ViewerReport {
                    viewer: viewer_name(n, viewer).to_string(),
                    kind: Kind::try_from(kind).unwrap().into(),
                    ..ViewerReport::default()
                };
                let link = self.link(at);
                let _ = self.apply(|s, now| s.report_viewer(now, &link, &report));
            }
            Step::Kick { stream: n, viewer, ban } => {
                let ban = Duration::from_secs(if ban { 60 } else { 0 });
                let name = viewer_name(n, viewer);
                let intent = KickViewer { name, reason: String::new(), ban, request: None };
                let _ = self.apply(|s, now| s.kick_viewer(now, intent));
            }
            Step::Link { node: n, incarnation, floor } => self.link_node(n, incarnation, floor),
            Step::Renew { node: n } => {
                let link = self.link(n);
                let _ = self.apply(|s, now| s.renew_node(now, &link, NodeLoad::default(), false));
            }
            Step::Agree { node: n } => {
                let link = self.link(n);
                let _ = self.apply(|s, now| s.agree_node(now, &link));
            }
            Step::Unlink { node: n, goodbye } => {
                let link = self.link(n);
                let _ = self.apply(|s, now| s.unlink_node(now, &link, goodbye));
            }
            Step::Devices { node: n, stream: d, state } => {
                let status = DeviceStatus {
                    device: format!("devices/d{d}"),
                    state: Device::try_from(state).unwrap().into(),
                    reason: String::new(),
                };
                let link = self.link(n);
                let _ = self.apply(|s, now| s.report_devices(now, &link, &[status]));
            }
            Step::Drain { node: n, on } => {
                let done = self.apply(|s, now| match on {
                    true => s.drain_node(now, &node(n), Duration::from_secs(5)),
                    false => s.undrain_node(&node(n)),
                });
                if let Ok(row) = done {
                    assert_eq!(row.drain_us.is_some(), on);
                }
            }
            Step::Left { stream: n, node: at } => {
                // The origin that is left says that its viewers have gone.
                let row = self.state.stream(&stream(n));
                let left = row.and_then(|r| r.leaving.clone());
                let report = StreamReport {
                    stream: stream(n).resource_name(),
                    epoch: left.as_ref().map_or(1, |l| l.from.epoch),
                    state: StreamState::Ended.into(),
                    reason: String::new(),
                };
                let link = self.link(at);
                let done = self.apply(|s, now| s.report_stream(now, &link, &report));
                let after = self.state.stream(&stream(n)).and_then(|r| r.leaving.clone());
                let its_word = left.as_ref().is_some_and(|l| l.from.node == link.node);
                let ended = done.is_ok() && its_word;
                assert_eq!(after, left.filter(|_| !ended));
            }
            Step::Stale { node: n, stream: id } => self.stale_link(n, id),
        }
    }

    fn create(&mut self, n: u8, request: Option<u8>, tenant: u8) {
        let spec = fanlight_proto::control::v1::Stream {
            tenant: tenant.to_string(),
            ..Default::default()
        };
        let request = request.map(|r| key(r, n * 2 + tenant));
        let intent = CreateStream {
            id: stream(n),
            device: format!("d{n}").parse().unwrap(),
            spec: Arc::new(spec),
            request,
        };
        let existed = self.state.stream(&stream(n)).is_some();
        match self.apply(|s, now| s.create_stream(now, intent)) {
            Ok(Once::Now(_)) => assert!(!existed),
            Ok(Once::Before(_)) => assert!(existed && request.is_some()),
            Ok(Once::Answered(_)) => assert!(request.is_some()),
            Err(_) => {}
        }
    }

    fn delete(&mut self, n: u8, request: Option<u8>) {
        // Ids 10 and up are those of deletions, so that answers can be compared.
        let intent = DeleteStream {
            id: stream(n),
            version: None,
            allow_missing: true,
            request: request.map(|r| key(r + 10, n)),
        };
        let recorded = request.and_then(|r| {
            let known = self.state.requests.contains_key(&uuid_of(r + 10));
            known.then(|| self.deleted.get(&r).copied()).flatten()
        });
        let done = self.apply(|s, now| s.delete_stream(now, intent));
        match (done, request, recorded) {
            (Ok(Once::Now(closed)), Some(r), _) => {
                self.deleted.insert(r, closed);
            }
            (Ok(Once::Answered(answer)), Some(_), Some(closed)) => {
                use prost::Message as _;
                let answer = fanlight_proto::control::v1::DeleteStreamResponse::decode(answer);
                assert_eq!(answer.unwrap().viewers_closed, closed);
            }
            _ => {}
        }
    }

    fn assign(&mut self, n: u8, at: u8, stale: bool) {
        let epoch = self.epoch(n);
        let intent = AssignOrigin {
            stream: stream(n),
            expect_epoch: epoch + u64::from(stale),
            node: node(at),
            incarnation: self.state.node(&node(at)).map_or(0, |r| r.incarnation),
            ingest: node(3),
            push_token: PushToken([at; 32]),
            reason: String::new(),
            gentle: at.is_multiple_of(2),
        };
        let done = self.apply(|s, now| s.assign_origin(now, intent));
        match done {
            Ok(row) => assert!(!stale && row.epoch > epoch),
            Err(e) => assert!(e.reason != fanlight_proto::reason::Reason::Internal),
        }
    }

    fn join(&mut self, n: u8, viewer: u8, user: u8, request: Option<u8>) {
        let role = if viewer == 0 { ViewerRole::Controller } else { ViewerRole::Observer };
        let row = ViewerRow {
            name: viewer_name(n, viewer),
            user: format!("u{user}"),
            grants: ViewerGrants { role: role.into(), ..ViewerGrants::default() },
            role: Role::Observer,
            phase: ViewerPhase::Invited,
            reason: String::new(),
            kicked: false,
            edge: node(n % 3),
            epoch: self.epoch(n),
            jti: format!("j{}", self.now),
            join_until_us: self.now + us(Duration::from_secs(90)),
            create_us: self.now,
            connect_us: None,
            due_us: 0,
        };
        let answer = Bytes::from(row.jti.clone());
        let request = request.map(|r| (key(r + 20, n * 16 + viewer * 4 + user), answer));
        let first = self.apply(|s, now| {
            s.join_viewer(now, JoinViewer { row: row.clone(), request: request.clone() })
        });
        let Some((key, answer)) = request else { return };
        if let Ok(Once::Now(_)) = first {
            let again = self.apply(|s, now| {
                s.join_viewer(now, JoinViewer { row, request: Some((key, Bytes::new())) })
            });
            assert_eq!(again.unwrap(), Once::Answered(answer));
        }
    }

    fn link_node(&mut self, n: u8, incarnation: u64, floor: u64) {
        let known = self.state.node(&node(n)).map_or(0, |r| r.incarnation);
        let kind = if n == 3 { NodeKind::IngestWorker } else { NodeKind::Router };
        let hello = Hello { max_epoch_seen: floor, ..hello(&format!("n{n}"), incarnation) };
        let intent = LinkNode {
            id: node(n),
            kind,
            incarnation,
            hello: Arc::new(hello),
            replica: "c".to_owned(),
        };
        match self.apply(|s, now| s.link_node(now, intent)) {
            Ok(link) => {
                assert!(incarnation >= known);
                assert!(self.state.floor >= floor);
                self.links.insert(node(n), link);
            }
            Err(ControlError { reason, .. }) => {
                let refused = [
                    fanlight_proto::reason::Reason::StaleIncarnation,
                    fanlight_proto::reason::Reason::TableFull,
                ];
                assert!(refused.contains(&reason), "{reason}");
            }
        }
    }

    /// A link that was replaced changes nothing.
    fn stale_link(&mut self, n: u8, on: u8) {
        let mut link = self.link(n);
        link.epoch = link.epoch.saturating_sub(1);
        let before: Vec<StreamRow> = self.state.streams.values().map(|r| (**r).clone()).collect();
        let node_before = self.state.node(&link.node);
        let epoch = self.epoch(on);
        assert!(self.apply(|s, now| s.accept_origin(now, &link, &stream(on), epoch)).is_err());
        assert!(self.apply(|s, now| s.renew_node(now, &link, NodeLoad::default(), true)).is_err());
        assert!(self.apply(|s, now| s.unlink_node(now, &link, true)).is_err());
        let report = StreamReport {
            stream: stream(on).resource_name(),
            epoch,
            state: StreamState::Live.into(),
            reason: String::new(),
        };
        assert!(self.apply(|s, now| s.report_stream(now, &link, &report)).is_err());
        let after: Vec<StreamRow> = self.state.streams.values().map(|r| (**r).clone()).collect();
        assert_eq!(before, after);
        assert_eq!(node_before, self.state.node(&link.node));
    }
}

fn uuid_of(n: u8) -> Uuid {
    Uuid::from_u128(u128::from(n) + 1)
}

fn key(request: u8, body: u8) -> RequestKey {
    let keep = Duration::from_secs(30);
    RequestKey { id: uuid_of(request), fingerprint: [body; 32], keep }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_after_every_step(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
    }
}

#[test]
fn a_restarted_router_gets_its_streams_under_greater_epochs_and_keeps_the_secret() {
    let mut world = World::new();
    world.step(Step::Link { node: 0, incarnation: 1, floor: 0 });
    world.step(Step::Create { stream: 1, request: None, tenant: 0 });
    world.step(Step::Assign { stream: 1, node: 0, stale: false });
    world.step(Step::Accept { stream: 1, node: 0 });
    let before = world.state.stream(&stream(1)).unwrap();
    assert!(before.is_accepted());
    world.step(Step::Link { node: 0, incarnation: 2, floor: 0 });
    let after = world.state.stream(&stream(1)).unwrap();
    let (old, new) = (before.assigned.as_ref().unwrap(), after.assigned.as_ref().unwrap());
    assert!(new.epoch > old.epoch);
    assert_eq!((new.incarnation, &new.node, &new.push_token), (2, &old.node, &old.push_token));
    assert_eq!(after.state, StreamState::Moving);
    assert!(!after.is_accepted());
}

#[test]
fn an_epoch_is_above_what_any_node_saw() {
    let mut world = World::new();
    let floor = 2_900_000_000;
    world.step(Step::Link { node: 0, incarnation: 1, floor });
    world.step(Step::Create { stream: 1, request: None, tenant: 0 });
    world.step(Step::Assign { stream: 1, node: 0, stale: false });
    assert!(world.epoch(1) > floor);
}

/// A stream that is live on the first router and accepted by the second, moved gently or not.
fn moved(gentle: bool) -> World {
    let mut world = World::new();
    for n in [0, 1, 3] {
        world.step(Step::Link { node: n, incarnation: 1, floor: 0 });
    }
    world.step(Step::Create { stream: 1, request: None, tenant: 0 });
    world.step(Step::Assign { stream: 1, node: 1, stale: false });
    let live = StreamState::Live.into();
    world.step(Step::Report { stream: 1, node: 1, state: live });
    let intent = AssignOrigin {
        stream: stream(1),
        expect_epoch: world.epoch(1),
        node: node(0),
        incarnation: 1,
        ingest: node(3),
        push_token: PushToken([9; 32]),
        reason: String::new(),
        gentle,
    };
    world.apply(|s, now| s.assign_origin(now, intent)).unwrap();
    world
}

#[test]
fn a_gentle_move_keeps_both_origins_until_the_viewers_of_the_old_one_are_gone() {
    let mut world = moved(true);
    world.step(Step::Accept { stream: 1, node: 0 });
    let row = world.state.stream(&stream(1)).unwrap();
    assert_eq!((row.state, row.moved()), (StreamState::Moving, None), "nobody is sent there yet");
    assert!(row.leaving.as_ref().is_some_and(|l| l.push && l.from.node == node(1)));
    // It is told again that it has no picture: still moving.
    world.step(Step::Report { stream: 1, node: 0, state: StreamState::Assigned.into() });
    assert_eq!(world.state.stream(&stream(1)).unwrap().state, StreamState::Moving);
    world.step(Step::Report { stream: 1, node: 0, state: StreamState::Live.into() });
    let row = world.state.stream(&stream(1)).unwrap();
    assert_eq!(row.moved().map(|a| a.node.clone()), Some(node(0)));
    world.step(Step::Left { stream: 1, node: 1 });
    assert_eq!(world.state.stream(&stream(1)).unwrap().leaving, None);
}

#[test]
fn an_old_origin_ends_at_its_deadline_but_not_while_it_has_the_only_picture() {
    let mut world = moved(true);
    world.step(Step::Accept { stream: 1, node: 0 });
    world.step(Step::Wait(40_000_000));
    world.step(Step::Sweep);
    assert!(world.state.stream(&stream(1)).unwrap().leaving.is_some(), "the only picture");
    world.step(Step::Report { stream: 1, node: 0, state: StreamState::Live.into() });
    world.step(Step::Wait(31_000_000));
    world.step(Step::Sweep);
    assert_eq!(world.state.stream(&stream(1)).unwrap().leaving, None);
}

#[test]
fn a_move_that_is_refused_leaves_the_stream_live_where_it_was() {
    let mut world = moved(true);
    world.step(Step::Refuse { stream: 1, node: 0 });
    let row = world.state.stream(&stream(1)).unwrap();
    assert_eq!(row.state, StreamState::Live);
    assert!(row.is_accepted() && row.leaving.is_none());
    assert_eq!(row.accepted.as_ref().map(|a| a.node.clone()), Some(node(1)));
}

#[test]
fn an_origin_that_was_lost_is_not_pushed_to_and_still_learns_where_its_viewers_shall_go() {
    let mut world = moved(false);
    world.step(Step::Accept { stream: 1, node: 0 });
    let row = world.state.stream(&stream(1)).unwrap();
    assert!(row.leaving.as_ref().is_some_and(|l| !l.push));
    assert_eq!(row.state, StreamState::Assigned);
}
