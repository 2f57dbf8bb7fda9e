//! Several pieces of work measured in turns by the CPU time of the thread. Not wall time: what
//! other processes take does not count, only how they warm and cool the caches.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use rustix::{
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// CPU time of this thread.
pub fn thread_cpu() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// Keeps this thread on one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot pin to CPU {cpu}"))
}

/// Nanoseconds per unit of work.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub best: f64,
    pub median: f64,
}

/// A piece of work: does some and says how many units that was.
pub type Work<'a> = Box<dyn FnMut() -> u64 + 'a>;

/// Measures each in turn, `rounds` times, beginning with another one each time.
pub fn contest(
    mut entries: Vec<(&'static str, Work<'_>)>,
    rounds: usize,
    sample: Duration,
) -> BTreeMap<&'static str, Figure> {
    let mut samples: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        let count = entries.len();
        for n in 0..count {
            let (name, work) = &mut entries[(n + round) % count];
            // The first turn fills the caches with what this entry needs.
            work();
            samples.entry(name).or_default().push(measure(work, sample));
        }
    }
    samples.into_iter().map(|(name, values)| (name, figure(values))).collect()
}

fn measure(work: &mut Work<'_>, sample: Duration) -> f64 {
    let (start, mut units) = (thread_cpu(), 0);
    loop {
        units += work();
        let spent = thread_cpu() - start;
        if spent >= sample {
            return spent.as_secs_f64() * 1e9 / units.max(1) as f64;
        }
    }
}

fn figure(mut values: Vec<f64>) -> Figure {
    values.sort_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    Figure { best: at(0), median: at(values.len() / 2) }
}
