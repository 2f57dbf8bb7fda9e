//! Recorded clips: making one without any listener, and reading one for replay.
//!
//! A replayed clip costs no encoder, which is how one machine plays many devices. Invariants: a
//! loaded clip starts with a keyframe and its parameter sets; recording with the same options twice
//! gives the same bytes.

use std::path::Path;
use std::sync::Arc;

use crate::encode::{EncodeError, EncoderSettings, VideoEncoder};
use crate::h264::{Picture, picture_size, split_pictures};
use crate::screen::model::TouchAction;
use crate::screen::strip::Stamp;
use crate::screen::{Moment, Renderer, ScreenModel};

/// Largest clip that is read into memory: ten minutes at 5 Mbit/s and then some.
const MAX_CLIP_BYTES: u64 = 512 * 1024 * 1024;
/// Recordings show this time, so that two of them are the same: 2026-01-01 09:41:00 UTC.
const RECORD_START_US: u64 = 1_767_260_460_000_000;

/// A recorded stream, ready to be replayed in a loop.
#[derive(Debug, Clone)]
pub struct Clip {
    /// Its pictures; the first is a keyframe with parameter sets.
    pub pictures: Arc<[Picture]>,
    /// Width and height.
    pub size: (u32, u32),
}

impl Clip {
    /// Reads a clip from a file.
    pub fn load(path: &Path) -> Result<Self, ClipError> {
        let io = |source| ClipError::Read { path: path.display().to_string(), source };
        let length = std::fs::metadata(path).map_err(io)?.len();
        if length > MAX_CLIP_BYTES {
            return Err(ClipError::TooLarge { path: path.display().to_string(), length });
        }
        Self::parse(&std::fs::read(path).map_err(io)?)
            .ok_or_else(|| ClipError::NotAClip { path: path.display().to_string() })
    }

    /// A clip from Annex-B bytes; `None` when no keyframe with parameter sets begins it.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let pictures = split_pictures(bytes);
        let size = picture_size(pictures.first()?.config.as_deref()?)?;
        Some(Self { pictures: pictures.into(), size })
    }
}

/// What to record.
#[derive(Debug, Clone, Copy)]
pub struct RecordOptions {
    /// Width and height.
    pub size: (u32, u32),
    /// Length in seconds.
    pub seconds: u32,
    /// Pictures per second.
    pub fps: u32,
    /// Target bitrate.
    pub bitrate_bps: u32,
    /// Seconds between keyframes.
    pub key_interval_s: u32,
}

impl Default for RecordOptions {
    fn default() -> Self {
        Self { size: (720, 1280), seconds: 10, fps: 60, bitrate_bps: 4_000_000, key_interval_s: 2 }
    }
}

/// Renders and encodes a clip of the simulated screen with a finger circling on it.
///
/// Runs on virtual time, as fast as the machine allows, and blocks; call it off the async runtime.
pub fn record(options: &RecordOptions, mut out: impl std::io::Write) -> Result<(), ClipError> {
    let (width, height) = (options.size.0 & !1, options.size.1 & !1);
    let fps = options.fps.clamp(1, 240);
    let mut model = ScreenModel::new((width, height));
    let mut renderer = Renderer::new(width, height, "Fanlight Phone").map_err(ClipError::Draw)?;
    #[allow(clippy::cast_precision_loss, reason = "at most 240")]
    let settings = EncoderSettings { fps: fps as f32, bitrate_bps: options.bitrate_bps };
    let mut encoder = VideoEncoder::new(settings).map_err(ClipError::Encode)?;
    let key_every = (options.key_interval_s * fps).max(1);
    let write = |source| ClipError::Write { source };
    for n in 0..options.seconds * fps {
        let pts_us = u64::from(n) * 1_000_000 / u64::from(fps);
        let now_us = RECORD_START_US + pts_us;
        circle_finger(&mut model, pts_us, now_us);
        model.expire(now_us);
        let stamp = Stamp::new(n, now_us / 1000, model.touch_count);
        renderer.draw(&model, &Moment { now_us, clock_us: now_us, stamp });
        let key = n % key_every == 0;
        let unit = encoder.encode(renderer.i420(), pts_us, key).map_err(ClipError::Encode)?;
        out.write_all(&unit.config.unwrap_or_default()).map_err(write)?;
        out.write_all(&unit.data).map_err(write)?;
    }
    out.flush().map_err(write)
}

/// One turn in two seconds, down for 1.6 s of them, so that a replay shows dots and trails.
fn circle_finger(model: &mut ScreenModel, pts_us: u64, now_us: u64) {
    const TURN_US: u64 = 2_000_000;
    let phase_us = pts_us % TURN_US;
    #[allow(clippy::cast_precision_loss, reason = "below two million")]
    let (sin, cos) = (phase_us as f32 / TURN_US as f32 * std::f32::consts::TAU).sin_cos();
    let down = !model.touches.is_empty();
    let action = match (phase_us < 1_600_000, down) {
        (true, false) => TouchAction::Down,
        (true, true) => TouchAction::Move,
        (false, true) => TouchAction::Cancel,
        (false, false) => return,
    };
    model.touch(action, 0, 0.5 + 0.3 * sin, 0.62 + 0.2 * cos, now_us);
}

/// Why a clip could not be read or made. Trying again without changing something will not help,
/// except for a full disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClipError {
    /// The file cannot be read.
    #[error("cannot read the clip {path}")]
    Read {
        /// Which file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than a clip may be.
    #[error("the clip {path} has {length} bytes, more than {MAX_CLIP_BYTES}")]
    TooLarge {
        /// Which file.
        path: String,
        /// Its length.
        length: u64,
    },
    /// The file holds no H.264 that could be replayed.
    #[error("{path} is not an Annex-B H.264 stream with a keyframe after its parameter sets")]
    NotAClip {
        /// Which file.
        path: String,
    },
    /// The screen cannot be drawn at this size.
    #[error("cannot record")]
    Draw(#[source] crate::screen::RenderError),
    /// The encoder failed.
    #[error("cannot record")]
    Encode(#[source] EncodeError),
    /// The recording cannot be written.
    #[error("cannot write the recording")]
    Write {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short() -> RecordOptions {
        RecordOptions {
            size: (192, 320),
            seconds: 2,
            fps: 10,
            key_interval_s: 1,
            ..Default::default()
        }
    }

    #[test]
    fn a_recording_can_be_replayed() {
        let mut bytes = Vec::new();
        record(&short(), &mut bytes).unwrap();
        let clip = Clip::parse(&bytes).unwrap();
        assert_eq!(clip.size, (192, 320));
        assert_eq!(clip.pictures.len(), 20);
        let keys: Vec<_> = (0..20).filter(|i| clip.pictures[*i].key).collect();
        assert_eq!(keys, [0, 10]);
    }

    #[test]
    fn recording_twice_gives_the_same_bytes() {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        record(&short(), &mut one).unwrap();
        record(&short(), &mut two).unwrap();
        assert!(one == two);
    }

    #[test]
    fn a_file_that_is_no_clip_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"not a video").unwrap();
        let error = Clip::load(file.path()).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
        assert!(matches!(Clip::load(Path::new("/nonexistent/clip")), Err(ClipError::Read { .. })));
    }
}
