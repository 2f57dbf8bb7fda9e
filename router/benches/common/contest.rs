//! Several pieces of work measured in turns by the CPU time of the thread. Not wall time: what
//! other processes take does not count, only how they warm and cool the caches.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

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

/// Some work that was done, and the CPU time that it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub units: u64,
    pub spent: Duration,
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, other: Self) {
        self.units += other.units;
        self.spent += other.spent;
    }
}

/// Runs `work`, which says how many units it did, and takes its time. What reading the clock takes
/// is not counted.
pub fn timed(work: impl FnOnce() -> u64) -> Done {
    let start = thread_cpu();
    let units = work();
    Done { units, spent: (thread_cpu() - start).saturating_sub(clock_cost()) }
}

/// What two readings of the clock take, at least.
pub fn clock_cost() -> Duration {
    static COST: OnceLock<Duration> = OnceLock::new();
    *COST.get_or_init(|| {
        let once = || {
            let start = thread_cpu();
            thread_cpu() - start
        };
        (0..1_000).map(|_| once()).min().unwrap_or_default()
    })
}

/// A piece of work: does some.
pub type Work<'a> = Box<dyn FnMut() -> Done + 'a>;

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
    let mut all = Done::default();
    while all.spent < sample {
        all += work();
    }
    all.spent.as_secs_f64() * 1e9 / all.units.max(1) as f64
}

fn figure(mut values: Vec<f64>) -> Figure {
    values.sort_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    Figure { best: at(0), median: at(values.len() / 2) }
}
