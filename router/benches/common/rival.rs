//! What the batched egress replaces: the same stream to the same number of viewers, each packet
//! written to a protocol state machine of its viewer (in RTP mode, without its bandwidth
//! estimator, with repair and transport-wide numbers negotiated), polled out and sent by `sendto`.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use mio::net::UdpSocket;
use str0m::{
    Candidate, Event, Input, Output, Rtc,
    change::{SdpAnswer, SdpOffer},
    media::{Direction, MediaKind, Mid},
    net::{Protocol, Receive},
    rtp::{RtpWrite, SeqNo},
};

use super::{
    contest::{Done, timed},
    floor::{FRAMES, PAYLOAD_BYTES},
    sinks::{Sinks, sender},
};

const INTERVAL: Duration = Duration::from_nanos(16_666_667);
const FRAMES_PER_SECOND: u64 = 60;
const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)), 5_000);

struct Pair {
    server: Rtc,
    client: Rtc,
    mid: Mid,
    address: SocketAddr,
    connected: bool,
    client_due: Instant,
    server_due: Instant,
}

pub struct Rival {
    pairs: Vec<Pair>,
    socket: UdpSocket,
    payload: Arc<[u8]>,
    now: Instant,
    frame: u64,
    seq: u64,
}

impl Rival {
    pub fn new(sinks: &Sinks, viewers: usize) -> Result<Self> {
        str0m::crypto::from_feature_flags().install_process_default();
        let now = Instant::now();
        let pairs = sinks.addresses[..viewers].iter().map(|a| pair(now, *a));
        let mut rival = Self {
            pairs: pairs.collect::<Result<_>>()?,
            socket: sender("127.0.0.1:0")?,
            payload: vec![7; PAYLOAD_BYTES].into(),
            now,
            frame: 0,
            seq: 1_000,
        };
        for _ in 0..200 {
            rival.exchange();
            if rival.pairs.iter().all(|p| p.connected) {
                // Caches of packets for repair fill within four seconds.
                for _ in 0..4 * FRAMES_PER_SECOND {
                    rival.work();
                }
                return Ok(rival);
            }
            rival.now += Duration::from_millis(5);
        }
        bail!("the rival's viewers did not connect")
    }

    /// One frame to all viewers, measured.
    pub fn work(&mut self) -> Done {
        self.now += INTERVAL;
        let packets = FRAMES[usize::try_from(self.frame).unwrap_or(0) % FRAMES.len()];
        self.frame += 1;
        let time = u32::try_from(self.frame * 1_500 % (1 << 32)).unwrap_or(0);
        let Self { pairs, socket, payload, now, seq, .. } = self;
        let first = *seq;
        *seq += packets as u64;
        let done = timed(|| {
            for pair in pairs.iter_mut() {
                write(pair, payload, packets, first, time, *now);
                pair.server.handle_input(Input::Timeout(*now)).expect("time passes");
                loop {
                    match pair.server.poll_output().expect("the viewer lives") {
                        Output::Timeout(at) => {
                            pair.server_due = at;
                            break;
                        }
                        Output::Transmit(t) => {
                            socket.send_to(&t.contents, t.destination).expect("loopback takes it");
                        }
                        Output::Event(_) => {}
                    }
                }
            }
            (packets * pairs.len()) as u64
        });
        if self.frame.is_multiple_of(FRAMES_PER_SECOND) {
            self.exchange();
        }
        done
    }

    /// What is not media, between servers and clients.
    fn exchange(&mut self) {
        let now = self.now;
        for pair in &mut self.pairs {
            let mut quiet = false;
            pair.client.handle_input(Input::Timeout(now)).expect("time passes");
            pair.server.handle_input(Input::Timeout(now)).expect("time passes");
            while !quiet {
                quiet = true;
                for t in drain(&mut pair.client, &mut pair.client_due, &mut pair.connected) {
                    quiet = false;
                    hear(&mut pair.server, now, pair.address, SERVER, &t);
                }
                for t in drain(&mut pair.server, &mut pair.server_due, &mut pair.connected) {
                    quiet = false;
                    hear(&mut pair.client, now, SERVER, pair.address, &t);
                }
            }
        }
    }
}

fn write(
    pair: &mut Pair,
    payload: &Arc<[u8]>,
    packets: usize,
    first: u64,
    time: u32,
    now: Instant,
) {
    let mut api = pair.server.direct_api();
    let stream = api.stream_tx_by_mid(pair.mid, None).expect("video was agreed");
    for n in 0..packets {
        let seq = SeqNo::from(first + n as u64);
        stream.write_rtp(
            RtpWrite::new(PT.into(), seq, time, now, payload.clone())
                .marker(n + 1 == packets)
                .nackable(true),
        );
    }
}

/// Payload type of H.264 in the library's own offers.
const PT: u8 = 108;

fn pair(now: Instant, address: SocketAddr) -> Result<Pair> {
    let build = || Rtc::builder().set_rtp_mode(true).clear_codecs().enable_h264(true);
    let (mut server, mut client) = (build().set_ice_lite(true).build(now), build().build(now));
    server.add_local_candidate(Candidate::host(SERVER, "udp")?);
    client.add_local_candidate(Candidate::host(address, "udp")?);
    let mut changes = client.sdp_api();
    let mid = changes.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
    let (offer, pending) = changes.apply().context("an offer")?;
    let offer = SdpOffer::from_sdp_string(&offer.to_sdp_string())?;
    let answer = server.sdp_api().accept_offer(offer)?;
    let answer = SdpAnswer::from_sdp_string(&answer.to_sdp_string())?;
    client.sdp_api().accept_answer(pending, answer)?;
    Ok(Pair { server, client, mid, address, connected: false, client_due: now, server_due: now })
}

fn drain(rtc: &mut Rtc, due: &mut Instant, connected: &mut bool) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    loop {
        match rtc.poll_output().expect("the pair lives") {
            Output::Timeout(at) => {
                *due = at;
                return sent;
            }
            Output::Transmit(t) => sent.push(t.contents.to_vec()),
            Output::Event(Event::Connected) => *connected = true,
            Output::Event(_) => {}
        }
    }
}

fn hear(rtc: &mut Rtc, now: Instant, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
    let receive = Receive::new(Protocol::Udp, from, to, bytes).expect("of a known kind");
    rtc.handle_input(Input::Receive(now, receive)).expect("the pair lives");
}
