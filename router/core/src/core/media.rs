//! Media: a stream's frames to its viewers, repairs, replays, keyframe requests.
//!
//! Work is noted when it arises and done by [`Core::poll_media`], a batch at a time, so that the
//! driver can look at its socket in between. Order: controllers of any stream, in batches of their
//! own, then repairs, the passes of frames over observers, and replays. Invariant: a pass looks at the viewers of its own
//! stream, each once.

use std::time::Instant;

use super::{Core, Due};
use crate::api::{KeyframeReason, Output, Role, StreamKey, ViewerState};
use crate::batch::Batch;
use crate::counters::Counters;
use crate::egress::{Lost, To};
use crate::feed::{Caught, Pumped};
use crate::history::History;
use crate::limits::{Limits, REPLAY_FOR_PLI_BYTES_MAX};
use crate::pressure::Level;
use crate::viewer::Hot;

/// A packet's size on the wire, for pacing.
const PACED_PACKET_BYTES: u64 = 1_250;

/// Repairs per batch: they go out before frames, but not instead of them.
const REPAIRS_PER_BATCH: usize = 8;

/// What is the same for all viewers of one batch.
#[derive(Clone, Copy)]
struct Turn<'a> {
    now: Instant,
    now_us: u64,
    unix_us: u64,
    limits: &'a Limits,
}

/// What came of serving a viewer.
struct Served {
    pumped: Pumped,
    /// It fell behind, and waits for a keyframe that does not exist yet.
    lost: bool,
}

impl Core {
    /// Fills the batch, which is empty, with what is due to viewers next. `false`: nothing is.
    ///
    /// Call it after inputs, send the batch, look for datagrams, and call it again until it returns
    /// `false`. A driver whose socket is full keeps the batch and does not call: frames wait in
    /// their stream's history, and a viewer whose next one has waited longer than
    /// [`crate::limits::LAG_MAX`] is moved on to the newest keyframe.
    pub fn poll_media(&mut self, now: Instant, batch: &mut Batch) -> bool {
        self.advance(now);
        batch.clear();
        let mut repairs = 0;
        let mut leads = false;
        while batch.has_room() {
            if let Some(stream) = self.lead.front().copied() {
                if self.lead_step(stream, batch) {
                    self.lead.pop_front();
                }
                leads |= !batch.is_empty();
            } else if leads {
                // Controllers do not wait until observers fill the batch.
                break;
            } else if repairs < REPAIRS_PER_BATCH && !self.repairs.is_empty() {
                repairs += 1;
                self.repair_step(batch);
            } else if let Some(stream) = self.rest.front().copied() {
                self.pass_step(stream, batch);
            } else if let Some(key) = self.ready.pop_front() {
                if !self.ready_step(key, batch) {
                    self.ready.push_front(key);
                    break;
                }
            } else {
                break;
            }
        }
        for run in batch.runs() {
            self.counters.datagrams_out += run.count as u64;
            self.counters.bytes_out += run.len as u64;
        }
        !batch.is_empty()
    }

    /// Whether a controller is to be served, which the next batch will do first.
    #[must_use]
    pub fn controllers_wait(&self) -> bool {
        !self.lead.is_empty()
    }

    /// A frame was taken in: its viewers are to be served.
    pub(super) fn begin_pass(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if stream.begin_pass() {
            self.rest.push_back(key);
        }
        if !stream.controllers().is_empty() && !stream.leading {
            stream.leading = true;
            self.lead.push_back(key);
        }
    }

    /// Serves a stream's controllers. `true`: done.
    fn lead_step(&mut self, key: StreamKey, batch: &mut Batch) -> bool {
        let Some(stream) = self.streams.get(&key) else { return true };
        let count = stream.controllers().len();
        for at in 0..count {
            let Some(viewer) = self.streams.get(&key).and_then(|s| s.controllers().get(at)) else {
                break;
            };
            if !self.serve_one(key, *viewer, batch) {
                return false;
            }
        }
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.leading = false;
        }
        true
    }

    /// Serves a stream's next observers, as many as the batch takes.
    fn pass_step(&mut self, key: StreamKey, batch: &mut Batch) {
        let (now, now_us, unix_us) = (self.now, self.since_start_us(), self.unix_us());
        let Self { streams, viewers, counters, limits, scratch, paced, .. } = self;
        let turn = Turn { now, now_us, unix_us, limits };
        let mut lost = false;
        let mut over = true;
        if let Some(stream) = streams.get_mut(&key) {
            while let Some(viewer) = stream.next_in_pass() {
                if let Some(found) = viewers.get_mut(viewer) {
                    let served = serve(
                        &mut found.hot,
                        viewer,
                        &stream.history,
                        turn,
                        counters,
                        scratch,
                        batch,
                    );
                    lost |= served.lost;
                    match served.pumped {
                        Pumped::Idle => {}
                        Pumped::Paced => paced.push(viewer),
                        Pumped::NoRoom => {
                            over = false;
                            break;
                        }
                    }
                }
                stream.served_in_pass();
                if !batch.has_room() {
                    over = false;
                    break;
                }
            }
            // The last viewer may have taken the last room.
            over |= stream.pass_is_over();
        }
        if over {
            self.end_pass(key);
        }
        self.arm_paced();
        if lost {
            self.need_keyframe(key, KeyframeReason::Loss);
        }
    }

    fn end_pass(&mut self, key: StreamKey) {
        self.rest.pop_front();
        // Another frame came meanwhile: from the start, behind the other streams.
        if self.streams.get_mut(&key).is_some_and(|s| s.end_pass()) {
            self.rest.push_back(key);
        }
    }

    /// Serves one viewer outside of a pass. `false`: the batch is full.
    fn serve_one(&mut self, stream: StreamKey, key: usize, batch: &mut Batch) -> bool {
        let (now, now_us, unix_us) = (self.now, self.since_start_us(), self.unix_us());
        let Self { streams, viewers, counters, limits, scratch, .. } = self;
        let (Some(known), Some(viewer)) = (streams.get(&stream), viewers.get_mut(key)) else {
            return true;
        };
        let turn = Turn { now, now_us, unix_us, limits };
        let served = serve(&mut viewer.hot, key, &known.history, turn, counters, scratch, batch);
        if served.pumped == Pumped::Paced {
            self.arm(key);
        }
        if served.lost {
            self.need_keyframe(stream, KeyframeReason::Loss);
        }
        served.pumped != Pumped::NoRoom
    }

    /// Serves a viewer whose pacing lets it go on. `false`: the batch is full.
    fn ready_step(&mut self, key: usize, batch: &mut Batch) -> bool {
        let Some(viewer) = self.viewers.get_mut(key).filter(|v| v.hot.ready) else { return true };
        viewer.hot.ready = false;
        let stream = viewer.stream;
        let done = self.serve_one(stream, key, batch);
        if !done && let Some(viewer) = self.viewers.get_mut(key) {
            viewer.hot.ready = true;
        }
        done
    }

    /// A viewer has something to be sent.
    pub(super) fn make_ready(&mut self, key: usize) {
        if let Some(viewer) = self.viewers.get_mut(key)
            && viewer.state == ViewerState::Live
            && !std::mem::replace(&mut viewer.hot.ready, true)
        {
            self.ready.push_back(key);
        }
    }

    fn arm_paced(&mut self) {
        while let Some(key) = self.paced.pop() {
            self.arm(key);
        }
    }

    /// Sends one packet again.
    fn repair_step(&mut self, batch: &mut Batch) {
        let Some(repair) = self.repairs.pop_front() else { return };
        let (now, now_us) = (self.now, self.since_start_us());
        let Some(viewer) = self.viewers.get_mut(repair.viewer) else { return };
        if viewer.serial != repair.serial {
            return;
        }
        let controller = viewer.role;
        let frame = self.streams.get(&viewer.stream).and_then(|s| s.history.get(repair.found.no));
        let (Some(route), Some(media)) = (viewer.hot.route, viewer.hot.media.as_mut()) else {
            return;
        };
        let Some((frame, payload)) =
            frame.and_then(|f| Some((f, f.payloads.get(repair.found.payload)?)))
        else {
            self.counters.nacks_unknown += 1;
            return;
        };
        if !media.log.wants(&repair.found) {
            self.counters.nacks_unknown += 1;
            return;
        }
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if !viewer.budgets.repair_bytes.take(now, size) {
            self.counters.nacks_denied += 1;
            return;
        }
        let to = To { route, role: controller, viewer: repair.viewer, now, now_us };
        let lost = Lost {
            seq: repair.seq,
            payload,
            rtp_time: repair.found.rtp_time,
            marker: repair.found.payload + 1 == frame.payloads.len(),
        };
        match media.resend(to, lost, &mut self.scratch.plain, batch) {
            Some(bytes) => {
                viewer.reported.repairs += 1;
                self.counters.repairs_sent += 1;
                self.counters.bytes_repaired += bytes as u64;
            }
            // No room: the batch is sent and this comes first in the next one.
            None if !batch.is_empty() => self.repairs.push_front(repair),
            None => self.counters.nacks_denied += 1,
        }
    }

    /// Replays the cache to a viewer. `false`: there is nothing to replay.
    pub(super) fn replay(&mut self, key: usize) -> bool {
        let Some(viewer) = self.viewers.get_mut(key) else { return true };
        let Some(stream) = self.streams.get(&viewer.stream).filter(|s| s.history.has_group())
        else {
            return false;
        };
        let count = viewer.hot.feed.replay(self.now, &stream.history);
        self.counters.gop_replays += 1;
        self.counters.frames_replayed += count as u64;
        self.make_ready(key);
        true
    }

    /// A viewer sent PLI or FIR.
    pub(super) fn keyframe_wanted(&mut self, key: usize) {
        let (now, interval) = (self.now, self.limits.keyframe_interval);
        self.counters.keyframe_wanted += 1;
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        viewer.keyframe_requests += 1;
        let stream = viewer.stream;
        if viewer.hot.feed.replay_under_way(now, interval) {
            self.counters.keyframe_from_cache += 1;
            return;
        }
        // The group as a whole is an exact answer. It is cheap when it is small; a new viewer gets
        // it whatever its size, because its first packets may have been lost on an opening path.
        let small = self
            .streams
            .get(&stream)
            .is_some_and(|s| s.history.group_bytes() <= REPLAY_FOR_PLI_BYTES_MAX);
        let may = viewer.hot.feed.may_replay(now, interval, small);
        if may && self.replay(key) {
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
                viewer.hot.feed.wait_key(true);
            }
        }
    }
}

/// What serving needs beside the viewer, reused between calls.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// A repair's payload.
    pub(crate) plain: Box<[u8]>,
    /// An RTCP packet before it is sealed.
    pub(crate) packet: Vec<u8>,
    /// After.
    pub(crate) sealed: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            plain: vec![0; 2_048].into(),
            packet: Vec::with_capacity(512),
            sealed: Vec::with_capacity(512),
        }
    }
}

/// Packets per pacing tick: as for everyone, or as the estimate of a narrow path allows.
fn pace_packets(pace_bps: Option<u64>, limits: &Limits) -> usize {
    let Some(bps) = pace_bps else { return limits.pace_packets };
    let tick_us = u64::try_from(limits.pace_tick.as_micros()).unwrap_or(1);
    let packets = bps.saturating_mul(tick_us) / (8 * PACED_PACKET_BYTES * 1_000_000);
    usize::try_from(packets).unwrap_or(usize::MAX).clamp(1, limits.pace_packets)
}

/// Brings one viewer up to date: what its stream had since the last time, as far as pacing, path
/// and room allow. This and what it calls in `egress` is the hot path.
fn serve(
    hot: &mut Hot,
    key: usize,
    history: &History,
    turn: Turn<'_>,
    counters: &mut Counters,
    scratch: &mut Scratch,
    batch: &mut Batch,
) -> Served {
    let Hot { feed, pressure, noted, media, route, controller, .. } = hot;
    let (Some(route), Some(media)) = (*route, media.as_mut()) else {
        return Served { pumped: Pumped::Idle, lost: false };
    };
    let silent = media.is_silent(turn.now_us);
    if silent
        && pressure.on_silence(turn.now).is_some_and(|change| change.to == Level::KeyframesOnly)
    {
        feed.give_up();
        media.log.abandon();
    }
    let caught = feed.catch_up(turn.now, history, pressure);
    if silent || caught != Caught::ONE {
        counters.note_pressure(noted, pressure.transitions());
    }
    counters.frames_forwarded += caught.taken;
    counters.frames_skipped += caught.skipped;
    counters.frames_thinned += caught.thinned;
    counters.viewers_lagged += u64::from(caught.lost);
    hot.frames_thinned += caught.thinned;
    let to = To {
        route,
        role: if *controller { Role::Controller } else { Role::Observer },
        viewer: key,
        now: turn.now,
        now_us: turn.now_us,
    };
    let before = (feed.packets_sent, feed.bytes_sent);
    let pace = pace_packets(pressure.pace_bps(), turn.limits);
    let pumped = feed.pump(turn.now, history, turn.limits.pace_tick, pace, |packets| {
        media.send(to, packets, batch)
    });
    counters.packets_forwarded += feed.packets_sent - before.0;
    counters.bytes_forwarded += feed.bytes_sent - before.1;
    if media.report_is_due(turn.now) && media.report(to, turn.unix_us, scratch, batch) {
        counters.sender_reports += 1;
    }
    Served { pumped, lost: caught.lost }
}
