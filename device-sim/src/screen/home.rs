//! The home screen: where everything sits, and the parts of it that never move.
//!
//! One layout for upright and one for landscape, both in units of 1/360 of the shorter side, so that
//! every size looks like the same phone. Invariant: none of the colours of the touch dots
//! ([`DOT_COLOURS`]) is used anywhere else, so a test may look for them in decoded pixels.

use tiny_skia::Pixmap;

use super::model::{PAGES, Panel};
use super::paint::{Rgba, circle, gradient, line, polygon, ring, rounded, solid};
use super::strip;
use super::text::{Rgb, Text};

/// Fill colours of the touch dots by label.
pub(crate) const DOT_COLOURS: [Rgb; 10] = [
    [230, 0, 40],
    [0, 90, 230],
    [0, 160, 60],
    [240, 130, 0],
    [150, 0, 200],
    [0, 170, 180],
    [210, 0, 140],
    [110, 80, 0],
    [40, 40, 40],
    [70, 0, 110],
];

pub(crate) const WHITE: Rgb = [255, 255, 255];
const SOFT: Rgb = [214, 220, 240];
pub(crate) const CARD: Rgba = [255, 255, 255, 30];
const APPS: [(&str, Rgba, Rgba); 8] = [
    ("Phone", [88, 190, 150, 255], [44, 140, 122, 255]),
    ("Messages", [120, 160, 236, 255], [82, 110, 204, 255]),
    ("Camera", [168, 176, 196, 255], [104, 114, 140, 255]),
    ("Gallery", [244, 178, 120, 255], [226, 116, 118, 255]),
    ("Maps", [134, 200, 156, 255], [92, 150, 178, 255]),
    ("Music", [206, 140, 222, 255], [132, 92, 190, 255]),
    ("Clock", [96, 106, 138, 255], [56, 64, 92, 255]),
    ("Settings", [150, 162, 186, 255], [98, 108, 136, 255]),
];

/// Where things sit, in pixels.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) width: f32,
    pub(crate) height: f32,
    /// 1/360 of the shorter side.
    pub(crate) unit: f32,
    /// Bottom of the strip.
    pub(crate) top: f32,
    /// Left end of the baseline of the big clock.
    pub(crate) clock: (f32, f32),
    /// Its size in pixels per em.
    pub(crate) clock_px: f32,
    /// Centre and radius of the round clock.
    pub(crate) dial: (f32, f32, f32),
    /// The card in which something moves: x, y, width, height.
    pub(crate) motion: [f32; 4],
    /// The text field: x, y, width, height.
    pub(crate) field: [f32; 4],
    /// Centre of the row of page dots.
    pages: (f32, f32),
    /// Area of the icons: x, y, width, height.
    icons: [f32; 4],
    /// Top of the navigation bar.
    nav: f32,
}

impl Layout {
    pub(crate) fn new(width: u32, height: u32) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "screen sizes are far below 2^23")]
        let (w, h, top) = (width as f32, height as f32, strip::height(width) as f32);
        let unit = w.min(h) / 360.0;
        let u = |n: f32| n * unit;
        let nav = h - u(44.0);
        let y = top + u(34.0);
        if w <= h {
            Self {
                width: w,
                height: h,
                unit,
                top,
                clock: (u(22.0), y + u(62.0)),
                clock_px: u(58.0),
                dial: (w - u(68.0), y + u(52.0), u(44.0)),
                motion: [u(18.0), y + u(112.0), w - u(36.0), u(96.0)],
                field: [u(18.0), y + u(222.0), w - u(36.0), u(40.0)],
                icons: [u(14.0), y + u(278.0), w - u(28.0), nav - u(26.0) - (y + u(278.0))],
                pages: (w / 2.0, nav - u(14.0)),
                nav,
            }
        } else {
            let column = w * 0.44;
            Self {
                width: w,
                height: h,
                unit,
                top,
                clock: (u(22.0), y + u(50.0)),
                clock_px: u(48.0),
                dial: (column - u(46.0), y + u(44.0), u(40.0)),
                motion: [u(18.0), y + u(96.0), column - u(26.0), u(82.0)],
                field: [u(18.0), y + u(188.0), column - u(26.0), u(36.0)],
                icons: [column + u(14.0), y, w - column - u(28.0), nav - u(24.0) - y],
                pages: (column + (w - column) / 2.0, nav - u(12.0)),
                nav,
            }
        }
    }
}

/// Draws everything that stays still for this page and panel.
pub(crate) fn draw_background(
    to: &mut Pixmap,
    text: &mut Text,
    at: &Layout,
    page: u8,
    panel: Panel,
    model_name: &str,
) {
    wallpaper(to, at, page);
    status_bar(to, text, at);
    dial(to, at);
    motion_card(to, text, at);
    rounded(to, at.field, at.field[3] / 2.0, &solid([255, 255, 255, 222]));
    icons(to, text, at, page);
    page_dots(to, at, page);
    nav_bar(to, at);
    match panel {
        Panel::None => {}
        Panel::Notifications => shade(
            to,
            text,
            at,
            "Notifications",
            &["Simulated device", model_name, "Every touch is drawn"],
        ),
        Panel::Settings => {
            shade(to, text, at, "Quick settings", &["Wi-Fi on", "Rotation free", model_name])
        }
    }
}

fn wallpaper(to: &mut Pixmap, at: &Layout, page: u8) {
    let colours: [Rgba; 3] = match page % 3 {
        0 => [[24, 30, 74, 255], [74, 58, 132, 255], [186, 98, 134, 255]],
        1 => [[14, 52, 74, 255], [34, 100, 118, 255], [126, 158, 140, 255]],
        _ => [[52, 24, 58, 255], [120, 60, 84, 255], [214, 146, 104, 255]],
    };
    let paint = gradient((0.0, 0.0), (at.width * 0.35, at.height), &colours);
    rounded(to, [0.0, 0.0, at.width, at.height], 0.0, &paint);
    let radius = at.width.max(at.height);
    circle(to, (at.width * 0.95, at.height * 0.12), radius * 0.26, [255, 255, 255, 14]);
    circle(to, (at.width * 0.05, at.height * 0.62), radius * 0.34, [255, 255, 255, 10]);
    circle(to, (at.width * 0.80, at.height * 0.98), radius * 0.30, [0, 0, 0, 22]);
}

/// Battery and signal; the time is drawn with the moving parts.
fn status_bar(to: &mut Pixmap, text: &mut Text, at: &Layout) {
    let u = at.unit;
    let y = at.top + 13.0 * u;
    let x = at.width - 40.0 * u;
    rounded(to, [x, y - 6.0 * u, 20.0 * u, 11.0 * u], 3.0 * u, &solid([255, 255, 255, 90]));
    rounded(to, [x, y - 6.0 * u, 15.0 * u, 11.0 * u], 3.0 * u, &solid([255, 255, 255, 235]));
    rounded(to, [x + 20.5 * u, y - 2.5 * u, 2.0 * u, 4.0 * u], u, &solid([255, 255, 255, 235]));
    for (i, height) in [3.0f32, 5.5, 8.0, 10.5].iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "four bars")]
        let bar = x - (26.0 - 4.5 * i as f32) * u;
        rounded(
            to,
            [bar, y + 5.0 * u - height * u, 3.0 * u, height * u],
            u,
            &solid([255, 255, 255, 235]),
        );
    }
    let label = "5G";
    let px = 12.0 * u;
    let width = text.width(label, px);
    text.draw(to, (x - 32.0 * u - width, y + 5.0 * u), px, WHITE, label);
}

fn dial(to: &mut Pixmap, at: &Layout) {
    let (x, y, r) = at.dial;
    circle(to, (x, y), r, [255, 255, 255, 34]);
    ring(to, (x, y), r, 1.5 * at.unit, [255, 255, 255, 120]);
    for hour in 0..12u8 {
        let (sin, cos) = (f32::from(hour) * std::f32::consts::TAU / 12.0).sin_cos();
        let inner = if hour % 3 == 0 { 0.80 } else { 0.88 };
        let points =
            [(x + sin * r * inner, y - cos * r * inner), (x + sin * r * 0.94, y - cos * r * 0.94)];
        line(to, &points, 1.6 * at.unit, [255, 255, 255, 200]);
    }
}

fn motion_card(to: &mut Pixmap, text: &mut Text, at: &Layout) {
    let [x, y, w, h] = at.motion;
    let u = at.unit;
    rounded(to, at.motion, 18.0 * u, &solid(CARD));
    text.draw(to, (x + 14.0 * u, y + 20.0 * u), 12.0 * u, SOFT, "In motion");
    let bar = [x + 14.0 * u, y + h - 16.0 * u, w - 28.0 * u, 5.0 * u];
    rounded(to, bar, 2.5 * u, &solid([255, 255, 255, 60]));
}

fn icons(to: &mut Pixmap, text: &mut Text, at: &Layout, page: u8) {
    let [x, y, w, h] = at.icons;
    let u = at.unit;
    let row_height = (h / 2.0).min(96.0 * u);
    if row_height < 62.0 * u {
        return;
    }
    let gap = (h - 2.0 * row_height) / 2.0;
    let size = 54.0 * u;
    for slot in 0..8u8 {
        let (name, light, dark) = APPS[usize::from((slot + page * 3) % 8)];
        let cx = x + w * (f32::from(slot % 4) + 0.5) / 4.0;
        let cy = y + gap + row_height * (f32::from(slot / 4) + 0.5) - 8.0 * u;
        let left = [cx - size / 2.0, cy - size / 2.0, size, size];
        let paint = gradient((cx, left[1]), (cx, left[1] + size), &[light, dark]);
        rounded(to, left, 15.0 * u, &paint);
        app_sign(to, name, (cx, cy), size, dark);
        text.draw_centred(to, (cx, cy + size / 2.0 + 15.0 * u), 12.0 * u, WHITE, name);
    }
}

/// A simple white sign in the middle of an app's icon.
fn app_sign(to: &mut Pixmap, name: &str, (x, y): (f32, f32), size: f32, dark: Rgba) {
    const INK: Rgba = [255, 255, 255, 240];
    let s = size / 54.0;
    match name {
        "Phone" => {
            let path = [
                (x - 9.0 * s, y - 11.0 * s),
                (x - 7.0 * s, y + 1.0 * s),
                (x, y + 8.0 * s),
                (x + 11.0 * s, y + 10.0 * s),
            ];
            line(to, &path, 6.5 * s, INK);
        }
        "Messages" => {
            rounded(to, [x - 14.0 * s, y - 12.0 * s, 28.0 * s, 20.0 * s], 7.0 * s, &solid(INK));
            polygon(
                to,
                &[(x - 8.0 * s, y + 6.0 * s), (x - 9.0 * s, y + 14.0 * s), (x, y + 7.0 * s)],
                INK,
            );
        }
        "Camera" => {
            rounded(to, [x - 15.0 * s, y - 9.0 * s, 30.0 * s, 21.0 * s], 5.0 * s, &solid(INK));
            rounded(to, [x - 6.0 * s, y - 13.0 * s, 12.0 * s, 6.0 * s], 2.0 * s, &solid(INK));
            circle(to, (x, y + 1.5 * s), 6.5 * s, dark);
        }
        "Gallery" => {
            circle(to, (x + 7.0 * s, y - 8.0 * s), 4.0 * s, INK);
            polygon(
                to,
                &[
                    (x - 16.0 * s, y + 12.0 * s),
                    (x - 4.0 * s, y - 8.0 * s),
                    (x + 8.0 * s, y + 12.0 * s),
                ],
                INK,
            );
            polygon(
                to,
                &[(x + 1.0 * s, y + 12.0 * s), (x + 9.0 * s, y), (x + 17.0 * s, y + 12.0 * s)],
                INK,
            );
        }
        "Maps" => {
            circle(to, (x, y - 5.0 * s), 9.0 * s, INK);
            polygon(
                to,
                &[(x - 8.0 * s, y - 1.0 * s), (x, y + 14.0 * s), (x + 8.0 * s, y - 1.0 * s)],
                INK,
            );
            circle(to, (x, y - 5.0 * s), 3.6 * s, dark);
        }
        "Music" => {
            circle(to, (x - 7.0 * s, y + 9.0 * s), 5.0 * s, INK);
            circle(to, (x + 9.0 * s, y + 6.0 * s), 5.0 * s, INK);
            line(
                to,
                &[
                    (x - 3.0 * s, y + 9.0 * s),
                    (x - 3.0 * s, y - 10.0 * s),
                    (x + 13.0 * s, y - 13.0 * s),
                    (x + 13.0 * s, y + 6.0 * s),
                ],
                2.6 * s,
                INK,
            );
        }
        "Clock" => {
            ring(to, (x, y), 14.0 * s, 2.8 * s, INK);
            line(to, &[(x, y - 8.0 * s), (x, y), (x + 6.0 * s, y + 3.0 * s)], 2.8 * s, INK);
        }
        _ => {
            ring(to, (x, y), 8.5 * s, 5.0 * s, INK);
            for tooth in 0..8u8 {
                let (sin, cos) = (f32::from(tooth) * std::f32::consts::TAU / 8.0).sin_cos();
                line(
                    to,
                    &[
                        (x + sin * 10.0 * s, y + cos * 10.0 * s),
                        (x + sin * 14.0 * s, y + cos * 14.0 * s),
                    ],
                    4.6 * s,
                    INK,
                );
            }
        }
    }
}

fn page_dots(to: &mut Pixmap, at: &Layout, page: u8) {
    let (x, y) = at.pages;
    for dot in 0..PAGES {
        let cx = x + (f32::from(dot) - f32::from(PAGES - 1) / 2.0) * 13.0 * at.unit;
        let (radius, alpha) = if dot == page { (3.6, 255) } else { (2.8, 110) };
        circle(to, (cx, y), radius * at.unit, [255, 255, 255, alpha]);
    }
}

fn nav_bar(to: &mut Pixmap, at: &Layout) {
    const INK: Rgba = [255, 255, 255, 225];
    let u = at.unit;
    rounded(to, [0.0, at.nav, at.width, at.height - at.nav], 0.0, &solid([0, 0, 0, 90]));
    let y = at.nav + 22.0 * u;
    let step = at.width / 4.0;
    let x = step;
    polygon(to, &[(x - 8.0 * u, y), (x + 6.0 * u, y - 9.0 * u), (x + 6.0 * u, y + 9.0 * u)], INK);
    ring(to, (2.0 * step, y), 8.0 * u, 2.6 * u, INK);
    rounded(to, [3.0 * step - 7.5 * u, y - 7.5 * u, 15.0 * u, 15.0 * u], 2.5 * u, &solid(INK));
}

fn shade(to: &mut Pixmap, text: &mut Text, at: &Layout, title: &str, rows: &[&str]) {
    let u = at.unit;
    let left = at.width.min(360.0 * u);
    let x = (at.width - left) / 2.0;
    rounded(to, [0.0, at.top, at.width, at.height - at.top], 0.0, &solid([8, 10, 24, 170]));
    text.draw(to, (x + 24.0 * u, at.top + 58.0 * u), 24.0 * u, WHITE, title);
    let mut y = at.top + 76.0 * u;
    for row in rows {
        rounded(
            to,
            [x + 16.0 * u, y, left - 32.0 * u, 46.0 * u],
            14.0 * u,
            &solid([240, 242, 250, 235]),
        );
        circle(to, (x + 40.0 * u, y + 23.0 * u), 11.0 * u, [120, 130, 200, 255]);
        text.draw(to, (x + 62.0 * u, y + 29.0 * u), 16.0 * u, [40, 44, 66], row);
        y += 54.0 * u;
    }
}
