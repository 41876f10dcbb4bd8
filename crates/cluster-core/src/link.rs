//! Both ends of a worker's link, as far as they remember something.
//!
//! The worker's [`Outbox`] numbers its durable entries from 1 and keeps each until the head says it is on disk. After
//! a reconnect the head's [`Inbox`] tells from where to send again and takes every number once:
//!
//! ```text
//! worker  1 2 3 4 ──────╳ link cut        resume(2) → 3 4 5 6
//! head    1 2 durable     │ Welcome{durable: 2}       3 4 5 6 durable
//! ```

use std::collections::VecDeque;

use covey_domain::caps;

/// The worker's end: entries that are not known to be durable.
#[derive(Debug)]
pub struct Outbox<T> {
    kept: VecDeque<(u64, T)>,
    next: u64,
}

/// The outbox holds [`caps::OUTBOX_DEPTH_MAX`] entries.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full: the head has not acknowledged {} entries", caps::OUTBOX_DEPTH_MAX)]
pub struct OutboxFull;

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self { kept: VecDeque::new(), next: 1 }
    }
}

impl<T> Outbox<T> {
    /// Keeps `entry` and gives its number.
    pub fn push(&mut self, entry: T) -> Result<u64, OutboxFull> {
        if self.kept.len() >= caps::OUTBOX_DEPTH_MAX {
            return Err(OutboxFull);
        }
        let number = self.next;
        self.next += 1;
        self.kept.push_back((number, entry));
        Ok(number)
    }

    /// Everything up to `number` is durable.
    pub fn acknowledge(&mut self, number: u64) {
        while self.kept.front().is_some_and(|(n, _)| *n <= number) {
            self.kept.pop_front();
        }
    }

    /// What must be sent on a new link, in order.
    pub fn unacknowledged(&self) -> impl Iterator<Item = (u64, &T)> {
        self.kept.iter().map(|(n, entry)| (*n, entry))
    }

    /// The entry kept last.
    pub fn newest(&self) -> Option<&T> {
        self.kept.back().map(|(_, entry)| entry)
    }

    /// Entries kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

/// The head's end: the last number taken from one incarnation of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inbox {
    last: u64,
}

/// What to do with a numbered entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It is new.
    New,
    /// It was taken before.
    Again,
    /// Something before it is missing: the link must be dialled anew.
    Gap,
}

impl Inbox {
    /// An inbox that has taken everything up to `last`.
    pub fn resumed(last: u64) -> Self {
        Self { last }
    }

    /// Decides about entry `number`.
    pub fn take(&mut self, number: u64) -> Take {
        match number {
            n if n <= self.last => Take::Again,
            n if n == self.last + 1 => {
                self.last = n;
                Take::New
            }
            _ => Take::Gap,
        }
    }

    /// The last number taken.
    pub fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However often the link is cut and wherever, each entry arrives once and in order.
        #[test]
        fn cuts_lose_and_repeat_nothing(cuts in prop::collection::vec((1usize..20, 0usize..20, 0usize..20), 1..20)) {
            let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
            let (mut made, mut got) = (0u64, Vec::new());
            for (make, arrive, acked) in cuts {
                for _ in 0..make {
                    made += 1;
                    outbox.push(made).unwrap();
                }
                let sent: Vec<_> = outbox.unacknowledged().map(|(n, v)| (n, *v)).collect();
                let durable = inbox.last();
                for (number, value) in sent.into_iter().take(arrive) {
                    if inbox.take(number) == Take::New {
                        got.push(value);
                    }
                }
                outbox.acknowledge(durable.min(acked as u64));
            }
            for (number, value) in outbox.unacknowledged() {
                if inbox.take(number) == Take::New {
                    got.push(*value);
                }
            }
            prop_assert_eq!(got, (1..=made).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_gap_is_seen() {
        let mut inbox = Inbox::resumed(4);
        assert_eq!(inbox.take(4), Take::Again);
        assert_eq!(inbox.take(6), Take::Gap);
        assert_eq!(inbox.take(5), Take::New);
    }
}
