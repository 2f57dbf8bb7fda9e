//! Identifiers: the one place where strings become ids. Not a registry of what exists.
//! Invariant: a value of these types is non-empty, at most 128 bytes, and made of
//! `[A-Za-z0-9._:~-]`, so it may stand in a URL path, a resource name and a metric label.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest identifier, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// Why a string is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The string is empty.
    #[error("{kind} id is empty")]
    Empty {
        /// What it was read as.
        kind: &'static str,
    },
    /// The string is longer than [`MAX_ID_BYTES`].
    #[error("{kind} id has {len} bytes, at most {MAX_ID_BYTES} are allowed")]
    TooLong {
        /// What it was read as.
        kind: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// The string holds a character outside the allowed set.
    #[error("{kind} id has {found:?} at byte {at}; allowed are letters, digits and . _ : ~ -")]
    BadCharacter {
        /// What it was read as.
        kind: &'static str,
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
    /// A resource name does not have the expected form.
    #[error("{name:?} is not a resource name of the form {form}")]
    BadName {
        /// The name given, cut to 200 characters.
        name: String,
        /// The form expected.
        form: &'static str,
    },
}

fn check(kind: &'static str, s: &str) -> Result<(), IdError> {
    if s.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if s.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong { kind, len: s.len() });
    }
    let bad = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '~' | '-'));
    match s.char_indices().find(|&(_, c)| bad(c)) {
        Some((at, found)) => Err(IdError::BadCharacter { kind, found, at }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Reads a bare identifier.
            pub fn parse(s: &str) -> Result<Self, IdError> {
                check($kind, s)?;
                Ok(Self(s.to_owned()))
            }

            /// Reads a resource name such as the one [`Self::resource_name`] writes.
            pub fn from_resource_name(name: &str) -> Result<Self, IdError> {
                match name.strip_prefix(concat!($prefix, "/")) {
                    Some(id) => Self::parse(id),
                    None => Err(IdError::BadName {
                        name: name.chars().take(200).collect(),
                        form: concat!($prefix, "/{", $kind, "}"),
                    }),
                }
            }

            /// Resource name, with the collection in front.
            pub fn resource_name(&self) -> String {
                format!(concat!($prefix, "/{}"), self.0)
            }

            /// The bare identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::parse(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::parse(&s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id!(
    /// A stream: one device's screen as it is published. Resource name `streams/{stream}`.
    StreamId, "stream", "streams"
);
id!(
    /// A device in the platform's own terms. Resource name `devices/{device}`.
    DeviceId, "device", "devices"
);
id!(
    /// A node: a router or an ingest worker. Resource name `nodes/{node}`.
    NodeId, "node", "nodes"
);
id!(
    /// A viewer of a stream, unique within the stream.
    ViewerId, "viewer", "viewers"
);

/// Full name of a viewer: `streams/{stream}/viewers/{viewer}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewerName {
    /// The stream it watches.
    pub stream: StreamId,
    /// The viewer within the stream.
    pub viewer: ViewerId,
}

impl ViewerName {
    const FORM: &'static str = "streams/{stream}/viewers/{viewer}";

    /// Reads `streams/{stream}/viewers/{viewer}`.
    pub fn parse(name: &str) -> Result<Self, IdError> {
        let bad = || IdError::BadName { name: name.chars().take(200).collect(), form: Self::FORM };
        let rest = name.strip_prefix("streams/").ok_or_else(bad)?;
        let (stream, viewer) = rest.split_once("/viewers/").ok_or_else(bad)?;
        Ok(Self { stream: StreamId::parse(stream)?, viewer: ViewerId::parse(viewer)? })
    }
}

impl fmt::Display for ViewerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "streams/{}/viewers/{}", self.stream, self.viewer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_cannot_stand_in_a_url() {
        assert!(StreamId::parse("emulator-5554").is_ok());
        assert!(StreamId::parse("127.0.0.1:5555").is_ok());
        assert_eq!(StreamId::parse(""), Err(IdError::Empty { kind: "stream" }));
        assert_eq!(
            NodeId::parse("a/b"),
            Err(IdError::BadCharacter { kind: "node", found: '/', at: 1 })
        );
        assert!(matches!(DeviceId::parse(&"x".repeat(129)), Err(IdError::TooLong { .. })));
    }

    #[test]
    fn resource_names_round_trip() {
        let id = StreamId::parse("pixel").unwrap();
        assert_eq!(StreamId::from_resource_name(&id.resource_name()), Ok(id));
        assert!(StreamId::from_resource_name("devices/pixel").is_err());
        let name = ViewerName::parse("streams/a/viewers/b").unwrap();
        assert_eq!(ViewerName::parse(&name.to_string()), Ok(name));
        assert!(ViewerName::parse("streams/a").is_err());
    }
}
