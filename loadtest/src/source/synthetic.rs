//! A stream that is made up: true parameter sets, slices whose content nobody decodes but
//! everybody has to carry unchanged. Not pictures. Invariant: no byte sequence in it needs an
//! emulation prevention byte, and each slice begins with the picture's number.

use fanlight_wire::h264::{MAX_ACCESS_UNIT, write_nal};

use super::{Noise, Picture, SourceError, hash};
use crate::stats::whole;

/// Size that the parameter sets state.
pub(super) const SIZE: (u32, u32) = (720, 1280);
/// Bytes that carry the number: seven bits each.
const NUMBER_LEN: usize = 6;
/// Smallest slice.
const SLICE_MIN: usize = 64;
/// How far sizes stray from their mean.
const JITTER: f64 = 0.2;

/// What a synthetic stream looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Pictures per second.
    pub fps: u32,
    /// Mean bit rate, keyframes included.
    pub bitrate_bps: u64,
    /// A keyframe every so many pictures.
    pub gop: u32,
    /// How many times as large a keyframe is as another picture.
    pub key_factor: f64,
    /// Every n-th picture is one that others need; 1: all are.
    pub reference_every: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { fps: 60, bitrate_bps: 2_500_000, gop: 120, key_factor: 6.0, reference_every: 1 }
    }
}

/// The generator.
#[derive(Debug)]
pub struct Synthetic {
    shape: Shape,
    mean_bytes: f64,
    number: u64,
    since_key: u32,
    noise: Noise,
    sps: Vec<u8>,
}

impl Synthetic {
    /// A stream of this shape; equal seeds make equal streams.
    pub(super) fn new(shape: Shape, seed: u64) -> Result<Self, SourceError> {
        let wrong = |why: &str| Err(SourceError::Shape(why.to_owned()));
        if !(1..=1_000).contains(&shape.fps) {
            return wrong("1 to 1000 pictures per second are allowed");
        }
        if shape.gop == 0 || shape.reference_every == 0 {
            return wrong("the intervals of keyframes and of references start at 1");
        }
        if !(1.0..=1_000.0).contains(&shape.key_factor) {
            return wrong("a keyframe is 1 to 1000 times as large as another picture");
        }
        let mean_bytes = mean_bytes(&shape);
        if mean_bytes * shape.key_factor * (1.0 + JITTER) > (MAX_ACCESS_UNIT / 2) as f64 {
            return wrong("its keyframes would be larger than an access unit may be");
        }
        if mean_bytes < SLICE_MIN as f64 {
            return wrong("the bit rate is too low for so many pictures");
        }
        Ok(Self { shape, mean_bytes, number: 0, since_key: 0, noise: Noise::new(seed), sps: sps() })
    }

    /// Goes on at another bit rate, where it makes a stream.
    pub(super) fn set_bitrate(&mut self, bitrate_bps: u64) {
        let shape = Shape { bitrate_bps, ..self.shape.clone() };
        if let Ok(next) = Self::new(shape, 0) {
            (self.shape, self.mean_bytes) = (next.shape, next.mean_bytes);
        }
    }

    pub(super) fn next_picture(&mut self, key: bool) -> Picture {
        let key = key || self.number == 0 || self.since_key >= self.shape.gop;
        self.since_key = if key { 0 } else { self.since_key };
        let discardable = !key && !self.since_key.is_multiple_of(self.shape.reference_every);
        let factor = if key { self.shape.key_factor } else { 1.0 };
        let stray = 1.0 + JITTER * (2.0 * self.noise.unit() - 1.0);
        let bytes = whole(self.mean_bytes * factor * stray);
        let mut au = Vec::with_capacity(bytes + 64);
        if key {
            write_nal(&self.sps, &mut au);
            write_nal(&[0x68, 0xce, 0x38, 0x80], &mut au);
        }
        let header = match (key, discardable) {
            (true, _) => 0x65,
            (false, false) => 0x41,
            (false, true) => 0x01,
        };
        self.slice(header, bytes.max(SLICE_MIN), &mut au);
        let picture = Picture { number: self.number, key, discardable, hash: hash(&au), au };
        self.number += 1;
        self.since_key += 1;
        picture
    }

    /// One slice: header, "first macroblock is 0", the number, and noise without zeros.
    fn slice(&mut self, header: u8, bytes: usize, au: &mut Vec<u8>) {
        let start = au.len();
        write_nal(&[header, 0x88], au);
        for i in (0..NUMBER_LEN).rev() {
            au.push(0x80 | (self.number >> (7 * i) & 0x7f) as u8);
        }
        while au.len() - start < bytes {
            // A set low bit in each byte: never zero.
            let word = self.noise.next_u64() | 0x0101_0101_0101_0101;
            au.extend_from_slice(&word.to_le_bytes());
        }
        au.truncate(start + bytes);
    }
}

/// Bytes of a picture that is no keyframe: one keyframe and `gop` - 1 others have to come to `gop`
/// times the mean.
fn mean_bytes(shape: &Shape) -> f64 {
    let gop = f64::from(shape.gop);
    let per_picture = shape.bitrate_bps as f64 / 8.0 / f64::from(shape.fps);
    per_picture * gop / (gop - 1.0 + shape.key_factor)
}

/// Constrained Baseline, level 3.1, no cropping, no VUI.
fn sps() -> Vec<u8> {
    let mut bits = Bits::default();
    // Id, log2_max_frame_num - 4, picture order count type 2, one reference picture.
    for value in [0, 0, 2, 1] {
        bits.exp_golomb(value);
    }
    bits.put(0, 1);
    bits.exp_golomb(SIZE.0 / 16 - 1);
    bits.exp_golomb(SIZE.1 / 16 - 1);
    // Frames only, direct 8x8 inference; then the stop bit.
    bits.put(0b1100, 4);
    bits.put(1, 1);
    let mut nal = vec![0x67, 66, 0xe0, 31];
    nal.extend(bits.bytes());
    nal
}

#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.0.extend((0..count).rev().map(|i| value >> i & 1 == 1));
    }

    fn exp_golomb(&mut self, value: u32) {
        let code = value + 1;
        let len = 32 - code.leading_zeros();
        self.put(0, len - 1);
        self.put(code, len);
    }

    fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.chunks(8).map(|chunk| {
            chunk.iter().zip((0..8).rev()).fold(0, |byte, (bit, at)| byte | u8::from(*bit) << at)
        })
    }
}

#[cfg(test)]
mod tests {
    use fanlight_wire::{
        h264::{AccessUnitInfo, SpsFacts, nal_units},
        pack::{Depacketizer, Packetizer},
    };

    use super::*;

    fn stream(shape: Shape) -> Synthetic {
        Synthetic::new(shape, 7).unwrap()
    }

    #[test]
    fn pictures_survive_packing_byte_for_byte() {
        let mut source = stream(Shape::default());
        for n in 0..240 {
            let picture = source.next_picture(false);
            let info = AccessUnitInfo::inspect(&picture.au).unwrap();
            assert_eq!((info.key, info.discardable), (picture.key, picture.discardable));
            assert_eq!((picture.number, picture.key), (n, n % 120 == 0));
            let mut payloads = Vec::new();
            Packetizer::new(1_100).packetize(&picture.au, &mut payloads).unwrap();
            let mut depacketizer = Depacketizer::new();
            let last = payloads.len() - 1;
            let mut out = None;
            for (i, payload) in payloads.iter().enumerate() {
                out = depacketizer.push(payload, i == last).unwrap();
            }
            assert_eq!(hash(&out.unwrap()), picture.hash);
        }
    }

    #[test]
    fn the_bit_rate_is_the_one_asked_for() {
        for bitrate_bps in [500_000, 2_500_000, 8_000_000] {
            let mut source = stream(Shape { bitrate_bps, ..Shape::default() });
            let bytes: usize = (0..1_200).map(|_| source.next_picture(false).au.len()).sum();
            let got = bytes as f64 * 8.0 / 20.0;
            let wanted = bitrate_bps as f64;
            assert!((got / wanted - 1.0).abs() < 0.03, "{got} in place of {wanted}");
        }
    }

    #[test]
    fn parameter_sets_state_the_size() {
        let picture = stream(Shape::default()).next_picture(false);
        let sps = nal_units(&picture.au).next().unwrap();
        let facts = SpsFacts::parse(sps.bytes).unwrap();
        assert_eq!((facts.width, facts.height), (720, 1280));
    }

    #[test]
    fn one_in_eight_is_a_reference_when_asked_and_a_key_comes_on_request() {
        let mut source = stream(Shape { reference_every: 8, ..Shape::default() });
        let kept = (0..120).filter(|_| !source.next_picture(false).discardable).count();
        assert_eq!(kept, 15);
        assert!(source.next_picture(false).key);
        assert!(!source.next_picture(false).key);
        assert!(source.next_picture(true).key);
    }

    #[test]
    fn shapes_that_make_no_stream_are_refused() {
        for shape in [
            Shape { fps: 0, ..Shape::default() },
            Shape { gop: 0, ..Shape::default() },
            Shape { bitrate_bps: 1_000, ..Shape::default() },
            Shape { bitrate_bps: 1 << 40, ..Shape::default() },
            Shape { key_factor: f64::NAN, ..Shape::default() },
        ] {
            assert!(Synthetic::new(shape.clone(), 1).is_err(), "{shape:?}");
        }
    }
}
