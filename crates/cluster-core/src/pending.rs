//! Actors without a place, by shape: what does not fit once is not tried again for each of its kind.

use std::collections::{BTreeMap, VecDeque};

use covey_domain::{ActorId, Millis};
use hashbrown::HashMap;

use crate::scheduler::{Shape, Why};

/// Who is served first: nobody takes the room of one that is only on its way from one place to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Standing {
    /// It had a place: it is moved, or starts again after a crash.
    Displaced,
    /// It never had one.
    New,
}

/// Queues of actors without a place. Entries of actors that found one otherwise are dropped when they are met.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    queues: BTreeMap<(Standing, u64), Queue>,
    numbers: HashMap<(Standing, Shape), u64>,
    next: u64,
    /// Not before a time.
    later: BTreeMap<(Millis, ActorId), (Standing, Shape)>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    pub shape: Shape,
    pub actors: VecDeque<ActorId>,
    /// Came since the rest was told why it waits.
    pub fresh: Vec<ActorId>,
    pub told: Option<Why>,
}

impl Pending {
    pub fn push(&mut self, actor: ActorId, standing: Standing, shape: Shape, not_before: Millis, now: Millis) {
        if not_before > now {
            self.later.insert((not_before, actor), (standing, shape));
            return;
        }
        let number = *self.numbers.entry((standing, shape.clone())).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        let queue = self.queues.entry((standing, number)).or_insert_with(|| Queue {
            shape,
            actors: VecDeque::new(),
            fresh: Vec::new(),
            told: None,
        });
        queue.actors.push_back(actor.clone());
        queue.fresh.push(actor);
    }

    /// Those whose time has come join the queues. `true` when there were any.
    pub fn ripen(&mut self, now: Millis) -> bool {
        let mut any = false;
        while let Some(entry) = self.later.first_entry().filter(|e| e.key().0 <= now) {
            let ((_, actor), (standing, shape)) = entry.remove_entry();
            self.push(actor, standing, shape, 0, now);
            any = true;
        }
        any
    }

    /// All are told anew why they wait, when they are tried the next time.
    pub fn tell_again(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.told = None);
    }

    /// Whether somebody waits to be near somebody.
    pub fn any_near(&self) -> bool {
        self.queues.values().any(|queue| queue.shape.near.is_some())
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Shapes that fit nowhere as long as others are where they are, and who waits.
    pub fn unplaced(&self) -> impl Iterator<Item = (&Shape, &VecDeque<ActorId>)> {
        let full = self.queues.values().filter(|queue| queue.told.as_ref().is_some_and(|why| !why.never));
        full.map(|queue| (&queue.shape, &queue.actors))
    }

    /// Takes the queues of one standing, oldest shape first; [`Self::put_back`] gives back what is left of each.
    pub fn take(&mut self, standing: Standing) -> BTreeMap<(Standing, u64), Queue> {
        let new = self.queues.split_off(&(Standing::New, 0));
        match standing {
            Standing::Displaced => std::mem::replace(&mut self.queues, new),
            Standing::New => new,
        }
    }

    pub fn put_back(&mut self, key: (Standing, u64), queue: Queue) {
        if queue.actors.is_empty() {
            self.numbers.remove(&(key.0, queue.shape));
        } else {
            self.queues.insert(key, queue);
        }
    }
}
