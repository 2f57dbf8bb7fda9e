//! `loadtest loss`: what bad networks do to those behind them, and to those who are not. Two
//! phases: the good viewers alone, then together with viewers whose packets are lost and viewers
//! whose line is too narrow. Invariant: a picture counts as complete only if its content is right;
//! those that are right but lack what they need are counted apart.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;

use super::{
    fanout::{Stamps, added, late, losses, socket_drop_fault},
    set_up,
};
use crate::{
    crowd::{Joined, Path},
    lab::{Lab, LabArgs},
    publish::{Detour, Pace},
    relay::{Impairment, PathCounts, Relay},
    report::{Findings, OutputArgs, Plot},
    sample::{Sampler, tell},
    source::Shape,
    swarm::{Group, Milestone, Report, ViewerReport},
};

/// Time for a viewer behind a bad network to have its first picture.
const FIRST: Duration = Duration::from_secs(30);
/// Time for the last pictures to arrive and be repaired.
const SETTLE: Duration = Duration::from_secs(2);
/// Time given to a narrow viewer's thinning before its pictures' ages count.
const ADAPT: Duration = Duration::from_secs(5);

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Viewers on a good network
    #[arg(long, value_name = "N", default_value_t = 20)]
    others: usize,
    /// Viewers on a network that loses
    #[arg(long, value_name = "N", default_value_t = 10)]
    lossy: usize,
    /// Part of packets that it loses, in percent, in each direction
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    loss_percent: f64,
    /// Its round trip
    #[arg(long, value_name = "MS", default_value_t = 40.0)]
    rtt_ms: f64,
    /// Its jitter
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    jitter_ms: f64,
    /// Part of packets that overtake others on it, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    reorder_percent: f64,
    /// Viewers on a line that is too narrow
    #[arg(long, value_name = "N", default_value_t = 0)]
    narrow: usize,
    /// Its rate
    #[arg(long, value_name = "BPS", default_value_t = 500_000)]
    narrow_bps: u64,
    /// Its queue
    #[arg(long, value_name = "MS", default_value_t = 300.0)]
    narrow_queue_ms: f64,
    /// Part of packets lost between publisher and router, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    hop_loss_percent: f64,
    /// Round trip between publisher and router
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    hop_rtt_ms: f64,
    /// How long each phase is measured
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Joins per second
    #[arg(long, default_value_t = 50.0)]
    join_rate: f64,
    /// Decides which packets are lost
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    pub(super) lab: LabArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl Args {
    fn viewers_rules(&self) -> Impairment {
        Impairment {
            loss: self.loss_percent / 100.0,
            delay_ms: self.rtt_ms / 2.0,
            jitter_ms: self.jitter_ms,
            reorder: self.reorder_percent / 100.0,
            ..Impairment::default()
        }
    }

    fn hop_rules(&self) -> Option<Impairment> {
        let rules = Impairment {
            loss: self.hop_loss_percent / 100.0,
            delay_ms: self.hop_rtt_ms / 2.0,
            ..Impairment::default()
        };
        (rules != Impairment::default()).then_some(rules)
    }

    /// The source as the experiment needs it, unless it was asked for otherwise: thinning needs
    /// pictures that nobody needs, and a line that is that narrow needs small keyframes.
    fn lab(&self) -> LabArgs {
        let mut lab = self.lab.clone();
        if self.narrow > 0 && lab.reference_every == 1 {
            lab.reference_every = 8;
        }
        // A keyframe of ordinary size takes half a second on such a line by itself.
        if self.narrow > 0 && lab.key_factor == Shape::default().key_factor {
            lab.key_factor = 2.0;
        }
        lab
    }
}

/// The relays of one run.
struct Networks {
    lossy: Relay,
    narrow: Relay,
    _hop: Option<Relay>,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.others > 0, "somebody has to watch on a good network");
    anyhow::ensure!(args.lossy + args.narrow > 0, "somebody has to watch on a bad network");
    let good = Impairment::default();
    let rules = args.viewers_rules();
    let delay = Impairment { delay_ms: rules.delay_ms, ..good };
    let line =
        Impairment { bandwidth_bps: args.narrow_bps, queue_ms: args.narrow_queue_ms, ..delay };
    for rules in [Some(rules), Some(line), args.hop_rules()].into_iter().flatten() {
        if let Some(mistake) = rules.mistake() {
            anyhow::bail!("{mistake}");
        }
    }
    let hop = match args.hop_rules() {
        Some(rules) => Some(Relay::start(rules, rules, args.seed ^ 0x5eed)?),
        None => None,
    };
    let networks = Networks {
        lossy: Relay::start(rules, rules, args.seed)?,
        narrow: Relay::start(delay, line, args.seed + 1)?,
        _hop: hop.clone(),
    };
    let detour =
        hop.map(|hop| -> Detour { Arc::new(move |router| hop.open(router).unwrap_or(router)) });
    let viewers = args.others + args.lossy + args.narrow;
    let lab = Lab::start(&args.lab(), Pace::Moving, viewers, detour).await?;
    let measured = measure(args, &lab, &networks).await;
    lab.stop().await;
    measured
}

async fn measure(args: &Args, lab: &Lab, networks: &Networks) -> anyhow::Result<Findings> {
    let sampler = Sampler::start(lab.fleet.router.pid());
    let tickets = lab.tickets(args.others + args.lossy + args.narrow, false).await?;
    let path = |relay: &Relay| -> Path {
        let relay = relay.clone();
        Arc::new(move |router: SocketAddr| relay.open(router).unwrap_or(router))
    };
    let (lossy, narrow) = (path(&networks.lossy), path(&networks.narrow));
    let mut plan: Vec<_> = Vec::new();
    for (n, ticket) in tickets.into_iter().enumerate() {
        plan.push(match n {
            n if n < args.others => (ticket, Group::Observer, None),
            n if n < args.others + args.lossy => (ticket, Group::Lossy, Some(lossy.clone())),
            _ => (ticket, Group::Narrow, Some(narrow.clone())),
        });
    }
    let (good, bad) = plan.split_at(args.others);
    let seconds = Duration::from_secs(args.seconds);

    join(lab, good, args.join_rate).await?;
    tokio::time::sleep(SETTLE).await;
    lab.open_windows();
    tokio::time::sleep(seconds).await;
    lab.cut_windows();
    let alone = lab.crowd.swarm().report(true).await?;

    join(lab, bad, args.join_rate).await?;
    tokio::time::sleep(ADAPT).await;
    // What happened until now is not part of the second phase.
    let before = lab.crowd.swarm().report(true).await?;
    let scrape_before = lab.fleet.scrape_settled().await?;
    let asked_before = lab.keyframes_asked();
    let paths_before = (networks.lossy.counts(), networks.narrow.counts());
    lab.open_windows();
    tokio::time::sleep(seconds).await;
    lab.close_windows();
    lab.crowd.swarm().measure(false);
    let scrape = lab.fleet.scrape_settled().await?;
    tokio::time::sleep(SETTLE).await;
    let asked = lab.keyframes_asked() - asked_before;
    let report = lab.crowd.swarm().report(false).await?;

    let mut findings = Findings::new("loss");
    findings.set("loss_percent", args.loss_percent);
    findings.set("rtt_ms", args.rtt_ms);
    findings.set("seconds", args.seconds);
    findings.set("reference_every", args.lab().reference_every);
    findings.set("key_factor", args.lab().key_factor);
    set_up(&mut findings, &args.lab);
    let lost = lossy_viewers(&mut findings, args, lab, &before, &report)?;
    findings.set("encoder_keyframe_requests", asked);
    let now = networks.lossy.counts();
    let really = dropped(&paths_before.0, &now);
    findings.optional("path_loss_percent", really.map(|part| part * 100.0));
    narrow_viewers(&mut findings, args, lab, &before, &report)?;
    others(&mut findings, &alone, &report);
    added(&mut findings, &scrape_before, &scrape, Stamps::Extra);
    losses(&mut findings, &scrape_before, &scrape);
    late(&mut findings, lab, &report);
    if lab.crowd.diaries().closed() > 0 {
        findings.fault(format!("{} viewers lost their connection", lab.crowd.diaries().closed()));
    }
    socket_drop_fault(&mut findings, lab).await?;
    findings.plot(
        Plot::bars("Pictures missing per viewer behind loss", "viewer", "pictures")
            .with("lossy", (1_u32..).zip(lost).map(|(n, m)| (f64::from(n), m as f64)).collect()),
    );
    tell(&mut findings, &sampler.finish().await);
    Ok(findings)
}

type Planned = (crate::backend::Ticket, Group, Option<Path>);

async fn join(lab: &Lab, plan: &[Planned], rate: f64) -> anyhow::Result<Vec<Joined>> {
    let joined = lab.crowd.join_all(plan, rate).await;
    let joined = joined.into_iter().collect::<Result<Vec<_>, _>>().context("a join failed")?;
    for (viewer, (_, group, _)) in joined.iter().zip(plan) {
        // A line may be too narrow for a keyframe to come whole soon: that shows in the ages.
        let (what, name) = match group {
            Group::Narrow => (Milestone::Connected, "is not connected"),
            _ => (Milestone::FirstPicture, "has no picture"),
        };
        let reached = lab.crowd.diaries().wait(viewer.viewer, what, FIRST).await;
        reached.with_context(|| format!("viewer {} ({group:?}) {name}", viewer.viewer))?;
    }
    Ok(joined)
}

/// Pictures published in the window of a stream.
fn published(lab: &Lab, stream: usize) -> anyhow::Result<u64> {
    let watched = lab.streams.get(stream).context("no such stream")?;
    let (from, to) = watched.window.bounds();
    watched.device.ledger.packets(from, to).context("a window was not published whole")?;
    Ok(to - from)
}

/// A viewer's figures at the beginning of the phase and at its end.
fn pairs<'a>(
    before: &'a Report,
    after: &'a Report,
    group: Group,
) -> impl Iterator<Item = (&'a ViewerReport, &'a ViewerReport)> {
    after.of(group).filter_map(|now| {
        before.viewers.iter().find(|then| then.viewer == now.viewer).map(|then| (then, now))
    })
}

/// Gives the pictures missing per viewer.
fn lossy_viewers(
    findings: &mut Findings,
    args: &Args,
    lab: &Lab,
    before: &Report,
    report: &Report,
) -> anyhow::Result<Vec<u64>> {
    let (mut expected, mut complete, mut undecodable) = (0, 0, 0);
    let (mut nacks, mut repairs, mut given_up, mut plis, mut corrupt) = (0, 0, 0, 0, 0);
    let mut missing = Vec::new();
    for (then, now) in pairs(before, report, Group::Lossy) {
        let frames = published(lab, now.stream)?;
        let (a, b) = (&then.outcome, &now.outcome);
        let got = b.seen.window_frames - a.seen.window_frames;
        expected += frames;
        complete += got;
        missing.push(frames.saturating_sub(got));
        let unusable = |o: &crate::viewer::Outcome| o.seen.frames - o.seen.decodable;
        undecodable += unusable(b) - unusable(a);
        nacks += b.media.nacks - a.media.nacks;
        repairs += b.order.repaired - a.order.repaired;
        given_up += b.order.lost - a.order.lost;
        plis += b.media.plis - a.media.plis;
        corrupt += b.seen.corrupt - a.seen.corrupt;
    }
    findings.set("lossy_viewers", args.lossy);
    let ratio = (expected > 0).then(|| complete as f64 / expected as f64);
    if args.lossy > 0 {
        findings.measured("frames_complete_ratio", ratio);
    } else {
        findings.optional("frames_complete_ratio", None);
    }
    findings.set("frames_expected", expected);
    findings.set("frames_complete", complete);
    findings.set("frames_undecodable", undecodable);
    findings.set("frames_corrupt", corrupt);
    findings.set("nacks_sent", nacks);
    findings.set("packets_repaired", repairs);
    findings.set("packets_given_up", given_up);
    findings.set("plis_sent", plis);
    let times = report.times(Group::Lossy);
    findings.optional("lossy_path_ms_p50", times.path.quantile_ms(0.5));
    findings.optional("lossy_path_ms_p95", times.path.quantile_ms(0.95));
    findings.optional("lossy_age_ms_p95", times.age.quantile_ms(0.95));
    Ok(missing)
}

fn narrow_viewers(
    findings: &mut Findings,
    args: &Args,
    lab: &Lab,
    before: &Report,
    report: &Report,
) -> anyhow::Result<()> {
    findings.set("narrow_viewers", args.narrow);
    if args.narrow == 0 {
        return Ok(());
    }
    let age = &report.times(Group::Narrow).age;
    findings.set("narrow_bps", args.narrow_bps);
    findings.measured("narrow_age_ms_p50", age.quantile_ms(0.5));
    findings.measured("narrow_age_ms_p95", age.quantile_ms(0.95));
    let (mut expected, mut shown, mut bytes, mut given_up, mut plis) = (0, 0, 0, 0, 0);
    for (then, now) in pairs(before, report, Group::Narrow) {
        given_up += now.outcome.order.lost - then.outcome.order.lost;
        plis += now.outcome.media.plis - then.outcome.media.plis;
        expected += published(lab, now.stream)?;
        shown += now.outcome.seen.window_frames - then.outcome.seen.window_frames;
        bytes += now.outcome.media.bytes - then.outcome.media.bytes;
    }
    let part = (expected > 0).then(|| shown as f64 / expected as f64);
    findings.measured("narrow_frames_ratio", part);
    let rate = bytes as f64 * 8.0 / (args.seconds as f64 * args.narrow as f64);
    findings.set("narrow_received_bps", rate.round());
    findings.set("narrow_packets_given_up", given_up);
    findings.set("narrow_plis_sent", plis);
    findings.plot(
        Plot::lines("Age of the newest picture, narrow line", "ms", "part of time")
            .with("narrow", age.curve(200))
            .with("good network", report.times(Group::Observer).age.curve(200)),
    );
    Ok(())
}

fn others(findings: &mut Findings, alone: &Report, together: &Report) {
    let (a, b) = (alone.times(Group::Observer), together.times(Group::Observer));
    findings.measured("other_viewers_latency_us_p50_alone", a.path.quantile_us(0.5));
    findings.measured("other_viewers_latency_us_p99_alone", a.path.quantile_us(0.99));
    findings.measured("other_viewers_latency_us_p50", b.path.quantile_us(0.5));
    findings.measured("other_viewers_latency_us_p99", b.path.quantile_us(0.99));
    findings.plot(
        Plot::lines("Other viewers: from publisher to viewer", "ms", "part of pictures")
            .with("alone", a.path.curve(200))
            .with("beside bad networks", b.path.curve(200)),
    );
}

/// Part of the packets towards viewers that the relay lost.
fn dropped(before: &[PathCounts], now: &[PathCounts]) -> Option<f64> {
    let sum = |counts: &[PathCounts], f: &dyn Fn(&PathCounts) -> u64| {
        counts.iter().map(f).sum::<u64>() as f64
    };
    let taken = sum(now, &|c| c.down.taken) - sum(before, &|c| c.down.taken);
    let lost = sum(now, &|c| c.down.lost) - sum(before, &|c| c.down.lost);
    (taken > 0.0).then(|| lost / taken)
}
