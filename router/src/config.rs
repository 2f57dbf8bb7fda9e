//! What an operator may set on a router. Parsing only: nothing is bound or opened here. Unknown
//! keys are refused, every bound has a default, and units stand last in the names. Invariant: a
//! config that passes [`RouterConfig::validate`] can be started unless the machine refuses a port.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use fanlight_ops::log::LogConfig;
use fanlight_proto::id::NodeId;
use serde::{Deserialize, Serialize};

/// A router's whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Name of this node, as in its certificate.
    pub node: String,
    /// Region, for placement.
    pub region: String,
    /// Zone, for placement.
    pub zone: String,
    /// Where viewers POST (WHEP over HTTP). TLS is ended in front of it.
    pub listen_http: SocketAddr,
    /// Base of the WHEP address given to viewers; empty: `http://` and what was bound.
    pub whep_base_url: String,
    /// Where ingest workers connect (QUIC over UDP).
    pub quic_listen: SocketAddr,
    /// Addresses given to ingest workers, `host:port`; empty: what was bound.
    pub quic_announce: Vec<String>,
    /// Metrics, health and drain. None: no listener of its own.
    pub admin_listen: Option<SocketAddr>,
    /// Shard threads, each with its own UDP socket and port.
    pub shards: usize,
    /// Keeps each shard's thread on a CPU of its own, the first shard on the first that this
    /// process may use, and so on; beyond their number they share.
    pub pin_shards: bool,
    /// How viewers reach the shards.
    pub ice: IceConfig,
    /// Control API replicas, `https://host:port`. Empty: wants and keys come from the embedder.
    pub control_endpoints: Vec<String>,
    /// Folder with this node's certificate, key and the CA's certificate.
    pub pki_dir: PathBuf,
    /// Logs, when the router is a process of its own.
    pub log: LogConfig,
    /// Bounds.
    pub limits: LimitsConfig,
}

/// How viewers reach the shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IceConfig {
    /// Address the shards' UDP sockets bind. `::` takes IPv6 and IPv4 (IPv4 alone where the
    /// machine has no IPv6), `0.0.0.0` IPv4 alone.
    pub bind: IpAddr,
    /// Port of the first shard; the next ones follow. Zero: the system chooses each.
    pub port: u16,
    /// Addresses put into answers. Empty: the bound address, or, when that is unspecified, this
    /// machine's address towards its default route together with loopback.
    pub announce: Vec<IpAddr>,
    /// Size asked for each socket buffer, in bytes; what the kernel gave is logged.
    pub socket_buffer_bytes: usize,
    /// How datagrams are given to the kernel.
    pub egress: Egress,
    /// Also takes viewers by TCP (RFC 6544, passive), for networks that let no UDP through: on
    /// the number of each shard's UDP port.
    pub tcp: bool,
}

/// How media is given to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// The best that the kernel knows.
    #[default]
    Auto,
    /// `sendmmsg` of messages that the kernel cuts apart (`UDP_SEGMENT`).
    Gso,
    /// `sendmmsg` of single datagrams.
    Sendmmsg,
    /// One call per datagram.
    Sendto,
}

/// Every bound of a router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Most streams wanted at once; above it an assignment is refused.
    pub streams_max: usize,
    /// Most sessions at once; above it a join gets 503.
    pub sessions_max: usize,
    /// Most sessions of one stream; above it a join gets 503.
    pub sessions_per_stream_max: usize,
    /// Most joins in one second; above it a join gets 503.
    pub joins_per_second_max: u32,
    /// Most large offers (over 12 kB) read at the same time; above it a join gets 503.
    pub joins_parsing_max: usize,
    /// Largest offer, in bytes; above it 413.
    pub offer_bytes_max: usize,
    /// Messages a shard's inbox holds. Frames may fill half of it, joins three quarters.
    pub shard_inbox_messages_max: usize,
    /// Most connections from ingest workers.
    pub hop_connections_max: usize,
    /// Most handshakes of ingest workers at once; above it an address has to prove itself.
    pub hop_handshakes_max: usize,
    /// Device slots of one connection.
    pub hop_slots_max: u32,
    /// Largest frame, in bytes of RTP packets.
    pub hop_frame_bytes_max: usize,
    /// Bytes of unfinished and held frames of one connection; above it a frame is cancelled.
    pub hop_pending_bytes_max: usize,
    /// Silence after which an ingest worker counts as dead, in milliseconds; the smaller of both
    /// sides' values holds.
    pub hop_idle_ms: u64,
    /// Egress this machine is good for, in bit/s; part of the load it reports.
    pub egress_bps_max: u64,
    /// Time for an ordered stop, in milliseconds.
    pub drain_ms: u64,
    /// How long SIGTERM waits at most until the streams have moved to other routers and the viewers
    /// have followed, in milliseconds, before that ordered stop.
    pub drain_deadline_ms: u64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            node: "router-1".into(),
            region: "local".into(),
            zone: String::new(),
            listen_http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            whep_base_url: String::new(),
            quic_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            quic_announce: Vec::new(),
            admin_listen: None,
            shards: 1,
            pin_shards: false,
            ice: IceConfig::default(),
            control_endpoints: Vec::new(),
            pki_dir: PathBuf::from("pki"),
            log: LogConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

impl Default for IceConfig {
    fn default() -> Self {
        Self {
            bind: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            port: 0,
            announce: Vec::new(),
            socket_buffer_bytes: 4 << 20,
            egress: Egress::Auto,
            tcp: false,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            streams_max: 1_000,
            sessions_max: 5_000,
            sessions_per_stream_max: 2_000,
            joins_per_second_max: 500,
            joins_parsing_max: 16,
            offer_bytes_max: 32 << 10,
            shard_inbox_messages_max: 4_096,
            hop_connections_max: 512,
            hop_handshakes_max: 64,
            hop_slots_max: 64,
            hop_frame_bytes_max: 4 << 20,
            hop_pending_bytes_max: 64 << 20,
            hop_idle_ms: 1_000,
            egress_bps_max: 5_000_000_000,
            drain_ms: 1_500,
            drain_deadline_ms: 30_000,
        }
    }
}

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigMistake {
    /// Dotted key.
    pub key: &'static str,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl RouterConfig {
    /// All mistakes at once; empty when the config is usable.
    pub fn validate(&self) -> Vec<ConfigMistake> {
        let mut found = Vec::new();
        let mut wrong = |key, problem: String| found.push(ConfigMistake { key, problem });
        if let Err(e) = NodeId::parse(&self.node) {
            wrong("node", e.to_string());
        }
        if !(1..=256).contains(&self.shards) {
            wrong("shards", format!("{} given, 1 to 256 are allowed", self.shards));
        }
        let ports_needed = self.shards.saturating_sub(1);
        if self.ice.port != 0 && usize::from(u16::MAX - self.ice.port) < ports_needed {
            wrong("ice.port", format!("no room for {} ports from {}", self.shards, self.ice.port));
        }
        let bind = self.ice.bind;
        let both = bind == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        for ip in &self.ice.announce {
            if ip.is_unspecified() || !(both || ip.is_ipv4() == bind.is_ipv4()) {
                wrong("ice.announce", format!("{ip} cannot be reached through a socket on {bind}"));
            }
        }
        let base = &self.whep_base_url;
        let is_url = base.starts_with("http://") || base.starts_with("https://");
        if !(base.is_empty() || is_url) {
            wrong("whep_base_url", "must begin with http:// or https://".into());
        }
        for endpoint in &self.control_endpoints {
            if !endpoint.starts_with("https://") {
                wrong("control_endpoints", format!("{endpoint:?} does not begin with https://"));
            }
        }
        self.limits.validate(&mut found);
        found
    }
}

impl LimitsConfig {
    fn validate(&self, found: &mut Vec<ConfigMistake>) {
        let mut within = |key, value: u64, low: u64, high: u64| {
            if !(low..=high).contains(&value) {
                let problem = format!("{value} given, {low} to {high} are allowed");
                found.push(ConfigMistake { key, problem });
            }
        };
        within("limits.streams_max", self.streams_max as u64, 1, 100_000);
        within("limits.sessions_max", self.sessions_max as u64, 1, 1_000_000);
        within("limits.sessions_per_stream_max", self.sessions_per_stream_max as u64, 1, 1_000_000);
        within("limits.joins_per_second_max", self.joins_per_second_max.into(), 1, 1_000_000);
        within("limits.joins_parsing_max", self.joins_parsing_max as u64, 1, 1_024);
        // The offer parser takes some 0.2 us per byte, hence a hard ceiling.
        within("limits.offer_bytes_max", self.offer_bytes_max as u64, 1_024, 64 << 10);
        let inbox = self.shard_inbox_messages_max as u64;
        within("limits.shard_inbox_messages_max", inbox, 64, 1 << 20);
        within("limits.hop_connections_max", self.hop_connections_max as u64, 1, 100_000);
        within("limits.hop_handshakes_max", self.hop_handshakes_max as u64, 1, 10_000);
        within("limits.hop_slots_max", self.hop_slots_max.into(), 1, 2_047);
        within("limits.hop_frame_bytes_max", self.hop_frame_bytes_max as u64, 1 << 16, 16 << 20);
        let pending = self.hop_pending_bytes_max as u64;
        within("limits.hop_pending_bytes_max", pending, self.hop_frame_bytes_max as u64, 1 << 32);
        within("limits.hop_idle_ms", self.hop_idle_ms, 100, 60_000);
        within("limits.egress_bps_max", self.egress_bps_max, 1_000_000, 1 << 50);
        within("limits.drain_ms", self.drain_ms, 1, 600_000);
        within("limits.drain_deadline_ms", self.drain_deadline_ms, 0, 3_600_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_usable() {
        assert!(RouterConfig::default().validate().is_empty());
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mut cfg = RouterConfig { node: "a/b".into(), shards: 0, ..RouterConfig::default() };
        cfg.ice.announce = vec!["::".parse().unwrap()];
        cfg.control_endpoints = vec!["http://x".into()];
        cfg.limits.offer_bytes_max = 1 << 30;
        let keys: Vec<_> = cfg.validate().into_iter().map(|m| m.key).collect();
        assert_eq!(
            keys,
            ["node", "shards", "ice.announce", "control_endpoints", "limits.offer_bytes_max"]
        );
    }

    #[test]
    fn a_bind_to_both_families_may_announce_both() {
        let mut cfg = RouterConfig::default();
        cfg.ice.announce = vec!["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert!(cfg.validate().is_empty());
        cfg.ice.bind = "0.0.0.0".parse().unwrap();
        assert_eq!(cfg.validate().len(), 1);
    }

    #[test]
    fn egress_is_forced_by_name() {
        let cfg: RouterConfig =
            serde_json::from_value(serde_json::json!({ "ice": { "egress": "sendmmsg" } })).unwrap();
        assert_eq!(cfg.ice.egress, Egress::Sendmmsg);
        let wrong = serde_json::json!({ "ice": { "egress": "fast" } });
        assert!(serde_json::from_value::<RouterConfig>(wrong).is_err());
    }

    #[test]
    fn unknown_keys_are_refused() {
        let typo = serde_json::json!({ "shard": 2 });
        assert!(serde_json::from_value::<RouterConfig>(typo).is_err());
    }
}
