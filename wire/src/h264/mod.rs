//! H.264 as it concerns a router: NAL units in Annex-B, what an access unit is, what an SPS says,
//! parameter sets in front of keyframes. Not a decoder. Invariant: no loop and no buffer here
//! outgrows the access unit given, and an access unit is at most [`MAX_ACCESS_UNIT`].

mod params;
mod split;
mod sps;

pub use params::ParameterSets;
pub use split::{AnnexBSplitter, SplitError};
pub use sps::{MAX_SPS_LEN, SpsError, SpsFacts};

/// Greatest access unit, 4 MiB: ten times the greatest keyframe of a 1080p screen at high quality.
pub const MAX_ACCESS_UNIT: usize = 4 * 1024 * 1024;

/// Greatest number of NAL units in an access unit. Encoders use up to a slice per macroblock row
/// (136 at 2160 lines); the rest is room for SEI.
pub const MAX_NALS: usize = 1024;

/// What is written in front of each NAL unit.
pub const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Appends a NAL unit with its start code.
pub fn write_nal(nal: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&START_CODE);
    out.extend_from_slice(nal);
}

/// What a NAL unit is: `nal_unit_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NalType {
    /// 1: slice of a picture that is not an IDR picture.
    NonIdrSlice,
    /// 2, 3, 4: slice data partition. Not in any profile browsers decode.
    Partition(u8),
    /// 5: slice of an IDR picture.
    IdrSlice,
    /// 6: supplemental enhancement information.
    Sei,
    /// 7: sequence parameter set.
    Sps,
    /// 8: picture parameter set.
    Pps,
    /// 9: access unit delimiter.
    Aud,
    /// 10: end of sequence.
    EndOfSequence,
    /// 11: end of stream.
    EndOfStream,
    /// 12: filler data.
    Filler,
    /// Any other number, 0 or 13..=31.
    Other(u8),
}

impl NalType {
    /// The type in a NAL unit's header byte.
    pub const fn of_header(header: u8) -> Self {
        match header & 0x1f {
            1 => Self::NonIdrSlice,
            n @ 2..=4 => Self::Partition(n),
            5 => Self::IdrSlice,
            6 => Self::Sei,
            7 => Self::Sps,
            8 => Self::Pps,
            9 => Self::Aud,
            10 => Self::EndOfSequence,
            11 => Self::EndOfStream,
            12 => Self::Filler,
            n => Self::Other(n),
        }
    }

    /// Whether it carries picture data ("VCL").
    pub const fn is_slice(self) -> bool {
        matches!(self, Self::NonIdrSlice | Self::Partition(_) | Self::IdrSlice)
    }
}

/// One NAL unit, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nal<'a> {
    /// `nal_ref_idc`: zero when no other picture needs it.
    pub ref_idc: u8,
    /// What it is.
    pub kind: NalType,
    /// Header byte and payload, without start code; never empty.
    pub bytes: &'a [u8],
}

impl Nal<'_> {
    /// Whether the header's forbidden bit is set: the unit is damaged.
    pub const fn is_forbidden(&self) -> bool {
        matches!(self.bytes, [header, ..] if *header & 0x80 != 0)
    }
}

/// Iterates over the NAL units of Annex-B bytes: start codes of three or four bytes, zero bytes
/// behind a unit taken away, empty units and bytes before the first start code passed over.
pub fn nal_units(annex_b: &[u8]) -> NalUnits<'_> {
    NalUnits { rest: after_start_code(annex_b).unwrap_or(&[]) }
}

/// Iterator made by [`nal_units`].
#[derive(Clone, Debug)]
pub struct NalUnits<'a> {
    /// Bytes behind the last start code found.
    rest: &'a [u8],
}

impl<'a> Iterator for NalUnits<'a> {
    type Item = Nal<'a>;

    fn next(&mut self) -> Option<Nal<'a>> {
        while !self.rest.is_empty() {
            let end = find_start_code(self.rest, 0).unwrap_or(self.rest.len());
            let (unit, rest) = self.rest.split_at(end);
            self.rest = rest.get(3..).unwrap_or(&[]);
            let bytes = trim_zeros(unit);
            if let Some(&header) = bytes.first() {
                let kind = NalType::of_header(header);
                return Some(Nal { ref_idc: header >> 5 & 3, kind, bytes });
            }
        }
        None
    }
}

/// Where the next 00 00 01 begins, at or after `from`.
fn find_start_code(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    // The third byte decides how far to go: above 1 it can be in no start code.
    while let Some(&third) = bytes.get(at + 2) {
        match third {
            1 if bytes[at] == 0 && bytes[at + 1] == 0 => return Some(at),
            0 => at += 1,
            _ => at += 3,
        }
    }
    None
}

fn after_start_code(bytes: &[u8]) -> Option<&[u8]> {
    find_start_code(bytes, 0).map(|at| &bytes[at + 3..])
}

fn trim_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// Why bytes are not an access unit. The source is to blame; the next access unit may be fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessUnitError {
    /// No start code with a NAL unit behind it.
    #[error("no NAL unit in {len} bytes")]
    NoNal {
        /// Bytes given.
        len: usize,
    },
    /// Longer than [`MAX_ACCESS_UNIT`].
    #[error("access unit of {len} bytes is over the limit of {MAX_ACCESS_UNIT}")]
    TooLarge {
        /// Bytes given.
        len: usize,
    },
    /// More NAL units than [`MAX_NALS`].
    #[error("more than {MAX_NALS} NAL units in one access unit")]
    TooManyNals,
    /// A NAL unit with the forbidden bit set.
    #[error("NAL unit {index} has the forbidden bit set (header {header:#04x})")]
    Forbidden {
        /// Its place in the access unit.
        index: usize,
        /// Its header byte.
        header: u8,
    },
}

/// What can be told about an access unit without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AccessUnitInfo {
    /// Holds an IDR slice: decoding can start here.
    pub key: bool,
    /// Holds slices, and no other picture needs any of them.
    pub discardable: bool,
    /// Holds an SPS.
    pub has_sps: bool,
    /// Holds a PPS.
    pub has_pps: bool,
    /// Holds a slice. An access unit without one is only configuration.
    pub has_slice: bool,
}

impl AccessUnitInfo {
    /// Looks at each NAL unit's header.
    pub fn inspect(annex_b: &[u8]) -> Result<Self, AccessUnitError> {
        let len = annex_b.len();
        if len > MAX_ACCESS_UNIT {
            return Err(AccessUnitError::TooLarge { len });
        }
        let mut info = Self::default();
        let (mut count, mut needed) = (0, false);
        for (index, nal) in nal_units(annex_b).enumerate() {
            if index == MAX_NALS {
                return Err(AccessUnitError::TooManyNals);
            }
            if nal.is_forbidden() {
                return Err(AccessUnitError::Forbidden { index, header: nal.bytes[0] });
            }
            count += 1;
            info.key |= nal.kind == NalType::IdrSlice;
            info.has_sps |= nal.kind == NalType::Sps;
            info.has_pps |= nal.kind == NalType::Pps;
            info.has_slice |= nal.kind.is_slice();
            needed |= nal.kind.is_slice() && nal.ref_idc != 0;
        }
        if count == 0 {
            return Err(AccessUnitError::NoNal { len });
        }
        info.discardable = info.has_slice && !needed;
        Ok(info)
    }
}
