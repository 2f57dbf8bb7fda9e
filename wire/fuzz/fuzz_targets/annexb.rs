//! NAL walk, access units, splitter, parameter sets. Invariant: nothing grows.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: (u16, Vec<u8>)| fanlight_wire::fuzz::annexb(input.0, &input.1));
