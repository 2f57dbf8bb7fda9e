//! What to do when the uplink cannot keep up. Pure. Passthrough cannot skip an encoder's tick, so
//! the one remedy is to drop old pictures and go on at a keyframe. Invariant: after anything was
//! dropped, nothing but a keyframe is let through, so that the router never gets a hole.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A frame this long unacknowledged (above one round trip) is stale.
pub const STALE_AFTER: Duration = Duration::from_millis(400);
/// A frame this long unacknowledged (above the path's own round trip) is late: the source sends more
/// than the path carries, or it carried a large keyframe.
pub const LATE_AFTER: Duration = Duration::from_millis(120);
/// So many frames must be late at once: a path that loses has one or two that wait for their second
/// repair, a queue delays them all.
const LATE_FRAMES: usize = 4;
/// How often the uplink is looked at.
pub const LOOK: Duration = Duration::from_millis(250);
/// The same in a second.
const LOOKS_PER_S: u64 = 4;
/// Looks that must find it late in a row; a keyframe alone makes one of them late.
const LATE_LOOKS: u32 = 2;
/// Looks over which what was delivered is counted: one second.
const DELIVERED_LOOKS: usize = 4;
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

/// How the uplink does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// It keeps up.
    Calm,
    /// Not clear.
    Busy,
    /// It has been behind for a while, and delivers this much.
    Behind {
        /// Bits per second that were acknowledged over the last second.
        delivered_bps: u64,
    },
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
    least_rtt: Option<Duration>,
    late_looks: u32,
    gave_up: bool,
    /// Bytes acknowledged since the last look, and between the looks before it.
    acknowledged: usize,
    delivered: VecDeque<usize>,
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
        self.acknowledged +=
            self.in_flight.iter().filter(|f| f.id == id).map(|f| f.bytes).sum::<usize>();
        self.in_flight.retain(|f| f.id != id);
    }

    /// How the uplink does; asked every [`LOOK`].
    pub fn look(&mut self, now: Instant, rtt: Duration) -> Uplink {
        self.note_rtt(rtt);
        self.delivered.push_back(std::mem::take(&mut self.acknowledged));
        if self.delivered.len() > DELIVERED_LOOKS {
            self.delivered.pop_front();
        }
        let gave_up = std::mem::take(&mut self.gave_up);
        if !self.is_late(now) && !gave_up {
            self.late_looks = 0;
            let calm = self.unacked_age(now) < self.late_after() / 2;
            return if calm { Uplink::Calm } else { Uplink::Busy };
        }
        self.late_looks += 1;
        // A path that delivers nothing at all is not narrow but dead, or its router is: that is the
        // connection's business, and no bitrate would fit.
        if self.delivered.back().is_none_or(|bytes| *bytes == 0) {
            return Uplink::Busy;
        }
        let second = self.delivered.len() == DELIVERED_LOOKS;
        if !gave_up && (self.late_looks < LATE_LOOKS || !second) {
            return Uplink::Busy;
        }
        let bits = 8 * self.delivered.iter().sum::<usize>() as u64;
        let looks = self.delivered.len().max(1) as u64;
        Uplink::Behind { delivered_bps: bits * LOOKS_PER_S / looks }
    }

    fn note_rtt(&mut self, rtt: Duration) {
        self.least_rtt = Some(self.least_rtt.map_or(rtt, |least| least.min(rtt)));
    }

    fn late_after(&self) -> Duration {
        LATE_AFTER + self.least_rtt.unwrap_or_default()
    }

    fn is_late(&self, now: Instant) -> bool {
        let limit = self.late_after();
        let late = |f: &&InFlight| now.saturating_duration_since(f.sent) > limit;
        self.in_flight.iter().take_while(late).count() >= LATE_FRAMES
    }

    /// A keyframe is about to be sent: if the path is late, what is in flight only stands in its
    /// way. It is returned, to be cancelled.
    pub fn superseded(&mut self, now: Instant) -> Vec<u64> {
        if !self.is_late(now) {
            return Vec::new();
        }
        self.in_flight.drain(..).map(|f| f.id).collect()
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
            self.gave_up = true;
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

    /// A source of 60 frames a second and `frame` bytes over a line of `line` bytes a second; what
    /// each look found.
    fn looks(frame: usize, line: usize, seconds: u64) -> Vec<Uplink> {
        let mut r = RateRule::default();
        let start = Instant::now();
        let (mut sent, mut acked, mut free_at) = (0, 0, start);
        let mut arrivals = VecDeque::new();
        let mut found = Vec::new();
        for ms in 0..seconds * 1_000 {
            let now = start + Duration::from_millis(ms);
            if ms % 17 == 0 {
                r.sent(now, sent, frame);
                let takes = Duration::from_secs_f64(frame as f64 / line as f64);
                free_at = free_at.max(now) + takes;
                arrivals.push_back(free_at + RTT);
                sent += 1;
            }
            while arrivals.front().is_some_and(|at| *at <= now) {
                arrivals.pop_front();
                r.done(acked);
                acked += 1;
            }
            if ms % 250 == 249 {
                found.push(r.look(now, RTT));
            }
        }
        found
    }

    #[test]
    fn a_line_that_carries_all_is_calm() {
        assert!(looks(8_000, 1_000_000, 5).iter().all(|l| *l == Uplink::Calm));
    }

    #[test]
    fn a_line_that_carries_less_is_found_out_with_what_it_carries() {
        let found = looks(8_000, 375_000, 3);
        let first = found.iter().position(|l| matches!(l, Uplink::Behind { .. })).unwrap();
        assert!((2..6).contains(&first), "{found:?}");
        let Uplink::Behind { delivered_bps } = found[first + 1] else { panic!("{found:?}") };
        assert!((2_700_000..=3_300_000).contains(&delivered_bps), "{delivered_bps}");
    }

    #[test]
    fn a_keyframe_takes_the_place_of_what_is_late_and_only_then() {
        let mut r = RateRule::default();
        let start = Instant::now();
        for id in 0..4 {
            r.sent(start, id, 10);
        }
        assert!(r.superseded(start + LATE_AFTER).is_empty());
        assert_eq!(r.superseded(start + LATE_AFTER + RTT), [0, 1, 2, 3]);
        assert_eq!(r.unacked_bytes(), 0);
    }

    #[test]
    fn a_router_that_answers_nothing_any_more_is_not_a_narrow_line() {
        let mut r = RateRule::default();
        let start = Instant::now();
        for id in 0..400_u64 {
            let now = start + Duration::from_millis(17 * id);
            r.sent(now, id, 1_000);
            if id < 200 {
                r.done(id);
            }
            let given_up = r.stale(now, RTT);
            assert!(id >= 200 || given_up.is_empty());
            if id % 15 == 14 {
                assert!(!matches!(r.look(now, RTT), Uplink::Behind { .. }), "{id}");
            }
        }
    }

    #[test]
    fn frames_that_wait_for_a_second_repair_are_no_queue() {
        let mut r = RateRule::default();
        let start = Instant::now();
        for id in 0..200 {
            let now = start + Duration::from_millis(17) * u32::try_from(id).unwrap();
            r.sent(now, id, 1_000);
            // All but every twentieth come through; those do after a quarter of a second.
            if id % 20 != 0 {
                r.done(id);
            }
            if id >= 15 && (id - 15) % 20 == 0 {
                r.done(id - 15);
            }
            if id % 15 == 14 {
                assert!(!matches!(r.look(now, RTT), Uplink::Behind { .. }), "{id}");
            }
        }
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
