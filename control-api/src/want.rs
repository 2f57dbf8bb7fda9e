//! Stream rows to wants: what one node shall run. Pure. Not the sending of it (`link.rs`).
//! Invariant: the ingest worker is told of an origin only after that origin took the stream, and
//! of exactly one, and while the stream moves of the one before it; wants come out in the order of
//! their streams, one per stream.

use std::collections::BTreeMap;

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use fanlight_ops::link::digest::{expected_run_digest, want_digest};
use fanlight_proto::{
    id::NodeId,
    node::v1::{IngestRole, MovedTo, OriginRole, Stop, Want, want::Role},
    types::v1::{Assignment, NodeRef},
};

use crate::{
    http::whep_url,
    store::{
        WantView,
        rows::{Assigned, StreamRow},
    },
};

/// Relays one origin may feed; no relays are made yet.
const MAX_RELAYS: u32 = 0;

/// What a node shall run, and the digests both ends compare.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WantList {
    /// Ordered by stream.
    pub wants: Vec<Want>,
}

impl WantList {
    /// Digest of the wants as they are told; a node that holds them reports it in Hello.
    pub fn told_digest(&self) -> u64 {
        want_digest(&self.wants)
    }

    /// Digest of a node that runs them all.
    pub fn run_digest(&self) -> u64 {
        expected_run_digest(&self.wants)
    }

    /// What to say to a node that was told `old`: changed wants and stops.
    pub fn changes_since<'a>(&'a self, old: &'a Self) -> (Vec<Want>, Vec<Stop>) {
        let by_stream = |list: &'a Self| -> BTreeMap<&'a str, &'a Want> {
            list.wants.iter().map(|w| (stream_of(w), w)).collect()
        };
        let (before, after) = (by_stream(old), by_stream(self));
        let same = |w: &&Want| before.get(stream_of(w)) == Some(w);
        let changed = self.wants.iter().filter(|w| !same(w)).cloned().collect();
        let gone = old.wants.iter().filter(|w| !after.contains_key(stream_of(w)));
        let stops = gone.map(|w| Stop {
            stream: stream_of(w).to_owned(),
            epoch: w.assignment.as_ref().map_or(0, |a| a.epoch),
            reason: String::new(),
        });
        (changed, stops.collect())
    }
}

fn stream_of(want: &Want) -> &str {
    want.assignment.as_ref().map_or("", |a| &a.stream)
}

/// What a node shall run, in this life of it.
pub fn wants(node: &NodeId, incarnation: u64, view: &WantView) -> WantList {
    let mine = |a: &&Assigned| a.node == *node && a.incarnation == incarnation;
    let want = |row: &StreamRow| {
        // While a move is under way the old origin keeps what it has.
        let left = row.leaving.iter().map(|l| &l.from);
        let origin = row.assigned.iter().chain(&row.accepted).chain(left).find(mine);
        let ingest = || row.accepted.as_ref().filter(|_| row.ingest.as_ref() == Some(node));
        match origin {
            Some(a) => Some(as_want(row, a, Role::Origin(origin_role(row, a, view)))),
            None => ingest().map(|a| as_want(row, a, Role::Ingest(ingest_role(row, a, view)))),
        }
    };
    WantList { wants: view.rows.iter().filter_map(|row| want(row)).collect() }
}

fn as_want(row: &StreamRow, a: &Assigned, role: Role) -> Want {
    let origin = NodeRef { node: a.node.resource_name(), incarnation: a.incarnation };
    let assignment =
        Assignment { stream: row.id.resource_name(), epoch: a.epoch, origin: Some(origin) };
    Want { assignment: Some(assignment), role: Some(role) }
}

fn origin_role(row: &StreamRow, a: &Assigned, view: &WantView) -> OriginRole {
    let moved = row.moved().filter(|to| *to != a).and_then(|to| {
        let addresses = view.addresses.get(&to.node)?;
        let whep_url = whep_url(&addresses.whep_base_url, &row.id)?;
        Some(MovedTo { whep_url, ticket_key: ticket_key(to) })
    });
    OriginRole {
        ingest_node: row.ingest.as_ref().map(NodeId::resource_name).unwrap_or_default(),
        push_token_sha256: digest(&SHA256, &a.push_token.0).as_ref().to_vec(),
        max_relays: MAX_RELAYS,
        control_epoch: 0,
        controller_viewer: String::new(),
        ticket_key: ticket_key(a),
        moved,
    }
}

/// Key of the tickets that the router of an assignment takes. Made of the assignment's secret, so
/// that it needs no store of its own and ends with the assignment.
pub(crate) fn ticket_key(a: &Assigned) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &a.push_token.0);
    hmac::sign(&key, b"fanlight viewer ticket").as_ref().to_vec()
}

fn ingest_role(row: &StreamRow, a: &Assigned, view: &WantView) -> IngestRole {
    let video = row.spec.video.clone().unwrap_or_default();
    let left = row.leaving.as_ref().filter(|l| l.push).map(|l| &l.from);
    let also = left.and_then(|from| view.addresses.get(&from.node).cloned());
    let left = left.filter(|_| also.is_some());
    IngestRole {
        device: row.device.resource_name(),
        origin: view.addresses.get(&a.node).cloned(),
        target_bitrate_bps: video.target_bitrate_bps,
        max_bitrate_bps: video.max_bitrate_bps,
        max_fps: video.max_fps,
        audio: row.spec.audio.is_some_and(|audio| audio.enabled),
        also,
        push_token: a.push_token.0.to_vec(),
        also_epoch: left.map_or(0, |l| l.epoch),
        also_origin: left
            .map(|l| NodeRef { node: l.node.resource_name(), incarnation: l.incarnation }),
        also_push_token: left.map(|l| l.push_token.0.to_vec()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{
        memory::fixtures::{id, stream_row},
        rows::{Leaving, PushToken},
    };
    use fanlight_proto::types::v1::{NodeAddresses, StreamState};

    fn view(rows: Vec<StreamRow>) -> WantView {
        let addresses = [(id("r1"), NodeAddresses::default())];
        WantView { rows: rows.into_iter().map(Arc::new).collect(), addresses: addresses.into() }
    }

    #[test]
    fn origin_and_ingest_agree_on_epoch_and_secret() {
        let view = view(vec![stream_row("s", "r1", 7)]);
        let at_router = wants(&id("r1"), 1, &view).wants;
        let at_worker = wants(&id("w1"), 1, &view).wants;
        assert_eq!(at_router[0].assignment, at_worker[0].assignment);
        let (Some(Role::Origin(origin)), Some(Role::Ingest(ingest))) =
            (&at_router[0].role, &at_worker[0].role)
        else {
            panic!("{at_router:?} {at_worker:?}");
        };
        assert_eq!(origin.push_token_sha256, digest(&SHA256, &ingest.push_token).as_ref());
        assert_eq!(ingest.device, "devices/s");
        assert!(ingest.origin.is_some());
    }

    #[test]
    fn the_worker_keeps_the_old_origin_until_the_new_one_took_it() {
        let mut row = stream_row("s", "r1", 7);
        let next =
            Assigned { epoch: 8, node: id("r2"), incarnation: 1, push_token: PushToken([8; 32]) };
        row.assigned = Some(next);
        let view = view(vec![row]);
        let epoch =
            |node: &str| wants(&id(node), 1, &view).wants[0].assignment.as_ref().map(|a| a.epoch);
        assert_eq!((epoch("w1"), epoch("r1"), epoch("r2")), (Some(7), Some(7), Some(8)));
    }

    #[test]
    fn a_router_that_is_left_keeps_its_push_and_hears_where_to_only_when_that_is_live() {
        let mut row = stream_row("s", "r2", 8);
        let from = Assigned { epoch: 7, node: id("r1"), ..row.assigned.clone().unwrap() };
        row.leaving = Some(Leaving { from, push: true, until_us: 1 });
        row.state = StreamState::Moving;
        let view_of = |row: &StreamRow| {
            let address = |base: &str| NodeAddresses {
                whep_base_url: base.to_owned(),
                ..NodeAddresses::default()
            };
            let addresses = [(id("r1"), address("http://one")), (id("r2"), address("http://two/"))];
            WantView { rows: vec![Arc::new(row.clone())], addresses: addresses.into() }
        };
        let origin = |row: &StreamRow, node: &str| {
            let list = wants(&id(node), 1, &view_of(row)).wants;
            match &list[0].role {
                Some(Role::Origin(o)) => (list[0].assignment.as_ref().unwrap().epoch, o.clone()),
                other => panic!("{other:?}"),
            }
        };
        let ingest = |row: &StreamRow| match &wants(&id("w1"), 1, &view_of(row)).wants[0].role {
            Some(Role::Ingest(i)) => i.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((origin(&row, "r1").0, origin(&row, "r1").1.moved), (7, None));
        let told = ingest(&row);
        assert_eq!((told.also_epoch, told.also_push_token.len()), (7, 32));
        assert_eq!(told.also.unwrap().whep_base_url, "http://one");
        row.state = StreamState::Live;
        let moved = origin(&row, "r1").1.moved.unwrap();
        assert_eq!(moved.whep_url, "http://two/whep/s");
        assert_eq!(moved.ticket_key, origin(&row, "r2").1.ticket_key);
        assert_ne!(moved.ticket_key, [7; 32], "not the secret itself");
        assert_eq!(origin(&row, "r2").1.moved, None);
        // One that was lost is not pushed to, but hears where its viewers shall go.
        row.leaving.as_mut().unwrap().push = false;
        assert!(origin(&row, "r1").1.moved.is_some());
        assert_eq!((ingest(&row).also, ingest(&row).also_epoch), (None, 0));
    }

    #[test]
    fn an_older_life_of_a_router_is_owed_nothing() {
        assert!(wants(&id("r1"), 2, &view(vec![stream_row("s", "r1", 7)])).wants.is_empty());
    }

    #[test]
    fn changes_are_what_differs() {
        let old = wants(
            &id("r1"),
            1,
            &view(vec![
                stream_row("a", "r1", 1),
                stream_row("b", "r1", 2),
                stream_row("c", "r1", 3),
            ]),
        );
        let new =
            wants(&id("r1"), 1, &view(vec![stream_row("b", "r1", 2), stream_row("c", "r1", 4)]));
        let (changed, stops) = new.changes_since(&old);
        assert_eq!(changed.iter().map(stream_of).collect::<Vec<_>>(), ["streams/c"]);
        assert_eq!(
            stops.iter().map(|s| (s.stream.as_str(), s.epoch)).collect::<Vec<_>>(),
            [("streams/a", 1)]
        );
        assert_ne!(new.run_digest(), old.run_digest());
        assert_eq!(new.changes_since(&new), (vec![], vec![]));
    }
}
