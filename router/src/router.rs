//! A router's start and end: every step once, in order, with its reason. Not what the parts do.
//! Invariant: when [`Router::start`] returns, every port is bound and everything serves; when the
//! shutdown's deadline has passed, every viewer was told and every thread has ended.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fanlight_ops::{
    admin::Readiness,
    http::{self, HttpLimits},
    link::{HelloTemplate, LinkClient, LinkConfig, LinkHandle, LinkHandler},
    metrics::Metrics,
    pki::NodeIdentity,
    process,
    shutdown::Shutdown,
};
use fanlight_proto::{
    id::NodeId,
    types::v1::{NodeAddresses, NodeCapacity, NodeKind},
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{ConfigMistake, RouterConfig},
    drain::{self, Draining},
    error::RouterError,
    hop::Hop,
    ingest::Ingest,
    metrics::{METRICS, NodeMetrics},
    node::{EgressRate, Fact, IceWindow, Node, report_of},
    sessions::Sessions,
    shard::{self, Command, Shard, ShardEvent, ShardHandle},
    streams::Streams,
    token::Tokens,
    viewers,
    whep::{self, Whep},
};

/// Events of all shards that may wait; beyond it each shard holds them back (see `shard.rs`).
const EVENT_QUEUE: usize = 4_096;
/// Facts to report that may wait for the link's own queue.
const FACT_QUEUE: usize = 4_096;
/// How long facts are collected into one report.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);
/// How often a draining router looks whether all have left.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// Share of the time for an ordered stop that viewers get to take their leave.
const FAREWELL: Duration = Duration::from_millis(400);

/// A running router.
#[derive(Debug)]
pub struct Router {
    whep_addr: SocketAddr,
    whep_base_url: String,
    quic_addr: SocketAddr,
    ice_addrs: Vec<SocketAddr>,
    node: Arc<Node>,
    readiness: Readiness,
    link: Option<LinkHandle>,
}

/// What a router holds right now, for tests that look for leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Streams wanted.
    pub streams: usize,
    /// Sessions, by id, by URL and by token.
    pub sessions: [usize; 3],
    /// Viewers with state on the shards, as of their last whole second.
    pub shard_viewers: u64,
}

impl Router {
    /// Starts a router with the certificate in `cfg.pki_dir`.
    ///
    /// # Errors
    /// See [`RouterError`]; whatever was bound before is released.
    pub async fn start(cfg: RouterConfig, shutdown: &Shutdown) -> Result<Self, RouterError> {
        let identity =
            NodeIdentity::load(&cfg.pki_dir).map_err(|e| RouterError::Identity(e.to_string()))?;
        Self::start_with(cfg, identity, Readiness::new(), shutdown).await
    }

    /// Starts a router with a given certificate, as a part of a process that has a readiness list.
    ///
    /// # Errors
    /// See [`RouterError`]; whatever was bound before is released.
    pub async fn start_with(
        cfg: RouterConfig,
        identity: NodeIdentity,
        readiness: Readiness,
        shutdown: &Shutdown,
    ) -> Result<Self, RouterError> {
        // 1. The configuration, all of it, before anything is touched.
        let node_id = check(&cfg, &identity)?;
        Metrics::install().describe(METRICS);
        let metrics = NodeMetrics::new(&cfg.node);

        // 2. Ports that may be taken: found out before threads run.
        let listener = TcpListener::bind(cfg.listen_http).await.map_err(|source| {
            RouterError::Bind { what: "WHEP listener", address: cfg.listen_http, source }
        })?;
        let whep_addr = listener.local_addr().map_err(|source| RouterError::Bind {
            what: "WHEP listener",
            address: cfg.listen_http,
            source,
        })?;

        // 3. Shards: streams and sessions need their inboxes.
        let (events, event_queue) = mpsc::channel(EVENT_QUEUE);
        let mut shards = Shards(Vec::new());
        for index in 0..cfg.shards {
            shards.0.push(shard::spawn(&cfg, index, events.clone())?);
        }
        // Only the shards hold senders, so that their end is seen.
        drop(events);
        let handles: Arc<[ShardHandle]> = shards.0.iter().map(|s| s.handle.clone()).collect();
        let ice_addrs: Vec<SocketAddr> =
            handles.iter().flat_map(|s| s.candidates.iter().copied()).collect();

        // 4. Tables, shared by everything that follows.
        let (facts, fact_queue) = mpsc::channel(FACT_QUEUE);
        let streams =
            Arc::new(Streams::new(Arc::clone(&handles), metrics.clone(), facts, &cfg.limits));
        let sessions = Arc::new(Sessions::new(Arc::clone(&handles), cfg.limits.sessions_max));
        let tokens = Arc::new(Tokens::new());
        let draining = Arc::new(Draining::default());
        let node = Arc::new(Node {
            streams: Arc::clone(&streams),
            sessions: Arc::clone(&sessions),
            tokens: Arc::clone(&tokens),
            shards: Arc::clone(&handles),
            metrics: metrics.clone(),
            draining: Arc::clone(&draining),
            egress_bps_max: cfg.limits.egress_bps_max,
            sessions_max: cfg.limits.sessions_max,
            egress: Mutex::new(EgressRate { at: Instant::now(), bytes: 0, bps: 0 }),
            ice: Mutex::new(IceWindow::new(Instant::now())),
            readiness: readiness.clone(),
            component: component(&cfg.node),
        });

        // One life of the node; several may share a process, so it is not the process's start.
        let incarnation = process::now_unix_us();

        // 5. The hop: publishers may come from here on.
        let hop = Hop {
            node: node_id.clone(),
            incarnation,
            streams: Arc::clone(&streams),
            metrics: metrics.clone(),
            slots_max: cfg.limits.hop_slots_max,
            frame_bytes_max: cfg.limits.hop_frame_bytes_max,
            pending_bytes_max: cfg.limits.hop_pending_bytes_max,
            last_publish: AtomicU64::new(0),
        };
        let ingest = Ingest::bind(&cfg, &identity, hop)?;
        let quic_addr = ingest.local_addr()?;

        // 6. Tasks. What can fail has been done.
        let phases = Phases::default();
        let name = &cfg.node;
        let going_away = shutdown.token();
        let run = ingest.run(going_away, phases.end.clone());
        shutdown.spawn(format!("{name} ingest"), run);
        let pump = pump_events(Arc::clone(&node), event_queue);
        shutdown.spawn(format!("{name} shard events"), pump);
        let whep =
            Whep::new(streams, sessions, tokens, metrics, Arc::clone(&draining), &cfg.limits);
        let app = whep::routes(Arc::new(whep));
        // Two connections for each session there may be: browsers keep a spare one.
        let limits = HttpLimits {
            connections_max: cfg.limits.sessions_max.saturating_mul(2).max(64),
            ..HttpLimits::default()
        };
        let serve = http::serve(listener, app, limits, phases.end.clone());
        shutdown.spawn(format!("{name} whep"), serve);

        // 7. The link last: what it is told can be done at once.
        let whep_base_url = if cfg.whep_base_url.is_empty() {
            format!("http://{}", reachable(whep_addr, &ice_addrs))
        } else {
            cfg.whep_base_url.trim_end_matches('/').to_owned()
        };
        let mut router = Self {
            whep_addr,
            whep_base_url,
            quic_addr,
            ice_addrs,
            node,
            readiness: readiness.clone(),
            link: None,
        };
        router.link = router.dial(&cfg, node_id, incarnation, &identity, shutdown)?;
        let reports = pump_facts(fact_queue, router.link.clone(), phases.end.clone());
        shutdown.spawn(format!("{name} reports"), reports);
        readiness.set(component(name), true, "");
        let stop = Stop {
            shutdown: shutdown.token(),
            draining,
            readiness,
            component: component(name),
            shards,
            phases,
            drain: Duration::from_millis(cfg.limits.drain_ms),
        };
        shutdown.spawn(format!("{name} stop"), stop.run());
        tracing::info!(node = %cfg.node, whep = %router.whep_addr, quic = %router.quic_addr, ice = ?router.ice_addrs, "router serves");
        Ok(router)
    }

    fn dial(
        &self,
        cfg: &RouterConfig,
        node: NodeId,
        incarnation: u64,
        identity: &NodeIdentity,
        shutdown: &Shutdown,
    ) -> Result<Option<LinkHandle>, RouterError> {
        if cfg.control_endpoints.is_empty() {
            return Ok(None);
        }
        let quic = if cfg.quic_announce.is_empty() {
            vec![reachable(self.quic_addr, &self.ice_addrs).to_string()]
        } else {
            cfg.quic_announce.clone()
        };
        let hello = HelloTemplate {
            node,
            kind: NodeKind::Router,
            incarnation,
            region: cfg.region.clone(),
            zone: cfg.zone.clone(),
            labels: std::collections::BTreeMap::new(),
            addresses: NodeAddresses {
                quic,
                ice_udp: self.ice_addrs.iter().map(ToString::to_string).collect(),
                ice_tcp: Vec::new(),
                whep_base_url: self.whep_base_url.clone(),
                quic_cert_sha256: identity.cert_sha256().to_vec(),
            },
            capacity: NodeCapacity {
                egress_bps: cfg.limits.egress_bps_max,
                viewers: u32::try_from(cfg.limits.sessions_max).unwrap_or(u32::MAX),
                streams_in: u32::try_from(cfg.limits.streams_max).unwrap_or(u32::MAX),
                relays_out: 0,
                encoder_sessions: 0,
                cpu_cores: u32::try_from(cfg.shards).unwrap_or(u32::MAX),
            },
        };
        let link = LinkConfig::new(cfg.control_endpoints.clone(), identity.clone(), hello);
        let handler: Arc<dyn LinkHandler> = Arc::clone(&self.node) as Arc<dyn LinkHandler>;
        let handle = LinkClient::spawn(link, handler, shutdown).map_err(|e| {
            let mistake = ConfigMistake { key: "control_endpoints", problem: e.to_string() };
            RouterError::Config(vec![mistake])
        })?;
        Ok(Some(handle))
    }

    /// Where WHEP was bound.
    pub fn whep_addr(&self) -> SocketAddr {
        self.whep_addr
    }

    /// Base of WHEP addresses given to viewers: `{base}/whep/{stream}`.
    pub fn whep_base_url(&self) -> &str {
        &self.whep_base_url
    }

    /// Where ingest workers connect.
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic_addr
    }

    /// What a router adds to the admin listener.
    pub fn admin_routes(&self) -> axum::Router {
        let (streams, shards) = (Arc::clone(&self.node.streams), Arc::clone(&self.node.shards));
        viewers::routes(Arc::new(viewers::Viewers::new(streams, shards)))
    }

    /// The shards' candidates.
    pub fn ice_addrs(&self) -> &[SocketAddr] {
        &self.ice_addrs
    }

    /// Readiness list that this router is part of.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Takes no new work from here on, and tells the control API at once.
    pub fn drain(&self) {
        self.node.draining.begin();
        if let Some(link) = &self.link {
            link.beat();
        }
    }

    /// Drains, and waits until the streams have moved to other routers and the viewers have
    /// followed; at most until the deadline, and no longer than that is of use. Gives why it is
    /// over.
    pub async fn leave(&self, deadline: Duration) -> &'static str {
        // What was answered before asked for another moment's fleet.
        self.node.draining.nowhere(false);
        self.drain();
        let began = Instant::now();
        let mut linked_at = began;
        let mut looks = tokio::time::interval(DRAIN_LOOK);
        loop {
            looks.tick().await;
            let now = Instant::now();
            if self.link.as_ref().is_some_and(LinkHandle::is_linked) {
                linked_at = now;
            }
            let view = drain::View {
                streams: self.node.streams.all().iter().filter(|s| s.holds_a_picture()).count(),
                sessions: self.node.sessions.len(),
                unlinked: match &self.link {
                    Some(_) => now - linked_at,
                    None => Duration::MAX,
                },
                nowhere: self.node.draining.has_nowhere(),
                elapsed: now - began,
                deadline,
            };
            if let Some(why) = drain::over(&view) {
                tracing::info!(why, streams = view.streams, viewers = view.sessions, waited = ?view.elapsed, "drained");
                return why;
            }
        }
    }

    /// The link to the control API, if there is one.
    pub fn link(&self) -> Option<&LinkHandle> {
        self.link.as_ref()
    }

    /// What a control API would be told and could tell: for embedders that have none.
    pub fn handler(&self) -> Arc<dyn LinkHandler> {
        Arc::clone(&self.node) as Arc<dyn LinkHandler>
    }

    /// What the router holds right now.
    pub fn census(&self) -> Census {
        let shards = self.node.shards.iter();
        Census {
            streams: self.node.streams.len(),
            sessions: self.node.sessions.table_sizes(),
            shard_viewers: shards.map(|s| s.stats.viewers.load(Ordering::Relaxed)).sum(),
        }
    }
}

/// A listener on all addresses is reached by one that viewers reach the shards by, as far from
/// this machine as there is.
fn reachable(bound: SocketAddr, shards: &[SocketAddr]) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let far = shards.iter().map(SocketAddr::ip).find(|ip| !ip.is_loopback());
    let near =
        || if bound.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(far.unwrap_or_else(near), bound.port())
}

fn component(node: &str) -> String {
    format!("router {node}")
}

fn check(cfg: &RouterConfig, identity: &NodeIdentity) -> Result<NodeId, RouterError> {
    let mut mistakes = cfg.validate();
    let node = NodeId::parse(&cfg.node);
    if let Ok(node) = &node
        && node != identity.node()
    {
        let problem = format!("{node} is not the node of the certificate, {}", identity.node());
        mistakes.push(ConfigMistake { key: "node", problem });
    }
    match (node, mistakes.is_empty()) {
        (Ok(node), true) => Ok(node),
        _ => Err(RouterError::Config(mistakes)),
    }
}

/// Shard threads. Dropped before the router runs, they are stopped.
struct Shards(Vec<Shard>);

impl Drop for Shards {
    fn drop(&mut self) {
        for shard in &self.0 {
            shard.handle.must(Command::Stop { until: Instant::now() });
        }
    }
}

/// The order of the end.
#[derive(Default)]
struct Phases {
    /// Viewers have been told: the rest ends.
    end: CancellationToken,
}

struct Stop {
    shutdown: CancellationToken,
    draining: Arc<Draining>,
    readiness: Readiness,
    component: String,
    shards: Shards,
    phases: Phases,
    drain: Duration,
}

impl Stop {
    async fn run(mut self) {
        self.shutdown.cancelled().await;
        // 1. Nobody is sent here any more, and joins get 503. Publishers are told at the same
        //    moment: they watch the same token.
        self.readiness.set(self.component.clone(), false, "shutting down");
        self.draining.begin();
        // 2. Viewers: each shard closes its sessions properly, then its thread ends.
        let until = Instant::now() + FAREWELL.min(self.drain);
        let mut threads = Vec::new();
        for shard in self.shards.0.drain(..) {
            shard.handle.must(Command::Stop { until });
            threads.push(shard.thread);
        }
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic was logged where it happened.
                let _ = thread.join();
            }
        });
        let _ = joined.await;
        // 3. The rest: the hop closes its connections, HTTP finishes what it has begun.
        self.phases.end.cancel();
        self.readiness.remove(&self.component);
    }
}

/// Ends when all shards have ended.
async fn pump_events(node: Arc<Node>, mut events: mpsc::Receiver<ShardEvent>) {
    while let Some(event) = events.recv().await {
        node.shard_event(event);
    }
}

/// Collects facts for a moment and hands them to the link. Without a link they are let go: a link
/// that comes up later begins with the whole state.
async fn pump_facts(
    mut facts: mpsc::Receiver<Fact>,
    link: Option<LinkHandle>,
    end: CancellationToken,
) {
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            () = end.cancelled() => return,
            got = facts.recv_many(&mut batch, 256) => if got == 0 { return },
        }
        if let Some(link) = &link {
            link.report(report_of(batch));
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
    }
}
