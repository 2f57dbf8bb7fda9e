//! NAL walking, access units, SPS facts, parameter sets, the splitter, and the packetiser as the
//! depacketiser's inverse. Not decoding. Invariant checked: nothing is lost and nothing invented.
#![allow(clippy::unwrap_used, reason = "tests")]

use fanlight_wire::h264::{
    AccessUnitError, AccessUnitInfo, AnnexBSplitter, MAX_ACCESS_UNIT, MAX_NALS, MAX_SPS_LEN,
    NalType, ParameterSets, SplitError, SpsError, SpsFacts, nal_units, write_nal,
};
use fanlight_wire::pack::{
    Depacketizer, FrameFacts, PackError, Packetizer, PayloadFacts, frame_facts, payload_facts,
};
use proptest::prelude::*;

/// Baseline, 720x1280. Behind profile, flags and level the bits are: id 0 `1`, frame numbers `1`,
/// order type 2 `011`, 1 reference `010`, gaps `0`, 45 macroblocks `00000101101`, 80 macroblocks
/// `0000001010000`, frames only `1`, direct inference `1`, no cropping `0`, no VUI `0`, stop `1`.
const SPS_720X1280: [u8; 9] = [0x67, 0x42, 0xc0, 0x1f, 0xda, 0x02, 0xd0, 0x28, 0x64];

/// High, 1920x1080 as 120x68 macroblocks less 8 lines, written by x264, with VUI: two reorder
/// frames.
const SPS_1080P_X264: [u8; 27] = [
    0x67, 0x64, 0x00, 0x28, 0xac, 0xd9, 0x40, 0x78, 0x02, 0x27, 0xe5, 0xc0, 0x44, 0x00, 0x00, 0x03,
    0x00, 0x04, 0x00, 0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc6, 0x58,
];

const PPS: [u8; 4] = [0x68, 0xce, 0x3c, 0x80];

fn annex_b(nals: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    nals.iter().for_each(|n| write_nal(n, &mut out));
    out
}

fn split(annex_b: &[u8]) -> Vec<&[u8]> {
    nal_units(annex_b).map(|n| n.bytes).collect()
}

#[test]
fn nal_units_stand_between_start_codes_of_either_length() {
    let bytes =
        [9, 9, 0, 0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 2, 0, 0, 0, 0, 1, 0, 0, 1, 0x65, 3, 0, 0];
    let nals: Vec<_> = nal_units(&bytes).collect();
    assert_eq!(split(&bytes), [&[0x67, 1][..], &[0x68, 2], &[0x65, 3]]);
    assert_eq!(nals[0].kind, NalType::Sps);
    assert_eq!((nals[2].kind, nals[2].ref_idc), (NalType::IdrSlice, 3));
    assert_eq!(nal_units(&[]).count(), 0);
    assert_eq!(nal_units(&[0, 0, 1]).count(), 0);
    assert_eq!(nal_units(&[0, 0, 0, 0, 0]).count(), 0);
    assert_eq!(nal_units(&[1, 2, 3, 4]).count(), 0);
}

#[test]
fn an_access_unit_is_told_without_decoding() {
    let key = annex_b(&[&[0x09, 0x10], &SPS_720X1280, &PPS, &[0x65, 0x88]]);
    let info = AccessUnitInfo::inspect(&key).unwrap();
    let all = AccessUnitInfo {
        key: true,
        discardable: false,
        has_sps: true,
        has_pps: true,
        has_slice: true,
    };
    assert_eq!(info, all);
    // SEI always has ref_idc 0; only slices count.
    let discardable = AccessUnitInfo::inspect(&annex_b(&[&[0x06, 1], &[0x01, 0x88]])).unwrap();
    assert!(discardable.discardable && !discardable.key);
    let mixed = AccessUnitInfo::inspect(&annex_b(&[&[0x01, 0x88], &[0x41, 0x48]])).unwrap();
    assert!(!mixed.discardable);
    let config = AccessUnitInfo::inspect(&annex_b(&[&SPS_720X1280, &PPS])).unwrap();
    assert!(!config.has_slice && !config.discardable);
}

#[test]
fn what_is_no_access_unit_is_named() {
    let inspect = AccessUnitInfo::inspect;
    assert_eq!(inspect(&[]), Err(AccessUnitError::NoNal { len: 0 }));
    assert_eq!(inspect(&[1, 2, 3]), Err(AccessUnitError::NoNal { len: 3 }));
    let forbidden = AccessUnitError::Forbidden { index: 1, header: 0xe5 };
    assert_eq!(inspect(&annex_b(&[&PPS, &[0xe5, 1]])), Err(forbidden));
    let len = MAX_ACCESS_UNIT + 1;
    assert_eq!(inspect(&vec![1; len]), Err(AccessUnitError::TooLarge { len }));
    let many = annex_b(&vec![&PPS[..]; MAX_NALS + 1]);
    assert_eq!(inspect(&many), Err(AccessUnitError::TooManyNals));
    assert!(inspect(&annex_b(&vec![&PPS[..]; MAX_NALS])).is_ok());
}

#[test]
fn sps_facts_of_a_baseline_portrait_screen() {
    let facts = SpsFacts::parse(&SPS_720X1280).unwrap();
    assert_eq!((facts.width, facts.height), (720, 1280));
    assert_eq!(facts.profile_level_id(), [0x42, 0xc0, 0x1f]);
    assert_eq!(facts.max_num_reorder_frames, Some(0));
}

#[test]
fn sps_facts_of_a_cropped_high_profile_film() {
    let facts = SpsFacts::parse(&SPS_1080P_X264).unwrap();
    assert_eq!((facts.width, facts.height), (1920, 1080));
    assert_eq!(facts.profile_level_id(), [0x64, 0x00, 0x28]);
    assert_eq!(facts.max_num_reorder_frames, Some(2));
}

#[test]
fn careless_video_usability_information_does_not_hide_the_size() {
    // The last bytes say max_dec_frame_buffering; here they are cut away.
    let cut = &SPS_1080P_X264[..SPS_1080P_X264.len() - 4];
    let facts = SpsFacts::parse(cut).unwrap();
    assert_eq!((facts.width, facts.height), (1920, 1080));
    assert_eq!(facts.max_num_reorder_frames, None, "what the VUI says is not believed");
    // Cut before the VUI it has no size, and that is an error.
    assert!(SpsFacts::parse(&SPS_1080P_X264[..10]).is_err());
}

#[test]
fn a_bad_sps_is_an_error_that_names_its_field() {
    assert_eq!(SpsFacts::parse(&[]), Err(SpsError::NotSps { header: None }));
    assert_eq!(SpsFacts::parse(&PPS), Err(SpsError::NotSps { header: Some(0x68) }));
    let long = vec![0x67; MAX_SPS_LEN + 1];
    assert_eq!(SpsFacts::parse(&long), Err(SpsError::TooLarge { len: MAX_SPS_LEN + 1 }));
    for end in 1..SPS_720X1280.len() {
        let error = SpsFacts::parse(&SPS_720X1280[..end]).unwrap_err();
        assert!(matches!(error, SpsError::Malformed { .. }), "{end}: {error}");
    }
    let text = SpsFacts::parse(&SPS_720X1280[..6]).unwrap_err().to_string();
    assert!(text.contains("pic_width_in_mbs_minus1"), "{text}");
}

#[test]
fn parameter_sets_go_in_front_of_keyframes_only() {
    let mut sets = ParameterSets::new();
    let bare_key = annex_b(&[&[0x65, 0x88]]);
    assert_eq!(sets.prepend_if_key(&bare_key), bare_key, "nothing known yet");
    assert!(sets.absorb(&annex_b(&[&SPS_720X1280, &PPS])));
    assert!(!sets.absorb(&annex_b(&[&SPS_720X1280, &PPS])), "the same again is no change");
    assert!(sets.is_complete());
    assert_eq!(sets.facts().unwrap().unwrap().width, 720);

    let key = sets.prepend_if_key(&bare_key);
    assert_eq!(key, annex_b(&[&SPS_720X1280, &PPS, &[0x65, 0x88]]));
    assert_eq!(sets.prepend_if_key(&key), key, "twice is once");
    let delta = annex_b(&[&[0x41, 0x88]]);
    assert_eq!(sets.prepend_if_key(&delta), delta);
    let delimited = annex_b(&[&[0x09, 0x10], &[0x65, 0x88]]);
    let expected = annex_b(&[&[0x09, 0x10], &SPS_720X1280, &PPS, &[0x65, 0x88]]);
    assert_eq!(sets.prepend_if_key(&delimited), expected);
}

#[test]
fn a_keyframe_with_half_its_sets_keeps_its_own() {
    let mut sets = ParameterSets::new();
    sets.absorb(&annex_b(&[&SPS_720X1280, &PPS]));
    let half = annex_b(&[&SPS_1080P_X264, &[0x65, 0x88]]);
    assert_eq!(
        sets.prepend_if_key(&half),
        annex_b(&[&SPS_1080P_X264, &PPS, &[0x65, 0x88]]),
        "both SPS have id 0: the unit's own replaces the remembered one"
    );
    assert_eq!(sets.sps(), Some(&SPS_720X1280[..]), "only absorb remembers");
}

#[test]
fn the_parameter_set_cache_is_bounded() {
    let mut sets = ParameterSets::new();
    for id in 0..200u32 {
        // Exp-Golomb of id, then a stop bit, as a PPS.
        let bits = 2 * (id + 1).ilog2() + 1;
        let word = (id + 1) << (32 - bits) | 1 << (31 - bits);
        let nal = [&[0x68][..], &word.to_be_bytes()].concat();
        sets.absorb(&annex_b(&[&nal]));
    }
    let au = annex_b(&[&SPS_720X1280, &[0x65, 0x88]]);
    let held = split(&sets.prepend_if_key(&au)).len();
    assert_eq!(held, 1 + 16 + 1);
    assert!(!sets.absorb(&annex_b(&[&vec![0x68; MAX_SPS_LEN + 1]])), "too long to be one");
}

#[test]
fn a_byte_stream_is_cut_at_delimiters_sets_and_first_macroblocks() {
    let first = annex_b(&[&SPS_720X1280, &PPS, &[0x65, 0x88, 1], &[0x65, 0x48, 2]]);
    let second = annex_b(&[&[0x41, 0x9a, 3]]);
    let third = annex_b(&[&[0x09, 0x30], &[0x41, 0x9a, 4], &[0x41, 0x5a, 5]]);
    let fourth = annex_b(&[&[0x06, 5, 1], &[0x41, 0x9a, 6]]);
    let stream = [&[7, 7, 7][..], &first, &second, &third, &fourth].concat();
    for step in 1..=stream.len() {
        let (mut splitter, mut units) = (AnnexBSplitter::new(), Vec::new());
        for piece in stream.chunks(step) {
            splitter.push(piece);
            while let Some(unit) = splitter.next().unwrap() {
                units.push(unit);
            }
        }
        units.extend(splitter.flush());
        assert_eq!(units, [&first[..], &second, &third, &fourth], "in steps of {step}");
        assert_eq!(splitter.flush(), None);
    }
}

#[test]
fn flushing_gives_a_finished_picture_without_waiting_for_the_next() {
    let mut splitter = AnnexBSplitter::new();
    let picture = annex_b(&[&[0x65, 0x88, 1]]);
    splitter.push(&picture);
    assert_eq!(splitter.next(), Ok(None));
    assert_eq!(splitter.flush(), Some(picture));
    let next = annex_b(&[&[0x41, 0x9a, 3]]);
    splitter.push(&next);
    assert_eq!(splitter.next(), Ok(None));
    assert_eq!(splitter.flush(), Some(next));
    splitter.push(&annex_b(&[&SPS_720X1280, &PPS]));
    assert_eq!(splitter.next(), Ok(None));
    assert_eq!(splitter.flush(), None, "without a slice it is no picture");
}

#[test]
fn the_splitter_holds_a_bounded_amount_and_recovers() {
    let mut splitter = AnnexBSplitter::new();
    for _ in 0..40 {
        splitter.push(&[0xaa; 1 << 20]);
        assert_eq!(splitter.next(), Ok(None), "bytes before any start code are dropped");
    }
    splitter.push(&annex_b(&[&[0x65, 0x88]]));
    splitter.push(&vec![0xaa; MAX_ACCESS_UNIT]);
    assert!(matches!(splitter.next(), Err(SplitError::TooLarge { .. })));
    let (one, two) = (annex_b(&[&[0x65, 0x88, 1]]), annex_b(&[&[0x41, 0x88, 1]]));
    splitter.push(&one);
    splitter.push(&two);
    assert_eq!(splitter.next(), Ok(Some(one)));
    assert_eq!(splitter.flush(), Some(two));
}

#[test]
fn payloads_tell_what_they_belong_to() {
    let facts = |p: &[u8]| payload_facts(p);
    let idr = PayloadFacts { key: true, starts_nal: true, has_slice: true, ..Default::default() };
    assert_eq!(facts(&[0x65, 1]), idr);
    assert_eq!(facts(&[0x7c, 0x85, 1]), idr, "FU-A start");
    assert_eq!(facts(&[0x7c, 0x05, 1]), PayloadFacts { starts_nal: false, ..idr }, "FU-A middle");
    assert!(facts(&[0x01, 1]).discardable);
    assert!(facts(&[0x1c, 0x41, 1]).discardable, "FU-A end of a slice with ref_idc 0");
    assert!(facts(&[0x78, 0, 1, 0x67, 0, 1, 0x68]).has_param_sets);
    for odd in [&[][..], &[0x7c], &[0x78], &[0x78, 0], &[0x78, 0, 0], &[0xff, 1], &[0x00]] {
        assert_eq!(facts(odd), PayloadFacts::default(), "{odd:?}");
    }
    let sei_and_slice = frame_facts([&[0x06, 1][..], &[0x01, 1]]);
    assert_eq!(sei_and_slice, FrameFacts { key: false, discardable: true });
    assert_eq!(frame_facts([&[0x06, 1][..]]), FrameFacts::default());
}

#[test]
fn a_damaged_frame_is_dropped_and_the_next_one_is_whole() {
    let mut d = Depacketizer::new();
    assert_eq!(d.push(&[0x7c, 0x85, 1], false), Ok(None));
    let error = PackError::Fragment("another NAL unit inside one that is not finished");
    assert_eq!(d.push(&[0x41, 1], false), Err(error));
    assert_eq!(d.push(&[0x41, 1], false), Ok(None), "told once");
    assert_eq!(d.push(&[0x41, 1], true), Ok(None), "the damaged frame ends");
    assert_eq!(d.push(&[0x41, 2], true), Ok(Some(annex_b(&[&[0x41, 2]]))));

    d.lose();
    assert_eq!(d.push(&[0x41, 3], true), Ok(None), "a lost packet damages its frame");
    assert_eq!(d.push(&[0x41, 4], true), Ok(Some(annex_b(&[&[0x41, 4]]))));

    let refused: [(&[u8], PackError); 9] = [
        (&[], PackError::Truncated { field: "NAL header", need: 1, have: 0 }),
        (&[0x7c], PackError::Truncated { field: "FU header", need: 2, have: 1 }),
        (&[0x7c, 0x05, 1], PackError::Fragment("piece without a start")),
        (&[0x7c, 0x9c, 1], PackError::UnpackableType(28)),
        (&[0x79, 1], PackError::UnknownStructure(25)),
        (&[0x78], PackError::Truncated { field: "STAP-A", need: 3, have: 0 }),
        (&[0x78, 0], PackError::Truncated { field: "STAP-A size", need: 2, have: 1 }),
        (&[0x78, 0, 0], PackError::Truncated { field: "STAP-A unit", need: 1, have: 0 }),
        (&[0x78, 0, 3, 1, 2], PackError::Truncated { field: "STAP-A unit", need: 3, have: 2 }),
    ];
    for (payload, error) in refused {
        assert_eq!(d.push(payload, true), Err(error), "{payload:?}");
    }
    assert_eq!(
        d.push(&[0x7c, 0x85, 1], true),
        Err(PackError::Fragment("frame ends inside a NAL unit"))
    );
    assert_eq!(d.push(&[0x41, 5], true), Ok(Some(annex_b(&[&[0x41, 5]]))));
}

#[test]
fn the_depacketiser_holds_one_access_unit_at_most() {
    let mut d = Depacketizer::new();
    assert_eq!(d.push(&[0x7c, 0x85], false), Ok(None));
    let piece = [&[0x7c, 0x05][..], &vec![1; 1 << 20]].concat();
    let outcomes: Vec<_> = (0..8).map(|_| d.push(&piece, false)).collect();
    assert_eq!(outcomes.iter().filter(|o| **o == Err(PackError::TooLarge)).count(), 1);
    let mut d = Depacketizer::new();
    let outcomes: Vec<_> = (0..=MAX_NALS).map(|_| d.push(&[0x41], false)).collect();
    assert_eq!(outcomes.last(), Some(&Err(PackError::TooLarge)));
}

#[test]
fn what_cannot_be_packed_is_refused_and_leaves_nothing() {
    let mut out = vec![vec![1]];
    let mut p = Packetizer::new(1100);
    assert_eq!(p.packetize(&annex_b(&[&[0x09, 1]]), &mut out), Err(PackError::NothingToSend));
    let stap = annex_b(&[&[0x65, 1], &[0x78, 1]]);
    assert_eq!(p.packetize(&stap, &mut out), Err(PackError::UnpackableType(24)));
    let none = PackError::AccessUnit(AccessUnitError::NoNal { len: 2 });
    assert_eq!(p.packetize(&[1, 2], &mut out), Err(none));
    assert_eq!(out, [vec![1]]);
}

/// A NAL unit as an encoder writes it: no start code inside, no zero at the end.
fn nal_of(kinds: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let header = (prop::sample::select(kinds), 0u8..4);
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (0usize..9000, any::<u8>()).prop_map(|(n, b)| vec![b; n]),
    ];
    (header, body).prop_map(|((kind, ref_idc), body)| {
        let mut nal = vec![ref_idc << 5 | kind];
        let mut zeros = 0;
        for byte in body {
            if zeros == 2 && byte <= 3 {
                nal.push(3);
                zeros = 0;
            }
            nal.push(byte);
            zeros = if byte == 0 { zeros + 1 } else { 0 };
        }
        nal.push(0x80);
        nal
    })
}

proptest! {
    #[test]
    fn packetise_then_depacketise_is_the_identity(
        nals in prop::collection::vec(nal_of(&[1, 2, 5, 6, 7, 8, 10, 19, 23]), 1..12),
        max in 1usize..2000,
    ) {
        let au = annex_b(&nals.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let (mut payloads, mut d) = (Vec::new(), Depacketizer::new());
        Packetizer::new(max).packetize(&au, &mut payloads).unwrap();
        let mut whole = None;
        for (i, payload) in payloads.iter().enumerate() {
            prop_assert!(whole.is_none());
            prop_assert!(payload.len() <= max.max(64) && !payload.is_empty());
            whole = d.push(payload, i + 1 == payloads.len()).unwrap();
        }
        prop_assert_eq!(whole, Some(au.clone()));
        let info = AccessUnitInfo::inspect(&au).unwrap();
        let facts = frame_facts(&payloads);
        prop_assert_eq!((facts.key, facts.discardable), (info.key, info.discardable));
    }

    #[test]
    fn pieces_of_one_nal_unit_are_equal_and_as_few_as_can_be(len in 0usize..20_000, max in 64usize..1500) {
        let nal = [&[0x65][..], &vec![0xaa; len]].concat();
        let mut payloads = Vec::new();
        Packetizer::new(max).packetize(&annex_b(&[&nal]), &mut payloads).unwrap();
        if nal.len() <= max {
            prop_assert_eq!(payloads, vec![nal]);
        } else {
            prop_assert_eq!(payloads.len(), len.div_ceil(max - 2));
            let (last, others) = payloads.split_last().unwrap();
            prop_assert!(others.iter().all(|p| p.len() == others[0].len() && last.len() <= p.len()));
        }
    }

    #[test]
    fn a_stream_of_access_units_is_cut_back_into_them(
        slices in prop::collection::vec(nal_of(&[1, 5]), 1..8), step in 1usize..700,
    ) {
        // Each slice begins a picture: a delimiter in front of it.
        let units: Vec<_> = slices.iter().map(|s| annex_b(&[&[0x09, 0x30], s])).collect();
        let (mut splitter, mut out) = (AnnexBSplitter::new(), Vec::new());
        for piece in units.concat().chunks(step) {
            splitter.push(piece);
            while let Some(unit) = splitter.next().unwrap() {
                out.push(unit);
            }
        }
        out.extend(splitter.flush());
        prop_assert_eq!(out, units);
    }

    #[test]
    fn random_bytes_never_panic_in_h264(
        bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..400),
    ) {
        let _ = AccessUnitInfo::inspect(&bytes);
        let _ = SpsFacts::parse(&[&[0x67][..], &bytes].concat());
        let mut sets = ParameterSets::new();
        sets.absorb(&bytes);
        let _ = sets.prepend_if_key(&bytes);
        let _ = payload_facts(&bytes);
        let mut payloads = Vec::new();
        if Packetizer::new(100).packetize(&bytes, &mut payloads).is_ok() {
            prop_assert!(!payloads.is_empty());
        }
        let mut splitter = AnnexBSplitter::new();
        splitter.push(&bytes);
        while let Ok(Some(_)) = splitter.next() {}
        let _ = splitter.flush();
    }
}
