//! One device's stream: epoch fence, cache, who watches, what is owed to the encoder.
//!
//! Not the viewers themselves. Invariant: a frame is taken once, in order, from the highest epoch
//! seen; after a hole nothing is taken until the next keyframe, because nothing would decode.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fanlight_wire::h264::SpsFacts;

use crate::api::{Role, StreamInfo};
use crate::counters::Counters;
use crate::frame::Frame;
use crate::history::History;
use crate::keyframe::Merger;
use crate::limits::{Limits, PAYLOAD_BYTES_MAX, PAYLOADS_PER_FRAME_MAX};
use crate::pressure::Rates;

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
        /// The group of pictures reached its bound just now: joiners would wait.
        overflowed: bool,
    },
}

/// One round over the observers.
#[derive(Debug, Clone, Copy, Default)]
struct Pass {
    /// How many had their turn.
    at: usize,
    /// Another round is needed after it.
    again: bool,
}

/// Where pass number `pass` begins among `count` viewers: steps of the golden ratio, so that after a
/// few passes everybody has been early as often as late, however many there are.
fn spread(pass: u64, count: usize) -> usize {
    let fraction = pass.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    usize::try_from((fraction * count as u64) >> 32).unwrap_or(0)
}

/// Measures what the stream costs, over windows of a second.
#[derive(Debug, Default)]
struct Meter {
    rates: Rates,
    since: Option<Instant>,
    bytes: u64,
    reference_bytes: u64,
}

impl Meter {
    const WINDOW: Duration = Duration::from_secs(1);
    /// Header, tag and UDP/IP of one packet.
    const OVERHEAD_BYTES: u64 = 28 + 16 + 28;

    fn count(&mut self, now: Instant, frame: &Frame) {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if passed >= Self::WINDOW {
            let us = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
            let bps = |bytes: u64| bytes.saturating_mul(8_000_000) / us;
            self.rates =
                Rates { full_bps: bps(self.bytes), reference_bps: bps(self.reference_bytes) };
            *self = Self { rates: self.rates, since: Some(now), ..Self::default() };
        }
        let bytes = frame.size() as u64 + frame.payloads.len() as u64 * Self::OVERHEAD_BYTES;
        self.bytes += bytes;
        if !frame.discardable {
            self.reference_bytes += bytes;
        }
    }
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
    pub(crate) history: History,
    meter: Meter,
    /// The stream waits to have its controllers served.
    pub(crate) leading: bool,
    pass: Option<Pass>,
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
    /// Where the present pass begins among the observers, so that nobody is always last.
    turn: usize,
    passes: u64,
}

impl Stream {
    pub(crate) fn new(info: StreamInfo) -> Self {
        Self {
            name: info.name,
            epoch: info.epoch,
            live: true,
            rotation: info.rotation,
            params: info.params,
            history: History::default(),
            meter: Meter::default(),
            leading: false,
            pass: None,
            keyframes: Merger::default(),
            timer: None,
            next_index: None,
            decodable: false,
            told: false,
            controllers: Vec::new(),
            observers: Vec::new(),
            turn: 0,
            passes: 0,
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
        self.history.close_group();
        self.next_index = None;
        self.decodable = false;
        self.told = false;
    }

    /// Takes a frame in. The caller has seen to it that its epoch is the stream's.
    pub(crate) fn take(
        &mut self,
        now: Instant,
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
            self.history.close_group();
            return Taken::Undecodable { first: !std::mem::replace(&mut self.told, true) };
        }
        self.told = false;
        let whole = self.history.push(frame, limits.gop_frames_max, limits.gop_bytes_max);
        counters.gop_overflows += u64::from(!whole);
        self.meter.count(now, frame);
        if frame.key {
            self.keyframes.met();
        }
        Taken::Forward { resized: self.note_params(frame), overflowed: !whole }
    }

    fn note_params(&mut self, frame: &Frame) -> bool {
        let Some(new) = &frame.params else { return false };
        let size = |p: &SpsFacts| (p.width, p.height);
        let resized = self.params.as_deref().map(size) != Some(size(new));
        self.params = Some(Arc::clone(new));
        resized
    }

    /// What the stream costs its viewers lately.
    pub(crate) fn rates(&self) -> Rates {
        self.meter.rates
    }

    /// A frame came: its observers are to be served, from another one each time, so that nobody is
    /// always last. `true`: a pass begins; `false`: one is under way and will be repeated.
    pub(crate) fn begin_pass(&mut self) -> bool {
        if let Some(pass) = &mut self.pass {
            pass.again = true;
            return false;
        }
        self.pass = Some(Pass::default());
        self.passes = self.passes.wrapping_add(1);
        self.turn = spread(self.passes, self.observers.len());
        true
    }

    /// The observer whose turn it is.
    pub(crate) fn next_in_pass(&self) -> Option<usize> {
        let at = self.pass?.at;
        let count = self.observers.len();
        if at >= count {
            return None;
        }
        let place = self.turn + at;
        self.observers.get(if place < count { place } else { place - count }).copied()
    }

    /// It was served.
    pub(crate) fn served_in_pass(&mut self) {
        if let Some(pass) = &mut self.pass {
            pass.at += 1;
        }
    }

    /// Whether everyone had their turn.
    pub(crate) fn pass_is_over(&self) -> bool {
        self.pass.is_none_or(|pass| pass.at >= self.observers.len())
    }

    /// Ends the pass. `true`: another begins, because a frame came meanwhile or the viewers changed.
    pub(crate) fn end_pass(&mut self) -> bool {
        let again = self.pass.take().is_some_and(|pass| pass.again);
        again && self.begin_pass()
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
                // Somebody changed places, perhaps from before the pass to behind it.
                if let Some(pass) = &mut self.pass {
                    pass.again = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_served_late_more_often_than_others() {
        for count in [1, 2, 3, 10, 200, 1_000] {
            let passes = 60 * 5;
            let mut waited = vec![0_usize; count];
            for pass in 1..=passes {
                let turn = spread(pass, count);
                assert!(turn < count);
                for place in 0..count {
                    waited[(turn + place) % count] += place;
                }
            }
            let mean = waited.iter().sum::<usize>() as f64 / count as f64;
            for sum in waited {
                assert!((sum as f64 - mean).abs() <= 0.02 * mean + 2.0, "{count}: {sum} {mean}");
            }
        }
    }
}
