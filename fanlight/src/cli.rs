//! The command line. Not the roles' own flags: each package brings its `Args`. Invariant: every
//! role takes `--config`, `--print-config` and `--check`.

use clap::{Parser, Subcommand};

/// Shares the screens of cloud phones and other remote devices in the browser.
#[derive(Debug, Parser)]
#[command(name = "fanlight", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The roles.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole system in one process, with simulated devices: open the address it prints
    Demo(Box<crate::demo::Args>),
    /// Takes streams from ingest workers and fans them out to viewers
    Router(Box<fanlight_router::Args>),
    /// Captures the devices of one host and pushes their streams to routers
    Ingest(Box<fanlight_ingest::Args>),
    /// Places streams and viewers on nodes; your backend calls it
    Control(Box<fanlight_control::Args>),
    /// A simulated Android device that speaks real ADB
    DeviceSim(Box<fanlight_device_sim::Args>),
    /// Measures and proves: many viewers, bad networks, joins; starts what it measures by itself
    Loadtest(Box<fanlight_loadtest::Args>),
    /// Makes the private CA of a fleet and certificates for its nodes
    Pki(crate::pki::Args),
}
