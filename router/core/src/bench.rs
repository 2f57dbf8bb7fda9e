//! A crowd of viewers for benchmarks: real protocol clients that do ICE, DTLS and SCTP with a core
//! in the same process, and then only speak through what a benchmark seals for them. Not a test
//! world: no network, no loss, and time moves as the caller says. Invariant: a client's own media
//! library never sends RTCP to the core, because the benchmark does so under the same keys.
#![allow(clippy::unwrap_used, reason = "a fixture of benchmarks: any surprise ends the run")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanlight_rtc::keys::{self, Decoy, KeySlot};
use fanlight_rtc::srtp::{Keying, RtcpSealer};
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, Reliability};
use str0m::media::{Direction, MediaKind};
use str0m::net::{Protocol, Receive};
use str0m::rtp::Extension;
use str0m::{Candidate, Event, Input, Output as RtcOutput, Rtc};

use crate::{
    Batch, Core, Frame, JoinRequest, Output, Role, Route, SessionId, SpsFacts, StreamKey,
    parse_offer,
};

/// Time between two looks at all clients while they connect.
const STEP: Duration = Duration::from_millis(5);
/// Steps within which all must be connected.
const STEPS_MAX: usize = 400;

/// Viewers of one core, connected.
#[derive(Debug)]
pub struct Crowd {
    server: SocketAddr,
    clients: Vec<Client>,
    by_address: HashMap<SocketAddr, usize>,
    batch: Batch,
    meter: Meter,
    /// Size of the last offer.
    pub offer_bytes: usize,
}

/// Takes the time of what the core does, as opposed to the clients.
#[derive(Debug, Clone, Copy)]
struct Meter {
    clock: Option<fn() -> Duration>,
    spent: Duration,
    readings: u64,
}

impl Meter {
    fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let Some(clock) = self.clock else { return work() };
        let start = clock();
        let done = work();
        self.spent += clock() - start;
        self.readings += 1;
        done
    }
}

/// One of them.
#[derive(Debug)]
struct Client {
    session: SessionId,
    address: SocketAddr,
    rtc: Rtc,
    slot: KeySlot,
    rtcp: Option<RtcpSealer>,
    connected: bool,
    channels: usize,
    timeout: Instant,
}

impl Crowd {
    /// Nobody yet.
    #[must_use]
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server,
            clients: Vec::new(),
            by_address: HashMap::new(),
            batch: Batch::new(16, 256 * 1024),
            meter: Meter { clock: None, spent: Duration::ZERO, readings: 0 },
            offer_bytes: 0,
        }
    }

    /// Takes the time that the core needs, by this clock.
    #[must_use]
    pub fn with_clock(mut self, clock: fn() -> Duration) -> Self {
        self.meter.clock = Some(clock);
        self
    }

    /// What the core has needed, and how many pairs of readings of the clock are in it.
    #[must_use]
    pub fn core_time(&self) -> (Duration, u64) {
        (self.meter.spent, self.meter.readings)
    }

    /// Viewers join from these addresses and connect; the first one as a controller if `lease`.
    /// Moves `now` on by what that takes.
    pub fn connect(
        &mut self,
        core: &mut Core,
        now: &mut Instant,
        stream: StreamKey,
        addresses: &[SocketAddr],
        lease: bool,
    ) {
        for (n, address) in addresses.iter().enumerate() {
            let role = if lease && n == 0 { Role::Controller } else { Role::Observer };
            self.join(core, *now, stream, *address, role);
        }
        self.settle(core, now);
    }

    /// Runs until all have connected. Moves `now` on by what that takes.
    pub fn settle(&mut self, core: &mut Core, now: &mut Instant) {
        for _ in 0..STEPS_MAX {
            self.exchange(core, *now);
            if self.clients.iter().all(|c| c.connected && c.channels == 2) {
                return self.take_keys();
            }
            *now += STEP;
        }
        panic!("not all clients connected");
    }

    /// One join, whose handshake is still to come.
    pub fn join(
        &mut self,
        core: &mut Core,
        now: Instant,
        stream: StreamKey,
        address: SocketAddr,
        role: Role,
    ) {
        let session = SessionId(self.clients.len() as u64 + 1);
        let (mut client, offer, pending) = Client::offer(now, session, address);
        self.offer_bytes = offer.len();
        let request = join_request(session, stream, &offer, role);
        let answer = self.meter.of(|| core.join(now, request)).expect("the join is accepted");
        let answer = SdpAnswer::from_sdp_string(&answer.sdp).unwrap();
        client.rtc.sdp_api().accept_answer(pending, answer).unwrap();
        self.by_address.insert(address, self.clients.len());
        self.clients.push(client);
    }

    /// Lets clients and core speak until neither has anything to say: checks of the path, mostly.
    /// To be called at least once per second.
    pub fn exchange(&mut self, core: &mut Core, now: Instant) {
        self.meter.of(|| core.timeout(now));
        for client in &mut self.clients {
            if client.timeout <= now {
                client.rtc.handle_input(Input::Timeout(now)).unwrap();
            }
            client.tell(core, now, self.server, &mut self.meter);
        }
        for _ in 0..64 {
            let mut quiet = true;
            // Media meant for the clients is not needed here.
            while core.poll_media(now, &mut self.batch) {}
            while let Some(output) = self.meter.of(|| core.poll_output()) {
                if let Output::Transmit { to, bytes, .. } = output {
                    quiet = false;
                    self.hear(core, now, to.addr, &bytes);
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// A client hears a datagram of the core's, and answers.
    pub fn hear(&mut self, core: &mut Core, now: Instant, to: SocketAddr, bytes: &[u8]) {
        let Some(client) = self.by_address.get(&to).and_then(|n| self.clients.get_mut(*n)) else {
            return;
        };
        if is_media(bytes) {
            return;
        }
        let receive = Receive::new(Protocol::Udp, self.server, to, bytes).unwrap();
        client.rtc.handle_input(Input::Receive(now, receive)).unwrap();
        client.tell(core, now, self.server, &mut self.meter);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// A client's session.
    #[must_use]
    pub fn session(&self, client: usize) -> SessionId {
        self.clients[client].session
    }

    /// Seals an RTCP packet of a client's.
    pub fn seal_rtcp(&mut self, client: usize, packet: &[u8], out: &mut Vec<u8>) {
        let sealer = self.clients[client].rtcp.as_mut().expect("the client is connected");
        sealer.protect(packet, out).unwrap();
    }

    fn take_keys(&mut self) {
        for client in &mut self.clients {
            if client.rtcp.is_none() {
                let keying: Keying = client.slot.take().expect("the handshake is over");
                client.rtcp = Some(RtcpSealer::derive(&keying).unwrap());
            }
        }
    }
}

impl Client {
    fn offer(
        now: Instant,
        session: SessionId,
        address: SocketAddr,
    ) -> (Self, String, SdpPendingOffer) {
        let slot = KeySlot::new(Decoy::Yes);
        let mut rtc = keys::with_slot(&slot, || {
            Rtc::builder()
                .set_crypto_provider(keys::crypto())
                .set_rtp_mode(true)
                .clear_codecs()
                .enable_h264(true)
                .set_extension(5, Extension::PlayoutDelay)
                .set_extension(6, Extension::AbsoluteCaptureTime)
                .build(now)
        });
        rtc.add_local_candidate(Candidate::host(address, "udp").unwrap());
        let (offer, pending) = offer(&mut rtc);
        let client = Self {
            session,
            address,
            rtc,
            slot,
            rtcp: None,
            connected: false,
            channels: 0,
            timeout: now,
        };
        (client, offer, pending)
    }

    /// Gives the core what the client has to say.
    fn tell(&mut self, core: &mut Core, now: Instant, server: SocketAddr, meter: &mut Meter) {
        loop {
            match self.rtc.poll_output().unwrap() {
                RtcOutput::Timeout(at) => {
                    self.timeout = at;
                    return;
                }
                RtcOutput::Transmit(t) if is_media(&t.contents) => {}
                RtcOutput::Transmit(t) => {
                    let from = Route::udp(self.address);
                    meter.of(|| core.datagram(now, from, server, &t.contents));
                }
                RtcOutput::Event(Event::Connected) => self.connected = true,
                RtcOutput::Event(Event::ChannelOpen(..)) => self.channels += 1,
                RtcOutput::Event(_) => {}
            }
        }
    }
}

/// RTP or RTCP, by its first byte (RFC 7983).
fn is_media(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| (128..=191).contains(first))
}

/// What the player offers: video and two data channels.
fn offer(rtc: &mut Rtc) -> (String, SdpPendingOffer) {
    let mut changes = rtc.sdp_api();
    changes.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
    changes.add_channel("input".into());
    changes.add_channel_with_config(ChannelConfig {
        label: "input-moves".into(),
        ordered: false,
        reliability: Reliability::MaxRetransmits { retransmits: 0 },
        ..Default::default()
    });
    let (offer, pending) = changes.apply().unwrap();
    (offer.to_sdp_string(), pending)
}

/// An offer as the player makes it, to be parsed.
#[must_use]
pub fn an_offer(now: Instant) -> String {
    Client::offer(now, SessionId(1), SocketAddr::from(([127, 0, 0, 1], 9))).1
}

/// A join with this offer.
#[must_use]
pub fn join_request(session: SessionId, stream: StreamKey, offer: &str, role: Role) -> JoinRequest {
    JoinRequest {
        id: session,
        stream,
        offer: parse_offer(offer).unwrap(),
        viewer: "viewer".into(),
        role,
        max_session: None,
        user_agent: None,
    }
}

/// A stream of 60 frames per second whose frames have these numbers of packets, in turns; a
/// keyframe every two seconds, no larger than the others.
#[derive(Debug)]
pub struct Frames {
    packets: &'static [usize],
    payload: Arc<[u8]>,
    params: Arc<SpsFacts>,
    index: u64,
}

impl Frames {
    /// Time between two frames.
    pub const INTERVAL: Duration = Duration::from_nanos(16_666_667);
    const PER_GROUP: u64 = 120;

    /// Frames of `payload_bytes` per packet.
    #[must_use]
    pub fn new(packets: &'static [usize], payload_bytes: usize) -> Self {
        let mut payload = vec![0xaa; payload_bytes];
        payload[0] = 0x41;
        let params = SpsFacts {
            width: 720,
            height: 1280,
            profile_idc: 66,
            constraint_flags: 0xc0,
            level_idc: 31,
            max_num_reorder_frames: Some(0),
        };
        Self { packets, payload: payload.into(), params: Arc::new(params), index: 0 }
    }

    /// The next frame.
    pub fn next(&mut self, now: Instant) -> Arc<Frame> {
        let index = self.index;
        self.index += 1;
        let key = index.is_multiple_of(Self::PER_GROUP);
        let turn = usize::try_from(index).unwrap() % self.packets.len();
        Arc::new(Frame {
            epoch: 1,
            arrived: now,
            index,
            rtp_time: u32::try_from(index * 1_500 % (1 << 32)).unwrap(),
            capture_unix_us: Some(1_700_000_000_000_000 + index * 16_667),
            key,
            discardable: false,
            payloads: vec![Arc::clone(&self.payload); self.packets[turn]],
            params: key.then(|| Arc::clone(&self.params)),
        })
    }
}
