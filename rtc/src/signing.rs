//! Reads a certificate's private key once instead of for each association: reading one checks it,
//! by an elliptic curve multiplication, which is a twentieth of what a join costs a shard. Not an
//! implementation of signatures. Invariant: a kept key signs exactly as a fresh one of the same
//! bytes.

use std::sync::{Arc, Mutex, PoisonError};

use dimpl::CryptoError;
use dimpl::crypto::{
    Buf, CryptoProvider, HashAlgorithm, KeyProvider, SignatureAlgorithm, SigningKey, aws_lc_rs,
};

/// Keys that are kept: a process has one per shard. Further ones are read anew each time.
const KEYS_MAX: usize = 64;

/// The library's own provider, but for the reading of keys.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider { key_provider: &KEPT, ..aws_lc_rs::default_provider() }
}

static KEPT: Kept = Kept { keys: Mutex::new(Vec::new()) };

/// Keys by their encoding.
struct Kept {
    keys: Mutex<Vec<(Vec<u8>, SharedKey)>>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl KeyProvider for Kept {
    fn load_private_key(&self, der: &[u8]) -> Result<Box<dyn SigningKey>, CryptoError> {
        // Nothing in here panics while a lock is held, so a poisoned one is whole.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, key)) = keys.iter().find(|(of, _)| of == der) {
            return Ok(Box::new(key.clone()));
        }
        let key = aws_lc_rs::default_provider().key_provider.load_private_key(der)?;
        let key = SharedKey {
            algorithm: key.algorithm(),
            hash: key.hash_algorithm(),
            hashes: key.supported_hash_algorithms().into(),
            key: Arc::new(Mutex::new(key)),
        };
        if keys.len() < KEYS_MAX {
            keys.push((der.to_vec(), key.clone()));
        }
        Ok(Box::new(key))
    }
}

/// One key, for every association of its certificate. They are of one shard, so that nobody waits
/// for the lock.
#[derive(Clone, Debug)]
struct SharedKey {
    algorithm: SignatureAlgorithm,
    hash: HashAlgorithm,
    hashes: Arc<[HashAlgorithm]>,
    key: Arc<Mutex<Box<dyn SigningKey>>>,
}

impl SigningKey for SharedKey {
    fn sign(&mut self, data: &[u8], hash: HashAlgorithm, out: &mut Buf) -> Result<(), CryptoError> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).sign(data, hash, out)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    fn hash_algorithm(&self) -> HashAlgorithm {
        self.hash
    }

    fn supported_hash_algorithms(&self) -> &[HashAlgorithm] {
        &self.hashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept { keys: Mutex::default() }
    }

    fn private_key() -> Vec<u8> {
        let provider = str0m_aws_lc_rs::default_provider().dtls_provider;
        provider.generate_certificate().unwrap().private_key
    }

    #[test]
    fn a_kept_key_says_the_same_of_itself_as_a_fresh_one() {
        let (kept, der) = (kept(), private_key());
        let fresh = aws_lc_rs::default_provider().key_provider.load_private_key(&der).unwrap();
        for _ in 0..2 {
            let mut key = kept.load_private_key(&der).unwrap();
            assert_eq!(key.algorithm(), fresh.algorithm());
            assert_eq!(key.hash_algorithm(), fresh.hash_algorithm());
            assert_eq!(key.supported_hash_algorithms(), fresh.supported_hash_algorithms());
            let mut signature = Buf::new();
            key.sign(b"data", fresh.hash_algorithm(), &mut signature).unwrap();
            assert!(!signature.is_empty());
            assert!(key.sign(b"data", HashAlgorithm::SHA384, &mut signature).is_err());
        }
        assert_eq!(kept.keys.lock().unwrap().len(), 1);
    }

    #[test]
    fn few_are_kept_and_bytes_that_are_no_key_are_refused() {
        let kept = kept();
        assert!(kept.load_private_key(b"no key").is_err());
        assert!(kept.keys.lock().unwrap().is_empty());
        for _ in 0..KEYS_MAX + 3 {
            kept.load_private_key(&private_key()).unwrap();
        }
        assert_eq!(kept.keys.lock().unwrap().len(), KEYS_MAX);
    }
}
