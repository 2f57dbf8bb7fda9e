//! A router that keeps what it is sent and answers what it must. Invariant: every frame it keeps was
//! whole, in RoQ framing, with valid RTP, and unpacked to one access unit.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use fanlight_ops::pki::{self, NodeIdentity};
use fanlight_proto::node::v1::{
    DeviceInput, HopMessage, HopStats, HopWelcome, KeyframeRequest, Publish, PublishOk,
    PublishReject, hop_message::Body,
};
use fanlight_wire::{
    h264::AccessUnitInfo,
    input::{InputBody, InputMessage},
    pack::Depacketizer,
    roq::{ALPN_FANLIGHT, ControlFramer, FlowKind, Limits, StreamReader, write_control_frame},
    rtp::{HOP_ABS_CAPTURE_TIME_ID, RtpView, unix_us_from_ntp},
};
use parking_lot::Mutex;
use prost::Message as _;
use quinn::{
    Connection, Endpoint, ServerConfig, TransportConfig, VarInt, crypto::rustls::QuicServerConfig,
};
use tokio::sync::mpsc;

/// One frame as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub stream: String,
    /// Which publish of the stream, from 0.
    pub publish: usize,
    pub first_seq: u16,
    pub packets: usize,
    pub rtp_time: u32,
    pub capture_unix_us: u64,
    pub info: AccessUnitInfo,
    pub access_unit: Vec<u8>,
    pub at: Instant,
}

#[derive(Default)]
pub struct Seen {
    pub frames: Vec<Received>,
    pub publishes: Vec<Publish>,
    pub unpublished: Vec<(String, String)>,
    pub outputs: Vec<Vec<u8>>,
    pub stats: HashMap<String, HopStats>,
    pub broken: Vec<String>,
    /// Slot to stream and publish number, on the newest connection.
    slots: HashMap<u32, (String, usize)>,
    control: Option<mpsc::UnboundedSender<Body>>,
    pub connections: usize,
    pub reject_first: u32,
}

pub struct TestRouter {
    endpoint: Endpoint,
    pub addr: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    tasks: tokio::task::JoinSet<()>,
}

fn server_config(identity: &NodeIdentity) -> ServerConfig {
    let tls = pki::server_config_mtls(identity, &[ALPN_FANLIGHT]).unwrap();
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(4096))
        .max_idle_timeout(Some(Duration::from_millis(750).try_into().unwrap()));
    config.transport_config(Arc::new(transport));
    config
}

impl TestRouter {
    pub fn start(identity: &NodeIdentity) -> Self {
        let addr = "127.0.0.1:0".parse().unwrap();
        Self::on(Endpoint::server(server_config(identity), addr).unwrap())
    }

    /// On the port of one that was killed, as soon as the system has freed it.
    pub async fn start_on(identity: &NodeIdentity, addr: SocketAddr) -> Self {
        let mut endpoint = None;
        super::until("the port", || {
            endpoint = Endpoint::server(server_config(identity), addr).ok();
            endpoint.is_some()
        })
        .await;
        Self::on(endpoint.unwrap())
    }

    fn on(endpoint: Endpoint) -> Self {
        let addr = endpoint.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut tasks = tokio::task::JoinSet::new();
        let (accepting, state) = (endpoint.clone(), Arc::clone(&seen));
        tasks.spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                if let Ok(connection) = incoming.await {
                    tokio::spawn(serve(connection, Arc::clone(&state)));
                }
            }
        });
        Self { endpoint, addr, seen, tasks }
    }

    /// Dies: the port is free again when this returns.
    pub async fn kill(mut self) -> SocketAddr {
        self.endpoint.close(VarInt::from_u32(1), b"killed");
        let _ = tokio::time::timeout(Duration::from_secs(2), self.endpoint.wait_idle()).await;
        self.tasks.shutdown().await;
        self.addr
    }

    pub fn frames(&self, device: &str) -> Vec<Received> {
        let stream = format!("streams/{device}");
        let mut frames: Vec<Received> =
            self.seen.lock().frames.iter().filter(|f| f.stream == stream).cloned().collect();
        // Streams overtake each other; the RTP clock tells their order.
        frames.sort_by_key(|f| (f.publish, f.rtp_time.wrapping_sub(first_time(self, f.publish))));
        frames
    }

    fn slot(&self, device: &str) -> Option<u32> {
        let stream = format!("streams/{device}");
        let seen = self.seen.lock();
        seen.slots.iter().filter(|(_, s)| s.0 == stream).max_by_key(|(_, s)| s.1).map(|(n, _)| *n)
    }

    pub fn send(&self, body: Body) {
        let control = self.seen.lock().control.clone();
        control.expect("a worker is connected").send(body).unwrap();
    }

    pub fn input(&self, device: &str, viewer: u64, body: InputBody) {
        self.input_seq(device, viewer, 0, body);
    }

    pub fn input_seq(&self, device: &str, viewer: u64, seq: u32, body: InputBody) {
        let mut message = Vec::new();
        InputMessage { seq, lease_epoch: 0, body }.encode(&mut message).unwrap();
        let slot = self.slot(device).expect("the device is published");
        self.send(Body::DeviceInput(DeviceInput { slot, message, viewer }));
    }

    pub fn ask_keyframe(&self, device: &str) {
        let slot = self.slot(device).expect("the device is published");
        self.send(Body::KeyframeRequest(KeyframeRequest { slot, reason: "test".into() }));
    }
}

fn first_time(router: &TestRouter, publish: usize) -> u32 {
    let seen = router.seen.lock();
    seen.frames
        .iter()
        .find(|f| f.publish == publish)
        .map_or(0, |f| f.rtp_time)
        .wrapping_sub(1 << 30)
}

async fn serve(connection: Connection, seen: Arc<Mutex<Seen>>) {
    let Ok((mut send, mut recv)) = connection.accept_bi().await else { return };
    let (control, mut queue) = mpsc::unbounded_channel::<Body>();
    tokio::spawn(async move {
        while let Some(body) = queue.recv().await {
            let mut bytes = Vec::new();
            write_control_frame(&HopMessage { body: Some(body) }.encode_to_vec(), &mut bytes)
                .unwrap();
            if send.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    {
        let mut seen = seen.lock();
        seen.connections += 1;
        seen.slots.clear();
        seen.control = Some(control.clone());
    }
    let (uni, state) = (connection.clone(), Arc::clone(&seen));
    tokio::spawn(async move {
        while let Ok(stream) = uni.accept_uni().await {
            tokio::spawn(frame(stream, Arc::clone(&state)));
        }
    });
    let mut framer = ControlFramer::expecting_header();
    while let Ok(Some(chunk)) = recv.read_chunk(65_536, true).await {
        framer.push(&chunk.bytes);
        while let Some(bytes) = framer.next().unwrap() {
            let message = HopMessage::decode(bytes.as_slice()).unwrap();
            for answer in take(message, &seen) {
                let _ = control.send(answer);
            }
        }
    }
}

fn take(message: HopMessage, seen: &Mutex<Seen>) -> Vec<Body> {
    let mut seen = seen.lock();
    match message.body.unwrap() {
        Body::Hello(hello) => {
            assert_eq!(hello.node, "nodes/worker-1");
            vec![Body::Welcome(HopWelcome {
                version: 1,
                node: "nodes/router-1".into(),
                incarnation: 1,
                max_slots: 64,
            })]
        }
        Body::Publish(publish) => {
            let slot = publish.slot;
            if seen.reject_first > 0 {
                seen.reject_first -= 1;
                return vec![Body::PublishReject(PublishReject {
                    slot,
                    reason: "STREAM_NOT_FOUND".into(),
                    message: "not yet".into(),
                    retry_after_ms: 50,
                })];
            }
            let number = seen.publishes.iter().filter(|p| p.stream == publish.stream).count();
            seen.slots.insert(slot, (publish.stream.clone(), number));
            seen.publishes.push(publish);
            vec![Body::PublishOk(PublishOk { slot })]
        }
        Body::Unpublish(m) => {
            let stream = seen.slots.remove(&m.slot).map(|s| s.0).unwrap_or_default();
            seen.unpublished.push((stream, m.reason));
            Vec::new()
        }
        Body::DeviceOutput(m) => {
            seen.outputs.push(m.message);
            Vec::new()
        }
        Body::Stats(m) => {
            if let Some((stream, _)) = seen.slots.get(&m.slot).cloned() {
                seen.stats.insert(stream, m);
            }
            Vec::new()
        }
        other => {
            seen.broken.push(format!("unexpected {other:?}"));
            Vec::new()
        }
    }
}

async fn frame(mut stream: quinn::RecvStream, seen: Arc<Mutex<Seen>>) {
    let mut reader = StreamReader::new(Limits::default());
    let mut packets = Vec::new();
    loop {
        match stream.read_chunk(65_536, true).await {
            Ok(Some(chunk)) => reader.push(&chunk.bytes),
            Ok(None) => break,
            Err(_) => return,
        }
        while let Some(packet) = reader.next_packet().unwrap() {
            packets.push(packet);
        }
    }
    reader.finish().unwrap();
    let FlowKind::Video(slot) = reader.flow().unwrap().kind() else { panic!("not a video flow") };
    let result = unpack(&packets);
    let mut seen = seen.lock();
    let Some((name, publish)) = seen.slots.get(&slot.get()).cloned() else { return };
    match result {
        Ok(received) => seen.frames.push(Received { stream: name, publish, ..received }),
        Err(what) => seen.broken.push(what),
    }
}

fn unpack(packets: &[bytes::Bytes]) -> Result<Received, String> {
    let mut depacketizer = Depacketizer::new();
    let mut unit = None;
    let views: Vec<RtpView<'_>> = packets
        .iter()
        .map(|p| RtpView::parse(p).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()?;
    let first = views.first().ok_or("a frame without packets")?;
    let (first_seq, rtp_time) = (first.seq().0, first.timestamp().0);
    let capture = first
        .extensions()
        .find(|e| e.0 == HOP_ABS_CAPTURE_TIME_ID)
        .ok_or("no capture time on the first packet")?;
    let capture: [u8; 8] = capture.1.try_into().map_err(|_| "capture time of another size")?;
    for (i, view) in views.iter().enumerate() {
        let seq = first_seq.wrapping_add(u16::try_from(i).unwrap());
        if view.seq().0 != seq || view.timestamp().0 != rtp_time {
            return Err(format!("packet {i} does not follow"));
        }
        if view.marker() != (i + 1 == views.len()) {
            return Err(format!("marker of packet {i} is wrong"));
        }
        unit = depacketizer.push(view.payload(), view.marker()).map_err(|e| e.to_string())?;
    }
    let access_unit = unit.ok_or("no access unit")?;
    let info = AccessUnitInfo::inspect(&access_unit).map_err(|e| e.to_string())?;
    if info.key && !(info.has_sps && info.has_pps) {
        return Err("a keyframe without parameter sets".to_owned());
    }
    Ok(Received {
        stream: String::new(),
        publish: 0,
        first_seq,
        packets: views.len(),
        rtp_time,
        capture_unix_us: unix_us_from_ntp(u64::from_be_bytes(capture)),
        info,
        access_unit,
        at: Instant::now(),
    })
}
