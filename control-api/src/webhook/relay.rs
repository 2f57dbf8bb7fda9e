//! One webhook's relay: claims, reads, delivers, stores how far it is. Not the HTTP (`post.rs`).
//! Invariant: of one stream's events at most one is under way, and none is sent before the one
//! ahead of it was taken or given up; at most `WINDOW` events are held in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fanlight_proto::reason::Reason;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Post,
    retry::{Breaker, GIVE_UP, Verdict, backoff, verdict},
    sign::Signer,
};
use crate::{
    clock::us,
    error::ControlError,
    metrics as m,
    service::events::Interest,
    store::{
        Event, Store,
        outbox::{DeadRow, Position, Record, RelayClaim, RelayStep},
    },
};

/// A claim lasts this long without being renewed: twice the longest wait for an answer, and more.
const LEASE: Duration = Duration::from_secs(30);
/// How often a replica without the claim asks for it.
const ASK: Duration = Duration::from_secs(10);
/// Longest rest of the holder: it renews its claim by then.
const RENEW: Duration = Duration::from_secs(10);
/// Events held in memory, under way or waiting.
const WINDOW: usize = 256;
/// Deliveries under way at once.
const AT_ONCE: usize = 8;
/// Longest error kept with a dead letter.
const MAX_ERROR: usize = 200;

/// An event on its way.
#[derive(Debug)]
struct Item {
    record: Arc<Record>,
    /// It was a dead letter before.
    replay: bool,
    tries: u32,
    at: Instant,
    give_up_us: u64,
}

/// Sends one webhook's events.
#[derive(Debug)]
pub struct Relay<P> {
    name: String,
    holder: String,
    store: Arc<dyn Store>,
    interest: Interest,
    signer: Signer,
    post: P,
    /// By position; what was read and is not done.
    items: BTreeMap<Position, Item>,
    /// Everything up to here was read. `None`: the claim is not held.
    read_to: Option<Position>,
    breaker: Breaker,
    rng: StdRng,
}

/// What one turn came to.
enum Turn {
    /// Something was done; look again at once.
    Again,
    /// Nothing to do before then, unless something happens.
    Until(Instant),
}

impl<P: Post> Relay<P> {
    pub(crate) fn new(
        name: String,
        holder: String,
        store: Arc<dyn Store>,
        interest: Interest,
        signer: Signer,
        post: P,
    ) -> Self {
        Self {
            name,
            holder,
            store,
            interest,
            signer,
            post,
            items: BTreeMap::new(),
            read_to: None,
            breaker: Breaker::default(),
            rng: StdRng::from_os_rng(),
        }
    }

    /// Relays until the end.
    pub async fn run(mut self, end: CancellationToken) {
        let mut hints = self.store.subscribe();
        loop {
            let turn = tokio::select! {
                turn = self.turn() => turn,
                // A delivery under way is dropped; it is sent again by whoever claims next.
                () = end.cancelled() => return,
            };
            let until = match turn {
                Ok(Turn::Again) => continue,
                Ok(Turn::Until(until)) => until,
                Err(e) => {
                    tracing::warn!(webhook = self.name, error = %e, "events cannot be relayed now");
                    Instant::now() + Duration::from_secs(1)
                }
            };
            tokio::select! {
                () = sleep_until(until) => {}
                () = changed(&mut hints), if self.read_to.is_some() && self.items.len() < WINDOW => {}
                () = end.cancelled() => return,
            }
        }
    }

    async fn turn(&mut self) -> Result<Turn, ControlError> {
        let (name, holder) = (self.name.clone(), self.holder.clone());
        let Some(claim) = self.store.claim_relay(name, holder, LEASE).await? else {
            self.forget();
            return Ok(Turn::Until(Instant::now() + ASK));
        };
        self.refill(claim).await?;
        let ready = self.ready();
        let (done, dead) = self.deliver(&ready).await;
        let step = RelayStep {
            webhook: self.name.clone(),
            holder: self.holder.clone(),
            cursor: self.cursor(),
            dead,
            replayed: done,
        };
        if !self.store.advance_relay(step).await? {
            // Somebody else goes on; what was under way may reach the endpoint twice.
            self.forget();
            return Ok(Turn::Until(Instant::now() + ASK));
        }
        if !ready.is_empty() {
            return Ok(Turn::Again);
        }
        let now = Instant::now();
        let next = self.items.values().map(|i| i.at).min();
        let rests = self.breaker.rests_until().filter(|_| next.is_some());
        let due = next.max(rests).unwrap_or(now + RENEW);
        Ok(Turn::Until(due.min(now + RENEW).max(now + Duration::from_millis(1))))
    }

    fn forget(&mut self) {
        self.items.clear();
        self.read_to = None;
    }

    /// Takes replays and new events while there is room.
    async fn refill(&mut self, claim: RelayClaim) -> Result<(), ControlError> {
        let now = self.store.now_us();
        for record in claim.replays.into_iter().take(WINDOW.saturating_sub(self.items.len())) {
            let fresh = Item::new(record, true, now);
            self.items.entry(fresh.record.position).or_insert(fresh);
        }
        let mut at = self.read_to.unwrap_or(claim.cursor);
        while self.items.len() < WINDOW {
            let page = match self.store.read_events(at, WINDOW - self.items.len()).await {
                Ok(page) => page,
                Err(e) if e.reason == Reason::PositionExpired => {
                    m::count(m::WEBHOOK_GAPS);
                    tracing::error!(
                        webhook = self.name,
                        error = %e,
                        "the webhook is too far behind: events it did not take are gone"
                    );
                    self.store.read_events(0, WINDOW - self.items.len()).await?
                }
                Err(e) => return Err(e),
            };
            let Some(next) = page.next() else { break };
            for record in page.records {
                if self.interest.takes(&record) {
                    let item = Item::new(record, false, now);
                    self.items.entry(item.record.position).or_insert(item);
                }
            }
            at = next;
        }
        self.read_to = Some(at);
        Ok(())
    }

    /// What leaves now: of each stream the first, when its time has come.
    fn ready(&self) -> Vec<Position> {
        let now = Instant::now();
        let mut lanes = BTreeSet::new();
        let first = self.items.values().filter(|i| lanes.insert(i.record.order_key()));
        let due: Vec<_> = first.filter(|i| i.at <= now).map(|i| i.record.position).collect();
        let room = self.breaker.allows(now, due.len().min(AT_ONCE));
        due.into_iter().take(room).collect()
    }

    /// Sends events side by side; answers the replays that are done, and the dead.
    async fn deliver(&mut self, ready: &[Position]) -> (Vec<Position>, Vec<DeadRow>) {
        let seconds = self.store.now_us() / 1_000_000;
        let sent = ready.iter().filter_map(|at| self.items.get(at)).map(|item| {
            let delivery = self.signer.sign(&item.record, seconds);
            let answer = self.post.post(delivery);
            async move { (item.record.position, answer.await) }
        });
        let answers = futures::future::join_all(sent).await;
        let (mut replayed, mut dead) = (Vec::new(), Vec::new());
        for (at, answer) in answers {
            if let Some((done, row)) = self.judge(at, answer) {
                replayed.extend(Some(at).filter(|_| done.replay));
                dead.extend(row);
            }
        }
        (replayed, dead)
    }

    /// What an answer comes to; the item when it is done, with its dead letter when it was given up.
    fn judge(
        &mut self,
        at: Position,
        answer: Result<u16, String>,
    ) -> Option<(Item, Option<DeadRow>)> {
        let now = Instant::now();
        let judged = answer.as_ref().map_or(Verdict::Later, |status| verdict(*status));
        // A refusal of one event is an answer of an endpoint that works.
        match judged {
            Verdict::Taken | Verdict::Never => self.breaker.works(),
            Verdict::Later => self.breaker.failed(now),
        }
        let item = self.items.get_mut(&at)?;
        item.tries += 1;
        let wait = backoff(item.tries, &mut self.rng);
        let late = self.store.now_us().saturating_add(us(wait)) > item.give_up_us;
        let dead = match judged {
            Verdict::Taken => false,
            Verdict::Never => true,
            Verdict::Later if late => true,
            Verdict::Later => {
                m::count_by(m::WEBHOOKS, "result", "retried");
                item.at = now + wait;
                return None;
            }
        };
        let item = self.items.remove(&at)?;
        if !dead {
            m::count_by(m::WEBHOOKS, "result", "taken");
            return Some((item, None));
        }
        let why = answer.map_or_else(|e| e, |status| format!("HTTP status {status}"));
        let word = if judged == Verdict::Never { "refused" } else { "dead" };
        m::count_by(m::WEBHOOKS, "result", word);
        m::count(m::DEAD_LETTERS);
        tracing::warn!(webhook = self.name, id = at, tries = item.tries, why, "event given up");
        let row = DeadRow {
            record: Arc::clone(&item.record),
            error: why.chars().take(MAX_ERROR).collect(),
            attempts: item.tries,
            dead_us: 0,
        };
        Some((item, Some(row)))
    }

    /// Everything up to here is done.
    fn cursor(&self) -> Position {
        let open = self.items.values().find(|i| !i.replay).map(|i| i.record.position - 1);
        open.or(self.read_to).unwrap_or_default()
    }
}

impl Item {
    fn new(record: Arc<Record>, replay: bool, now_us: u64) -> Self {
        // A replay has a day of its own.
        let since = if replay { now_us } else { record.at_us };
        let give_up_us = since.saturating_add(us(GIVE_UP));
        Self { record, replay, tries: 0, at: Instant::now(), give_up_us }
    }
}

/// Waits until anything changed, or events were missed.
async fn changed(hints: &mut broadcast::Receiver<Event>) {
    use broadcast::error::{RecvError, TryRecvError};
    if matches!(hints.recv().await, Err(RecvError::Closed)) {
        // The store is held by the relay, so this does not come to pass; never spin on it.
        std::future::pending::<()>().await;
    }
    while matches!(hints.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
