//! RTCP (RFC 3550, 4585, 5104, transport-wide congestion control): a borrowed walk over a compound
//! packet, and writers. Not SRTCP, no timing rules, no state. Invariant: parsing never allocates
//! and never panics, and a value is given out only when all of its fields lie inside its packet, so
//! its iterators cannot fail.

mod extended;
mod feedback;
mod report;
mod transport_cc;
mod write;

pub use extended::ExtendedReport;
pub use feedback::{Fir, FirEntries, FirEntry, Nack, NackSequences, Remb};
pub use report::{
    Bye, ReceiverReport, ReportBlock, ReportBlocks, SenderInfo, SenderReport, Sources,
};
pub use transport_cc::{MAX_STATUSES, PacketStatuses, TransportCc};
pub use write::{
    MAX_NACK_ENTRIES, MAX_SOURCES, TransportCcReport, write_bye, write_delay_since_reference,
    write_fir, write_nack, write_pli, write_receiver_report, write_reference_time, write_remb,
    write_sdes_cname, write_sender_report, write_transport_cc,
};

use crate::rtp::Ssrc;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SDES: u8 = 202;
const BYE: u8 = 203;
const TRANSPORT_FEEDBACK: u8 = 205;
const PAYLOAD_FEEDBACK: u8 = 206;
const EXTENDED_REPORT: u8 = 207;

/// Feedback message types (RFC 4585, section 6.1) in the five bits beside the version.
const FMT_NACK: u8 = 1;
const FMT_TRANSPORT_CC: u8 = 15;
const FMT_PLI: u8 = 1;
const FMT_FIR: u8 = 4;
const FMT_APPLICATION: u8 = 15;

/// Why bytes are not RTCP, or cannot become it. Retrying does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RtcpError {
    /// A packet ends inside a field.
    #[error("RTCP {field} cut short: needs {need} bytes, has {have}")]
    Truncated {
        /// The field that is cut.
        field: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// The version is not 2.
    #[error("RTCP version is {0}, not 2")]
    Version(u8),
    /// The padding count is zero or more than the packet.
    #[error("RTCP padding of {count} bytes in a body of {room}")]
    Padding {
        /// The count found.
        count: u8,
        /// Bytes after the header.
        room: usize,
    },
    /// A transport-wide feedback that speaks of more packets than [`MAX_STATUSES`].
    #[error("RTCP transport feedback speaks of {0} packets")]
    TooManyStatuses(u16),
    /// A transport-wide feedback with the reserved packet status.
    #[error("RTCP transport feedback has the reserved packet status")]
    ReservedStatus,
    /// A writer's argument does not fit into its field. The caller is to blame.
    #[error("RTCP {0} does not fit into its field")]
    Range(&'static str),
}

/// One packet of a compound packet.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Packet<'a> {
    /// Sender report.
    SenderReport(SenderReport<'a>),
    /// Receiver report.
    ReceiverReport(ReceiverReport<'a>),
    /// Source description. Its items are not read.
    Sdes,
    /// Sources leave.
    Bye(Bye<'a>),
    /// Packets are missing (RFC 4585, 6.2.1).
    Nack(Nack<'a>),
    /// A picture was lost (RFC 4585, 6.3.1).
    Pli {
        /// Who says so.
        sender: Ssrc,
        /// The source that it is about.
        media: Ssrc,
    },
    /// A key frame is wanted (RFC 5104, 4.3.1).
    Fir(Fir<'a>),
    /// Arrival times of packets by transport-wide sequence number.
    TransportCc(TransportCc<'a>),
    /// The receiver's estimate of the path.
    Remb(Remb<'a>),
    /// Extended report: a question for the round trip, perhaps (RFC 3611).
    ExtendedReport(ExtendedReport),
    /// Anything else: its body is not read.
    Other {
        /// Packet type.
        packet_type: u8,
    },
}

/// Walks a compound packet. The bytes must be whole and in clear.
pub const fn packets(compound: &[u8]) -> Packets<'_> {
    Packets { rest: compound }
}

/// Iterator over the packets of a compound packet; it stops after an error. Made by [`packets`].
/// At most one item for each four bytes.
#[derive(Clone, Debug)]
pub struct Packets<'a> {
    rest: &'a [u8],
}

impl<'a> Packets<'a> {
    fn step(&mut self) -> Result<Packet<'a>, RtcpError> {
        let all = self.rest;
        let Some((head, _)) = all.split_first_chunk::<4>() else {
            return Err(RtcpError::Truncated { field: "header", need: 4, have: all.len() });
        };
        if head[0] >> 6 != 2 {
            return Err(RtcpError::Version(head[0] >> 6));
        }
        let need = 4 + 4 * usize::from(u16::from_be_bytes([head[2], head[3]]));
        let Some((packet, rest)) = all.split_at_checked(need) else {
            return Err(RtcpError::Truncated { field: "packet", need, have: all.len() });
        };
        let mut body = &packet[4..];
        if head[0] & 0x20 != 0 {
            let (count, room) = (body.last().copied().unwrap_or(0), body.len());
            if count == 0 || usize::from(count) > room {
                return Err(RtcpError::Padding { count, room });
            }
            body = &body[..room - usize::from(count)];
        }
        self.rest = rest;
        parse(head[1], head[0] & 0x1f, body)
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, RtcpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

impl std::iter::FusedIterator for Packets<'_> {}

fn parse(packet_type: u8, count: u8, body: &[u8]) -> Result<Packet<'_>, RtcpError> {
    Ok(match (packet_type, count) {
        (SENDER_REPORT, _) => Packet::SenderReport(SenderReport::parse(count, body)?),
        (RECEIVER_REPORT, _) => Packet::ReceiverReport(ReceiverReport::parse(count, body)?),
        (SDES, _) => Packet::Sdes,
        (BYE, _) => Packet::Bye(Bye::parse(count, body)?),
        (TRANSPORT_FEEDBACK, FMT_NACK) => Packet::Nack(Nack::parse(body)?),
        (TRANSPORT_FEEDBACK, FMT_TRANSPORT_CC) => Packet::TransportCc(TransportCc::parse(body)?),
        (PAYLOAD_FEEDBACK, FMT_PLI) => {
            let (sender, media, _) = feedback_head(body)?;
            Packet::Pli { sender, media }
        }
        (PAYLOAD_FEEDBACK, FMT_FIR) => Packet::Fir(Fir::parse(body)?),
        (PAYLOAD_FEEDBACK, FMT_APPLICATION) => {
            Remb::parse(body)?.map_or(Packet::Other { packet_type }, Packet::Remb)
        }
        (EXTENDED_REPORT, _) => Packet::ExtendedReport(ExtendedReport::parse(body)?),
        _ => Packet::Other { packet_type },
    })
}

/// The two sources that every feedback message opens with, and what follows.
fn feedback_head(body: &[u8]) -> Result<(Ssrc, Ssrc, &[u8]), RtcpError> {
    let (head, rest) = split::<8>("feedback sources", body)?;
    Ok((Ssrc(word(head, 0)), Ssrc(word(head, 4)), rest))
}

fn split<'a, const N: usize>(
    field: &'static str,
    bytes: &'a [u8],
) -> Result<(&'a [u8; N], &'a [u8]), RtcpError> {
    let cut = RtcpError::Truncated { field, need: N, have: bytes.len() };
    bytes.split_first_chunk::<N>().ok_or(cut)
}

fn prefix<'a>(field: &'static str, bytes: &'a [u8], need: usize) -> Result<&'a [u8], RtcpError> {
    bytes.get(..need).ok_or(RtcpError::Truncated { field, need, have: bytes.len() })
}

/// The big-endian word at `at`, which the caller has checked to be there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
