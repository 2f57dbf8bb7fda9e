//! A tiny H.264 clip made by hand: real parameter sets, and slices whose content nobody decodes
//! but everybody has to carry unchanged. Not a picture.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use fanlight_wire::h264::{nal_units, write_nal};

/// Size that the parameter sets state.
pub const SIZE: (u32, u32) = (720, 1280);

/// Frame `number` of a clip with a keyframe each `gop` frames, as an Annex-B access unit. The
/// keyframes are big enough to be cut into several packets.
pub fn frame(number: u32, gop: u32) -> Vec<u8> {
    let mut au = Vec::new();
    if number.is_multiple_of(gop) {
        write_nal(&sps(), &mut au);
        write_nal(&[0x68, 0xce, 0x38, 0x80], &mut au);
        write_nal(&slice(0x65, number, 5_000), &mut au);
    } else {
        write_nal(&slice(0x41, number, 200 + (number as usize * 37) % 3_000), &mut au);
    }
    au
}

/// A NAL unit with a pseudo-random body without zeros, so that it needs no escapes.
fn slice(header: u8, number: u32, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(2_654_435_761) | 1;
    let mut nal = vec![header];
    nal.extend(number.to_be_bytes().map(|b| b | 0x80));
    nal.extend((0..len).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 | 1
    }));
    nal
}

/// First byte, length and hash of each NAL unit: what has to come out as it went in, short enough
/// to be printed when it does not.
pub fn nals(au: &[u8]) -> Vec<(u8, usize, u64)> {
    nal_units(au)
        .map(|nal| {
            let mut hasher = DefaultHasher::new();
            nal.bytes.hash(&mut hasher);
            (nal.bytes[0], nal.bytes.len(), hasher.finish())
        })
        .collect()
}

/// Constrained baseline, level 3.1, 720x1280, no cropping, no VUI.
fn sps() -> Vec<u8> {
    let mut bits = Bits::default();
    for value in [0, 0, 2, 1] {
        bits.ue(value); // sps id, log2_max_frame_num - 4, poc type 2, one reference
    }
    bits.put(0, 1); // no gaps
    bits.ue(SIZE.0 / 16 - 1);
    bits.ue(SIZE.1 / 16 - 1);
    bits.put(0b1100, 4); // frames only, direct 8x8, no cropping, no VUI
    bits.put(1, 1); // stop bit
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

    fn ue(&mut self, value: u32) {
        let code = value + 1;
        let len = 32 - code.leading_zeros();
        self.put(0, len - 1);
        self.put(code, len);
    }

    fn bytes(&self) -> Vec<u8> {
        self.0
            .chunks(8)
            .map(|c| {
                c.iter().enumerate().fold(0, |byte, (i, bit)| byte | u8::from(*bit) << (7 - i))
            })
            .collect()
    }
}
