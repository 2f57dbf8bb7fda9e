//! What the kernel says about processes and sockets: `/proc`. Read-only. Invariant: a figure that
//! is not there is `None` or an error, never zero.

use std::{collections::HashSet, fs, time::Duration};

/// One thread, by the nanosecond.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadUsage {
    name: String,
    id: u32,
    /// Time on a CPU.
    cpu: Duration,
    /// Time in which it could have run and had no CPU: somebody else was there.
    waited: Duration,
}

/// CPU time of a process.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// Of all threads, ended ones included. In steps of the kernel's clock tick, 10 ms.
    pub cpu: Duration,
    /// Threads that live.
    pub threads: Vec<ThreadUsage>,
    /// Open files.
    pub files: usize,
}

impl Usage {
    /// Of a process now; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let cpu = cpu_of_stat(&stat)?;
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let tid = entry.file_name().to_string_lossy().parse().ok();
            let name = fs::read_to_string(entry.path().join("comm")).ok();
            let schedstat = fs::read_to_string(entry.path().join("schedstat")).ok();
            // A thread may end while we look.
            let (Some(id), Some(name), Some(schedstat)) = (tid, name, schedstat) else { continue };
            let mut ns = schedstat.split(' ').map_while(|ns| ns.trim().parse().ok());
            let (Some(cpu), Some(waited)) = (ns.next(), ns.next()) else { continue };
            threads.push(ThreadUsage {
                name: name.trim().to_owned(),
                id,
                cpu: Duration::from_nanos(cpu),
                waited: Duration::from_nanos(waited),
            });
        }
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self { cpu, threads, files })
    }

    /// CPU time since `before` of the threads whose name begins with `prefix` and that lived then,
    /// and the time that they waited for a CPU; `None`: there are none.
    pub fn threads_since(&self, before: &Self, prefix: &str) -> Option<(Duration, Duration)> {
        let mut sum = None;
        for now in self.threads.iter().filter(|thread| thread.name.starts_with(prefix)) {
            let Some(then) = before.threads.iter().find(|then| then.id == now.id) else { continue };
            let (cpu, waited) = sum.get_or_insert((Duration::ZERO, Duration::ZERO));
            *cpu += now.cpu.saturating_sub(then.cpu);
            *waited += now.waited.saturating_sub(then.waited);
        }
        sum
    }
}

/// User and system time in a `stat` line.
fn cpu_of_stat(stat: &str) -> Option<Duration> {
    // The name in brackets may hold anything, brackets and spaces included.
    let rest = stat.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // USER_HZ is 100 on every architecture in use.
    Some(Duration::from_millis((user + system) * 10))
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident bytes in all.
    pub resident: u64,
    /// Of these not backed by files: heap and stacks.
    pub anonymous: u64,
}

impl Memory {
    /// Of a process now; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Self::parse(&status)
    }

    fn parse(status: &str) -> Option<Self> {
        let kib = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key))?;
            line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
        };
        Some(Self { resident: kib("VmRSS:")? * 1024, anonymous: kib("RssAnon:")? * 1024 })
    }
}

/// Datagrams that the kernel dropped at full receive buffers of UDP sockets on these ports of
/// this machine. `None` when the table cannot be read.
pub fn socket_drops(ports: &HashSet<u16>) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/udp").ok()?;
    Some(drops_in(&table, ports))
}

fn drops_in(table: &str, ports: &HashSet<u16>) -> u64 {
    let mut sum = 0;
    for line in table.lines().skip(1) {
        let mut fields = line.split_whitespace();
        let port = fields.nth(1).and_then(|local| local.rsplit_once(':')).map(|(_, port)| port);
        let port = port.and_then(|hex| u16::from_str_radix(hex, 16).ok());
        let drops = fields.last().and_then(|d| d.parse::<u64>().ok());
        if let (Some(port), Some(drops)) = (port, drops)
            && ports.contains(&port)
        {
            sum += drops;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_read_behind_any_name() {
        let stat = "7 (a) b ( c)) S 1 7 7 0 -1 4194560 9 8 7 6 150 50 0 0 20 0 4 0 99 1 2";
        assert_eq!(cpu_of_stat(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu_of_stat("7 (x) S 1"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t     100 kB\n";
        let memory = Memory::parse(status).unwrap();
        assert_eq!((memory.resident, memory.anonymous), (2 << 20, 102_400));
    }

    #[test]
    fn drops_of_our_ports_alone_are_summed() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            1: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 5\n\
            2: 0100007F:1F91 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 7\n";
        assert_eq!(drops_in(table, &HashSet::from([0x1f90])), 5);
        assert_eq!(drops_in(table, &HashSet::from([0x1f90, 0x1f91])), 12);
    }

    #[test]
    fn this_process_can_be_read() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(!usage.threads.is_empty() && usage.files > 0);
        assert!(Memory::of(std::process::id()).unwrap().resident > 0);
        assert!(usage.threads_since(&usage, "no such thread").is_none());
    }
}
