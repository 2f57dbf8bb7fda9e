//! The contexts of two ends against each other: what is taken, what is refused, and that what is
//! refused changes nothing. Not their agreement with other software: `peer.rs` has that.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use fanlight_rtc::srtp::{
    Contexts, Keying, MAX_RTCP_SOURCES, MAX_RTP_SOURCES, Profile, RtpOpened, RtpOpener, RtpSealer,
    SrtpError,
};
use proptest::prelude::*;

fn pair(profile: Profile) -> (Contexts, Contexts) {
    let material: Vec<u8> = (0..profile.material_len()).map(|i| (i * 7 % 251) as u8).collect();
    let end = |active| Contexts::derive(&Keying::new(profile, &material, active).unwrap()).unwrap();
    (end(true), end(false))
}

/// An RTP packet of that index with an extension block.
fn header(index: u64, ssrc: u32) -> Vec<u8> {
    let mut header = vec![0x90, 96];
    header.extend_from_slice(&index.to_be_bytes()[6..]);
    header.extend_from_slice(&[0, 0, 0, 1]);
    header.extend_from_slice(&ssrc.to_be_bytes());
    header.extend_from_slice(&[0xbe, 0xde, 0, 1, 0x10, 7, 0, 0]);
    header
}

fn sealed(sealer: &RtpSealer, index: u64, ssrc: u32, payload: &[u8]) -> Vec<u8> {
    let header = header(index, ssrc);
    let mut datagram = header.clone();
    datagram.resize(header.len() + payload.len() + sealer.overhead(), 0xee);
    let len = sealer.seal(index, ssrc, header.len(), payload, &mut datagram).unwrap();
    assert_eq!(len, datagram.len());
    assert_eq!(datagram[..header.len()], header, "the header stays in clear");
    datagram
}

fn open(opener: &mut RtpOpener, packet: &[u8]) -> Result<(u64, Vec<u8>), SrtpError> {
    let mut out = vec![0xaa; 3];
    match opener.open(packet, &mut out) {
        Ok(opened) => Ok((opened.index, out)),
        Err(error) => {
            assert!(out.is_empty(), "nothing is given out");
            Err(error)
        }
    }
}

fn rtcp_packet(ssrc: u32) -> Vec<u8> {
    let mut packet = vec![0x80, 201, 0, 1];
    packet.extend_from_slice(&ssrc.to_be_bytes());
    packet.extend_from_slice(&[0x81, 203, 0, 1, 1, 2, 3, 4]);
    packet
}

#[test]
fn packets_pass_in_both_directions() {
    for profile in Profile::ALL {
        let (mut client, mut server) = pair(profile);
        assert_eq!(client.rtp.overhead(), profile.tag_len());
        for (from, to) in [(&client.rtp, &mut server.rtp_in), (&server.rtp, &mut client.rtp_in)] {
            for payload in [&[][..], b"x", &[0x5a; 1_172]] {
                let index = 100 + payload.len() as u64;
                let packet = sealed(from, index, 9, payload);
                let mut clear = header(index, 9);
                clear.extend_from_slice(payload);
                assert_eq!(open(to, &packet), Ok((index, clear)));
            }
        }
        let (mut packet, mut clear) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            client.rtcp.protect(&rtcp_packet(5), &mut packet).unwrap();
            assert_eq!(packet.len(), 16 + 4 + profile.tag_len());
            server.rtcp_in.open(&packet, &mut clear).unwrap();
            assert_eq!(clear, rtcp_packet(5));
            server.rtcp.protect(&rtcp_packet(6), &mut packet).unwrap();
            client.rtcp_in.open(&packet, &mut clear).unwrap();
            assert_eq!(clear, rtcp_packet(6));
        }
    }
}

#[test]
fn each_changed_bit_is_found() {
    for profile in Profile::ALL {
        let (client, mut server) = pair(profile);
        let packet = sealed(&client.rtp, 7, 9, b"payload");
        for bit in 0..packet.len() * 8 {
            let mut forged = packet.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let error = open(&mut server.rtp_in, &forged).unwrap_err();
            assert!(matches!(error, SrtpError::Forged | SrtpError::Malformed(_)), "{bit} {error}");
        }
        assert!(open(&mut server.rtp_in, &packet).is_ok(), "no forgery changed the state");
    }
}

#[test]
fn each_changed_bit_of_rtcp_is_found() {
    for profile in Profile::ALL {
        let (mut client, mut server) = pair(profile);
        let (mut packet, mut out) = (Vec::new(), Vec::new());
        client.rtcp.protect(&rtcp_packet(5), &mut packet).unwrap();
        for bit in 0..packet.len() * 8 {
            let mut forged = packet.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let error = server.rtcp_in.open(&forged, &mut out).unwrap_err();
            assert!(out.is_empty());
            assert!(
                matches!(
                    error,
                    SrtpError::Forged | SrtpError::Malformed(_) | SrtpError::NotEncrypted
                ),
                "{bit} {error}"
            );
        }
        server.rtcp_in.open(&packet, &mut out).unwrap();
    }
}

#[test]
fn bytes_cut_short_are_refused() {
    for profile in Profile::ALL {
        let (mut client, mut server) = pair(profile);
        let packet = sealed(&client.rtp, 7, 9, b"payload");
        for len in 0..packet.len() {
            assert!(open(&mut server.rtp_in, &packet[..len]).is_err());
        }
        let mut out = Vec::new();
        let mut packet = Vec::new();
        client.rtcp.protect(&rtcp_packet(5), &mut packet).unwrap();
        for len in 0..packet.len() {
            assert!(server.rtcp_in.open(&packet[..len], &mut out).is_err());
        }
        for short in 0..8 {
            let error = client.rtcp.protect(&rtcp_packet(5)[..short], &mut out);
            assert_eq!(error, Err(SrtpError::Malformed(short)));
        }
    }
}

#[test]
fn a_direction_does_not_open_its_own_packets() {
    for profile in Profile::ALL {
        let (mut client, _) = pair(profile);
        let packet = sealed(&client.rtp, 7, 9, b"payload");
        assert_eq!(open(&mut client.rtp_in, &packet), Err(SrtpError::Forged));
        let (mut packet, mut out) = (Vec::new(), Vec::new());
        client.rtcp.protect(&rtcp_packet(5), &mut packet).unwrap();
        assert_eq!(client.rtcp_in.open(&packet, &mut out), Err(SrtpError::Forged));
    }
}

#[test]
fn rtp_is_taken_once_and_within_a_window_of_1024() {
    for profile in Profile::ALL {
        let (client, mut server) = pair(profile);
        let packet = |index| sealed(&client.rtp, index, 9, b"x");
        for index in [10, 11, 13, 12] {
            assert!(open(&mut server.rtp_in, &packet(index)).is_ok());
            assert_eq!(open(&mut server.rtp_in, &packet(index)), Err(SrtpError::Replayed));
        }
        assert!(open(&mut server.rtp_in, &packet(1_038)).is_ok());
        assert!(open(&mut server.rtp_in, &packet(15)).is_ok(), "1,023 behind");
        assert_eq!(open(&mut server.rtp_in, &packet(14)), Err(SrtpError::Replayed), "1,024 behind");
    }
}

#[test]
fn rtcp_is_taken_once_and_within_a_window_of_128() {
    for profile in Profile::ALL {
        let (mut client, mut server) = pair(profile);
        let packets: Vec<Vec<u8>> = (0..200)
            .map(|_| {
                let mut packet = Vec::new();
                client.rtcp.protect(&rtcp_packet(5), &mut packet).unwrap();
                packet
            })
            .collect();
        let mut out = Vec::new();
        server.rtcp_in.open(&packets[0], &mut out).unwrap();
        server.rtcp_in.open(&packets[150], &mut out).unwrap();
        server.rtcp_in.open(&packets[23], &mut out).unwrap();
        for replayed in [0, 150, 23, 22] {
            let error = server.rtcp_in.open(&packets[replayed], &mut out);
            assert_eq!(error, Err(SrtpError::Replayed), "{replayed}");
            assert!(out.is_empty());
        }
        server.rtcp_in.open(&packets[149], &mut out).unwrap();
    }
}

/// Browsers count the RTCP of each source for itself.
#[test]
fn rtcp_sources_have_windows_of_their_own_up_to_a_bound() {
    for profile in Profile::ALL {
        let mut server = pair(profile).1;
        let (mut packet, mut out) = (Vec::new(), Vec::new());
        for source in 0..=MAX_RTCP_SOURCES {
            // A fresh sealer begins with index 0 again.
            let mut client = pair(profile).0;
            client.rtcp.protect(&rtcp_packet(source as u32), &mut packet).unwrap();
            let opened = server.rtcp_in.open(&packet, &mut out);
            let expected =
                if source < MAX_RTCP_SOURCES { Ok(()) } else { Err(SrtpError::TooManySources) };
            assert_eq!(opened, expected);
            assert_eq!(out.is_empty(), opened.is_err());
        }
    }
}

#[test]
fn rtp_sources_are_bounded() {
    let (client, mut server) = pair(Profile::AeadAes128Gcm);
    for ssrc in 0..MAX_RTP_SOURCES as u32 {
        assert!(open(&mut server.rtp_in, &sealed(&client.rtp, 1, ssrc, b"x")).is_ok());
    }
    let ninth = sealed(&client.rtp, 1, 100, b"x");
    assert_eq!(open(&mut server.rtp_in, &ninth), Err(SrtpError::TooManySources));
    assert!(open(&mut server.rtp_in, &sealed(&client.rtp, 2, 3, b"x")).is_ok());
}

/// A stranger's packets of many sources must not use up the places.
#[test]
fn forged_sources_take_no_place() {
    let (client, mut server) = pair(Profile::AeadAes256Gcm);
    for ssrc in 0..100 {
        let mut forged = sealed(&client.rtp, 1, ssrc, b"x");
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(open(&mut server.rtp_in, &forged), Err(SrtpError::Forged));
    }
    assert!(open(&mut server.rtp_in, &sealed(&client.rtp, 1, 1_000, b"x")).is_ok());
}

#[test]
fn the_rollover_counter_is_followed_and_authenticated() {
    for profile in Profile::ALL {
        let (client, mut server) = pair(profile);
        let mut index = 30_000;
        while index < 3 << 16 {
            let packet = sealed(&client.rtp, index, 9, b"x");
            assert_eq!(open(&mut server.rtp_in, &packet).unwrap().0, index);
            index += 20_000;
        }
        let wrong = sealed(&client.rtp, index + (1 << 16), 9, b"x");
        assert_eq!(open(&mut server.rtp_in, &wrong), Err(SrtpError::Forged));
    }
}

#[test]
fn a_sealer_refuses_what_it_cannot_seal() {
    for profile in Profile::ALL {
        let (client, _) = pair(profile);
        let mut datagram = [0; 64];
        let room = 64 - 12 - profile.tag_len();
        assert_eq!(client.rtp.seal(1, 1, 12, &vec![0; room], &mut datagram), Some(64));
        assert_eq!(client.rtp.seal(1, 1, 12, &vec![0; room + 1], &mut datagram), None);
        assert_eq!(client.rtp.seal(1, 1, 11, &[0], &mut datagram), None);
        assert_eq!(client.rtp.seal(1 << 48, 1, 12, &[0], &mut datagram), None);
        assert_eq!(client.rtp.seal(1, 1, usize::MAX, &[0], &mut datagram), None);
        assert!(client.rtp.seal((1 << 48) - 1, 1, 12, &[0], &mut datagram).is_some());
    }
}

#[test]
fn contexts_may_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Contexts>();
    is_send::<Keying>();
}

proptest! {
    /// Losses, reordering and repeats: each packet is taken exactly when it is within the window
    /// and was not taken before, and always with its own index.
    #[test]
    fn any_order_within_the_window_is_followed(
        first in 0u64..0x8000,
        steps in prop::collection::vec((0u64..3_000, 0u64..1_500), 1..60),
    ) {
        let (client, mut server) = pair(Profile::AeadAes128Gcm);
        let (mut highest, mut taken) = (first, std::collections::BTreeSet::new());
        let start = sealed(&client.rtp, first, 9, b"x");
        prop_assert_eq!(open(&mut server.rtp_in, &start).unwrap().0, first);
        taken.insert(first);
        for (ahead, behind) in steps {
            let index = (highest + ahead).saturating_sub(behind);
            let packet = sealed(&client.rtp, index, 9, b"x");
            match open(&mut server.rtp_in, &packet) {
                Ok((opened, _)) => {
                    prop_assert_eq!(opened, index);
                    prop_assert!(index + 1_024 > highest && taken.insert(index));
                }
                Err(error) => {
                    prop_assert_eq!(error, SrtpError::Replayed);
                    prop_assert!(index + 1_024 <= highest || taken.contains(&index));
                }
            }
            highest = highest.max(index);
        }
    }

    #[test]
    fn random_bytes_are_refused(packet in prop::collection::vec(any::<u8>(), 0..120)) {
        for profile in Profile::ALL {
            let (_, mut server) = pair(profile);
            let mut out = Vec::new();
            prop_assert!(server.rtp_in.open(&packet, &mut out).is_err());
            prop_assert!(server.rtcp_in.open(&packet, &mut out).is_err());
            prop_assert!(out.is_empty());
        }
    }
}

/// What the caller of `open` learns.
#[test]
fn an_opened_packet_names_its_source() {
    let (client, mut server) = pair(Profile::AesCm128HmacSha1_80);
    let packet = sealed(&client.rtp, 77, 0xdead_beef, b"x");
    let opened = server.rtp_in.open(&packet, &mut Vec::new());
    assert_eq!(opened, Ok(RtpOpened { ssrc: 0xdead_beef, index: 77 }));
}

/// A fan-out walks many of them, so their size is kept in sight.
#[test]
fn a_sealer_is_small() {
    assert!(size_of::<RtpSealer>() <= 40, "{}", size_of::<RtpSealer>());
}
