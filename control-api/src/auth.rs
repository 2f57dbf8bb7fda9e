//! Who calls and what it may do: bearer tokens of backends, scopes, tenants. Not the rate of calls
//! (`limit.rs`) and not the join tokens of viewers (`token.rs`). Invariant: no handler looks at
//! credentials, it takes a [`Principal`]; a method that is not listed in [`need_of`] is refused,
//! and what belongs to another tenant does not exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use fanlight_proto::{claims::LEEWAY_S, reason::Reason};
use http::{HeaderMap, header};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{clock::unix_seconds, error::ControlError, metrics as m};

/// Audience of backend tokens.
pub const BACKEND_AUDIENCE: &str = "fanlight-control";
/// Longest life of a backend token.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Tenant claim of a caller that is confined to none.
pub const ALL_TENANTS: &str = "*";
/// How often the key file is looked at.
const RELOAD: Duration = Duration::from_secs(2);
/// Longest token looked at; the header list of a request is bounded as well.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Largest key file, and most keys in it.
const MAX_KEYS_BYTES: u64 = 256 * 1024;
const MAX_KEYS: usize = 256;

macro_rules! scopes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// What a caller may do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Scope { $($(#[$doc])* $variant,)* }

        impl Scope {
            /// All scopes.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in a token.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl FromStr for Scope {
            type Err = String;
            fn from_str(word: &str) -> Result<Self, String> {
                let known = [$($word),*].join(", ");
                match word {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("{word:?} is no scope; there are {known}")),
                }
            }
        }
    };
}

scopes! {
    /// Reads and watches streams.
    StreamsRead = "streams.read",
    /// Makes, changes and ends streams; reads them too.
    StreamsWrite = "streams.write",
    /// Reads and watches viewers.
    ViewersRead = "viewers.read",
    /// Invites and kicks viewers; reads them too.
    ViewersWrite = "viewers.write",
    /// Reads nodes and placements. Nodes belong to no tenant.
    NodesRead = "nodes.read",
    /// Drains nodes and moves streams; reads nodes too.
    NodesAdmin = "nodes.admin",
    /// Reads events.
    EventsRead = "events.read",
    /// Replays dead letters; reads events too.
    EventsWrite = "events.write",
}

/// A caller and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Name for the log and for rates.
    pub name: String,
    /// The tenant it is confined to; `None`: all.
    pub tenant: Option<String>,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// It proved who it is; otherwise it is the operator on a listener without authentication.
    pub proved: bool,
}

impl Principal {
    /// Everyone on a listener without authentication.
    pub fn operator() -> Self {
        Self {
            name: "local".to_owned(),
            tenant: None,
            scopes: Scope::ALL.iter().copied().collect(),
            proved: false,
        }
    }

    /// True when it was granted the scope, or a wider one.
    pub fn may(&self, scope: Scope) -> bool {
        let wider = match scope {
            Scope::StreamsRead => Scope::StreamsWrite,
            Scope::ViewersRead => Scope::ViewersWrite,
            Scope::NodesRead => Scope::NodesAdmin,
            Scope::EventsRead => Scope::EventsWrite,
            narrow => narrow,
        };
        self.scopes.contains(&scope) || self.scopes.contains(&wider)
    }

    /// True when what belongs to this tenant exists for the caller.
    pub fn sees(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|mine| mine == tenant)
    }

    /// The tenant of what the caller makes.
    pub fn tenant_of_new(&self, asked: &str) -> Result<String, ControlError> {
        match &self.tenant {
            None => Ok(asked.to_owned()),
            Some(mine) if asked.is_empty() || asked == mine => Ok(mine.clone()),
            Some(_) => Err(ControlError::field("stream.tenant", "is not the caller's tenant")),
        }
    }

    /// What stands in front of the fingerprint of a call, so that a caller is never given the
    /// recorded answer of another tenant.
    pub fn realm(&self) -> &str {
        self.tenant.as_deref().unwrap_or(ALL_TENANTS)
    }
}

/// Claims of a backend token. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendClaims {
    /// Who minted it.
    pub iss: String,
    /// Always [`BACKEND_AUDIENCE`].
    pub aud: String,
    /// The caller.
    pub sub: String,
    /// When it was minted.
    pub iat: u64,
    /// Refused after this; at most [`MAX_TOKEN_LIFE`] after `iat`.
    pub exp: u64,
    /// Scopes, separated by spaces.
    pub scope: String,
    /// The tenant it is confined to; [`ALL_TENANTS`]: none. Never left out, so that a forgotten
    /// claim is not a wider grant.
    pub tenant: String,
}

/// What a method asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: health and reflection.
    Open,
    /// This scope.
    Scope(Scope),
    /// No caller may: it is not listed.
    Nobody,
}

/// What the method of a request path asks for.
pub fn need_of(path: &str) -> Need {
    if path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.") {
        return Need::Open;
    }
    let Some((service, method)) =
        path.strip_prefix("/fanlight.control.v1.").and_then(|p| p.split_once('/'))
    else {
        return Need::Nobody;
    };
    let reads = ["Get", "List", "Watch"].iter().any(|verb| method.starts_with(verb));
    let scope = match (service, method) {
        ("StreamService", "MoveStream") => Scope::NodesAdmin,
        ("StreamService", _) if reads => Scope::StreamsRead,
        ("StreamService", _) => Scope::StreamsWrite,
        ("ViewerService", _) if reads => Scope::ViewersRead,
        ("ViewerService", _) => Scope::ViewersWrite,
        ("NodeService", "ExplainPlacement") => Scope::NodesRead,
        ("NodeService", _) if reads => Scope::NodesRead,
        ("NodeService", _) => Scope::NodesAdmin,
        ("EventService", "ReplayDeadLetters") => Scope::EventsWrite,
        ("EventService", _) => Scope::EventsRead,
        _ => return Need::Nobody,
    };
    Need::Scope(scope)
}

/// Decides who calls.
#[derive(Debug)]
pub struct Gate {
    keys: Option<Keys>,
}

/// Public keys of backends, with the file they come from.
#[derive(Debug)]
struct Keys {
    path: PathBuf,
    issuer: String,
    set: ArcSwap<Loaded>,
}

/// One content of the key file.
#[derive(Debug)]
struct Loaded {
    text: Vec<u8>,
    set: JwkSet,
}

/// Why the key file is of no use. The operator's to mend.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the backend keys in {}: {why}", path.display())]
pub struct KeysError {
    path: PathBuf,
    why: String,
}

impl Gate {
    /// Everyone is the operator.
    pub fn open() -> Self {
        Self { keys: None }
    }

    /// Callers show a token of `issuer`, signed with a key of the file (a JWK set, Ed25519 only).
    pub fn with_keys(path: &Path, issuer: &str) -> Result<Self, KeysError> {
        let set = ArcSwap::from_pointee(load(path)?);
        Ok(Self { keys: Some(Keys { path: path.to_owned(), issuer: issuer.to_owned(), set }) })
    }

    /// Reads the key file again. A file that cannot be used changes nothing. True: keys changed.
    pub fn reload(&self) -> Result<bool, KeysError> {
        let Some(keys) = &self.keys else {
            return Ok(false);
        };
        let new = load(&keys.path)?;
        let changed = new.text != keys.set.load().text;
        if changed {
            keys.set.store(Arc::new(new));
        }
        Ok(changed)
    }

    /// Reloads the key file when it changed, until the end.
    pub async fn follow_file(&self, end: CancellationToken) {
        let mut looks = tokio::time::interval(RELOAD);
        let mut failing = false;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = end.cancelled() => return,
            }
            match self.reload() {
                Ok(true) => tracing::info!("backend keys were reloaded"),
                Ok(false) => {}
                // Said once per fault, not every two seconds.
                Err(e) if !failing => {
                    tracing::error!(error = %e, "backend keys are kept as they were");
                    failing = true;
                    continue;
                }
                Err(_) => continue,
            }
            failing = false;
        }
    }

    /// Who calls a method, if it may.
    pub fn admit(&self, path: &str, headers: &HeaderMap) -> Result<Principal, ControlError> {
        let scope = match need_of(path) {
            // Nothing is granted to those who proved nothing.
            Need::Open if self.keys.is_some() => {
                return Ok(Principal { scopes: BTreeSet::new(), ..Principal::operator() });
            }
            Need::Open => return Ok(Principal::operator()),
            Need::Scope(scope) => Some(scope),
            Need::Nobody => None,
        };
        let principal = match &self.keys {
            None => Principal::operator(),
            Some(keys) => keys.verify(headers)?,
        };
        match scope {
            // An unknown method is answered by tonic with UNIMPLEMENTED to those who may call.
            None => Ok(principal),
            Some(scope) if !principal.may(scope) => {
                m::count_by(m::AUTH, "result", "scope");
                let why = format!("the call needs the scope {}", scope.as_str());
                Err(ControlError::new(Reason::ScopeMissing, why))
            }
            // Nodes carry streams of all tenants.
            Some(Scope::NodesRead | Scope::NodesAdmin) if principal.tenant.is_some() => {
                m::count_by(m::AUTH, "result", "scope");
                let why = "nodes belong to no tenant; the call needs a token for all tenants";
                Err(ControlError::new(Reason::ScopeMissing, why))
            }
            Some(_) => Ok(principal),
        }
    }
}

impl Keys {
    fn verify(&self, headers: &HeaderMap) -> Result<Principal, ControlError> {
        let refuse = |reason: Reason, why: &str| {
            let word = if reason == Reason::TokenExpired { "expired" } else { "refused" };
            m::count_by(m::AUTH, "result", word);
            ControlError::new(reason, why)
        };
        let token = bearer(headers)
            .ok_or_else(|| refuse(Reason::TokenMissing, "a bearer token is needed"))?;
        let invalid = |why: &str| refuse(Reason::TokenInvalid, why);
        let header = jsonwebtoken::decode_header(token).map_err(|_| invalid("not a token"))?;
        let loaded = self.set.load();
        let key = header.kid.as_deref().and_then(|kid| loaded.set.find(kid));
        let key = key.ok_or_else(|| invalid("signed with a key that is not known"))?;
        let key = DecodingKey::from_jwk(key).map_err(|_| invalid("its key cannot be used"))?;
        // The algorithm is pinned: what the header says of it is not asked.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.set_audience(&[BACKEND_AUDIENCE]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        let claims = jsonwebtoken::decode::<BackendClaims>(token, &key, &validation)
            .map_err(|e| match e.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => {
                    refuse(Reason::TokenExpired, "the token's time is over")
                }
                _ => invalid("signature, audience, issuer or a claim is wrong"),
            })?
            .claims;
        let longest = MAX_TOKEN_LIFE.as_secs();
        let now = unix_seconds();
        if claims.exp.saturating_sub(claims.iat) > longest
            || claims.exp.saturating_sub(now) > longest + LEEWAY_S
        {
            return Err(invalid("the token lasts longer than an hour"));
        }
        if claims.tenant.is_empty() || claims.sub.is_empty() {
            return Err(invalid("tenant and sub must not be empty"));
        }
        // Scopes of a newer version mean nothing here.
        let scopes = claims.scope.split_ascii_whitespace().filter_map(|w| w.parse().ok());
        m::count_by(m::AUTH, "result", "admitted");
        Ok(Principal {
            name: claims.sub,
            tenant: Some(claims.tenant).filter(|t| t != ALL_TENANTS),
            scopes: scopes.collect(),
            proved: true,
        })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let fits = scheme.eq_ignore_ascii_case("bearer") && token.len() <= MAX_TOKEN_BYTES;
    fits.then(|| token.trim())
}

fn load(path: &Path) -> Result<Loaded, KeysError> {
    let fault = |why: String| KeysError { path: path.to_owned(), why };
    let size = fs::metadata(path).map_err(|e| fault(e.to_string()))?.len();
    if size > MAX_KEYS_BYTES {
        return Err(fault(format!("{size} bytes are too many for a JWK set")));
    }
    let text = fs::read(path).map_err(|e| fault(e.to_string()))?;
    let set: JwkSet = serde_json::from_slice(&text).map_err(|e| fault(e.to_string()))?;
    if set.keys.is_empty() || set.keys.len() > MAX_KEYS {
        return Err(fault(format!("{} keys; 1 to {MAX_KEYS} are allowed", set.keys.len())));
    }
    for key in &set.keys {
        let ed25519 = matches!(&key.algorithm, AlgorithmParameters::OctetKeyPair(okp)
            if okp.curve == EllipticCurve::Ed25519);
        let kid = key.common.key_id.as_deref().unwrap_or_default();
        if !ed25519 || kid.is_empty() {
            return Err(fault(format!("key {kid:?}: only Ed25519 keys with a `kid` are taken")));
        }
    }
    Ok(Loaded { text, set })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::TokenKey;

    const ISSUER: &str = "acme";

    fn claims() -> BackendClaims {
        let now = unix_seconds();
        BackendClaims {
            iss: ISSUER.to_owned(),
            aud: BACKEND_AUDIENCE.to_owned(),
            sub: "backend".to_owned(),
            iat: now,
            exp: now + 600,
            scope: "streams.write viewers.read something.new".to_owned(),
            tenant: "a".to_owned(),
        }
    }

    fn gate(key: &TokenKey) -> (Gate, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        fs::write(&path, key.jwks_json()).unwrap();
        (Gate::with_keys(&path, ISSUER).unwrap(), dir)
    }

    fn ask(gate: &Gate, method: &str, token: Option<&str>) -> Result<Principal, Reason> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        let path = format!("/fanlight.control.v1.{method}");
        gate.admit(&path, &headers).map_err(|e| e.reason)
    }

    #[test]
    fn a_token_grants_its_scopes_and_tenant_and_no_more() {
        let key = TokenKey::generate().unwrap();
        let (gate, _dir) = gate(&key);
        let token = key.sign(&claims()).unwrap();
        let who = ask(&gate, "StreamService/CreateStream", Some(&token)).unwrap();
        assert_eq!((who.name.as_str(), who.tenant.as_deref()), ("backend", Some("a")));
        assert!(who.sees("a") && !who.sees("b") && !who.sees(""));
        // Writing includes reading, not the other way round.
        assert!(ask(&gate, "StreamService/GetStream", Some(&token)).is_ok());
        assert!(ask(&gate, "ViewerService/ListViewers", Some(&token)).is_ok());
        for method in
            ["ViewerService/CreateViewer", "NodeService/ListNodes", "EventService/ListEvents"]
        {
            assert_eq!(ask(&gate, method, Some(&token)), Err(Reason::ScopeMissing), "{method}");
        }
        let nothing = ask(&gate, "StreamService/GetStream", None);
        assert_eq!(nothing, Err(Reason::TokenMissing));
    }

    #[test]
    fn each_wrong_claim_is_refused() {
        type Spoil = fn(&mut BackendClaims);
        let key = TokenKey::generate().unwrap();
        let (gate, _dir) = gate(&key);
        let cases: [(&str, Spoil, Reason); 8] = [
            ("audience", |c| c.aud = "fanlight-router".to_owned(), Reason::TokenInvalid),
            ("issuer", |c| c.iss = "other".to_owned(), Reason::TokenInvalid),
            ("long", |c| c.exp = c.iat + 3601, Reason::TokenInvalid),
            (
                "long, minted ahead",
                |c| (c.iat, c.exp) = (c.iat + 7200, c.iat + 9000),
                Reason::TokenInvalid,
            ),
            ("over", |c| (c.iat, c.exp) = (c.iat - 700, c.iat - 100), Reason::TokenExpired),
            ("tenant", |c| c.tenant.clear(), Reason::TokenInvalid),
            ("sub", |c| c.sub.clear(), Reason::TokenInvalid),
            ("scope", |c| c.scope = "all".to_owned(), Reason::ScopeMissing),
        ];
        for (what, spoil, reason) in cases {
            let mut claims = claims();
            spoil(&mut claims);
            let token = key.sign(&claims).unwrap();
            assert_eq!(ask(&gate, "StreamService/GetStream", Some(&token)), Err(reason), "{what}");
        }
        let foreign = TokenKey::generate().unwrap().sign(&claims()).unwrap();
        assert_eq!(
            ask(&gate, "StreamService/GetStream", Some(&foreign)),
            Err(Reason::TokenInvalid)
        );
        // A token of the same key that is signed by the wrong algorithm's name.
        let token = key.sign(&claims()).unwrap();
        let body = token.split_once('.').unwrap().1;
        let none = format!("eyJhbGciOiJub25lIn0.{body}");
        assert_eq!(ask(&gate, "StreamService/GetStream", Some(&none)), Err(Reason::TokenInvalid));
    }

    #[test]
    fn keys_are_replaced_while_running_and_a_broken_file_changes_nothing() {
        let (old, new) = (TokenKey::generate().unwrap(), TokenKey::generate().unwrap());
        let (gate, dir) = gate(&old);
        let path = dir.path().join("keys.json");
        let (first, second) = (old.sign(&claims()).unwrap(), new.sign(&claims()).unwrap());
        assert!(ask(&gate, "StreamService/GetStream", Some(&second)).is_err());
        fs::write(&path, "{").unwrap();
        assert!(gate.reload().is_err());
        assert!(ask(&gate, "StreamService/GetStream", Some(&first)).is_ok());
        fs::write(&path, new.jwks_json()).unwrap();
        assert!(gate.reload().unwrap());
        assert!(!gate.reload().unwrap());
        assert!(ask(&gate, "StreamService/GetStream", Some(&second)).is_ok());
        assert!(ask(&gate, "StreamService/GetStream", Some(&first)).is_err());
    }

    #[test]
    fn nodes_are_for_callers_of_all_tenants() {
        let key = TokenKey::generate().unwrap();
        let (gate, _dir) = gate(&key);
        let mut claims = claims();
        claims.scope = "nodes.admin".to_owned();
        let confined = key.sign(&claims).unwrap();
        let list = "NodeService/ListNodes";
        assert_eq!(ask(&gate, list, Some(&confined)), Err(Reason::ScopeMissing));
        claims.tenant = ALL_TENANTS.to_owned();
        assert!(ask(&gate, list, Some(&key.sign(&claims).unwrap())).is_ok());
    }

    #[test]
    fn every_method_of_ours_asks_for_a_scope() {
        use prost::Message as _;
        let set = fanlight_proto::FILE_DESCRIPTOR_SET;
        let set = prost_types::FileDescriptorSet::decode(set).unwrap();
        let mut seen = 0;
        for file in set.file.iter().filter(|f| f.package() == "fanlight.control.v1") {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/fanlight.control.v1.{}/{}", service.name(), method.name());
                    assert!(matches!(need_of(&path), Need::Scope(_)), "{path}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 15, "{seen}");
        assert_eq!(need_of("/fanlight.node.v1.NodeLinkService/Link"), Need::Nobody);
    }
}
