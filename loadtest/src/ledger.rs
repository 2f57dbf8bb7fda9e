//! What a stream has published, as its viewers check it: which picture a hash is, when it left,
//! how many packets it has, which picture it needs. In memory, one per stream, bounded. Not a
//! store of pictures. Invariant: an entry stands here before the first byte of its picture leaves,
//! so a viewer never receives what is not known.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::RwLock;

use crate::source::Picture;

/// Pictures remembered: four minutes at 60 per second. A viewer that is further behind than that
/// is given `None`, which counts as corrupt.
const ENTRIES_MAX: usize = 15_000;

/// One published picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Place in the stream.
    pub number: u64,
    /// Hash of its access unit.
    pub hash: u64,
    /// When its first byte was given to the connection.
    pub published: Instant,
    /// RTP packets.
    pub packets: u32,
    /// Payload bytes.
    pub bytes: u32,
    /// Decoding can start here.
    pub key: bool,
    /// No other picture needs it.
    pub discardable: bool,
    /// The picture it needs; itself when it needs none.
    pub needs: u64,
    /// RTP packets of all pictures before it.
    pub packets_before: u64,
}

/// What to write down about a picture that is about to leave.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// Place in the stream.
    pub number: u64,
    /// Hash of its access unit.
    pub hash: u64,
    /// RTP packets.
    pub packets: u32,
    /// Payload bytes.
    pub bytes: u32,
    /// Decoding can start here.
    pub key: bool,
    /// No other picture needs it.
    pub discardable: bool,
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Entry>,
    by_hash: HashMap<u64, u64>,
    last_reference: Option<u64>,
    packets: u64,
    /// Pictures whose count of packets before them is kept, though they are forgotten.
    marks: BTreeMap<u64, Option<u64>>,
}

/// A clip that somebody else plays in a loop, from wherever they like.
#[derive(Debug, Default)]
struct Cycle {
    entries: Vec<Entry>,
    by_hash: HashMap<u64, u64>,
}

impl Cycle {
    fn find(&self, hash: u64, expected: Option<u64>) -> Option<Entry> {
        let length = self.entries.len() as u64;
        let at = |number: u64| {
            let round = number.checked_div(length)? * length;
            let entry = self.entries.get(usize::try_from(number - round).ok()?)?;
            let (number, needs) = (round + entry.number, round + entry.needs);
            Some(Entry { number, needs, published: Instant::now(), ..*entry })
        };
        let expected = expected.unwrap_or(0);
        if let Some(entry) = at(expected).filter(|entry| entry.hash == hash) {
            return Some(entry);
        }
        // The next one of this content: what was jumped over was lost.
        let place = *self.by_hash.get(&hash)?;
        let round = expected.checked_div(length)? * length;
        at(if round + place >= expected { round + place } else { round + length + place })
    }
}

/// Marks kept; the oldest goes first.
const MARKS_MAX: usize = 16;

/// One stream's record.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: RwLock<Inner>,
    cycle: Option<Cycle>,
    /// Keyframes that the router asked for.
    pub keyframe_requests: AtomicU64,
}

impl Ledger {
    /// Of a clip that somebody else plays in a loop: pictures are known by their content alone, and
    /// when they left and in how many packets is not.
    pub fn of_clip(pictures: &[Picture]) -> Self {
        let mut cycle = Cycle::default();
        let mut last_reference = 0;
        for (number, picture) in (0_u64..).zip(pictures) {
            cycle.by_hash.insert(picture.hash, number);
            cycle.entries.push(Entry {
                number,
                hash: picture.hash,
                published: Instant::now(),
                packets: 0,
                bytes: 0,
                key: picture.key,
                discardable: picture.discardable,
                needs: if picture.key { number } else { last_reference },
                packets_before: 0,
            });
            if !picture.discardable {
                last_reference = number;
            }
        }
        Self { cycle: Some(cycle), ..Self::default() }
    }

    /// Notes a picture that is about to leave. It needs the last one that others may need.
    pub fn publish(&self, now: Instant, leaving: Leaving) {
        let last = self.inner.read().last_reference;
        self.publish_after(now, leaving, last);
    }

    /// Notes a picture that is about to leave and needs the picture `last`, where it needs one: of
    /// several encoders each refers to its own pictures only.
    pub fn publish_after(&self, now: Instant, leaving: Leaving, last: Option<u64>) {
        let Leaving { number, hash, packets, bytes, key, discardable } = leaving;
        let inner = &mut *self.inner.write();
        let needs = if key { number } else { last.unwrap_or(number) };
        let packets_before = inner.packets;
        inner.packets += u64::from(packets);
        if let Some(mark) = inner.marks.get_mut(&number) {
            *mark = Some(packets_before);
        }
        let entry = Entry {
            number,
            hash,
            published: now,
            packets,
            bytes,
            key,
            discardable,
            needs,
            packets_before,
        };
        if !discardable {
            inner.last_reference = Some(number);
        }
        if inner.entries.len() == ENTRIES_MAX
            && let Some(old) = inner.entries.pop_front()
            && inner.by_hash.get(&old.hash) == Some(&old.number)
        {
            inner.by_hash.remove(&old.hash);
        }
        inner.entries.push_back(entry);
        inner.by_hash.insert(hash, number);
    }

    /// The picture of this content. A clip in a loop repeats itself: `expected` decides then.
    pub fn find(&self, hash: u64, expected: Option<u64>) -> Option<Entry> {
        if let Some(cycle) = &self.cycle {
            return cycle.find(hash, expected);
        }
        let inner = self.inner.read();
        let expected = expected.and_then(|number| inner.get(number));
        if let Some(entry) = expected.filter(|entry| entry.hash == hash) {
            return Some(entry);
        }
        inner.by_hash.get(&hash).and_then(|number| inner.get(*number))
    }

    /// The picture of that number.
    pub fn get(&self, number: u64) -> Option<Entry> {
        self.inner.read().get(number)
    }

    /// The newest picture.
    pub fn newest(&self) -> Option<Entry> {
        self.inner.read().entries.back().copied()
    }

    /// Number of the next picture.
    pub fn next_number(&self) -> u64 {
        self.newest().map_or(0, |entry| entry.number + 1)
    }

    /// Packets of all pictures so far.
    pub fn packets_so_far(&self) -> u64 {
        self.inner.read().packets
    }

    /// Keeps the beginning of a window that may become longer than what is remembered. The picture
    /// must be still to come.
    pub fn mark(&self, number: u64) {
        let marks = &mut self.inner.write().marks;
        marks.insert(number, None);
        if marks.len() > MARKS_MAX {
            marks.pop_first();
        }
    }

    /// Packets of the pictures `from..to`; `None` when `from` is forgotten and not marked, or `to`
    /// is not published yet.
    pub fn packets(&self, from: u64, to: u64) -> Option<u64> {
        let inner = self.inner.read();
        let before = |number: u64| {
            let marked = inner.marks.get(&number).copied().flatten();
            marked.or_else(|| inner.get(number).map(|entry| entry.packets_before))
        };
        before(to)?.checked_sub(before(from)?)
    }

    /// Keyframes asked for so far.
    pub fn keyframes_asked(&self) -> u64 {
        self.keyframe_requests.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn get(&self, number: u64) -> Option<Entry> {
        let first = self.entries.front()?.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.entries.get(at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(ledger: &Ledger, number: u64, hash: u64, key: bool, discardable: bool) {
        let leaving = Leaving { number, hash, packets: 4, bytes: 4_000, key, discardable };
        ledger.publish(Instant::now(), leaving);
    }

    #[test]
    fn a_picture_needs_the_last_one_that_others_may_need() {
        let ledger = Ledger::default();
        publish(&ledger, 0, 10, true, false);
        publish(&ledger, 1, 11, false, true);
        publish(&ledger, 2, 12, false, true);
        publish(&ledger, 3, 13, false, false);
        publish(&ledger, 4, 14, false, true);
        let needs: Vec<u64> = (0..5).map(|n| ledger.get(n).unwrap().needs).collect();
        assert_eq!(needs, [0, 0, 0, 0, 3]);
        assert_eq!(ledger.packets(1, 4), Some(12));
        assert_eq!(ledger.packets(1, 5), None, "not published yet");
    }

    #[test]
    fn content_that_repeats_is_told_apart_by_what_is_expected() {
        let ledger = Ledger::default();
        for n in 0..6 {
            publish(&ledger, n, 10 + n % 3, n % 3 == 0, false);
        }
        assert_eq!(ledger.find(11, Some(1)).unwrap().number, 1);
        assert_eq!(ledger.find(11, None).unwrap().number, 4);
        assert_eq!(ledger.find(99, Some(1)), None);
    }

    #[test]
    fn a_clip_that_somebody_else_plays_goes_round_and_round() {
        let picture = |number: u64| Picture {
            number: 0,
            au: Vec::new(),
            key: number == 0,
            discardable: number == 2,
            hash: 10 + number,
        };
        let ledger = Ledger::of_clip(&(0..4).map(picture).collect::<Vec<_>>());
        let found = |hash, expected| ledger.find(hash, expected).map(|e| (e.number, e.needs));
        assert_eq!(found(13, None), Some((3, 1)), "it may begin anywhere");
        assert_eq!(found(10, Some(4)), Some((4, 4)));
        assert_eq!(found(13, Some(5)), Some((7, 5)), "two were lost");
        assert_eq!(found(11, Some(7)), Some((9, 8)), "into the next round");
        assert_eq!(found(99, Some(4)), None);
    }

    #[test]
    fn memory_is_bounded() {
        let ledger = Ledger::default();
        ledger.mark(5);
        for n in 0..ENTRIES_MAX as u64 + 10 {
            publish(&ledger, n, n, n == 0, false);
        }
        assert_eq!(ledger.get(9), None);
        assert_eq!(ledger.get(10).unwrap().number, 10);
        assert_eq!(ledger.inner.read().by_hash.len(), ENTRIES_MAX);
        assert_eq!(ledger.packets(4, 100), None, "forgotten");
        assert_eq!(ledger.packets(5, 105), Some(400), "forgotten, but marked");
    }
}
