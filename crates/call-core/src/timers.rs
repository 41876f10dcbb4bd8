//! What is due, and when.

use std::collections::BTreeMap;

use covey_domain::{ActorId, Millis};

use crate::{CallId, LaneId};

/// What happens at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The time for a call is over.
    Deadline(CallId),
    /// The worker of a call whose time is over did not say so.
    DeadlineUnanswered(CallId),
    /// A call that raised is sent again.
    Retry(CallId),
    /// A listener whose mailbox was full is tried again.
    Listener(CallId),
    /// Whoever calls is told why an actor still has no place.
    Overdue(ActorId),
    /// The head is asked again where an actor is.
    Ask(ActorId),
    /// A fence did not come back.
    Fence(u64),
    /// The head has been away since then for longer than anybody waits.
    GiveUp(Millis),
    /// A lane that no new call takes is closed once nothing uses it.
    Retire(LaneId),
}

/// Where a timer stands, for who takes it back.
pub(crate) type Key = (Millis, u64);

/// Timers, soonest first; those of the same time in the order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<Key, Timer>,
    next: u64,
}

impl Timers {
    pub fn set(&mut self, at: Millis, timer: Timer) -> Key {
        self.next += 1;
        self.due.insert((at, self.next), timer);
        (at, self.next)
    }

    pub fn unset(&mut self, key: Key) {
        self.due.remove(&key);
    }

    pub fn first(&self) -> Option<Millis> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes one that is due.
    pub fn take(&mut self, now: Millis) -> Option<Timer> {
        let first = self.due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub fn clear(&mut self) {
        self.due.clear();
    }
}
