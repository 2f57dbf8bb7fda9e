//! The ciphers of the profiles over bytes that are laid out already. Not packet formats, no state
//! but keys. Invariant: opening writes nothing that did not authenticate; no branch and no index
//! depends on a key.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

use super::{Profile, SrtpError};

/// Length of the authentication tag of the AEAD profiles.
pub(super) const GCM_TAG_LEN: usize = 16;

/// Length of the authentication tag of the other profile.
pub(super) const CM_TAG_LEN: usize = 10;

/// One direction's session keys for RTP or for RTCP.
#[derive(Debug)]
pub(super) enum Cipher {
    Gcm(Gcm),
    /// Both its key schedules are kept by value in the library, 1.5 kB of them.
    Cm(Box<Cm>),
}

impl Cipher {
    /// Of session keys. `mac_key` is for the profile that has one.
    pub(super) fn new(
        profile: Profile,
        key: &[u8],
        salt: &[u8],
        mac_key: &[u8; 20],
    ) -> Result<Self, SrtpError> {
        let algorithm = match profile {
            Profile::AeadAes256Gcm => &AES_256_GCM,
            Profile::AeadAes128Gcm => &AES_128_GCM,
            Profile::AesCm128HmacSha1_80 => {
                return Ok(Self::Cm(Box::new(Cm::new(key, salt, mac_key)?)));
            }
        };
        let key = UnboundKey::new(algorithm, key).map_err(|_| SrtpError::Library)?;
        let salt = salt.try_into().map_err(|_| SrtpError::Library)?;
        Ok(Self::Gcm(Gcm { key: LessSafeKey::new(key), salt }))
    }

    /// Length of the tag.
    pub(super) const fn tag_len(&self) -> usize {
        match self {
            Self::Gcm(_) => GCM_TAG_LEN,
            Self::Cm(_) => CM_TAG_LEN,
        }
    }
}

/// AES in Galois/counter mode (RFC 7714).
pub(super) struct Gcm {
    key: LessSafeKey,
    salt: [u8; 12],
}

impl Gcm {
    /// RFC 7714, 8.1 and 9.1: two zeros, source, 48 bits of index, which are rollover counter and
    /// sequence number for RTP and zero-extended for RTCP.
    fn nonce(&self, ssrc: u32, index: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[2..6].copy_from_slice(&ssrc.to_be_bytes());
        nonce[6..].copy_from_slice(&index.to_be_bytes()[2..]);
        for (n, s) in nonce.iter_mut().zip(self.salt) {
            *n ^= s;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts `clear` into `body`, which is as long, and fills in the tag.
    pub(super) fn seal(
        &self,
        (ssrc, index): (u32, u64),
        aad: &[u8],
        clear: &[u8],
        body: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), SrtpError> {
        let nonce = self.nonce(ssrc, index);
        let sealed =
            self.key.seal_out_of_place_scatter(nonce, Aad::from(aad), clear, body, &[], tag);
        sealed.map_err(|_| SrtpError::Library)
    }

    /// Decrypts `body` into `clear`, which is as long.
    pub(super) fn open(
        &self,
        (ssrc, index): (u32, u64),
        aad: &[u8],
        body: &[u8],
        tag: &[u8],
        clear: &mut [u8],
    ) -> Result<(), SrtpError> {
        let nonce = self.nonce(ssrc, index);
        let opened = self.key.open_separate_gather(nonce, Aad::from(aad), body, tag, clear);
        opened.map_err(|_| SrtpError::Forged)
    }
}

/// AES in counter mode, and HMAC-SHA1 cut to 80 bits (RFC 3711).
pub(super) struct Cm {
    key: EncryptingKey,
    mac: hmac::Key,
    salt: [u8; 14],
}

impl Cm {
    fn new(key: &[u8], salt: &[u8], mac_key: &[u8; 20]) -> Result<Self, SrtpError> {
        let key = UnboundCipherKey::new(&AES_128, key).and_then(EncryptingKey::ctr);
        Ok(Self {
            key: key.map_err(|_| SrtpError::Library)?,
            mac: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, mac_key),
            salt: salt.try_into().map_err(|_| SrtpError::Library)?,
        })
    }

    /// Encrypts or decrypts in place. The counter's start (RFC 3711, 4.1.1): salt, source from
    /// byte 4 on, 48 bits of index from byte 8 on, then two zeros.
    pub(super) fn apply(
        &self,
        (ssrc, index): (u32, u64),
        body: &mut [u8],
    ) -> Result<(), SrtpError> {
        let mut start = [0; 16];
        start[4..8].copy_from_slice(&ssrc.to_be_bytes());
        start[8..14].copy_from_slice(&index.to_be_bytes()[2..]);
        for (n, s) in start.iter_mut().zip(self.salt) {
            *n ^= s;
        }
        let context = EncryptionContext::Iv128(FixedLength::from(&start));
        self.key.less_safe_encrypt(body, context).map_err(|_| SrtpError::Library)?;
        Ok(())
    }

    /// The tag over both pieces.
    pub(super) fn tag(&self, first: &[u8], second: &[u8]) -> [u8; CM_TAG_LEN] {
        let mut mac = hmac::Context::with_key(&self.mac);
        mac.update(first);
        mac.update(second);
        let mut tag = [0; CM_TAG_LEN];
        tag.copy_from_slice(&mac.sign().as_ref()[..CM_TAG_LEN]);
        tag
    }

    /// Whether that is the tag over both pieces; takes as long for any tag.
    pub(super) fn verify(&self, first: &[u8], second: &[u8], tag: &[u8]) -> Result<(), SrtpError> {
        verify_slices_are_equal(&self.tag(first, second), tag).map_err(|_| SrtpError::Forged)
    }
}

impl std::fmt::Debug for Cm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cm").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Gcm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gcm").finish_non_exhaustive()
    }
}
