//! Error reasons: machine words that callers may depend on. Not the texts. Invariant: a word,
//! once released, keeps its meaning. Mapping to `google.rpc.ErrorInfo` uses [`DOMAIN`].

use std::fmt;

/// `ErrorInfo.domain` of all errors.
pub const DOMAIN: &str = "fanlight";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// Why something was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All reasons, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The machine word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// Reads a machine word.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A field of the request is missing or malformed.
    InvalidArgument = "INVALID_ARGUMENT",
    /// The stream is not known.
    StreamNotFound = "STREAM_NOT_FOUND",
    /// The viewer is not known.
    ViewerNotFound = "VIEWER_NOT_FOUND",
    /// The node is not known.
    NodeNotFound = "NODE_NOT_FOUND",
    /// A stream of that name exists.
    StreamExists = "STREAM_EXISTS",
    /// A viewer of that name exists.
    ViewerExists = "VIEWER_EXISTS",
    /// The request id was used before with another body.
    RequestIdReused = "REQUEST_ID_REUSED",
    /// The resource changed since the given etag.
    EtagMismatch = "ETAG_MISMATCH",
    /// No ingest worker knows the device.
    DeviceUnknown = "DEVICE_UNKNOWN",
    /// The device is known but cannot be captured now; retry later.
    DeviceOffline = "DEVICE_OFFLINE",
    /// No router can take the stream or the viewer now; retry later.
    NodeAtCapacity = "NODE_AT_CAPACITY",
    /// A limit of the stream is reached (viewers, controllers).
    StreamLimit = "STREAM_LIMIT",
    /// The epoch is lower than one already seen.
    StaleEpoch = "STALE_EPOCH",
    /// A node with a greater incarnation is linked.
    StaleIncarnation = "STALE_INCARNATION",
    /// The publish token is wrong.
    PublishDenied = "PUBLISH_DENIED",
    /// No token, or one that cannot be read.
    TokenMissing = "TOKEN_MISSING",
    /// The token's signature, audience or issuer is wrong.
    TokenInvalid = "TOKEN_INVALID",
    /// The token's time is over.
    TokenExpired = "TOKEN_EXPIRED",
    /// The token is for another stream.
    TokenForeign = "TOKEN_FOREIGN",
    /// The viewer or its user was kicked.
    ViewerBarred = "VIEWER_BARRED",
    /// The body's media type is not `application/sdp`.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE",
    /// The offer is not SDP that can be understood.
    BadSdp = "BAD_SDP",
    /// Offer and stream have no codec in common.
    NoCommonCodec = "NO_COMMON_CODEC",
    /// The body is larger than allowed.
    TooLarge = "TOO_LARGE",
    /// The session is not known.
    SessionNotFound = "SESSION_NOT_FOUND",
    /// The node is stopping; go elsewhere.
    Draining = "DRAINING",
    /// The node is overloaded; retry later or go elsewhere.
    Overloaded = "OVERLOADED",
    /// What was asked is not supported by this node.
    Unsupported = "UNSUPPORTED",
    /// The caller's deadline passed before there was an answer; the work may still be done.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    /// The certificate shown is not that of the node named.
    NodeIdentity = "NODE_IDENTITY",
    /// A bounded table of the control plane is full.
    TableFull = "TABLE_FULL",
    /// The store of the control plane does not answer; retry later.
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// The origin router was lost; the stream moves when another router can take it.
    OriginLost = "ORIGIN_LOST",
    /// The origin router was restarted; its streams go on under a greater epoch.
    OriginRestarted = "ORIGIN_RESTARTED",
    /// The origin router is being drained; the stream moves to another one.
    OriginDraining = "ORIGIN_DRAINING",
    /// The stream moves because an operator asked for it.
    MoveAsked = "MOVE_ASKED",
    /// The ingest worker cannot push to the origin router.
    PushBroken = "PUSH_BROKEN",
    /// The position or resume token is older than what is kept, or of another life of the store.
    PositionExpired = "POSITION_EXPIRED",
    /// A watcher read more slowly than things changed; resume from the last token.
    SlowWatcher = "SLOW_WATCHER",
    /// The caller called more often than it may; retry later.
    RateLimited = "RATE_LIMITED",
    /// The caller's token does not grant what the method needs.
    ScopeMissing = "SCOPE_MISSING",
    /// No webhook of that name is configured.
    WebhookNotFound = "WEBHOOK_NOT_FOUND",
    /// A fault of ours; it is logged.
    Internal = "INTERNAL",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_are_unique() {
        for (i, r) in Reason::ALL.iter().enumerate() {
            assert_eq!(Reason::parse(r.as_str()), Some(*r));
            assert!(Reason::ALL[..i].iter().all(|o| o.as_str() != r.as_str()));
        }
        assert_eq!(Reason::parse("NOPE"), None);
    }
}
