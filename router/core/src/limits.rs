//! Every bound of the core, with how it was chosen and what happens when it is reached.
//!
//! Values that an operator may want to change are fields of [`Limits`]; the rest are constants.

use std::time::Duration;

/// Largest offer read, in bytes. Chromium's with audio, video and data is 7 kB; the parser costs
/// 120-190 ns per byte, so this caps one parse at 6 ms. Beyond it: [`crate::JoinError::OfferTooLarge`].
pub const OFFER_BYTES_MAX: usize = 32 * 1024;

/// Most media sections read in an offer: video, audio and data, with room for players that offer
/// more than they need. Beyond it the offer is refused.
pub const OFFER_SECTIONS_MAX: usize = 16;

/// Most H.264 payload types of an offer that are looked at. Chromium offers eight, of which four
/// are in packetization mode 1. Those beyond it are ignored.
pub const OFFER_CODECS_MAX: usize = 32;

/// Addresses remembered per viewer. A browser with Wi-Fi, Ethernet, VPN and IPv6 checks from
/// about six; one more replaces the oldest, so that a flood of checks costs nothing.
pub const ADDRESSES_PER_VIEWER_MAX: usize = 8;

/// Largest RTP payload accepted from the ingest side: str0m serialises into 2,000 bytes, of which
/// up to 80 are header. A frame with a larger one is dropped and counted.
pub const PAYLOAD_BYTES_MAX: usize = 1_600;

/// Most payloads of one frame: 4 MiB access unit in 1,100-byte pieces is 3,813. A frame with more
/// is dropped and counted.
pub const PAYLOADS_PER_FRAME_MAX: usize = 4_096;

/// Pointers that one viewer may hold down at once; Android reports at most 16. A further down is
/// refused.
pub const HELD_POINTERS_MAX: usize = 16;

/// Keys that one viewer may hold down at once: more than fingers. A further down is refused.
pub const HELD_KEYS_MAX: usize = 16;

/// Data channels that a viewer may open; the player opens two. One more ends the viewer.
pub const CHANNELS_PER_VIEWER_MAX: usize = 8;

/// How long a picture may wait in the router for one viewer, because the shard does not get round to
/// it or the socket is full. One that is older moves the viewer on to the newest keyframe, if one has
/// come meanwhile; else everything is sent, late. A source that sends much at once after a pause is
/// no reason: its pictures are new.
pub const LAG_MAX: Duration = Duration::from_millis(250);

/// Beyond this the viewer waits for a keyframe that has yet to come, and one is asked for.
pub const LAG_LOST: Duration = Duration::from_secs(2);

/// Largest group of pictures that answers a keyframe request of a viewer that has been watching for a
/// while: a tenth of a second of 20 Mbit/s. A larger one would cost the viewer's path more than a
/// keyframe.
pub const REPLAY_FOR_PLI_BYTES_MAX: usize = 256 * 1024;

/// Arrival times read of one feedback packet: a quarter of a second at 8,000 packets a second. The
/// rest is ignored.
pub const ARRIVALS_PER_FEEDBACK_MAX: usize = 2_048;

/// Viewers that wait for packets to be sent again, over all viewers of a core. Beyond it a request
/// is refused and counted; its viewer asks again.
pub const REPAIRS_MAX: usize = 4_096;

/// Packets of which one viewer may ask for a repair: per second, and at once. One frame's worth of
/// a request names at most a few hundred. Beyond it requests are refused and counted.
pub const REPAIR_REQUESTS: (u32, u32) = (2_000, 600);

/// Bytes of repairs for one viewer: per second, and at once. A third of a stream of 4 Mbit/s, and a
/// keyframe. Beyond it requests are refused and counted.
pub const REPAIR_BYTES: (u32, u32) = (170_000, 200_000);

/// RTCP datagrams that one viewer may send: per second, and at once. A browser sends about 25.
/// Beyond it they are dropped before they are decrypted.
pub const RTCP_DATAGRAMS: (u32, u32) = (250, 100);

/// STUN datagrams handled for one viewer from addresses that it has not proved: per second, and at
/// once. A browser that connects sends about ten from each. Beyond it they are dropped unread, so
/// that checking forged credentials costs little.
pub const STUN_STRANGERS: (u32, u32) = (50, 50);

/// Other datagrams (DTLS, STUN from proved addresses) handled for one viewer: per second, and at
/// once. A controller's input is 240 a second, plus acknowledgements.
pub const PROTOCOL_DATAGRAMS: (u32, u32) = (2_000, 1_000);

/// Remote addresses that one viewer may ever prove. The protocol library keeps each: one more is
/// refused and counted.
pub const REMOTE_CANDIDATES_MAX: usize = 50;

/// Bounds that depend on the machine or the service.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Viewers on this core. One core carries about 2,500 viewers of 2.5 Mbit/s at best; the rest
    /// is for streams of lower rate. Beyond it: [`crate::JoinError::Full`].
    pub viewers_max: usize,
    /// Streams on this core; a device host has tens. Beyond it streams are not taken up.
    pub streams_max: usize,
    /// Frames in one stream's cache: 10 s at 60 fps. At the bound the cache closes until the next
    /// keyframe, and joiners wait for one, requested on their behalf.
    pub gop_frames_max: usize,
    /// Bytes in one stream's cache: 10 s at 3.3 Mbit/s. Same behaviour at the bound.
    pub gop_bytes_max: usize,
    /// Time within which ICE and DTLS must complete. str0m prunes a silent peer's pairs after the
    /// same 15 s.
    pub connect_deadline: Duration,
    /// Time given to the farewell (BYE, DTLS close) to be sent.
    pub close_deadline: Duration,
    /// Least time between two keyframe requests of one stream. A keyframe of a 2.5 Mbit/s stream
    /// takes 100-200 ms to arrive: asking again sooner only makes the encoder send two.
    pub keyframe_interval: Duration,
    /// After this long a waiting viewer's request is repeated, in case the first was lost.
    pub keyframe_retry: Duration,
    /// Input messages per second that one controller may send on average. A 120 Hz screen with
    /// two fingers moves 240 times a second.
    pub input_rate: u32,
    /// Input messages that may come at once.
    pub input_burst: u32,
    /// Packets of backlog (replay, large keyframe) sent per pacing tick to one viewer.
    pub pace_packets: usize,
    /// Length of a pacing tick. 48 packets per 4 ms is about 110 Mbit/s: a two-second group of
    /// pictures at 2.5 Mbit/s (570 packets) is out after 50 ms and fits a browser's socket buffer
    /// all along.
    pub pace_tick: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            viewers_max: 4_000,
            streams_max: 1_024,
            gop_frames_max: 600,
            gop_bytes_max: 4 * 1024 * 1024,
            connect_deadline: Duration::from_secs(15),
            close_deadline: Duration::from_secs(1),
            keyframe_interval: Duration::from_millis(300),
            keyframe_retry: Duration::from_secs(1),
            input_rate: 480,
            input_burst: 240,
            pace_packets: 48,
            pace_tick: Duration::from_millis(4),
        }
    }
}
