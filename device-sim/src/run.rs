//! The simulated device as a process of its own: flags, configuration, admin listener.
//!
//! Invariant: a configuration with mistakes ends here, with all of them in one message, before any
//! port is bound.

use anyhow::Context as _;
use fanlight_ops::admin::{Admin, AdminServer, Drain, Readiness};
use fanlight_ops::config::Mistake;
use fanlight_ops::log;
use fanlight_ops::metrics::Metrics;
use fanlight_ops::shutdown::Shutdown;

use crate::clip::{RecordOptions, record};
use crate::config::{Args, ScreenSize, SimConfig};
use crate::metrics::METRICS;
use crate::sim::Simulator;

/// Runs a simulated device until the shutdown is triggered, or records a clip when asked to.
///
/// # Errors
/// A configuration with mistakes, an unusable clip or file, a port in use.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let checked = args.config.load_checked(args.overrides(), |config: &SimConfig| {
        config.validate().into_iter().map(|(key, problem)| Mistake::of_key(key, problem)).collect()
    })?;
    let Some(config) = checked else { return Ok(()) };
    let log = log::init(&config.log);
    if let Some(path) = args.record {
        return record_clip(&config, args.seconds, path).await;
    }
    let metrics = Metrics::install();
    metrics.describe(METRICS);
    let admin_listen = config.admin_listen;
    let simulator = Simulator::start(config).await.context("the device did not start")?;
    let readiness = Readiness::new();
    readiness.set("adb", true, "listening");
    let mut admin_addr = None;
    if let Some(addr) = admin_listen {
        let admin = Admin { metrics, readiness, log, drain: Drain::new() };
        let server = AdminServer::bind(addr, admin).await?;
        tracing::info!(addr = %server.addr(), "admin listener");
        admin_addr = Some(server.addr());
        shutdown.spawn("device-sim admin", server.run(shutdown.token()));
    }
    let ready = serde_json::json!({ "adb_addr": simulator.adb_addr(), "admin_addr": admin_addr });
    args.config.announce(&ready)?;
    shutdown.triggered().await;
    simulator.stop().await;
    Ok(())
}

async fn record_clip(
    config: &SimConfig,
    seconds: u32,
    path: std::path::PathBuf,
) -> anyhow::Result<()> {
    let ScreenSize(width, height) = config.size;
    let options = RecordOptions {
        size: (width, height),
        seconds,
        fps: config.fps,
        bitrate_bps: config.bitrate_bps,
        ..RecordOptions::default()
    };
    let named = path.display().to_string();
    let recording = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let file = std::fs::File::create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(record(&options, std::io::BufWriter::new(file))?)
    });
    recording.await.context("the recording was interrupted")??;
    tracing::info!(file = named, seconds, fps = config.fps, "recorded");
    Ok(())
}
