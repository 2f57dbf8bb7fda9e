//! `loadtest fanout`: many viewers of a few streams, each packet decrypted and checked, and what it
//! cost the router. Not joins (`join`) and not bad networks (`loss`). Invariant: `packets_lost` is
//! everything that was published for a viewer and did not arrive verified, whoever lost it; what
//! our own sockets dropped makes the run void.

use std::time::Duration;

use anyhow::Context as _;

use super::set_up;
use crate::{
    crowd::Joined,
    lab::{Lab, LabArgs},
    publish::Pace,
    report::{Findings, OutputArgs, Plot},
    sample::{Sampler, tell},
    server::{Scrape, Usage, socket_drops},
    stats::Times,
    swarm::{Group, Milestone, Report, ViewerReport},
    yardstick::Yardstick,
};

/// The router's histogram of added latency.
pub(super) const ADDED: &str = "fanlight_router_added_latency_within_total";
/// Name that the router's shard threads begin with.
pub(super) const SHARD_THREAD: &str = "fl-shard";
/// Time for a viewer to have its first picture.
const FIRST: Duration = Duration::from_secs(30);
/// Time for the last pictures of a window to arrive and be repaired.
const SETTLE: Duration = Duration::from_millis(1_500);

/// A load that is later than this is worth a warning.
const LATE_MS: f64 = 20.0;
/// Shards that wait longer than this for their CPU are worth a warning.
const WAITED_PERCENT: f64 = 5.0;

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Viewers in all
    #[arg(long, default_value_t = 100)]
    viewers: usize,
    /// How long they are measured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Joins per second
    #[arg(long, default_value_t = 50.0)]
    join_rate: f64,
    #[command(flatten)]
    pub(super) lab: LabArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.viewers > 0 && args.seconds > 0, "viewers and seconds start at 1");
    let lab = Lab::start(&args.lab, Pace::Moving, args.viewers, None).await?;
    let measured = measure(args, &lab).await;
    lab.stop().await;
    measured
}

/// Joins with tokens for everybody and waits until all have a picture.
pub(super) async fn gather(
    lab: &Lab,
    viewers: usize,
    join_rate: f64,
) -> anyhow::Result<Vec<Joined>> {
    let tickets = lab.tickets(viewers, true).await?;
    let group = |controller| if controller { Group::Controller } else { Group::Observer };
    let tickets: Vec<_> = tickets
        .into_iter()
        .map(|t| {
            let g = group(t.controller);
            (t, g, None)
        })
        .collect();
    let joined = lab.crowd.join_all(&tickets, join_rate).await;
    let joined = joined.into_iter().collect::<Result<Vec<_>, _>>().context("a join failed")?;
    for viewer in &joined {
        let first = lab.crowd.diaries().wait(viewer.viewer, Milestone::FirstPicture, FIRST).await;
        first.with_context(|| format!("viewer {} has no picture", viewer.viewer))?;
    }
    Ok(joined)
}

async fn measure(args: &Args, lab: &Lab) -> anyhow::Result<Findings> {
    let idle = lab.fleet.memory()?;
    let sampler = Sampler::start(lab.fleet.router.pid());
    gather(lab, args.viewers, args.join_rate).await?;
    // Joins leave buffers and replays behind; their cost is not that of the fan-out.
    tokio::time::sleep(SETTLE).await;
    let before = lab.fleet.scrape_settled().await?;
    let drops_before = drops(lab).await?;
    let asked_before = lab.keyframes_asked();
    // Distributions begin with the window.
    lab.crowd.swarm().report(true).await?;
    lab.open_windows();
    let sent = |lab: &Lab| -> Vec<u64> {
        lab.streams.iter().map(|s| s.device.ledger.packets_so_far()).collect()
    };
    let own = || Usage::of(std::process::id()).context("this process's own CPU time");
    let yardstick = Yardstick::start(&args.lab.pins)?;
    let (usage_before, sent_before, own_before) = (lab.fleet.usage()?, sent(lab), own()?);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (usage, sent, own) = (lab.fleet.usage()?, sent(lab), own()?);
    let memory = lab.fleet.memory()?;
    lab.close_windows();
    let after = lab.fleet.scrape_settled().await?;
    tokio::time::sleep(SETTLE).await;
    let report = lab.crowd.swarm().report(false).await?;
    let samples = sampler.finish().await;
    let drops = drops(lab).await?;

    let mut findings = Findings::new("fanout");
    findings.set("viewers", args.viewers);
    findings.set("seconds", args.seconds);
    set_up(&mut findings, &args.lab);
    let totals = packets(&mut findings, lab, &report)?;
    if lab.crowd.diaries().closed() > 0 {
        findings.fault(format!("{} viewers lost their connection", lab.crowd.diaries().closed()));
    }
    match (drops_before, drops) {
        (Some(then), Some(now)) => {
            findings.set("load_socket_drops", now - then);
            if now > then {
                let n = now - then;
                findings.fault(format!("the load's own sockets dropped {n} datagrams: too slow"));
            }
        }
        _ => findings.fault("the load's own socket drops cannot be read"),
    }
    // What was published for each viewer while the CPU was watched, less the part that was lost.
    let published = |v: &ViewerReport| sent.get(v.stream).zip(sent_before.get(v.stream));
    let packets: u64 = report.viewers.iter().filter_map(published).map(|(b, a)| b - a).sum();
    let packets = packets as f64 * totals.arrived;
    cost(&mut findings, args, &totals, packets, &usage_before, &usage);
    let own = own.cpu.saturating_sub(own_before.cpu).as_secs_f64();
    findings.optional("load_cpu_percent", Some(100.0 * own / args.seconds as f64));
    yardstick.tell(&mut findings);
    added(&mut findings, &before, &after, Stamps::Needed);
    losses(&mut findings, &before, &after);
    path(&mut findings, lab, &report);
    let per_viewer = |now: u64, then: u64| (now as f64 - then as f64) / args.viewers as f64;
    findings
        .measured("server_rss_bytes_per_viewer", Some(per_viewer(memory.resident, idle.resident)));
    findings.set("server_rss_bytes", memory.resident);
    findings.set("server_rss_bytes_idle", idle.resident);
    findings.set("encoder_keyframe_requests", lab.keyframes_asked() - asked_before);
    tell(&mut findings, &samples);
    Ok(findings)
}

/// What the window should have brought.
pub(super) struct Totals {
    /// Part of the expected packets that arrived.
    arrived: f64,
    packets_per_frame: f64,
}

/// Expected and verified packets of all viewers.
pub(super) fn packets(
    findings: &mut Findings,
    lab: &Lab,
    report: &Report,
) -> anyhow::Result<Totals> {
    let (mut expected, mut frames_expected) = (0, 0);
    let mut of_stream = Vec::new();
    for stream in &lab.streams {
        let (from, to) = stream.window.bounds();
        let packets = stream.device.ledger.packets(from, to);
        of_stream.push((packets.context("a window was not published whole")?, to - from));
    }
    for viewer in &report.viewers {
        let (packets, frames) = of_stream.get(viewer.stream).copied().unwrap_or_default();
        expected += packets;
        frames_expected += frames;
    }
    let sum = |f: &dyn Fn(&crate::viewer::Outcome) -> u64| {
        report.viewers.iter().map(|v| f(&v.outcome)).sum::<u64>()
    };
    let verified = sum(&|o| o.seen.window_packets);
    findings.set("packets_expected", expected);
    findings.set("packets_verified", verified);
    findings.set("packets_lost", expected.saturating_sub(verified));
    findings.set("frames_expected", frames_expected);
    findings.set("frames_verified", sum(&|o| o.seen.window_frames));
    findings.set("frames_corrupt", sum(&|o| o.seen.corrupt));
    findings.set("frames_undecodable", sum(&|o| o.seen.frames - o.seen.decodable));
    findings.set("frames_backwards", sum(&|o| o.seen.backwards));
    findings.set("packets_refused", sum(&|o| o.media.refused));
    findings.set("nacks_sent", sum(&|o| o.media.nacks));
    findings.set("repairs_received", sum(&|o| o.media.repairs));
    findings.set("plis_sent", sum(&|o| o.media.plis));
    findings.set("feedbacks_sent", sum(&|o| o.media.feedbacks));
    if expected == 0 {
        findings.fault("nothing was published while it was measured");
    }
    let per_frame = of_stream.iter().map(|(packets, _)| *packets).sum::<u64>() as f64
        / of_stream.iter().map(|(_, frames)| *frames).sum::<u64>().max(1) as f64;
    let arrived = verified as f64 / expected.max(1) as f64;
    Ok(Totals { arrived, packets_per_frame: per_frame })
}

/// What a packet cost the router.
fn cost(
    findings: &mut Findings,
    args: &Args,
    totals: &Totals,
    packets: f64,
    before: &Usage,
    after: &Usage,
) {
    let ns = |cpu: Duration| cpu.as_nanos() as f64 / packets;
    let process = after.cpu.saturating_sub(before.cpu);
    findings.measured("server_cpu_ns_per_packet", Some(ns(process)));
    let seconds = args.seconds as f64;
    let shards = after.threads_since(before, SHARD_THREAD);
    let shard = shards.map(|(cpu, _)| cpu);
    findings.optional("shard_cpu_ns_per_packet", shard.map(ns));
    let percent = |time: Duration| 100.0 * time.as_secs_f64() / (seconds * args.lab.shards as f64);
    let waited = shards.map(|(_, waited)| percent(waited));
    findings.optional("shard_waited_for_cpu_percent", waited);
    if let Some(waited) = waited.filter(|waited| *waited > WAITED_PERCENT) {
        findings.warning(format!(
            "the router's shards waited {waited:.0} % of the time for a CPU that somebody else had"
        ));
    }
    findings.optional("server_cpu_percent", Some(100.0 * process.as_secs_f64() / seconds));
    // A shard sends a frame to its viewers of the stream one after the other.
    let burst = shard.map(ns).unwrap_or_else(|| ns(process))
        * (args.viewers as f64 / (args.lab.streams * args.lab.shards) as f64)
        * totals.packets_per_frame
        / 1_000.0;
    findings.measured("burst_us", Some(burst));
}

/// What the router's stamps are to an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stamps {
    /// What it is about.
    Needed,
    /// Said beside. Pictures that wait for a narrow line are in them.
    Extra,
}

/// Added latency as the router stamps it.
pub(super) fn added(findings: &mut Findings, before: &Scrape, after: &Scrape, stamps: Stamps) {
    let all = after.histogram_since(before, ADDED, &[]);
    let holders = after.histogram_since(before, ADDED, &[("role", "controller")]);
    let quantile = |h: &Option<crate::server::Histogram>, q| h.as_ref().and_then(|h| h.quantile(q));
    for (name, value) in [
        ("added_latency_us_p50", quantile(&all, 0.5)),
        ("added_latency_us_p99", quantile(&all, 0.99)),
        ("lease_holder_latency_us_p99", quantile(&holders, 0.99)),
    ] {
        match stamps {
            Stamps::Needed => findings.measured(name, value),
            Stamps::Extra => findings.optional(name, value),
        }
    }
    if let Some(all) = &all {
        let bars = all.bars();
        findings.plot(Plot::bars("Added latency", "us", "packets").with("all viewers", bars));
    }
}

/// Where the router says that it lost something.
pub(super) fn losses(findings: &mut Findings, before: &Scrape, after: &Scrape) {
    for (name, metric) in [
        ("router_hop_frames_dropped", "fanlight_router_hop_frames_dropped_total"),
        ("router_inbox_frames_dropped", "fanlight_router_inbox_frames_dropped_total"),
        ("router_frames_skipped", "fanlight_router_frames_skipped_total"),
        ("router_frames_thinned", "fanlight_router_frames_thinned_total"),
        ("router_send_full", "fanlight_router_send_full_total"),
    ] {
        // The registry shows a counter from its first count on.
        findings.optional(name, Some(after.since(before, metric).unwrap_or(0.0)));
    }
    findings.detail("router_counters", after.moved_since(before));
}

/// Times as the viewers saw them: the whole path, our own receiving included.
fn path(findings: &mut Findings, lab: &Lab, report: &Report) {
    let times = report.times(Group::Observer);
    let controller = report.times(Group::Controller);
    let mut all = times.path.clone();
    all.merge(&controller.path);
    late(findings, lab, report);
    findings.optional("path_latency_us_p50", all.quantile_us(0.5));
    findings.optional("path_latency_us_p99", all.quantile_us(0.99));
    // Controllers come first, so that they are not like the others.
    let observers = report.viewers.iter().filter(|v| v.group == Group::Observer);
    let means: Vec<f64> = observers.filter_map(|v| v.mean_path_us).collect();
    let by = |f: fn(f64, f64) -> f64| means.iter().copied().reduce(f);
    findings.optional("viewer_mean_path_us_min", by(f64::min));
    findings.optional("viewer_mean_path_us_max", by(f64::max));
    findings.plot(
        Plot::lines("From publisher to viewer", "ms", "part of pictures")
            .with("all viewers", all.curve(200)),
    );
}

/// A fault if the load's own sockets have dropped anything since they were opened.
pub(super) async fn socket_drop_fault(findings: &mut Findings, lab: &Lab) -> anyhow::Result<()> {
    match drops(lab).await? {
        Some(0) => findings.set("load_socket_drops", 0),
        Some(n) => {
            findings.set("load_socket_drops", n);
            findings.fault(format!("the load's own sockets dropped {n} datagrams: too slow"));
        }
        None => findings.fault("the load's own socket drops cannot be read"),
    }
    Ok(())
}

/// How late the load itself was: a load that had no CPU blames the router for it.
pub(super) fn late(findings: &mut Findings, lab: &Lab, report: &Report) {
    findings.optional("load_late_us_p99", report.late.quantile_us(0.99));
    let mut publishers = Times::default();
    lab.streams.iter().for_each(|s| publishers.merge(&s.device.late.lock()));
    findings.optional("publisher_late_us_p99", publishers.quantile_us(0.99));
    for (who, times) in [("viewers", &report.late), ("publishers", &publishers)] {
        if let Some(ms) = times.quantile_ms(0.99).filter(|ms| *ms > LATE_MS) {
            findings.warning(format!(
                "the load's {who} ran {ms:.0} ms late (p99): they had no CPU, so times say little"
            ));
        }
    }
}

async fn drops(lab: &Lab) -> anyhow::Result<Option<u64>> {
    let report = lab.crowd.swarm().report(false).await?;
    Ok(socket_drops(&report.ports))
}
