//! Control messages and the screen they lead to. Invariant: it can always be drawn.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_device_sim::fuzz::screen(bytes));
