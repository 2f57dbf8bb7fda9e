//! A running simulated device: its listener, its timers, its end.
//!
//! Order of start: clip, input log, device, then the listener, so that nobody can connect to a
//! device that is not whole. Invariant: after [`Simulator::stop`] the port is free and no task of the
//! device runs; a capture's thread ends with the picture it is at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fanlight_adb::Counters;
use fanlight_adb::device::{AuthPolicy, ConnectionDropper, DeviceListener, DeviceOptions};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::capture::Feed;
use crate::clip::{Clip, ClipError};
use crate::config::{ScreenSize, SimConfig};
use crate::device::{Device, Identity};
use crate::input::{InputLog, InputRecord};
use crate::services::Services;

/// A running simulated device. Dropping it ends it without waiting.
#[derive(Debug)]
pub struct Simulator {
    addr: SocketAddr,
    device: Arc<Device>,
    services: Arc<Services>,
    dropper: ConnectionDropper,
    counters: Arc<Counters>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Why a device did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong; the same one will fail again.
    #[error("configuration: {key}: {problem}")]
    Config {
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The clip to replay is unusable.
    #[error(transparent)]
    Clip(#[from] ClipError),
    /// The input log cannot be opened.
    #[error("cannot open the input log {path}")]
    InputLog {
        /// Which file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The ADB port cannot be bound; it may be free later.
    #[error("cannot listen for adb on {addr}")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// What went wrong.
        #[source]
        source: fanlight_adb::AdbError,
    },
}

impl Simulator {
    /// Starts a device.
    pub async fn start(config: SimConfig) -> Result<Self, StartError> {
        let feed = load_feed(&config).await?;
        Self::start_with(config, feed).await
    }

    /// Starts a device that shows what `feed` gives, whatever the configuration says of it.
    pub async fn start_with(config: SimConfig, feed: Feed) -> Result<Self, StartError> {
        if let Some((key, problem)) = config.validate().into_iter().next() {
            return Err(StartError::Config { key, problem });
        }
        let inputs = InputLog::new(config.input_log.as_deref()).map_err(|source| {
            let path =
                config.input_log.as_ref().map_or_else(String::new, |p| p.display().to_string());
            StartError::InputLog { path, source }
        })?;
        let identity = Identity {
            model: config.model.clone(),
            product: config.product.clone(),
            serial: config.serial.clone(),
        };
        let ScreenSize(width, height) = config.size;
        let device = Device::new(identity, (width, height), inputs);
        device.set_static(config.static_screen);
        #[allow(clippy::cast_precision_loss, reason = "at most 240, as validated")]
        let fps = config.fps as f32;
        let services = Arc::new(Services::new(
            Arc::clone(&device),
            feed,
            fps,
            config.bitrate_bps,
            config.version(),
        ));
        let counters = Arc::<Counters>::default();
        let listener = DeviceListener::bind(
            config.adb_listen,
            Arc::<Services>::clone(&services),
            options(&config, &counters),
        )
        .await
        .map_err(|source| StartError::Listen { addr: config.adb_listen, source })?;
        let mut simulator = Self {
            addr: listener.local_addr(),
            device,
            services,
            dropper: listener.dropper(),
            counters,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        simulator.tasks.spawn(listener.run(simulator.stop.clone()));
        simulator.start_timers(&config);
        tracing::info!(adb = %simulator.addr, size = %String::from(config.size), fps = config.fps, "simulated device");
        Ok(simulator)
    }

    /// Where ADB hosts connect.
    #[must_use]
    pub fn adb_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The inputs received so far, oldest first.
    #[must_use]
    pub fn inputs(&self) -> Vec<InputRecord> {
        self.device.inputs().snapshot()
    }

    /// Inputs as they are received.
    #[must_use]
    pub fn subscribe_inputs(&self) -> broadcast::Receiver<InputRecord> {
        self.device.inputs().subscribe()
    }

    /// The device itself: its screen, its clipboard.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The device's services: its files.
    #[must_use]
    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// What its ADB connections have done.
    #[must_use]
    pub fn adb_counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Turns the device between upright and landscape.
    pub fn rotate(&self) {
        self.device.rotate();
    }

    /// Makes everything that moves by itself stand still, or move again.
    pub fn set_static(&self, still: bool) {
        self.device.set_static(still);
    }

    /// Drops all ADB connections; hosts may connect again at once.
    pub fn drop_adb(&self) {
        tracing::info!("dropping all adb connections");
        self.dropper.drop_all();
    }

    /// Ends the device and waits until everything of it has ended.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    fn start_timers(&mut self, config: &SimConfig) {
        if let Some(period) = config.rotate_every_ms {
            let device = Arc::clone(&self.device);
            self.every(period, move || device.rotate());
        }
        if let Some(period) = config.drop_adb_every_ms {
            let dropper = self.dropper.clone();
            self.every(period, move || dropper.drop_all());
        }
    }

    fn every(&mut self, period_ms: u64, act: impl Fn() + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let period = Duration::from_millis(period_ms);
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                act();
            }
        });
    }
}

async fn load_feed(config: &SimConfig) -> Result<Feed, StartError> {
    let Some(path) = config.video.clone() else { return Ok(Feed::Screen) };
    let loading = tokio::task::spawn_blocking(move || Clip::load(&path));
    // The task neither panics nor is it cancelled: it only reads a file.
    let clip = loading
        .await
        .map_err(|error| StartError::Config { key: "video", problem: error.to_string() })??;
    tracing::info!(pictures = clip.pictures.len(), size = ?clip.size, "replaying a recorded video");
    Ok(Feed::Clip(clip))
}

fn options(config: &SimConfig, counters: &Arc<Counters>) -> DeviceOptions {
    let auth = match config.require_auth {
        true => AuthPolicy::Keys { trusted: Vec::new(), accept_unknown: true },
        false => AuthPolicy::None,
    };
    DeviceOptions {
        auth,
        delayed_ack: config.delayed_ack,
        counters: Arc::clone(counters),
        ..DeviceOptions::default()
    }
}
