//! SRTP packets (RFC 3711, 3.1; RFC 7714, 8): one context that seals, one that opens. Not header
//! writing. Invariant: the opener's state moves only by packets that have authenticated.

use super::cipher::Cipher;
use super::derive::Labels;
use super::replay::Window;
use super::{Keying, SrtpError};

/// Sources that an [`RtpOpener`] keeps state of; packets of others are refused.
pub const MAX_RTP_SOURCES: usize = 8;

/// An index has 48 bits: rollover counter and sequence number.
const INDEX_END: u64 = 1 << 48;

const MIN_HEADER_LEN: usize = 12;

/// Seals RTP packets. It counts nothing, so one serves all sources of the association.
#[derive(Debug)]
pub struct RtpSealer {
    cipher: Cipher,
}

impl RtpSealer {
    /// The context of what we send.
    pub fn derive(keying: &Keying) -> Result<Self, SrtpError> {
        Ok(Self { cipher: keying.ours().cipher(Labels::Rtp)? })
    }

    #[cfg(test)]
    pub(super) const fn with(cipher: Cipher) -> Self {
        Self { cipher }
    }

    /// How much longer a packet gets: 16 or 10 bytes.
    pub const fn overhead(&self) -> usize {
        self.cipher.tag_len()
    }

    /// Seals one packet. `datagram[..header_len]` holds its RTP header with extensions; the payload
    /// is encrypted out of place behind it, and the tag follows. Returns the packet's length.
    ///
    /// `index` is `rollover counter << 16 | sequence number`. **Each pair of index and source is
    /// for one packet only**, which is the caller's to keep: two different packets under one pair
    /// give the keys away. Sealing the very same packet again is harmless.
    ///
    /// `None`, with the bytes behind the header unspecified: no room, a header of less than 12
    /// bytes, or an index of more than 48 bits. No allocation.
    #[inline]
    pub fn seal(
        &self,
        index: u64,
        ssrc: u32,
        header_len: usize,
        payload: &[u8],
        datagram: &mut [u8],
    ) -> Option<usize> {
        let clear_len = header_len.checked_add(payload.len())?;
        let len = clear_len.checked_add(self.overhead())?;
        let packet = datagram.get_mut(..len)?;
        if header_len < MIN_HEADER_LEN || index >= INDEX_END {
            return None;
        }
        let (clear, tag) = packet.split_at_mut(clear_len);
        let (header, body) = clear.split_at_mut(header_len);
        match &self.cipher {
            Cipher::Gcm(gcm) => gcm.seal((ssrc, index), header, payload, body, tag).ok()?,
            Cipher::Cm(cm) => {
                body.copy_from_slice(payload);
                cm.apply((ssrc, index), body).ok()?;
                tag.copy_from_slice(&cm.tag(clear, &rollover(index)));
            }
        }
        Some(len)
    }
}

/// The rollover counter as it is authenticated behind a packet (RFC 3711, 4.2).
fn rollover(index: u64) -> [u8; 4] {
    let [_, _, roc @ .., _, _] = index.to_be_bytes();
    roc
}

/// What was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtpOpened {
    /// Source of the packet.
    pub ssrc: u32,
    /// `rollover counter << 16 | sequence number`.
    pub index: u64,
}

/// Opens RTP packets of at most [`MAX_RTP_SOURCES`] sources, each of which begins with a rollover
/// counter of 0.
#[derive(Debug)]
pub struct RtpOpener {
    cipher: Cipher,
    sources: Vec<(u32, Window<16>)>,
}

impl RtpOpener {
    /// The context of what the peer sends.
    pub fn derive(keying: &Keying) -> Result<Self, SrtpError> {
        Ok(Self { cipher: keying.theirs().cipher(Labels::Rtp)?, sources: Vec::new() })
    }

    #[cfg(test)]
    pub(super) const fn with(cipher: Cipher) -> Self {
        Self { cipher, sources: Vec::new() }
    }

    /// Opens one packet. `out` is emptied and then holds the RTP packet in clear; on an error it is
    /// left empty.
    pub fn open(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Result<RtpOpened, SrtpError> {
        out.clear();
        let malformed = SrtpError::Malformed(packet.len());
        let header_len = header_len(packet).ok_or(malformed)?;
        let clear_len = packet.len().checked_sub(self.cipher.tag_len()).ok_or(malformed)?;
        if clear_len < header_len {
            return Err(malformed);
        }
        let seq = u16::from_be_bytes([packet[2], packet[3]]);
        let ssrc = u32::from_be_bytes([packet[8], packet[9], packet[10], packet[11]]);
        let known = self.sources.iter().position(|(source, _)| *source == ssrc);
        let index = match known {
            Some(at) => guess(self.sources[at].1.highest(), seq).ok_or(SrtpError::Replayed)?,
            None => u64::from(seq),
        };
        let opened = self.decrypt((ssrc, index), packet.split_at(clear_len), header_len, out);
        opened.and_then(|()| self.admit(known, ssrc, index)).inspect_err(|_| out.clear())?;
        Ok(RtpOpened { ssrc, index })
    }

    fn decrypt(
        &self,
        of: (u32, u64),
        (clear, tag): (&[u8], &[u8]),
        header_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), SrtpError> {
        let (header, body) = clear.split_at(header_len);
        match &self.cipher {
            Cipher::Gcm(gcm) => {
                out.extend_from_slice(header);
                out.resize(clear.len(), 0);
                gcm.open(of, header, body, tag, &mut out[header_len..])
            }
            Cipher::Cm(cm) => {
                cm.verify(clear, &rollover(of.1), tag)?;
                out.extend_from_slice(clear);
                cm.apply(of, &mut out[header_len..])
            }
        }
    }

    /// Notes a packet that has authenticated.
    fn admit(&mut self, known: Option<usize>, ssrc: u32, index: u64) -> Result<(), SrtpError> {
        let at = match known {
            Some(at) => at,
            None if self.sources.len() == MAX_RTP_SOURCES => return Err(SrtpError::TooManySources),
            None => {
                self.sources.push((ssrc, Window::new(index)));
                self.sources.len() - 1
            }
        };
        let window = &mut self.sources[at].1;
        if !window.is_fresh(index) {
            return Err(SrtpError::Replayed);
        }
        window.mark(index);
        Ok(())
    }
}

/// Length of the header with sources and extension, where all of it is there.
pub(crate) fn header_len(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    if first >> 6 != 2 {
        return None;
    }
    let mut len = MIN_HEADER_LEN + 4 * usize::from(first & 0x0f);
    if first & 0x10 != 0 {
        let words = packet.get(len + 2..len + 4)?;
        len += 4 + 4 * usize::from(u16::from_be_bytes([words[0], words[1]]));
    }
    (packet.len() >= len).then_some(len)
}

/// The index nearest to the highest one that ends in `seq` (RFC 3711, 3.3.1), or `None` when it is
/// before the first or after the last.
fn guess(highest: u64, seq: u16) -> Option<u64> {
    let newest = highest & 0xffff;
    let seq = u64::from(seq);
    let here = highest - newest + seq;
    let guess = if newest < 0x8000 && seq > newest + 0x8000 {
        here.checked_sub(0x1_0000)?
    } else if newest >= 0x8000 && seq < newest - 0x8000 {
        here + 0x1_0000
    } else {
        here
    };
    (guess < INDEX_END).then_some(guess)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rollover_counter_is_guessed_as_the_rfc_says() {
        let at = |roc: u64, seq: u64| roc << 16 | seq;
        assert_eq!(guess(at(3, 10), 11), Some(at(3, 11)));
        assert_eq!(guess(at(3, 10), 0xfff0), Some(at(2, 0xfff0)));
        assert_eq!(guess(at(3, 0xfff0), 10), Some(at(4, 10)));
        assert_eq!(guess(at(3, 0xfff0), 0x7ff0), Some(at(3, 0x7ff0)));
        assert_eq!(guess(at(3, 0xfff0), 0x7fef), Some(at(4, 0x7fef)));
        assert_eq!(guess(at(3, 10), 0x800a), Some(at(3, 0x800a)));
        assert_eq!(guess(at(3, 10), 0x800b), Some(at(2, 0x800b)));
        assert_eq!(guess(at(0, 10), 0xfff0), None, "before the first");
        assert_eq!(guess(at(0xffff_ffff, 0xfff0), 10), None, "after the last");
    }
}
