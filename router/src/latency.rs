//! The time that frames spend in a shard: from complete in the router to given to the kernel, per
//! viewer. Plain counters of the shard's thread, handed to the registry once a second.
//!
//! Not a general histogram. Buckets grow by a tenth, from 20 µs to about 60 ms, so that a quantile read
//! from them is right within five percent. Invariant: recording is a search of at most seven steps
//! and an addition.

use std::time::Duration;

/// Buckets with a bound; one more takes what is longer.
pub(crate) const BUCKETS: usize = 84;

/// First bound in microseconds.
const FIRST_US: f64 = 20.0;

/// Growth from bound to bound.
const GROWTH: f64 = 1.1;

/// Upper bounds in microseconds, inclusive.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounds are small positive numbers"
)]
pub(crate) fn bounds_us() -> [u64; BUCKETS] {
    let mut bound = FIRST_US;
    std::array::from_fn(|_| {
        let this = bound.round() as u64;
        bound *= GROWTH;
        this
    })
}

/// How long frames took, for one kind of viewer.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    bounds: [u64; BUCKETS],
    counts: [u64; BUCKETS + 1],
    sum_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { bounds: bounds_us(), counts: [0; BUCKETS + 1], sum_us: 0 }
    }
}

impl Latency {
    /// Notes one frame to one viewer.
    pub(crate) fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Frames within each bound, those within smaller bounds included; the last is all of them.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = u64> + '_ {
        self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        })
    }

    /// Sum of all times in microseconds.
    pub(crate) fn sum_us(&self) -> u64 {
        self.sum_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_holds_it() {
        let mut latency = Latency::default();
        for us in [1, 20, 21, 500, 1_000_000] {
            latency.record(Duration::from_micros(us));
        }
        let bounds = bounds_us();
        assert!(bounds.windows(2).all(|w| w[0] < w[1]) && bounds[BUCKETS - 1] > 50_000);
        let counts: Vec<u64> = latency.cumulative().collect();
        assert_eq!((counts[0], counts[1], counts[BUCKETS - 1], counts[BUCKETS]), (2, 3, 4, 5));
        let half = bounds.iter().position(|b| *b >= 500).unwrap();
        assert_eq!((counts[half - 1], counts[half]), (3, 4));
        assert_eq!(latency.sum_us(), 1 + 20 + 21 + 500 + 1_000_000);
    }
}
