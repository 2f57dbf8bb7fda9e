//! Merges what viewers need into few keyframe requests to the encoder.
//!
//! Pure policy of one stream; who may be answered from the cache instead is decided before, in
//! `core`. Invariants: at most one request per interval, and a need that a keyframe has not met
//! is never forgotten.

use std::time::{Duration, Instant};

use crate::api::KeyframeReason;

/// One stream's merger.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    last: Option<Instant>,
    /// A need since the last keyframe, and when to ask (again).
    open: Option<(KeyframeReason, Instant)>,
}

impl Merger {
    /// Somebody needs a keyframe.
    pub(crate) fn need(&mut self, now: Instant, interval: Duration, reason: KeyframeReason) {
        if self.open.is_none() {
            let at = self.last.map_or(now, |last| (last + interval).max(now));
            self.open = Some((reason, at));
        }
    }

    /// A keyframe came: every need is met.
    pub(crate) fn met(&mut self) {
        self.open = None;
    }

    /// When [`Self::poll`] has something to say.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.open.map(|(_, at)| at)
    }

    /// The request to send now, if any. While the need is open it is repeated after `retry`.
    pub(crate) fn poll(&mut self, now: Instant, retry: Duration) -> Option<KeyframeReason> {
        let (reason, at) = self.open?;
        if at > now {
            return None;
        }
        self.last = Some(now);
        self.open = Some((reason, now + retry));
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(300);
    const RETRY: Duration = Duration::from_secs(1);

    #[test]
    fn needs_within_the_interval_are_one_request_and_none_is_forgotten() {
        #[allow(clippy::disallowed_methods, reason = "a test's epoch")]
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let mut m = Merger::default();
        for ms in 0..100 {
            m.need(at(ms), INTERVAL, KeyframeReason::Loss);
            assert_eq!(m.poll(at(ms), RETRY).is_some(), ms == 0);
        }
        // The keyframe comes; a loss after it is a new need, but waits for the interval.
        m.met();
        m.need(at(150), INTERVAL, KeyframeReason::Loss);
        assert_eq!(m.poll(at(150), RETRY), None);
        assert_eq!(m.due(), Some(at(300)));
        assert_eq!(m.poll(at(300), RETRY), Some(KeyframeReason::Loss));
        // Unanswered: asked again, later.
        assert_eq!(m.poll(at(900), RETRY), None);
        assert_eq!(m.poll(at(1_300), RETRY), Some(KeyframeReason::Loss));
        m.met();
        assert_eq!(m.due(), None);
    }
}
