//! `loadtest churn` and `loadtest soak`: people come and go, properly or by vanishing, while others
//! stay. What the stayers lose, what the router keeps of those who left, and how its memory,
//! sockets and threads grow. A soak is a long churn. Invariant: a leftover is what the router still
//! holds after every deadline of its own has passed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::StreamExt as _;

use super::{
    fanout::{Stamps, added, gather, late, losses, packets, socket_drop_fault},
    set_up,
};
use crate::{
    lab::{Lab, LabArgs},
    publish::Pace,
    report::{Findings, OutputArgs, Plot},
    sample::{Sample, Sampler, tell},
    server::Scrape,
    stats::{Times, slope_per_hour, whole},
    swarm::{Group, Milestone},
};

/// Viewers with state on the router's shards.
const VIEWERS: &str = "fanlight_router_shard_viewers";
/// WHEP sessions made and ended.
const OPENED: &str = "fanlight_router_sessions_opened_total";
const CLOSED: &str = "fanlight_router_sessions_closed_total";
/// A join that has no picture after this has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest that a viewer who vanished may be remembered: consent runs out after half a minute.
const FORGET: Duration = Duration::from_secs(60);
/// Time for the last pictures to arrive.
const SETTLE: Duration = Duration::from_millis(1_500);
/// Share of the samples, from the beginning, that do not count for the slopes: buffers and tables
/// reach their size in it.
const WARM_UP: f64 = 0.25;

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Viewers that stay
    #[arg(long, value_name = "N", default_value_t = 20)]
    stayers: usize,
    /// Others that come, per second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 10.0)]
    rate: f64,
    /// How long they stay on average
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    hold: f64,
    /// Part of them that vanishes without a word, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 20.0)]
    vanish_percent: f64,
    /// How long people come and go; churn: 60, soak: 1800
    #[arg(long)]
    seconds: Option<u64>,
    #[command(flatten)]
    pub(super) lab: LabArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Default)]
struct Comings {
    joins: AtomicU64,
    failed: AtomicU64,
    vanished: AtomicU64,
    corrupt: AtomicU64,
}

pub(super) async fn run(
    args: &Args,
    command: &'static str,
    seconds: u64,
) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.stayers > 0, "somebody has to stay");
    anyhow::ensure!(args.rate > 0.0 && args.hold > 0.0, "rate and hold must be above zero");
    let seconds = args.seconds.unwrap_or(seconds);
    // At three times the mean almost everybody has left, vanished ones aside.
    let at_once = args.stayers + whole(args.rate * (args.hold * 3.0 + FORGET.as_secs_f64()));
    let lab = Lab::start(&args.lab, Pace::Moving, at_once, None).await?;
    let measured = measure(args, command, seconds, &lab).await;
    lab.stop().await;
    measured
}

async fn measure(
    args: &Args,
    command: &'static str,
    seconds: u64,
    lab: &Lab,
) -> anyhow::Result<Findings> {
    let stayers = gather(lab, args.stayers, 50.0).await?;
    tokio::time::sleep(SETTLE).await;
    let before = lab.fleet.scrape_settled().await?;
    let asked_before = lab.keyframes_asked();
    let sampler = Sampler::start(lab.fleet.router.pid());
    lab.open_windows();
    let comings = Comings::default();
    let times = come_and_go(args, lab, seconds, &comings).await;
    lab.close_windows();
    tokio::time::sleep(SETTLE).await;
    let samples = sampler.finish().await;
    let report = lab.crowd.swarm().report(false).await?;
    let (left_over, after) = forgotten(lab, stayers.len(), &before).await?;

    let mut findings = Findings::new(command);
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    findings.set("stayers", args.stayers);
    findings.set("seconds", seconds);
    findings.set("rate", args.rate);
    set_up(&mut findings, &args.lab);
    findings.set("joins", count(&comings.joins));
    findings.set("failed", count(&comings.failed));
    findings.set("vanished", count(&comings.vanished));
    findings.set("churner_frames_corrupt", count(&comings.corrupt));
    findings.measured("post_to_keyframe_ms_p50", times.quantile_ms(0.5));
    findings.measured("post_to_keyframe_ms_p95", times.quantile_ms(0.95));
    packets(&mut findings, lab, &report)?;
    findings.set("encoder_keyframe_requests", lab.keyframes_asked() - asked_before);
    findings.measured("viewers_left_over", left_over.viewers);
    findings.measured("sessions_left_over", left_over.sessions);
    leaks(&mut findings, &before, &after);
    added(&mut findings, &before, &after, Stamps::Needed);
    losses(&mut findings, &before, &after);
    late(&mut findings, lab, &report);
    growth(&mut findings, &samples);
    findings.set("panics", lab.fleet.router.log_count("panicked"));
    for (what, n) in [("viewers", left_over.viewers), ("sessions", left_over.sessions)] {
        if let Some(n) = n.filter(|n| *n > 0.0) {
            findings.fault(format!("the router still holds {n} {what} of those who left"));
        }
    }
    socket_drop_fault(&mut findings, lab).await?;
    tell(&mut findings, &samples);
    findings.plot(
        Plot::lines("Joins under churn", "ms after the POST", "part of joins")
            .with("first picture", times.curve(100)),
    );
    Ok(findings)
}

/// Joins and leaves at the asked rate; gives the times to the first picture.
async fn come_and_go(args: &Args, lab: &Lab, seconds: u64, comings: &Comings) -> Times {
    let start = tokio::time::Instant::now();
    let total = whole(args.rate * seconds as f64);
    let at_once = whole((args.rate * (args.hold * 3.0 + LIMIT.as_secs_f64())).ceil());
    let visits = (0..total).map(|n| async move {
        let due = Duration::from_secs_f64(n as f64 / args.rate);
        tokio::time::sleep_until(start + due).await;
        let visited = visit(args, lab, n, comings).await;
        visited.inspect_err(|error| {
            tracing::warn!("a visit failed: {error:#}");
            comings.failed.fetch_add(1, Ordering::Relaxed);
        })
    });
    let mut times = Times::default();
    let mut visits = std::pin::pin!(futures::stream::iter(visits).buffer_unordered(at_once.max(1)));
    while let Some(visited) = visits.next().await {
        if let Ok(time) = visited {
            times.note(time);
        }
    }
    times
}

/// One short visit; gives the time to the first picture.
async fn visit(args: &Args, lab: &Lab, n: usize, comings: &Comings) -> anyhow::Result<Duration> {
    comings.joins.fetch_add(1, Ordering::Relaxed);
    let ticket = lab.ticket(n).await?;
    let joined = lab.crowd.join(&ticket, Group::Observer, None).await?;
    let first = lab.crowd.diaries().wait(joined.viewer, Milestone::FirstPicture, LIMIT).await;
    // Exponential, as visits that know nothing of each other are.
    let stay = -args.hold * (1.0 - rand::random::<f64>()).ln();
    tokio::time::sleep(Duration::from_secs_f64(stay.min(args.hold * 3.0))).await;
    let vanishes = rand::random::<f64>() * 100.0 < args.vanish_percent;
    let report = if vanishes {
        comings.vanished.fetch_add(1, Ordering::Relaxed);
        lab.crowd.vanish(&joined).await?
    } else {
        lab.crowd.leave(&joined).await?
    };
    let corrupt = report.map_or(0, |r| r.outcome.seen.corrupt);
    comings.corrupt.fetch_add(corrupt, Ordering::Relaxed);
    let first = first.context("it had no picture in time")?;
    Ok(first.saturating_duration_since(joined.posted))
}

/// What the router still holds of those who left.
struct LeftOver {
    /// Viewers on its shards.
    viewers: Option<f64>,
    /// WHEP sessions.
    sessions: Option<f64>,
}

/// Waits until the router knows the stayers only; gives what else it knows in the end.
async fn forgotten(
    lab: &Lab,
    stayers: usize,
    before: &Scrape,
) -> anyhow::Result<(LeftOver, Scrape)> {
    let deadline = Instant::now() + FORGET;
    loop {
        let scrape = lab.fleet.scrape_settled().await?;
        let viewers = scrape.sum(VIEWERS).map(|n| n - stayers as f64);
        let opened = scrape.since(before, OPENED);
        // A counter is shown from its first count on.
        let closed = scrape.since(before, CLOSED).unwrap_or(0.0);
        let sessions = opened.map(|opened| opened - closed);
        let clean = [viewers, sessions].into_iter().flatten().all(|n| n <= 0.0);
        if clean || Instant::now() >= deadline {
            let left = |n: Option<f64>| n.map(|n| n.max(0.0));
            return Ok((LeftOver { viewers: left(viewers), sessions: left(sessions) }, scrape));
        }
    }
}

/// What the router counted of trouble.
fn leaks(findings: &mut Findings, before: &Scrape, after: &Scrape) {
    let since = |name| after.since(before, name).unwrap_or(0.0);
    let panics = since("fanlight_router_viewer_panics_total");
    for (name, metric) in [
        ("viewer_panics", "fanlight_router_viewer_panics_total"),
        ("viewer_errors", "fanlight_router_viewer_errors_total"),
        ("sessions_opened", OPENED),
        ("sessions_closed", CLOSED),
    ] {
        findings.optional(name, Some(since(metric)));
    }
    if panics > 0.0 {
        findings.fault(format!("{panics} viewers made the protocol library panic"));
    }
}

fn growth(findings: &mut Findings, samples: &[Sample]) {
    let skip = whole(samples.len() as f64 * WARM_UP);
    let warm = samples.get(skip..).unwrap_or_default();
    let slope = |f: &dyn Fn(&Sample) -> f64| {
        let points: Vec<(f64, f64)> = warm.iter().map(|s| (s.at.as_secs_f64(), f(s))).collect();
        slope_per_hour(&points)
    };
    let memory = slope(&|s| s.memory.anonymous as f64);
    findings.measured("memory_growth_bytes_per_hour", memory);
    findings.measured("files_growth_per_hour", slope(&|s| s.files as f64));
    findings.measured("threads_growth_per_hour", slope(&|s| s.threads as f64));
    let last = |f: &dyn Fn(&Sample) -> f64| samples.last().map(f);
    findings.optional("server_rss_bytes", last(&|s| s.memory.resident as f64));
    findings.optional("server_files", last(&|s| s.files as f64));
}
