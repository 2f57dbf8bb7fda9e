//! The life of links, one after the other: dial, Hello, Welcome, then heartbeats and messages until
//! it breaks, moves or ends. Not the handler's work: that runs beside it, so that a slow Apply
//! never costs a heartbeat. Invariant: at most one link is served, and `linked` is true exactly
//! while one is.

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fanlight_proto::node::v1::{
    Ack, Action, Apply, Goodbye, Heartbeat, Inventory, LinkRequest, LinkResponse, Redirect,
    Running, StreamGauge, Welcome, link_request::Body as Up, link_response::Body as Down,
    node_link_service_client::NodeLinkServiceClient,
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use rand::Rng as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{
    Shared,
    dial::{Dialer, causes, shuffled},
    digest::run_digest,
};

/// Messages that may wait for the connection. More means it does not move: the link is dropped.
const OUTBOX: usize = 256;

/// Longest wait for the stream to open and for Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports are gathered this long before they are sent.
const REPORT_BATCH: Duration = Duration::from_millis(100);

/// A link that held this long was good: the next dial starts without a pause history.
const GOOD_LINK: Duration = Duration::from_secs(5);

/// Clocks further apart than this are worth a warning.
const SKEW_ALARM: Duration = Duration::from_secs(5);

/// Items in one Inventory message, as the protocol says.
const INVENTORY_PART: usize = 500;

/// Largest message taken from a replica: a full Apply of tens of thousands of wants.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Something for the handler, and where its answer goes.
pub(super) enum Work {
    Apply(Apply, mpsc::Sender<Up>),
    Action(Action, mpsc::Sender<Up>),
}

/// Hands applies and actions to the handler, one at a time. Lives as long as the client.
pub(super) async fn work(shared: Arc<Shared>, mut queue: mpsc::Receiver<Work>) {
    while let Some(work) = queue.recv().await {
        let (ack, outbox) = match work {
            Work::Apply(apply, outbox) => (apply_one(&shared, apply).await, outbox),
            Work::Action(action, outbox) => (act_one(&shared, action).await, outbox),
        };
        // A link that is gone needs no answer: the next Hello says what is held.
        let _ = outbox.try_send(Up::Ack(ack));
    }
}

async fn apply_one(shared: &Shared, apply: Apply) -> Ack {
    let version = apply.want_version;
    if shared.held.lock().is_stale(&apply) {
        return Ack { want_version: version, ..Ack::default() };
    }
    let mut ack = shared.handler.apply(apply.clone()).await;
    ack.want_version = version;
    shared.count("fanlight_nodelink_applies_total", 1);
    shared.count("fanlight_nodelink_refusals_total", ack.refusals.len() as u64);
    shared.held.lock().applied(apply, &ack);
    ack
}

async fn act_one(shared: &Shared, action: Action) -> Ack {
    if let Some(ack) = shared.held.lock().answered(&action, SystemTime::now()) {
        return ack;
    }
    let id = action.id.clone();
    let mut ack = shared.handler.action(action).await;
    ack.action_id = id;
    shared.count("fanlight_nodelink_actions_total", 1);
    shared.held.lock().acted(&ack);
    ack
}

/// A link that was welcomed.
struct Link {
    endpoint: String,
    outbox: mpsc::Sender<Up>,
    inbound: Streaming<LinkResponse>,
    welcome: Welcome,
}

/// How a link ended.
enum End {
    /// The process ends.
    Shutdown,
    /// It broke.
    Lost(String),
    /// Another one is up in its place.
    Moved(Box<Link>),
}

/// Keeps a link up until the end.
pub(super) async fn run(shared: Arc<Shared>, dialer: Dialer, token: CancellationToken) {
    let mut pauses = Pauses::new(shared.cfg.backoff_min, shared.cfg.backoff_max);
    let mut first = true;
    loop {
        for endpoint in shuffled(&shared.cfg.endpoints) {
            let open = open(&shared, &dialer, endpoint.clone());
            let opened = tokio::select! {
                opened = open => opened,
                () = token.cancelled() => return,
            };
            match opened {
                Ok(link) => {
                    let since = Instant::now();
                    if serve_all(&shared, &dialer, &token, link, &mut first).await {
                        return;
                    }
                    if since.elapsed() >= GOOD_LINK {
                        pauses.reset();
                    }
                }
                Err(why) => {
                    shared.count("fanlight_nodelink_dials_failed_total", 1);
                    tracing::warn!(node = %shared.label, endpoint, why, "no link to the control API");
                }
            }
            tokio::select! {
                () = sleep(pauses.next()) => {}
                () = token.cancelled() => return,
            }
        }
    }
}

/// Serves a link and those it moves to. True when the process ends.
async fn serve_all(
    shared: &Arc<Shared>,
    dialer: &Dialer,
    token: &CancellationToken,
    link: Link,
    first: &mut bool,
) -> bool {
    let mut link = link;
    loop {
        let (endpoint, replica) = (link.endpoint.clone(), link.welcome.replica.clone());
        tracing::info!(node = %shared.label, endpoint, replica, "linked to the control API");
        shared.count("fanlight_nodelink_links_opened_total", 1);
        shared.linked.send_replace(true);
        let end = serve(shared, dialer, token, link, std::mem::take(first)).await;
        shared.count("fanlight_nodelink_links_closed_total", 1);
        match end {
            End::Moved(next) => link = *next,
            End::Shutdown => {
                shared.linked.send_replace(false);
                return true;
            }
            End::Lost(why) => {
                shared.linked.send_replace(false);
                tracing::warn!(node = %shared.label, endpoint, why, "link lost; what runs goes on");
                return false;
            }
        }
    }
}

/// Dials one endpoint and waits for its Welcome.
async fn open(shared: &Arc<Shared>, dialer: &Dialer, endpoint: String) -> Result<Link, String> {
    let channel = dialer(endpoint.clone()).await.map_err(|e| causes(e.as_ref()))?;
    let (outbox, queue) = mpsc::channel(OUTBOX);
    // The queue is new and has room, so this cannot fail.
    let _ = outbox.try_send(Up::Hello(shared.hello()));
    let mut seq = 0;
    let requests = ReceiverStream::new(queue).map(move |body| {
        seq += 1;
        LinkRequest { seq, body: Some(body) }
    });
    let mut client =
        NodeLinkServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let welcomed = async {
        let mut inbound = client.link(requests).await?.into_inner();
        let first = inbound.message().await?;
        Ok::<_, tonic::Status>((inbound, first))
    };
    let (inbound, first) = match timeout(WELCOME_TIMEOUT, welcomed).await {
        Err(_) => return Err("no Welcome in time".to_owned()),
        Ok(Err(status)) => return Err(say(&status)),
        Ok(Ok(pair)) => pair,
    };
    match first.and_then(|m| m.body) {
        Some(Down::Welcome(welcome)) => Ok(Link { endpoint, outbox, inbound, welcome }),
        Some(_) => Err("the first answer was not Welcome".to_owned()),
        None => Err("it closed before Welcome".to_owned()),
    }
}

fn say(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Pauses between dials: doubling, with full jitter, so that a fleet does not come back as one.
struct Pauses {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Pauses {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), ceiling: min }
    }

    fn reset(&mut self) {
        self.ceiling = self.min;
    }

    fn next(&mut self) -> Duration {
        let pause = rand::rng().random_range(self.min..=self.ceiling.max(self.min));
        self.ceiling = (self.ceiling * 2).min(self.max);
        pause
    }
}

/// One link's state while it is served.
struct Serving<'a> {
    shared: &'a Arc<Shared>,
    link: Link,
    interval: Duration,
    lease: Duration,
    /// End of the lease: nothing answered heartbeats since.
    lease_end: Instant,
    gauges: HashMap<String, StreamGauge>,
}

async fn serve(
    shared: &Arc<Shared>,
    dialer: &Dialer,
    token: &CancellationToken,
    link: Link,
    first: bool,
) -> End {
    let mut s = Serving::new(shared, link);
    s.warn_of_skew();
    // After a link was lost, reports may have been lost in it: the inventory says what is so.
    if (s.link.welcome.resync || !first) && !s.send_inventory() {
        return End::Lost("the connection does not move".to_owned());
    }
    let mut beat = Instant::now();
    let mut batch: Option<Instant> = Some(beat);
    let mut moving: Option<BoxFuture<'_, Result<Link, String>>> = None;
    loop {
        let next_batch = batch;
        let batch_due = pin!(async {
            match next_batch {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        tokio::select! {
            message = s.link.inbound.message() => {
                let body = match message {
                    Ok(Some(message)) => message.body,
                    Ok(None) => return End::Lost("closed by the control API".to_owned()),
                    Err(status) => return End::Lost(say(&status)),
                };
                match s.take(body) {
                    Taken::Fine => {}
                    Taken::Move(redirect) => {
                        let (shared, dialer) = (Arc::clone(shared), Arc::clone(dialer));
                        moving = Some(move_to(shared, dialer, redirect).boxed());
                    }
                    Taken::Broken(why) => return End::Lost(why.to_owned()),
                }
            }
            () = sleep_until(beat) => {
                let heartbeat = s.heartbeat();
                if !s.send(Up::Heartbeat(heartbeat)) {
                    return End::Lost("the connection does not move".to_owned());
                }
                beat = Instant::now() + jittered(s.interval);
            }
            () = shared.beat.notified() => beat = Instant::now(),
            () = shared.wake.notified(), if batch.is_none() => {
                batch = Some(Instant::now() + REPORT_BATCH);
            }
            () = batch_due => {
                batch = None;
                if !s.flush_reports() {
                    return End::Lost("the connection does not move".to_owned());
                }
            }
            () = sleep_until(s.lease_end) => {
                return End::Lost(format!("no heartbeat was answered for {:?}", s.lease));
            }
            moved = async { match moving.as_mut() {
                Some(future) => future.await,
                None => std::future::pending().await,
            } } => {
                moving = None;
                match moved {
                    Ok(next) => {
                        s.send(Up::Goodbye(Goodbye { reason: "redirected".to_owned() }));
                        // Beside the new link, which must not wait; it ends by itself.
                        tokio::spawn(drain(s.link));
                        return End::Moved(Box::new(next));
                    }
                    Err(why) => tracing::warn!(node = %shared.label, why, "redirect failed; staying"),
                }
            }
            () = token.cancelled() => {
                s.flush_reports();
                s.send(Up::Goodbye(Goodbye { reason: "shutting down".to_owned() }));
                drain(s.link).await;
                return End::Shutdown;
            }
        }
    }
}

/// Opens a link to one of the redirect's endpoints while the old one is still served.
async fn move_to(shared: Arc<Shared>, dialer: Dialer, redirect: Redirect) -> Result<Link, String> {
    let mut last = "no endpoint was named".to_owned();
    for endpoint in shuffled(&redirect.endpoints) {
        match open(&shared, &dialer, endpoint).await {
            Ok(link) => return Ok(link),
            Err(why) => last = why,
        }
    }
    Err(last)
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.8..=1.2))
}

fn clamp(given: Option<prost_types::Duration>, default: Duration, min: Duration) -> Duration {
    let given = given.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero());
    given.unwrap_or(default).clamp(min, Duration::from_secs(120))
}

/// What a message led to.
enum Taken {
    Fine,
    Move(Redirect),
    Broken(&'static str),
}

impl<'a> Serving<'a> {
    fn new(shared: &'a Arc<Shared>, link: Link) -> Self {
        let w = &link.welcome;
        let interval =
            clamp(w.heartbeat_interval, Duration::from_secs(1), Duration::from_millis(50));
        let lease = clamp(w.lease, Duration::from_secs(8), interval * 3);
        let lease_end = Instant::now() + lease;
        Self { shared, link, interval, lease, lease_end, gauges: HashMap::new() }
    }

    fn warn_of_skew(&self) {
        let Some(theirs) = &self.link.welcome.server_time else { return };
        let Ok(seconds) = u64::try_from(theirs.seconds) else { return };
        let theirs = UNIX_EPOCH + Duration::from_secs(seconds);
        let now = SystemTime::now();
        let skew = now.duration_since(theirs).or_else(|_| theirs.duration_since(now));
        if let Ok(skew) = skew
            && skew > SKEW_ALARM
        {
            let skew_s = skew.as_secs();
            tracing::warn!(node = %self.shared.label, skew_s, "clock differs from the control API's");
        }
    }

    /// False when the connection has taken nothing for a long time.
    fn send(&self, body: Up) -> bool {
        self.link.outbox.try_send(body).is_ok()
    }

    fn take(&mut self, body: Option<Down>) -> Taken {
        match body {
            Some(Down::Apply(apply)) => {
                return self.queue(Work::Apply(apply, self.link.outbox.clone()));
            }
            Some(Down::Action(action)) => {
                return self.queue(Work::Action(action, self.link.outbox.clone()));
            }
            Some(Down::HeartbeatAck(ack)) => {
                self.lease_end = Instant::now() + self.lease;
                self.shared.handler.nowhere_to_go(ack.nowhere_to_go);
            }
            Some(Down::KeySet(keys)) => self.shared.handler.key_set(keys.jwks_json),
            Some(Down::InventoryRequest(_)) if !self.send_inventory() => {
                return Taken::Broken("the connection does not move");
            }
            Some(Down::Redirect(redirect)) => return Taken::Move(redirect),
            Some(Down::Welcome(_)) => return Taken::Broken("a second Welcome"),
            // Something of a later version: not ours to judge.
            Some(Down::InventoryRequest(_)) | None => {}
        }
        Taken::Fine
    }

    fn queue(&self, work: Work) -> Taken {
        match self.shared.work.try_send(work) {
            Ok(()) => Taken::Fine,
            Err(_) => Taken::Broken("the node is too far behind with what it was told"),
        }
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let (shared, handler) = (self.shared, &self.shared.handler);
        shared.count("fanlight_nodelink_heartbeats_total", 1);
        let now: HashMap<String, StreamGauge> =
            handler.gauges().into_iter().map(|g| (g.stream.clone(), g)).collect();
        let mut gauges: Vec<StreamGauge> =
            now.values().filter(|g| self.gauges.get(&g.stream) != Some(g)).cloned().collect();
        // A stream that is gone has no viewers; said once.
        let gone = self.gauges.keys().filter(|s| !now.contains_key(*s));
        gauges.extend(gone.map(|s| StreamGauge { stream: s.clone(), ..StreamGauge::default() }));
        self.gauges = now;
        Heartbeat {
            load: Some(handler.load()),
            want_version: shared.held.lock().version(),
            run_digest: run_digest(shared.cfg.hello.kind, &handler.running()),
            state: handler.state().into(),
            gauges,
        }
    }

    fn send_inventory(&self) -> bool {
        let running = self.shared.handler.running();
        let parts: Vec<Vec<Running>> = if running.is_empty() {
            vec![Vec::new()]
        } else {
            running.chunks(INVENTORY_PART).map(<[_]>::to_vec).collect()
        };
        let last = parts.len() - 1;
        parts
            .into_iter()
            .enumerate()
            .all(|(i, running)| self.send(Up::Inventory(Inventory { running, last: i == last })))
    }

    fn flush_reports(&self) -> bool {
        loop {
            let Some(report) = self.shared.pending.lock().take() else { return true };
            if let Err(e) = self.link.outbox.try_send(Up::Report(report)) {
                if let Up::Report(report) = e.into_inner() {
                    self.shared.pending.lock().put_back(report);
                }
                return false;
            }
        }
    }
}

/// Lets the last messages of a link leave; not for long. Dropping a link at once would reset its
/// stream, and the last messages with it.
async fn drain(link: Link) {
    let Link { outbox, mut inbound, .. } = link;
    let emptied = async {
        while outbox.capacity() < outbox.max_capacity() {
            sleep(Duration::from_millis(5)).await;
        }
        drop(outbox);
        // The server ends its side when it has read ours.
        while let Ok(Some(_)) = inbound.message().await {}
    };
    let _ = timeout(Duration::from_millis(300), emptied).await;
}
