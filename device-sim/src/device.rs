//! The simulated device: its state and what inputs do to it.
//!
//! Everything that shows the screen or acts on it goes through here. Not a protocol: callers have
//! already parsed what they received. Invariants: every input is recorded exactly once; whoever
//! waits for changes is woken by each one; no lock is held while anything is sent.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use crate::input::{InputLog, InputRecord, Source, lock};
use crate::keys;
use crate::screen::ScreenModel;
use crate::screen::model::{Panel, TouchAction};

/// Longest clipboard text, as scrcpy allows: its largest message less the header of SET_CLIPBOARD.
pub const MAX_CLIPBOARD: usize = (1 << 18) - 14;
/// Clipboard changes a listener may lag behind; only the newest matters.
const CLIPBOARD_LAG: usize = 8;

/// Captures (scrcpy sessions, recordings, screenshots) at a time. Each costs a thread and some
/// 12 MB at 720x1280; a real device's encoder takes fewer.
const MAX_CAPTURES: usize = 8;

/// What the device says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `ro.product.model`.
    pub model: String,
    /// `ro.product.name` and `ro.product.device`.
    pub product: String,
    /// `ro.serialno`.
    pub serial: String,
}

/// State behind the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) model: ScreenModel,
    /// Set while nothing moves by itself: the time the clock shows.
    pub(crate) frozen_us: Option<u64>,
    pub(crate) clipboard: String,
}

/// The device.
#[derive(Debug)]
pub struct Device {
    identity: Identity,
    state: Mutex<State>,
    changed: Condvar,
    inputs: InputLog,
    clipboard_changes: broadcast::Sender<String>,
    started_us: u64,
    /// Captures that may be started.
    captures: Arc<Semaphore>,
}

impl Device {
    /// A device that is on and shows its home screen.
    #[must_use]
    pub fn new(identity: Identity, natural: (u32, u32), inputs: InputLog) -> Arc<Self> {
        Arc::new(Self {
            identity,
            state: Mutex::new(State {
                model: ScreenModel::new(natural),
                frozen_us: None,
                clipboard: String::new(),
            }),
            changed: Condvar::new(),
            inputs,
            clipboard_changes: broadcast::Sender::new(CLIPBOARD_LAG),
            started_us: unix_us(),
            captures: Arc::new(Semaphore::new(MAX_CAPTURES)),
        })
    }

    /// What the device says it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where inputs are recorded.
    #[must_use]
    pub fn inputs(&self) -> &InputLog {
        &self.inputs
    }

    /// Size of the screen now, in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        lock(&self.state).model.size()
    }

    /// A permit to capture the screen; `None` when too many captures run.
    pub(crate) fn capture_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.captures).try_acquire_owned().ok()
    }

    /// Microseconds since the device was started; the clock of presentation time stamps.
    #[must_use]
    pub fn uptime_us(&self, unix_us: u64) -> u64 {
        unix_us.saturating_sub(self.started_us)
    }

    /// Changes the screen and wakes everyone who shows it.
    pub fn change<R>(&self, change: impl FnOnce(&mut ScreenModel) -> R) -> R {
        let result = change(&mut lock(&self.state).model);
        self.changed.notify_all();
        result
    }

    /// Turns the device between upright and landscape.
    pub fn rotate(&self) {
        self.change(ScreenModel::rotate);
    }

    /// Makes everything that moves by itself stand still, or move again.
    pub fn set_static(&self, still: bool) {
        let mut state = lock(&self.state);
        state.frozen_us = still.then(|| state.frozen_us.unwrap_or_else(unix_us));
        state.model.revision += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Wakes everyone who waits for a change, so that they look at their own orders.
    pub(crate) fn wake(&self) {
        // Taking the lock first means that a waiter between its check and its wait is not missed.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    pub(crate) fn lock_state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits for a change or until the time is over.
    pub(crate) fn wait_change<'a>(
        &self,
        state: MutexGuard<'a, State>,
        at_most: Duration,
    ) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, at_most)
            .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }

    /// Records an input now.
    pub fn record(&self, mut record: InputRecord) {
        record.t_unix_us = unix_us();
        record.t_unix_ms = record.t_unix_us / 1000;
        self.inputs.add(record);
    }

    /// A finger at a position in a picture of `w` x `h` pixels, which has the screen's shape.
    pub fn touch(&self, action: TouchAction, pointer_id: u64, mut record: InputRecord) {
        let [Some(x), Some(y)] = [record.x, record.y] else { return };
        let [Some(w), Some(h)] = [record.w, record.h] else { return };
        #[allow(clippy::cast_precision_loss, reason = "screen coordinates")]
        let (fx, fy) = ((x as f32 + 0.5) / w as f32, (y as f32 + 0.5) / h as f32);
        let now = unix_us();
        if !self.change(|screen| screen.touch(action, pointer_id, fx, fy, now)) {
            record.ignored = Some("no such pointer, or too many".to_owned());
        }
        record.pointer_id = Some(pointer_id);
        record.action = Some(action.name().to_owned());
        self.record(record);
    }

    /// A key going down or up. Text and buttons act on down.
    pub fn key(&self, down: bool, keycode: u32, repeat: u32, meta: u32, source: Source) {
        let mut record = InputRecord::new("key", source).action(if down { "down" } else { "up" });
        (record.keycode, record.repeat, record.meta) = (Some(keycode), Some(repeat), Some(meta));
        self.record(record);
        if down {
            self.press(keycode, meta);
        }
    }

    fn press(&self, keycode: u32, meta: u32) {
        let now = unix_us();
        match keycode {
            keys::COPY => self.copy_field(false),
            keys::CUT => self.copy_field(true),
            keys::PASTE => self.paste(),
            _ => self.change(|screen| match (keycode, keys::character(keycode, meta)) {
                (_, Some(c)) if screen.awake => screen.type_text(c.encode_utf8(&mut [0; 4])),
                (keys::DEL, _) => screen.backspace(),
                (keys::POWER, _) => screen.set_awake(!screen.awake),
                (keys::SLEEP, _) => screen.set_awake(false),
                (keys::WAKEUP, _) => screen.set_awake(true),
                (keys::HOME, _) => {
                    screen.go_home();
                    screen.show_toast("Home", now);
                }
                (keys::BACK, _) => {
                    screen.set_panel(Panel::None);
                    screen.show_toast("Back", now);
                }
                (keys::APP_SWITCH, _) => screen.show_toast("Recent apps", now),
                (code, _) => screen.show_toast(keys::name(code), now),
            }),
        }
    }

    /// Types text into the field.
    pub fn type_text(&self, text: &str) {
        self.change(|screen| screen.type_text(text));
    }

    /// Shows a short message on the screen.
    pub fn toast(&self, text: &str) {
        let now = unix_us();
        self.change(|screen| screen.show_toast(text, now));
    }

    /// The clipboard's text.
    #[must_use]
    pub fn clipboard(&self) -> String {
        lock(&self.state).clipboard.clone()
    }

    /// Sets the clipboard from outside, without telling listeners: the one who set it knows.
    pub fn set_clipboard(&self, text: &str) {
        lock(&self.state).clipboard = cut_to(text, MAX_CLIPBOARD).to_owned();
    }

    /// Types the clipboard into the field.
    pub fn paste(&self) {
        let text = self.clipboard();
        self.type_text(&text);
    }

    /// Texts that the device itself put on its clipboard.
    #[must_use]
    pub fn clipboard_changes(&self) -> broadcast::Receiver<String> {
        self.clipboard_changes.subscribe()
    }

    /// Copies (or cuts) the text field to the clipboard, as an app does on the copy key.
    pub fn copy_field(&self, cut: bool) {
        let mut state = lock(&self.state);
        if state.model.text.is_empty() {
            return;
        }
        let text = state.model.text.clone();
        state.clipboard.clone_from(&text);
        if cut {
            state.model.text.clear();
        }
        let now = unix_us();
        state.model.show_toast(if cut { "Cut" } else { "Copied" }, now);
        drop(state);
        self.changed.notify_all();
        // Nobody listening is no error.
        let _ = self.clipboard_changes.send(text);
    }
}

impl TouchAction {
    fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Move => "move",
            Self::Up => "up",
            Self::Cancel => "cancel",
        }
    }
}

/// Now, as Unix time in microseconds.
#[must_use]
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The longest prefix of `text` that has at most `max` bytes.
fn cut_to(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
pub(crate) fn test_device(natural: (u32, u32)) -> Arc<Device> {
    let identity =
        Identity { model: "Test Phone".into(), product: "test".into(), serial: "test0001".into() };
    Device::new(identity, natural, InputLog::new(None).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_tells_listeners_and_setting_does_not() {
        let device = test_device((360, 640));
        let mut changes = device.clipboard_changes();
        device.set_clipboard("from outside");
        assert!(changes.try_recv().is_err());
        device.paste();
        device.key(true, keys::COPY, 0, 0, Source::Scrcpy);
        assert_eq!(changes.try_recv().unwrap(), "from outside");
        device.copy_field(true);
        assert_eq!(device.lock_state().model.text, "");
    }

    #[test]
    fn keys_type_and_press_buttons() {
        let device = test_device((360, 640));
        device.key(true, 36, 0, 1, Source::Scrcpy);
        device.key(true, 37, 0, 0, Source::Scrcpy);
        assert_eq!(device.lock_state().model.text, "Hi");
        device.key(true, keys::DEL, 0, 0, Source::Shell);
        assert_eq!(device.lock_state().model.text, "H");
        device.key(true, keys::POWER, 0, 0, Source::Shell);
        assert!(!device.lock_state().model.awake);
        assert_eq!(device.inputs().snapshot().len(), 4);
    }

    #[test]
    fn an_ignored_touch_is_recorded_with_the_reason() {
        let device = test_device((360, 640));
        let record = InputRecord::new("touch", Source::Scrcpy).at(1, 1, 360, 640);
        device.touch(TouchAction::Up, 5, record);
        let seen = device.inputs().snapshot();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].ignored.is_some());
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(cut_to("aé", 2), "a");
        assert_eq!(cut_to("aé", 3), "aé");
    }
}
