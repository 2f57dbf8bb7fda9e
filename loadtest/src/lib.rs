//! Load and proof: publishers, viewers, bad networks, reports. Not the router: this package is
//! its peer and shares no code with it above the wire. Invariant: what could not be measured is
//! an error, never a zero.
//!
//! Reading order: [`source`] and [`ledger`] (what is published), [`publish`] (how), [`server`]
//! (the system under test), [`viewer`] (one viewer, without sockets), [`swarm`] (many, with
//! sockets), [`relay`] (bad networks), `cmd` (the experiments), [`report`] (what they say).
#![forbid(unsafe_code)]

pub mod backend;
pub mod calls;
mod cmd;
pub mod crowd;
pub mod fake;
pub mod lab;
pub mod ledger;
pub mod publish;
pub mod relay;
pub mod report;
pub mod sample;
pub mod server;
pub mod source;
pub mod stats;
pub mod swarm;
pub mod viewer;
pub mod yardstick;

pub use cmd::{Args, run};
