//! Shell command lines and server options. Invariant: understood or refused, never a panic.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_device_sim::fuzz::command_line(bytes));
