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

/// An SPS of profile 0 with an emulation prevention byte where the level is expected.
#[test]
fn an_emulation_prevention_byte_in_front_of_the_level_is_not_the_level() {
    fuzz::sps(&[0, 0, 3, 0, 190, 255, 224, 255, 195]);
}
