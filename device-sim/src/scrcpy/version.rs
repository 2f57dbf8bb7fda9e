//! Versions of the scrcpy server: how they are recognised and where they differ.
//!
//! Invariant: everything that depends on the version asks here, so that a new version is one row.

use sha2::{Digest, Sha256};

/// A version of the server that can be simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScrcpyVersion {
    /// 3.3.3
    V3_3_3,
    /// 3.3.4
    V3_3_4,
    /// 4.0
    V4_0,
    /// 4.1
    V4_1,
}

/// How media is framed on the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 2.x and 3.x: the size comes once, in the stream header.
    V3,
    /// 4.x: the size comes in session packets.
    V4,
}

/// First line of a placeholder jar, followed by the version and a line feed.
const PLACEHOLDER: &str = "fanlight-placeholder-scrcpy-server ";

impl ScrcpyVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 4] = [Self::V3_3_3, Self::V3_3_4, Self::V4_0, Self::V4_1];

    /// As the client writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V3_3_3 => "3.3.3",
            Self::V3_3_4 => "3.3.4",
            Self::V4_0 => "4.0",
            Self::V4_1 => "4.1",
        }
    }

    /// The version with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == name)
    }

    /// How this version frames media.
    #[must_use]
    pub const fn layout(self) -> Layout {
        match self {
            Self::V3_3_3 | Self::V3_3_4 => Layout::V3,
            Self::V4_0 | Self::V4_1 => Layout::V4,
        }
    }

    /// The highest control message type this version knows.
    #[must_use]
    pub const fn last_control_type(self) -> u8 {
        match self {
            Self::V3_3_3 | Self::V3_3_4 => 17,
            Self::V4_0 => 21,
            Self::V4_1 => 22,
        }
    }

    /// SHA-256 of the official server, in hexadecimal.
    #[must_use]
    pub const fn official_sha256(self) -> &'static str {
        match self {
            Self::V3_3_3 => "7e70323ba7f259649dd4acce97ac4fefbae8102b2c6d91e2e7be613fd5354be0",
            Self::V3_3_4 => "8588238c9a5a00aa542906b6ec7e6d5541d9ffb9b5d0f6e1bc0e365e2303079e",
            Self::V4_0 => "84924bd564a1eb6089c872c7521f968058977f91f5ff02514a8c74aff3210f3a",
            Self::V4_1 => "deacb991ed2509715160ffdc7907e47b4160eb30d1566217e9047fd5b8850cae",
        }
    }

    /// Which server a pushed file is: an official jar or a placeholder; `None` for anything else.
    #[must_use]
    pub fn of_jar(bytes: &[u8]) -> Option<Self> {
        if let Some(rest) = bytes.strip_prefix(PLACEHOLDER.as_bytes()) {
            let line = rest.split(|b| *b == b'\n').next()?;
            return Self::parse(std::str::from_utf8(line).ok()?);
        }
        let sum = hex_of(&Sha256::digest(bytes));
        Self::ALL.into_iter().find(|v| v.official_sha256() == sum)
    }
}

impl std::fmt::Display for ScrcpyVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A file that the simulator takes for the server of this version; it holds no code.
#[must_use]
pub fn placeholder_jar(version: ScrcpyVersion) -> Vec<u8> {
    format!("{PLACEHOLDER}{version}\nThis file stands in for scrcpy-server in tests and demos.\n")
        .into_bytes()
}

/// Lower-case hexadecimal.
pub(crate) fn hex_of(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_recognised_and_other_files_are_not() {
        for version in ScrcpyVersion::ALL {
            assert_eq!(ScrcpyVersion::of_jar(&placeholder_jar(version)), Some(version));
        }
        assert_eq!(ScrcpyVersion::of_jar(b"PK\x03\x04 some other jar"), None);
        assert_eq!(ScrcpyVersion::of_jar(b"fanlight-placeholder-scrcpy-server 9.9\n"), None);
        assert_eq!(ScrcpyVersion::of_jar(b"fanlight-placeholder-scrcpy-server \xff\n"), None);
        assert_eq!(ScrcpyVersion::of_jar(b""), None);
    }
}
