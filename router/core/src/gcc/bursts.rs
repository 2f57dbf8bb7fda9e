//! Packets to bursts, and the queue that they found.
//!
//! Not a judgement (`trend`). Invariant: what a burst's own bytes cost never counts as queue: of
//! each burst only the least delay is taken.

/// Packets sent within this time of the first are one burst.
const BURST_US: i64 = 5_000;
/// The least delay of all is kept for one to two of these.
const BASE_US: i64 = 5_000_000;
/// The standing queue is the least of this long.
const STANDING_US: i64 = 150_000;
/// Bursts looked at for it: 60 frames a second need nine.
const RECENT: usize = 16;
/// Queue above which the bottleneck counts as busy.
const BUSY_US: i64 = 10_000;

/// A bottleneck is idle so long after its queue drained.
const PAUSE_US: i64 = 150_000;
/// The mean difference of neighbours is over about so many bursts, each difference at most so much.
const JITTER_MEMORY: i64 = 32;
const JITTER_MAX_US: i64 = 100_000;

/// A complete burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Burst {
    /// When its first packet left.
    pub(crate) sent_us: i64,
    /// When the packet with the least delay arrived.
    pub(crate) arrived_us: i64,
    /// That delay; the zero is arbitrary.
    pub(crate) delay_us: i64,
}

/// The current burst and what the past ones found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bursts {
    current: Option<Burst>,
    /// Least delay in this period and in the one before.
    base: Option<(i64, i64)>,
    base_since_us: i64,
    recent: [(i64, i64); RECENT],
    recent_count: usize,
    newest_arrival_us: Option<i64>,
    busy_since_us: Option<i64>,
    last_delay_us: Option<i64>,
    jitter_us: i64,
}

impl Bursts {
    /// One more packet. Returns the burst that it ended, if it did.
    pub(crate) fn add(&mut self, sent_us: i64, arrived_us: i64, delay_us: i64) -> Option<Burst> {
        self.rebase(sent_us, delay_us);
        self.newest_arrival_us =
            Some(self.newest_arrival_us.map_or(arrived_us, |n| n.max(arrived_us)));
        let packet = Burst { sent_us, arrived_us, delay_us };
        let Some(current) = self.current.as_mut() else {
            self.current = Some(packet);
            return None;
        };
        if sent_us.saturating_sub(current.sent_us) <= BURST_US {
            if delay_us < current.delay_us {
                (current.arrived_us, current.delay_us) = (arrived_us, delay_us);
            }
            return None;
        }
        let done = *current;
        self.current = Some(packet);
        self.close(done);
        let pause_us = sent_us.saturating_sub(done.sent_us);
        if pause_us > self.above_base(done.delay_us).saturating_add(PAUSE_US) {
            // Whatever queue there was has drained meanwhile.
            self.recent_count = 0;
            self.busy_since_us = None;
        }
        Some(done)
    }

    /// The queue that even the luckiest of the latest bursts found.
    pub(crate) fn standing_us(&self) -> i64 {
        let count = self.recent_count.min(RECENT);
        let Some(newest) = self.recent[..count].iter().map(|r| r.0).max() else { return 0 };
        self.recent[..count]
            .iter()
            .filter(|r| newest.saturating_sub(r.0) <= STANDING_US)
            .map(|r| r.1)
            .min()
            .map_or(0, |delay| self.above_base(delay))
    }

    /// Mean difference of the delays of neighbours.
    pub(crate) fn jitter_us(&self) -> i64 {
        self.jitter_us
    }

    /// For how long the bottleneck has been busy, by the clock of arrival.
    pub(crate) fn busy_us(&self) -> Option<i64> {
        Some(self.newest_arrival_us?.saturating_sub(self.busy_since_us?))
    }

    fn close(&mut self, burst: Burst) {
        self.recent[self.recent_count % RECENT] = (burst.sent_us, burst.delay_us);
        self.recent_count = self.recent_count.wrapping_add(1);
        if let Some(last) = self.last_delay_us.replace(burst.delay_us) {
            let step = burst.delay_us.saturating_sub(last).saturating_abs().min(JITTER_MAX_US);
            self.jitter_us += (step - self.jitter_us) / JITTER_MEMORY;
        }
        if self.above_base(burst.delay_us) < BUSY_US {
            self.busy_since_us = None;
        } else if self.busy_since_us.is_none() {
            self.busy_since_us = Some(burst.arrived_us);
        }
    }

    fn above_base(&self, delay_us: i64) -> i64 {
        self.base.map_or(0, |(now, before)| delay_us.saturating_sub(now.min(before)).max(0))
    }

    fn rebase(&mut self, sent_us: i64, delay_us: i64) {
        let Some((now, before)) = self.base.as_mut() else {
            self.base = Some((delay_us, delay_us));
            self.base_since_us = sent_us;
            return;
        };
        if sent_us.saturating_sub(self.base_since_us) >= BASE_US {
            (*before, *now) = (*now, delay_us);
            self.base_since_us = sent_us;
        }
        *now = (*now).min(delay_us);
    }
}
