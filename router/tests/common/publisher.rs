//! An ingest worker's side of the hop, as small as it can be: quinn, control frames, one stream
//! per frame. Written from WIRE.md, not from the router.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fanlight_ops::pki::{self, NodeIdentity, SERVER_NAME};
use fanlight_proto::node::v1::{self as pb, hop_message::Body};
use fanlight_wire::{
    pack::Packetizer,
    roq::{
        ALPN_FANLIGHT, ControlFramer, FlowId, Slot, write_control_frame, write_packet,
        write_stream_header,
    },
    rtp::{
        HOP_ABS_CAPTURE_TIME_ID, HOP_H264_PAYLOAD_TYPE, RtpBuilder, RtpTime, SeqNo, Ssrc,
        ntp_from_unix_us,
    },
};
use prost::Message as _;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt,
    crypto::rustls::QuicClientConfig,
};

use super::{TOKEN, World, node_identity, soon};

/// TLS with the worker's certificate.
pub fn client_tls(identity: &NodeIdentity, alpn: &[u8]) -> rustls::ClientConfig {
    pki::client_config_mtls(identity, &[alpn]).unwrap()
}

/// Dials; the handshake may fail.
pub async fn dial(
    tls: rustls::ClientConfig,
    to: SocketAddr,
) -> Result<Connection, ConnectionError> {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(200)));
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    soon("handshake", endpoint.connect(to, SERVER_NAME).unwrap()).await
}

/// A connection that can say things.
pub struct Publisher {
    pub conn: Connection,
    pub send: SendStream,
    recv: RecvStream,
    framer: ControlFramer,
    packetizer: Packetizer,
    seq: u16,
}

impl Publisher {
    /// Dials as `node`, says Hello, takes Welcome.
    pub async fn connect(world: &World, node: &str) -> Self {
        let mut this = Self::dial(world, node).await;
        this.tell(hello(node)).await;
        match this.next().await {
            Body::Welcome(welcome) => assert_eq!(welcome.node, "nodes/r1"),
            other => panic!("instead of Welcome: {other:?}"),
        }
        this
    }

    /// Dials as `node` and opens the control stream, without Hello.
    pub async fn dial(world: &World, node: &str) -> Self {
        let tls = client_tls(&node_identity(&world.ca, node), ALPN_FANLIGHT);
        let conn = dial(tls, world.router.quic_addr()).await.unwrap();
        let (mut send, recv) = conn.open_bi().await.unwrap();
        let mut header = Vec::new();
        write_stream_header(FlowId::CONTROL, &mut header);
        send.write_all(&header).await.unwrap();
        Self {
            conn,
            send,
            recv,
            framer: ControlFramer::new(),
            packetizer: Packetizer::new(1_100),
            seq: 65_000,
        }
    }

    pub async fn tell(&mut self, body: Body) {
        let mut bytes = Vec::new();
        let message = pb::HopMessage { body: Some(body) };
        write_control_frame(&message.encode_to_vec(), &mut bytes).unwrap();
        self.send.write_all(&bytes).await.unwrap();
    }

    /// The next control message.
    pub async fn next(&mut self) -> Body {
        soon("control message", async {
            loop {
                if let Some(frame) = self.framer.next().unwrap() {
                    return pb::HopMessage::decode(frame.as_slice()).unwrap().body.unwrap();
                }
                let chunk = self.recv.read_chunk(4_096, true).await.unwrap().expect("still open");
                self.framer.push(&chunk.bytes);
            }
        })
        .await
    }

    /// Publishes and gives the router's answer.
    pub async fn publish(&mut self, slot: u32, stream: &str, epoch: u64, token: &[u8]) -> Body {
        self.tell(Body::Publish(publish(slot, stream, epoch, token))).await;
        self.next().await
    }

    /// Publishes with the right token and expects success.
    pub async fn published(&mut self, slot: u32, stream: &str, epoch: u64) {
        let answer = self.publish(slot, stream, epoch, TOKEN).await;
        assert_eq!(answer, Body::PublishOk(pb::PublishOk { slot }));
    }

    /// RTP packets of an access unit, in the hop's form.
    pub fn packets(&mut self, au: &[u8], time: u32) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        self.packetizer.packetize(au, &mut payloads).unwrap();
        let last = payloads.len() - 1;
        let mut packets = Vec::new();
        for (i, payload) in payloads.iter().enumerate() {
            let mut rtp =
                RtpBuilder::new(HOP_H264_PAYLOAD_TYPE, SeqNo(self.seq), RtpTime(time), Ssrc(7))
                    .marker(i == last);
            if i == 0 {
                let ntp = ntp_from_unix_us(fanlight_ops::process::now_unix_us());
                rtp = rtp.abs_capture_time(HOP_ABS_CAPTURE_TIME_ID, ntp).unwrap();
            }
            let mut packet = Vec::new();
            rtp.write(payload, &mut packet);
            packets.push(packet);
            self.seq = self.seq.wrapping_add(1);
        }
        packets
    }

    /// The bytes of a frame's stream.
    pub fn frame_bytes(&mut self, slot: u32, au: &[u8], time: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_stream_header(FlowId::video(Slot::new(slot).unwrap()), &mut bytes);
        for packet in self.packets(au, time) {
            write_packet(&packet, &mut bytes);
        }
        bytes
    }

    /// Sends a frame on a stream of its own.
    pub async fn send_frame(&mut self, slot: u32, au: &[u8], time: u32) {
        let bytes = self.frame_bytes(slot, au, time);
        self.send_raw(&bytes).await;
    }

    /// Sends bytes on a stream of its own, whatever they are.
    pub async fn send_raw(&self, bytes: &[u8]) {
        let mut stream = self.conn.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
    }

    /// The code and reason with which the router closes the connection.
    pub async fn closed(&self) -> (u64, String) {
        let error = soon("close", self.conn.closed()).await;
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                (close.error_code.into_inner(), reason)
            }
            other => panic!("closed by {other:?}"),
        }
    }

    /// Goes away without a word, as a killed process does not even do.
    pub fn vanish(self) {
        self.conn.close(VarInt::from_u32(0), b"");
    }
}

pub fn hello(node: &str) -> Body {
    Body::Hello(pb::HopHello { version: 1, node: format!("nodes/{node}"), incarnation: 1 })
}

pub fn publish(slot: u32, stream: &str, epoch: u64, token: &[u8]) -> pb::Publish {
    pb::Publish {
        slot,
        stream: format!("streams/{stream}"),
        epoch,
        push_token: token.to_vec(),
        codec: "H264".into(),
        payload_type: HOP_H264_PAYLOAD_TYPE.into(),
        ssrc: 7,
        clock_rate_hz: 90_000,
        width: 720,
        height: 1_280,
        max_fps: 30,
        bitrate_bps: 2_000_000,
    }
}

/// Stream `pixel` with epoch 5, published in slot 1 by worker `w1`, its first keyframe taken.
pub async fn live_stream(world: &World, gop: u32) -> Publisher {
    world.want("pixel", 5).await;
    let mut publisher = Publisher::connect(world, "w1").await;
    publisher.published(1, "pixel", 5).await;
    publisher.send_frame(1, &super::clip::frame(0, gop), 0).await;
    until_live(world, "pixel").await;
    publisher
}

/// Until the router answers joins of the stream with something other than 409.
pub async fn until_live(world: &World, stream: &str) {
    let token = world.token(stream, "probe");
    soon("live", async {
        loop {
            let probe = world.post(stream, &token, "not an offer").send().await.unwrap();
            match probe.status().as_u16() {
                409 => tokio::task::yield_now().await,
                400 => return,
                other => panic!("status {other}"),
            }
        }
    })
    .await;
}
