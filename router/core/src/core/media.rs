//! Media: one frame to the viewers of its stream, replays, keyframe requests.
//!
//! Invariant: nothing here looks at a viewer of another stream.

use std::sync::Arc;

use super::{Core, Due};
use crate::api::{KeyframeReason, Output, StreamKey};
use crate::feed::Offered;
use crate::frame::Frame;

impl Core {
    /// Gives a frame to every viewer of its stream.
    pub(super) fn fan_out(&mut self, stream: StreamKey, frame: &Arc<Frame>) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        let mut turn = std::mem::take(&mut self.turn);
        turn.clear();
        turn.extend(known.in_turn());
        let mut overflowed = false;
        for key in turn.iter().copied() {
            let Some(viewer) = self.viewers.get_mut(key) else { continue };
            match viewer.feed.live(self.now, frame, &self.limits) {
                Offered::Taken => {
                    self.counters.frames_forwarded += 1;
                    self.pump(key);
                    self.arm(key);
                }
                Offered::Skipped => self.counters.frames_skipped += 1,
                Offered::Overflowed => {
                    self.counters.frames_skipped += 1;
                    overflowed = true;
                }
            }
        }
        self.turn = turn;
        if overflowed {
            self.need_keyframe(stream, KeyframeReason::Loss);
        }
    }

    /// Sends what a viewer's pacing allows.
    pub(super) fn pump(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        let before = (viewer.feed.packets_sent, viewer.feed.bytes_sent);
        match viewer.pump(self.now, &self.path, &self.limits) {
            Ok(false) => {}
            Ok(true) => {
                viewer.stale = true;
                self.counters.packets_forwarded += viewer.feed.packets_sent - before.0;
                self.counters.bytes_forwarded += viewer.feed.bytes_sent - before.1;
                self.mark(key);
            }
            Err(fault) => self.fail(key, fault),
        }
    }

    /// Replays the cache to a viewer. `false`: there is nothing to replay.
    pub(super) fn replay(&mut self, key: usize) -> bool {
        let Some(viewer) = self.viewers.get_mut(key) else { return true };
        let Some(stream) = self.streams.get(&viewer.stream).filter(|s| !s.gop.is_empty()) else {
            return false;
        };
        let count = viewer.feed.replay(self.now, stream.gop.replay());
        self.counters.gop_replays += 1;
        self.counters.frames_replayed += count as u64;
        self.pump(key);
        self.arm(key);
        true
    }

    /// A viewer sent PLI or FIR.
    pub(super) fn keyframe_wanted(&mut self, key: usize) {
        let (now, interval) = (self.now, self.limits.keyframe_interval);
        self.counters.keyframe_wanted += 1;
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        viewer.keyframe_requests += 1;
        let stream = viewer.stream;
        if viewer.feed.replay_under_way(now, interval) {
            self.counters.keyframe_from_cache += 1;
            return;
        }
        if viewer.feed.may_replay(now, interval) && self.replay(key) {
            self.counters.keyframe_from_cache += 1;
            return;
        }
        self.need_keyframe(stream, KeyframeReason::Loss);
    }

    pub(super) fn need_keyframe(&mut self, stream: StreamKey, reason: KeyframeReason) {
        if let Some(known) = self.streams.get_mut(&stream)
            && known.live
            && known.viewer_count() > 0
        {
            known.keyframes.need(self.now, self.limits.keyframe_interval, reason);
            self.arm_stream(stream);
        }
    }

    /// Sends a stream's due keyframe request and sets its timer to the next.
    pub(super) fn arm_stream(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if stream.viewer_count() == 0 {
            stream.keyframes.met();
        }
        if let Some(reason) = stream.keyframes.poll(self.now, self.limits.keyframe_retry) {
            self.counters.keyframe_requested += 1;
            self.out.push_back(Output::KeyframeRequest { stream: key, reason });
        }
        let due = stream.keyframes.due();
        if due == stream.timer {
            return;
        }
        if let Some(old) = stream.timer {
            self.timers.remove(&(old, Due::Stream(key)));
        }
        stream.timer = due;
        if let Some(at) = due {
            self.timers.insert((at, Due::Stream(key)));
        }
    }

    /// The source of a stream is gone or another: nothing decodes until its next keyframe.
    pub(super) fn restart_feeds(&mut self, stream: StreamKey) {
        let Some(known) = self.streams.get(&stream) else { return };
        for key in known.viewers() {
            if let Some(viewer) = self.viewers.get_mut(key) {
                viewer.feed.wait_key(true);
            }
        }
    }
}
