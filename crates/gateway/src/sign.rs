//! What this gateway signs: cards and notifications, by one key that everybody can read at `/.well-known/jwks.json`.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

type Sign = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// An Ed25519 key.
#[derive(Clone)]
pub struct Signer {
    public: [u8; 32],
    kid: String,
    sign: Sign,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Signer {
    /// The key whose public half is `public`; `sign` gives the 64 bytes of a signature.
    pub fn new(public: [u8; 32], sign: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let kid = encode(&public[..12]);
        Self { public, kid, sign: Arc::new(sign) }
    }

    /// The public half as a JWK set (RFC 8037).
    pub fn jwks(&self) -> Value {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": encode(&self.public)});
        json!({"keys": [key]})
    }

    /// A JWS of `payload` (RFC 7515): its protected header, as written, and the signature.
    pub fn jws(&self, typ: &str, jku: Option<&str>, payload: &[u8]) -> (String, String) {
        let mut header = json!({"alg": "EdDSA", "kid": self.kid, "typ": typ});
        if let Some(jku) = jku {
            header["jku"] = jku.into();
        }
        let protected = encode(header.to_string().as_bytes());
        let signed = format!("{protected}.{}", encode(payload));
        let signature = encode(&(self.sign)(signed.as_bytes()));
        (protected, signature)
    }

    /// A signature of a text, for this gateway to know it again.
    pub fn seal(&self, text: &str) -> String {
        encode(&(self.sign)(text.as_bytes()))
    }

    /// A JWT of these claims (RFC 7519).
    pub fn jwt(&self, claims: &Value) -> String {
        let payload = claims.to_string();
        let (protected, signature) = self.jws("JWT", None, payload.as_bytes());
        format!("{protected}.{}.{signature}", encode(payload.as_bytes()))
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
