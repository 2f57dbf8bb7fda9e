//! From what a source says to frames fit for routers: parameter sets in front of every keyframe, a
//! size that is the decoder's truth, one capture clock, payloads of equal size. Not the source and
//! not the uplink. Invariant: the first frame after a start or a change of parameter sets is a
//! keyframe that carries them.

use std::time::Instant;

use fanlight_wire::{
    h264::{AccessUnitError, AccessUnitInfo, ParameterSets},
    pack::{DEFAULT_MAX_PAYLOAD, PackError, Packetizer},
};

use crate::frame::{CaptureClock, Frame};

/// Why an access unit did not become a frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Dropped {
    /// No keyframe yet, or none since the parameter sets changed. Passes by itself.
    #[error("waiting for a keyframe")]
    WaitingForKey,
    /// A keyframe, but no parameter sets were ever seen; no decoder could start with it.
    #[error("a keyframe came before its parameter sets")]
    NoParameterSets,
    /// The bytes are no access unit; the source is to blame.
    #[error("the source sent what is no access unit: {0}")]
    NotAnAccessUnit(#[from] AccessUnitError),
    /// It cannot be packed.
    #[error("an access unit cannot be packed: {0}")]
    Pack(#[from] PackError),
}

/// When a picture came, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Microseconds since 1970.
    pub unix_us: u64,
    /// On the clock that nobody sets.
    pub at: Instant,
}

impl Arrival {
    /// Now.
    pub fn now() -> Self {
        let unix = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
        Self { unix_us: unix, at: Instant::now() }
    }
}

/// State of one device, over the restarts of its source.
#[derive(Debug)]
pub struct Hygiene {
    parameters: ParameterSets,
    packetizer: Packetizer,
    clock: CaptureClock,
    start: Instant,
    next_index: u64,
    size: (u16, u16),
    need_key: bool,
}

impl Hygiene {
    /// For a device whose life starts at `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            parameters: ParameterSets::new(),
            packetizer: Packetizer::new(DEFAULT_MAX_PAYLOAD),
            clock: CaptureClock::default(),
            start,
            next_index: 0,
            size: (0, 0),
            need_key: true,
        }
    }

    /// The source starts anew: its parameter sets are not known and its first frame is a keyframe.
    pub fn restart(&mut self) {
        self.parameters = ParameterSets::new();
        self.need_key = true;
    }

    /// The size a source declared, for sources whose parameter sets cannot be read.
    pub fn declared_size(&mut self, width: u32, height: u32) {
        self.size = (side(width), side(height));
    }

    /// Parameter sets by themselves.
    pub fn parameter_sets(&mut self, annex_b: &[u8]) {
        if self.parameters.absorb(annex_b) {
            self.need_key = true;
        }
    }

    /// One access unit.
    pub fn picture(
        &mut self,
        arrival: Arrival,
        pts_us: u64,
        access_unit: &[u8],
    ) -> Result<Frame, Dropped> {
        let info = AccessUnitInfo::inspect(access_unit)?;
        if info.has_sps || info.has_pps {
            self.parameter_sets(access_unit);
        }
        if !info.key && self.need_key {
            return Err(Dropped::WaitingForKey);
        }
        let with_parameters;
        let bytes = if info.key {
            if !self.parameters.is_complete() {
                return Err(Dropped::NoParameterSets);
            }
            if let Some(Ok(facts)) = self.parameters.facts() {
                self.size = (side(facts.width), side(facts.height));
            }
            with_parameters = self.parameters.prepend_if_key(access_unit);
            with_parameters.as_slice()
        } else {
            access_unit
        };
        let mut payloads = Vec::with_capacity(bytes.len() / DEFAULT_MAX_PAYLOAD + 2);
        self.packetizer.packetize(bytes, &mut payloads)?;
        if info.key {
            self.need_key = false;
        }
        let mono = arrival.at.saturating_duration_since(self.start).as_micros();
        let mono_us = u64::try_from(mono).unwrap_or(u64::MAX);
        let stamp = self.clock.stamp(arrival.unix_us, mono_us, pts_us);
        let index = self.next_index;
        self.next_index += 1;
        Ok(Frame {
            index,
            rtp_time: stamp.rtp_time,
            capture_unix_us: stamp.capture_unix_us,
            key: info.key,
            discardable: info.discardable,
            width: self.size.0,
            height: self.size.1,
            payloads,
        })
    }
}

fn side(pixels: u32) -> u16 {
    u16::try_from(pixels).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use fanlight_wire::pack::Depacketizer;

    use super::*;

    /// SPS of a 16x16 baseline picture, a PPS, and slices that are only headers.
    const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x0a, 0xf4, 0xfb, 0x40];
    const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];
    const IDR: &[u8] = &[0, 0, 0, 1, 0x65, 0x88, 0x84, 1];
    const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9a, 2];

    fn arrival() -> Arrival {
        Arrival { unix_us: 1_000_000, at: Instant::now() }
    }

    fn unpack(frame: &Frame) -> Vec<u8> {
        let mut d = Depacketizer::new();
        let last = frame.payloads.len() - 1;
        let units = frame.payloads.iter().enumerate().map(|(i, p)| d.push(p, i == last).unwrap());
        units.last().unwrap().unwrap()
    }

    #[test]
    fn every_keyframe_carries_the_parameter_sets_and_nothing_comes_before_one() {
        let mut h = Hygiene::new(Instant::now());
        assert!(matches!(h.picture(arrival(), 0, P), Err(Dropped::WaitingForKey)));
        assert!(matches!(h.picture(arrival(), 0, IDR), Err(Dropped::NoParameterSets)));
        h.parameter_sets(&[SPS, PPS].concat());
        assert!(matches!(h.picture(arrival(), 0, P), Err(Dropped::WaitingForKey)));
        for _ in 0..2 {
            let frame = h.picture(arrival(), 10, IDR).unwrap();
            assert!(frame.key);
            let info = AccessUnitInfo::inspect(&unpack(&frame)).unwrap();
            assert!(info.has_sps && info.has_pps && info.key);
        }
        let frame = h.picture(arrival(), 20, P).unwrap();
        assert!(!frame.key && frame.index == 2);
    }

    #[test]
    fn changed_parameter_sets_hold_pictures_back_until_their_keyframe() {
        let mut h = Hygiene::new(Instant::now());
        h.parameter_sets(&[SPS, PPS].concat());
        h.picture(arrival(), 0, IDR).unwrap();
        h.parameter_sets(&[SPS, PPS].concat());
        h.picture(arrival(), 1, P).expect("the same sets again change nothing");
        let mut other = SPS.to_vec();
        other[7] = 0x0b;
        h.parameter_sets(&other);
        assert!(matches!(h.picture(arrival(), 2, P), Err(Dropped::WaitingForKey)));
        h.picture(arrival(), 3, IDR).unwrap();
        h.picture(arrival(), 4, P).unwrap();
    }

    #[test]
    fn garbage_is_refused_and_changes_nothing() {
        let mut h = Hygiene::new(Instant::now());
        h.parameter_sets(&[SPS, PPS].concat());
        h.picture(arrival(), 0, IDR).unwrap();
        assert!(matches!(h.picture(arrival(), 1, b"junk"), Err(Dropped::NotAnAccessUnit(_))));
        assert_eq!(h.picture(arrival(), 2, P).unwrap().index, 1);
    }
}
