//! `loadtest abuse`: clients with valid tokens that send garbage, lies, repeats and floods, one kind
//! after the other, while others watch. What a hostile packet costs the router, and whether the
//! others notice. Invariant: each kind has hostile viewers of its own and is compared with a quiet
//! phase of the same run.

use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum as _;
use serde_json::{Map, Value, json};

use super::{
    fanout::{ADDED, late, socket_drop_fault},
    set_up,
};
use crate::{
    crowd::Joined,
    lab::{Lab, LabArgs},
    publish::Pace,
    report::{Findings, OutputArgs, Plot},
    sample::{Sampler, tell},
    stats::whole,
    swarm::{Group, Milestone},
    viewer::Abuse,
};

/// Time for a viewer to have its first picture.
const FIRST: Duration = Duration::from_secs(30);
/// Between two salvos.
const SALVO: Duration = Duration::from_millis(10);
/// Time for a phase to be over: the last pictures arrive.
const SETTLE: Duration = Duration::from_millis(1_500);

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Viewers that watch
    #[arg(long, value_name = "N", default_value_t = 20)]
    others: usize,
    /// Hostile viewers at once
    #[arg(long, value_name = "N", default_value_t = 5)]
    hostile: usize,
    /// Hostile packets per second of each
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500.0)]
    rate: f64,
    /// How long each kind lasts
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only these kinds; may be given several times
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<Abuse>,
    #[command(flatten)]
    pub(super) lab: LabArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// What a phase came to.
struct Phase {
    sent: u64,
    path_p50_us: Option<f64>,
    path_p99_us: Option<f64>,
    added_p99_us: Option<f64>,
    cpu: Duration,
    lost: u64,
    undecodable: u64,
    keyframes: u64,
    moved: Value,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.others > 0 && args.hostile > 0, "both sides need somebody");
    anyhow::ensure!(args.rate > 0.0 && args.seconds > 0, "rate and seconds must be above zero");
    let lab = Lab::start(&args.lab, Pace::Moving, args.others + args.hostile * 12, None).await?;
    let measured = measure(args, &lab).await;
    lab.stop().await;
    measured
}

async fn measure(args: &Args, lab: &Lab) -> anyhow::Result<Findings> {
    let sampler = Sampler::start(lab.fleet.router.pid());
    join(lab, 0, args.others, Group::Observer).await?;
    tokio::time::sleep(SETTLE).await;
    let quiet = phase(args, lab, None, &[]).await?;
    let kinds = if args.kinds.is_empty() { Abuse::value_variants() } else { &args.kinds[..] };
    let mut phases = Vec::new();
    for kind in kinds {
        let hostile = join(lab, args.others, args.hostile, Group::Hostile).await?;
        phases.push((*kind, phase(args, lab, Some(*kind), &hostile).await?));
        for viewer in &hostile {
            lab.crowd.vanish(viewer).await?;
        }
    }

    let mut findings = Findings::new("abuse");
    findings.set("others", args.others);
    findings.set("hostile", args.hostile);
    findings.set("rate", args.rate);
    findings.set("seconds", args.seconds);
    set_up(&mut findings, &args.lab);
    findings.measured("other_viewers_latency_us_p50_alone", quiet.path_p50_us);
    findings.measured("other_viewers_latency_us_p99_alone", quiet.path_p99_us);
    findings.set("other_viewers_packets_lost_alone", quiet.lost);
    let mut details = Map::new();
    let mut bars = Vec::new();
    for (kind, phase) in &phases {
        let name = kind.name();
        findings.measured(&format!("{name}_other_viewers_latency_us_p99"), phase.path_p99_us);
        findings.set(&format!("{name}_other_viewers_packets_lost"), phase.lost);
        // Watching costs what it cost in the quiet phase, the hostile viewers' own too.
        let viewers = (args.others + args.hostile) as f64 / args.others as f64;
        let extra = phase.cpu.as_secs_f64() - quiet.cpu.as_secs_f64() * viewers;
        let each = (phase.sent > 0).then(|| (extra * 1e9 / phase.sent as f64).max(0.0));
        findings.optional(&format!("{name}_server_cpu_ns_per_packet"), each);
        bars.extend(phase.path_p99_us);
        details.insert(name.to_owned(), detail(phase));
    }
    findings.detail("kinds", details);
    findings.set("viewer_panics", lab.fleet.router.log_count("panicked"));
    if lab.fleet.router.log_count("panicked") > 0 {
        findings.fault("something panicked in the router");
    }
    let report = lab.crowd.swarm().report(false).await?;
    let closed = report.of(Group::Observer).count();
    if closed < args.others || lab.crowd.diaries().closed() > 0 {
        findings.fault("a viewer that did nothing wrong lost its connection");
    }
    late(&mut findings, lab, &report);
    socket_drop_fault(&mut findings, lab).await?;
    findings.plot(
        Plot::bars("Other viewers' p99 beside each kind of abuse", "kind", "us")
            .with("p99", (1_u32..).map(f64::from).zip(bars).collect()),
    );
    tell(&mut findings, &sampler.finish().await);
    Ok(findings)
}

fn detail(phase: &Phase) -> Value {
    json!({
        "hostile_packets_sent": phase.sent,
        "other_viewers_latency_us_p50": phase.path_p50_us,
        "other_viewers_latency_us_p99": phase.path_p99_us,
        "added_latency_us_p99": phase.added_p99_us,
        "server_cpu_ms": phase.cpu.as_secs_f64() * 1_000.0,
        "other_viewers_packets_lost": phase.lost,
        "other_viewers_frames_undecodable": phase.undecodable,
        "encoder_keyframe_requests": phase.keyframes,
        "router_counters": phase.moved,
    })
}

/// Viewers `from..from + count`, each with a picture.
async fn join(lab: &Lab, from: usize, count: usize, group: Group) -> anyhow::Result<Vec<Joined>> {
    let mut joined = Vec::new();
    for n in from..from + count {
        let ticket = lab.ticket(n).await?;
        joined.push(lab.crowd.join(&ticket, group, None).await.context("a join failed")?);
    }
    for viewer in &joined {
        let first = lab.crowd.diaries().wait(viewer.viewer, Milestone::FirstPicture, FIRST).await;
        first.with_context(|| format!("viewer {} ({group:?}) has no picture", viewer.viewer))?;
    }
    Ok(joined)
}

/// One kind for its time; none: quiet.
async fn phase(
    args: &Args,
    lab: &Lab,
    kind: Option<Abuse>,
    hostile: &[Joined],
) -> anyhow::Result<Phase> {
    let swarm = lab.crowd.swarm();
    let before = lab.fleet.scrape_settled().await?;
    let then = swarm.report(true).await?;
    let asked = lab.keyframes_asked();
    lab.open_windows();
    let usage = lab.fleet.usage()?;
    let start = tokio::time::Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let mut sent = 0_u64;
    let mut salvos = 0_u32;
    while let Some(kind) = kind.filter(|_| tokio::time::Instant::now() < end) {
        let due = whole(args.rate * SALVO.as_secs_f64() * f64::from(salvos + 1));
        let done = whole(args.rate * SALVO.as_secs_f64() * f64::from(salvos));
        for viewer in hostile {
            let count = u32::try_from(due - done).unwrap_or(u32::MAX);
            sent += u64::from(swarm.abuse(viewer.viewer, kind, count).await?);
        }
        salvos += 1;
        tokio::time::sleep_until((start + SALVO * salvos).min(end)).await;
    }
    tokio::time::sleep_until(end).await;
    // By the nanosecond: nobody joins, so no thread ends meanwhile.
    let cpu = lab.fleet.usage()?.threads_since(&usage, "").unwrap_or_default().0;
    lab.close_windows();
    let after = lab.fleet.scrape_settled().await?;
    tokio::time::sleep(SETTLE).await;
    let now = swarm.report(false).await?;
    let (mut lost, mut undecodable) = (0, 0);
    for viewer in now.of(Group::Observer) {
        let (from, to) = lab.streams.get(viewer.stream).context("no stream")?.window.bounds();
        let ledger = &lab.streams.get(viewer.stream).context("no stream")?.device.ledger;
        let expected = ledger.packets(from, to).context("a window was not published whole")?;
        let earlier = then.viewers.iter().find(|v| v.viewer == viewer.viewer);
        let earlier = earlier.map(|v| v.outcome.seen).unwrap_or_default();
        let seen = viewer.outcome.seen;
        lost += expected.saturating_sub(seen.window_packets - earlier.window_packets);
        undecodable += (seen.frames - seen.decodable) - (earlier.frames - earlier.decodable);
    }
    let path = &now.times(Group::Observer).path;
    let added = after.histogram_since(&before, ADDED, &[]);
    Ok(Phase {
        sent,
        path_p50_us: path.quantile_us(0.5),
        path_p99_us: path.quantile_us(0.99),
        added_p99_us: added.and_then(|added| added.quantile(0.99)),
        cpu,
        lost,
        undecodable,
        keyframes: lab.keyframes_asked() - asked,
        moved: serde_json::to_value(after.moved_since(&before))?,
    })
}
