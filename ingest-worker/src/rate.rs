//! What to do when the uplink cannot keep up. Pure. Passthrough cannot skip an encoder's tick, so
//! the one remedy is to drop old pictures and go on at a keyframe. Invariant: after anything was
//! dropped, nothing but a keyframe is let through, so that the router never gets a hole.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A frame this long unacknowledged (above one round trip) is stale.
pub const STALE_AFTER: Duration = Duration::from_millis(400);
/// Frames in flight at most: 10 s at 60 per second, which staleness ends long before.
pub const MAX_IN_FLIGHT: usize = 600;

/// What to do with the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it.
    Send,
    /// Drop it: a keyframe is waited for.
    Drop,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    id: u64,
    sent: Instant,
    bytes: usize,
}

/// Frames sent and not yet acknowledged, and whether a keyframe is due.
#[derive(Debug, Default)]
pub struct RateRule {
    in_flight: VecDeque<InFlight>,
    need_key: bool,
}

impl RateRule {
    /// Judges the next frame.
    pub fn judge(&mut self, key: bool) -> Verdict {
        if key {
            self.need_key = false;
        }
        if self.need_key { Verdict::Drop } else { Verdict::Send }
    }

    /// Frame `id` was handed to the connection.
    pub fn sent(&mut self, now: Instant, id: u64, bytes: usize) {
        self.in_flight.push_back(InFlight { id, sent: now, bytes });
    }

    /// Frame `id` was acknowledged whole, or refused by the peer.
    pub fn done(&mut self, id: u64) {
        self.in_flight.retain(|f| f.id != id);
    }

    /// Whether the peer is too far behind. If so, all frames in flight must be reset: they are
    /// returned, and a keyframe is due.
    pub fn stale(&mut self, now: Instant, rtt: Duration) -> Vec<u64> {
        let late = self
            .in_flight
            .front()
            .is_some_and(|f| now.saturating_duration_since(f.sent) > STALE_AFTER + rtt);
        if late || self.in_flight.len() > MAX_IN_FLIGHT {
            self.need_key = true;
            return self.in_flight.drain(..).map(|f| f.id).collect();
        }
        Vec::new()
    }

    /// Frames were lost before they came here; the next must be a keyframe.
    pub fn lost(&mut self) {
        self.need_key = true;
    }

    /// A keyframe is waited for.
    pub fn needs_key(&self) -> bool {
        self.need_key
    }

    /// When [`Self::stale`] could next say something, given the path's round trip.
    pub fn next_check(&self, rtt: Duration) -> Option<Instant> {
        self.in_flight.front().map(|f| f.sent + STALE_AFTER + rtt + Duration::from_millis(1))
    }

    /// Age of the oldest unacknowledged frame.
    pub fn unacked_age(&self, now: Instant) -> Duration {
        self.in_flight.front().map_or(Duration::ZERO, |f| now.saturating_duration_since(f.sent))
    }

    /// Bytes handed over and not acknowledged.
    pub fn unacked_bytes(&self) -> usize {
        self.in_flight.iter().map(|f| f.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    #[test]
    fn a_path_that_keeps_up_drops_nothing() {
        let mut r = RateRule::default();
        let mut now = Instant::now();
        for id in 0..100 {
            assert_eq!(r.judge(id == 0), Verdict::Send);
            r.sent(now, id, 1000);
            now += Duration::from_millis(16);
            assert!(r.stale(now, RTT).is_empty());
            r.done(id);
        }
        assert_eq!(r.unacked_bytes(), 0);
    }

    #[test]
    fn a_stalled_path_resets_all_and_resumes_at_a_keyframe() {
        let mut r = RateRule::default();
        let start = Instant::now();
        for id in 0..5 {
            r.sent(start, id, 10);
        }
        assert!(r.stale(start + STALE_AFTER, RTT).is_empty());
        let check = r.next_check(RTT).unwrap();
        assert_eq!(r.stale(check, RTT), [0, 1, 2, 3, 4]);
        assert_eq!(r.judge(false), Verdict::Drop);
        assert!(r.needs_key());
        assert_eq!(r.judge(true), Verdict::Send);
        assert_eq!(r.judge(false), Verdict::Send);
        assert_eq!(r.next_check(RTT), None);
    }

    #[test]
    fn frames_in_flight_are_bounded_even_when_time_stands_still() {
        let mut r = RateRule::default();
        let now = Instant::now();
        for id in 0..=MAX_IN_FLIGHT as u64 {
            r.sent(now, id, 1);
        }
        assert_eq!(r.stale(now, RTT).len(), MAX_IN_FLIGHT + 1);
    }
}
