//! Thins one viewer that cannot take the whole stream, by itself.
//!
//! It is not an estimator ([`gcc`](crate::gcc)) and sends nothing: it says of each live frame
//! whether this viewer gets it. Invariants: a viewer is gated by evidence only, never at the start;
//! what it is given always decodes (a frame that others refer to is left out only together with
//! all that follow until the next keyframe); nothing here looks at another viewer.
//!
//! # The states
//!
//! | level | it is given |
//! |---|---|
//! | [`Level::Full`] | everything |
//! | [`Level::NoDisposable`] | all but the frames that no other refers to; of these as many as a probe allows |
//! | [`Level::KeyframesOnly`] | nothing until the next keyframe |
//!
//! | from | to | when | counted |
//! |---|---|---|---|
//! | Full | NoDisposable | congested, and the estimate is below the stream's rate | `thinned` |
//! | Full, NoDisposable | KeyframesOnly | congested, and even without disposable frames the backlog would take over 1.5 s to drain | `stopped` |
//! | Full, NoDisposable | KeyframesOnly | no feedback for 500 ms although media was sent | `silenced` |
//! | NoDisposable | KeyframesOnly | by the estimate, what was given takes over 0.5 s to arrive | `overrun` |
//! | KeyframesOnly | NoDisposable | a keyframe comes and the backlog has drained (or will have in 200 ms) | `resumed` |
//! | NoDisposable | Full | a probe reached the stream's rate | `restored` |
//!
//! # Probing
//!
//! Going up is done by sending more. A probe begins 2 s after the last trouble: disposable frames
//! are let through up to an allowance that starts a quarter above what is given anyway and grows by
//! half each 200 ms and round trip while no queue builds up. The first sign of a queue ends it, so
//! that a failed probe costs less than 100 ms of delay; the next one comes after 1, 2, then always
//! 3 s. If the allowance reaches the stream's rate the viewer is Full again. If that fails within
//! 4 s the wait doubles, 2 s to 16 s.
//!
//! # Streams without disposable frames
//!
//! Then there is nothing to leave out but whole ends of groups of pictures: a viewer whose path is
//! too narrow gets each keyframe and what follows it until the estimate's budget is used up, and a
//! still picture until the next keyframe. Encoders that mark disposable frames are worth having.

use std::time::{Duration, Instant};

use crate::gcc::Evidence;

#[cfg(test)]
mod tests;

/// What a viewer is given at present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Level {
    /// The whole stream.
    #[default]
    Full,
    /// No frames that no other frame refers to, but what a probe lets through.
    NoDisposable,
    /// Nothing until the next keyframe, then `NoDisposable`.
    KeyframesOnly,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admit {
    /// It is sent.
    Send,
    /// It is left out; what follows still decodes.
    SkipDisposable,
    /// It is left out, and so is everything until a keyframe.
    SkipUntilKey,
}

/// The stream's rates over about the last second, with headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Of all frames.
    pub(crate) full_bps: u64,
    /// Of the frames that others refer to.
    pub(crate) reference_bps: u64,
}

/// A change of level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Before.
    pub(crate) from: Level,
    /// Now.
    pub(crate) to: Level,
}

/// How often what happened. All values only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Transitions {
    /// Full to NoDisposable.
    pub(crate) thinned: u64,
    /// To KeyframesOnly, because the backlog would not drain.
    pub(crate) stopped: u64,
    /// To KeyframesOnly, because the viewer fell silent.
    pub(crate) silenced: u64,
    /// NoDisposable to KeyframesOnly, because the budget is used up.
    pub(crate) overrun: u64,
    /// KeyframesOnly to NoDisposable.
    pub(crate) resumed: u64,
    /// NoDisposable to Full.
    pub(crate) restored: u64,
    /// Probes begun.
    pub(crate) probes: u64,
    /// Probes ended by a sign of congestion.
    pub(crate) probes_failed: u64,
}

/// Feedback missing for this long while media was sent is silence.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);
/// A backlog that takes longer to drain is dropped.
const DRAIN_MAX: Duration = Duration::from_millis(1_500);
/// By the estimate, so much may be on its way before frames are left out.
const BACKLOG_MAX: f64 = 0.5;
/// So much more, in seconds, after a keyframe that alone went beyond it.
const BACKLOG_AFTER_KEY: f64 = 0.25;
/// A keyframe is taken when the backlog drains within this.
const NEARLY_DRAINED: Duration = Duration::from_millis(200);
/// A queue below this is none.
const QUEUE_NONE: Duration = Duration::from_millis(25);
/// A queue that grows by this ends a probe.
const QUEUE_PROBE_MAX: Duration = Duration::from_millis(50);
/// Loss beyond doubt that ends a probe.
const PROBE_LOSS_MAX: f64 = 0.05;
/// The estimate is this share of what was measured; a drain goes at the measured rate.
const ESTIMATE_SHARE: f64 = 0.85;
const PROBE_START: f64 = 1.25;
const PROBE_GROWTH: f64 = 1.5;
const PROBE_STEP: Duration = Duration::from_millis(200);
/// A probe that cannot take its next step for this long has failed.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// First wait after a fall, and between probes at first and at most.
const WAIT_FIRST: Duration = Duration::from_secs(2);
const PROBE_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
/// Wait after Full failed, at first and at most.
const FULL_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));
/// Full has succeeded after this long.
const TRIAL: Duration = Duration::from_secs(4);
/// Bytes of disposable frames that may go at once in a probe: one frame of a 2.5 Mbit/s stream.
const PROBE_BURST: f64 = 8_000.0;
/// Waits between two wishes for a keyframe, at first and at most.
const KEY_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));

#[derive(Debug, Clone, Copy)]
struct Probe {
    allowance_bps: f64,
    /// Bytes of disposable frames that may go now.
    tokens: f64,
    filled_at: Instant,
    stepped_at: Instant,
    queue_before: Duration,
}

/// The state machine of one viewer.
#[derive(Debug, Clone)]
pub(crate) struct Pressure {
    level: Level,
    rates: Rates,
    /// The last estimate, bits per second, while not Full.
    estimate: Option<f64>,
    /// Bytes that by the estimate have not arrived yet, and when that was true.
    backlog: f64,
    backlog_at: Option<Instant>,
    /// Most backlog, in seconds, that a reference frame may find.
    backlog_max: f64,
    drained_at: Option<Instant>,
    probe: Option<Probe>,
    probe_due: Option<Instant>,
    probe_wait: Duration,
    full_since: Option<Instant>,
    full_wait: Duration,
    key_due: Option<Instant>,
    key_wait: Duration,
    transitions: Transitions,
}

impl Pressure {
    /// A viewer that is given everything.
    pub(crate) fn new() -> Self {
        Self {
            level: Level::Full,
            rates: Rates::default(),
            estimate: None,
            backlog: 0.0,
            backlog_at: None,
            backlog_max: BACKLOG_MAX,
            drained_at: None,
            probe: None,
            probe_due: None,
            probe_wait: PROBE_WAIT.0,
            full_since: None,
            full_wait: FULL_WAIT.0,
            key_due: None,
            key_wait: KEY_WAIT.0,
            transitions: Transitions::default(),
        }
    }

    /// What the viewer is given at present.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// How often what happened.
    pub(crate) fn transitions(&self) -> Transitions {
        self.transitions
    }

    /// After each feedback. `oldest_unacked`: age of the oldest packet that no feedback has covered.
    pub(crate) fn on_feedback(
        &mut self,
        now: Instant,
        evidence: &Evidence,
        rates: Rates,
        oldest_unacked: Option<Duration>,
    ) -> Option<Change> {
        self.rates = rates;
        if let Some(bps) = evidence.estimate_bps {
            self.estimate = Some(bps as f64);
        }
        self.settle(now, evidence);
        if oldest_unacked.is_some_and(|age| age >= SILENCE + evidence.rtt) {
            return self.on_silence(now);
        }
        match self.level {
            Level::Full => self.judge_full(now, evidence),
            Level::NoDisposable => self.judge_thin(now, evidence),
            Level::KeyframesOnly => None,
        }
    }

    /// When media was sent and no feedback came for [`SILENCE`] (plus a round trip).
    pub(crate) fn on_silence(&mut self, now: Instant) -> Option<Change> {
        if self.level == Level::KeyframesOnly {
            return None;
        }
        self.transitions.silenced += 1;
        self.fail_probe(now);
        self.stop(now, Duration::ZERO)
    }

    /// Whether a live frame of `bytes` goes to the viewer. Must be asked of every frame, once.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        key: bool,
        discardable: bool,
        bytes: usize,
    ) -> Admit {
        match self.level {
            Level::Full => return Admit::Send,
            Level::KeyframesOnly => {
                let ready = self.drained_at.is_none_or(|at| now + NEARLY_DRAINED >= at);
                if !key || !ready {
                    return Admit::SkipUntilKey;
                }
                self.transitions.resumed += 1;
                self.enter(Level::NoDisposable);
                self.key_due = None;
                self.probe_due = self.probe_due.max(Some(now + WAIT_FIRST));
            }
            Level::NoDisposable if discardable && !key => {
                if !self.probe_admits(now, bytes) {
                    return Admit::SkipDisposable;
                }
            }
            Level::NoDisposable => {}
        }
        let ahead = self.backlog_seconds(now);
        if key {
            let after = ahead + self.seconds(bytes);
            self.backlog_max = BACKLOG_MAX.max(after + BACKLOG_AFTER_KEY);
        } else if ahead > self.backlog_max {
            self.transitions.overrun += 1;
            self.stop(now, Duration::from_secs_f64(ahead.min(10.0)));
            return Admit::SkipUntilKey;
        }
        self.backlog += bytes as f64;
        Admit::Send
    }

    /// Whether a keyframe should be asked for on this viewer's behalf: it waits for one, and its
    /// path has room again. True once, then again after 2 s to 16 s of waiting.
    pub(crate) fn wants_keyframe(&mut self, now: Instant) -> bool {
        if self.level != Level::KeyframesOnly || self.key_due.is_none_or(|due| now < due) {
            return false;
        }
        self.key_due = Some(now + self.key_wait);
        self.key_wait = (self.key_wait * 2).min(KEY_WAIT.1);
        true
    }

    /// The rate at which a large frame should leave so that it does not overflow the bottleneck's
    /// queue. `None`: nothing is known, pace as for a new viewer.
    pub(crate) fn pace_bps(&self) -> Option<u64> {
        (self.level != Level::Full).then_some(self.estimate).flatten().map(|bps| (bps * 1.5) as u64)
    }

    fn judge_full(&mut self, now: Instant, evidence: &Evidence) -> Option<Change> {
        let trial = self.full_since.map(|since| now.saturating_duration_since(since) < TRIAL);
        if trial == Some(false) {
            self.full_since = None;
            self.full_wait = FULL_WAIT.0;
            self.probe_wait = PROBE_WAIT.0;
        }
        let estimate = evidence.estimate_bps?;
        if !evidence.congested || estimate >= self.rates.full_bps {
            return None;
        }
        let wait = if trial == Some(true) {
            self.full_wait = (self.full_wait * 2).min(FULL_WAIT.1);
            self.full_wait
        } else {
            WAIT_FIRST
        };
        self.probe_due = Some(now + wait);
        if self.hopeless(evidence) {
            self.transitions.stopped += 1;
            return self.stop(now, evidence.queue);
        }
        self.transitions.thinned += 1;
        self.backlog = evidence.queue.as_secs_f64() * estimate as f64 / 8.0;
        self.backlog_at = Some(now);
        self.backlog_max = BACKLOG_MAX;
        Some(self.enter(Level::NoDisposable))
    }

    fn judge_thin(&mut self, now: Instant, evidence: &Evidence) -> Option<Change> {
        if evidence.congested {
            self.fail_probe(now);
            if self.hopeless(evidence) {
                self.transitions.stopped += 1;
                return self.stop(now, evidence.queue);
            }
            self.probe_due = self.probe_due.max(Some(now + self.probe_wait));
            return None;
        }
        let Some(mut probe) = self.probe else {
            let due = self.probe_due.is_none_or(|due| now >= due);
            if due && evidence.queue < QUEUE_NONE {
                self.begin_probe(now, evidence);
            }
            return None;
        };
        let grown = evidence.queue.saturating_sub(probe.queue_before);
        let waited = now.saturating_duration_since(probe.stepped_at);
        if grown > QUEUE_PROBE_MAX
            || evidence.excess_loss > PROBE_LOSS_MAX
            || waited > PROBE_PATIENCE + evidence.rtt
        {
            self.fail_probe(now);
        } else if waited >= PROBE_STEP + evidence.rtt && grown < QUEUE_NONE {
            if probe.allowance_bps >= self.rates.full_bps as f64 {
                return Some(self.restore(now));
            }
            probe.allowance_bps *= PROBE_GROWTH;
            probe.stepped_at = now;
            self.probe = Some(probe);
        }
        None
    }

    /// Whether without disposable frames the backlog still takes too long to drain.
    fn hopeless(&self, evidence: &Evidence) -> bool {
        let Some(estimate) = self.estimate else { return false };
        let capacity = estimate / ESTIMATE_SHARE;
        let spare = capacity - self.rates.reference_bps as f64;
        let backlog = evidence.queue.as_secs_f64() * capacity + evidence.lost_bytes as f64 * 8.0;
        spare <= 0.0 || backlog / spare > DRAIN_MAX.as_secs_f64()
    }

    fn begin_probe(&mut self, now: Instant, evidence: &Evidence) {
        self.transitions.probes += 1;
        self.probe = Some(Probe {
            allowance_bps: self.rates.reference_bps as f64 * PROBE_START,
            tokens: 0.0,
            filled_at: now,
            stepped_at: now,
            queue_before: evidence.queue,
        });
    }

    fn fail_probe(&mut self, now: Instant) {
        if self.probe.take().is_some() {
            self.transitions.probes_failed += 1;
            self.probe_due = Some(now + self.probe_wait);
            self.probe_wait = (self.probe_wait * 2).min(PROBE_WAIT.1);
        }
    }

    fn probe_admits(&mut self, now: Instant, bytes: usize) -> bool {
        let reference = self.rates.reference_bps as f64;
        let Some(probe) = self.probe.as_mut() else { return false };
        let passed = now.saturating_duration_since(probe.filled_at).as_secs_f64();
        let spare = (probe.allowance_bps - reference).max(0.0) / 8.0;
        let size = bytes as f64;
        probe.tokens = (probe.tokens + passed * spare).min(PROBE_BURST.max(size));
        probe.filled_at = now;
        let admitted = probe.tokens >= size;
        if admitted {
            probe.tokens -= size;
        }
        admitted
    }

    fn restore(&mut self, now: Instant) -> Change {
        self.transitions.restored += 1;
        self.probe = None;
        self.full_since = Some(now);
        self.estimate = None;
        self.enter(Level::Full)
    }

    fn stop(&mut self, now: Instant, queue: Duration) -> Option<Change> {
        let drained_at = now + queue;
        self.drained_at = Some(drained_at);
        self.key_due = Some(drained_at);
        self.probe = None;
        self.backlog = 0.0;
        self.backlog_at = Some(drained_at);
        Some(self.enter(Level::KeyframesOnly))
    }

    fn enter(&mut self, level: Level) -> Change {
        let from = std::mem::replace(&mut self.level, level);
        Change { from, to: level }
    }

    /// Brings the modelled backlog in line with what was measured.
    fn settle(&mut self, now: Instant, evidence: &Evidence) {
        let Some(estimate) = self.estimate else { return };
        self.drain(now);
        if !evidence.congested && evidence.queue < QUEUE_NONE {
            let flying = (evidence.rtt + PROBE_STEP).as_secs_f64();
            self.backlog = self.backlog.min(estimate / 8.0 * flying);
        }
    }

    fn drain(&mut self, now: Instant) {
        let passed = self.backlog_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.backlog_at = self.backlog_at.max(Some(now));
        let bytes = self.estimate.unwrap_or(f64::MAX) / 8.0 * passed.as_secs_f64();
        self.backlog = (self.backlog - bytes).max(0.0);
    }

    fn backlog_seconds(&mut self, now: Instant) -> f64 {
        self.drain(now);
        self.seconds(self.backlog as usize)
    }

    /// How long by the estimate so many bytes take.
    fn seconds(&self, bytes: usize) -> f64 {
        self.estimate.map_or(0.0, |bps| bytes as f64 * 8.0 / bps.max(1.0))
    }
}
