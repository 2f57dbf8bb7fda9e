//! The calls: as many as are answered, or so many per second. On one thread of its own, whose CPU
//! time is known. Invariant: at a given rate a call's time begins when it was due, not when the load
//! got round to it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fanlight_proto::{
    control::v1::{
        CreateStreamRequest, CreateViewerRequest, CreateViewerResponse, DeleteStreamRequest,
        Stream, Viewer,
    },
    types::v1::{ViewerGrants, ViewerRole},
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use crate::{
    calls::{CallError, Line, Prepared},
    stats::Times,
};

const CREATE_VIEWER: &str = "/fanlight.control.v1.ViewerService/CreateViewer";
const CREATE_STREAM: &str = "/fanlight.control.v1.StreamService/CreateStream";
const DELETE_STREAM: &str = "/fanlight.control.v1.StreamService/DeleteStream";
/// Name of the thread that calls, as the system shows it.
pub(super) const THREAD: &str = "calls";
/// How long a token is good for: rows of viewers that never come are forgotten soon after, so that
/// the store holds as many as arrive in this time.
const TOKEN_LIFE_S: i64 = 5;
/// One answer in so many is read.
const LOOK_AT: usize = 64;
/// Calls under way at a given rate; what would be one more is an error of its own.
const UNDER_WAY_MAX: usize = 20_000;
/// Longest wait for the last answers.
const LAST: Duration = Duration::from_secs(10);

/// What a phase came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) answered: u64,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) elapsed: Duration,
    /// From when a call was due (at a given rate) or sent to its answer.
    pub(super) times: Times,
    /// How long after its time a call was sent.
    pub(super) late: Times,
}

impl Tally {
    pub(super) fn per_second(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (self.answered > 0 && seconds > 0.0).then(|| self.answered as f64 / seconds)
    }

    fn note(&mut self, begun: Instant, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.answered += 1;
                self.times.note(begun.elapsed());
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }
}

/// What is called, and how many at a time.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    pub(super) server: SocketAddr,
    pub(super) connections: usize,
    /// Calls under way on each connection when as many are made as are answered.
    pub(super) at_once: usize,
    pub(super) streams: Vec<String>,
    /// Devices for streams that come and go; one for each call under way.
    pub(super) spare: Vec<String>,
}

impl Drive {
    /// CreateViewer, as many as are answered.
    pub(super) async fn viewers(&self, length: Duration) -> anyhow::Result<Tally> {
        let this = self.clone();
        on_thread(async move {
            let prepared = Arc::new(this.prepared()?);
            let next = Arc::new(AtomicUsize::new(0));
            this.closed(length, move |_, line| {
                let (prepared, next) = (Arc::clone(&prepared), Arc::clone(&next));
                async move {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    create_viewer(&line, &prepared, n).await
                }
            })
            .await
        })
        .await
    }

    /// CreateStream and DeleteStream in turn, as many as are answered; a pair counts once.
    pub(super) async fn stream_pairs(&self, length: Duration) -> anyhow::Result<Tally> {
        let this = self.clone();
        on_thread(async move {
            let create =
                Prepared::new(this.server, CREATE_STREAM, &CreateStreamRequest::default())?;
            let delete =
                Prepared::new(this.server, DELETE_STREAM, &DeleteStreamRequest::default())?;
            let spare = this.spare.clone();
            this.closed(length, move |n, line| {
                let device = spare.get(n).cloned().unwrap_or_default();
                let create = create.with(&CreateStreamRequest {
                    stream: Some(Stream {
                        device: format!("devices/{device}"),
                        ..Stream::default()
                    }),
                    allow_pending: true,
                    ..CreateStreamRequest::default()
                });
                let name = format!("streams/{device}");
                let delete = delete.with(&DeleteStreamRequest { name, ..Default::default() });
                async move {
                    line.call(&create).await.map_err(|e| e.to_string())?;
                    line.call(&delete).await.map_err(|e| e.to_string())?;
                    Ok(())
                }
            })
            .await
        })
        .await
    }

    /// CreateViewer at `rate` per second, whether or not those before are answered.
    pub(super) async fn viewers_at(&self, rate: f64, length: Duration) -> anyhow::Result<Tally> {
        let this = self.clone();
        on_thread(async move { this.open(rate, length).await }).await
    }

    fn prepared(&self) -> anyhow::Result<Vec<Prepared>> {
        let request = |name: &String| {
            let role = ViewerRole::Observer.into();
            let grants = ViewerGrants { role, ..ViewerGrants::default() };
            CreateViewerRequest {
                parent: format!("streams/{name}"),
                viewer: Some(Viewer { grants: Some(grants), ..Viewer::default() }),
                join_ttl: Some(prost_types::Duration { seconds: TOKEN_LIFE_S, nanos: 0 }),
                ..CreateViewerRequest::default()
            }
        };
        let prepare = |name| Prepared::new(self.server, CREATE_VIEWER, &request(name));
        self.streams.iter().map(prepare).collect()
    }

    async fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let connect = (0..self.connections.max(1)).map(|_| Line::connect(self.server));
        futures::future::try_join_all(connect).await
    }

    /// Every slot calls again as soon as it is answered. Slots are numbered over all connections.
    async fn closed<F>(
        &self,
        length: Duration,
        call: impl Fn(usize, Line) -> F + Clone + Send + 'static,
    ) -> anyhow::Result<Tally>
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let lines = self.lines().await?;
        let start = Instant::now();
        let end = start + length;
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut slots = tokio::task::JoinSet::new();
        for n in 0..lines.len() * self.at_once.max(1) {
            let Some(line) = lines.get(n % lines.len()).cloned() else { continue };
            let (call, tally) = (call.clone(), Arc::clone(&tally));
            slots.spawn(async move {
                while Instant::now() < end {
                    let begun = Instant::now();
                    let outcome = call(n, line.clone()).await;
                    tally.lock().note(begun, outcome);
                }
            });
        }
        let all = async { while slots.join_next().await.is_some() {} };
        tokio::time::timeout(length + LAST, all).await.context("calls are never answered")?;
        let mut tally = tally.lock().clone();
        tally.elapsed = start.elapsed();
        Ok(tally)
    }

    async fn open(&self, rate: f64, length: Duration) -> anyhow::Result<Tally> {
        let lines = self.lines().await?;
        let prepared = Arc::new(self.prepared()?);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let under_way = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let mut due = pace(start, rate, length)?;
        let mut calls = tokio::task::JoinSet::new();
        let mut n = 0;
        while let Some(at) = due.recv().await {
            n += 1;
            // Those that have ended give their memory back.
            while calls.try_join_next().is_some() {}
            tally.lock().late.note(at.elapsed());
            if under_way.load(Ordering::Relaxed) >= UNDER_WAY_MAX {
                let why = format!("{UNDER_WAY_MAX} calls are under way: the rate is too high");
                tally.lock().note(at, Err(why));
                continue;
            }
            let Some(line) = lines.get(n % lines.len()).cloned() else { continue };
            let (prepared, tally) = (Arc::clone(&prepared), Arc::clone(&tally));
            let under_way = Arc::clone(&under_way);
            under_way.fetch_add(1, Ordering::Relaxed);
            calls.spawn(async move {
                let outcome = create_viewer(&line, &prepared, n).await;
                under_way.fetch_sub(1, Ordering::Relaxed);
                tally.lock().note(at, outcome);
            });
        }
        let elapsed = start.elapsed();
        let all = async { while calls.join_next().await.is_some() {} };
        tokio::time::timeout(LAST, all).await.context("calls are never answered")?;
        let mut tally = tally.lock().clone();
        tally.elapsed = elapsed;
        Ok(tally)
    }
}

async fn create_viewer(line: &Line, prepared: &[Prepared], n: usize) -> Result<(), String> {
    let call = prepared.get(n % prepared.len().max(1)).ok_or("no stream")?;
    let answer = line.call(call).await.map_err(|e: CallError| e.to_string())?;
    if n.is_multiple_of(LOOK_AT) {
        let answer = CreateViewerResponse::decode(answer).map_err(|e| e.to_string())?;
        if answer.join_token.is_empty() || answer.whep_url.is_empty() {
            return Err("an answer without token or address".to_owned());
        }
    }
    Ok(())
}

/// Gives each call's time when it has come. A thread, because the runtime's timers are coarser than
/// a millisecond.
#[expect(clippy::disallowed_methods, reason = "it is the timer: nothing else is waited for here")]
fn pace(
    start: Instant,
    rate: f64,
    length: Duration,
) -> anyhow::Result<mpsc::UnboundedReceiver<Instant>> {
    // Bounded by what is paced: the receiver takes everything at once.
    let (give, take) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("pace".to_owned()).spawn(move || {
        let mut n = 0_u32;
        loop {
            let due = start + Duration::from_secs_f64(f64::from(n) / rate);
            if due >= start + length {
                return;
            }
            let wait = due.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            if give.send(due).is_err() {
                return;
            }
            n += 1;
        }
    })?;
    Ok(take)
}

/// Runs on a thread of its own with one runtime, so that its CPU time is the calls' alone.
async fn on_thread<T: Send + 'static>(
    work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.context("no runtime for the calls");
        let _ = done.send(outcome.and_then(|runtime| runtime.block_on(work)));
    })?;
    result.await.context("the calls' thread ended")?
}
