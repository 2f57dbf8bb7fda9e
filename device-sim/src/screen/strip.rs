//! The machine-readable strip: two rows of black and white blocks at the top of every picture.
//!
//! It carries when the picture was drawn, its number, and how many touches the device had seen, so
//! that latency can be read from decoded pixels alone. It is not a barcode standard; it only has to
//! survive H.264 at any quality a viewer would accept, which large blocks and a check byte do.
//! Invariant: [`read`] of what [`draw`] drew returns the same [`Stamp`].
//!
//! ```text
//! 96 bits, row-major, most significant bit first, 48 columns x 2 rows, block side = width / 48:
//! | 0xA5 (8) | frame number (24) | unix ms mod 2^40 (40) | touch downs (8) | crc8 (8) | 0x5A (8) |
//! ```

/// Blocks per row.
pub const COLUMNS: u32 = 48;
/// Rows of blocks.
pub const ROWS: u32 = 2;
/// First byte of the strip; it tells a strip from a picture without one.
const MAGIC_START: u8 = 0xA5;
/// Last byte of the strip; it differs from the first so that a flipped picture is not read.
const MAGIC_END: u8 = 0x5A;

/// The 40 bits of the time; they wrap after 34 years.
const TIME_MASK: u64 = (1 << 40) - 1;

/// What the strip says about one picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Consecutive number of the picture within its capture, modulo 2^24.
    pub frame_number: u32,
    /// When the picture was drawn: Unix time in milliseconds, modulo 2^40.
    pub capture_unix_ms: u64,
    /// Number of touch downs the device has received so far, modulo 256.
    pub touch_count: u8,
}

impl Stamp {
    /// A stamp for this picture number and Unix time, both cut to what the strip can carry.
    #[must_use]
    pub fn new(frame_number: u32, unix_ms: u64, touch_count: u8) -> Self {
        Self {
            frame_number: frame_number & 0x00FF_FFFF,
            capture_unix_ms: unix_ms & TIME_MASK,
            touch_count,
        }
    }

    /// How long before `now_unix_ms` the picture was drawn, in milliseconds; negative when the
    /// reader's clock is behind.
    #[must_use]
    pub fn age_ms(&self, now_unix_ms: u64) -> i64 {
        let ahead = (now_unix_ms & TIME_MASK).wrapping_sub(self.capture_unix_ms) & TIME_MASK;
        // The upper half of the circle means "in the future".
        let signed = if ahead > TIME_MASK / 2 { ahead | !TIME_MASK } else { ahead };
        i64::from_ne_bytes(signed.to_ne_bytes())
    }

    /// The 96 bits of the strip in the low end of a `u128`.
    #[must_use]
    pub fn to_bits(self) -> u128 {
        let mut bytes = [0u8; 10];
        bytes[0] = MAGIC_START;
        bytes[1..4].copy_from_slice(&self.frame_number.to_be_bytes()[1..4]);
        bytes[4..9].copy_from_slice(&self.capture_unix_ms.to_be_bytes()[3..8]);
        bytes[9] = self.touch_count;
        let body = bytes.iter().fold(0u128, |acc, byte| (acc << 8) | u128::from(*byte));
        (body << 16) | (u128::from(crc8(&bytes)) << 8) | u128::from(MAGIC_END)
    }

    /// Reads 96 bits back; `None` when a magic byte or the check byte is wrong.
    #[must_use]
    pub fn from_bits(bits: u128) -> Option<Self> {
        let all = bits.to_be_bytes();
        let bytes = &all[4..16];
        let sound =
            bytes[0] == MAGIC_START && bytes[11] == MAGIC_END && crc8(&bytes[..10]) == bytes[10];
        sound.then(|| Self {
            frame_number: u32::from_be_bytes([0, bytes[1], bytes[2], bytes[3]]),
            capture_unix_ms: bytes[4..9].iter().fold(0, |acc, byte| (acc << 8) | u64::from(*byte)),
            touch_count: bytes[9],
        })
    }
}

/// Height of the strip in pixels for a picture of this width.
#[must_use]
pub fn height(width: u32) -> u32 {
    (width * ROWS).div_ceil(COLUMNS)
}

/// Draws the strip into the top of an RGBA picture of `width` pixels per row.
///
/// A pixel belongs to the block that holds its centre. Rows that the buffer does not have are left
/// out.
pub fn draw(rgba: &mut [u8], width: u32, stamp: Stamp) {
    let bits = stamp.to_bits();
    let stride = width as usize * 4;
    for (y, row) in rgba.chunks_exact_mut(stride).enumerate().take(height(width) as usize) {
        let block_row = block_of(y, width);
        for (x, pixel) in row.chunks_exact_mut(4).enumerate() {
            let lit = block_row < ROWS as usize && bit(bits, block_of(x, width), block_row);
            let value = if lit { 255 } else { 0 };
            pixel.copy_from_slice(&[value, value, value, 255]);
        }
    }
}

/// Reads the strip of a picture of `width` pixels per row, sampling each block's centre with
/// `luma(x, y)`.
#[must_use]
pub fn read(width: u32, luma: impl Fn(usize, usize) -> u8) -> Option<Stamp> {
    let mut bits = 0u128;
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            let lit = luma(centre_of(column, width), centre_of(row, width)) > 128;
            bits = (bits << 1) | u128::from(lit);
        }
    }
    Stamp::from_bits(bits)
}

fn bit(bits: u128, column: usize, row: usize) -> bool {
    let index = row * COLUMNS as usize + column;
    bits >> (95 - index.min(95)) & 1 == 1
}

/// Which block the centre of pixel `position` lies in; the same for both axes, blocks are square.
fn block_of(position: usize, width: u32) -> usize {
    (2 * position + 1) * COLUMNS as usize / (2 * width as usize)
}

fn centre_of(block: u32, width: u32) -> usize {
    ((2 * block + 1) * width / (2 * COLUMNS)) as usize
}

/// CRC-8, polynomial 0x07, initial value 0.
fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ byte, |c: u8, _| if c & 0x80 != 0 { (c << 1) ^ 0x07 } else { c << 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp =
        Stamp { frame_number: 0x00_12_34_56, capture_unix_ms: 0x01_9a_bc_de_f0, touch_count: 7 };

    #[test]
    fn crc8_matches_the_published_check_value() {
        assert_eq!(crc8(b"123456789"), 0xF4);
    }

    #[test]
    fn bits_are_laid_out_as_documented() {
        let hex = format!("{:024x}", STAMP.to_bits());
        assert_eq!(&hex[..2], "a5");
        assert_eq!(&hex[2..8], "123456");
        assert_eq!(&hex[8..18], "019abcdef0");
        assert_eq!(&hex[18..20], "07");
        assert_eq!(&hex[22..], "5a");
    }

    #[test]
    fn what_is_drawn_is_read_back_at_every_width() {
        for width in [160u32, 360, 480, 648, 720, 1080, 1280, 1920] {
            let mut rgba = vec![9u8; width as usize * 4 * (height(width) as usize + 4)];
            draw(&mut rgba, width, STAMP);
            let luma = |x: usize, y: usize| rgba[(y * width as usize + x) * 4];
            assert_eq!(read(width, luma), Some(STAMP), "width {width}");
        }
    }

    #[test]
    fn age_is_right_across_the_wrap() {
        let now = 1_800_000_000_123;
        let stamp = Stamp::new(1, now - 45, 0);
        assert_eq!(stamp.age_ms(now), 45);
        assert_eq!(stamp.age_ms(now - 100), -55);
        assert_eq!(Stamp::new(0, TIME_MASK, 0).age_ms(TIME_MASK + 3), 3);
    }

    #[test]
    fn a_damaged_strip_is_refused() {
        for flipped in 0..96 {
            assert_eq!(Stamp::from_bits(STAMP.to_bits() ^ (1 << flipped)), None);
        }
    }
}
