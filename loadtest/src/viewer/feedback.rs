//! What a browser says back about media: arrival times for the sender's estimate of the path, and
//! receiver reports. Plain RTCP bytes; their sealing is the caller's. Invariant: each arrival is
//! reported once.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use fanlight_wire::{
    rtcp::{ReportBlock, TransportCcReport, write_transport_cc},
    rtp::Ssrc,
};

use crate::stats::whole;

/// Packets that one feedback may speak of; more wait for the next.
const STATUSES_MAX: usize = 600;
/// A jump further than this begins anew: what lies between is no news.
const JUMP_MAX: i64 = 2_000;
/// Unit of the reference time.
const REFERENCE_US: i64 = 64_000;

/// Arrivals by transport-wide sequence number.
#[derive(Debug)]
pub(super) struct Arrivals {
    epoch: Instant,
    /// Extended number of the first entry.
    base: i64,
    times_us: VecDeque<Option<i64>>,
    feedbacks: u8,
    started: bool,
}

impl Arrivals {
    /// Nothing arrived yet; times count from `epoch`.
    pub(super) fn new(epoch: Instant) -> Self {
        Self { epoch, base: 0, times_us: VecDeque::new(), feedbacks: 0, started: false }
    }

    /// A packet with this number arrived.
    pub(super) fn note(&mut self, now: Instant, seq: u16) {
        if !self.started {
            self.started = true;
            self.base = i64::from(seq);
        }
        let at = self.extend(seq);
        let place = at - self.base;
        if place < 0 {
            return;
        }
        if place > JUMP_MAX {
            self.times_us.clear();
            self.base = at;
        }
        let Ok(place) = usize::try_from(at - self.base) else { return };
        while self.times_us.len() <= place {
            self.times_us.push_back(None);
        }
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        if let Some(slot @ None) = self.times_us.get_mut(place) {
            *slot = i64::try_from(micros).ok();
        }
    }

    /// Appends one feedback about what is new; `false`: there is nothing.
    pub(super) fn write(&mut self, sender: Ssrc, media: Ssrc, out: &mut Vec<u8>) -> bool {
        let count = self.times_us.len().min(STATUSES_MAX);
        let Some(first) = self.times_us.iter().take(count).flatten().min().copied() else {
            return false;
        };
        let reference = first / REFERENCE_US;
        let arrivals: Vec<Option<i64>> = self
            .times_us
            .drain(..count)
            .map(|time| time.map(|us| us - reference * REFERENCE_US))
            .collect();
        let report = TransportCcReport {
            sender,
            media,
            feedback_count: self.feedbacks,
            reference_time: i32::try_from(reference & 0x7f_ffff).unwrap_or(0),
            base_seq: (self.base & 0xffff) as u16,
            arrivals_us: &arrivals,
        };
        self.base += count as i64;
        self.feedbacks = self.feedbacks.wrapping_add(1);
        write_transport_cc(&report, out).is_ok()
    }

    fn extend(&self, seq: u16) -> i64 {
        let newest = self.base + self.times_us.len() as i64;
        let step = (i64::from(seq) - newest).rem_euclid(0x1_0000);
        newest + if step >= 0x8000 { step - 0x1_0000 } else { step }
    }
}

/// Reception statistics of one source (RFC 3550, appendix A).
#[derive(Debug, Default)]
pub(super) struct Reception {
    first: Option<u64>,
    highest: u64,
    received: u64,
    expected_before: u64,
    received_before: u64,
    transit: Option<i64>,
    jitter: f64,
    last_sr: Option<(u32, Instant)>,
}

impl Reception {
    /// A packet arrived; `index` with roll-overs, `elapsed` since any fixed moment.
    pub(super) fn note(&mut self, index: u64, rtp_time: u32, elapsed: Duration) {
        self.first.get_or_insert(index);
        self.highest = self.highest.max(index);
        self.received += 1;
        let arrival = i64::try_from(elapsed.as_micros() * 9 / 100).unwrap_or(i64::MAX / 2);
        let transit = arrival.wrapping_sub(i64::from(rtp_time));
        if let Some(before) = self.transit.replace(transit) {
            // Over a wrap of the clock the difference is far off: no jitter.
            let change = (transit - before).unsigned_abs();
            if change < 90_000 * 10 {
                self.jitter += (change as f64 - self.jitter) / 16.0;
            }
        }
    }

    /// A sender report arrived.
    pub(super) fn sender_report(&mut self, now: Instant, ntp: u64) {
        self.last_sr = Some(((ntp >> 16 & 0xffff_ffff) as u32, now));
    }

    /// The block to report now.
    pub(super) fn block(&mut self, now: Instant, ssrc: Ssrc) -> Option<ReportBlock> {
        let first = self.first?;
        let expected = self.highest - first + 1;
        let lost = expected as i64 - self.received as i64;
        let expected_now = expected - self.expected_before;
        let received_now = self.received - self.received_before;
        (self.expected_before, self.received_before) = (expected, self.received);
        let lost_now = expected_now.saturating_sub(received_now);
        let fraction = (lost_now << 8).checked_div(expected_now).unwrap_or(0);
        let (last_sr, delay) = self.last_sr.map_or((0, 0), |(sr, at)| {
            let delay = now.saturating_duration_since(at).as_micros() * 65_536 / 1_000_000;
            (sr, u32::try_from(delay).unwrap_or(u32::MAX))
        });
        Some(ReportBlock {
            ssrc,
            fraction_lost: u8::try_from(fraction).unwrap_or(u8::MAX),
            cumulative_lost: i32::try_from(lost.clamp(-0x80_0000, 0x7f_ffff)).unwrap_or(0),
            highest_seq: (self.highest & 0xffff_ffff) as u32,
            jitter: u32::try_from(whole(self.jitter)).unwrap_or(u32::MAX),
            last_sr,
            delay_since_last_sr: delay,
        })
    }
}

#[cfg(test)]
mod tests {
    use fanlight_wire::rtcp::{Packet, packets};

    use super::*;

    fn statuses(bytes: &[u8]) -> Vec<(u16, Option<i64>)> {
        match packets(bytes).next() {
            Some(Ok(Packet::TransportCc(cc))) => cc.packets().collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arrivals_are_reported_once_with_holes_and_over_the_wrap() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(start);
        for (ms, seq) in [(200, 65_534), (201, 65_535), (203, 1), (230, 2)] {
            arrivals.note(start + Duration::from_millis(ms), seq);
        }
        let mut out = Vec::new();
        assert!(arrivals.write(Ssrc(1), Ssrc(2), &mut out));
        let got = statuses(&out);
        let seqs: Vec<u16> = got.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, [65_534, 65_535, 0, 1, 2]);
        assert_eq!(got[2].1, None);
        assert_eq!(got[4].1.unwrap() - got[0].1.unwrap(), 30_000);
        assert!(!arrivals.write(Ssrc(1), Ssrc(2), &mut Vec::new()), "nothing is new");
        arrivals.note(start + Duration::from_millis(300), 0);
        assert!(!arrivals.write(Ssrc(1), Ssrc(2), &mut Vec::new()), "its place is over");
    }

    #[test]
    fn loss_and_jitter_are_those_of_the_interval() {
        let mut reception = Reception::default();
        let start = Instant::now();
        assert_eq!(reception.block(start, Ssrc(9)), None);
        for index in (0..100).filter(|i| i % 4 != 3) {
            let time = u32::try_from(90 * index).unwrap();
            reception.note(70_000 + index, time, Duration::from_millis(index));
        }
        let block = reception.block(start, Ssrc(9)).unwrap();
        // The last of a group of four is missing, and the very last is not known to be.
        assert_eq!((block.cumulative_lost, block.highest_seq), (24, 70_098));
        assert_eq!(block.fraction_lost, u8::try_from(24 * 256 / 99).unwrap());
        assert_eq!(block.jitter, 0);
        reception.sender_report(start, 0x1234_5678_9abc_def0);
        let later = start + Duration::from_millis(500);
        let block = reception.block(later, Ssrc(9)).unwrap();
        assert_eq!((block.last_sr, block.delay_since_last_sr), (0x5678_9abc, 32_768));
        assert_eq!(block.fraction_lost, 0, "nothing new was expected");
    }
}
