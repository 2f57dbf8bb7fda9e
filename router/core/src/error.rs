//! What can go wrong in a join, and whose fault it is.
//!
//! Texts are safe to show to a client: they never contain the protocol library's own messages,
//! which leak pointer values.

use thiserror::Error;

/// A join that was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// The offer is larger than is read. The client's fault; a retry does not help.
    #[error("the offer has {bytes} bytes, at most {max} are read")]
    OfferTooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The offer is no SDP that can be answered. The client's fault; a retry does not help.
    #[error("the offer cannot be answered: {0}")]
    BadOffer(String),
    /// The offer has no H.264 that decodes the stream. A retry does not help this client.
    #[error("no common video codec: offered {offered:?}, needed {needed}")]
    NoCommonCodec {
        /// What the client offered for video, one entry per payload type.
        offered: Vec<String>,
        /// What the stream needs.
        needed: String,
    },
    /// The stream is not on this core. The caller's fault.
    #[error("the stream is not known here")]
    UnknownStream,
    /// The stream has no source right now. A retry in a second may help.
    #[error("the device is offline")]
    DeviceOffline,
    /// The session id is in use. The caller's fault.
    #[error("the session id is in use")]
    DuplicateSession,
    /// The core carries as many viewers as it may. Another router may have room.
    #[error("no room for another viewer")]
    Full,
    /// The protocol library failed on this offer. Ours to look at; a retry does not help.
    #[error("the offer could not be processed")]
    Internal,
}

impl JoinError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::DeviceOffline | Self::Full)
    }

    /// A word for metrics and logs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::OfferTooLarge { .. } => "offer_too_large",
            Self::BadOffer(_) => "bad_offer",
            Self::NoCommonCodec { .. } => "no_common_codec",
            Self::UnknownStream => "unknown_stream",
            Self::DeviceOffline => "device_offline",
            Self::DuplicateSession => "duplicate_session",
            Self::Full => "full",
            Self::Internal => "internal",
        }
    }
}
