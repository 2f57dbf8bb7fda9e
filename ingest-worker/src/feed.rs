//! One device's frames on their way to its publishes. Not a queue per viewer: there are at most a
//! few publishes (one, or two while a stream moves). Invariant: what [`Feed::subscribe`] returns is
//! a group of pictures and the frames right after it, with nothing between lost or repeated.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::{frame::Frame, gop::Gop};

/// Frames a slow publish may be behind before it skips to the next keyframe: 4 s at 60 per second.
const QUEUE_FRAMES: usize = 256;
/// Messages of the device (clipboard) a slow publish may be behind.
const QUEUE_OUTPUTS: usize = 16;

/// What publishes need to know beside frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedState {
    /// A keyframe was seen and the source still runs.
    pub live: bool,
    /// Width of the newest picture.
    pub width: u16,
    /// Height of the newest picture.
    pub height: u16,
}

/// A message from the device to its viewers, encoded as on the data channel.
pub type Output = Arc<Vec<u8>>;

/// Fan-out of one device.
#[derive(Debug)]
pub struct Feed {
    gop: Mutex<Gop>,
    frames: broadcast::Sender<Arc<Frame>>,
    outputs: broadcast::Sender<Output>,
    state: watch::Sender<FeedState>,
}

/// What a publish reads.
#[derive(Debug)]
pub struct Subscription {
    /// From the last keyframe up to now; empty when it is too large to keep.
    pub backlog: Vec<Arc<Frame>>,
    /// What comes after.
    pub frames: broadcast::Receiver<Arc<Frame>>,
    /// Messages from the device.
    pub outputs: broadcast::Receiver<Output>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            gop: Mutex::default(),
            frames: broadcast::Sender::new(QUEUE_FRAMES),
            outputs: broadcast::Sender::new(QUEUE_OUTPUTS),
            state: watch::Sender::new(FeedState::default()),
        }
    }
}

impl Feed {
    /// Hands a frame to all publishes. Returns whether the group of pictures can still be replayed.
    pub fn push(&self, frame: Frame) -> bool {
        let (width, height, key) = (frame.width, frame.height, frame.key);
        let frame = Arc::new(frame);
        let replayable = {
            let mut gop = self.gop.lock();
            gop.push(&frame);
            // Under the lock, so that a subscriber sees each frame once. No receiver is no error.
            let _ = self.frames.send(frame);
            gop.has_key()
        };
        self.state.send_if_modified(|s| {
            let live = s.live || key;
            let next = FeedState { live, width, height };
            std::mem::replace(s, next) != next
        });
        replayable
    }

    /// Hands a message of the device to all publishes.
    pub fn output(&self, message: Vec<u8>) {
        let _ = self.outputs.send(Arc::new(message));
    }

    /// The source ended: its pictures are no longer what the screen shows.
    pub fn end(&self) {
        self.gop.lock().clear();
        self.state.send_modify(|s| s.live = false);
    }

    /// The current group of pictures and all that follows.
    pub fn subscribe(&self) -> Subscription {
        let gop = self.gop.lock();
        Subscription {
            backlog: gop.snapshot(),
            frames: self.frames.subscribe(),
            outputs: self.outputs.subscribe(),
        }
    }

    /// Watches the state.
    pub fn state(&self) -> watch::Receiver<FeedState> {
        self.state.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(index: u64, key: bool) -> Frame {
        Frame { index, key, width: 720, height: 1280, ..Frame::default() }
    }

    #[test]
    fn a_late_publish_gets_the_group_of_pictures_and_then_each_frame_once() {
        let feed = Feed::default();
        feed.push(frame(0, true));
        feed.push(frame(1, false));
        let mut s = feed.subscribe();
        feed.push(frame(2, false));
        let seen: Vec<u64> = s.backlog.iter().map(|f| f.index).collect();
        assert_eq!(seen, [0, 1]);
        assert_eq!(s.frames.try_recv().unwrap().index, 2);
        assert!(s.frames.try_recv().is_err());
    }

    #[test]
    fn the_feed_is_live_from_a_keyframe_to_the_end_of_the_source() {
        let feed = Feed::default();
        let state = feed.state();
        feed.push(frame(0, false));
        assert!(!state.borrow().live);
        feed.push(frame(1, true));
        assert_eq!(*state.borrow(), FeedState { live: true, width: 720, height: 1280 });
        feed.end();
        assert!(!state.borrow().live);
        assert!(feed.subscribe().backlog.is_empty());
    }
}
