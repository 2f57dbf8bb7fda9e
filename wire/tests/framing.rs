//! RoQ readers under every cut and every bound, and RTP under bad headers. Not the happy bytes:
//! those are in `golden.rs`. Invariant checked: a failed reader stays failed and keeps nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use fanlight_wire::roq::{
    self, CONTROL_FRAME_MAX, ControlFramer, FlowId, FlowKind, Limits, RoqError, Slot, StreamReader,
    error_code,
};
use fanlight_wire::rtp::{RtpBuilder, RtpError, RtpTime, RtpView, SeqNo, Ssrc, is_rtcp};
use proptest::prelude::*;

fn drain(reader: &mut StreamReader, out: &mut Vec<Vec<u8>>) -> Result<(), RoqError> {
    while let Some(packet) = reader.next_packet()? {
        out.push(packet.to_vec());
    }
    Ok(())
}

#[test]
fn flow_ids_map_to_slots_and_back() {
    let slot = Slot::new(u32::MAX).unwrap();
    for (flow, kind) in [
        (FlowId::video(slot), FlowKind::Video(slot)),
        (FlowId::audio(slot), FlowKind::Audio(slot)),
        (FlowId::thumbnail(slot), FlowKind::Thumbnail(slot)),
        (FlowId::input(slot), FlowKind::Input(slot)),
        (FlowId::clipboard(slot), FlowKind::Clipboard(slot)),
    ] {
        assert_eq!(flow.kind(), kind);
        assert_eq!(FlowId::from_raw(flow.raw()), Some(flow));
    }
    assert_eq!(FlowId::CONTROL.kind(), FlowKind::Control);
    for reserved in [1, 7, 8 + 5, 8 + 7, 8 << 32, (1 << 62) - 1] {
        assert_eq!(FlowId::from_raw(reserved).unwrap().kind(), FlowKind::Reserved, "{reserved}");
    }
    assert_eq!(FlowId::from_raw(1 << 62), None);
    assert_eq!(Slot::new(0), None);
}

#[test]
fn a_stream_that_ends_inside_a_field_says_which() {
    let cut = |bytes: &[u8]| {
        let mut reader = StreamReader::new(Limits::default());
        reader.push(bytes);
        assert_eq!(reader.next_packet(), Ok(None));
        match reader.finish() {
            Err(RoqError::Truncated { field, have, need }) => Some((field, have, need)),
            other => {
                assert_eq!(other, Ok(()));
                None
            }
        }
    };
    assert_eq!(cut(&[]), Some(("flow id", 0, 1)));
    assert_eq!(cut(&[0x40]), Some(("flow id", 1, 2)));
    assert_eq!(cut(&[0x08]), None, "no packet is legal");
    assert_eq!(cut(&[0x08, 0x40]), Some(("packet length", 1, 2)));
    assert_eq!(cut(&[0x08, 0x03, 1, 2]), Some(("packet", 2, 3)));
}

#[test]
fn bounds_of_a_stream_hold_and_failing_is_for_good() {
    let small = Limits { max_packet_bytes: 10, max_buffered_bytes: 100, max_stream_bytes: 150 };
    let mut reader = StreamReader::new(small);
    reader.push(&[0x08, 11]);
    let error = RoqError::PacketTooLarge { len: 11, max: 10 };
    assert_eq!(reader.next_packet(), Err(error.clone()));
    assert_eq!(error.code(), error_code::LIMIT);
    reader.push(&[0; 1000]);
    assert_eq!(reader.next_packet(), Err(error.clone()));
    assert_eq!(reader.finish(), Err(error));

    let mut reader = StreamReader::new(small);
    reader.push(&[0x01; 101]);
    assert_eq!(reader.next_packet(), Err(RoqError::BufferFull { max: 100 }));

    let mut reader = StreamReader::new(small);
    let mut out = Vec::new();
    for _ in 0..15 {
        reader.push(&[0x01; 10]);
        drain(&mut reader, &mut out).unwrap();
    }
    reader.push(&[0x01]);
    assert_eq!(reader.next_packet(), Err(RoqError::StreamTooLarge { max: 150 }));

    let mut reader = StreamReader::new(small);
    reader.push(&[0x08, 0x00]);
    let error = reader.next_packet().unwrap_err();
    assert_eq!(error, RoqError::Empty { field: "packet" });
    assert_eq!(error.code(), error_code::PACKET_ERROR);
}

#[test]
fn control_frames_have_a_bound_and_a_flow() {
    let mut framer = ControlFramer::new();
    // A length of 2^30 in four bytes: refused before any body comes.
    framer.push(&[0xbf, 0xff, 0xff, 0xff]);
    assert!(matches!(framer.next(), Err(RoqError::FrameTooLarge { .. })));
    assert!(framer.finish().is_err());

    let mut framer = ControlFramer::expecting_header();
    framer.push(&[0x08]);
    let error = framer.next().unwrap_err();
    assert_eq!(error, RoqError::NotControl { flow: 8 });
    assert_eq!(error.code(), error_code::STREAM_CREATION_ERROR);

    let mut framer = ControlFramer::new();
    framer.push(&vec![0x3f; 2 * CONTROL_FRAME_MAX]);
    framer.push(&[0; 100]);
    assert!(matches!(framer.next(), Err(RoqError::BufferFull { .. })));

    let mut out = Vec::new();
    let greatest = vec![7; CONTROL_FRAME_MAX];
    roq::write_control_frame(&greatest, &mut out).unwrap();
    let mut framer = ControlFramer::new();
    framer.push(&out);
    assert_eq!(framer.next(), Ok(Some(greatest)));
    assert!(roq::write_control_frame(&vec![0; CONTROL_FRAME_MAX + 1], &mut out).is_err());

    let mut framer = ControlFramer::new();
    framer.push(&[0x03, 1]);
    assert_eq!(framer.next(), Ok(None));
    let cut = RoqError::Truncated { field: "control frame", have: 2, need: 4 };
    assert_eq!(framer.finish(), Err(cut));
}

#[test]
fn a_datagram_needs_a_flow_and_a_packet() {
    assert!(matches!(roq::read_datagram(&[]), Err(RoqError::Truncated { .. })));
    assert!(matches!(roq::read_datagram(&[0xc0, 0]), Err(RoqError::Truncated { .. })));
    assert!(matches!(roq::read_datagram(&[0x08]), Err(RoqError::Empty { .. })));
}

#[test]
fn rtp_errors_name_the_field() {
    let base = [0x80, 0x60, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
    let with = |first: u8, tail: &[u8]| {
        let mut p = base.to_vec();
        p[0] = first;
        p.extend_from_slice(tail);
        RtpView::parse(&p).map(|_| ()).unwrap_err()
    };
    let cut = |field, need, have| RtpError::Truncated { field, need, have };
    assert_eq!(RtpView::parse(&base[..11]).unwrap_err(), cut("fixed header", 12, 11));
    assert_eq!(with(0x40, &[]), RtpError::Version(1));
    assert_eq!(with(0x82, &[0; 7]), cut("CSRC list", 20, 19));
    assert_eq!(with(0x90, &[0xbe, 0xde, 0]), cut("extension header", 16, 15));
    assert_eq!(with(0x90, &[0xbe, 0xde, 0, 2, 0, 0, 0, 0]), cut("extension", 24, 20));
    let leaving = with(0x90, &[0xbe, 0xde, 0, 1, 0, 0x13, 0, 0]);
    assert_eq!(leaving, RtpError::Extension { offset: 1 });
    assert_eq!(
        with(0x90, &[0x10, 0, 0, 1, 0, 0, 0, 9]),
        RtpError::Extension { offset: 3 },
        "a two-byte element needs its length byte"
    );
    assert_eq!(with(0xa0, &[]), RtpError::Padding { count: 0, room: 0 });
    assert_eq!(with(0xa0, &[1, 0]), RtpError::Padding { count: 0, room: 2 });
    assert_eq!(with(0xa0, &[1, 3]), RtpError::Padding { count: 3, room: 2 });
}

#[test]
fn extension_id_15_stops_and_foreign_profiles_are_passed_over() {
    let mut p = vec![0x90, 0x60, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
    p.extend_from_slice(&[0xbe, 0xde, 0, 1, 0x10, 0xaa, 0xf0, 0x20]);
    let view = RtpView::parse(&p).unwrap();
    assert_eq!(view.extensions().collect::<Vec<_>>(), [(1, &[0xaa][..])]);
    p[12] = 0x77;
    let view = RtpView::parse(&p).unwrap();
    assert_eq!(view.extensions().count(), 0);
    assert_eq!(view.payload(), [0u8; 0]);
}

#[test]
fn what_the_builder_cannot_write_it_refuses() {
    let new = || RtpBuilder::new(96, SeqNo(0), RtpTime(0), Ssrc(0));
    for (id, len) in [(0, 1), (15, 1), (1, 0), (1, 17)] {
        let error = new().extension(id, &vec![0; len]).unwrap_err();
        assert_eq!(error, RtpError::BadExtension { id, len });
    }
    let full = new().extension(1, &[1; 16]).unwrap().extension(2, &[2; 16]).unwrap();
    let full = full.extension(3, &[3; 16]).unwrap();
    assert!(full.clone().extension(4, &[4; 1]).is_err());
    let mut out = Vec::new();
    full.write(&[9], &mut out);
    let view = RtpView::parse(&out).unwrap();
    assert_eq!(view.extension(3), Some(&[3; 16][..]));
    assert_eq!(view.payload(), [9]);
}

#[test]
fn sequence_numbers_and_times_wrap() {
    assert_eq!(SeqNo(0xffff).next(), SeqNo(0));
    assert_eq!(SeqNo(2).distance(SeqNo(0xfffe)), 4);
    assert_eq!(SeqNo(0xfffe).distance(SeqNo(2)), -4);
    assert!(SeqNo(0).is_newer_than(SeqNo(0xffff)));
    assert!(!SeqNo(5).is_newer_than(SeqNo(5)));
    assert!(RtpTime(1).is_newer_than(RtpTime(u32::MAX)));
    assert_eq!(RtpTime(1).distance(RtpTime(u32::MAX)), 2);
    assert_eq!(RtpTime::from_us_90k(1_000_000), RtpTime(90_000));
    assert_eq!(RtpTime::from_us_90k(33_333), RtpTime(2_999));
    // 2^32 ticks are 47,721.858844 s: one tick later it has wrapped.
    assert_eq!(RtpTime::from_us_90k(47_721_858_856), RtpTime(1));
}

#[test]
fn rtcp_is_told_from_rtp() {
    assert!(is_rtcp(&[0x80, 200]));
    assert!(is_rtcp(&[0x81, 206, 0, 2]));
    assert!(!is_rtcp(&[0x80, 96]));
    assert!(!is_rtcp(&[0x80, 0x80 | 96]));
    assert!(!is_rtcp(&[0x80]));
    assert!(!is_rtcp(&[0x00, 200]));
}

proptest! {
    #[test]
    fn a_stream_reads_alike_wherever_it_is_cut(
        slot in 1u32..5000,
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..6),
    ) {
        let flow = FlowId::video(Slot::new(slot).unwrap());
        let mut stream = Vec::new();
        roq::write_stream_header(flow, &mut stream);
        packets.iter().for_each(|p| roq::write_packet(p, &mut stream));
        for at in 0..=stream.len() {
            let mut reader = StreamReader::new(Limits::default());
            let mut out = Vec::new();
            let (head, tail) = stream.split_at(at);
            reader.push(head);
            drain(&mut reader, &mut out).unwrap();
            reader.push(tail);
            drain(&mut reader, &mut out).unwrap();
            prop_assert_eq!(reader.flow(), Some(flow));
            prop_assert_eq!(&out, &packets);
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn control_frames_read_alike_byte_by_byte(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
    ) {
        let mut stream = Vec::new();
        roq::write_stream_header(FlowId::CONTROL, &mut stream);
        frames.iter().for_each(|f| roq::write_control_frame(f, &mut stream).unwrap());
        let (mut framer, mut out) = (ControlFramer::expecting_header(), Vec::new());
        for byte in &stream {
            framer.push(&[*byte]);
            out.extend(framer.next().unwrap());
        }
        // An empty frame right behind a full one needs one more look.
        while let Some(frame) = framer.next().unwrap() {
            out.push(frame);
        }
        prop_assert_eq!(out, frames);
        prop_assert_eq!(framer.finish(), Ok(()));
    }

    #[test]
    fn built_rtp_parses_to_what_was_built(
        pt in 0u8..128, marker: bool, seq: u16, time: u32, ssrc: u32,
        elements in prop::collection::vec((1u8..15, prop::collection::vec(any::<u8>(), 1..=16)), 0..4),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut builder = RtpBuilder::new(pt, SeqNo(seq), RtpTime(time), Ssrc(ssrc)).marker(marker);
        for (id, data) in &elements {
            builder = builder.extension(*id, data).unwrap();
        }
        let mut packet = Vec::new();
        builder.write(&payload, &mut packet);
        let view = RtpView::parse(&packet).unwrap();
        prop_assert_eq!((view.payload_type(), view.marker()), (pt, marker));
        prop_assert_eq!((view.seq(), view.timestamp(), view.ssrc()), (SeqNo(seq), RtpTime(time), Ssrc(ssrc)));
        let read: Vec<_> = view.extensions().map(|(id, d)| (id, d.to_vec())).collect();
        prop_assert_eq!(read, elements);
        prop_assert_eq!(view.payload(), &payload[..]);
    }

    #[test]
    fn random_bytes_never_panic_in_framing(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = RtpView::parse(&bytes).map(|v| v.extensions().count());
        let _ = roq::read_datagram(&bytes);
        let mut reader = StreamReader::new(Limits::default());
        reader.push(&bytes);
        let _ = drain(&mut reader, &mut Vec::new());
        let _ = reader.finish();
    }
}
