//! What is on the simulated screen, apart from how it is drawn.
//!
//! Plain data plus the few rules a phone follows: fingers leave trails, typed text goes into the
//! field, Home goes to the first page. It has no clock (time is an argument) and draws nothing.
//! Invariants: positions are fractions of the screen, so they mean the same at every video size;
//! every list has a stated bound; `revision` changes whenever the picture would.

use std::collections::VecDeque;

/// Fingers at one time, as Android's scrcpy server allows.
pub const MAX_POINTERS: usize = 10;
/// Finished touches remembered for their fading dots; the oldest goes first.
const MAX_TRAILS: usize = 32;
/// Characters kept in the text field; the oldest go first.
const MAX_TEXT: usize = 240;
/// How long a finished touch stays visible.
pub const TRAIL_US: u64 = 1_000_000;
/// How long a finished touch stays at full strength before it fades.
pub const TRAIL_FULL_US: u64 = 300_000;
/// How long a short message stays.
const TOAST_US: u64 = 1_500_000;
/// Home screen pages.
pub const PAGES: u8 = 3;
/// A horizontal stroke longer than this fraction of the screen turns the page.
const PAGE_STROKE: f32 = 0.25;
/// A stroke no longer than this fraction is a tap.
const TAP_SLOP: f32 = 0.03;

/// One finger on the screen.
#[derive(Debug, Clone, PartialEq)]
pub struct Touch {
    /// The pointer id as the peer gave it.
    pub pointer_id: u64,
    /// The small number shown next to the dot, which also picks its colour.
    pub label: u8,
    /// Position as a fraction of the screen's width.
    pub x: f32,
    /// Position as a fraction of the screen's height.
    pub y: f32,
    start: (f32, f32),
}

/// A finished touch whose dot is still fading.
#[derive(Debug, Clone, PartialEq)]
pub struct Trail {
    /// The number shown next to the dot.
    pub label: u8,
    /// Position as a fraction of the screen's width.
    pub x: f32,
    /// Position as a fraction of the screen's height.
    pub y: f32,
    /// When the finger left.
    pub ended_us: u64,
}

/// What covers the home screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Panel {
    /// Nothing.
    None,
    /// The notification shade.
    Notifications,
    /// The quick settings.
    Settings,
}

/// A finger's movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TouchAction {
    /// The finger touches down.
    Down,
    /// The finger moves.
    Move,
    /// The finger leaves.
    Up,
    /// The gesture is abandoned: like up, but nothing is tapped.
    Cancel,
}

/// The state of the screen.
#[derive(Debug, Clone)]
pub struct ScreenModel {
    /// Size in natural (unrotated) orientation, in pixels.
    pub natural: (u32, u32),
    /// Quarter turns counter-clockwise from natural orientation.
    pub rotation: u8,
    /// Whether the screen is on; it draws black otherwise.
    pub awake: bool,
    /// Which home screen page shows.
    pub page: u8,
    /// What covers it.
    pub panel: Panel,
    /// Contents of the text field.
    pub text: String,
    /// A short message and when it goes away.
    pub toast: Option<(String, u64)>,
    /// Fingers on the screen.
    pub touches: Vec<Touch>,
    /// Fading dots, oldest first.
    pub trails: VecDeque<Trail>,
    /// Touch downs so far, modulo 256.
    pub touch_count: u8,
    /// Changes with every change that can be seen.
    pub revision: u64,
}

impl ScreenModel {
    /// A screen that is on and shows the first page.
    #[must_use]
    pub fn new(natural: (u32, u32)) -> Self {
        Self {
            natural,
            rotation: 0,
            awake: true,
            page: 0,
            panel: Panel::None,
            text: String::new(),
            toast: None,
            touches: Vec::new(),
            trails: VecDeque::new(),
            touch_count: 0,
            revision: 0,
        }
    }

    /// Current size in pixels, with the rotation applied.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        let (w, h) = self.natural;
        if self.rotation.is_multiple_of(2) { (w, h) } else { (h, w) }
    }

    /// Turns between upright and landscape, as scrcpy's ROTATE_DEVICE does.
    pub fn rotate(&mut self) {
        self.rotation = (self.rotation & 1) ^ 1;
        self.touches.clear();
        self.revision += 1;
    }

    /// Applies a finger's movement at a position given as fractions of the screen.
    ///
    /// Returns `false` when it means nothing: a move or up without a down, or an eleventh finger.
    /// A position far outside is brought near the edge, where it is just as invisible; a peer may
    /// send any number.
    pub fn touch(
        &mut self,
        action: TouchAction,
        pointer_id: u64,
        x: f32,
        y: f32,
        now: u64,
    ) -> bool {
        let [x, y] = [x, y].map(|n| if n.is_nan() { -0.5 } else { n.clamp(-0.5, 1.5) });
        let index = self.touches.iter().position(|t| t.pointer_id == pointer_id);
        let done = match (action, index) {
            (TouchAction::Down, index) => self.finger_down(index, pointer_id, x, y),
            (TouchAction::Move, Some(index)) => {
                let touch = &mut self.touches[index];
                (touch.x, touch.y) = (x, y);
                true
            }
            (TouchAction::Up | TouchAction::Cancel, Some(index)) => {
                let touch = self.touches.remove(index);
                self.finger_up(&touch, (x, y), action == TouchAction::Up, now);
                true
            }
            (_, None) => false,
        };
        self.revision += u64::from(done);
        done
    }

    fn finger_down(&mut self, index: Option<usize>, pointer_id: u64, x: f32, y: f32) -> bool {
        if let Some(index) = index {
            self.touches.remove(index);
        }
        if self.touches.len() >= MAX_POINTERS {
            return false;
        }
        let label = self.free_label(pointer_id);
        self.touches.push(Touch { pointer_id, label, x, y, start: (x, y) });
        self.touch_count = self.touch_count.wrapping_add(1);
        true
    }

    /// Small pointer ids label themselves; the others (a mouse is 2^64 - 1) get the lowest free
    /// number.
    fn free_label(&self, pointer_id: u64) -> u8 {
        match u8::try_from(pointer_id) {
            Ok(id) if id < 10 => id,
            _ => (0..10).find(|l| self.touches.iter().all(|t| t.label != *l)).unwrap_or(9),
        }
    }

    fn finger_up(&mut self, touch: &Touch, (x, y): (f32, f32), gesture: bool, now: u64) {
        if self.trails.len() >= MAX_TRAILS {
            self.trails.pop_front();
        }
        self.trails.push_back(Trail { label: touch.label, x, y, ended_us: now });
        if !gesture {
            return;
        }
        let (dx, dy) = (x - touch.start.0, y - touch.start.1);
        if dx.abs() < TAP_SLOP && y > 1.0 - self.nav_height() {
            self.tap_nav(x, now);
        } else if dx.abs() > PAGE_STROKE && dx.abs() > dy.abs() {
            let next = if dx < 0.0 { self.page + 1 } else { self.page.saturating_sub(1) };
            self.page = next.min(PAGES - 1);
        } else if dy.abs() > PAGE_STROKE && touch.start.1 < 0.08 {
            self.panel = Panel::Notifications;
        } else if dx.abs() < TAP_SLOP && dy.abs() < TAP_SLOP && y > 0.08 {
            self.panel = Panel::None;
        }
    }

    /// Height of the navigation bar as a fraction of the screen: 44 of 360 parts of the short side.
    fn nav_height(&self) -> f32 {
        let (w, h) = self.size();
        #[allow(clippy::cast_precision_loss, reason = "screen sizes are far below 2^23")]
        let height = w.min(h) as f32 * 44.0 / 360.0 / h as f32;
        height
    }

    fn tap_nav(&mut self, x: f32, now: u64) {
        if x < 0.375 {
            self.set_panel(Panel::None);
            self.show_toast("Back", now);
        } else if x < 0.625 {
            self.go_home();
            self.show_toast("Home", now);
        } else {
            self.show_toast("Recent apps", now);
        }
    }

    /// Appends text to the field.
    pub fn type_text(&mut self, text: &str) {
        self.text.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
        let extra = self.text.chars().count().saturating_sub(MAX_TEXT);
        if extra > 0 {
            self.text = self.text.chars().skip(extra).collect();
        }
        self.revision += 1;
    }

    /// Removes the last character of the field.
    pub fn backspace(&mut self) {
        self.text.pop();
        self.revision += 1;
    }

    /// Shows a short message.
    pub fn show_toast(&mut self, text: impl Into<String>, now: u64) {
        let text: String = text.into();
        self.toast = Some((text.chars().take(48).collect(), now + TOAST_US));
        self.revision += 1;
    }

    /// Covers or uncovers the home screen.
    pub fn set_panel(&mut self, panel: Panel) {
        self.panel = panel;
        self.revision += 1;
    }

    /// Switches the screen on or off.
    pub fn set_awake(&mut self, awake: bool) {
        self.awake = awake;
        self.revision += 1;
    }

    /// Home button: first page, nothing in front of it.
    pub fn go_home(&mut self) {
        self.page = 0;
        self.panel = Panel::None;
        self.revision += 1;
    }

    /// Drops what has faded. Call before drawing; returns whether anything is still fading, so that
    /// a still screen knows whether it has to keep drawing.
    pub fn expire(&mut self, now: u64) -> bool {
        let before = self.trails.len();
        self.trails.retain(|t| now < t.ended_us + TRAIL_US);
        let gone = self.trails.len() != before;
        let toast_over = self.toast.as_ref().is_some_and(|(_, until)| now >= *until);
        if toast_over {
            self.toast = None;
        }
        self.revision += u64::from(gone || toast_over);
        !self.trails.is_empty() || self.toast.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ScreenModel {
        ScreenModel::new((720, 1280))
    }

    #[test]
    fn a_finger_leaves_a_trail_that_fades_after_a_second() {
        let mut m = model();
        assert!(m.touch(TouchAction::Down, 0, 0.5, 0.5, 0));
        assert!(m.touch(TouchAction::Up, 0, 0.5, 0.5, 10));
        assert!(m.expire(TRAIL_US));
        assert!(!m.expire(TRAIL_US + 10));
        assert!(m.trails.is_empty());
    }

    #[test]
    fn moves_without_a_finger_mean_nothing() {
        let mut m = model();
        assert!(!m.touch(TouchAction::Move, 3, 0.5, 0.5, 0));
        assert!(!m.touch(TouchAction::Up, 3, 0.5, 0.5, 0));
        assert_eq!(m.revision, 0);
    }

    #[test]
    fn an_eleventh_finger_is_refused() {
        let mut m = model();
        for id in 0..10 {
            assert!(m.touch(TouchAction::Down, id, 0.1, 0.1, 0));
        }
        assert!(!m.touch(TouchAction::Down, 10, 0.1, 0.1, 0));
        assert_eq!(m.touch_count, 10);
    }

    #[test]
    fn positions_stay_near_the_screen() {
        let mut m = model();
        m.touch(TouchAction::Down, 0, f32::INFINITY, f32::NAN, 0);
        assert_eq!((m.touches[0].x, m.touches[0].y), (1.5, -0.5));
    }

    #[test]
    fn a_stroke_to_the_left_turns_the_page() {
        let mut m = model();
        m.touch(TouchAction::Down, 0, 0.9, 0.5, 0);
        m.touch(TouchAction::Move, 0, 0.5, 0.5, 0);
        m.touch(TouchAction::Up, 0, 0.2, 0.5, 0);
        assert_eq!(m.page, 1);
        m.go_home();
        assert_eq!(m.page, 0);
    }

    #[test]
    fn typed_text_and_trails_are_bounded() {
        let mut m = model();
        m.type_text(&"x".repeat(1000));
        m.type_text("end");
        assert_eq!(m.text.chars().count(), MAX_TEXT);
        assert!(m.text.ends_with("end"));
        for _ in 0..100 {
            m.touch(TouchAction::Down, 0, 0.1, 0.1, 0);
            m.touch(TouchAction::Up, 0, 0.1, 0.1, 0);
        }
        assert_eq!(m.trails.len(), MAX_TRAILS);
    }

    #[test]
    fn rotating_swaps_the_sides_and_lifts_fingers() {
        let mut m = model();
        m.touch(TouchAction::Down, 0, 0.1, 0.1, 0);
        m.rotate();
        assert_eq!(m.size(), (1280, 720));
        assert!(m.touches.is_empty());
        m.rotate();
        assert_eq!(m.rotation, 0);
    }
}
