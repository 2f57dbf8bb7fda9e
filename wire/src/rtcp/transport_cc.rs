//! Transport-wide congestion control feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01,
//! section 3.1). Not an estimator. Invariant: when a [`TransportCc`] exists, its chunks cover its
//! packets and its deltas are all there, so a walk over it cannot fail and is at most
//! [`MAX_STATUSES`] long.

use super::{RtcpError, feedback_head, split};
use crate::rtp::Ssrc;

/// Most packets that one feedback may speak of. A run of lost packets costs two bytes however long
/// it is, so the bytes alone do not bound the work. A receiver speaks of what came since its last
/// feedback, some 100 ms ago: 8,192 is ten times of what a sender remembers.
pub const MAX_STATUSES: u16 = 8_192;

/// Unit of arrival deltas in microseconds.
pub(super) const DELTA_UNIT_US: i64 = 250;

/// Unit of the reference time in microseconds.
const REFERENCE_UNIT_US: i64 = 64_000;

/// A feedback: which packets arrived, and when.
#[derive(Clone, Copy, Debug)]
pub struct TransportCc<'a> {
    /// Who received.
    pub sender: Ssrc,
    /// Some source of the transport; it carries no meaning.
    pub media: Ssrc,
    /// Transport-wide number of the first packet that it speaks of. Some receivers begin with one
    /// that has arrived: what lies between two feedbacks may be lost without being spoken of.
    pub base_seq: u16,
    /// Number of packets that it speaks of, at most [`MAX_STATUSES`].
    pub status_count: u16,
    /// The receiver's clock in units of 64 ms, 24 bits with sign: it wraps.
    pub reference_time: i32,
    /// Counts feedbacks, so that a lost one shows. It wraps.
    pub feedback_count: u8,
    chunks: &'a [u8],
    deltas: &'a [u8],
}

impl<'a> TransportCc<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, RtcpError> {
        let (sender, media, rest) = feedback_head(body)?;
        let (head, rest) = split::<8>("transport feedback head", rest)?;
        let status_count = u16::from_be_bytes([head[2], head[3]]);
        if status_count > MAX_STATUSES {
            return Err(RtcpError::TooManyStatuses(status_count));
        }
        let reference = i32::from_be_bytes([head[4], head[5], head[6], 0]) >> 8;
        let (chunks_len, deltas_len) = measure(status_count, rest)?;
        let (chunks, rest) = rest.split_at(chunks_len);
        let deltas = super::prefix("arrival deltas", rest, deltas_len)?;
        Ok(Self {
            sender,
            media,
            base_seq: u16::from_be_bytes([head[0], head[1]]),
            status_count,
            reference_time: reference,
            feedback_count: head[7],
            chunks,
            deltas,
        })
    }

    /// The reference time in microseconds on the receiver's clock. It wraps after 12.4 days, from
    /// 2^23 * 64 ms - 64 ms to -2^23 * 64 ms.
    pub const fn reference_time_us(&self) -> i64 {
        self.reference_time as i64 * REFERENCE_UNIT_US
    }

    /// Each packet that it speaks of, in the order of their numbers: its transport-wide number, and
    /// when it arrived in microseconds **after the reference time** (negative when before), `None`
    /// when it did not.
    pub const fn packets(&self) -> PacketStatuses<'a> {
        PacketStatuses {
            seq: self.base_seq,
            left: self.status_count,
            chunks: self.chunks,
            deltas: self.deltas,
            run: Run { chunk: 0, left: 0 },
            at_us: 0,
        }
    }
}

/// Iterator over packets. Made by [`TransportCc::packets`].
#[derive(Clone, Debug)]
pub struct PacketStatuses<'a> {
    seq: u16,
    left: u16,
    chunks: &'a [u8],
    deltas: &'a [u8],
    run: Run,
    at_us: i64,
}

impl PacketStatuses<'_> {
    /// The arrival delta of that status, taken off the deltas. They were measured by
    /// [`TransportCc::parse`], so they do not run out.
    fn delta(&mut self, status: u8) -> Option<i64> {
        match status {
            SMALL => {
                let (&[delta], rest) = self.deltas.split_first_chunk::<1>()?;
                self.deltas = rest;
                Some(i64::from(delta))
            }
            LARGE => {
                let (delta, rest) = self.deltas.split_first_chunk::<2>()?;
                self.deltas = rest;
                Some(i64::from(i16::from_be_bytes(*delta)))
            }
            _ => None,
        }
    }
}

impl Iterator for PacketStatuses<'_> {
    type Item = (u16, Option<i64>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        while self.run.left == 0 {
            let (chunk, rest) = self.chunks.split_first_chunk::<2>()?;
            self.chunks = rest;
            self.run = Run::of(u16::from_be_bytes(*chunk));
        }
        let status = self.run.take();
        let arrived = self.delta(status).map(|delta| {
            self.at_us += delta * DELTA_UNIT_US;
            self.at_us
        });
        let seq = self.seq;
        self.seq = seq.wrapping_add(1);
        self.left -= 1;
        Some((seq, arrived))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for PacketStatuses<'_> {}

/// Packet status symbols (draft, 3.1.1). Not received is 0, reserved is 3.
const SMALL: u8 = 1;
const LARGE: u8 = 2;
const RESERVED: u8 = 3;

/// What is left of one packet status chunk.
#[derive(Clone, Copy, Debug)]
struct Run {
    chunk: u16,
    left: u16,
}

impl Run {
    const fn of(chunk: u16) -> Self {
        let left = match chunk >> 14 {
            0 | 1 => chunk & 0x1fff,
            2 => 14,
            _ => 7,
        };
        Self { chunk, left }
    }

    /// The next status; `left` is not 0.
    const fn take(&mut self) -> u8 {
        self.left -= 1;
        let (chunk, left) = (self.chunk, self.left);
        let status = match chunk >> 14 {
            0 | 1 => chunk >> 13 & 3,
            2 => chunk >> left & 1,
            _ => chunk >> (2 * left) & 3,
        };
        // Masked to two bits above.
        status.to_be_bytes()[1]
    }
}

/// Lengths of the chunks that cover so many packets, and of the deltas of those packets.
fn measure(status_count: u16, bytes: &[u8]) -> Result<(usize, usize), RtcpError> {
    let (mut left, mut rest, mut deltas_len) = (status_count, bytes, 0);
    while left > 0 {
        let (chunk, after) = split::<2>("packet status chunk", rest)?;
        rest = after;
        let mut run = Run::of(u16::from_be_bytes(*chunk));
        let covered = run.left.min(left);
        left -= covered;
        let mut statuses = covered;
        while statuses > 0 {
            let status = run.take();
            // A run length chunk has one status for all.
            let same = if run.chunk >> 15 == 0 { statuses } else { 1 };
            statuses -= same;
            deltas_len += match status {
                RESERVED => return Err(RtcpError::ReservedStatus),
                received => usize::from(received) * usize::from(same),
            };
        }
    }
    Ok((bytes.len() - rest.len(), deltas_len))
}
