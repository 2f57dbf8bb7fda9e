//! From the keying material of a DTLS handshake to session keys (RFC 5764 4.2, RFC 3711 4.3,
//! RFC 7714 11). Not the handshake. Invariant: every copy of a key in here is wiped when dropped.

use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use zeroize::Zeroizing;

use super::SrtpError;
use super::cipher::Cipher;

/// How packets are protected. Order: what this software prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Profile {
    /// AES-256-GCM (RFC 7714), tag of 16 bytes.
    AeadAes256Gcm,
    /// AES-128-GCM (RFC 7714), tag of 16 bytes.
    AeadAes128Gcm,
    /// AES-128 counter mode and HMAC-SHA1 (RFC 3711), tag of 10 bytes.
    AesCm128HmacSha1_80,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 3] =
        [Self::AeadAes256Gcm, Self::AeadAes128Gcm, Self::AesCm128HmacSha1_80];

    /// Length of a master key, and of the session key of the cipher.
    pub const fn key_len(self) -> usize {
        match self {
            Self::AeadAes256Gcm => 32,
            Self::AeadAes128Gcm | Self::AesCm128HmacSha1_80 => 16,
        }
    }

    /// Length of a master salt, and of a session salt.
    pub const fn salt_len(self) -> usize {
        match self {
            Self::AeadAes256Gcm | Self::AeadAes128Gcm => 12,
            Self::AesCm128HmacSha1_80 => 14,
        }
    }

    /// Length of the authentication tag.
    pub const fn tag_len(self) -> usize {
        match self {
            Self::AeadAes256Gcm | Self::AeadAes128Gcm => 16,
            Self::AesCm128HmacSha1_80 => 10,
        }
    }

    /// Length of the material that a handshake exports: two keys and two salts.
    pub const fn material_len(self) -> usize {
        2 * (self.key_len() + self.salt_len())
    }
}

/// What a DTLS handshake agreed on. Wiped when dropped. Make the contexts of it once, then drop it:
/// a second [`RtpSealer`](super::RtpSealer) of the same keying would seal under the same nonces.
pub struct Keying {
    profile: Profile,
    material: Zeroizing<Vec<u8>>,
    active: bool,
}

impl Keying {
    /// Takes a copy of exported material: client key, server key, client salt, server salt. `active`:
    /// we are the DTLS client.
    pub fn new(profile: Profile, material: &[u8], active: bool) -> Result<Self, SrtpError> {
        let (need, have) = (profile.material_len(), material.len());
        if have != need {
            return Err(SrtpError::KeyingLength { need, have });
        }
        Ok(Self { profile, material: Zeroizing::new(material.to_vec()), active })
    }

    /// How packets are to be protected.
    pub const fn profile(&self) -> Profile {
        self.profile
    }

    /// Whether we are the DTLS client.
    pub const fn is_active(&self) -> bool {
        self.active
    }

    /// The half that protects what we send.
    pub(super) fn ours(&self) -> Master<'_> {
        self.half(self.active)
    }

    /// The half that protects what the peer sends.
    pub(super) fn theirs(&self) -> Master<'_> {
        self.half(!self.active)
    }

    fn half(&self, client: bool) -> Master<'_> {
        let (key_len, salt_len) = (self.profile.key_len(), self.profile.salt_len());
        let (keys, salts) = self.material.split_at(2 * key_len);
        let which = usize::from(!client);
        Master {
            profile: self.profile,
            key: &keys[which * key_len..][..key_len],
            salt: &salts[which * salt_len..][..salt_len],
        }
    }
}

impl std::fmt::Debug for Keying {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { profile, active, .. } = self;
        f.debug_struct("Keying").field("profile", profile).field("active", active).finish()
    }
}

/// Which protocol session keys are for: the first of its three labels (RFC 3711, 4.3.1 and 4.3.2).
#[derive(Clone, Copy, Debug)]
pub(super) enum Labels {
    Rtp = 0,
    Rtcp = 3,
}

/// One direction's master key and salt.
pub(super) struct Master<'a> {
    profile: Profile,
    key: &'a [u8],
    salt: &'a [u8],
}

impl Master<'_> {
    /// The session's cipher.
    pub(super) fn cipher(&self, labels: Labels) -> Result<Cipher, SrtpError> {
        let first = labels as u8;
        let mut key = Zeroizing::new([0; 32]);
        let key = &mut key[..self.profile.key_len()];
        self.generate(first, key)?;
        let mut salt = Zeroizing::new([0; 14]);
        let salt = &mut salt[..self.profile.salt_len()];
        self.generate(first + 2, salt)?;
        let mut mac = Zeroizing::new([0; 20]);
        if self.profile == Profile::AesCm128HmacSha1_80 {
            self.generate(first + 1, &mut mac[..])?;
        }
        Cipher::new(self.profile, key, salt, &mac)
    }

    /// The key stream of AES in counter mode from `(label * 2^48 xor salt) * 2^16` on
    /// (RFC 3711, 4.3.3); a shorter salt has zeros behind it (RFC 7714, 11).
    fn generate(&self, label: u8, out: &mut [u8]) -> Result<(), SrtpError> {
        let mut start = Zeroizing::new([0; 16]);
        start[..self.salt.len()].copy_from_slice(self.salt);
        start[7] ^= label;
        let algorithm = if self.key.len() == 32 { &AES_256 } else { &AES_128 };
        let key = UnboundCipherKey::new(algorithm, self.key).and_then(EncryptingKey::ctr);
        let key = key.map_err(|_| SrtpError::Library)?;
        out.fill(0);
        let context = EncryptionContext::Iv128(FixedLength::from(&*start));
        key.less_safe_encrypt(out, context).map_err(|_| SrtpError::Library)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(master: &Master<'_>, label: u8, len: usize) -> String {
        let mut out = vec![0xff; len];
        master.generate(label, &mut out).unwrap();
        hex::encode(out)
    }

    /// RFC 3711, appendix B.3.
    #[test]
    fn session_keys_of_the_rfc() {
        let key = hex::decode("e1f97a0d3e018be0d64fa32c06de4139").unwrap();
        let salt = hex::decode("0ec675ad498afeebb6960b3aabe6").unwrap();
        let master = Master { profile: Profile::AesCm128HmacSha1_80, key: &key, salt: &salt };
        assert_eq!(generated(&master, 0, 16), "c61e7a93744f39ee10734afe3ff7a087");
        assert_eq!(generated(&master, 2, 14), "30cbbc08863d8c85d49db34a9ae1");
        assert_eq!(
            generated(&master, 1, 94),
            "cebe321f6ff7716b6fd4ab49af256a156d38baa48f0a0acf3c34e2359e6cdbcee049646c43d9327ad175578ef\
             72270986371c10c9a369ac2f94a8c5fbcdddc256d6e919a48b610ef17c2041e474035766b68642c59bbfc2f34d\
             b60dbdfb2"
        );
    }

    #[test]
    fn each_end_sends_with_its_own_half() {
        let material: Vec<u8> = (0..88).collect();
        let client = Keying::new(Profile::AeadAes256Gcm, &material, true).unwrap();
        let server = Keying::new(Profile::AeadAes256Gcm, &material, false).unwrap();
        assert_eq!((client.ours().key[0], client.ours().salt[0]), (0, 64));
        assert_eq!((client.theirs().key[0], client.theirs().salt[0]), (32, 76));
        assert_eq!((server.ours().key[0], server.ours().salt[0]), (32, 76));
        assert_eq!((server.theirs().key[0], server.theirs().salt[0]), (0, 64));
        assert_eq!(client.theirs().salt.len(), 12);
    }

    #[test]
    fn material_of_another_length_is_refused() {
        for profile in Profile::ALL {
            let need = profile.material_len();
            assert!(matches!(need, 88 | 56 | 60));
            for have in [0, need - 1, need + 1] {
                let error = Keying::new(profile, &vec![0; have], true).unwrap_err();
                assert_eq!(error, SrtpError::KeyingLength { need, have });
            }
        }
    }

    #[test]
    fn keys_do_not_show_when_printed() {
        let keying = Keying::new(Profile::AeadAes128Gcm, &[0xab; 56], true).unwrap();
        assert_eq!(format!("{keying:?}"), "Keying { profile: AeadAes128Gcm, active: true }");
    }
}
