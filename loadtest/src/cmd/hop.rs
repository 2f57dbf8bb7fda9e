//! `loadtest hop`: what a bad line between a device host and its router does to the picture. The
//! product's own ingest worker captures a made-up phone and pushes through the bad line; one viewer
//! on a good network verifies what comes out. Two phases: the line's delay alone, then with what is
//! wrong with it. Not the viewers' own networks (`loss`). Invariant: a picture is on time only if it
//! was right, decodable, and complete at the viewer within the limit after the phone's encoder gave
//! it; one that never came counts as late.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use fanlight_device_sim::{SimConfig, Simulator, capture::Feed};

use crate::{
    backend::Backend,
    crowd::{Crowd, Diaries},
    publish::{Device, Phone},
    relay::{Aim, Impairment, PathCounts, Relay},
    report::{Findings, OutputArgs, Plot},
    sample::{Sampler, tell},
    server::{Fleet, FleetConfig, IngestWorker, PhoneAt, Pins, Scrape},
    source::{Shape, Source},
    stats::Times,
    swarm::{Group, Milestone, Swarm, ViewerReport, Watched},
};

/// Device and stream.
const PHONE: &str = "phone-1";
/// Time for the first picture.
const FIRST: Duration = Duration::from_secs(20);
/// Time for the last pictures of a phase to arrive.
const SETTLE: Duration = Duration::from_secs(2);
/// Pictures that are in order before a phase begins.
const STEADY: u64 = 60;

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Part of packets lost on the line, in percent, in each direction
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    loss_percent: f64,
    /// Round trip of the line
    #[arg(long, value_name = "MS", default_value_t = 45.0)]
    rtt_ms: f64,
    /// Jitter of each direction; order is kept
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    jitter_ms: f64,
    /// Part of packets that overtake others on it, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    reorder_percent: f64,
    /// Rate of the line from worker to router; 0: no limit
    #[arg(long, value_name = "BPS", default_value_t = 0)]
    squeeze_bps: u64,
    /// Its queue
    #[arg(long, value_name = "MS", default_value_t = 500.0)]
    queue_ms: f64,
    /// What the worker is told that its line carries
    #[arg(long, value_name = "BPS", default_value_t = 10_000_000)]
    uplink_bps: u64,
    /// A picture is on time within this
    #[arg(long, value_name = "MS", default_value_t = 150)]
    limit_ms: u64,
    /// How long each phase is measured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Decides which packets are lost
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Pictures per second
    #[arg(long, default_value_t = 60)]
    fps: u32,
    /// Bit rate of the phone's encoder, until the worker asks for another
    #[arg(long, value_name = "BPS", default_value_t = 4_000_000)]
    bitrate_bps: u32,
    /// Executable with the control, router and ingest roles; default: this one
    #[arg(long, value_name = "FILE")]
    server_exe: Option<std::path::PathBuf>,
    /// Leave the CPUs to the scheduler
    #[arg(long)]
    no_pin: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl Args {
    /// The line towards the router, and back.
    fn lines(&self) -> (Impairment, Impairment) {
        let back = Impairment {
            loss: self.loss_percent / 100.0,
            delay_ms: self.rtt_ms / 2.0,
            jitter_ms: self.jitter_ms,
            reorder: self.reorder_percent / 100.0,
            ..Impairment::default()
        };
        let queue_ms = if self.squeeze_bps > 0 { self.queue_ms } else { 0.0 };
        (Impairment { bandwidth_bps: self.squeeze_bps, queue_ms, ..back }, back)
    }

    fn shape(&self) -> Shape {
        Shape {
            fps: self.fps,
            bitrate_bps: self.bitrate_bps.into(),
            // Two seconds, as the worker asks encoders for.
            gop: 2 * self.fps,
            key_factor: 6.0,
            ..Shape::default()
        }
    }
}

/// Everything that runs.
struct Setting {
    fleet: Fleet,
    worker: IngestWorker,
    phone: Simulator,
    relay: Relay,
    crowd: Crowd,
    watched: Watched,
    _aim: Aim,
}

/// One phase.
struct Phase {
    published: u64,
    on_time: u64,
    complete: u64,
    undecodable: u64,
    corrupt: u64,
    keyframes: u64,
    path: Times,
    paths: (Vec<PathCounts>, Vec<PathCounts>),
    worker: (Scrape, Scrape),
}

impl Phase {
    fn part(&self, n: u64) -> Option<f64> {
        (self.published > 0).then(|| n as f64 / self.published as f64)
    }
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    let (up, down) = args.lines();
    for rules in [up, down] {
        if let Some(mistake) = rules.mistake() {
            anyhow::bail!("{mistake}");
        }
    }
    anyhow::ensure!((4..=240).contains(&args.fps), "4 to 240 pictures per second are allowed");
    let pins = if args.no_pin { Pins::default() } else { Pins::split(1) };
    pins.join_load();
    let setting = start(args, &pins).await?;
    let measured = measure(args, &setting, (up, down)).await;
    let Setting { fleet, worker, phone, crowd, .. } = setting;
    drop(crowd);
    worker.process.stop().await;
    phone.stop().await;
    fleet.stop().await;
    let mut findings = measured?;
    findings.set("pinned", pins.is_pinned());
    findings.set("debug_build", cfg!(debug_assertions));
    Ok(findings)
}

async fn start(args: &Args, pins: &Pins) -> anyhow::Result<Setting> {
    let executable = match &args.server_exe {
        Some(file) => file.clone(),
        None => std::env::current_exe().context("this executable's own path")?,
    };
    let delay = Impairment { delay_ms: args.rtt_ms / 2.0, ..Impairment::default() };
    let relay = Relay::start(delay, delay, args.seed)?;
    // The router says that it is reached at the relay, which learns afterwards where the router is.
    let (front, aim) = relay.open_ahead()?;
    let fleet = Fleet::start(&FleetConfig {
        executable,
        shards: 1,
        pins: pins.clone(),
        viewers: 1,
        streams: 1,
        router_toml: format!("quic_announce = [\"{front}\"]"),
    })
    .await?;
    aim.at(fleet.quic);
    let (inputs, _) = tokio::sync::mpsc::unbounded_channel();
    let device = Arc::new(Device {
        name: PHONE.to_owned(),
        ledger: Default::default(),
        late: Default::default(),
        inputs,
    });
    let source = Source::open("synthetic", &args.shape(), args.seed)?;
    let encoder = Phone::new(Arc::clone(&device), source);
    let sim = SimConfig { fps: args.fps, ..SimConfig::on_free_port() };
    let phone = Simulator::start_with(sim, Feed::Made(Arc::new(encoder))).await?;
    let at = PhoneAt {
        device: PHONE.to_owned(),
        adb: phone.adb_addr(),
        bitrate_bps: args.bitrate_bps.into(),
        fps: args.fps,
    };
    let worker = fleet.start_worker(&[at], args.uplink_bps).await?;
    let backend = Backend::connect(fleet.grpc).await?;
    let names = [PHONE.to_owned()];
    backend.streams(&names).await.with_context(|| worker.process.epitaph())?;
    let watched = Watched { device, window: Arc::default() };
    let (swarm, notes) = Swarm::start(1, std::slice::from_ref(&watched))?;
    let crowd = Crowd::new(Arc::new(swarm), Diaries::keep(notes));
    let ticket = backend.tickets(&names, 1, false).await?.pop().context("no ticket")?;
    let joined = crowd.join_all(&[(ticket, Group::Observer, None)], 10.0).await;
    for viewer in joined {
        let viewer = viewer.context("the viewer cannot join")?.viewer;
        let shown = crowd.diaries().wait(viewer, Milestone::FirstPicture, FIRST).await;
        shown.context("the viewer has no picture")?;
    }
    Ok(Setting { fleet, worker, phone, relay, crowd, watched, _aim: aim })
}

async fn measure(
    args: &Args,
    setting: &Setting,
    (up, down): (Impairment, Impairment),
) -> anyhow::Result<Findings> {
    let sampler = Sampler::start(setting.fleet.router.pid());
    let clean = phase(args, setting, || ()).await?;
    let bad = phase(args, setting, || setting.relay.change(up, down)).await?;

    let mut findings = Findings::new("hop");
    for (name, value) in [
        ("loss_percent", args.loss_percent),
        ("rtt_ms", args.rtt_ms),
        ("jitter_ms", args.jitter_ms),
        ("reorder_percent", args.reorder_percent),
    ] {
        findings.set(name, value);
    }
    findings.set("squeeze_bps", args.squeeze_bps);
    findings.set("bitrate_bps", args.bitrate_bps);
    findings.set("fps", args.fps);
    findings.set("seconds", args.seconds);
    findings.set("limit_ms", args.limit_ms);
    findings.set("frames_published", bad.published);
    findings.measured("frames_on_time_ratio", bad.part(bad.on_time));
    findings.measured("frames_complete_ratio", bad.part(bad.complete));
    findings.measured("frame_ms_p50", bad.path.quantile_ms(0.5));
    findings.measured("frame_ms_p99", bad.path.quantile_ms(0.99));
    findings.optional("frame_ms_max", bad.path.max_us().map(|us| us / 1_000.0));
    findings.set("frames_undecodable", bad.undecodable);
    findings.set("frames_corrupt", bad.corrupt);
    findings.set("encoder_keyframe_requests", bad.keyframes);
    findings.measured("clean_frames_on_time_ratio", clean.part(clean.on_time));
    findings.measured("clean_frame_ms_p50", clean.path.quantile_ms(0.5));
    findings.measured("clean_frame_ms_p99", clean.path.quantile_ms(0.99));
    lines(&mut findings, &bad);
    if bad.corrupt + clean.corrupt > 0 {
        findings.fault("pictures came that were never published");
    }
    findings.plot(
        Plot::lines("From the phone's encoder to the viewer", "ms", "part of pictures")
            .with("with what is wrong", bad.path.curve(200))
            .with("delay alone", clean.path.curve(200)),
    );
    tell(&mut findings, &sampler.finish().await);
    Ok(findings)
}

/// What the line and the worker did meanwhile.
fn lines(findings: &mut Findings, phase: &Phase) {
    let sum = |counts: &[PathCounts], f: fn(&PathCounts) -> u64| counts.iter().map(f).sum::<u64>();
    let grown =
        |f: fn(&PathCounts) -> u64| sum(&phase.paths.1, f).saturating_sub(sum(&phase.paths.0, f));
    let (taken, lost) = (grown(|c| c.up.taken), grown(|c| c.up.lost));
    findings.optional("line_loss_percent", (taken > 0).then(|| 100.0 * lost as f64 / taken as f64));
    findings.set("line_overflowed", grown(|c| c.up.overflowed));
    let (before, after) = &phase.worker;
    for (name, metric) in [
        ("worker_frames_reset", "fanlight_ingest_frames_reset_total"),
        ("worker_frames_skipped", "fanlight_ingest_frames_skipped_total"),
        ("worker_bitrate_changes", "fanlight_ingest_bitrate_changes_total"),
    ] {
        findings.set(name, after.since(before, metric).unwrap_or(0.0));
    }
}

/// Waits until the picture is steady, changes something, and measures for the time.
async fn phase(args: &Args, setting: &Setting, change: impl FnOnce()) -> anyhow::Result<Phase> {
    let ledger = &setting.watched.device.ledger;
    let swarm = setting.crowd.swarm();
    steady(setting).await?;
    let before = viewer(setting, true).await?;
    let asked = ledger.keyframes_asked();
    let paths = setting.relay.counts();
    let scrape = setting.fleet.scrape_at(&setting.worker.metrics_url).await?;
    // Pictures count from the first one that leaves into the changed line.
    let from = ledger.next_number() + 1;
    ledger.mark(from);
    setting.watched.window.open(from);
    change();
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let to = ledger.next_number();
    setting.watched.window.close(to);
    tokio::time::sleep(SETTLE).await;
    let report = swarm.report(false).await?;
    let after = report.of(Group::Observer).next().copied().context("the viewer is gone")?;
    let path = report.times(Group::Observer).path.clone();
    let (a, b) = (&before.outcome.seen, &after.outcome.seen);
    let undecodable = (b.frames - b.decodable) - (a.frames - a.decodable);
    let on_time = path.within(Duration::from_millis(args.limit_ms)).saturating_sub(undecodable);
    Ok(Phase {
        published: to.saturating_sub(from),
        on_time,
        complete: b.window_frames - a.window_frames,
        undecodable,
        corrupt: b.corrupt - a.corrupt,
        keyframes: ledger.keyframes_asked() - asked,
        path,
        paths: (paths, setting.relay.counts()),
        worker: (scrape, setting.fleet.scrape_at(&setting.worker.metrics_url).await?),
    })
}

async fn viewer(setting: &Setting, reset: bool) -> anyhow::Result<ViewerReport> {
    let report = setting.crowd.swarm().report(reset).await?;
    report.of(Group::Observer).next().copied().context("the viewer is gone")
}

/// Some pictures in a row, all of those published meanwhile.
async fn steady(setting: &Setting) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + FIRST;
    let mut before = viewer(setting, false).await?.outcome.seen;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = viewer(setting, false).await?.outcome.seen;
        if now.decodable - before.decodable >= STEADY {
            return Ok(());
        }
        if now.frames - now.decodable > before.frames - before.decodable {
            before = now;
        }
        anyhow::ensure!(
            tokio::time::Instant::now() < deadline,
            "the picture does not become steady; {}",
            setting.worker.process.epitaph()
        );
    }
}
