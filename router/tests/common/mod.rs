//! What the router's tests share: a started router, join tokens, a publisher that speaks the hop,
//! a viewer that speaks WebRTC. Peers of the router, not mirrors: they use the wire and str0m, and
//! nothing of the router but its public API. Every wait has a deadline.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "test support; each test file uses a part of it"
)]

pub mod bridge;
pub mod clip;
pub mod publisher;
pub mod viewer;

use std::{future::Future, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fanlight_ops::{
    admin::Readiness,
    pki::{Ca, NodeIdentity},
    shutdown::Shutdown,
};
use fanlight_proto::{
    claims::{JOIN_AUDIENCE, JOIN_ISSUER, JoinClaims, Role},
    id::{NodeId, StreamId, ViewerId},
    node::v1::{Ack, Action, Apply, OriginRole, Want, action, want},
    types::v1::Assignment,
};
use fanlight_router::{Router, RouterConfig};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use sha2::{Digest as _, Sha256};

pub const TOKEN: &[u8] = b"push-secret";

/// Fails the test when `future` takes longer than ten seconds.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(10), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within 10 s"),
    }
}

/// Polls until `check` holds, at most ten seconds.
pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    soon(what, async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A router on loopback with free ports, its CA, and the key that signs its join tokens.
pub struct World {
    pub router: Router,
    pub shutdown: Shutdown,
    pub ca: Ca,
    key: EncodingKey,
    pub jwks: String,
    pub http: reqwest::Client,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut RouterConfig)) -> Self {
        let ca = Ca::generate().unwrap();
        let mut cfg = RouterConfig { node: "r1".into(), ..RouterConfig::default() };
        cfg.ice.bind = "127.0.0.1".parse().unwrap();
        // Two busy cores can starve a process for longer than the second that is the default.
        cfg.limits.hop_idle_ms = 5_000;
        change(&mut cfg);
        let identity = node_identity(&ca, "r1");
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let router = Router::start_with(cfg, identity, Readiness::new(), &shutdown).await.unwrap();
        let (key, jwks) = signing_key();
        router.handler().key_set(jwks.clone());
        Self { router, shutdown, ca, key, jwks, http: reqwest::Client::new() }
    }

    /// Assigns a stream to the router, as a control API would.
    pub async fn want(&self, stream: &str, epoch: u64) -> Ack {
        self.apply(false, &[(stream, epoch)]).await
    }

    pub async fn apply(&self, full: bool, wants: &[(&str, u64)]) -> Ack {
        let wants = wants.iter().map(|(stream, epoch)| origin_want(stream, *epoch)).collect();
        self.router.handler().apply(Apply { full, wants, ..Apply::default() }).await
    }

    pub async fn act(&self, action: action::Action) -> Ack {
        self.router.handler().action(Action { action: Some(action), ..Action::default() }).await
    }

    pub fn claims(&self, stream: &str, jti: &str) -> JoinClaims {
        JoinClaims {
            iss: JOIN_ISSUER.into(),
            aud: JOIN_AUDIENCE.into(),
            jti: jti.into(),
            sub: ViewerId::parse(jti).unwrap(),
            s: StreamId::parse(stream).unwrap(),
            n: None,
            e: 0,
            r: Role::Controller,
            br: 0,
            exp: jsonwebtoken::get_current_timestamp() + 60,
            ms: 0,
            multi: false,
        }
    }

    pub fn sign(&self, claims: &JoinClaims) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("test".into());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }

    pub fn token(&self, stream: &str, jti: &str) -> String {
        self.sign(&self.claims(stream, jti))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.router.whep_addr())
    }

    pub fn post(
        &self,
        stream: &str,
        token: &str,
        offer: impl Into<String>,
    ) -> reqwest::RequestBuilder {
        self.http
            .post(self.url(&format!("/whep/{stream}")))
            .bearer_auth(token)
            .header("content-type", "application/sdp")
            .body(offer.into())
    }

    /// Ends the router and checks that all of its tasks ended in time.
    pub async fn end(self) {
        self.shutdown.trigger();
        self.shutdown.wait().await.unwrap();
    }
}

pub fn origin_want(stream: &str, epoch: u64) -> Want {
    Want {
        assignment: Some(Assignment { stream: format!("streams/{stream}"), epoch, origin: None }),
        role: Some(want::Role::Origin(OriginRole {
            push_token_sha256: Sha256::digest(TOKEN).to_vec(),
            ..OriginRole::default()
        })),
    }
}

pub fn node_identity(ca: &Ca, node: &str) -> NodeIdentity {
    let cert = ca.issue_node(&NodeId::parse(node).unwrap(), &[]).unwrap();
    NodeIdentity::from_pem(cert).unwrap()
}

/// An Ed25519 key and its JWK set.
pub fn signing_key() -> (EncodingKey, String) {
    let pair = Ed25519KeyPair::generate().unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let jwk = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": "test", "x": x });
    let jwks = serde_json::json!({ "keys": [jwk] }).to_string();
    (EncodingKey::from_ed_der(der.as_ref()), jwks)
}
