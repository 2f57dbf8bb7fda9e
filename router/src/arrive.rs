//! Puts the frames of one flow back in order: each frame came on a QUIC stream of its own, and
//! streams overtake each other. Pure: no socket, no clock, no RTP parsing; the caller says what
//! time it is and what each frame's first and last sequence numbers are. Not a jitter buffer: a
//! frame whose turn it is leaves at once. Invariant: sequence numbers of released frames strictly
//! grow (modulo 2^16), and nothing is held longer than [`CAP_OPENED`].

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Longest wait for a frame of which nothing has been seen. Streams repair themselves, and what is
/// given up takes every picture up to the next keyframe with it, so two repair rounds between
/// regions are waited for. Measured over a line of 45 ms round trip that loses 5 %: with 60 ms here
/// 90 % of pictures were on time, because small frames get lost whole.
pub(crate) const CAP_UNSEEN: Duration = Duration::from_millis(300);
/// Longest wait for a frame whose first packet has arrived: a big keyframe on a slow link takes
/// longer than [`CAP_UNSEEN`], and skipping it would break everything after it.
pub(crate) const CAP_OPENED: Duration = Duration::from_millis(500);
/// Most frames held per flow; one second at 60 frames/s. At the bound the gap is given up.
pub(crate) const MAX_HELD: usize = 64;
/// Most bytes held per flow. At the bound the gap is given up.
pub(crate) const MAX_HELD_BYTES: usize = 8 << 20;
/// Most frames remembered as opened; at the bound the opening is not noted, so that frame is
/// waited for only [`CAP_UNSEEN`].
const MAX_OPENED: usize = 256;

/// Where a frame stands in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Sequence number of the frame's first packet.
    pub(crate) first: u16,
    /// Sequence number of its last packet.
    pub(crate) last: u16,
    /// The frame can be decoded without any other.
    pub(crate) key: bool,
    /// Payload bytes, for the bound on memory.
    pub(crate) bytes: usize,
}

/// A frame that may go on, and whether something before it is missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Released<T> {
    /// The caller's frame.
    pub(crate) frame: T,
    /// True when at least one frame before it was given up, so a non-key frame cannot be decoded.
    pub(crate) after_gap: bool,
}

/// What happened to frames that did not come out, since the last [`Arrive::take_counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Came after their turn had been given up.
    pub(crate) late: u64,
    /// Gaps given up.
    pub(crate) gaps: u64,
    /// Came before the flow's first keyframe.
    pub(crate) before_key: u64,
}

struct Held<T> {
    position: Position,
    since: Instant,
    frame: T,
}

/// Order of one flow. `T` is the caller's frame.
pub(crate) struct Arrive<T> {
    /// First sequence number of the frame whose turn it is, extended to 64 bits so that keys
    /// sort; none until the first keyframe.
    next: Option<u64>,
    /// Reference for extending sequence numbers: the highest seen.
    newest: Option<u64>,
    held: BTreeMap<u64, Held<T>>,
    held_bytes: usize,
    opened: BTreeMap<u64, Instant>,
    after_gap: bool,
    counts: Counts,
}

impl<T> std::fmt::Debug for Arrive<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrive")
            .field("next", &self.next)
            .field("held", &self.held.len())
            .field("opened", &self.opened.len())
            .finish_non_exhaustive()
    }
}

impl<T> Default for Arrive<T> {
    fn default() -> Self {
        Self {
            next: None,
            newest: None,
            held: BTreeMap::new(),
            held_bytes: 0,
            opened: BTreeMap::new(),
            after_gap: false,
            counts: Counts::default(),
        }
    }
}

impl<T> Arrive<T> {
    /// An empty flow that waits for its first keyframe.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The first packet of a frame has been read; the rest is on its way.
    pub(crate) fn opened(&mut self, now: Instant, first: u16) {
        let at = self.extend(first);
        let due = self.next.is_none_or(|next| at >= next);
        if due && self.opened.len() < MAX_OPENED {
            self.opened.entry(at).or_insert(now);
        }
    }

    /// The stream of an opened frame was reset or broken: it will not come.
    pub(crate) fn abandoned(&mut self, now: Instant, first: u16, out: &mut Vec<Released<T>>) {
        let at = self.extend(first);
        self.opened.remove(&at);
        if self.next == Some(at) {
            // Nothing else can fill this turn, so waiting longer helps nobody.
            self.give_up_gap(out);
        }
        self.release(now, out);
    }

    /// A frame is complete. Frames whose turn it is are appended to `out`.
    pub(crate) fn push(
        &mut self,
        now: Instant,
        position: Position,
        frame: T,
        out: &mut Vec<Released<T>>,
    ) {
        let at = self.extend(position.first);
        self.opened.remove(&at);
        if self.next.is_some_and(|next| at < next) {
            self.counts.late += 1;
            return;
        }
        if position.key && self.next != Some(at) {
            // A keyframe makes everything before it needless: it never waits.
            self.skip_to(at);
        }
        if let Some(old) = self.held.insert(at, Held { position, since: now, frame }) {
            self.held_bytes -= old.position.bytes;
        }
        self.held_bytes += position.bytes;
        self.release(now, out);
    }

    /// Gives up what has been waited for too long.
    pub(crate) fn timeout(&mut self, now: Instant, out: &mut Vec<Released<T>>) {
        self.release(now, out);
    }

    /// When [`Self::timeout`] has to be called next. Ask again after every other call.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let next = self.next?;
        let oldest = self.held.values().map(|held| held.since).min()?;
        Some(match self.opened.get(&next) {
            Some(&opened) => (opened + CAP_OPENED).max(oldest + CAP_UNSEEN),
            None => oldest + CAP_UNSEEN,
        })
    }

    /// Counts since the last call.
    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Frames held now.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.held.len()
    }

    fn release(&mut self, now: Instant, out: &mut Vec<Released<T>>) {
        loop {
            self.release_ready(out);
            let over = self.held.len() > MAX_HELD || self.held_bytes > MAX_HELD_BYTES;
            let due = self.next_timeout().is_some_and(|at| at <= now);
            if !(over || due) {
                return;
            }
            if self.next.is_none() {
                self.drop_oldest();
            } else {
                self.give_up_gap(out);
            }
        }
    }

    fn release_ready(&mut self, out: &mut Vec<Released<T>>) {
        while let Some(next) = self.next {
            let Some(held) = self.held.remove(&next) else { return };
            self.held_bytes -= held.position.bytes;
            let packets = u64::from(held.position.last.wrapping_sub(held.position.first)) + 1;
            self.next = Some(next + packets);
            self.opened = self.opened.split_off(&(next + packets));
            self.drop_overlapped(next + packets);
            let after_gap = std::mem::take(&mut self.after_gap);
            out.push(Released { frame: held.frame, after_gap });
        }
    }

    /// Jumps to the oldest held frame, leaving what is missing before it.
    fn give_up_gap(&mut self, out: &mut Vec<Released<T>>) {
        let Some((&at, _)) = self.held.first_key_value() else { return };
        self.counts.gaps += 1;
        self.after_gap = true;
        self.next = Some(at);
        self.opened = self.opened.split_off(&at);
        self.release_ready(out);
    }

    /// Makes `at` the next turn; what is held before it is dropped.
    fn skip_to(&mut self, at: u64) {
        let kept = self.held.split_off(&at);
        let dropped = std::mem::replace(&mut self.held, kept);
        self.held_bytes -= dropped.values().map(|held| held.position.bytes).sum::<usize>();
        if self.next.is_some() {
            self.counts.gaps += 1;
            self.after_gap = true;
            self.counts.late += dropped.len() as u64;
        } else {
            self.counts.before_key += dropped.len() as u64;
        }
        self.next = Some(at);
        self.opened = self.opened.split_off(&at);
    }

    /// Drops held frames that begin inside the one just released: a sender that numbers its
    /// packets twice must not make the order run backwards.
    fn drop_overlapped(&mut self, next: u64) {
        while let Some(first) = self.held.first_entry() {
            if *first.key() >= next {
                return;
            }
            self.held_bytes -= first.remove().position.bytes;
            self.counts.late += 1;
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, held)) = self.held.pop_first() {
            self.held_bytes -= held.position.bytes;
            self.counts.before_key += 1;
        }
    }

    /// Extends a 16-bit sequence number by the nearest to the highest seen.
    fn extend(&mut self, seq: u16) -> u64 {
        // Starting one cycle up leaves room for frames that belong before the first one seen.
        let newest = self.newest.unwrap_or_else(|| (1 << 16) | u64::from(seq));
        let low = (newest & 0xffff) as i64;
        let mut step = i64::from(seq) - low;
        if step > 0x7fff {
            step -= 0x1_0000;
        } else if step < -0x8000 {
            step += 0x1_0000;
        }
        let at = newest.saturating_add_signed(step);
        self.newest = Some(newest.max(at));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u16; 0] = [];

    struct Flow {
        arrive: Arrive<u16>,
        start: Instant,
        out: Vec<Released<u16>>,
    }

    impl Flow {
        fn new() -> Self {
            Self { arrive: Arrive::new(), start: Instant::now(), out: Vec::new() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn push(&mut self, ms: u64, first: u16, packets: u16, key: bool) -> Vec<u16> {
            let position = Position {
                first,
                last: first.wrapping_add(packets - 1),
                key,
                bytes: usize::from(packets) * 1000,
            };
            let now = self.at(ms);
            self.arrive.push(now, position, first, &mut self.out);
            self.taken()
        }

        fn timeout(&mut self, ms: u64) -> Vec<u16> {
            let now = self.at(ms);
            self.arrive.timeout(now, &mut self.out);
            self.taken()
        }

        fn taken(&mut self) -> Vec<u16> {
            self.out.drain(..).map(|r| r.frame).collect()
        }
    }

    #[test]
    fn frames_in_order_leave_at_once() {
        let mut flow = Flow::new();
        assert_eq!(flow.push(0, 10, 5, true), [10]);
        assert_eq!(flow.push(1, 15, 1, false), [15]);
        assert_eq!(flow.push(2, 16, 2, false), [16]);
        assert_eq!(flow.arrive.next_timeout(), None);
    }

    #[test]
    fn an_overtaken_frame_is_waited_for_and_order_is_restored() {
        let mut flow = Flow::new();
        flow.push(0, 0, 1, true);
        assert_eq!(flow.push(1, 2, 1, false), NONE);
        assert_eq!(flow.push(2, 3, 1, false), NONE);
        assert_eq!(flow.push(3, 1, 1, false), [1, 2, 3]);
        assert_eq!(flow.arrive.take_counts(), Counts::default());
    }

    #[test]
    fn a_lost_frame_holds_the_others_for_300_ms_and_marks_the_gap() {
        let mut flow = Flow::new();
        flow.push(0, 0, 1, true);
        flow.push(10, 2, 1, false);
        flow.push(30, 3, 1, false);
        assert_eq!(flow.arrive.next_timeout(), Some(flow.at(310)));
        assert_eq!(flow.timeout(309), NONE);
        let now = flow.at(310);
        flow.arrive.timeout(now, &mut flow.out);
        assert_eq!(
            flow.out,
            [Released { frame: 2, after_gap: true }, Released { frame: 3, after_gap: false }]
        );
        flow.out.clear();
        assert_eq!(flow.push(311, 1, 1, false), NONE, "its turn is over");
        assert_eq!(flow.arrive.take_counts(), Counts { late: 1, gaps: 1, before_key: 0 });
    }

    #[test]
    fn a_keyframe_on_its_way_is_waited_for_longer() {
        let mut flow = Flow::new();
        flow.push(0, 0, 1, true);
        let now = flow.at(1);
        flow.arrive.opened(now, 1);
        flow.push(10, 60, 1, false);
        assert_eq!(flow.timeout(400), NONE);
        assert_eq!(flow.push(450, 1, 59, true), [1, 60]);
    }

    #[test]
    fn a_frame_that_stays_half_sent_is_given_up() {
        let mut flow = Flow::new();
        flow.push(0, 0, 1, true);
        let now = flow.at(0);
        flow.arrive.opened(now, 1);
        flow.push(10, 2, 1, false);
        assert_eq!(flow.timeout(499), NONE);
        assert_eq!(flow.timeout(500), [2]);
    }

    #[test]
    fn a_reset_frame_is_not_waited_for() {
        let mut flow = Flow::new();
        flow.push(0, 0, 1, true);
        let now = flow.at(5);
        flow.arrive.opened(now, 1);
        flow.push(6, 2, 1, false);
        flow.arrive.abandoned(now, 1, &mut flow.out);
        assert_eq!(flow.taken(), [2]);
    }

    #[test]
    fn a_keyframe_never_waits() {
        let mut flow = Flow::new();
        flow.push(0, 0, 1, true);
        flow.push(1, 2, 1, false);
        assert_eq!(flow.push(2, 10, 4, true), [10]);
        assert_eq!(flow.push(3, 14, 1, false), [14]);
    }

    #[test]
    fn nothing_leaves_before_the_first_keyframe() {
        let mut flow = Flow::new();
        assert_eq!(flow.push(0, 100, 1, false), NONE);
        assert_eq!(flow.push(1, 160, 1, false), NONE);
        assert_eq!(flow.timeout(10_000), NONE);
        assert_eq!(flow.push(10_001, 101, 59, true), [101, 160]);
        assert_eq!(flow.arrive.take_counts().before_key, 1);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut flow = Flow::new();
        assert_eq!(flow.push(0, 65_530, 10, true), [65_530]);
        assert_eq!(flow.push(1, 5, 1, false), NONE);
        assert_eq!(flow.push(2, 4, 1, false), [4, 5]);
    }

    #[test]
    fn held_frames_are_bounded_in_number_and_bytes() {
        let mut flow = Flow::new();
        for i in 0..500u16 {
            assert_eq!(flow.push(0, i, 1, false), NONE);
        }
        assert_eq!(flow.arrive.held(), MAX_HELD);
        let mut flow = Flow::new();
        for i in 0..10u16 {
            flow.push(0, i * 2000, 2000, false);
        }
        assert!(flow.arrive.held_bytes <= MAX_HELD_BYTES);
        assert!(flow.arrive.held() < 5);
    }

    #[test]
    fn any_order_comes_out_growing_and_bounded() {
        // A small linear congruential generator: seeds print as test names would.
        for seed in 0..200u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = move |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % n
            };
            let mut flow = Flow::new();
            let mut last: Option<u16> = None;
            for step in 0..400u64 {
                let jitter = u16::try_from(random(40)).unwrap();
                let first = u16::try_from((65_300 + step) % 65_536).unwrap().wrapping_add(jitter);
                let packets = 1 + u16::try_from(random(4)).unwrap();
                let mut got = flow.push(step * 5, first, packets, random(20) == 0);
                got.extend(flow.timeout(step * 5 + random(100)));
                for seq in got {
                    if let Some(last) = last {
                        let ahead = seq.wrapping_sub(last);
                        assert!(ahead > 0 && ahead < 0x8000, "seed {seed}: {last} then {seq}");
                    }
                    last = Some(seq);
                }
                assert!(flow.arrive.held() <= MAX_HELD);
            }
        }
    }
}
