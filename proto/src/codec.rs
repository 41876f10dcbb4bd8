//! Compact Rust-to-Rust bodies: bincode 2, with its decode limit set. Nothing else in the workspace names bincode.
//!
//! Used for arguments, results and snapshots of native actors. Not self-describing: both ends must be built from the
//! same types, so it never carries what the store keeps.

use bytes::Bytes;
use covey_domain::{Error, caps};
use serde::{Serialize, de::DeserializeOwned};

use crate::v1::{Codec, Payload};

/// `value` as a bincode payload.
pub fn encode<T: Serialize>(value: &T) -> Result<Payload, Error> {
    let body = bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|e| Error::invalid(format!("failed to encode as bincode: {e}")))?;
    Ok(Payload { codec: Codec::Bincode.into(), body: Bytes::from(body), buffers: Vec::new() })
}

/// The value in a bincode or JSON payload; native actors take both, so every client can call them.
pub fn decode<T: DeserializeOwned>(payload: &Payload) -> Result<T, Error> {
    match payload.codec() {
        Codec::Bincode => {
            let config = bincode::config::standard().with_limit::<{ caps::MESSAGE_BYTES_MAX }>();
            let (value, used) = bincode::serde::decode_from_slice(&payload.body, config)
                .map_err(|e| Error::invalid(format!("failed to decode bincode: {e}")))?;
            if used != payload.body.len() {
                return Err(Error::invalid(format!("{} bytes after the bincode value", payload.body.len() - used)));
            }
            Ok(value)
        }
        Codec::Json => covey_domain::json::read("the JSON arguments", &payload.body),
        other @ (Codec::Raw | Codec::Pickle | Codec::Lent | Codec::Content) => {
            Err(Error::invalid(format!("a native actor cannot read codec {other:?}")).hint("send JSON"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_round_trip(value: (u64, String, Vec<u8>, Option<i32>)) {
            prop_assert_eq!(decode::<(u64, String, Vec<u8>, Option<i32>)>(&encode(&value).unwrap()).unwrap(), value);
        }

        #[test]
        fn noise_is_an_error_and_never_a_panic(body: Vec<u8>) {
            let payload = Payload { codec: Codec::Bincode.into(), body: body.into(), buffers: vec![] };
            let _ = decode::<(String, Vec<String>)>(&payload);
        }
    }
}
