//! Frames of the control stream. Invariant: one cut changes nothing.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: (u16, Vec<u8>)| fanlight_wire::fuzz::control_frames(
    input.0, &input.1
));
