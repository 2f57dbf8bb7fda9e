//! A small world for tests: one core, viewers that are real protocol clients, a seeded bad network,
//! and a clock that only moves when told to.
//!
//! Not a mock: clients do ICE, DTLS, SRTP and SCTP with the core's bytes. Invariant: time moves to
//! the next event and nowhere else, and a world that does not come to rest within a bounded number
//! of steps fails the test (livelock).
#![allow(clippy::unwrap_used, reason = "a test fixture: any surprise is a failed test")]
#![cfg_attr(not(test), allow(dead_code, reason = "the fuzz targets use a part of it"))]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanlight_rtc::keys::{self, Decoy, KeySlot};
use fanlight_wire::input::{DeviceMessage, InputBody, InputMessage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, ChannelId, Reliability};
use str0m::media::{Direction, KeyframeRequestKind, MediaKind, Mid};
use str0m::net::{Protocol, Receive};
use str0m::rtp::{Extension, RtpPacket};
use str0m::{Candidate, Event, Input, Output as RtcOutput, Rtc};

use crate::{
    Batch, Core, CoreConfig, Frame, GoneReason, JoinError, JoinRequest, KeyframeReason, Output,
    Role, Route, SessionId, SpsFacts, StreamInfo, StreamKey, parse_offer,
};

pub(crate) const SERVER: &str = "10.0.0.1:5000";

/// The stream of most tests.
pub(crate) const STREAM: StreamKey = StreamKey(1);

/// A beginning of time.
pub(crate) fn epoch() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "the epoch of the test's own clock")]
    Instant::now()
}

/// What the network does to a datagram, in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// Share of datagrams lost.
    pub(crate) loss: f64,
    pub(crate) delay: Duration,
    /// At most this much more, which also reorders.
    pub(crate) jitter: Duration,
}

impl Default for Link {
    fn default() -> Self {
        Self { loss: 0.0, delay: Duration::from_millis(5), jitter: Duration::ZERO }
    }
}

enum Packet {
    ToServer(usize, Vec<u8>),
    ToClient(usize, Vec<u8>),
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) core: Core,
    pub(crate) clients: Vec<Client>,
    pub(crate) link: Link,
    /// Limit of the sessions that join from now on.
    pub(crate) max_session: Option<Duration>,
    pub(crate) to_device: Vec<(SessionId, InputMessage)>,
    pub(crate) keyframe_requests: Vec<(Duration, StreamKey, KeyframeReason)>,
    pub(crate) connected: Vec<SessionId>,
    pub(crate) gone: Vec<(SessionId, GoneReason)>,
    batch: Batch,
    random: StdRng,
    flying: BTreeMap<(Instant, u64), Packet>,
    flown: u64,
}

pub(crate) struct Client {
    pub(crate) session: SessionId,
    pub(crate) address: SocketAddr,
    pub(crate) rtc: Rtc,
    pub(crate) mid: Mid,
    pub(crate) answer: String,
    pub(crate) packets: Vec<(Instant, RtpPacket)>,
    pub(crate) messages: Vec<DeviceMessage>,
    pub(crate) input: Option<ChannelId>,
    pub(crate) moves: Option<ChannelId>,
    pub(crate) connected: bool,
    /// What its address looks like from outside, when a network in between has changed it.
    pub(crate) outside: Option<SocketAddr>,
    /// A client that neither hears nor speaks any more.
    pub(crate) dead: bool,
    /// The client's media keys, for tests that speak in its name.
    pub(crate) keys: KeySlot,
    /// What its path takes; the queue before it holds 300 ms.
    pub(crate) downlink_bps: Option<u64>,
    downlink_free: Instant,
    timeout: Instant,
    seq: u32,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// A world whose core is configured by `change`, with [`STREAM`] up.
    pub(crate) fn with(change: impl FnOnce(&mut CoreConfig)) -> Self {
        let now = epoch();
        str0m::crypto::from_feature_flags().install_process_default();
        let mut config = CoreConfig::new(vec![SERVER.parse().unwrap()]);
        change(&mut config);
        let mut core = Core::new(config, now, 7);
        core.stream_up(now, STREAM, StreamInfo::new("streams/test", 1));
        Self {
            now,
            start: now,
            core,
            clients: Vec::new(),
            link: Link::default(),
            max_session: None,
            to_device: Vec::new(),
            keyframe_requests: Vec::new(),
            connected: Vec::new(),
            gone: Vec::new(),
            batch: Batch::new(16, 256 * 1024),
            random: StdRng::seed_from_u64(42),
            flying: BTreeMap::new(),
            flown: 0,
        }
    }

    /// A client makes an offer with two data channels and joins. Returns its index.
    pub(crate) fn join(&mut self, role: Role) -> usize {
        self.try_join(role).expect("the join is accepted")
    }

    pub(crate) fn try_join(&mut self, role: Role) -> Result<usize, JoinError> {
        let index = self.clients.len();
        let third = u8::try_from(index / 250).unwrap();
        let fourth = u8::try_from(index % 250).unwrap();
        let address = SocketAddr::from(([192, 0, third, fourth], 4_000));
        let (mut client, offer, pending) = Client::offer(self.now, index, address);
        let parsed = parse_offer(&offer)?;
        let answer = self.core.join(
            self.now,
            JoinRequest {
                id: client.session,
                stream: STREAM,
                offer: parsed,
                viewer: "viewer".into(),
                role,
                max_session: self.max_session,
                user_agent: None,
            },
        )?;
        let sdp = SdpAnswer::from_sdp_string(&answer.sdp).unwrap();
        client.rtc.sdp_api().accept_answer(pending, sdp).unwrap();
        client.answer = answer.sdp;
        self.clients.push(client);
        self.drain_client(index);
        self.drain_core();
        Ok(index)
    }

    /// Joins and runs until connected with both channels open.
    pub(crate) fn join_connected(&mut self, role: Role) -> usize {
        let index = self.join(role);
        self.drive_until(Duration::from_secs(5), |w| {
            let c = &w.clients[index];
            c.connected && c.input.is_some() && c.moves.is_some()
        });
        index
    }

    pub(crate) fn frame(&mut self, frame: Arc<Frame>) {
        self.offer(frame);
        self.drain_core();
    }

    /// A frame comes, and the shard does not get round to its viewers.
    pub(crate) fn offer(&mut self, mut frame: Arc<Frame>) {
        Arc::make_mut(&mut frame).arrived = self.now;
        self.core.frame(self.now, STREAM, frame);
    }

    /// A client sends an input message.
    pub(crate) fn send_input(&mut self, index: usize, body: InputBody) {
        let client = &mut self.clients[index];
        client.seq += 1;
        let mut bytes = Vec::new();
        InputMessage { seq: client.seq, lease_epoch: 3, body }.encode(&mut bytes).unwrap();
        self.send_raw_input(index, &bytes);
    }

    pub(crate) fn send_raw_input(&mut self, index: usize, bytes: &[u8]) {
        let client = &mut self.clients[index];
        let id = client.input.expect("the channel is open");
        client.rtc.channel(id).unwrap().write(true, bytes).unwrap();
        self.drain_client(index);
    }

    /// A client asks for a keyframe.
    pub(crate) fn pli(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let mid = client.mid;
        let mut api = client.rtc.direct_api();
        let Some(rx) = api.stream_rx_by_mid(mid, None) else { return };
        rx.request_keyframe(KeyframeRequestKind::Pli);
        client.rtc.handle_input(Input::Timeout(self.now)).unwrap();
        self.drain_client(index);
    }

    /// Runs for a while.
    pub(crate) fn drive(&mut self, time: Duration) {
        let end = self.now + time;
        self.drive_bounded(end, |_| false);
        self.now = end;
    }

    /// Runs until something is so, and fails if it is not within `time`.
    pub(crate) fn drive_until(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) {
        let end = self.now + time;
        assert!(self.drive_bounded(end, &mut done), "it did not happen within {time:?}");
    }

    /// Runs to `end` or until `done`, in a bounded number of steps.
    fn drive_bounded(&mut self, end: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        for _step in 0..200_000 {
            if done(self) {
                return true;
            }
            let next = [
                self.core.next_timeout(),
                self.flying.first_key_value().map(|((at, _), _)| *at),
                self.clients.iter().filter(|c| !c.dead).map(|c| c.timeout).min(),
            ];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= end) else {
                return false;
            };
            self.now = self.now.max(next);
            self.step();
        }
        panic!("livelock: the world does not come to rest");
    }

    fn step(&mut self) {
        while let Some(entry) = self.flying.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            match entry.remove() {
                Packet::ToServer(index, bytes) => {
                    let from = self.clients[index].seen_as();
                    self.core.datagram(self.now, Route::udp(from), SERVER.parse().unwrap(), &bytes);
                    self.drain_core();
                }
                Packet::ToClient(index, bytes) => {
                    let client = &mut self.clients[index];
                    if client.dead {
                        continue;
                    }
                    let server = SERVER.parse().unwrap();
                    let receive =
                        Receive::new(Protocol::Udp, server, client.address, &bytes).unwrap();
                    client.rtc.handle_input(Input::Receive(self.now, receive)).unwrap();
                    self.drain_client(index);
                }
            }
        }
        if self.core.next_timeout().is_some_and(|at| at <= self.now) {
            self.core.timeout(self.now);
            self.drain_core();
        }
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if !client.dead && client.timeout <= self.now {
                client.rtc.handle_input(Input::Timeout(self.now)).unwrap();
                self.drain_client(index);
                // The library may ask for "now" again; a real driver would sleep a little.
                let client = &mut self.clients[index];
                client.timeout = client.timeout.max(self.now + Duration::from_micros(100));
            }
        }
    }

    pub(crate) fn drain_core(&mut self) {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new(0, 0));
        loop {
            self.drain_outputs();
            if !self.core.poll_media(self.now, &mut batch) {
                break;
            }
            for run in batch.runs() {
                let datagrams = batch.bytes(run).chunks(run.segment);
                assert_eq!(datagrams.len(), run.count, "a run is segmentable");
                let to = self.clients.iter().position(|c| c.seen_as() == run.to.addr);
                for datagram in datagrams {
                    if let Some(index) = to {
                        self.fly(Packet::ToClient(index, datagram.to_vec()));
                    }
                }
            }
        }
        self.batch = batch;
        self.drain_outputs();
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Transmit { to, from, bytes } => {
                    assert_eq!(from, SERVER.parse().unwrap(), "we speak from our candidate");
                    if let Some(index) = self.clients.iter().position(|c| c.seen_as() == to.addr) {
                        self.fly(Packet::ToClient(index, bytes));
                    }
                }
                Output::ToDevice { stream, viewer, message } => {
                    assert_eq!(stream, STREAM);
                    self.to_device.push((viewer, InputMessage::decode(&message).unwrap()));
                }
                Output::KeyframeRequest { stream, reason } => {
                    self.keyframe_requests.push((self.now - self.start, stream, reason));
                }
                Output::ViewerConnected { session } => self.connected.push(session),
                Output::ViewerGone { session, reason } => self.gone.push((session, reason)),
            }
        }
    }

    fn drain_client(&mut self, index: usize) {
        let now = self.now;
        let mut sent = Vec::new();
        self.clients[index].drain(now, &mut sent);
        for bytes in sent {
            self.fly(Packet::ToServer(index, bytes));
        }
    }

    fn fly(&mut self, packet: Packet) {
        if self.random.random_bool(self.link.loss) {
            return;
        }
        let jitter = self.link.jitter.mul_f64(self.random.random());
        let mut leaves = self.now;
        if let Packet::ToClient(index, bytes) = &packet
            && let Some(bps) = self.clients[*index].downlink_bps
        {
            let client = &mut self.clients[*index];
            let takes = Duration::from_micros(bytes.len() as u64 * 8_000_000 / bps);
            leaves = client.downlink_free.max(self.now) + takes;
            if leaves - self.now > Duration::from_millis(300) {
                return;
            }
            client.downlink_free = leaves;
        }
        self.flown += 1;
        self.flying.insert((leaves + self.link.delay + jitter, self.flown), packet);
    }

    /// Says goodbye from the client's side.
    pub(crate) fn client_closes(&mut self, index: usize) {
        self.clients[index].rtc.close().unwrap();
        self.drain_client(index);
    }
}

impl Client {
    fn offer(now: Instant, index: usize, address: SocketAddr) -> (Self, String, SdpPendingOffer) {
        let slot = KeySlot::new(Decoy::No);
        let builder = Rtc::builder()
            .set_crypto_provider(keys::crypto())
            .set_rtp_mode(true)
            .clear_codecs()
            .enable_h264(true)
            .set_extension(5, Extension::PlayoutDelay)
            .set_extension(6, Extension::AbsoluteCaptureTime);
        let mut rtc = keys::with_slot(&slot, || builder.build(now));
        rtc.add_local_candidate(Candidate::host(address, "udp").unwrap());
        let mut changes = rtc.sdp_api();
        let mid = changes.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        changes.add_channel("input".into());
        changes.add_channel_with_config(ChannelConfig {
            label: "input-moves".into(),
            ordered: false,
            reliability: Reliability::MaxRetransmits { retransmits: 0 },
            ..Default::default()
        });
        let (offer, pending) = changes.apply().unwrap();
        let client = Self {
            session: SessionId(index as u64 + 100),
            address,
            rtc,
            mid,
            answer: String::new(),
            packets: Vec::new(),
            messages: Vec::new(),
            input: None,
            moves: None,
            connected: false,
            outside: None,
            dead: false,
            keys: slot,
            downlink_bps: None,
            downlink_free: now,
            timeout: now,
            seq: 0,
        };
        (client, offer.to_sdp_string(), pending)
    }

    /// Its address as the core sees it.
    pub(crate) fn seen_as(&self) -> SocketAddr {
        self.outside.unwrap_or(self.address)
    }

    fn drain(&mut self, now: Instant, sent: &mut Vec<Vec<u8>>) {
        loop {
            match self.rtc.poll_output().unwrap() {
                RtcOutput::Timeout(at) => {
                    self.timeout = at;
                    return;
                }
                RtcOutput::Transmit(t) => sent.push(t.contents.to_vec()),
                RtcOutput::Event(Event::Connected) => self.connected = true,
                RtcOutput::Event(Event::ChannelOpen(id, label)) => match label.as_str() {
                    "input" => self.input = Some(id),
                    _ => self.moves = Some(id),
                },
                RtcOutput::Event(Event::ChannelData(d)) => {
                    self.messages.push(DeviceMessage::decode(&d.data).unwrap());
                }
                RtcOutput::Event(Event::RtpPacket(p)) => self.packets.push((now, p)),
                RtcOutput::Event(_) => {}
            }
        }
    }

    /// What arrived, in order of sequence numbers, each once: frame indices as our test payloads
    /// carry them, with their time stamps. Fails if a packet is missing in between, a frame is
    /// torn, or a time stamp goes back.
    pub(crate) fn frames(&self) -> Vec<(u64, u32)> {
        let mut by_seq: BTreeMap<u64, &RtpPacket> = BTreeMap::new();
        for (_, packet) in &self.packets {
            by_seq.insert(*packet.seq_no, packet);
        }
        let mut frames: Vec<(u64, u32)> = Vec::new();
        let mut last: Option<(u64, u32)> = None;
        let mut open = false;
        for (seq, packet) in by_seq {
            let time = packet.header.timestamp;
            let index = u64::from_be_bytes(packet.payload[1..9].try_into().unwrap());
            if let Some((last_seq, last_time)) = last {
                assert_eq!(seq, last_seq + 1, "a packet is missing");
                let ahead = time.wrapping_sub(last_time);
                assert!(if open { ahead == 0 } else { (1..1 << 31).contains(&ahead) });
            }
            if !open {
                frames.push((index, time));
            }
            assert_eq!(frames.last().unwrap().0, index, "a frame is torn");
            open = !packet.header.marker;
            last = Some((seq, time));
        }
        frames
    }

    pub(crate) fn indices(&self) -> Vec<u64> {
        self.frames().into_iter().map(|(index, _)| index).collect()
    }
}

/// Makes frames as a source would.
pub(crate) struct Source {
    pub(crate) epoch: u64,
    pub(crate) arrived: Instant,
    pub(crate) index: u64,
    pub(crate) rtp_time: u32,
    pub(crate) packets: usize,
    pub(crate) params: Arc<SpsFacts>,
}

impl Source {
    pub(crate) fn new(epoch: u64) -> Self {
        let params = SpsFacts {
            width: 720,
            height: 1280,
            profile_idc: 66,
            constraint_flags: 0xc0,
            level_idc: 31,
            max_num_reorder_frames: Some(0),
        };
        let arrived = self::epoch();
        Self { epoch, arrived, index: 0, rtp_time: 12_345, packets: 3, params: Arc::new(params) }
    }

    /// The next frame of 30 per second. Every payload carries a type byte and the frame's index.
    pub(crate) fn next(&mut self, key: bool) -> Arc<Frame> {
        let payloads = (0..self.packets)
            .map(|_| {
                let mut payload = vec![if key { 0x65 } else { 0x41 }];
                payload.extend(self.index.to_be_bytes());
                payload.resize(900, 0xaa);
                payload.into()
            })
            .collect();
        let frame = Frame {
            epoch: self.epoch,
            arrived: self.arrived,
            index: self.index,
            rtp_time: self.rtp_time,
            capture_unix_us: Some(1_700_000_000_000_000 + self.index * 33_333),
            key,
            discardable: false,
            payloads,
            params: key.then(|| Arc::clone(&self.params)),
        };
        self.index += 1;
        self.rtp_time = self.rtp_time.wrapping_add(3_000);
        Arc::new(frame)
    }

    /// Sends `count` frames, 30 per second, the first a keyframe if `key`.
    pub(crate) fn play(&mut self, world: &mut World, count: usize, key: bool) {
        for i in 0..count {
            let frame = self.next(key && i == 0);
            world.frame(frame);
            world.drive(Duration::from_micros(33_333));
        }
    }
}
