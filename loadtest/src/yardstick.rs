//! How fast the router's CPU is meanwhile. Virtual machines share cores with strangers: one and the
//! same work was seen to take 1.6 times as long from one minute to the next, on CPUs that were idle
//! but for it. Not a benchmark. Invariant: it measures by a thread's own CPU time, so that waiting
//! for the router does not count.
//!
//! A thread beside the router seals a packet a hundred times, four times a second (0.05 ms each):
//! too little to disturb, and the same work as most of the router's.

use std::{thread::JoinHandle, time::Duration};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use fanlight_rtc::srtp::{Keying, Profile, RtpSealer};
use rustix::time::{ClockId, clock_gettime};

use crate::{report::Findings, server::Pins, stats::Times};

/// Between two measurements.
const INTERVAL: Duration = Duration::from_millis(250);
/// Packets sealed in one of them.
const PACKETS: u64 = 100;
const PAYLOAD_BYTES: usize = 1_172;
const HEADER_BYTES: usize = 24;
/// A run whose slow moments are slower than this, by its fast ones, is worth a warning.
const UNSTEADY: f64 = 1.3;

/// Measures until it is asked what came out.
#[derive(Debug)]
pub struct Yardstick {
    stop: Sender<()>,
    pinned: bool,
    thread: JoinHandle<Times>,
}

impl Yardstick {
    /// On the router's first CPU.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(pins: &Pins) -> std::io::Result<Self> {
        let (stop, stopped) = bounded(1);
        let (pins, pinned) = (pins.clone(), pins.is_pinned());
        let thread = std::thread::Builder::new().name("yardstick".to_owned()).spawn(move || {
            pins.join_server();
            let mut times = Times::default();
            let Some(mut work) = Work::new() else { return times };
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if let Some(time) = work.once() {
                    times.note(time);
                }
            }
            times
        })?;
        Ok(Self { stop, pinned, thread })
    }

    /// Ends it and adds what came out.
    pub fn tell(self, findings: &mut Findings) {
        let _ = self.stop.send(());
        let Ok(times) = self.thread.join() else { return };
        // Wherever the system put it says nothing about the router's CPU.
        let times = if self.pinned { times } else { Times::default() };
        // Noted a thousandfold, because times are kept by the microsecond.
        let ns = |q| times.quantile_us(q);
        let (fast, slow) = (ns(0.05), ns(0.95));
        findings.optional("yardstick_ns_p5", fast);
        findings.optional("yardstick_ns_p50", ns(0.5));
        findings.optional("yardstick_ns_p95", slow);
        if let Some((fast, slow)) = fast.zip(slow)
            && slow > fast * UNSTEADY
        {
            findings.warning(format!(
                "the router's CPU was not equally fast all the time: sealing a packet took {fast:.0} to {slow:.0} ns"
            ));
        }
    }
}

/// Sealing.
struct Work {
    sealer: RtpSealer,
    payload: Vec<u8>,
    datagram: Vec<u8>,
    index: u64,
}

impl Work {
    fn new() -> Option<Self> {
        // A key that protects nothing.
        let profile = Profile::AeadAes256Gcm;
        let keying = Keying::new(profile, &vec![7; profile.material_len()], true).ok()?;
        let sealer = RtpSealer::derive(&keying).ok()?;
        let size = HEADER_BYTES + PAYLOAD_BYTES + sealer.overhead();
        Some(Self { sealer, payload: vec![7; PAYLOAD_BYTES], datagram: vec![0; size], index: 1 })
    }

    /// A thousand times the CPU time of one packet.
    fn once(&mut self) -> Option<Duration> {
        let start = thread_cpu();
        for _ in 0..PACKETS {
            self.index += 1;
            let Self { sealer, payload, datagram, index } = self;
            sealer.seal(*index, 1, HEADER_BYTES, payload, datagram)?;
        }
        let spent = thread_cpu().checked_sub(start)?;
        let ns = u64::try_from(spent.as_nanos()).ok()? / PACKETS;
        Some(Duration::from_micros(ns))
    }
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_takes_some_time_and_less_than_a_millisecond() {
        let mut work = Work::new().unwrap();
        let ns = work.once().unwrap().as_micros();
        assert!((10..1_000_000).contains(&ns), "{ns} ns");
    }
}
