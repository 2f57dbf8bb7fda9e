//! SRTP and SRTCP of a stranger, and of a peer with the keys. Invariant: nothing forged is opened.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: (u16, u8, &[u8])| {
    fanlight_rtc::fuzz::srtp(input.0, input.1, input.2);
});
