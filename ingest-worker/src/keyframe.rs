//! When the source's encoder is started anew for the sake of a keyframe. Pure. scrcpy has no
//! "keyframe, please": RESET_VIDEO ends the encoder and makes another, so it is the last resort.
//! Invariant: at most one reset per second, whatever is asked for.

use std::time::{Duration, Instant};

/// Least time between two resets.
pub const RESET_INTERVAL: Duration = Duration::from_secs(1);
/// How long a request waits for the encoder's own next keyframe while one is cached. The interval
/// asked of the encoder is 2 s, so half of the requests never cost a reset.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Decides on resets for one device.
#[derive(Debug, Default)]
pub struct KeyframePolicy {
    asked: Option<Instant>,
    last_reset: Option<Instant>,
    cached: bool,
}

impl KeyframePolicy {
    /// Somebody needs a keyframe.
    pub fn request(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// The encoder made one; all requests are answered.
    pub fn keyframe(&mut self) {
        self.asked = None;
        self.cached = true;
    }

    /// The group of pictures outgrew its bound or the source ended: nothing can be replayed.
    pub fn cache_lost(&mut self) {
        self.cached = false;
    }

    /// The source ended; a new one starts with a keyframe anyway.
    pub fn source_ended(&mut self) {
        *self = Self { last_reset: self.last_reset, ..Self::default() };
    }

    /// Whether to reset now. Counts as done when true.
    pub fn poll_reset(&mut self, now: Instant) -> bool {
        if self.next_reset().is_none_or(|at| at > now) {
            return false;
        }
        self.last_reset = Some(now);
        self.asked = None;
        true
    }

    /// When [`Self::poll_reset`] will say yes, unless a keyframe comes.
    pub fn next_reset(&self) -> Option<Instant> {
        let asked = self.asked?;
        let patient = if self.cached { asked + PATIENCE } else { asked };
        Some(self.last_reset.map_or(patient, |last| patient.max(last + RESET_INTERVAL)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cached_keyframe_the_encoder_is_reset_at_once_but_once_a_second() {
        let mut p = KeyframePolicy::default();
        let start = Instant::now();
        let mut resets = Vec::new();
        for ms in (0..3_000).step_by(50) {
            let now = start + Duration::from_millis(ms);
            p.request(now);
            if p.poll_reset(now) {
                resets.push(ms);
            }
        }
        assert_eq!(resets, [0, 1000, 2000]);
    }

    #[test]
    fn a_keyframe_the_encoder_makes_by_itself_saves_the_reset() {
        let mut p = KeyframePolicy::default();
        let start = Instant::now();
        p.keyframe();
        p.request(start);
        assert!(!p.poll_reset(start));
        p.keyframe();
        assert_eq!(p.next_reset(), None);
        assert!(!p.poll_reset(start + Duration::from_secs(9)));
    }

    #[test]
    fn a_still_screen_is_reset_after_the_patience() {
        let mut p = KeyframePolicy::default();
        let start = Instant::now();
        p.keyframe();
        p.request(start);
        p.request(start + Duration::from_millis(900));
        assert_eq!(p.next_reset(), Some(start + PATIENCE));
        assert!(p.poll_reset(start + PATIENCE));
        assert!(!p.poll_reset(start + PATIENCE));
    }

    #[test]
    fn a_lost_cache_ends_the_patience() {
        let mut p = KeyframePolicy::default();
        let start = Instant::now();
        p.keyframe();
        p.request(start);
        p.cache_lost();
        assert!(p.poll_reset(start));
    }
}
