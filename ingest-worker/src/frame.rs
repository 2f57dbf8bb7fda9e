//! One picture as it goes to routers, and the clock that stamps it. Not its RTP headers, which
//! differ per publish. Invariant: within one [`CaptureClock`] the RTP times only grow, also over
//! restarts of the source, whose own clock may start anywhere.

use std::time::Duration;

/// RTP clock of all video.
pub const CLOCK_RATE_HZ: u32 = 90_000;

/// One access unit, cut for RTP. Immutable; shared by every publish of the device.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Consecutive per device, over source restarts.
    pub index: u64,
    /// 90 kHz, from the device task's start; a publish adds its own random offset.
    pub rtp_time: u32,
    /// When the device captured it, by our clock, microseconds since 1970.
    pub capture_unix_us: u64,
    /// Decodable by itself, with parameter sets in front.
    pub key: bool,
    /// No later picture refers to it.
    pub discardable: bool,
    /// Width of the picture.
    pub width: u16,
    /// Height of the picture.
    pub height: u16,
    /// RTP payloads.
    pub payloads: Vec<Vec<u8>>,
}

impl Frame {
    /// Bytes of all payloads.
    pub fn bytes(&self) -> usize {
        self.payloads.iter().map(Vec::len).sum()
    }
}

/// How fast the offset between the clocks may drift upwards, as a part of elapsed time: twice what
/// a bad quartz does.
const DRIFT_DIVISOR: i64 = 10_000;
/// A step of the source's clock beyond this is a new clock.
const MAX_STEP: Duration = Duration::from_secs(2);

/// Maps the source's presentation times to ours. The smallest delay seen is taken as the true one.
#[derive(Debug, Default)]
pub struct CaptureClock {
    anchor: Option<Anchor>,
    last_ticks: u64,
}

#[derive(Debug)]
struct Anchor {
    /// Unix time less presentation time, at the least delayed picture.
    offset_us: i64,
    last_arrival_us: u64,
    last_pts_us: u64,
    /// Added to presentation times for the RTP clock; constant, so that it has no jitter.
    ticks_offset_us: i64,
}

/// What the clock says about one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// 90 kHz, wrapped.
    pub rtp_time: u32,
    /// Microseconds since 1970.
    pub capture_unix_us: u64,
}

impl CaptureClock {
    /// Stamps a picture with presentation time `pts_us` that arrived at `unix_us`; `mono_us` is the
    /// same moment on a clock that nobody sets, from the device task's start.
    pub fn stamp(&mut self, unix_us: u64, mono_us: u64, pts_us: u64) -> Stamp {
        let offset = signed(unix_us) - signed(pts_us);
        let fresh = match &self.anchor {
            Some(a) => {
                let stepped = signed(pts_us) - signed(a.last_pts_us);
                let elapsed = signed(unix_us) - signed(a.last_arrival_us);
                let limit = i64::try_from(MAX_STEP.as_micros()).unwrap_or(i64::MAX);
                stepped < 0 || (stepped - elapsed).abs() > limit
            }
            None => true,
        };
        if fresh {
            self.anchor = None;
        }
        let anchor = self.anchor.get_or_insert_with(|| Anchor {
            offset_us: offset,
            last_arrival_us: unix_us,
            last_pts_us: pts_us,
            ticks_offset_us: signed(mono_us) - signed(pts_us),
        });
        let elapsed = signed(unix_us.saturating_sub(anchor.last_arrival_us));
        anchor.offset_us = offset.min(anchor.offset_us + elapsed / DRIFT_DIVISOR);
        anchor.last_arrival_us = unix_us;
        anchor.last_pts_us = pts_us;
        let micros = (signed(pts_us) + anchor.ticks_offset_us).max(0).unsigned_abs();
        let ticks = (micros / 100 * 9 + micros % 100 * 9 / 100).max(self.last_ticks + 1);
        self.last_ticks = ticks;
        Stamp {
            rtp_time: low_32(ticks),
            capture_unix_us: (signed(pts_us) + anchor.offset_us).max(0).unsigned_abs(),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the RTP clock wraps at 32 bits")]
fn low_32(ticks: u64) -> u32 {
    ticks as u32
}

/// Times here are far below 2^62: presentation times have at most 62 bits.
fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX: u64 = 1_700_000_000_000_000;

    #[test]
    fn jitter_of_arrival_does_not_reach_the_rtp_clock() {
        let mut c = CaptureClock::default();
        let a = c.stamp(UNIX, 0, 5_000_000);
        let b = c.stamp(UNIX + 43_333, 43_333, 5_033_333);
        let d = c.stamp(UNIX + 70_000, 70_000, 5_066_666);
        assert_eq!((a.rtp_time, b.rtp_time, d.rtp_time), (1, 2_999, 5_999));
        // The second came 10 ms late; the clock knows better from the first.
        assert!(b.capture_unix_us.abs_diff(UNIX + 33_333) < 10, "{b:?}");
    }

    #[test]
    fn a_restarted_source_goes_on_after_the_last_picture() {
        let mut c = CaptureClock::default();
        let a = c.stamp(UNIX, 0, 900_000_000);
        let b = c.stamp(UNIX + 500_000, 500_000, 0);
        assert!(b.rtp_time > a.rtp_time);
        assert_eq!(b.rtp_time, 45_000);
        assert_eq!(b.capture_unix_us, UNIX + 500_000);
    }

    #[test]
    fn a_long_still_screen_is_no_new_clock() {
        let mut c = CaptureClock::default();
        c.stamp(UNIX, 0, 1_000_000);
        let hour = 3_600_000_000;
        let s = c.stamp(UNIX + hour, hour, 1_000_000 + hour);
        assert_eq!(u64::from(s.rtp_time), 3_600 * 90_000);
    }

    #[test]
    fn the_largest_presentation_time_does_not_overflow() {
        let mut c = CaptureClock::default();
        c.stamp(UNIX, 0, (1 << 62) - 1);
        c.stamp(u64::MAX, u64::MAX, 0);
        c.stamp(0, 0, u64::MAX);
    }
}
