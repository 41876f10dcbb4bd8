//! The wire: generated messages, their conversions to domain types, and the one door to bincode.
//!
//! `.proto` files live in `covey/v1`; what is generated from them is committed in `src/generated` and compared by a
//! test. Structured values that the store keeps too (specs, events, inputs) travel as the JSON they are stored as,
//! so nothing is encoded twice and old bytes stay readable.

pub mod access;
mod batch;
mod call_queue;
pub mod codec;
mod convert;
mod weave;

#[expect(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/covey.v1.rs"]
pub mod v1;

pub use batch::{check_bytes, check_size, check_task_size, size_of, split};
pub use call_queue::CallQueue;
pub use convert::{
    broke_off, call_end, call_result, each_of, failure, from_heads_json, from_json, from_status, infer_event,
    infer_payload, payload_json, to_json, to_status, topic_members,
};
pub use weave::{Joiner, Weaver};
