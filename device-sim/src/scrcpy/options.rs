//! The `key=value` arguments of the scrcpy server.
//!
//! An unknown key is only a warning, as in the real server (a mistyped option is silently lost); a
//! value that does not parse ends it. Invariant: every option the real server of this version knows
//! is known here, also when it changes nothing in a simulation.

use std::time::Duration;

use super::version::{Layout, ScrcpyVersion};

/// Known in every version and of no consequence here.
const WITHOUT_EFFECT: &[&str] = &[
    "audio_codec",
    "audio_source",
    "audio_dup",
    "audio_bit_rate",
    "angle",
    "crop",
    "display_id",
    "show_touches",
    "stay_awake",
    "screen_off_timeout",
    "audio_codec_options",
    "video_encoder",
    "audio_encoder",
    "power_off_on_close",
    "downsize_on_error",
    "cleanup",
    "power_on",
    "camera_id",
    "camera_size",
    "camera_facing",
    "camera_ar",
    "camera_fps",
    "camera_high_speed",
    "new_display",
    "vd_destroy_content",
    "vd_system_decorations",
    "capture_orientation",
    "display_ime_policy",
];
/// Known in 4.x only and of no consequence here.
const WITHOUT_EFFECT_V4: &[&str] =
    &["keep_active", "ignore_video_encoder_constraints", "camera_zoom", "camera_torch"];
/// Each prints a list and ends the server.
const LISTS: &[&str] =
    &["list_encoders", "list_displays", "list_cameras", "list_camera_sizes", "list_apps"];
/// The real server's default time between keyframes.
const KEY_INTERVAL: Duration = Duration::from_secs(10);

/// How much the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Verbose,
    /// For developers.
    Debug,
    /// What a user may want to know.
    Info,
    /// What may be wrong.
    Warn,
    /// What is wrong.
    Error,
}

/// The arguments, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerOptions {
    /// Random part of the socket name.
    pub scid: Option<u32>,
    /// How much the server says.
    pub log_level: LogLevel,
    /// Whether there is a video socket.
    pub video: bool,
    /// Whether there is an audio socket.
    pub audio: bool,
    /// Whether there is a control socket.
    pub control: bool,
    /// Whether the client wants H.264, the only codec here.
    pub h264: bool,
    /// Whether the client wants the screen, the only source here.
    pub display: bool,
    /// Longest side of the pictures; 0 is no limit.
    pub max_size: u32,
    /// Target bitrate; `None` when the client did not say.
    pub video_bit_rate: Option<u32>,
    /// Pictures per second; 0 is no limit.
    pub max_fps: f32,
    /// Longest time between keyframes; `None` for never again.
    pub key_interval: Option<Duration>,
    /// Whether the device listens and the client connects.
    pub tunnel_forward: bool,
    /// Whether the device's clipboard is sent when it changes.
    pub clipboard_autosync: bool,
    /// Whether the client may resize the display (4.x).
    pub flex_display: bool,
    /// Both sides of the pictures are multiples of this (4.x; 8 before).
    pub alignment: u32,
    /// Whether the device name is sent.
    pub send_device_meta: bool,
    /// Whether packets have headers.
    pub send_frame_meta: bool,
    /// Whether the forward tunnel's first socket starts with a zero byte.
    pub send_dummy_byte: bool,
    /// Whether streams have headers and sessions are announced.
    pub send_stream_meta: bool,
    /// A list that was asked for instead of a session.
    pub list: Option<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            scid: None,
            log_level: LogLevel::Debug,
            video: true,
            audio: true,
            control: true,
            h264: true,
            display: true,
            max_size: 0,
            video_bit_rate: None,
            max_fps: 0.0,
            key_interval: Some(KEY_INTERVAL),
            tunnel_forward: false,
            clipboard_autosync: true,
            flex_display: false,
            alignment: 8,
            send_device_meta: true,
            send_frame_meta: true,
            send_dummy_byte: true,
            send_stream_meta: true,
            list: None,
        }
    }
}

/// A value that does not parse; the client's mistake, the same arguments will fail again.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid value for {key}: \"{value}\"")]
pub struct OptionError {
    key: String,
    value: String,
}

impl ServerOptions {
    /// Parses the arguments after the version. Returns the options and a warning per unknown key.
    pub fn parse<'a>(
        version: ScrcpyVersion,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Result<(Self, Vec<String>), OptionError> {
        let mut options = Self::default();
        let mut warnings = Vec::new();
        for arg in args {
            let Some((key, value)) = arg.split_once('=') else {
                return Err(OptionError { key: arg.to_owned(), value: String::new() });
            };
            match options.set(version, key, value) {
                Some(true) => {}
                Some(false) => warnings.push(format!("Unknown server option: {key}")),
                None => return Err(OptionError { key: key.to_owned(), value: value.to_owned() }),
            }
        }
        Ok((options, warnings))
    }

    /// The abstract socket name the two sides meet at.
    #[must_use]
    pub fn socket_name(&self) -> String {
        self.scid.map_or_else(|| "scrcpy".to_owned(), |scid| format!("scrcpy_{scid:08x}"))
    }

    /// Sets one option: `Some(false)` for an unknown key, `None` for a bad value.
    fn set(&mut self, version: ScrcpyVersion, key: &str, value: &str) -> Option<bool> {
        let v4 = version.layout() == Layout::V4;
        match key {
            "scid" => self.scid = scid(value)?,
            "log_level" => self.log_level = log_level(value)?,
            "video" => self.video = boolean(value),
            "audio" => self.audio = boolean(value),
            "control" => self.control = boolean(value),
            "video_codec" => self.h264 = one_of(value, &["h264", "h265", "av1"])? == "h264",
            "video_source" => self.display = one_of(value, &["display", "camera"])? == "display",
            "max_size" => self.max_size = value.parse().ok()?,
            "video_bit_rate" => self.video_bit_rate = Some(value.parse().ok()?),
            "max_fps" => self.max_fps = value.parse().ok().filter(|f: &f32| f.is_finite())?,
            "video_codec_options" => self.codec_options(value)?,
            "tunnel_forward" => self.tunnel_forward = boolean(value),
            "clipboard_autosync" => self.clipboard_autosync = boolean(value),
            "flex_display" if v4 => self.flex_display = boolean(value),
            "min_size_alignment" if v4 => {
                self.alignment = value.parse().ok().filter(|n| (1..=16).contains(n))?;
            }
            "send_device_meta" => self.send_device_meta = boolean(value),
            "send_frame_meta" => self.send_frame_meta = boolean(value),
            "send_dummy_byte" => self.send_dummy_byte = boolean(value),
            "send_codec_meta" if !v4 => self.send_stream_meta = boolean(value),
            "send_stream_meta" if v4 => self.send_stream_meta = boolean(value),
            "raw_stream" if boolean(value) => {
                self.send_device_meta = false;
                self.send_frame_meta = false;
                self.send_dummy_byte = false;
                self.send_stream_meta = false;
            }
            "raw_stream" => {}
            key if LISTS.contains(&key) => {
                if boolean(value) {
                    self.list = Some(key.to_owned());
                }
            }
            key if WITHOUT_EFFECT.contains(&key) => {}
            key if v4 && WITHOUT_EFFECT_V4.contains(&key) => {}
            _ => return Some(false),
        }
        Some(true)
    }

    /// `key[:type]=value,...` for the platform's encoder; only the keyframe interval means
    /// something here.
    fn codec_options(&mut self, value: &str) -> Option<()> {
        for option in value.split(',').filter(|o| !o.is_empty()) {
            let (key, value) = option.split_once('=')?;
            if key.split(':').next() == Some("i-frame-interval") {
                let seconds: f32 = value.parse().ok().filter(|s: &f32| s.is_finite())?;
                // Android: 0 is every frame, a negative value is only the first.
                self.key_interval =
                    (seconds >= 0.0).then(|| Duration::from_secs_f32(seconds.min(86_400.0)));
            }
        }
        Some(())
    }
}

fn boolean(value: &str) -> bool {
    value.eq_ignore_ascii_case("true")
}

fn one_of<'a>(value: &'a str, known: &[&str]) -> Option<&'a str> {
    known.contains(&value).then_some(value)
}

/// 31 bits in hexadecimal, or -1 for none.
fn scid(value: &str) -> Option<Option<u32>> {
    if value == "-1" {
        return Some(None);
    }
    u32::from_str_radix(value, 16).ok().filter(|n| *n < 1 << 31).map(Some)
}

fn log_level(value: &str) -> Option<LogLevel> {
    Some(match value.to_ascii_lowercase().as_str() {
        "verbose" => LogLevel::Verbose,
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        version: ScrcpyVersion,
        args: &str,
    ) -> Result<(ServerOptions, Vec<String>), OptionError> {
        ServerOptions::parse(version, args.split_whitespace())
    }

    #[test]
    fn a_usual_command_line_is_understood() {
        let args = "scid=0000abcd log_level=info video_bit_rate=2000000 max_size=1280 max_fps=30 \
                    audio=false tunnel_forward=true video_codec_options=i-frame-interval=2 cleanup=true";
        let (options, warnings) = parse(ScrcpyVersion::V3_3_4, args).unwrap();
        assert_eq!(warnings, [""; 0]);
        assert_eq!(options.socket_name(), "scrcpy_0000abcd");
        assert_eq!(options.max_size, 1280);
        assert_eq!(options.video_bit_rate, Some(2_000_000));
        assert_eq!(options.key_interval, Some(Duration::from_secs(2)));
        assert!(options.tunnel_forward && options.video && options.control && !options.audio);
    }

    #[test]
    fn unknown_keys_are_warnings_and_depend_on_the_version() {
        let unknown = |version, args| parse(version, args).unwrap().1.len();
        assert_eq!(unknown(ScrcpyVersion::V3_3_4, "send_codec_meta=true"), 0);
        assert_eq!(unknown(ScrcpyVersion::V3_3_4, "send_stream_meta=true keep_active=true"), 2);
        assert_eq!(unknown(ScrcpyVersion::V4_1, "send_stream_meta=true keep_active=true"), 0);
        assert_eq!(unknown(ScrcpyVersion::V4_1, "send_codec_meta=true max_sise=3"), 2);
    }

    #[test]
    fn bad_values_end_the_server() {
        for args in [
            "max_size=big",
            "scid=ffffffff",
            "scid=xyz",
            "max_fps=NaN",
            "log_level=loud",
            "video",
            "video_codec=vp8",
        ] {
            assert!(parse(ScrcpyVersion::V4_0, args).is_err(), "{args}");
        }
    }

    #[test]
    fn raw_stream_takes_all_headers_away() {
        let (options, _) = parse(ScrcpyVersion::V4_1, "raw_stream=true").unwrap();
        let left = [
            options.send_device_meta,
            options.send_frame_meta,
            options.send_dummy_byte,
            options.send_stream_meta,
        ];
        assert_eq!(left, [false; 4]);
    }

    #[test]
    fn keyframe_intervals_follow_android() {
        let interval = |args| parse(ScrcpyVersion::V4_1, args).unwrap().0.key_interval;
        assert_eq!(interval("video=true"), Some(Duration::from_secs(10)));
        assert_eq!(
            interval("video_codec_options=i-frame-interval:float=0.5"),
            Some(Duration::from_millis(500))
        );
        assert_eq!(interval("video_codec_options=profile=1,i-frame-interval=-1"), None);
    }
}
