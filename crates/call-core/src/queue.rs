//! Calls to an actor that has no place yet.

use std::collections::BTreeMap;

use covey_domain::{Error, ErrorKind, caps};

use crate::CallId;

/// Calls to one actor by their number, oldest first: at most [`caps::MAILBOX_DEPTH_MAX`], and with arguments of at most
/// [`caps::MAILBOX_BYTES_MAX`], one call aside.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// With the bytes of their arguments.
    calls: BTreeMap<CallId, usize>,
    bytes: usize,
}

impl Queue {
    /// Takes one more call, or says why not; such a call did not run.
    pub fn push(&mut self, call: CallId, bytes: usize) -> Result<(), Error> {
        let waiting = self.calls.len();
        if waiting >= caps::MAILBOX_DEPTH_MAX || (waiting > 0 && self.bytes + bytes > caps::MAILBOX_BYTES_MAX) {
            let mib = self.bytes >> 20;
            let why =
                format!("the actor has no place yet, and {waiting} calls with {mib} MiB of arguments wait for it");
            return Err(Error::new(ErrorKind::Overloaded, why).executed(Some(false)));
        }
        self.bytes += bytes;
        self.calls.insert(call, bytes);
        Ok(())
    }

    /// Takes a call out; `false` where it does not wait.
    pub fn remove(&mut self, call: CallId) -> bool {
        let removed = self.calls.remove(&call);
        self.bytes -= removed.unwrap_or_default();
        removed.is_some()
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// All, oldest first.
    pub fn into_calls(self) -> impl Iterator<Item = CallId> {
        self.calls.into_keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_a_bound_in_number_and_in_bytes() {
        let (mut queue, half) = (Queue::default(), caps::MAILBOX_BYTES_MAX / 2);
        queue.push(1, 3 * half).unwrap();
        assert_eq!(queue.push(2, half).unwrap_err().executed, Some(false), "one larger than all alone");
        assert!(queue.remove(1) && !queue.remove(1));
        (2..4).for_each(|call| queue.push(call, half).unwrap());
        assert!(queue.push(4, 1).is_err());
        assert!(queue.remove(2));
        for call in 10..9 + caps::MAILBOX_DEPTH_MAX as u64 {
            queue.push(call, 0).unwrap();
        }
        assert_eq!(queue.push(9, 0).unwrap_err().kind, ErrorKind::Overloaded);
        assert_eq!((queue.len(), queue.into_calls().next()), (caps::MAILBOX_DEPTH_MAX, Some(3)));
    }
}
