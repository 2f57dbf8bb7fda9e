//! How often a caller may call: a bucket per principal (GCRA), as one tower layer's worth of code.
//! Not the bound of calls in flight (`layers.rs`). Invariant: a refusal says when the same call
//! will be taken, and the table of buckets is bounded.

use std::{num::NonZeroU32, time::Duration};

use fanlight_proto::reason::Reason;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
    state::keyed::DashMapStateStore,
};

use crate::{auth::Principal, error::ControlError, metrics as m};

/// Buckets kept; at the bound those that are full again are forgotten.
const MAX_BUCKETS: usize = 10_000;

/// Bucket of a principal: tenant and name.
type Key = (String, String);

/// Buckets of all principals.
#[derive(Debug)]
pub struct Rates<C: Clock = MonotonicClock> {
    buckets: Option<Buckets<C>>,
    clock: C,
}

type Buckets<C> =
    RateLimiter<Key, DashMapStateStore<Key>, C, NoOpMiddleware<<C as Clock>::Instant>>;

impl Rates {
    /// `per_second` calls, `burst` at once, for each principal. Zero calls: no limit.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self::with_clock(per_second, burst, MonotonicClock)
    }
}

impl<C: Clock + Clone> Rates<C> {
    fn with_clock(per_second: u32, burst: u32, clock: C) -> Self {
        let quota = NonZeroU32::new(per_second)
            .map(|n| Quota::per_second(n).allow_burst(NonZeroU32::new(burst.max(1)).unwrap_or(n)));
        let buckets =
            quota.map(|q| RateLimiter::new(q, DashMapStateStore::default(), clock.clone()));
        Self { buckets, clock }
    }

    /// Takes one call. Callers that proved nothing share the operator's name and are not limited:
    /// they are on loopback, or behind something that limits them.
    pub fn take(&self, who: &Principal) -> Result<(), ControlError> {
        let Some(buckets) = self.buckets.as_ref().filter(|_| who.proved) else {
            return Ok(());
        };
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain_recent();
        }
        let key = (who.realm().to_owned(), who.name.clone());
        buckets.check_key(&key).map_err(|early| {
            m::count(m::RATE_LIMITED);
            let wait = early.wait_time_from(self.clock.now()).max(Duration::from_millis(1));
            let why = format!("{} calls too often", who.name);
            ControlError::new(Reason::RateLimited, why).retry_in(wait)
        })
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn who(name: &str) -> Principal {
        Principal { name: name.to_owned(), proved: true, ..Principal::operator() }
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_and_the_refusal_says_when() {
        let clock = FakeRelativeClock::default();
        let rates = Rates::with_clock(10, 3, clock.clone());
        for _ in 0..3 {
            rates.take(&who("a")).unwrap();
        }
        let refused = rates.take(&who("a")).unwrap_err();
        assert_eq!(refused.reason, Reason::RateLimited);
        let wait = refused.retry.unwrap();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
        rates.take(&who("b")).unwrap();
        clock.advance(wait);
        rates.take(&who("a")).unwrap();
        assert!(rates.take(&who("a")).is_err());
    }

    #[test]
    fn zero_is_no_limit_and_the_operator_has_none() {
        let none = Rates::new(0, 1);
        let one = Rates::new(1, 1);
        for _ in 0..100 {
            none.take(&who("a")).unwrap();
            one.take(&Principal::operator()).unwrap();
        }
        one.take(&who("a")).unwrap();
        assert!(one.take(&who("a")).is_err());
    }
}
