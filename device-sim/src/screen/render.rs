//! Draws the screen picture by picture, touching only what changed.
//!
//! The parts that stay still are drawn once per page and orientation and kept. For each picture the
//! moving parts of the previous one are restored from there, the new ones are drawn, and only these
//! areas are converted to I420. Invariant: the picture equals one drawn from nothing for the same
//! model and moment.

use tiny_skia::Pixmap;

use super::home::{DOT_COLOURS, Layout, WHITE, draw_background};
use super::model::{Panel, ScreenModel, TRAIL_FULL_US, TRAIL_US};
use super::paint::{circle, line, ring, rounded, solid};
use super::strip::{self, Stamp};
use super::text::Text;
use super::yuv::{Area, I420};

/// Radius of a touch dot as a fraction of the picture's width.
const DOT_RADIUS: f32 = 0.03;

/// When a picture is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Now, as Unix time in microseconds; fading and messages go by it.
    pub now_us: u64,
    /// What the clock and the moving parts show; stands still on a static screen.
    pub clock_us: u64,
    /// What the strip says.
    pub stamp: Stamp,
}

/// Keeps one picture up to date.
#[derive(Debug)]
pub struct Renderer {
    layout: Layout,
    model_name: String,
    text: Text,
    still: Pixmap,
    /// Page, panel and power of what `still` holds.
    still_key: Option<(u8, Panel, bool)>,
    picture: Pixmap,
    /// Where the moving parts of the current picture are.
    moving: Vec<Area>,
    /// What changed since the last conversion.
    dirty: Vec<Area>,
    yuv: I420,
}

impl Renderer {
    /// A renderer for pictures of this size, or why there cannot be one.
    pub fn new(width: u32, height: u32, model_name: &str) -> Result<Self, RenderError> {
        let pixmap = || Pixmap::new(width, height).ok_or(RenderError::Size { width, height });
        Ok(Self {
            layout: Layout::new(width, height),
            model_name: model_name.to_owned(),
            text: Text::new().map_err(RenderError::Font)?,
            still: pixmap()?,
            still_key: None,
            picture: pixmap()?,
            moving: Vec::new(),
            dirty: Vec::new(),
            yuv: I420::new(width, height),
        })
    }

    /// Brings the picture up to date.
    pub fn draw(&mut self, model: &ScreenModel, moment: &Moment) {
        self.refresh_still(model);
        for area in std::mem::take(&mut self.moving) {
            restore(&mut self.picture, &self.still, area);
            self.dirty.push(area);
        }
        if model.awake {
            self.draw_time(moment.clock_us);
            self.draw_hands(moment.clock_us);
            self.draw_motion(moment.clock_us);
            self.draw_field(&model.text);
            self.draw_toast(model);
            self.draw_touches(model, moment.now_us);
        }
        self.draw_strip(moment.stamp);
        self.dirty.extend_from_slice(&self.moving);
    }

    /// The picture as RGBA, four bytes a pixel, row by row.
    #[must_use]
    pub fn rgba(&self) -> &[u8] {
        self.picture.data()
    }

    /// Width and height of the picture.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.picture.width(), self.picture.height())
    }

    /// The picture as I420; converts what changed since the last call.
    pub fn i420(&mut self) -> &I420 {
        let stride = self.picture.width() as usize * 4;
        for area in self.dirty.drain(..) {
            self.yuv.convert(self.picture.data(), stride, area);
        }
        &self.yuv
    }

    fn refresh_still(&mut self, model: &ScreenModel) {
        let key = (model.page, model.panel, model.awake);
        if self.still_key == Some(key) {
            return;
        }
        self.still_key = Some(key);
        self.still.fill(tiny_skia::Color::BLACK);
        if model.awake {
            let Self { still, text, layout, .. } = self;
            draw_background(still, text, layout, model.page, model.panel, &self.model_name);
        }
        self.picture.data_mut().copy_from_slice(self.still.data());
        self.moving.clear();
        self.dirty.clear();
        let (x1, y1) = self.size();
        self.dirty.push(Area { x0: 0, y0: 0, x1, y1 });
    }

    /// Notes that the pixels between these edges are drawn on.
    fn mark(&mut self, [x0, y0, x1, y1]: [f32; 4]) {
        let (width, height) = self.size();
        // Two pixels around for anti-aliasing and glyphs that lean out of their advance box.
        let area = Area::around([x0 - 2.0, y0 - 2.0, x1 + 2.0, y1 + 2.0], width, height);
        if !area.is_empty() {
            self.moving.push(area);
        }
    }

    fn draw_strip(&mut self, stamp: Stamp) {
        let (x1, height) = self.size();
        strip::draw(self.picture.data_mut(), x1, stamp);
        self.moving.push(Area { x0: 0, y0: 0, x1, y1: strip::height(x1).min(height) });
    }

    fn draw_time(&mut self, clock_us: u64) {
        let u = self.layout.unit;
        let (x, y) = self.layout.clock;
        let px = self.layout.clock_px;
        let now = TimeOfDay::at(clock_us);
        let big = format!("{:02}:{:02}", now.hour, now.minute);
        let seconds = format!("{:02}", now.second);
        let top = self.layout.top;
        self.text.draw(&mut self.picture, (x, y), px, WHITE, &big);
        let end = self.text.width(&big, px) + x;
        self.mark([x - 2.0 * u, y - 0.8 * px, end, y + 4.0 * u]);
        let end_s =
            self.text.draw(&mut self.picture, (end + 6.0 * u, y), 24.0 * u, WHITE, &seconds);
        self.mark([end, y - 22.0 * u, end_s, y + 4.0 * u]);
        let date = now.date();
        let end_d =
            self.text.draw(&mut self.picture, (x + 2.0 * u, y + 26.0 * u), 16.0 * u, WHITE, &date);
        self.mark([x, y + 10.0 * u, end_d, y + 32.0 * u]);
        let small = (18.0 * u, top + 18.0 * u);
        let end_b = self.text.draw(&mut self.picture, small, 13.0 * u, WHITE, &big);
        self.mark([small.0, top + 6.0 * u, end_b, top + 22.0 * u]);
    }

    fn draw_hands(&mut self, clock_us: u64) {
        const DAY_US: u64 = 86_400_000_000;
        let (x, y, r) = self.layout.dial;
        let u = self.layout.unit;
        // Whole turns are cut off in integers first, so that f32 has digits left for the angle.
        #[allow(clippy::cast_precision_loss, reason = "below one turn")]
        let turn = |period_us: u64| {
            (clock_us % DAY_US % period_us) as f32 / period_us as f32 * std::f32::consts::TAU
        };
        for (period, length, width, colour) in [
            (DAY_US / 2, 0.50, 3.4, [255, 255, 255, 255]),
            (3_600_000_000, 0.72, 2.6, [255, 255, 255, 255]),
            (60_000_000, 0.84, 1.5, [255, 196, 120, 255]),
        ] {
            let (sin, cos) = turn(period).sin_cos();
            let tip = (x + sin * r * length, y - cos * r * length);
            line(&mut self.picture, &[(x, y), tip], width * u, colour);
        }
        circle(&mut self.picture, (x, y), 3.4 * u, [255, 196, 120, 255]);
        self.mark([x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9]);
    }

    /// A bouncing ball and a progress bar: something moves in every picture.
    fn draw_motion(&mut self, clock_us: u64) {
        let [x, y, w, h] = self.layout.motion;
        let u = self.layout.unit;
        #[allow(clippy::cast_precision_loss, reason = "below one period")]
        let phase = |period_us: u64| (clock_us % period_us) as f32 / period_us as f32;
        let across = 1.0 - (2.0 * phase(5_000_000) - 1.0).abs();
        let bounce = 2.0 * phase(1_250_000) - 1.0;
        let r = 11.0 * u;
        let cx = x + 14.0 * u + r + across * (w - 28.0 * u - 2.0 * r);
        let floor = y + h - 22.0 * u - r;
        let cy = floor - (1.0 - bounce * bounce) * (h - 36.0 * u - 2.0 * r).max(0.0);
        circle(&mut self.picture, (cx, cy), r, [255, 214, 140, 255]);
        circle(&mut self.picture, (cx - r * 0.3, cy - r * 0.3), r * 0.3, [255, 246, 224, 255]);
        self.mark([cx - r, cy - r, cx + r, cy + r]);
        let done = phase(4_000_000) * (w - 28.0 * u);
        let bar = [x + 14.0 * u, y + h - 16.0 * u, done.max(5.0 * u), 5.0 * u];
        rounded(&mut self.picture, bar, 2.5 * u, &solid([255, 214, 140, 255]));
        self.mark([bar[0], bar[1], bar[0] + w - 28.0 * u, bar[1] + bar[3]]);
    }

    fn draw_field(&mut self, typed: &str) {
        let [x, y, w, h] = self.layout.field;
        let px = h * 0.45;
        let base = (x + h * 0.5, y + h * 0.65);
        let room = w - h * 1.2;
        let (shown, colour) = if typed.is_empty() {
            ("Type something", [128, 134, 156])
        } else {
            (typed, [32, 36, 58])
        };
        // Keep the end visible, as a real field does; at most the length of the field is measured.
        let mut start = shown.len();
        let mut used = 0.0;
        for (at, c) in shown.char_indices().rev() {
            used += self.text.width(c.encode_utf8(&mut [0; 4]), px);
            if used > room {
                break;
            }
            start = at;
        }
        let end = self.text.draw(&mut self.picture, base, px, colour, &shown[start..]);
        if !typed.is_empty() {
            let caret = [(end + 2.0, y + h * 0.25), (end + 2.0, y + h * 0.75)];
            line(&mut self.picture, &caret, self.layout.unit, [80, 90, 170, 255]);
        }
        self.mark([x, y, x + w, y + h]);
    }

    fn draw_toast(&mut self, model: &ScreenModel) {
        let Some((message, _)) = &model.toast else { return };
        let u = self.layout.unit;
        let px = 15.0 * u;
        let width = self.text.width(message, px) + 36.0 * u;
        let (x, y) = (self.layout.width / 2.0 - width / 2.0, self.layout.height * 0.86);
        let box_ = [x, y - 21.0 * u, width, 34.0 * u];
        rounded(&mut self.picture, box_, 17.0 * u, &solid([20, 22, 40, 225]));
        self.text.draw(&mut self.picture, (x + 18.0 * u, y), px, WHITE, message);
        self.mark([x, box_[1], x + width, box_[1] + box_[3]]);
    }

    fn draw_touches(&mut self, model: &ScreenModel, now_us: u64) {
        for trail in &model.trails {
            let age = now_us.saturating_sub(trail.ended_us);
            if age >= TRAIL_US {
                continue;
            }
            #[allow(clippy::cast_precision_loss, reason = "below one second in microseconds")]
            let faded =
                age.saturating_sub(TRAIL_FULL_US) as f32 / (TRAIL_US - TRAIL_FULL_US) as f32;
            self.draw_dot(trail.label, trail.x, trail.y, 1.0 - faded, false);
        }
        for touch in &model.touches {
            self.draw_dot(touch.label, touch.x, touch.y, 1.0, true);
        }
    }

    /// One dot, its centre exactly at the touch; the number stands beside it so that the whole disc
    /// has one colour.
    fn draw_dot(&mut self, label: u8, x: f32, y: f32, strength: f32, down: bool) {
        let (width, height) = (self.layout.width, self.layout.height);
        let (cx, cy, r) = (x * width, y * height, DOT_RADIUS * width);
        let [red, green, blue] = DOT_COLOURS[usize::from(label) % DOT_COLOURS.len()];
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..=255")]
        let alpha = (strength.clamp(0.0, 1.0) * 255.0) as u8;
        circle(&mut self.picture, (cx, cy), r, [red, green, blue, alpha]);
        if down {
            ring(&mut self.picture, (cx, cy), r * 1.15, r * 0.14, [255, 255, 255, 230]);
        }
        let outer = r * 1.3;
        self.mark([cx - outer, cy - outer, cx + outer, cy + outer]);
        let px = r * 1.1;
        let below = cy - outer - px < self.layout.top;
        let base = if below { cy + outer + px } else { cy - outer - px * 0.25 };
        let name = label.to_string();
        let half = self.text.width(&name, px) / 2.0;
        let pill = [cx - half - px * 0.3, base - px * 0.85, half * 2.0 + px * 0.6, px * 1.1];
        rounded(&mut self.picture, pill, px * 0.3, &solid([20, 22, 40, alpha / 4 * 3]));
        self.text.draw(&mut self.picture, (cx - half, base), px, WHITE, &name);
        self.mark([pill[0], pill[1], pill[0] + pill[2], pill[1] + pill[3]]);
    }
}

/// Copies one area of the still picture over the current one.
fn restore(to: &mut Pixmap, from: &Pixmap, area: Area) {
    let stride = from.width() as usize * 4;
    let columns = area.x0 as usize * 4..area.x1 as usize * 4;
    for y in area.y0 as usize..area.y1 as usize {
        let range = y * stride + columns.start..y * stride + columns.end;
        to.data_mut()[range.clone()].copy_from_slice(&from.data()[range]);
    }
}

/// Why there is no renderer; the caller asked for a size that cannot be drawn, so the same request
/// will fail again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The picture would have no pixels or too many.
    #[error("cannot draw a screen of {width}x{height} pixels")]
    Size {
        /// Width asked for.
        width: u32,
        /// Height asked for.
        height: u32,
    },
    /// The embedded font does not parse; the program was built wrongly.
    #[error("the embedded font cannot be read: {0}")]
    Font(&'static str),
}

/// Calendar time in UTC; a phone shows some time zone, and a simulator has none.
struct TimeOfDay {
    days: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl TimeOfDay {
    fn at(unix_us: u64) -> Self {
        let seconds = unix_us / 1_000_000;
        Self {
            days: seconds / 86_400,
            hour: seconds / 3_600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    /// Weekday, day and month, from the day number by the usual civil calendar arithmetic.
    fn date(&self) -> String {
        const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] = [
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
            "January",
            "February",
        ];
        // Days since 1 March of year 0, so that the leap day is the last day of its year.
        let of_era = (self.days + 719_468) % 146_097;
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let weekday = WEEKDAYS[usize::try_from(self.days % 7).unwrap_or(0)];
        format!("{weekday} {day} {}", MONTHS[usize::try_from(month).unwrap_or(0).min(11)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::TouchAction;
    use super::*;

    fn moment(frame_number: u32, us: u64) -> Moment {
        let stamp = Stamp { frame_number, capture_unix_ms: us / 1000, touch_count: 0 };
        Moment { now_us: us, clock_us: us, stamp }
    }

    #[test]
    fn drawing_what_changed_equals_drawing_everything() {
        let mut model = ScreenModel::new((360, 640));
        let mut kept = Renderer::new(360, 640, "Test").unwrap();
        for step in 0..40u32 {
            let us = 1_700_000_000_000_000 + u64::from(step) * 130_000;
            match step {
                3 => drop(model.touch(TouchAction::Down, 0, 0.5, 0.4, us)),
                5 => drop(model.touch(TouchAction::Move, 0, 0.3, 0.02, us)),
                8 => drop(model.touch(TouchAction::Up, 0, 0.3, 0.99, us)),
                10 => model.type_text("Hello, world, this is longer than the field is wide"),
                12 => model.show_toast("Home", us),
                20 => model.set_panel(Panel::Notifications),
                24 => model.go_home(),
                30 => model.set_awake(false),
                34 => model.set_awake(true),
                _ => {}
            }
            model.expire(us);
            kept.draw(&model, &moment(step, us));
            let mut fresh = Renderer::new(360, 640, "Test").unwrap();
            fresh.draw(&model, &moment(step, us));
            assert!(kept.rgba() == fresh.rgba(), "pictures differ at step {step}");
            let (a, b) = (format!("{:?}", kept.i420()), format!("{:?}", fresh.i420()));
            assert!(a == b, "planes differ at step {step}");
        }
    }

    #[test]
    fn a_dot_has_its_colour_exactly_where_the_finger_is() {
        let mut model = ScreenModel::new((720, 1280));
        let mut renderer = Renderer::new(720, 1280, "Test").unwrap();
        for (id, x, y) in [(0u64, 0.1f32, 0.1f32), (1, 0.5, 0.5), (2, 0.9, 0.9)] {
            model.touch(TouchAction::Down, id, x, y, 0);
            renderer.draw(&model, &moment(0, 0));
            let at = |x: f32, y: f32| {
                let area = Area::around([x * 720.0, y * 1280.0, 720.0, 1280.0], 720, 1280);
                let index = (area.y0 as usize * 720 + area.x0 as usize) * 4;
                renderer.rgba()[index..index + 3].to_vec()
            };
            assert_eq!(at(x, y), DOT_COLOURS[usize::try_from(id).unwrap()]);
            assert_eq!(at(x + 0.02, y), DOT_COLOURS[usize::try_from(id).unwrap()]);
        }
    }

    #[test]
    fn nothing_else_on_the_screen_has_a_dot_colour() {
        let mut model = ScreenModel::new((360, 640));
        let mut renderer = Renderer::new(360, 640, "Test").unwrap();
        for page in 0..3u8 {
            model.page = page;
            model.type_text("abc");
            renderer.draw(&model, &moment(0, 1_700_000_000_123_456));
            for pixel in renderer.rgba().chunks_exact(4) {
                for dot in &DOT_COLOURS[..3] {
                    let far = pixel[..3].iter().zip(dot).any(|(a, b)| a.abs_diff(*b) > 40);
                    assert!(far, "page {page}: {pixel:?} looks like dot {dot:?}");
                }
            }
        }
    }

    #[test]
    fn dates_follow_the_calendar() {
        let date = |seconds: u64| TimeOfDay::at(seconds * 1_000_000).date();
        assert_eq!(date(0), "Thu 1 January");
        assert_eq!(date(951_782_400), "Tue 29 February");
        assert_eq!(date(1_798_675_200), "Thu 31 December");
    }

    #[test]
    fn impossible_sizes_are_an_error() {
        assert!(matches!(Renderer::new(0, 10, ""), Err(RenderError::Size { .. })));
    }
}
