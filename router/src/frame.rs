//! The packets of one QUIC stream become one frame. Pure: bytes in, frame or a typed error out.
//! Not the order of frames among each other. Invariant: a frame that comes out has consecutive
//! packets of one source and one time stamp, the last one marked, all within the core's bounds.

use std::{sync::Arc, time::Instant};

use fanlight_router_core::limits::{PAYLOAD_BYTES_MAX, PAYLOADS_PER_FRAME_MAX};
use fanlight_wire::{
    h264::SpsFacts,
    pack::frame_facts,
    rtp::{HOP_ABS_CAPTURE_TIME_ID, RtpError, RtpView, is_rtcp, unix_us_from_ntp},
};

use crate::{arrive::Position, stream::NewFrame};

/// Why the packets of a stream are no frame. The sender's fault; the frame is dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("not an RTP packet: {0}")]
    Rtp(#[from] RtpError),
    #[error("an RTP payload of {len} bytes; 1 to {PAYLOAD_BYTES_MAX} are allowed")]
    PayloadSize { len: usize },
    #[error("more than {PAYLOADS_PER_FRAME_MAX} packets")]
    TooManyPackets,
    #[error("sequence number {found} where {expected} was due")]
    Sequence { expected: u16, found: u16 },
    #[error("two sources or two time stamps in one frame")]
    Mixed,
    #[error("the last packet is not marked as such")]
    NotEnded,
    #[error("no packet at all")]
    Empty,
}

impl FrameError {
    /// A word of a closed set for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Rtp(_) => "bad_rtp",
            Self::PayloadSize { .. } => "payload_size",
            Self::TooManyPackets => "too_many_packets",
            Self::Sequence { .. } => "sequence",
            Self::Mixed => "mixed",
            Self::NotEnded => "partial",
            Self::Empty => "empty",
        }
    }
}

/// Collects the packets of one frame.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    head: Option<Head>,
    payloads: Vec<Arc<[u8]>>,
    bytes: usize,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    first: u16,
    next: u16,
    rtp_time: u32,
    ssrc: u32,
    capture_unix_us: Option<u64>,
}

/// A whole frame and its place.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) position: Position,
    pub(crate) frame: NewFrame,
}

impl Assembler {
    /// Sequence number of the frame's first packet, once known.
    pub(crate) fn first(&self) -> Option<u16> {
        self.head.map(|head| head.first)
    }

    /// Takes the next packet. RTCP, which may ride along, is skipped.
    pub(crate) fn push(&mut self, packet: &[u8]) -> Result<(), FrameError> {
        if is_rtcp(packet) {
            return Ok(());
        }
        let rtp = RtpView::parse(packet)?;
        let payload = rtp.payload();
        if payload.is_empty() || payload.len() > PAYLOAD_BYTES_MAX {
            return Err(FrameError::PayloadSize { len: payload.len() });
        }
        if self.payloads.len() == PAYLOADS_PER_FRAME_MAX {
            return Err(FrameError::TooManyPackets);
        }
        let (seq, rtp_time, ssrc) = (rtp.seq().0, rtp.timestamp().0, rtp.ssrc().0);
        let head = self.head.get_or_insert_with(|| Head {
            first: seq,
            next: seq,
            rtp_time,
            ssrc,
            capture_unix_us: rtp.abs_capture_time(HOP_ABS_CAPTURE_TIME_ID).map(unix_us_from_ntp),
        });
        if self.ended || head.rtp_time != rtp_time || head.ssrc != ssrc {
            return Err(FrameError::Mixed);
        }
        if head.next != seq {
            return Err(FrameError::Sequence { expected: head.next, found: seq });
        }
        head.next = seq.wrapping_add(1);
        self.ended = rtp.marker();
        self.bytes += payload.len();
        self.payloads.push(payload.into());
        Ok(())
    }

    /// The stream ended, at `now`: is it a frame?
    pub(crate) fn finish(self, now: Instant) -> Result<Assembled, FrameError> {
        let head = self.head.ok_or(FrameError::Empty)?;
        if !self.ended {
            return Err(FrameError::NotEnded);
        }
        let facts = frame_facts(&self.payloads);
        let position = Position {
            first: head.first,
            last: head.next.wrapping_sub(1),
            key: facts.key,
            bytes: self.bytes,
        };
        let frame = NewFrame {
            arrived: now,
            rtp_time: head.rtp_time,
            capture_unix_us: head.capture_unix_us,
            key: facts.key,
            discardable: facts.discardable,
            payloads: self.payloads,
            params: None,
            after_gap: false,
        };
        Ok(Assembled { position, frame })
    }
}

/// The present parameter sets of one flow, parsed once and not per keyframe.
#[derive(Debug, Default)]
pub(crate) struct Params {
    sps: Vec<u8>,
    facts: Option<Arc<SpsFacts>>,
}

impl Params {
    /// What the parameter set in (or before) this keyframe says. An unreadable one says nothing.
    pub(crate) fn of(&mut self, payloads: &[Arc<[u8]>]) -> Option<Arc<SpsFacts>> {
        if let Some(sps) = find_sps(payloads)
            && sps != self.sps
        {
            self.sps = sps.to_vec();
            self.facts = SpsFacts::parse(sps)
                .inspect_err(|e| tracing::warn!(error = %e, "unreadable parameter set"))
                .ok()
                .map(Arc::new);
        }
        self.facts.clone()
    }
}

/// The first SPS of a frame: a payload of its own, or inside an aggregate (STAP-A, type 24).
fn find_sps(payloads: &[Arc<[u8]>]) -> Option<&[u8]> {
    const SPS: u8 = 7;
    const STAP_A: u8 = 24;
    for payload in payloads {
        match payload.first()? & 0x1f {
            SPS => return Some(payload),
            STAP_A => {
                let mut rest = &payload[1..];
                while let [high, low, tail @ ..] = rest {
                    let len = usize::from(u16::from_be_bytes([*high, *low]));
                    let nal = tail.get(..len)?;
                    if nal.first().is_some_and(|head| head & 0x1f == SPS) {
                        return Some(nal);
                    }
                    rest = &tail[len..];
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use fanlight_wire::rtp::{RtpBuilder, RtpTime, SeqNo, Ssrc, ntp_from_unix_us};

    use super::*;

    fn packet(seq: u16, time: u32, ssrc: u32, marker: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        RtpBuilder::new(96, SeqNo(seq), RtpTime(time), Ssrc(ssrc))
            .marker(marker)
            .abs_capture_time(HOP_ABS_CAPTURE_TIME_ID, ntp_from_unix_us(1_700_000_000_000_000))
            .unwrap()
            .write(payload, &mut out);
        out
    }

    fn assemble(packets: &[Vec<u8>]) -> Result<Assembled, FrameError> {
        let mut assembler = Assembler::default();
        for packet in packets {
            assembler.push(packet)?;
        }
        assembler.finish(Instant::now())
    }

    #[test]
    fn consecutive_packets_become_a_frame_with_its_facts() {
        let got = assemble(&[
            packet(65_535, 9, 1, false, &[0x67, 1, 2, 3]),
            packet(0, 9, 1, true, &[0x65, 9, 9]),
        ])
        .unwrap();
        assert_eq!(got.position, Position { first: 65_535, last: 0, key: true, bytes: 7 });
        assert_eq!(got.frame.capture_unix_us, Some(1_700_000_000_000_000));
        assert_eq!(got.frame.payloads.len(), 2);
        assert!(got.frame.key && !got.frame.discardable);
    }

    #[test]
    fn each_way_to_be_no_frame_has_its_error() {
        let nal = [0x41, 1];
        assert_eq!(assemble(&[]).unwrap_err(), FrameError::Empty);
        let open = [packet(1, 9, 1, false, &nal)];
        assert_eq!(assemble(&open).unwrap_err(), FrameError::NotEnded);
        let hole = [packet(1, 9, 1, false, &nal), packet(3, 9, 1, true, &nal)];
        assert_eq!(assemble(&hole).unwrap_err(), FrameError::Sequence { expected: 2, found: 3 });
        let times = [packet(1, 9, 1, false, &nal), packet(2, 10, 1, true, &nal)];
        assert_eq!(assemble(&times).unwrap_err(), FrameError::Mixed);
        let sources = [packet(1, 9, 1, false, &nal), packet(2, 9, 2, true, &nal)];
        assert_eq!(assemble(&sources).unwrap_err(), FrameError::Mixed);
        let after = [packet(1, 9, 1, true, &nal), packet(2, 9, 1, true, &nal)];
        assert_eq!(assemble(&after).unwrap_err(), FrameError::Mixed);
        let big = [packet(1, 9, 1, true, &[0x41; PAYLOAD_BYTES_MAX + 1])];
        assert!(matches!(assemble(&big), Err(FrameError::PayloadSize { .. })));
        let none = [packet(1, 9, 1, true, &[])];
        assert!(matches!(assemble(&none), Err(FrameError::PayloadSize { len: 0 })));
        assert!(matches!(assemble(&[vec![1, 2, 3]]), Err(FrameError::Rtp(_))));
        let mut many = Assembler::default();
        for i in 0..PAYLOADS_PER_FRAME_MAX {
            many.push(&packet(u16::try_from(i).unwrap(), 9, 1, false, &nal)).unwrap();
        }
        let next = u16::try_from(PAYLOADS_PER_FRAME_MAX).unwrap();
        let one_more = many.push(&packet(next, 9, 1, true, &nal));
        assert_eq!(one_more, Err(FrameError::TooManyPackets));
    }

    #[test]
    fn the_parameter_set_is_found_alone_and_in_an_aggregate() {
        let alone: Vec<Arc<[u8]>> = vec![vec![0x67, 1, 2].into(), vec![0x65].into()];
        assert_eq!(find_sps(&alone), Some(&[0x67, 1, 2][..]));
        let stap: Vec<Arc<[u8]>> = vec![vec![0x78, 0, 1, 0x68, 0, 2, 0x67, 5].into()];
        assert_eq!(find_sps(&stap), Some(&[0x67, 5][..]));
        let cut: Vec<Arc<[u8]>> = vec![vec![0x78, 0, 9, 0x67].into()];
        assert_eq!(find_sps(&cut), None);
        let none: Vec<Arc<[u8]>> = vec![vec![0x78].into(), vec![0x61].into()];
        assert_eq!(find_sps(&none), None);
    }
}
