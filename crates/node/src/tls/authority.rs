//! The cluster's own certificate authority: made at the head's first start, kept beside its store.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use covey_domain::{Error, ErrorKind, NodeId};
use libp2p_identity::{PublicKey, ed25519};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

use sha2::{Digest as _, Sha256};

use super::{Certificate, HEAD_NAME, Pin, node_name, provider};
use crate::home;

/// How long a node's certificate is good; nodes fetch a new one at half of it.
pub const NODE_CERTIFICATE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a certificate of the head is good. It makes a new one at each start, and at half of it.
const HEAD_CERTIFICATE_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long the authority itself is good.
const AUTHORITY_TTL: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How often it is looked whether a certificate has to be renewed.
pub const RENEWAL_LOOK: Duration = Duration::from_secs(10);
/// Certificates are good from a little before now: clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// What a node signs to be enrolled: the key it wants a certificate for, bound to the token that it shows. Whoever holds a
/// token cannot enrol in the name of another's key.
pub fn enrolment(token: &str, public_key: &[u8]) -> Vec<u8> {
    let mut text = b"covey enrolment\n".to_vec();
    text.extend_from_slice(&Sha256::digest(token.as_bytes()));
    text.extend_from_slice(public_key);
    text
}

/// Issues certificates to the head and to nodes.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("pin", &self.pin()).finish_non_exhaustive()
    }
}

/// The public half of a node's identity.
struct NodeKey([u8; 32]);

impl PublicKeyData for NodeKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

fn params(name: &str, ttl: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + ttl);
    params
}

fn authority_params() -> CertificateParams {
    let mut params = params("Covey cluster authority", AUTHORITY_TTL);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// The authority kept in `folder` (`authority.pem`, `authority.key`), or a fresh one that is written there.
    pub fn load_or_create(folder: &Path) -> io::Result<Self> {
        let (pem, key_pem) = (folder.join("authority.pem"), folder.join("authority.key"));
        match fs::read_to_string(&key_pem) {
            Ok(text) => {
                let key = KeyPair::from_pem(&text).map_err(io::Error::other)?;
                let certificate = CertificateDer::from_pem_file(&pem).map_err(io::Error::other)?;
                Ok(Self { certificate, issuer: Issuer::new(authority_params(), key) })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(io::Error::other)?;
                let certificate = authority_params().self_signed(&key).map_err(io::Error::other)?;
                home::write_private(&pem, certificate.pem().as_bytes())?;
                home::write_private(&key_pem, key.serialize_pem().as_bytes())?;
                Ok(Self { certificate: certificate.der().clone(), issuer: Issuer::new(authority_params(), key) })
            }
            Err(error) => Err(error),
        }
    }

    /// What tokens carry of it.
    pub fn pin(&self) -> Pin {
        Pin::of(&self.certificate)
    }

    /// The authority's own certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// A fresh key and certificate for the head, for these host names and addresses too.
    fn for_head(&self, names: &[String]) -> Result<CertifiedKey, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to make the head's certificate: {e}"));
        let key = KeyPair::generate().map_err(|e| failed(&e))?;
        let all: Vec<String> = names.iter().cloned().chain([HEAD_NAME.to_owned()]).collect();
        let alternatives = CertificateParams::new(all).map_err(|e| failed(&e))?.subject_alt_names;
        let mut params = params("Covey head", HEAD_CERTIFICATE_TTL);
        params.subject_alt_names = alternatives;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).map_err(|e| failed(&e))?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let private = provider().key_provider.load_private_key(private).map_err(|e| failed(&e))?;
        Ok(CertifiedKey::new(vec![leaf.der().clone(), self.certificate.clone()], private))
    }

    /// A certificate (DER) for the owner of an Ed25519 key, 32 bytes, and the node id that the key stands for. `proof` is the
    /// key's signature of [`enrolment`] with the token that was shown.
    pub fn for_node(&self, token: &str, public_key: &[u8], proof: &[u8]) -> Result<(NodeId, Vec<u8>), Error> {
        let wrong = |e: &dyn std::fmt::Display| Error::invalid(format!("this is not an Ed25519 public key: {e}"));
        let key = ed25519::PublicKey::try_from_bytes(public_key).map_err(|e| wrong(&e))?;
        if is_weak(&key.to_bytes()) {
            return Err(Error::new(ErrorKind::PermissionDenied, "for this Ed25519 key anybody can sign"));
        }
        if !key.verify(&enrolment(token, public_key), proof) {
            let text = "the node did not prove to have the key that it wants a certificate for";
            return Err(Error::new(ErrorKind::PermissionDenied, text));
        }
        let raw = key.to_bytes();
        let node = NodeId::from(PublicKey::from(key).to_peer_id().to_string());
        let mut params = params("Covey node", NODE_CERTIFICATE_TTL);
        params.subject_alt_names =
            CertificateParams::new(vec![node_name(&node)]).map_err(|e| wrong(&e))?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params
            .signed_by(&NodeKey(raw), &self.issuer)
            .map_err(|e| Error::internal(format!("failed to sign a node's certificate: {e}")))?;
        Ok((node, leaf.der().to_vec()))
    }

    /// TLS of the head's port. Clients may show a certificate of this authority; whose it is, is for the routes to say.
    /// The certificate is renewed as long as a runtime runs.
    pub fn head_tls(self: &Arc<Self>, names: Vec<String>, site: Option<CertifiedKey>) -> Result<ServerConfig, Error> {
        let certificate = Arc::new(Certificate { site: site.map(Arc::new), ..Certificate::default() });
        certificate.set(self.for_head(&names)?);
        let (authority, kept) = (self.clone(), Arc::downgrade(&certificate));
        tokio::spawn(async move {
            let mut made = SystemTime::now();
            loop {
                tokio::time::sleep(RENEWAL_LOOK).await;
                let Some(kept) = kept.upgrade() else { return };
                // By the clock that the certificate names: a machine that slept, or was kept as a snapshot, wakes months later.
                if SystemTime::now().duration_since(made).is_ok_and(|age| age < HEAD_CERTIFICATE_TTL / 2) {
                    continue;
                }
                match authority.for_head(&names) {
                    Ok(fresh) => {
                        kept.set(fresh);
                        made = SystemTime::now();
                    }
                    Err(error) => tracing::error!(%error, "the head's certificate was not renewed"),
                }
            }
        });
        server_config(&self.certificate, certificate)
    }
}

/// Whether a key is of small order: some signature holds for it whatever was signed.
fn is_weak(key: &[u8; 32]) -> bool {
    ed25519_dalek::VerifyingKey::from_bytes(key).is_ok_and(|key| key.is_weak())
}

/// TLS of a node's port, for clients with and without a certificate of `authority`.
pub(crate) fn server_config(
    authority: &CertificateDer<'static>,
    certificate: Arc<Certificate>,
) -> Result<ServerConfig, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to set up TLS: {e}"));
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(|e| failed(&e))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| failed(&e))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(&e))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
