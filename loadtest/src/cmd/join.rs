//! `loadtest join`: how fast people join, and what a join costs the router. Two phases: first
//! joins while the stream plays, at a steady rate (times), then joins of a stream that stands still
//! behind one keyframe, always the same number of them under way (cost: media would drown it, and
//! a router that sleeps between two joins pays for waking up instead). Invariant: a join that has
//! no keyframe in time is failed and has no time.

use std::time::{Duration, Instant};

use futures::StreamExt as _;

use super::{
    fanout::{SHARD_THREAD, late, socket_drop_fault},
    set_up,
};
use crate::{
    backend::Ticket,
    crowd::Joined,
    lab::{Lab, LabArgs},
    publish::Pace,
    report::{Findings, OutputArgs, Plot},
    sample::{Sampler, tell},
    server::Usage,
    stats::Times,
    swarm::{Group, Milestone},
    yardstick::Yardstick,
};

/// A join that has no picture after this has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Joins under way at once; at 100 per second a join of five seconds still has room.
const UNDER_WAY: usize = 512;
/// Time for what a phase has left behind.
const SETTLE: Duration = Duration::from_millis(1_500);

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Joins while the stream plays
    #[arg(long, default_value_t = 500)]
    joins: usize,
    /// Joins per second while the stream plays
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How long each viewer stays after it is current
    #[arg(long, value_name = "MS", default_value_t = 200)]
    hold_ms: u64,
    /// Joins that measure the cost; 0: the cost is that of the first phase, media included
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    cost_joins: usize,
    /// Of these, how many are under way at once
    #[arg(long, value_name = "N", default_value_t = 32)]
    cost_at_once: usize,
    /// The screen stands still in the first phase too
    #[arg(long = "static")]
    static_screen: bool,
    #[command(flatten)]
    pub(super) lab: LabArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// What became of joins.
#[derive(Debug, Default)]
struct Tally {
    joins: usize,
    failed: usize,
    why: Option<String>,
    answer: Times,
    connected: Times,
    keyframe: Times,
    newest: Times,
    corrupt: u64,
}

/// One join that was looked at to its end.
struct Done {
    outcome: anyhow::Result<Stages>,
}

struct Stages {
    answer: Duration,
    connected: Duration,
    keyframe: Duration,
    newest: Duration,
    corrupt: u64,
}

impl Tally {
    fn add(&mut self, done: Done) {
        self.joins += 1;
        match done.outcome {
            Ok(stages) => {
                self.answer.note(stages.answer);
                self.connected.note(stages.connected);
                self.keyframe.note(stages.keyframe);
                self.newest.note(stages.newest);
                self.corrupt += stages.corrupt;
            }
            Err(error) => {
                self.failed += 1;
                self.why.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.joins > 0, "at least one join is needed");
    anyhow::ensure!(args.rate > 0.0, "joins per second must be above zero");
    anyhow::ensure!(args.cost_at_once > 0, "at least one join must be under way");
    let pace = if args.static_screen { Pace::Static } else { Pace::Moving };
    let at_once = args.joins.max(args.cost_joins);
    let lab = Lab::start(&args.lab, pace, at_once, None).await?;
    let measured = measure(args, &lab).await;
    lab.stop().await;
    measured
}

async fn measure(args: &Args, lab: &Lab) -> anyhow::Result<Findings> {
    let tickets = lab.tickets(args.joins + args.cost_joins, false).await?;
    let (first, second) = tickets.split_at(args.joins);
    let sampler = Sampler::start(lab.fleet.router.pid());
    let hold = Duration::from_millis(args.hold_ms);

    let asked_before = lab.keyframes_asked();
    let usage_before = lab.fleet.usage()?;
    let started = Instant::now();
    let yardstick = Yardstick::start(&args.lab.pins)?;
    let tally = phase(lab, first, Flow::PerSecond(args.rate), hold).await;
    let took = started.elapsed();
    let usage = lab.fleet.usage()?;
    let asked = lab.keyframes_asked() - asked_before;

    let mut findings = Findings::new("join");
    findings.set("joins", tally.joins);
    findings.set("failed", tally.failed);
    findings.set("rate_asked", args.rate);
    findings.set("static", args.static_screen);
    set_up(&mut findings, &args.lab);
    times(&mut findings, &tally);
    findings.set("encoder_keyframe_requests", asked);
    findings.set("frames_corrupt", tally.corrupt);
    findings.set("seconds", took.as_secs_f64());
    let cost = |before: &Usage, after: &Usage, joins: usize| {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        (cpu > 0.0).then(|| joins as f64 / cpu)
    };
    let with_media = cost(&usage_before, &usage, tally.joins);
    findings.optional("joins_per_server_cpu_s_with_media", with_media);
    if args.cost_joins == 0 {
        findings.measured("joins_per_server_cpu_s", with_media);
    } else {
        lab.pace.send_replace(Pace::Static);
        tokio::time::sleep(SETTLE).await;
        let before = lab.fleet.usage()?;
        let started = Instant::now();
        let flow = Flow::AtOnce(args.cost_at_once);
        let tally = phase(lab, second, flow, Duration::ZERO).await;
        let took = started.elapsed();
        let after = lab.fleet.usage()?;
        let good = tally.joins - tally.failed;
        findings.set("cost_joins", tally.joins);
        findings.set("cost_at_once", args.cost_at_once);
        findings.optional("cost_joins_per_s", Some(good as f64 / took.as_secs_f64()));
        findings.set("cost_joins_failed", tally.failed);
        findings.measured("joins_per_server_cpu_s", cost(&before, &after, good));
        let shard = after.threads_since(&before, SHARD_THREAD);
        let per_join = |cpu: Duration| cpu.as_secs_f64() * 1_000.0 / good.max(1) as f64;
        findings.optional("shard_ms_per_join", shard.map(|(cpu, _)| per_join(cpu)));
        if let Some(why) = tally.why {
            findings.fault(format!("{} joins for the cost failed, the first: {why}", tally.failed));
        }
    }
    yardstick.tell(&mut findings);
    if let Some(why) = tally.why {
        findings.set("first_failure", why);
    }
    if tally.failed == tally.joins {
        findings.fault("every join failed");
    }
    late(&mut findings, lab, &lab.crowd.swarm().report(false).await?);
    socket_drop_fault(&mut findings, lab).await?;
    tell(&mut findings, &sampler.finish().await);
    Ok(findings)
}

fn times(findings: &mut Findings, tally: &Tally) {
    let mut both = |name: &str, times: &Times| {
        findings.measured(&format!("{name}_ms_p50"), times.quantile_ms(0.5));
        findings.measured(&format!("{name}_ms_p95"), times.quantile_ms(0.95));
    };
    both("post_to_keyframe", &tally.keyframe);
    both("post_to_newest", &tally.newest);
    both("post_to_answer", &tally.answer);
    both("post_to_connected", &tally.connected);
    findings.plot(
        Plot::lines("Joins", "ms after the POST", "part of joins")
            .with("answer", tally.answer.curve(100))
            .with("connected", tally.connected.curve(100))
            .with("first picture", tally.keyframe.curve(100))
            .with("newest picture", tally.newest.curve(100)),
    );
}

/// When the next join begins.
#[derive(Clone, Copy, Debug)]
enum Flow {
    /// By the clock, whatever became of those before.
    PerSecond(f64),
    /// When one of so many is over.
    AtOnce(usize),
}

/// Joins with all tickets; each viewer leaves by itself.
async fn phase(lab: &Lab, tickets: &[Ticket], flow: Flow, hold: Duration) -> Tally {
    let start = tokio::time::Instant::now();
    let joins = (0_u32..).zip(tickets).map(|(n, ticket)| async move {
        if let Flow::PerSecond(rate) = flow {
            let due = Duration::from_secs_f64(f64::from(n) / rate);
            tokio::time::sleep_until(start + due).await;
        }
        Done { outcome: one(lab, ticket, hold).await }
    });
    let under_way = match flow {
        Flow::PerSecond(_) => UNDER_WAY,
        Flow::AtOnce(most) => most,
    };
    let mut done = std::pin::pin!(futures::stream::iter(joins).buffer_unordered(under_way));
    let mut tally = Tally::default();
    while let Some(done) = done.next().await {
        tally.add(done);
    }
    tally
}

async fn one(lab: &Lab, ticket: &Ticket, hold: Duration) -> anyhow::Result<Stages> {
    let joined = lab.crowd.join(ticket, Group::Observer, None).await?;
    let stages = stages(lab, &joined).await;
    tokio::time::sleep(hold).await;
    let report = lab.crowd.leave(&joined).await?;
    let mut stages = stages?;
    stages.corrupt = report.map_or(0, |r| r.outcome.seen.corrupt);
    Ok(stages)
}

async fn stages(lab: &Lab, joined: &Joined) -> anyhow::Result<Stages> {
    let diaries = lab.crowd.diaries();
    let since = |at: Instant| at.saturating_duration_since(joined.posted);
    let reach = async |what: Milestone| {
        let at = diaries.wait(joined.viewer, what, LIMIT).await;
        at.map(since).ok_or_else(|| anyhow::anyhow!("{what:?} did not come in {LIMIT:?}"))
    };
    Ok(Stages {
        answer: since(joined.answered),
        connected: reach(Milestone::Connected).await?,
        keyframe: reach(Milestone::FirstPicture).await?,
        newest: reach(Milestone::Current).await?,
        corrupt: 0,
    })
}
