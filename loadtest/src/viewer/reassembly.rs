//! Packets of one viewer back in order, holes asked for again, holes given up. Numbers and bytes
//! only: no crypto, no clock, no socket. Invariant: packets come out in order, each once, and the
//! memory held is bounded by [`HELD_MAX`].

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Packets held behind a hole. Two seconds at 500 packets per second; beyond it the oldest hole is
/// given up.
const HELD_MAX: usize = 1_024;
/// Holes waited for at once; a longer jump is a loss of everything in it.
const MISSING_MAX: u64 = 1_024;
/// A hole older than this is not filled any more.
const GIVE_UP: Duration = Duration::from_secs(1);
/// How long holes in front of a whole keyframe are waited for: two round trips of a bad path. A
/// browser would show the keyframe at once; then what a repair brings would not count as complete.
const KEY_PATIENCE: Duration = Duration::from_millis(120);
/// Times that a packet is asked for.
const TRIES: u32 = 12;
/// Least time between two requests for the same packet, where the path is shorter than that.
const RETRY_MIN: Duration = Duration::from_millis(20);

/// A packet as it comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// RTP payload, repairs unwrapped; empty for padding.
    pub payload: Vec<u8>,
    /// Last of its picture.
    pub marker: bool,
    /// RTP time stamp.
    pub rtp_time: u32,
    /// A keyframe begins with it.
    pub key_start: bool,
    /// Packets before it were given up.
    pub after_gap: bool,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    since: Instant,
    asked: Option<Instant>,
    tries: u32,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came more than once, or after they were given up.
    pub late: u64,
    /// Holes that a repair filled.
    pub repaired: u64,
    /// Holes that a late original filled.
    pub reordered: u64,
    /// Packets given up.
    pub lost: u64,
    /// Packets that had arrived and were passed over for a keyframe behind them.
    pub passed_over: u64,
}

/// The order of one viewer's packets.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    /// The packet whose turn it is; none before the first.
    next: Option<u64>,
    highest: u64,
    held: BTreeMap<u64, Piece>,
    missing: BTreeMap<u64, Missing>,
    gap: bool,
    counts: Counts,
}

impl Reassembly {
    /// Counts so far.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// The highest packet seen, without its roll-overs.
    pub(super) fn highest(&self) -> u16 {
        (self.highest & 0xffff) as u16
    }

    /// The packet that a 16-bit number means: the nearest to the highest seen.
    pub(super) fn index_of(&self, seq: u16) -> Option<u64> {
        let low = (self.highest & 0xffff) as i64;
        let mut step = i64::from(seq) - low;
        if step > 0x7fff {
            step -= 0x1_0000;
        } else if step < -0x8000 {
            step += 0x1_0000;
        }
        self.highest.checked_add_signed(step)
    }

    /// Takes a packet; what may come out now is appended to `out`. `true`: there are new holes.
    pub(super) fn push(
        &mut self,
        now: Instant,
        index: u64,
        repair: bool,
        mut piece: Piece,
        out: &mut Vec<Piece>,
    ) -> bool {
        let next = *self.next.get_or_insert(index);
        if index < next || self.held.contains_key(&index) {
            self.counts.late += 1;
            return false;
        }
        if self.missing.remove(&index).is_some() {
            let count = if repair { &mut self.counts.repaired } else { &mut self.counts.reordered };
            *count += 1;
        }
        let mut holes = false;
        if index > self.highest + 1 && index > next {
            holes = self.note_holes(now, self.highest.max(next.wrapping_sub(1)) + 1, index);
        }
        self.highest = self.highest.max(index);
        if Some(index) == self.next && self.held.is_empty() {
            // The usual case: nothing is held, nothing is copied.
            piece.after_gap = std::mem::take(&mut self.gap);
            self.next = Some(index + 1);
            out.push(piece);
            return holes;
        }
        self.held.insert(index, piece);
        self.release(out);
        self.jump_to_key(now, out);
        while self.held.len() > HELD_MAX {
            self.give_up_first(out);
        }
        holes
    }

    fn note_holes(&mut self, now: Instant, from: u64, to: u64) -> bool {
        // Of a very long jump only the end can still be repaired.
        let from_kept = from.max(to.saturating_sub(MISSING_MAX));
        for index in from_kept..to {
            self.missing.insert(index, Missing { since: now, asked: None, tries: 0 });
        }
        while self.missing.len() as u64 > MISSING_MAX {
            self.missing.pop_first();
        }
        true
    }

    /// Numbers to ask for now, oldest first. `rtt` keeps a request on its way from being repeated.
    pub(super) fn ask(&mut self, now: Instant, rtt: Duration, out: &mut Vec<u16>) {
        let pause = rtt.max(RETRY_MIN);
        for (index, missing) in &mut self.missing {
            let due = missing.asked.is_none_or(|at| now.duration_since(at) >= pause);
            if due && missing.tries < TRIES {
                missing.asked = Some(now);
                missing.tries += 1;
                out.push((index & 0xffff) as u16);
            }
        }
    }

    /// Gives up holes that are too old.
    pub(super) fn expire(&mut self, now: Instant, out: &mut Vec<Piece>) {
        self.jump_to_key(now, out);
        loop {
            let oldest = self.missing.first_key_value().map(|(_, m)| m.since);
            // A hole that fell off the bounded list is as good as old.
            let over = match oldest {
                Some(since) => now.duration_since(since) >= GIVE_UP,
                None => !self.held.is_empty(),
            };
            if !over {
                return;
            }
            self.give_up_first(out);
        }
    }

    /// Whether something is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Goes on at the newest whole keyframe when what is missing before it has had its time.
    fn jump_to_key(&mut self, now: Instant, out: &mut Vec<Piece>) {
        let Some((first, missing)) = self.missing.first_key_value() else { return };
        if now.duration_since(missing.since) < KEY_PATIENCE {
            return;
        }
        let first = *first;
        let starts = self.held.range(first..).rev().filter(|(_, piece)| piece.key_start);
        let whole = starts.map(|(at, _)| *at).find(|at| self.is_whole(*at));
        let (Some(to), Some(next)) = (whole, self.next) else { return };
        let kept = self.held.split_off(&to);
        let passed = std::mem::replace(&mut self.held, kept).len() as u64;
        self.counts.passed_over += passed;
        self.counts.lost += to.saturating_sub(next).saturating_sub(passed);
        self.missing = self.missing.split_off(&to);
        self.next = Some(to);
        self.gap = true;
        self.release(out);
    }

    /// Whether all packets of the picture that begins there are held.
    fn is_whole(&self, start: u64) -> bool {
        let mut run = (start..).zip(self.held.range(start..)).take_while(|(n, (at, _))| n == *at);
        run.any(|(_, (_, piece))| piece.marker)
    }

    fn give_up_first(&mut self, out: &mut Vec<Piece>) {
        let Some(next) = self.next else { return };
        let to = match self.held.first_key_value() {
            Some((index, _)) => *index,
            None => self.highest + 1,
        };
        self.counts.lost += to.saturating_sub(next);
        self.missing = self.missing.split_off(&to);
        self.next = Some(to);
        self.gap = true;
        self.release(out);
    }

    fn release(&mut self, out: &mut Vec<Piece>) {
        while let Some(next) = self.next
            && let Some(mut piece) = self.held.remove(&next)
        {
            piece.after_gap = std::mem::take(&mut self.gap);
            self.next = Some(next + 1);
            out.push(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(index: u64) -> Piece {
        Piece {
            payload: index.to_be_bytes().to_vec(),
            marker: false,
            rtp_time: 0,
            key_start: false,
            after_gap: false,
        }
    }

    fn indexes(out: &[Piece]) -> Vec<u64> {
        out.iter().map(|p| u64::from_be_bytes(p.payload[..8].try_into().unwrap())).collect()
    }

    #[test]
    fn a_hole_is_asked_for_at_once_and_again_after_a_round_trip() {
        let (mut r, mut out, start) = (Reassembly::default(), Vec::new(), Instant::now());
        assert!(!r.push(start, 70_000, false, piece(70_000), &mut out));
        assert!(r.push(start, 70_003, false, piece(70_003), &mut out));
        assert_eq!(indexes(&out), [70_000]);
        let rtt = Duration::from_millis(40);
        let mut asked = Vec::new();
        r.ask(start, rtt, &mut asked);
        assert_eq!(asked, [4_465, 4_466]);
        r.ask(start + Duration::from_millis(39), rtt, &mut asked);
        assert_eq!(asked.len(), 2);
        r.ask(start + rtt, rtt, &mut asked);
        assert_eq!(asked.len(), 4);
        assert_eq!(r.index_of(4_465), Some(70_001));
        r.push(start, 70_001, true, piece(70_001), &mut out);
        r.push(start, 70_002, false, piece(70_002), &mut out);
        assert_eq!(indexes(&out), [70_000, 70_001, 70_002, 70_003]);
        assert!(!out[3].after_gap);
        assert_eq!(r.counts(), Counts { repaired: 1, reordered: 1, ..Counts::default() });
    }

    #[test]
    fn a_hole_that_stays_is_given_up_and_marked() {
        let (mut r, mut out, start) = (Reassembly::default(), Vec::new(), Instant::now());
        r.push(start, 10, false, piece(10), &mut out);
        r.push(start, 12, false, piece(12), &mut out);
        r.expire(start + GIVE_UP / 2, &mut out);
        assert_eq!(indexes(&out), [10]);
        r.expire(start + GIVE_UP, &mut out);
        assert_eq!(indexes(&out), [10, 12]);
        assert!(out[1].after_gap);
        assert_eq!(r.counts().lost, 1);
        assert!(!r.push(start + GIVE_UP, 11, true, piece(11), &mut out), "too late");
        assert_eq!(r.counts().late, 1);
    }

    #[test]
    fn a_whole_keyframe_behind_a_hole_is_shown_before_the_hole_is_given_up() {
        let (mut r, mut out, start) = (Reassembly::default(), Vec::new(), Instant::now());
        let key = |index, key_start, marker| Piece { key_start, marker, ..piece(index) };
        r.push(start, 0, false, piece(0), &mut out);
        r.push(start, 2, false, piece(2), &mut out);
        r.push(start, 3, false, key(3, true, false), &mut out);
        r.expire(start + KEY_PATIENCE, &mut out);
        assert_eq!(indexes(&out), [0], "the keyframe is not whole yet");
        r.push(start + KEY_PATIENCE / 2, 4, false, key(4, false, true), &mut out);
        assert_eq!(indexes(&out), [0], "the hole has not had its time");
        r.expire(start + KEY_PATIENCE, &mut out);
        assert_eq!(indexes(&out), [0, 3, 4]);
        assert!(out[1].after_gap);
        let counts = r.counts();
        assert_eq!((counts.lost, counts.passed_over), (1, 1));
        r.push(start + KEY_PATIENCE, 5, false, piece(5), &mut out);
        assert_eq!(indexes(&out).last(), Some(&5));
    }

    #[test]
    fn a_tail_that_never_comes_does_not_hold_the_next_packet() {
        let (mut r, mut out, start) = (Reassembly::default(), Vec::new(), Instant::now());
        r.push(start, 0, false, piece(0), &mut out);
        // A jump far beyond what is repaired.
        r.push(start, 5_000, false, piece(5_000), &mut out);
        r.expire(start + GIVE_UP, &mut out);
        assert_eq!(indexes(&out), [0, 5_000]);
        assert_eq!(r.counts().lost, 4_999);
    }

    proptest! {
        #[test]
        fn any_order_and_loss_comes_out_growing_and_once(
            order in proptest::collection::vec((0_u64..400, any::<bool>(), 0_u64..50), 1..600),
        ) {
            let (mut r, mut out, start) = (Reassembly::default(), Vec::new(), Instant::now());
            let mut at = start;
            for (index, repair, wait) in order {
                at += Duration::from_millis(wait);
                r.push(at, 1_000 + index, repair, piece(1_000 + index), &mut out);
                r.ask(at, Duration::from_millis(10), &mut Vec::new());
                r.expire(at, &mut out);
                prop_assert!(r.held.len() <= HELD_MAX);
            }
            let got = indexes(&out);
            prop_assert!(got.windows(2).all(|w| w[0] < w[1]), "{got:?}");
        }
    }
}
