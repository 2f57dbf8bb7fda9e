//! A viewer's TCP stream. Invariant: frames come out whole however the stream is cut.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_router::fuzz::frames(bytes));
