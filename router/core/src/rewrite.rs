//! A viewer's own sequence numbers and time line, continuous whatever happens to the source.
//!
//! Pure arithmetic. Sequence numbers are handed out one by one, so that skipped frames leave no
//! hole; timestamps are the source's plus an offset that changes only at a splice: the first
//! replay, a repeated one, or a source that restarted. Invariants: sequence numbers go up by one,
//! timestamps never go back, and the first sequence number is below 2^15, so that a receiver that
//! loses the first packets cannot mistake the roll-over counter.

use std::time::{Duration, Instant};

/// Ticks of the 90 kHz clock between two replayed pictures: a tenth of a millisecond. Large
/// enough to keep the pictures apart, small enough that a browser shows the newest one at once
/// instead of replaying the past.
const REPLAY_STEP: u32 = 9;

/// A source time stamp further ahead than this is a jump, not a pause: the source's clock
/// restarted. One hour.
const JUMP_TICKS: u32 = 90_000 * 3_600;

/// One viewer's numbering.
#[derive(Debug)]
pub(crate) struct Rewriter {
    next_seq: u64,
    /// Added to a source time stamp. `None` before the first splice.
    offset: Option<u32>,
    /// Newest time stamp given out.
    last: u32,
    last_at: Option<Instant>,
}

impl Rewriter {
    /// Numbering that begins at values drawn from `random`.
    pub(crate) fn new(random: u64) -> Self {
        let [a, b, c, d, e, f, ..] = random.to_le_bytes();
        Self {
            next_seq: u64::from(u16::from_le_bytes([a, b]) & 0x7fff),
            offset: None,
            last: u32::from_le_bytes([c, d, e, f]),
            last_at: None,
        }
    }

    /// The next sequence number, with its roll-over count in the upper bits.
    pub(crate) const fn next_index(&self) -> u64 {
        self.next_seq
    }

    /// As many were used.
    pub(crate) fn advance(&mut self, count: usize) {
        self.next_seq += count as u64;
    }

    /// Begins a replay of `count` pictures of which the newest has the source time `newest`.
    /// Returns the time stamp of the first; each following one is [`Self::STEP`] later, and live
    /// pictures continue from the last.
    pub(crate) fn splice(&mut self, now: Instant, count: usize, newest: u32) -> u32 {
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX / REPLAY_STEP);
        let span = (count - 1).saturating_mul(REPLAY_STEP);
        let first = self.resume_at(now);
        let end = first.wrapping_add(span);
        self.offset = Some(end.wrapping_sub(newest));
        self.last = end;
        self.last_at = Some(now);
        first
    }

    /// Ticks between two replayed pictures.
    pub(crate) const STEP: u32 = REPLAY_STEP;

    /// The time stamp of a live picture. A source time that stands still, goes back or leaps is a
    /// restarted source: the viewer's time line goes on as its clock on the wall does.
    pub(crate) fn live(&mut self, now: Instant, source: u32) -> u32 {
        let moved = self.offset.map(|offset| source.wrapping_add(offset));
        let next = moved.filter(|t| (1..JUMP_TICKS).contains(&t.wrapping_sub(self.last)));
        let out = next.unwrap_or_else(|| {
            let out = self.resume_at(now);
            self.offset = Some(out.wrapping_sub(source));
            out
        });
        self.last = out;
        self.last_at = Some(now);
        out
    }

    /// Forgets the source's clock: the next live picture continues from the clock on the wall.
    pub(crate) fn source_restarted(&mut self) {
        self.offset = None;
    }

    /// The first time stamp after a break: as much later as time has passed, and at least a step.
    fn resume_at(&self, now: Instant) -> u32 {
        let Some(at) = self.last_at else { return self.last };
        let passed = now.saturating_duration_since(at).min(Duration::from_secs(3_600));
        let ticks = u32::try_from(passed.as_micros() * 9 / 100).unwrap_or(JUMP_TICKS);
        self.last.wrapping_add(ticks.max(REPLAY_STEP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start() -> Instant {
        // The tests need some moment; the core never asks for one.
        #[allow(clippy::disallowed_methods, reason = "a test's epoch")]
        Instant::now()
    }

    #[test]
    fn a_replay_ends_where_live_continues() {
        let now = start();
        let mut r = Rewriter::new(7);
        let first = r.splice(now, 61, 5_000_000);
        let newest = first.wrapping_add(60 * Rewriter::STEP);
        assert_eq!(r.live(now, 5_001_500), newest.wrapping_add(1_500));
    }

    #[test]
    fn the_first_sequence_number_leaves_room_before_the_roll_over() {
        for random in [0, 1, 0xffff, u64::MAX, 0x8000] {
            assert!(Rewriter::new(random).next_index() < 1 << 15);
        }
    }

    #[test]
    fn a_restarted_source_continues_with_the_clock_on_the_wall() {
        let now = start();
        let mut r = Rewriter::new(1);
        r.splice(now, 1, 900_000);
        let before = r.live(now, 901_500);
        r.source_restarted();
        // Its clock is half an hour ahead of the old one, which is no pause.
        let restarted = 901_500 + 90_000 * 1_800;
        let after = r.live(now + Duration::from_secs(2), restarted);
        assert_eq!(after.wrapping_sub(before), 180_000);
        assert_eq!(
            r.live(now + Duration::from_secs(2), restarted + 3_000).wrapping_sub(after),
            3_000
        );
    }

    proptest! {
        #[test]
        fn time_stamps_never_go_back(
            random: u64,
            steps in prop::collection::vec((any::<u32>(), 0u64..2_000, 0u8..4, 1usize..700), 1..60),
        ) {
            let mut now = start();
            let mut r = Rewriter::new(random);
            r.splice(now, 1, 0);
            let mut last = r.last;
            for (source, wait_ms, what, count) in steps {
                now += Duration::from_millis(wait_ms);
                let first = match what {
                    0 => r.splice(now, count, source),
                    1 => { r.source_restarted(); r.live(now, source) }
                    _ => r.live(now, source),
                };
                let ahead = first.wrapping_sub(last);
                prop_assert!(ahead > 0 && ahead < 1 << 31, "{last} -> {first}");
                last = r.last;
            }
        }
    }
}
