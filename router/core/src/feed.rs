//! What one viewer is sent next, and when: replay first, then live, paced by frame.
//!
//! Not how it is sent (`egress`) nor what the cache holds (`gop`). Invariant: a viewer gets a
//! keyframe first, and after that every picture that a later one refers to, or nothing until the
//! next keyframe; a picture that does not decode is never sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::egress::Packets;
use crate::frame::Frame;
use crate::limits::Limits;
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
    frame: Arc<Frame>,
    rtp_time: u32,
    /// Payloads already sent.
    sent: usize,
}

/// One viewer's feed.
#[derive(Debug)]
pub(crate) struct Feed {
    state: State,
    queue: VecDeque<Queued>,
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

/// What became of a live frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It is on its way.
    Taken,
    /// It would not decode, or the viewer is not connected.
    Skipped,
    /// The viewer's queue is full: it was emptied and waits for a keyframe.
    Overflowed,
}

impl Feed {
    /// A feed of a viewer that is not connected yet.
    pub(crate) fn new(random: u64) -> Self {
        Self {
            state: State::Off,
            queue: VecDeque::new(),
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
    pub(crate) fn connected(&mut self, now: Instant) {
        if self.state == State::Off {
            self.state = State::WaitKey;
            self.connected_at = Some(now);
        }
    }

    /// Whether a keyframe request of this viewer is answered by a replay.
    pub(crate) fn may_replay(&self, now: Instant, interval: Duration) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        self.state != State::Off
            && since(self.connected_at).is_some_and(|age| age < YOUNG)
            && since(self.replayed_at).is_none_or(|age| age >= interval)
    }

    /// Whether a replay is on its way: a keyframe request that comes meanwhile asks for what is
    /// already being sent.
    pub(crate) fn replay_under_way(&self, now: Instant, interval: Duration) -> bool {
        self.replayed_at.is_some_and(|at| now.saturating_duration_since(at) < interval)
    }

    /// Queues a replay in place of everything queued. Returns how many pictures it has.
    pub(crate) fn replay<'a>(
        &mut self,
        now: Instant,
        frames: impl Iterator<Item = &'a Arc<Frame>> + Clone,
    ) -> usize {
        let count = frames.clone().count();
        let Some(newest) = frames.clone().last().map(|f| f.rtp_time) else { return 0 };
        // A picture that is partly sent is finished: half a picture is a loss to the receiver.
        self.queue.retain(|q| q.sent > 0);
        let mut rtp_time = self.rewriter.splice(now, count, newest);
        for frame in frames {
            self.queue.push_back(Queued { frame: Arc::clone(frame), rtp_time, sent: 0 });
            rtp_time = rtp_time.wrapping_add(Rewriter::STEP);
        }
        self.state = State::Flowing;
        self.replayed_at = Some(now);
        count
    }

    /// The stream's next picture.
    pub(crate) fn live(&mut self, now: Instant, frame: &Arc<Frame>, limits: &Limits) -> Offered {
        match self.state {
            State::Off => return Offered::Skipped,
            State::WaitKey if !frame.key => return Offered::Skipped,
            State::WaitKey | State::Flowing => {}
        }
        if frame.key {
            // What is older than a keyframe need not be sent any more.
            self.queue.retain(|q| q.sent > 0);
            self.state = State::Flowing;
        } else if self.queue.len() >= limits.gop_frames_max {
            self.queue.retain(|q| q.sent > 0);
            self.state = State::WaitKey;
            return Offered::Overflowed;
        }
        let rtp_time = self.rewriter.live(now, frame.rtp_time);
        self.queue.push_back(Queued { frame: Arc::clone(frame), rtp_time, sent: 0 });
        Offered::Taken
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

    /// Sends what the pacing allows now.
    pub(crate) fn pump(
        &mut self,
        now: Instant,
        limits: &Limits,
        mut send: impl FnMut(Packets<'_>),
    ) {
        if self.tick.is_none_or(|t| now.saturating_duration_since(t) >= limits.pace_tick) {
            self.tick = Some(now);
            self.used = 0;
        }
        while self.used < limits.pace_packets {
            let Some(front) = self.queue.front_mut() else { break };
            let total = front.frame.payloads.len();
            let end = total.min(front.sent + (limits.pace_packets - self.used));
            let range = front.sent..end;
            let count = range.len();
            let first_seq = self.rewriter.take_seqs(count);
            self.used += count;
            self.packets_sent += count as u64;
            self.bytes_sent +=
                front.frame.payloads[range.clone()].iter().map(|p| p.len() as u64).sum::<u64>();
            send(Packets { frame: &front.frame, range, first_seq, rtp_time: front.rtp_time });
            front.sent = end;
            if end < total {
                break;
            }
            self.frames_sent += 1;
            self.queue.pop_front();
        }
    }

    /// When [`Self::pump`] can go on.
    pub(crate) fn wake(&self, limits: &Limits) -> Option<Instant> {
        if self.queue.is_empty() { None } else { self.tick.map(|t| t + limits.pace_tick) }
    }
}
