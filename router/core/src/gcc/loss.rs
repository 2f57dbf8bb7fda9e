//! How much is lost, how sure that is, and how much of it is the path's own.
//!
//! Not a decision: 5 % at random must not thin a viewer whose path is fine, because repair makes
//! it whole. Invariant: [`Loss::excess`] is a lower bound; a few losses among few packets are no
//! loss.

use std::time::{Duration, Instant};

/// Packets count with this half-life or so.
const MEMORY: Duration = Duration::from_secs(1);
/// After a pause this long the past is no measure.
const STALE: Duration = Duration::from_millis(600);
/// Standard deviations taken off.
const DOUBT: f64 = 2.5;
/// Fewer packets than this say nothing.
const PACKETS_MIN: f64 = 15.0;
/// Packets that the path's own loss is taken from, at least.
const OWN_PACKETS_MIN: f64 = 40.0;
/// Loss must outlast the reduction of the rate by this long to be the path's own.
const OWN_AFTER: Duration = Duration::from_millis(1_500);

/// Packets sent and lost, fading.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loss {
    packets: f64,
    lost: f64,
    /// Share that the path loses whatever is sent.
    own: f64,
    /// Since when, and packets and losses since then.
    below: Option<(Instant, f64, f64)>,
}

impl Loss {
    /// Lets the past fade.
    pub(crate) fn age(&mut self, passed: Duration) {
        if passed >= STALE {
            (self.packets, self.lost, self.below) = (0.0, 0.0, None);
        }
        let keep = (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.packets *= keep;
        self.lost *= keep;
    }

    /// One more packet.
    pub(crate) fn add(&mut self, lost: bool) {
        self.packets += 1.0;
        if lost {
            self.lost += 1.0;
        }
        if let Some((_, packets, lost_below)) = self.below.as_mut() {
            *packets += 1.0;
            *lost_below += f64::from(u8::from(lost));
        }
    }

    /// Share lost, as measured.
    pub(crate) fn share(&self) -> f64 {
        if self.packets < 1.0 { 0.0 } else { (self.lost / self.packets).clamp(0.0, 1.0) }
    }

    /// Share lost beyond doubt and beyond the path's own loss.
    pub(crate) fn excess(&self) -> f64 {
        if self.packets < PACKETS_MIN {
            return 0.0;
        }
        let share = self.share();
        let doubt = DOUBT * (share * (1.0 - share) / self.packets).sqrt();
        (share - doubt - self.own).max(0.0)
    }

    /// Tells whether what is sent at present is clearly less than what the path carries: loss that
    /// is seen then is not our doing. Loss that goes away takes the memory of it along.
    pub(crate) fn learn(&mut self, now: Instant, below: bool) {
        if !below {
            self.below = None;
        } else {
            let (since, packets, lost) = *self.below.get_or_insert((now, 0.0, 0.0));
            let long = now.saturating_duration_since(since) >= OWN_AFTER;
            if long && packets >= OWN_PACKETS_MIN {
                self.own = self.own.max(lost / packets);
                self.below = None;
            }
        }
        if self.packets >= PACKETS_MIN && self.share() < self.own {
            self.own += (self.share() - self.own) * 0.05;
        }
    }
}
