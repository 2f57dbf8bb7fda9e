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
//! Going up is done by sending more. 2 s after Full failed (1 s after a resumption), and when there
//! is no standing queue, a probe begins: disposable frames are let through up to an allowance that
//! starts a quarter above what is given anyway and grows by 1.7 each 200 ms and round trip while no
//! queue builds up; the first step beyond the measured capacity goes only 1.2 times as far. A queue
//! of 30 ms or new loss ends it, so that a failed probe costs little delay; the next one comes after
//! 1, 2, then always 3 s. What the path surely carries stays allowed. If the allowance reaches the
//! stream's rate the viewer is Full again. If that fails within 4 s, the wait doubles, 2 s to 16 s.
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
/// A backlog that takes more seconds to drain is dropped.
const DRAIN_MAX: f64 = 1.5;
/// At least this share of the path is taken to be left for draining.
const SPARE_MIN: f64 = 0.15;
/// The estimate is this share of what was measured; a drain goes at the measured rate.
const ESTIMATE_SHARE: f64 = 0.85;
/// Seconds over which the rate of the reference frames is taken: a group of pictures or two.
const REFERENCE_MEMORY: f64 = 3.0;
/// By the estimate, so many seconds may be on their way before reference frames are left out.
const BACKLOG_MAX: f64 = 0.5;
/// So many more after a keyframe that alone went beyond it.
const BACKLOG_AFTER_KEY: f64 = 0.25;
/// Disposable frames wait for less than that.
const BACKLOG_DISPOSABLE: f64 = 0.1;
/// A backlog is never waited for longer than so many seconds.
const BACKLOG_TOLD_MAX: f64 = 5.0;
/// A keyframe is taken when the backlog drains within this.
const NEARLY_DRAINED: Duration = Duration::from_millis(200);
/// Feedback within this and a round trip after a resumption is about what was before.
const DEAF: Duration = Duration::from_millis(100);
/// A queue below this is none.
const QUEUE_NONE: Duration = Duration::from_millis(25);
/// A queue that grows by this ends a probe.
const QUEUE_PROBE_MAX: Duration = Duration::from_millis(30);
/// A queue that grows by this keeps a probe from going on.
const QUEUE_STEP_MAX: Duration = Duration::from_millis(10);
/// A queue that moved by less than this for so long is not a queue.
const QUEUE_CALM: Duration = Duration::from_millis(15);
const CALM: Duration = Duration::from_secs(1);
/// Loss beyond doubt that ends a probe.
const PROBE_LOSS_MAX: f64 = 0.05;
const PROBE_START: f64 = 1.25;
const PROBE_GROWTH: f64 = 1.7;
const PROBE_CAREFUL: f64 = 1.2;
const PROBE_STEP: Duration = Duration::from_millis(200);
/// A probe that cannot take its next step for this long has failed.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Wait between probes, at first and at most.
const PROBE_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
/// Wait after a resumption.
const WAIT_RESUMED: Duration = Duration::from_secs(1);
/// Wait after Full failed, at first and at most.
const FULL_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));
/// Full has succeeded after this long.
const TRIAL: Duration = Duration::from_secs(4);
/// Share of the estimate that remains allowed after a failed probe.
const ALLOWANCE_SURE: f64 = 0.85;
/// Bytes of disposable frames that may go at once: one frame of a 2.5 Mbit/s stream.
const TOKENS_MAX: f64 = 8_000.0;
/// Pace, as a multiple of the estimate (itself 0.85 of the path) and of a probe's allowance.
const PACE: f64 = 1.1;
const PACE_PROBE: f64 = 1.0;
/// Waits between two wishes for a keyframe, at first and at most.
const KEY_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));

#[derive(Debug, Clone, Copy)]
struct Probe {
    stepped_at: Instant,
    queue_before: Duration,
}

/// The state machine of one viewer.
#[derive(Debug, Clone)]
pub(crate) struct Pressure {
    level: Level,
    rates: Rates,
    /// Reference rate over some seconds: a keyframe makes the last second's jump.
    reference_bps: f64,
    /// The last estimate, bits per second; `None` while Full.
    estimate: Option<f64>,
    heard_at: Option<Instant>,
    /// Bytes lost since the level was entered, fading: they must be sent again.
    lost: f64,
    /// Bytes that by the estimate have not arrived yet, and when that was true.
    backlog: f64,
    backlog_at: Option<Instant>,
    /// Most backlog, in seconds, that a reference frame may find.
    backlog_max: f64,
    drained_at: Option<Instant>,
    resumed_at: Option<Instant>,
    rtt: Duration,
    /// Rate up to which disposable frames are let through, their bytes that may go now, and when
    /// that was true.
    allowance: f64,
    tokens: f64,
    tokens_at: Option<Instant>,
    probe: Option<Probe>,
    probe_due: Option<Instant>,
    probe_wait: Duration,
    /// Since when the queue has been what it is.
    calm: Option<(Instant, Duration)>,
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
            reference_bps: 0.0,
            estimate: None,
            heard_at: None,
            lost: 0.0,
            backlog: 0.0,
            backlog_at: None,
            backlog_max: BACKLOG_MAX,
            drained_at: None,
            resumed_at: None,
            rtt: Duration::ZERO,
            allowance: 0.0,
            tokens: 0.0,
            tokens_at: None,
            probe: None,
            probe_due: None,
            probe_wait: PROBE_WAIT.0,
            calm: None,
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
    ///
    /// A change to [`Level::KeyframesOnly`] from here means that what waits to be sent, repairs
    /// included, is to be dropped: it would arrive too late.
    pub(crate) fn on_feedback(
        &mut self,
        now: Instant,
        evidence: &Evidence,
        rates: Rates,
        oldest_unacked: Option<Duration>,
    ) -> Option<Change> {
        self.hear(now, evidence, rates);
        if oldest_unacked.is_some_and(|age| age >= SILENCE + evidence.rtt) {
            let silence = self.on_silence(now);
            if silence.is_some() {
                return silence;
            }
        }
        match self.level {
            Level::Full => self.judge_full(now, evidence),
            Level::NoDisposable if !self.deaf(now) => self.judge_thin(now, evidence),
            Level::NoDisposable | Level::KeyframesOnly => None,
        }
    }

    /// When media was sent and no feedback came for [`SILENCE`] (plus a round trip). A change means
    /// the same as one from [`Pressure::on_feedback`].
    pub(crate) fn on_silence(&mut self, now: Instant) -> Option<Change> {
        let since = self.resumed_at.map(|at| now.saturating_duration_since(at));
        if self.level == Level::KeyframesOnly || since.is_some_and(|s| s < SILENCE + self.rtt) {
            return None;
        }
        self.transitions.silenced += 1;
        self.fail_probe(now);
        Some(self.stop(now, Duration::ZERO))
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
                self.resume(now);
            }
            Level::NoDisposable if discardable && !key => {
                if !self.allows(now, bytes) {
                    return Admit::SkipDisposable;
                }
            }
            Level::NoDisposable => {}
        }
        let ahead = self.backlog_seconds(now);
        if key {
            let after = ahead + self.seconds(bytes as f64);
            self.backlog_max = BACKLOG_MAX.max(after + BACKLOG_AFTER_KEY);
        } else if ahead > self.backlog_max {
            self.transitions.overrun += 1;
            self.stop(now, Duration::from_secs_f64(ahead.min(BACKLOG_TOLD_MAX)));
            return Admit::SkipUntilKey;
        }
        self.backlog += bytes as f64;
        Admit::Send
    }

    /// Whether a keyframe should be asked for on this viewer's behalf: it waits for one, and its
    /// path has room again. True once per stop, with 2 s to 16 s between two wishes.
    pub(crate) fn wants_keyframe(&mut self, now: Instant) -> bool {
        if self.level != Level::KeyframesOnly || self.key_due.is_none_or(|due| now < due) {
            return false;
        }
        self.key_due = Some(now + self.key_wait);
        self.key_wait = (self.key_wait * 2).min(KEY_WAIT.1);
        true
    }

    /// The rate at which frames should leave so that they do not overflow the bottleneck's queue.
    /// `None`: nothing is known, pace as for a new viewer.
    pub(crate) fn pace_bps(&self) -> Option<u64> {
        let estimate = self.estimate.filter(|_| self.level != Level::Full)?;
        Some(crate::gcc::whole((estimate * PACE).max(self.allowance * PACE_PROBE)))
    }

    fn hear(&mut self, now: Instant, evidence: &Evidence, rates: Rates) {
        let since = self
            .heard_at
            .replace(now)
            .map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64().min(1.0));
        self.rates = rates;
        self.rtt = evidence.rtt;
        let reference = rates.reference_bps as f64;
        let first = self.reference_bps <= 0.0;
        let share = if first { 1.0 } else { since / (since + REFERENCE_MEMORY) };
        self.reference_bps += (reference - self.reference_bps) * share;
        if self.level == Level::KeyframesOnly || self.deaf(now) {
            self.lost = 0.0;
        } else {
            self.lost = self.lost / (1.0 + since) + evidence.lost_bytes as f64;
        }
        if let Some(bps) = evidence.estimate_bps {
            self.estimate = Some(bps as f64);
        }
        let moved = self.calm.is_none_or(|(_, queue)| evidence.queue.abs_diff(queue) > QUEUE_CALM);
        if moved || evidence.congested {
            self.calm = Some((now, evidence.queue));
        }
        self.settle(now, evidence);
    }

    /// What is told so soon after a resumption is about what was sent before.
    fn deaf(&self, now: Instant) -> bool {
        let until = self.resumed_at.map(|at| at + self.rtt + DEAF);
        until.is_some_and(|until| now < until)
    }

    fn judge_full(&mut self, now: Instant, evidence: &Evidence) -> Option<Change> {
        let trial = self.full_since.map(|since| now.saturating_duration_since(since) < TRIAL);
        if trial == Some(false) {
            self.full_since = None;
            self.full_wait = FULL_WAIT.0;
            self.probe_wait = PROBE_WAIT.0;
            self.key_wait = KEY_WAIT.0;
        }
        let estimate = evidence.estimate_bps?;
        if !evidence.congested || estimate >= self.rates.full_bps {
            return None;
        }
        self.probe_due = Some(now + self.full_wait);
        if trial == Some(true) {
            self.full_wait = (self.full_wait * 2).min(FULL_WAIT.1);
        }
        self.allowance = 0.0;
        if self.hopeless(evidence) {
            self.transitions.stopped += 1;
            return Some(self.stop(now, evidence.queue));
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
            self.probe_due = self.probe_due.max(Some(now + self.probe_wait));
            if self.hopeless(evidence) {
                self.transitions.stopped += 1;
                return Some(self.stop(now, evidence.queue));
            }
            return None;
        }
        let Some(probe) = self.probe else {
            let due = self.probe_due.is_none_or(|due| now >= due);
            if due && self.is_calm(now, evidence) {
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
        } else if waited >= PROBE_STEP + evidence.rtt && grown < QUEUE_STEP_MAX {
            if self.allowance >= self.rates.full_bps as f64 {
                return Some(self.restore(now));
            }
            self.allowance = self.next_allowance();
            self.probe = Some(Probe { stepped_at: now, ..probe });
        }
        None
    }

    /// No queue, or one that has not moved for long: then it is not a queue but the path.
    fn is_calm(&self, now: Instant, evidence: &Evidence) -> bool {
        evidence.queue < QUEUE_NONE
            || self.calm.is_some_and(|(at, _)| now.saturating_duration_since(at) >= CALM)
    }

    /// Whether there is a backlog that even without disposable frames takes too long to drain.
    fn hopeless(&self, evidence: &Evidence) -> bool {
        let Some(estimate) = self.estimate else { return false };
        let capacity = (estimate / ESTIMATE_SHARE).max(1.0);
        let needed = self.reference_bps.min(self.rates.reference_bps as f64);
        let spare = (1.0 - needed / capacity).max(SPARE_MIN);
        let backlog = evidence.queue.as_secs_f64() + self.lost * 8.0 / capacity;
        backlog / spare > DRAIN_MAX
    }

    fn begin_probe(&mut self, now: Instant, evidence: &Evidence) {
        self.transitions.probes += 1;
        self.allowance = self.allowance.max(self.reference_bps) * PROBE_START;
        self.probe = Some(Probe { stepped_at: now, queue_before: evidence.queue });
    }

    /// Beyond what the path was measured to carry, the first step is a small one.
    fn next_allowance(&self) -> f64 {
        let next = self.allowance * PROBE_GROWTH;
        let careful = self.estimate.unwrap_or(0.0) / ESTIMATE_SHARE * PROBE_CAREFUL;
        if self.allowance < careful { next.min(careful) } else { next }
    }

    /// Ends the probe, if there is one; of the allowance there remains what the path can surely do.
    fn fail_probe(&mut self, now: Instant) {
        let sure = self.estimate.unwrap_or(0.0) * ALLOWANCE_SURE;
        self.allowance = if self.probe.is_some() { self.allowance.min(sure) } else { 0.0 };
        if self.probe.take().is_some() {
            self.transitions.probes_failed += 1;
            self.probe_due = Some(now + self.probe_wait);
            self.probe_wait = (self.probe_wait * 2).min(PROBE_WAIT.1);
        }
    }

    /// Whether a disposable frame is within the allowance.
    fn allows(&mut self, now: Instant, bytes: usize) -> bool {
        let passed = self
            .tokens_at
            .replace(now)
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let spare = (self.allowance - self.reference_bps).max(0.0) / 8.0;
        let size = bytes as f64;
        self.tokens = (self.tokens + passed.as_secs_f64() * spare).min(TOKENS_MAX.max(size));
        let room = self.probe.is_some() || self.backlog_seconds(now) < BACKLOG_DISPOSABLE;
        if spare <= 0.0 || !room || self.tokens < size {
            return false;
        }
        self.tokens -= size;
        true
    }

    fn resume(&mut self, now: Instant) {
        self.transitions.resumed += 1;
        self.enter(Level::NoDisposable);
        self.resumed_at = Some(now);
        self.lost = 0.0;
        self.probe_due = self.probe_due.max(Some(now + WAIT_RESUMED));
    }

    fn restore(&mut self, now: Instant) -> Change {
        self.transitions.restored += 1;
        self.probe = None;
        self.full_since = Some(now);
        self.estimate = None;
        self.enter(Level::Full)
    }

    fn stop(&mut self, now: Instant, queue: Duration) -> Change {
        let drained_at = now + queue;
        self.drained_at = Some(drained_at);
        self.key_due = self.key_due.max(Some(drained_at));
        self.probe = None;
        self.allowance = 0.0;
        self.tokens = 0.0;
        self.backlog = 0.0;
        self.backlog_at = Some(drained_at);
        self.enter(Level::KeyframesOnly)
    }

    fn enter(&mut self, level: Level) -> Change {
        let from = std::mem::replace(&mut self.level, level);
        Change { from, to: level }
    }

    /// Brings the modelled backlog in line with what was measured.
    fn settle(&mut self, now: Instant, evidence: &Evidence) {
        let Some(estimate) = self.estimate else { return };
        self.drain(now);
        if self.level == Level::NoDisposable && !self.deaf(now) {
            self.backlog = self.backlog.max(evidence.queue.as_secs_f64() * estimate / 8.0);
        }
        if self.pace_bps().is_none() && !evidence.congested && evidence.queue < QUEUE_NONE {
            let flying = (evidence.rtt + PROBE_STEP).as_secs_f64();
            self.backlog = self.backlog.min(estimate / 8.0 * flying);
        }
    }

    fn drain(&mut self, now: Instant) {
        let passed = self.backlog_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.backlog_at = self.backlog_at.max(Some(now));
        let rate = self.estimate.map_or(f64::MAX, |bps| bps.max(self.allowance) / 8.0);
        self.backlog = (self.backlog - rate * passed.as_secs_f64()).max(0.0);
    }

    fn backlog_seconds(&mut self, now: Instant) -> f64 {
        self.drain(now);
        self.seconds(self.backlog)
    }

    /// How long by the estimate so many bytes take.
    fn seconds(&self, bytes: f64) -> f64 {
        self.estimate.map_or(0.0, |bps| bytes * 8.0 / bps.max(1.0))
    }
}
