//! One encoded picture, already cut into RTP payloads: immutable, shared by `Arc` between all
//! shards and viewers.
//!
//! Not a packet: sequence numbers, timestamps as seen by a viewer and header extensions are made
//! per viewer in `rewrite` and `egress`. Invariant: nobody writes to a frame after the ingest
//! side made it, so that one copy serves everyone.

use std::sync::Arc;

/// What a sequence parameter set says about the pictures that follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpsFacts {
    /// Cropped width in pixels.
    pub width: u32,
    /// Cropped height in pixels.
    pub height: u32,
    /// `profile_idc`.
    pub profile_idc: u8,
    /// The byte of constraint flags.
    pub constraint_flags: u8,
    /// `level_idc`.
    pub level_idc: u8,
    /// Reordering depth, when the stream states it.
    pub max_num_reorder_frames: Option<u32>,
}

/// One encoded picture.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Epoch of the publisher.
    pub epoch: u64,
    /// Consecutive per stream and epoch; a hole means that the source or the hop lost a frame.
    pub index: u64,
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
