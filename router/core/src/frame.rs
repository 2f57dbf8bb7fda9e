//! One encoded picture, already cut into RTP payloads: immutable, shared by `Arc` between all
//! shards and viewers.
//!
//! Not a packet: sequence numbers, timestamps as seen by a viewer and header extensions are made
//! per viewer in `rewrite` and `egress`. Invariant: nobody writes to a frame after the ingest
//! side made it, so that one copy serves everyone.

use std::sync::Arc;
use std::time::Instant;

use fanlight_wire::h264::SpsFacts;

/// One encoded picture.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Epoch of the publisher.
    pub epoch: u64,
    /// Consecutive per stream and epoch; a hole means that the source or the hop lost a frame.
    pub index: u64,
    /// When it was complete in this router.
    pub arrived: Instant,
    /// The source's 90 kHz time stamp.
    pub rtp_time: u32,
    /// When the picture was captured, in microseconds of the Unix epoch.
    pub capture_unix_us: Option<u64>,
    /// Whether decoding can start here.
    pub key: bool,
    /// Whether no later picture refers to this one (`nal_ref_idc` 0).
    pub discardable: bool,
    /// RTP payloads in order, all of one size but the last.
    pub payloads: Vec<Arc<[u8]>>,
    /// On a keyframe: what its parameter set says.
    pub params: Option<Arc<SpsFacts>>,
}

impl Frame {
    /// Sum of the payloads' sizes in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payloads.iter().map(|p| p.len()).sum()
    }
}
