//! One link of one node, from Hello to its end. Not the state it changes (the store's), nor the
//! table it stands in. Invariant: wants are levels. The session remembers what it told the node,
//! sends differences, and sends everything again when the node's digest says they disagree.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use fanlight_proto::{
    id::{NodeId, StreamId},
    node::v1::{
        Ack, Apply, Bar, Drain, Goodbye, Heartbeat, HeartbeatAck, Hello, Inventory, KeySet, Kick,
        LinkRequest, LinkResponse, Report, StreamReport, ViewerReport, Welcome,
        action::Action as Body, link_request::Body as Up, link_response::Body as Down,
        viewer_report, want::Role,
    },
    reason::Reason,
    types::v1::{NodeKind, NodeState, StreamState},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Code, Status, Streaming};

use super::{Job, Shared, action};
use crate::{
    clock::{duration, timestamp},
    error::{ControlError, bad_id},
    lease::node_state,
    metrics as m,
    store::{LinkId, LinkNode, reported_name, rows::NodeRow},
    want::{WantList, wants},
};

/// Time for the first message.
const HELLO: Duration = Duration::from_secs(5);
/// Applies that wait for their Ack; older ones are given up (a digest heals what they lost).
const MAX_UNACKED: usize = 256;
/// Actions that wait for their Ack; older ones are given up.
const MAX_ACTING: usize = 1024;
/// Token ids in one Bar.
const BARS_PER_ACTION: usize = 500;
/// Heartbeats in a row whose digest differs before everything is told again: a node starts and
/// stops work a little after it was told.
const MISMATCHES: u32 = 3;
/// Most heartbeats between two full Applies to a node that keeps disagreeing.
const MAX_MISMATCH_PAUSE: u32 = 60;

type Outbox = mpsc::Sender<Result<LinkResponse, Status>>;

/// Why a link ends.
enum End {
    /// The node said goodbye.
    Goodbye(Goodbye),
    /// The node's side ended or broke.
    Closed(String),
    /// We end it, with this status.
    Refused(Status),
}

impl From<ControlError> for End {
    fn from(e: ControlError) -> Self {
        Self::Refused(e.into())
    }
}

/// Serves a link to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    peer: NodeId,
    mut inbound: Streaming<LinkRequest>,
    outbox: Outbox,
) {
    let opened = tokio::select! {
        opened = open(&shared, &peer, &mut inbound, &outbox) => opened,
        () = shared.shutdown.triggered() => return,
    };
    let mut session = match opened {
        Ok(session) => session,
        Err(status) => {
            m::count_by(m::LINKS_REFUSED, "why", "hello");
            tracing::info!(node = %peer, why = status.message(), "a link is refused");
            // The node may be gone already.
            let _ = outbox.try_send(Err(status));
            return;
        }
    };
    let kind = session.kind_word();
    m::count_by(m::LINKS_OPENED, "kind", kind);
    let link = session.link.clone();
    tracing::info!(node = %peer, incarnation = link.incarnation, kind, "linked");
    let end = session.serve(&mut inbound).await;
    shared.links.leave(&peer, link.epoch);
    m::count_by(m::LINKS_CLOSED, "kind", kind);
    let goodbye = matches!(end, End::Goodbye(_));
    let why = match end {
        End::Goodbye(goodbye) => format!("goodbye: {}", goodbye.reason),
        End::Closed(why) => why,
        End::Refused(status) => {
            let why = status.message().to_owned();
            let _ = outbox.try_send(Err(status));
            why
        }
    };
    tracing::info!(node = %peer, why, "link ended");
    // Refused when a newer link took this one's place, which is as it should be.
    let _ = shared.store.unlink_node(link, goodbye).await;
}

/// Hello, Welcome, first wants.
async fn open(
    shared: &Arc<Shared>,
    peer: &NodeId,
    inbound: &mut Streaming<LinkRequest>,
    outbox: &Outbox,
) -> Result<Session, Status> {
    let first = timeout(HELLO, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello in time"))??;
    let Some(LinkRequest { seq, body: Some(Up::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    let intent = read_hello(shared, peer, hello)?;
    let (kind, hello) = (intent.kind, Arc::clone(&intent.hello));
    let link = shared.store.link_node(intent).await?;
    let ears = shared.links.enter(peer, link.epoch);
    let mut session = Session {
        shared: Arc::clone(shared),
        link,
        kind,
        outbox: outbox.clone(),
        seq: 0,
        heard_seq: seq,
        version: hello.want_version,
        told: WantList::default(),
        told_drain: None,
        unacked: VecDeque::new(),
        acting: HashMap::new(),
        mismatches: 0,
        mismatch_pause: MISMATCHES,
        ears: Some(ears),
    };
    let begun = session.begin(&hello).await;
    begun.map_err(|end| match end {
        End::Refused(status) => status,
        End::Goodbye(_) | End::Closed(_) => Status::unavailable("the link is gone"),
    })?;
    Ok(session)
}

fn read_hello(shared: &Shared, peer: &NodeId, hello: Hello) -> Result<LinkNode, ControlError> {
    let node = hello.node.clone().unwrap_or_default();
    let id = NodeId::from_resource_name(&node.node).map_err(bad_id("hello.node.node"))?;
    if id != *peer {
        let why = format!("the certificate names {peer}, Hello names {id}");
        return Err(ControlError::new(Reason::NodeIdentity, why));
    }
    if node.incarnation == 0 {
        return Err(ControlError::field("hello.node.incarnation", "must be set"));
    }
    let kind = hello.kind();
    if kind == NodeKind::Unspecified {
        return Err(ControlError::field("hello.kind", "must be ROUTER or INGEST_WORKER"));
    }
    Ok(LinkNode {
        id,
        kind,
        incarnation: node.incarnation,
        hello: Arc::new(hello),
        replica: shared.replica.clone(),
    })
}

/// An Apply on its way: its version and the streams whose origin the node becomes by it.
type Unacked = (u64, Vec<(StreamId, u64)>);

struct Session {
    shared: Arc<Shared>,
    link: LinkId,
    kind: NodeKind,
    outbox: Outbox,
    seq: u64,
    heard_seq: u64,
    /// Version of the last Apply; goes on from what the node holds.
    version: u64,
    told: WantList,
    /// End of the drain that the node was told of; `None`: of none.
    told_drain: Option<u64>,
    unacked: VecDeque<Unacked>,
    acting: HashMap<String, oneshot::Sender<Code>>,
    mismatches: u32,
    mismatch_pause: u32,
    ears: Option<super::Ears>,
}

impl Session {
    fn kind_word(&self) -> &'static str {
        match self.kind {
            NodeKind::Router => "router",
            _ => "ingest_worker",
        }
    }

    fn is_router(&self) -> bool {
        self.kind == NodeKind::Router
    }

    fn send(&mut self, body: Down) -> Result<(), End> {
        self.seq += 1;
        let message = LinkResponse { seq: self.seq, body: Some(body) };
        self.outbox
            .try_send(Ok(message))
            .map_err(|_| End::Closed("the node does not read what it is sent".to_owned()))
    }

    /// Everything that is said before the node speaks again.
    async fn begin(&mut self, hello: &Hello) -> Result<(), End> {
        let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let welcome = Welcome {
            heartbeat_interval: Some(duration(self.shared.timing.heartbeat)),
            lease: Some(duration(self.shared.timing.lease)),
            replica: self.shared.replica.clone(),
            link_epoch: self.link.epoch,
            resync: false,
            server_time: Some(timestamp(crate::clock::us(now))),
        };
        self.send(Down::Welcome(welcome))?;
        if self.is_router() {
            let jwks_json = self.shared.token.jwks_json();
            self.send(Down::KeySet(KeySet { jwks_json, expire_time: None }))?;
            self.send_bars(|_| true).await?;
            self.tell_drain().await?;
        }
        let list = self.read_wants().await?;
        if list.told_digest() == hello.want_digest {
            // It holds exactly this already, and an item it refused it would not hold.
            let origins = origins(&list);
            self.told = list;
            self.shared.store.agree_node(self.link.clone()).await?;
            return self.accept(origins, &[]).await;
        }
        self.apply(list, true)
    }

    /// An operator's drain, when it began, ended or has another deadline.
    async fn tell_drain(&mut self) -> Result<(), End> {
        let row = self.shared.store.node(self.link.node.clone()).await?;
        let drain_us = row.and_then(|row| row.drain_us);
        if drain_us == self.told_drain {
            return Ok(());
        }
        self.told_drain = drain_us;
        let drain = Drain { on: drain_us.is_some(), deadline: drain_us.map(timestamp) };
        self.send(Down::Action(action(Body::Drain(drain), self.shared.timing.lease)))
    }

    /// Wants changed: what is barred from a stream is told before the router becomes its origin, so
    /// that who was thrown out on one router does not come back on another.
    async fn rewant(&mut self) -> Result<(), End> {
        let list = self.read_wants().await?;
        if self.is_router() {
            self.tell_drain().await?;
            let (wants, _) = list.changes_since(&self.told);
            let changed: Vec<StreamId> =
                origins(&WantList { wants }).into_iter().map(|(s, _)| s).collect();
            if !changed.is_empty() {
                self.send_bars(|stream| changed.contains(stream)).await?;
            }
        }
        self.apply(list, false)
    }

    async fn send_bars(&mut self, of: impl Fn(&StreamId) -> bool) -> Result<(), End> {
        let all = self.shared.store.bars_of(self.link.node.clone()).await?;
        for (stream, bars) in all.into_iter().filter(|(stream, _)| of(stream)) {
            for ids in bars.token_ids.chunks(BARS_PER_ACTION) {
                let bar = Bar {
                    token_ids: ids.to_vec(),
                    stream: stream.resource_name(),
                    user: String::new(),
                    until: Some(timestamp(bars.until_us)),
                };
                self.send(Down::Action(action(Body::Bar(bar), self.shared.timing.lease)))?;
            }
        }
        Ok(())
    }

    async fn read_wants(&self) -> Result<WantList, End> {
        let view = self.shared.store.wants(self.link.node.clone()).await?;
        Ok(wants(&self.link.node, self.link.incarnation, &view))
    }

    /// Tells the node what it shall run: everything, or what changed.
    fn apply(&mut self, list: WantList, full: bool) -> Result<(), End> {
        let (wants, stops) = match full {
            true => (list.wants.clone(), Vec::new()),
            false => list.changes_since(&self.told),
        };
        if !full && wants.is_empty() && stops.is_empty() {
            return Ok(());
        }
        self.version += 1;
        if self.unacked.len() == MAX_UNACKED {
            self.unacked.pop_front();
        }
        self.unacked.push_back((self.version, origins(&WantList { wants: wants.clone() })));
        self.told = list;
        m::count_by(m::APPLIES, "form", if full { "full" } else { "partial" });
        self.send(Down::Apply(Apply { full, want_version: self.version, wants, stops }))
    }

    async fn serve(&mut self, inbound: &mut Streaming<LinkRequest>) -> End {
        let Some(mut ears) = self.ears.take() else {
            return End::Closed("served twice".to_owned());
        };
        let shared = Arc::clone(&self.shared);
        let mut silent_at = Instant::now() + shared.timing.lease;
        loop {
            let step = tokio::select! {
                message = inbound.message() => {
                    silent_at = Instant::now() + shared.timing.lease;
                    match message {
                        Ok(Some(message)) => self.hear(message).await,
                        Ok(None) => return End::Closed("closed by the node".to_owned()),
                        Err(status) => return End::Closed(status.message().to_owned()),
                    }
                }
                () = ears.nudge.notified() => self.rewant().await,
                Some(job) = ears.actions.recv() => self.act(job),
                () = ears.replaced.cancelled() => {
                    return End::Refused(Status::aborted("another link of this node took its place"));
                }
                () = sleep_until(silent_at) => {
                    return End::Refused(Status::deadline_exceeded("no heartbeat for a whole lease"));
                }
                () = shared.shutdown.triggered() => {
                    return End::Refused(Status::unavailable("the control API is stopping"));
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn hear(&mut self, message: LinkRequest) -> Result<(), End> {
        self.heard_seq = message.seq;
        let what = match message.body {
            Some(Up::Heartbeat(beat)) => {
                self.heartbeat(beat).await?;
                "heartbeat"
            }
            Some(Up::Ack(ack)) => {
                self.ack(ack).await?;
                "ack"
            }
            Some(Up::Report(report)) => {
                self.report(report).await?;
                "report"
            }
            Some(Up::Inventory(inventory)) => {
                self.inventory(inventory).await?;
                "inventory"
            }
            Some(Up::Goodbye(goodbye)) => return Err(End::Goodbye(goodbye)),
            Some(Up::Hello(_)) => {
                return Err(End::Refused(Status::invalid_argument("a second Hello")));
            }
            // Something of a later version: not ours to judge.
            None => "unknown",
        };
        m::count_by(m::LINK_MESSAGES, "what", what);
        Ok(())
    }

    async fn heartbeat(&mut self, beat: Heartbeat) -> Result<(), End> {
        let draining = beat.state() == NodeState::Draining;
        let load = beat.load.unwrap_or_default();
        self.shared.store.renew_node(self.link.clone(), load, draining).await?;
        self.send(Down::HeartbeatAck(HeartbeatAck {
            seq: self.heard_seq,
            want_version: self.version,
            nowhere_to_go: draining && !self.others_serve().await?,
        }))?;
        self.compare(&beat).await
    }

    /// Whether there is another router that takes work. Asked for draining nodes only.
    async fn others_serve(&self) -> Result<bool, End> {
        let routers = self.shared.store.routers().await?;
        let serves = |n: &NodeRow| node_state(n) == NodeState::Serving && n.id != self.link.node;
        Ok(routers.iter().any(|n| serves(n)))
    }

    /// Tells everything again when the node keeps running something else than it was told.
    async fn compare(&mut self, beat: &Heartbeat) -> Result<(), End> {
        if beat.run_digest == self.told.run_digest() && beat.want_version == self.version {
            self.mismatches = 0;
            self.mismatch_pause = MISMATCHES;
            self.shared.store.agree_node(self.link.clone()).await?;
            return Ok(());
        }
        m::count(m::MISMATCHES);
        self.mismatches += 1;
        if self.mismatches < self.mismatch_pause {
            return Ok(());
        }
        self.mismatches = 0;
        self.mismatch_pause = (self.mismatch_pause * 2).min(MAX_MISMATCH_PAUSE);
        let list = self.read_wants().await?;
        tracing::warn!(
            node = %self.link.node,
            told = self.version,
            holds = beat.want_version,
            "the node does not run what it was told; telling it everything again"
        );
        self.apply(list, true)
    }

    async fn ack(&mut self, ack: Ack) -> Result<(), End> {
        if !ack.action_id.is_empty() {
            if let Some(done) = self.acting.remove(&ack.action_id) {
                let code = ack.status.as_ref().map_or(0, |s| s.code);
                // Nobody may be waiting any more.
                let _ = done.send(Code::from_i32(code));
            }
            return Ok(());
        }
        if ack.want_version > self.version {
            return Err(End::Refused(Status::invalid_argument("acknowledges what was never told")));
        }
        let refused: Vec<(StreamId, u64, String)> = ack
            .refusals
            .iter()
            .filter_map(|r| {
                let stream = StreamId::from_resource_name(&r.stream).ok()?;
                let status = r.status.clone().unwrap_or_default();
                let why = if status.reason.is_empty() { status.message } else { status.reason };
                Some((stream, r.epoch, why))
            })
            .collect();
        let mut taken = Vec::new();
        while self.unacked.front().is_some_and(|(v, _)| *v <= ack.want_version) {
            taken.extend(self.unacked.pop_front().into_iter().flat_map(|(_, origins)| origins));
        }
        self.accept(taken, &refused).await?;
        self.refuse(refused).await?;
        self.shared.store.agree_node(self.link.clone()).await?;
        Ok(())
    }

    async fn accept(
        &self,
        taken: Vec<(StreamId, u64)>,
        refused: &[(StreamId, u64, String)],
    ) -> Result<(), End> {
        for (stream, epoch) in taken {
            if !refused.iter().any(|(s, e, _)| *s == stream && *e == epoch) {
                self.shared.store.accept_origin(self.link.clone(), stream, epoch).await?;
            }
        }
        Ok(())
    }

    async fn refuse(&self, refused: Vec<(StreamId, u64, String)>) -> Result<(), End> {
        for (stream, epoch, why) in refused {
            tracing::info!(node = %self.link.node, %stream, epoch, why, "a want is refused");
            let link = self.link.clone();
            if self.is_router() {
                self.shared.store.refuse_origin(link, stream, epoch, why).await?;
            } else {
                let report = StreamReport {
                    stream: stream.resource_name(),
                    epoch,
                    state: StreamState::Starved.into(),
                    reason: why,
                };
                self.shared.store.report_stream(link, report).await?;
            }
        }
        Ok(())
    }

    async fn report(&mut self, report: Report) -> Result<(), End> {
        if !report.devices.is_empty() {
            let link = self.link.clone();
            self.shared.store.report_devices(link, report.devices).await?;
        }
        for stream in report.streams {
            let link = self.link.clone();
            self.malformed_is_counted(self.shared.store.report_stream(link, stream).await)?;
        }
        for viewer in report.viewers {
            self.viewer(viewer).await?;
        }
        Ok(())
    }

    async fn viewer(&mut self, report: ViewerReport) -> Result<(), End> {
        let (viewer, link) = (report.viewer.clone(), self.link.clone());
        let again = self.shared.store.report_viewer(link, report).await;
        if self.malformed_is_counted(again)? == Some(true) {
            let kick = Kick { viewer, reason: Reason::ViewerBarred.as_str().to_owned() };
            self.send(Down::Action(action(Body::Kick(kick), self.shared.timing.lease)))?;
        }
        Ok(())
    }

    /// One malformed entry does not cost the node its link.
    fn malformed_is_counted<T>(&self, done: Result<T, ControlError>) -> Result<Option<T>, End> {
        match done {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.reason == Reason::InvalidArgument => {
                m::count_by(m::LINK_MESSAGES, "what", "malformed_entry");
                tracing::warn!(node = %self.link.node, error = %e, "an entry of a report is left out");
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Facts of a node whose reports may have been lost with the last link.
    async fn inventory(&mut self, inventory: Inventory) -> Result<(), End> {
        for running in inventory.running {
            let assignment = running.assignment.clone().unwrap_or_default();
            let state = StreamReport {
                stream: assignment.stream.clone(),
                epoch: assignment.epoch,
                state: running.state,
                reason: String::new(),
            };
            let link = self.link.clone();
            self.malformed_is_counted(self.shared.store.report_stream(link, state).await)?;
            for viewer in running.viewer_names {
                let known = match reported_name(&viewer, &assignment.stream) {
                    Ok(name) => self.shared.store.viewer(name).await?,
                    Err(_) => None,
                };
                if known.is_some_and(|v| !v.kicked && v.connect_us.is_some()) {
                    continue;
                }
                self.viewer(ViewerReport {
                    viewer,
                    kind: viewer_report::Kind::Connected.into(),
                    reason: String::new(),
                    time: None,
                    stream: assignment.stream.clone(),
                })
                .await?;
            }
        }
        Ok(())
    }

    fn act(&mut self, job: Job) -> Result<(), End> {
        self.acting.retain(|_, done| !done.is_closed());
        if self.acting.len() < MAX_ACTING {
            self.acting.insert(job.action.id.clone(), job.done);
        }
        self.send(Down::Action(job.action))
    }
}

fn origins(list: &WantList) -> Vec<(StreamId, u64)> {
    let origin = |w: &&fanlight_proto::node::v1::Want| matches!(w.role, Some(Role::Origin(_)));
    let named = |w: &fanlight_proto::node::v1::Want| {
        let a = w.assignment.as_ref()?;
        Some((StreamId::from_resource_name(&a.stream).ok()?, a.epoch))
    };
    list.wants.iter().filter(origin).filter_map(named).collect()
}
