//! Links: actors that end with each other.
//!
//! A link is between two actors that are not over, and is there until one of them ends. When that was not asked for gently, the
//! other one ends too. A virtual actor that falls asleep does not end. Links are kept by the store, so that a head that is
//! started again knows them; what ended while there was none takes its linked actors along then.

use std::collections::BTreeMap;

use covey_domain::{ActorId, Error, ErrorKind, caps};
use hashbrown::HashMap;

use crate::{
    directory::{ActorState, Owner},
    head::{Head, Output, Write},
};

/// All links, from both ends.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// To whom, and whether an actor of a session is one of the two.
    of: HashMap<ActorId, BTreeMap<ActorId, bool>>,
    pairs: usize,
}

impl Links {
    /// `false`: it was there.
    fn insert(&mut self, one: &ActorId, other: &ActorId, owned: bool) -> bool {
        let fresh = self.of.entry(one.clone()).or_default().insert(other.clone(), owned).is_none();
        self.of.entry(other.clone()).or_default().insert(one.clone(), owned);
        self.pairs += usize::from(fresh);
        fresh
    }

    /// Takes all links of an actor.
    fn take(&mut self, id: &ActorId) -> BTreeMap<ActorId, bool> {
        let taken = self.of.remove(id).unwrap_or_default();
        for other in taken.keys() {
            if let Some(links) = self.of.get_mut(other) {
                links.remove(id);
                if links.is_empty() {
                    self.of.remove(other);
                }
            }
        }
        self.pairs -= taken.len();
        taken
    }
}

/// What the store is told of a link. That of a session's actor is written as that actor is: nobody waits for its fsync.
fn in_store(one: &ActorId, other: &ActorId, is_linked: bool, owned: bool) -> Output {
    let (one, other) = if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) };
    Output::Write(match owned {
        true => Write::OwnedLink(one, other, is_linked),
        false => Write::Link(one, other, is_linked),
    })
}

impl Head {
    /// From now on, each of the two ends when the other does, unless that was stopped gently.
    pub fn link(&mut self, one: &ActorId, other: &ActorId) -> Result<(), Error> {
        if one == other {
            return Err(Error::invalid("an actor cannot be linked to itself"));
        }
        let mut owned = false;
        for id in [one, other] {
            let actor = self.directory.actors.get(id).ok_or_else(|| Error::not_found("actor", id))?;
            if let ActorState::Dead { error } = &actor.state {
                return Err(Error::new(ErrorKind::ActorDied, format!("actor `{id}` is over: {}", error.message)));
            }
            owned |= matches!(actor.owner, Owner::Session(_));
        }
        if self.links.pairs >= caps::LINKS_MAX {
            let text = format!("{} pairs of actors are linked", caps::LINKS_MAX);
            return Err(Error::new(ErrorKind::Overloaded, text).hint("link each to one that all of them end with"));
        }
        if self.links.insert(one, other, owned) {
            self.out.push_back(in_store(one, other, true, owned));
        }
        Ok(())
    }

    /// An actor ended: those linked to it are next.
    pub(crate) fn doom_linked(&mut self, id: &ActorId, error: &Error) {
        for other in self.unlink(id) {
            // The root cause travels along a chain of links, not a chain of causes.
            let text = match error.message.contains("it is linked to") {
                true => error.message.clone(),
                false => format!("actor `{id}`, which it is linked to, ended: {}", error.message),
            };
            self.doomed.push_back((other, Error::new(ErrorKind::ActorDied, text).executed(None)));
        }
    }

    /// Takes all links of an actor; gives who was linked to it.
    pub(crate) fn unlink(&mut self, id: &ActorId) -> Vec<ActorId> {
        let taken = self.links.take(id);
        let told = taken.iter().map(|(other, owned)| in_store(id, other, false, *owned));
        self.out.extend(told);
        taken.into_keys().collect()
    }

    /// Brings a link back from the store, after all actors and before the first verb.
    pub fn restore_link(&mut self, one: ActorId, other: ActorId) {
        let owner = |id| self.directory.actors.get(id).map(|actor| &actor.owner);
        let owned = [&one, &other].into_iter().any(|id| matches!(owner(id), Some(Owner::Session(_))));
        self.links.insert(&one, &other, owned);
        for id in [one, other] {
            // A virtual actor may be asleep, and others may be what a worker brings back.
            let is_over = id.key().is_none() && !self.directory.actors.contains_key(&id);
            if is_over && !self.believed.contains_key(&id) {
                self.doom_linked(&id, &Error::new(ErrorKind::ActorDied, "it was over when the head was started again"));
            }
        }
    }
}
