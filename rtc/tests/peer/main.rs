//! Our contexts, the tap and RTCP against an untouched peer of the protocol library: real ICE, real
//! DTLS (or, where the library's choice of profile is to be overruled, its real SRTP with keys put
//! in). Not a browser.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod feedback;
mod forced;
mod pair;

use std::sync::Arc;
use std::time::Instant;

use fanlight_rtc::keys::{self, Decoy, KeySlot};
use fanlight_rtc::srtp::{Contexts, Keying, Profile};
use fanlight_wire::rtcp::{self, Packet, SenderInfo};
use fanlight_wire::rtp::Ssrc;
use str0m::Rtc;
use str0m::config::CryptoProvider;
use str0m::media::KeyframeRequestKind;

use forced::{FORCED, forced_material};
use pair::{Pair, config, is_srtp, untouched};

/// Sends packets over a rollover to the client and a PLI back and forth, all sealed by us.
fn media_passes(pair: &mut Pair, contexts: &mut Contexts) {
    let (mid, server) = (pair.mid, pair.server.address);
    let payload_type = pair.server.rtc.media(mid).unwrap().remote_pts()[0];
    let ssrc = *pair.server.rtc.direct_api().stream_tx_by_mid(mid, None).unwrap().ssrc();
    let (first, count) = (0xffe0u64, 64);
    for index in first..first + count {
        let payload = vec![index.to_be_bytes()[7]; 1_172];
        let mut datagram = vec![0x80, *payload_type];
        datagram.extend_from_slice(&index.to_be_bytes()[6..]);
        datagram.extend_from_slice(&[0, 0, 0, 9]);
        datagram.extend_from_slice(&ssrc.to_be_bytes());
        datagram.resize(12 + payload.len() + contexts.rtp.overhead(), 0);
        let len = contexts.rtp.seal(index, ssrc, 12, &payload, &mut datagram).unwrap();
        let now = pair.now;
        pair.client.receive(now, server, &datagram[..len]);
        let got = pair.client.rtp.last().unwrap();
        assert_eq!(
            (*got.header.ssrc, u64::from(got.header.sequence_number)),
            (ssrc, index & 0xffff)
        );
        assert_eq!(got.payload[..], payload);
    }
    assert_eq!(pair.client.rtp.len() as u64, count);

    // Its RTCP to us: a keyframe request.
    pair.client.out.clear();
    let stream = &mut pair.client.rtc.direct_api();
    stream.stream_rx(&ssrc.into()).unwrap().request_keyframe(KeyframeRequestKind::Pli);
    let (mut asked, mut clear) = (false, Vec::new());
    for _ in 0..20 {
        for packet in pair.client_srtp() {
            contexts.rtcp_in.open(&packet, &mut clear).unwrap();
            asked |= rtcp::packets(&clear)
                .any(|p| matches!(p.unwrap(), Packet::Pli { media, .. } if media == Ssrc(ssrc)));
        }
        pair.client.out.clear();
        if asked {
            break;
        }
        pair.step();
    }
    assert!(asked, "the PLI was opened and read");
}

/// Sends a sender report, sealed by us, until the client's receiver reports speak of it.
fn reports_pass(pair: &mut Pair, contexts: &mut Contexts) {
    let (mid, server) = (pair.mid, pair.server.address);
    let ssrc = Ssrc(*pair.server.rtc.direct_api().stream_tx_by_mid(mid, None).unwrap().ssrc());
    let info = SenderInfo { ntp: 0xe000_0001_8000_0000, packets: 64, ..SenderInfo::default() };
    let (mut compound, mut sealed, mut clear) = (Vec::new(), Vec::new(), Vec::new());
    rtcp::write_sender_report(ssrc, &info, &[], &mut compound);
    rtcp::write_sdes_cname(ssrc, "us", &mut compound).unwrap();
    contexts.rtcp.protect(&compound, &mut sealed).unwrap();
    let now = pair.now;
    pair.client.receive(now, server, &sealed);
    for _ in 0..20 {
        pair.client.out.clear();
        for packet in pair.client_srtp() {
            contexts.rtcp_in.open(&packet, &mut clear).unwrap();
            for packet in rtcp::packets(&clear) {
                let Packet::ReceiverReport(report) = packet.unwrap() else { continue };
                let about_us = report.reports().find(|r| r.ssrc == ssrc && r.last_sr != 0);
                let Some(about_us) = about_us else { continue };
                assert_eq!(about_us.last_sr, 0x0001_8000);
                assert_eq!(about_us.highest_seq, 0x1_001f, "of the 64 packets before");
                return;
            }
        }
    }
    panic!("no receiver report speaks of our sender report");
}

#[test]
fn an_untouched_client_takes_what_we_seal_with_the_keys_of_its_handshake() {
    for server_is_tapped_first in [true, false] {
        let now = Instant::now();
        let slot = KeySlot::new(Decoy::Yes);
        let untouched_client = || config(untouched()).build(now);
        let early = server_is_tapped_first.then(untouched_client);
        let server =
            keys::with_slot(&slot, || config(keys::crypto()).set_ice_lite(true).build(now));
        let client = early.unwrap_or_else(untouched_client);
        assert!(slot.take().is_none(), "before the handshake");
        let mut pair = Pair::connect(server, client, now);
        let keying = slot.take().unwrap();
        assert_eq!(keying.profile(), Profile::AeadAes256Gcm);
        assert!(slot.clone().take().is_none(), "once");
        let mut contexts = Contexts::derive(&keying).unwrap();
        media_passes(&mut pair, &mut contexts);
        reports_pass(&mut pair, &mut contexts);
        // And the data channel is not touched by any of it.
        let channel = pair.client.channel.unwrap();
        assert!(pair.client.rtc.channel(channel).unwrap().write(true, b"hello").unwrap());
        pair.client.drain();
        pair.run(|pair| pair.server.channel_data == [b"hello"]);
    }
}

/// The library's own SRTP is the judge of all three profiles.
#[test]
fn the_librarys_srtp_agrees_with_ours_in_every_profile() {
    for (profile, forced) in &FORCED {
        let now = Instant::now();
        let provider = Arc::new(CryptoProvider {
            dtls_provider: forced,
            ..str0m_aws_lc_rs::default_provider()
        });
        let server = config(untouched()).set_ice_lite(true).build(now);
        let client = config(provider).build(now);
        let mut pair = Pair::connect(server, client, now);
        let active = false;
        let keying = Keying::new(*profile, &forced_material(forced.0), active).unwrap();
        let mut contexts = Contexts::derive(&keying).unwrap();
        media_passes(&mut pair, &mut contexts);
        reports_pass(&mut pair, &mut contexts);
    }
}

pub(crate) fn tapped(slot: &KeySlot, now: Instant) -> Rtc {
    keys::with_slot(slot, || config(keys::crypto()).set_ice_lite(true).build(now))
}

/// What the library itself sends on the server's side, tried with the association's keys.
fn library_is_understood(decoy: Decoy) -> bool {
    let now = Instant::now();
    let (slot, client_slot) = (KeySlot::new(decoy), KeySlot::new(Decoy::No));
    let client = keys::with_slot(&client_slot, || config(keys::crypto()).build(now));
    let mut pair = Pair::connect(tapped(&slot, now), client, now);
    let (ours, theirs) = (slot.take().unwrap(), client_slot.take().unwrap());
    assert!(!ours.is_active() && theirs.is_active());
    let mut theirs = Contexts::derive(&theirs).unwrap();
    pair.server.out.clear();
    let mid = pair.mid;
    let payload_type = pair.server.rtc.media(mid).unwrap().remote_pts()[0];
    let now = pair.now;
    let mut api = pair.server.rtc.direct_api();
    let stream = api.stream_tx_by_mid(mid, None).unwrap();
    let write = str0m::rtp::RtpWrite::new(payload_type, 7u64.into(), 9, now, vec![1u8, 2, 3]);
    stream.write_rtp(write);
    pair.server.tick(now);
    let sent: Vec<_> = pair.server.out.iter().filter(|t| is_srtp(&t.contents)).collect();
    assert!(!sent.is_empty(), "the library sends media of its own");
    let mut clear = Vec::new();
    sent.iter().any(|t| {
        theirs.rtp_in.open(&t.contents, &mut clear).is_ok()
            || theirs.rtcp_in.open(&t.contents, &mut clear).is_ok()
    })
}

#[test]
fn with_a_decoy_the_library_cannot_send_under_the_keys() {
    assert!(!library_is_understood(Decoy::Yes));
    assert!(library_is_understood(Decoy::No), "the check finds it when it can");
}

#[test]
fn a_slot_is_for_the_first_that_is_built_in_it_and_for_nobody_after() {
    let now = Instant::now();
    let (slot, other) = (KeySlot::new(Decoy::Yes), KeySlot::new(Decoy::Yes));
    let unwound = std::panic::catch_unwind(|| {
        keys::with_slot(&other, || panic!("building fails"));
    });
    assert!(unwound.is_err());
    let after_the_panic = config(keys::crypto()).set_ice_lite(true).build(now);
    let (first, second) = keys::with_slot(&slot, || {
        let build = || config(keys::crypto()).set_ice_lite(true).build(now);
        // An inner slot does not disturb the outer one.
        let inner = keys::with_slot(&other, || 5);
        assert_eq!(inner, 5);
        (build(), build())
    });
    let mut with_keys = Vec::new();
    for server in [after_the_panic, second, first] {
        Pair::connect(server, config(untouched()).build(now), now);
        with_keys.push((slot.take().is_some(), other.take().is_some()));
    }
    assert_eq!(with_keys, [(false, false), (false, false), (true, false)]);
}

/// With the trait's own answers in place of the tap's this never ends.
#[test]
fn a_close_is_seen_through_the_tap() {
    let now = Instant::now();
    let slot = KeySlot::new(Decoy::Yes);
    let mut pair = Pair::connect(tapped(&slot, now), config(untouched()).build(now), now);
    pair.server.rtc.close().unwrap();
    pair.server.drain();
    pair.run(|pair| !pair.server.rtc.is_alive());
}

#[test]
fn other_versions_of_dtls_give_keys_too() {
    use str0m::config::DtlsVersion::{Auto, Dtls12, Dtls13};
    for (server, client) in [(Dtls13, Dtls13), (Auto, Dtls12), (Auto, Dtls13)] {
        let now = Instant::now();
        let slot = KeySlot::new(Decoy::Yes);
        let server = keys::with_slot(&slot, || {
            let config = config(keys::crypto()).set_ice_lite(true).set_dtls_version(server);
            config.set_mtu(1_200..=1_400).build(now)
        });
        let client = config(untouched()).set_dtls_version(client).build(now);
        let mut pair = Pair::connect(server, client, now);
        let mut contexts = Contexts::derive(&slot.take().unwrap()).unwrap();
        media_passes(&mut pair, &mut contexts);
    }
}
