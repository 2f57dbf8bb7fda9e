//! One experiment's setting: the system as child processes, made-up devices that publish, a swarm
//! that can join. What all commands share; not what any of them measures. Invariant: when a lab
//! has started, every stream is live and nobody watches.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use fanlight_ops::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    backend::{Backend, Ticket},
    crowd::{Crowd, Diaries},
    ledger::Ledger,
    publish::{Arrived, Detour, Device, Pace, Plan, Worker, WorkerConfig},
    server::{Fleet, FleetConfig, Pins, raise_priority},
    source::{Shape, Source},
    swarm::{Swarm, Watched},
};

/// Time for the control API to take our link.
const LINK: Duration = Duration::from_secs(20);

/// Flags that every experiment has.
#[derive(Clone, Debug, clap::Args)]
pub struct LabArgs {
    /// Executable with the control and router roles; default: this one
    #[arg(long, value_name = "FILE")]
    pub server_exe: Option<PathBuf>,
    /// Shards of the router; each gets a CPU of its own
    #[arg(long, default_value_t = 1)]
    pub shards: usize,
    /// Leave the CPUs to the scheduler
    #[arg(long)]
    pub no_pin: bool,
    /// Streams to publish; viewers are spread over them in turn
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// What is published: synthetic, or an H.264 file in Annex-B that is played in a loop
    #[arg(long, value_name = "synthetic|FILE", default_value = "synthetic")]
    pub source: String,
    /// Pictures per second
    #[arg(long, default_value_t = 60)]
    pub fps: u32,
    /// Bit rate of the synthetic source, keyframes included
    #[arg(long, value_name = "BPS", default_value_t = 2_500_000)]
    pub bitrate_bps: u64,
    /// Pictures from keyframe to keyframe of the synthetic source
    #[arg(long, value_name = "PICTURES", default_value_t = 120)]
    pub gop: u32,
    /// How many times as large as others its keyframes are
    #[arg(long, default_value_t = 6.0)]
    pub key_factor: f64,
    /// Every n-th of its pictures is one that others need
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub reference_every: u32,
    /// Threads of viewers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub viewer_threads: usize,
    /// More of the router's configuration, as TOML before its first table
    #[arg(long, value_name = "TOML", default_value = "")]
    pub router_toml: String,
    /// CPUs, as they were decided before anything was pinned.
    #[arg(skip)]
    pub pins: Pins,
}

impl LabArgs {
    /// The synthetic source's shape.
    pub fn shape(&self) -> Shape {
        Shape {
            fps: self.fps,
            bitrate_bps: self.bitrate_bps,
            gop: self.gop,
            key_factor: self.key_factor,
            reference_every: self.reference_every,
        }
    }

    /// Decides on the CPUs of router and load. Once, before the calling thread is pinned: what a
    /// pinned thread may use is not what there is.
    pub fn decide_pins(&mut self) -> Pins {
        self.pins = if self.no_pin { Pins::default() } else { Pins::split(self.shards) };
        self.pins.clone()
    }
}

/// Streams of one lab.
#[derive(Debug)]
pub struct Lab {
    /// The system under test.
    pub fleet: Fleet,
    /// Its backend.
    pub backend: Backend,
    /// Names of devices and streams.
    pub names: Vec<String>,
    /// The streams as viewers know them.
    pub streams: Vec<Watched>,
    /// Who joins.
    pub crowd: Crowd,
    /// What the sources do.
    pub pace: watch::Sender<Pace>,
    /// Input as it reaches the devices.
    pub inputs: mpsc::UnboundedReceiver<Arrived>,
    fps: u32,
    publishing: Publishing,
}

/// The publishers' thread; ends with this value.
#[derive(Debug)]
struct Publishing {
    shutdown: Shutdown,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.shutdown.trigger();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Lab {
    /// Starts everything; `viewers` is how many there will be at once.
    ///
    /// # Errors
    /// Whatever keeps a stream from being live.
    pub async fn start(
        args: &LabArgs,
        pace: Pace,
        viewers: usize,
        detour: Option<Detour>,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(args.streams > 0, "at least one stream is needed");
        anyhow::ensure!(args.fps >= 4, "at least four pictures per second are needed");
        let executable = match &args.server_exe {
            Some(file) => file.clone(),
            None => std::env::current_exe().context("this executable's own path")?,
        };
        // Opened before anything is started: a mistake in them is the likeliest.
        let sources = (0..args.streams)
            .map(|n| Source::open(&args.source, &args.shape(), n as u64 + 1))
            .collect::<Result<Vec<_>, _>>()?;
        let fleet = Fleet::start(&FleetConfig {
            executable,
            shards: args.shards,
            pins: args.pins.clone(),
            viewers,
            streams: args.streams,
            router_toml: args.router_toml.clone(),
        })
        .await?;
        let names: Vec<String> = (1..=args.streams).map(|n| format!("load-{n}")).collect();
        let (pace, plan) = watch::channel(pace);
        let (input, inputs) = mpsc::unbounded_channel();
        let device = |name: &String| {
            let ledger = Ledger::default();
            Arc::new(Device {
                name: name.clone(),
                ledger,
                late: Default::default(),
                inputs: input.clone(),
            })
        };
        let devices: Vec<Arc<Device>> = names.iter().map(device).collect();
        let publishes = devices
            .iter()
            .zip(sources)
            .map(|(device, source)| {
                (Arc::clone(device), source, Plan { fps: args.fps, pace: plan.clone() })
            })
            .collect();
        let config = WorkerConfig {
            control: format!("https://{}", fleet.node),
            identity: fleet.identity.clone(),
            detour,
            bitrate_bps: args.bitrate_bps,
        };
        let publishing = publish(config, publishes).await?;
        let backend = Backend::connect(fleet.grpc).await?;
        backend.streams(&names).await.with_context(|| fleet.router.epitaph())?;
        let streams: Vec<Watched> =
            devices.into_iter().map(|device| Watched { device, window: Arc::default() }).collect();
        let (swarm, notes) = Swarm::start(args.viewer_threads, &streams)?;
        let crowd = Crowd::new(Arc::new(swarm), Diaries::keep(notes));
        let fps = args.fps;
        Ok(Self { fleet, backend, names, streams, crowd, pace, inputs, fps, publishing })
    }

    /// Tokens for viewers, the first of each stream a controller if asked.
    ///
    /// # Errors
    /// The control API refuses one.
    pub async fn tickets(&self, count: usize, controllers: bool) -> anyhow::Result<Vec<Ticket>> {
        self.backend.tickets(&self.names, count, controllers).await
    }

    /// A token for the n-th of many viewers, who are spread over the streams.
    ///
    /// # Errors
    /// The control API refuses it.
    pub async fn ticket(&self, n: usize) -> anyhow::Result<Ticket> {
        let stream = n % self.names.len().max(1);
        let name = self.names.get(stream).cloned().unwrap_or_default();
        self.backend.ticket(name, stream, false).await
    }

    /// Keyframes that the router has asked the encoders for.
    pub fn keyframes_asked(&self) -> u64 {
        self.streams.iter().map(|stream| stream.device.ledger.keyframes_asked()).sum()
    }

    /// Opens every stream's window half a second ahead of now, so that nobody has its first picture
    /// yet.
    pub fn open_windows(&self) {
        for stream in &self.streams {
            let from = stream.device.ledger.next_number() + self.ahead();
            stream.device.ledger.mark(from);
            stream.window.open(from);
            *stream.device.late.lock() = Default::default();
        }
        self.crowd.swarm().measure(true);
    }

    /// Closes every window half a second ahead of now.
    pub fn close_windows(&self) {
        for stream in &self.streams {
            stream.window.close(stream.device.ledger.next_number() + self.ahead());
        }
    }

    /// Ends every window here, for a phase whose count of pictures nobody asks for.
    pub fn cut_windows(&self) {
        for stream in &self.streams {
            stream.window.close(stream.device.ledger.next_number());
        }
    }

    fn ahead(&self) -> u64 {
        u64::from(self.fps / 2).max(2)
    }

    /// Stops everything, viewers first.
    pub async fn stop(self) {
        let Self { fleet, crowd, publishing, .. } = self;
        drop(crowd);
        // It waits for its tasks to take leave of the router.
        let _ = tokio::task::spawn_blocking(move || drop(publishing)).await;
        fleet.stop().await;
    }
}

/// Starts the publishers on a thread of their own, so that busy viewers do not hold pictures up.
async fn publish(
    config: WorkerConfig,
    devices: Vec<(Arc<Device>, Source, Plan)>,
) -> anyhow::Result<Publishing> {
    let shutdown = Shutdown::new(Duration::from_secs(2));
    let (ready, started) = oneshot::channel();
    let end = shutdown.clone();
    let thread = std::thread::Builder::new().name("publishers".to_owned()).spawn(move || {
        raise_priority();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error.into()));
                return;
            }
        };
        runtime.block_on(async move {
            let worker = match Worker::start(config, devices, &end) {
                Ok(worker) => worker,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let linked = tokio::time::timeout(LINK, worker.linked()).await;
            let _ = ready.send(linked.context("the control API does not take our link"));
            let _ = end.wait().await;
        });
    })?;
    let publishing = Publishing { shutdown, thread: Some(thread) };
    started.await.context("the publishers' thread ended")??;
    Ok(publishing)
}
