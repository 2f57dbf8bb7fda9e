//! The recent pictures of one stream: what a joiner is shown at once, and what a loss is repaired
//! from. One for all viewers.
//!
//! Pictures have a number here, counted up by one for each that was taken, so that a viewer can
//! hold a number instead of a picture. Two uses, two bounds: the *group* (the newest keyframe and
//! all that followed) is kept whole or not at all; what is older is kept as far as there is room,
//! for repairs. Invariant: the group is closed or begins with a keyframe and has no hole, so that
//! it can be replayed to a decoder that knows nothing.
//!
//! | bound | what happens there |
//! |---|---|
//! | pictures or bytes, reached by old pictures | the oldest go; a repair of them is refused and counted |
//! | pictures or bytes, reached by the group alone | it closes until the next keyframe, which is asked for; joiners meanwhile wait for it |
//! | age | none: a static screen's only picture is as good after an hour |

use std::collections::VecDeque;
use std::sync::Arc;

use crate::frame::Frame;

/// The pictures.
#[derive(Debug, Default)]
pub(crate) struct History {
    frames: VecDeque<Arc<Frame>>,
    /// Number of the first one held.
    first: u64,
    /// Number of the keyframe with which the group begins.
    key: Option<u64>,
    /// Of all pictures, and of those in the group.
    bytes: usize,
    group_bytes: usize,
}

impl History {
    /// Takes in the next picture. Returns `false` when the group reached a bound just now.
    pub(crate) fn push(&mut self, frame: &Arc<Frame>, frames_max: usize, bytes_max: usize) -> bool {
        let no = self.end();
        if frame.key {
            self.key = Some(no);
            self.group_bytes = 0;
        }
        self.group_bytes += frame.size();
        self.bytes += frame.size();
        self.frames.push_back(Arc::clone(frame));
        let mut whole = true;
        while self.frames.len() > frames_max.max(1)
            || (self.bytes > bytes_max && self.frames.len() > 1)
        {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.size();
            if self.key.is_some_and(|key| key <= self.first) {
                self.key = None;
                whole = false;
            }
            self.first += 1;
        }
        whole
    }

    /// Closes the group: a hole, or another source. Repairs stay possible.
    pub(crate) fn close_group(&mut self) {
        self.key = None;
    }

    /// The number that the next picture will have.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// A picture, if it is still held.
    pub(crate) fn get(&self, no: u64) -> Option<&Arc<Frame>> {
        let at = usize::try_from(no.checked_sub(self.first)?).ok()?;
        self.frames.get(at)
    }

    /// Whether there is a group to replay.
    pub(crate) fn has_group(&self) -> bool {
        self.key.is_some()
    }

    /// Number of the keyframe with which the group begins.
    pub(crate) fn group_start(&self) -> Option<u64> {
        self.key
    }

    /// Bytes in the group.
    pub(crate) fn group_bytes(&self) -> usize {
        self.key.map_or(0, |_| self.group_bytes)
    }

    /// What brings a decoder up to date: the keyframe and everything after it that later pictures
    /// refer to, and the newest picture in any case.
    pub(crate) fn replay(&self) -> impl Iterator<Item = (u64, &Arc<Frame>)> + Clone {
        let newest = self.end().saturating_sub(1);
        let from = self.key.unwrap_or_else(|| self.end());
        (from..self.end())
            .filter_map(|no| Some((no, self.get(no)?)))
            .filter(move |(no, f)| f.key || !f.discardable || *no == newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::epoch;

    fn frame(index: u64, key: bool, discardable: bool, size: usize) -> Arc<Frame> {
        Arc::new(Frame {
            epoch: 1,
            index,
            arrived: epoch(),
            rtp_time: 0,
            capture_unix_us: None,
            key,
            discardable,
            payloads: vec![vec![0; size].into()],
            params: None,
        })
    }

    #[test]
    fn nothing_is_replayed_before_a_keyframe() {
        let mut history = History::default();
        assert!(history.push(&frame(0, false, false, 10), 10, 1_000));
        assert!(!history.has_group());
        assert_eq!(history.replay().count(), 0);
        assert!(history.get(0).is_some(), "but it can be repaired");
    }

    #[test]
    fn a_replay_leaves_out_what_nothing_refers_to_but_the_newest() {
        let mut history = History::default();
        for (i, discardable) in [false, true, false, true, true].into_iter().enumerate() {
            assert!(history.push(&frame(i as u64, i == 0, discardable, 10), 10, 1_000));
        }
        let numbers: Vec<u64> = history.replay().map(|(no, _)| no).collect();
        assert_eq!(numbers, [0, 2, 4]);
    }

    #[test]
    fn a_new_group_pushes_out_the_old_one_only_as_room_is_needed() {
        let mut history = History::default();
        for i in 0..4 {
            history.push(&frame(i, i == 0, false, 10), 5, 1_000);
        }
        history.push(&frame(4, true, false, 10), 5, 1_000);
        assert!(history.get(0).is_some());
        assert!(history.push(&frame(5, false, false, 10), 5, 1_000));
        assert!(history.get(0).is_none());
        assert_eq!(history.replay().map(|(no, _)| no).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn at_either_bound_the_group_closes_until_the_next_keyframe() {
        for (frames, bytes) in [(3, 10_000), (100, 35)] {
            let mut history = History::default();
            assert!(history.push(&frame(0, true, false, 10), frames, bytes));
            assert!(history.push(&frame(1, false, false, 10), frames, bytes));
            assert!(history.push(&frame(2, false, false, 10), frames, bytes));
            assert!(!history.push(&frame(3, false, false, 10), frames, bytes), "said once");
            assert!(history.push(&frame(4, false, false, 10), frames, bytes));
            assert!(!history.has_group());
            assert!(history.push(&frame(5, true, false, 10), frames, bytes));
            assert_eq!(history.replay().count(), 1);
        }
    }
}
