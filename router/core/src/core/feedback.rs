//! What viewers say about the media they get: reports, requests for repairs and keyframes, arrival
//! times, goodbyes.
//!
//! Invariants: nothing is read before it is authenticated; a datagram's cost is bounded before it
//! is decrypted (a budget of datagrams) and after (a budget of repairs, a bound on arrival times).

use std::time::Duration;

use fanlight_rtc::srtp::SrtpError;
use fanlight_wire::rtcp::{self, Nack, Packet, ReportBlock, TransportCc};
use fanlight_wire::rtp::{Ssrc, is_rtcp, ntp_from_unix_us};

use super::{Core, Repair};
use crate::api::{GoneReason, KeyframeReason};
use crate::gcc::PacketResult;
use crate::limits::{ARRIVALS_PER_FEEDBACK_MAX, REPAIRS_MAX};
use crate::pressure::Level;
use crate::sent::NotFound;

/// Least time after which a packet is sent a second time, whatever the measured round trip.
const REPAIR_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Taken for the round trip before one was measured.
const ROUND_TRIP_DEFAULT: Duration = Duration::from_millis(50);

/// Round trips outside of this are nonsense of the viewer's: ignored.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(30);

impl Core {
    /// A datagram of the media kind arrived from a viewer.
    pub(super) fn media_datagram(&mut self, key: usize, bytes: &[u8]) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if !is_rtcp(bytes) {
            self.counters.rtp_from_viewers += 1;
            return;
        }
        if !viewer.budgets.rtcp.take(self.now, 1) {
            self.counters.rtcp_denied_rate += 1;
            return;
        }
        let Some(media) = viewer.hot.media.as_mut() else {
            self.counters.rtcp_early += 1;
            return;
        };
        let mut plain = std::mem::take(&mut self.opened);
        plain.clear();
        match media.rtcp_in.open(bytes, &mut plain) {
            Ok(()) => self.feedback(key, &plain),
            Err(SrtpError::Replayed) => self.counters.rtcp_replayed += 1,
            Err(_) => self.counters.rtcp_forged += 1,
        }
        self.opened = plain;
    }

    /// One authenticated compound packet.
    fn feedback(&mut self, key: usize, compound: &[u8]) {
        self.counters.rtcp_in += 1;
        let (mut keyframe, mut bye) = (false, false);
        for packet in rtcp::packets(compound) {
            let Ok(packet) = packet else {
                self.counters.rtcp_malformed += 1;
                break;
            };
            match packet {
                Packet::ReceiverReport(report) => {
                    report.reports().for_each(|block| self.report_block(key, &block));
                }
                Packet::SenderReport(report) => {
                    report.reports().for_each(|block| self.report_block(key, &block));
                }
                Packet::Nack(nack) => self.nack(key, &nack),
                Packet::Pli { media, .. } => keyframe |= self.is_source(key, media.0),
                Packet::Fir(fir) => {
                    keyframe |= fir.entries().any(|entry| self.is_source(key, entry.ssrc.0));
                }
                Packet::TransportCc(report) => self.arrivals(key, &report),
                Packet::ExtendedReport(report) => {
                    if let Some(ntp) = report.reference_time {
                        self.round_trip_question(key, report.sender, ntp);
                    }
                }
                Packet::Bye(_) => bye = true,
                Packet::Remb(_) => self.counters.remb_ignored += 1,
                _ => {}
            }
        }
        if bye {
            self.counters.byes += 1;
            self.begin_close(key, GoneReason::ClosedByViewer);
        } else if keyframe {
            self.keyframe_wanted(key);
        }
    }

    /// A viewer that sends no media cannot measure the round trip, by which it times its requests for
    /// repairs, unless it is told (RFC 3611). The answer rides with the next sender report.
    fn round_trip_question(&mut self, key: usize, asker: Ssrc, ntp: u64) {
        let now_us = self.since_start_us();
        if let Some(media) = self.viewers.get_mut(key).and_then(|v| v.hot.media.as_mut()) {
            let middle = u32::try_from((ntp >> 16) & 0xffff_ffff).unwrap_or(0);
            media.asked = Some((asker, middle, now_us));
        }
    }

    fn is_source(&self, key: usize, ssrc: u32) -> bool {
        self.viewers
            .get(key)
            .and_then(|v| v.hot.media.as_ref())
            .is_some_and(|m| m.terms.ssrc == ssrc)
    }

    fn report_block(&mut self, key: usize, block: &ReportBlock) {
        let ntp = ntp_from_unix_us(self.unix_us());
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.hot.media.as_ref().is_none_or(|m| m.terms.ssrc != block.ssrc.0) {
            return;
        }
        viewer.reported.loss = Some(f32::from(block.fraction_lost) / 256.0);
        viewer.reported.jitter = block.jitter;
        if block.last_sr == 0 {
            return;
        }
        // RFC 3550, 6.4.1: all in units of 1/65,536 s of the middle 32 bits of NTP time.
        let middle = u32::try_from((ntp >> 16) & 0xffff_ffff).unwrap_or(0);
        let units = middle.wrapping_sub(block.last_sr).wrapping_sub(block.delay_since_last_sr);
        let rtt = Duration::from_micros(u64::from(units) * 1_000_000 / 65_536);
        if rtt < ROUND_TRIP_MAX {
            viewer.reported.rtt = Some(rtt);
        }
    }

    /// A viewer asks for packets again.
    fn nack(&mut self, key: usize, nack: &Nack<'_>) {
        let (now, now_us) = (self.now, self.since_start_us());
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        let Some(media) = viewer.hot.media.as_mut() else { return };
        if media.terms.ssrc != nack.media.0 || media.terms.rtx.is_none() {
            return;
        }
        let rtt = viewer.reported.rtt.unwrap_or(ROUND_TRIP_DEFAULT).max(REPAIR_INTERVAL_MIN);
        let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        for seq in nack.sequences() {
            viewer.reported.nacks += 1;
            self.counters.nacks += 1;
            if self.repairs.len() >= REPAIRS_MAX || !viewer.budgets.repair_requests.take(now, 1) {
                self.counters.nacks_denied += 1;
                continue;
            }
            match media.log.repair(seq, now_us, rtt_us) {
                Ok(found) => self.repairs.push_back(Repair {
                    viewer: key,
                    serial: viewer.serial,
                    seq,
                    found,
                }),
                Err(NotFound::Unknown) => self.counters.nacks_unknown += 1,
                Err(NotFound::JustRepaired) => self.counters.nacks_repeated += 1,
            }
        }
    }

    /// A viewer says when packets arrived.
    fn arrivals(&mut self, key: usize, report: &TransportCc<'_>) {
        self.counters.twcc_feedbacks += 1;
        let (now, now_us) = (self.now, self.since_start_us());
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        let Some(media) = viewer.hot.media.as_mut() else { return };
        let results = &mut self.arrived;
        results.clear();
        let (mut end, mut hint, reference_us) = (0, 0, report.reference_time_us());
        for (seq, after_us) in report.packets().take(ARRIVALS_PER_FEEDBACK_MAX) {
            let Some((number, sent_us, bytes)) = media.log.report(&mut hint, seq) else { continue };
            let arrived_us = after_us.map(|after| reference_us + after);
            results.push(PacketResult { sent_us, bytes, arrived_us });
            end = end.max(number + 1);
        }
        if results.is_empty() {
            return;
        }
        media.log.reported_to(end);
        media.heard_at_us = now_us;
        viewer.estimator.feedback(now, results, viewer.reported.rtt);
        let evidence = viewer.estimator.evidence();
        let rates = self.streams.get(&viewer.stream).map(|s| s.rates()).unwrap_or_default();
        let oldest = media.log.oldest_unreported_us();
        let oldest = oldest.map(|at| Duration::from_micros(now_us.saturating_sub(at)));
        let pressure = &mut viewer.hot.pressure;
        let change = pressure.on_feedback(now, &evidence, rates, oldest);
        if change.is_some_and(|change| change.to == Level::KeyframesOnly) {
            viewer.hot.feed.give_up();
            media.log.abandon();
        }
        self.counters.note_pressure(&mut viewer.hot.noted, pressure.transitions());
        if pressure.wants_keyframe(now) {
            let stream = viewer.stream;
            self.need_keyframe(stream, KeyframeReason::Loss);
        }
    }
}
