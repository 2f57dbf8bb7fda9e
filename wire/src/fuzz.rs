//! The bodies of the fuzz targets: each feeds bytes to parsers and panics where a promise of this
//! crate is broken. Here rather than in `fuzz/`, so that stable tests run them over a seeded corpus
//! too. Not part of the API. Invariant: a panic here is a finding.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::panic,
    reason = "a panic is the report"
)]

use crate::h264::{AccessUnitInfo, AnnexBSplitter, MAX_ACCESS_UNIT, ParameterSets, SpsFacts};
use crate::h264::{nal_units, write_nal};
use crate::input::{DeviceMessage, InputMessage};
use crate::pack::{Depacketizer, Packetizer, payload_facts};
use crate::roq::{self, ControlFramer, Limits, StreamReader};
use crate::rtcp::{self, MAX_SOURCES, Packet, TransportCc, TransportCcReport};
use crate::rtp::RtpView;
use crate::varint;

/// Splits at a place that the fuzzer chooses.
fn halves(cut: u16, bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(usize::from(cut).min(bytes.len()))
}

/// Varints, datagrams, packet streams.
pub fn roq(cut: u16, bytes: &[u8]) {
    if let Ok((value, used)) = varint::read(bytes) {
        let mut out = Vec::new();
        varint::write(value, &mut out);
        assert!(out.len() <= used && varint::read(&out) == Ok((value, out.len())));
    }
    if let Ok((flow, packet)) = roq::read_datagram(bytes) {
        assert!(!packet.is_empty() && roq::FlowId::from_raw(flow.raw()) == Some(flow));
        let _ = flow.kind();
    }
    let read = |pieces: &[&[u8]]| {
        let mut reader = StreamReader::new(Limits::default());
        let mut packets = Vec::new();
        let mut end = Ok(());
        for piece in pieces {
            reader.push(piece);
            while let Some(p) = reader.next_packet().unwrap_or_else(|e| {
                end = Err(e);
                None
            }) {
                packets.push(p);
            }
        }
        (reader.flow(), packets, end, reader.finish())
    };
    let (head, tail) = halves(cut, bytes);
    assert_eq!(read(&[bytes]), read(&[head, tail]));
}

/// Frames of the control stream.
pub fn control_frames(cut: u16, bytes: &[u8]) {
    let read = |pieces: &[&[u8]]| {
        let mut framer = ControlFramer::expecting_header();
        let (mut frames, mut end) = (Vec::new(), Ok(()));
        for piece in pieces {
            framer.push(piece);
            while let Some(f) = framer.next().unwrap_or_else(|e| {
                end = Err(e);
                None
            }) {
                frames.push(f);
            }
        }
        (frames, end, framer.finish())
    };
    let (head, tail) = halves(cut, bytes);
    assert_eq!(read(&[bytes]), read(&[head, tail]));
}

/// RTP headers.
pub fn rtp(bytes: &[u8]) {
    if let Ok(view) = RtpView::parse(bytes) {
        let carried: usize = view.extensions().map(|(_, data)| data.len()).sum();
        assert!(12 + carried + view.payload().len() <= bytes.len());
        let _ = (view.payload_type(), view.marker(), view.seq(), view.timestamp(), view.ssrc());
        let _ = view.abs_capture_time(1);
        let _ = payload_facts(view.payload());
    }
}

/// RTCP compound packets: what is read is bounded by the bytes, and survives being written.
pub fn rtcp(bytes: &[u8]) {
    let mut out = Vec::new();
    let mut seen = 0;
    for packet in rtcp::packets(bytes) {
        seen += 1;
        let Ok(packet) = packet else { continue };
        rtcp_again(&packet, bytes.len(), &mut out);
    }
    assert!(seen <= bytes.len() / 4 + 1);
    assert!(rtcp::packets(&out).all(|p| p.is_ok()), "what was written parses");
}

/// Reads all of one packet and writes it anew, where there is a writer.
fn rtcp_again(packet: &Packet<'_>, len: usize, out: &mut Vec<u8>) {
    match packet {
        Packet::SenderReport(sr) => {
            let reports: Vec<_> = sr.reports().collect();
            assert!(reports.len() <= MAX_SOURCES);
            rtcp::write_sender_report(sr.sender, &sr.info, &reports, out);
        }
        Packet::ReceiverReport(rr) => {
            let reports: Vec<_> = rr.reports().collect();
            assert!(reports.len() <= MAX_SOURCES);
            rtcp::write_receiver_report(rr.sender, &reports, out);
        }
        Packet::Bye(bye) => assert!(bye.sources().count() <= MAX_SOURCES),
        Packet::Nack(nack) => {
            let missing: Vec<u16> = nack.sequences().collect();
            assert!(missing.len() <= len / 4 * 17);
            let mut alone = Vec::new();
            let taken = rtcp::write_nack(nack.sender, nack.media, &missing, &mut alone);
            let Some(Ok(Packet::Nack(again))) = rtcp::packets(&alone).next() else {
                return assert!(missing.is_empty());
            };
            let (mut before, mut after) =
                (missing[..taken].to_vec(), again.sequences().collect::<Vec<_>>());
            before.sort_unstable();
            before.dedup();
            after.sort_unstable();
            after.dedup();
            assert_eq!(before, after);
        }
        Packet::Fir(fir) => assert!(fir.entries().count() <= len / 8),
        Packet::Remb(remb) => {
            let sources: Vec<_> = remb.sources().collect();
            rtcp::write_remb(remb.sender, remb.bitrate_bps, &sources, out);
        }
        Packet::TransportCc(feedback) => transport_cc_again(feedback, len, out),
        _ => {}
    }
}

fn transport_cc_again(feedback: &TransportCc<'_>, len: usize, out: &mut Vec<u8>) {
    let arrivals: Vec<_> = feedback.packets().map(|(_, at)| at).collect();
    assert_eq!(arrivals.len(), usize::from(feedback.status_count));
    assert!(arrivals.len() <= usize::from(rtcp::MAX_STATUSES));
    assert!(arrivals.iter().flatten().count() <= len);
    let report = TransportCcReport {
        sender: feedback.sender,
        media: feedback.media,
        feedback_count: feedback.feedback_count,
        reference_time: feedback.reference_time,
        base_seq: feedback.base_seq,
        arrivals_us: &arrivals,
    };
    let mut alone = Vec::new();
    rtcp::write_transport_cc(&report, &mut alone).unwrap();
    let Some(Ok(Packet::TransportCc(again))) = rtcp::packets(&alone).next() else { panic!() };
    assert!(again.packets().eq(feedback.packets()));
    assert_eq!(again.reference_time_us(), feedback.reference_time_us());
    out.extend_from_slice(&alone);
}

/// NAL walk, access units, splitter, parameter sets.
pub fn annexb(cut: u16, bytes: &[u8]) {
    let total: usize = nal_units(bytes).map(|n| n.bytes.len()).sum();
    assert!(total <= bytes.len());
    let mut sets = ParameterSets::new();
    sets.absorb(bytes);
    let whole = sets.prepend_if_key(bytes);
    if let (Ok(before), Ok(after)) =
        (AccessUnitInfo::inspect(bytes), AccessUnitInfo::inspect(&whole))
    {
        assert_eq!((before.key, before.has_slice), (after.key, after.has_slice));
    }
    let _ = sets.facts();
    let split = |pieces: &[&[u8]]| {
        let (mut splitter, mut units) = (AnnexBSplitter::new(), Vec::new());
        for piece in pieces {
            splitter.push(piece);
            while let Ok(Some(unit)) = splitter.next() {
                units.push(unit);
            }
        }
        units.extend(splitter.flush());
        units
    };
    let (head, tail) = halves(cut, bytes);
    assert_eq!(split(&[bytes]), split(&[head, tail]));
    let (mut packetizer, mut payloads) = (Packetizer::new(200), Vec::new());
    if packetizer.packetize(bytes, &mut payloads).is_ok() {
        let mut depacketizer = Depacketizer::new();
        let last = payloads.len() - 1;
        let out = payloads.iter().enumerate().map(|(i, p)| depacketizer.push(p, i == last));
        let unit = out.last().unwrap().unwrap().unwrap();
        let kept = |au| {
            let sent = nal_units(au).filter(|n| !matches!(n.bytes[0] & 0x1f, 9 | 12));
            sent.map(|n| n.bytes.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&unit), kept(bytes));
    }
}

/// Sequence parameter sets.
pub fn sps(bytes: &[u8]) {
    let mut nal = vec![0x67];
    nal.extend_from_slice(bytes);
    for candidate in [bytes, &nal] {
        if let Ok(facts) = SpsFacts::parse(candidate) {
            assert!((1..=16_384).contains(&facts.width) && (1..=16_384).contains(&facts.height));
            // With profile 0 an emulation prevention byte (7.4.1 of H.264) may stand in the place
            // of the level; the level is the byte after it.
            if candidate[1..4] != [0, 0, 3] {
                assert_eq!(facts.profile_level_id(), candidate[1..4]);
            }
        }
    }
}

/// RTP payloads in any order, with the marker that the fuzzer chooses.
pub fn depacketize(payloads: &[(bool, Vec<u8>)]) {
    let mut depacketizer = Depacketizer::new();
    for (marker, payload) in payloads {
        let _ = payload_facts(payload);
        let Ok(Some(unit)) = depacketizer.push(payload, *marker) else { continue };
        assert!(*marker && unit.len() <= MAX_ACCESS_UNIT + 1024);
        // Fragments may hide start codes, so only the walk over the result is checked.
        let mut again = Vec::new();
        nal_units(&unit).for_each(|n| write_nal(n.bytes, &mut again));
        assert!(again.len() <= unit.len() + unit.len() / 3);
    }
}

/// Input messages of both directions.
pub fn input(bytes: &[u8]) {
    let mut out = Vec::new();
    if let Ok(message) = InputMessage::decode(bytes) {
        message.encode(&mut out).unwrap();
        assert_eq!(out, bytes);
        let _ = (message.is_droppable(), message.coalesces_with(&message));
        assert!(DeviceMessage::decode(bytes).is_err(), "one direction only");
    } else if let Ok(message) = DeviceMessage::decode(bytes) {
        message.encode(&mut out).unwrap();
        assert_eq!(out, bytes);
    }
}
