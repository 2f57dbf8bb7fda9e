//! RTP over QUIC as of draft-ietf-avtcore-rtp-over-quic-14, and our control frames beside it. Not
//! a QUIC stack and not RTP: a packet is opaque bytes here. Invariant: a reader that has failed
//! stays failed and holds nothing.

use bytes::{Buf, Bytes, BytesMut};

use crate::varint;

/// Our own ALPN: RoQ plus a control stream. The `1` is our major version.
pub const ALPN_FANLIGHT: &[u8] = b"roq-14-fl1";

/// ALPNs of third-party publishers; the framing is the same in all of them.
pub const ALPN_THIRD_PARTY: [&[u8]; 6] =
    [b"roq-14", b"roq-13", b"roq-12", b"roq-11", b"roq-10", b"roq-09"];

/// Greatest body of one control frame: a clipboard of 64 KiB with room to spare.
pub const CONTROL_FRAME_MAX: usize = 256 * 1024 + 1024;

/// Application error codes of the connection and its streams.
pub mod error_code {
    /// Nothing went wrong.
    pub const NO_ERROR: u64 = 0x00;
    /// Something that has no code of its own.
    pub const GENERAL_ERROR: u64 = 0x01;
    /// A fault of the sender of this code.
    pub const INTERNAL_ERROR: u64 = 0x02;
    /// A packet or its framing is malformed.
    pub const PACKET_ERROR: u64 = 0x03;
    /// A bidirectional stream carried RTP, or a stream could not be made.
    pub const STREAM_CREATION_ERROR: u64 = 0x04;
    /// The frame is no longer wanted, or no longer sent.
    pub const FRAME_CANCELLED: u64 = 0x05;
    /// The flow id is not known.
    pub const UNKNOWN_FLOW_ID: u64 = 0x06;
    /// The peer did not do what its signalling promised.
    pub const EXPECTATION_UNMET: u64 = 0x07;
    /// Ours: certificate or publish token refused.
    pub const AUTH_FAILED: u64 = 0x1000;
    /// Ours: a publisher with a higher epoch exists.
    pub const DUPLICATE_PUBLISH: u64 = 0x1001;
    /// Ours: try another router.
    pub const OVERLOADED: u64 = 0x1002;
    /// Ours: the drain that GoAway announced is over.
    pub const GOAWAY_DONE: u64 = 0x1003;
    /// Ours: no common minor version.
    pub const VERSION: u64 = 0x1004;
    /// Ours: a stated limit was exceeded.
    pub const LIMIT: u64 = 0x1005;
}

/// A device's place on one connection, from 1 up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// The slot of that number; zero is not a slot.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// First varint of every stream and datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(u64);

/// What a flow id means under [`ALPN_FANLIGHT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKind {
    /// The control stream.
    Control,
    /// Not assigned; refused with [`error_code::UNKNOWN_FLOW_ID`].
    Reserved,
    /// Video RTP and its RTCP.
    Video(Slot),
    /// Audio RTP and its RTCP.
    Audio(Slot),
    /// A second, small encoding.
    Thumbnail(Slot),
    /// Input towards the device.
    Input(Slot),
    /// Clipboard and files.
    Clipboard(Slot),
}

impl FlowId {
    /// The control stream's flow.
    pub const CONTROL: Self = Self(0);

    /// A flow id from its number; `None` above 62 bits.
    pub const fn from_raw(id: u64) -> Option<Self> {
        if id <= varint::MAX { Some(Self(id)) } else { None }
    }

    /// Its number.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The flow of a slot's video.
    pub const fn video(slot: Slot) -> Self {
        Self(8 * slot.0 as u64)
    }

    /// The flow of a slot's audio.
    pub const fn audio(slot: Slot) -> Self {
        Self(8 * slot.0 as u64 + 1)
    }

    /// The flow of a slot's second encoding.
    pub const fn thumbnail(slot: Slot) -> Self {
        Self(8 * slot.0 as u64 + 2)
    }

    /// The flow of a slot's input.
    pub const fn input(slot: Slot) -> Self {
        Self(8 * slot.0 as u64 + 3)
    }

    /// The flow of a slot's clipboard and files.
    pub const fn clipboard(slot: Slot) -> Self {
        Self(8 * slot.0 as u64 + 4)
    }

    /// What the flow carries.
    pub fn kind(self) -> FlowKind {
        if self == Self::CONTROL {
            return FlowKind::Control;
        }
        let slot = u32::try_from(self.0 / 8).ok().and_then(Slot::new);
        match (slot, self.0 % 8) {
            (Some(slot), 0) => FlowKind::Video(slot),
            (Some(slot), 1) => FlowKind::Audio(slot),
            (Some(slot), 2) => FlowKind::Thumbnail(slot),
            (Some(slot), 3) => FlowKind::Input(slot),
            (Some(slot), 4) => FlowKind::Clipboard(slot),
            _ => FlowKind::Reserved,
        }
    }
}

/// Why framing was refused. The peer is to blame for all of them except
/// [`RoqError::FrameTooLarge`] when writing; trying again with the same bytes does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoqError {
    /// The stream or datagram ended inside a field.
    #[error("{field} cut short: {have} of {need} bytes")]
    Truncated {
        /// The field that is cut.
        field: &'static str,
        /// Bytes that are there.
        have: usize,
        /// Bytes it needs.
        need: usize,
    },
    /// A packet or frame of length zero where that has no meaning.
    #[error("{field} is empty")]
    Empty {
        /// The field that is empty.
        field: &'static str,
    },
    /// A packet longer than the reader's limit.
    #[error("packet of {len} bytes is over the limit of {max}")]
    PacketTooLarge {
        /// Announced length.
        len: u64,
        /// Limit.
        max: usize,
    },
    /// A control frame longer than [`CONTROL_FRAME_MAX`].
    #[error("control frame of {len} bytes is over the limit of {max}")]
    FrameTooLarge {
        /// Announced length.
        len: u64,
        /// Limit.
        max: usize,
    },
    /// More bytes on one stream than the reader's limit.
    #[error("stream is over the limit of {max} bytes")]
    StreamTooLarge {
        /// Limit.
        max: u64,
    },
    /// More bytes were pushed, without being taken, than the reader may hold. The reader of the
    /// stream is to blame: it must drain after each push.
    #[error("more than {max} bytes pushed and not taken")]
    BufferFull {
        /// Limit.
        max: usize,
    },
    /// The control stream began with another flow id.
    #[error("control stream begins with flow id {flow} instead of 0")]
    NotControl {
        /// The flow id found.
        flow: u64,
    },
}

impl RoqError {
    /// The code to close the stream or connection with.
    pub const fn code(&self) -> u64 {
        match self {
            Self::Truncated { .. } | Self::Empty { .. } => error_code::PACKET_ERROR,
            Self::NotControl { .. } => error_code::STREAM_CREATION_ERROR,
            _ => error_code::LIMIT,
        }
    }
}

/// Begins a stream.
pub fn write_stream_header(flow: FlowId, out: &mut Vec<u8>) {
    varint::write(flow.0, out);
}

/// Appends one packet to a stream.
pub fn write_packet(packet: &[u8], out: &mut Vec<u8>) {
    varint::write(packet.len() as u64, out);
    out.extend_from_slice(packet);
}

/// Writes a datagram: flow id and one packet, without a length.
pub fn write_datagram(flow: FlowId, packet: &[u8], out: &mut Vec<u8>) {
    varint::write(flow.0, out);
    out.extend_from_slice(packet);
}

/// Reads a datagram: its flow id and its one packet.
pub fn read_datagram(datagram: &[u8]) -> Result<(FlowId, &[u8]), RoqError> {
    let (flow, used) =
        varint::read(datagram).map_err(|varint::VarintError::Truncated { have, need }| {
            RoqError::Truncated { field: "flow id", have, need }
        })?;
    match &datagram[used..] {
        [] => Err(RoqError::Empty { field: "datagram's packet" }),
        packet => Ok((FlowId(flow), packet)),
    }
}

/// Bounds of a [`StreamReader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Greatest packet. 65,535 by default: RTP cannot be longer over UDP, and a third party may
    /// choose any size on streams.
    pub max_packet_bytes: usize,
    /// Greatest number of bytes pushed and not yet taken. 1 MiB by default: a QUIC receive window.
    pub max_buffered_bytes: usize,
    /// Greatest number of bytes on one stream. 8 MiB by default: twice the greatest access unit.
    pub max_stream_bytes: u64,
}

impl Limits {
    /// For a third party that sends all its frames on one stream.
    pub const LONG_STREAM: Self = Self {
        max_packet_bytes: 65_535,
        max_buffered_bytes: 1024 * 1024,
        max_stream_bytes: u64::MAX,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_stream_bytes: 8 * 1024 * 1024, ..Self::LONG_STREAM }
    }
}

/// Takes the bytes of one unidirectional stream, in pieces cut anywhere, and gives its packets.
///
/// After each [`push`](Self::push), call [`next_packet`](Self::next_packet) until it gives `None`.
#[derive(Debug)]
pub struct StreamReader {
    limits: Limits,
    buf: BytesMut,
    flow: Option<FlowId>,
    seen: u64,
    failed: Option<RoqError>,
}

impl StreamReader {
    /// A reader at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self { limits, buf: BytesMut::new(), flow: None, seen: 0, failed: None }
    }

    /// Takes the next bytes. Beyond a bound nothing is kept and the reader fails.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        if self.seen > self.limits.max_stream_bytes {
            self.fail(RoqError::StreamTooLarge { max: self.limits.max_stream_bytes });
        } else if self.buf.len() + bytes.len() > self.limits.max_buffered_bytes {
            self.fail(RoqError::BufferFull { max: self.limits.max_buffered_bytes });
        } else {
            self.buf.extend_from_slice(bytes);
            self.read_flow();
        }
    }

    /// The stream's flow id, once its bytes are here.
    pub fn flow(&self) -> Option<FlowId> {
        self.flow
    }

    /// The next whole packet; `None` when more bytes are needed.
    pub fn next_packet(&mut self) -> Result<Option<Bytes>, RoqError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        if self.flow.is_none() {
            return Ok(None);
        }
        let Ok((len, used)) = varint::read(&self.buf) else { return Ok(None) };
        if len == 0 {
            return Err(self.fail(RoqError::Empty { field: "packet" }));
        }
        let max = self.limits.max_packet_bytes;
        let len = match usize::try_from(len) {
            Ok(l) if l <= max => l,
            _ => return Err(self.fail(RoqError::PacketTooLarge { len, max })),
        };
        if self.buf.len() < used + len {
            return Ok(None);
        }
        self.buf.advance(used);
        Ok(Some(self.buf.split_to(len).freeze()))
    }

    /// To be called at FIN, after the last packet was taken: an error if the stream ended inside
    /// a field.
    pub fn finish(&self) -> Result<(), RoqError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        let have = self.buf.len();
        if self.flow.is_none() {
            let need = varint::read(&self.buf).map_or_else(need_of, |(_, used)| used);
            return Err(RoqError::Truncated { field: "flow id", have, need });
        }
        match varint::read(&self.buf) {
            Err(_) if have == 0 => Ok(()),
            Err(e) => Err(RoqError::Truncated { field: "packet length", have, need: need_of(e) }),
            Ok((len, used)) => Err(RoqError::Truncated {
                field: "packet",
                have: have - used,
                need: usize::try_from(len).unwrap_or(usize::MAX),
            }),
        }
    }

    fn read_flow(&mut self) {
        if self.flow.is_none()
            && let Ok((flow, used)) = varint::read(&self.buf)
        {
            self.buf.advance(used);
            self.flow = Some(FlowId(flow));
        }
    }

    fn fail(&mut self, e: RoqError) -> RoqError {
        self.buf = BytesMut::new();
        self.failed = Some(e.clone());
        e
    }
}

const fn need_of(e: varint::VarintError) -> usize {
    let varint::VarintError::Truncated { need, .. } = e;
    need
}

/// Takes the bytes of the control stream, in pieces cut anywhere, and gives its frames.
///
/// Holds at most two frames' worth of bytes: call [`next`](Self::next) until it gives `None` after
/// each [`push`](Self::push).
#[derive(Debug)]
pub struct ControlFramer {
    buf: BytesMut,
    header_due: bool,
    failed: Option<RoqError>,
}

impl Default for ControlFramer {
    fn default() -> Self {
        Self::new()
    }
}

impl ControlFramer {
    const MAX_BUFFERED: usize = 2 * (CONTROL_FRAME_MAX + varint::MAX_LEN);

    /// For the side that opened the stream: frames only come back.
    pub fn new() -> Self {
        Self { buf: BytesMut::new(), header_due: false, failed: None }
    }

    /// For the side that accepted the stream: flow id 0 comes first, and another one fails.
    pub fn expecting_header() -> Self {
        Self { header_due: true, ..Self::new() }
    }

    /// Takes the next bytes. Beyond the bound nothing is kept and the framer fails.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.buf.len() + bytes.len() > Self::MAX_BUFFERED {
            self.fail(RoqError::BufferFull { max: Self::MAX_BUFFERED });
        } else {
            self.buf.extend_from_slice(bytes);
        }
    }

    /// The next whole frame; `None` when more bytes are needed.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot be pushed to")]
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, RoqError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        if self.header_due {
            let Ok((flow, used)) = varint::read(&self.buf) else { return Ok(None) };
            if flow != FlowId::CONTROL.0 {
                return Err(self.fail(RoqError::NotControl { flow }));
            }
            self.buf.advance(used);
            self.header_due = false;
        }
        let Ok((len, used)) = varint::read(&self.buf) else { return Ok(None) };
        let len = match usize::try_from(len) {
            Ok(l) if l <= CONTROL_FRAME_MAX => l,
            _ => return Err(self.fail(RoqError::FrameTooLarge { len, max: CONTROL_FRAME_MAX })),
        };
        if self.buf.len() < used + len {
            return Ok(None);
        }
        self.buf.advance(used);
        Ok(Some(self.buf.split_to(len).to_vec()))
    }

    /// To be called at FIN: an error if the stream ended inside a frame.
    pub fn finish(&self) -> Result<(), RoqError> {
        match (&self.failed, self.buf.len(), self.header_due) {
            (Some(e), ..) => Err(e.clone()),
            (None, 0, false) => Ok(()),
            (None, have, header_due) => {
                let field = if header_due { "flow id" } else { "control frame" };
                let need = varint::read(&self.buf).map_or_else(need_of, |(len, used)| {
                    used.saturating_add(usize::try_from(len).unwrap_or(usize::MAX))
                });
                Err(RoqError::Truncated { field, have, need })
            }
        }
    }

    fn fail(&mut self, e: RoqError) -> RoqError {
        self.buf = BytesMut::new();
        self.failed = Some(e.clone());
        e
    }
}

/// Appends one control frame. Refuses one that the other side would refuse.
pub fn write_control_frame(frame: &[u8], out: &mut Vec<u8>) -> Result<(), RoqError> {
    if frame.len() > CONTROL_FRAME_MAX {
        return Err(RoqError::FrameTooLarge { len: frame.len() as u64, max: CONTROL_FRAME_MAX });
    }
    varint::write(frame.len() as u64, out);
    out.extend_from_slice(frame);
    Ok(())
}
