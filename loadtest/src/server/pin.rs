//! Which CPU runs what. Not a scheduler. Invariant: a child is born on its CPUs, so that none of
//! its threads ever ran elsewhere.

use std::io;

use rustix::{
    process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit},
    thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity},
};

/// CPUs of the router and of the load; empty: wherever the system likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// The router.
    pub server: Vec<usize>,
    /// Publishers, viewers, control API.
    pub load: Vec<usize>,
}

impl Pins {
    /// The first `shards` of the CPUs that this process may use for the router, the others for the
    /// load. No pins when that leaves none for the load.
    pub fn split(shards: usize) -> Self {
        let Ok(allowed) = sched_getaffinity(None) else { return Self::default() };
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        if cpus.len() <= shards {
            return Self::default();
        }
        let (server, load) = cpus.split_at(shards);
        Self { server: server.to_vec(), load: load.to_vec() }
    }

    /// Whether anything is pinned.
    pub fn is_pinned(&self) -> bool {
        !self.server.is_empty()
    }

    /// Puts the calling thread on the router's first CPU.
    pub fn join_server(&self) {
        if let Some(first) = self.server.first() {
            let _ = sched_setaffinity(None, &set(&[*first]));
        }
    }

    /// Puts the calling thread, and all threads it makes from now on, on the load's CPUs.
    pub fn join_load(&self) {
        if !self.load.is_empty() {
            let _ = sched_setaffinity(None, &set(&self.load));
        }
    }
}

fn set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    set
}

/// Runs `start` with the calling thread on `cpus`: what it starts inherits them.
pub(super) fn inherited<T>(cpus: &[usize], start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if cpus.is_empty() {
        return start();
    }
    let before = sched_getaffinity(None)?;
    sched_setaffinity(None, &set(cpus))?;
    let started = start();
    sched_setaffinity(None, &before)?;
    started
}

/// Lets this process open as many files as it may.
pub fn raise_open_files() {
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

/// Puts the calling thread before others, where the system allows it: the publisher has to keep
/// its pace beside busy viewers.
pub fn raise_priority() {
    // On Linux a thread is a "process" here.
    let _ = setpriority_process(Some(gettid()), -10);
}
