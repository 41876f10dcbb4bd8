//! Calls to an actor that has no place yet.

use std::collections::{BTreeMap, btree_map};

use covey_domain::{Error, ErrorKind, caps};

use crate::{size_of, v1::CallOpen};

/// Calls to one actor by their number, oldest first: at most [`caps::MAILBOX_DEPTH_MAX`], and with arguments of at most
/// [`caps::MAILBOX_BYTES_MAX`], one call aside.
#[derive(Debug, Default)]
pub struct CallQueue {
    calls: BTreeMap<u64, CallOpen>,
    bytes: usize,
}

impl CallQueue {
    /// Takes one more call, or says why not; such a call did not run.
    pub fn push(&mut self, call: u64, open: CallOpen) -> Result<(), Error> {
        let (waiting, bytes) = (self.calls.len(), bytes_of(&open));
        let full = waiting >= caps::MAILBOX_DEPTH_MAX;
        if full || (waiting > 0 && self.bytes + bytes > caps::MAILBOX_BYTES_MAX) {
            let mib = self.bytes >> 20;
            let why =
                format!("the actor has no place yet, and {waiting} calls with {mib} MiB of arguments wait for it");
            return Err(Error::new(ErrorKind::Overloaded, why).executed(Some(false)));
        }
        self.bytes += bytes;
        self.calls.insert(call, open);
        Ok(())
    }

    /// Takes a call out; `false` where it does not wait.
    pub fn remove(&mut self, call: u64) -> bool {
        let removed = self.calls.remove(&call);
        self.bytes -= removed.as_ref().map_or(0, bytes_of);
        removed.is_some()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// None wait.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The numbers of all.
    pub fn into_calls(self) -> impl Iterator<Item = u64> {
        self.calls.into_keys()
    }
}

impl IntoIterator for CallQueue {
    type Item = (u64, CallOpen);
    type IntoIter = btree_map::IntoIter<u64, CallOpen>;

    fn into_iter(self) -> Self::IntoIter {
        self.calls.into_iter()
    }
}

fn bytes_of(open: &CallOpen) -> usize {
    open.args.as_ref().map_or(0, size_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Payload;

    fn call(bytes: usize) -> CallOpen {
        CallOpen { args: Some(Payload { body: vec![0; bytes].into(), ..Payload::default() }), ..CallOpen::default() }
    }

    #[test]
    fn a_queue_takes_so_many_calls() {
        let mut queue = CallQueue::default();
        for number in 0..caps::MAILBOX_DEPTH_MAX as u64 {
            queue.push(number, call(0)).unwrap();
        }
        assert_eq!(queue.push(u64::MAX, call(0)).unwrap_err().executed, Some(false));
        assert!(queue.remove(7) && !queue.remove(7));
        queue.push(u64::MAX, call(0)).unwrap();
    }

    #[test]
    fn a_queue_takes_so_many_bytes_and_one_call_in_any_case() {
        let (mut queue, large) = (CallQueue::default(), call(caps::MAILBOX_BYTES_MAX / 2));
        queue.push(1, large.clone()).unwrap();
        queue.push(2, call(64)).unwrap();
        let refused = queue.push(3, large.clone()).unwrap_err();
        assert!(refused.kind == ErrorKind::Overloaded && refused.message.contains("256 MiB"), "{refused}");
        assert!(queue.remove(2));
        queue.push(3, large).unwrap();
        assert_eq!(queue.into_iter().map(|(number, _)| number).collect::<Vec<_>>(), [1, 3]);
    }
}
