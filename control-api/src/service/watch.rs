//! Watches: current state, then changes, for as long as the caller reads. Not what is told (that
//! is each [`Source`]). Invariant: a watcher costs a bounded queue and nothing else; one that reads
//! too slowly, or whose position is no longer kept, is ended with a reason it can act on.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use fanlight_proto::reason::Reason;
use futures::{Stream, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast, mpsc},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tonic::Status;

use super::Parts;
use crate::{
    error::ControlError,
    metrics as m,
    store::{
        Event, Store,
        outbox::{Position, Record},
    },
};

/// Watches of one replica at once; more are refused with RESOURCE_EXHAUSTED.
pub(crate) const MAX_WATCHES: usize = 1024;
/// Messages that wait for a watcher.
const QUEUE: usize = 256;
/// How long a full queue is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A quiet watch says its position this often; the promise is 10 s.
const BOOKMARK: Duration = Duration::from_secs(5);
/// Records read at a time.
const BATCH: usize = 256;
/// When an ended watcher may come back.
const RETRY: Duration = Duration::from_secs(1);

/// A page of current state, and the key to read on with.
pub(crate) type StatePage<M> = (Vec<M>, Option<String>);

/// What is watched.
pub(crate) trait Source: Send + Sync + 'static {
    /// One message of the watch.
    type Message: Send + 'static;

    /// Current state after a key.
    fn page<'a>(
        &'a self,
        store: &'a dyn Store,
        after: Option<String>,
    ) -> BoxFuture<'a, Result<StatePage<Self::Message>, ControlError>>;

    /// What records say. Only the last message may carry `next`, the others `from`: a watcher that
    /// goes on from a message has seen everything before it.
    fn changes<'a>(
        &'a self,
        store: &'a dyn Store,
        records: &'a [Arc<Record>],
        from: Position,
        next: Position,
    ) -> BoxFuture<'a, Result<Vec<Self::Message>, ControlError>>;

    /// Says that nothing changed up to a position.
    fn bookmark(&self, at: Position) -> Self::Message;
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the current state.
    State,
    /// After a position.
    After(Position),
    /// With what comes.
    Latest,
}

/// Reads a resume token or a position.
pub(crate) fn position(field: &str, token: &str) -> Result<Position, ControlError> {
    let digits = token.len() <= 20 && token.bytes().all(|b| b.is_ascii_digit());
    let read = token.parse().ok().filter(|_| digits);
    read.ok_or_else(|| ControlError::field(field, "is not a position that was handed out"))
}

/// The answer of a watching call.
#[derive(Debug)]
pub(crate) struct Watch<M> {
    queue: mpsc::Receiver<M>,
    end: Arc<Mutex<Option<Status>>>,
}

impl<M> Stream for Watch<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.queue.poll_recv(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            // The queue is closed: the reason, once.
            Poll::Ready(None) => Poll::Ready(self.end.lock().take().map(Err)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Why a watch ended.
enum End {
    /// The watcher left.
    Left,
    /// It is told why.
    Told(ControlError),
}

impl From<ControlError> for End {
    fn from(e: ControlError) -> Self {
        Self::Told(e)
    }
}

/// Begins a watch.
pub(crate) fn start<S: Source>(
    parts: &Arc<Parts>,
    source: S,
    begin: Start,
) -> Result<Watch<S::Message>, ControlError> {
    let permit = Arc::clone(&parts.watches).try_acquire_owned().map_err(|_| {
        let why = format!("{MAX_WATCHES} watches are open on this replica");
        ControlError::new(Reason::Overloaded, why).retry_in(RETRY)
    })?;
    let (tx, queue) = mpsc::channel(QUEUE);
    let end = Arc::new(Mutex::new(None));
    let watch = Watch { queue, end: Arc::clone(&end) };
    m::count(m::WATCHES_OPENED);
    tokio::spawn(run(Arc::clone(parts), source, begin, tx, end, permit));
    Ok(watch)
}

async fn run<S: Source>(
    parts: Arc<Parts>,
    source: S,
    begin: Start,
    tx: mpsc::Sender<S::Message>,
    end: Arc<Mutex<Option<Status>>>,
    _permit: OwnedSemaphorePermit,
) {
    let followed = tokio::select! {
        followed = follow(&*parts.store, &source, begin, &tx) => followed,
        () = parts.shutdown.triggered() => {
            let why = "this replica is stopping; go on from the last token elsewhere";
            Err(ControlError::new(Reason::Draining, why).retry_in(RETRY).into())
        }
        () = tx.closed() => Err(End::Left),
    };
    let why = match followed {
        Ok(()) | Err(End::Left) => "left",
        Err(End::Told(error)) => {
            let word = error.reason.as_str();
            // Written before the queue closes, so that the watcher finds it.
            *end.lock() = Some(error.into());
            word
        }
    };
    m::count_by(m::WATCHES_CLOSED, "why", why);
    drop(tx);
}

async fn follow<S: Source>(
    store: &dyn Store,
    source: &S,
    begin: Start,
    tx: &mpsc::Sender<S::Message>,
) -> Result<(), End> {
    // Listening begins before anything is read, so that nothing is missed.
    let mut hints = store.subscribe();
    let mut at = match begin {
        Start::After(position) => {
            store.read_events(position, 0).await?;
            position
        }
        Start::Latest => {
            let head = store.read_events(0, 0).await?.head;
            send(tx, source.bookmark(head)).await?;
            head
        }
        Start::State => {
            let head = store.read_events(0, 0).await?.head;
            tell_state(store, source, tx).await?;
            send(tx, source.bookmark(head)).await?;
            head
        }
    };
    let mut bookmarks = interval_at(Instant::now() + BOOKMARK, BOOKMARK);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        loop {
            let page = store.read_events(at, BATCH).await?;
            let Some(next) = page.next() else { break };
            for message in source.changes(store, &page.records, at, next).await? {
                send(tx, message).await?;
            }
            at = next;
        }
        tokio::select! {
            woken = wait(&mut hints) => woken?,
            _ = bookmarks.tick() => send(tx, source.bookmark(at)).await?,
        }
    }
}

async fn tell_state<S: Source>(
    store: &dyn Store,
    source: &S,
    tx: &mpsc::Sender<S::Message>,
) -> Result<(), End> {
    let mut after = None;
    loop {
        let (messages, next) = source.page(store, after).await?;
        for message in messages {
            send(tx, message).await?;
        }
        after = next;
        if after.is_none() {
            return Ok(());
        }
    }
}

async fn send<M>(tx: &mpsc::Sender<M>, message: M) -> Result<(), End> {
    use mpsc::error::SendTimeoutError;
    tx.send_timeout(message, PATIENCE).await.map_err(|e| match e {
        SendTimeoutError::Closed(_) => End::Left,
        SendTimeoutError::Timeout(_) => {
            let why = "changes were not read fast enough; go on from the last token";
            ControlError::new(Reason::SlowWatcher, why).retry_in(RETRY).into()
        }
    })
}

/// Waits until anything changed.
async fn wait(hints: &mut broadcast::Receiver<Event>) -> Result<(), End> {
    use broadcast::error::{RecvError, TryRecvError};
    match hints.recv().await {
        Ok(_) | Err(RecvError::Lagged(_)) => {}
        Err(RecvError::Closed) => {
            return Err(ControlError::new(Reason::StoreUnavailable, "the store ended").into());
        }
    }
    // One look serves all hints that wait.
    while matches!(hints.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
    Ok(())
}
