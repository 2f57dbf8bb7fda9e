//! Every way an ADB operation fails, with who is to blame and whether trying again can help.
//!
//! Not a place for retry loops: layers above own their back-off and ask [`AdbError::is_retryable`].
//! Invariant: bytes from the other end never produce anything but a [`ProtocolError`] or a value.

use std::{io, sync::Arc};

/// Who has to change something for the operation to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The other end broke the protocol or refused.
    Peer,
    /// The path between the two: unreachable, lost, too slow.
    Network,
    /// The caller or its settings.
    Caller,
}

/// The other end sent bytes that ADB does not allow. The connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The sixth header word is not the complement of the first.
    #[error("bad magic {magic:#010x} for command {command:#010x}")]
    BadMagic {
        /// First header word.
        command: u32,
        /// Sixth header word.
        magic: u32,
    },
    /// The command word is none of the seven.
    #[error("unknown command {0:#010x}")]
    UnknownCommand(u32),
    /// The announced payload exceeds what was agreed.
    #[error("payload of {len} bytes exceeds the agreed {max}")]
    Oversized {
        /// Announced length.
        len: u32,
        /// Agreed bound.
        max: u32,
    },
    /// The byte sum of the payload differs from the header's.
    #[error("payload checksum is {actual:#x}, header says {expected:#x}")]
    BadChecksum {
        /// Value in the header.
        expected: u32,
        /// Sum over the payload.
        actual: u32,
    },
    /// The connection ended inside a packet.
    #[error("connection ended inside a packet ({have} bytes of it arrived)")]
    Truncated {
        /// Bytes of the incomplete packet.
        have: usize,
    },
    /// The CNXN banner cannot be read.
    #[error("unreadable banner: {0}")]
    BadBanner(&'static str),
    /// CNXN offers a maximum payload or version nobody can work with.
    #[error("peer offers unusable {what} {value:#x}")]
    Unusable {
        /// Which CNXN field.
        what: &'static str,
        /// Its value.
        value: u32,
    },
    /// A packet that is not allowed in this state.
    #[error("unexpected {command} {when}")]
    Unexpected {
        /// Command name.
        command: &'static str,
        /// State in which it came.
        when: &'static str,
    },
    /// A field that must not be zero is zero.
    #[error("{command} with stream id 0")]
    ZeroId {
        /// Command name.
        command: &'static str,
    },
    /// More refused OPENs are waiting to be answered than the queue holds.
    #[error("peer opens streams faster than it reads the refusals")]
    OpenFlood,
    /// An AUTH packet with an unusable payload.
    #[error("bad AUTH packet: {0}")]
    BadAuth(&'static str),
}

/// Why a connection is over. Cloned into every stream that was open on it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Disconnect {
    /// The other end closed the connection.
    #[error("the other end closed the connection")]
    ByPeer,
    /// This end closed the connection.
    #[error("this end closed the connection")]
    ByUs,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(Arc<io::Error>),
    /// The other end broke the protocol.
    #[error("the other end broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

/// Why one stream is over although its connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamFailure {
    /// The peer sent more than its window allows.
    #[error("peer sent more than the stream's window allows")]
    WindowOverrun,
    /// An OKAY whose payload does not fit the agreed acknowledgement form.
    #[error("peer acknowledged in a form that was not agreed")]
    BadAcknowledgement,
    /// All unread data of the connection together exceeds its budget.
    #[error("unread data of the connection exceeds its budget")]
    BudgetExceeded,
}

/// A failed ADB operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdbError {
    /// The TCP connection could not be made.
    #[error("cannot connect to {addr}")]
    Connect {
        /// What was dialled.
        addr: String,
        /// The socket's error.
        #[source]
        source: io::Error,
    },
    /// Nothing came in time.
    #[error("timed out: {0}")]
    Timeout(&'static str),
    /// The device asks for authentication and no key was given.
    #[error("the device asks for an ADB key and none is configured")]
    AuthRequired,
    /// The device does not accept the key (or its user has not yet).
    #[error("the device does not accept this ADB key")]
    Unauthorized,
    /// The device wants ADB over TLS (wireless debugging), which is not spoken here.
    #[error("the device speaks ADB only over TLS")]
    TlsRequired,
    /// The device refused the OPEN: nobody serves that name (yet).
    #[error("the device refused to open {service:?}")]
    Refused {
        /// The service asked for.
        service: String,
    },
    /// The service name cannot be put into an OPEN packet.
    #[error("service name is unusable: {0}")]
    BadServiceName(&'static str),
    /// The bound on concurrent streams of a connection is reached.
    #[error("{0} streams are open on this connection already")]
    TooManyStreams(usize),
    /// The connection ended.
    #[error(transparent)]
    Disconnected(#[from] Disconnect),
    /// The other end broke the protocol before the connection stood.
    #[error("the other end broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// A service answered with bytes its protocol does not allow.
    #[error("{service} answered nonsense: {what}")]
    BadReply {
        /// Which service.
        service: &'static str,
        /// What was wrong.
        what: String,
    },
    /// A service reported that the request failed.
    #[error("{service} failed: {message}")]
    Failed {
        /// Which service.
        service: &'static str,
        /// The device's words, shortened.
        message: String,
    },
    /// A reply exceeds the bound given for it.
    #[error("{what} exceeds {max} bytes")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// The bound.
        max: u64,
    },
    /// The adb server refused the request.
    #[error("adb server: {message}")]
    Server {
        /// The server's words, shortened.
        message: String,
    },
    /// Reading or writing an established stream failed.
    #[error("{doing}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The stream's error.
        #[source]
        source: io::Error,
    },
    /// The key file is unreadable, unwritable or not an RSA 2048 key.
    #[error("ADB key {path}: {what}")]
    Key {
        /// The file, or "generated" and the like.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}

impl AdbError {
    /// Who has to change something.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Connect { .. } | Self::Timeout(_) | Self::Io { .. } => Blame::Network,
            Self::Disconnected(Disconnect::Protocol(_)) => Blame::Peer,
            Self::Disconnected(Disconnect::ByUs) => Blame::Caller,
            Self::Disconnected(_) => Blame::Network,
            Self::AuthRequired
            | Self::BadServiceName(_)
            | Self::TooManyStreams(_)
            | Self::Key { .. }
            | Self::TooLarge { .. } => Blame::Caller,
            Self::Unauthorized
            | Self::TlsRequired
            | Self::Refused { .. }
            | Self::Protocol(_)
            | Self::BadReply { .. }
            | Self::Failed { .. }
            | Self::Server { .. } => Blame::Peer,
        }
    }

    /// Whether the same call can succeed later without anybody changing a setting.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Timeout(_)
            | Self::Io { .. }
            | Self::Refused { .. }
            | Self::Server { .. }
            | Self::TooManyStreams(_)
            | Self::Unauthorized => true,
            Self::Disconnected(reason) => !matches!(reason, Disconnect::ByUs),
            _ => false,
        }
    }

    /// Wraps an error of an established stream, unwrapping a disconnect carried inside it.
    pub(crate) fn io(doing: &'static str, source: io::Error) -> Self {
        let inner = source.get_ref().and_then(|e| e.downcast_ref::<Disconnect>());
        match inner {
            Some(reason) => Self::Disconnected(reason.clone()),
            None => Self::Io { doing, source },
        }
    }
}

impl From<Disconnect> for io::Error {
    fn from(reason: Disconnect) -> Self {
        let kind = match &reason {
            Disconnect::ByPeer => io::ErrorKind::ConnectionReset,
            Disconnect::ByUs => io::ErrorKind::ConnectionAborted,
            Disconnect::Io(error) => error.kind(),
            Disconnect::Protocol(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, reason)
    }
}

impl From<StreamFailure> for io::Error {
    fn from(failure: StreamFailure) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, failure)
    }
}

/// Shortens text from the other end so that an error message stays one readable line.
pub(crate) fn clip(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_MAX)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().into()
}
