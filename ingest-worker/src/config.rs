//! What an ingest worker is told: who it is, whom it serves, which devices it captures. Not the
//! merging of file, environment and flags (`fanlight_ops::config`). Invariant: [`check`] finds every
//! mistake that can be found without touching the network, all at once.
//!
//! [`check`]: IngestConfig::check

use std::{collections::HashSet, net::SocketAddr, path::PathBuf};

use fanlight_ops::{config::Mistake, log::LogConfig};
use fanlight_proto::id::DeviceId;
use serde::{Deserialize, Serialize};

use crate::source::scrcpy::table::{self, ServerVersion};

/// Devices of one worker. One task and one ADB connection each; a host runs out of cores before.
pub const MAX_DEVICES: usize = 512;
/// Largest server jar that is read; the official ones have about 100 KiB.
pub const MAX_JAR_BYTES: u64 = 8 * 1024 * 1024;

/// Configuration of one ingest worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct IngestConfig {
    /// Addresses of the control API's node listener, `https://host:port`. Empty: no control API,
    /// which only tests want.
    pub control: Vec<String>,
    /// Folder with `node.pem`, `node.key` and `ca.pem`. The certificate says which node this is.
    pub pki_dir: PathBuf,
    /// Where metrics and health are served. Port 0: any free one.
    pub admin_listen: SocketAddr,
    /// Region, for placement.
    pub region: String,
    /// Zone, for placement.
    pub zone: String,
    /// RSA key for devices that ask for one (PEM). None: only devices that do not ask.
    pub adb_key: Option<PathBuf>,
    /// Sum of the devices' bitrates that the uplink to one router is meant for, bit/s.
    pub uplink_bps: u64,
    /// How to log.
    pub log: LogConfig,
    /// The devices.
    pub devices: Vec<DeviceConfig>,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            control: Vec::new(),
            pki_dir: PathBuf::from("pki"),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            region: String::new(),
            zone: String::new(),
            adb_key: None,
            uplink_bps: 200_000_000,
            log: LogConfig::default(),
            devices: Vec::new(),
        }
    }
}

/// How a device's screen is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The scrcpy server on the device: video and input.
    #[default]
    Scrcpy,
    /// Android's `screenrecord`, with input by shell commands. Last resort.
    Screenrecord,
}

/// One device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceConfig {
    /// Its id in the platform's terms; a stream names it.
    pub device: String,
    /// Its ADB address, `host:port`, spoken to directly. Exactly one of `adb` and `serial` is set.
    pub adb: Option<String>,
    /// Its serial at an adb server.
    pub serial: Option<String>,
    /// The adb server that knows `serial`.
    pub adb_server: String,
    /// How it is captured.
    pub source: SourceKind,
    /// The scrcpy server's jar.
    pub server_jar: Option<PathBuf>,
    /// The version of that jar, one of the known ones.
    pub server_version: String,
    /// Accept the simulator's placeholder in place of an official jar.
    pub allow_placeholder_server: bool,
    /// Longest side of the picture, pixels; 0: the screen's own.
    pub max_size: u32,
    /// Frames per second at most; 0: the device's own.
    pub max_fps: u32,
    /// Bitrate asked of the device's encoder, bit/s.
    pub bitrate_bps: u64,
    /// Keyframe interval asked of the device's encoder, seconds.
    pub i_frame_interval_s: u32,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            device: String::new(),
            adb: None,
            serial: None,
            adb_server: "127.0.0.1:5037".to_owned(),
            source: SourceKind::Scrcpy,
            server_jar: None,
            server_version: "4.1".to_owned(),
            allow_placeholder_server: false,
            max_size: 0,
            max_fps: 60,
            bitrate_bps: 4_000_000,
            i_frame_interval_s: 2,
        }
    }
}

/// Why the server jar of a device cannot be used. A person has to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JarProblem {
    /// The source needs one and none is named.
    #[error("server_jar is not set; the scrcpy source needs the official server jar")]
    NotSet,
    /// It cannot be read.
    #[error("the server jar {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than any server.
    #[error("the server jar {} has {bytes} bytes, at most {MAX_JAR_BYTES} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is not what the configuration says.
    #[error("{}: {source}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        source: table::JarError,
    },
}

/// A server jar that was read and checked.
#[derive(Clone, Debug)]
pub struct Jar {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its version.
    pub version: &'static ServerVersion,
}

impl DeviceConfig {
    /// Reads and checks the server jar. Blocks on the file.
    pub fn read_jar(&self) -> Result<Jar, JarProblem> {
        let path = self.server_jar.as_deref().ok_or(JarProblem::NotSet)?;
        let unreadable = |source| JarProblem::Unreadable { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > MAX_JAR_BYTES {
            return Err(JarProblem::TooLarge { path: path.to_owned(), bytes });
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let version = table::check_jar(&bytes, &self.server_version, self.allow_placeholder_server)
            .map_err(|source| JarProblem::Refused { path: path.to_owned(), source })?;
        Ok(Jar { bytes, version })
    }

    fn mistakes(&self, place: &str, out: &mut Vec<Mistake>) {
        let mut say =
            |key: &str, why: String| out.push(Mistake::of_key(&format!("{place}.{key}"), why));
        if let Err(e) = DeviceId::parse(&self.device) {
            say("device", e.to_string());
        }
        match (&self.adb, &self.serial) {
            (None, None) => say("adb", "set adb (host:port) or serial".to_owned()),
            (Some(_), Some(_)) => say("serial", "adb is set too; only one may be".to_owned()),
            (Some(adb), None) if !looks_like_host_port(adb) => {
                say("adb", format!("{adb:?} is not host:port"));
            }
            _ => {}
        }
        if self.source == SourceKind::Scrcpy
            && let Err(e) = table::by_name(&self.server_version)
        {
            say("server_version", e.to_string());
        }
        if !(16_000..=200_000_000).contains(&self.bitrate_bps) {
            say("bitrate_bps", format!("{} is not within 16000 to 200000000", self.bitrate_bps));
        }
        if self.max_fps > 240 {
            say("max_fps", format!("{} is above 240", self.max_fps));
        }
        if self.max_size > 8_192 {
            say("max_size", format!("{} is above 8192", self.max_size));
        }
        if !(1..=3_600).contains(&self.i_frame_interval_s) {
            say(
                "i_frame_interval_s",
                format!("{} is not within 1 to 3600", self.i_frame_interval_s),
            );
        }
    }
}

impl IngestConfig {
    /// Mistakes that only this role can see, all at once. A device whose jar is missing is no mistake
    /// here: the other devices go on, and it reports itself offline.
    pub fn check(&self) -> Vec<Mistake> {
        let mut out = Vec::new();
        if self.devices.len() > MAX_DEVICES {
            let why = format!("{} devices, at most {MAX_DEVICES}", self.devices.len());
            out.push(Mistake::of_key("devices", why));
        }
        let mut seen = HashSet::new();
        for (i, device) in self.devices.iter().enumerate() {
            let place = format!("devices[{i}]");
            device.mistakes(&place, &mut out);
            if !seen.insert(&device.device) {
                let why = format!("{:?} is there twice", device.device);
                out.push(Mistake::of_key(&format!("{place}.device"), why));
            }
        }
        for (i, endpoint) in self.control.iter().enumerate() {
            if !endpoint.starts_with("https://") {
                let why = format!("{endpoint:?} is not https://host:port");
                out.push(Mistake::of_key(&format!("control[{i}]"), why));
            }
        }
        out
    }
}

fn looks_like_host_port(s: &str) -> bool {
    s.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> DeviceConfig {
        let adb = Some("127.0.0.1:5555".to_owned());
        DeviceConfig { device: id.to_owned(), adb, ..DeviceConfig::default() }
    }

    #[test]
    fn all_mistakes_are_found_at_once_and_named_by_key() {
        let mut bad = device("a/b");
        bad.serial = Some("emulator-5554".into());
        bad.server_version = "1.24".into();
        bad.bitrate_bps = 0;
        let config = IngestConfig {
            control: vec!["http://x".into()],
            devices: vec![device("a"), device("a"), bad],
            ..IngestConfig::default()
        };
        let keys: Vec<String> = config.check().into_iter().map(|m| m.key).collect();
        assert_eq!(
            keys,
            [
                "devices[1].device",
                "devices[2].device",
                "devices[2].serial",
                "devices[2].server_version",
                "devices[2].bitrate_bps",
                "control[0]",
            ]
        );
        let good = IngestConfig { devices: vec![device("a")], ..IngestConfig::default() };
        assert_eq!(good.check(), []);
    }

    #[test]
    fn a_missing_jar_is_one_clear_line() {
        let mut d = device("a");
        assert!(matches!(d.read_jar(), Err(JarProblem::NotSet)));
        d.server_jar = Some("/nonexistent/scrcpy-server.jar".into());
        let e = d.read_jar().unwrap_err().to_string();
        assert_eq!(
            e,
            "the server jar /nonexistent/scrcpy-server.jar cannot be read: \
             No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_jar_is_checked_against_the_configured_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.jar");
        std::fs::write(&path, b"fanlight-placeholder-scrcpy-server 3.3.4\n").unwrap();
        let mut d = device("a");
        d.server_jar = Some(path);
        d.allow_placeholder_server = true;
        let e = d.read_jar().unwrap_err().to_string();
        assert!(e.ends_with("the server jar is scrcpy 3.3.4, but server_version says 4.1"), "{e}");
        d.server_version = "3.3.4".into();
        assert_eq!(d.read_jar().unwrap().version.name, "3.3.4");
    }

    #[test]
    fn a_device_needs_little() {
        let text = r#"{"devices":[{"device":"pixel","adb":"10.0.0.7:5555"}]}"#;
        let config: IngestConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.devices[0].max_fps, 60);
        assert_eq!(config.check(), []);
    }
}
