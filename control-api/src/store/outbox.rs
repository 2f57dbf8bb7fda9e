//! Records of what happened, as they are kept for watchers, pullers and webhooks. Not how they are
//! written (`memory/outbox.rs`) nor how they look to callers (`service/events.rs`). Invariant: a
//! record is a value that never changes; positions strictly grow, so a position is also an id.

use std::sync::Arc;

use fanlight_proto::{
    id::{DeviceId, NodeId, StreamId, ViewerId, ViewerName},
    types::v1::StreamState,
};

use crate::clock::UnixUs;

/// Where a record stands. Greater than every one before it, not consecutive.
pub type Position = u64;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum RecordKind { $($(#[$doc])* $variant,)* }

        impl RecordKind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Type of the event, e.g. `fanlight.stream.live.v1`.
            pub const fn event_type(self) -> &'static str {
                match self { $(Self::$variant => concat!("fanlight.", $word, ".v1"),)* }
            }
        }
    };
}

kinds! {
    /// A stream was made.
    StreamCreated = "stream.created",
    /// It was given to a router.
    StreamAssigned = "stream.assigned",
    /// Its media flows.
    StreamLive = "stream.live",
    /// Another router is its origin now.
    StreamMoved = "stream.moved",
    /// No router takes it now.
    StreamStarved = "stream.starved",
    /// Something else of it changed.
    StreamUpdated = "stream.updated",
    /// It was ended.
    StreamDeleted = "stream.deleted",
    /// A viewer got a token.
    ViewerInvited = "viewer.invited",
    /// A viewer joined, or joined another router.
    ViewerConnected = "viewer.connected",
    /// A viewer left.
    ViewerGone = "viewer.gone",
    /// A viewer was thrown out.
    ViewerKicked = "viewer.kicked",
    /// An invitation ended unused.
    ViewerExpired = "viewer.expired",
    /// A node linked and is told what to run.
    NodeStarting = "node.starting",
    /// A node takes work.
    NodeServing = "node.serving",
    /// A node takes no new work.
    NodeDraining = "node.draining",
    /// A node is silent.
    NodeSuspect = "node.suspect",
    /// A node's lease ran out, or it said goodbye.
    NodeLost = "node.lost",
    /// A lost node without work was forgotten.
    NodeForgotten = "node.forgotten",
    /// A device can be captured.
    DeviceOnline = "device.online",
    /// A device cannot be captured any more.
    DeviceOffline = "device.offline",
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub position: Position,
    /// When it happened.
    pub at_us: UnixUs,
    /// What happened.
    pub kind: RecordKind,
    /// Tenant of the stream; empty for nodes and devices, and for streams without one.
    pub tenant: String,
    /// The stream.
    pub stream: Option<StreamId>,
    /// The viewer of that stream.
    pub viewer: Option<ViewerId>,
    /// The platform's id of the viewer's user; empty when unknown.
    pub user: String,
    /// The origin, the edge, the worker, or the node itself.
    pub node: Option<NodeId>,
    /// The device.
    pub device: Option<DeviceId>,
    /// Epoch of the stream.
    pub epoch: u64,
    /// State of the stream after it.
    pub state: Option<StreamState>,
    /// Why; empty when there is nothing to say.
    pub reason: String,
}

impl Record {
    /// A record about nothing yet.
    pub fn new(kind: RecordKind) -> Self {
        Self {
            position: 0,
            at_us: 0,
            kind,
            tenant: String::new(),
            stream: None,
            viewer: None,
            user: String::new(),
            node: None,
            device: None,
            epoch: 0,
            state: None,
            reason: String::new(),
        }
    }

    /// Name of the viewer it is about.
    pub fn viewer_name(&self) -> Option<ViewerName> {
        let (stream, viewer) = self.stream.clone().zip(self.viewer.clone())?;
        Some(ViewerName { stream, viewer })
    }

    /// Resource name of what it is about.
    pub fn subject(&self) -> String {
        if let Some(viewer) = self.viewer_name() {
            return viewer.to_string();
        }
        let stream = self.stream.as_ref().map(StreamId::resource_name);
        let device = || self.device.as_ref().map(DeviceId::resource_name);
        let node = || self.node.as_ref().map(NodeId::resource_name);
        stream.or_else(device).or_else(node).unwrap_or_default()
    }

    /// What is kept in order when records are worked on side by side: the stream, or the subject.
    pub fn order_key(&self) -> String {
        let stream = self.stream.as_ref().map(StreamId::resource_name);
        stream.unwrap_or_else(|| self.subject())
    }

    /// True when it is told to a caller that is confined to a tenant.
    pub fn is_of_tenant(&self, tenant: &str) -> bool {
        self.stream.is_some() && self.tenant == tenant
    }
}

/// Records after a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordPage {
    /// Oldest first.
    pub records: Vec<Arc<Record>>,
    /// Position of the newest record there is.
    pub head: Position,
}

impl RecordPage {
    /// Where to read on.
    pub fn next(&self) -> Option<Position> {
        self.records.last().map(|r| r.position)
    }
}

/// A claim to relay events to one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayClaim {
    /// Everything up to here was taken by the webhook, or is a dead letter.
    pub cursor: Position,
    /// Dead letters to send again.
    pub replays: Vec<Arc<Record>>,
}

/// What the holder of a claim did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayStep {
    /// The webhook.
    pub webhook: String,
    /// The replica that claims it.
    pub holder: String,
    /// New cursor; a lower one than the stored is ignored.
    pub cursor: Position,
    /// Records given up.
    pub dead: Vec<DeadRow>,
    /// Replays that are done, taken or dead again.
    pub replayed: Vec<Position>,
}

/// A record that a webhook did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadRow {
    /// The record.
    pub record: Arc<Record>,
    /// The last answer.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was given up.
    pub dead_us: UnixUs,
}

/// Dead letters of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetters {
    /// Oldest first.
    pub rows: Vec<DeadRow>,
    /// How many were dropped at the bound.
    pub dropped: u64,
}
