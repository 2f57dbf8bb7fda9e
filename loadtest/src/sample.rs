//! A process over time, mostly the router's: CPU, memory, threads and files, once a second. Not its metrics.
//! Invariant: a second in which the process could not be read has no sample.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    report::{Findings, Plot},
    server::{Memory, Usage},
};

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// One moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the first sample.
    pub at: Duration,
    /// CPU used since the sample before, in percent of one CPU.
    pub cpu_percent: f64,
    /// Memory.
    pub memory: Memory,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl Sample {
    fn line(&self) -> Value {
        json!({
            "t_s": self.at.as_secs_f64(),
            "cpu_percent": self.cpu_percent,
            "rss_bytes": self.memory.resident,
            "anonymous_bytes": self.memory.anonymous,
            "files": self.files,
            "threads": self.threads,
        })
    }
}

/// Takes samples until it is asked for them.
#[derive(Debug)]
pub struct Sampler {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Vec<Sample>>,
}

impl Sampler {
    /// Of this process.
    pub fn start(pid: u32) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: tokio::spawn(take(pid, stopped)) }
    }

    /// The samples.
    pub async fn finish(self) -> Vec<Sample> {
        let _ = self.stop.send(());
        self.task.await.unwrap_or_default()
    }
}

async fn take(pid: u32, mut stopped: oneshot::Receiver<()>) -> Vec<Sample> {
    let start = Instant::now();
    let mut samples = Vec::new();
    let mut before: Option<(Instant, Duration)> = None;
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = &mut stopped => return samples,
        }
        let now = Instant::now();
        let (Some(usage), Some(memory)) = (Usage::of(pid), Memory::of(pid)) else { continue };
        if let Some((then, cpu)) = before.replace((now, usage.cpu)) {
            let used = usage.cpu.saturating_sub(cpu).as_secs_f64();
            samples.push(Sample {
                at: now.duration_since(start),
                cpu_percent: 100.0 * used / now.duration_since(then).as_secs_f64(),
                memory,
                files: usage.files,
                threads: usage.threads.len(),
            });
        }
    }
}

/// Adds samples of the router and their plots to the findings.
pub fn tell(findings: &mut Findings, samples: &[Sample]) {
    tell_of(findings, "router", samples);
}

/// Adds samples of a process and their plots to the findings.
pub fn tell_of(findings: &mut Findings, whose: &str, samples: &[Sample]) {
    findings.samples(samples.iter().map(Sample::line));
    let over = |f: &dyn Fn(&Sample) -> f64| {
        samples.iter().map(|s| (s.at.as_secs_f64(), f(s))).collect::<Vec<_>>()
    };
    findings.plot(
        Plot::lines(&format!("CPU of the {whose}"), "seconds", "percent of one CPU")
            .with("CPU", over(&|s| s.cpu_percent)),
    );
    findings.plot(
        Plot::lines(&format!("Memory of the {whose}"), "seconds", "MiB")
            .with("resident", over(&|s| s.memory.resident as f64 / f64::from(1 << 20)))
            .with("anonymous", over(&|s| s.memory.anonymous as f64 / f64::from(1 << 20))),
    );
}
