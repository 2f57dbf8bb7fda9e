//! What one viewer is sent next, and when: replay first, then live, paced by frame.
//!
//! Not how it is sent (`egress`) nor what there is (`history`). A feed holds numbers of pictures,
//! and follows its stream by a cursor: whoever was not served for a while catches up, or is moved
//! on to the next keyframe when it is too far behind. Invariant: a viewer gets a keyframe first, and
//! after that every picture that a later one refers to, or nothing until the next keyframe; a
//! picture that does not decode is never sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::egress::Packets;
use crate::history::History;
use crate::limits::{LAG_LOST, LAG_MAX, Limits};
use crate::pressure::{Admit, Pressure};
use crate::rewrite::Rewriter;

/// How long after connecting a viewer counts as not yet decoding, so that its keyframe requests
/// are answered from the cache: the first packets may be lost on a path that is just opening.
const YOUNG: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not connected.
    Off,
    /// Nothing decodes until the next keyframe.
    WaitKey,
    /// In step with the stream.
    Flowing,
}

#[derive(Debug)]
struct Queued {
    no: u64,
    rtp_time: u32,
    /// Payloads already sent.
    sent: usize,
    live: bool,
}

/// One viewer's feed.
#[derive(Debug)]
pub(crate) struct Feed {
    state: State,
    queue: VecDeque<Queued>,
    /// Number of the next picture that is taken from the stream.
    cursor: u64,
    rewriter: Rewriter,
    /// Start of the pacing tick, and packets sent in it.
    tick: Option<Instant>,
    used: usize,
    connected_at: Option<Instant>,
    replayed_at: Option<Instant>,
    pub(crate) frames_sent: u64,
    pub(crate) packets_sent: u64,
    pub(crate) bytes_sent: u64,
}

/// What became of the pictures since the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Caught {
    /// They are on their way.
    pub(crate) taken: u64,
    /// Of these, keyframes.
    pub(crate) keys: u64,
    /// They would not decode, or the viewer is not connected.
    pub(crate) skipped: u64,
    /// They are more than the viewer's path takes.
    pub(crate) thinned: u64,
    /// The viewer was too far behind and waits for a keyframe that does not exist yet.
    pub(crate) lost: bool,
}

impl Caught {
    /// The ordinary case: one picture, no keyframe, and it is on its way.
    pub(crate) const ONE: Self = Self { taken: 1, keys: 0, skipped: 0, thinned: 0, lost: false };
}

/// Why [`Feed::pump`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Everything is sent.
    Idle,
    /// The pacing holds the rest back until [`Feed::wake`].
    Paced,
    /// There was no room for the rest.
    NoRoom,
}

impl Feed {
    /// A feed of a viewer that is not connected yet.
    pub(crate) fn new(random: u64) -> Self {
        Self {
            state: State::Off,
            queue: VecDeque::new(),
            cursor: 0,
            rewriter: Rewriter::new(random),
            tick: None,
            used: 0,
            connected_at: None,
            replayed_at: None,
            frames_sent: 0,
            packets_sent: 0,
            bytes_sent: 0,
        }
    }

    /// The viewer connected; from now on it can be sent to.
    pub(crate) fn connected(&mut self, now: Instant, history: &History) {
        if self.state == State::Off {
            self.state = State::WaitKey;
            self.connected_at = Some(now);
            self.cursor = history.end();
        }
    }

    /// Whether a keyframe request of this viewer is answered by a replay: while it is new, and
    /// later if the replay is `small`.
    pub(crate) fn may_replay(&self, now: Instant, interval: Duration, small: bool) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        self.state != State::Off
            && (small || since(self.connected_at).is_some_and(|age| age < YOUNG))
            && since(self.replayed_at).is_none_or(|age| age >= interval)
    }

    /// Whether a replay is on its way: a keyframe request that comes meanwhile asks for what is
    /// already being sent.
    pub(crate) fn replay_under_way(&self, now: Instant, interval: Duration) -> bool {
        self.replayed_at.is_some_and(|at| now.saturating_duration_since(at) < interval)
    }

    /// Queues a replay in place of everything queued. Returns how many pictures it has.
    pub(crate) fn replay(&mut self, now: Instant, history: &History) -> usize {
        let frames = history.replay();
        let count = frames.clone().count();
        let Some(newest) = frames.clone().last().map(|(_, f)| f.rtp_time) else { return 0 };
        // A picture that is partly sent is finished: half a picture is a loss to the receiver.
        self.queue.retain(|q| q.sent > 0);
        let mut rtp_time = self.rewriter.splice(now, count, newest);
        for (no, _) in frames {
            self.queue.push_back(Queued { no, rtp_time, sent: 0, live: false });
            rtp_time = rtp_time.wrapping_add(Rewriter::STEP);
        }
        self.state = State::Flowing;
        self.replayed_at = Some(now);
        self.cursor = history.end();
        count
    }

    /// Takes what the stream has had since the last time.
    pub(crate) fn catch_up(
        &mut self,
        now: Instant,
        history: &History,
        pressure: &mut Pressure,
    ) -> Caught {
        let mut caught = Caught::default();
        let end = history.end();
        if self.state == State::Off {
            caught.skipped = end.saturating_sub(self.cursor);
            self.cursor = end;
            return caught;
        }
        let lag = self.lag(now, history);
        let ahead = history.group_start().filter(|key| *key >= self.cursor);
        if lag > LAG_LOST || (lag > LAG_MAX && ahead.is_some()) {
            caught.skipped = ahead.unwrap_or(end) - self.cursor;
            caught.lost = ahead.is_none();
            self.cursor = ahead.unwrap_or(end);
            self.queue.retain(|q| q.sent > 0);
            self.state = State::WaitKey;
        }
        while self.cursor < end {
            let no = self.cursor;
            self.cursor += 1;
            match history.get(no) {
                Some(frame) => {
                    self.take(now, no, frame, pressure, &mut caught);
                }
                None => caught.skipped += 1,
            }
        }
        caught
    }

    /// How long the next picture has waited. One or two that wait are nothing: they may be all that a
    /// static screen has sent for an hour.
    fn lag(&self, now: Instant, history: &History) -> Duration {
        if history.end().saturating_sub(self.cursor) <= 2 {
            return Duration::ZERO;
        }
        let next = history.get(self.cursor);
        next.map_or(Duration::MAX, |f| now.saturating_duration_since(f.arrived))
    }

    fn take(
        &mut self,
        now: Instant,
        no: u64,
        frame: &crate::frame::Frame,
        pressure: &mut Pressure,
        caught: &mut Caught,
    ) {
        if self.state == State::WaitKey && !frame.key {
            caught.skipped += 1;
            return;
        }
        match pressure.admit(now, frame.key, frame.discardable, frame.size()) {
            Admit::Send => {}
            Admit::SkipDisposable => {
                caught.thinned += 1;
                return;
            }
            Admit::SkipUntilKey => {
                caught.thinned += 1;
                self.queue.retain(|q| q.sent > 0);
                self.state = State::WaitKey;
                return;
            }
        }
        if frame.key {
            // What is older than a keyframe need not be sent any more.
            self.queue.retain(|q| q.sent > 0);
            self.state = State::Flowing;
        }
        let rtp_time = self.rewriter.live(now, frame.rtp_time);
        self.queue.push_back(Queued { no, rtp_time, sent: 0, live: true });
        caught.taken += 1;
        caught.keys += u64::from(frame.key);
    }

    /// Nothing decodes until the next keyframe: the source lost a picture, or is another one.
    pub(crate) fn wait_key(&mut self, restarted: bool) {
        if self.state == State::Flowing {
            self.state = State::WaitKey;
        }
        if restarted {
            self.rewriter.source_restarted();
        }
    }

    /// Drops what waits: nothing of it would be of now. A picture that is partly sent is finished.
    pub(crate) fn give_up(&mut self) {
        self.queue.retain(|q| q.sent > 0);
        self.wait_key(false);
    }

    /// Sends what the pacing and the room allow now. `send` says how many packets it took.
    pub(crate) fn pump(
        &mut self,
        now: Instant,
        history: &History,
        pace_tick: Duration,
        pace_packets: usize,
        mut send: impl FnMut(Packets<'_>) -> usize,
    ) -> Pumped {
        if self.queue.is_empty() {
            return Pumped::Idle;
        }
        if self.tick.is_none_or(|t| now.saturating_duration_since(t) >= pace_tick) {
            self.tick = Some(now);
            self.used = 0;
        }
        while let Some(front) = self.queue.front_mut() {
            if self.used >= pace_packets {
                return Pumped::Paced;
            }
            let Some(frame) = history.get(front.no) else {
                // So old that it is forgotten: nothing after it decodes.
                self.queue.clear();
                self.state = State::WaitKey;
                return Pumped::Idle;
            };
            let total = frame.payloads.len();
            let end = total.min(front.sent + (pace_packets - self.used));
            let range = front.sent..end;
            let count = send(Packets {
                frame,
                no: front.no,
                range: range.clone(),
                first_index: self.rewriter.next_index(),
                rtp_time: front.rtp_time,
                live: front.live,
            });
            self.rewriter.advance(count);
            self.used += count;
            self.packets_sent += count as u64;
            let sent = frame.payloads.get(front.sent..front.sent + count).unwrap_or_default();
            self.bytes_sent += sent.iter().map(|p| p.len() as u64).sum::<u64>();
            front.sent += count;
            if front.sent < total {
                return if count < range.len() { Pumped::NoRoom } else { Pumped::Paced };
            }
            self.frames_sent += 1;
            self.queue.pop_front();
        }
        Pumped::Idle
    }

    /// When [`Self::pump`] can go on.
    pub(crate) fn wake(&self, limits: &Limits) -> Option<Instant> {
        if self.queue.is_empty() { None } else { self.tick.map(|t| t + limits.pace_tick) }
    }
}
