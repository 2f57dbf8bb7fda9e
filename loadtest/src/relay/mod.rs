//! Bad networks: a UDP relay that loses, delays, reorders and narrows, between a viewer and the
//! router or between the publisher and the router; and an HTTP proxy that puts it into the path of
//! a browser. Not a TURN server. Invariant: a path carries one client to one address, and each
//! direction is a [`Link`] of its own.

mod link;
mod proxy;
mod udp;

pub use link::{Impairment, Link, LinkCounts};
pub use proxy::{Proxy, ProxyConfig};
pub use udp::{Aim, PathCounts, Relay};
