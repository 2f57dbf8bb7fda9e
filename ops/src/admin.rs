//! The operators' HTTP listener: metrics, liveness, readiness, version, log level, drain. Not the
//! public listener: it has no authentication and belongs on loopback or a private network.
//! Invariant: nothing here shows a secret, and nothing that changes state answers a web page
//! (requests that carry an `Origin` are refused).

use std::{borrow::Cow, collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    http::{self, HttpLimits},
    log::LogHandle,
    metrics::Metrics,
};

/// Longest request body: a log filter and no more.
const MAX_BODY_BYTES: usize = 4096;

/// Most components a readiness list holds; later ones are counted as not ready under one name.
const MAX_COMPONENTS: usize = 1024;

/// Connections at once; operators and scrapers are few.
const MAX_CONNECTIONS: usize = 64;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process has the port. The operator's to mend.
    #[error("port in use: {addr} ({what})")]
    InUse {
        /// The address asked for.
        addr: SocketAddr,
        /// What wanted it.
        what: &'static str,
    },
    /// Anything else the system said.
    #[error("cannot listen on {addr} ({what}): {source}")]
    Other {
        /// The address asked for.
        addr: SocketAddr,
        /// What wanted it.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl BindError {
    /// Sorts a system error; `what` names the listener for the reader of the message.
    pub fn new(what: &'static str, addr: SocketAddr, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::AddrInUse {
            Self::InUse { addr, what }
        } else {
            Self::Other { addr, what, source }
        }
    }
}

/// Opens a TCP listener; the error is one clear line.
pub async fn bind_tcp(what: &'static str, addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|e| BindError::new(what, addr, e))
}

/// Which parts of the process can do their work. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    components: Arc<RwLock<BTreeMap<Cow<'static, str>, Component>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Component {
    ready: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
}

impl Readiness {
    /// Nothing known yet, which counts as not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how a component is. `why` is for people.
    pub fn set(
        &self,
        component: impl Into<Cow<'static, str>>,
        ready: bool,
        why: impl Into<String>,
    ) {
        let mut components = self.components.write();
        let mut name = component.into();
        if components.len() >= MAX_COMPONENTS && !components.contains_key(&name) {
            name = Cow::Borrowed("(more)");
        }
        components.insert(name, Component { ready, why: why.into() });
    }

    /// Forgets a component that is no longer part of the process.
    pub fn remove(&self, component: &str) {
        self.components.write().remove(component);
    }

    /// Whether something is known and all of it is ready.
    pub fn is_ready(&self) -> bool {
        let components = self.components.read();
        !components.is_empty() && components.values().all(|c| c.ready)
    }

    fn list(&self) -> BTreeMap<Cow<'static, str>, Component> {
        self.components.read().clone()
    }
}

/// Tells a process to take no new work. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Drain {
    on: watch::Sender<bool>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { on: watch::Sender::new(false) }
    }
}

impl Drain {
    /// Not draining.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins. There is no way back: a drained process is restarted.
    pub fn start(&self) {
        self.on.send_replace(true);
    }

    /// Whether it has begun.
    pub fn is_draining(&self) -> bool {
        *self.on.borrow()
    }

    /// Ends when it has begun.
    pub async fn started(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.on.subscribe().wait_for(|on| *on).await;
    }
}

/// What the listener shows and changes.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Registry behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// List behind `/readyz`.
    pub readiness: Readiness,
    /// Filter behind `/log-level`.
    pub log: LogHandle,
    /// Switch behind `/drain`.
    pub drain: Drain,
}

/// A bound listener.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    addr: SocketAddr,
    admin: Admin,
    routes: Router,
}

impl AdminServer {
    /// Binds; port 0 takes a free one.
    pub async fn bind(addr: SocketAddr, admin: Admin) -> Result<Self, BindError> {
        let listener = bind_tcp("admin listener", addr).await?;
        let addr = listener.local_addr().map_err(|e| BindError::new("admin listener", addr, e))?;
        Ok(Self { listener, addr, admin, routes: Router::new() })
    }

    /// Adds the role's own routes.
    #[must_use]
    pub fn with_routes(mut self, routes: Router) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// What was bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the token is cancelled, then gives open requests a moment.
    pub async fn run(self, end: CancellationToken) {
        let limits = HttpLimits { connections_max: MAX_CONNECTIONS, ..HttpLimits::default() };
        http::serve(self.listener, router(self.admin, self.routes), limits, end).await;
    }
}

fn router(admin: Admin, routes: Router) -> Router {
    let own = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/log-level", get(log_level).put(set_log_level))
        .route("/drain", post(drain))
        .with_state(admin);
    own.merge(routes)
        .layer(middleware::from_fn(refuse_web_pages))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

/// A page in an operator's browser can send a POST to a loopback port; browsers then say where it
/// came from.
async fn refuse_web_pages(request: Request, next: Next) -> Response {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    if !safe && from_web_page(request.headers()) {
        return (StatusCode::FORBIDDEN, "not for web pages\n").into_response();
    }
    next.run(request).await
}

fn from_web_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site")
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, admin.metrics.render())
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    draining: bool,
    components: BTreeMap<Cow<'static, str>, Component>,
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let draining = admin.drain.is_draining();
    let ready = admin.readiness.is_ready() && !draining;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, draining, components: admin.readiness.list() }))
}

async fn version() -> impl IntoResponse {
    Json(serde_json::json!({ "name": "fanlight", "version": crate::VERSION }))
}

async fn log_level(State(admin): State<Admin>) -> impl IntoResponse {
    admin.log.filter() + "\n"
}

async fn set_log_level(State(admin): State<Admin>, body: Bytes) -> Response {
    let Ok(filter) = std::str::from_utf8(&body) else {
        return (StatusCode::BAD_REQUEST, "the filter is not UTF-8\n").into_response();
    };
    match admin.log.set_filter(filter.trim()) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "log filter changed");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(e) => (StatusCode::BAD_REQUEST, format!("{e}\n")).into_response(),
    }
}

async fn drain(State(admin): State<Admin>) -> impl IntoResponse {
    tracing::info!("drain asked for");
    admin.drain.start();
    StatusCode::ACCEPTED
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, component) in self.components.read().iter() {
            let word = if component.ready { "ready" } else { "not ready" };
            writeln!(f, "{name}: {word} {}", component.why)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
