//! The library with the outcome of its handshakes overruled: its preference of profiles is fixed, and
//! all three are to be tried.

use std::time::Instant;

use fanlight_rtc::srtp::Profile;
use str0m::crypto::CryptoError;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, KeyingMaterial,
    ProtocolVersion, SrtpProfile,
};

/// Overrules the outcome of handshakes: the profile, and keys that both ends know.
#[derive(Debug)]
pub(crate) struct Forced(pub(crate) SrtpProfile);

#[derive(Debug)]
struct ForcedInstance {
    inner: Box<dyn DtlsInstance>,
    profile: SrtpProfile,
}

pub(crate) fn forced_material(profile: SrtpProfile) -> Vec<u8> {
    (0..profile.keying_material_len()).map(|i| (i * 37 % 256) as u8).collect()
}

impl DtlsProvider for Forced {
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
        let library = str0m_aws_lc_rs::default_provider();
        let inner = library.dtls_provider.new_dtls(certificate, now, version, mtu)?;
        Ok(Box::new(ForcedInstance { inner, profile: self.0 }))
    }
}

impl DtlsInstance for ForcedInstance {
    fn set_active(&mut self, active: bool) {
        self.inner.set_active(active);
    }
    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.inner.handle_packet(packet)
    }
    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        match self.inner.poll_output(buf) {
            DtlsOutput::KeyingMaterial(..) => {
                let material = KeyingMaterial::new(&forced_material(self.profile));
                DtlsOutput::KeyingMaterial(material, self.profile)
            }
            other => other,
        }
    }
    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.inner.handle_timeout(now)
    }
    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.inner.send_application_data(data)
    }
    fn is_active(&self) -> bool {
        self.inner.is_active()
    }
    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.inner.protocol_version()
    }
    fn is_closing(&self) -> bool {
        self.inner.is_closing()
    }
    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }
    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.inner.close()
    }
}

pub(crate) static FORCED: [(Profile, Forced); 3] = [
    (Profile::AeadAes256Gcm, Forced(SrtpProfile::AEAD_AES_256_GCM)),
    (Profile::AeadAes128Gcm, Forced(SrtpProfile::AEAD_AES_128_GCM)),
    (Profile::AesCm128HmacSha1_80, Forced(SrtpProfile::AES128_CM_SHA1_80)),
];
