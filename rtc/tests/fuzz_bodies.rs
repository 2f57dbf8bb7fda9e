//! The fuzz target's body on a seeded stream of bytes, so that the stable toolchain runs it with
//! every test. Not a replacement for fuzzing: there is no coverage feedback here.

use fanlight_rtc::fuzz;
use proptest::prelude::*;

/// Bytes that often open like an RTP or RTCP packet.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let first = prop::sample::select(&[0x80u8, 0x81, 0x8f, 0x90, 0x92, 0xa0, 0xaf, 0x00][..]);
    let kind = prop_oneof![Just(96u8), 198u8..208, any::<u8>()];
    let rest = prop::collection::vec(prop_oneof![Just(0u8), 0u8..8, any::<u8>()], 0..80);
    (first, kind, rest).prop_map(|(first, kind, mut rest)| {
        rest.splice(0..0, [first, kind]);
        rest
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_target_finds_nothing(
        at: u16, change: u8, likely in bytes(), random in prop::collection::vec(any::<u8>(), 0..80)
    ) {
        fuzz::srtp(at, change, &likely);
        fuzz::srtp(at, change, &random);
    }
}
