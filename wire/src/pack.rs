//! H.264 access units to RTP payloads and back (RFC 6184, packetization mode 1: single NAL units,
//! STAP-A, FU-A). Not RTP headers. Invariant: depacketising what was packetised gives the same NAL
//! units in the same order, without access unit delimiters and filler.
//!
//! A NAL unit too long for one payload is cut into pieces of *equal* size, the last one shorter:
//! the kernel then sends them as one segmented buffer, for the worker and for each viewer.

use crate::h264::{AccessUnitError, AccessUnitInfo, MAX_ACCESS_UNIT, MAX_NALS, Nal, NalType};
use crate::h264::{nal_units, write_nal};

/// Greatest payload by default: 1,100 bytes leave room for RTP, extensions, SRTP, UDP, IPv6 and a
/// tunnel within 1,280, and for the QUIC hop within 1,200.
pub const DEFAULT_MAX_PAYLOAD: usize = 1100;

/// Smallest "greatest payload" that [`Packetizer::new`] takes.
pub const MIN_MAX_PAYLOAD: usize = 64;

const STAP_A: u8 = 24;
const FU_A: u8 = 28;
const FU_START: u8 = 0x80;
const FU_END: u8 = 0x40;

/// Why packing or unpacking was refused. Of packing: the source is to blame. Of unpacking: the
/// sender, or a packet that was lost. The next access unit may be fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The bytes are not an access unit.
    #[error("not an access unit")]
    AccessUnit(#[from] AccessUnitError),
    /// A NAL unit type (0 or 24..=31) that RTP uses for itself.
    #[error("NAL unit type {0} cannot travel in RTP")]
    UnpackableType(u8),
    /// Nothing is left of the access unit without delimiters and filler.
    #[error("access unit has nothing to send")]
    NothingToSend,
    /// A payload ends inside a field.
    #[error("RTP payload's {field} cut short: needs {need} bytes, has {have}")]
    Truncated {
        /// The field that is cut.
        field: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// An RTP payload type that packetization mode 1 does not have.
    #[error("RTP payload structure {0} is not part of packetization mode 1")]
    UnknownStructure(u8),
    /// A fragment that does not continue what came before: a packet is missing.
    #[error("fragment out of place: {0}")]
    Fragment(&'static str),
    /// The access unit under construction is over the limit of bytes or NAL units.
    #[error("access unit under construction is over the limit")]
    TooLarge,
}

/// Cuts access units into RTP payloads.
#[derive(Clone, Debug)]
pub struct Packetizer {
    max_payload: usize,
}

impl Packetizer {
    /// A packetiser whose payloads have at most `max_payload` bytes (at least
    /// [`MIN_MAX_PAYLOAD`], at most 65,535).
    pub fn new(max_payload: usize) -> Self {
        Self { max_payload: max_payload.clamp(MIN_MAX_PAYLOAD, 65_535) }
    }

    /// Appends the payloads of one Annex-B access unit to `out`. On error nothing is appended.
    pub fn packetize(&mut self, au: &[u8], out: &mut Vec<Vec<u8>>) -> Result<(), PackError> {
        AccessUnitInfo::inspect(au)?;
        let sent = |n: &Nal<'_>| !matches!(n.kind, NalType::Aud | NalType::Filler);
        let nals: Vec<Nal<'_>> = nal_units(au).filter(sent).collect();
        if nals.is_empty() {
            return Err(PackError::NothingToSend);
        }
        for nal in &nals {
            check_packable(nal.bytes[0])?;
        }
        let mut rest = nals.as_slice();
        while let Some(first) = rest.first() {
            let together = self.aggregate(rest);
            match together {
                0 => self.fragment(first, out),
                1 => out.push(first.bytes.to_vec()),
                _ => out.push(stap_a(&rest[..together])),
            }
            rest = &rest[together.max(1)..];
        }
        Ok(())
    }

    /// How many of the next NAL units go into one payload: 0 means the first needs cutting.
    fn aggregate(&self, nals: &[Nal<'_>]) -> usize {
        if nals[0].bytes.len() > self.max_payload {
            return 0;
        }
        let mut size = 1;
        let fits = nals.iter().take_while(|n| {
            size += 2 + n.bytes.len();
            is_small_talk(n.kind) && size <= self.max_payload
        });
        fits.count().max(1)
    }

    fn fragment(&self, nal: &Nal<'_>, out: &mut Vec<Vec<u8>>) {
        let (header, body) = (nal.bytes[0], &nal.bytes[1..]);
        let pieces = body.len().div_ceil(self.max_payload - 2);
        let size = body.len().div_ceil(pieces);
        let last = body.len().div_ceil(size) - 1;
        for (i, piece) in body.chunks(size).enumerate() {
            let start = if i == 0 { FU_START } else { 0 };
            let end = if i == last { FU_END } else { 0 };
            let mut payload = Vec::with_capacity(2 + piece.len());
            payload.extend_from_slice(&[header & 0x60 | FU_A, start | end | header & 0x1f]);
            payload.extend_from_slice(piece);
            out.push(payload);
        }
    }
}

/// What is put together into one payload: small things in front of the picture.
fn is_small_talk(kind: NalType) -> bool {
    matches!(kind, NalType::Sps | NalType::Pps | NalType::Sei)
}

fn check_packable(header: u8) -> Result<(), PackError> {
    match header & 0x1f {
        n @ (0 | 24..=31) => Err(PackError::UnpackableType(n)),
        _ => Ok(()),
    }
}

fn stap_a(nals: &[Nal<'_>]) -> Vec<u8> {
    let ref_idc = nals.iter().map(|n| n.ref_idc).max().unwrap_or(0);
    let mut payload = vec![ref_idc << 5 | STAP_A];
    for nal in nals {
        // The payload limit of 65,535 bounds each unit in it.
        payload
            .extend_from_slice(&u16::try_from(nal.bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        payload.extend_from_slice(nal.bytes);
    }
    payload
}

/// Puts access units together from RTP payloads that come in order.
///
/// Holds one access unit of at most [`MAX_ACCESS_UNIT`] bytes.
#[derive(Debug, Default)]
pub struct Depacketizer {
    unit: Vec<u8>,
    nals: usize,
    /// Inside a fragmented NAL unit.
    fragment: bool,
    /// Something is missing: drop until the frame's last packet.
    broken: bool,
}

impl Depacketizer {
    /// A depacketiser at the start of a frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next payload; `marker` says that it is the frame's last. Gives the access unit in
    /// Annex-B at the marker. After an error nothing comes until the next frame begins.
    pub fn push(&mut self, payload: &[u8], marker: bool) -> Result<Option<Vec<u8>>, PackError> {
        let added = if self.broken { Ok(()) } else { self.add(payload) };
        if added.is_err() {
            self.lose();
        }
        if !marker {
            return added.map(|()| None);
        }
        let whole = !self.broken && !self.fragment && !self.unit.is_empty();
        let dangling = self.fragment;
        let done = std::mem::take(self);
        added?;
        match whole {
            true => Ok(Some(done.unit)),
            false if dangling => Err(PackError::Fragment("frame ends inside a NAL unit")),
            false => Ok(None),
        }
    }

    /// Tells that a packet is missing: the current frame is dropped.
    pub fn lose(&mut self) {
        *self = Self { broken: true, ..Self::default() };
    }

    /// Forgets everything: the next payload begins a frame.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, payload: &[u8]) -> Result<(), PackError> {
        let Some((&head, rest)) = payload.split_first() else {
            return Err(PackError::Truncated { field: "NAL header", need: 1, have: 0 });
        };
        if head & 0x1f == FU_A {
            return self.add_fragment(head, rest);
        }
        if self.fragment {
            return Err(PackError::Fragment("another NAL unit inside one that is not finished"));
        }
        match head & 0x1f {
            1..=23 => self.add_nal(payload),
            STAP_A => stap_units(rest).try_for_each(|nal| self.add_nal(nal?)),
            other => Err(PackError::UnknownStructure(other)),
        }
    }

    fn add_fragment(&mut self, indicator: u8, rest: &[u8]) -> Result<(), PackError> {
        let [head, piece @ ..] = rest else {
            return Err(PackError::Truncated { field: "FU header", need: 2, have: 1 });
        };
        let header = indicator & 0xe0 | head & 0x1f;
        check_packable(header)?;
        match (head & FU_START != 0, self.fragment) {
            (true, true) => return Err(PackError::Fragment("start inside a NAL unit")),
            (false, false) => return Err(PackError::Fragment("piece without a start")),
            (true, false) => self.add_nal(&[header])?,
            (false, true) => {}
        }
        self.fragment = head & FU_END == 0;
        self.grow(piece)
    }

    fn add_nal(&mut self, nal: &[u8]) -> Result<(), PackError> {
        check_packable(nal[0])?;
        self.nals += 1;
        if self.nals > MAX_NALS {
            return Err(PackError::TooLarge);
        }
        write_nal(&[], &mut self.unit);
        self.grow(nal)
    }

    fn grow(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        // The packetised unit may have had start codes of three bytes; here they have four.
        if self.unit.len() + bytes.len() > MAX_ACCESS_UNIT + MAX_NALS {
            return Err(PackError::TooLarge);
        }
        self.unit.extend_from_slice(bytes);
        Ok(())
    }
}

/// The NAL units in a STAP-A, behind its header byte. Each is at least one byte long.
fn stap_units(mut rest: &[u8]) -> impl Iterator<Item = Result<&[u8], PackError>> {
    let mut empty = rest.is_empty();
    std::iter::from_fn(move || {
        let have = rest.len();
        if std::mem::take(&mut empty) {
            return Some(Err(PackError::Truncated { field: "STAP-A", need: 3, have: 0 }));
        }
        let [hi, lo, body @ ..] = rest else {
            rest = &[];
            let cut = PackError::Truncated { field: "STAP-A size", need: 2, have };
            return (have > 0).then_some(Err(cut));
        };
        let need = usize::from(u16::from_be_bytes([*hi, *lo]));
        if need == 0 || body.len() < need {
            rest = &[];
            let (need, have) = (need.max(1), body.len().min(need));
            return Some(Err(PackError::Truncated { field: "STAP-A unit", need, have }));
        }
        rest = &body[need..];
        Some(Ok(&body[..need]))
    })
}

/// What one RTP payload says about its frame. All false for bytes that are no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PayloadFacts {
    /// Belongs to an IDR picture.
    pub key: bool,
    /// Belongs to a picture that no other one needs.
    pub discardable: bool,
    /// A NAL unit begins in it.
    pub starts_nal: bool,
    /// Holds an SPS or PPS.
    pub has_param_sets: bool,
    /// Holds picture data.
    pub has_slice: bool,
}

/// Looks at the NAL, FU or STAP headers of one payload.
pub fn payload_facts(payload: &[u8]) -> PayloadFacts {
    let mut facts = PayloadFacts::default();
    let Some(&head) = payload.first() else { return facts };
    let mut needed = false;
    let mut note = |header: u8, starts: bool| {
        let kind = NalType::of_header(header);
        facts.key |= kind == NalType::IdrSlice;
        facts.has_slice |= kind.is_slice();
        facts.has_param_sets |= matches!(kind, NalType::Sps | NalType::Pps);
        facts.starts_nal |= starts;
        needed |= kind.is_slice() && header & 0x60 != 0;
    };
    match head & 0x1f {
        1..=23 => note(head, true),
        STAP_A => stap_units(&payload[1..]).flatten().for_each(|nal| note(nal[0], true)),
        FU_A => {
            if let Some(fu) = payload.get(1) {
                note(head & 0x60 | fu & 0x1f, fu & FU_START != 0);
            }
        }
        _ => {}
    }
    facts.discardable = facts.has_slice && !needed;
    facts
}

/// What a frame's payloads say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FrameFacts {
    /// An IDR picture: decoding can start here.
    pub key: bool,
    /// Holds picture data, and no other picture needs it.
    pub discardable: bool,
}

/// Looks at all payloads of a frame.
pub fn frame_facts<P: AsRef<[u8]>>(payloads: impl IntoIterator<Item = P>) -> FrameFacts {
    let (mut key, mut slices, mut needed) = (false, false, false);
    for facts in payloads.into_iter().map(|p| payload_facts(p.as_ref())) {
        key |= facts.key;
        slices |= facts.has_slice;
        needed |= facts.has_slice && !facts.discardable;
    }
    FrameFacts { key, discardable: slices && !needed }
}
