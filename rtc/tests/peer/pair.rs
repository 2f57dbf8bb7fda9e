//! Two ends in one process on a virtual clock. Not a network: nothing is lost that a test does not
//! lose itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::change::SdpOffer;
use str0m::config::CryptoProvider;
use str0m::media::{Direction, MediaKind, Mid};
use str0m::net::{Protocol, Receive, Transmit};
use str0m::rtp::RtpPacket;
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

const SERVER: &str = "127.0.0.1:5000";
const CLIENT: &str = "127.0.0.1:6000";

pub(crate) fn untouched() -> Arc<CryptoProvider> {
    Arc::new(str0m_aws_lc_rs::default_provider())
}

pub(crate) fn config(provider: Arc<CryptoProvider>) -> RtcConfig {
    let config = Rtc::builder().set_rtp_mode(true).set_crypto_provider(provider);
    config.clear_codecs().enable_h264(true)
}

/// One end and what it has said.
pub(crate) struct End {
    pub(crate) rtc: Rtc,
    pub(crate) address: SocketAddr,
    pub(crate) out: VecDeque<Transmit>,
    pub(crate) rtp: Vec<RtpPacket>,
    pub(crate) connected: bool,
    pub(crate) keyframe_requests: usize,
    /// The greatest that its statistics told.
    pub(crate) egress_loss: Option<f32>,
    pub(crate) channel_data: Vec<Vec<u8>>,
    pub(crate) channel: Option<str0m::channel::ChannelId>,
}

impl End {
    pub(crate) fn new(mut rtc: Rtc, address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        rtc.add_local_candidate(Candidate::host(address, "udp").unwrap());
        Self {
            rtc,
            address,
            out: VecDeque::new(),
            rtp: Vec::new(),
            connected: false,
            keyframe_requests: 0,
            egress_loss: None,
            channel_data: Vec::new(),
            channel: None,
        }
    }

    pub(crate) fn drain(&mut self) {
        loop {
            match self.rtc.poll_output().unwrap() {
                Output::Timeout(_) => return,
                Output::Transmit(t) => self.out.push_back(t),
                Output::Event(Event::Connected) => self.connected = true,
                Output::Event(Event::RtpPacket(packet)) => self.rtp.push(packet),
                Output::Event(Event::KeyframeRequest(_)) => self.keyframe_requests += 1,
                Output::Event(Event::PeerStats(stats)) => {
                    let loss = stats.egress_loss_fraction.unwrap_or(0.0);
                    self.egress_loss = Some(self.egress_loss.unwrap_or(0.0).max(loss));
                }
                Output::Event(Event::ChannelOpen(id, _)) => self.channel = Some(id),
                Output::Event(Event::ChannelData(data)) => self.channel_data.push(data.data),
                Output::Event(_) => {}
            }
        }
    }

    pub(crate) fn receive(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let contents = bytes.try_into().unwrap();
        let destination = self.address;
        let receive = Receive { proto: Protocol::Udp, source: from, destination, contents };
        self.rtc.handle_input(Input::Receive(now, receive)).unwrap();
        self.drain();
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        self.rtc.handle_input(Input::Timeout(now)).unwrap();
        self.drain();
    }
}

pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) server: End,
    pub(crate) client: End,
    pub(crate) mid: Mid,
}

impl Pair {
    /// The client offers to receive video and opens a data channel.
    pub(crate) fn connect(server: Rtc, client: Rtc, now: Instant) -> Self {
        let (mut server, mut client) = (End::new(server, SERVER), End::new(client, CLIENT));
        let mut change = client.rtc.sdp_api();
        let mid = change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        change.add_channel("data".to_owned());
        let (offer, pending) = change.apply().unwrap();
        let offer = SdpOffer::from_sdp_string(&offer.to_sdp_string()).unwrap();
        let answer = server.rtc.sdp_api().accept_offer(offer).unwrap();
        client.rtc.sdp_api().accept_answer(pending, answer).unwrap();
        server.drain();
        client.drain();
        let mut pair = Self { now, server, client, mid };
        pair.run(|pair| {
            pair.server.connected && pair.client.connected && pair.client.channel.is_some()
        });
        pair
    }

    /// One step of 5 ms in which both hear each other, RTP and RTCP from the server excepted:
    /// that is what we send in its place.
    pub(crate) fn step(&mut self) {
        self.now += Duration::from_millis(5);
        while let Some(t) = self.client.out.pop_front() {
            if !is_srtp(&t.contents) {
                self.server.receive(self.now, self.client.address, &t.contents);
            }
        }
        while let Some(t) = self.server.out.pop_front() {
            if !is_srtp(&t.contents) {
                self.client.receive(self.now, self.server.address, &t.contents);
            }
        }
        self.server.tick(self.now);
        self.client.tick(self.now);
    }

    pub(crate) fn run(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("not done after two seconds");
    }

    /// What the client has sent as SRTP or SRTCP, until there is some.
    pub(crate) fn client_srtp(&mut self) -> Vec<Vec<u8>> {
        for _ in 0..1_000 {
            let sent: Vec<Vec<u8>> = self
                .client
                .out
                .iter()
                .filter(|t| is_srtp(&t.contents))
                .map(|t| t.contents.to_vec())
                .collect();
            if !sent.is_empty() {
                return sent;
            }
            self.step();
        }
        panic!("the client sent nothing in five seconds");
    }
}

pub(crate) fn is_srtp(bytes: &[u8]) -> bool {
    (128..192).contains(&bytes[0])
}
