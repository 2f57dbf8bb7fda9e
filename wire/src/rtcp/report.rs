//! Sender reports, receiver reports, BYE (RFC 3550, section 6). Not their timing. Invariant: the
//! count of blocks was checked against the bytes when the value was made.

use super::{RtcpError, prefix, split, word};
use crate::rtp::{RtpTime, Ssrc};

/// Length of a report block.
pub(super) const BLOCK_LEN: usize = 24;

/// What one receiver says of one source (RFC 3550, 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReportBlock {
    /// The source.
    pub ssrc: Ssrc,
    /// Share of packets lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost since the beginning, 24 bits with sign: duplicates make it negative.
    pub cumulative_lost: i32,
    /// Highest sequence number received, with the count of wraps in the upper half.
    pub highest_seq: u32,
    /// Interarrival jitter in ticks of the media clock.
    pub jitter: u32,
    /// Middle 32 bits of the NTP time of the last sender report; 0 when there was none.
    pub last_sr: u32,
    /// Time since that report in 1/65,536 s.
    pub delay_since_last_sr: u32,
}

impl ReportBlock {
    fn read(block: &[u8; BLOCK_LEN]) -> Self {
        let loss = word(block, 4);
        Self {
            ssrc: Ssrc(word(block, 0)),
            fraction_lost: block[4],
            // The sign bit of 24 is moved to the top and back.
            cumulative_lost: (loss << 8).cast_signed() >> 8,
            highest_seq: word(block, 8),
            jitter: word(block, 12),
            last_sr: word(block, 16),
            delay_since_last_sr: word(block, 20),
        }
    }
}

/// What a sender says of its own stream (RFC 3550, 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SenderInfo {
    /// Wall clock (NTP, 32.32) of the report.
    pub ntp: u64,
    /// The media clock's reading at the same moment.
    pub rtp_time: RtpTime,
    /// Packets sent since the beginning.
    pub packets: u32,
    /// Payload bytes sent since the beginning.
    pub octets: u32,
}

/// A sender report.
#[derive(Clone, Copy, Debug)]
pub struct SenderReport<'a> {
    /// Whose.
    pub sender: Ssrc,
    /// Of its own stream.
    pub info: SenderInfo,
    blocks: &'a [u8],
}

impl<'a> SenderReport<'a> {
    pub(super) fn parse(count: u8, body: &'a [u8]) -> Result<Self, RtcpError> {
        let (head, rest) = split::<24>("sender info", body)?;
        let info = SenderInfo {
            ntp: u64::from(word(head, 4)) << 32 | u64::from(word(head, 8)),
            rtp_time: RtpTime(word(head, 12)),
            packets: word(head, 16),
            octets: word(head, 20),
        };
        let blocks = prefix("report blocks", rest, usize::from(count) * BLOCK_LEN)?;
        Ok(Self { sender: Ssrc(word(head, 0)), info, blocks })
    }

    /// What it says of the sources that it receives: at most 31.
    pub const fn reports(&self) -> ReportBlocks<'a> {
        ReportBlocks { rest: self.blocks }
    }
}

/// A receiver report.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverReport<'a> {
    /// Whose.
    pub sender: Ssrc,
    blocks: &'a [u8],
}

impl<'a> ReceiverReport<'a> {
    pub(super) fn parse(count: u8, body: &'a [u8]) -> Result<Self, RtcpError> {
        let (head, rest) = split::<4>("report source", body)?;
        let blocks = prefix("report blocks", rest, usize::from(count) * BLOCK_LEN)?;
        Ok(Self { sender: Ssrc(word(head, 0)), blocks })
    }

    /// What it says of the sources that it receives: at most 31.
    pub const fn reports(&self) -> ReportBlocks<'a> {
        ReportBlocks { rest: self.blocks }
    }
}

/// Iterator over report blocks.
#[derive(Clone, Debug)]
pub struct ReportBlocks<'a> {
    rest: &'a [u8],
}

impl Iterator for ReportBlocks<'_> {
    type Item = ReportBlock;

    fn next(&mut self) -> Option<ReportBlock> {
        let (block, rest) = self.rest.split_first_chunk::<BLOCK_LEN>()?;
        self.rest = rest;
        Some(ReportBlock::read(block))
    }
}

/// Sources that leave (RFC 3550, 6.6). The reason is not read.
#[derive(Clone, Copy, Debug)]
pub struct Bye<'a> {
    sources: &'a [u8],
}

impl<'a> Bye<'a> {
    pub(super) fn parse(count: u8, body: &'a [u8]) -> Result<Self, RtcpError> {
        Ok(Self { sources: prefix("leaving sources", body, 4 * usize::from(count))? })
    }

    /// The sources: at most 31.
    pub const fn sources(&self) -> Sources<'a> {
        Sources { rest: self.sources }
    }
}

/// Iterator over SSRCs.
#[derive(Clone, Debug)]
pub struct Sources<'a> {
    pub(super) rest: &'a [u8],
}

impl Iterator for Sources<'_> {
    type Item = Ssrc;

    fn next(&mut self) -> Option<Ssrc> {
        let (source, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(Ssrc(u32::from_be_bytes(*source)))
    }
}
