//! Ingest worker: one process per device host, many devices. Each device's screen is captured over
//! ADB, its H.264 passed on as it is, cut into RTP payloads of equal size, and pushed to the router
//! that the control plane names; input comes back the same way. Not a transcoder and not a place
//! for viewers. Invariant: no device can hold up or bring down another one.
//!
//! Reading order: [`worker`] starts everything; [`device`] runs one device by the decisions of
//! [`life`]; a [`source`] writes to a [`shared::Sink`], which makes [`frame::Frame`]s ([`hygiene`])
//! and feeds publishes ([`feed`], [`uplink`]). Input goes back through the [`fence`] to [`inject`].
//!
//! Who retries what: ADB and captures [`life`], connections to routers [`uplink`], the link to the
//! control API `fanlight_ops::link`. Each by itself, each with jittered back-off.

pub mod backoff;
pub mod board;
pub mod cc;
pub mod config;
pub mod device;
pub mod feed;
pub mod fence;
pub mod fleet;
pub mod frame;
pub mod gop;
pub mod hygiene;
pub mod inject;
pub mod keyframe;
pub mod life;
pub mod metrics;
pub mod rate;
pub mod reach;
pub mod shared;
pub mod source;
pub mod thrift;
pub mod uplink;
pub mod worker;

pub use config::{DeviceConfig, IngestConfig, SourceKind};
pub use worker::{Args, Worker, run};
