//! One live connection to a router: its control stream and the slots devices have on it. Not the
//! dialling (`mod.rs`) and not the frames. Invariant: a slow or failed device never holds the reader
//! up; what it does not take in time is dropped for it alone.

use std::{collections::HashMap, fmt, net::SocketAddr, sync::Arc};

use fanlight_proto::node::v1::{HopMessage, HopPong, HopWelcome, PublishReject, hop_message::Body};
use fanlight_wire::roq::{
    ControlFramer, FlowId, Slot, error_code, write_control_frame, write_stream_header,
};
use parking_lot::Mutex;
use prost::Message as _;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};

use super::{UplinkError, code};
use crate::hygiene::Arrival;

/// Control messages waiting to be written. Publishes wait for room; the reader's answers do not.
const CONTROL_QUEUE: usize = 256;
/// Events waiting for one publish; there are few, and each supersedes the one before.
const SLOT_EVENTS: usize = 32;
/// Control and input go before video.
const CONTROL_PRIORITY: i32 = 30;
/// Slots used on one connection, whatever the router allows.
const MAX_SLOTS: u32 = 2_048;

/// What a router says about one slot, input excepted.
#[derive(Clone, Debug, PartialEq)]
pub enum SlotEvent {
    /// The publish is taken.
    Accepted,
    /// It is refused.
    Rejected(PublishReject),
    /// The router ended it.
    Ended(String),
    /// Somebody needs a keyframe.
    Keyframe,
}

/// Takes input of one slot. Called on the connection's reader, so it must not wait.
pub(super) type InputSink = Arc<dyn Fn(u64, &[u8]) + Send + Sync>;

struct SlotEntry {
    events: mpsc::Sender<SlotEvent>,
    input: InputSink,
}

/// What is written to the control stream.
pub(super) enum Control {
    /// A message.
    Message(HopMessage),
    /// The end: what is before it reaches the router, then this is answered.
    Goodbye(oneshot::Sender<()>),
}

/// A connection that was welcomed.
pub struct Link {
    connection: Connection,
    control: mpsc::Sender<Control>,
    slots: Mutex<Slots>,
    peer: String,
}

struct Slots {
    entries: HashMap<u32, SlotEntry>,
    next: u32,
    max: u32,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// A slot held on a [`Link`]; given back when dropped.
#[derive(Debug)]
pub struct SlotGuard {
    link: Arc<Link>,
    slot: Slot,
}

impl SlotGuard {
    /// Its number.
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.link.slots.lock().entries.remove(&self.slot.get());
    }
}

impl Link {
    pub(super) fn new(
        connection: Connection,
        control: mpsc::Sender<Control>,
        welcome: &HopWelcome,
    ) -> Self {
        let max = if welcome.max_slots == 0 { MAX_SLOTS } else { welcome.max_slots.min(MAX_SLOTS) };
        let peer = welcome.node.chars().take(200).collect();
        let slots = Mutex::new(Slots { entries: HashMap::new(), next: 0, max });
        Self { connection, control, slots, peer }
    }

    /// The router's own name for itself.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The connection, for frame streams.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Takes a free slot; `None` when the router allows no more. Numbers are used in turn, so that
    /// frames of an old publish never look like those of a new one.
    pub fn open_slot(
        self: &Arc<Self>,
        input: InputSink,
    ) -> Option<(SlotGuard, mpsc::Receiver<SlotEvent>)> {
        let (events, receiver) = mpsc::channel(SLOT_EVENTS);
        let mut slots = self.slots.lock();
        let number = (0..slots.max).find_map(|i| {
            let number = (slots.next + i) % slots.max + 1;
            (!slots.entries.contains_key(&number)).then_some(number)
        })?;
        slots.next = number;
        slots.entries.insert(number, SlotEntry { events, input });
        let slot = Slot::new(number)?;
        Some((SlotGuard { link: Arc::clone(self), slot }, receiver))
    }

    /// Sends a control message; waits for room. False when the connection is over.
    pub async fn send(&self, body: Body) -> bool {
        self.control.send(Control::Message(HopMessage { body: Some(body) })).await.is_ok()
    }

    /// Sends a control message if there is room: for what is stale by the time there is.
    pub fn try_send(&self, body: Body) -> bool {
        self.control.try_send(Control::Message(HopMessage { body: Some(body) })).is_ok()
    }

    /// Waits until the router has all control messages sent so far; nothing can be sent after.
    pub async fn goodbye(&self) {
        let (done, acknowledged) = oneshot::channel();
        if self.control.send(Control::Goodbye(done)).await.is_ok() {
            let _ = acknowledged.await;
        }
    }

    /// Ends the connection.
    pub fn close(&self, error_code: u64, reason: &str) {
        self.connection.close(code(error_code), reason.as_bytes());
    }

    fn dispatch(&self, message: HopMessage) {
        match message.body {
            Some(Body::PublishOk(m)) => self.event(m.slot, SlotEvent::Accepted),
            Some(Body::PublishReject(m)) => self.event(m.slot, SlotEvent::Rejected(m)),
            Some(Body::Unpublish(m)) => self.event(m.slot, SlotEvent::Ended(m.reason)),
            Some(Body::KeyframeRequest(m)) => self.event(m.slot, SlotEvent::Keyframe),
            Some(Body::DeviceInput(m)) => {
                let input = self.slots.lock().entries.get(&m.slot).map(|e| Arc::clone(&e.input));
                match input {
                    Some(input) => input(m.viewer, &m.message),
                    None => unexpected("input for no slot"),
                }
            }
            Some(Body::Ping(m)) => {
                let received_us = Arrival::now().unix_us;
                self.try_send(Body::Pong(HopPong { sent_us: m.sent_us, received_us }));
            }
            Some(Body::SetBitrate(m)) => {
                // A device's own encoder cannot change its rate while it runs.
                tracing::debug!(slot = m.slot, bps = m.max_bitrate_bps, "bitrate hint not taken");
            }
            Some(Body::GoAway(m)) => {
                tracing::info!(router = %self.peer, reason = %m.reason, "router goes away");
            }
            Some(Body::Stats(_) | Body::Pong(_)) => {}
            _ => unexpected("a message no router sends"),
        }
    }

    fn event(&self, slot: u32, event: SlotEvent) {
        let slots = self.slots.lock();
        match slots.entries.get(&slot) {
            // When full, the publish is stuck and will find out by the connection or its own timer.
            Some(entry) => drop(entry.events.try_send(event)),
            None => unexpected("an event for no slot"),
        }
    }
}

fn unexpected(what: &'static str) {
    metrics::counter!("fanlight_ingest_hop_unexpected_total").increment(1);
    tracing::debug!("router sent {what}");
}

/// Reading half of the control stream.
pub(super) struct Reader {
    pub(super) recv: RecvStream,
    pub(super) framer: ControlFramer,
}

impl Reader {
    /// The next message. The error is one line of why there is none.
    pub(super) async fn next(&mut self) -> Result<HopMessage, String> {
        loop {
            if let Some(frame) = self.framer.next().map_err(|e| e.to_string())? {
                return HopMessage::decode(frame.as_slice()).map_err(|e| e.to_string());
            }
            match self.recv.read_chunk(64 * 1024, true).await {
                Ok(Some(chunk)) => self.framer.push(&chunk.bytes),
                Ok(None) => return Err("it ended the control stream".to_owned()),
                Err(e) => return Err(format!("control stream: {e}")),
            }
        }
    }
}

/// Writes the flow id and the first message, then leaves the stream to a writer task.
pub(super) async fn begin(
    mut send: SendStream,
    hello: &HopMessage,
) -> Result<mpsc::Sender<Control>, quinn::WriteError> {
    let _ = send.set_priority(CONTROL_PRIORITY);
    let mut bytes = Vec::new();
    write_stream_header(FlowId::CONTROL, &mut bytes);
    frame(hello, &mut bytes);
    send.write_all(&bytes).await?;
    let (sender, receiver) = mpsc::channel(CONTROL_QUEUE);
    tokio::spawn(write(send, receiver));
    Ok(sender)
}

/// Writes what is queued, several messages at once when they wait. Ends with the connection, with a
/// goodbye, or when nobody can send any more.
async fn write(mut send: SendStream, mut queue: mpsc::Receiver<Control>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, CONTROL_QUEUE).await > 0 {
        let mut bytes = Vec::new();
        let mut goodbye = None;
        for control in waiting.drain(..) {
            match control {
                Control::Message(message) if goodbye.is_none() => frame(&message, &mut bytes),
                Control::Message(_) => {}
                Control::Goodbye(done) => goodbye = Some(done),
            }
        }
        if send.write_all(&bytes).await.is_err() {
            return;
        }
        if let Some(done) = goodbye {
            let _ = send.finish();
            let _ = send.stopped().await;
            let _ = done.send(());
            return;
        }
    }
    let _ = send.finish();
}

fn frame(message: &HopMessage, out: &mut Vec<u8>) {
    // The largest is a clipboard of 64 KiB, a quarter of what fits.
    if write_control_frame(&message.encode_to_vec(), out).is_err() {
        tracing::error!(message = name(message), "control message too large, not sent");
    }
}

/// Reads the control stream until the connection is over; returns why.
pub(super) async fn serve(link: &Link, mut reader: Reader, address: SocketAddr) -> UplinkError {
    let what = loop {
        match reader.next().await {
            Ok(message) => link.dispatch(message),
            Err(what) => break what,
        }
    };
    match link.connection.close_reason() {
        Some(source) => UplinkError::Connection { address, source },
        None => {
            link.close(error_code::PACKET_ERROR, &what);
            UplinkError::Protocol { address, what }
        }
    }
}

/// Name of a message, for logs.
pub(super) fn name(message: &HopMessage) -> &'static str {
    match &message.body {
        Some(Body::Hello(_)) => "hello",
        Some(Body::Welcome(_)) => "welcome",
        Some(Body::Publish(_)) => "publish",
        Some(Body::DeviceInput(_)) => "device_input",
        Some(Body::DeviceOutput(_)) => "device_output",
        Some(_) => "another message",
        None => "an unknown message",
    }
}
