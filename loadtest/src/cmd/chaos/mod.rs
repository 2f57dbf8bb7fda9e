//! `loadtest chaos`: a fleet on loopback, people who watch, and one fault after the other. What they
//! see of each: how long the picture stood still, who lost it, whether newcomers get in, how long
//! until all is as before. Invariant: each fault begins in a steady state, which is a condition and
//! not a pause, and its figures are of pictures that were really shown.

mod faults;
mod history;
mod people;
mod town;
mod wires;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{
    faults::{Fault, strike},
    history::{History, Step},
    people::{Person, Square},
    town::Town,
};
use crate::{
    backend::{Backend, Ticket},
    crowd::Diaries,
    report::{Findings, OutputArgs, Plot},
    stats::Times,
    swarm::{Eyes, Swarm},
};

/// Time for everybody to have a picture before the first fault, and between two.
const STEADY: Duration = Duration::from_secs(60);
/// A picture that is older stands still.
const STILL: Duration = Duration::from_millis(500);
/// All is as before when nobody's picture stood still for so long.
const CALM: Duration = Duration::from_secs(2);
/// Between two looks at everybody.
const LOOK: Duration = Duration::from_millis(50);
/// Between two newcomers, and how long each is given.
const NEWCOMER: Duration = Duration::from_millis(500);
const NEWCOMER_LIMIT: Duration = Duration::from_secs(5);
/// Tokens made for newcomers before each fault; when they are used up nobody comes any more.
const NEWCOMERS_MAX: usize = 60;

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// What goes wrong, in this order; all when not given, those of Redis only where there is one
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// People who watch, spread over the streams
    #[arg(long, value_name = "N", default_value_t = 200)]
    viewers: usize,
    /// Where the control replicas keep their state: memory://, redis://host:port, or redis:// for a
    /// redis-server that is started with them
    #[arg(long, value_name = "URL", default_value = "memory://")]
    store: String,
    /// Control replicas; more than one need a store that they share
    #[arg(long, value_name = "N", default_value_t = 1)]
    controls: usize,
    /// Routers
    #[arg(long, value_name = "N", default_value_t = 3)]
    routers: usize,
    /// Ingest workers
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,
    /// Simulated devices; each has a stream
    #[arg(long, value_name = "N", default_value_t = 10)]
    devices: usize,
    /// Pictures per second of each device
    #[arg(long, default_value_t = 30)]
    fps: u32,
    /// Bit rate of each device
    #[arg(long, value_name = "BPS", default_value_t = 500_000)]
    bitrate_bps: u64,
    /// Longest time that a fault and its healing are watched
    #[arg(long, value_name = "SECONDS", default_value_t = 40)]
    observe_seconds: u64,
    /// Executable with all roles; default: this one
    #[arg(long, value_name = "FILE")]
    server_exe: Option<PathBuf>,
    /// Folder for the processes' logs and state, kept afterwards; default: a temporary one
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// What came of one fault.
#[derive(Clone, Debug, Default, Serialize)]
struct Outcome {
    name: &'static str,
    viewers: usize,
    /// People without a picture in the end.
    viewers_lost: usize,
    /// People whose picture stood still at all.
    viewers_frozen: usize,
    freeze_ms_p50: Option<f64>,
    freeze_ms_p99: Option<f64>,
    freeze_ms_max: Option<f64>,
    /// From the fault until nobody's picture stood still any more; `None`: it still did.
    steady_after_ms: Option<f64>,
    /// Joins of people who had been there before.
    rejoins: u64,
    /// Moves that routers asked for.
    moves: u64,
    /// Newcomers with tokens made before: how many tried, how many saw a picture in time.
    rejoins_during_fault: u64,
    rejoins_during_fault_ok: u64,
    /// How processes noticed and mended it, as their logs tell.
    steps: Vec<Step>,
    /// Seconds since the fault, and how many pictures stood still then.
    #[serde(skip)]
    still: Vec<(f64, f64)>,
}

/// Everything that runs.
struct Scene {
    town: Town,
    square: Arc<Square>,
    people: Vec<Arc<Person>>,
    lives: JoinSet<()>,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    let faults = chosen(args)?;
    let mut scene = Scene::start(args).await?;
    let measured = measure(args, &faults, &mut scene).await;
    scene.stop().await;
    measured
}

fn chosen(args: &Args) -> anyhow::Result<Vec<Fault>> {
    for (what, n) in [
        ("viewer", args.viewers),
        ("control replica", args.controls),
        ("router", args.routers),
        ("worker", args.workers),
        ("device", args.devices),
    ] {
        anyhow::ensure!(n > 0, "at least one {what} is needed");
    }
    anyhow::ensure!(
        args.controls == 1 || args.store != "memory://",
        "{} control replicas need a store that they share: --store redis://",
        args.controls
    );
    // Only one of ours can be killed.
    let redis = args.store == "redis://";
    if args.faults.is_empty() {
        return Ok(Fault::ALL.into_iter().filter(|f| redis || !f.needs_redis()).collect());
    }
    if let Some(fault) = args.faults.iter().find(|f| f.needs_redis() && !redis) {
        anyhow::bail!("{} needs --store redis://", fault.name());
    }
    Ok(args.faults.clone())
}

impl Scene {
    async fn start(args: &Args) -> anyhow::Result<Self> {
        let town = Town::start(args).await?;
        let mut backends = Vec::new();
        for control in &town.controls {
            backends.push(Backend::connect(control.grpc).await?);
        }
        let first = backends.first().context("there is no control API")?;
        first.streams(&town.names).await?;
        let (swarm, notes) = Swarm::start(1, &town.streams)?;
        let square = Arc::new(Square {
            swarm: Arc::new(swarm),
            diaries: Diaries::keep(notes),
            http: Square::http()?,
            redirects: town.controls.iter().map(|c| format!("http://{}", c.grpc)).collect(),
            backends,
            names: town.names.clone(),
            rejoins: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            end: CancellationToken::new(),
        });
        let start = Instant::now();
        let person = |n| Person { stream: n % args.devices, eyes: Arc::new(Eyes::new(start)) };
        let people: Vec<Arc<Person>> = (0..args.viewers).map(|n| Arc::new(person(n))).collect();
        let mut lives = JoinSet::new();
        for (n, person) in people.iter().enumerate() {
            let (person, square) = (Arc::clone(person), Arc::clone(&square));
            lives.spawn(async move { person.watch(&square, n).await });
        }
        Ok(Self { town, square, people, lives })
    }

    /// People whose picture stands still, or who never had one.
    fn still(&self) -> usize {
        still(&self.people)
    }

    /// Waits until everybody has had a picture that moves, for a while.
    async fn steady(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STEADY;
        let mut calm = Instant::now();
        while calm.elapsed() < CALM {
            if self.still() > 0 {
                calm = Instant::now();
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{} of {} people have no picture that moves after {STEADY:?}",
                self.still(),
                self.people.len()
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn stop(mut self) {
        self.square.end.cancel();
        while self.lives.join_next().await.is_some() {}
        drop(self.square);
        self.town.stop().await;
    }
}

fn still(people: &[Arc<Person>]) -> usize {
    let now = Instant::now();
    people.iter().filter(|p| p.eyes.since(now).is_none_or(|since| since > STILL)).count()
}

async fn measure(args: &Args, faults: &[Fault], scene: &mut Scene) -> anyhow::Result<Findings> {
    let mut findings = Findings::new("chaos");
    findings.set("viewers", args.viewers);
    findings.set("store", args.store.split("://").next().unwrap_or_default());
    findings.set("controls", args.controls);
    findings.set("routers", args.routers);
    findings.set("workers", args.workers);
    findings.set("streams", args.devices);
    findings.set("fps", args.fps);
    findings.set("debug_build", cfg!(debug_assertions));
    let mut outcomes = Vec::new();
    for &fault in faults {
        // A state that never comes is what the fault before left behind: the rest has no meaning.
        if let Err(error) = scene.steady().await {
            findings.fault(format!("before {}: {error}", fault.name()));
            break;
        }
        let outcome = observe(args, fault, scene).await;
        match outcome.with_context(|| fault.name().to_owned()) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => findings.fault(format!("{error:#}")),
        }
    }
    tell(&mut findings, &outcomes);
    let report = scene.square.swarm.report(false).await?;
    let corrupt: u64 = report.viewers.iter().map(|v| v.outcome.seen.corrupt).sum();
    findings.set("frames_corrupt", corrupt);
    judge(&mut findings, &scene.town)?;
    Ok(findings)
}

/// One fault, from a steady state to the next one.
async fn observe(args: &Args, fault: Fault, scene: &mut Scene) -> anyhow::Result<Outcome> {
    let Scene { town, square, people, .. } = scene;
    let mut tickets = Vec::new();
    for n in 0..NEWCOMERS_MAX {
        tickets.push(square.ticket(n % args.devices, n).await.context("tokens for newcomers")?);
    }
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let (rejoins, moves) = (count(&square.rejoins), count(&square.moves));
    people.iter().for_each(|person| person.eyes.open());
    let (begun, begun_at) = (Instant::now(), SystemTime::now());
    let over = CancellationToken::new();
    let newcomers = tokio::spawn(newcomers(Arc::clone(square), tickets, over.clone()));
    let limit = Duration::from_secs(args.observe_seconds);
    let backends = square.backends.clone();
    let (struck, watched) = {
        let struck = std::cell::Cell::new(false);
        let strike = async {
            let outcome = tokio::time::timeout(limit, strike(fault, town, &backends)).await;
            struck.set(true);
            outcome
        };
        let watch = watch(people, begun, limit, || struck.get());
        tokio::join!(strike, watch)
    };
    let now = Instant::now();
    over.cancel();
    let (tried, ok) = newcomers.await.context("the newcomers' task ended")?;
    struck.context("the fault took too long")??;
    let mut outcome = freezes(args, people, now);
    outcome.name = fault.name();
    outcome.viewers_lost = still(people);
    outcome.steady_after_ms = watched.steady_after.map(|d| d.as_secs_f64() * 1_000.0);
    outcome.still = watched.still;
    let told = town.logs().into_iter().flat_map(|(who, text)| history::steps(who, &text, begun_at));
    outcome.steps = history::in_order(told.collect());
    outcome.rejoins = count(&square.rejoins) - rejoins;
    outcome.moves = count(&square.moves) - moves;
    (outcome.rejoins_during_fault, outcome.rejoins_during_fault_ok) = (tried, ok);
    Ok(outcome)
}

/// What was seen while a fault lasted.
struct Watched {
    /// `None`: somebody's picture stood still to the end.
    steady_after: Option<Duration>,
    still: Vec<(f64, f64)>,
}

/// Looks at everybody until the fault is over and all is calm, or the time is up.
async fn watch(
    people: &[Arc<Person>],
    begun: Instant,
    limit: Duration,
    is_over: impl Fn() -> bool,
) -> Watched {
    let mut points = Vec::new();
    let mut last_still = Duration::ZERO;
    loop {
        let at = begun.elapsed();
        let n = still(people);
        points.push((at.as_secs_f64(), n as f64));
        if n > 0 {
            last_still = at;
        }
        let calm = at.saturating_sub(last_still) >= CALM;
        if (is_over() && calm) || at >= limit {
            let steady_after = calm.then_some(last_still);
            return Watched { steady_after, still: points };
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// New people, one every half second; gives how many tried and how many saw a picture.
async fn newcomers(
    square: Arc<Square>,
    tickets: Vec<Ticket>,
    over: CancellationToken,
) -> (u64, u64) {
    let mut under_way = JoinSet::new();
    let mut tried = 0;
    for ticket in tickets {
        tokio::select! {
            () = tokio::time::sleep(NEWCOMER) => {}
            () = over.cancelled() => break,
        }
        tried += 1;
        let square = Arc::clone(&square);
        under_way.spawn(async move { square.newcomer(&ticket, NEWCOMER_LIMIT).await });
    }
    let mut ok = 0;
    while let Some(came) = under_way.join_next().await {
        ok += u64::from(came.unwrap_or(false));
    }
    (tried, ok)
}

/// How long pictures stood still: the longest time between two, less what is usual.
fn freezes(args: &Args, people: &[Arc<Person>], now: Instant) -> Outcome {
    let usual = Duration::from_secs(1) / args.fps.max(1);
    let mut times = Times::default();
    let mut frozen = 0;
    for longest in people.iter().filter_map(|person| person.eyes.longest(now)) {
        times.note(longest.saturating_sub(usual));
        frozen += usize::from(longest > STILL);
    }
    Outcome {
        viewers: people.len(),
        viewers_frozen: frozen,
        freeze_ms_p50: times.quantile_ms(0.5),
        freeze_ms_p99: times.quantile_ms(0.99),
        freeze_ms_max: times.max_us().map(|us| us / 1_000.0),
        ..Outcome::default()
    }
}

fn tell(findings: &mut Findings, outcomes: &[Outcome]) {
    let mut plot = Plot::lines("Pictures that stand still", "seconds since the fault", "people");
    for outcome in outcomes {
        let name = |figure: &str| format!("{}_{figure}", outcome.name);
        findings.measured(&name("freeze_ms_p50"), outcome.freeze_ms_p50);
        findings.measured(&name("freeze_ms_p99"), outcome.freeze_ms_p99);
        findings.measured(&name("freeze_ms_max"), outcome.freeze_ms_max);
        findings.set(&name("viewers_lost"), outcome.viewers_lost);
        findings.measured(&name("steady_after_ms"), outcome.steady_after_ms);
        let (ok, tried) = (outcome.rejoins_during_fault_ok, outcome.rejoins_during_fault);
        findings.set(&name("rejoins_during_fault_ok"), format!("{ok} of {tried}"));
        if outcome.viewers_lost > 0 {
            let n = outcome.viewers_lost;
            findings.fault(format!("{}: {n} people have no picture in the end", outcome.name));
        }
        plot = plot.with(outcome.name, outcome.still.clone());
    }
    findings.detail("outcomes", outcomes);
    findings.plot(plot);
    // In order: x is the number of the fault.
    let bars = |f: fn(&Outcome) -> Option<f64>| {
        (1_u32..).zip(outcomes).filter_map(|(n, o)| Some((f64::from(n), f(o)?))).collect()
    };
    findings.plot(
        Plot::bars("Longest freeze of each fault, in order", "fault", "ms")
            .with("longest", bars(|o| o.freeze_ms_max)),
    );
}

/// Where streams were published, and what the processes say of panics.
fn judge(findings: &mut Findings, town: &Town) -> anyhow::Result<()> {
    let mut history = History::default();
    let mut panics = 0;
    for router in &town.routers {
        history.read(router.service.name(), &router.service.log())?;
    }
    for (_, log) in town.logs() {
        panics += log.matches("panicked").count();
    }
    let verdict = history.verdict(&town.names);
    findings.set("publishes", verdict.publishes);
    findings.set("dual_origin_intervals", verdict.dual_origin_intervals);
    findings.set("epochs_backwards", verdict.epochs_backwards);
    findings.set("panics", panics);
    if let Some(first) = verdict.first {
        findings.fault(format!("the history of publishes is wrong: {first}"));
    }
    if panics > 0 {
        findings.fault(format!("{panics} panics in the logs"));
    }
    Ok(())
}
