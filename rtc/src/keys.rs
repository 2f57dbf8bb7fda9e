//! A tap on the protocol library's DTLS: it hands us the keys of an association, and gives the
//! library random ones in their place. Not a DTLS implementation, and no judgement of the peer:
//! keys may be here before its certificate was compared, so nothing is sent under them before the
//! library says that it is connected. Invariant: a slot gives keys out once, and with
//! [`Decoy::Yes`] no other sender has them. Our copy is wiped when it is dropped; the library frees
//! its own without wiping.
//!
//! Also here, since it replaces the same provider: one DTLS configuration for all associations of
//! an MTU. The library makes one for each association, whose self-tests are most of a join's cost.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use str0m::config::CryptoProvider;
use str0m::crypto::CryptoError;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, KeyingMaterial,
    ProtocolVersion, SrtpProfile,
};

use crate::signing;
use crate::srtp::{Keying, Profile};

/// Configurations that are kept, one for each MTU. Those of further MTUs are made anew each time.
const MAX_CONFIGS: usize = 8;

/// The provider to build every `Rtc` with (`RtcConfig::set_crypto_provider`). One for the process.
pub fn crypto() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let library = str0m_aws_lc_rs::default_provider();
        Arc::new(CryptoProvider { dtls_provider: &TapProvider, ..library })
    };
    Arc::clone(PROVIDER.get_or_init(make))
}

/// What the protocol library is given in place of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoy {
    /// Random bytes of the same length: whatever RTP or RTCP it still sends or takes, it does not
    /// do so under the keys of the association.
    Yes,
    /// The keys themselves, which we have too. Only for who sends nothing under them on one of
    /// the two sides: two senders under one key give it away.
    No,
}

/// Where the keys of one association arrive. Clones are the same slot.
#[derive(Clone, Debug)]
pub struct KeySlot {
    decoy: Decoy,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
enum State {
    Waiting,
    Here(Keying),
    /// They were given out, or were unusable. Whatever comes later is not taken: contexts made
    /// twice would restart their indices under the same keys.
    Done,
}

impl KeySlot {
    /// An empty slot.
    pub fn new(decoy: Decoy) -> Self {
        Self { decoy, state: Arc::new(Mutex::new(State::Waiting)) }
    }

    /// The keys, once, after the handshake delivered them.
    pub fn take(&self) -> Option<Keying> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Done) {
            State::Here(keying) => Some(keying),
            before => {
                *state = before;
                None
            }
        }
    }

    fn put(&self, keying: Option<Keying>) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Waiting) {
            *state = keying.map_or(State::Done, State::Here);
        }
    }
}

/// Nothing in here panics while a lock is held, so a poisoned one is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static NEXT: RefCell<Option<KeySlot>> = const { RefCell::new(None) };
}

/// Runs `build`, in which one `Rtc` is built on this thread with the provider of [`crypto`]: its
/// keys will arrive in the slot. A second one built in there has none.
pub fn with_slot<T>(slot: &KeySlot, build: impl FnOnce() -> T) -> T {
    /// Puts back what was there, also when `build` panics.
    struct Restore(Option<KeySlot>);
    impl Drop for Restore {
        fn drop(&mut self) {
            NEXT.set(self.0.take());
        }
    }
    let _restore = Restore(NEXT.replace(Some(slot.clone())));
    build()
}

#[derive(Debug)]
struct TapProvider;

impl DtlsProvider for TapProvider {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        str0m_aws_lc_rs::default_provider().dtls_provider.generate_certificate()
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let slot = NEXT.take();
        let (config, certificate) = (config(mtu)?, certificate.clone());
        let dtls = match version {
            DtlsVersion::Dtls12 => dimpl::Dtls::new_12(config, certificate, now),
            DtlsVersion::Dtls13 => dimpl::Dtls::new_13(config, certificate, now),
            DtlsVersion::Auto => dimpl::Dtls::new_auto(config, certificate, now),
            other => return Err(CryptoError::Other(format!("unknown DTLS version {other}"))),
        };
        Ok(Box::new(Tap { dtls, slot }))
    }
}

/// The configuration of that MTU, made as the library would make it.
fn config(mtu: Option<usize>) -> Result<Arc<dimpl::Config>, CryptoError> {
    type Configs = Vec<(Option<usize>, Arc<dimpl::Config>)>;
    static CONFIGS: Mutex<Configs> = Mutex::new(Vec::new());
    let mut configs = lock(&CONFIGS);
    if let Some((_, config)) = configs.iter().find(|(of, _)| *of == mtu) {
        return Ok(Arc::clone(config));
    }
    // ICE has verified the peer's address before, so a cookie adds nothing.
    let mut builder =
        dimpl::Config::builder().with_crypto_provider(signing::provider()).use_server_cookie(false);
    if let Some(mtu) = mtu {
        builder = builder.mtu(mtu);
    }
    let config = builder.build().map_err(|e| CryptoError::Other(format!("DTLS set-up: {e}")))?;
    let config = Arc::new(config);
    if configs.len() < MAX_CONFIGS {
        configs.push((mtu, Arc::clone(&config)));
    }
    Ok(config)
}

/// One association.
struct Tap {
    dtls: dimpl::Dtls,
    slot: Option<KeySlot>,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl DtlsInstance for Tap {
    fn set_active(&mut self, active: bool) {
        self.dtls.set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.dtls.handle_packet(packet)
    }

    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        match (self.dtls.poll_output(buf), &self.slot) {
            (DtlsOutput::KeyingMaterial(material, profile), Some(slot)) => {
                slot.put(keying(profile, &material, self.dtls.is_active()));
                match slot.decoy {
                    Decoy::Yes => DtlsOutput::KeyingMaterial(decoy(material.len()), profile),
                    Decoy::No => DtlsOutput::KeyingMaterial(material, profile),
                }
            }
            (output, _) => output,
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.dtls.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.dtls.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.dtls.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.dtls.protocol_version()
    }

    // The trait's own answers to the next two are "no", with which a close would never end.

    fn is_closing(&self) -> bool {
        self.dtls.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.dtls.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.dtls.close()
    }
}

/// `None` for a profile that we do not know.
fn keying(profile: SrtpProfile, material: &[u8], active: bool) -> Option<Keying> {
    let profile = match profile {
        SrtpProfile::AEAD_AES_256_GCM => Profile::AeadAes256Gcm,
        SrtpProfile::AEAD_AES_128_GCM => Profile::AeadAes128Gcm,
        SrtpProfile::AES128_CM_SHA1_80 => Profile::AesCm128HmacSha1_80,
        _ => return None,
    };
    Keying::new(profile, material, active).ok()
}

fn decoy(len: usize) -> KeyingMaterial {
    let mut bytes = vec![0; len];
    // Should there be no random bytes, then zeros serve: they are not the keys either.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    KeyingMaterial::new(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_keying() -> Option<Keying> {
        keying(SrtpProfile::AEAD_AES_128_GCM, &[7; 56], true)
    }

    #[test]
    fn keys_that_come_again_are_not_given_out_again() {
        let slot = KeySlot::new(Decoy::Yes);
        assert!(slot.take().is_none());
        slot.put(some_keying());
        slot.put(keying(SrtpProfile::AEAD_AES_256_GCM, &[8; 88], true));
        assert_eq!(slot.take().map(|k| k.profile()), Some(Profile::AeadAes128Gcm));
        slot.put(some_keying());
        assert!(slot.take().is_none());
    }

    #[test]
    fn unusable_keys_are_the_end_of_it() {
        let slot = KeySlot::new(Decoy::Yes);
        slot.put(keying(SrtpProfile::AEAD_AES_128_GCM, &[7; 55], true));
        slot.put(some_keying());
        assert!(slot.take().is_none());
    }

    #[test]
    fn a_slot_and_what_is_in_it_do_not_show_keys_when_printed() {
        let slot = KeySlot::new(Decoy::Yes);
        slot.put(some_keying());
        let shown = format!("{slot:?}");
        assert!(shown.contains("Keying { profile: AeadAes128Gcm, active: true }"), "{shown}");
        assert!(!shown.contains("7, 7"), "{shown}");
    }

    #[test]
    fn a_decoy_is_random_and_as_long() {
        let (one, two) = (decoy(88), decoy(88));
        assert_eq!((one.len(), two.len()), (88, 88));
        assert!(one[..] != two[..] && one[..] != [0; 88]);
    }

    #[test]
    fn one_configuration_serves_an_mtu_and_few_are_kept() {
        let made: Vec<_> = (0..12).map(|i| config(Some(1_200 + i)).unwrap()).collect();
        let again = config(Some(1_200)).unwrap();
        assert!(Arc::ptr_eq(&made[0], &again));
        assert_eq!((again.mtu(), again.use_server_cookie()), (1_200, false));
        let last = config(Some(1_211)).unwrap();
        assert_eq!(last.mtu(), 1_211);
        assert!(!Arc::ptr_eq(&made[11], &last), "past the bound it is made anew");
    }

    #[test]
    fn there_is_one_provider() {
        assert!(Arc::ptr_eq(&crypto(), &crypto()));
    }

    fn instance(active: bool, now: Instant) -> Box<dyn DtlsInstance> {
        let certificate = TapProvider.generate_certificate().unwrap();
        let mut dtls =
            TapProvider.new_dtls(&certificate, now, DtlsVersion::Dtls12, Some(1_150)).unwrap();
        dtls.set_active(active);
        dtls.handle_timeout(now).unwrap();
        dtls
    }

    /// Hands packets over until there are none; whether `from` says that it is connected.
    fn hand_over(from: &mut dyn DtlsInstance, to: &mut dyn DtlsInstance) -> bool {
        let (mut buf, mut connected) = (vec![0; 2_000], false);
        loop {
            match from.poll_output(&mut buf) {
                DtlsOutput::Packet(packet) => to.handle_packet(packet).unwrap(),
                DtlsOutput::Connected => connected = true,
                DtlsOutput::Timeout(_) => return connected,
                _ => {}
            }
        }
    }

    #[test]
    fn the_tap_tells_the_state_of_a_close() {
        let now = Instant::now();
        let (mut client, mut server) = (instance(true, now), instance(false, now));
        assert!(client.is_active() && !server.is_active());
        let (mut first, mut second) = (false, false);
        for _ in 0..20 {
            first |= hand_over(&mut *client, &mut *server);
            second |= hand_over(&mut *server, &mut *client);
        }
        assert!(first && second);
        assert_eq!(server.protocol_version(), Some(ProtocolVersion::DTLS1_2));
        assert_eq!(client.send_application_data(b"hello").unwrap(), 5);
        assert!(!server.is_closing() && !server.is_closed());
        server.close().unwrap();
        assert!(server.is_closing() && !server.is_closed(), "its alert is not sent yet");
        hand_over(&mut *server, &mut *client);
        assert!(server.is_closed());
    }
}
