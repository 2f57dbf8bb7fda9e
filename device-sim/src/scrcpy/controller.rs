//! What each control message does to the device.
//!
//! Not the bytes (that is `control`). Invariant: every message is recorded exactly once, and one
//! that the device does not act on is recorded with the reason.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::control::{ControlMessage, DeviceMessage, Position};
use super::options::{LogLevel, ServerOptions};
use super::server::Log;
use crate::capture::CaptureHandle;
use crate::device::Device;
use crate::input::{InputRecord, Source};
use crate::keys;
use crate::screen::model::{Panel, TouchAction};

/// Virtual input devices at a time; a client makes one or two.
const MAX_UHID: usize = 16;

/// Applies messages of one control socket.
pub(crate) struct Controller {
    device: Arc<Device>,
    capture: Option<CaptureHandle>,
    clipboard_autosync: bool,
    flex_display: bool,
    uhid: BTreeSet<u16>,
    log: Log,
}

/// What the server does next.
pub(crate) type Reply = Option<DeviceMessage>;

impl Controller {
    pub(crate) fn new(
        device: Arc<Device>,
        capture: Option<CaptureHandle>,
        options: &ServerOptions,
        log: Log,
    ) -> Self {
        Self {
            device,
            capture,
            clipboard_autosync: options.clipboard_autosync,
            flex_display: options.flex_display,
            uhid: BTreeSet::new(),
            log,
        }
    }

    /// Applies one message and returns what to send back.
    pub(crate) fn apply(&mut self, message: ControlMessage) -> Reply {
        use ControlMessage as M;
        match message {
            M::InjectKeycode { action, keycode, repeat, meta_state } => {
                self.device.key(action == 0, keycode, repeat, meta_state, Source::Scrcpy);
            }
            M::InjectText { text } => self.inject_text(&text),
            M::InjectTouch { action, pointer_id, position, pressure, buttons, .. } => {
                self.touch(action, pointer_id, position, pressure, buttons);
            }
            M::InjectScroll { position, h, v, buttons } => self.scroll(position, h, v, buttons),
            M::BackOrScreenOn { action } => self.back_or_screen_on(action),
            M::ExpandNotifications => self.panel("expand_notifications", Panel::Notifications),
            M::ExpandSettings => self.panel("expand_settings", Panel::Settings),
            M::CollapsePanels => self.panel("collapse_panels", Panel::None),
            M::GetClipboard { copy_key } => return self.get_clipboard(copy_key),
            M::SetClipboard { sequence, paste, text } => {
                return self.set_clipboard(sequence, paste, &text);
            }
            M::RotateDevice => {
                self.note(record("rotate_device"));
                self.device.rotate();
            }
            M::ResetVideo => self.reset_video(),
            M::ResizeDisplay { width, height } => self.resize_display(width, height),
            M::UhidCreate { id, name, .. } => self.uhid_create(id, &name),
            M::UhidInput { id, .. } => self.uhid("uhid_input", id, false),
            M::UhidDestroy { id } => self.uhid("uhid_destroy", id, true),
            other => self.other(other),
        }
        None
    }

    fn note(&self, record: InputRecord) {
        self.device.record(record);
    }

    fn inject_text(&self, text: &str) {
        let typed: String = text.chars().filter(|c| matches!(c, ' '..='~' | '\n' | '\t')).collect();
        for c in text.chars().filter(|c| !typed.contains(*c)) {
            // The key map of a phone reaches ASCII; the real server says the same and goes on.
            self.log.say(LogLevel::Warn, &format!("Could not inject char u+{:04x}", u32::from(c)));
        }
        let why = typed.is_empty().then_some("no key types this");
        self.note(record("text").text(text).ignored(why));
        self.device.type_text(&typed);
    }

    fn touch(&self, action: u8, pointer_id: u64, at: Position, pressure: u16, buttons: u32) {
        let action = match action {
            0 => Ok(TouchAction::Down),
            1 => Ok(TouchAction::Up),
            2 => Ok(TouchAction::Move),
            3 => Ok(TouchAction::Cancel),
            other => Err(other),
        };
        let mut touch = placed(record("touch"), at);
        (touch.pressure, touch.buttons) = (Some(pressure), Some(buttons));
        touch.pointer_id = Some(pointer_id);
        match (action, self.stale(at)) {
            (Ok(action), None) => self.device.touch(action, pointer_id, touch),
            (Ok(_), Some(why)) => self.note(touch.action("touch").ignored(Some(&why))),
            (Err(code), _) => {
                // Hovering and the like: there is no mouse pointer on this screen.
                self.note(touch.action(code.to_string()).ignored(Some("not a touch")));
            }
        }
    }

    fn scroll(&self, at: Position, h: f32, v: f32, buttons: u32) {
        let mut scroll = placed(record("scroll"), at);
        (scroll.dx, scroll.dy, scroll.buttons) = (Some(h), Some(v), Some(buttons));
        let stale = self.stale(at);
        self.note(scroll.ignored(stale.as_deref()));
        if stale.is_none() {
            self.device.toast(&format!("Scroll {h:+.1} {v:+.1}"));
        }
    }

    /// Why a position means nothing now: it refers to a picture of another size, from before a
    /// rotation or by mistake. The real server drops these silently.
    fn stale(&self, at: Position) -> Option<String> {
        let (w, h) =
            self.capture.as_ref().map_or_else(|| self.device.size(), CaptureHandle::video_size);
        let same = u32::from(at.width) == w && u32::from(at.height) == h;
        (!same).then(|| {
            let why = format!("stale size {}x{}, the video is {w}x{h}", at.width, at.height);
            self.log.say(LogLevel::Verbose, &format!("Ignore positional event: {why}"));
            why
        })
    }

    fn back_or_screen_on(&self, action: u8) {
        self.note(record("back_or_screen_on").action(if action == 0 { "down" } else { "up" }));
        if action != 0 {
            return;
        }
        let awake = self.device.change(|screen| {
            let awake = screen.awake;
            screen.set_awake(true);
            if awake {
                screen.set_panel(Panel::None);
            }
            awake
        });
        if awake {
            self.device.toast(&keys::name(keys::BACK));
        }
    }

    fn panel(&self, kind: &str, panel: Panel) {
        self.note(record(kind));
        self.device.change(|screen| screen.set_panel(panel));
    }

    fn get_clipboard(&self, copy_key: u8) -> Reply {
        let key = match copy_key {
            1 => "copy",
            2 => "cut",
            _ => "none",
        };
        self.note(record("get_clipboard").action(key));
        match copy_key {
            1 => self.device.copy_field(false),
            2 => self.device.copy_field(true),
            _ => {}
        }
        // With synchronisation on, a copy reaches the client as a change of the clipboard, and the
        // real server does not send it a second time.
        (!self.clipboard_autosync).then(|| DeviceMessage::Clipboard(self.device.clipboard()))
    }

    fn set_clipboard(&self, sequence: u64, paste: bool, text: &str) -> Reply {
        let action = if paste { "paste" } else { "set" };
        self.note(record("set_clipboard").action(action).text(text));
        self.device.set_clipboard(text);
        if paste {
            self.device.paste();
        }
        (sequence != 0).then_some(DeviceMessage::AckClipboard(sequence))
    }

    fn reset_video(&self) {
        let why = self.capture.is_none().then_some("there is no video");
        self.note(record("reset_video").ignored(why));
        if let Some(capture) = &self.capture {
            capture.reset();
        }
    }

    fn resize_display(&self, width: u16, height: u16) {
        let possible = self.flex_display && width >= 16 && height >= 16;
        let why = (!possible).then_some("the display is not flexible, or the size is not usable");
        let mut resize = record("resize_display").ignored(why);
        (resize.w, resize.h) = (Some(width.into()), Some(height.into()));
        self.note(resize);
        if let Some(capture) = self.capture.as_ref().filter(|_| possible) {
            // What the encoder takes at most, 3840 x 2160 either way round.
            capture.resize(u32::from(width.min(2160)), u32::from(height.min(2160)));
        }
    }

    fn uhid_create(&mut self, id: u16, name: &str) {
        let full = self.uhid.len() >= MAX_UHID;
        let why = full.then_some("too many virtual devices");
        self.note(record("uhid_create").action(id.to_string()).text(name).ignored(why));
        if !full {
            self.uhid.insert(id);
        }
    }

    fn uhid(&mut self, kind: &str, id: u16, destroy: bool) {
        let known = if destroy { self.uhid.remove(&id) } else { self.uhid.contains(&id) };
        let why = (!known).then_some("unknown virtual device");
        self.note(record(kind).action(id.to_string()).ignored(why));
        if !known {
            self.log.say(LogLevel::Warn, &format!("Unknown UHID device: {id}"));
        }
    }

    /// Messages that a phone answers with nothing that could be seen in the video.
    fn other(&self, message: ControlMessage) {
        use ControlMessage as M;
        let camera = Some("no camera is captured");
        let seen = match message {
            M::SetDisplayPower { on } => record("set_display_power").action(on.to_string()),
            M::OpenHardKeyboardSettings => record("open_hard_keyboard_settings"),
            M::StartApp { name } => {
                self.device.toast(&name);
                record("start_app").text(&name)
            }
            M::CameraSetTorch { on } => {
                record("camera_set_torch").action(on.to_string()).ignored(camera)
            }
            M::CameraZoomIn => record("camera_zoom_in").ignored(camera),
            M::CameraZoomOut => record("camera_zoom_out").ignored(camera),
            M::ScanFile { path } => record("scan_file").text(&path),
            // `apply` has dealt with the others.
            _ => return,
        };
        self.note(seen);
    }
}

fn record(kind: &str) -> InputRecord {
    InputRecord::new(kind, Source::Scrcpy)
}

fn placed(record: InputRecord, at: Position) -> InputRecord {
    record.at(at.x, at.y, at.width.into(), at.height.into())
}
