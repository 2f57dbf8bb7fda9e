//! One stream: its publisher, its current group of pictures, the shards that carry it. Not the
//! registry. Invariants: every command to the shards is sent under the stream's lock, so that all
//! shards see ups, frames and downs in one order; a shard carries the stream exactly while it has
//! a session of it and the stream has a picture.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use fanlight_proto::{
    id::{NodeId, StreamId},
    node::v1::{self as pb, hop_message::Body},
    reason::Reason,
    types::v1::StreamState,
};
use fanlight_router_core::{DownReason, Frame, Limits, SessionId, SpsFacts, StreamInfo, StreamKey};
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    shard::Command,
    streams::{RunningStream, Shared},
};

/// Least time between two keyframe requests to one source, over all shards: a keyframe takes
/// 100-200 ms to arrive, and asking again sooner only makes the encoder send two.
const KEYFRAME_INTERVAL: Duration = Duration::from_millis(300);

/// How long the picture of a new assignment may take before joins are told to wait a whole second.
const NEW: Duration = Duration::from_secs(2);

/// What the control API wants of this router for one stream.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) epoch: u64,
    /// Who may publish; none: any node with the token.
    pub(crate) ingest_node: Option<NodeId>,
    /// SHA-256 of the publish token.
    pub(crate) push_token_sha256: [u8; 32],
    /// Key of the tickets taken here; empty: none is taken.
    pub(crate) ticket_key: Vec<u8>,
    /// The stream is live on another router: its viewers shall go there.
    pub(crate) moved: Option<Moved>,
}

/// Where the viewers of a stream shall go.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Its WHEP address there.
    pub(crate) url: Arc<str>,
    /// Key of the tickets taken there.
    pub(crate) ticket_key: Vec<u8>,
}

impl fmt::Debug for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Want")
            .field("epoch", &self.epoch)
            .field("ingest_node", &self.ingest_node)
            .finish_non_exhaustive()
    }
}

/// Who publishes: the way back to the ingest worker.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    /// Unique in the process; names one accepted publish.
    pub(crate) id: u64,
    pub(crate) slot: u32,
    pub(crate) outbox: mpsc::Sender<pb::HopMessage>,
    /// Cancelled when another publish takes over or the stream ends.
    pub(crate) superseded: CancellationToken,
}

impl Publisher {
    /// Hands a message to the connection's writer; false when its outbox is full.
    fn send(&self, body: Body) -> bool {
        self.outbox.try_send(pb::HopMessage { body: Some(body) }).is_ok()
    }

    fn end(&self, reason: Reason) {
        let body = pb::Unpublish { slot: self.slot, reason: reason.as_str().into() };
        self.send(Body::Unpublish(body));
        self.superseded.cancel();
    }
}

/// A publish that was refused, as it is told to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) message: &'static str,
    /// Zero: this epoch and token will never be taken.
    pub(crate) retry_after_ms: u32,
}

/// A frame as the hop gives it: the stream adds epoch and number.
#[derive(Debug)]
pub(crate) struct NewFrame {
    /// When it was complete.
    pub(crate) arrived: Instant,
    pub(crate) rtp_time: u32,
    pub(crate) capture_unix_us: Option<u64>,
    pub(crate) key: bool,
    pub(crate) discardable: bool,
    pub(crate) payloads: Vec<Arc<[u8]>>,
    pub(crate) params: Option<Arc<SpsFacts>>,
    /// A frame before it was given up.
    pub(crate) after_gap: bool,
}

/// Why a viewer cannot be seated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeatError {
    /// No picture now.
    Offline,
    /// As many sessions as allowed.
    Full,
    /// The stream ended meanwhile.
    Gone,
    /// The router's epoch is below what the viewer's token asks for.
    StaleEpoch,
}

/// One stream of this router.
pub(crate) struct Stream {
    key: StreamKey,
    name: StreamId,
    label: Arc<str>,
    shared: Shared,
    state: Mutex<State>,
}

struct State {
    want: Want,
    publisher: Option<Publisher>,
    /// Pictures come: set by the publisher's first keyframe.
    live: bool,
    ended: bool,
    gop: Gop,
    params: Option<Arc<SpsFacts>>,
    next_index: u64,
    /// Since when its epoch is wanted.
    wanted_at: Instant,
    shards: Vec<Carrier>,
    keyframe_asked: Option<Instant>,
}

/// One shard as this stream sees it.
#[derive(Clone, Default)]
struct Carrier {
    sessions: usize,
    /// The shard was told of the stream.
    carries: bool,
    /// A frame was dropped at its inbox: nothing until the next keyframe is of use to it.
    waits_for_key: bool,
}

/// The frames since the last keyframe, bounded as the shards' caches are.
#[derive(Default)]
struct Gop {
    frames: Vec<Arc<Frame>>,
    bytes: usize,
}

impl Gop {
    fn push(&mut self, frame: &Arc<Frame>, limits: &Limits) {
        if frame.key {
            self.clear();
        } else if self.frames.is_empty() {
            // Closed at the bound, until the next keyframe.
            return;
        }
        self.bytes += frame.size();
        self.frames.push(Arc::clone(frame));
        if self.frames.len() > limits.gop_frames_max || self.bytes > limits.gop_bytes_max {
            self.clear();
        }
    }

    fn clear(&mut self) {
        // A new vector, so that one long group does not keep its capacity for ever.
        *self = Self::default();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Stream {
    pub(crate) fn new(key: StreamKey, name: StreamId, want: Want, shared: Shared) -> Self {
        let state = State {
            want,
            publisher: None,
            live: false,
            ended: false,
            gop: Gop::default(),
            params: None,
            next_index: 0,
            wanted_at: Instant::now(),
            shards: vec![Carrier::default(); shared.shards.len()],
            keyframe_asked: None,
        };
        let label = Arc::from(name.as_str());
        Self { key, name, label, shared, state: Mutex::new(state) }
    }

    pub(crate) fn key(&self) -> StreamKey {
        self.key
    }

    pub(crate) fn name(&self) -> &StreamId {
        &self.name
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().want.epoch
    }

    pub(crate) fn is_live(&self) -> bool {
        self.state.lock().live
    }

    pub(crate) fn running(self: Arc<Self>) -> RunningStream {
        let state = self.state.lock();
        let viewers = state.shards.iter().map(|s| s.sessions).sum::<usize>();
        let running = RunningStream {
            epoch: state.want.epoch,
            state: if state.live { StreamState::Live } else { StreamState::Assigned },
            viewers: u32::try_from(viewers).unwrap_or(u32::MAX),
            stream: Arc::clone(&self),
        };
        drop(state);
        running
    }

    /// The same stream is wanted again, perhaps with a higher epoch: then the present publisher
    /// has lost, and its viewers wait for the next one.
    pub(crate) fn rewant(&self, want: Want) {
        let mut state = self.state.lock();
        if want.epoch > state.want.epoch {
            state.wanted_at = Instant::now();
            tracing::info!(stream = %self.name, epoch = want.epoch, "stream has a new epoch");
            self.drop_publisher(&mut state, Reason::StaleEpoch, DownReason::Superseded);
            state.next_index = 0;
            self.shared.report(&self.name, want.epoch, StreamState::Assigned, "");
        }
        state.want = want;
        self.report_left(&state);
    }

    /// Says that nobody is left here of a stream that has moved, so that it can end here.
    fn report_left(&self, state: &State) {
        if state.want.moved.is_some() && state.shards.iter().all(|s| s.sessions == 0) {
            self.shared.report(&self.name, state.want.epoch, StreamState::Ended, "");
        }
    }

    /// It has a picture here, and no other router is known to have it.
    pub(crate) fn holds_a_picture(&self) -> bool {
        let state = self.state.lock();
        state.live && state.want.moved.is_none()
    }

    /// Where its viewers shall go.
    pub(crate) fn moved(&self) -> Option<Moved> {
        self.state.lock().want.moved.clone()
    }

    /// Key of the tickets taken here.
    pub(crate) fn ticket_key(&self) -> Vec<u8> {
        self.state.lock().want.ticket_key.clone()
    }

    /// It was assigned moments ago: a picture is on its way, and who asks again soon is right to.
    pub(crate) fn is_new(&self) -> bool {
        self.state.lock().wanted_at.elapsed() < NEW
    }

    /// The stream is no longer wanted: its viewers are closed, its publisher is told.
    pub(crate) fn end(&self, reason: DownReason) {
        let mut state = self.state.lock();
        state.ended = true;
        self.drop_publisher(&mut state, Reason::StreamNotFound, reason);
        for (shard, carrier) in self.shared.shards.iter().zip(&mut state.shards) {
            if std::mem::take(&mut carrier.carries) {
                shard.must(Command::StreamRemoved { key: self.key, reason });
            }
        }
        self.shared.report(&self.name, state.want.epoch, StreamState::Ended, "");
    }

    // ---- publisher ----

    /// Takes a publish, or says why not. A second publish with the same epoch and token takes
    /// over: the worker came back before its old connection was known to be dead.
    pub(crate) fn publish(
        &self,
        epoch: u64,
        token_sha256: &[u8; 32],
        node: &NodeId,
        publisher: Publisher,
    ) -> Result<(), Refusal> {
        let refuse =
            |reason, message, retry_after_ms| Err(Refusal { reason, message, retry_after_ms });
        let mut state = self.state.lock();
        if epoch < state.want.epoch {
            return refuse(Reason::StaleEpoch, "a higher epoch is assigned", 0);
        }
        if epoch > state.want.epoch {
            // The worker heard of the new assignment before this router did.
            return refuse(Reason::StreamNotFound, "this epoch is not assigned here yet", 200);
        }
        let token_ok: bool = state.want.push_token_sha256.ct_eq(token_sha256).into();
        if !token_ok || state.want.ingest_node.as_ref().is_some_and(|n| n != node) {
            return refuse(
                Reason::PublishDenied,
                "publish token or node is not the assigned one",
                0,
            );
        }
        if state.ended {
            return refuse(Reason::StreamNotFound, "the stream has ended", 0);
        }
        let again = |old: &Publisher| {
            old.slot == publisher.slot && old.outbox.same_channel(&publisher.outbox)
        };
        if state.publisher.as_ref().is_some_and(again)
            && let Some(old) = state.publisher.take()
        {
            // The same worker in the same slot: an Unpublish would read as one of the new publish.
            old.superseded.cancel();
        }
        self.drop_publisher(&mut state, Reason::StaleEpoch, DownReason::Superseded);
        state.publisher = Some(publisher);
        Ok(())
    }

    /// The publisher's connection or slot ended. Ignored when another one took over.
    pub(crate) fn unpublish(&self, id: u64) {
        let mut state = self.state.lock();
        if state.publisher.as_ref().is_some_and(|p| p.id == id) {
            state.publisher = None;
            self.down(&mut state, DownReason::Offline);
        }
    }

    fn drop_publisher(&self, state: &mut State, told: Reason, reason: DownReason) {
        if let Some(publisher) = state.publisher.take() {
            publisher.end(told);
        }
        self.down(state, reason);
    }

    fn down(&self, state: &mut State, reason: DownReason) {
        state.gop.clear();
        if !std::mem::take(&mut state.live) {
            return;
        }
        for (shard, carrier) in self.shared.shards.iter().zip(&mut state.shards) {
            if carrier.carries {
                shard.must(Command::StreamDown { key: self.key, reason });
            }
        }
        let epoch = state.want.epoch;
        let why = Reason::DeviceOffline.as_str();
        self.shared.report(&self.name, epoch, StreamState::Assigned, why);
    }

    /// A picture of publish `id`, in order. False: that publish is over.
    pub(crate) fn frame(&self, id: u64, new: NewFrame) -> bool {
        let mut state = self.state.lock();
        if state.publisher.as_ref().is_none_or(|p| p.id != id) {
            return false;
        }
        if !state.live && !new.key {
            return true;
        }
        // A hole in the numbers tells the shards that the chain is broken.
        let index = state.next_index + u64::from(new.after_gap);
        state.next_index = index + 1;
        let frame = Arc::new(Frame {
            epoch: state.want.epoch,
            index,
            arrived: new.arrived,
            rtp_time: new.rtp_time,
            capture_unix_us: new.capture_unix_us,
            key: new.key,
            discardable: new.discardable,
            payloads: new.payloads,
            params: new.params,
        });
        if let Some(params) = &frame.params {
            state.params = Some(Arc::clone(params));
        }
        if !state.live {
            self.up(&mut state);
        }
        if new.after_gap && !frame.key {
            // What was kept no longer decodes up to here.
            state.gop.clear();
        }
        state.gop.push(&frame, &Limits::default());
        self.fan_out(&mut state, &frame);
        true
    }

    fn up(&self, state: &mut State) {
        state.live = true;
        let info = self.info(state);
        for (shard, carrier) in self.shared.shards.iter().zip(&mut state.shards) {
            if carrier.sessions > 0 {
                carrier.carries = true;
                let (key, info) = (self.key, info.clone());
                shard.must(Command::StreamUp { key, info, gop: Vec::new() });
            }
        }
        self.shared.report(&self.name, state.want.epoch, StreamState::Live, "");
    }

    fn info(&self, state: &State) -> StreamInfo {
        let mut info = StreamInfo::new(Arc::clone(&self.label), state.want.epoch);
        info.params.clone_from(&state.params);
        info
    }

    fn fan_out(&self, state: &mut State, frame: &Arc<Frame>) {
        let mut lost = false;
        for (shard, carrier) in self.shared.shards.iter().zip(&mut state.shards) {
            if !carrier.carries {
                continue;
            }
            carrier.waits_for_key &= !frame.key;
            if carrier.waits_for_key {
                continue;
            }
            let command = Command::Frame { key: self.key, frame: Arc::clone(frame) };
            if shard.offer(command).is_err() {
                carrier.waits_for_key = true;
                lost = true;
            }
        }
        if lost {
            self.ask_keyframe(state, "router overloaded");
        }
    }

    /// A message from the device for its controllers.
    pub(crate) fn device_output(&self, id: u64, message: &[u8]) {
        let state = self.state.lock();
        if state.publisher.as_ref().is_none_or(|p| p.id != id) {
            return;
        }
        self.shared.metrics.count("fanlight_router_device_outputs_total");
        let message: Arc<[u8]> = message.into();
        for (shard, carrier) in self.shared.shards.iter().zip(&state.shards) {
            if carrier.carries {
                let message = Arc::clone(&message);
                // A full inbox drops it and counts.
                let _ = shard.offer(Command::DeviceOutput { key: self.key, message });
            }
        }
    }

    // ---- towards the device ----

    /// Asks the source for a keyframe; merged over all askers.
    pub(crate) fn request_keyframe(&self, reason: &str) {
        self.ask_keyframe(&mut self.state.lock(), reason);
    }

    fn ask_keyframe(&self, state: &mut State, reason: &str) {
        let Some(publisher) = &state.publisher else { return };
        let now = Instant::now();
        if state.keyframe_asked.is_some_and(|at| now - at < KEYFRAME_INTERVAL) {
            return;
        }
        let body = pb::KeyframeRequest { slot: publisher.slot, reason: reason.to_owned() };
        if publisher.send(Body::KeyframeRequest(body)) {
            state.keyframe_asked = Some(now);
            self.shared.metrics.count("fanlight_router_keyframe_requests_total");
        } else {
            self.shared.metrics.count("fanlight_router_hop_outbox_dropped_total");
        }
    }

    /// Hands input to the device. Dropped, and counted, when there is no publisher or its
    /// connection does not drain.
    pub(crate) fn to_device(&self, viewer: SessionId, message: Vec<u8>) {
        let state = self.state.lock();
        let sent = state.publisher.as_ref().is_some_and(|publisher| {
            let slot = publisher.slot;
            publisher.send(Body::DeviceInput(pb::DeviceInput { slot, message, viewer: viewer.0 }))
        });
        self.shared.metrics.count(if sent {
            "fanlight_router_device_inputs_total"
        } else {
            "fanlight_router_hop_outbox_dropped_total"
        });
    }

    // ---- viewers ----

    /// Seats a session on a shard: the shard carries the stream from here on. The caller gives the
    /// seat back with [`Self::leave`], exactly once.
    pub(crate) fn seat(&self, shard: usize, least_epoch: u64) -> Result<(), SeatError> {
        let mut state = self.state.lock();
        if state.ended {
            return Err(SeatError::Gone);
        }
        if state.want.epoch < least_epoch {
            return Err(SeatError::StaleEpoch);
        }
        if !state.live {
            return Err(SeatError::Offline);
        }
        let all: usize = state.shards.iter().map(|s| s.sessions).sum();
        if all >= self.shared.sessions_per_stream_max {
            return Err(SeatError::Full);
        }
        let info = self.info(&state);
        let State { shards, gop, .. } = &mut *state;
        let Some(carrier) = shards.get_mut(shard) else { return Err(SeatError::Gone) };
        carrier.sessions += 1;
        if !std::mem::replace(&mut carrier.carries, true) {
            carrier.waits_for_key = false;
            let gop = gop.frames.clone();
            self.shared.shards[shard].must(Command::StreamUp { key: self.key, info, gop });
        }
        Ok(())
    }

    /// A session of this shard is over. The last one frees the shard of the stream.
    pub(crate) fn leave(&self, shard: usize) {
        let mut state = self.state.lock();
        let Some(carrier) = state.shards.get_mut(shard) else { return };
        carrier.sessions = carrier.sessions.saturating_sub(1);
        if carrier.sessions == 0 && std::mem::take(&mut carrier.carries) {
            let reason = DownReason::Offline;
            self.shared.shards[shard].must(Command::StreamRemoved { key: self.key, reason });
        }
        self.report_left(&state);
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
