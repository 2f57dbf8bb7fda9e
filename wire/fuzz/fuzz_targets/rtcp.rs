//! RTCP compound packets. Invariant: what is read is bounded by the bytes.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_wire::fuzz::rtcp(bytes));
