//! The router's hands and feet: shard threads, QUIC ingest, WHEP, NodeLink. What is decided about
//! media is decided in `fanlight-router-core`; this package moves bytes and keeps tables.
//! Invariant: running streams, their viewers and joins with valid tokens need no control API.
//!
//! # Walk of a media packet
//!
//! [`ingest`](crate::RouterConfig::quic_listen) accepts a connection → `hop` reads one QUIC stream
//! per frame → `frame` makes a frame of its packets → `flow` and `arrive` put frames in order →
//! `stream` numbers them, keeps the current group of pictures and gives them to the shards that
//! carry the stream → `shard` tells its core, which says what to send → `udp`.
//!
//! # Walk of a join
//!
//! `whep` → `token` → `streams` and `sessions` → a shard's inbox → the core's answer → 201.
//!
//! # Walk of a touch
//!
//! `udp` → `shard` → core (permission, rate) → `node` → `stream` → the connection's outbox → `hop`.

mod arrive;
mod config;
mod drain;
mod error;
mod events;
mod flow;
mod frame;
mod hop;
mod ingest;
mod latency;
mod metrics;
mod node;
mod pin;
mod problem;
mod restart;
mod router;
mod run;
mod sessions;
mod shard;
mod stream;
mod streams;
mod tcp;
mod token;
mod udp;
mod viewers;
mod whep;

pub use config::{ConfigMistake, Egress, IceConfig, LimitsConfig, RouterConfig};
pub use error::RouterError;
pub use metrics::METRICS;
pub use router::{Census, Router};
pub use run::{Args, run};

/// For benchmarks; not for use by other packages.
#[doc(hidden)]
pub mod bench;

/// The bodies of the fuzz targets; not for use by other packages.
#[doc(hidden)]
pub mod fuzz;
