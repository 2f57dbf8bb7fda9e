//! A client's offer. Invariant: an answer or a typed refusal, and nothing left behind.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_router_core::fuzz::offer(bytes));
