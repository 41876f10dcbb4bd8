//! Frames of links, calls and hosts: decoded, joined, and encoded to what decodes to the same.
#![no_main]

use covey_proto::{
    Joiner,
    v1::{CallBatch, FromWorker, HostBatch, ToWorker},
};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    if let Ok(batch) = CallBatch::decode(data) {
        let _ = Joiner::default().join(batch.frames);
    }
    if let Ok(batch) = HostBatch::decode(data) {
        assert_eq!(HostBatch::decode(&*batch.encode_to_vec()).as_ref(), Ok(&batch));
    }
    if let Ok(message) = FromWorker::decode(data) {
        assert_eq!(FromWorker::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
    }
    if let Ok(message) = ToWorker::decode(data) {
        assert_eq!(ToWorker::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
    }
});
