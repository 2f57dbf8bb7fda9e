//! Banners and public keys of a peer: read or refused, and what is read survives a round trip.
#![no_main]

use fanlight_adb::{
    AdbPublicKey, DeviceBanner, DeviceEntry,
    features::{encode_host_banner, parse_host_banner},
    service::reverse,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(banner) = DeviceBanner::parse(data) {
        let again = DeviceBanner::parse(&banner.encode()).expect("our own banner is readable");
        assert_eq!(again.features, banner.features);
    }
    if let Ok(features) = parse_host_banner(data) {
        let bytes = encode_host_banner(&features);
        assert!(!bytes.contains(&0));
        assert_eq!(parse_host_banner(&bytes).expect("our own banner is readable"), features);
    }
    if let Ok(key) = AdbPublicKey::parse(data) {
        let again = AdbPublicKey::parse(&key.to_auth_payload()).expect("our own key is readable");
        assert_eq!(again, key);
        assert!(!key.verify(&[0; 20], data));
    }
    let _ = reverse::parse_status(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = DeviceEntry::parse_list(text);
    }
});
