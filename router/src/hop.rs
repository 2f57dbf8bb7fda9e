//! One connection of an ingest worker: who it is, its control stream, its device slots, and one
//! reader per frame. Not the endpoint and not the order of frames. Invariants: nothing counts
//! before Hello and Welcome; a bad frame costs that frame alone, bad control bytes cost the
//! connection; when the connection ends, every publish of it ends.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use fanlight_ops::pki;
use fanlight_proto::{
    id::{NodeId, StreamId},
    node::v1::{self as pb, hop_message::Body},
    reason::Reason,
};
use fanlight_wire::roq::{
    ControlFramer, FlowId, FlowKind, Limits as RoqLimits, StreamReader, error_code,
    write_control_frame,
};
use parking_lot::Mutex;
use prost::Message as _;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    flow::{self, Budget, Charge, FLOW_QUEUE, FlowInput},
    frame::Assembler,
    metrics::NodeMetrics,
    stream::{Publisher, Refusal, Stream},
    streams::Streams,
};

/// Minor version of the hop's control messages that this router speaks.
pub(crate) const HOP_VERSION: u32 = 1;
/// Longest wait for the control stream and Hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Longest life of one frame's stream. Far above the order's own caps: it only frees memory.
const FRAME_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for the worker to have the last control messages.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Messages to the worker that may wait. At the bound they are dropped and counted: a worker that
/// does not read its control stream must not hold memory here.
const OUTBOX: usize = 512;
/// Malformed frames in a row after which the connection is closed.
const BAD_FRAMES_MAX: u32 = 64;
/// Largest RTP packet read.
const PACKET_BYTES_MAX: usize = 2_048;
/// Bytes taken from a stream at once.
const CHUNK_BYTES: usize = 64 << 10;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Hop {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) streams: Arc<Streams>,
    pub(crate) metrics: NodeMetrics,
    pub(crate) slots_max: u32,
    pub(crate) frame_bytes_max: usize,
    pub(crate) pending_bytes_max: usize,
    pub(crate) last_publish: AtomicU64,
}

/// Why a connection is closed by us: the code on the wire and a word for metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Close {
    code: u64,
    word: &'static str,
}

const fn close(code: u64, word: &'static str) -> Close {
    Close { code, word }
}

/// Serves a connection whose handshake is done, until it ends.
///
/// `going_away` makes it tell the worker to publish elsewhere; `end` closes it.
pub(crate) async fn serve(
    conn: Connection,
    hop: Arc<Hop>,
    going_away: CancellationToken,
    end: CancellationToken,
) {
    hop.metrics.count("fanlight_router_hop_connections_opened_total");
    let ended = match greet(&conn, &hop).await {
        Ok(link) => link.run(going_away, end).await,
        Err(close) => close,
    };
    let code = VarInt::from_u64(ended.code).unwrap_or(VarInt::from_u32(1));
    conn.close(code, ended.word.as_bytes());
    let name = "fanlight_router_hop_connections_closed_total";
    hop.metrics.count_reason(name, ended.word);
    tracing::info!(remote = %conn.remote_address(), reason = ended.word, "hop connection ended");
}

fn peer(conn: &Connection) -> Option<NodeId> {
    let certs = conn.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    pki::peer_node(certs.first()?)
}

/// Checks who dialled, and answers its Hello.
async fn greet(conn: &Connection, hop: &Arc<Hop>) -> Result<Link, Close> {
    let node = peer(conn).ok_or(close(error_code::AUTH_FAILED, "no_node_in_certificate"))?;
    let gone = close(error_code::NO_ERROR, "closed_by_peer");
    let late = close(error_code::EXPECTATION_UNMET, "no_hello");
    let deadline = Instant::now() + HELLO_DEADLINE;
    let (send, recv) = tokio::time::timeout_at(deadline, conn.accept_bi())
        .await
        .map_err(|_| late)?
        .map_err(|_| gone)?;
    let mut control = ControlReader { recv, framer: ControlFramer::expecting_header() };
    let first = tokio::time::timeout_at(deadline, control.next()).await.map_err(|_| late)??;
    let Some(Body::Hello(hello)) = first.ok_or(gone)?.body else {
        return Err(close(error_code::EXPECTATION_UNMET, "no_hello"));
    };
    if hello.version == 0 {
        return Err(close(error_code::VERSION, "version"));
    }
    if hello.node != node.resource_name() {
        return Err(close(error_code::AUTH_FAILED, "node_is_not_the_certificates"));
    }
    let (outbox, queue) = mpsc::channel(OUTBOX);
    let welcome = pb::HopWelcome {
        version: HOP_VERSION.min(hello.version),
        node: hop.node.resource_name(),
        incarnation: hop.incarnation,
        max_slots: hop.slots_max,
    };
    // The queue is new and empty, so there is room.
    let _ = outbox.try_send(pb::HopMessage { body: Some(Body::Welcome(welcome)) });
    tracing::info!(%node, remote = %conn.remote_address(), "hop connection up");
    let shared = Arc::new(LinkShared {
        conn: conn.clone(),
        hop: Arc::clone(hop),
        node,
        outbox,
        slots: Mutex::default(),
        budget: Budget::new(hop.pending_bytes_max),
        bad_frames: AtomicU32::new(0),
    });
    Ok(Link { shared, control, send, queue })
}

/// The control stream, one message at a time.
struct ControlReader {
    recv: RecvStream,
    framer: ControlFramer,
}

impl ControlReader {
    /// None: the stream or the connection ended. May be dropped between polls without loss.
    async fn next(&mut self) -> Result<Option<pb::HopMessage>, Close> {
        loop {
            let framed = self.framer.next();
            if let Some(frame) = framed.map_err(|e| close(e.code(), "bad_control_framing"))? {
                let decoded = pb::HopMessage::decode(frame.as_slice());
                let bad = |_| close(error_code::PACKET_ERROR, "bad_control_message");
                return decoded.map(Some).map_err(bad);
            }
            match self.recv.read_chunk(CHUNK_BYTES, true).await {
                Ok(Some(chunk)) => self.framer.push(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }
}

/// A connection that is up.
struct Link {
    shared: Arc<LinkShared>,
    control: ControlReader,
    send: SendStream,
    queue: mpsc::Receiver<pb::HopMessage>,
}

struct LinkShared {
    conn: Connection,
    hop: Arc<Hop>,
    node: NodeId,
    outbox: mpsc::Sender<pb::HopMessage>,
    slots: Mutex<HashMap<u32, SlotEntry>>,
    budget: Arc<Budget>,
    bad_frames: AtomicU32,
}

#[derive(Clone)]
struct SlotEntry {
    stream: Arc<Stream>,
    publish: u64,
    inputs: mpsc::Sender<FlowInput>,
    superseded: CancellationToken,
}

impl Link {
    async fn run(mut self, going_away: CancellationToken, end: CancellationToken) -> Close {
        let shared = Arc::clone(&self.shared);
        let _ = self.send.set_priority(30);
        let last = CancellationToken::new();
        let mut writer = tokio::spawn(write(self.send, self.queue, last.clone()));
        let mut frames = JoinSet::new();
        let mut flows = JoinSet::new();
        let mut told = false;
        let ended = loop {
            tokio::select! {
                () = going_away.cancelled(), if !told => {
                    told = true;
                    let reason = Reason::Draining.as_str().to_owned();
                    shared.tell(Body::GoAway(pb::GoAway { reason, deadline_ms: 0 }));
                }
                () = end.cancelled() => break close(error_code::GOAWAY_DONE, "going_away"),
                message = self.control.next() => match message {
                    Ok(Some(message)) => shared.message(message, &mut flows),
                    Ok(None) => break close(error_code::NO_ERROR, "closed_by_peer"),
                    Err(close) => break close,
                },
                stream = shared.conn.accept_uni() => match stream {
                    Ok(recv) => { frames.spawn(Arc::clone(&shared).read_frame(recv)); }
                    Err(_) => break close(error_code::NO_ERROR, "closed_by_peer"),
                },
                stream = shared.conn.accept_bi() => match stream {
                    // RTP rides on unidirectional streams only, and there is one control stream.
                    Ok(_) => break close(error_code::STREAM_CREATION_ERROR, "second_bidi_stream"),
                    Err(_) => break close(error_code::NO_ERROR, "closed_by_peer"),
                },
                Some(done) = frames.join_next(), if !frames.is_empty() => {
                    if matches!(done, Ok(Err(TooManyBad))) {
                        break close(error_code::PACKET_ERROR, "bad_frames");
                    }
                }
                Some(_) = flows.join_next(), if !flows.is_empty() => {}
            }
        };
        // Closing the inputs ends the flows, and each tells its stream.
        frames.shutdown().await;
        shared.slots.lock().clear();
        while flows.join_next().await.is_some() {}
        // What was said last (a GoAway, a refusal) gets a moment to arrive: closing discards it.
        last.cancel();
        if timeout(LAST_WORDS, &mut writer).await.is_err() {
            writer.abort();
        }
        ended
    }
}

/// Writes the control stream until the connection ends, or `last` is cancelled: then what waits is
/// still written, and the task ends when the worker has it.
async fn write(
    mut send: SendStream,
    mut queue: mpsc::Receiver<pb::HopMessage>,
    last: CancellationToken,
) {
    let mut bytes = Vec::new();
    loop {
        let message = tokio::select! {
            biased;
            message = queue.recv() => message,
            () = last.cancelled() => None,
        };
        let Some(message) = message else {
            if send.finish().is_ok() {
                let _ = send.stopped().await;
            }
            return;
        };
        bytes.clear();
        let mut more = Some(message);
        // What waits goes out in one write.
        while let Some(message) = more {
            if write_control_frame(&message.encode_to_vec(), &mut bytes).is_err() {
                tracing::error!("a control message is larger than the wire allows");
            }
            more = (bytes.len() < CHUNK_BYTES).then(|| queue.try_recv().ok()).flatten();
        }
        if send.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// A connection sent nothing but malformed frames.
#[derive(Debug)]
struct TooManyBad;

impl LinkShared {
    fn tell(&self, body: Body) {
        if self.outbox.try_send(pb::HopMessage { body: Some(body) }).is_err() {
            self.hop.metrics.count("fanlight_router_hop_outbox_dropped_total");
        }
    }

    fn message(&self, message: pb::HopMessage, flows: &mut JoinSet<()>) {
        match message.body {
            Some(Body::Publish(publish)) => self.publish(publish, flows),
            Some(Body::Unpublish(unpublish)) => {
                if let Some(entry) = self.slots.lock().remove(&unpublish.slot) {
                    entry.superseded.cancel();
                }
            }
            Some(Body::DeviceOutput(output)) => {
                let slot = self.slots.lock().get(&output.slot).cloned();
                if let Some(slot) = slot {
                    slot.stream.device_output(slot.publish, &output.message);
                }
            }
            Some(Body::Ping(ping)) => {
                let received_us = fanlight_ops::process::now_unix_us();
                self.tell(Body::Pong(pb::HopPong { sent_us: ping.sent_us, received_us }));
            }
            Some(Body::Stats(_) | Body::GoAway(_) | Body::Pong(_)) => {}
            // Of a later version, or out of place.
            _ => self.hop.metrics.count("fanlight_router_hop_messages_unknown_total"),
        }
    }

    fn publish(&self, publish: pb::Publish, flows: &mut JoinSet<()>) {
        let slot = publish.slot;
        match self.try_publish(&publish, flows) {
            Ok(()) => {
                self.hop.metrics.count("fanlight_router_publishes_opened_total");
                tracing::info!(node = %self.node, stream = %publish.stream, epoch = publish.epoch, slot, "published");
                self.tell(Body::PublishOk(pb::PublishOk { slot }));
            }
            Err(refusal) => {
                let word = refusal.reason.as_str();
                let name = "fanlight_router_publishes_refused_total";
                self.hop.metrics.count_reason(name, word);
                tracing::warn!(node = %self.node, stream = %publish.stream, epoch = publish.epoch, reason = word, "publish refused");
                self.tell(Body::PublishReject(pb::PublishReject {
                    slot,
                    reason: word.into(),
                    message: refusal.message.into(),
                    retry_after_ms: refusal.retry_after_ms,
                }));
            }
        }
    }

    fn try_publish(&self, publish: &pb::Publish, flows: &mut JoinSet<()>) -> Result<(), Refusal> {
        let refuse =
            |reason, message, retry_after_ms| Err(Refusal { reason, message, retry_after_ms });
        if !(1..=self.hop.slots_max).contains(&publish.slot) {
            return refuse(Reason::InvalidArgument, "the slot is out of range", 0);
        }
        if !publish.codec.eq_ignore_ascii_case("h264") || publish.clock_rate_hz != 90_000 {
            return refuse(Reason::Unsupported, "only H264 with a clock of 90000 Hz is taken", 0);
        }
        let Ok(name) = StreamId::from_resource_name(&publish.stream) else {
            return refuse(Reason::InvalidArgument, "the stream's name is malformed", 0);
        };
        let Some(stream) = self.hop.streams.get(&name) else {
            // The assignment may be on its way to this router.
            return refuse(Reason::StreamNotFound, "the stream is not assigned here", 500);
        };
        let publisher = Publisher {
            id: self.hop.last_publish.fetch_add(1, Ordering::Relaxed) + 1,
            slot: publish.slot,
            outbox: self.outbox.clone(),
            superseded: CancellationToken::new(),
        };
        let token_sha256: [u8; 32] = Sha256::digest(&publish.push_token).into();
        stream.publish(publish.epoch, &token_sha256, &self.node, publisher.clone())?;
        let (inputs, queue) = mpsc::channel(FLOW_QUEUE);
        let entry = SlotEntry {
            stream: Arc::clone(&stream),
            publish: publisher.id,
            inputs,
            superseded: publisher.superseded.clone(),
        };
        // A publish in the same slot replaces the one before, whose flow then ends.
        if let Some(old) = self.slots.lock().insert(publish.slot, entry) {
            old.superseded.cancel();
        }
        flows.spawn(flow::run(stream, publisher, queue, self.hop.metrics.clone()));
        Ok(())
    }

    // ---- frames ----

    async fn read_frame(self: Arc<Self>, mut recv: RecvStream) -> Result<(), TooManyBad> {
        let read = timeout(FRAME_DEADLINE, self.read_frame_inner(&mut recv)).await;
        let dropped =
            match read.unwrap_or(Err(Dropped::new("stalled", error_code::FRAME_CANCELLED))) {
                Ok(()) => {
                    self.bad_frames.store(0, Ordering::Relaxed);
                    return Ok(());
                }
                Err(dropped) => dropped,
            };
        if let Some(code) = dropped.stop {
            let _ = recv.stop(VarInt::from_u64(code).unwrap_or(VarInt::from_u32(1)));
        }
        let name = "fanlight_router_hop_frames_dropped_total";
        self.hop.metrics.count_reason(name, dropped.word);
        let in_a_row = self.bad_frames.fetch_add(u32::from(dropped.malformed), Ordering::Relaxed);
        if in_a_row >= BAD_FRAMES_MAX { Err(TooManyBad) } else { Ok(()) }
    }

    async fn read_frame_inner(&self, recv: &mut RecvStream) -> Result<(), Dropped> {
        let limits = RoqLimits {
            max_packet_bytes: PACKET_BYTES_MAX,
            max_buffered_bytes: CHUNK_BYTES + 2 * PACKET_BYTES_MAX,
            max_stream_bytes: self.hop.frame_bytes_max as u64,
        };
        let mut reader = FrameReader {
            roq: StreamReader::new(limits),
            slot: None,
            assembler: Assembler::default(),
            charge: self.budget.charge(),
            opened: None,
        };
        let read = reader.read(self, recv).await;
        match (read, reader.slot) {
            (Ok(()), Some(slot)) => {
                let first = reader.opened;
                match reader.assembler.finish(std::time::Instant::now()) {
                    Ok(assembled) => {
                        let charge = reader.charge;
                        // Fails when the publish is over; the frame has nowhere to go then.
                        let _ = slot.inputs.send(FlowInput::Frame { assembled, charge }).await;
                        Ok(())
                    }
                    Err(e) => {
                        abandon(&slot, first).await;
                        Err(Dropped::bad(e.label(), error_code::PACKET_ERROR))
                    }
                }
            }
            (Ok(()), None) => Err(Dropped::bad("empty", error_code::PACKET_ERROR)),
            (Err(dropped), slot) => {
                if let Some(slot) = slot {
                    abandon(&slot, reader.opened).await;
                }
                Err(dropped)
            }
        }
    }

    fn slot_of(&self, flow: FlowId) -> Result<SlotEntry, Dropped> {
        let unknown = || Dropped::new("unknown_flow", error_code::UNKNOWN_FLOW_ID);
        let FlowKind::Video(slot) = flow.kind() else { return Err(unknown()) };
        let entry = self.slots.lock().get(&slot.get()).cloned().ok_or_else(unknown)?;
        if entry.superseded.is_cancelled() {
            return Err(Dropped::new("superseded", error_code::DUPLICATE_PUBLISH));
        }
        Ok(entry)
    }
}

async fn abandon(slot: &SlotEntry, first: Option<u16>) {
    if let Some(first) = first {
        let _ = slot.inputs.send(FlowInput::Abandoned { first }).await;
    }
}

/// Why a frame's stream gave no frame.
#[derive(Clone, Copy, Debug)]
struct Dropped {
    word: &'static str,
    /// Code to stop the stream with; none when it has ended by itself.
    stop: Option<u64>,
    /// The sender broke the format.
    malformed: bool,
}

impl Dropped {
    const fn new(word: &'static str, code: u64) -> Self {
        Self { word, stop: Some(code), malformed: false }
    }

    const fn bad(word: &'static str, code: u64) -> Self {
        Self { word, stop: Some(code), malformed: true }
    }
}

struct FrameReader {
    roq: StreamReader,
    slot: Option<SlotEntry>,
    assembler: Assembler,
    charge: Charge,
    /// First sequence number, once the flow has been told of it.
    opened: Option<u16>,
}

impl FrameReader {
    async fn read(&mut self, link: &LinkShared, recv: &mut RecvStream) -> Result<(), Dropped> {
        loop {
            let chunk = match recv.read_chunk(CHUNK_BYTES, true).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(quinn::ReadError::Reset(_)) => {
                    return Err(Dropped { word: "reset", stop: None, malformed: false });
                }
                Err(_) => {
                    return Err(Dropped { word: "connection_lost", stop: None, malformed: false });
                }
            };
            if !self.charge.grow(chunk.bytes.len()) {
                return Err(Dropped::new("over_budget", error_code::FRAME_CANCELLED));
            }
            self.roq.push(&chunk.bytes);
            self.take_packets(link).await?;
        }
        self.roq.finish().map_err(|e| Dropped::bad("cut_short", e.code()))
    }

    async fn take_packets(&mut self, link: &LinkShared) -> Result<(), Dropped> {
        loop {
            let next = self.roq.next_packet();
            let packet = next.map_err(|e| Dropped::bad("framing", e.code()))?;
            if self.slot.is_none()
                && let Some(flow) = self.roq.flow()
            {
                self.slot = Some(link.slot_of(flow)?);
            }
            let Some(packet) = packet else { return Ok(()) };
            let pushed = self.assembler.push(&packet);
            pushed.map_err(|e| Dropped::bad(e.label(), error_code::PACKET_ERROR))?;
            if self.opened.is_none()
                && let (Some(first), Some(slot)) = (self.assembler.first(), &self.slot)
            {
                self.opened = Some(first);
                let _ = slot.inputs.send(FlowInput::Opened { first }).await;
            }
        }
    }
}
