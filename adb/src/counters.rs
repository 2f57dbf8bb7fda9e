//! Plain counters of what connections did; whoever owns a metrics registry reads them.
//!
//! Not a metrics exporter: this package knows no registry. Invariant: opened and closed come in
//! pairs, so that their difference is what is open now.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters shared by any number of connections.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// Every counter's name and value, in order of declaration.
            #[must_use]
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Connections whose handshake succeeded.
    connections_opened,
    /// Such connections that are over.
    connections_closed,
    /// Handshakes that failed for a reason other than authentication.
    handshakes_failed,
    /// Handshakes that failed in authentication.
    auth_failed,
    /// Connections closed because the other end broke the protocol.
    protocol_errors,
    /// Packets read.
    packets_in,
    /// Packets written.
    packets_out,
    /// Payload bytes read.
    bytes_in,
    /// Payload bytes written.
    bytes_out,
    /// Streams that came to stand, from either end.
    streams_opened,
    /// Such streams that are over.
    streams_closed,
    /// OPENs refused by either end.
    streams_refused,
    /// Streams closed because the peer broke a window or acknowledgement rule.
    streams_failed,
}

/// Adds to a counter; these are statistics, so no ordering is needed.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
