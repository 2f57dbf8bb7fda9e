//! The fuzz targets' bodies on a seeded stream of bytes, so that the stable toolchain runs them
//! with every test. Not a replacement for fuzzing: there is no coverage feedback here.

use fanlight_wire::fuzz;
use proptest::prelude::*;

/// Bytes that often look like framing: zeros, ones, small numbers, NAL and FU headers.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => Just(0u8),
        2 => Just(1u8),
        2 => 0u8..16,
        2 => prop::sample::select(&[0x65u8, 0x67, 0x68, 0x41, 0x06, 0x09, 0x78, 0x7c, 0x85, 0x45][..]),
        2 => any::<u8>(),
    ];
    prop::collection::vec(byte, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_target_finds_anything_in_random_bytes(cut in 0u16..220, bytes in bytes(), more in bytes(), marker: bool) {
        fuzz::roq(cut, &bytes);
        fuzz::control_frames(cut, &bytes);
        fuzz::rtp(&bytes);
        fuzz::annexb(cut, &bytes);
        fuzz::sps(&bytes);
        fuzz::input(&bytes);
        fuzz::depacketize(&[(false, bytes), (marker, more.clone()), (true, more)]);
    }
}

/// Bytes that open like RTCP packets, so that the walk gets into their bodies.
fn compound() -> impl Strategy<Value = Vec<u8>> {
    let first = prop::sample::select(&[0x80u8, 0x81, 0x82, 0x84, 0x8f, 0x9f, 0xa1, 0xaf][..]);
    let kind = prop_oneof![1 => 198u8..208, 2 => Just(205), 2 => Just(206)];
    let packet =
        (first, kind, prop::collection::vec(bytes(), 1..2)).prop_map(|(first, kind, body)| {
            let mut packet = vec![first, kind, 0, 0];
            packet.extend_from_slice(&body[0]);
            packet.resize(packet.len().next_multiple_of(4), 1);
            let words = u8::try_from(packet.len() / 4 - 1).unwrap_or(0);
            packet[3] = words;
            packet
        });
    prop::collection::vec(packet, 0..4).prop_map(|packets| packets.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_rtcp_target_finds_nothing(random in bytes(), compound in compound()) {
        fuzz::rtcp(&random);
        fuzz::rtcp(&compound);
    }
}

/// An SPS of profile 0 with an emulation prevention byte where the level is expected.
#[test]
fn an_emulation_prevention_byte_in_front_of_the_level_is_not_the_level() {
    fuzz::sps(&[0, 0, 3, 0, 190, 255, 224, 255, 195]);
}
