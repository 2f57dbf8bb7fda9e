//! What viewers' browsers say about the media they get, really sealed: arrival times 20 times a
//! second, a receiver report each second, and a request for each of the packets that are lost, one
//! in a hundred. Not a network: what is "lost" is chosen by a seeded generator. The path looks
//! healthy otherwise: packets arrive 10 ms after they were sent.

use std::time::Duration;

use fanlight_router_core::bench::Crowd;
use fanlight_wire::{
    rtcp::{ReportBlock, TransportCcReport, write_nack, write_receiver_report, write_transport_cc},
    rtp::Ssrc,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Time on the path, in microseconds.
const PATH_US: i64 = 10_000;
/// Time between the packets of a frame when they arrive, in microseconds.
const SPACING_US: i64 = 40;
/// One packet in this many is lost.
const LOSS_ONE_IN: u32 = 100;
/// Frames per arrival report: 20 reports per second of 60 frames.
const FRAMES_PER_REPORT: u64 = 3;
const FRAMES_PER_SECOND: u64 = 60;

/// One viewer's receiving end.
#[derive(Debug, Default)]
pub struct Receiver {
    pub ssrc: u32,
    pub first_seq: u16,
    /// Media packets and repairs so far; the transport-wide numbers count both, from 1 on.
    pub media: u64,
    pub sent: u64,
    reported: u64,
    feedbacks: u8,
    /// Transport-wide number before which packets were sent by a moment, oldest first.
    moments: Vec<(u64, i64)>,
    lost: Vec<u16>,
}

/// All receiving ends.
#[derive(Debug)]
pub struct Feedback {
    pub receivers: Vec<Receiver>,
    random: StdRng,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    arrivals: Vec<Option<i64>>,
}

impl Feedback {
    pub fn new(viewers: usize) -> Self {
        Self {
            receivers: (0..viewers).map(|_| Receiver::default()).collect(),
            random: StdRng::seed_from_u64(3),
            plain: Vec::new(),
            sealed: Vec::new(),
            arrivals: Vec::new(),
        }
    }

    /// Notes that everything so far was sent by `now`.
    pub fn note(&mut self, now: Duration) {
        let at = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        for receiver in &mut self.receivers {
            let before = receiver.moments.last().map_or(receiver.reported, |m| m.0);
            if receiver.sent > before {
                receiver.moments.push((receiver.sent, at));
            }
        }
    }

    /// Gives each datagram that viewers send before frame `frame`, with its viewer.
    pub fn before_frame(
        &mut self,
        frame: u64,
        crowd: &mut Crowd,
        mut send: impl FnMut(usize, &[u8]),
    ) {
        for viewer in 0..self.receivers.len() {
            let turn = frame + viewer as u64;
            let wants = [
                turn.is_multiple_of(FRAMES_PER_SECOND) && self.write_report(viewer),
                self.write_requests(viewer),
                turn.is_multiple_of(FRAMES_PER_REPORT) && self.write_arrivals(viewer),
            ];
            // Each was written behind the one before it; a browser sends them apart.
            let mut rest = std::mem::take(&mut self.plain);
            for _ in wants.iter().filter(|wanted| **wanted) {
                let words = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
                let tail = rest.split_off(4 * (words + 1));
                self.sealed.clear();
                crowd.seal_rtcp(viewer, &rest, &mut self.sealed);
                send(viewer, &self.sealed);
                rest = tail;
            }
            rest.clear();
            self.plain = rest;
        }
    }

    fn write_report(&mut self, viewer: usize) -> bool {
        let r = &self.receivers[viewer];
        let highest = u32::from(r.first_seq).wrapping_add(u32::try_from(r.media).unwrap_or(0));
        let block = ReportBlock {
            ssrc: Ssrc(r.ssrc),
            fraction_lost: 2,
            highest_seq: highest.wrapping_sub(1),
            jitter: 90,
            ..ReportBlock::default()
        };
        write_receiver_report(Ssrc(1), &[block], &mut self.plain);
        true
    }

    /// A request for what was lost among the packets before.
    fn write_requests(&mut self, viewer: usize) -> bool {
        let r = &mut self.receivers[viewer];
        if r.lost.is_empty() {
            return false;
        }
        write_nack(Ssrc(1), Ssrc(r.ssrc), &r.lost, &mut self.plain);
        r.lost.clear();
        true
    }

    fn write_arrivals(&mut self, viewer: usize) -> bool {
        let r = &mut self.receivers[viewer];
        let Some(&(end, _)) = r.moments.last() else { return false };
        let Some(&(_, first_at)) = r.moments.first() else { return false };
        let reference_time = (first_at + PATH_US) / 64_000;
        self.arrivals.clear();
        let mut number = r.reported;
        for (until, at) in r.moments.drain(..) {
            for n in 0..until.saturating_sub(number) {
                let spacing = i64::try_from(n).unwrap_or(0) * SPACING_US;
                let arrived = at + PATH_US + spacing - reference_time * 64_000;
                let lost = self.random.random_ratio(1, LOSS_ONE_IN);
                self.arrivals.push((!lost).then_some(arrived));
                if lost {
                    // Some packet of the last frames; which one does not matter here.
                    let back = self.random.random_range(2..10u64).min(r.media);
                    let seq = r.media.wrapping_sub(back) & 0xffff;
                    r.lost.push(r.first_seq.wrapping_add(u16::try_from(seq).unwrap_or(0)));
                }
            }
            number = until;
        }
        let base = (r.reported + 1) & 0xffff;
        let report = TransportCcReport {
            sender: Ssrc(1),
            media: Ssrc(r.ssrc),
            feedback_count: r.feedbacks,
            reference_time: i32::try_from(reference_time & 0xff_ffff).unwrap_or(0),
            base_seq: u16::try_from(base).unwrap_or(0),
            arrivals_us: &self.arrivals,
        };
        r.reported = end;
        r.feedbacks = r.feedbacks.wrapping_add(1);
        write_transport_cc(&report, &mut self.plain).is_ok()
    }
}
