//! Promises about what viewers say of their media: repairs, reports, lies and floods.

use std::time::Duration;

use fanlight_rtc::srtp::{Contexts, RtcpOpener, RtcpSealer};
use fanlight_wire::rtcp::{self, Packet};
use fanlight_wire::rtp::{Ssrc, unix_us_from_ntp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::world::{SERVER, STREAM, Source, World};
use crate::{GoneReason, IceCredentials, Role, Route, Share};

/// Speaks RTCP in a client's name.
struct Speaker {
    client: usize,
    seal: RtcpSealer,
    open: RtcpOpener,
    ssrc: Ssrc,
}

/// Not a source that the client's own library uses.
const ME: Ssrc = Ssrc(0x0bad_cafe);

impl Speaker {
    fn new(w: &World, client: usize) -> Self {
        let keying = w.clients[client].keys.take().expect("DTLS is over");
        let Contexts { rtcp, rtcp_in, .. } = Contexts::derive(&keying).unwrap();
        let named = w.clients[client].answer.lines().find_map(|l| {
            let (ssrc, _) = l.strip_prefix("a=ssrc-group:FID ")?.split_once(' ')?;
            ssrc.parse().ok()
        });
        Self { client, seal: rtcp, open: rtcp_in, ssrc: Ssrc(named.expect("a source")) }
    }

    fn sealed(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.seal.protect(plain, &mut sealed).unwrap();
        sealed
    }

    fn say(&mut self, w: &mut World, plain: &[u8]) {
        let sealed = self.sealed(plain);
        let from = Route::udp(w.clients[self.client].address);
        w.core.datagram(w.now, from, SERVER.parse().unwrap(), &sealed);
        w.drain_core();
    }

    fn nack(&mut self, w: &mut World, seqs: &[u16]) {
        let mut plain = Vec::new();
        rtcp::write_nack(ME, self.ssrc, seqs, &mut plain);
        self.say(w, &plain);
    }
}

fn watched() -> (World, Source, Speaker) {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let speaker = Speaker::new(&w, v);
    let mut source = Source::new(1);
    source.play(&mut w, 30, true);
    w.drive(Duration::from_millis(20));
    (w, source, speaker)
}

fn last_seq(w: &World, client: usize) -> u16 {
    let newest = w.clients[client].packets.iter().map(|(_, p)| *p.seq_no).max().unwrap();
    crate::header::low16(newest)
}

#[test]
fn a_lost_packet_is_sent_again_once_per_round_trip_and_an_unknown_one_never() {
    let (mut w, _source, mut speaker) = watched();
    let seq = last_seq(&w, 0);
    let before = w.core.counters().clone();
    speaker.nack(&mut w, &[seq, seq - 1]);
    speaker.nack(&mut w, &[seq]);
    // Not sent yet, and sent before there was anything.
    speaker.nack(&mut w, &[seq.wrapping_add(1), seq.wrapping_sub(30_000)]);
    w.drive(Duration::from_millis(200));
    speaker.nack(&mut w, &[seq]);
    let c = w.core.counters();
    assert_eq!(c.nacks - before.nacks, 6);
    assert_eq!(c.repairs_sent - before.repairs_sent, 3);
    assert_eq!(c.nacks_repeated - before.nacks_repeated, 1);
    assert_eq!(c.nacks_unknown - before.nacks_unknown, 2);
}

#[test]
fn a_flood_of_nacks_costs_a_bounded_number_of_repairs_and_delays_nobody() {
    let (mut w, mut source, mut speaker) = watched();
    let other = w.join_connected(Role::Observer);
    w.drive(Duration::from_millis(100));
    let newest = last_seq(&w, 0);
    let all: Vec<u16> = (0..90).map(|back| newest - back).collect();
    let before = w.core.counters().clone();
    for _ in 0..60 {
        for _ in 0..40 {
            speaker.nack(&mut w, &all);
        }
        let sent = w.now;
        let frame = source.next(false);
        w.frame(frame);
        w.drive(Duration::from_micros(16_667));
        let (at, _) = w.clients[other].packets.last().unwrap();
        assert_eq!(*at, sent + Duration::from_millis(5), "exactly the link's delay");
    }
    let c = w.core.counters();
    assert!(c.rtcp_denied_rate - before.rtcp_denied_rate > 1_000, "{c:?}");
    assert!(c.nacks_denied > before.nacks_denied);
    // One second: the budget of bytes, and the burst.
    let bytes = c.bytes_repaired - before.bytes_repaired;
    assert!(bytes < 420_000, "{bytes}");
    assert!(w.gone.is_empty());
}

#[test]
fn forged_and_replayed_rtcp_does_nothing() {
    let (mut w, _source, mut speaker) = watched();
    let mut plain = Vec::new();
    rtcp::write_pli(ME, speaker.ssrc, &mut plain);
    rtcp::write_bye(&[ME], &mut plain);
    let sealed = speaker.sealed(&plain);
    let from = Route::udp(w.clients[0].address);
    let server = SERVER.parse().unwrap();
    for at in 0..sealed.len() {
        let mut forged = sealed.clone();
        forged[at] ^= 0x10;
        w.core.datagram(w.now, from, server, &forged);
        w.now += Duration::from_millis(10);
    }
    w.drain_core();
    assert_eq!(w.core.counters().keyframe_wanted, 0);
    assert!(w.gone.is_empty());
    // A changed packet type makes it no RTCP at all.
    let c = w.core.counters();
    assert!(c.rtcp_forged + c.rtp_from_viewers + 2 >= sealed.len() as u64, "{c:?}");
    let mut pli = Vec::new();
    rtcp::write_pli(ME, speaker.ssrc, &mut pli);
    let pli = speaker.sealed(&pli);
    for _ in 0..5 {
        w.core.datagram(w.now, from, server, &pli);
        w.drain_core();
    }
    assert_eq!(w.core.counters().keyframe_wanted, 1);
    assert_eq!(w.core.counters().rtcp_replayed, 4);
}

#[test]
fn rtcp_about_other_sources_is_ignored() {
    let (mut w, _source, mut speaker) = watched();
    let mut plain = Vec::new();
    rtcp::write_pli(ME, Ssrc(1), &mut plain);
    rtcp::write_fir(ME, Ssrc(2), 1, &mut plain);
    rtcp::write_nack(ME, Ssrc(3), &[1, 2, 3], &mut plain);
    rtcp::write_remb(ME, 1_000, &[Ssrc(3)], &mut plain);
    speaker.say(&mut w, &plain);
    let c = w.core.counters();
    assert_eq!((c.keyframe_wanted, c.nacks, c.remb_ignored, c.rtcp_malformed), (0, 0, 1, 0));
}

#[test]
fn a_goodbye_ends_the_viewer() {
    let (mut w, _source, mut speaker) = watched();
    let mut plain = Vec::new();
    rtcp::write_receiver_report(ME, &[], &mut plain);
    rtcp::write_bye(&[ME], &mut plain);
    speaker.say(&mut w, &plain);
    w.drive(Duration::from_secs(2));
    assert_eq!(w.gone, [(w.clients[0].session, GoneReason::ClosedByViewer)]);
}

#[test]
fn lies_about_arrival_harm_only_the_liar() {
    let (mut w, mut source, mut speaker) = watched();
    let honest = w.join_connected(Role::Observer);
    w.drive(Duration::from_millis(100));
    let mut random = StdRng::seed_from_u64(11);
    for round in 0..200_u32 {
        let mut plain = vec![0x8f, 205, 0, 0];
        plain.extend(ME.0.to_be_bytes());
        plain.extend(speaker.ssrc.0.to_be_bytes());
        let words = random.random_range(2..100_u16);
        for _ in 0..usize::from(words) * 4 {
            plain.push(random.random());
        }
        let length = (2 + words).to_be_bytes();
        plain[2..4].copy_from_slice(&length);
        if round % 2 == 0 {
            // Numbers that were sent, with arrival times of fancy.
            let base = u16::try_from(round % 90).unwrap();
            plain[12..16].copy_from_slice(&[0, base.to_be_bytes()[1], 0x0f, 0xff]);
        }
        speaker.say(&mut w, &plain);
        let frame = source.next(round % 60 == 0);
        w.frame(frame);
        w.drive(Duration::from_millis(16));
    }
    assert!(w.core.counters().twcc_feedbacks > 50, "{:?}", w.core.counters());
    assert!(w.gone.is_empty());
    let stats = w.core.viewer_stats(w.clients[honest].session).unwrap();
    assert_eq!((stats.share, stats.frames_thinned), (Share::Full, 0));
    assert!(w.clients[honest].indices().len() >= 200);
}

#[test]
fn sender_reports_map_media_time_to_the_clock_on_the_wall() {
    let start_us = 1_800_000_000_000_000;
    let mut w = World::with(|c| c.start_unix_us = start_us);
    let v = w.join_connected(Role::Observer);
    let mut speaker = Speaker::new(&w, v);
    w.clients[v].dead = true;
    let mut source = Source::new(1);
    let (mut reports, mut opened) = (Vec::new(), Vec::new());
    for i in 0..100 {
        let mut frame = (*source.next(i == 0)).clone();
        // Captured twenty milliseconds before it gets here.
        let unix_us = start_us + u64::try_from((w.now - w.start).as_micros()).unwrap();
        frame.capture_unix_us = Some(unix_us - 20_000);
        w.core.frame(w.now, STREAM, frame.into());
        let mut batch = crate::Batch::new(16, 64 * 1024);
        let mut newest = 0;
        while w.core.poll_media(w.now, &mut batch) {
            for run in batch.runs() {
                let bytes = batch.bytes(run);
                opened.clear();
                if !fanlight_wire::rtp::is_rtcp(bytes) {
                    newest = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
                } else if speaker.open.open(bytes, &mut opened).is_ok() {
                    for packet in rtcp::packets(&opened) {
                        if let Packet::SenderReport(report) = packet.unwrap() {
                            let wall = unix_us_from_ntp(report.info.ntp);
                            assert!(wall.abs_diff(unix_us) < 2, "{wall} {unix_us}");
                            let ahead = report.info.rtp_time.0.wrapping_sub(newest);
                            assert_eq!(ahead, 1_800, "twenty milliseconds of media time");
                            assert_eq!(report.info.packets, (i + 1) * 3);
                            assert_eq!(report.info.octets, (i + 1) * 2_700);
                            reports.push(report.sender);
                        }
                    }
                }
            }
        }
        w.now += Duration::from_micros(33_333);
    }
    assert_eq!(reports.len(), 4, "at once, then each second");
    assert!(reports.iter().all(|sender| *sender == speaker.ssrc));
}

#[test]
fn a_viewer_that_asks_is_told_the_round_trip() {
    let (mut w, mut source, mut speaker) = watched();
    w.clients[0].dead = true;
    let mut plain = Vec::new();
    rtcp::write_receiver_report(ME, &[], &mut plain);
    rtcp::write_reference_time(ME, 0x0001_2233_4455_0000, &mut plain);
    speaker.say(&mut w, &plain);
    w.now += Duration::from_millis(1_500);
    let frame = source.next(false);
    w.core.frame(w.now, STREAM, frame);
    let (mut batch, mut opened, mut told) = (crate::Batch::new(16, 64 * 1024), Vec::new(), None);
    while w.core.poll_media(w.now, &mut batch) {
        for run in batch.runs() {
            if speaker.open.open(batch.bytes(run), &mut opened).is_ok() {
                // Its last five words: block header, who asked, what it said, how long ago.
                let words: Vec<u32> = opened
                    .chunks_exact(4)
                    .map(|w| u32::from_be_bytes(w.try_into().unwrap()))
                    .collect();
                told = words.last_chunk::<4>().copied();
            }
        }
    }
    let half_more = 65_536 + 32_768;
    assert_eq!(told, Some([5 << 24 | 3, ME.0, 0x2233_4455, half_more]));
}

#[test]
fn what_the_library_sends_as_media_never_leaves() {
    let (mut w, mut source, mut speaker) = watched();
    w.clients[0].dead = true;
    // It knows of no media by itself, and so has nothing to say about any.
    w.core.provoke_media(w.clients[0].session);
    let mut seen = 0;
    for _ in 0..700 {
        let frame = source.next(false);
        w.core.frame(w.now, STREAM, frame);
        w.core.timeout(w.now);
        while let Some(output) = w.core.poll_output() {
            if let crate::Output::Transmit { bytes, .. } = output {
                assert!(!(128..=191).contains(&bytes[0]), "RTP or RTCP of the library's");
                seen += 1;
            }
        }
        let mut batch = crate::Batch::new(16, 64 * 1024);
        while w.core.poll_media(w.now, &mut batch) {}
        w.now += Duration::from_millis(16);
    }
    let _ = (&mut speaker, seen);
    assert!(w.core.counters().library_media_dropped > 0, "the check checks something");
}

#[test]
fn a_narrow_viewer_is_thinned_and_the_other_is_not() {
    let mut w = World::new();
    let narrow = w.join_connected(Role::Observer);
    let wide = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    // 60 fps of 3 packets: 1.4 Mbit/s with headers; a quarter of it without disposable frames.
    w.clients[narrow].downlink_bps = Some(600_000);
    for i in 0..900_u64 {
        let mut frame = (*source.next(i % 120 == 0)).clone();
        frame.discardable = i % 4 != 0;
        w.frame(frame.into());
        w.drive(Duration::from_micros(16_667));
    }
    w.drive(Duration::from_millis(500));
    let stats = |w: &World, v: usize| w.core.viewer_stats(w.clients[v].session).unwrap();
    assert!(
        stats(&w, narrow).frames_thinned > 200,
        "{:?} {:?}",
        stats(&w, narrow),
        w.core.counters()
    );
    assert_eq!(stats(&w, wide).frames_thinned, 0);
    assert_eq!(w.clients[wide].indices().len(), 900);
    let c = w.core.counters();
    assert!(c.pressure_thinned + c.pressure_stopped >= 1, "{c:?}");
    // What it is shown is of now: the newest picture is not older than the last second.
    let newest = w.clients[narrow]
        .packets
        .iter()
        .map(|(_, p)| u64::from_be_bytes(p.payload[1..9].try_into().unwrap()));
    assert!(newest.max().unwrap() > 860);
}

#[test]
fn media_follows_a_viewer_whose_address_changes() {
    let (mut w, mut source, _speaker) = watched();
    // The network in between gives it another port; the old one leads nowhere any more.
    w.clients[0].outside = Some("198.51.100.7:7777".parse().unwrap());
    source.play(&mut w, 60 * 6, false);
    assert_eq!(w.core.counters().paths_changed, 1);
    assert!(w.gone.is_empty(), "{:?}", w.gone);
    let stats = w.core.viewer_stats(w.clients[0].session).unwrap();
    assert_eq!(stats.remote, Some(Route::udp("198.51.100.7:7777".parse().unwrap())));
    let before = w.clients[0].packets.len();
    source.play(&mut w, 30, true);
    w.drive(Duration::from_millis(100));
    assert_eq!(w.clients[0].packets.len() - before, 90);
}

#[test]
fn an_ice_restart_changes_the_credentials_and_nothing_else() {
    let (mut w, mut source, _speaker) = watched();
    let session = w.clients[0].session;
    let remote = IceCredentials { ufrag: "fresh".into(), pwd: "0123456789012345678901".into() };
    let local = w.core.restart_ice(w.now, session, remote.clone()).unwrap();
    let local = str0m::IceCreds { ufrag: local.ufrag, pass: local.pwd };
    let mut api = w.clients[0].rtc.direct_api();
    api.set_local_ice_credentials(str0m::IceCreds { ufrag: remote.ufrag, pass: remote.pwd });
    api.set_remote_ice_credentials(local);
    let entries = w.core.viewer_entries();
    // Longer than a path without checks lives.
    for _ in 0..20 {
        source.play(&mut w, 60, false);
    }
    assert!(w.gone.is_empty(), "{:?}", w.gone);
    assert!(w.core.viewer_entries() <= entries + 1);
    let got = w.clients[0].indices();
    assert_eq!(got.len(), 30 + 1_200);
    assert_eq!(
        w.core.restart_ice(
            w.now,
            crate::SessionId(7),
            IceCredentials { ufrag: "a".into(), pwd: "b".into() }
        ),
        None
    );
}
