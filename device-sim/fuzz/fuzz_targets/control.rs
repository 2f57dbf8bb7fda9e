//! Messages on the scrcpy control socket and what they do to the device. Invariant: see the function.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_device_sim::fuzz::control(bytes));
