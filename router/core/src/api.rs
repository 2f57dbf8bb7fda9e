//! The values that cross the core's border: identifiers, configuration, join and output.
//!
//! Plain data without behaviour; what happens with it is in the other modules.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fanlight_wire::h264::SpsFacts;

use crate::join::ParsedOffer;
use crate::limits::Limits;

/// One viewer's session on this shard. Chosen by the caller, unique for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A stream's local handle. Chosen by the caller, so that no string is hashed per frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a viewer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Watches; every input is denied.
    #[default]
    Observer,
    /// Watches, and its input reaches the device.
    Controller,
}

/// How a core is set up.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// The complete list of addresses put in every answer, in order of preference: what viewers
    /// can reach this shard's socket by (announced addresses, when behind a 1:1 NAT).
    pub candidates: Vec<SocketAddr>,
    /// Every bound.
    pub limits: Limits,
    /// The same for viewers that can only use TCP (RFC 6544, passive): none, or the addresses of the
    /// shard's listener.
    pub tcp_candidates: Vec<SocketAddr>,
    /// The clock on the wall when the core begins, in microseconds of the Unix epoch: for the time
    /// stamps in sender reports. The core counts on from there.
    pub start_unix_us: u64,
}

impl CoreConfig {
    /// The default configuration with these candidates.
    #[must_use]
    pub fn new(candidates: Vec<SocketAddr>) -> Self {
        Self { candidates, limits: Limits::default(), tcp_candidates: Vec::new(), start_unix_us: 0 }
    }
}

/// A stream as the ingest side knows it.
#[derive(Debug, Clone)]
pub struct StreamInfo {
    /// The stream's name, for logs.
    pub name: Arc<str>,
    /// Epoch of the publisher. Frames of a lower epoch are dropped and counted.
    pub epoch: u64,
    /// Parameter set facts, when the publisher said them before its first keyframe.
    pub params: Option<Arc<SpsFacts>>,
    /// Quarter turns counter-clockwise of the picture, 0 to 3, told to viewers in the session message.
    pub rotation: u8,
}

impl StreamInfo {
    /// A stream of which nothing but its name and epoch is known yet.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, epoch: u64) -> Self {
        Self { name: name.into(), epoch, params: None, rotation: 0 }
    }
}

/// How a datagram travels between a viewer and a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// As it is.
    Udp,
    /// In a TCP stream, framed as in RFC 4571.
    Tcp,
}

/// Where a viewer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// How.
    pub proto: Proto,
    /// The viewer's address.
    pub addr: SocketAddr,
}

impl Route {
    /// A viewer reached by plain datagrams.
    #[must_use]
    pub const fn udp(addr: SocketAddr) -> Self {
        Self { proto: Proto::Udp, addr }
    }
}

/// What two sides prove to each other that they are who the signalling spoke of (RFC 8445, 5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct IceCredentials {
    /// User fragment: a name, not a secret.
    pub ufrag: String,
    /// Password.
    pub pwd: String,
}

impl fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceCredentials").field("ufrag", &self.ufrag).finish_non_exhaustive()
    }
}

/// Why a stream stopped having a source. Its viewers are kept until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// The device or its worker is gone; it may come back.
    Offline,
    /// Another router took the stream over.
    Superseded,
    /// The stream was deleted.
    Deleted,
    /// This node is draining.
    Draining,
}

/// Who asks a viewer to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaveReason {
    /// The viewer itself, by `DELETE` on its session.
    Deleted,
    /// The control plane.
    Kicked,
    /// Its permission ran out.
    Expired,
    /// This node is draining.
    Draining,
}

/// Why a viewer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// [`crate::Core::leave`] was called.
    Left(LeaveReason),
    /// The stream was removed.
    StreamRemoved(DownReason),
    /// The viewer closed the connection.
    ClosedByViewer,
    /// ICE and DTLS did not complete before the deadline.
    NeverConnected,
    /// The viewer fell silent.
    ConnectionLost,
    /// `max_session` is over.
    SessionOver,
    /// The viewer's bytes broke the protocol, or made the protocol library fail.
    ProtocolError,
}

/// Why the encoder is asked for a keyframe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyframeReason {
    /// A viewer joined and the cache could not serve it.
    Join,
    /// A viewer reported a picture that it cannot decode and the cache could not help.
    Loss,
    /// The group of pictures grew beyond the cache: the next joiner would have to wait.
    Cache,
    /// The source skipped a frame, so that nothing until the next keyframe decodes.
    Gap,
}

/// A request to watch. The offer was parsed off the shard by [`crate::parse_offer`].
#[derive(Debug)]
pub struct JoinRequest {
    /// The new viewer's session.
    pub id: SessionId,
    /// What it wants to watch.
    pub stream: StreamKey,
    /// Its offer.
    pub offer: ParsedOffer,
    /// Who it is, for logs and statistics.
    pub viewer: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// After this long the viewer is dropped.
    pub max_session: Option<Duration>,
    /// The `User-Agent` header: evidence about what a browser decodes beyond what it offers.
    pub user_agent: Option<Arc<str>>,
}

/// A successful join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The SDP answer with the complete candidate list.
    pub sdp: String,
    /// The `profile-level-id` that the answer names.
    pub profile_level_id: [u8; 3],
}

/// What the core wants done. Drained by [`crate::Core::poll_output`].
#[derive(Debug)]
pub enum Output {
    /// Send this datagram: STUN, DTLS or RTCP. Media is in the [`crate::Batch`].
    Transmit {
        /// Where the viewer is.
        to: Route,
        /// One of the configured candidates: the address that the viewer knows us by.
        from: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Hand this input message (as in `WIRE.md`) to the device, in order per stream.
    ToDevice {
        /// The device's stream.
        stream: StreamKey,
        /// Who sent it.
        viewer: SessionId,
        /// The encoded message.
        message: Vec<u8>,
    },
    /// Ask the encoder for a keyframe. Already merged: at most one per stream per 300 ms.
    KeyframeRequest {
        /// The device's stream.
        stream: StreamKey,
        /// Why.
        reason: KeyframeReason,
    },
    /// ICE and DTLS completed.
    ViewerConnected {
        /// Whose.
        session: SessionId,
    },
    /// The viewer's state is dropped. The last output that names this session.
    ViewerGone {
        /// Whose.
        session: SessionId,
        /// Why.
        reason: GoneReason,
    },
}

/// Where a viewer is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewerState {
    /// Answered; ICE and DTLS are under way.
    Joining,
    /// Connected.
    Live,
    /// Said goodbye; the farewell is still being sent.
    Closing,
}

/// How much of a stream a viewer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    /// All of it.
    #[default]
    Full,
    /// What later pictures refer to.
    References,
    /// Nothing until the next keyframe.
    Keyframes,
}

/// One viewer's figures, read by the node for its reports.
#[derive(Debug, Clone)]
pub struct ViewerStats {
    /// Whose.
    pub session: SessionId,
    /// What it watches.
    pub stream: StreamKey,
    /// Who it is.
    pub viewer: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// Where it is in its life.
    pub state: ViewerState,
    /// The last address that it spoke from.
    pub remote: Option<Route>,
    /// Frames given to its egress, replays included.
    pub frames_sent: u64,
    /// RTP packets given to its egress.
    pub packets_sent: u64,
    /// Payload bytes given to its egress.
    pub bytes_sent: u64,
    /// Keyframe requests (PLI and FIR) that it sent.
    pub keyframe_requests: u64,
    /// Input messages accepted from it.
    pub inputs: u64,
    /// Input messages refused.
    pub inputs_denied: u64,
    /// The last measured round trip.
    pub rtt: Option<Duration>,
    /// The last reported loss, 0 to 1.
    pub loss: Option<f32>,
    /// The last reported jitter, in units of the 90 kHz clock.
    pub jitter: u32,
    /// What its path is believed to carry; `None` while nothing says that it is too narrow.
    pub estimate_bps: Option<u64>,
    /// Bits per second that arrived lately, and the share of packets that did not, by its reports of
    /// arrival times.
    pub acked_bps: u64,
    /// See [`Self::acked_bps`].
    pub path_loss: f64,
    /// How the delay of its path moves: `steady`, `growing` or `shrinking`.
    pub delay: &'static str,
    /// How much of the stream it is given.
    pub share: Share,
    /// Packets that it asked for again.
    pub nacks: u64,
    /// Packets sent again.
    pub repairs: u64,
    /// Frames kept back because its path is too narrow.
    pub frames_thinned: u64,
}
