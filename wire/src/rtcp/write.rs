//! Writers of RTCP packets. Each appends one whole packet; a compound packet is made by calling
//! several. Not SRTCP, and not the rules of what a compound must open with. Invariant: what is
//! appended parses, and nothing is appended on an error.

use super::report::{BLOCK_LEN, ReportBlock, SenderInfo};
use super::transport_cc::{DELTA_UNIT_US, MAX_STATUSES};
use super::{
    BYE, EXTENDED_REPORT, FMT_APPLICATION, FMT_FIR, FMT_NACK, FMT_PLI, FMT_TRANSPORT_CC,
    PAYLOAD_FEEDBACK, RECEIVER_REPORT, RtcpError, SDES, SENDER_REPORT, TRANSPORT_FEEDBACK,
};
use crate::rtp::Ssrc;

/// Most report blocks or leaving sources of one packet: their count has five bits. More are left
/// out.
pub const MAX_SOURCES: usize = 31;

/// Most entries of one NACK: it stays below 1,100 bytes.
pub const MAX_NACK_ENTRIES: usize = 256;

/// Opens a packet, writes its body, then fills in its length. The body is whole words.
fn packet(first: u8, packet_type: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0x80 | first, packet_type, 0, 0]);
    body(out);
    let words = (out.len() - start) / 4 - 1;
    // Every body is bounded far below 2^16 words.
    let length = u16::try_from(words).unwrap_or(u16::MAX).to_be_bytes();
    out[start + 2..start + 4].copy_from_slice(&length);
}

fn put(out: &mut Vec<u8>, word: u32) {
    out.extend_from_slice(&word.to_be_bytes());
}

/// A number of at most [`MAX_SOURCES`] for the count field.
fn count(len: usize) -> u8 {
    u8::try_from(len.min(MAX_SOURCES)).unwrap_or(0)
}

fn put_blocks(reports: &[ReportBlock], out: &mut Vec<u8>) {
    for report in reports.iter().take(MAX_SOURCES) {
        let start = out.len();
        put(out, report.ssrc.0);
        let lost = report.cumulative_lost.clamp(-0x80_0000, 0x7f_ffff).cast_unsigned();
        put(out, u32::from(report.fraction_lost) << 24 | (lost & 0xff_ffff));
        put(out, report.highest_seq);
        put(out, report.jitter);
        put(out, report.last_sr);
        put(out, report.delay_since_last_sr);
        debug_assert_eq!(out.len() - start, BLOCK_LEN);
    }
}

/// Appends a sender report (RFC 3550, 6.4.1).
pub fn write_sender_report(
    sender: Ssrc,
    info: &SenderInfo,
    reports: &[ReportBlock],
    out: &mut Vec<u8>,
) {
    packet(count(reports.len()), SENDER_REPORT, out, |out| {
        put(out, sender.0);
        out.extend_from_slice(&info.ntp.to_be_bytes());
        put(out, info.rtp_time.0);
        put(out, info.packets);
        put(out, info.octets);
        put_blocks(reports, out);
    });
}

/// Appends a receiver report (RFC 3550, 6.4.2).
pub fn write_receiver_report(sender: Ssrc, reports: &[ReportBlock], out: &mut Vec<u8>) {
    packet(count(reports.len()), RECEIVER_REPORT, out, |out| {
        put(out, sender.0);
        put_blocks(reports, out);
    });
}

/// Appends a source description with the canonical name alone (RFC 3550, 6.5). A name of more than
/// 255 bytes is an error.
pub fn write_sdes_cname(source: Ssrc, cname: &str, out: &mut Vec<u8>) -> Result<(), RtcpError> {
    const CNAME: u8 = 1;
    let len = u8::try_from(cname.len()).map_err(|_| RtcpError::Range("canonical name"))?;
    packet(1, SDES, out, |out| {
        let start = out.len();
        put(out, source.0);
        out.extend_from_slice(&[CNAME, len]);
        out.extend_from_slice(cname.as_bytes());
        // One to four zeros: the list's end, then up to the next word.
        let zeros = 4 - (out.len() - start) % 4;
        out.extend_from_slice(&[0; 4][..zeros]);
    });
    Ok(())
}

/// Appends a BYE without a reason (RFC 3550, 6.6).
pub fn write_bye(sources: &[Ssrc], out: &mut Vec<u8>) {
    packet(count(sources.len()), BYE, out, |out| {
        sources.iter().take(MAX_SOURCES).for_each(|source| put(out, source.0));
    });
}

/// Appends a NACK (RFC 4585, 6.2.1) and returns how many of the sequence numbers are in it: those
/// that do not fit into [`MAX_NACK_ENTRIES`] are left. Numbers in rising order pack best. Without
/// numbers nothing is appended.
pub fn write_nack(sender: Ssrc, media: Ssrc, sequences: &[u16], out: &mut Vec<u8>) -> usize {
    let Some(&first) = sequences.first() else { return 0 };
    let mut taken = 0;
    packet(FMT_NACK, TRANSPORT_FEEDBACK, out, |out| {
        put(out, sender.0);
        put(out, media.0);
        let (mut pid, mut mask, mut entries) = (first, 0u16, 1);
        for &seq in sequences {
            match seq.wrapping_sub(pid) {
                0 => {}
                ahead @ 1..=16 => mask |= 1 << (ahead - 1),
                _ if entries == MAX_NACK_ENTRIES => break,
                _ => {
                    put(out, u32::from(pid) << 16 | u32::from(mask));
                    (pid, mask, entries) = (seq, 0, entries + 1);
                }
            }
            taken += 1;
        }
        put(out, u32::from(pid) << 16 | u32::from(mask));
    });
    taken
}

/// Appends a PLI (RFC 4585, 6.3.1).
pub fn write_pli(sender: Ssrc, media: Ssrc, out: &mut Vec<u8>) {
    packet(FMT_PLI, PAYLOAD_FEEDBACK, out, |out| {
        put(out, sender.0);
        put(out, media.0);
    });
}

/// Appends a FIR for one source (RFC 5104, 4.3.1). A new command has a new number.
pub fn write_fir(sender: Ssrc, media: Ssrc, seq: u8, out: &mut Vec<u8>) {
    packet(FMT_FIR, PAYLOAD_FEEDBACK, out, |out| {
        put(out, sender.0);
        put(out, 0);
        put(out, media.0);
        put(out, u32::from(seq) << 24);
    });
}

/// Appends an extended report that answers a receiver's question for the round trip (RFC 3611, 4.5):
/// the middle 32 bits of the time that it said, and how long ago that came, in units of 1/65,536 s.
pub fn write_delay_since_reference(
    sender: Ssrc,
    asker: Ssrc,
    last_reference: u32,
    delay: u32,
    out: &mut Vec<u8>,
) {
    packet(0, EXTENDED_REPORT, out, |out| {
        put(out, sender.0);
        // Block type 5, three words.
        put(out, 5 << 24 | 3);
        put(out, asker.0);
        put(out, last_reference);
        put(out, delay);
    });
}

/// Appends an extended report that asks for the round trip (RFC 3611, 4.4): the asker's clock as
/// 64-bit NTP time.
pub fn write_reference_time(sender: Ssrc, ntp: u64, out: &mut Vec<u8>) {
    packet(0, EXTENDED_REPORT, out, |out| {
        put(out, sender.0);
        // Block type 4, two words.
        put(out, 4 << 24 | 2);
        out.extend_from_slice(&ntp.to_be_bytes());
    });
}

/// Appends a REMB; the bit rate is rounded down to 18 significant bits. At most 255 sources; more
/// are left out.
pub fn write_remb(sender: Ssrc, bitrate_bps: u64, sources: &[Ssrc], out: &mut Vec<u8>) {
    let sources = &sources[..sources.len().min(255)];
    packet(FMT_APPLICATION, PAYLOAD_FEEDBACK, out, |out| {
        put(out, sender.0);
        put(out, 0);
        out.extend_from_slice(b"REMB");
        let exponent = (64 - bitrate_bps.leading_zeros()).saturating_sub(18);
        let mantissa = u32::try_from(bitrate_bps >> exponent).unwrap_or(0);
        let sources_len = u32::try_from(sources.len()).unwrap_or(0);
        put(out, sources_len << 24 | exponent << 18 | mantissa);
        sources.iter().for_each(|source| put(out, source.0));
    });
}

/// What [`write_transport_cc`] writes.
#[derive(Clone, Copy, Debug)]
pub struct TransportCcReport<'a> {
    /// Who received.
    pub sender: Ssrc,
    /// Some source of the transport.
    pub media: Ssrc,
    /// Counts feedbacks; wraps.
    pub feedback_count: u8,
    /// The receiver's clock in units of 64 ms; the low 24 bits are written.
    pub reference_time: i32,
    /// Transport-wide number of the first packet.
    pub base_seq: u16,
    /// For each packet from the first on, when it arrived in microseconds after the reference time
    /// (rounded down to 250 us), or `None`. At most [`MAX_STATUSES`]. Each arrival is at most
    /// 8.19 s from the one before it in this list, the first from the reference time.
    pub arrivals_us: &'a [Option<i64>],
}

/// Appends a transport-wide feedback. Errors leave `out` as it was.
pub fn write_transport_cc(
    report: &TransportCcReport<'_>,
    out: &mut Vec<u8>,
) -> Result<(), RtcpError> {
    let too_many = RtcpError::Range("number of packets");
    let status_count = u16::try_from(report.arrivals_us.len()).map_err(|_| too_many)?;
    if status_count > MAX_STATUSES {
        return Err(too_many);
    }
    for delta in deltas(report.arrivals_us).flatten() {
        i16::try_from(delta).map_err(|_| RtcpError::Range("arrival delta"))?;
    }
    let start = out.len();
    packet(FMT_TRANSPORT_CC, TRANSPORT_FEEDBACK, out, |out| {
        put(out, report.sender.0);
        put(out, report.media.0);
        out.extend_from_slice(&report.base_seq.to_be_bytes());
        out.extend_from_slice(&status_count.to_be_bytes());
        let reference = report.reference_time.cast_unsigned() << 8;
        put(out, reference | u32::from(report.feedback_count));
        put_chunks(report.arrivals_us, out);
        for delta in deltas(report.arrivals_us).flatten() {
            match (u8::try_from(delta), i16::try_from(delta)) {
                (Ok(small), _) => out.push(small),
                (_, Ok(large)) => out.extend_from_slice(&large.to_be_bytes()),
                _ => {}
            }
        }
        // Up to the next word; the last byte says how many.
        let padding = (4 - (out.len() - start) % 4) % 4;
        out.extend_from_slice(match padding {
            0 => &[][..],
            1 => &[1],
            2 => &[0, 2],
            _ => &[0, 0, 3],
        });
        if padding > 0 {
            out[start] |= 0x20;
        }
    });
    Ok(())
}

/// For each packet the ticks since the arrival before it.
fn deltas(arrivals_us: &[Option<i64>]) -> impl Iterator<Item = Option<i64>> + Clone {
    let mut before = 0;
    arrivals_us.iter().map(move |arrival| {
        let ticks = (*arrival)?.div_euclid(DELTA_UNIT_US);
        let delta = ticks.saturating_sub(before);
        before = ticks;
        Some(delta)
    })
}

/// Packet status chunks: a run length where seven or more packets are alike, else a vector of
/// seven two-bit statuses.
fn put_chunks(arrivals_us: &[Option<i64>], out: &mut Vec<u8>) {
    /// A run has 13 bits.
    const LONGEST: usize = 0x1fff;
    let mut statuses = deltas(arrivals_us).map(|delta| match delta {
        None => 0u16,
        Some(0..=255) => 1,
        Some(_) => 2,
    });
    while let Some(first) = statuses.clone().next() {
        let alike = statuses.clone().take(LONGEST).take_while(|s| *s == first).count();
        let chunk = if alike >= 7 {
            statuses.nth(alike - 1);
            // At most 13 bits.
            first << 13 | u16::try_from(alike).unwrap_or(0)
        } else {
            let mut vector = 0;
            for _ in 0..7 {
                vector = vector << 2 | statuses.next().unwrap_or(0);
            }
            0xc000 | vector
        };
        out.extend_from_slice(&chunk.to_be_bytes());
    }
}
