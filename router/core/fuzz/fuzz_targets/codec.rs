//! A stream's profile against an offer. Invariant: a format of the offer, or a refusal.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_router_core::fuzz::codec(bytes));
