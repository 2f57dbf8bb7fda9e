//! What one viewer's datagrams may cost: a token bucket per kind of work.
//!
//! Not fairness between viewers: each has its own buckets. Invariant: taking is one comparison
//! and one subtraction, whatever was asked for before.

use std::time::Instant;

/// A token bucket.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    per_second: u32,
    burst: u32,
    /// Tokens in millionths.
    held: u64,
    at: Instant,
}

impl Budget {
    /// A full bucket.
    pub(crate) fn new(now: Instant, per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, held: u64::from(burst) * 1_000_000, at: now }
    }

    /// Takes `amount`, or nothing if there is less.
    pub(crate) fn take(&mut self, now: Instant, amount: u32) -> bool {
        let passed = now.saturating_duration_since(self.at).as_micros();
        if passed > 0 {
            let passed = u64::try_from(passed).unwrap_or(u64::MAX);
            let gained = passed.saturating_mul(u64::from(self.per_second));
            self.held = self.held.saturating_add(gained).min(u64::from(self.burst) * 1_000_000);
            self.at = now;
        }
        let wanted = u64::from(amount) * 1_000_000;
        let enough = self.held >= wanted;
        if enough {
            self.held -= wanted;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::epoch;

    #[test]
    fn a_flood_gets_the_burst_and_then_the_rate() {
        let t0 = epoch();
        let mut budget = Budget::new(t0, 100, 20);
        let mut taken = 0;
        for ms in 0..10_000 {
            for _ in 0..10 {
                taken += u32::from(budget.take(t0 + Duration::from_millis(ms), 1));
            }
        }
        assert_eq!(taken, 20 + 999);
        assert!(!budget.take(t0 + Duration::from_secs(100), 21), "never more than the burst");
    }
}
