//! The parts of the `fanlight` binary: command line, demo, page server, certificates. Not the
//! roles: each is a package of its own. Invariant: nothing here is on the media path.

pub mod cli;
pub mod demo;
pub mod page;
pub mod pki;
