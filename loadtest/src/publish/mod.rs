//! The publishing side: an ingest worker as the router and the control API see it, with made-up
//! devices, or a made-up phone for the real worker. Not the router; and the worker here is written
//! from WIRE.md and the proto files. Invariant: a picture stands in its [`Ledger`] before it leaves.

mod hop;
mod pace;
mod phone;
mod worker;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use parking_lot::Mutex;

use crate::{ledger::Ledger, stats::Times};

pub use hop::{Hop, HopError};
pub use pace::{Pace, Plan};
pub use phone::Phone;
pub use worker::{Worker, WorkerConfig};

/// One input message as it reached the device's side.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// The encoded message.
    pub message: Vec<u8>,
    /// When it was read.
    pub at: Instant,
}

/// One made-up device and its stream.
#[derive(Debug)]
pub struct Device {
    /// Id of device and stream.
    pub name: String,
    /// What it has published.
    pub ledger: Ledger,
    /// How long after their time its pictures left.
    pub late: Mutex<Times>,
    /// Where input for it goes; nobody listening is fine.
    pub inputs: tokio::sync::mpsc::UnboundedSender<Arrived>,
}

/// Changes the address that a router announced into the one to dial, where something stands in
/// between.
pub type Detour = Arc<dyn Fn(SocketAddr) -> SocketAddr + Send + Sync>;
