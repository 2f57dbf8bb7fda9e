//! Extended reports (RFC 3611), of which two blocks matter: how a receiver that sends nothing asks
//! for the round trip (RRTR, 4.4), and how it is told (DLRR, 4.5). Other blocks are skipped.
//! Invariant: only times that were asked for are told.

use super::{RtcpError, split, word};
use crate::rtp::Ssrc;

const RECEIVER_REFERENCE_TIME: u8 = 4;

/// An extended report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedReport {
    /// Who sent it.
    pub sender: Ssrc,
    /// The sender's clock, as 64-bit NTP time, when it asks for the round trip.
    pub reference_time: Option<u64>,
}

impl ExtendedReport {
    pub(super) fn parse(body: &[u8]) -> Result<Self, RtcpError> {
        let (sender, mut rest) = split::<4>("XR sender", body)?;
        let mut reference_time = None;
        while !rest.is_empty() {
            let (head, tail) = split::<4>("XR block header", rest)?;
            let need = 4 * usize::from(u16::from_be_bytes([head[2], head[3]]));
            let (block, after) = tail.split_at_checked(need).ok_or(RtcpError::Truncated {
                field: "XR block",
                need,
                have: tail.len(),
            })?;
            if head[0] == RECEIVER_REFERENCE_TIME && need == 8 {
                let (high, low) = (word(block, 0), word(block, 4));
                let ntp = u64::from(high) << 32 | u64::from(low);
                reference_time = reference_time.or(Some(ntp));
            }
            rest = after;
        }
        Ok(Self { sender: Ssrc(word(sender, 0)), reference_time })
    }
}
