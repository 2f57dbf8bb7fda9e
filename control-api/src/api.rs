//! Start-up and end of a replica: every step once, in order, with its reason. Not the work itself.
//! Invariant: nothing is bound before the configuration and all keys are read, and health says
//! SERVING only when everything behind it runs.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use fanlight_ops::{
    admin::{Admin, AdminServer, Drain, Readiness, bind_tcp},
    config::{ConfigArgs, ConfigErrors},
    log,
    metrics::Metrics,
    pki::{Ca, NodeCert, NodeIdentity, server_config_mtls},
    shutdown::Shutdown,
};
use fanlight_proto::{
    FILE_DESCRIPTOR_SET,
    claims::Role,
    control::v1::{
        event_service_server::EventServiceServer, node_service_server::NodeServiceServer,
        stream_service_server::StreamServiceServer, viewer_service_server::ViewerServiceServer,
    },
    id::{NodeId, StreamId},
    node::v1::node_link_service_server::NodeLinkServiceServer,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, broadcast::error::RecvError},
};
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService as _, service::Routes, transport::Server};
use tonic_health::server::HealthReporter;

use crate::{
    auth::Gate,
    clock::Clock,
    config::ControlConfig,
    http,
    incoming::{mtls, plain},
    invite::Inviter,
    layers,
    limit::Rates,
    link::{self, LinkServer, Links},
    metrics::METRICS,
    rest,
    service::{
        self, Parts, events::Events, nodes::Nodes, streams::Streams, viewers::Viewers,
        watch::MAX_WATCHES,
    },
    steward::Steward,
    store::{Event, Store, memory::MemoryStore},
    token::TokenKey,
    webhook,
};

/// Silence after which a connection is pinged, and the time it has to answer: a half-dead one is
/// found in eight seconds, the length of a lease.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(3);
/// Calls in flight on one backend connection.
const MAX_STREAMS: u32 = 256;
/// A node has one link, and a second one while it moves between replicas.
const MAX_NODE_STREAMS: u32 = 4;
/// Largest header list; the longest honest ones carry a bearer token of a few kilobytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// A running replica.
#[derive(Debug)]
pub struct ControlApi {
    grpc_addr: SocketAddr,
    node_addr: SocketAddr,
    ca: Option<Arc<Ca>>,
    inviter: Arc<Inviter>,
    store: Arc<dyn Store>,
    shutdown: Shutdown,
    demo: bool,
}

impl ControlApi {
    /// Starts a replica. Its tasks end with `shutdown`, or alone by [`Self::stop`].
    pub async fn start(cfg: ControlConfig, shutdown: &Shutdown) -> anyhow::Result<Self> {
        // Mistakes before any port is bound or file made.
        let mistakes = cfg.mistakes();
        if !mistakes.is_empty() {
            return Err(ConfigErrors(mistakes).into());
        }
        let shutdown = shutdown.child();
        Metrics::install().describe(METRICS);

        // Keys, made on first start: who nodes trust, who we are, what tokens are signed with.
        let (ca, identity) = identity(&cfg)?;
        let tls = server_config_mtls(&identity, &[b"h2"])?;
        let token = Arc::new(TokenKey::load_or_create(&cfg.token_key_file)?);

        // Who may call.
        let gate = Arc::new(match &cfg.backend_keys_file {
            Some(path) => Gate::with_keys(path, &cfg.backend_issuer)?,
            None => Gate::open(),
        });

        // State, and those who watch it.
        let store = open_store(&cfg);
        let links = Arc::new(Links::default());
        let steward = Arc::new(Steward::new(Arc::clone(&store)));
        let inviter = Inviter::new(Arc::clone(&store), Arc::clone(&links), Arc::clone(&token));
        let inviter = Arc::new(inviter.with_fallback(&cfg.public_url));

        // Both ports, so that a port in use is told before anything runs.
        let node_listener = bind_tcp("node listener", cfg.node_listen).await?;
        let grpc_listener = bind_tcp("gRPC listener", cfg.grpc_listen).await?;
        let node_addr = node_listener.local_addr()?;
        let grpc_addr = grpc_listener.local_addr()?;

        let end = shutdown.token();
        {
            let (steward, end) = (Arc::clone(&steward), end.clone());
            shutdown.spawn("steward", async move { steward.run(end).await });
        }
        shutdown.spawn("nudges", nudge(Arc::clone(&store), Arc::clone(&links), end.clone()));

        // Events leave from the first one on. Secrets are read before anything is served.
        webhook::start(&cfg.webhooks, &store, &cfg.replica, &shutdown)?;

        // Nodes may link before backends may call: a first call finds a fleet.
        let link_server = LinkServer::new(link::Shared {
            store: Arc::clone(&store),
            links: Arc::clone(&links),
            token: Arc::clone(&token),
            timing: cfg.timing(),
            replica: cfg.replica.clone(),
            shutdown: shutdown.clone(),
        });
        let nodes = serve_nodes(node_listener, link_server, tls, cfg.max_connections, end.clone());
        shutdown.spawn("node listener", nodes);

        let parts = Arc::new(Parts {
            store: Arc::clone(&store),
            steward,
            inviter: Arc::clone(&inviter),
            links,
            token,
            join_ttl: cfg.join_ttl,
            drain_deadline: cfg.drain_deadline,
            shutdown: shutdown.clone(),
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
            webhooks: cfg.webhooks.clone(),
        });
        if cfg.backend_keys_file.is_some() {
            let (gate, end) = (Arc::clone(&gate), end.clone());
            shutdown.spawn("backend keys", async move { gate.follow_file(end).await });
        }
        let backends = serve_backends(grpc_listener, &cfg, &parts, gate, end).await?;
        shutdown.spawn("gRPC listener", backends);
        tracing::info!(%grpc_addr, %node_addr, replica = cfg.replica, "control API serves");
        Ok(Self { grpc_addr, node_addr, ca, inviter, store, shutdown, demo: cfg.demo })
    }

    /// Where backends call.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where nodes link.
    pub fn node_addr(&self) -> SocketAddr {
        self.node_addr
    }

    /// The node CA, when its key is here.
    pub fn ca(&self) -> Option<&Ca> {
        self.ca.as_deref()
    }

    /// Signs a certificate for a node.
    pub fn issue_node(&self, node: &NodeId, sans: &[String]) -> anyhow::Result<NodeCert> {
        let ca = self.ca().context("the CA key is not on this replica")?;
        Ok(ca.issue_node(node, sans)?)
    }

    /// The store, for tests and tools in the same process.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// A join token for demonstrations: reusable, valid for days. Refused unless `demo` is set.
    pub fn mint_demo_token(&self, stream: &StreamId, role: Role) -> anyhow::Result<String> {
        anyhow::ensure!(self.demo, "reusable tokens are minted only when `demo` is set");
        Ok(self.inviter.demo_token(stream, role)?)
    }

    /// Ends this replica alone and waits for it.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.shutdown.trigger();
        Ok(self.shutdown.wait().await?)
    }
}

/// The CA made or read, and the certificate of this replica.
fn identity(cfg: &ControlConfig) -> anyhow::Result<(Option<Arc<Ca>>, NodeIdentity)> {
    if let Some(dir) = &cfg.identity_dir {
        let identity = NodeIdentity::load(dir).context("cannot use identity_dir")?;
        return Ok((None, identity));
    }
    let ca = Ca::load_or_create(&cfg.pki_dir).context("cannot use pki_dir")?;
    let cert = ca.issue_control(&NodeId::parse(&cfg.replica)?, &cfg.node_sans)?;
    Ok((Some(Arc::new(ca)), NodeIdentity::from_pem(cert)?))
}

fn open_store(cfg: &ControlConfig) -> Arc<dyn Store> {
    // The one URL there is was checked with the configuration.
    Arc::new(MemoryStore::new(cfg.limits(), cfg.timing(), Clock::start()))
}

/// Passes changes of wants on to the links.
async fn nudge(store: Arc<dyn Store>, links: Arc<Links>, end: CancellationToken) {
    let mut events = store.subscribe();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = end.cancelled() => return,
        };
        match event {
            Ok(Event::Wants(node)) => links.nudge(&node),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => links.nudge_all(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// The node-facing listener.
async fn serve_nodes(
    listener: TcpListener,
    links: LinkServer,
    tls: rustls::ServerConfig,
    max_connections: usize,
    end: CancellationToken,
) {
    let service = NodeLinkServiceServer::new(links)
        .max_decoding_message_size(link::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(link::MAX_MESSAGE_BYTES * 4);
    let incoming = mtls(listener, max_connections, Arc::new(tls), end.clone());
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .max_concurrent_streams(MAX_NODE_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, end.cancelled_owned())
        .await;
    if let Err(e) = served {
        tracing::error!(error = %e, "node listener failed");
    }
}

/// The backend-facing listener: gRPC behind the chain of `layers.rs`, and plain HTTP beside it.
async fn serve_backends(
    listener: TcpListener,
    cfg: &ControlConfig,
    parts: &Arc<Parts>,
    gate: Arc<Gate>,
    end: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut services = service::routes(parts).add_service(health_service);
    if cfg.reflection {
        // Both versions: older tools ask for v1alpha.
        services = services
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
    }
    let rates = Arc::new(Rates::new(cfg.rate_per_second, cfg.rate_burst));
    let calls = layers::wrap(services, cfg.max_calls, gate, rates);
    // JSON becomes a call on the same chain, so it is merged beside it and not put through it.
    let router = calls
        .clone()
        .merge(rest::routes(&calls)?)
        .merge(rest::sessions::routes(&calls)?)
        .merge(http::routes(Arc::clone(&parts.store), Arc::clone(&parts.token)));
    let incoming = plain(listener, cfg.max_connections, end.clone());
    set_serving(&health).await;
    Ok(async move {
        let stopping = end.clone();
        let served = Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .add_routes(Routes::from(router))
            .serve_with_incoming_shutdown(incoming, async move {
                stopping.cancelled().await;
                // Watchers hear of the end before their connection closes.
                set_stopping(&health).await;
            });
        // Streams of health and reflection have no end of their own.
        let grace = async {
            end.cancelled().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        tokio::select! {
            served = served => if let Err(e) = served {
                tracing::error!(error = %e, "gRPC listener failed");
            },
            () = grace => {}
        }
    })
}

/// What may be called here, and no more: NodeLink is described, but not served on this listener.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(StreamServiceServer::<Streams>::NAME)
        .with_service_name(ViewerServiceServer::<Viewers>::NAME)
        .with_service_name(NodeServiceServer::<Nodes>::NAME)
        .with_service_name(EventServiceServer::<Events>::NAME)
        .with_service_name("grpc.health.v1.Health")
}

async fn set_serving(health: &HealthReporter) {
    health.set_serving::<StreamServiceServer<Streams>>().await;
    health.set_serving::<ViewerServiceServer<Viewers>>().await;
    health.set_serving::<NodeServiceServer<Nodes>>().await;
    health.set_serving::<EventServiceServer<Events>>().await;
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
}

async fn set_stopping(health: &HealthReporter) {
    health.set_not_serving::<StreamServiceServer<Streams>>().await;
    health.set_not_serving::<ViewerServiceServer<Viewers>>().await;
    health.set_not_serving::<NodeServiceServer<Nodes>>().await;
    health.set_not_serving::<EventServiceServer<Events>>().await;
    health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
}

/// Flags of a replica's process.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Configuration file and checks
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Address of the gRPC listener
    #[arg(long, value_name = "ADDR")]
    pub grpc_listen: Option<SocketAddr>,
    /// Address of the node listener (mTLS)
    #[arg(long, value_name = "ADDR")]
    pub node_listen: Option<SocketAddr>,
    /// Address of the operators' listener
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// Where state is kept: memory://
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// Folder of the node CA; made on first start
    #[arg(long, value_name = "DIR")]
    pub pki_dir: Option<PathBuf>,
    /// Key file of join tokens; made on first start
    #[arg(long, value_name = "FILE")]
    pub token_key_file: Option<PathBuf>,
    /// Name of this replica
    #[arg(long, value_name = "NAME")]
    pub replica: Option<String>,
    /// Base of the addresses by which viewers reach this control API, for WHEP fallbacks
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Allow a plaintext gRPC listener outside loopback
    #[arg(long)]
    pub allow_insecure: bool,
    /// Public keys of backends (JWK set); every call needs a token then
    #[arg(long, value_name = "FILE")]
    pub backend_keys_file: Option<PathBuf>,
    /// What to do instead of serving
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What else the role does.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Action {
    /// Mints a bearer token for a backend, and the keys it needs, for tests and development
    Token(Box<crate::backend_token::Args>),
}

impl Args {
    /// The flags that were given, as configuration keys.
    fn flags(&self) -> serde_json::Value {
        json!({
            "grpc_listen": self.grpc_listen,
            "node_listen": self.node_listen,
            "admin_listen": self.admin_listen,
            "store": self.store,
            "pki_dir": self.pki_dir,
            "token_key_file": self.token_key_file,
            "replica": self.replica,
            "public_url": self.public_url,
            "allow_insecure": self.allow_insecure.then_some(true),
            "backend_keys_file": self.backend_keys_file,
        })
    }
}

/// Runs a replica until the shutdown is triggered. The caller waits for the shutdown's tasks.
///
/// # Errors
/// A configuration with mistakes, unusable keys, a port in use.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    if let Some(Action::Token(args)) = &args.action {
        return crate::backend_token::run(args);
    }
    let loaded = args.config.load_checked(args.flags(), ControlConfig::mistakes)?;
    let Some(cfg): Option<ControlConfig> = loaded else {
        return Ok(());
    };
    let log = log::init(&cfg.log);
    let admin_listen = cfg.admin_listen;
    let api = ControlApi::start(cfg, &shutdown).await.context("the control API did not start")?;
    let readiness = Readiness::new();
    readiness.set("control-api", true, "");
    let mut admin_addr = None;
    if let Some(addr) = admin_listen {
        let (metrics, readiness, drain) = (Metrics::install(), readiness.clone(), Drain::new());
        let server = AdminServer::bind(addr, Admin { metrics, readiness, log, drain }).await?;
        tracing::info!(addr = %server.addr(), "admin listener serves");
        admin_addr = Some(server.addr());
        shutdown.spawn("control admin", server.run(shutdown.token()));
    }
    args.config.announce(&json!({
        "grpc_addr": api.grpc_addr(),
        "node_addr": api.node_addr(),
        "admin_addr": admin_addr,
    }))?;
    shutdown.triggered().await;
    readiness.set("control-api", false, "stopping");
    Ok(())
}
