//! SRTCP packets (RFC 3711, 3.4; RFC 7714, 9): one context that seals, one that opens. Not RTCP
//! parsing. Invariant: the sealer's index never repeats; the opener's state moves only by packets
//! that have authenticated.

use super::cipher::{CM_TAG_LEN, Cipher, GCM_TAG_LEN};
use super::derive::Labels;
use super::replay::Window;
use super::{Keying, SrtpError};

/// Sources that an [`RtcpOpener`] keeps state of; packets of others are refused. A browser sends
/// RTCP from one source for each of its receivers, each with an index of its own.
pub const MAX_RTCP_SOURCES: usize = 16;

/// Length of what stays in clear: header and source of the first packet.
const CLEAR_LEN: usize = 8;

/// Length of the word of encryption bit and index.
const WORD_LEN: usize = 4;

/// In that word: the packet is encrypted.
const ENCRYPTED: u32 = 1 << 31;

/// Seals RTCP packets under one index for all sources.
#[derive(Debug)]
pub struct RtcpSealer {
    cipher: Cipher,
    /// Of the next packet; [`ENCRYPTED`] when there is none left.
    index: u32,
}

impl RtcpSealer {
    /// The context of what we send.
    pub fn derive(keying: &Keying) -> Result<Self, SrtpError> {
        Ok(Self { cipher: keying.ours().cipher(Labels::Rtcp)?, index: 0 })
    }

    #[cfg(test)]
    pub(super) const fn with(cipher: Cipher, index: u32) -> Self {
        Self { cipher, index }
    }

    /// Seals one compound packet. `out` is emptied and then holds the SRTCP packet; on an error it
    /// is left empty. [`SrtpError::Exhausted`] after 2^31 packets, from then on for ever.
    pub fn protect(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Result<(), SrtpError> {
        out.clear();
        let Some((clear, body)) = packet.split_first_chunk::<CLEAR_LEN>() else {
            return Err(SrtpError::Malformed(packet.len()));
        };
        if self.index & ENCRYPTED != 0 {
            return Err(SrtpError::Exhausted);
        }
        let index = self.index;
        // Even if sealing fails: an index is used once.
        self.index += 1;
        let of = (source(clear), u64::from(index));
        let word = (ENCRYPTED | index).to_be_bytes();
        out.extend_from_slice(clear);
        match &self.cipher {
            Cipher::Gcm(gcm) => {
                out.resize(packet.len() + GCM_TAG_LEN, 0);
                let (sealed, tag) = out[CLEAR_LEN..].split_at_mut(body.len());
                let sealed = gcm.seal(of, &associated(clear, word), body, sealed, tag);
                sealed.inspect_err(|_| out.clear())?;
                out.extend_from_slice(&word);
            }
            Cipher::Cm(cm) => {
                out.extend_from_slice(body);
                cm.apply(of, &mut out[CLEAR_LEN..]).inspect_err(|_| out.clear())?;
                out.extend_from_slice(&word);
                let tag = cm.tag(out, &[]);
                out.extend_from_slice(&tag);
            }
        }
        Ok(())
    }
}

/// Opens RTCP packets of at most [`MAX_RTCP_SOURCES`] sources.
#[derive(Debug)]
pub struct RtcpOpener {
    cipher: Cipher,
    sources: Vec<(u32, Window<2>)>,
}

impl RtcpOpener {
    /// The context of what the peer sends.
    pub fn derive(keying: &Keying) -> Result<Self, SrtpError> {
        Ok(Self { cipher: keying.theirs().cipher(Labels::Rtcp)?, sources: Vec::new() })
    }

    #[cfg(test)]
    pub(super) const fn with(cipher: Cipher) -> Self {
        Self { cipher, sources: Vec::new() }
    }

    /// Opens one packet. `out` is emptied and then holds the compound packet in clear; on an error
    /// it is left empty.
    pub fn open(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Result<(), SrtpError> {
        out.clear();
        let malformed = SrtpError::Malformed(packet.len());
        let tail_len = self.cipher.tag_len() + WORD_LEN;
        let Some((clear, rest)) = packet.split_first_chunk::<CLEAR_LEN>() else {
            return Err(malformed);
        };
        let body_len = rest.len().checked_sub(tail_len).ok_or(malformed)?;
        if clear[0] >> 6 != 2 {
            return Err(malformed);
        }
        let (body, tail) = rest.split_at(body_len);
        let opened = self.decrypt(clear, body, tail, out);
        let admitted = opened.and_then(|index| self.admit(source(clear), index));
        admitted.inspect_err(|_| out.clear())
    }

    /// Authenticates and decrypts; the packet's index.
    fn decrypt(
        &self,
        clear: &[u8; CLEAR_LEN],
        body: &[u8],
        tail: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<u32, SrtpError> {
        // The word is behind the tag or in front of it.
        let (tag, word) = match &self.cipher {
            Cipher::Gcm(_) => tail.split_at(GCM_TAG_LEN),
            Cipher::Cm(_) => {
                let (word, tag) = tail.split_at(tail.len() - CM_TAG_LEN);
                (tag, word)
            }
        };
        let word: [u8; WORD_LEN] = word.try_into().map_err(|_| SrtpError::Library)?;
        let value = u32::from_be_bytes(word);
        if value & ENCRYPTED == 0 {
            return Err(SrtpError::NotEncrypted);
        }
        let index = value & !ENCRYPTED;
        let of = (source(clear), u64::from(index));
        out.extend_from_slice(clear);
        match &self.cipher {
            Cipher::Gcm(gcm) => {
                out.resize(CLEAR_LEN + body.len(), 0);
                gcm.open(of, &associated(clear, word), body, tag, &mut out[CLEAR_LEN..])?;
            }
            Cipher::Cm(cm) => {
                out.extend_from_slice(body);
                cm.verify(out, &word, tag)?;
                cm.apply(of, &mut out[CLEAR_LEN..])?;
            }
        }
        Ok(index)
    }

    /// Notes a packet that has authenticated.
    fn admit(&mut self, ssrc: u32, index: u32) -> Result<(), SrtpError> {
        let index = u64::from(index);
        let at = match self.sources.iter().position(|(source, _)| *source == ssrc) {
            Some(at) => at,
            None if self.sources.len() == MAX_RTCP_SOURCES => {
                return Err(SrtpError::TooManySources);
            }
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

/// Source of the first packet.
fn source(clear: &[u8; CLEAR_LEN]) -> u32 {
    u32::from_be_bytes([clear[4], clear[5], clear[6], clear[7]])
}

/// What is authenticated but not encrypted (RFC 7714, 9.2).
fn associated(clear: &[u8; CLEAR_LEN], word: [u8; WORD_LEN]) -> [u8; CLEAR_LEN + WORD_LEN] {
    let mut both = [0; CLEAR_LEN + WORD_LEN];
    both[..CLEAR_LEN].copy_from_slice(clear);
    both[CLEAR_LEN..].copy_from_slice(&word);
    both
}
