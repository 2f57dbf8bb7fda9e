//! A fleet on loopback as its operators run it: control replicas, Redis, routers, ingest workers,
//! simulated devices, each a process of its own at addresses that outlive it. Not what goes wrong
//! with them, and not who watches. Invariant: every process ends with the town.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use fanlight_device_sim::{ScrcpyVersion, placeholder_jar};
use fanlight_ops::pki::Ca;
use fanlight_proto::id::NodeId;
use rustix::process::Signal;

use super::{Args, wires::Wire};
use crate::{
    ledger::Ledger,
    publish::Device,
    server::{Child, Launch, Redis, free_port},
    source::{Clip, Shape, Source},
    swarm::Watched,
};

/// Pictures of a device's clip: ten seconds at 30 per second.
const CLIP_PICTURES: usize = 300;
/// Pictures from keyframe to keyframe in it.
const GOP: u32 = 60;
/// Longest time that a router is given to end.
const DRAIN: Duration = Duration::from_secs(20);
/// The version that devices and workers agree on.
const SERVER_VERSION: &str = "4.1";

/// A process that can be ended and started again.
#[derive(Debug)]
pub(super) struct Service {
    launch: Launch,
    child: Option<Child>,
}

impl Service {
    async fn start(launch: Launch) -> anyhow::Result<Self> {
        let mut this = Self { launch, child: None };
        this.restart().await?;
        Ok(this)
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.launch.name
    }

    /// Where its log is.
    pub(super) fn log(&self) -> PathBuf {
        self.launch.dir.join(format!("{}.log", self.launch.name))
    }

    /// Kills it as a crash does.
    pub(super) async fn kill(&mut self) {
        if let Some(child) = self.child.take() {
            child.kill().await;
        }
    }

    /// Asks it to end, as a supervisor does, and waits.
    pub(super) async fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            child.stop().await;
        }
    }

    /// The same with a supervisor's patience: it may have streams to hand over first.
    pub(super) async fn drain(&mut self) {
        if let Some(child) = self.child.take() {
            child.stop_within(DRAIN).await;
        }
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            child.signal(signal);
        }
    }

    /// Starts it and waits until it serves.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill().await;
        let child = Child::launch(&self.launch)?;
        child.ready().await?;
        self.child = Some(child);
        Ok(())
    }
}

/// A control replica and where it is reached.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) service: Service,
    pub(super) grpc: SocketAddr,
    node: SocketAddr,
}

/// A router, and the wires to it.
#[derive(Debug)]
pub(super) struct RouterNode {
    pub(super) service: Service,
    /// To each control replica.
    pub(super) to_control: Vec<Wire>,
    /// From workers.
    pub(super) hop: Wire,
}

/// All processes.
#[derive(Debug)]
pub(super) struct Town {
    pub(super) redis: Option<Redis>,
    pub(super) controls: Vec<Replica>,
    pub(super) routers: Vec<RouterNode>,
    pub(super) workers: Vec<Service>,
    /// Names of devices and streams.
    pub(super) names: Vec<String>,
    /// The streams as viewers know them.
    pub(super) streams: Vec<Watched>,
    devices: Vec<Service>,
    _dir: tempfile::TempDir,
}

/// What all of them are started with.
struct Ground<'a> {
    args: &'a Args,
    executable: PathBuf,
    dir: PathBuf,
    ca: Ca,
}

impl Town {
    pub(super) async fn start(args: &Args) -> anyhow::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("fanlight-loadtest-").tempdir()?;
        let dir = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
        std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
        let executable = match &args.server_exe {
            Some(file) => file.clone(),
            None => std::env::current_exe().context("this executable's own path")?,
        };
        let ca = Ca::load_or_create(&dir.join("pki"))?;
        let ground = Ground { args, executable, dir: dir.clone(), ca };
        let (store, redis) = match args.store.as_str() {
            "redis://" => {
                let redis = Redis::start(dir.join("redis"), &[]).await?;
                (redis.url(), Some(redis))
            }
            other => (other.to_owned(), None),
        };
        let mut controls = Vec::new();
        for n in 1..=args.controls {
            controls.push(ground.control(n, &store).await?);
        }
        let mut devices = Vec::new();
        let mut streams = Vec::new();
        let mut addresses = Vec::new();
        for n in 1..=args.devices {
            let (service, watched, adb) = ground.device(n).await?;
            devices.push(service);
            streams.push(watched);
            addresses.push(adb);
        }
        let mut routers = Vec::new();
        for n in 1..=args.routers {
            routers.push(ground.router(n, &controls).await?);
        }
        let names: Vec<String> = streams.iter().map(|s| s.device.name.clone()).collect();
        let mut workers = Vec::new();
        for n in 0..args.workers {
            let mine = names.iter().zip(&addresses).skip(n).step_by(args.workers);
            let mine: Vec<(&str, SocketAddr)> =
                mine.map(|(name, at)| (name.as_str(), *at)).collect();
            workers.push(ground.worker(n + 1, &mine, &controls).await?);
        }
        Ok(Self { redis, controls, routers, workers, names, streams, devices, _dir: temporary })
    }

    /// The router of that name.
    pub(super) fn router(&mut self, name: &str) -> Option<&mut RouterNode> {
        self.routers.iter_mut().find(|router| router.service.name() == name)
    }

    /// What control replicas, routers and workers said so far, by their names.
    pub(super) fn logs(&self) -> Vec<(&str, String)> {
        let routers = self.routers.iter().map(|router| &router.service);
        let services = self.controls.iter().map(|control| &control.service).chain(routers);
        let read = |service: &Service| std::fs::read_to_string(service.log()).unwrap_or_default();
        services.chain(&self.workers).map(|s| (s.name(), read(s))).collect()
    }

    /// Ends everything, devices last.
    pub(super) async fn stop(mut self) {
        let services = self.routers.iter_mut().map(|r| &mut r.service);
        let services = self.workers.iter_mut().chain(services);
        futures::future::join_all(services.map(Service::stop)).await;
        futures::future::join_all(self.controls.iter_mut().map(|c| c.service.stop())).await;
        futures::future::join_all(self.devices.iter_mut().map(Service::kill)).await;
    }
}

impl Ground<'_> {
    fn launch(&self, role: &'static str, name: String, args: Vec<OsString>) -> Launch {
        let (executable, dir) = (self.executable.clone(), self.dir.clone());
        Launch { executable, role, name, dir, args, cpus: Vec::new() }
    }

    /// A folder with a node's certificate.
    fn certificate(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        self.ca.issue_node(&NodeId::parse(name)?, &[])?.save(&dir)?;
        Ok(dir)
    }

    async fn control(&self, n: usize, store: &str) -> anyhow::Result<Replica> {
        let (grpc, node) = (local(free_port()?), local(free_port()?));
        let name = format!("control-{n}");
        let args = flags(&[
            ("--replica", &name),
            ("--grpc-listen", &grpc.to_string()),
            ("--node-listen", &node.to_string()),
            ("--store", store),
            ("--pki-dir", &path(&self.dir.join("pki"))),
            ("--token-key-file", &path(&self.dir.join("token.pem"))),
        ]);
        let service = Service::start(self.launch("control", name, args)).await?;
        Ok(Replica { service, grpc, node })
    }

    /// A device that plays a clip of its own, and what viewers of it know.
    async fn device(&self, n: usize) -> anyhow::Result<(Service, Watched, SocketAddr)> {
        let name = format!("phone-{n}");
        let file = self.dir.join(format!("{name}.h264"));
        let shape = Shape {
            fps: self.args.fps,
            bitrate_bps: self.args.bitrate_bps,
            gop: GOP,
            key_factor: 3.0,
            reference_every: 1,
        };
        let mut source = Source::open("synthetic", &shape, n as u64)?;
        let bytes: Vec<u8> =
            (0..CLIP_PICTURES).flat_map(|_| source.next_picture(false).au).collect();
        std::fs::write(&file, bytes).context("cannot write a device's clip")?;
        let clip = Clip::read(&file)?;
        // Nobody asks for the input that reaches a device here.
        let (inputs, _) = tokio::sync::mpsc::unbounded_channel();
        let ledger = Ledger::of_clip(clip.pictures());
        let device = Device { name: name.clone(), ledger, late: Default::default(), inputs };
        let watched = Watched { device: Arc::new(device), window: Arc::default() };
        let adb = local(free_port()?);
        let args = flags(&[
            ("--adb-listen", &adb.to_string()),
            ("--video", &path(&file)),
            ("--fps", &self.args.fps.to_string()),
        ]);
        let service = Service::start(self.launch("device-sim", name, args)).await?;
        Ok((service, watched, adb))
    }

    async fn router(&self, n: usize, controls: &[Replica]) -> anyhow::Result<RouterNode> {
        let name = format!("router-{n}");
        let pki = self.certificate(&name)?;
        let (http, quic) = (local(free_port()?), local(free_port()?));
        let hop = Wire::udp(quic).await?;
        let mut to_control = Vec::new();
        for control in controls {
            to_control.push(Wire::tcp(control.node).await?);
        }
        let toml = self.dir.join(format!("{name}.toml"));
        // `hop_idle_ms` stays as it is: how soon a silent worker is noticed is part of the test.
        let text = format!(
            "quic_announce = [\"{}\"]\n\
             [ice]\nbind = \"127.0.0.1\"\n\
             [limits]\njoins_per_second_max = 100000\n",
            hop.at()
        );
        std::fs::write(&toml, text).context("cannot write a router's file")?;
        let mut args = flags(&[
            ("--config", &path(&toml)),
            ("--node", &name),
            ("--pki-dir", &path(&pki)),
            ("--listen-http", &http.to_string()),
            ("--quic-listen", &quic.to_string()),
        ]);
        for wire in &to_control {
            args.extend(flags(&[("--control-endpoint", &format!("https://{}", wire.at()))]));
        }
        let service = Service::start(self.launch("router", name, args)).await?;
        Ok(RouterNode { service, to_control, hop })
    }

    async fn worker(
        &self,
        n: usize,
        devices: &[(&str, SocketAddr)],
        controls: &[Replica],
    ) -> anyhow::Result<Service> {
        let name = format!("worker-{n}");
        let pki = self.certificate(&name)?;
        let jar = self.dir.join("scrcpy-server");
        let version = ScrcpyVersion::parse(SERVER_VERSION).context("the server's version")?;
        std::fs::write(&jar, placeholder_jar(version)).context("cannot write the server jar")?;
        let mut text = String::new();
        for (device, adb) in devices {
            text.push_str(&format!(
                "[[devices]]\ndevice = \"{device}\"\nadb = \"{adb}\"\nsource = \"scrcpy\"\n\
                 server_jar = \"{}\"\nserver_version = \"{SERVER_VERSION}\"\n\
                 allow_placeholder_server = true\nmax_fps = {}\nbitrate_bps = {}\n",
                path(&jar),
                self.args.fps,
                self.args.bitrate_bps,
            ));
        }
        let toml = self.dir.join(format!("{name}.toml"));
        std::fs::write(&toml, text).context("cannot write a worker's file")?;
        let mut args = flags(&[("--config", &path(&toml)), ("--pki-dir", &path(&pki))]);
        for control in controls {
            args.extend(flags(&[("--control", &format!("https://{}", control.node))]));
        }
        Service::start(self.launch("ingest", name, args)).await
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn flags(pairs: &[(&str, &str)]) -> Vec<OsString> {
    pairs.iter().flat_map(|(name, value)| [name.into(), value.into()]).collect()
}
