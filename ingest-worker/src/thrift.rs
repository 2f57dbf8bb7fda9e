//! What bitrate a source that cannot skip pictures is asked for, so that it fits the uplink. Pure:
//! time is an argument. Not the measuring of the uplink (`rate.rs`) and not the new capture that a
//! new bitrate needs (`device.rs`). Invariant: the bitrate asked for stays between the floor and the
//! configured one, and between two changes there is time for the first to show.
//!
//! A hardware encoder on a device is told its bitrate once, when the capture starts. So a change
//! costs a second encoder for a moment, and is worth it only for a lasting lack: down at once to a
//! part of what was delivered, up again slowly and each time more patiently after a try that failed.

use std::time::{Duration, Instant};

/// Part of what was delivered while the uplink was behind that the source is then asked for: what
/// is left drains the queue within a second or two.
const SHARE: f64 = 0.6;
/// Part of that rate that is known to be carried without a queue, keyframes included.
const FITS: f64 = 0.9;
/// A change shows after this long: a capture has started, its first pictures were acknowledged.
const HOLD: Duration = Duration::from_secs(2);
/// Calm that is waited for before more is asked for, up to what is known to fit.
const PATIENCE: Duration = Duration::from_secs(15);
/// Calm that is waited for before more than that is tried; longer after each try that failed.
const PROBE: Duration = Duration::from_secs(60);
/// Longest such wait.
const MAX_PROBE: Duration = Duration::from_secs(600);
/// Factor of a step up.
const STEP_UP: f64 = 1.25;
/// A lack this soon after a try is that try's fault.
const TRIAL: Duration = Duration::from_secs(10);
/// Below this part of the configured bitrate nothing is asked for: a picture that nobody can read
/// helps nobody.
const FLOOR_PART: u64 = 16;

/// The rule for one device.
#[derive(Debug)]
pub struct Thrift {
    most_bps: u64,
    asked_bps: u64,
    /// What the uplink carried when it was last behind.
    carried_bps: Option<u64>,
    changed: Option<Instant>,
    tried: Option<Instant>,
    calm_since: Option<Instant>,
    probe: Duration,
}

impl Thrift {
    /// For a device that is configured for this bitrate.
    pub fn new(most_bps: u64) -> Self {
        Self {
            most_bps,
            asked_bps: most_bps,
            carried_bps: None,
            changed: None,
            tried: None,
            calm_since: None,
            probe: PROBE,
        }
    }

    /// What the source is to be asked for.
    pub fn asked_bps(&self) -> u64 {
        self.asked_bps
    }

    /// The uplink cannot keep up; it delivers this much. True: what is asked for changed.
    pub fn behind(&mut self, now: Instant, delivered_bps: u64) -> bool {
        self.calm_since = None;
        if self.changed.is_some_and(|at| now.saturating_duration_since(at) < HOLD) {
            return false;
        }
        if self.tried.take().is_some_and(|at| now.saturating_duration_since(at) < TRIAL) {
            self.probe = (self.probe * 2).min(MAX_PROBE);
        }
        self.carried_bps = Some(delivered_bps);
        self.ask(now, share(delivered_bps.min(self.asked_bps), SHARE))
    }

    /// The uplink keeps up. True: what is asked for changed.
    pub fn calm(&mut self, now: Instant) -> bool {
        let since = *self.calm_since.get_or_insert(now);
        let calm = now.saturating_duration_since(since);
        if self.asked_bps == self.most_bps || calm < PATIENCE {
            return false;
        }
        if self.tried.is_some_and(|at| now.saturating_duration_since(at) >= TRIAL) {
            // The try held: what is asked for now is what fits.
            (self.tried, self.carried_bps, self.probe) = (None, Some(self.asked_bps), PROBE);
        }
        let step = share(self.asked_bps, STEP_UP);
        let fits = self.carried_bps.map_or(u64::MAX, |bps| share(bps, FITS));
        if self.asked_bps < fits {
            self.calm_since = Some(now);
            return self.ask(now, step.min(fits));
        }
        if calm < self.probe {
            return false;
        }
        (self.calm_since, self.tried) = (Some(now), Some(now));
        self.ask(now, step)
    }

    fn ask(&mut self, now: Instant, bps: u64) -> bool {
        let bps = bps.clamp(self.most_bps / FLOOR_PART, self.most_bps);
        let changes = bps != self.asked_bps;
        if changes {
            self.asked_bps = bps;
            self.changed = Some(now);
        }
        changes
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "bitrates are below 2^53, factors positive"
)]
fn share(bps: u64, part: f64) -> u64 {
    (bps as f64 * part) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 4_000_000;
    const TICK: Duration = Duration::from_millis(250);

    /// A line of this rate and a source that takes a second to follow; what was asked for over time.
    fn run(line_bps: u64, ticks: u32, thrift: &mut Thrift, now: &mut Instant) -> Vec<u64> {
        let mut sent_bps = thrift.asked_bps();
        let mut pending = None;
        (0..ticks)
            .map(|_| {
                *now += TICK;
                if let Some((at, bps)) = pending.filter(|(at, _)| *at <= *now) {
                    let _: Instant = at;
                    sent_bps = bps;
                    pending = None;
                }
                let changed = match sent_bps > line_bps {
                    true => thrift.behind(*now, line_bps),
                    false => thrift.calm(*now),
                };
                if changed {
                    pending = Some((*now + Duration::from_secs(1), thrift.asked_bps()));
                }
                thrift.asked_bps()
            })
            .collect()
    }

    #[test]
    fn a_narrow_line_gets_what_fits_with_one_change() {
        let (mut thrift, mut now) = (Thrift::new(MOST), Instant::now());
        let asked = run(3_000_000, 40, &mut thrift, &mut now);
        assert_eq!(asked.iter().filter(|bps| **bps != 1_800_000).count(), 0, "at the first word");
        let asked = run(3_000_000, 4 * 50, &mut thrift, &mut now);
        assert_eq!(asked.last(), Some(&2_700_000), "and then what is known to fit, no more");
        assert!(asked.windows(2).all(|w| w[0] <= w[1]));
    }

    #[test]
    fn a_line_that_recovers_gets_all_back_in_steps() {
        let (mut thrift, mut now) = (Thrift::new(MOST), Instant::now());
        run(1_000_000, 40, &mut thrift, &mut now);
        assert_eq!(thrift.asked_bps(), 600_000);
        run(100_000_000, 4 * 60 * 12, &mut thrift, &mut now);
        assert_eq!(thrift.asked_bps(), MOST);
    }

    #[test]
    fn tries_that_fail_become_rarer() {
        let (mut thrift, mut now) = (Thrift::new(MOST), Instant::now());
        let ups = |asked: &[u64]| asked.windows(2).filter(|w| w[1] > w[0]).count();
        let first = ups(&run(2_000_000, 4 * 600, &mut thrift, &mut now));
        let second = ups(&run(2_000_000, 4 * 600, &mut thrift, &mut now));
        assert!(first > second && second >= 1, "{first} {second}");
    }

    #[test]
    fn what_is_asked_for_stays_within_its_bounds() {
        let (mut thrift, mut now) = (Thrift::new(MOST), Instant::now());
        run(0, 400, &mut thrift, &mut now);
        assert_eq!(thrift.asked_bps(), MOST / FLOOR_PART);
        assert!(!Thrift::new(MOST).calm(now), "nothing above what is configured");
    }

    #[test]
    fn a_change_has_time_to_show() {
        let mut thrift = Thrift::new(MOST);
        let now = Instant::now();
        assert!(thrift.behind(now, 3_000_000));
        assert!(!thrift.behind(now + HOLD / 2, 1_000_000), "the old source is still behind");
        assert!(thrift.behind(now + HOLD, 1_000_000));
    }
}
