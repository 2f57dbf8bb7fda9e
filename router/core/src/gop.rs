//! The current group of pictures of one stream, bounded: what a joiner is shown at once.
//!
//! Not a history for retransmission. Invariant: the cache is empty or begins with a keyframe and
//! has no hole, so that whatever it holds can be replayed to a decoder that knows nothing.

use std::sync::Arc;

use crate::frame::Frame;

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Gop {
    frames: Vec<Arc<Frame>>,
    bytes: usize,
}

impl Gop {
    /// Takes in the next picture. Returns `false` when the bound was reached just now: the cache
    /// is then empty until the next keyframe.
    pub(crate) fn push(&mut self, frame: &Arc<Frame>, frames_max: usize, bytes_max: usize) -> bool {
        if frame.key {
            self.clear();
        } else if self.frames.is_empty() {
            return true;
        }
        let size = frame.size();
        if self.frames.len() >= frames_max || self.bytes + size > bytes_max {
            self.clear();
            return false;
        }
        self.bytes += size;
        self.frames.push(Arc::clone(frame));
        true
    }

    /// Forgets everything: a hole, or another source.
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    /// Whether there is anything to replay.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What brings a decoder up to date: the keyframe and everything after it that later pictures
    /// refer to, and the newest picture in any case.
    pub(crate) fn replay(&self) -> impl Iterator<Item = &Arc<Frame>> + Clone {
        let newest = self.frames.len().saturating_sub(1);
        self.frames
            .iter()
            .enumerate()
            .filter(move |(i, f)| f.key || !f.discardable || *i == newest)
            .map(|(_, f)| f)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(index: u64, key: bool, discardable: bool, size: usize) -> Arc<Frame> {
        Arc::new(Frame {
            epoch: 1,
            index,
            rtp_time: 0,
            capture_unix_us: None,
            key,
            discardable,
            payloads: vec![vec![0; size].into()],
            params: None,
        })
    }

    #[test]
    fn nothing_is_kept_before_a_keyframe() {
        let mut gop = Gop::default();
        assert!(gop.push(&frame(0, false, false, 10), 10, 1_000));
        assert!(gop.is_empty());
    }

    #[test]
    fn a_replay_leaves_out_what_nothing_refers_to_but_the_newest() {
        let mut gop = Gop::default();
        for (i, discardable) in [false, true, false, true, true].into_iter().enumerate() {
            assert!(gop.push(&frame(i as u64, i == 0, discardable, 10), 10, 1_000));
        }
        let indices: Vec<u64> = gop.replay().map(|f| f.index).collect();
        assert_eq!(indices, [0, 2, 4]);
    }

    #[test]
    fn at_either_bound_the_cache_closes_until_the_next_keyframe() {
        for (frames, bytes) in [(3, 10_000), (100, 35)] {
            let mut gop = Gop::default();
            assert!(gop.push(&frame(0, true, false, 10), frames, bytes));
            assert!(gop.push(&frame(1, false, false, 10), frames, bytes));
            assert!(gop.push(&frame(2, false, false, 10), frames, bytes));
            assert!(!gop.push(&frame(3, false, false, 10), frames, bytes), "overflow is said once");
            assert!(gop.push(&frame(4, false, false, 10), frames, bytes));
            assert_eq!(gop.len(), 0);
            assert!(gop.push(&frame(5, true, false, 10), frames, bytes));
            assert_eq!(gop.len(), 1);
        }
    }
}
