//! A viewer made of str0m and a UDP socket: WHEP POST, ICE, DTLS, video by RTP, a data channel. It
//! depacketises with the wire crate and gives whole access units.

use std::{net::SocketAddr, time::Instant};

use fanlight_wire::pack::Depacketizer;
use str0m::{
    Candidate, Event, Input, Output, Rtc,
    change::{SdpAnswer, SdpPendingOffer},
    channel::ChannelId,
    media::{Direction, KeyframeRequestKind, MediaKind, Mid},
    net::{Protocol, Receive},
};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle};

use super::{World, bridge::Bridge, soon};

/// What a viewer saw.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Connected,
    /// A whole access unit, and whether a hole was seen in the sequence numbers before it.
    Frame {
        au: Vec<u8>,
        time: u32,
        gap: bool,
    },
    ChannelOpen(String),
    ChannelData(Vec<u8>),
    Closed,
}

enum Order {
    Send(Vec<u8>),
    Pli,
    Close,
}

/// An offer that waits for its answer.
pub struct Offered {
    rtc: Rtc,
    pending: SdpPendingOffer,
    socket: UdpSocket,
    mid: Mid,
    input: ChannelId,
    pub sdp: String,
}

/// A running viewer.
pub struct Viewer {
    orders: mpsc::UnboundedSender<Order>,
    seen: mpsc::UnboundedReceiver<Seen>,
    task: JoinHandle<()>,
    pub session_url: String,
}

/// Makes an offer for video and the `input` channel.
pub async fn offer() -> Offered {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut rtc = Rtc::builder().set_rtp_mode(true).build(Instant::now());
    let local = socket.local_addr().unwrap();
    rtc.add_local_candidate(Candidate::host(local, "udp").unwrap());
    let mut api = rtc.sdp_api();
    let mid = api.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
    let input = api.add_channel("input".into());
    let (offer, pending) = api.apply().unwrap();
    Offered { rtc, pending, socket, mid, input, sdp: offer.to_sdp_string() }
}

impl Offered {
    /// Takes the answer and starts.
    pub fn start(self, answer: &str, session_url: String) -> Viewer {
        let Self { mut rtc, pending, socket, mid, input, .. } = self;
        let answer = SdpAnswer::from_sdp_string(answer).unwrap();
        rtc.sdp_api().accept_answer(pending, answer).unwrap();
        let (orders, order_queue) = mpsc::unbounded_channel();
        let (tell, seen) = mpsc::unbounded_channel();
        let run = Run {
            rtc,
            socket,
            mid,
            input,
            tell,
            depacketizer: Depacketizer::new(),
            last_seq: None,
            gap: false,
        };
        let task = tokio::spawn(run.run(order_queue));
        Viewer { orders, seen, task, session_url }
    }
}

impl Viewer {
    /// Joins over WHEP and starts; panics when the join is refused.
    pub async fn join(world: &World, stream: &str, token: &str) -> Self {
        let offered = offer().await;
        let response = world.post(stream, token, offered.sdp.clone()).send().await.unwrap();
        assert_eq!(response.status(), 201, "{:?}", response.text().await);
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let answer = response.text().await.unwrap();
        offered.start(&answer, world.url(&location))
    }

    /// Joins over WHEP, but reaches the router by TCP alone.
    pub async fn join_by_tcp(world: &World, stream: &str, token: &str) -> (Self, Bridge) {
        let offered = offer().await;
        let response = world.post(stream, token, offered.sdp.clone()).send().await.unwrap();
        assert_eq!(response.status(), 201, "{:?}", response.text().await);
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let (bridge, answer) = Bridge::connect(&response.text().await.unwrap()).await;
        (offered.start(&answer, world.url(&location)), bridge)
    }

    pub async fn next(&mut self) -> Seen {
        soon("something seen", self.seen.recv()).await.expect("the viewer runs")
    }

    /// The next access unit, other things skipped.
    pub async fn frame(&mut self) -> (Vec<u8>, u32, bool) {
        loop {
            match self.next().await {
                Seen::Frame { au, time, gap } => return (au, time, gap),
                Seen::Closed => panic!("closed while waiting for a frame"),
                _ => {}
            }
        }
    }

    pub async fn until(&mut self, what: &Seen) {
        while self.next().await != *what {}
    }

    /// The next channel message, other things skipped.
    pub async fn message(&mut self) -> Vec<u8> {
        loop {
            match self.next().await {
                Seen::ChannelData(data) => return data,
                Seen::Closed => panic!("closed while waiting for a message"),
                _ => {}
            }
        }
    }

    /// Sends on the `input` channel.
    pub fn send(&self, message: Vec<u8>) {
        self.orders.send(Order::Send(message)).unwrap();
    }

    pub fn pli(&self) {
        self.orders.send(Order::Pli).unwrap();
    }

    /// Closes DTLS properly and ends.
    pub async fn close(self) {
        let _ = self.orders.send(Order::Close);
        soon("the viewer's end", self.task).await.unwrap();
    }

    /// Stops at once, without a word to the router.
    pub fn kill(self) {
        self.task.abort();
    }
}

struct Run {
    rtc: Rtc,
    socket: UdpSocket,
    mid: Mid,
    input: ChannelId,
    tell: mpsc::UnboundedSender<Seen>,
    depacketizer: Depacketizer,
    last_seq: Option<u64>,
    gap: bool,
}

impl Run {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let local = self.socket.local_addr().unwrap();
        let mut buffer = vec![0; 2_048];
        loop {
            let Some(until) = self.drain().await else { break };
            tokio::select! {
                got = self.socket.recv_from(&mut buffer) => {
                    let (len, from) = got.unwrap();
                    self.receive(from, local, &buffer[..len]);
                }
                order = orders.recv() => match order {
                    Some(order) => self.order(order),
                    None => break,
                },
                () = tokio::time::sleep_until(until.into()) => {
                    if self.rtc.handle_input(Input::Timeout(Instant::now())).is_err() {
                        break;
                    }
                }
            }
        }
        let _ = self.tell.send(Seen::Closed);
    }

    fn receive(&mut self, source: SocketAddr, destination: SocketAddr, bytes: &[u8]) {
        let Ok(contents) = bytes.try_into() else { return };
        let receive = Receive { proto: Protocol::Udp, source, destination, contents };
        if self.rtc.handle_input(Input::Receive(Instant::now(), receive)).is_err() {
            self.rtc.disconnect();
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Send(message) => {
                let mut channel = self.rtc.channel(self.input).expect("the channel is open");
                assert!(channel.write(true, &message).unwrap());
            }
            Order::Pli => {
                let mut api = self.rtc.direct_api();
                let stream = api.stream_rx_by_mid(self.mid, None).expect("video was received");
                stream.request_keyframe(KeyframeRequestKind::Pli);
            }
            Order::Close => self.rtc.close().unwrap(),
        }
    }

    /// None: the connection is over.
    async fn drain(&mut self) -> Option<Instant> {
        loop {
            // After the router has closed, str0m fails instead of ending.
            match self.rtc.poll_output().ok()? {
                Output::Timeout(at) => return self.rtc.is_alive().then_some(at),
                Output::Transmit(send) => {
                    let _ = self.socket.send_to(&send.contents, send.destination).await;
                }
                Output::Event(event) => {
                    if let Some(seen) = self.event(event) {
                        let end = seen == Seen::Closed;
                        let _ = self.tell.send(seen);
                        if end {
                            return None;
                        }
                    }
                }
            }
        }
    }

    fn event(&mut self, event: Event) -> Option<Seen> {
        match event {
            Event::Connected => Some(Seen::Connected),
            Event::Closed => Some(Seen::Closed),
            Event::ChannelOpen(_, label) => Some(Seen::ChannelOpen(label)),
            Event::ChannelData(data) => Some(Seen::ChannelData(data.data)),
            Event::RtpPacket(packet) => {
                let seq = *packet.seq_no;
                self.gap |= self.last_seq.is_some_and(|last| seq != last + 1);
                self.last_seq = Some(seq);
                let marker = packet.header.marker;
                let au = self.depacketizer.push(&packet.payload, marker).unwrap()?;
                let gap = std::mem::take(&mut self.gap);
                Some(Seen::Frame { au, time: packet.header.timestamp, gap })
            }
            _ => None,
        }
    }
}
