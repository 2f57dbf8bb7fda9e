//! The body of the fuzz target: feeds bytes to the contexts of both ends and panics where a promise
//! of this crate is broken. Here rather than in `fuzz/`, so that stable tests run it too. Not part
//! of the API. Invariant: a panic here is a finding.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a panic is the report")]

use fanlight_wire::{fuzz, rtcp};

use crate::srtp::{Contexts, Keying, Profile, SrtpError};

/// Bytes as they come from a stranger, then the same bytes as a peer with the keys would seal them,
/// then those with one byte changed.
pub fn srtp(change_at: u16, change: u8, bytes: &[u8]) {
    for profile in Profile::ALL {
        let material: Vec<u8> = (0u8..).take(profile.material_len()).collect();
        let end = |active| Contexts::derive(&Keying::new(profile, &material, active).unwrap());
        let (mut peer, mut us) = (end(true).unwrap(), end(false).unwrap());
        let mut out = vec![1];
        assert!(us.rtcp_in.open(bytes, &mut out).is_err() && out.is_empty());
        out.push(1);
        assert!(us.rtp_in.open(bytes, &mut out).is_err() && out.is_empty());
        as_rtcp((change_at, change), bytes, &mut peer, &mut us);
        as_rtp((change_at, change), bytes, &peer, &mut us);
    }
}

fn changed((at, change): (u16, u8), packet: &[u8]) -> Option<Vec<u8>> {
    let mut packet = packet.to_vec();
    let at = usize::from(at) % packet.len();
    packet[at] ^= change;
    (change != 0).then_some(packet)
}

fn as_rtcp(how: (u16, u8), bytes: &[u8], peer: &mut Contexts, us: &mut Contexts) {
    let (mut sealed, mut clear) = (Vec::new(), Vec::new());
    if let Err(error) = peer.rtcp.protect(bytes, &mut sealed) {
        assert!(bytes.len() < 8 && error == SrtpError::Malformed(bytes.len()));
        return;
    }
    assert_eq!(sealed.len(), bytes.len() + 4 + peer.rtp.overhead());
    if let Some(forged) = changed(how, &sealed) {
        assert!(us.rtcp_in.open(&forged, &mut clear).is_err() && clear.is_empty());
    }
    if bytes[0] >> 6 != 2 {
        return assert!(us.rtcp_in.open(&sealed, &mut clear).is_err());
    }
    us.rtcp_in.open(&sealed, &mut clear).unwrap();
    assert_eq!(clear, bytes);
    assert_eq!(us.rtcp_in.open(&sealed, &mut clear), Err(SrtpError::Replayed));
    // What a viewer with keys may say reaches the parser.
    fuzz::rtcp(bytes);
    assert!(rtcp::packets(bytes).count() <= bytes.len() / 4 + 1);
}

fn as_rtp(how: (u16, u8), bytes: &[u8], peer: &Contexts, us: &mut Contexts) {
    let Some(header_len) = crate::srtp::header_len(bytes) else { return };
    let index = u64::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    let ssrc = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    let (header, payload) = bytes.split_at(header_len);
    let mut sealed = header.to_vec();
    sealed.resize(bytes.len() + peer.rtp.overhead(), 0);
    let len = peer.rtp.seal(index, ssrc, header_len, payload, &mut sealed);
    assert_eq!(len, Some(sealed.len()));
    let mut clear = Vec::new();
    if let Some(forged) = changed(how, &sealed) {
        assert!(us.rtp_in.open(&forged, &mut clear).is_err() && clear.is_empty());
    }
    let opened = us.rtp_in.open(&sealed, &mut clear).unwrap();
    assert_eq!((opened.ssrc, opened.index), (ssrc, index));
    assert_eq!(clear, bytes);
    assert_eq!(us.rtp_in.open(&sealed, &mut clear), Err(SrtpError::Replayed));
}
