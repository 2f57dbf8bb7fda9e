//! RGBA to I420 for parts of a picture.
//!
//! BT.709, limited range, integer arithmetic; the encoder signals the same in the stream. Only the
//! rectangles that changed are converted, which is what makes 60 pictures a second cheap.
//! Invariant: converting the rectangles that changed gives the same planes as converting everything.

use openh264::formats::YUVSource;

/// A rectangle in pixels that lies inside a picture; right and bottom are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Left edge.
    pub x0: u32,
    /// Top edge.
    pub y0: u32,
    /// Right edge, exclusive.
    pub x1: u32,
    /// Bottom edge, exclusive.
    pub y1: u32,
}

impl Area {
    /// The smallest whole-pixel area around the given edges, cut to a `width` x `height` picture.
    #[must_use]
    pub fn around(edges: [f32; 4], width: u32, height: u32) -> Self {
        // A float cast saturates, so edges far outside (or NaN) end at the picture's border.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let pixel = |value: f32, limit: u32| (value.max(0.0) as u32).min(limit);
        Self {
            x0: pixel(edges[0].floor(), width),
            y0: pixel(edges[1].floor(), height),
            x1: pixel(edges[2].ceil(), width),
            y1: pixel(edges[3].ceil(), height),
        }
    }

    /// Whether the area holds no pixel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.x0 >= self.x1 || self.y0 >= self.y1
    }
}

/// A planar 4:2:0 picture.
#[derive(Debug, Clone)]
pub struct I420 {
    width: usize,
    height: usize,
    y: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
}

impl I420 {
    /// A black picture. Both sides are rounded down to even numbers, as 4:2:0 needs.
    #[must_use]
    pub fn new(width: u32, height: u32) -> Self {
        let (width, height) = (width as usize & !1, height as usize & !1);
        let chroma = width / 2 * (height / 2);
        Self {
            width,
            height,
            y: vec![16; width * height],
            u: vec![128; chroma],
            v: vec![128; chroma],
        }
    }

    /// Converts one area of an RGBA picture whose rows are `stride` bytes long.
    pub fn convert(&mut self, rgba: &[u8], stride: usize, area: Area) {
        let x0 = area.x0 as usize & !1;
        let x1 = ((area.x1 as usize + 1) & !1).min(self.width);
        let y0 = area.y0 as usize & !1;
        let y1 = ((area.y1 as usize + 1) & !1).min(self.height);
        if x0 >= x1 {
            return;
        }
        for y in (y0..y1).step_by(2) {
            let top = &rgba[y * stride + x0 * 4..y * stride + x1 * 4];
            let bottom = &rgba[(y + 1) * stride + x0 * 4..(y + 1) * stride + x1 * 4];
            luma_row(&mut self.y[y * self.width + x0..y * self.width + x1], top);
            let below = (y + 1) * self.width;
            luma_row(&mut self.y[below + x0..below + x1], bottom);
            let chroma = y / 2 * (self.width / 2);
            let range = chroma + x0 / 2..chroma + x1 / 2;
            chroma_row(&mut self.u[range.clone()], &mut self.v[range], top, bottom);
        }
    }
}

impl YUVSource for I420 {
    fn dimensions(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn strides(&self) -> (usize, usize, usize) {
        (self.width, self.width / 2, self.width / 2)
    }

    fn y(&self) -> &[u8] {
        &self.y
    }

    fn u(&self) -> &[u8] {
        &self.u
    }

    fn v(&self) -> &[u8] {
        &self.v
    }
}

// The factors are the BT.709 limited-range matrix times 256. Each result lies in 16..=240, so the
// narrowing casts below cannot lose anything.

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "result is 16..=235")]
fn luma_row(out: &mut [u8], rgba: &[u8]) {
    for (y, p) in out.iter_mut().zip(rgba.chunks_exact(4)) {
        let (r, g, b) = (u32::from(p[0]), u32::from(p[1]), u32::from(p[2]));
        *y = ((47 * r + 157 * g + 16 * b + 128 + (16 << 8)) >> 8) as u8;
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "result is 16..=240")]
fn chroma_row(u: &mut [u8], v: &mut [u8], top: &[u8], bottom: &[u8]) {
    let pairs = top.chunks_exact(8).zip(bottom.chunks_exact(8));
    for ((u, v), (t, b)) in u.iter_mut().zip(v.iter_mut()).zip(pairs) {
        let sum = |i: usize| {
            i32::from(t[i]) + i32::from(t[i + 4]) + i32::from(b[i]) + i32::from(b[i + 4])
        };
        let (r, g, bl) = (sum(0), sum(1), sum(2));
        *u = ((-26 * r - 86 * g + 112 * bl + 512 + (128 << 10)) >> 10) as u8;
        *v = ((112 * r - 102 * g - 10 * bl + 512 + (128 << 10)) >> 10) as u8;
    }
}

/// The RGB colour of one I420 sample triple, the inverse of the conversion above; for tests and
/// tools that look at decoded pictures.
#[must_use]
pub fn to_rgb(y: u8, u: u8, v: u8) -> [u8; 3] {
    let y = (f32::from(y) - 16.0) * 1.1644;
    let (u, v) = (f32::from(u) - 128.0, f32::from(v) - 128.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let byte = |value: f32| value.round().clamp(0.0, 255.0) as u8;
    [byte(y + 1.7927 * v), byte(y - 0.2132 * u - 0.5329 * v), byte(y + 2.1124 * u)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Vec<u8> {
        let byte = |i: usize, k: usize| u8::try_from((i * k) % 256).unwrap();
        (0..width * height).flat_map(|i| [byte(i, 7), byte(i, 13), byte(i, 31), 255]).collect()
    }

    #[test]
    fn colours_survive_the_round_trip_within_rounding() {
        for colour in [[230u8, 0, 40], [0, 90, 230], [0, 160, 60], [255, 255, 255], [0, 0, 0]] {
            let rgba = [colour[0], colour[1], colour[2], 255].repeat(4);
            let mut yuv = I420::new(2, 2);
            yuv.convert(&rgba, 8, Area { x0: 0, y0: 0, x1: 2, y1: 2 });
            let back = to_rgb(yuv.y[0], yuv.u[0], yuv.v[0]);
            for (a, b) in colour.iter().zip(back) {
                assert!(a.abs_diff(b) <= 4, "{colour:?} came back as {back:?}");
            }
        }
    }

    #[test]
    fn converting_parts_equals_converting_the_whole() {
        let rgba = picture(16, 12);
        let mut whole = I420::new(16, 12);
        whole.convert(&rgba, 64, Area { x0: 0, y0: 0, x1: 16, y1: 12 });
        let mut parts = I420::new(16, 12);
        for area in [
            Area { x0: 0, y0: 0, x1: 5, y1: 12 },
            Area { x0: 5, y0: 0, x1: 16, y1: 7 },
            Area { x0: 5, y0: 7, x1: 16, y1: 12 },
        ] {
            parts.convert(&rgba, 64, area);
        }
        assert_eq!((whole.y, whole.u, whole.v), (parts.y, parts.u, parts.v));
    }

    #[test]
    fn an_area_outside_the_picture_is_cut_to_nothing() {
        let area = Area::around([900.0, -50.0, f32::NAN, -1.0], 16, 16);
        assert!(area.is_empty());
        I420::new(16, 16).convert(&picture(16, 16), 64, area);
    }
}
