//! The router as a process of its own: flags, configuration, admin listener. Not the router.
//! Invariant: a configuration with mistakes ends here, with all of them in one message, before any
//! port is bound.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use fanlight_ops::{
    admin::{Admin, AdminServer, Drain},
    config::{ConfigArgs, Mistake},
    log,
    metrics::Metrics,
    shutdown::Shutdown,
};
use serde_json::json;

use crate::{Router, RouterConfig};

/// Flags of the `router` role. Every flag overrides the key of the same name.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Configuration file and checks.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Name of this node, as in its certificate
    #[arg(long)]
    pub node: Option<String>,
    /// Region, for placement
    #[arg(long)]
    pub region: Option<String>,
    /// Where viewers join (WHEP over HTTP)
    #[arg(long, value_name = "ADDR")]
    pub listen_http: Option<SocketAddr>,
    /// Where ingest workers connect (QUIC)
    #[arg(long, value_name = "ADDR")]
    pub quic_listen: Option<SocketAddr>,
    /// Metrics, health and drain
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// Shard threads
    #[arg(long)]
    pub shards: Option<usize>,
    /// A control API replica, https://host:port; may be given several times
    #[arg(long = "control-endpoint", value_name = "URL")]
    pub control_endpoints: Vec<String>,
    /// Folder with this node's certificate, key and the CA's certificate
    #[arg(long, value_name = "DIR")]
    pub pki_dir: Option<PathBuf>,
}

impl Args {
    fn overrides(&self) -> serde_json::Value {
        let endpoints = (!self.control_endpoints.is_empty()).then_some(&self.control_endpoints);
        json!({
            "node": self.node,
            "region": self.region,
            "listen_http": self.listen_http,
            "quic_listen": self.quic_listen,
            "admin_listen": self.admin_listen,
            "shards": self.shards,
            "control_endpoints": endpoints,
            "pki_dir": self.pki_dir,
        })
    }
}

/// Runs a router until the shutdown is triggered, or until it has drained after the shutdown's
/// drain was asked for. The caller waits for the shutdown's tasks.
///
/// # Errors
/// A configuration with mistakes, unusable certificates, a port in use.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let checked = args.config.load_checked(args.overrides(), |cfg: &RouterConfig| {
        let mistakes = cfg.validate().into_iter();
        mistakes.map(|m| Mistake::of_key(m.key, m.problem)).collect()
    })?;
    let Some(cfg) = checked else { return Ok(()) };
    let log = log::init(&cfg.log);
    let metrics = Metrics::install();
    let admin_listen = cfg.admin_listen;
    let drain_deadline = Duration::from_millis(cfg.limits.drain_deadline_ms);
    let router = Router::start(cfg, &shutdown).await.context("the router did not start")?;
    let drain = Drain::new();
    let mut admin_addr = None;
    if let Some(addr) = admin_listen {
        let readiness = router.readiness().clone();
        let admin = Admin { metrics, readiness, log, drain: drain.clone() };
        let server = AdminServer::bind(addr, admin).await?.with_routes(router.admin_routes());
        tracing::info!(addr = %server.addr(), "admin listener");
        admin_addr = Some(server.addr());
        shutdown.spawn("router admin", server.run(shutdown.token()));
    }
    args.config.announce(&json!({
        "whep_addr": router.whep_addr(),
        "quic_addr": router.quic_addr(),
        "ice_addrs": router.ice_addrs(),
        "admin_addr": admin_addr,
    }))?;
    let end = shutdown.token();
    tokio::select! {
        () = end.cancelled() => return Ok(()),
        () = shutdown.drain_asked() => {}
        () = drain.started() => {
            router.drain();
            tokio::select! {
                () = end.cancelled() => return Ok(()),
                () = shutdown.drain_asked() => {}
            }
        }
    }
    tokio::select! {
        _why = router.leave(drain_deadline) => {}
        () = end.cancelled() => {}
    }
    Ok(())
}
