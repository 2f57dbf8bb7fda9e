//! Configuration of the control API: what may be set, its defaults, and the check of values that
//! are well-formed one by one. Not the reading of it (`fanlight_ops::config`). Invariant: a
//! configuration that passes [`ControlConfig::mistakes`] can be started, ports permitting.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use fanlight_ops::{config::Mistake, log::LogConfig};
use fanlight_proto::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::{lease::Timing, store::memory::Limits};

/// Longest `join_ttl` that may be configured or asked for.
pub const MAX_JOIN_TTL: Duration = Duration::from_secs(600);

/// Longest `drain_deadline`.
const MAX_DRAIN_DEADLINE: Duration = Duration::from_secs(3_600);

/// Settings of one replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlConfig {
    /// Name of this replica, unique in the fleet; stands in its node certificate.
    pub replica: String,
    /// Address of the backend-facing listener: gRPC, `/whep` redirects, `/livez`. Plaintext HTTP/2
    /// and HTTP/1.1.
    pub grpc_listen: SocketAddr,
    /// Allows `grpc_listen` outside loopback in plaintext. Without `backend_keys_file` nobody is
    /// authenticated there; with it tokens travel unencrypted. The network in front of it has to
    /// do what is missing.
    pub allow_insecure: bool,
    /// Public keys of backends: a JWK set of Ed25519 keys, read again when it changes. Set: every
    /// call needs a bearer token signed with one of them. Unset: every caller is the operator.
    pub backend_keys_file: Option<PathBuf>,
    /// Issuer that backend tokens name.
    pub backend_issuer: String,
    /// Calls per second of one authenticated caller; more are refused with RESOURCE_EXHAUSTED.
    /// Zero: no limit.
    pub rate_per_second: u32,
    /// Calls that one caller may make at once after a pause.
    pub rate_burst: u32,
    /// Where events are sent.
    pub webhooks: Vec<WebhookConfig>,
    /// Address of the node-facing listener (mTLS).
    pub node_listen: SocketAddr,
    /// Address of the operators' listener; unset: none.
    pub admin_listen: Option<SocketAddr>,
    /// Where state is kept: `memory://`.
    pub store: String,
    /// Folder of the node CA (`ca.pem`, `ca.key`), made on first start.
    pub pki_dir: PathBuf,
    /// This replica's own certificate (folder with `node.pem`, `node.key`, `ca.pem`), for fleets
    /// whose CA key is kept elsewhere; unset: issued by the CA in `pki_dir`.
    pub identity_dir: Option<PathBuf>,
    /// Further DNS names and IP addresses on the certificate of `node_listen`.
    pub node_sans: Vec<String>,
    /// Ed25519 key of join tokens (PKCS#8 PEM, mode 0600), made on first start.
    pub token_key_file: PathBuf,
    /// How long a join token may be used when the caller does not say.
    #[serde(with = "humantime_serde")]
    pub join_ttl: Duration,
    /// Interval of heartbeats asked of nodes.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A node silent for this long is LOST.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long viewers of a router that is drained, or of an origin that a stream moved away from,
    /// may take to follow, when the caller does not say.
    #[serde(with = "humantime_serde")]
    pub drain_deadline: Duration,
    /// Base of the addresses by which viewers reach this control API over HTTP, for example
    /// `https://control.example`: `{public_url}/whep/{stream}` is then handed out as the fallback
    /// that finds a stream's present router. Empty: no fallback is handed out.
    pub public_url: String,
    /// Calls in flight at once; more are refused with RESOURCE_EXHAUSTED.
    pub max_calls: usize,
    /// Connections open at once on each listener; more wait to be accepted.
    pub max_connections: usize,
    /// Answers gRPC server reflection.
    pub reflection: bool,
    /// Allows reusable join tokens that last for days. For demonstrations only.
    pub demo: bool,
    /// Log lines.
    pub log: LogConfig,
}

impl Default for ControlConfig {
    fn default() -> Self {
        let state = PathBuf::from("fanlight-state/control");
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            replica: "control".to_owned(),
            grpc_listen: loopback(8090),
            allow_insecure: false,
            backend_keys_file: None,
            backend_issuer: "fanlight-backend".to_owned(),
            rate_per_second: 200,
            rate_burst: 400,
            webhooks: Vec::new(),
            node_listen: loopback(8091),
            admin_listen: None,
            store: "memory://".to_owned(),
            pki_dir: state.join("pki"),
            identity_dir: None,
            node_sans: Vec::new(),
            token_key_file: state.join("token.pem"),
            join_ttl: Duration::from_secs(60),
            heartbeat: Duration::from_secs(1),
            lease: Duration::from_secs(8),
            drain_deadline: Duration::from_secs(30),
            public_url: String::new(),
            max_calls: 1024,
            max_connections: 4096,
            reflection: true,
            demo: false,
            log: LogConfig::default(),
        }
    }
}

/// A webhook: an address that events are POSTed to as CloudEvents 1.0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookConfig {
    /// Its name, unique; progress is kept under it.
    pub name: String,
    /// `http://` or `https://`.
    pub url: String,
    /// File with the secret of the HMAC-SHA256 signature (at least 16 bytes; mode 0600).
    pub secret_file: PathBuf,
    /// Only events whose type begins with one of these; empty: all.
    pub types: Vec<String>,
    /// Only events of streams and viewers of this tenant; unset: all, those of nodes too.
    pub tenant: Option<String>,
    /// Further CA certificates trusted for `https://` (PEM).
    pub ca_file: Option<PathBuf>,
}

/// Most webhooks; each costs a task and a connection.
const MAX_WEBHOOKS: usize = 16;

fn webhook_mistakes(webhooks: &[WebhookConfig]) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if webhooks.len() > MAX_WEBHOOKS {
        all.push(("webhooks", format!("at most {MAX_WEBHOOKS} are allowed")));
    }
    let mut names = std::collections::BTreeSet::new();
    for w in webhooks {
        if let Err(e) = NodeId::parse(&w.name) {
            all.push(("webhooks.name", e.to_string().replace("node id", "the name")));
        } else if !names.insert(&w.name) {
            all.push(("webhooks.name", format!("{:?} is there twice", w.name)));
        }
        let uri = w.url.parse::<http::Uri>().ok();
        let scheme = uri.as_ref().and_then(http::Uri::scheme_str);
        if !matches!(scheme, Some("http" | "https")) || uri.is_none_or(|u| u.host().is_none()) {
            // An address may carry a secret of its own, so it is not repeated.
            all.push(("webhooks.url", format!("that of {:?} is not an http(s) URL", w.name)));
        }
        if w.secret_file.as_os_str().is_empty() {
            all.push(("webhooks.secret_file", format!("{:?} has none", w.name)));
        }
    }
    all
}

impl ControlConfig {
    /// Everything that is wrong with it.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut all = Vec::new();
        let mut wrong = |key: &str, what: String| all.push(Mistake::of_key(key, what));
        if let Err(e) = NodeId::parse(&self.replica) {
            wrong("replica", e.to_string());
        }
        if !self.grpc_listen.ip().is_loopback() && !self.allow_insecure {
            let lacks = match self.backend_keys_file {
                None => "callers are not authenticated",
                Some(_) => "tokens would travel unencrypted",
            };
            wrong(
                "grpc_listen",
                format!(
                    "{} is not loopback and {lacks}; set allow_insecure if the network in front \
                     of it takes care of that",
                    self.grpc_listen
                ),
            );
        }
        if self.backend_issuer.is_empty() {
            wrong("backend_issuer", "must not be empty".to_owned());
        }
        if self.rate_per_second > 0 && self.rate_burst == 0 {
            wrong("rate_burst", "must be above zero".to_owned());
        }
        for (key, what) in webhook_mistakes(&self.webhooks) {
            wrong(key, what);
        }
        if self.store != "memory://" {
            wrong("store", "only memory:// is supported".to_owned());
        }
        if self.join_ttl.is_zero() || self.join_ttl > MAX_JOIN_TTL {
            wrong("join_ttl", "must be above zero and at most 10min".to_owned());
        }
        if self.heartbeat < Duration::from_millis(50) {
            wrong("heartbeat", "must be at least 50ms".to_owned());
        }
        if self.lease < self.heartbeat * 3 {
            wrong("lease", "must be at least three heartbeats".to_owned());
        }
        if self.drain_deadline.is_zero() || self.drain_deadline > MAX_DRAIN_DEADLINE {
            wrong("drain_deadline", "must be above zero and at most 1h".to_owned());
        }
        let http = ["http://", "https://"].iter().any(|s| self.public_url.starts_with(s));
        if !self.public_url.is_empty() && !http {
            wrong("public_url", "must begin with http:// or https://".to_owned());
        }
        if self.max_calls == 0 {
            wrong("max_calls", "must be above zero".to_owned());
        }
        if self.max_connections == 0 {
            wrong("max_connections", "must be above zero".to_owned());
        }
        all
    }

    /// Durations of the control plane; what is not configured follows from what is.
    pub fn timing(&self) -> Timing {
        let suspect_after = (self.heartbeat * 3).min(self.lease);
        Timing {
            heartbeat: self.heartbeat,
            suspect_after,
            lease: self.lease,
            drain: self.drain_deadline,
            ..Timing::default()
        }
    }

    /// Bounds of the memory store.
    pub fn limits(&self) -> Limits {
        Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_started() {
        assert!(ControlConfig::default().mistakes().is_empty());
    }

    #[test]
    fn all_mistakes_are_found_at_once() {
        let config = ControlConfig {
            replica: "a b".to_owned(),
            grpc_listen: SocketAddr::from(([0, 0, 0, 0], 1)),
            store: "redis://x".to_owned(),
            join_ttl: Duration::from_secs(601),
            heartbeat: Duration::from_millis(1),
            lease: Duration::ZERO,
            drain_deadline: Duration::ZERO,
            public_url: "control.example".to_owned(),
            max_calls: 0,
            max_connections: 0,
            ..ControlConfig::default()
        };
        let keys: Vec<_> = config.mistakes().into_iter().map(|m| m.key).collect();
        assert_eq!(
            keys,
            [
                "replica",
                "grpc_listen",
                "store",
                "join_ttl",
                "heartbeat",
                "lease",
                "drain_deadline",
                "public_url",
                "max_calls",
                "max_connections"
            ]
        );
    }

    #[test]
    fn a_public_bind_has_to_be_meant() {
        let open = ControlConfig {
            grpc_listen: SocketAddr::from(([0, 0, 0, 0], 1)),
            allow_insecure: true,
            ..ControlConfig::default()
        };
        assert!(open.mistakes().is_empty());
    }
}
