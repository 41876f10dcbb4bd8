//! A fingerprint instead of a public authority.

use std::{fmt, net::IpAddr, str::FromStr, sync::OnceLock};

use covey_domain::{Error, ErrorKind};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::provider;

/// SHA-256 of the cluster authority's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin([u8; 32]);

impl Pin {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::invalid("a fingerprint is 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Pin {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

/// `host:port`, with `#<fingerprint>` when the head speaks TLS there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedAddress {
    /// `host:port`.
    pub address: String,
    /// The authority of whoever listens there; `None` = no TLS.
    pub pin: Option<Pin>,
}

/// Where this is 1, keys go in the clear to heads beyond this machine: over a network that is private in itself.
const ALLOW_PLAINTEXT: &str = "COVEY_ALLOW_PLAINTEXT";

impl PinnedAddress {
    /// Says why a key is not to be sent there: who listens on the way would have it.
    pub fn check(&self) -> Result<(), Error> {
        if self.pin.is_some() || self.is_loopback() || std::env::var(ALLOW_PLAINTEXT).is_ok_and(|said| said == "1") {
            return Ok(());
        }
        let text = format!("the key would go to `{}` in the clear: the address has no fingerprint", self.address);
        Err(Error::new(ErrorKind::FailedPrecondition, text).hint(
            "`covey token --address` on its machine prints the address with the fingerprint; COVEY_ALLOW_PLAINTEXT=1 sends it all the same",
        ))
    }

    /// Whether only this machine gets there.
    pub fn is_loopback(&self) -> bool {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for PinnedAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim_start_matches("covey://");
        let (address, pin) = match text.split_once('#') {
            Some((address, pin)) => (address, Some(pin.parse()?)),
            None => (text, None),
        };
        Ok(Self { address: address.to_owned(), pin })
    }
}

impl fmt::Display for PinnedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pin {
            Some(pin) => write!(f, "{}#{pin}", self.address),
            None => f.write_str(&self.address),
        }
    }
}

/// Takes a chain that ends in the pinned authority, which the server sends along, and checks everything else as usual.
#[derive(Debug)]
pub(super) struct Pinned {
    pin: Pin,
    inner: OnceLock<std::sync::Arc<WebPkiServerVerifier>>,
    schemes: Vec<SignatureScheme>,
}

impl Pinned {
    pub fn new(pin: Pin) -> Self {
        let schemes = provider().signature_verification_algorithms.supported_schemes();
        Self { pin, inner: OnceLock::new(), schemes }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let inner = match self.inner.get() {
            Some(inner) => inner,
            None => {
                let authority = intermediates.iter().find(|c| Pin::of(c) == self.pin).ok_or_else(|| {
                    rustls::Error::General(
                        "it does not belong to the cluster whose fingerprint was given with the address".into(),
                    )
                })?;
                let mut roots = RootCertStore::empty();
                roots.add(authority.clone().into_owned())?;
                let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), provider())
                    .build()
                    .map_err(|e| rustls::Error::General(e.to_string()))?;
                self.inner.get_or_init(|| inner)
            }
        };
        inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
