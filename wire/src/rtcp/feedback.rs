//! NACK (RFC 4585), FIR (RFC 5104), REMB (draft-alvestrand-rmcat-remb). Not what to do about them.
//! Invariant: each iterator yields a number of items that its bytes bound.

use super::report::Sources;
use super::{RtcpError, feedback_head, prefix, word};
use crate::rtp::Ssrc;

/// Packets that a receiver misses.
#[derive(Clone, Copy, Debug)]
pub struct Nack<'a> {
    /// Who misses them.
    pub sender: Ssrc,
    /// The source that they belong to.
    pub media: Ssrc,
    entries: &'a [u8],
}

impl<'a> Nack<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, RtcpError> {
        let (sender, media, entries) = feedback_head(body)?;
        Ok(Self { sender, media, entries })
    }

    /// The sequence numbers in the order of the packet, repeats included: at most 17 for each four
    /// bytes.
    pub const fn sequences(&self) -> NackSequences<'a> {
        NackSequences { rest: self.entries, pid: 0, bits: 0 }
    }
}

/// Iterator over sequence numbers. Made by [`Nack::sequences`].
#[derive(Clone, Debug)]
pub struct NackSequences<'a> {
    rest: &'a [u8],
    pid: u16,
    /// Bit `i` stands for `pid + i`; those given out are cleared.
    bits: u32,
}

impl Iterator for NackSequences<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if self.bits == 0 {
            let (entry, rest) = self.rest.split_first_chunk::<4>()?;
            self.rest = rest;
            self.pid = u16::from_be_bytes([entry[0], entry[1]]);
            self.bits = u32::from(u16::from_be_bytes([entry[2], entry[3]])) << 1 | 1;
        }
        let mut offset = 0;
        while self.bits >> offset & 1 == 0 {
            offset += 1;
        }
        self.bits &= self.bits - 1;
        Some(self.pid.wrapping_add(offset))
    }
}

/// Key frames that a receiver wants.
#[derive(Clone, Copy, Debug)]
pub struct Fir<'a> {
    /// Who wants them.
    pub sender: Ssrc,
    entries: &'a [u8],
}

impl<'a> Fir<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, RtcpError> {
        let (sender, _, entries) = feedback_head(body)?;
        Ok(Self { sender, entries })
    }

    /// The sources and their commands' numbers: one for each eight bytes.
    pub const fn entries(&self) -> FirEntries<'a> {
        FirEntries { rest: self.entries }
    }
}

/// One wish of a FIR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirEntry {
    /// The source that a key frame is wanted of.
    pub ssrc: Ssrc,
    /// Number of the command; a repeat has the same number.
    pub seq: u8,
}

/// Iterator over FIR entries. Made by [`Fir::entries`].
#[derive(Clone, Debug)]
pub struct FirEntries<'a> {
    rest: &'a [u8],
}

impl Iterator for FirEntries<'_> {
    type Item = FirEntry;

    fn next(&mut self) -> Option<FirEntry> {
        let (entry, rest) = self.rest.split_first_chunk::<8>()?;
        self.rest = rest;
        Some(FirEntry { ssrc: Ssrc(word(entry, 0)), seq: entry[4] })
    }
}

/// A receiver's estimate of what the path carries.
#[derive(Clone, Copy, Debug)]
pub struct Remb<'a> {
    /// Whose estimate.
    pub sender: Ssrc,
    /// Bits per second; `u64::MAX` when the value written is greater.
    pub bitrate_bps: u64,
    sources: &'a [u8],
}

impl<'a> Remb<'a> {
    /// `None` when the application feedback is not a REMB.
    pub(super) fn parse(body: &'a [u8]) -> Result<Option<Self>, RtcpError> {
        let (sender, _, rest) = feedback_head(body)?;
        let Some((head, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        if head[..4] != *b"REMB" {
            return Ok(None);
        }
        let (exponent, mantissa) = (u32::from(head[5] >> 2), word(head, 4) & 0x3_ffff);
        // 18 bits of mantissa; the shift by up to 63 may push them out.
        let shifted = u128::from(mantissa) << exponent;
        let bitrate_bps = u64::try_from(shifted).unwrap_or(u64::MAX);
        let sources = prefix("REMB sources", rest, 4 * usize::from(head[4]))?;
        Ok(Some(Self { sender, bitrate_bps, sources }))
    }

    /// The sources that share the estimate: at most 255.
    pub const fn sources(&self) -> Sources<'a> {
        Sources { rest: self.sources }
    }
}
