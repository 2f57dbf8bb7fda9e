//! Sender-side bandwidth estimate of one viewer, from its transport-wide feedback.
//!
//! After Google congestion control (draft-ietf-rmcat-gcc-02), for a sender that cannot change its
//! video: nobody encodes for this estimate, it only answers *is the path too narrow, and how
//! narrow*. It is not a pacer, and it does not decide what is left out: that is
//! [`Pressure`](crate::pressure::Pressure). Invariant: **without evidence of congestion there is
//! no estimate**; sending little, or losing packets at random, is no evidence.
//!
//! # How it works
//!
//! 1. Packets sent within 5 ms are one *burst* (a frame leaves back to back). What counts of a
//!    burst is the least delay of its packets: the queue that it found, without the time that its
//!    own bytes take (`bursts`).
//! 2. The slope of that delay over 20 bursts against an adaptive threshold says overuse, normal or
//!    underuse (`trend`).
//! 3. The *standing queue* is the least delay of the bursts of the last 150 ms above the least of
//!    the last 5-10 s (`bursts`). Jitter and a large frame leave no standing queue. Overuse without
//!    one is ignored.
//! 4. On congestion the estimate becomes 0.85 of the rate that arrived *while the queue stood*:
//!    then the bottleneck was busy all along, whatever the stream did before (`rate`).
//! 5. Loss counts when even its lower confidence bound is above 10 % beyond the loss that the path
//!    shows at low rates too; the estimate becomes 0.85 of what arrived (`loss`).
//! 6. Otherwise it grows by 8 % a second while it is used, and at once to whatever arrived without
//!    a queue. It is dropped when it has not mattered for 5 s (above twice the sent rate).
//!
//! # Lies
//!
//! Arrival times are the viewer's. A jump of more than 3 s between neighbours discards what was
//! learnt; smaller lies give a wrong estimate, which harms only the viewer that told them: at worst
//! it is sent the stream's rate, as a new viewer is.
//!
//! Memory is fixed (no heap). Cost is linear in the packets of a feedback.

mod bursts;
mod loss;
mod rate;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;
mod trend;

use std::time::{Duration, Instant};

use bursts::Bursts;
use loss::Loss;
use rate::Rate;
use trend::Trend;

/// What became of one packet, in the order of sending. Packets that the feedback does not cover are
/// not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PacketResult {
    /// When it left, in microseconds of our clock.
    pub(crate) sent_us: u64,
    /// Its size on the wire.
    pub(crate) bytes: u32,
    /// When it arrived, in microseconds of the viewer's clock; `None` when it did not.
    pub(crate) arrived_us: Option<i64>,
}

/// How the delay moves, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Usage {
    /// It does not.
    #[default]
    Normal,
    /// It grows: more is sent than gets through.
    Overuse,
    /// It shrinks: a queue drains.
    Underuse,
}

/// What the latest feedback says, for [`Pressure`](crate::pressure::Pressure).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Evidence {
    /// Bits per second that the path carries; `None`: nothing says that it is too narrow.
    pub(crate) estimate_bps: Option<u64>,
    /// Whether at this moment more is sent than gets through.
    pub(crate) congested: bool,
    /// The standing queue: how much later packets arrive than they could.
    pub(crate) queue: Duration,
    /// Share of packets lost, beyond doubt and beyond what the path always loses.
    pub(crate) excess_loss: f64,
    /// Bytes that this feedback reports lost.
    pub(crate) lost_bytes: u64,
    /// Round trip as last told, or 100 ms.
    pub(crate) rtt: Duration,
}

/// Share of the measured rate that becomes the estimate: the rest drains the queue.
const BETA: f64 = 0.85;
/// Growth per second while there is no congestion.
const GROWTH: f64 = 0.08;
/// Standing queue below which a growing delay means nothing.
const QUEUE_MIN_US: i64 = 15_000;
/// On a restless path it takes at most so much more.
const RESTLESS_MAX_US: i64 = 40_000;
/// Standing queue that together with some loss is congestion, though it no longer grows: it is full.
const QUEUE_FULL_US: i64 = 40_000;
/// Loss beyond doubt that makes such a queue a full one.
const LOSS_OF_FULL_QUEUE: f64 = 0.02;
/// Loss beyond doubt that is congestion by itself.
const LOSS_HIGH: f64 = 0.10;
/// An estimate that nothing confirmed for this long is dropped once it is above twice the sent rate.
const FORGET: Duration = Duration::from_secs(5);
/// A feedback stands for no more time than this, in seconds.
const SHRINK_MAX_S: f64 = 0.2;
/// Rates are measured over this time.
const RATE_WINDOW_US: i64 = 500_000;
/// Least length of a busy time that a rate is taken from.
const BUSY_MIN_US: i64 = 50_000;
/// Delays of neighbours further apart than this are another clock.
const CLOCK_JUMP_US: i64 = 3_000_000;
/// No path is taken to be narrower than this: a keyframe would take minutes.
const ESTIMATE_MIN: f64 = 10_000.0;
/// Round trip before one was measured.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);

/// The estimator of one viewer.
#[derive(Debug, Clone)]
pub(crate) struct Estimator {
    bursts: Bursts,
    trend: Trend,
    sent: Rate,
    acked: Rate,
    loss: Loss,
    estimate: Option<f64>,
    congested: bool,
    congested_at: Option<Instant>,
    updated_at: Option<Instant>,
    last_delay_us: Option<i64>,
    rtt: Duration,
    lost_bytes: u64,
}

impl Estimator {
    /// An estimator that knows nothing: no estimate until evidence.
    pub(crate) fn new() -> Self {
        Self {
            bursts: Bursts::default(),
            trend: Trend::default(),
            sent: Rate::default(),
            acked: Rate::default(),
            loss: Loss::default(),
            estimate: None,
            congested: false,
            congested_at: None,
            updated_at: None,
            last_delay_us: None,
            rtt: RTT_UNKNOWN,
            lost_bytes: 0,
        }
    }

    /// Takes one feedback in. Repairs and padding count like any other packet.
    pub(crate) fn feedback(
        &mut self,
        now: Instant,
        results: &[PacketResult],
        rtt: Option<Duration>,
    ) {
        if let Some(rtt) = rtt {
            self.rtt = rtt;
        }
        let since = self.updated_at.replace(now).map_or(Duration::ZERO, |at| {
            now.saturating_duration_since(at).min(Duration::from_secs(10))
        });
        self.loss.age(since);
        self.lost_bytes = 0;
        for result in results {
            self.packet(result);
        }
        self.update(now, since);
    }

    /// Bits per second that the path carries. `None`: nothing says that it is too narrow.
    pub(crate) fn estimate_bps(&self) -> Option<u64> {
        self.estimate.map(whole)
    }

    /// Bits per second that arrived lately.
    pub(crate) fn acked_bps(&self) -> u64 {
        whole(self.acked.bps(RATE_WINDOW_US))
    }

    /// Share of packets that did not arrive, over about a second.
    pub(crate) fn loss(&self) -> f64 {
        self.loss.share()
    }

    /// How the delay moves.
    pub(crate) fn usage(&self) -> Usage {
        self.trend.usage()
    }

    /// Everything that decides about thinning.
    pub(crate) fn evidence(&self) -> Evidence {
        Evidence {
            estimate_bps: self.estimate_bps(),
            congested: self.congested,
            queue: Duration::from_micros(self.bursts.standing_us().unsigned_abs()),
            excess_loss: self.loss.excess(),
            lost_bytes: self.lost_bytes,
            rtt: self.rtt,
        }
    }

    fn packet(&mut self, result: &PacketResult) {
        let sent_us = i64::try_from(result.sent_us).unwrap_or(i64::MAX);
        self.sent.add(sent_us, result.bytes);
        self.loss.add(result.arrived_us.is_none());
        let Some(arrived_us) = result.arrived_us else {
            self.lost_bytes = self.lost_bytes.saturating_add(u64::from(result.bytes));
            return;
        };
        let delay_us = arrived_us.saturating_sub(sent_us);
        if let Some(last) = self.last_delay_us.replace(delay_us)
            && delay_us.saturating_sub(last).saturating_abs() > CLOCK_JUMP_US
        {
            self.bursts = Bursts::default();
            self.trend = Trend::default();
            self.acked = Rate::default();
        }
        self.acked.add(arrived_us, result.bytes);
        if let Some(burst) = self.bursts.add(sent_us, arrived_us, delay_us) {
            self.trend.add(burst.arrived_us, burst.delay_us);
        }
    }

    fn update(&mut self, now: Instant, since: Duration) {
        let queue_us = self.bursts.standing_us();
        // Without a new loss in it, a feedback is no evidence of loss.
        let doubtless = if self.lost_bytes == 0 { 0.0 } else { self.loss.excess() };
        let restless_us = QUEUE_MIN_US + (2 * self.bursts.jitter_us()).min(RESTLESS_MAX_US);
        let delayed = (self.trend.usage() == Usage::Overuse && queue_us >= restless_us)
            || (queue_us >= QUEUE_FULL_US && doubtless > LOSS_OF_FULL_QUEUE);
        self.congested = delayed || doubtless > LOSS_HIGH;
        if self.congested {
            self.congested_at = Some(now);
            self.shrink(delayed, since);
        } else if self.estimate.is_some() {
            self.grow(since, queue_us);
        } else {
            return;
        }
        let sent = self.sent.bps(RATE_WINDOW_US);
        self.learn_loss(now, sent, queue_us);
        self.forget(now, sent);
    }

    /// The rate that arrived while the queue stood, which is what the bottleneck can do.
    fn busy_bps(&self) -> Option<f64> {
        let busy_us = self.bursts.busy_us()?;
        (busy_us >= BUSY_MIN_US).then(|| self.acked.bps(busy_us.min(RATE_WINDOW_US)))
    }

    fn shrink(&mut self, delayed: bool, since: Duration) {
        let acked = self.acked.bps(RATE_WINDOW_US);
        let sent = self.sent.bps(RATE_WINDOW_US);
        let narrow = match self.estimate {
            _ if delayed => match (self.busy_bps(), self.estimate) {
                (Some(busy), _) => BETA * busy,
                (None, Some(estimate)) => estimate,
                (None, None) => BETA * acked,
            },
            // What arrives of little says nothing of how much could.
            Some(estimate) if sent < estimate => {
                estimate * (1.0 - self.loss.excess() * since.as_secs_f64().min(SHRINK_MAX_S))
            }
            _ => BETA * acked,
        };
        self.estimate = Some(narrow.max(ESTIMATE_MIN));
    }

    fn grow(&mut self, since: Duration, queue_us: i64) {
        let acked = self.acked.bps(RATE_WINDOW_US);
        let Some(estimate) = self.estimate.as_mut() else { return };
        if self.trend.usage() == Usage::Underuse {
            return;
        }
        // An estimate that is not used is not confirmed either.
        if acked >= *estimate / 2.0 {
            *estimate *= 1.0 + GROWTH * since.as_secs_f64();
        }
        if queue_us < QUEUE_MIN_US {
            *estimate = estimate.max(acked);
        }
    }

    fn forget(&mut self, now: Instant, sent: f64) {
        let stale = self.congested_at.is_none_or(|at| now.saturating_duration_since(at) >= FORGET);
        if stale && self.estimate.is_some_and(|estimate| estimate > 2.0 * sent) {
            self.estimate = None;
        }
    }

    /// Loss that stays although far less is sent than the path carries is the path's own.
    fn learn_loss(&mut self, now: Instant, sent: f64, queue_us: i64) {
        let Some(estimate) = self.estimate else { return };
        let below = sent < estimate * BETA;
        self.loss.learn(now, below && queue_us < QUEUE_MIN_US);
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
pub(crate) fn whole(bps: f64) -> u64 {
    bps as u64
}
