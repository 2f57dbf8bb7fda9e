//! RSA keys of the AUTH exchange: make, load, save, sign a token, and Android's own format for the
//! public half.
//!
//! Not here: who sends which AUTH packet (`handshake`). A token is signed as if it were a SHA-1
//! digest, because that is how adbd checks it; it is never hashed.
//! Invariant: private key material appears in no `Debug` output and in no error.

use std::{
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rsa::{
    BigUint, Pkcs1v15Sign, RsaPrivateKey, RsaPublicKey,
    pkcs1::DecodeRsaPrivateKey as _,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding},
    rand_core::OsRng,
    traits::PublicKeyParts as _,
};

use crate::error::{AdbError, ProtocolError};

/// Bytes of the token in AUTH type 1.
pub const TOKEN_LEN: usize = 20;
/// Bytes of a signature, of the modulus, and of R squared.
const MODULUS_LEN: usize = 256;
/// Words of the modulus, the first field of Android's public key structure.
const MODULUS_WORDS: u32 = 64;
/// `RSAPublicKey` of Android's libcrypto_utils: words, n0inv, n, rr, e.
const ANDROID_KEY_LEN: usize = 4 + 4 + MODULUS_LEN + MODULUS_LEN + 4;
/// DER `DigestInfo` of SHA-1 in front of the 20 bytes.
const SHA1_PREFIX: [u8; 15] =
    [0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14];

fn padding() -> Pkcs1v15Sign {
    Pkcs1v15Sign { hash_len: Some(TOKEN_LEN), prefix: Box::new(SHA1_PREFIX) }
}

/// A host's private key with the name it shows to users of a device.
pub struct AdbKey {
    private: RsaPrivateKey,
    name: String,
}

impl fmt::Debug for AdbKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdbKey").field("name", &self.name).finish_non_exhaustive()
    }
}

impl AdbKey {
    /// A new RSA 2048 key. Takes some tenths of a second of CPU: call it off the async threads.
    pub fn generate(name: &str) -> Result<Self, AdbError> {
        let private = RsaPrivateKey::new(&mut OsRng, MODULUS_LEN * 8)
            .map_err(|error| key_error("generated", &error))?;
        Ok(Self { private, name: clean_name(name) })
    }

    /// Reads a PEM file as adb writes it (PKCS #8) or as older ones did (PKCS #1).
    pub fn load(path: &Path) -> Result<Self, AdbError> {
        let pem =
            std::fs::read_to_string(path).map_err(|error| key_error(path.display(), &error))?;
        Self::from_pem(&pem).map_err(|error| match error {
            AdbError::Key { what, .. } => key_error(path.display(), &what),
            other => other,
        })
    }

    /// Reads the PEM text of a private key.
    pub fn from_pem(pem: &str) -> Result<Self, AdbError> {
        let private = RsaPrivateKey::from_pkcs8_pem(pem)
            .or_else(|_| RsaPrivateKey::from_pkcs1_pem(pem))
            .map_err(|_| key_error("PEM", &"not an RSA private key in PKCS #8 or PKCS #1"))?;
        if private.size() != MODULUS_LEN {
            return Err(key_error("PEM", &"ADB takes RSA keys of 2048 bits only"));
        }
        Ok(Self { private, name: "fanlight".into() })
    }

    /// The private key as PKCS #8 PEM, as adb stores it.
    pub fn to_pem(&self) -> Result<String, AdbError> {
        match self.private.to_pkcs8_pem(LineEnding::LF) {
            Ok(pem) => Ok(pem.as_str().to_owned()),
            Err(error) => Err(key_error("PEM", &error)),
        }
    }

    /// Writes the private key (readable by its owner alone) and `<path>.pub` beside it.
    pub fn save(&self, path: &Path) -> Result<(), AdbError> {
        let failed = |error: std::io::Error| key_error(path.display(), &error);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        options
            .open(path)
            .and_then(|mut file| {
                let pem = self.to_pem().map_err(std::io::Error::other)?;
                file.write_all(pem.as_bytes())
            })
            .map_err(failed)?;
        let mut public = PathBuf::from(path).into_os_string();
        public.push(".pub");
        std::fs::write(public, self.public().to_line() + "\n").map_err(failed)
    }

    /// Where adb keeps the user's key: `~/.android/adbkey`.
    #[must_use]
    pub fn default_path() -> Option<PathBuf> {
        std::env::home_dir().map(|home| home.join(".android").join("adbkey"))
    }

    /// Loads the key, or makes and saves one when the file does not exist.
    pub fn load_or_create(path: &Path, name: &str) -> Result<Self, AdbError> {
        if path.exists() {
            return Self::load(path);
        }
        let key = Self::generate(name)?;
        key.save(path)?;
        Ok(key)
    }

    /// The name devices show, `user@host`.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.name = clean_name(name);
        self
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> AdbPublicKey {
        AdbPublicKey { key: self.private.to_public_key(), name: self.name.clone() }
    }

    /// The payload of AUTH type 2 for this token.
    pub fn sign(&self, token: &[u8]) -> Result<Vec<u8>, AdbError> {
        if token.len() != TOKEN_LEN {
            return Err(ProtocolError::BadAuth("the token is not 20 bytes").into());
        }
        self.private
            .sign_with_rng(&mut OsRng, padding(), token)
            .map_err(|error| key_error("signing", &error))
    }
}

/// A host's public key as a device stores it.
#[derive(Debug, Clone)]
pub struct AdbPublicKey {
    key: RsaPublicKey,
    name: String,
}

impl PartialEq for AdbPublicKey {
    /// Two keys are the same whatever name they came with.
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for AdbPublicKey {}

impl AdbPublicKey {
    /// The name the host gave itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` over `token` was made with the private half.
    #[must_use]
    pub fn verify(&self, token: &[u8], signature: &[u8]) -> bool {
        token.len() == TOKEN_LEN && self.key.verify(padding(), token, signature).is_ok()
    }

    /// One line of `adb_keys` or `adbkey.pub`: base64 of Android's structure, a space, the name.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("{} {}", BASE64.encode(self.to_android()), self.name)
    }

    /// The payload of AUTH type 3: the line with a trailing NUL, which adbd expects here.
    #[must_use]
    pub fn to_auth_payload(&self) -> Vec<u8> {
        let mut payload = self.to_line().into_bytes();
        payload.push(0);
        payload
    }

    /// Reads such a line or payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let bad = ProtocolError::BadAuth;
        let text = std::str::from_utf8(bytes).map_err(|_| bad("public key is not UTF-8"))?;
        let text = text.trim_end_matches(['\0', '\n', '\r']);
        let (encoded, name) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        let raw = BASE64.decode(encoded).map_err(|_| bad("public key is not base64"))?;
        let raw: &[u8; ANDROID_KEY_LEN] =
            raw.as_slice().try_into().map_err(|_| bad("public key has the wrong length"))?;
        Ok(Self { key: from_android(raw)?, name: clean_name(name) })
    }

    fn to_android(&self) -> Vec<u8> {
        let n = self.key.n();
        let word = BigUint::from(1u64 << 32);
        let low = (n % &word).to_bytes_le();
        let n0inv = word_of(&low).map_or(0, |low| inverse_mod_2_32(low).wrapping_neg());
        let rr = (BigUint::from(1u8) << (MODULUS_LEN * 8 * 2)) % n;
        let e = word_of(&self.key.e().to_bytes_le()).unwrap_or_default();
        let mut raw = Vec::with_capacity(ANDROID_KEY_LEN);
        raw.extend_from_slice(&MODULUS_WORDS.to_le_bytes());
        raw.extend_from_slice(&n0inv.to_le_bytes());
        extend_padded(&mut raw, &n.to_bytes_le());
        extend_padded(&mut raw, &rr.to_bytes_le());
        raw.extend_from_slice(&e.to_le_bytes());
        raw
    }
}

/// Reads Android's structure; the derived fields n0inv and rr are ignored.
fn from_android(raw: &[u8; ANDROID_KEY_LEN]) -> Result<RsaPublicKey, ProtocolError> {
    let bad = ProtocolError::BadAuth;
    if word_of(&raw[..4]) != Some(MODULUS_WORDS) {
        return Err(bad("public key is not RSA 2048"));
    }
    let n = BigUint::from_bytes_le(&raw[8..8 + MODULUS_LEN]);
    let e = BigUint::from_bytes_le(&raw[ANDROID_KEY_LEN - 4..]);
    RsaPublicKey::new(n, e).map_err(|_| bad("public key is not a usable RSA key"))
}

fn word_of(bytes: &[u8]) -> Option<u32> {
    let mut word = [0u8; 4];
    if bytes.len() > 4 {
        return None;
    }
    word[..bytes.len()].copy_from_slice(bytes);
    Some(u32::from_le_bytes(word))
}

/// Inverse of an odd number modulo 2^32; each Newton step doubles the correct low bits (3 → 48).
fn inverse_mod_2_32(odd: u32) -> u32 {
    (0..4).fold(odd, |x, _| x.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(x))))
}

fn extend_padded(out: &mut Vec<u8>, little_endian: &[u8]) {
    out.extend_from_slice(little_endian);
    out.resize(out.len() + MODULUS_LEN.saturating_sub(little_endian.len()), 0);
}

/// Names are shown to people and stored in line-based files.
fn clean_name(name: &str) -> String {
    const NAME_CHARS_MAX: usize = 80;
    name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

fn key_error(path: impl fmt::Display, what: &dyn fmt::Display) -> AdbError {
    AdbError::Key { path: path.to_string(), what: what.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    /// One key for all tests of this file: making one is slow without optimisation.
    fn key() -> &'static AdbKey {
        static KEY: OnceLock<AdbKey> = OnceLock::new();
        KEY.get_or_init(|| AdbKey::generate("tester@here").unwrap())
    }

    #[test]
    fn a_signature_verifies_under_its_key_and_token_only() {
        let token = [7; TOKEN_LEN];
        let signature = key().sign(&token).unwrap();
        let public = key().public();
        assert_eq!(signature.len(), MODULUS_LEN);
        assert!(public.verify(&token, &signature));
        assert!(!public.verify(&[8; TOKEN_LEN], &signature));
        assert!(!public.verify(&token, &signature[1..]));
        assert!(!public.verify(&token[1..], &signature));
        assert!(key().sign(&token[1..]).is_err());
    }

    #[test]
    fn the_android_form_survives_a_round_trip_and_its_derived_words_are_right() {
        let public = key().public();
        let read = AdbPublicKey::parse(&public.to_auth_payload()).unwrap();
        assert_eq!(read, public);
        assert_eq!(read.name(), "tester@here");
        let raw = public.to_android();
        let n0 = word_of(&raw[8..12]).unwrap();
        let n0inv = word_of(&raw[4..8]).unwrap();
        assert_eq!(n0.wrapping_mul(n0inv), u32::MAX, "n0inv is -1/n modulo 2^32");
        assert_eq!(raw.len(), ANDROID_KEY_LEN);
    }

    #[test]
    fn files_are_written_like_adbs_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".android").join("adbkey");
        key().save(&path).unwrap();
        let pem = std::fs::read_to_string(&path).unwrap();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"));
        let loaded = AdbKey::load(&path).unwrap();
        assert_eq!(loaded.public(), key().public());
        let line = std::fs::read(path.with_extension("pub")).unwrap();
        assert_eq!(AdbPublicKey::parse(&line).unwrap(), key().public());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn noise_is_not_a_key() {
        for bad in [&b""[..], b"\0", b"AAAA me", b"!!!! me", b"\xff"] {
            assert!(AdbPublicKey::parse(bad).is_err());
        }
        let zeros = BASE64.encode([0u8; ANDROID_KEY_LEN]);
        assert!(AdbPublicKey::parse(zeros.as_bytes()).is_err());
        assert!(AdbKey::from_pem("-----BEGIN PRIVATE KEY-----").is_err());
    }

    #[test]
    fn debug_output_has_no_key_material() {
        assert_eq!(format!("{:?}", key()), r#"AdbKey { name: "tester@here", .. }"#);
    }
}
