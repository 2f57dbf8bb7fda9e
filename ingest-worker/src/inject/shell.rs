//! Input by `input` shell commands, for sources without a control channel. Pure: ops in, command
//! lines out. Not for the fast path: each command starts a Java process on the device (about a
//! second). Invariant: nothing a viewer sends reaches the shell unquoted, and the verbs are fixed.

use std::time::{Duration, Instant};

use super::{Op, Position, Press};
use crate::fence::MAX_POINTERS;

/// Longest text of one command.
const MAX_TEXT_BYTES: usize = 256;
/// A finger that moved less than this part of the width (1/40) has tapped.
const TAP_SLOP_DIVISOR: u16 = 40;
/// One notch of the wheel is this part of the height.
const NOTCHES_PER_HEIGHT: i32 = 10;

/// Turns presses and releases into whole gestures, since `input` knows only those.
#[derive(Debug, Default)]
pub struct ShellGestures {
    down: [Option<(Position, Instant)>; MAX_POINTERS],
    /// Size of the device's screen, where it differs from the video's.
    screen: Option<(u16, u16)>,
}

impl ShellGestures {
    /// For a screen of this size; `None` where the video has it.
    pub fn new(screen: Option<(u16, u16)>) -> Self {
        Self { down: [None; MAX_POINTERS], screen }
    }

    /// The command to run for `op`, if it completes one. Ops that `input` cannot do (clipboard,
    /// rotation) give none.
    pub fn command(&mut self, now: Instant, op: &Op) -> Option<String> {
        match op {
            Op::Touch { press, pointer, at, .. } => self.touch(now, *press, *pointer, *at),
            Op::Key { press: Press::Down, keycode, .. } => {
                Some(format!("input keyevent {keycode}"))
            }
            Op::BackOrScreenOn(Press::Down) => Some("input keyevent 4".to_owned()),
            Op::Scroll { at, dx, dy, .. } => Some(self.scroll(*at, *dx, *dy)),
            Op::Text(text) => quoted(text).map(|t| format!("input text {t}")),
            Op::ExpandNotifications => Some("cmd statusbar expand-notifications".to_owned()),
            Op::CollapsePanels => Some("cmd statusbar collapse".to_owned()),
            _ => None,
        }
    }

    fn touch(&mut self, now: Instant, press: Press, pointer: u8, at: Position) -> Option<String> {
        let slot = self.down.get_mut(usize::from(pointer))?;
        match press {
            Press::Down => {
                *slot = Some((at, now));
                None
            }
            Press::Move => None,
            Press::Up => {
                let (from, since) = slot.take()?;
                let slop = (at.width / TAP_SLOP_DIVISOR).max(1);
                let held = now.saturating_duration_since(since);
                let (x, y) = self.scale(from);
                if from.x.abs_diff(at.x) <= slop
                    && from.y.abs_diff(at.y) <= slop
                    && held < Duration::from_millis(500)
                {
                    return Some(format!("input tap {x} {y}"));
                }
                let (to_x, to_y) = self.scale(at);
                let millis = held.as_millis().clamp(50, 5_000);
                Some(format!("input swipe {x} {y} {to_x} {to_y} {millis}"))
            }
        }
    }

    fn scroll(&self, at: Position, dx: i16, dy: i16) -> String {
        let (x, y) = self.scale(at);
        let step = i32::from(self.screen.map_or(at.height, |s| s.1)) / NOTCHES_PER_HEIGHT;
        // Full range of the message is 16 notches.
        let distance = |d: i16| i32::from(d) * 16 / i32::from(i16::MAX) * step;
        let (to_x, to_y) =
            ((i32::from(x) + distance(dx)).max(0), (i32::from(y) + distance(dy)).max(0));
        format!("input swipe {x} {y} {to_x} {to_y} 100")
    }

    fn scale(&self, at: Position) -> (u16, u16) {
        let Some((width, height)) = self.screen else { return (at.x, at.y) };
        let scaled = |v: u16, from: u16, to: u16| {
            u16::try_from(u32::from(v) * u32::from(to) / u32::from(from.max(1))).unwrap_or(to)
        };
        (scaled(at.x, at.width, width), scaled(at.y, at.height, height))
    }
}

/// Text as one single-quoted shell word in `input`'s own escaping (`%s` is a space); `None` when
/// nothing printable is left. `input text` types ASCII only.
fn quoted(text: &str) -> Option<String> {
    let mut word = String::new();
    for c in text.chars().filter(|c| matches!(c, ' '..='~')) {
        if word.len() >= MAX_TEXT_BYTES {
            break;
        }
        match c {
            ' ' => word.push_str("%s"),
            '\'' => word.push_str("'\\''"),
            other => word.push(other),
        }
    }
    (!word.is_empty()).then(|| format!("'{word}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(press: Press, x: u16, y: u16) -> Op {
        let at = Position { x, y, width: 360, height: 640 };
        Op::Touch { press, pointer: 0, at, pressure: 0xffff, buttons: 0 }
    }

    #[test]
    fn a_short_touch_is_a_tap_in_screen_pixels() {
        let now = Instant::now();
        let mut g = ShellGestures::new(Some((720, 1280)));
        assert_eq!(g.command(now, &touch(Press::Down, 100, 200)), None);
        assert_eq!(g.command(now, &touch(Press::Move, 101, 200)), None);
        let up = g.command(now + Duration::from_millis(60), &touch(Press::Up, 101, 201));
        assert_eq!(up.as_deref(), Some("input tap 200 400"));
    }

    #[test]
    fn a_long_way_or_a_long_time_is_a_swipe() {
        let now = Instant::now();
        let mut g = ShellGestures::default();
        g.command(now, &touch(Press::Down, 100, 200));
        let up = g.command(now + Duration::from_millis(250), &touch(Press::Up, 100, 500));
        assert_eq!(up.as_deref(), Some("input swipe 100 200 100 500 250"));
        g.command(now, &touch(Press::Down, 100, 200));
        let up = g.command(now + Duration::from_millis(900), &touch(Press::Up, 100, 200));
        assert_eq!(up.as_deref(), Some("input swipe 100 200 100 200 900"));
    }

    #[test]
    fn a_viewer_cannot_leave_the_quotes() {
        let mut g = ShellGestures::default();
        let command = g.command(Instant::now(), &Op::Text("a'; reboot #\n$(x)".into())).unwrap();
        assert_eq!(command, r"input text 'a'\'';%sreboot%s#$(x)'");
        assert_eq!(g.command(Instant::now(), &Op::Text("\u{e9}\n".into())), None);
    }

    #[test]
    fn the_wheel_is_a_short_swipe() {
        let at = Position { x: 100, y: 300, width: 360, height: 640 };
        let op = Op::Scroll { at, dx: 0, dy: -4095, buttons: 0 };
        let command = ShellGestures::default().command(Instant::now(), &op).unwrap();
        assert!(command.starts_with("input swipe 100 300 100 "), "{command}");
    }
}
