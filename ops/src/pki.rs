//! The private certificate authority of a fleet and the identities of its nodes, as mTLS
//! configurations. Not for viewers (DTLS) nor for backends. Invariant: a peer is who its SPIFFE id
//! says, and only certificates of our own CA are ever trusted: no system roots.
//!
//! Every node certificate carries the URI `spiffe://fanlight/node/{node}`, the DNS name
//! `{node}.node.fanlight` where the node id can stand in one, and the DNS name [`SERVER_NAME`],
//! which clients connect to when they check the id afterwards with [`peer_node`]. Replicas of the
//! control API also carry [`CONTROL_SERVER_NAME`], so that no other node can pose as one.

use std::{
    fmt, fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use fanlight_proto::id::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// DNS name on every node's certificate.
pub const SERVER_NAME: &str = "node.fanlight";

/// DNS name that only replicas of the control API carry besides.
pub const CONTROL_SERVER_NAME: &str = "control.fanlight";

/// What stands in front of the node id in the URI.
const SPIFFE_NODE: &str = "spiffe://fanlight/node/";

/// A fleet's CA outlives its nodes' certificates many times over.
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A year: renewed by issuing again, long before.
const NODE_VALIDITY: Duration = Duration::from_secs(365 * 86_400);

/// Certificates begin to be valid an hour before they were made, for hosts with a slow clock.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Why certificates could not be made, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The file system said no. The operator's to mend (path, permission).
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot {doing}: {source}")]
    Make {
        /// What was attempted.
        doing: &'static str,
        /// What the library said.
        source: rcgen::Error,
    },
    /// A file does not hold what it should. The operator's to mend.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// Which certificate or key; a path when there is one. Never its content.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The TLS library refused the certificates.
    #[error("TLS set-up failed: {0}")]
    Tls(#[from] rustls::Error),
}

fn unusable(what: impl Into<String>, why: impl fmt::Display) -> PkiError {
    PkiError::Unusable { what: what.into(), why: why.to_string() }
}

fn make(doing: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Make { doing, source }
}

/// The crypto library that every TLS configuration of ours names explicitly.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The certificate authority.
pub struct Ca {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
    key_pem: String,
}

/// A certificate and its key as PEM, with the CA that signed it.
#[derive(Clone)]
pub struct NodeCert {
    /// The node's certificate.
    pub cert_pem: String,
    /// Its private key (PKCS#8). Secret.
    pub key_pem: String,
    /// The CA's certificate.
    pub ca_pem: String,
}

impl Ca {
    /// Makes a new CA in memory.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make("make a CA key"))?;
        let mut params = params(CA_VALIDITY, "Fanlight fleet CA");
        // No intermediate below it: it signs nodes and nothing else.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(make("sign the CA certificate"))?;
        Self::from_pem(&cert.pem(), &key.serialize_pem())
    }

    /// Reads a CA from its PEM texts.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(|e| unusable("the CA key", e))?;
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| unusable("the CA certificate", e))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|e| unusable("the CA certificate", e))?;
        if !parsed.is_ca() {
            return Err(unusable("the CA certificate", "it is not a CA's"));
        }
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(unusable("the CA key", "it does not belong to the CA certificate"));
        }
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key)
            .map_err(|e| unusable("the CA certificate", e))?;
        Ok(Self { cert_pem: cert_pem.to_owned(), issuer, key_pem: key_pem.to_owned() })
    }

    /// Reads `ca.pem` and `ca.key` of a folder, or makes both there. The key is readable by its
    /// owner alone. Of two processes that start at once in an empty folder, one makes the CA and
    /// the other reads it.
    pub fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        if key.exists() {
            return Self::from_pem(&read(&cert)?, &read(&key)?);
        }
        if cert.exists() {
            return Err(unusable(cert.display().to_string(), "its key ca.key is not beside it"));
        }
        make_dir(dir)?;
        let ca = Self::generate()?;
        let staged = dir.join(format!(".ca.{}", std::process::id()));
        write_file(&staged, &ca.key_pem, 0o600)?;
        // A hard link fails if the name exists: the one atomic "create with content".
        let linked = fs::hard_link(&staged, &key);
        // A leftover staging file holds a key that signed nothing; failing to remove it is harmless.
        let _ = fs::remove_file(&staged);
        match linked {
            Ok(()) => {
                write_file(&cert, &ca.cert_pem, 0o644)?;
                tracing::info!(dir = %dir.display(), "made a new node CA");
                Ok(ca)
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                Self::from_pem(&read(&cert)?, &read(&key)?)
            }
            Err(source) => Err(PkiError::File { doing: "create", path: key, source }),
        }
    }

    /// The CA's certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Signs a certificate for a node. `sans` are further DNS names or IP addresses.
    pub fn issue_node(&self, node: &NodeId, sans: &[String]) -> Result<NodeCert, PkiError> {
        let mut params = params(NODE_VALIDITY, node.as_str());
        params.subject_alt_names.push(SanType::URI(
            format!("{SPIFFE_NODE}{node}").try_into().map_err(make("write the SPIFFE id"))?,
        ));
        let mut names = vec![SERVER_NAME.to_owned()];
        if dns_label(node.as_str()) {
            names.push(format!("{node}.{SERVER_NAME}"));
        }
        names.extend(sans.iter().cloned());
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.try_into().map_err(make("write a DNS name"))?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make("make a node key"))?;
        let cert = params.signed_by(&key, &self.issuer).map_err(make("sign a node certificate"))?;
        Ok(NodeCert {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
            ca_pem: self.cert_pem.clone(),
        })
    }

    /// Signs a certificate for a replica of the control API: a node's, and [`CONTROL_SERVER_NAME`].
    pub fn issue_control(&self, replica: &NodeId, sans: &[String]) -> Result<NodeCert, PkiError> {
        let mut sans = sans.to_vec();
        sans.push(CONTROL_SERVER_NAME.to_owned());
        self.issue_node(replica, &sans)
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

impl fmt::Debug for NodeCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCert").finish_non_exhaustive()
    }
}

fn params(validity: Duration, common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + validity).into();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params
}

/// Whether a node id can be one label of a DNS name.
fn dns_label(id: &str) -> bool {
    id.len() <= 63
        && !id.starts_with('-')
        && !id.ends_with('-')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File {
        doing: "read",
        path: path.to_owned(),
        source,
    })
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| PkiError::File {
        doing: "create",
        path: dir.to_owned(),
        source,
    })
}

fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| PkiError::File { doing: "write", path: path.to_owned(), source })
}

impl NodeCert {
    /// Writes `node.pem`, `node.key` (owner alone) and `ca.pem` into a folder.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        make_dir(dir)?;
        write_file(&dir.join("node.key"), &self.key_pem, 0o600)?;
        write_file(&dir.join("node.pem"), &self.cert_pem, 0o644)?;
        write_file(&dir.join("ca.pem"), &self.ca_pem, 0o644)
    }
}

/// A node's own certificate and key, checked, with the CA it trusts. Cheap to clone.
#[derive(Clone)]
pub struct NodeIdentity {
    inner: Arc<IdentityInner>,
}

struct IdentityInner {
    node: NodeId,
    pem: NodeCert,
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl NodeIdentity {
    /// Reads `node.pem`, `node.key` and `ca.pem` of a folder.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        Self::load_files(&dir.join("node.pem"), &dir.join("node.key"), &dir.join("ca.pem"))
    }

    /// Reads the three files.
    pub fn load_files(cert: &Path, key: &Path, ca: &Path) -> Result<Self, PkiError> {
        let pem = NodeCert { cert_pem: read(cert)?, key_pem: read(key)?, ca_pem: read(ca)? };
        Self::from_pem(pem).map_err(|e| match e {
            PkiError::Unusable { what, why } => {
                PkiError::Unusable { what: format!("{what} ({})", cert.display()), why }
            }
            other => other,
        })
    }

    /// Checks the three texts: the certificate names a node, is valid now, is signed by the CA,
    /// and belongs to the key.
    pub fn from_pem(pem: NodeCert) -> Result<Self, PkiError> {
        let what = "the node certificate";
        let cert = CertificateDer::from_pem_slice(pem.cert_pem.as_bytes())
            .map_err(|e| unusable(what, e))?;
        let key = PrivateKeyDer::from_pem_slice(pem.key_pem.as_bytes())
            .map_err(|e| unusable("the node key", e))?;
        let ca = CertificateDer::from_pem_slice(pem.ca_pem.as_bytes())
            .map_err(|e| unusable("the CA certificate", e))?;
        let node = peer_node(&cert).ok_or_else(|| unusable(what, "it names no node"))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca).map_err(|e| unusable("the CA certificate", e))?;
        let roots = Arc::new(roots);
        check_own(&cert, &roots)?;
        let inner = IdentityInner { node, pem, cert, key, roots };
        let this = Self { inner: Arc::new(inner) };
        // Building a configuration is what finds a key of another certificate.
        client_config_mtls(&this, &[])?;
        Ok(this)
    }

    /// The node it names.
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// The certificate.
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.inner.cert
    }

    /// SHA-256 of the certificate, as `NodeAddresses.quic_cert_sha256` carries it.
    pub fn cert_sha256(&self) -> [u8; 32] {
        cert_sha256(&self.inner.cert)
    }

    /// The PEM texts, for libraries that want them. The key in it is secret.
    pub fn pem(&self) -> &NodeCert {
        &self.inner.pem
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeIdentity").field(&self.inner.node).finish()
    }
}

/// Checks our own certificate as a peer will: dates, signature, purpose, and [`SERVER_NAME`].
fn check_own(cert: &CertificateDer<'_>, roots: &Arc<RootCertStore>) -> Result<(), PkiError> {
    let what = "the node certificate";
    let (_, parsed) = X509Certificate::from_der(cert).map_err(|e| unusable(what, e))?;
    let validity = parsed.validity();
    if !validity.is_valid() {
        let (from, to) = (validity.not_before, validity.not_after);
        return Err(unusable(what, format!("it is valid from {from} to {to} only")));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .map_err(|e| unusable("the CA certificate", e))?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|e| unusable(what, e))?;
    match verifier.verify_server_cert(cert, &[], &name, &[], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => Err(unusable(what, "another CA signed it")),
        Err(e) => Err(unusable(what, e)),
    }
}

/// TLS 1.3 server configuration that asks for and checks a client certificate of our CA.
pub fn server_config_mtls(
    identity: &NodeIdentity,
    alpn: &[&[u8]],
) -> Result<ServerConfig, PkiError> {
    let id = &identity.inner;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&id.roots), provider())
        .build()
        .map_err(|e| unusable("the CA certificate", e))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![id.cert.clone()], id.key.clone_key())?;
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    Ok(config)
}

/// TLS 1.3 client configuration that shows the node's certificate. Connect to [`SERVER_NAME`] and
/// check [`peer_node`] afterwards.
pub fn client_config_mtls(
    identity: &NodeIdentity,
    alpn: &[&[u8]],
) -> Result<ClientConfig, PkiError> {
    let id = &identity.inner;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(&id.roots))
        .with_client_auth_cert(vec![id.cert.clone()], id.key.clone_key())?;
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    Ok(config)
}

/// Node that a certificate names: its one SPIFFE URI. `None` for none, several, or another form.
/// Says nothing about trust: the TLS handshake has to have checked the certificate.
pub fn peer_node(cert: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let sans = cert.subject_alternative_name().ok()??;
    let mut uris = sans.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let node = NodeId::parse(uris.next()?.strip_prefix(SPIFFE_NODE)?).ok()?;
    uris.next().is_none().then_some(node)
}

/// SHA-256 of a certificate.
pub fn cert_sha256(cert: &CertificateDer<'_>) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, cert);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
