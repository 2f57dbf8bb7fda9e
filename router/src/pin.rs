//! Keeps a shard's thread on one CPU, so that its caches stay its own. Not a scheduler: which CPUs
//! there are is the operator's matter (`taskset`, a service's `CPUAffinity`, a container's set).
//! Invariant: a thread is never moved to a CPU that the process may not use.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins this thread to the CPU of shard `index`: the first shard to the first CPU that the process
/// may use, and so on, beginning again after the last. Gives the CPU.
pub(crate) fn pin_shard(index: usize) -> io::Result<usize> {
    let allowed = sched_getaffinity(None)?;
    let cpu = nth(&allowed, index).ok_or_else(|| io::Error::other("this process has no CPU"))?;
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)?;
    Ok(cpu)
}

fn nth(allowed: &CpuSet, index: usize) -> Option<usize> {
    let count = usize::try_from(allowed.count()).ok().filter(|count| *count > 0)?;
    (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).nth(index % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_take_the_allowed_cpus_in_turns() {
        let mut allowed = CpuSet::new();
        assert_eq!(nth(&allowed, 0), None);
        allowed.set(3);
        allowed.set(7);
        let cpus: Vec<_> = (0..5).map(|n| nth(&allowed, n).unwrap()).collect();
        assert_eq!(cpus, [3, 7, 3, 7, 3]);
    }

    #[test]
    fn a_pinned_thread_may_run_on_that_cpu_alone() {
        let pinned = std::thread::spawn(|| (pin_shard(0).unwrap(), sched_getaffinity(None)));
        let (cpu, affinity) = pinned.join().unwrap();
        let affinity = affinity.unwrap();
        assert_eq!((affinity.count(), affinity.is_set(cpu)), (1, true));
    }
}
