//! Text on the simulated screen: one embedded font, rasterised once per glyph and size.
//!
//! Not a layout engine: left to right, one line, kerning only. The font is Ubuntu Light as shipped
//! by `epaint_default_fonts` (Ubuntu Font Licence). Invariant: the glyph cache never holds more than
//! [`MAX_GLYPHS`] glyphs.

use std::collections::HashMap;
use std::sync::OnceLock;

use fontdue::{Font, FontSettings, Metrics};
use tiny_skia::Pixmap;

/// Bound of the glyph cache. The screen itself uses about 150; typed text adds the rest. At the
/// bound the cache is emptied and fills again with what is on the screen.
const MAX_GLYPHS: usize = 600;

/// A solid text colour.
pub(crate) type Rgb = [u8; 3];

/// The parsed font; parsing takes some tens of milliseconds, so it is done once per process.
static FONT: OnceLock<Result<Font, &'static str>> = OnceLock::new();

/// The font and its rasterised glyphs.
pub(crate) struct Text {
    font: &'static Font,
    glyphs: HashMap<(char, u32), (Metrics, Vec<u8>)>,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("glyphs", &self.glyphs.len()).finish_non_exhaustive()
    }
}

impl Text {
    /// Text in the embedded font.
    pub(crate) fn new() -> Result<Self, &'static str> {
        let bytes = epaint_default_fonts::UBUNTU_LIGHT;
        let font = FONT.get_or_init(|| Font::from_bytes(bytes, FontSettings::default()));
        Ok(Self { font: font.as_ref().map_err(|why| *why)?, glyphs: HashMap::new() })
    }

    /// Width of `text` at `px` pixels per em.
    pub(crate) fn width(&mut self, text: &str, px: f32) -> f32 {
        text.chars().map(|c| self.glyph(c, px).0.advance_width).sum()
    }

    /// Draws `text` with its baseline at `y`, from `x` rightwards, and returns where it ended.
    pub(crate) fn draw(
        &mut self,
        to: &mut Pixmap,
        (x, y): (f32, f32),
        px: f32,
        colour: Rgb,
        text: &str,
    ) -> f32 {
        let mut pen = x;
        for c in text.chars() {
            let (metrics, coverage) = self.glyph(c, px);
            // Float casts saturate, and so do the sums: text far outside is cut off, no more.
            #[allow(clippy::cast_possible_truncation, reason = "saturates")]
            let (left, bottom) = (pen.round() as i32, y.round() as i32);
            let height = i32::try_from(metrics.height).unwrap_or(i32::MAX);
            let left = left.saturating_add(metrics.xmin);
            let top = bottom.saturating_sub(metrics.ymin).saturating_sub(height);
            blend(to, (left, top), metrics.width, coverage, colour);
            pen += metrics.advance_width;
        }
        pen
    }

    /// Draws `text` centred on `x`.
    pub(crate) fn draw_centred(
        &mut self,
        to: &mut Pixmap,
        (x, y): (f32, f32),
        px: f32,
        colour: Rgb,
        text: &str,
    ) {
        let half = self.width(text, px) / 2.0;
        self.draw(to, (x - half, y), px, colour, text);
    }

    fn glyph(&mut self, c: char, px: f32) -> &(Metrics, Vec<u8>) {
        if self.glyphs.len() >= MAX_GLYPHS {
            self.glyphs.clear();
        }
        let font = self.font;
        self.glyphs.entry((c, px.to_bits())).or_insert_with(|| font.rasterize(c, px))
    }
}

/// Blends one glyph's coverage onto an opaque picture; what lies outside is cut off.
fn blend(
    to: &mut Pixmap,
    (left, top): (i32, i32),
    glyph_width: usize,
    coverage: &[u8],
    colour: Rgb,
) {
    if glyph_width == 0 {
        return;
    }
    let (width, height) = (to.width() as usize, to.height() as usize);
    let data = to.data_mut();
    for (row, line) in coverage.chunks_exact(glyph_width).enumerate() {
        let Some(y) = offset(top, row).filter(|y| *y < height) else { continue };
        for (column, alpha) in line.iter().enumerate() {
            let Some(x) = offset(left, column).filter(|x| *x < width) else { continue };
            let at = (y * width + x) * 4;
            for (under, over) in data[at..at + 3].iter_mut().zip(colour) {
                let (a, o, u) = (u32::from(*alpha), u32::from(over), u32::from(*under));
                // The mean of two bytes by a weight of at most 255 is a byte.
                *under = u8::try_from((o * a + u * (255 - a) + 127) / 255).unwrap_or(u8::MAX);
            }
        }
    }
}

fn offset(start: i32, by: usize) -> Option<usize> {
    usize::try_from(i64::from(start) + i64::try_from(by).ok()?).ok()
}
