//! What an actor has answered to calls with keys, so that a caller that asks again is answered and not served twice.
//!
//! Answers go with the actor's state: an activation that begins with the state of an earlier one knows what that had
//! answered by then. What was answered later, or without a state that is kept, is lost with the activation, and then a call
//! that may have run is refused rather than run again ([`CallOpen::tried`](covey_proto::v1::CallOpen)).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use covey_domain::{Error, ErrorKind, caps};
use covey_proto::{failure, v1};
use parking_lot::Mutex;
use prost::Message as _;

use crate::turn::Memo;

/// Answers remembered for each actor; the oldest go.
const MEMOS_MAX: usize = 10_000;

#[derive(Default)]
struct Memos {
    by_key: HashMap<String, Arc<Memo>>,
    order: VecDeque<String>,
}

impl Memos {
    fn insert(&mut self, key: &str, memo: Arc<Memo>) {
        if self.order.len() >= MEMOS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
        self.by_key.insert(key.to_owned(), memo);
        self.order.push_back(key.to_owned());
    }
}

/// The memos of one activation, shared by whoever serves it and whoever keeps its state. Most actors never have any.
#[derive(Clone, Default)]
pub(crate) struct SharedMemos(Arc<Mutex<Option<Box<Memos>>>>);

impl SharedMemos {
    /// Those of an activation that begins with what an earlier one answered.
    pub fn inherited(answered: Vec<v1::Answered>) -> Self {
        let shared = Self::default();
        if !answered.is_empty() {
            let mut memos = Memos::default();
            for v1::Answered { key, end } in answered {
                memos.insert(&key, Arc::new(Memo::of(end.unwrap_or_default())));
            }
            *shared.0.lock() = Some(Box::new(memos));
        }
        shared
    }

    /// The memo of a key.
    pub fn get(&self, key: &str) -> Arc<Memo> {
        let mut memos = self.0.lock();
        let memos = memos.get_or_insert_default();
        if let Some(memo) = memos.by_key.get(key) {
            return memo.clone();
        }
        let memo = Arc::new(Memo::default());
        memos.insert(key, memo.clone());
        memo
    }

    /// The key was answered, or a turn runs for it.
    pub fn knows(&self, key: &str) -> bool {
        let memos = self.0.lock();
        memos.as_ref().and_then(|memos| memos.by_key.get(key)).is_some_and(|memo| memo.is_asked())
    }

    /// Answers that go with the state, oldest first: the newest up to [`caps::ANSWERED_BYTES_MAX`], of the others that they were given.
    pub fn answered(&self) -> Vec<v1::Answered> {
        let memos = self.0.lock();
        let Some(memos) = &*memos else { return Vec::new() };
        let mut room = caps::ANSWERED_BYTES_MAX;
        let mut kept = Vec::new();
        for key in memos.order.iter().rev() {
            let Some(end) = memos.by_key.get(key).and_then(|memo| memo.answer()) else { continue };
            let bytes = end.encoded_len();
            let end = if bytes <= room {
                room -= bytes;
                end
            } else {
                let error =
                    Error::new(ErrorKind::FailedPrecondition, "the call ran, and its answer is not kept any more");
                failure(error.executed(Some(true)))
            };
            kept.push(v1::Answered { key: key.clone(), end: Some(end) });
        }
        kept.reverse();
        kept
    }
}

#[cfg(test)]
mod tests {
    use covey_proto::{call_result, payload_json, v1::call_end};

    use super::*;

    fn answer(text: &str) -> v1::CallEnd {
        v1::CallEnd { result: Some(call_end::Result::Value(payload_json(&text))) }
    }

    #[test]
    fn what_was_answered_is_known_to_who_inherits_the_state() {
        let large = "x".repeat(caps::ANSWERED_BYTES_MAX / 2);
        let sizes = ["one", &large, "three", &large];
        let given = sizes.iter().enumerate();
        let first = SharedMemos::inherited(
            given.map(|(n, text)| v1::Answered { key: format!("k{n}"), end: Some(answer(text)) }).collect(),
        );
        let _running = first.get("asked, not answered");
        let second = SharedMemos::inherited(first.answered());
        for (n, text) in [(0, "one"), (2, "three")] {
            assert_eq!(second.get(&format!("k{n}")).answer(), Some(answer(text)));
        }
        let newest = second.get("k3").answer().unwrap();
        assert_eq!(newest, answer(&large));
        let older = call_result(second.get("k1").answer().unwrap()).unwrap_err();
        assert_eq!(older.executed, Some(true), "that it ran is known, although what it gave is not");
        assert!(second.knows("k1") && !second.knows("asked, not answered") && !second.knows("never"));
    }
}
