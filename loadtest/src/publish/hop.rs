//! One QUIC connection to a router: Hello and Welcome, publishes, pictures as streams, what the
//! router says back. Not its dialling again, which the caller does. Invariant: a picture's stream
//! is written whole or reset.

use std::{
    any::Any,
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use fanlight_ops::{
    pki::{self, NodeIdentity, PkiError, SERVER_NAME},
    process,
};
use fanlight_proto::node::v1::{HopHello, HopMessage, HopPong, Publish, hop_message::Body};
use fanlight_wire::{
    roq::{
        ALPN_FANLIGHT, ControlFramer, FlowId, Slot, error_code, write_control_frame, write_packet,
        write_stream_header,
    },
    rtp::{
        HOP_ABS_CAPTURE_TIME_ID, HOP_H264_PAYLOAD_TYPE, RtpBuilder, RtpTime, SeqNo, Ssrc,
        ntp_from_unix_us,
    },
};
use parking_lot::Mutex;
use prost::Message as _;
use quinn::{
    ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig,
    VarInt,
    congestion::{Controller, ControllerFactory},
    crypto::rustls::QuicClientConfig,
};
use quinn_proto::RttEstimator;
use tokio::sync::mpsc;

/// From dialling to Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes in flight. Fixed: this is a load, not a guest on somebody's network.
const WINDOW_BYTES: u64 = 8 << 20;
/// Longest wait for room to write one picture.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the hop cannot be used. All but [`HopError::Pki`] may pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HopError {
    /// Our certificate cannot be used.
    #[error("the hop's TLS cannot be set up: {0}")]
    Pki(#[from] PkiError),
    /// No socket, or no connection.
    #[error("router {address} cannot be reached: {why}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// The router did not keep to the protocol, or the connection ended.
    #[error("the hop to {address} ended: {why}")]
    Ended {
        /// Where.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// The router does not take the publish.
    #[error("the publish was refused: {reason}")]
    Refused {
        /// The API's word.
        reason: String,
        /// Zero: never.
        retry_after_ms: u32,
    },
}

/// A connection that was welcomed. Dropping it closes it.
#[derive(Debug)]
pub struct Hop {
    connection: Connection,
    address: SocketAddr,
    control: mpsc::Sender<Body>,
    slots: Arc<Mutex<HashMap<u32, mpsc::Sender<Body>>>>,
}

impl Hop {
    /// Dials, says Hello, waits for Welcome.
    ///
    /// # Errors
    /// Anything that keeps the router from welcoming in five seconds.
    pub async fn connect(
        identity: &NodeIdentity,
        incarnation: u64,
        address: SocketAddr,
    ) -> Result<Self, HopError> {
        let tls = pki::client_config_mtls(identity, &[ALPN_FANLIGHT])?;
        let failed = |why: String| HopError::Connect { address, why };
        let greeting = async {
            let connection = dial(tls, address).await?;
            let (send, recv) = connection.open_bi().await.map_err(|e| failed(e.to_string()))?;
            let node = identity.node().resource_name();
            let hello = Body::Hello(HopHello { version: 1, node, incarnation });
            let control = begin(send, hello).await.map_err(|e| failed(e.to_string()))?;
            let mut reader = Reader { recv, framer: ControlFramer::new() };
            match reader.next().await.map_err(failed)? {
                Body::Welcome(_) => Ok((connection, control, reader)),
                other => Err(failed(format!("{other:?} in place of Welcome"))),
            }
        };
        let (connection, control, reader) = tokio::time::timeout(WELCOME_TIMEOUT, greeting)
            .await
            .map_err(|_| failed("no welcome in time".to_owned()))??;
        let slots = Arc::new(Mutex::default());
        tokio::spawn(read(reader, Arc::clone(&slots), control.clone()));
        Ok(Self { connection, address, control, slots })
    }

    /// Publishes in a slot; gives what the router says about it from then on.
    ///
    /// # Errors
    /// [`HopError::Refused`], or the end of the connection.
    pub async fn publish(&self, publish: Publish) -> Result<mpsc::Receiver<Body>, HopError> {
        let (sender, mut events) = mpsc::channel(1_024);
        self.slots.lock().insert(publish.slot, sender);
        let ended = || HopError::Ended { address: self.address, why: self.reason() };
        self.control.send(Body::Publish(publish)).await.map_err(|_| ended())?;
        loop {
            match events.recv().await.ok_or_else(ended)? {
                Body::PublishOk(_) => return Ok(events),
                Body::PublishReject(reject) => {
                    return Err(HopError::Refused {
                        reason: reject.reason,
                        retry_after_ms: reject.retry_after_ms,
                    });
                }
                _ => {}
            }
        }
    }

    /// Writes one picture's stream.
    ///
    /// # Errors
    /// The connection is over, or takes nothing for a second.
    pub async fn picture(&self, bytes: &[u8]) -> Result<(), HopError> {
        let ended = |why: String| HopError::Ended { address: self.address, why };
        let mut stream = self.connection.open_uni().await.map_err(|e| ended(e.to_string()))?;
        match tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(bytes)).await {
            Ok(Ok(())) => {
                let _ = stream.finish();
                Ok(())
            }
            // The router does not want this picture.
            Ok(Err(quinn::WriteError::Stopped(_))) => Ok(()),
            Ok(Err(e)) => Err(ended(e.to_string())),
            Err(_) => {
                // Dropping it would finish it, and half a picture would look whole.
                let _ = stream.reset(code(error_code::FRAME_CANCELLED));
                Err(ended("it takes nothing any more".to_owned()))
            }
        }
    }

    fn reason(&self) -> String {
        self.connection.close_reason().map_or_else(|| "unknown".to_owned(), |e| e.to_string())
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        self.connection.close(code(error_code::NO_ERROR), b"done");
    }
}

fn code(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

async fn dial(tls: rustls::ClientConfig, address: SocketAddr) -> Result<Connection, HopError> {
    let failed = |why: String| HopError::Connect { address, why };
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| failed(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .congestion_controller_factory(Arc::new(FixedWindow))
        .packet_threshold(16)
        .send_fairness(false)
        .send_window(WINDOW_BYTES)
        .initial_rtt(Duration::from_millis(50))
        .keep_alive_interval(Some(Duration::from_millis(200)))
        .max_idle_timeout(IdleTimeout::try_from(Duration::from_secs(10)).ok());
    config.transport_config(Arc::new(transport));
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let mut endpoint = Endpoint::client(any).map_err(|e| failed(e.to_string()))?;
    endpoint.set_default_client_config(config);
    let connecting = endpoint.connect(address, SERVER_NAME).map_err(|e| failed(e.to_string()))?;
    connecting.await.map_err(|e| failed(e.to_string()))
}

/// Sends as much as there is, whatever is lost: losing packets is the relay's trade here, and what
/// the router makes of the rest is what is measured.
#[derive(Clone, Copy, Debug)]
struct FixedWindow;

impl ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for FixedWindow {
    fn on_ack(&mut self, _: Instant, _: Instant, _: u64, _: bool, _: &RttEstimator) {}
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}
    fn on_mtu_update(&mut self, _: u16) {}
    fn window(&self) -> u64 {
        WINDOW_BYTES
    }
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }
    fn initial_window(&self) -> u64 {
        WINDOW_BYTES
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

async fn begin(mut send: SendStream, hello: Body) -> Result<mpsc::Sender<Body>, quinn::WriteError> {
    let _ = send.set_priority(30);
    let mut bytes = Vec::new();
    write_stream_header(FlowId::CONTROL, &mut bytes);
    frame(hello, &mut bytes);
    send.write_all(&bytes).await?;
    let (sender, mut queue) = mpsc::channel::<Body>(256);
    tokio::spawn(async move {
        while let Some(body) = queue.recv().await {
            let mut bytes = Vec::new();
            frame(body, &mut bytes);
            if send.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    Ok(sender)
}

fn frame(body: Body, out: &mut Vec<u8>) {
    let message = HopMessage { body: Some(body) };
    if write_control_frame(&message.encode_to_vec(), out).is_err() {
        tracing::error!("a control message is larger than the wire allows");
    }
}

struct Reader {
    recv: RecvStream,
    framer: ControlFramer,
}

impl Reader {
    async fn next(&mut self) -> Result<Body, String> {
        loop {
            if let Some(frame) = self.framer.next().map_err(|e| e.to_string())? {
                let message = HopMessage::decode(frame.as_slice()).map_err(|e| e.to_string())?;
                match message.body {
                    Some(body) => return Ok(body),
                    None => continue,
                }
            }
            match self.recv.read_chunk(64 << 10, true).await {
                Ok(Some(chunk)) => self.framer.push(&chunk.bytes),
                Ok(None) => return Err("it ended the control stream".to_owned()),
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}

/// Hands each message to its slot until the connection ends; then the slots see their end.
async fn read(
    mut reader: Reader,
    slots: Arc<Mutex<HashMap<u32, mpsc::Sender<Body>>>>,
    control: mpsc::Sender<Body>,
) {
    loop {
        let body = match reader.next().await {
            Ok(body) => body,
            Err(why) => {
                tracing::debug!(why, "the hop ended");
                break;
            }
        };
        let slot = match &body {
            Body::PublishOk(m) => m.slot,
            Body::PublishReject(m) => m.slot,
            Body::Unpublish(m) => m.slot,
            Body::KeyframeRequest(m) => m.slot,
            Body::DeviceInput(m) => m.slot,
            Body::Ping(m) => {
                let received_us = process::now_unix_us();
                let pong = HopPong { sent_us: m.sent_us, received_us };
                let _ = control.try_send(Body::Pong(pong));
                continue;
            }
            _ => continue,
        };
        let sender = slots.lock().get(&slot).cloned();
        if let Some(sender) = sender
            && sender.send(body).await.is_err()
        {
            slots.lock().remove(&slot);
        }
    }
    slots.lock().clear();
}

/// Turns access units of one publish into the bytes of their streams.
#[derive(Debug)]
pub(super) struct Framing {
    slot: Slot,
    ssrc: Ssrc,
    seq: SeqNo,
}

impl Framing {
    pub(super) fn new(slot: Slot, ssrc: u32) -> Self {
        Self { slot, ssrc: Ssrc(ssrc), seq: SeqNo(rand::random()) }
    }

    /// `flow id | (length | RTP packet)*`
    pub(super) fn encode(&mut self, payloads: &[Vec<u8>], rtp_time: u32, out: &mut Vec<u8>) {
        out.clear();
        write_stream_header(FlowId::video(self.slot), out);
        let capture = ntp_from_unix_us(process::now_unix_us());
        let last = payloads.len().saturating_sub(1);
        let mut packet = Vec::with_capacity(1_200);
        for (i, payload) in payloads.iter().enumerate() {
            let plain =
                RtpBuilder::new(HOP_H264_PAYLOAD_TYPE, self.seq, RtpTime(rtp_time), self.ssrc)
                    .marker(i == last);
            let header = match plain.clone().abs_capture_time(HOP_ABS_CAPTURE_TIME_ID, capture) {
                Ok(stamped) if i == 0 => stamped,
                _ => plain,
            };
            packet.clear();
            header.write(payload, &mut packet);
            write_packet(&packet, out);
            self.seq = self.seq.next();
        }
    }
}
