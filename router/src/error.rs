//! What can go wrong when a router is started. Not the refusals of single joins and publishes,
//! which are answers. Invariant: each error names the setting or the address to change.

use std::{io, net::SocketAddr};

use crate::config::ConfigMistake;

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// The configuration cannot be used; the operator has to change it.
    #[error("the configuration has mistakes: {}", list(.0))]
    Config(Vec<ConfigMistake>),
    /// An address could not be bound. It is in use, or not this machine's.
    #[error("cannot bind the {what} to {address}")]
    Bind {
        /// What was to be bound.
        what: &'static str,
        /// The address tried.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Certificates are missing or unusable; the operator has to provide them.
    #[error("cannot use the node's certificate: {0}")]
    Identity(String),
    /// A shard's thread could not be started: the machine is out of something.
    #[error("cannot start shard {shard}")]
    Shard {
        /// Which.
        shard: usize,
        /// The system's reason.
        source: io::Error,
    },
}

fn list(mistakes: &[ConfigMistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
