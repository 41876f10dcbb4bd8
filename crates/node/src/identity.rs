//! One Ed25519 key is a node's identity: its [`NodeId`] is the libp2p peer id of that key, and its certificate is for
//! that key, so the node keeps its name in both worlds.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, OnceLock},
};

use covey_domain::{Error, NodeId};
use libp2p_identity::Keypair;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use crate::{home, tls};

/// What comes before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A node's key, and its certificate once it has one.
pub struct Identity {
    key: Keypair,
    pub(crate) certificate: Arc<tls::Certificate>,
    authority: OnceLock<CertificateDer<'static>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("node", &self.node()).finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity kept in `path`, or a fresh one that is written there.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let key = match fs::read(path) {
            Ok(body) => Keypair::from_protobuf_encoding(&body).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Keypair::generate_ed25519();
                home::write_private(path, &key.to_protobuf_encoding().map_err(io::Error::other)?)?;
                key
            }
            Err(error) => return Err(error),
        };
        Ok(Self::of(key))
    }

    /// An identity for this process only.
    pub fn ephemeral() -> Self {
        Self::of(Keypair::generate_ed25519())
    }

    fn of(key: Keypair) -> Self {
        Self { key, certificate: Arc::default(), authority: OnceLock::new() }
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        NodeId::from(self.key.public().to_peer_id().to_string())
    }

    /// The key itself.
    pub fn keypair(&self) -> &Keypair {
        &self.key
    }

    /// A signature of `bytes`, 64 bytes.
    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        // Only keys that are elsewhere can fail to sign.
        self.key.sign(bytes).unwrap_or_default()
    }

    /// The public half, 32 bytes.
    pub fn public_key(&self) -> Result<[u8; 32], Error> {
        let key = self.key.public().try_into_ed25519().map_err(|e| Error::internal(e.to_string()))?;
        Ok(key.to_bytes())
    }

    /// Takes a certificate for this key and that of the authority that signed it, both DER.
    pub fn certify(&self, certificate: Vec<u8>, authority: Vec<u8>) -> Result<(), Error> {
        let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to use the node's certificate: {e}"));
        let pair = self.key.clone().try_into_ed25519().map_err(|e| failed(&e))?;
        let private: Vec<u8> = PKCS8_ED25519.iter().chain(pair.secret().as_ref()).copied().collect();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(private));
        let private = rustls::crypto::aws_lc_rs::default_provider()
            .key_provider
            .load_private_key(private)
            .map_err(|e| failed(&e))?;
        let authority = CertificateDer::from(authority);
        let key = CertifiedKey::new(vec![CertificateDer::from(certificate), authority.clone()], private);
        key.keys_match().map_err(|e| failed(&e))?;
        self.certificate.set(key);
        let _ = self.authority.set(authority);
        Ok(())
    }

    /// The fingerprint of the authority that signed the certificate; `None` while there is none.
    pub fn pin(&self) -> Option<tls::Pin> {
        self.authority.get().map(tls::Pin::of)
    }

    /// TLS of this node's own port; `None` while it has no certificate.
    pub fn server_tls(&self) -> Result<Option<ServerConfig>, Error> {
        self.authority.get().map(|authority| tls::server_config(authority, self.certificate.clone())).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let first = Identity::load_or_create(&path).unwrap().node();
        assert_eq!(Identity::load_or_create(&path).unwrap().node(), first);
        assert_ne!(Identity::ephemeral().node(), first);
    }
}
