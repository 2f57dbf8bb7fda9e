//! Figures of the process itself, read from `/proc/self` when metrics are rendered. Not a sampler:
//! nothing runs between two renders. Invariant: a figure that cannot be read is left out, never
//! guessed.

use std::{
    fs,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

static STARTED_US: OnceLock<u64> = OnceLock::new();

/// Microseconds since 1970 at which this process first asked; used as the incarnation of a node.
/// Roles call it first thing in `start`.
pub fn started_unix_us() -> u64 {
    *STARTED_US.get_or_init(now_unix_us)
}

/// Microseconds since 1970; zero if the clock is before it.
pub fn now_unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// Writes the process's gauges into the registry.
pub(crate) fn record() {
    metrics::gauge!("fanlight_build_info", "version" => crate::VERSION).set(1.0);
    #[allow(clippy::cast_precision_loss, reason = "a Unix time in µs has 51 bits, f64 holds 52")]
    metrics::gauge!("fanlight_process_start_time_seconds").set(started_unix_us() as f64 / 1e6);
    if let Some(bytes) = resident_bytes() {
        metrics::gauge!("fanlight_process_resident_bytes").set(to_f64(bytes));
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory handle being read.
        let open = entries.count().saturating_sub(1);
        metrics::gauge!("fanlight_process_open_fds").set(to_f64(open as u64));
    }
    if let Some((cpu_ms, threads)) = stat() {
        metrics::counter!("fanlight_process_cpu_milliseconds_total").absolute(cpu_ms);
        metrics::gauge!("fanlight_process_threads").set(to_f64(threads));
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let tasks = runtime.metrics().num_alive_tasks();
        metrics::gauge!("fanlight_runtime_tasks").set(to_f64(tasks as u64));
    }
}

#[allow(clippy::cast_precision_loss, reason = "gauges of bytes and counts, far below 2^52")]
fn to_f64(v: u64) -> f64 {
    v as f64
}

/// Resident memory of this process in bytes.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// CPU milliseconds used and number of threads.
fn stat() -> Option<(u64, u64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The command name may hold spaces and brackets; the fields begin after the last `)`.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let threads = fields.get(17)?.parse().ok()?;
    // USER_HZ is 100 on every Linux that this runs on; it is part of the kernel's ABI.
    Some((ticks * 10, threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_this_process_can_be_read() {
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(stat().unwrap().1 >= 1);
        assert_eq!(started_unix_us(), started_unix_us());
    }
}
