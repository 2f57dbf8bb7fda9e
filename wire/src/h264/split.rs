//! Cuts an Annex-B byte stream, which arrives in pieces, into access units. Not for sources that
//! mark their packets: those need no guessing. Invariant: at most [`MAX_ACCESS_UNIT`] bytes plus
//! one push are held.

use super::{MAX_ACCESS_UNIT, NalType, find_start_code};

/// Why splitting lost data. The splitter goes on at the next start code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// No access unit ended within [`MAX_ACCESS_UNIT`] bytes; they were dropped.
    #[error("no access unit ended within {held} bytes")]
    TooLarge {
        /// Bytes dropped.
        held: usize,
    },
}

/// Incremental splitter: push bytes, then take access units until there is none.
///
/// A byte stream shows the end of an access unit only by the start of the next one. A live source
/// that knows it has written a whole picture (its pipe fell silent) can call
/// [`flush`](Self::flush) so as not to wait a frame.
#[derive(Debug, Default)]
pub struct AnnexBSplitter {
    buf: Vec<u8>,
    /// No start code begins before this index, except those already seen.
    scanned: usize,
    /// A start code was seen; what came before it is gone.
    started: bool,
    /// The access unit in `buf` holds a slice.
    has_slice: bool,
}

impl AnnexBSplitter {
    /// A splitter before the first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next access unit, with its start codes; `None` when more bytes are needed.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot be pushed to")]
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, SplitError> {
        while let Some(at) = find_start_code(&self.buf, self.scanned) {
            // Header and first payload byte decide; wait for both.
            let Some(&[header, first]) = self.buf.get(at + 3..at + 5) else {
                self.scanned = at;
                return self.check_bound();
            };
            // A four-byte start code's leading zero belongs to the unit behind it.
            let begin = if at > 0 && self.buf[at - 1] == 0 { at - 1 } else { at };
            let kind = NalType::of_header(header);
            if !self.started {
                self.cut(begin);
                self.started = true;
                self.scanned = at - begin + 3;
                self.has_slice = kind.is_slice();
            } else if self.has_slice && begins_access_unit(kind, first) {
                let unit = self.cut(begin);
                self.scanned = at - begin + 3;
                self.has_slice = kind.is_slice();
                return if unit.len() > MAX_ACCESS_UNIT {
                    Err(SplitError::TooLarge { held: unit.len() })
                } else {
                    Ok(Some(unit))
                };
            } else {
                self.scanned = at + 3;
                self.has_slice |= kind.is_slice();
            }
        }
        // The last two bytes may be the start of a start code.
        self.scanned = self.scanned.max(self.buf.len().saturating_sub(2));
        if !self.started {
            // Nothing before the first start code is of use; keep three bytes that may begin it.
            let keep_from = self.buf.len().saturating_sub(3);
            self.cut(keep_from);
            self.scanned = 0;
        }
        self.check_bound()
    }

    /// What is held, as the last access unit: for the end of the stream, or for a source known to
    /// have finished a picture. `None` when no slice is held.
    pub fn flush(&mut self) -> Option<Vec<u8>> {
        if !self.has_slice {
            return None;
        }
        let unit = std::mem::take(&mut self.buf);
        *self = Self::default();
        Some(unit)
    }

    fn check_bound(&mut self) -> Result<Option<Vec<u8>>, SplitError> {
        let held = self.buf.len();
        if held <= MAX_ACCESS_UNIT {
            return Ok(None);
        }
        *self = Self::default();
        Err(SplitError::TooLarge { held })
    }

    fn cut(&mut self, at: usize) -> Vec<u8> {
        let rest = self.buf.split_off(at);
        std::mem::replace(&mut self.buf, rest)
    }
}

/// Whether a NAL unit begins a new access unit, given that the current one has its slices
/// (ITU-T H.264 section 7.4.1.2.3, for streams of frames without redundant pictures).
fn begins_access_unit(kind: NalType, first_payload_byte: u8) -> bool {
    match kind {
        NalType::Aud | NalType::Sps | NalType::Pps | NalType::Sei => true,
        NalType::Other(n) => (14..=18).contains(&n),
        // first_mb_in_slice is an Exp-Golomb number: a leading 1 bit says zero.
        NalType::NonIdrSlice | NalType::IdrSlice | NalType::Partition(2) => {
            first_payload_byte & 0x80 != 0
        }
        _ => false,
    }
}
