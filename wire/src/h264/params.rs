//! The last parameter sets of a stream, to be put in front of keyframes. Not a validator of what
//! is in them. Invariant: at most [`MAX_SPS`] + [`MAX_PPS`] sets of at most [`MAX_SPS_LEN`] bytes
//! are held; the oldest goes first.

use super::{MAX_SPS_LEN, Nal, NalType, SpsError, SpsFacts, nal_units, write_nal};

/// SPS held. Real streams have one.
const MAX_SPS: usize = 4;

/// PPS held. Real streams have one to three.
const MAX_PPS: usize = 16;

/// A stream's parameter sets, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterSets {
    sps: Vec<(u32, Vec<u8>)>,
    pps: Vec<(u32, Vec<u8>)>,
}

impl ParameterSets {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers the parameter sets of an access unit (or of a bare configuration packet). Gives
    /// whether anything changed.
    pub fn absorb(&mut self, annex_b: &[u8]) -> bool {
        let mut changed = false;
        for nal in nal_units(annex_b).filter(|n| n.bytes.len() <= MAX_SPS_LEN) {
            changed |= match nal.kind {
                // Three bytes of profile and level come before the id.
                NalType::Sps => put(&mut self.sps, MAX_SPS, nal, 4),
                NalType::Pps => put(&mut self.pps, MAX_PPS, nal, 1),
                _ => false,
            };
        }
        changed
    }

    /// Whether there is at least one of each.
    pub fn is_complete(&self) -> bool {
        !self.sps.is_empty() && !self.pps.is_empty()
    }

    /// The newest SPS, without start code.
    pub fn sps(&self) -> Option<&[u8]> {
        self.sps.last().map(|(_, nal)| nal.as_slice())
    }

    /// The newest PPS, without start code.
    pub fn pps(&self) -> Option<&[u8]> {
        self.pps.last().map(|(_, nal)| nal.as_slice())
    }

    /// What the newest SPS says; `None` before the first one.
    pub fn facts(&self) -> Option<Result<SpsFacts, SpsError>> {
        self.sps().map(SpsFacts::parse)
    }

    /// The access unit with SPS and PPS in front if it is a keyframe that lacks any of them (an
    /// access unit delimiter stays first); otherwise as it is. A set that the unit brings itself
    /// is taken from the unit.
    pub fn prepend_if_key(&self, annex_b: &[u8]) -> Vec<u8> {
        let has = |kind| nal_units(annex_b).any(|n| n.kind == kind);
        let complete = has(NalType::Sps) && has(NalType::Pps);
        if !has(NalType::IdrSlice) || complete {
            return annex_b.to_vec();
        }
        let mut sets = self.clone();
        sets.absorb(annex_b);
        let held = sets.sps.iter().chain(&sets.pps);
        let mut out = Vec::with_capacity(
            annex_b.len() + 64 + held.clone().map(|(_, n)| n.len() + 4).sum::<usize>(),
        );
        let is_set = |n: &Nal<'_>| matches!(n.kind, NalType::Sps | NalType::Pps);
        let (delimiters, others): (Vec<_>, Vec<_>) =
            nal_units(annex_b).filter(|n| !is_set(n)).partition(|n| n.kind == NalType::Aud);
        let parts = delimiters.iter().map(|n| n.bytes);
        let parts = parts.chain(held.map(|(_, n)| n.as_slice()));
        for nal in parts.chain(others.iter().map(|n| n.bytes)) {
            write_nal(nal, &mut out);
        }
        out
    }
}

/// Puts a set where its id is, moved to the end as the newest.
fn put(held: &mut Vec<(u32, Vec<u8>)>, max: usize, nal: Nal<'_>, id_at: usize) -> bool {
    let Some(id) = nal.bytes.get(id_at..).and_then(exp_golomb) else { return false };
    if let Some(i) = held.iter().position(|(held_id, _)| *held_id == id) {
        if held[i].1 == nal.bytes {
            return false;
        }
        held.remove(i);
    } else if held.len() == max {
        held.remove(0);
    }
    held.push((id, nal.bytes.to_vec()));
    true
}

/// An unsigned Exp-Golomb number of at most 17 bits at the start of `bytes`: enough for an id of a
/// parameter set, whose first byte is never zero in a valid stream longer than its prefix.
fn exp_golomb(bytes: &[u8]) -> Option<u32> {
    let mut window = [0u8; 4];
    let n = bytes.len().min(4);
    window[..n].copy_from_slice(&bytes[..n]);
    let word = u32::from_be_bytes(window);
    let zeros = word.leading_zeros();
    (n > 0 && zeros <= 8).then(|| (word << zeros >> (31 - zeros)) - 1)
}
