//! Recorded H.264 streams. Invariant: a clip begins with a keyframe.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_device_sim::fuzz::clip(bytes));
