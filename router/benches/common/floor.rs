//! The physical limit: what sending sealed media costs when nothing else is done. Per packet one
//! header from a template, one AES-256-GCM seal from the shared payload into the send buffer, and
//! its share of a `sendmmsg` of segmented messages. Not a router: no state beyond keys and
//! sequence numbers, no feedback, no history.

use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use fanlight_router::bench::send_bare;
use mio::net::UdpSocket;

/// Bytes of an RTP payload: a packet of about 1,200 bytes.
pub const PAYLOAD_BYTES: usize = 1_172;
/// RTP header with MID and TWCC extensions.
pub const HEADER_BYTES: usize = 24;
/// A packet as it is sent.
pub const PACKET_BYTES: usize = HEADER_BYTES + PAYLOAD_BYTES + TAG_BYTES;
/// Packets of the frames of a 2.5 Mbit/s stream of 60 frames per second.
pub const FRAMES: [usize; 3] = [4, 4, 5];
/// Viewers per `sendmmsg`.
pub const VIEWERS_PER_CALL: usize = 16;
const TAG_BYTES: usize = 16;

struct Viewer {
    key: LessSafeKey,
    salt: [u8; 12],
    to: SocketAddr,
    seq: u16,
}

/// Seals and sends frames.
pub struct Floor {
    viewers: Vec<Viewer>,
    template: [u8; HEADER_BYTES],
    payload: Vec<u8>,
    buffer: Vec<u8>,
    frame: usize,
}

impl Floor {
    pub fn new(destinations: &[SocketAddr]) -> Result<Self> {
        let mut viewers = Vec::new();
        for (n, to) in destinations.iter().enumerate() {
            let byte = u8::try_from(n % 251)?;
            let key = UnboundKey::new(&AES_256_GCM, &[byte; 32]).map_err(|_| anyhow!("no key"))?;
            let key = LessSafeKey::new(key);
            viewers.push(Viewer { key, salt: [byte; 12], to: *to, seq: 0 });
        }
        let mut template = [0; HEADER_BYTES];
        template[0] = 0x90;
        template[12..16].copy_from_slice(&[0xBE, 0xDE, 0, 2]);
        Ok(Self {
            viewers,
            template,
            payload: vec![7; PAYLOAD_BYTES],
            buffer: vec![0; VIEWERS_PER_CALL * 5 * PACKET_BYTES],
            frame: 0,
        })
    }

    /// One frame to all viewers; with no socket it is only sealed. Gives the packets.
    pub fn frame(&mut self, socket: Option<&UdpSocket>) -> u64 {
        let packets = FRAMES[self.frame % FRAMES.len()];
        self.frame += 1;
        let run = packets * PACKET_BYTES;
        for viewers in self.viewers.chunks_mut(VIEWERS_PER_CALL) {
            for (viewer, out) in viewers.iter_mut().zip(self.buffer.chunks_exact_mut(run)) {
                for out in out.chunks_exact_mut(PACKET_BYTES) {
                    seal(viewer, &self.template, &self.payload, out);
                }
            }
            if let Some(socket) = socket {
                send(socket, viewers, &self.buffer, run);
            }
        }
        (packets * self.viewers.len()) as u64
    }
}

#[inline]
fn seal(viewer: &mut Viewer, template: &[u8; HEADER_BYTES], payload: &[u8], out: &mut [u8]) {
    viewer.seq = viewer.seq.wrapping_add(1);
    let seq = viewer.seq.to_be_bytes();
    let (header, rest) = out.split_at_mut(HEADER_BYTES);
    header.copy_from_slice(template);
    header[2..4].copy_from_slice(&seq);
    header[17..19].copy_from_slice(&seq);
    let (body, tag) = rest.split_at_mut(PAYLOAD_BYTES);
    let mut nonce = viewer.salt;
    nonce[10] ^= seq[0];
    nonce[11] ^= seq[1];
    let nonce = Nonce::assume_unique_for_key(nonce);
    // The lengths are right by construction, and a benchmark's key protects nothing.
    let sealed =
        viewer.key.seal_out_of_place_scatter(nonce, Aad::from(&*header), payload, body, &[], tag);
    assert!(sealed.is_ok(), "lengths do not match");
}

/// One call for up to [`VIEWERS_PER_CALL`] viewers.
fn send(socket: &UdpSocket, viewers: &[Viewer], buffer: &[u8], run: usize) {
    let segment = u16::try_from(PACKET_BYTES).ok();
    let messages: [(SocketAddr, &[u8], Option<u16>); VIEWERS_PER_CALL] =
        std::array::from_fn(|n| match viewers.get(n) {
            Some(viewer) => (viewer.to, &buffer[n * run..(n + 1) * run], segment),
            None => (viewers[0].to, &[][..], None),
        });
    let messages = &messages[..viewers.len()];
    let sent = send_bare(socket, messages);
    assert!(matches!(sent, Ok(n) if n == messages.len()), "the kernel took {sent:?}");
}
