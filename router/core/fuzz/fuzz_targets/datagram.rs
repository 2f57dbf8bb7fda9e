//! Datagrams into a core with a connected viewer. Invariant: forged bytes end no viewer.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fanlight_router_core::fuzz::datagram(bytes));
