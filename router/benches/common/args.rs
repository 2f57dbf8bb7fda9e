//! Command line of a benchmark. Without `--bench` (so under `cargo test --benches`) everything is
//! run for a moment only, to show that it works.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

/// Figures of one part of the router. `cargo xtask bench` builds and runs this.
#[derive(Debug, Parser)]
pub struct Args {
    /// Measure; without it, only show that it runs.
    #[arg(long)]
    bench: bool,
    /// Write one JSON object to this file; its fields stand in the file of the benchmark.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// CPU to measure on.
    #[arg(long, default_value_t = 0)]
    pub cpu: usize,
    /// Interleaved samples of each figure; the best one counts.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Of the rows that take long to set up, only those whose names contain this.
    #[arg(long, default_value = "")]
    pub only: String,
    /// CPU time of one sample, in milliseconds.
    #[arg(long, default_value_t = 60)]
    sample_ms: u64,
}

impl Args {
    pub fn rounds(&self) -> usize {
        if self.bench { self.rounds.max(1) } else { 1 }
    }

    pub fn sample(&self) -> Duration {
        if self.bench { Duration::from_millis(self.sample_ms) } else { Duration::from_millis(1) }
    }

    pub fn is_smoke(&self) -> bool {
        !self.bench
    }
}
