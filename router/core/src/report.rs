//! Sender reports and goodbyes to one viewer (RFC 3550), and when a viewer counts as silent.
//!
//! A report rides behind a frame, about once a second: a stream that sends nothing reports nothing.
//! Invariant: the mapping of time stamps to the clock on the wall is that of the newest frame sent,
//! by its capture time where the source said one that can be right.

use std::time::{Duration, Instant};

use fanlight_wire::rtcp::{self, SenderInfo};
use fanlight_wire::rtp::{RtpTime, Ssrc, ntp_from_unix_us};

use crate::api::Role;
use crate::batch::{Batch, Run};
use crate::core::Scratch;
use crate::egress::{LastFrame, Media, To};
use crate::pressure::SILENCE;

/// Time between two sender reports.
const INTERVAL: Duration = Duration::from_secs(1);

/// Capture clocks further from ours than this are not used.
const CAPTURE_SKEW_MAX_US: u64 = 10_000_000;

impl Media {
    /// Whether a sender report should go out.
    pub(crate) fn report_is_due(&self, now: Instant) -> bool {
        self.last.is_some()
            && self.reported_at.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL)
    }

    /// Adds a sender report to the batch. `false`: there was no room, or no index is left.
    pub(crate) fn report(
        &mut self,
        to: To,
        unix_us: u64,
        scratch: &mut Scratch,
        batch: &mut Batch,
    ) -> bool {
        let Some(last) = self.last else { return false };
        scratch.packet.clear();
        let info = SenderInfo {
            ntp: ntp_from_unix_us(unix_us),
            rtp_time: RtpTime(rtp_time_at(last, to.now, unix_us)),
            packets: low32(self.packets),
            octets: low32(self.octets),
        };
        let source = Ssrc(self.terms.ssrc);
        rtcp::write_sender_report(source, &info, &[], &mut scratch.packet);
        // A name that does not fit is left out; the library's are short.
        let _ = rtcp::write_sdes_cname(source, &self.terms.cname, &mut scratch.packet);
        let asked = self.asked;
        if let Some((asker, middle, at_us)) = asked {
            let delay_us = to.now_us.saturating_sub(at_us);
            let delay = u32::try_from(delay_us * 65_536 / 1_000_000).unwrap_or(u32::MAX);
            rtcp::write_delay_since_reference(source, asker, middle, delay, &mut scratch.packet);
        }
        scratch.sealed.clear();
        let room = batch.free().len();
        if !batch.has_room() || room < scratch.packet.len() + 64 {
            return false;
        }
        if self.rtcp.protect(&scratch.packet, &mut scratch.sealed).is_err() {
            return false;
        }
        let len = scratch.sealed.len();
        if let Some(datagram) = batch.free().get_mut(..len) {
            datagram.copy_from_slice(&scratch.sealed);
        }
        batch.push(Run {
            to: to.route,
            start: 0,
            len,
            segment: len,
            count: 1,
            arrived: None,
            controller: to.role == Role::Controller,
            viewer: to.viewer,
        });
        self.reported_at = Some(to.now);
        self.asked = None;
        true
    }

    /// A sealed goodbye.
    pub(crate) fn goodbye(&mut self) -> Option<Vec<u8>> {
        let (mut plain, mut sealed) = (Vec::new(), Vec::new());
        // A compound packet begins with a report (RFC 3550, 6.1); an empty one will do.
        let source = Ssrc(self.terms.ssrc);
        rtcp::write_receiver_report(source, &[], &mut plain);
        rtcp::write_bye(&[source], &mut plain);
        self.rtcp.protect(&plain, &mut sealed).ok()?;
        Some(sealed)
    }

    /// Whether nothing was heard for too long about media that was sent.
    pub(crate) fn is_silent(&self, now_us: u64) -> bool {
        let silence_us = u64::try_from(SILENCE.as_micros()).unwrap_or(u64::MAX);
        // Who never answered by arrival times does not speak that.
        if self.heard_at_us == 0 || now_us.saturating_sub(self.heard_at_us) < silence_us {
            return false;
        }
        self.log.oldest_unreported_us().is_some_and(|at| now_us.saturating_sub(at) >= silence_us)
    }
}

/// The time stamp that the media clock shows at `now`.
fn rtp_time_at(last: LastFrame, now: Instant, unix_us: u64) -> u32 {
    let captured = last.capture_unix_us.filter(|us| us.abs_diff(unix_us) < CAPTURE_SKEW_MAX_US);
    let passed_us = match captured {
        Some(us) => i128::from(unix_us) - i128::from(us),
        None => i128::try_from(now.saturating_duration_since(last.at).as_micros()).unwrap_or(0),
    };
    let ticks = passed_us * 9 / 100;
    last.rtp_time.wrapping_add(low32_signed(ticks))
}

#[expect(clippy::cast_possible_truncation, reason = "RFC 3550: the counts wrap")]
const fn low32(number: u64) -> u32 {
    number as u32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the media clock wraps, in both directions"
)]
const fn low32_signed(number: i128) -> u32 {
    number as u32
}
