//! A2A's types, without a server or a client: [`v1`] as the official proto file of 1.0 has them (one type for gRPC's
//! bytes and for ProtoJSON), [`v03`] as that of 0.3, and 0.3 by conversion at the edge ([`old`] its JSON, [`old_proto`] its messages).
//!
//! Generated code is checked in; `tests/generated.rs` says how to make it anew.

pub mod card;
pub mod content;
mod error;
mod json;
pub mod old;
pub mod old_client;
pub mod old_proto;
mod timestamp;
pub mod weigh;

pub use error::{Error, Kind};
pub use json::{Fields, Json};
pub use timestamp::Timestamp;

/// Protocol 1.0, package `lf.a2a.v1`.
#[expect(missing_docs, clippy::all, clippy::pedantic, reason = "generated; the proto file has the words")]
pub mod v1 {
    include!("generated/lf.a2a.v1.rs");
    include!("generated/lf.a2a.v1.serde.rs");
}

/// Protocol 0.3, package `a2a.v1`.
#[expect(missing_docs, clippy::all, clippy::pedantic, reason = "generated; the proto file has the words")]
pub mod v03 {
    include!("generated/a2a.v1.rs");
    include!("generated/a2a.v1.serde.rs");
}
