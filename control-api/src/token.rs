//! Join tokens: the signing key and the minting. Not the checking, which routers do alone with the
//! public half. Invariant: EdDSA only; the private key never leaves its file (mode 0600) and this
//! process, and is never shown.

use std::{
    fmt, fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::AsDer as _,
    hmac,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use fanlight_proto::claims::{JOIN_AUDIENCE, JOIN_ISSUER, JoinClaims};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};

/// Why there is no usable key. The operator's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file system said no.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not hold an Ed25519 key.
    #[error("{} holds no Ed25519 key in PKCS#8 PEM: {why}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong; never the content.
        why: String,
    },
    /// Others may read the private key.
    #[error("{} can be read by others (mode {mode:o}); make it 0600", path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The crypto library failed.
    #[error("cannot {doing}")]
    Crypto {
        /// What was attempted.
        doing: &'static str,
    },
}

/// The signing key.
pub struct TokenKey {
    pair: Ed25519KeyPair,
    public: [u8; 32],
    kid: String,
    /// The header of every token, as it stands in it, with the point behind it.
    header: String,
    seal: hmac::Key,
}

impl TokenKey {
    /// Reads the key file, or makes it. Of two processes that make it at once, one wins and the
    /// other reads.
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        match fs::metadata(path) {
            Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
                let mode = meta.permissions().mode() & 0o777;
                Err(TokenError::Readable { path: path.to_owned(), mode })
            }
            Ok(_) => Self::load(path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(source) => {
                Err(TokenError::File { doing: "look at", path: path.to_owned(), source })
            }
        }
    }

    /// A key that lives as long as the process.
    pub fn generate() -> Result<Self, TokenError> {
        Self::from_pkcs8(&new_pkcs8()?, Path::new("(memory)"))
    }

    fn load(path: &Path) -> Result<Self, TokenError> {
        let text = fs::read(path).map_err(|source| TokenError::File {
            doing: "read",
            path: path.to_owned(),
            source,
        })?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|e| TokenError::BadKey { path: path.to_owned(), why: e.to_string() })?;
        Self::from_pkcs8(der.secret_pkcs8_der(), path)
    }

    fn create(path: &Path) -> Result<Self, TokenError> {
        let file_error =
            |doing| move |source| TokenError::File { doing, path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(file_error("create the folder of"))?;
        }
        let der = new_pkcs8()?;
        let staged = path.with_extension(format!("new.{}", std::process::id()));
        // A leftover of a crashed start with the same process id holds a key that signed nothing.
        let _ = fs::remove_file(&staged);
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&staged)?;
            file.write_all(pem(&der).as_bytes())?;
            file.sync_all()
        };
        write().map_err(file_error("write"))?;
        // A hard link fails if the name exists: the one atomic "create with content".
        let linked = fs::hard_link(&staged, path);
        let _ = fs::remove_file(&staged);
        match linked {
            Ok(()) => {
                tracing::info!(path = %path.display(), "made a new token key");
                Self::from_pkcs8(&der, path)
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Self::load(path),
            Err(source) => Err(file_error("create")(source)),
        }
    }

    fn from_pkcs8(der: &[u8], path: &Path) -> Result<Self, TokenError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|e| TokenError::BadKey { path: path.to_owned(), why: e.to_string() })?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        let kid = URL_SAFE_NO_PAD.encode(&digest(&SHA256, &public).as_ref()[..9]);
        // Page tokens are sealed with a key that follows from this one, so that all replicas with
        // the same key file read each other's.
        let seal = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, der), b"fanlight page token");
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(kid.clone());
        let header = serde_json::to_vec(&header)
            .map_err(|_| TokenError::Crypto { doing: "write a token's header" })?;
        Ok(Self {
            pair,
            public,
            kid,
            header: URL_SAFE_NO_PAD.encode(header) + ".",
            seal: hmac::Key::new(hmac::HMAC_SHA256, seal.as_ref()),
        })
    }

    /// Signs a join token. By hand, because the library derives the key pair from its file again for
    /// every signature, which costs as much as the signature.
    pub fn mint(&self, claims: &JoinClaims) -> Result<String, TokenError> {
        self.sign(claims)
    }

    /// Signs any claims.
    pub fn sign(&self, claims: &impl serde::Serialize) -> Result<String, TokenError> {
        let failed = |_| TokenError::Crypto { doing: "sign a token" };
        let claims = serde_json::to_vec(claims).map_err(failed)?;
        let mut token = String::with_capacity(self.header.len() + claims.len() * 4 / 3 + 96);
        token.push_str(&self.header);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }

    /// The claims of a join token that we signed, whatever its time.
    pub fn read(&self, token: &str) -> Option<JoinClaims> {
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.validate_exp = false;
        rules.set_audience(&[JOIN_AUDIENCE]);
        rules.set_issuer(&[JOIN_ISSUER]);
        let key = DecodingKey::from_ed_der(&self.public);
        jsonwebtoken::decode::<JoinClaims>(token, &key, &rules).ok().map(|t| t.claims)
    }

    /// The public half as a JWK set.
    pub fn jwks_json(&self) -> String {
        serde_json::json!({ "keys": [{
            "kty": "OKP",
            "crv": "Ed25519",
            "use": "sig",
            "alg": "EdDSA",
            "kid": self.kid,
            "x": URL_SAFE_NO_PAD.encode(self.public),
        }]})
        .to_string()
    }

    /// Key of page tokens.
    pub fn seal(&self) -> &hmac::Key {
        &self.seal
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

fn new_pkcs8() -> Result<Vec<u8>, TokenError> {
    let failed = || TokenError::Crypto { doing: "make an Ed25519 key" };
    let pair = Ed25519KeyPair::generate().map_err(|_| failed())?;
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().map_err(|_| failed())?;
    Ok(der.as_ref().to_vec())
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN PRIVATE KEY-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END PRIVATE KEY-----\n");
    out
}

#[cfg(test)]
mod tests {
    use fanlight_proto::claims::Role;
    use jsonwebtoken::jwk::JwkSet;

    use super::*;
    use crate::clock::unix_seconds;

    fn claims() -> JoinClaims {
        JoinClaims {
            iss: JOIN_ISSUER.to_owned(),
            aud: JOIN_AUDIENCE.to_owned(),
            jti: "j".to_owned(),
            sub: "v".parse().unwrap(),
            s: "s".parse().unwrap(),
            n: None,
            e: 1,
            r: Role::Observer,
            br: 0,
            exp: unix_seconds() + 60,
            ms: 0,
            multi: false,
        }
    }

    fn verify(key: &TokenKey, token: &str) -> Result<JoinClaims, String> {
        let jwks: JwkSet = serde_json::from_str(&key.jwks_json()).unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        let jwk = jwks.find(&header.kid.unwrap()).ok_or("unknown kid")?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[JOIN_AUDIENCE]);
        validation.set_issuer(&[JOIN_ISSUER]);
        let decoding = DecodingKey::from_jwk(jwk).unwrap();
        jsonwebtoken::decode::<JoinClaims>(token, &decoding, &validation)
            .map(|t| t.claims)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_minted_verifies_with_the_published_key() {
        let key = TokenKey::generate().unwrap();
        let token = key.mint(&claims()).unwrap();
        assert_eq!(verify(&key, &token).unwrap(), claims());
        let other = TokenKey::generate().unwrap();
        assert!(verify(&other, &token).is_err());
        assert_eq!((key.read(&token), other.read(&token)), (Some(claims()), None));
        let old = JoinClaims { exp: 1, ..claims() };
        assert_eq!(key.read(&key.mint(&old).unwrap()), Some(old), "whatever its time");
        let foreign = JoinClaims { aud: "someone".to_owned(), ..claims() };
        assert_eq!(key.read(&key.mint(&foreign).unwrap()), None);
    }

    #[test]
    fn the_key_file_is_private_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/token.pem");
        let first = TokenKey::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = TokenKey::load_or_create(&path).unwrap();
        assert_eq!(first.jwks_json(), again.jwks_json());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no staging file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(TokenKey::load_or_create(&path), Err(TokenError::Readable { .. })));
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token.pem");
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = TokenKey::load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("token.pem") && !error.contains("c2VjcmV0"), "{error}");
    }
}
