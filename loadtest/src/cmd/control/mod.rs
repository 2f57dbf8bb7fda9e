//! `loadtest control`: how many calls one control API on one CPU answers, and how fast, with a
//! fake fleet linked to it. Not the fleet's media: nobody joins. Invariant: what the client could
//! not have kept up with is said, and never taken for the server's limit in silence.

mod drive;
mod setup;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use self::{
    drive::{Drive, Tally},
    setup::Setup,
};
use crate::{
    report::{Findings, OutputArgs, Plot},
    sample::{Sampler, tell_of},
    server::{Pins, Usage},
};

/// Calls before anything counts: connections, caches and tables reach their size.
const WARM_UP: Duration = Duration::from_millis(500);
/// Above this share of its CPU the load itself may be the limit.
const BUSY_PERCENT: f64 = 90.0;

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Where the control API keeps its state: memory://, redis://host:port, or redis:// for a
    /// redis-server that is started beside the load
    #[arg(long, value_name = "URL", default_value = "memory://")]
    pub(super) store: String,
    /// CreateViewer per second where their times are measured
    #[arg(long, value_name = "PER_SECOND", default_value_t = 5_000.0)]
    rate: f64,
    /// Length of each phase
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// HTTP/2 connections of the client
    #[arg(long, value_name = "N", default_value_t = 4)]
    connections: usize,
    /// Calls under way on each connection when as many are made as are answered
    #[arg(long, value_name = "N", default_value_t = 16)]
    calls: usize,
    /// Streams in which viewers are created
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(super) streams: usize,
    /// Fake routers
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(super) routers: usize,
    /// Fake ingest workers
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(super) workers: usize,
    /// Executable with the control role; default: this one
    #[arg(long, value_name = "FILE")]
    pub(super) server_exe: Option<PathBuf>,
    /// Leave the CPUs to the scheduler
    #[arg(long)]
    no_pin: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// CPUs, as they were decided before anything was pinned.
    #[arg(skip)]
    pins: Pins,
}

impl Args {
    /// Decides on the CPUs of the control API and of everything else, before anything is pinned.
    pub(super) fn decide_pins(&mut self) -> Pins {
        self.pins = if self.no_pin { Pins::default() } else { Pins::split(1) };
        self.pins.clone()
    }

    /// Calls under way at most when as many are made as are answered.
    pub(super) fn at_once(&self) -> usize {
        self.connections.max(1) * self.calls.max(1)
    }
}

/// What a phase cost, beside what it came to.
struct Phase {
    tally: Tally,
    /// Of one CPU, percent.
    server_cpu_percent: f64,
    /// Time in which the control API could have run and had no CPU, percent, summed over its threads.
    server_waited_percent: Option<f64>,
    store_cpu_percent: Option<f64>,
    client_cpu_percent: Option<f64>,
    /// Time in which the client could have run and had no CPU, percent.
    client_waited_percent: Option<f64>,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.rate > 0.0 && args.seconds > 0.0, "rate and seconds must be above zero");
    anyhow::ensure!(args.streams > 0 && args.routers > 0, "streams and routers are needed");
    anyhow::ensure!(args.workers > 0, "a worker is needed");
    let setup = Setup::start(args, &args.pins).await?;
    let measured = measure(args, &setup).await.with_context(|| setup.control.epitaph());
    setup.stop().await;
    measured
}

async fn measure(args: &Args, setup: &Setup) -> anyhow::Result<Findings> {
    let length = Duration::from_secs_f64(args.seconds);
    let drive = Drive {
        server: setup.grpc,
        connections: args.connections.max(1),
        at_once: args.calls.max(1),
        streams: setup.streams.clone(),
        spare: setup.spare.clone(),
    };
    drive.viewers(WARM_UP).await?;
    let (_, idle) = setup.usage()?;
    let sampler = Sampler::start(setup.control.pid());
    let most = phase(setup, drive.viewers(length)).await?;
    let paced = phase(setup, drive.viewers_at(args.rate, length)).await?;
    let pairs = phase(setup, drive.stream_pairs(length)).await?;
    let samples = sampler.finish().await;
    let (_, memory) = setup.usage()?;

    let mut findings = Findings::new("control");
    facts(&mut findings, args, setup);
    maximum(&mut findings, &most);
    at_rate(&mut findings, args, &paced);
    findings.measured("stream_pairs_per_s", pairs.tally.per_second());
    findings.measured("stream_pair_ms_p50", pairs.tally.times.quantile_ms(0.5));
    findings.measured("stream_pair_ms_p99", pairs.tally.times.quantile_ms(0.99));
    findings.measured("stream_pair_server_cpu_us", pairs.cpu_us_per_call());
    findings.set("server_rss_bytes", memory.resident);
    findings.set("server_rss_bytes_before", idle.resident);
    let phases = [("most", &most), ("rate", &paced), ("stream_pairs", &pairs)];
    findings.set("errors", phases.iter().map(|(_, p)| p.tally.errors).sum::<u64>());
    for (name, phase) in phases {
        if let Some(error) = &phase.tally.first_error {
            let n = phase.tally.errors;
            findings.fault(format!("{n} calls failed ({name}), the first with: {error}"));
        }
    }
    findings.set("panics", setup.control.log_count("panicked"));
    tell_of(&mut findings, "control API", &samples);
    findings.plot(
        Plot::lines("Time of a CreateViewer", "ms", "part of calls")
            .with("at the rate, from when it was due", paced.tally.times.curve(200))
            .with("as many as are answered", most.tally.times.curve(200)),
    );
    Ok(findings)
}

impl Phase {
    fn cpu_us_per_call(&self) -> Option<f64> {
        let cpu_us = self.tally.elapsed.as_secs_f64() * self.server_cpu_percent * 1e4;
        (self.tally.answered > 0).then(|| cpu_us / self.tally.answered as f64)
    }
}

async fn phase(
    setup: &Setup,
    calls: impl Future<Output = anyhow::Result<Tally>>,
) -> anyhow::Result<Phase> {
    let mut calls = std::pin::pin!(calls);
    let (before, _) = setup.usage()?;
    let store_before = setup.store_cpu();
    let begun = Instant::now();
    // The calls' thread lives as long as they do: it is looked at while it does.
    let mut client = None;
    let mut first = None;
    let tally = loop {
        tokio::select! {
            tally = &mut calls => break tally?,
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                let now = Usage::of(std::process::id());
                let at = Instant::now();
                let Some(now) = now else { continue };
                let (then, from) = first.get_or_insert_with(|| (now.clone(), at));
                let since = at.duration_since(*from);
                client = now.threads_since(then, drive::THREAD).map(|cpu| (cpu, since));
            }
        }
    };
    let elapsed = begun.elapsed();
    let (after, _) = setup.usage()?;
    let percent = |cpu: Duration, of: Duration| 100.0 * cpu.as_secs_f64() / of.as_secs_f64();
    let store = setup.store_cpu().zip(store_before);
    let client = client.filter(|(_, since)| !since.is_zero());
    Ok(Phase {
        tally,
        server_waited_percent: after
            .threads_since(&before, "")
            .map(|(_, waited)| percent(waited, elapsed)),
        server_cpu_percent: percent(after.cpu.saturating_sub(before.cpu), elapsed),
        store_cpu_percent: store.map(|(now, then)| percent(now.saturating_sub(then), elapsed)),
        client_cpu_percent: client.map(|((cpu, _), since)| percent(cpu, since)),
        client_waited_percent: client.map(|((_, waited), since)| percent(waited, since)),
    })
}

fn facts(findings: &mut Findings, args: &Args, setup: &Setup) {
    findings.set("store", args.store.split("://").next().unwrap_or_default());
    findings.set("streams", args.streams);
    findings.set("routers", args.routers);
    findings.set("workers", args.workers);
    findings.set("work_held_by_nodes", setup.fakes.held());
    findings.set("connections", args.connections);
    findings.set("calls_at_once", args.at_once());
    findings.set("seconds", args.seconds);
    findings.set("pinned", args.pins.is_pinned());
    findings.set("debug_build", cfg!(debug_assertions));
}

fn maximum(findings: &mut Findings, phase: &Phase) {
    findings.measured("create_viewer_per_s", phase.tally.per_second());
    findings.measured("create_viewer_server_cpu_us", phase.cpu_us_per_call());
    // What it would be with the CPU for itself, where others share it.
    let per_cpu_second = phase.cpu_us_per_call().map(|us| 1e6 / us);
    findings.measured("create_viewer_per_server_cpu_s", per_cpu_second);
    findings.set("create_viewer_server_cpu_percent", phase.server_cpu_percent.round());
    findings.optional("create_viewer_server_waited_percent", phase.server_waited_percent);
    findings.optional("create_viewer_store_cpu_percent", phase.store_cpu_percent);
    findings.optional("create_viewer_client_cpu_percent", phase.client_cpu_percent);
    let ms = |q| phase.tally.times.quantile_ms(q);
    findings.measured("create_viewer_ms_p50", ms(0.5));
    findings.measured("create_viewer_ms_p99", ms(0.99));
    let busy = |percent: Option<f64>| percent.unwrap_or(0.0);
    let client = busy(phase.client_cpu_percent) + busy(phase.client_waited_percent);
    if client > BUSY_PERCENT && phase.server_cpu_percent < BUSY_PERCENT {
        findings.warning(format!(
            "the client was the limit: it used or waited for its CPU {client:.0} % of the time, the \
             control API used {:.0} % of its own",
            phase.server_cpu_percent
        ));
    }
}

fn at_rate(findings: &mut Findings, args: &Args, phase: &Phase) {
    findings.set("rate", args.rate);
    findings.measured("rate_reached_per_s", phase.tally.per_second());
    let ms = |q| phase.tally.times.quantile_ms(q);
    findings.measured("latency_ms_p50", ms(0.5));
    findings.measured("latency_ms_p95", ms(0.95));
    findings.measured("latency_ms_p99", ms(0.99));
    findings.measured("latency_ms_p999", ms(0.999));
    findings.measured("latency_ms_max", phase.tally.times.max_us().map(|us| us / 1_000.0));
    findings.measured("load_late_ms_p99", phase.tally.late.quantile_ms(0.99));
    findings.set("rate_server_cpu_percent", phase.server_cpu_percent.round());
    findings.optional("rate_client_cpu_percent", phase.client_cpu_percent);
    let late = phase.tally.late.quantile_ms(0.99).unwrap_or(0.0);
    let whole = phase.tally.times.quantile_ms(0.99).unwrap_or(0.0);
    if late * 2.0 > whole {
        findings.warning(format!(
            "half of the time at the rate is the client's own: it was {late:.2} ms late at the 99th \
             percentile, of {whole:.2} ms"
        ));
    }
}
