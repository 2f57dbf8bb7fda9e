//! When a delivery is tried again, and when an endpoint is left alone. Pure; time and chance are
//! arguments. Invariant: an endpoint that is down is asked by one delivery at a time, ever more
//! rarely, and no event is tried for longer than a day.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// First wait; doubles each time.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(3600);
/// An event is given up when it is this old.
pub(super) const GIVE_UP: Duration = Duration::from_secs(24 * 3600);
/// Failures in a row after which the endpoint is left alone.
const TRIP: u32 = 5;
/// First and longest rest of an endpoint.
const REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// Wait after a number of failed tries (at least one), between half and all of the step.
pub(super) fn backoff(tries: u32, rng: &mut impl Rng) -> Duration {
    let step = FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(LONGEST);
    step.mul_f64(rng.random_range(0.5..=1.0))
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was taken.
    Taken,
    /// It will never be taken as it is.
    Never,
    /// Later it may be. True: the endpoint works, it only did not take this one.
    Later,
}

/// Reads a status. An endpoint that is set up wrongly (401, 403, 404) may be mended within the day,
/// so only answers about the event itself are final.
pub(super) fn verdict(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Taken,
        400 | 410 | 413 | 415 | 422 => Verdict::Never,
        _ => Verdict::Later,
    }
}

/// Leaves an endpoint alone that fails.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    rests_until: Option<Instant>,
}

impl Breaker {
    /// How many deliveries may leave now, of as many as wanted.
    pub(super) fn allows(&self, now: Instant, wanted: usize) -> usize {
        match self.rests_until {
            None => wanted,
            Some(until) if now < until => 0,
            // Half open: one asks how it is.
            Some(_) => wanted.min(1),
        }
    }

    /// When it is asked again.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// It answered.
    pub(super) fn works(&mut self) {
        *self = Self::default();
    }

    /// It did not answer, or with a fault of its own.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if let Some(over) = self.failures.checked_sub(TRIP) {
            let rest = REST.saturating_mul(1 << over.min(16)).min(LONGEST_REST);
            self.rests_until = Some(now + rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn waits_grow_from_half_a_second_to_an_hour_with_jitter() {
        let mut rng = StdRng::seed_from_u64(1);
        for tries in 1..40 {
            let step = FIRST.mul_f64(2f64.powi(i32::try_from(tries).unwrap() - 1)).min(LONGEST);
            for _ in 0..20 {
                let wait = backoff(tries, &mut rng);
                assert!(wait >= step / 2 && wait <= step, "{tries}: {wait:?}");
            }
        }
        let different = backoff(10, &mut rng) != backoff(10, &mut rng);
        assert!(different, "jitter");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_endpoint_rests_and_is_then_asked_by_one() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..TRIP - 1 {
            breaker.failed(now);
            assert_eq!(breaker.allows(now, 8), 8);
        }
        breaker.failed(now);
        assert_eq!(breaker.allows(now, 8), 0);
        let later = now + REST;
        assert_eq!(breaker.allows(later, 8), 1);
        breaker.failed(later);
        assert_eq!(breaker.allows(later + REST, 8), 0, "rests grow");
        breaker.works();
        assert_eq!(breaker.allows(later, 8), 8);
    }
}
