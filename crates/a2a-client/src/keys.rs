//! Signatures on cards (JWS over the canonical form, RFC 7515 and 8785).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use covey_a2a::{card::canonical, v1};
use covey_domain::{Error, ErrorKind};
use serde_json::Value;

use crate::{CARD_TIMEOUT, chain};

/// One of `keys` (a JWK set as JSON, or its address) must have signed the card.
pub(crate) async fn check(http: &reqwest::Client, keys: &str, card: &v1::AgentCard) -> Result<(), Error> {
    let text = if keys.trim_start().starts_with('{') {
        keys.to_owned()
    } else {
        let unreached =
            |e: reqwest::Error| Error::unavailable(format!("the keys at `{keys}` were not reached: {}", chain(e)));
        let response = http.get(keys).timeout(CARD_TIMEOUT).send().await.and_then(reqwest::Response::error_for_status);
        response.map_err(unreached)?.text().await.map_err(unreached)?
    };
    let set: Value =
        serde_json::from_str(&text).map_err(|e| Error::invalid(format!("the keys are no JWK set: {e}")))?;
    let denied = |why: String| {
        Error::new(ErrorKind::PermissionDenied, format!("the card of `{}` is not to be trusted: {why}", card.name))
    };
    if card.signatures.is_empty() {
        return Err(denied("nobody signed it".into()));
    }
    let payload = URL_SAFE_NO_PAD.encode(canonical(card));
    let good = card.signatures.iter().any(|one| is_good(one, &payload, &set).unwrap_or(false));
    if good { Ok(()) } else { Err(denied("no signature is by one of the keys".into())) }
}

fn is_good(signature: &v1::AgentCardSignature, payload: &str, set: &Value) -> Option<bool> {
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&signature.protected).ok()?).ok()?;
    let algorithm = header["alg"].as_str()?;
    let signed = format!("{}.{payload}", signature.protected);
    let bytes = URL_SAFE_NO_PAD.decode(&signature.signature).ok()?;
    let named = |key: &&Value| header.get("kid").is_none() || key.get("kid") == header.get("kid");
    let mut keys = set["keys"].as_array()?.iter().filter(named);
    Some(keys.any(|key| verifies(key, algorithm, signed.as_bytes(), &bytes).unwrap_or(false)))
}

/// Whether a key of the algorithm's own kind made the signature. What a key is decides, not what a header says.
fn verifies(key: &Value, algorithm: &str, signed: &[u8], signature: &[u8]) -> Option<bool> {
    let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str()?).ok();
    let result = match (key["kty"].as_str()?, key["crv"].as_str(), algorithm) {
        ("OKP", Some("Ed25519"), "EdDSA" | "Ed25519") => {
            UnparsedPublicKey::new(&ED25519, part("x")?).verify(signed, signature)
        }
        ("EC", Some("P-256"), "ES256") => {
            let point = [vec![4], part("x")?, part("y")?].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature)
        }
        ("RSA", _, "RS256") => RsaPublicKeyComponents { n: part("n")?, e: part("e")? }.verify(
            &RSA_PKCS1_2048_8192_SHA256,
            signed,
            signature,
        ),
        _ => return Some(false),
    };
    Some(result.is_ok())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::*;

    fn card(name: &str, protected: Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> v1::AgentCard {
        let mut card = v1::AgentCard { name: name.into(), ..v1::AgentCard::default() };
        let protected = URL_SAFE_NO_PAD.encode(protected.to_string());
        let signed = format!("{protected}.{}", URL_SAFE_NO_PAD.encode(canonical(&card)));
        let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
        card.signatures.push(v1::AgentCardSignature { protected, signature, header: None });
        card
    }

    #[tokio::test]
    async fn a_card_is_taken_from_who_may_sign_it_and_as_it_was_signed() {
        let http = reqwest::Client::new();
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let set = |x: &str| json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x}]}).to_string();
        let header = json!({"alg": "EdDSA", "kid": "k"});
        let mut card = card("X", header, |signed| pair.sign(signed).as_ref().to_vec());
        check(&http, &set(&public), &card).await.unwrap();
        let other = URL_SAFE_NO_PAD.encode(Ed25519KeyPair::generate().unwrap().public_key().as_ref());
        assert_eq!(check(&http, &set(&other), &card).await.unwrap_err().kind, ErrorKind::PermissionDenied);
        card.description = "changed".into();
        assert!(check(&http, &set(&public), &card).await.is_err());
        card.signatures.clear();
        assert!(check(&http, &set(&public), &card).await.unwrap_err().message.contains("nobody"));
    }

    #[tokio::test]
    async fn what_others_sign_with_is_read() {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let set = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": x, "y": y}]}).to_string();
        let sign = |signed: &[u8]| pair.sign(&random, signed).unwrap().as_ref().to_vec();
        let http = reqwest::Client::new();
        check(&http, &set, &card("X", json!({"alg": "ES256"}), sign)).await.unwrap();
        // A header that names another algorithm than the key has opens nothing.
        assert!(check(&http, &set, &card("X", json!({"alg": "none"}), sign)).await.is_err());
        assert!(check(&http, &set, &card("X", json!({"alg": "EdDSA"}), sign)).await.is_err());
    }
}
