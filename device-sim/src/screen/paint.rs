//! Short names for the few drawing operations the screen needs.
//!
//! A shape that cannot be built (no area, not finite) is simply not drawn: the peer chooses sizes
//! and positions, and none of them may stop the device. Invariant: nothing here can fail or panic.

use tiny_skia::{
    Color, FillRule, GradientStop, LineCap, LinearGradient, Paint, Path, PathBuilder, Pixmap,
    Point, Rect, Shader, SpreadMode, Stroke, Transform,
};

/// Colour with opacity.
pub(crate) type Rgba = [u8; 4];

pub(crate) fn solid(c: Rgba) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(c[0], c[1], c[2], c[3]);
    paint
}

pub(crate) fn fill(to: &mut Pixmap, path: Option<Path>, paint: &Paint<'_>) {
    if let Some(path) = path {
        to.fill_path(&path, paint, FillRule::Winding, Transform::identity(), None);
    }
}

pub(crate) fn circle(to: &mut Pixmap, (x, y): (f32, f32), radius: f32, colour: Rgba) {
    fill(to, PathBuilder::from_circle(x, y, radius), &solid(colour));
}

pub(crate) fn ring(to: &mut Pixmap, (x, y): (f32, f32), radius: f32, width: f32, colour: Rgba) {
    if let Some(path) = PathBuilder::from_circle(x, y, radius) {
        stroke(to, &path, width, colour);
    }
}

pub(crate) fn line(to: &mut Pixmap, points: &[(f32, f32)], width: f32, colour: Rgba) {
    let mut builder = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        if i == 0 { builder.move_to(*x, *y) } else { builder.line_to(*x, *y) }
    }
    if let Some(path) = builder.finish() {
        stroke(to, &path, width, colour);
    }
}

pub(crate) fn polygon(to: &mut Pixmap, points: &[(f32, f32)], colour: Rgba) {
    let mut builder = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        if i == 0 { builder.move_to(*x, *y) } else { builder.line_to(*x, *y) }
    }
    builder.close();
    fill(to, builder.finish(), &solid(colour));
}

pub(crate) fn rounded(to: &mut Pixmap, [x, y, w, h]: [f32; 4], radius: f32, paint: &Paint<'_>) {
    fill(to, rounded_path([x, y, w, h], radius), paint);
}

pub(crate) fn stroke(to: &mut Pixmap, path: &Path, width: f32, colour: Rgba) {
    let stroke = Stroke { width, line_cap: LineCap::Round, ..Stroke::default() };
    to.stroke_path(path, &solid(colour), &stroke, Transform::identity(), None);
}

/// A top-to-bottom (or slanted) gradient between the given colours, evenly spaced.
pub(crate) fn gradient(from: (f32, f32), to: (f32, f32), colours: &[Rgba]) -> Paint<'static> {
    let last = colours.len().saturating_sub(1).max(1);
    #[allow(clippy::cast_precision_loss, reason = "a handful of colours")]
    let stops = colours.iter().enumerate().map(|(i, c)| {
        GradientStop::new(i as f32 / last as f32, Color::from_rgba8(c[0], c[1], c[2], c[3]))
    });
    let (start, end) = (Point::from_xy(from.0, from.1), Point::from_xy(to.0, to.1));
    let shader =
        LinearGradient::new(start, end, stops.collect(), SpreadMode::Pad, Transform::identity());
    Paint {
        anti_alias: true,
        shader: shader.unwrap_or(Shader::SolidColor(Color::BLACK)),
        ..Paint::default()
    }
}

fn rounded_path([x, y, w, h]: [f32; 4], radius: f32) -> Option<Path> {
    let r = radius.min(w / 2.0).min(h / 2.0);
    if r <= 0.0 {
        return Rect::from_xywh(x, y, w, h).map(PathBuilder::from_rect);
    }
    // 0.5523 is the usual distance of a cubic's control point for a quarter circle.
    let k = r * (1.0 - 0.5523);
    let (right, bottom) = (x + w, y + h);
    let mut p = PathBuilder::new();
    p.move_to(x + r, y);
    p.line_to(right - r, y);
    p.cubic_to(right - k, y, right, y + k, right, y + r);
    p.line_to(right, bottom - r);
    p.cubic_to(right, bottom - k, right - k, bottom, right - r, bottom);
    p.line_to(x + r, bottom);
    p.cubic_to(x + k, bottom, x, bottom - k, x, bottom - r);
    p.line_to(x, y + r);
    p.cubic_to(x, y + k, x + k, y, x + r, y);
    p.close();
    p.finish()
}
