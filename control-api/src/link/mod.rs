//! NodeLink, the control side: takes links of nodes, keeps a table of those that are up, and hands
//! them nudges and actions. Not what is said on one link (`session.rs`). Invariant: a link is of
//! the node that the client certificate names, and of a node's links only the newest is served.

mod session;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fanlight_ops::shutdown::Shutdown;
use fanlight_proto::{
    id::NodeId,
    node::v1::{
        Action, LinkRequest, LinkResponse, action::Action as Body,
        node_link_service_server::NodeLinkService,
    },
    reason::Reason,
};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::{
    error::ControlError, incoming::Peer, lease::Timing, metrics as m, store::Store, token::TokenKey,
};

/// Largest message taken from a node: an inventory part of 500 streams with their viewers.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Messages that may wait for a node to read them. A node that far behind is cut off; its next
/// Hello says what it holds.
const OUTBOX: usize = 256;
/// Actions that may wait for the session to send them.
const ACTIONS: usize = 256;

/// Links that are up, by node.
#[derive(Debug, Default)]
pub struct Links {
    table: Mutex<HashMap<NodeId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    epoch: u64,
    nudge: Arc<Notify>,
    actions: mpsc::Sender<Job>,
    replaced: CancellationToken,
}

/// An action and who waits for its acknowledgement.
#[derive(Debug)]
pub(crate) struct Job {
    action: Action,
    done: oneshot::Sender<Code>,
}

/// The receiving ends of an entry.
#[derive(Debug)]
struct Ears {
    nudge: Arc<Notify>,
    actions: mpsc::Receiver<Job>,
    replaced: CancellationToken,
}

impl Links {
    /// What a node shall run may have changed.
    pub fn nudge(&self, node: &NodeId) {
        if let Some(entry) = self.table.lock().get(node) {
            entry.nudge.notify_one();
        }
    }

    /// As [`Self::nudge`], for every node.
    pub fn nudge_all(&self) {
        for entry in self.table.lock().values() {
            entry.nudge.notify_one();
        }
    }

    /// Sends a one-off command and waits for its acknowledgement, at most this long. Answers what
    /// the node said; `None`: not linked here, or no answer yet.
    pub async fn act(&self, node: &NodeId, body: Body, wait: Duration) -> Option<Code> {
        let actions = self.table.lock().get(node).map(|e| e.actions.clone())?;
        let (done, acked) = oneshot::channel();
        actions.try_send(Job { action: action(body, wait), done }).ok()?;
        tokio::time::timeout(wait, acked).await.ok()?.ok()
    }

    /// Nodes that are linked.
    pub fn count(&self) -> usize {
        self.table.lock().len()
    }

    fn enter(&self, node: &NodeId, epoch: u64) -> Ears {
        let (tx, actions) = mpsc::channel(ACTIONS);
        let (nudge, replaced) = (Arc::new(Notify::new()), CancellationToken::new());
        let entry =
            Entry { epoch, nudge: Arc::clone(&nudge), actions: tx, replaced: replaced.clone() };
        if let Some(old) = self.table.lock().insert(node.clone(), entry) {
            old.replaced.cancel();
        }
        Ears { nudge, actions, replaced }
    }

    fn leave(&self, node: &NodeId, epoch: u64) {
        let mut table = self.table.lock();
        if table.get(node).is_some_and(|e| e.epoch == epoch) {
            table.remove(node);
        }
    }
}

/// An action with a fresh id; after `valid` the node need not do it any more.
pub(crate) fn action(body: Body, valid: Duration) -> Action {
    let deadline = SystemTime::now() + valid.max(Duration::from_secs(1));
    Action { id: Uuid::new_v4().to_string(), deadline: Some(deadline.into()), action: Some(body) }
}

/// What sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) links: Arc<Links>,
    pub(crate) token: Arc<TokenKey>,
    pub(crate) timing: Timing,
    pub(crate) replica: String,
    pub(crate) shutdown: Shutdown,
}

/// The gRPC service.
#[derive(Debug)]
pub(crate) struct LinkServer {
    shared: Arc<Shared>,
}

impl LinkServer {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }
}

#[tonic::async_trait]
impl NodeLinkService for LinkServer {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<LinkResponse, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|p| p.node.clone());
        let Some(peer) = peer else {
            m::count_by(m::LINKS_REFUSED, "why", "no_certificate");
            let why = "the connection shows no node certificate";
            return Err(ControlError::new(Reason::NodeIdentity, why).into());
        };
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let session =
            session::run(Arc::clone(&self.shared), peer.clone(), request.into_inner(), outbox);
        self.shared.shutdown.spawn(format!("link of {peer}"), session);
        // The answer begins at once; a Hello that is refused ends it with the status.
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}
