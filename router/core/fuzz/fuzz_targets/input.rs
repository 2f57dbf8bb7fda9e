//! Input messages. Invariant: nothing without permission, nothing twice, all bounded.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_router_core::fuzz::input(bytes));
