//! What differs between scrcpy server versions, and which jars are known by their hash. Not the
//! parser (see `stream.rs`). Invariant: a version that is not in [`TABLE`] is never started,
//! because the protocol may change with any release and a misread stream looks like garbage.

use sha2::{Digest, Sha256};

/// How media is framed on the video socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 2.x and 3.x: one 12-byte header with the codec and the size, once; CONFIG is bit 63 and KEY
    /// bit 62 of the packet header.
    V3,
    /// 4.x: a 4-byte codec header, then session packets (bit 63) carry the size; CONFIG is bit 62
    /// and KEY bit 61.
    V4,
}

/// One known server version.
#[derive(Clone, Copy, Debug)]
pub struct ServerVersion {
    /// First argument of the server; it refuses any other string than its own.
    pub name: &'static str,
    /// SHA-256 of the official jar.
    pub sha256: [u8; 32],
    /// How its video socket is read.
    pub layout: Layout,
    /// Highest control message type it knows. One above it would end the server's control loop.
    pub last_control_type: u8,
}

/// The official releases that this worker speaks to.
pub const TABLE: &[ServerVersion] = &[
    ServerVersion {
        name: "3.3.3",
        sha256: digest(b"7e70323ba7f259649dd4acce97ac4fefbae8102b2c6d91e2e7be613fd5354be0"),
        layout: Layout::V3,
        last_control_type: 17,
    },
    ServerVersion {
        name: "3.3.4",
        sha256: digest(b"8588238c9a5a00aa542906b6ec7e6d5541d9ffb9b5d0f6e1bc0e365e2303079e"),
        layout: Layout::V3,
        last_control_type: 17,
    },
    ServerVersion {
        name: "4.0",
        sha256: digest(b"84924bd564a1eb6089c872c7521f968058977f91f5ff02514a8c74aff3210f3a"),
        layout: Layout::V4,
        last_control_type: 21,
    },
    ServerVersion {
        name: "4.1",
        sha256: digest(b"deacb991ed2509715160ffdc7907e47b4160eb30d1566217e9047fd5b8850cae"),
        layout: Layout::V4,
        last_control_type: 22,
    },
];

/// First line of the file that the simulated device accepts in place of a real server.
pub const PLACEHOLDER_PREFIX: &[u8] = b"fanlight-placeholder-scrcpy-server ";

/// Why a server jar is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JarError {
    /// The configured version is not in [`TABLE`].
    #[error("scrcpy server version {version:?} is not known; known are {}", known_versions())]
    UnknownVersion {
        /// As configured.
        version: String,
    },
    /// The file is an official server, of another version than configured.
    #[error("the server jar is scrcpy {actual}, but server_version says {configured}")]
    OtherVersion {
        /// As configured.
        configured: &'static str,
        /// What the hash says.
        actual: String,
    },
    /// The file is no official server at all.
    #[error("the server jar has SHA-256 {sha256}, which is no official scrcpy {configured} server")]
    WrongHash {
        /// As configured.
        configured: &'static str,
        /// Of the file, hex.
        sha256: String,
    },
    /// The simulator's stand-in, where it was not allowed.
    #[error(
        "the server jar is the simulator's placeholder; set allow_placeholder_server to use it"
    )]
    PlaceholderNotAllowed,
}

/// The names in [`TABLE`], for messages.
pub fn known_versions() -> String {
    TABLE.iter().map(|v| v.name).collect::<Vec<_>>().join(", ")
}

/// Looks a version up by the name the server calls itself.
pub fn by_name(name: &str) -> Result<&'static ServerVersion, JarError> {
    TABLE
        .iter()
        .find(|v| v.name == name)
        .ok_or_else(|| JarError::UnknownVersion { version: name.chars().take(64).collect() })
}

/// Checks the bytes of a jar against the configured version. `allow_placeholder` admits the file
/// that the simulated device plays along with; a real device would not start it.
pub fn check_jar(
    bytes: &[u8],
    version: &str,
    allow_placeholder: bool,
) -> Result<&'static ServerVersion, JarError> {
    let wanted = by_name(version)?;
    if let Some(rest) = bytes.strip_prefix(PLACEHOLDER_PREFIX) {
        if !allow_placeholder {
            return Err(JarError::PlaceholderNotAllowed);
        }
        let line = rest.split(|b| *b == b'\n').next().unwrap_or_default();
        if line == wanted.name.as_bytes() {
            return Ok(wanted);
        }
        let actual = String::from_utf8_lossy(&line[..line.len().min(32)]).into_owned();
        return Err(JarError::OtherVersion { configured: wanted.name, actual });
    }
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    match TABLE.iter().find(|v| v.sha256 == hash) {
        Some(v) if v.name == wanted.name => Ok(wanted),
        Some(v) => {
            Err(JarError::OtherVersion { configured: wanted.name, actual: v.name.to_owned() })
        }
        None => Err(JarError::WrongHash { configured: wanted.name, sha256: hex::encode(hash) }),
    }
}

/// Reads 64 hex digits at compile time, so that the table shows the digests as they are published.
const fn digest(hex: &[u8; 64]) -> [u8; 32] {
    let mut out = [0; 32];
    let mut i = 0;
    while i < 32 {
        out[i] = nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]);
        i += 1;
    }
    out
}

const fn nibble(c: u8) -> u8 {
    match c {
        b'0'..=b'9' => c - b'0',
        b'a'..=b'f' => c - b'a' + 10,
        _ => panic!("a digest in the table is not lower-case hex"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placeholder(version: &str) -> Vec<u8> {
        format!("fanlight-placeholder-scrcpy-server {version}\nrest").into_bytes()
    }

    #[test]
    fn digests_are_read_as_published() {
        assert_eq!(
            hex::encode(by_name("4.1").unwrap().sha256),
            "deacb991ed2509715160ffdc7907e47b4160eb30d1566217e9047fd5b8850cae"
        );
    }

    #[test]
    fn a_jar_of_unknown_content_is_refused_with_its_hash() {
        let e = check_jar(b"PK\x03\x04 not a server", "4.1", true).unwrap_err();
        assert!(matches!(e, JarError::WrongHash { configured: "4.1", .. }), "{e}");
        assert!(!e.to_string().contains('\n'));
    }

    #[test]
    fn a_version_nobody_knows_names_the_known_ones() {
        let e = check_jar(&placeholder("9.9"), "9.9", true).unwrap_err();
        assert_eq!(
            e.to_string(),
            "scrcpy server version \"9.9\" is not known; known are 3.3.3, 3.3.4, 4.0, 4.1"
        );
    }

    #[test]
    fn the_placeholder_needs_permission_and_the_right_version() {
        assert_eq!(check_jar(&placeholder("4.1"), "4.1", true).unwrap().name, "4.1");
        assert_eq!(
            check_jar(&placeholder("4.1"), "4.1", false).unwrap_err(),
            JarError::PlaceholderNotAllowed
        );
        assert_eq!(
            check_jar(&placeholder("3.3.4"), "4.1", true).unwrap_err(),
            JarError::OtherVersion { configured: "4.1", actual: "3.3.4".into() }
        );
    }

    #[test]
    fn layouts_follow_the_major_version() {
        for v in TABLE {
            let expected = if v.name.starts_with('3') { Layout::V3 } else { Layout::V4 };
            assert_eq!(v.layout, expected, "{}", v.name);
        }
    }
}
