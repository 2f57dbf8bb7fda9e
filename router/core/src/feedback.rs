//! What one viewer reported about its media, kept for statistics and for the timing of repairs.
//!
//! Plain data; it is filled in by `core::feedback`. Invariant: nothing here is trusted further than
//! to choose how the same viewer is served.

use std::time::Duration;

/// The last reports, and totals.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reported {
    /// Round trip, from receiver reports.
    pub(crate) rtt: Option<Duration>,
    /// Share of packets lost, 0 to 1.
    pub(crate) loss: Option<f32>,
    /// In units of the 90 kHz clock.
    pub(crate) jitter: u32,
    /// Packets asked for again.
    pub(crate) nacks: u64,
    /// Packets sent again.
    pub(crate) repairs: u64,
}
