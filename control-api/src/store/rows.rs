//! The rows that the store keeps: streams, viewers, nodes. Not how they change (that is
//! `memory/`), nor how they look to callers (that is `service/`). Invariant: a row is a value;
//! whoever holds one holds a snapshot.

use std::{collections::BTreeMap, fmt, sync::Arc};

use fanlight_proto::{
    claims::Role,
    control::v1::Stream,
    id::{DeviceId, NodeId, StreamId, ViewerId, ViewerName},
    node::v1::Hello,
    types::v1::{NodeAddresses, NodeCapacity, NodeKind, NodeLoad, StreamState, ViewerGrants},
};

use crate::clock::UnixUs;

/// Secret that an ingest worker shows to the origin; the origin knows its SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct PushToken(pub [u8; 32]);

impl fmt::Debug for PushToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushToken(***)")
    }
}

/// One assignment of a stream to an origin router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Greater than every epoch handed out before.
    pub epoch: u64,
    /// The router.
    pub node: NodeId,
    /// The life of the router it was given to.
    pub incarnation: u64,
    /// Secret of the push into it.
    pub push_token: PushToken,
}

/// The origin that a stream is moving away from, or has just moved away from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The assignment that was accepted before the present one.
    pub from: Assigned,
    /// The worker goes on pushing to it: it worked when the move began.
    pub push: bool,
    /// It ends then, even if viewers are left on it.
    pub until_us: UnixUs,
}

/// What the ingest worker last said of its push to the accepted origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PushWord {
    /// Nothing yet under this epoch.
    #[default]
    Unknown,
    /// Frames arrive.
    Healthy,
    /// The origin cannot be reached or refuses.
    Broken,
}

/// A stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRow {
    /// Its id.
    pub id: StreamId,
    /// The device it shows.
    pub device: DeviceId,
    /// What the caller asked for; output-only fields are empty.
    pub spec: Arc<Stream>,
    /// Where it is in its life.
    pub state: StreamState,
    /// Why, as a machine word; empty when all is well.
    pub reason: String,
    /// The ingest worker that has the device.
    pub ingest: Option<NodeId>,
    /// Greatest epoch ever given to it; zero before the first.
    pub epoch: u64,
    /// The newest assignment; what the origin router is told.
    pub assigned: Option<Assigned>,
    /// The newest assignment that its router took; what the ingest worker is told. It stays the old
    /// one while a move is under way, so that the device's capture never stops for a move.
    pub accepted: Option<Assigned>,
    /// The one accepted before that, while its viewers have not all moved.
    pub leaving: Option<Leaving>,
    /// The newest assignment was made while the accepted origin works: it is left gently.
    pub gentle: bool,
    /// Routers that refused it since the last acceptance.
    pub refused: Vec<NodeId>,
    /// What the worker says of its push.
    pub push: PushWord,
    /// Placements that failed in a row; sets the back-off.
    pub attempts: u32,
    /// When it is looked at again; zero: not by time.
    pub due_us: UnixUs,
    /// When it was made.
    pub create_us: UnixUs,
    /// When it last changed.
    pub update_us: UnixUs,
    /// Grows with each change; the etag.
    pub version: u64,
    /// Viewers connected now.
    pub viewers: u32,
}

impl StreamRow {
    /// True when the newest assignment was taken by its router.
    pub fn is_accepted(&self) -> bool {
        self.assigned.is_some() && self.assigned == self.accepted
    }

    /// Nodes that run, or shall run, a part of it.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        let origins = self.assigned.iter().chain(&self.accepted).map(|a| &a.node);
        let leaving = self.leaving.iter().map(|l| &l.from.node);
        origins.chain(leaving).chain(&self.ingest)
    }

    /// Where the viewers of the origin that is being left shall go: to the accepted one, once that
    /// has a picture.
    pub fn moved(&self) -> Option<&Assigned> {
        let live = self.leaving.is_some() && self.state == StreamState::Live;
        self.accepted.as_ref().filter(|_| live)
    }
}

/// Why a viewer is gone whose router was restarted: it did not leave, and may come back.
pub const GONE_RESTARTED: &str = "the router was restarted";

/// Where a viewer is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewerPhase {
    /// Has a token, did not join.
    Invited,
    /// Watches.
    Connected,
    /// Left, failed, or was kicked.
    Gone,
}

/// A viewer of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewerRow {
    /// Its full name.
    pub name: ViewerName,
    /// The platform's user id; may be empty.
    pub user: String,
    /// What it may do.
    pub grants: ViewerGrants,
    /// The same as a claim.
    pub role: Role,
    /// Where it is in its life.
    pub phase: ViewerPhase,
    /// Why it is gone; empty otherwise.
    pub reason: String,
    /// True after a kick: it does not come back.
    pub kicked: bool,
    /// The router it was placed on, or joined.
    pub edge: NodeId,
    /// Epoch of the stream when it was placed.
    pub epoch: u64,
    /// Id of its join token; empty when the token was not minted for this row.
    pub jti: String,
    /// The token may be used until then (leeway included).
    pub join_until_us: UnixUs,
    /// When it was made.
    pub create_us: UnixUs,
    /// When it joined.
    pub connect_us: Option<UnixUs>,
    /// When it is looked at by time: an unused invitation ends, a gone viewer is forgotten.
    pub due_us: UnixUs,
}

/// One device as an ingest worker described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// It can be captured now.
    pub online: bool,
    /// Why not.
    pub reason: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    /// Its id.
    pub id: NodeId,
    /// What it is for.
    pub kind: NodeKind,
    /// Which life of its process.
    pub incarnation: u64,
    /// What it said of itself when it linked.
    pub hello: Arc<Hello>,
    /// Its last load.
    pub load: NodeLoad,
    /// Replica and number of its link; `None` while it is not linked.
    pub link: Option<(String, u64)>,
    /// It runs what it was told (first acknowledged Apply or equal digest).
    pub agreed: bool,
    /// It asked, or was asked, to take no new work.
    pub draining: bool,
    /// An operator drains it: viewers may stay until then. Outlives the node's process.
    pub drain_us: Option<UnixUs>,
    /// No heartbeat came for a while, or its link broke; the lease still runs.
    pub suspect: bool,
    /// Its lease ran out, or it said goodbye; ends with the next link or heartbeat.
    pub lost: bool,
    /// Last heartbeat.
    pub beat_us: UnixUs,
    /// The lease ends then.
    pub lease_us: UnixUs,
    /// Viewers placed on it since its last heartbeat.
    pub placed_viewers: u32,
    /// Streams placed on it since its last heartbeat.
    pub placed_streams: u32,
    /// Streams that name it as origin or as ingest.
    pub assignments: u32,
    /// Devices of an ingest worker.
    pub devices: BTreeMap<DeviceId, DeviceInfo>,
}

/// Viewer and stream, for indexes.
pub(crate) type ViewerKey = (StreamId, ViewerId);

impl NodeRow {
    /// How it is reached.
    pub fn addresses(&self) -> NodeAddresses {
        self.hello.addresses.clone().unwrap_or_default()
    }

    /// What it can carry.
    pub fn capacity(&self) -> NodeCapacity {
        self.hello.capacity.unwrap_or_default()
    }

    /// True for routers.
    pub fn is_router(&self) -> bool {
        self.kind == NodeKind::Router
    }
}
