//! One device's stream: epoch fence, cache, who watches, what is owed to the encoder.
//!
//! Not the viewers themselves. Invariant: a frame is taken once, in order, from the highest epoch
//! seen; after a hole nothing is taken until the next keyframe, because nothing would decode.

use std::sync::Arc;
use std::time::Instant;

use fanlight_wire::h264::SpsFacts;

use crate::api::{Role, StreamInfo};
use crate::counters::Counters;
use crate::frame::Frame;
use crate::gop::Gop;
use crate::keyframe::Merger;
use crate::limits::{Limits, PAYLOAD_BYTES_MAX, PAYLOADS_PER_FRAME_MAX};

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Old epoch, duplicate, or out of bounds: nothing happened.
    Refused,
    /// It cannot be decoded, because a frame before it is missing.
    Undecodable {
        /// Whether this is the first such frame.
        first: bool,
    },
    /// To be forwarded. `resized`: the picture has another size from here on.
    Forward {
        /// Whether viewers must be told the new size.
        resized: bool,
    },
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) name: Arc<str>,
    pub(crate) epoch: u64,
    /// Whether there is a source.
    pub(crate) live: bool,
    pub(crate) rotation: u8,
    pub(crate) params: Option<Arc<SpsFacts>>,
    pub(crate) gop: Gop,
    pub(crate) keyframes: Merger,
    /// The moment for which the merger's timer is set.
    pub(crate) timer: Option<Instant>,
    next_index: Option<u64>,
    /// There was a keyframe, and no frame is missing since.
    decodable: bool,
    /// It was said that frames do not decode.
    told: bool,
    /// Keys of viewers: controllers are served first.
    controllers: Vec<usize>,
    observers: Vec<usize>,
    /// Where the next frame begins among the observers, so that nobody is always last.
    turn: usize,
}

impl Stream {
    pub(crate) fn new(info: StreamInfo) -> Self {
        Self {
            name: info.name,
            epoch: info.epoch,
            live: true,
            rotation: info.rotation,
            params: info.params,
            gop: Gop::default(),
            keyframes: Merger::default(),
            timer: None,
            next_index: None,
            decodable: false,
            told: false,
            controllers: Vec::new(),
            observers: Vec::new(),
            turn: 0,
        }
    }

    /// A source came (back). Returns `false` when it is of an old epoch.
    pub(crate) fn up(&mut self, info: StreamInfo) -> bool {
        if info.epoch < self.epoch {
            return false;
        }
        self.epoch = info.epoch;
        self.live = true;
        self.rotation = info.rotation;
        if info.params.is_some() {
            self.params = info.params;
        }
        self.restart();
        true
    }

    /// The source is gone.
    pub(crate) fn down(&mut self) {
        self.live = false;
        self.restart();
        self.keyframes.met();
    }

    /// The publisher's epoch rose without notice.
    pub(crate) fn new_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.restart();
    }

    fn restart(&mut self) {
        self.gop.clear();
        self.next_index = None;
        self.decodable = false;
        self.told = false;
    }

    /// Takes a frame in. The caller has seen to it that its epoch is the stream's.
    pub(crate) fn take(
        &mut self,
        frame: &Arc<Frame>,
        limits: &Limits,
        counters: &mut Counters,
    ) -> Taken {
        let bounded = (1..=PAYLOADS_PER_FRAME_MAX).contains(&frame.payloads.len())
            && frame.payloads.iter().all(|p| (1..=PAYLOAD_BYTES_MAX).contains(&p.len()));
        if !bounded || self.next_index.is_some_and(|next| frame.index < next) {
            return Taken::Refused;
        }
        let hole = self.next_index.is_some_and(|next| frame.index > next);
        self.next_index = Some(frame.index.saturating_add(1));
        if hole {
            counters.frame_gaps += 1;
        }
        self.decodable = frame.key || (self.decodable && !hole);
        if !self.decodable {
            self.gop.clear();
            return Taken::Undecodable { first: !std::mem::replace(&mut self.told, true) };
        }
        self.told = false;
        if !self.gop.push(frame, limits.gop_frames_max, limits.gop_bytes_max) {
            counters.gop_overflows += 1;
        }
        if frame.key {
            self.keyframes.met();
        }
        Taken::Forward { resized: self.note_params(frame) }
    }

    fn note_params(&mut self, frame: &Frame) -> bool {
        let Some(new) = &frame.params else { return false };
        let size = |p: &SpsFacts| (p.width, p.height);
        let resized = self.params.as_deref().map(size) != Some(size(new));
        self.params = Some(Arc::clone(new));
        resized
    }

    /// Viewers in the order in which this frame serves them: controllers, then observers, from
    /// another one each time.
    pub(crate) fn in_turn(&mut self) -> impl Iterator<Item = usize> + '_ {
        let count = self.observers.len();
        self.turn = if count == 0 { 0 } else { (self.turn + 1) % count };
        let (before, after) = self.observers.split_at(self.turn);
        self.controllers.iter().chain(after).chain(before).copied()
    }

    pub(crate) fn viewers(&self) -> impl Iterator<Item = usize> + '_ {
        self.controllers.iter().chain(&self.observers).copied()
    }

    pub(crate) fn controllers(&self) -> &[usize] {
        &self.controllers
    }

    pub(crate) fn viewer_count(&self) -> usize {
        self.controllers.len() + self.observers.len()
    }

    pub(crate) fn add(&mut self, viewer: usize, role: Role) {
        match role {
            Role::Controller => self.controllers.push(viewer),
            Role::Observer => self.observers.push(viewer),
        }
    }

    pub(crate) fn remove(&mut self, viewer: usize) {
        for list in [&mut self.controllers, &mut self.observers] {
            if let Some(at) = list.iter().position(|v| *v == viewer) {
                list.swap_remove(at);
            }
        }
    }
}
