//! RTP headers and extensions. Invariant: what parses lies inside the packet.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_wire::fuzz::rtp(bytes));
