//! What was done to the device: one record per input, kept and written as JSON lines.
//!
//! Tests read these records to see what really arrived; nothing here acts on them. Invariant: every
//! input that reached the device is recorded exactly once, also when the device ignored it, and then
//! with the reason.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Records kept in memory; the oldest go first. A minute of ten fingers at 120 Hz is 72,000, but
/// tests look at the last few hundred.
const MAX_KEPT: usize = 10_000;
/// Records a slow subscriber may lag behind before it misses some.
const MAX_LAG: usize = 1_024;
/// Longest text kept in a record, in characters.
const MAX_RECORD_TEXT: usize = 512;

/// Who sent an input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The control socket of a scrcpy server.
    #[default]
    Scrcpy,
    /// The `input` command in a shell.
    Shell,
}

/// One input as it was received. Absent fields do not apply to its kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputRecord {
    /// When it was received, Unix time in milliseconds.
    pub t_unix_ms: u64,
    /// The same in microseconds, for latency measurements.
    pub t_unix_us: u64,
    /// `touch`, `key`, `text`, `scroll`, or the name of a scrcpy control message in lower case.
    pub kind: String,
    /// Who sent it.
    pub source: Source,
    /// `down`, `up`, `move`, `cancel`, or the value of a message that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Position in pixels of a `w` x `h` picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<i32>,
    /// See `x`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<i32>,
    /// Width of the picture the position refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub w: Option<u32>,
    /// Height of the picture the position refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h: Option<u32>,
    /// Which finger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer_id: Option<u64>,
    /// How hard, 0 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<u16>,
    /// Mouse buttons held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buttons: Option<u32>,
    /// Horizontal scroll, in notches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dx: Option<f32>,
    /// Vertical scroll, in notches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dy: Option<f32>,
    /// Android key code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keycode: Option<u32>,
    /// Key repeat count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<u32>,
    /// Android meta state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<u32>,
    /// Text typed, clipboard set, app started, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Why the device did not act on it; absent when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignored: Option<String>,
}

impl InputRecord {
    /// A record of this kind with nothing else filled in.
    #[must_use]
    pub fn new(kind: &str, source: Source) -> Self {
        Self { kind: kind.to_owned(), source, ..Self::default() }
    }

    /// With an action.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    /// With text, cut to what a record may hold.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.text = Some(text.chars().take(MAX_RECORD_TEXT).collect());
        self
    }

    /// With a position in a picture of a size.
    #[must_use]
    pub fn at(mut self, x: i32, y: i32, w: u32, h: u32) -> Self {
        (self.x, self.y, self.w, self.h) = (Some(x), Some(y), Some(w), Some(h));
        self
    }

    /// With the reason why nothing came of it.
    #[must_use]
    pub fn ignored(mut self, why: Option<&str>) -> Self {
        self.ignored = why.map(str::to_owned);
        self
    }
}

/// Where records go.
#[derive(Debug)]
pub struct InputLog {
    kept: Mutex<VecDeque<InputRecord>>,
    file: Option<Mutex<File>>,
    live: broadcast::Sender<InputRecord>,
}

impl InputLog {
    /// A log that also appends to a file when one is given.
    pub fn new(path: Option<&Path>) -> std::io::Result<Self> {
        let file = path
            .map(|path| File::options().create(true).append(true).open(path))
            .transpose()?
            .map(Mutex::new);
        Ok(Self { kept: Mutex::default(), file, live: broadcast::Sender::new(MAX_LAG) })
    }

    /// Adds a record. A file that can no longer be written is reported in our log and otherwise
    /// ignored: the device goes on.
    pub(crate) fn add(&self, record: InputRecord) {
        let source = match record.source {
            Source::Scrcpy => "scrcpy",
            Source::Shell => "shell",
        };
        metrics::counter!("fanlight_sim_inputs_total", "source" => source).increment(1);
        tracing::debug!(kind = %record.kind, action = ?record.action, ignored = ?record.ignored, "input");
        if let Some(file) = &self.file {
            let mut line = serde_json::to_vec(&record).unwrap_or_default();
            line.push(b'\n');
            if let Err(error) = lock(file).write_all(&line) {
                tracing::warn!(%error, "cannot write the input log");
            }
        }
        let mut kept = lock(&self.kept);
        if kept.len() >= MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back(record.clone());
        drop(kept);
        // No subscriber is no error.
        let _ = self.live.send(record);
    }

    /// The records kept, oldest first.
    #[must_use]
    pub fn snapshot(&self) -> Vec<InputRecord> {
        lock(&self.kept).iter().cloned().collect()
    }

    /// New records as they come.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<InputRecord> {
        self.live.subscribe()
    }
}

/// Locks; a panic elsewhere while the lock was held leaves data that is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_one_json_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = InputLog::new(Some(file.path())).unwrap();
        let mut live = log.subscribe();
        let touch = InputRecord::new("touch", Source::Scrcpy).action("down").at(1, 2, 720, 1280);
        log.add(touch.clone());
        log.add(InputRecord::new("text", Source::Shell).text("a\nb"));
        let lines = std::fs::read_to_string(file.path()).unwrap();
        let read: Vec<InputRecord> =
            lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(read, log.snapshot());
        assert_eq!(read[0], touch);
        assert_eq!(live.try_recv().unwrap(), touch);
        assert!(!lines.contains("keycode"), "fields that do not apply are left out");
    }

    #[test]
    fn old_records_make_room() {
        let log = InputLog::new(None).unwrap();
        for i in 0..MAX_KEPT + 5 {
            log.add(InputRecord::new("key", Source::Shell).action(i.to_string()));
        }
        let kept = log.snapshot();
        assert_eq!(kept.len(), MAX_KEPT);
        assert_eq!(kept[0].action.as_deref(), Some("5"));
    }
}
