//! The scrcpy server, as far as a client can see it, for versions 3.3.3, 3.3.4, 4.0 and 4.1.
//!
//! | module | what it knows |
//! |---|---|
//! | [`version`] | which versions there are, how their jars are recognised, how they differ |
//! | [`options`] | `key=value` arguments |
//! | [`stream`] | bytes of the media sockets |
//! | [`control`] | bytes of the control socket, both ways |
//! | [`sockets`] | abstract socket names: listening, connecting, reverse tunnels |
//! | [`server`] | start-up order, life and end of one server process |
//!
//! Written apart from the ingest worker's client on purpose: both answer to the protocol, not to
//! each other. Invariant: a client that works here speaks the layout of its version exactly; what a
//! real server would not accept ends the server here too.

pub mod control;
pub(crate) mod controller;
pub mod options;
pub mod server;
pub mod sockets;
pub mod stream;
pub mod version;

pub use version::{ScrcpyVersion, placeholder_jar};
