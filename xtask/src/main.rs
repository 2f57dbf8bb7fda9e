//! The one definition of "checked". CI and the README only call what is here. Not a build
//! system: cargo builds. Invariant: a step that could not run is a failure, never a silent pass.

#![allow(clippy::print_stdout, reason = "a command-line tool talks to its terminal")]

mod bench;
mod check;
mod dashboard;
mod deploy;
mod fuzz;
mod setup;
mod shell;
mod test;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Fanlight's developer commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Formatting, lints, documentation, tidy, licences.
    Check,
    /// Everything that proves the product: unit, integration and browser tests. Installs what
    /// they need (Debian packages, node and Python packages) by itself.
    Test {
        /// Only the Rust tests.
        #[arg(long)]
        rust_only: bool,
        /// Only the tests with a browser and third-party clients.
        #[arg(long, conflicts_with = "rust_only")]
        e2e_only: bool,
    },
    /// Writes the Grafana dashboard anew from its table.
    Dashboard,
    /// What no compiler checks: dependency direction, file headers, sizes, documented metrics.
    Tidy,
    /// Runs every fuzz target for a while (needs cargo-fuzz).
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// Only targets whose `package/target` name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Measures the media path against the physical limit of this machine.
    Bench(bench::Options),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Check => check::run(),
        Command::Test { rust_only, e2e_only } => test::run(!e2e_only, !rust_only),
        Command::Dashboard => dashboard::write(),
        Command::Tidy => tidy::run(),
        Command::Fuzz { seconds, only } => fuzz::run(seconds, only.as_deref()),
        Command::Bench(options) => bench::run_bench(&options),
    }
}
