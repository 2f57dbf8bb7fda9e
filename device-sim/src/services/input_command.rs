//! The `input` command: taps, strokes, text and keys from a shell.
//!
//! Positions are pixels of the screen as it is turned now. Invariant: a stroke that is cut short by
//! its stream leaves no finger on the screen.

use std::sync::Arc;
use std::time::Duration;

use super::commands::Said;
use crate::device::Device;
use crate::input::{InputRecord, Source};
use crate::keys;
use crate::screen::model::TouchAction;

/// Time between two positions of a stroke.
const STEP: Duration = Duration::from_millis(16);
/// Longest stroke.
const MAX_STROKE_MS: u64 = 60_000;
/// The pointer id Android gives to injected touches.
const POINTER: u64 = 0;

const USAGE: &str = "usage: input tap X Y | swipe X1 Y1 X2 Y2 [MS] | draganddrop X1 Y1 X2 Y2 [MS] | \
                     motionevent DOWN|UP|MOVE|CANCEL X Y | text STRING | keyevent [--longpress] KEY...";

pub(super) async fn run(device: &Arc<Device>, args: &[String]) -> Said {
    // An input source may stand in front; every touch is the same here.
    let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
    if words.first().is_some_and(|w| matches!(*w, "touchscreen" | "keyboard" | "mouse" | "stylus"))
    {
        words.remove(0);
    }
    let done = match words[..] {
        ["tap", x, y] => tap(device, x, y).await,
        ["swipe" | "draganddrop", x1, y1, x2, y2] => stroke(device, [x1, y1, x2, y2], "300").await,
        ["swipe" | "draganddrop", x1, y1, x2, y2, ms] => stroke(device, [x1, y1, x2, y2], ms).await,
        ["motionevent", action, x, y] => motion(device, action, x, y),
        ["text", text] => type_text(device, text),
        ["keyevent", ref names @ ..] if !names.is_empty() => press(device, names),
        _ => None,
    };
    done.map_or_else(|| Said::fail(255, USAGE), |()| Said::default())
}

/// Lifts the finger when the command ends, however it ends.
struct Finger<'a> {
    device: &'a Device,
    at: (f32, f32),
}

impl<'a> Finger<'a> {
    fn down(device: &'a Device, at: (f32, f32)) -> Self {
        send(device, TouchAction::Down, at);
        Self { device, at }
    }

    fn move_to(&mut self, at: (f32, f32)) {
        self.at = at;
        send(self.device, TouchAction::Move, at);
    }
}

impl Drop for Finger<'_> {
    fn drop(&mut self) {
        send(self.device, TouchAction::Up, self.at);
    }
}

fn send(device: &Device, action: TouchAction, (x, y): (f32, f32)) {
    let (w, h) = device.size();
    #[allow(clippy::cast_possible_truncation, reason = "saturates")]
    let record = InputRecord::new("touch", Source::Shell).at(x as i32, y as i32, w, h);
    device.touch(action, POINTER, record);
}

fn point(x: &str, y: &str) -> Option<(f32, f32)> {
    let number = |s: &str| s.parse::<f32>().ok().filter(|n| n.is_finite());
    Some((number(x)?, number(y)?))
}

async fn tap(device: &Device, x: &str, y: &str) -> Option<()> {
    let finger = Finger::down(device, point(x, y)?);
    tokio::time::sleep(STEP).await;
    drop(finger);
    Some(())
}

async fn stroke(device: &Device, [x1, y1, x2, y2]: [&str; 4], ms: &str) -> Option<()> {
    let (from, to) = (point(x1, y1)?, point(x2, y2)?);
    let length = Duration::from_millis(ms.parse::<u64>().ok()?.clamp(1, MAX_STROKE_MS));
    let mut finger = Finger::down(device, from);
    let start = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(STEP).await;
        let done = (start.elapsed().as_secs_f32() / length.as_secs_f32()).min(1.0);
        finger.move_to((from.0 + (to.0 - from.0) * done, from.1 + (to.1 - from.1) * done));
        if done >= 1.0 {
            return Some(());
        }
    }
}

fn motion(device: &Device, action: &str, x: &str, y: &str) -> Option<()> {
    let action = match action.to_ascii_uppercase().as_str() {
        "DOWN" => TouchAction::Down,
        "UP" => TouchAction::Up,
        "MOVE" => TouchAction::Move,
        "CANCEL" => TouchAction::Cancel,
        _ => return None,
    };
    send(device, action, point(x, y)?);
    Some(())
}

/// `%s` stands for a space, as in Android.
fn type_text(device: &Device, text: &str) -> Option<()> {
    let text = text.replace("%s", " ");
    device.record(InputRecord::new("text", Source::Shell).text(&text));
    device.type_text(&text);
    Some(())
}

fn press(device: &Device, names: &[&str]) -> Option<()> {
    let names: Vec<_> = names.iter().filter(|n| !n.starts_with("--")).collect();
    // All names are looked at before the first key is pressed.
    let codes: Option<Vec<u32>> = names.iter().map(|name| keys::parse(name)).collect();
    for code in codes? {
        device.key(true, code, 0, 0, Source::Shell);
        device.key(false, code, 0, 0, Source::Shell);
    }
    Some(())
}
