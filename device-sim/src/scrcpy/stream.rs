//! Bytes of the scrcpy media sockets. All numbers are big-endian.
//!
//! ```text
//! stream header   3.x: codec u32 | width u32 | height u32      4.x: codec u32
//! session packet  4.x: flags u32 (bit 31 = 1, bit 0 = client resized) | width u32 | height u32
//! packet header   3.x: bit 63 config, bit 62 key, 62-bit pts us | size u32
//!                 4.x: bit 63 = 0, bit 62 config, bit 61 key, 61-bit pts us | size u32
//! ```
//! Writing only; reading is the client's business. Invariant: a config packet's 64-bit word is its
//! flag alone.

use super::version::{Layout, ScrcpyVersion};

/// `h264` as a codec id.
pub const CODEC_H264: u32 = 0x6832_3634;
/// Stands where a codec id would: this stream is disabled by the device.
pub const STREAM_DISABLED: u32 = 0;
/// Stands where a codec id would: the stream was asked for in a way that cannot be served.
pub const STREAM_ERROR: u32 = 1;
/// Length of the device name on the first socket.
pub const DEVICE_NAME_LEN: usize = 64;

/// What a packet holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    /// Parameter sets.
    Config,
    /// A picture, with its time stamp in microseconds.
    Picture {
        /// Presentation time.
        pts_us: u64,
        /// Whether decoding can start here.
        key: bool,
    },
}

/// The device name, cut to 63 bytes at a character and padded with zeros.
#[must_use]
pub fn device_meta(name: &str) -> [u8; DEVICE_NAME_LEN] {
    let mut meta = [0; DEVICE_NAME_LEN];
    let mut end = name.len().min(DEVICE_NAME_LEN - 1);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    meta[..end].copy_from_slice(&name.as_bytes()[..end]);
    meta
}

/// The header of a video stream.
#[must_use]
pub fn video_header(version: ScrcpyVersion, width: u32, height: u32) -> Vec<u8> {
    let mut header = CODEC_H264.to_be_bytes().to_vec();
    if version.layout() == Layout::V3 {
        header.extend(width.to_be_bytes());
        header.extend(height.to_be_bytes());
    }
    header
}

/// A session packet, in the versions that have them.
#[must_use]
pub fn session_packet(
    version: ScrcpyVersion,
    width: u32,
    height: u32,
    client_resized: bool,
) -> Option<[u8; 12]> {
    let flags = (1u32 << 31) | u32::from(client_resized);
    (version.layout() == Layout::V4).then(|| twelve(flags, width, height))
}

/// The header in front of a packet of `size` bytes.
#[must_use]
pub fn packet_header(version: ScrcpyVersion, kind: PacketKind, size: usize) -> [u8; 12] {
    let (config_bit, key_bit) = match version.layout() {
        Layout::V3 => (63, 62),
        Layout::V4 => (62, 61),
    };
    let word = match kind {
        PacketKind::Config => 1u64 << config_bit,
        PacketKind::Picture { pts_us, key } => {
            (pts_us & ((1 << key_bit) - 1)) | (u64::from(key) << key_bit)
        }
    };
    let mut header = [0; 12];
    header[..8].copy_from_slice(&word.to_be_bytes());
    // An access unit is far below 4 GiB: the encoder's output for one picture.
    header[8..].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    header
}

fn twelve(a: u32, b: u32, c: u32) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&a.to_be_bytes());
    out[4..8].copy_from_slice(&b.to_be_bytes());
    out[8..].copy_from_slice(&c.to_be_bytes());
    out
}
