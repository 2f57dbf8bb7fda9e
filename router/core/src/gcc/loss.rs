//! How much is lost, how sure that is, and how much of it is the path's own.
//!
//! Not a decision: 5 % at random must not thin a viewer whose path is fine, because repair makes
//! it whole. Invariant: [`Loss::excess`] is a lower bound; a few losses among few packets are no
//! loss.

use std::time::{Duration, Instant};

/// Packets count with this half-life or so.
const MEMORY: Duration = Duration::from_secs(1);
/// Standard deviations taken off.
const DOUBT: f64 = 2.5;
/// Fewer packets than this say nothing.
const PACKETS_MIN: f64 = 15.0;
/// Loss must outlast the reduction of the rate by this long to be the path's own.
const OWN_AFTER: Duration = Duration::from_millis(1_500);

/// Packets sent and lost, fading.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loss {
    packets: f64,
    lost: f64,
    lost_bytes: f64,
    /// Share that the path loses whatever is sent.
    own: f64,
    below_since: Option<Instant>,
}

impl Loss {
    /// Lets the past fade.
    pub(crate) fn age(&mut self, passed: Duration) {
        let keep = 1.0 / (1.0 + passed.as_secs_f64() / MEMORY.as_secs_f64());
        self.packets *= keep;
        self.lost *= keep;
        self.lost_bytes *= keep;
    }

    /// One more packet.
    pub(crate) fn add(&mut self, bytes: u32, lost: bool) {
        self.packets += 1.0;
        if lost {
            self.lost += 1.0;
            self.lost_bytes += f64::from(bytes);
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

    /// Bytes lost lately.
    pub(crate) fn lost_bytes(&self) -> u64 {
        self.lost_bytes as u64
    }

    /// Tells whether what is sent at present is clearly less than what the path carries: loss that
    /// is seen then is not our doing. Loss that goes away takes the memory of it along.
    pub(crate) fn learn(&mut self, now: Instant, below: bool) {
        if !below {
            self.below_since = None;
        }
        let since = *self.below_since.get_or_insert(now);
        if below && now.saturating_duration_since(since) >= OWN_AFTER {
            self.own = self.own.max(self.share());
        }
        if self.packets >= PACKETS_MIN && self.share() < self.own {
            self.own += (self.share() - self.own) * 0.05;
        }
    }
}
