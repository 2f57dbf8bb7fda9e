//! Jittered exponential back-off, the one used by every layer of the worker. Not a timer: it yields
//! durations. Invariant: a delay is never below half of its step, so two layers that fail together
//! do not stay in step, and never above [`MAX`].

use std::time::Duration;

/// First step.
pub const MIN: Duration = Duration::from_millis(100);
/// Last step; also how long a recovered peer waits for us at most.
pub const MAX: Duration = Duration::from_secs(5);

/// Steps from [`MIN`] to [`MAX`], doubling.
#[derive(Clone, Debug)]
pub struct Backoff {
    step: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { step: MIN }
    }
}

impl Backoff {
    /// The next delay; `jitter` is drawn by the caller from 0..1.
    pub fn next_delay(&mut self, jitter: f64) -> Duration {
        let delay = self.step.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        self.step = (self.step * 2).min(MAX);
        delay
    }

    /// As [`Self::next_delay`] with the process's randomness.
    pub fn next_random(&mut self) -> Duration {
        self.next_delay(rand::random())
    }

    /// What failed works again.
    pub fn reset(&mut self) {
        self.step = MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_five_seconds_and_start_over() {
        let mut b = Backoff::default();
        assert_eq!(b.next_delay(1.0), Duration::from_millis(100));
        assert_eq!(b.next_delay(0.0), Duration::from_millis(100));
        assert_eq!(b.next_delay(1.0), Duration::from_millis(400));
        for _ in 0..10 {
            assert!(b.next_delay(1.0) <= MAX);
        }
        assert_eq!(b.next_delay(1.0), MAX);
        assert_eq!(b.next_delay(0.0), MAX / 2);
        b.reset();
        assert_eq!(b.next_delay(1.0), MIN);
    }
}
