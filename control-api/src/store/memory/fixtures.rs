//! Rows for tests: a serving node, an accepted stream. Not used outside tests.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, sync::Arc};

use fanlight_proto::{
    id::NodeId,
    node::v1::Hello,
    types::v1::{NodeAddresses, NodeCapacity, NodeKind, NodeLoad, NodeRef, StreamState},
};

use crate::store::rows::{Assigned, NodeRow, PushToken, PushWord, StreamRow};

/// A node id.
pub(crate) fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// What a router says of itself.
pub(crate) fn hello(name: &str, incarnation: u64) -> Hello {
    Hello {
        node: Some(NodeRef { node: format!("nodes/{name}"), incarnation }),
        kind: NodeKind::Router.into(),
        addresses: Some(NodeAddresses {
            quic: vec!["127.0.0.1:4433".to_owned()],
            whep_base_url: format!("http://{name}:8080"),
            ..NodeAddresses::default()
        }),
        capacity: Some(NodeCapacity::default()),
        ..Hello::default()
    }
}

/// A router in the state SERVING whose lease ends far away.
pub(crate) fn node_row(name: &str, now: u64) -> NodeRow {
    NodeRow {
        id: id(name),
        kind: NodeKind::Router,
        incarnation: 1,
        hello: Arc::new(hello(name, 1)),
        load: NodeLoad::default(),
        link: Some(("control".to_owned(), 1)),
        agreed: true,
        draining: false,
        drain_us: None,
        suspect: false,
        lost: false,
        beat_us: now,
        lease_us: now + 3_600_000_000,
        placed_viewers: 0,
        placed_streams: 0,
        assignments: 0,
        devices: BTreeMap::new(),
    }
}

/// A stream that a router took.
pub(crate) fn stream_row(name: &str, router: &str, epoch: u64) -> StreamRow {
    let assigned =
        Assigned { epoch, node: id(router), incarnation: 1, push_token: PushToken([7; 32]) };
    StreamRow {
        id: name.parse().unwrap(),
        device: name.parse().unwrap(),
        spec: Arc::default(),
        state: StreamState::Assigned,
        reason: String::new(),
        ingest: Some(id("w1")),
        epoch,
        assigned: Some(assigned.clone()),
        accepted: Some(assigned),
        leaving: None,
        gentle: false,
        refused: Vec::new(),
        push: PushWord::Unknown,
        attempts: 0,
        due_us: 0,
        create_us: 0,
        update_us: 0,
        version: 1,
        viewers: 0,
    }
}
