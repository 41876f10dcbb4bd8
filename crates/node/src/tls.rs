//! Who is who on the wire: the cluster's own authority, certificates of nodes, and connections that check them.
//!
//! The head keeps an authority of its own. Tokens carry its fingerprint (a [`Pin`]), so whoever holds a token knows
//! the head from the first byte, without a public authority and without a file to copy. A worker's certificate is for
//! its identity key: the key behind its node id, which is its libp2p peer id too.

mod authority;
mod dial;
mod limits;
mod offences;
mod pin;
mod port;
mod stalled;
mod tunnel;

use std::{path::Path, sync::Arc};

use covey_domain::{Error, NodeId};
use parking_lot::Mutex;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

pub(crate) use authority::server_config;
pub use authority::{Authority, NODE_CERTIFICATE_TTL, RENEWAL_LOOK, enrolment};
pub use dial::{Tls, dial, dial_through};
pub use pin::{Pin, PinnedAddress};
pub use port::{CameFrom, Port, TlsPeer, serve, serve_stream};
pub use tunnel::{MeshEntry, MeshSource, Opening, Stream, Tunnel};

/// The name in the head's certificate that nodes and clients ask for, whatever address they dial.
const HEAD_NAME: &str = "head.covey.internal";

/// The name in a node's certificate.
fn node_name(node: &NodeId) -> String {
    format!("{node}.node.covey.internal")
}

impl TlsPeer {
    /// Whether it showed the certificate of this node.
    pub fn is_node(&self, node: &NodeId) -> bool {
        let (Some(shown), Ok(name)) = (&self.0, ServerName::try_from(node_name(node))) else { return false };
        webpki::EndEntityCert::try_from(shown).is_ok_and(|cert| cert.verify_is_valid_for_subject_name(&name).is_ok())
    }
}

/// The certificate and key of a site, PEM files, for whoever does not ask for the head by its cluster name: browsers and
/// clients that trust public authorities.
pub fn site(certificates: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let wrong = |path: &Path, e: &dyn std::fmt::Display| {
        Error::invalid(format!("failed to read `{}`: {e}", path.display())).hint("both files must be PEM")
    };
    let chain = CertificateDer::pem_file_iter(certificates)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(certificates, &e))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, &e))?;
    let private = provider().key_provider.load_private_key(private).map_err(|e| wrong(key, &e))?;
    let site = CertifiedKey::new(chain, private);
    site.keys_match().map_err(|e| wrong(key, &format!("it is not the key of the certificate: {e}")))?;
    Ok(site)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A key and its certificate, which may be renewed while connections use it.
#[derive(Default)]
pub struct Certificate {
    own: Mutex<Option<Arc<CertifiedKey>>>,
    /// For those who ask for another name than [`HEAD_NAME`].
    site: Option<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Takes the place of the one before, for new connections.
    pub fn set(&self, key: CertifiedKey) {
        *self.own.lock() = Some(Arc::new(key));
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match &self.site {
            Some(site) if hello.server_name() != Some(HEAD_NAME) => Some(site.clone()),
            _ => self.own.lock().clone(),
        }
    }
}

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.own.lock().clone()
    }

    fn has_certs(&self) -> bool {
        self.own.lock().is_some()
    }
}
