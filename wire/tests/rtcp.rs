//! RTCP byte by byte, written down by hand from RFC 3550, 4585, 5104 and the drafts of
//! transport-wide feedback and REMB, and what bad bytes do. Not a round trip alone: a mistake made
//! alike in both directions is found by the vectors.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use fanlight_wire::rtcp::*;
use fanlight_wire::rtp::{RtpTime, Ssrc};
use proptest::prelude::*;

const A: Ssrc = Ssrc(0x0102_0304);
const B: Ssrc = Ssrc(0x0a0b_0c0d);

fn one(bytes: &[u8]) -> Packet<'_> {
    let mut all = packets(bytes);
    let first = all.next().unwrap().unwrap();
    assert!(all.next().is_none(), "one packet");
    first
}

const REPORT: ReportBlock = ReportBlock {
    ssrc: B,
    fraction_lost: 0x40,
    cumulative_lost: -2,
    highest_seq: 0x0001_fffe,
    jitter: 90,
    last_sr: 0x1122_3344,
    delay_since_last_sr: 0x0001_0000,
};

#[rustfmt::skip]
const REPORT_BYTES: [u8; 24] = [
    0x0a, 0x0b, 0x0c, 0x0d, // source
    0x40, 0xff, 0xff, 0xfe, // a quarter lost lately, -2 in all
    0x00, 0x01, 0xff, 0xfe, // one wrap, then 65,534
    0x00, 0x00, 0x00, 0x5a, // jitter
    0x11, 0x22, 0x33, 0x44, // last SR
    0x00, 0x01, 0x00, 0x00, // one second ago
];

#[test]
fn a_sender_report_with_one_block() {
    let info = SenderInfo {
        ntp: 0xe000_0001_8000_0000,
        rtp_time: RtpTime(0x0001_5f90),
        packets: 260,
        octets: 312_500,
    };
    let mut out = Vec::new();
    write_sender_report(A, &info, &[REPORT], &mut out);
    let mut expected = vec![
        0x81, 200, 0, 12, // one block, 13 words
        1, 2, 3, 4, // sender
        0xe0, 0, 0, 1, 0x80, 0, 0, 0, // NTP
        0, 1, 0x5f, 0x90, // RTP time
        0, 0, 1, 4, // packets
        0, 4, 0xc4, 0xb4, // octets
    ];
    expected.extend_from_slice(&REPORT_BYTES);
    assert_eq!(out, expected);
    let Packet::SenderReport(report) = one(&out) else { panic!() };
    assert_eq!((report.sender, report.info), (A, info));
    assert_eq!(report.reports().collect::<Vec<_>>(), [REPORT]);
}

#[test]
fn a_receiver_report() {
    let mut out = Vec::new();
    write_receiver_report(A, &[REPORT, REPORT], &mut out);
    let mut expected = vec![0x82, 201, 0, 13, 1, 2, 3, 4];
    expected.extend_from_slice(&REPORT_BYTES);
    expected.extend_from_slice(&REPORT_BYTES);
    assert_eq!(out, expected);
    let Packet::ReceiverReport(report) = one(&out) else { panic!() };
    assert_eq!(report.sender, A);
    assert_eq!(report.reports().collect::<Vec<_>>(), [REPORT, REPORT]);
}

#[test]
fn cumulative_loss_keeps_its_sign_and_saturates() {
    for (given, read) in
        [(-1, -1), (0x7f_ffff, 0x7f_ffff), (i32::MAX, 0x7f_ffff), (i32::MIN, -0x80_0000)]
    {
        let mut out = Vec::new();
        write_receiver_report(A, &[ReportBlock { cumulative_lost: given, ..REPORT }], &mut out);
        let Packet::ReceiverReport(report) = one(&out) else { panic!() };
        assert_eq!(report.reports().next().unwrap().cumulative_lost, read);
    }
}

#[test]
fn a_source_description_ends_with_a_zero_and_whole_words() {
    let mut out = Vec::new();
    write_sdes_cname(A, "fan", &mut out).unwrap();
    assert_eq!(out, [0x81, 202, 0, 3, 1, 2, 3, 4, 1, 3, b'f', b'a', b'n', 0, 0, 0]);
    assert!(matches!(one(&out), Packet::Sdes));
    out.clear();
    write_sdes_cname(A, "ab", &mut out).unwrap();
    assert_eq!(out, [0x81, 202, 0, 3, 1, 2, 3, 4, 1, 2, b'a', b'b', 0, 0, 0, 0]);
    out.clear();
    assert_eq!(
        write_sdes_cname(A, &"x".repeat(256), &mut out),
        Err(RtcpError::Range("canonical name"))
    );
    assert!(out.is_empty());
}

#[test]
fn a_bye() {
    let mut out = Vec::new();
    write_bye(&[A, B], &mut out);
    assert_eq!(out, [0x82, 203, 0, 2, 1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d]);
    let Packet::Bye(bye) = one(&out) else { panic!() };
    assert_eq!(bye.sources().collect::<Vec<_>>(), [A, B]);
    // With a reason behind it, which is not read.
    let reason = [0x81, 203, 0, 2, 1, 2, 3, 4, 2, b'o', b'k', 0];
    let Packet::Bye(bye) = one(&reason) else { panic!() };
    assert_eq!(bye.sources().collect::<Vec<_>>(), [A]);
}

#[test]
fn a_nack_packs_what_follows_within_sixteen() {
    let mut out = Vec::new();
    let missing = [65_535, 0, 15, 16, 500];
    assert_eq!(write_nack(A, B, &missing, &mut out), 5);
    #[rustfmt::skip]
    assert_eq!(out, [
        0x81, 205, 0, 5,
        1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d,
        0xff, 0xff, 0x80, 0x01, // 65,535, its first and its sixteenth successor
        0x00, 0x10, 0x00, 0x00, // 16
        0x01, 0xf4, 0x00, 0x00, // 500
    ]);
    let Packet::Nack(nack) = one(&out) else { panic!() };
    assert_eq!((nack.sender, nack.media), (A, B));
    assert_eq!(nack.sequences().collect::<Vec<_>>(), missing);
    let all = [0x81, 205, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xf8, 0xff, 0xff];
    let Packet::Nack(nack) = one(&all) else { panic!() };
    let expected: Vec<u16> = (0..17).map(|i| 0xfff8u16.wrapping_add(i)).collect();
    assert_eq!(nack.sequences().collect::<Vec<_>>(), expected);
}

#[test]
fn a_nack_takes_what_fits_and_says_how_much() {
    let far: Vec<u16> = (0..600).map(|i| i * 100).collect();
    let mut out = Vec::new();
    assert_eq!(write_nack(A, B, &far, &mut out), MAX_NACK_ENTRIES);
    assert!(out.len() < 1_100);
    let Packet::Nack(nack) = one(&out) else { panic!() };
    assert_eq!(nack.sequences().collect::<Vec<_>>(), far[..MAX_NACK_ENTRIES]);
    assert_eq!(write_nack(A, B, &[], &mut out), 0);
}

#[test]
fn a_pli_and_a_fir() {
    let mut out = Vec::new();
    write_pli(A, B, &mut out);
    assert_eq!(out, [0x81, 206, 0, 2, 1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d]);
    assert!(matches!(one(&out), Packet::Pli { sender: A, media: B }));
    out.clear();
    write_fir(A, B, 7, &mut out);
    #[rustfmt::skip]
    assert_eq!(out, [
        0x84, 206, 0, 4, 1, 2, 3, 4, 0, 0, 0, 0,
        0x0a, 0x0b, 0x0c, 0x0d, 7, 0, 0, 0,
    ]);
    let Packet::Fir(fir) = one(&out) else { panic!() };
    assert_eq!(fir.sender, A);
    assert_eq!(fir.entries().collect::<Vec<_>>(), [FirEntry { ssrc: B, seq: 7 }]);
}

#[test]
fn a_remb() {
    #[rustfmt::skip]
    let bytes = [
        0x8f, 206, 0, 5, 1, 2, 3, 4, 0, 0, 0, 0,
        b'R', b'E', b'M', b'B',
        1, 0x0b, 0xff, 0xff, // one source, exponent 2, mantissa 0x3ffff
        0x0a, 0x0b, 0x0c, 0x0d,
    ];
    let Packet::Remb(remb) = one(&bytes) else { panic!() };
    assert_eq!((remb.sender, remb.bitrate_bps), (A, 0x3_ffff << 2));
    assert_eq!(remb.sources().collect::<Vec<_>>(), [B]);
    let mut out = Vec::new();
    write_remb(A, (0x3_ffff << 2) + 3, &[B], &mut out);
    assert_eq!(out, bytes);
    for (bps, read) in [(0, 0), (1, 1), (300_000, 300_000 & !1), (u64::MAX, 0x3_ffff << 46)] {
        out.clear();
        write_remb(A, bps, &[], &mut out);
        let Packet::Remb(remb) = one(&out) else { panic!() };
        assert_eq!(remb.bitrate_bps, read);
    }
    let mut greatest = bytes;
    greatest[17] = 0xff;
    let Packet::Remb(remb) = one(&greatest) else { panic!() };
    assert_eq!(remb.bitrate_bps, u64::MAX, "the exponent 63 saturates");
    let mut other = bytes;
    other[12] = b'X';
    assert!(matches!(one(&other), Packet::Other { packet_type: 206 }));
}

#[rustfmt::skip]
const TRANSPORT_CC: [u8; 36] = [
    0xaf, 205, 0, 8, // padded, 9 words
    1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d,
    0xff, 0xfe, 0x00, 0x19, // from 65,534, 25 packets
    0xff, 0xff, 0xfe, 0x09, // two units before zero, the ninth feedback
    0x20, 0x02, // run: two small deltas
    0x00, 0x08, // run: eight that did not arrive
    0xd8, 0x00, // two-bit vector of seven: 1 2 0 0 0 0 0
    0x90, 0x03, // one-bit vector of fourteen, eight used: 0 1 0 0 0 0 0 0
    0x04, 0x00, 0x08, // 1 ms, 0, 2 ms
    0xff, 0xfc, // -1 ms
    0xff, // 63.75 ms
    0, 2, // padding
];

#[test]
fn a_transport_feedback_with_each_kind_of_chunk() {
    let Packet::TransportCc(feedback) = one(&TRANSPORT_CC) else { panic!() };
    assert_eq!((feedback.sender, feedback.media), (A, B));
    assert_eq!((feedback.base_seq, feedback.status_count), (65_534, 25));
    assert_eq!((feedback.reference_time, feedback.reference_time_us()), (-2, -128_000));
    assert_eq!(feedback.feedback_count, 9);
    let arrived: Vec<(u16, i64)> =
        feedback.packets().filter_map(|(seq, at)| Some((seq, at?))).collect();
    assert_eq!(arrived, [(65_534, 1_000), (65_535, 1_000), (8, 3_000), (9, 2_000), (16, 65_750)]);
    let numbers: Vec<u16> = feedback.packets().map(|(seq, _)| seq).collect();
    assert_eq!(numbers, (0..25).map(|i| 65_534u16.wrapping_add(i)).collect::<Vec<_>>());
}

#[test]
fn a_transport_feedback_is_written_with_runs_and_vectors() {
    let mut arrivals = vec![Some(300), Some(250), None, Some(10_000)];
    arrivals.extend([None; 10]);
    arrivals.push(Some(9_999));
    let report = TransportCcReport {
        sender: A,
        media: B,
        feedback_count: 3,
        reference_time: -2,
        base_seq: 7,
        arrivals_us: &arrivals,
    };
    let mut out = vec![0xee];
    write_transport_cc(&report, &mut out).unwrap();
    #[rustfmt::skip]
    assert_eq!(out, [0xee,
        0xaf, 205, 0, 7, 1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d,
        0, 7, 0, 15, 0xff, 0xff, 0xfe, 3,
        0xd4, 0x40, // vector: 1 1 0 1 0 0 0
        0x00, 0x07, // run: seven that did not arrive
        0xe0, 0x00, // vector: 2
        1, 0, 39, 0xff, 0xff, // 250 us, 0, 9.75 ms, -250 us
        1,
    ]);
    let Packet::TransportCc(feedback) = one(&out[1..]) else { panic!() };
    let rounded: Vec<_> = arrivals.iter().map(|a| a.map(|us| us / 250 * 250)).collect();
    assert_eq!(feedback.packets().map(|(_, at)| at).collect::<Vec<_>>(), rounded);
}

#[test]
fn a_writer_refuses_what_does_not_fit_and_appends_nothing() {
    let mut report = TransportCcReport {
        sender: A,
        media: B,
        feedback_count: 0,
        reference_time: 0,
        base_seq: 0,
        arrivals_us: &[Some(0), Some(8_192_000)],
    };
    let mut out = Vec::new();
    assert_eq!(write_transport_cc(&report, &mut out), Err(RtcpError::Range("arrival delta")));
    report.arrivals_us = &[Some(0), Some(8_191_999)];
    write_transport_cc(&report, &mut out).unwrap();
    out.clear();
    let many = vec![None; usize::from(MAX_STATUSES) + 1];
    report.arrivals_us = &many;
    assert_eq!(write_transport_cc(&report, &mut out), Err(RtcpError::Range("number of packets")));
    report.arrivals_us = &many[1..];
    assert!(out.is_empty());
    write_transport_cc(&report, &mut out).unwrap();
    let Packet::TransportCc(feedback) = one(&out) else { panic!() };
    assert_eq!(feedback.packets().len(), usize::from(MAX_STATUSES));
    assert_eq!(feedback.packets().count(), usize::from(MAX_STATUSES));
}

#[test]
fn a_transport_feedback_that_claims_too_much_is_refused() {
    let error = |change: &dyn Fn(&mut [u8; 36])| {
        let mut bytes = TRANSPORT_CC;
        change(&mut bytes);
        packets(&bytes).next().unwrap().unwrap_err()
    };
    assert_eq!(error(&|b| b[14] = 0x20), RtcpError::TooManyStatuses(0x2019));
    assert_eq!(error(&|b| b[24] = 0xf8), RtcpError::ReservedStatus);
    assert_eq!(error(&|b| b[20] = 0x60), RtcpError::ReservedStatus);
    assert_eq!(
        error(&|b| b[35] = 3),
        RtcpError::Truncated { field: "arrival deltas", need: 6, have: 5 }
    );
    // Runs of no length end with the bytes.
    assert_eq!(error(&|b| b[20..].fill(0)), RtcpError::Padding { count: 0, room: 32 });
    assert!(matches!(
        error(&|b| {
            b[20..].fill(0);
            b[0] = 0x8f;
        }),
        RtcpError::Truncated { field: "packet status chunk", .. }
    ));
}

#[test]
fn a_compound_packet_is_walked_to_its_end_or_its_first_fault() {
    let mut compound = Vec::new();
    write_receiver_report(A, &[REPORT], &mut compound);
    write_sdes_cname(A, "viewer", &mut compound).unwrap();
    write_nack(A, B, &[1, 2, 3], &mut compound);
    write_pli(A, B, &mut compound);
    compound.extend_from_slice(&TRANSPORT_CC);
    compound.extend_from_slice(&[0x80, 207, 0, 1, 1, 2, 3, 4]);
    let kinds: Vec<_> = packets(&compound).map(Result::unwrap).collect();
    assert!(matches!(
        kinds[..],
        [
            Packet::ReceiverReport(_),
            Packet::Sdes,
            Packet::Nack(_),
            Packet::Pli { .. },
            Packet::TransportCc(_),
            Packet::ExtendedReport(_)
        ]
    ));
    compound.extend_from_slice(&[0x40, 201, 0, 0, 0x80, 203, 0, 0]);
    let mut all = packets(&compound).skip(6);
    assert!(matches!(all.next(), Some(Err(RtcpError::Version(1)))));
    assert!(all.next().is_none(), "it stops after an error");
    assert!(packets(&[]).next().is_none());
}

#[test]
fn short_bytes_name_the_field() {
    let field = |bytes: &[u8]| match packets(bytes).next().unwrap().unwrap_err() {
        RtcpError::Truncated { field, need, have } => (field, need, have),
        other => panic!("{other}"),
    };
    assert_eq!(field(&[0x80, 200, 0]), ("header", 4, 3));
    assert_eq!(field(&[0x80, 200, 0, 1, 0]), ("packet", 8, 5));
    assert_eq!(field(&[0x80, 200, 0, 1, 0, 0, 0, 0]), ("sender info", 24, 4));
    assert_eq!(field(&[0x80, 201, 0, 0]), ("report source", 4, 0));
    assert_eq!(field(&[0x81, 201, 0, 1, 0, 0, 0, 0]), ("report blocks", 24, 0));
    assert_eq!(field(&[0x82, 203, 0, 1, 0, 0, 0, 0]), ("leaving sources", 8, 4));
    assert_eq!(field(&[0x81, 205, 0, 1, 0, 0, 0, 0]), ("feedback sources", 8, 4));
    assert_eq!(field(&[0x8f, 205, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]).0, "transport feedback head");
    let mut padded = [0xa1, 206, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
    assert_eq!(
        packets(&padded).next().unwrap().unwrap_err(),
        RtcpError::Padding { count: 9, room: 8 }
    );
    padded[11] = 4;
    assert_eq!(field(&padded), ("feedback sources", 8, 4));
}

fn arrivals() -> impl Strategy<Value = Vec<Option<i64>>> {
    let step = prop_oneof![
        3 => Just(None),
        3 => (0i64..64_000).prop_map(Some),
        1 => (-8_000_000i64..8_000_000).prop_map(Some),
    ];
    prop::collection::vec((step, 1usize..20), 0..60).prop_map(|runs| {
        let mut at = 0;
        let each = runs.into_iter().flat_map(|(step, times)| std::iter::repeat_n(step, times));
        each.map(|step| {
            at += step?;
            Some(at)
        })
        .collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        reference in -0x80_0000i32..0x80_0000, base: u16, feedback_count: u8, arrivals in arrivals()
    ) {
        let report = TransportCcReport {
            sender: A, media: B, feedback_count, reference_time: reference, base_seq: base,
            arrivals_us: &arrivals,
        };
        let mut out = Vec::new();
        write_transport_cc(&report, &mut out).unwrap();
        prop_assert_eq!(out.len() % 4, 0);
        let Packet::TransportCc(read) = one(&out) else { panic!() };
        prop_assert_eq!((read.reference_time, read.base_seq), (reference, base));
        prop_assert_eq!(read.feedback_count, feedback_count);
        let ticks: Vec<_> = arrivals.iter().map(|a| a.map(|us| us.div_euclid(250) * 250)).collect();
        prop_assert_eq!(read.packets().map(|(_, at)| at).collect::<Vec<_>>(), ticks);
    }

    #[test]
    fn a_nack_is_read_as_written(mut missing in prop::collection::vec(any::<u16>(), 1..200)) {
        missing.sort_unstable();
        missing.dedup();
        let mut out = Vec::new();
        prop_assert_eq!(write_nack(A, B, &missing, &mut out), missing.len());
        let Packet::Nack(nack) = one(&out) else { panic!() };
        prop_assert_eq!(nack.sequences().collect::<Vec<_>>(), missing);
    }
}

#[test]
fn a_question_for_the_round_trip_is_read_among_other_blocks() {
    let mut bytes = Vec::new();
    write_reference_time(Ssrc(7), 0x0102_0304_0506_0708, &mut bytes);
    assert_eq!(
        bytes,
        [0x80, 207, 0, 4, 0, 0, 0, 7, 4, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8],
        "RFC 3611, 4.4"
    );
    // A block of another kind before it, and one after.
    let mut more = vec![0x80, 207, 0, 8, 0, 0, 0, 7, 9, 0, 0, 1, 0, 0, 0, 0];
    more.extend(&bytes[8..]);
    more.extend([1, 0, 0, 1, 0, 0, 0, 0]);
    for (bytes, found) in [(&bytes, true), (&more, true)] {
        let Some(Ok(Packet::ExtendedReport(report))) = packets(bytes).next() else {
            panic!("an extended report")
        };
        assert_eq!(report.sender, Ssrc(7));
        assert_eq!(report.reference_time.is_some(), found);
    }
    // A block longer than the packet is an error, and an answer is no question.
    let mut cut = bytes.clone();
    cut[11] = 3;
    assert!(matches!(packets(&cut).next(), Some(Err(RtcpError::Truncated { .. }))));
    let mut answer = Vec::new();
    write_delay_since_reference(Ssrc(1), Ssrc(7), 2, 3, &mut answer);
    assert_eq!(answer.len(), 24);
    let Some(Ok(Packet::ExtendedReport(report))) = packets(&answer).next() else {
        panic!("an extended report")
    };
    assert_eq!(report.reference_time, None);
}
