//! Input messages of both directions. Invariant: what decodes encodes to the same bytes.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_wire::fuzz::input(bytes));
