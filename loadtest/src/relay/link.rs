//! One direction of a bad path: loss, delay, jitter, reordering, a bottleneck with a queue. Time
//! comes in as an argument and chance from a seed, so that equal inputs give equal outcomes. No
//! sockets. Invariant: what is not lost comes out once, and memory is bounded by [`HELD_MAX`].

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use crate::source::Noise;

/// Datagrams under way in one direction; more are lost.
const HELD_MAX: usize = 20_000;
/// Bytes of IP and UDP headers that a datagram takes on the line.
const OVERHEAD_BYTES: usize = 28;

/// How bad a direction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Impairment {
    /// Part of datagrams that is lost, 0 to 1, each by itself.
    pub loss: f64,
    /// Time under way, in milliseconds.
    pub delay_ms: f64,
    /// Up to so much more, evenly spread; order is kept.
    pub jitter_ms: f64,
    /// Part of datagrams that overtakes those before it (it is not delayed).
    pub reorder: f64,
    /// Bottleneck, bit/s; 0: none.
    pub bandwidth_bps: u64,
    /// Longest wait in the bottleneck's queue, in milliseconds; what would wait longer is lost.
    pub queue_ms: f64,
}

impl Impairment {
    /// What is wrong with it, if anything.
    pub fn mistake(&self) -> Option<String> {
        let part = |name: &str, value: f64| {
            (!(0.0..=1.0).contains(&value)).then(|| format!("{name} is a part, 0 to 1"))
        };
        let time = |name: &str, value: f64| {
            (!(0.0..=60_000.0).contains(&value)).then(|| format!("{name} is 0 to 60000"))
        };
        part("loss", self.loss)
            .or_else(|| part("reorder", self.reorder))
            .or_else(|| time("delay_ms", self.delay_ms))
            .or_else(|| time("jitter_ms", self.jitter_ms))
            .or_else(|| time("queue_ms", self.queue_ms))
    }
}

/// What a direction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LinkCounts {
    /// Came in.
    pub taken: u64,
    /// Went out.
    pub passed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost at the full queue.
    pub overflowed: u64,
}

struct Held {
    due: Instant,
    order: u64,
    bytes: Vec<u8>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    /// The heap gives its greatest: the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

/// One direction.
pub struct Link {
    rules: Impairment,
    noise: Noise,
    /// When the bottleneck has sent what it has.
    line_free: Option<Instant>,
    last_due: Option<Instant>,
    held: BinaryHeap<Held>,
    order: u64,
    counts: LinkCounts,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Link {
    /// A direction that is this bad.
    pub fn new(rules: Impairment, seed: u64) -> Self {
        Self {
            rules,
            noise: Noise::new(seed),
            line_free: None,
            last_due: None,
            held: BinaryHeap::new(),
            order: 0,
            counts: LinkCounts::default(),
        }
    }

    /// Becomes better or worse; what is under way stays as it was.
    pub fn change(&mut self, rules: Impairment) {
        self.rules = rules;
        self.line_free = None;
    }

    /// What it did so far.
    pub fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// Takes a datagram.
    pub fn push(&mut self, now: Instant, bytes: &[u8]) {
        self.counts.taken += 1;
        if self.noise.unit() < self.rules.loss {
            self.counts.lost += 1;
            return;
        }
        let Some(sent) = self.bottleneck(now, bytes.len()) else {
            self.counts.overflowed += 1;
            return;
        };
        let jitter = self.rules.jitter_ms * self.noise.unit();
        let overtakes = self.noise.unit() < self.rules.reorder;
        let ms = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1_000.0);
        let due = if overtakes {
            sent
        } else {
            let due = sent + ms(self.rules.delay_ms) + ms(jitter);
            // Jitter stretches gaps; it does not change the order.
            let due = self.last_due.map_or(due, |last| due.max(last));
            self.last_due = Some(due);
            due
        };
        if self.held.len() >= HELD_MAX {
            self.counts.overflowed += 1;
            return;
        }
        self.order += 1;
        self.held.push(Held { due, order: self.order, bytes: bytes.to_vec() });
    }

    /// When a datagram of this length has left the bottleneck; `None`: the queue is full.
    fn bottleneck(&mut self, now: Instant, len: usize) -> Option<Instant> {
        if self.rules.bandwidth_bps == 0 {
            return Some(now);
        }
        let bits = (len + OVERHEAD_BYTES) as f64 * 8.0;
        let takes = Duration::from_secs_f64(bits / self.rules.bandwidth_bps as f64);
        let begins = self.line_free.map_or(now, |free| free.max(now));
        let waits = begins.duration_since(now);
        if waits.as_secs_f64() * 1_000.0 > self.rules.queue_ms {
            return None;
        }
        self.line_free = Some(begins + takes);
        self.line_free
    }

    /// When [`Self::pop`] has something.
    pub fn due(&self) -> Option<Instant> {
        self.held.peek().map(|held| held.due)
    }

    /// The next datagram that has arrived by now.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.due()? > now {
            return None;
        }
        self.counts.passed += 1;
        self.held.pop().map(|held| held.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(link: &mut Link, until: Instant) -> Vec<(Instant, Vec<u8>)> {
        let mut out = Vec::new();
        while let Some(due) = link.due().filter(|due| *due <= until) {
            while let Some(bytes) = link.pop(due) {
                out.push((due, bytes));
            }
        }
        out
    }

    fn send(link: &mut Link, start: Instant, count: u16, every: Duration, len: usize) {
        for n in 0..count {
            let mut bytes = vec![0; len];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            link.push(start + every * u32::from(n), &bytes);
        }
    }

    fn numbers(out: &[(Instant, Vec<u8>)]) -> Vec<u16> {
        out.iter().map(|(_, b)| u16::from_be_bytes([b[0], b[1]])).collect()
    }

    #[test]
    fn a_perfect_link_is_transparent() {
        let start = Instant::now();
        let mut link = Link::new(Impairment::default(), 1);
        send(&mut link, start, 100, Duration::from_millis(1), 10);
        let out = drain(&mut link, start + Duration::from_secs(1));
        assert_eq!(numbers(&out), (0..100).collect::<Vec<_>>());
        assert_eq!(out[7].0, start + Duration::from_millis(7));
    }

    #[test]
    fn loss_is_the_part_that_was_asked_for_and_the_seed_decides_which() {
        let start = Instant::now();
        let rules = Impairment { loss: 0.05, ..Impairment::default() };
        let run = |seed| {
            let mut link = Link::new(rules, seed);
            send(&mut link, start, 20_000, Duration::from_micros(10), 10);
            numbers(&drain(&mut link, start + Duration::from_secs(1)))
        };
        let lost = 20_000 - run(1).len();
        assert!((800..1_200).contains(&lost), "{lost}");
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let start = Instant::now();
        let rules = Impairment { delay_ms: 20.0, jitter_ms: 10.0, ..Impairment::default() };
        let mut link = Link::new(rules, 3);
        send(&mut link, start, 1_000, Duration::from_millis(1), 10);
        let out = drain(&mut link, start + Duration::from_secs(9));
        assert_eq!(numbers(&out), (0..1_000).collect::<Vec<_>>());
        for (n, (at, _)) in (0_u32..).zip(&out) {
            let took = at.duration_since(start + Duration::from_millis(1) * n);
            assert!((20..=31).contains(&took.as_millis()), "{took:?}");
        }
        let mut link = Link::new(Impairment { reorder: 0.1, ..rules }, 3);
        send(&mut link, start, 1_000, Duration::from_millis(1), 10);
        let out = numbers(&drain(&mut link, start + Duration::from_secs(9)));
        assert_eq!(out.len(), 1_000);
        assert!(out.windows(2).any(|w| w[0] > w[1]));
    }

    #[test]
    fn a_bottleneck_passes_its_rate_and_queues_no_longer_than_allowed() {
        let start = Instant::now();
        let rules = Impairment { bandwidth_bps: 500_000, queue_ms: 300.0, ..Impairment::default() };
        let mut link = Link::new(rules, 1);
        // 2.5 Mbit/s for four seconds.
        send(&mut link, start, 1_000, Duration::from_millis(4), 1_222);
        let out = drain(&mut link, start + Duration::from_secs(60));
        let counts = link.counts();
        assert_eq!(counts.passed + counts.overflowed, 1_000);
        let last = out.last().unwrap().0.duration_since(start).as_secs_f64();
        let rate = counts.passed as f64 * 1_250.0 * 8.0 / last;
        assert!((rate / 500_000.0 - 1.0).abs() < 0.02, "{rate}");
        for (at, bytes) in &out {
            let n = u32::from(u16::from_be_bytes([bytes[0], bytes[1]]));
            let took = at.duration_since(start + Duration::from_millis(4) * n);
            assert!(took.as_millis() <= 321, "{took:?}");
        }
    }

    #[test]
    fn rules_that_make_no_sense_are_named() {
        assert_eq!(Impairment::default().mistake(), None);
        let bad = Impairment { loss: 1.5, ..Impairment::default() };
        assert!(bad.mistake().unwrap().contains("loss"));
        let bad = Impairment { delay_ms: f64::NAN, ..Impairment::default() };
        assert!(bad.mistake().is_some());
    }
}
