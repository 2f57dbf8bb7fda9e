//! RTP payloads in any order. Invariant: what comes out packs to itself.
#![no_main]
libfuzzer_sys::fuzz_target!(|payloads: Vec<(bool, Vec<u8>)>| fanlight_wire::fuzz::depacketize(
    &payloads
));
