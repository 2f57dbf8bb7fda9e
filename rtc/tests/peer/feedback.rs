//! RTCP both ways: an untouched receiver's is read, and ours is taken by an untouched sender.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fanlight_rtc::keys::{self, Decoy, KeySlot};
use fanlight_rtc::srtp::Contexts;
use fanlight_wire::rtcp::{self, Packet, ReportBlock, TransportCcReport};
use fanlight_wire::rtp::{RtpView, Ssrc};
use str0m::rtp::{Extension, RtpWrite};

use crate::pair::{Pair, config, is_srtp, untouched};
use crate::tapped;

/// What a receiver's feedback told.
#[derive(Default)]
struct Told {
    /// By transport-wide number: when it arrived, in microseconds on the receiver's clock.
    arrived: BTreeMap<u16, i64>,
    missing: BTreeSet<u16>,
    nacked: BTreeSet<u16>,
}

impl Told {
    fn read(&mut self, compound: &[u8]) {
        for packet in rtcp::packets(compound) {
            match packet.unwrap() {
                Packet::Nack(nack) => self.nacked.extend(nack.sequences()),
                Packet::TransportCc(feedback) => {
                    for (seq, arrived) in feedback.packets() {
                        match arrived {
                            Some(us) => {
                                self.arrived.insert(seq, feedback.reference_time_us() + us);
                            }
                            None => {
                                self.missing.insert(seq);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn the_feedback_of_an_untouched_client_is_understood() {
    // Not where one of its feedbacks ends: it begins the next with a packet that has arrived.
    const LOST: [u64; 3] = [24, 25, 56];
    let now = Instant::now();
    let slot = KeySlot::new(Decoy::Yes);
    let mut pair = Pair::connect(tapped(&slot, now), config(untouched()).build(now), now);
    let mut contexts = Contexts::derive(&slot.take().unwrap()).unwrap();
    let (mid, server) = (pair.mid, pair.server.address);
    let media = pair.server.rtc.media(mid).unwrap();
    let payload_type = *media.remote_pts()[0];
    let extension = media.remote_extmap().id_of(Extension::TransportSequenceNumber).unwrap();
    let ssrc = *pair.server.rtc.direct_api().stream_tx_by_mid(mid, None).unwrap().ssrc();
    let (mut told, mut clear) = (Told::default(), Vec::new());
    for i in 0..200u64 {
        let (index, transport) = (1_000 + i, 65_500u16.wrapping_add(i as u16));
        let mut datagram = vec![0x90, payload_type];
        datagram.extend_from_slice(&(index as u16).to_be_bytes());
        datagram.extend_from_slice(&(i as u32 * 450).to_be_bytes());
        datagram.extend_from_slice(&ssrc.to_be_bytes());
        datagram.extend_from_slice(&[0xbe, 0xde, 0, 1, extension << 4 | 1]);
        datagram.extend_from_slice(&transport.to_be_bytes());
        datagram.push(0);
        datagram.resize(20 + 500 + contexts.rtp.overhead(), 0);
        let len = contexts.rtp.seal(index, ssrc, 20, &[1; 500], &mut datagram).unwrap();
        if !LOST.contains(&i) {
            let now = pair.now;
            pair.client.receive(now, server, &datagram[..len]);
        }
        for sent in pair.client.out.iter().filter(|t| is_srtp(&t.contents)) {
            contexts.rtcp_in.open(&sent.contents, &mut clear).unwrap();
            told.read(&clear);
        }
        pair.client.out.retain(|t| !is_srtp(&t.contents));
        pair.step();
    }
    assert_eq!(told.nacked, LOST.map(|i| 1_000 + i as u16).into());
    let number = |i: u64| 65_500u16.wrapping_add(i as u16);
    assert_eq!(told.missing, LOST.map(number).into());
    let first = told.arrived[&number(0)];
    assert!(told.arrived.len() > 150);
    for i in (0..180).filter(|i| !LOST.contains(i)) {
        let after = told.arrived[&number(i)] - first;
        assert!((after - i as i64 * 5_000).abs() <= 250, "{i}: {after} us");
    }
}

#[test]
fn an_untouched_sender_takes_our_feedback() {
    let now = Instant::now();
    let slot = KeySlot::new(Decoy::Yes);
    let client = keys::with_slot(&slot, || config(keys::crypto()).build(now));
    let stats = Some(Duration::from_millis(200));
    let server = config(untouched()).set_ice_lite(true).set_stats_interval(stats).build(now);
    let mut pair = Pair::connect(server, client, now);
    let mut contexts = Contexts::derive(&slot.take().unwrap()).unwrap();
    let (mid, client) = (pair.mid, pair.client.address);
    let payload_type = pair.server.rtc.media(mid).unwrap().remote_pts()[0];
    let mut transport = Vec::new();
    let extension = pair.server.rtc.media(mid).unwrap().remote_extmap();
    let extension = extension.id_of(Extension::TransportSequenceNumber).unwrap();
    let (mut clear, mut media) = (Vec::new(), Ssrc(0));
    pair.server.out.clear();
    for seq in 1_000..1_040u64 {
        let now = pair.now;
        let mut api = pair.server.rtc.direct_api();
        let stream = api.stream_tx_by_mid(mid, None).unwrap();
        media = Ssrc(*stream.ssrc());
        let payload = vec![seq as u8; 300];
        let write = RtpWrite::new(payload_type, seq.into(), 9, now, payload.clone());
        stream.write_rtp(write.nackable(true));
        pair.server.tick(now);
        for sent in pair.server.out.iter().filter(|t| is_srtp(&t.contents)) {
            // What the library seals, our opener opens.
            let Ok(opened) = contexts.rtp_in.open(&sent.contents, &mut clear) else { continue };
            let view = RtpView::parse(&clear).unwrap();
            assert_eq!((opened.index, Ssrc(opened.ssrc)), (seq, media));
            assert_eq!(view.payload(), payload);
            let number = view.extension(extension).unwrap();
            transport.push(u16::from_be_bytes([number[0], number[1]]));
        }
        pair.server.out.clear();
        pair.step();
    }
    assert_eq!(transport.len(), 40);

    let us = Ssrc(0x55);
    let (mut compound, mut sealed) = (Vec::new(), Vec::new());
    let report = ReportBlock { ssrc: media, highest_seq: 1_039, ..ReportBlock::default() };
    rtcp::write_receiver_report(us, &[report], &mut compound);
    rtcp::write_sdes_cname(us, "viewer", &mut compound).unwrap();
    assert_eq!(rtcp::write_nack(us, media, &[1_003, 1_010, 1_039], &mut compound), 3);
    rtcp::write_pli(us, media, &mut compound);
    // A quarter did not arrive.
    let arrivals: Vec<_> = (0..40).map(|i| (i % 4 != 1).then_some(i * 5_000)).collect();
    let feedback = TransportCcReport {
        sender: us,
        media,
        feedback_count: 0,
        reference_time: 77,
        base_seq: transport[0],
        arrivals_us: &arrivals,
    };
    rtcp::write_transport_cc(&feedback, &mut compound).unwrap();
    contexts.rtcp.protect(&compound, &mut sealed).unwrap();
    let now = pair.now;
    pair.server.receive(now, client, &sealed);
    assert_eq!(pair.server.keyframe_requests, 1, "PLI");
    compound.clear();
    rtcp::write_fir(us, media, 1, &mut compound);
    contexts.rtcp.protect(&compound, &mut sealed).unwrap();
    pair.server.receive(now, client, &sealed);
    assert_eq!(pair.server.keyframe_requests, 2, "FIR");

    let mut resent = BTreeSet::new();
    for _ in 0..200 {
        for sent in pair.server.out.iter().filter(|t| is_srtp(&t.contents)) {
            let Ok(opened) = contexts.rtp_in.open(&sent.contents, &mut clear) else { continue };
            assert!(Ssrc(opened.ssrc) != media, "on the retransmission stream");
            let payload = RtpView::parse(&clear).unwrap().payload();
            resent.insert(u16::from_be_bytes([payload[0], payload[1]]));
            assert_eq!(payload[2..], vec![payload[1]; 300]);
        }
        pair.server.out.retain(|t| !is_srtp(&t.contents));
        pair.step();
    }
    assert_eq!(resent, [1_003, 1_010, 1_039].into());
    let loss = pair.server.egress_loss.unwrap();
    assert!((loss - 0.25).abs() < 0.02, "transport feedback told of {loss}");
}
