//! The store of the control plane, as intents: what may be asked of it, never get/set. Not a
//! cache and not a lock. Invariant: each intent is atomic, takes its time from the store's own
//! clock, and is safe to repeat, so that a caller that saw a timeout may ask again.

pub mod memory;
pub mod outbox;
pub mod rows;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    control::v1::Stream,
    id::{DeviceId, NodeId, StreamId, ViewerId, ViewerName},
    node::v1::{DeviceStatus, Hello, StreamReport, ViewerReport},
    reason::Reason,
    types::v1::{NodeAddresses, NodeKind, NodeLoad, NodeState, StreamState},
};
use futures::future::BoxFuture;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::error::ControlError;
use outbox::{DeadLetters, Position, RecordPage, RelayClaim, RelayStep};
use rows::{NodeRow, PushToken, StreamRow, ViewerRow};

/// Answer of an intent.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, ControlError>>;

/// Something changed. A hint to look again, not a record: listeners that fall behind look at
/// everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stream was made, changed or deleted.
    Stream(StreamId),
    /// What a node shall run changed.
    Wants(NodeId),
    /// A node's state or its devices changed.
    Node(NodeId),
    /// A viewer was made, changed or forgotten.
    Viewer(ViewerName),
}

/// Identity of a mutation: repeated with the same id and body it gets the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The caller's `request_id`.
    pub id: Uuid,
    /// SHA-256 of method and body.
    pub fingerprint: [u8; 32],
    /// How long the answer is kept.
    pub keep: Duration,
}

/// What became of an intent that carries a [`RequestKey`].
#[derive(Clone, Debug, PartialEq)]
pub enum Once<T> {
    /// It was done now.
    Now(T),
    /// It was done before and its answer was not recorded yet: go on from here.
    Before(T),
    /// It was done before; this was the answer.
    Answered(Bytes),
}

/// A new stream.
#[derive(Clone, Debug)]
pub struct CreateStream {
    /// Its id.
    pub id: StreamId,
    /// Its device.
    pub device: DeviceId,
    /// What the caller asked for.
    pub spec: Arc<Stream>,
    /// Identity of the call.
    pub request: Option<RequestKey>,
}

/// Gives a stream to an origin router. Compare-and-set on the epoch.
#[derive(Clone, Debug)]
pub struct AssignOrigin {
    /// The stream.
    pub stream: StreamId,
    /// Refused with `STALE_EPOCH` when the stream's epoch is another.
    pub expect_epoch: u64,
    /// The router.
    pub node: NodeId,
    /// Refused with `STALE_INCARNATION` when the router lives another life now.
    pub incarnation: u64,
    /// The worker that has the device.
    pub ingest: NodeId,
    /// Secret of the push.
    pub push_token: PushToken,
    /// Why it is assigned; empty for the first time.
    pub reason: String,
    /// The accepted origin works and is left make-before-break: the worker pushes to it until its
    /// viewers have moved. Ignored unless the stream is live.
    pub gentle: bool,
}

/// Says that no router takes a stream now.
#[derive(Clone, Debug)]
pub struct StarveStream {
    /// The stream.
    pub stream: StreamId,
    /// Ignored when the stream's epoch is another.
    pub expect_epoch: u64,
    /// Why.
    pub reason: Reason,
    /// Look again after this.
    pub retry: Duration,
}

/// What of a stream a caller may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecField {
    /// All labels.
    Labels,
    /// All of the video settings.
    Video,
    /// All of the audio settings.
    Audio,
    /// All limits.
    Limits,
    /// The limit of viewers.
    MaxViewers,
    /// The limit of controllers.
    MaxControllers,
    /// The region it is wanted in; counts from the next placement on.
    PreferredRegion,
}

/// Changes what a caller may change of a stream.
#[derive(Clone, Debug)]
pub struct UpdateStream {
    /// The stream.
    pub id: StreamId,
    /// Refused with `ETAG_MISMATCH` when the row's version is another.
    pub version: Option<u64>,
    /// Where the new values are.
    pub spec: Arc<Stream>,
    /// Which of them are taken.
    pub fields: Vec<SpecField>,
    /// Identity of the call.
    pub request: Option<RequestKey>,
}

/// Ends a stream.
#[derive(Clone, Debug)]
pub struct DeleteStream {
    /// The stream.
    pub id: StreamId,
    /// Refused with `ETAG_MISMATCH` when the row's version is another.
    pub version: Option<u64>,
    /// No error when it is not there.
    pub allow_missing: bool,
    /// Identity of the call.
    pub request: Option<RequestKey>,
}

/// A new viewer, with the answer that its creator gets.
#[derive(Clone, Debug)]
pub struct JoinViewer {
    /// The row to insert.
    pub row: ViewerRow,
    /// Identity of the call and the encoded answer, recorded in the same step.
    pub request: Option<(RequestKey, Bytes)>,
}

/// Closes a viewer and bars what it could come back with.
#[derive(Clone, Debug)]
pub struct KickViewer {
    /// The viewer.
    pub name: ViewerName,
    /// Why, for people.
    pub reason: String,
    /// Bars the viewer's user from the stream for this long; zero: only the token is barred.
    pub ban: Duration,
    /// Identity of the call.
    pub request: Option<RequestKey>,
}

/// A node that links.
#[derive(Clone, Debug)]
pub struct LinkNode {
    /// Its id, as proved by its certificate.
    pub id: NodeId,
    /// What it is for.
    pub kind: NodeKind,
    /// Which life.
    pub incarnation: u64,
    /// What it says of itself.
    pub hello: Arc<Hello>,
    /// The replica that holds the link.
    pub replica: String,
}

/// Which link of which life of a node speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkId {
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: u64,
    /// Number of the link, from [`Store::link_node`].
    pub epoch: u64,
}

/// What is barred from a stream.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StreamBars {
    /// Token ids.
    pub token_ids: Vec<String>,
    /// The last of them ends then, microseconds since 1970.
    pub until_us: u64,
}

/// What a node shall run, with what is needed to say so.
#[derive(Clone, Debug, Default)]
pub struct WantView {
    /// Streams that name the node.
    pub rows: Vec<Arc<StreamRow>>,
    /// Addresses of the routers that those streams name.
    pub addresses: BTreeMap<NodeId, NodeAddresses>,
}

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceAt {
    /// A linked worker can capture it.
    Online(NodeId),
    /// Workers know it; none can capture it now. Why, as far as known.
    Offline(String),
    /// No worker ever named it.
    Unknown,
}

/// How many rows are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Streams.
    pub streams: BTreeMap<StreamState, usize>,
    /// Nodes.
    pub nodes: BTreeMap<NodeState, usize>,
}

/// One page of rows.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The rows, ordered by name.
    pub rows: Vec<T>,
    /// There are more after the last one.
    pub more: bool,
}

/// A viewer's name as a router writes it: in full, or bare beside the stream's name.
pub fn reported_name(viewer: &str, stream: &str) -> Result<ViewerName, ControlError> {
    if let Ok(name) = ViewerName::parse(viewer) {
        return Ok(name);
    }
    match (StreamId::from_resource_name(stream), ViewerId::parse(viewer)) {
        (Ok(stream), Ok(viewer)) => Ok(ViewerName { stream, viewer }),
        _ => Err(ControlError::field("viewers.viewer", "not a viewer's name")),
    }
}

/// The store. Chosen by URL; `memory://` is the only one so far, and the model of any other.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Inserts a stream. `STREAM_EXISTS`, `REQUEST_ID_REUSED`, `TABLE_FULL`.
    fn create_stream(&self, intent: CreateStream) -> Reply<'_, Once<Arc<StreamRow>>>;
    /// Gives a stream to a router under a new epoch.
    fn assign_origin(&self, intent: AssignOrigin) -> Reply<'_, Arc<StreamRow>>;
    /// The router took the stream at this epoch. Ignored when that is not its newest assignment.
    fn accept_origin(&self, link: LinkId, stream: StreamId, epoch: u64) -> Reply<'_, ()>;
    /// The router refused the stream at this epoch.
    fn refuse_origin(
        &self,
        link: LinkId,
        stream: StreamId,
        epoch: u64,
        reason: String,
    ) -> Reply<'_, ()>;
    /// No router takes the stream now.
    fn starve_stream(&self, intent: StarveStream) -> Reply<'_, ()>;
    /// Looks at the stream again after a while, without changing it.
    fn defer_stream(&self, stream: StreamId, after: Duration) -> Reply<'_, ()>;
    /// A node's word on a stream; ignored when its epoch is not the newest.
    fn report_stream(&self, link: LinkId, report: StreamReport) -> Reply<'_, ()>;
    /// Changes a stream. `STREAM_NOT_FOUND`, `ETAG_MISMATCH`, `REQUEST_ID_REUSED`.
    fn update_stream(&self, intent: UpdateStream) -> Reply<'_, Once<Arc<StreamRow>>>;
    /// Ends a stream and its viewers; answers how many viewers were closed.
    fn delete_stream(&self, intent: DeleteStream) -> Reply<'_, Once<u32>>;
    /// Reads a stream.
    fn stream(&self, id: StreamId) -> Reply<'_, Option<Arc<StreamRow>>>;
    /// Streams after a name.
    fn page_streams(
        &self,
        after: Option<StreamId>,
        limit: usize,
    ) -> Reply<'_, Page<Arc<StreamRow>>>;
    /// Streams to look at when a node changes: those that name it, those that show a device it has,
    /// and at most `limit` of those without an accepted origin.
    fn concerned(&self, node: NodeId, limit: usize) -> Reply<'_, Vec<StreamId>>;

    /// Inserts a viewer. `STREAM_NOT_FOUND`, `STALE_EPOCH` (place again), `VIEWER_EXISTS`,
    /// `STREAM_LIMIT`, `VIEWER_BARRED`, `REQUEST_ID_REUSED`, `TABLE_FULL`.
    fn join_viewer(&self, intent: JoinViewer) -> Reply<'_, Once<Arc<ViewerRow>>>;
    /// A router's word on a viewer. Answers true when that viewer must be closed again.
    fn report_viewer(&self, link: LinkId, report: ViewerReport) -> Reply<'_, bool>;
    /// Closes a viewer; with a ban, all viewers of the same user on the stream.
    fn kick_viewer(&self, intent: KickViewer) -> Reply<'_, Once<Vec<Arc<ViewerRow>>>>;
    /// Reads a viewer.
    fn viewer(&self, name: ViewerName) -> Reply<'_, Option<Arc<ViewerRow>>>;
    /// Viewers after a name, of one stream or of all.
    fn page_viewers(
        &self,
        stream: Option<StreamId>,
        after: Option<ViewerName>,
        limit: usize,
    ) -> Reply<'_, Page<Arc<ViewerRow>>>;
    /// Barred token ids of the streams a router carries.
    fn bars_of(&self, router: NodeId) -> Reply<'_, Vec<(StreamId, StreamBars)>>;

    /// A node links. `STALE_INCARNATION`, `TABLE_FULL`. A router that lives a new life gets its
    /// streams again under greater epochs.
    fn link_node(&self, intent: LinkNode) -> Reply<'_, LinkId>;
    /// Renews a node's lease. `STALE_INCARNATION` when another link took its place.
    fn renew_node(&self, link: LinkId, load: NodeLoad, draining: bool) -> Reply<'_, ()>;
    /// The node runs what it was told.
    fn agree_node(&self, link: LinkId) -> Reply<'_, ()>;
    /// The link ended; `goodbye`: for good, so its lease ends now.
    fn unlink_node(&self, link: LinkId, goodbye: bool) -> Reply<'_, ()>;
    /// A worker's devices changed.
    fn report_devices(&self, link: LinkId, devices: Vec<DeviceStatus>) -> Reply<'_, ()>;
    /// Takes a router out of use for so long at most for its viewers. `NODE_NOT_FOUND`.
    fn drain_node(&self, id: NodeId, deadline: Duration) -> Reply<'_, Arc<NodeRow>>;
    /// Undoes a drain. `NODE_NOT_FOUND`.
    fn undrain_node(&self, id: NodeId) -> Reply<'_, Arc<NodeRow>>;
    /// Reads a node.
    fn node(&self, id: NodeId) -> Reply<'_, Option<Arc<NodeRow>>>;
    /// Nodes after a name.
    fn page_nodes(&self, after: Option<NodeId>, limit: usize) -> Reply<'_, Page<Arc<NodeRow>>>;
    /// All routers.
    fn routers(&self) -> Reply<'_, Vec<Arc<NodeRow>>>;
    /// What a node shall run.
    fn wants(&self, node: NodeId) -> Reply<'_, WantView>;
    /// Which worker has a device.
    fn find_device(&self, device: DeviceId) -> Reply<'_, DeviceAt>;

    /// Records after a position, oldest first; zero: from the oldest that is kept. With a limit of
    /// zero only the head is answered. `POSITION_EXPIRED` when records after it are gone.
    fn read_events(&self, after: Position, limit: usize) -> Reply<'_, RecordPage>;
    /// Takes or renews a replica's right to relay events to a webhook; `None`: another has it.
    fn claim_relay(
        &self,
        webhook: String,
        holder: String,
        lease: Duration,
    ) -> Reply<'_, Option<RelayClaim>>;
    /// Stores how far a webhook is. False: the claim was lost, nothing is stored.
    fn advance_relay(&self, step: RelayStep) -> Reply<'_, bool>;
    /// What a webhook did not take.
    fn dead_letters(&self, webhook: String) -> Reply<'_, DeadLetters>;
    /// Sends dead letters again; none named: all. Answers how many.
    fn replay_dead(&self, webhook: String, positions: Vec<Position>) -> Reply<'_, u32>;

    /// Records the answer of a call; `None` forgets the call, so that it may be tried anew.
    fn finish_request(&self, key: RequestKey, answer: Option<Bytes>) -> Reply<'_, ()>;
    /// Reads the answer of a call that was done before. `REQUEST_ID_REUSED`.
    fn recall_request(&self, key: RequestKey) -> Reply<'_, Option<Bytes>>;
    /// Does what time asks for: leases, unused invitations, forgotten calls. Answers the streams
    /// that are due. Safe to run anywhere, any number of times.
    fn sweep(&self) -> Reply<'_, Vec<StreamId>>;
    /// How many streams and nodes are in which state.
    fn census(&self) -> Reply<'_, Census>;
    /// Changes from now on.
    fn subscribe(&self) -> broadcast::Receiver<Event>;
    /// The store's clock, microseconds since 1970.
    fn now_us(&self) -> u64;
}
