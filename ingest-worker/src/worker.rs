//! The worker as a whole: every start-up step in order, and the end. Not what a device does.
//! Invariant: starting needs no device, no router and no control API to be there; each is waited
//! for by its own layer.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use anyhow::Context as _;
use fanlight_ops::{
    admin::{Admin, AdminServer, Drain, Readiness},
    config::{ConfigArgs, ConfigErrors},
    link::{HelloTemplate, LinkClient, LinkConfig, LinkHandle},
    log,
    metrics::Metrics,
    pki::NodeIdentity,
    process,
    shutdown::Shutdown,
};
use fanlight_proto::types::v1::{NodeAddresses, NodeCapacity, NodeKind};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{
    board::Board,
    config::IngestConfig,
    device::{self, DeviceContext},
    fleet::{Fleet, Member},
    metrics::METRICS,
    reach,
    shared::Shared,
    uplink::Uplinks,
};

/// How long routers are given to take note of the end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Command line of the role.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Where the configuration comes from and what is done with it.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Control API's node listener, https://host:port; may be given several times.
    #[arg(long, value_name = "URL")]
    pub control: Vec<String>,
    /// Folder with node.pem, node.key and ca.pem.
    #[arg(long, value_name = "DIR")]
    pub pki_dir: Option<std::path::PathBuf>,
    /// Metrics and health, host:port; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<std::net::SocketAddr>,
}

impl Args {
    /// The flags as the configuration merge wants them.
    pub fn flags(&self) -> serde_json::Value {
        let control = (!self.control.is_empty()).then_some(&self.control);
        serde_json::json!({
            "control": control,
            "pki_dir": self.pki_dir,
            "admin_listen": self.admin_listen.map(|a| a.to_string()),
        })
    }

    /// The merged, checked configuration; `None` when the flags only asked to see or check it.
    pub fn load(&self) -> Result<Option<IngestConfig>, ConfigErrors> {
        self.config.load_checked(self.flags(), IngestConfig::check)
    }
}

/// A running worker. It ends with the shutdown it was started under.
pub struct Worker {
    fleet: Arc<Fleet>,
    link: Option<LinkHandle>,
    readiness: Readiness,
    drain: Drain,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Worker {
    /// Starts with the certificate that the configuration names.
    pub async fn start(config: IngestConfig, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let identity = NodeIdentity::load(&config.pki_dir)?;
        Self::start_as(config, identity, process::started_unix_us(), shutdown).await
    }

    /// Starts as this node in this life. For several workers in one process.
    pub async fn start_as(
        config: IngestConfig,
        identity: NodeIdentity,
        incarnation: u64,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let mistakes = config.check();
        anyhow::ensure!(mistakes.is_empty(), ConfigErrors(mistakes));
        Metrics::install().describe(METRICS);
        let key = {
            let path = config.adb_key.clone();
            tokio::task::spawn_blocking(move || reach::load_key(path.as_deref())).await??
        };
        let uplinks = Uplinks::new(&identity, incarnation, config.uplink_bps)?;
        let board = Board::default();
        let drain = Drain::new();
        let devices = TaskTracker::new();
        let mut members = HashMap::new();
        for device in &config.devices {
            let (sender, wanted) = watch::channel(Vec::new());
            let shared = Arc::new(Shared::new(device.device.clone(), device.bitrate_bps));
            board.device(&device.device, Err("not reached yet"));
            let context = DeviceContext {
                config: device.clone(),
                key: key.clone(),
                wanted,
                uplinks: uplinks.clone(),
                board: board.clone(),
                shared: Arc::clone(&shared),
                end: shutdown.token(),
            };
            devices.spawn(device::run(context));
            members.insert(device.device.clone(), Member::new(device.clone(), sender, shared));
        }
        devices.close();
        // Also where none is ever reached.
        metrics::gauge!("fanlight_ingest_devices_online").increment(0.0);
        metrics::gauge!("fanlight_ingest_devices").set(config.devices.len() as f64);
        let fleet = Arc::new(Fleet::new(members, board.clone(), drain.clone()));
        let readiness = Readiness::new();
        let link = link(&config, &identity, incarnation, &fleet, &readiness, shutdown)?;
        if let Some(link) = &link {
            board.connect(link.clone());
        }
        // Devices first, so that fingers are lifted and routers told; then the connections.
        shutdown.spawn(format!("ingest {}", identity.node()), {
            let token = shutdown.token();
            async move {
                token.cancelled().await;
                devices.wait().await;
                uplinks.close(CLOSE_TIMEOUT).await;
            }
        });
        tracing::info!(node = %identity.node(), devices = config.devices.len(), "ingest worker started");
        Ok(Self { fleet, link, readiness, drain })
    }

    /// What the control plane talks to; tests apply wants by it.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// The link to the control API, where one is configured.
    pub fn link(&self) -> Option<&LinkHandle> {
        self.link.as_ref()
    }

    /// Ready while linked to the control API.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Its drain switch.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }
}

fn link(
    config: &IngestConfig,
    identity: &NodeIdentity,
    incarnation: u64,
    fleet: &Arc<Fleet>,
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<LinkHandle>> {
    const COMPONENT: &str = "control link";
    if config.control.is_empty() {
        readiness.set(COMPONENT, true, "none configured");
        return Ok(None);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let hello = HelloTemplate {
        node: identity.node().clone(),
        kind: NodeKind::IngestWorker,
        incarnation,
        region: config.region.clone(),
        zone: config.zone.clone(),
        labels: std::collections::BTreeMap::new(),
        addresses: NodeAddresses::default(),
        capacity: NodeCapacity {
            streams_in: u32::try_from(config.devices.len()).unwrap_or(u32::MAX),
            cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
            ..NodeCapacity::default()
        },
    };
    let settings = LinkConfig::new(config.control.clone(), identity.clone(), hello);
    let handler: Arc<Fleet> = Arc::clone(fleet);
    let link = LinkClient::spawn(settings, handler, shutdown)?;
    readiness.set(COMPONENT, false, "not linked yet");
    let (mut linked, readiness, token) = (link.linked(), readiness.clone(), shutdown.token());
    shutdown.spawn("ingest readiness", async move {
        loop {
            let up = *linked.borrow_and_update();
            readiness.set(COMPONENT, up, if up { "" } else { "not linked" });
            tokio::select! {
                changed = linked.changed() => if changed.is_err() { return },
                () = token.cancelled() => return,
            }
        }
    });
    Ok(Some(link))
}

/// The role as a process: configuration, log, admin listener, worker; until the shutdown.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    process::started_unix_us();
    let Some(config) = args.load()? else { return Ok(()) };
    let log = log::init(&config.log);
    let admin_listen = config.admin_listen;
    let worker = Worker::start(config, &shutdown).await?;
    let admin = Admin {
        metrics: Metrics::install(),
        readiness: worker.readiness.clone(),
        log,
        drain: worker.drain.clone(),
    };
    let server = AdminServer::bind(admin_listen, admin).await.context("ingest worker")?;
    tracing::info!(address = %server.addr(), "admin listener");
    args.config.announce(&serde_json::json!({ "admin_addr": server.addr() }))?;
    shutdown.spawn("ingest admin", server.run(shutdown.token()));
    shutdown.triggered().await;
    Ok(())
}
