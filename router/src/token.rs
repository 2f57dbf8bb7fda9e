//! Checks join tokens offline: a compact JWS, EdDSA only, against the key set that the control
//! API pushed last. Not the minting, and not the count of sessions per token. Invariant: nothing
//! of a token is believed before its signature has been checked with a key of the set.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use fanlight_proto::{
    claims::{JOIN_AUDIENCE, JOIN_ISSUER, JoinClaims, LEEWAY_S},
    id::StreamId,
    reason::Reason,
};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet},
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// Longest token read, in bytes; ours have about 430.
const MAX_TOKEN_BYTES: usize = 4_096;
/// Most keys taken from a key set; more are ignored. Rotation needs two.
const MAX_KEYS: usize = 16;
/// Most bars of each kind held; at the bound the one that ends first makes room.
const MAX_BARS: usize = 10_000;

/// A token's SHA-256, by which one that was checked before is known again. Comparing hashes tells
/// nobody, by how long it takes, how much of a token is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenHash([u8; 32]);

impl TokenHash {
    pub(crate) fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// Why a token was refused. Always the caller's fault; a retry helps only with another token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TokenError {
    /// There is none, or it is not a token.
    #[error("no bearer token that can be read")]
    Missing,
    /// Signature, algorithm, key, audience or issuer is wrong.
    #[error("the token's signature, algorithm, audience or issuer is wrong")]
    Invalid,
    /// `exp` has passed.
    #[error("the token's time is over")]
    Expired,
    /// It is for another stream.
    #[error("the token is for another stream")]
    Foreign,
    /// Its id or its viewer was barred.
    #[error("the token was barred")]
    Barred,
}

impl TokenError {
    /// The API's word for it.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Missing => Reason::TokenMissing,
            Self::Invalid => Reason::TokenInvalid,
            Self::Expired => Reason::TokenExpired,
            Self::Foreign => Reason::TokenForeign,
            Self::Barred => Reason::ViewerBarred,
        }
    }
}

/// Why a key set was not taken; the one before stays in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeySetError {
    /// Not a JWK set.
    #[error("the key set is not a JWK set")]
    Json(#[from] serde_json::Error),
    /// No Ed25519 key in it.
    #[error("the key set holds no Ed25519 key")]
    Empty,
}

#[derive(Default)]
struct Keys {
    by_id: HashMap<String, DecodingKey>,
}

#[derive(Default)]
struct Bars {
    /// Token id to the Unix second at which its bar ends.
    tokens: HashMap<String, u64>,
    /// (stream, viewer) to the Unix second at which the bar ends.
    viewers: HashMap<(StreamId, String), u64>,
}

/// Verifier of join tokens: the present key set and the present bars.
#[derive(Default)]
pub(crate) struct Tokens {
    keys: ArcSwap<Keys>,
    bars: Mutex<Bars>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("keys", &self.keys.load().by_id.len()).finish()
    }
}

impl Tokens {
    /// No keys yet: every token is refused.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes a key set in place of the one before. An unusable set changes nothing.
    pub(crate) fn set_keys(&self, jwks_json: &str) -> Result<usize, KeySetError> {
        let set: JwkSet = serde_json::from_str(jwks_json)?;
        let mut by_id = HashMap::new();
        for (i, jwk) in set.keys.iter().enumerate().take(MAX_KEYS) {
            let AlgorithmParameters::OctetKeyPair(pair) = &jwk.algorithm else { continue };
            if pair.curve != EllipticCurve::Ed25519 {
                continue;
            }
            let Ok(key) = DecodingKey::from_jwk(jwk) else { continue };
            let id = jwk.common.key_id.clone().unwrap_or_else(|| format!("#{i}"));
            by_id.insert(id, key);
        }
        if by_id.is_empty() {
            return Err(KeySetError::Empty);
        }
        let count = by_id.len();
        self.keys.store(Arc::new(Keys { by_id }));
        Ok(count)
    }

    /// A token that wants to join `stream` now.
    pub(crate) fn verify_join(
        &self,
        token: &str,
        stream: &StreamId,
    ) -> Result<JoinClaims, TokenError> {
        let claims = self.verify_session(token, stream)?;
        if unix_s() > claims.exp.saturating_add(LEEWAY_S) {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }

    /// A token shown for a session that exists: it may be past its time, because `exp` says until
    /// when one may join, not how long one may stay. The caller compares the token id.
    pub(crate) fn verify_session(
        &self,
        token: &str,
        stream: &StreamId,
    ) -> Result<JoinClaims, TokenError> {
        let claims = self.signed(token)?;
        if claims.aud != JOIN_AUDIENCE || claims.iss != JOIN_ISSUER {
            return Err(TokenError::Invalid);
        }
        if claims.s != *stream {
            return Err(TokenError::Foreign);
        }
        if self.is_barred(&claims.jti, &claims.s, claims.sub.as_str()) {
            return Err(TokenError::Barred);
        }
        Ok(claims)
    }

    /// Bars a token id until a Unix second.
    pub(crate) fn bar_token(&self, jti: &str, until_s: u64) {
        let bars = &mut *self.bars.lock();
        make_room(&mut bars.tokens);
        let end = bars.tokens.entry(jti.to_owned()).or_default();
        *end = (*end).max(until_s);
    }

    /// Bars a viewer (or user, where the platform names viewers after users) from a stream.
    pub(crate) fn bar_viewer(&self, stream: &StreamId, viewer: &str, until_s: u64) {
        let bars = &mut *self.bars.lock();
        make_room(&mut bars.viewers);
        let end = bars.viewers.entry((stream.clone(), viewer.to_owned())).or_default();
        *end = (*end).max(until_s);
    }

    /// Whether a token id, or its viewer, is barred now.
    pub(crate) fn is_barred(&self, jti: &str, stream: &StreamId, viewer: &str) -> bool {
        let now = unix_s();
        let bars = self.bars.lock();
        let viewer = (stream.clone(), viewer.to_owned());
        bars.tokens.get(jti).is_some_and(|&until| now < until)
            || bars.viewers.get(&viewer).is_some_and(|&until| now < until)
    }

    fn signed(&self, token: &str) -> Result<JoinClaims, TokenError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Missing);
        }
        let header = decode_header(token).map_err(|_| TokenError::Missing)?;
        if header.alg != Algorithm::EdDSA {
            return Err(TokenError::Invalid);
        }
        let keys = self.keys.load();
        let candidates: Vec<&DecodingKey> = match &header.kid {
            Some(id) => keys.by_id.get(id).into_iter().collect(),
            None => keys.by_id.values().collect(),
        };
        let rules = rules();
        candidates
            .into_iter()
            .find_map(|key| decode::<JoinClaims>(token, key, &rules).ok())
            .map(|data| data.claims)
            .ok_or(TokenError::Invalid)
    }
}

/// Signature only: claims are compared here, each with an error of its own.
fn rules() -> Validation {
    let mut rules = Validation::new(Algorithm::EdDSA);
    rules.validate_exp = false;
    rules.validate_aud = false;
    rules.required_spec_claims.clear();
    rules
}

fn make_room<K: Clone + Eq + std::hash::Hash>(bars: &mut HashMap<K, u64>) {
    if bars.len() < MAX_BARS {
        return;
    }
    let now = unix_s();
    bars.retain(|_, until| *until > now);
    if bars.len() >= MAX_BARS
        && let Some(first) = bars.iter().min_by_key(|(_, until)| **until).map(|(k, _)| k.clone())
    {
        bars.remove(&first);
    }
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::{AsDer as _, Pkcs8V1Der},
        signature::{Ed25519KeyPair, KeyPair as _},
    };
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use fanlight_proto::{claims::Role, id::ViewerId};
    use jsonwebtoken::{EncodingKey, Header, encode};

    use super::*;

    fn key() -> (EncodingKey, String) {
        let pair = Ed25519KeyPair::generate().unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwk = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": "test", "x": x });
        let jwks = serde_json::json!({ "keys": [jwk] }).to_string();
        (EncodingKey::from_ed_der(der.as_ref()), jwks)
    }

    fn claims() -> JoinClaims {
        JoinClaims {
            iss: JOIN_ISSUER.into(),
            aud: JOIN_AUDIENCE.into(),
            jti: "t1".into(),
            sub: ViewerId::parse("ann").unwrap(),
            s: StreamId::parse("pixel").unwrap(),
            n: None,
            e: 0,
            r: Role::Controller,
            br: 0,
            exp: unix_s() + 60,
            ms: 0,
            multi: false,
        }
    }

    fn mint(key: &EncodingKey, claims: &JoinClaims) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("test".into());
        encode(&header, claims, key).unwrap()
    }

    #[test]
    fn a_good_token_is_taken_and_each_wrong_one_has_its_reason() {
        let (signing, jwks) = key();
        let tokens = Tokens::new();
        let stream = StreamId::parse("pixel").unwrap();
        let good = mint(&signing, &claims());
        assert_eq!(tokens.verify_join(&good, &stream), Err(TokenError::Invalid), "no keys yet");
        assert_eq!(tokens.set_keys(&jwks).unwrap(), 1);
        assert_eq!(tokens.verify_join(&good, &stream), Ok(claims_like(&good, &tokens, &stream)));

        assert_eq!(tokens.verify_join("", &stream), Err(TokenError::Missing));
        assert_eq!(tokens.verify_join("a.b.c", &stream), Err(TokenError::Missing));
        assert_eq!(tokens.verify_join(&"x".repeat(5_000), &stream), Err(TokenError::Missing));
        let other = StreamId::parse("other").unwrap();
        assert_eq!(tokens.verify_join(&good, &other), Err(TokenError::Foreign));
        let (stranger, _) = key();
        let forged = mint(&stranger, &claims());
        assert_eq!(tokens.verify_join(&forged, &stream), Err(TokenError::Invalid));
        let wrong_aud = JoinClaims { aud: "someone".into(), ..claims() };
        let wrong_aud = mint(&signing, &wrong_aud);
        assert_eq!(tokens.verify_join(&wrong_aud, &stream), Err(TokenError::Invalid));
        let wrong_iss = mint(&signing, &JoinClaims { iss: "someone".into(), ..claims() });
        assert_eq!(tokens.verify_join(&wrong_iss, &stream), Err(TokenError::Invalid));
    }

    fn claims_like(token: &str, tokens: &Tokens, stream: &StreamId) -> JoinClaims {
        tokens.verify_session(token, stream).unwrap()
    }

    #[test]
    fn time_is_checked_for_joins_with_leeway_and_not_for_sessions() {
        let (signing, jwks) = key();
        let tokens = Tokens::new();
        tokens.set_keys(&jwks).unwrap();
        let stream = StreamId::parse("pixel").unwrap();
        let just_over = mint(&signing, &JoinClaims { exp: unix_s() - 5, ..claims() });
        assert!(tokens.verify_join(&just_over, &stream).is_ok());
        let old = mint(&signing, &JoinClaims { exp: unix_s() - LEEWAY_S - 5, ..claims() });
        assert_eq!(tokens.verify_join(&old, &stream), Err(TokenError::Expired));
        assert!(tokens.verify_session(&old, &stream).is_ok());
    }

    #[test]
    fn other_algorithms_are_refused_even_with_our_key_as_secret() {
        let (_, jwks) = key();
        let tokens = Tokens::new();
        tokens.set_keys(&jwks).unwrap();
        let stream = StreamId::parse("pixel").unwrap();
        let secret = EncodingKey::from_secret(jwks.as_bytes());
        let hs256 = encode(&Header::new(Algorithm::HS256), &claims(), &secret).unwrap();
        assert_eq!(tokens.verify_join(&hs256, &stream), Err(TokenError::Invalid));
    }

    #[test]
    fn bars_end_and_are_bounded() {
        let (signing, jwks) = key();
        let tokens = Tokens::new();
        tokens.set_keys(&jwks).unwrap();
        let stream = StreamId::parse("pixel").unwrap();
        let token = mint(&signing, &claims());
        tokens.bar_token("t1", unix_s() - 1);
        assert!(tokens.verify_join(&token, &stream).is_ok());
        tokens.bar_token("t1", unix_s() + 60);
        assert_eq!(tokens.verify_join(&token, &stream), Err(TokenError::Barred));
        let tokens = Tokens::new();
        tokens.set_keys(&jwks).unwrap();
        tokens.bar_viewer(&stream, "ann", unix_s() + 60);
        assert_eq!(tokens.verify_join(&token, &stream), Err(TokenError::Barred));
        for i in 0..MAX_BARS + 10 {
            tokens.bar_token(&format!("x{i}"), unix_s() + 1_000);
        }
        assert_eq!(tokens.bars.lock().tokens.len(), MAX_BARS);
    }

    #[test]
    fn an_unusable_key_set_keeps_the_one_before() {
        let (signing, jwks) = key();
        let tokens = Tokens::new();
        tokens.set_keys(&jwks).unwrap();
        assert!(tokens.set_keys("not json").is_err());
        assert!(matches!(tokens.set_keys(r#"{"keys":[]}"#), Err(KeySetError::Empty)));
        let stream = StreamId::parse("pixel").unwrap();
        assert!(tokens.verify_join(&mint(&signing, &claims()), &stream).is_ok());
    }
}
