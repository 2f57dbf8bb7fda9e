//! Rows to messages. Pure. Invariant: no secret of a row (push tokens) and no join token ever
//! stands in what this makes.

use fanlight_proto::{
    control::v1::{Node, Stream, Viewer, ViewerState},
    id::{NodeId, ViewerName},
    types::v1::{Assignment, NodeRef},
};

use crate::{
    clock::timestamp,
    lease::node_state,
    store::rows::{NodeRow, StreamRow, ViewerPhase, ViewerRow},
};

/// A stream as callers see it.
pub(crate) fn stream(row: &StreamRow) -> Stream {
    let mut out = Stream::clone(&row.spec);
    out.name = row.id.resource_name();
    out.device = row.device.resource_name();
    out.state = row.state.into();
    out.assignment = row.assigned.as_ref().map(|a| Assignment {
        stream: row.id.resource_name(),
        epoch: a.epoch,
        origin: Some(NodeRef { node: a.node.resource_name(), incarnation: a.incarnation }),
    });
    out.ingest_node = row.ingest.as_ref().map(NodeId::resource_name).unwrap_or_default();
    out.viewer_count = row.viewers;
    out.create_time = Some(timestamp(row.create_us));
    out.update_time = Some(timestamp(row.update_us));
    out.etag = etag(row);
    out.reason.clone_from(&row.reason);
    out
}

/// The etag of a row.
pub(crate) fn etag(row: &StreamRow) -> String {
    format!("v{}", row.version)
}

/// Reads an etag.
pub(crate) fn version(etag: &str) -> Option<u64> {
    etag.strip_prefix('v')?.parse().ok()
}

/// A viewer as callers see it.
pub(crate) fn viewer(row: &ViewerRow) -> Viewer {
    let state = match row.phase {
        ViewerPhase::Invited => ViewerState::Invited,
        ViewerPhase::Connected => ViewerState::Connected,
        ViewerPhase::Gone => ViewerState::Gone,
    };
    Viewer {
        name: ViewerName::to_string(&row.name),
        user: row.user.clone(),
        grants: Some(row.grants),
        state: state.into(),
        edge_node: row.edge.resource_name(),
        epoch: row.epoch,
        create_time: Some(timestamp(row.create_us)),
        connect_time: row.connect_us.map(timestamp),
        client_region: String::new(),
        stats: None,
    }
}

/// A node as callers see it.
pub(crate) fn node(row: &NodeRow) -> Node {
    let online = row.devices.iter().filter(|(_, d)| d.online);
    Node {
        name: row.id.resource_name(),
        kind: row.kind.into(),
        state: node_state(row).into(),
        incarnation: row.incarnation,
        region: row.hello.region.clone(),
        zone: row.hello.zone.clone(),
        version: row.hello.version.clone(),
        labels: row.hello.labels.clone(),
        addresses: Some(row.addresses()),
        capacity: Some(row.capacity()),
        load: Some(row.load),
        last_heartbeat_time: Some(timestamp(row.beat_us)),
        lease_expire_time: Some(timestamp(row.lease_us)),
        linked_replica: row.link.as_ref().map(|(r, _)| r.clone()).unwrap_or_default(),
        assignments: row.assignments,
        devices: online.map(|(id, _)| id.resource_name()).collect(),
        drain_deadline_time: row.drain_us.map(timestamp),
    }
}
