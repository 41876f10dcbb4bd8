//! The customs house between generated messages and domain types.

use bytes::Bytes;
use covey_domain::{Error, ErrorKind, infer::InferEvent};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::v1;
use crate::v1::{CallEnd, Codec, Empty, Failure, Payload, call_end};

/// Header that carries the error's stable name beside the gRPC code.
const KIND_HEADER: &str = "covey-kind";
/// Header that carries the hint.
const HINT_HEADER: &str = "covey-hint-bin";

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind.name().to_owned(),
            message: error.message,
            hint: error.hint,
            executed: error.executed,
            detail: error.detail,
            retry: error.retry,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self {
            kind: ErrorKind::from_name(&failure.kind),
            message: failure.message,
            hint: failure.hint,
            executed: failure.executed,
            detail: failure.detail,
            retry: failure.retry,
        }
    }
}

/// An error as the failed end of a call.
pub fn failure(error: Error) -> crate::v1::CallEnd {
    crate::v1::CallEnd { result: Some(crate::v1::call_end::Result::Failure(error.into())) }
}

/// The end of a call that gave a value, or nothing, or failed.
pub fn call_end(result: Result<Option<Payload>, Error>) -> CallEnd {
    match result {
        Ok(Some(value)) => CallEnd { result: Some(call_end::Result::Value(value)) },
        Ok(None) => CallEnd { result: Some(call_end::Result::Done(Empty {})) },
        Err(error) => failure(error),
    }
}

/// The reverse of [`fn@call_end`].
pub fn call_result(end: CallEnd) -> Result<Option<Payload>, Error> {
    match end.result {
        Some(call_end::Result::Value(value)) => Ok(Some(value)),
        Some(call_end::Result::Failure(failure)) => Err(failure.into()),
        Some(call_end::Result::Done(_)) | None => Ok(None),
    }
}

/// A domain value as the JSON that travels and is stored. Domain types have string keys only, so this cannot fail.
pub fn to_json<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("domain values have string keys and no failing serializer"))
}

/// A domain value from JSON that somebody else wrote; `what` names it in the error.
pub fn from_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    covey_domain::json::read(what, bytes)
}

/// The same of what the head says: it has looked at each part, and may put many together.
pub fn from_heads_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::invalid(format!("failed to read {what}: {e}")))
}

/// A JSON payload.
pub fn payload_json<T: Serialize>(value: &T) -> Payload {
    Payload { codec: Codec::Json.into(), body: to_json(value), buffers: Vec::new() }
}

/// One item of a model's answer as a payload: JSON, except that vectors are raw little-endian f32 behind their width.
pub fn infer_payload(event: &InferEvent) -> Payload {
    match event {
        InferEvent::Vectors { dims, data } => {
            let mut body = Vec::with_capacity(4 + data.len() * 4);
            body.extend_from_slice(&(*dims as u32).to_le_bytes());
            data.iter().for_each(|x| body.extend_from_slice(&x.to_le_bytes()));
            Payload { codec: Codec::Raw.into(), body: body.into(), buffers: Vec::new() }
        }
        InferEvent::Delta(_) | InferEvent::Ended { .. } | InferEvent::Heard { .. } | InferEvent::Done { .. } => {
            payload_json(event)
        }
    }
}

/// The reverse of [`infer_payload`].
pub fn infer_event(item: &Payload) -> Result<InferEvent, Error> {
    if item.codec() != Codec::Raw {
        return from_json("a model's answer", &item.body);
    }
    let Some((dims, data)) = item.body.split_first_chunk::<4>() else {
        return Err(Error::internal("vectors without a width"));
    };
    let dims = u32::from_le_bytes(*dims) as usize;
    let (chunks, rest) = data.as_chunks::<4>();
    if dims == 0 || !rest.is_empty() || chunks.len() % dims != 0 {
        return Err(Error::internal(format!("{} bytes are no vectors of {dims}", data.len())));
    }
    Ok(InferEvent::Vectors { dims, data: chunks.iter().map(|c| f32::from_le_bytes(*c)).collect() })
}

/// A domain error as a gRPC status, its name and hint in headers.
pub fn to_status(error: &Error) -> Status {
    let mut status = Status::new(Code::from(error.kind.faces().grpc), error.message.clone());
    status.metadata_mut().insert(KIND_HEADER, MetadataValue::from_static(error.kind.name()));
    if error.kind == ErrorKind::Overloaded {
        // As gRPC's retry design has it (A6).
        status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from_static("1000"));
    }
    if let Some(hint) = &error.hint {
        status.metadata_mut().insert_bin(HINT_HEADER, MetadataValue::from_bytes(hint.as_bytes()));
    }
    status
}

/// The domain error in a gRPC status; from the code alone when the peer is not Covey.
pub fn from_status(status: &Status) -> Error {
    let named = status.metadata().get(KIND_HEADER).and_then(|v| v.to_str().ok()).map(ErrorKind::from_name);
    let kind = named.unwrap_or_else(|| {
        // Without our header it was not the peer that spoke but the transport: h2 and tonic use these codes for a
        // connection that broke.
        if broke_off(status) {
            return ErrorKind::Unavailable;
        }
        let code = status.code() as i32;
        let by_code = |kind: &ErrorKind| kind.faces().grpc == code;
        ErrorKind::ALL.into_iter().find(by_code).unwrap_or(ErrorKind::Unavailable)
    });
    let mut error = Error::new(kind, status.message());
    if let Some(hint) = status.metadata().get_bin(HINT_HEADER).and_then(|v| v.to_bytes().ok()) {
        error.hint = String::from_utf8(hint.to_vec()).ok();
    }
    if named.is_none()
        && let Some(root) = root_cause(status)
    {
        error.message = format!("{}: {root}", error.message);
    }
    error
}

/// Whether the status is of a connection that broke, and not of a peer that answered.
pub fn broke_off(status: &Status) -> bool {
    let codes = matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled | Code::Unavailable);
    codes && status.metadata().get(KIND_HEADER).is_none()
}

fn root_cause(status: &Status) -> Option<String> {
    let mut root = std::error::Error::source(status)?;
    while let Some(inner) = root.source() {
        root = inner;
    }
    Some(root.to_string())
}

/// Who listens to a topic, on the wire.
pub fn topic_members(topic: String, members: &[(covey_domain::ActorId, String)]) -> v1::TopicMembers {
    let member = |(actor, method): &(covey_domain::ActorId, String)| v1::TopicMember {
        actor: actor.to_string(),
        method: method.clone(),
    };
    v1::TopicMembers { topic, members: members.iter().map(member).collect() }
}

/// The calls that one frame to several actors stands for, in the order of their ids.
pub fn each_of(mut open: v1::CallOpen) -> impl Iterator<Item = v1::CallOpen> {
    let also = std::mem::take(&mut open.also);
    let others: Vec<_> = also
        .into_iter()
        .map(|other| v1::CallOpen {
            target: Some(v1::call_open::Target::Actor(other.actor)),
            epoch: other.epoch,
            ..open.clone()
        })
        .collect();
    std::iter::once(open).chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_survive_as_raw_numbers() {
        let event = InferEvent::Vectors { dims: 3, data: vec![1.0, -2.5, 0.0, 4.0, 5.0, f32::MIN_POSITIVE] };
        assert_eq!(infer_event(&infer_payload(&event)).unwrap(), event);
        let cut = Payload { codec: Codec::Raw.into(), body: Bytes::from_static(&[3, 0, 0, 0, 1]), buffers: vec![] };
        assert!(infer_event(&cut).is_err());
    }

    #[test]
    fn errors_survive_both_wires() {
        for kind in ErrorKind::ALL {
            let error = Error::new(kind, "failed to find `x`").hint("look there: ä");
            assert_eq!(from_status(&to_status(&error)), error);
            let error = error.executed(Some(false));
            assert_eq!(Error::from(Failure::from(error.clone())), error);
        }
        for broken in
            [Status::unavailable("gone"), Status::unknown("transport error"), Status::internal("h2 protocol error")]
        {
            assert_eq!(from_status(&broken).kind, ErrorKind::Unavailable);
        }
        assert_eq!(from_status(&Status::unauthenticated("who?")).kind, ErrorKind::Unauthenticated);
    }
}
