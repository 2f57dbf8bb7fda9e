//! Configuration of a simulated device and the flags that set it.
//!
//! Invariant: a configuration that [`SimConfig::validate`] finds nothing wrong with can be started,
//! apart from what only the system can say (a port in use, a file that cannot be read).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fanlight_ops::config::ConfigArgs;
use fanlight_ops::log::LogConfig;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::scrcpy::ScrcpyVersion;

/// Screens smaller than this have no room for anything; the strip's blocks need some pixels too.
const MIN_SIDE: u32 = 160;
/// Longest side that the encoder takes.
const MAX_SIDE: u32 = 3840;
/// Fastest a screen may be drawn.
const MAX_FPS: u32 = 240;

/// What a simulated device is like.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct SimConfig {
    /// Where ADB hosts connect.
    pub adb_listen: SocketAddr,
    /// Size of the screen in natural orientation.
    pub size: ScreenSize,
    /// Pictures per second.
    pub fps: u32,
    /// Bitrate for clients that do not ask for one.
    pub bitrate_bps: u32,
    /// Annex-B H.264 file to replay in place of the drawn screen.
    pub video: Option<PathBuf>,
    /// Nothing moves by itself.
    pub static_screen: bool,
    /// Turn the device this often, in milliseconds.
    pub rotate_every_ms: Option<u64>,
    /// Drop all ADB connections this often, in milliseconds.
    pub drop_adb_every_ms: Option<u64>,
    /// The only scrcpy server version to play: 3.3.3, 3.3.4, 4.0 or 4.1; any when not set.
    pub server_version: Option<String>,
    /// `ro.product.model`.
    pub model: String,
    /// `ro.product.name`.
    pub product: String,
    /// `ro.serialno`.
    pub serial: String,
    /// File to which every input is appended as a JSON line.
    pub input_log: Option<PathBuf>,
    /// Announce `delayed_ack`.
    pub delayed_ack: bool,
    /// Ask hosts for a key, and accept the one they offer, as a user would.
    pub require_auth: bool,
    /// Metrics and health.
    pub admin_listen: Option<SocketAddr>,
    /// Logs.
    pub log: LogConfig,
}

/// Width and height, written `720x1280`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ScreenSize(pub u32, pub u32);

impl std::str::FromStr for ScreenSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sides =
            text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        sides.map(|(w, h)| Self(w, h)).ok_or_else(|| format!("{text:?} is not WIDTHxHEIGHT"))
    }
}

impl TryFrom<String> for ScreenSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ScreenSize> for String {
    fn from(size: ScreenSize) -> Self {
        format!("{}x{}", size.0, size.1)
    }
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            adb_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5555)),
            size: ScreenSize(720, 1280),
            fps: 30,
            bitrate_bps: 4_000_000,
            video: None,
            static_screen: false,
            rotate_every_ms: None,
            drop_adb_every_ms: None,
            server_version: None,
            model: "Fanlight Phone".to_owned(),
            product: "fanlight_sim".to_owned(),
            serial: "FANLIGHT0001".to_owned(),
            input_log: None,
            delayed_ack: true,
            require_auth: false,
            admin_listen: None,
            log: LogConfig::default(),
        }
    }
}

impl SimConfig {
    /// A device on a free loopback port, for tests and demos.
    #[must_use]
    pub fn on_free_port() -> Self {
        Self { adb_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..Self::default() }
    }

    /// The only scrcpy server version to play, or any.
    #[must_use]
    pub fn version(&self) -> Option<ScrcpyVersion> {
        self.server_version.as_deref().and_then(ScrcpyVersion::parse)
    }

    /// What is wrong, as (key, problem); empty when nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        let ScreenSize(w, h) = self.size;
        let fits = w.min(h) >= MIN_SIDE && w.max(h) <= MAX_SIDE && w.min(h) <= 2160;
        if !fits {
            let bounds = format!("{MIN_SIDE} to {MAX_SIDE}, the shorter side at most 2160");
            wrong.push(("size", format!("{w}x{h} is outside {bounds}")));
        }
        if !(1..=MAX_FPS).contains(&self.fps) {
            wrong.push(("fps", format!("{} is not 1 to {MAX_FPS}", self.fps)));
        }
        if let (Some(name), None) = (&self.server_version, self.version()) {
            let known = ScrcpyVersion::ALL.map(ScrcpyVersion::as_str).join(", ");
            wrong.push(("server_version", format!("{name} is not one of {known}")));
        }
        for (key, value) in [
            ("rotate_every_ms", self.rotate_every_ms),
            ("drop_adb_every_ms", self.drop_adb_every_ms),
        ] {
            if value == Some(0) {
                wrong.push((key, "must be more than 0".to_owned()));
            }
        }
        if self.video.is_some() && self.rotate_every_ms.is_some() {
            wrong.push(("rotate_every_ms", "a replayed video cannot turn".to_owned()));
        }
        wrong
    }
}

/// Flags of the `device-sim` role. Every flag overrides the key of the same name.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Configuration file and checks.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where ADB hosts connect; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub adb_listen: Option<SocketAddr>,
    /// Size of the screen
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub size: Option<ScreenSize>,
    /// Pictures per second
    #[arg(long)]
    pub fps: Option<u32>,
    /// Bitrate for clients that do not ask for one, in bits per second
    #[arg(long, value_name = "BPS")]
    pub bitrate_bps: Option<u32>,
    /// Replay this Annex-B H.264 file in a loop in place of drawing
    #[arg(long, value_name = "FILE")]
    pub video: Option<PathBuf>,
    /// Nothing moves by itself: no pictures but after input
    #[arg(long = "static")]
    pub static_screen: bool,
    /// Turn the device this often, for example 10s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub rotate_every: Option<Duration>,
    /// Drop all ADB connections this often, for example 30s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub drop_adb_every: Option<Duration>,
    /// Play only this scrcpy server version; any by default
    #[arg(long, value_name = "VERSION")]
    pub server_version: Option<String>,
    /// Model name of the device
    #[arg(long)]
    pub model: Option<String>,
    /// Serial number of the device
    #[arg(long)]
    pub serial: Option<String>,
    /// Append every input to this file as a JSON line
    #[arg(long, value_name = "FILE")]
    pub input_log: Option<PathBuf>,
    /// Do not announce delayed_ack, as older devices
    #[arg(long)]
    pub no_delayed_ack: bool,
    /// Ask hosts for a key, and accept the one they offer
    #[arg(long)]
    pub require_auth: bool,
    /// Metrics and health
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// Record a clip of the simulated screen to this file and exit
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Length of the recording in seconds
    #[arg(long, value_name = "N", default_value_t = 10, requires = "record")]
    pub seconds: u32,
}

/// `10s`, `500ms`, `2m`, or a plain number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 500ms, 10s or 2m");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| bad())?;
    match &text[split..] {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(bad()),
    }
}

impl Args {
    /// The keys that flags override, as the merge takes them.
    #[must_use]
    pub fn overrides(&self) -> serde_json::Value {
        let ms = |d: Option<Duration>| d.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        // A switch that was not given leaves the file and the environment alone.
        let given = |switch: bool, value: bool| switch.then_some(value);
        json!({
            "adb_listen": self.adb_listen,
            "size": self.size,
            "fps": self.fps,
            "bitrate_bps": self.bitrate_bps,
            "video": self.video,
            "static_screen": given(self.static_screen, true),
            "rotate_every_ms": ms(self.rotate_every),
            "drop_adb_every_ms": ms(self.drop_adb_every),
            "server_version": self.server_version,
            "model": self.model,
            "serial": self.serial,
            "input_log": self.input_log,
            "delayed_ack": given(self.no_delayed_ack, false),
            "require_auth": given(self.require_auth, true),
            "admin_listen": self.admin_listen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(SimConfig::default().validate(), []);
    }

    #[test]
    fn all_mistakes_are_found_at_once() {
        let config = SimConfig {
            size: ScreenSize(10, 10),
            fps: 0,
            server_version: Some("9.9".into()),
            rotate_every_ms: Some(0),
            ..SimConfig::default()
        };
        let keys: Vec<_> = config.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["size", "fps", "server_version", "rotate_every_ms"]);
    }

    #[test]
    fn durations_and_sizes_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("soon").is_err() && duration("5h").is_err() && duration("").is_err());
        assert_eq!("720x1280".parse(), Ok(ScreenSize(720, 1280)));
        assert!("720".parse::<ScreenSize>().is_err());
    }
}
