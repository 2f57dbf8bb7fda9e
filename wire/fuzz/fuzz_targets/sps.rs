//! Sequence parameter sets. Invariant: a size that is accepted can be addressed by input.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_wire::fuzz::sps(bytes));
