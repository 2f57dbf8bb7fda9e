//! The system under test, as processes of its own: a control API and a router, started from an
//! executable, stopped at the end. Not their load. Invariant: nothing outlives the [`Fleet`], and
//! what is measured is the router's process alone.

mod child;
mod metrics;
mod pin;
mod proc;
mod redis;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use fanlight_device_sim::{ScrcpyVersion, placeholder_jar};
use fanlight_ops::pki::{Ca, NodeIdentity};
use fanlight_proto::id::NodeId;

pub use child::{Child, Launch};
pub use metrics::{Histogram, Scrape};
pub use pin::{Pins, raise_open_files, raise_priority};
pub use proc::{Memory, Usage, socket_drops};
pub use redis::Redis;

/// Where the router's log level is taken from.
const LOG: &str = "warn,fanlight=info";
/// The scrcpy server that made-up phones play.
const SCRCPY: &str = "4.1";

/// How the system is started.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Executable with the `control` and `router` roles.
    pub executable: PathBuf,
    /// Shards of the router.
    pub shards: usize,
    /// CPUs of the router and of everything else.
    pub pins: Pins,
    /// Viewers at once that the router must admit.
    pub viewers: usize,
    /// Streams at once that the router must take.
    pub streams: usize,
    /// Further keys of the router's configuration, TOML.
    pub router_toml: String,
}

/// A running control API and router.
#[derive(Debug)]
pub struct Fleet {
    /// The router's process.
    pub router: Child,
    control: Child,
    /// Backend-facing gRPC address.
    pub grpc: SocketAddr,
    /// Node-facing address of the control API.
    pub node: SocketAddr,
    /// Where ingest workers push to, as the router bound it.
    pub quic: SocketAddr,
    /// The router's metrics.
    pub metrics_url: String,
    /// The load test's own certificate.
    pub identity: NodeIdentity,
    http: reqwest::Client,
    executable: PathBuf,
    pins: Pins,
    dir: tempfile::TempDir,
}

/// A running ingest worker.
#[derive(Debug)]
pub struct IngestWorker {
    /// Its process.
    pub process: Child,
    /// Its metrics.
    pub metrics_url: String,
}

/// One phone of an ingest worker.
#[derive(Clone, Debug)]
pub struct PhoneAt {
    /// Its device id.
    pub device: String,
    /// Where its ADB is.
    pub adb: SocketAddr,
    /// Bitrate asked of its encoder.
    pub bitrate_bps: u64,
    /// Pictures per second.
    pub fps: u32,
}

impl Fleet {
    /// Starts both and waits until they serve.
    ///
    /// # Errors
    /// An executable that does not start or does not get ready within half a minute; its log's end
    /// is part of the message.
    pub async fn start(config: &FleetConfig) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("fanlight-loadtest-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let at = |name: &str| dir.path().join(name);
        let pki = at("pki");
        let control = Child::start(
            &config.executable,
            "control",
            dir.path(),
            &[
                "--grpc-listen".as_ref(),
                "127.0.0.1:0".as_ref(),
                "--node-listen".as_ref(),
                "127.0.0.1:0".as_ref(),
                "--pki-dir".as_ref(),
                pki.as_os_str(),
                "--token-key-file".as_ref(),
                at("token.pem").as_os_str(),
            ],
            &config.pins.load,
        )?;
        let ready = control.ready().await?;
        let grpc = address(&ready, "grpc_addr")?;
        let node = address(&ready, "node_addr")?;
        let ca = Ca::load_or_create(&pki)?;
        ca.issue_node(&NodeId::parse("router-1")?, &[])?.save(&at("router-pki"))?;
        let identity = NodeIdentity::from_pem(ca.issue_node(&NodeId::parse("load-1")?, &[])?)?;
        let toml = at("router.toml");
        std::fs::write(&toml, router_toml(config)).context("cannot write the router's file")?;
        let router = Child::start(
            &config.executable,
            "router",
            dir.path(),
            &[
                "--config".as_ref(),
                toml.as_os_str(),
                "--pki-dir".as_ref(),
                at("router-pki").as_os_str(),
                "--control-endpoint".as_ref(),
                format!("https://{node}").as_ref(),
                "--shards".as_ref(),
                config.shards.to_string().as_ref(),
            ],
            &config.pins.server,
        )?;
        let ready = router.ready().await?;
        let admin = address(&ready, "admin_addr")?;
        let quic = address(&ready, "quic_addr")?;
        Ok(Self {
            router,
            control,
            grpc,
            node,
            quic,
            executable: config.executable.clone(),
            pins: config.pins.clone(),
            metrics_url: format!("http://{admin}/metrics"),
            identity,
            http: reqwest::Client::new(),
            dir,
        })
    }

    /// Starts the product's own ingest worker for these phones. `uplink_bps` is what its line is
    /// said to carry.
    ///
    /// # Errors
    /// An executable that does not start or does not get ready.
    pub async fn start_worker(
        &self,
        phones: &[PhoneAt],
        uplink_bps: u64,
    ) -> anyhow::Result<IngestWorker> {
        let at = |name: &str| self.dir.path().join(name);
        let ca = Ca::load_or_create(&at("pki"))?;
        ca.issue_node(&NodeId::parse("worker-1")?, &[])?.save(&at("worker-pki"))?;
        let version = ScrcpyVersion::parse(SCRCPY).context("the simulated server's version")?;
        std::fs::write(at("scrcpy-server"), placeholder_jar(version))?;
        let toml = at("worker.toml");
        std::fs::write(&toml, self.worker_toml(phones, uplink_bps))?;
        let process = Child::start(
            &self.executable,
            "ingest",
            self.dir.path(),
            &["--config".as_ref(), toml.as_os_str()],
            &self.pins.load,
        )?;
        let admin = address(&process.ready().await?, "admin_addr")?;
        Ok(IngestWorker { process, metrics_url: format!("http://{admin}/metrics") })
    }

    fn worker_toml(&self, phones: &[PhoneAt], uplink_bps: u64) -> String {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut toml = format!(
            "control = [\"https://{}\"]\npki_dir = {:?}\nadmin_listen = \"127.0.0.1:0\"\n\
             uplink_bps = {uplink_bps}\n[log]\nfilter = \"{LOG}\"\n",
            self.node,
            path("worker-pki"),
        );
        for phone in phones {
            toml.push_str(&format!(
                "[[devices]]\ndevice = \"{}\"\nadb = \"{}\"\nserver_jar = {:?}\n\
                 server_version = \"{SCRCPY}\"\nallow_placeholder_server = true\n\
                 bitrate_bps = {}\nmax_fps = {}\n",
                phone.device,
                phone.adb,
                path("scrcpy-server"),
                phone.bitrate_bps,
                phone.fps,
            ));
        }
        toml
    }

    /// The router's metrics as they are now.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn scrape(&self) -> anyhow::Result<Scrape> {
        self.scrape_at(&self.metrics_url).await.context("the router's metrics")
    }

    /// A process's metrics as they are now.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn scrape_at(&self, url: &str) -> anyhow::Result<Scrape> {
        let get = self.http.get(url).timeout(Duration::from_secs(10)).send();
        Ok(Scrape::parse(&get.await?.text().await?))
    }

    /// The metrics once the shards, which publish once a second, must have said what is so now.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn scrape_settled(&self) -> anyhow::Result<Scrape> {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        self.scrape().await
    }

    /// CPU and threads of the router's process.
    ///
    /// # Errors
    /// The process is gone.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.router.pid()).with_context(|| self.router.epitaph())
    }

    /// Memory of the router's process.
    ///
    /// # Errors
    /// The process is gone.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        Memory::of(self.router.pid()).with_context(|| self.router.epitaph())
    }

    /// Ends both.
    pub async fn stop(self) {
        self.router.stop().await;
        self.control.stop().await;
    }
}

/// The router's configuration: what flags do not say.
fn router_toml(config: &FleetConfig) -> String {
    format!(
        "node = \"router-1\"\n\
         listen_http = \"127.0.0.1:0\"\n\
         quic_listen = \"127.0.0.1:0\"\n\
         admin_listen = \"127.0.0.1:0\"\n\
         {}\n\
         [ice]\n\
         bind = \"127.0.0.1\"\n\
         [log]\n\
         filter = \"{LOG}\"\n\
         [limits]\n\
         sessions_max = {viewers}\n\
         sessions_per_stream_max = {viewers}\n\
         streams_max = {streams}\n\
         joins_per_second_max = 100000\n\
         joins_parsing_max = 256\n\
         hop_slots_max = {slots}\n\
         hop_idle_ms = 10000\n\
         egress_bps_max = 100000000000\n",
        config.router_toml,
        viewers = config.viewers.max(16) * 2,
        streams = config.streams.max(16) * 2,
        slots = config.streams.clamp(64, 2_047),
    )
}

/// An address in a ready file.
///
/// # Errors
/// It is not there, or none.
pub fn address(ready: &serde_json::Value, key: &str) -> anyhow::Result<SocketAddr> {
    let text = ready.get(key).and_then(serde_json::Value::as_str);
    text.with_context(|| format!("{key} is not in the ready file"))?
        .parse()
        .with_context(|| format!("{key} in the ready file"))
}

/// A port of loopback that is free for TCP and UDP now. It lies below those that the system gives
/// away by itself, so that only another load test may take it meanwhile.
///
/// # Errors
/// None was found in many tries.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..1_000 {
        let port = rand::random_range(20_000..30_000);
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::TcpListener::bind(at).is_ok() && std::net::UdpSocket::bind(at).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port of loopback is free")
}
