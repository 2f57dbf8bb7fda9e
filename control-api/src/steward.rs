//! The steward: the one that places streams, and places them again when the table in `witness.rs`
//! says so. Not a leader: its every write is a compare-and-set, so that several replicas may each
//! run one. Invariant: it decides from rows, never from what it remembers; an event only tells it
//! where to look.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    id::{NodeId, StreamId},
    reason::Reason,
    types::v1::{NodeState, StreamState},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::ControlError,
    lease::place_backoff,
    metrics as m, place,
    store::{
        AssignOrigin, CreateStream, DeleteStream, DeviceAt, Event, Once, RequestKey, StarveStream,
        Store,
        rows::{NodeRow, PushToken, PushWord, StreamRow},
    },
    witness::{Verdict, verdict},
};

/// How often time is looked at. A lease of 8 s is found out at most this late.
const SWEEP: Duration = Duration::from_millis(250);
/// How often rows are counted for the gauges; the count walks all rows.
const CENSUS: Duration = Duration::from_secs(5);
/// States a stored stream can be in.
const STREAM_STATES: [StreamState; 5] = [
    StreamState::Pending,
    StreamState::Assigned,
    StreamState::Live,
    StreamState::Moving,
    StreamState::Starved,
];
/// States a node can be in.
const NODE_STATES: [NodeState; 5] = [
    NodeState::Starting,
    NodeState::Serving,
    NodeState::Draining,
    NodeState::Suspect,
    NodeState::Lost,
];
/// Candidates tried in a row before a stream waits.
const MAX_CANDIDATES: usize = 3;
/// Streams without an origin that are looked at when the fleet changes.
const UNPLACED_BATCH: usize = 1000;
/// Streams read at a time when everything is looked at.
const PAGE: usize = 1000;
/// Kept of a caller's time for the answer to travel.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// When a caller without capacity may try again.
const RETRY: Duration = Duration::from_secs(1);

/// Places streams.
#[derive(Debug)]
pub struct Steward {
    store: Arc<dyn Store>,
    replicas: u32,
}

/// What became of a creation.
#[derive(Debug)]
pub enum Created {
    /// The stream as it is now.
    Row(Arc<StreamRow>),
    /// The answer this call got before.
    Answered(Bytes),
}

impl Steward {
    /// Works on a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, replicas: 1 }
    }

    /// Works until the end.
    pub async fn run(&self, end: CancellationToken) {
        let mut events = self.store.subscribe();
        let mut sweeps = interval(SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut censuses = interval(CENSUS);
        censuses.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.judge_all().await;
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => self.hear(event).await,
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "events were missed; looking at every stream");
                        self.judge_all().await;
                    }
                    Err(RecvError::Closed) => return,
                },
                _ = sweeps.tick() => match self.store.sweep().await {
                    Ok(due) => for stream in due {
                        self.judge(&stream, true).await;
                    },
                    Err(e) => tracing::warn!(error = %e, "the store cannot be swept"),
                },
                _ = censuses.tick() => self.census().await,
                () = end.cancelled() => return,
            }
        }
    }

    async fn census(&self) {
        let Ok(census) = self.store.census().await else {
            return;
        };
        for state in STREAM_STATES {
            let n = census.streams.get(&state).copied().unwrap_or_default();
            let word = state.as_str_name().trim_start_matches("STREAM_STATE_");
            metrics::gauge!(m::STREAMS, "state" => word).set(gauge(n));
        }
        for state in NODE_STATES {
            let n = census.nodes.get(&state).copied().unwrap_or_default();
            let word = state.as_str_name().trim_start_matches("NODE_STATE_");
            metrics::gauge!(m::NODES, "state" => word).set(gauge(n));
        }
    }

    async fn hear(&self, event: Event) {
        match event {
            Event::Stream(stream) => self.judge(&stream, false).await,
            Event::Node(node) => {
                // A node that came, or a device that came online, may be what streams wait for.
                let concerned = self.store.concerned(node, UNPLACED_BATCH).await;
                for stream in concerned.unwrap_or_default() {
                    self.judge(&stream, true).await;
                }
            }
            Event::Wants(_) | Event::Viewer(_) => {}
        }
    }

    async fn judge_all(&self) {
        let mut after = None;
        while let Ok(page) = self.store.page_streams(after.take(), PAGE).await {
            for row in &page.rows {
                self.judge(&row.id, true).await;
            }
            after = page.rows.last().map(|r| r.id.clone());
            if !page.more {
                return;
            }
        }
    }

    /// Looks at one stream and does what the table says. A stream that waits for its time is left
    /// alone unless `now` is set.
    async fn judge(&self, stream: &StreamId, now: bool) {
        if let Err(e) = self.try_judge(stream, now).await {
            // A lost race: whoever won made an event, and that is judged next.
            let race = matches!(e.reason, Reason::StaleEpoch | Reason::StaleIncarnation);
            if !race {
                tracing::warn!(%stream, error = %e, "a stream could not be looked after");
                let _ = self.store.defer_stream(stream.clone(), RETRY).await;
            }
        }
    }

    async fn try_judge(&self, stream: &StreamId, now: bool) -> Result<(), ControlError> {
        let Some(row) = self.store.stream(stream.clone()).await? else {
            return Ok(());
        };
        if !now && row.due_us > self.store.now_us() {
            return Ok(());
        }
        let origin = match &row.assigned {
            Some(a) => self.store.node(a.node.clone()).await?,
            None => None,
        };
        let worker = match &row.ingest {
            Some(node) => self.store.node(node.clone()).await?,
            None => None,
        };
        match verdict(&row, origin.as_deref(), worker.as_deref()) {
            Verdict::Keep => self.follow_device(&row, worker.as_deref()).await,
            Verdict::Place => self.place(&row, "", false).await,
            Verdict::Move(why) => self.place(&row, why.as_str(), false).await,
            Verdict::Leave(why) => self.place(&row, why.as_str(), true).await,
        }
    }

    /// The device is with another worker now: the same origin, under a new epoch.
    async fn follow_device(
        &self,
        row: &StreamRow,
        worker: Option<&NodeRow>,
    ) -> Result<(), ControlError> {
        if worker.is_some_and(|w| !w.lost && w.devices.contains_key(&row.device)) {
            return Ok(());
        }
        let (Some(origin), DeviceAt::Online(ingest)) =
            (&row.assigned, self.store.find_device(row.device.clone()).await?)
        else {
            return Ok(());
        };
        let intent = AssignOrigin {
            stream: row.id.clone(),
            expect_epoch: row.epoch,
            node: origin.node.clone(),
            incarnation: origin.incarnation,
            ingest,
            push_token: new_push_token(),
            reason: "the device is with another worker".to_owned(),
            gentle: false,
        };
        self.store.assign_origin(intent).await.map(drop)
    }

    /// Finds the device's worker and a router, and commits to both.
    async fn place(&self, row: &StreamRow, why: &str, gentle: bool) -> Result<(), ControlError> {
        let ingest = match self.store.find_device(row.device.clone()).await? {
            DeviceAt::Online(node) => node,
            DeviceAt::Offline(_) | DeviceAt::Unknown => {
                return self.starve(row, Reason::DeviceOffline, "the device is offline").await;
            }
        };
        if row.refused.len() >= MAX_CANDIDATES {
            let why = format!("{} routers refused it", row.refused.len());
            return self.starve(row, Reason::NodeAtCapacity, &why).await;
        }
        let decision = self.decide(row, &ingest).await?;
        let Some(pick) = decision.pick.clone() else {
            if gentle {
                // It goes on where it is; another router may come at any time.
                tracing::debug!(stream = %row.id, why = decision.explain(), "nowhere to move to");
                return self.store.defer_stream(row.id.clone(), RETRY).await;
            }
            return self.starve(row, Reason::NodeAtCapacity, &decision.explain()).await;
        };
        let intent = AssignOrigin {
            stream: row.id.clone(),
            expect_epoch: row.epoch,
            node: pick.node,
            incarnation: pick.incarnation,
            ingest,
            push_token: new_push_token(),
            reason: why.to_owned(),
            gentle,
        };
        let new = self.store.assign_origin(intent).await?;
        metrics::counter!(m::PLACEMENTS, "what" => "stream", "result" => "placed").increment(1);
        if row.accepted.is_some() {
            m::count_by(m::MOVES, "how", if gentle { "gentle" } else { "lost" });
        }
        let origin = new.assigned.as_ref().map(|a| a.node.as_str()).unwrap_or_default();
        tracing::info!(stream = %row.id, epoch = new.epoch, origin, why, "stream assigned");
        Ok(())
    }

    /// What a placement of the stream's origin would see and choose now; changes nothing.
    pub async fn explain(&self, row: &StreamRow) -> Result<place::Decision, ControlError> {
        let ingest = match self.store.find_device(row.device.clone()).await? {
            DeviceAt::Online(node) => Some(node),
            DeviceAt::Offline(_) | DeviceAt::Unknown => row.ingest.clone(),
        };
        // Without a worker only the stream's own region is asked for.
        let unknown = || NodeId::parse("unknown").map_err(crate::error::bad_id("ingest_node"));
        self.decide(row, &ingest.map_or_else(unknown, Ok)?).await
    }

    async fn decide(
        &self,
        row: &StreamRow,
        ingest: &NodeId,
    ) -> Result<place::Decision, ControlError> {
        let fleet = self.store.routers().await?;
        let near = match row.spec.preferred_region.as_str() {
            "" => self.store.node(ingest.clone()).await?.map(|n| n.hello.region.clone()),
            region => Some(region.to_owned()),
        };
        // Not where the worker cannot push to.
        let cut_off = row.assigned.iter().filter(|_| row.push == PushWord::Broken);
        let refused: Vec<NodeId> = cut_off.map(|a| &a.node).chain(&row.refused).cloned().collect();
        let ask = place::OriginAsk {
            region: near.as_deref().unwrap_or_default(),
            refused: &refused,
            replicas: self.replicas,
        };
        Ok(place::origin(&fleet, &ask, &mut StdRng::from_os_rng()))
    }

    /// Moves a stream's origin, make-before-break where it is live, and waits until the new router
    /// took it. Without a target the placement picks any other router.
    pub async fn move_stream(
        &self,
        id: &StreamId,
        target: Option<&NodeId>,
        deadline: Instant,
    ) -> Result<Arc<StreamRow>, ControlError> {
        let events = self.store.subscribe();
        let row = self.store.stream(id.clone()).await?;
        let row = row.ok_or_else(|| ControlError::no_stream(id.resource_name()))?;
        let at = row.accepted.as_ref().filter(|_| row.is_accepted());
        let at = at.ok_or_else(|| busy(&row, "the stream is being placed"))?;
        if target == Some(&at.node) {
            return Ok(row);
        }
        if row.leaving.is_some() {
            return Err(busy(&row, "viewers of its last move are on their way"));
        }
        let mut fleet = self.store.routers().await?;
        fleet.retain(|n| target.is_none_or(|t| n.id == *t));
        let ask = place::OriginAsk {
            region: row.spec.preferred_region.as_str(),
            refused: std::slice::from_ref(&at.node),
            replicas: self.replicas,
        };
        let decision = place::origin(&fleet, &ask, &mut StdRng::from_os_rng());
        let pick = decision.pick.clone().ok_or_else(|| {
            let why = format!("no router can take the stream now: {}", decision.explain());
            ControlError::new(Reason::NodeAtCapacity, why)
                .about("fanlight.Stream", id.resource_name())
                .retry_in(RETRY)
        })?;
        let ingest = match self.store.find_device(row.device.clone()).await? {
            DeviceAt::Online(node) => node,
            DeviceAt::Offline(_) | DeviceAt::Unknown => {
                let why = "the device is offline";
                return Err(ControlError::new(Reason::DeviceOffline, why)
                    .about("fanlight.Device", row.device.resource_name())
                    .retry_in(RETRY));
            }
        };
        let intent = AssignOrigin {
            stream: id.clone(),
            expect_epoch: row.epoch,
            node: pick.node,
            incarnation: pick.incarnation,
            ingest,
            push_token: new_push_token(),
            reason: Reason::MoveAsked.as_str().to_owned(),
            gentle: true,
        };
        self.store.assign_origin(intent).await?;
        m::count_by(m::MOVES, "how", "asked");
        self.wait_for_origin(id, events, deadline, false).await
    }

    async fn starve(&self, row: &StreamRow, reason: Reason, why: &str) -> Result<(), ControlError> {
        metrics::counter!(m::PLACEMENTS, "what" => "stream", "result" => "starved").increment(1);
        let retry = place_backoff(row.attempts);
        tracing::info!(stream = %row.id, %reason, why, ?retry, "no origin for a stream now");
        let intent =
            StarveStream { stream: row.id.clone(), expect_epoch: row.epoch, reason, retry };
        self.store.starve_stream(intent).await
    }

    /// Creates a stream and waits until a router took it. Without `allow_pending` a creation that
    /// does not come about leaves nothing behind.
    pub async fn create(
        &self,
        intent: CreateStream,
        deadline: Instant,
        allow_pending: bool,
    ) -> Result<Created, ControlError> {
        let request = intent.request;
        if let Some(key) = request
            && let Some(answer) = self.store.recall_request(key).await?
        {
            return Ok(Created::Answered(answer));
        }
        if !allow_pending {
            self.check_device(&intent).await?;
        }
        let id = intent.id.clone();
        // Listening begins before the row is there, so that nothing is missed.
        let events = self.store.subscribe();
        let ours = match self.store.create_stream(intent).await? {
            Once::Answered(answer) => return Ok(Created::Answered(answer)),
            Once::Now(_) => true,
            Once::Before(_) => false,
        };
        let waited = self.wait_for_origin(&id, events, deadline, allow_pending).await;
        match waited {
            Ok(row) => Ok(Created::Row(row)),
            Err(e) => {
                if ours {
                    self.roll_back(id, request).await;
                }
                Err(e)
            }
        }
    }

    /// Whether the device can be captured now.
    pub async fn check_device(&self, intent: &CreateStream) -> Result<(), ControlError> {
        let name = intent.device.resource_name();
        match self.store.find_device(intent.device.clone()).await? {
            DeviceAt::Online(_) => Ok(()),
            DeviceAt::Offline(why) => {
                let why = if why.is_empty() { "the device is offline".to_owned() } else { why };
                Err(ControlError::new(Reason::DeviceOffline, why)
                    .about("fanlight.Device", name)
                    .retry_in(RETRY))
            }
            DeviceAt::Unknown => {
                Err(ControlError::new(Reason::DeviceUnknown, "no ingest worker knows the device")
                    .about("fanlight.Device", name))
            }
        }
    }

    async fn wait_for_origin(
        &self,
        id: &StreamId,
        mut events: tokio::sync::broadcast::Receiver<Event>,
        deadline: Instant,
        allow_pending: bool,
    ) -> Result<Arc<StreamRow>, ControlError> {
        let until = deadline.checked_sub(ANSWER_MARGIN).unwrap_or(deadline);
        loop {
            let row = self.store.stream(id.clone()).await?;
            let row = row.ok_or_else(|| ControlError::no_stream(id.resource_name()))?;
            if row.is_accepted() || (allow_pending && row.state == StreamState::Starved) {
                return Ok(row);
            }
            if row.state == StreamState::Starved {
                return Err(starved(&row));
            }
            let woken = timeout_at(until, async {
                // A closed channel cannot happen while the store is held; the deadline ends it.
                while let Ok(event) = events.recv().await {
                    if matches!(&event, Event::Stream(s) if s == id) {
                        return;
                    }
                }
            });
            if woken.await.is_err() {
                if allow_pending {
                    return Ok(row);
                }
                let why = "no router took the stream in time";
                return Err(ControlError::new(Reason::DeadlineExceeded, why).retry_in(RETRY));
            }
        }
    }

    async fn roll_back(&self, id: StreamId, request: Option<RequestKey>) {
        let intent = DeleteStream { id, version: None, allow_missing: true, request: None };
        // The store's refusal leaves a PENDING stream, which is listed and can be deleted.
        let _ = self.store.delete_stream(intent).await;
        if let Some(key) = request {
            let _ = self.store.finish_request(key, None).await;
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of rows, far below 2^52")]
fn gauge(n: usize) -> f64 {
    n as f64
}

fn new_push_token() -> PushToken {
    let mut secret = [0; 32];
    rand::rng().fill(&mut secret);
    PushToken(secret)
}

/// The stream cannot be moved just now.
fn busy(row: &StreamRow, why: &str) -> ControlError {
    ControlError::new(Reason::StaleEpoch, why)
        .about("fanlight.Stream", row.id.resource_name())
        .retry_in(RETRY)
}

fn starved(row: &StreamRow) -> ControlError {
    let reason = Reason::parse(&row.reason).unwrap_or(Reason::NodeAtCapacity);
    let why = match reason {
        Reason::DeviceOffline => "the device went offline",
        _ => "no router can take the stream now",
    };
    ControlError::new(reason, why).about("fanlight.Stream", row.id.resource_name()).retry_in(RETRY)
}
