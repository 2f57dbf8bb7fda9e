//! How the packets of a frame reach one viewer.
//!
//! The rest of the core says *which* payloads go out, with which sequence number and time stamp;
//! this file says *how*. It is the one file that a faster path replaces: [`EgressPath`] is the
//! seam. Invariant: a path sends exactly the packets it is given, in order, and holds no frame
//! beyond what repair needs.

use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use str0m::Rtc;
use str0m::media::{MediaTime, Pt};
use str0m::rtp::{AbsCaptureTime, ExtensionValues, RtpWrite, SeqNo, Ssrc};

use crate::api::Role;
use crate::frame::Frame;

/// What was agreed with one viewer.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) pt: Pt,
    pub(crate) ssrc: Ssrc,
    /// Lost packets can be asked for again.
    pub(crate) nackable: bool,
    pub(crate) playout_delay: bool,
    pub(crate) capture_time: bool,
}

/// Consecutive packets of one frame for one viewer.
#[derive(Debug)]
pub(crate) struct Packets<'a> {
    pub(crate) frame: &'a Frame,
    /// Which of the frame's payloads.
    pub(crate) range: Range<usize>,
    /// Sequence number of the first, roll-overs in the upper bits.
    pub(crate) first_seq: u64,
    /// The viewer's time stamp of the frame.
    pub(crate) rtp_time: u32,
}

/// A way for packets to reach viewers.
pub(crate) trait EgressPath {
    /// What the path keeps per viewer.
    type Viewer: std::fmt::Debug;

    /// A viewer was answered.
    fn attach(&self, terms: Terms) -> Self::Viewer;

    /// Sends packets. Only called for a connected viewer. Returns whether the viewer's protocol
    /// state must be polled for them to leave.
    fn send(
        &self,
        viewer: &mut Self::Viewer,
        rtc: &mut Rtc,
        now: Instant,
        role: Role,
        packets: Packets<'_>,
    ) -> bool;
}

/// Longest time between two packets with the capture time; receivers interpolate.
const CAPTURE_TIME_INTERVAL: Duration = Duration::from_secs(1);

/// Greatest playout delay asked of observers: they may smooth, controllers may not.
const OBSERVER_DELAY_MAX: Duration = Duration::from_millis(100);

/// The plain path: the protocol library packs, encrypts, reports and repairs.
#[derive(Debug, Default)]
pub(crate) struct RtpModePath;

/// What the plain path keeps per viewer.
#[derive(Debug)]
pub(crate) struct RtpModeViewer {
    terms: Terms,
    capture_time_at: Option<Instant>,
}

impl EgressPath for RtpModePath {
    type Viewer = RtpModeViewer;

    fn attach(&self, terms: Terms) -> RtpModeViewer {
        RtpModeViewer { terms, capture_time_at: None }
    }

    fn send(
        &self,
        viewer: &mut RtpModeViewer,
        rtc: &mut Rtc,
        now: Instant,
        role: Role,
        packets: Packets<'_>,
    ) -> bool {
        let Packets { frame, range, first_seq, rtp_time } = packets;
        let capture = viewer.capture_time(now, frame, range.start);
        let terms = &viewer.terms;
        let mut api = rtc.direct_api();
        let Some(stream) = api.stream_tx(&terms.ssrc) else { return false };
        let last = frame.payloads.len().saturating_sub(1);
        let first = range.start;
        for (seq, index) in (first_seq..).zip(range) {
            let Some(payload) = frame.payloads.get(index) else { break };
            let mut values = ExtensionValues::default();
            if terms.playout_delay {
                let max =
                    if role == Role::Controller { Duration::ZERO } else { OBSERVER_DELAY_MAX };
                values.play_delay_min = Some(MediaTime::from_millis(0));
                values.play_delay_max = Some(MediaTime::from(max));
            }
            if index == first {
                values.abs_capture_time = capture;
            }
            stream.write_rtp(
                RtpWrite::new(terms.pt, SeqNo::from(seq), rtp_time, now, payload.clone())
                    .marker(index == last)
                    .ext_vals(values)
                    .nackable(terms.nackable),
            );
        }
        true
    }
}

impl RtpModeViewer {
    /// The capture time to put on this frame's first packet, if it is due.
    fn capture_time(
        &mut self,
        now: Instant,
        frame: &Frame,
        first: usize,
    ) -> Option<AbsCaptureTime> {
        let micros = frame.capture_unix_us.filter(|_| self.terms.capture_time && first == 0)?;
        let due = self
            .capture_time_at
            .is_none_or(|at| now.saturating_duration_since(at) >= CAPTURE_TIME_INTERVAL);
        if !due {
            return None;
        }
        self.capture_time_at = Some(now);
        let capture_time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))?;
        Some(AbsCaptureTime { capture_time, clock_offset: None })
    }
}
