//! Claims of a join token (compact JWS, EdDSA only). Not the signing or the checking of it:
//! `control-api` mints, `router` verifies. Invariant: field names are part of the API.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, StreamId, ViewerId};

/// Required `aud` of a join token.
pub const JOIN_AUDIENCE: &str = "fanlight-router";
/// `iss` of tokens minted by the control API.
pub const JOIN_ISSUER: &str = "fanlight-control";
/// Clock leeway when times are compared, in seconds.
pub const LEEWAY_S: u64 = 30;

/// What a viewer may do, as it stands in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Watches only.
    Observer,
    /// May send touch, key and clipboard input.
    Controller,
}

/// Claims of a join token. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinClaims {
    /// Who minted it.
    pub iss: String,
    /// Always [`JOIN_AUDIENCE`].
    pub aud: String,
    /// Id of this token; one live session per id and router unless `multi`.
    pub jti: String,
    /// The viewer.
    pub sub: ViewerId,
    /// The stream it may watch.
    pub s: StreamId,
    /// Router it was placed on (a hint).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<NodeId>,
    /// Smallest epoch of the stream that may be shown.
    #[serde(default)]
    pub e: u64,
    /// What it may do.
    pub r: Role,
    /// Highest bitrate, bit/s; zero: the stream's own.
    #[serde(default)]
    pub br: u64,
    /// The join must happen before this.
    pub exp: u64,
    /// Longest session, seconds; zero: no limit of its own.
    #[serde(default)]
    pub ms: u64,
    /// Demo only: the token may carry many sessions at once, each its own viewer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multi: bool,
}
