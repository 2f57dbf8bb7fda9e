//! What every process needs to be operated: logs, metrics, the admin listener, ordered shutdown,
//! configuration, node certificates, and the node's side of the link to the control API.
//! Not a place for media: nothing here knows a frame or a viewer. Invariant: no secret that passes
//! through here is printed, neither in a log line nor in an error nor in `--print-config`.
//!
//! | module | what it gives |
//! |---|---|
//! | [`log`] | `tracing` set up for a terminal or for machines, level changeable while running |
//! | [`metrics`] | the process's registry and its Prometheus text |
//! | [`admin`] | the operators' listener: `/metrics /livez /readyz /version /log-level /drain` |
//! | [`shutdown`] | one signal, ordered end, a deadline, and the names of what did not end |
//! | [`config`] | TOML file < environment < flags, all mistakes in one report |
//! | [`http`] | an HTTP listener for strangers: bounded connections, heads and end |
//! | [`pki`] | the private CA of a fleet, node identities, mTLS configurations |
//! | [`ticket`] | by which a viewer whose stream moved is let in at its new router |
//! | [`link`] | `NodeLink` client: dial, Hello, heartbeats, Apply to handler, reports |

pub mod admin;
pub mod config;
pub mod http;
pub mod link;
pub mod log;
pub mod metrics;
pub mod pki;
pub mod process;
pub mod shutdown;
pub mod ticket;

/// Version of the workspace, as `/version` and `Hello` give it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
