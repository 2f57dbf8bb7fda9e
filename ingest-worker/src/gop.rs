//! The pictures since the last keyframe, so that a router that takes the stream anew has a picture
//! at once, even from a still screen: no capture here can make a keyframe on request. Pure.
//! Invariant: what [`Gop::snapshot`] yields starts with a keyframe and has no gap up to now.

use std::sync::Arc;

use crate::frame::Frame;

/// Bytes kept. At 8 Mbit/s and a keyframe each 2 s about half of it is used.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Frames kept: 10 s at 60 per second.
pub const MAX_FRAMES: usize = 600;

/// The current group of pictures.
#[derive(Debug, Default)]
pub struct Gop {
    frames: Vec<Arc<Frame>>,
    bytes: usize,
    overflowed: bool,
}

impl Gop {
    /// Takes the newest frame. A keyframe starts over; beyond a bound the group is given up until
    /// the next keyframe, because a group with a hole would show a broken picture.
    pub fn push(&mut self, frame: &Arc<Frame>) {
        if frame.key {
            self.clear();
        } else if self.overflowed || self.frames.is_empty() {
            return;
        }
        let bytes = frame.bytes();
        if self.bytes + bytes > MAX_BYTES || self.frames.len() >= MAX_FRAMES {
            self.clear();
            self.overflowed = true;
            return;
        }
        self.bytes += bytes;
        self.frames.push(Arc::clone(frame));
    }

    /// From the keyframe up to now; empty when there is none or the group is too large.
    pub fn snapshot(&self) -> Vec<Arc<Frame>> {
        self.frames.clone()
    }

    /// Whether [`Self::snapshot`] has a picture.
    pub fn has_key(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Forgets all: the source ended.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
        self.overflowed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(key: bool, size: usize) -> Arc<Frame> {
        Arc::new(Frame { key, payloads: vec![vec![0; size]], ..Frame::default() })
    }

    #[test]
    fn a_keyframe_starts_the_group_over() {
        let mut gop = Gop::default();
        gop.push(&frame(false, 1));
        assert!(!gop.has_key(), "nothing can be decoded before the first keyframe");
        gop.push(&frame(true, 1));
        gop.push(&frame(false, 1));
        assert_eq!(gop.snapshot().len(), 2);
        gop.push(&frame(true, 1));
        assert_eq!(gop.snapshot().len(), 1);
    }

    #[test]
    fn a_group_beyond_the_bound_is_given_up_until_the_next_keyframe() {
        let mut gop = Gop::default();
        gop.push(&frame(true, MAX_BYTES - 10));
        gop.push(&frame(false, 11));
        assert!(!gop.has_key());
        gop.push(&frame(false, 1));
        assert!(!gop.has_key(), "a hole in the group must not be replayed");
        gop.push(&frame(true, 5));
        assert!(gop.has_key());
        for _ in 0..MAX_FRAMES {
            gop.push(&frame(false, 0));
        }
        assert!(!gop.has_key());
    }
}
