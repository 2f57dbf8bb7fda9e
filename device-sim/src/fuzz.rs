//! What the fuzz targets call: bytes in, a panic when an invariant is broken.
//!
//! Kept in the package so that the targets are one line each and the code is compiled, linted and
//! tested with the rest. Not for other use.

use std::cell::RefCell;
use std::sync::Arc;

use crate::device::{Device, Identity};
use crate::h264::{picture_size, split_pictures};
use crate::input::InputLog;
use crate::scrcpy::ScrcpyVersion;
use crate::scrcpy::control::{ControlMessage, MAX_MESSAGE, decode};
use crate::scrcpy::controller::Controller;
use crate::scrcpy::options::ServerOptions;
use crate::scrcpy::server::Log;
use crate::screen::strip::Stamp;
use crate::screen::{Moment, Renderer};
use crate::services::shell;

/// A small screen, quick to draw.
const SIZE: (u16, u16) = (160, 284);

/// Control messages of any version: a prefix asks for more, the whole is one message, and the
/// device takes it.
pub fn control(bytes: &[u8]) {
    apply(bytes);
}

/// The same, and whatever the messages did, the screen can be drawn. Drawing is slow under a
/// sanitizer, which is why this is a target of its own.
pub fn screen(bytes: &[u8]) {
    if let Some(device) = apply(bytes) {
        draw(&device);
    }
}

fn apply(bytes: &[u8]) -> Option<Arc<Device>> {
    let (pick, bytes) = bytes.split_first()?;
    let version = ScrcpyVersion::ALL[usize::from(*pick) % ScrcpyVersion::ALL.len()];
    let (device, mut controller) = small_device();
    let mut at = 0;
    while let Ok(Some((mut message, length))) = decode(version, &bytes[at..]) {
        assert!(length > 0 && length <= MAX_MESSAGE);
        for cut in [0, length / 2, length - 1] {
            let part = decode(version, &bytes[at..at + cut]);
            assert_eq!(part, Ok(None), "a prefix asks for more");
        }
        at += length;
        if *pick >= 128 {
            fit(&mut message);
        }
        if let Some(reply) = controller.apply(message) {
            assert!(reply.encode().len() <= MAX_MESSAGE);
        }
    }
    Some(device)
}

/// Command lines of the shell and options of the server: understood or refused.
pub fn command_line(bytes: &[u8]) {
    let Ok(line) = std::str::from_utf8(bytes) else { return };
    let Ok(commands) = shell::parse(line) else { return };
    for command in commands {
        for version in ScrcpyVersion::ALL {
            let args = command.words.iter().map(String::as_str);
            if let Ok((options, _)) = ServerOptions::parse(version, args) {
                assert!(options.socket_name().starts_with("scrcpy"));
            }
        }
    }
}

/// Recorded streams: every picture is non-empty, the first one is a keyframe.
pub fn clip(bytes: &[u8]) {
    let pictures = split_pictures(bytes);
    assert!(pictures.iter().all(|p| !p.data.is_empty()));
    if let Some(first) = pictures.first() {
        assert!(first.key);
        let _ = first.config.as_deref().and_then(picture_size);
    }
}

/// Makes a touch refer to the screen's size, which chance alone would hardly find.
fn fit(message: &mut ControlMessage) {
    if let ControlMessage::InjectTouch { position, .. } = message {
        (position.width, position.height) = SIZE;
    }
}

fn small_device() -> (Arc<Device>, Controller) {
    let identity = Identity { model: "Fuzz".into(), product: "fuzz".into(), serial: "fuzz".into() };
    // A log without a file cannot fail.
    let Ok(inputs) = InputLog::new(None) else { unreachable!("no file is opened") };
    let device = Device::new(identity, (SIZE.0.into(), SIZE.1.into()), inputs);
    let (log, _) = Log::new();
    let options = ServerOptions { clipboard_autosync: false, ..ServerOptions::default() };
    let controller = Controller::new(Arc::clone(&device), None, &options, log);
    (device, controller)
}

fn draw(device: &Device) {
    // Kept from run to run, one for each way the screen can be turned: the parts that stay still
    // are most of the work.
    thread_local! {
        static RENDERERS: RefCell<[Option<Renderer>; 2]> = const { RefCell::new([None, None]) };
    }
    let mut model = device.lock_state().model.clone();
    let now_us = crate::device::unix_us();
    model.expire(now_us);
    let (width, height) = model.size();
    RENDERERS.with_borrow_mut(|renderers| {
        let slot = &mut renderers[usize::from(model.rotation & 1)];
        if slot.is_none() {
            *slot = Renderer::new(width, height, "Fuzz").ok();
        }
        if let Some(renderer) = slot {
            let stamp = Stamp::new(0, now_us / 1000, model.touch_count);
            renderer.draw(&model, &Moment { now_us, clock_us: now_us, stamp });
            renderer.i420();
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn targets_take_short_and_odd_input() {
        for bytes in [&b""[..], b"\x00", b"\x03\x02\x00", b"\x02\x0b\x0b\x05\x06\x07\x0f\x11\x17"] {
            super::screen(bytes);
            super::command_line(bytes);
            super::clip(bytes);
        }
        // Touches at the ends of the number range, in a picture without size and in the right one.
        for size in [[0u16, 0], [160, 284]] {
            for (x, y) in [(i32::MIN, i32::MAX), (i32::MAX, i32::MIN), (-1, 283), (160, 284)] {
                let mut touch = vec![3];
                for action in [0, 2, 1] {
                    touch.extend([2, action]);
                    touch.extend([0xff; 8]);
                    touch.extend([x, y].map(i32::to_be_bytes).concat());
                    touch.extend(size.map(u16::to_be_bytes).concat());
                    touch.extend([0; 10]);
                    super::screen(&touch);
                }
            }
        }
        super::command_line(b"A=1 b 'c' \"d\" && e || f; g 2>&1 max_size=1 scid=1");
    }
}
