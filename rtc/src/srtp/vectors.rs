//! Test vectors of RFC 7714, sections 16 and 17, which give session keys. Not the derivation of
//! keys, whose vectors stand beside it. Invariant: a change of these bytes is a fault.

use super::cipher::Cipher;
use super::{Profile, RtcpOpener, RtcpSealer, RtpOpened, RtpOpener, RtpSealer, SrtpError};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const SALT: &str = "517569642070726f2071756f";
const RTP: &str = "8040f17b8041f8d35501a0b247616c6c696120657374206f6d6e69732064697669736120\
                   696e207061727465732074726573";
const RTCP: &str = "81c8000d4d6172734e5450314e545032525450200000042a0000e9304c756e61\
                    deadbeefdeadbeefdeadbeefdeadbeefdeadbeef";

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

fn cipher(profile: Profile) -> Cipher {
    Cipher::new(profile, &bytes(KEY)[..profile.key_len()], &bytes(SALT), &[0; 20]).unwrap()
}

#[test]
fn rtp() {
    let vectors = [
        (
            Profile::AeadAes128Gcm,
            "8040f17b8041f8d35501a0b2f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7\
             d19b36de3adf8833899d7f27beb16a9152cf765ee4390cce",
        ),
        (
            Profile::AeadAes256Gcm,
            "8040f17b8041f8d35501a0b232b1de78a822fe12ef9f78fa332e33aab18012389a58e2f3b50b2a0276ff\
             ae0f1ba63799b87b7aa3db36dfffd6b0f9bb7878d7a76c13",
        ),
    ];
    for (profile, sealed) in vectors {
        let (clear, mut datagram) = (bytes(RTP), vec![0; 100]);
        datagram[..12].copy_from_slice(&clear[..12]);
        let sealer = RtpSealer::with(cipher(profile));
        let len = sealer.seal(0xf17b, 0x5501_a0b2, 12, &clear[12..], &mut datagram).unwrap();
        assert_eq!(hex::encode(&datagram[..len]), sealed);
        let mut out = Vec::new();
        let opened = RtpOpener::with(cipher(profile)).open(&bytes(sealed), &mut out);
        assert_eq!(opened, Ok(RtpOpened { ssrc: 0x5501_a0b2, index: 0xf17b }));
        assert_eq!(out, clear);
    }
}

#[test]
fn rtcp() {
    let vectors = [
        (
            Profile::AeadAes128Gcm,
            "81c8000d4d61727363e94885dcdab67ca727d7662f6b7e997ff5c0f76c06f32dc676a5f1730d6fda4ce0\
             9b4686303ded0bb9275bc84aa45896cf4d2fc5abf87245d9eade800005d4",
        ),
        (
            Profile::AeadAes256Gcm,
            "81c8000d4d617273d50ae4d1f5ce5d304ba297e47d470c282c3ece5dbffe0a50a2eaa5c1110555be8415\
             f658c61de0476f1b6fad1d1eb30c4446839f57ff6f6cb26ac3be800005d4",
        ),
    ];
    for (profile, sealed) in vectors {
        let mut out = Vec::new();
        RtcpSealer::with(cipher(profile), 0x5d4).protect(&bytes(RTCP), &mut out).unwrap();
        assert_eq!(hex::encode(&out), sealed);
        RtcpOpener::with(cipher(profile)).open(&bytes(sealed), &mut out).unwrap();
        assert_eq!(out, bytes(RTCP));
    }
}

/// Section 17.3: authenticated, but in clear. It is valid, and refused.
#[test]
fn rtcp_in_clear_is_refused() {
    let packet = bytes(&format!("{RTCP}841dd9683dd78ec92ae58790125f62b3000005d4"));
    let mut out = vec![1];
    let opened = RtcpOpener::with(cipher(Profile::AeadAes128Gcm)).open(&packet, &mut out);
    assert_eq!(opened, Err(SrtpError::NotEncrypted));
    assert!(out.is_empty());
}

#[test]
fn the_last_rtcp_index_is_used_and_never_comes_again() {
    let mut sealer = RtcpSealer::with(cipher(Profile::AeadAes128Gcm), 0x7fff_ffff);
    let mut out = Vec::new();
    sealer.protect(&bytes(RTCP), &mut out).unwrap();
    assert_eq!(out[out.len() - 4..], [0xff; 4]);
    for _ in 0..3 {
        assert_eq!(sealer.protect(&bytes(RTCP), &mut out), Err(SrtpError::Exhausted));
        assert!(out.is_empty());
    }
}
