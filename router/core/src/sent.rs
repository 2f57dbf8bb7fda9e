//! What was sent to one viewer lately: enough to repair a loss and to read its feedback.
//!
//! A record per run of packets, not per packet: all of a run left at one moment and are of one
//! size. Two numberings lead into it, the viewer's sequence numbers (repairs) and the
//! transport-wide ones (feedback). Bound: [`RUNS`] records, 256, which is four seconds at 60 frames
//! per second; what is older cannot be repaired and its feedback is ignored. Invariant: both
//! numberings grow along the ring, so that a record is found by halving.

/// Records held.
const RUNS: u64 = 256;

/// A run of packets of one frame, or one repair.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    /// Sequence number of the first packet, with roll-overs. For a repair: of the next media
    /// packet at that time.
    index: u64,
    /// Transport-wide number of the first packet.
    twcc: u64,
    /// When, in microseconds since the core began.
    pub(crate) at_us: u64,
    /// The frame's number in the stream's history.
    pub(crate) no: u64,
    pub(crate) rtp_time: u32,
    /// The frame's payload in the first packet.
    start: u32,
    /// Packets that were repaired, by bit.
    repaired: u64,
    /// When the last repair was.
    repaired_us: u64,
    /// Packets; of a repair, one.
    count: u16,
    /// Datagram size of all but the last packet, and of the last.
    size: u16,
    last_size: u16,
    repair: bool,
}

impl Sent {
    #[expect(clippy::too_many_arguments, reason = "a record's fields")]
    pub(crate) fn of_media(
        index: u64,
        twcc: u64,
        count: usize,
        at_us: u64,
        no: u64,
        start: usize,
        rtp_time: u32,
        size: usize,
        last_size: usize,
    ) -> Self {
        let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        Self {
            index,
            twcc,
            at_us,
            no,
            rtp_time,
            start: u32::try_from(start).unwrap_or(u32::MAX),
            repaired: 0,
            repaired_us: 0,
            count: short(count),
            size: short(size),
            last_size: short(last_size),
            repair: false,
        }
    }

    pub(crate) fn of_repair(twcc: u64, at_us: u64, size: usize) -> Self {
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        Self { twcc, at_us, count: 1, size, last_size: size, repair: true, ..Self::default() }
    }
}

/// A packet found in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// The packet's sequence number, with roll-overs.
    pub(crate) index: u64,
    pub(crate) no: u64,
    pub(crate) payload: usize,
    pub(crate) rtp_time: u32,
}

/// Why a packet is not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// Never sent, or too long ago.
    Unknown,
    /// Sent again less than a round trip ago.
    JustRepaired,
}

/// The log of one viewer.
#[derive(Debug, Default)]
pub(crate) struct SentLog {
    runs: Vec<Sent>,
    /// Records ever pushed.
    pushed: u64,
    /// One past the newest media packet and the newest transport-wide number.
    end_index: u64,
    end_twcc: u64,
    /// Transport-wide numbers below this were reported on.
    reported: u64,
    /// The record where looking for the next report begins.
    reported_record: u64,
    /// Packets below this are not sent again.
    abandoned: u64,
}

impl SentLog {
    /// Notes a run. The ring is made at the first.
    pub(crate) fn push(&mut self, mut sent: Sent) {
        if sent.repair {
            sent.index = self.end_index;
        } else {
            self.end_index = sent.index + u64::from(sent.count);
        }
        self.end_twcc = sent.twcc + u64::from(sent.count);
        if self.pushed == 0 {
            self.reported = sent.twcc;
            self.runs.reserve_exact(usize::try_from(RUNS).unwrap_or(256));
        }
        let slot = self.slot(self.pushed);
        match self.runs.get_mut(slot) {
            Some(old) => *old = sent,
            None => self.runs.push(sent),
        }
        self.pushed += 1;
    }

    #[expect(clippy::unused_self, reason = "reads as a question to the log")]
    fn slot(&self, record: u64) -> usize {
        usize::try_from(record % RUNS).unwrap_or(0)
    }

    /// Number of the oldest record held.
    fn oldest(&self) -> u64 {
        self.pushed.saturating_sub(RUNS)
    }

    fn at(&self, record: u64) -> Option<&Sent> {
        self.runs.get(self.slot(record))
    }

    /// The last record for which `before` holds, by halving.
    fn find(&self, before: impl Fn(&Sent) -> bool) -> Option<u64> {
        let (mut low, mut high) = (self.oldest(), self.pushed);
        while low < high {
            let mid = low + (high - low) / 2;
            if self.at(mid).is_some_and(&before) { low = mid + 1 } else { high = mid }
        }
        low.checked_sub(1).filter(|found| *found >= self.oldest())
    }

    /// A packet that a viewer asks for again, by its sequence number; notes that it is.
    pub(crate) fn repair(
        &mut self,
        seq: u16,
        now_us: u64,
        round_trip_us: u64,
    ) -> Result<Found, NotFound> {
        let index = extend(seq, self.end_index).ok_or(NotFound::Unknown)?;
        // A repair's record carries the number of the media packet after it, so that this is never
        // a repair.
        let record = self.find(|s| s.index <= index).ok_or(NotFound::Unknown)?;
        if index < self.abandoned {
            return Err(NotFound::Unknown);
        }
        let slot = self.slot(record);
        let run = self.runs.get_mut(slot).ok_or(NotFound::Unknown)?;
        let offset = index.checked_sub(run.index).ok_or(NotFound::Unknown)?;
        if offset >= u64::from(run.count) {
            return Err(NotFound::Unknown);
        }
        let bit = 1_u64.checked_shl(u32::try_from(offset).unwrap_or(64)).unwrap_or(0);
        let recent = now_us.saturating_sub(run.repaired_us) < round_trip_us;
        if run.repaired & bit != 0 && recent {
            return Err(NotFound::JustRepaired);
        }
        // One moment stands for the run: when it is long ago, the bits are too.
        run.repaired = if recent { run.repaired | bit } else { bit };
        run.repaired_us = now_us;
        let payload = run.start as usize + usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(Found { index, no: run.no, payload, rtp_time: run.rtp_time })
    }

    /// Nothing that was sent so far is sent again: its viewer goes on with a keyframe.
    pub(crate) fn abandon(&mut self) {
        self.abandoned = self.end_index;
    }

    /// Whether a packet found earlier may still be sent again.
    pub(crate) fn wants(&self, found: &Found) -> bool {
        found.index >= self.abandoned
    }

    /// When a packet was sent and how large it is, by its transport-wide number, each once: numbers
    /// that were reported on before, or never sent, are `None`. Numbers are asked for in rising
    /// order; `hint`, zero at first, remembers where the last one was.
    pub(crate) fn report(&self, hint: &mut u64, twcc: u16) -> Option<(u64, u64, u32)> {
        let number = extend(twcc, self.end_twcc)?;
        if number < self.reported {
            return None;
        }
        let from = (*hint).max(self.reported_record);
        let record = self.forward(from, |run| run.twcc + u64::from(run.count) <= number);
        let run = self.at(record)?;
        let offset = number.checked_sub(run.twcc)?;
        *hint = record;
        let size = if offset + 1 == u64::from(run.count) { run.last_size } else { run.size };
        Some((number, run.at_us, u32::from(size)))
    }

    /// Everything below this was reported on.
    pub(crate) fn reported_to(&mut self, number: u64) {
        self.reported = self.reported.max(number).min(self.end_twcc);
        self.reported_record = self.first_unreported();
    }

    /// When the oldest packet was sent that nothing was reported on yet. If its record is gone, when
    /// the oldest was that is held.
    pub(crate) fn oldest_unreported_us(&self) -> Option<u64> {
        if self.reported >= self.end_twcc {
            return None;
        }
        self.at(self.first_unreported()).map(|run| run.at_us)
    }

    fn first_unreported(&self) -> u64 {
        let reported = self.reported;
        self.forward(self.reported_record, |run| run.twcc + u64::from(run.count) <= reported)
    }

    /// The first record from `from` on that is not before, or the newest one. A step or two for what
    /// is asked in order; at most all that are held.
    fn forward(&self, from: u64, before: impl Fn(&Sent) -> bool) -> u64 {
        let mut record = from.max(self.oldest());
        while record + 1 < self.pushed && self.at(record).is_some_and(&before) {
            record += 1;
        }
        record
    }
}

/// The full number of a 16-bit one that is below `end`, and not 2^15 or more below it.
fn extend(short: u16, end: u64) -> Option<u64> {
    let newest = end.checked_sub(1)?;
    let behind = crate::header::low16(newest).wrapping_sub(short);
    (behind < 1 << 15).then(|| newest.checked_sub(u64::from(behind)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = 64_400;

    fn log(frames: u64) -> SentLog {
        let mut log = SentLog::default();
        let (mut index, mut twcc) = (FIRST, 1);
        for no in 0..frames {
            log.push(Sent::of_media(index, twcc, 4, no * 1_000, no, 0, 7, 1_200, 300));
            index += 4;
            twcc += 4;
            if no % 3 == 2 {
                log.push(Sent::of_repair(twcc, no * 1_000 + 500, 900));
                twcc += 1;
            }
        }
        log
    }

    #[test]
    fn every_packet_held_is_found_by_its_sequence_number_across_the_roll_over() {
        // Of 400 frames the last 192 are held, with 64 repairs among them; number 284 rolls over.
        let mut log = log(400);
        for no in 0..400_u64 {
            for payload in 0..4 {
                let seq = crate::header::low16(FIRST + no * 4 + payload);
                let found = log.repair(seq, 1 << 30, 1);
                let payload = usize::try_from(payload).unwrap();
                if no >= 209 {
                    let found = found.map(|f| (f.no, f.payload, f.rtp_time));
                    assert_eq!(found, Ok((no, payload, 7)), "{no} {payload}");
                } else if no < 208 {
                    assert_eq!(found, Err(NotFound::Unknown), "{no} {payload}");
                }
            }
        }
    }

    #[test]
    fn what_was_never_sent_or_is_forgotten_is_unknown() {
        let mut log = log(400);
        let end = FIRST + 1_600;
        for index in [end, end + 1, end + 20_000, FIRST, end - 40_000] {
            let found = log.repair(crate::header::low16(index), 1 << 30, 1);
            assert_eq!(found, Err(NotFound::Unknown), "{index}");
        }
        assert_eq!(SentLog::default().repair(0, 0, 0), Err(NotFound::Unknown));
        assert_eq!(SentLog::default().report(&mut 0, 0), None);
        assert_eq!(SentLog::default().oldest_unreported_us(), None);
    }

    #[test]
    fn a_repair_is_repeated_only_after_a_round_trip() {
        let mut log = log(2);
        let seq = crate::header::low16(FIRST + 1);
        assert!(log.repair(seq, 10_000, 40_000).is_ok());
        assert_eq!(log.repair(seq, 49_999, 40_000), Err(NotFound::JustRepaired));
        assert!(log.repair(seq + 1, 49_999, 40_000).is_ok(), "its neighbour was not repaired");
        assert!(log.repair(seq, 99_000, 40_000).is_ok());
    }

    #[test]
    fn feedback_finds_time_and_size_once() {
        let mut log = log(6);
        // Runs of four, and a repair after the third: numbers 13 and 26.
        assert_eq!(log.report(&mut 0, 1), Some((1, 0, 1_200)));
        assert_eq!(log.report(&mut 0, 4), Some((4, 0, 300)));
        assert_eq!(log.report(&mut 0, 13), Some((13, 2_500, 900)));
        assert_eq!(log.report(&mut 0, 14), Some((14, 3_000, 1_200)));
        assert_eq!(log.report(&mut 0, 27), None, "never sent");
        assert_eq!(log.oldest_unreported_us(), Some(0));
        log.reported_to(14);
        assert_eq!(log.report(&mut 0, 13), None, "reported on already");
        assert_eq!(log.oldest_unreported_us(), Some(3_000));
        log.reported_to(u64::MAX);
        assert_eq!(log.oldest_unreported_us(), None);
    }
}
