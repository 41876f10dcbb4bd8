//! Emptying a node: it takes nothing new, and what it has finishes its calls and moves.
//!
//! An actor is told to stop once what it accepted is answered, and to keep its state. That has a time, since a stream may have
//! no end: what goes on then is ended, and its caller told so. Callers wait meanwhile; what
//! reaches the old place is refused unrun and comes after them. When the worker says that it stopped, it starts anew
//! elsewhere. Actors that run tasks are let finish and are not moved: others take what is queued, and what waits for an
//! answer from outside is run again elsewhere, where it will ask the same.

use covey_domain::{ActorId, Error, ErrorKind, Millis, NodeId};

use crate::{
    directory::{ActorState, Owner},
    head::Head,
    pending::Standing,
};

/// How long calls of an actor that moves may go on, where nobody says otherwise.
pub const MOVE_WITHIN_MS: u64 = 30_000;

impl Head {
    /// Begins to empty a node, by id or by name; calls under way end within a time. Gives its id.
    pub fn drain(&mut self, node: &str, within_ms: u64, now: Millis) -> Result<NodeId, Error> {
        let found = self.nodes.iter().find(|(id, n)| id.as_str() == node || (n.hello.name == node && n.is_live()));
        let id = found.map(|(id, _)| id.clone()).ok_or_else(|| {
            let known: Vec<_> = self.nodes.values().filter(|n| n.is_live()).map(|n| n.hello.name.clone()).collect();
            Error::not_found("node", node).hint(format!("live nodes: {}", known.join(", ")))
        })?;
        if let Some(known) = self.nodes.get_mut(&id) {
            known.draining = true;
        }
        self.placer.remove(&id);
        let actors: Vec<_> = self.nodes.get(&id).into_iter().flat_map(|n| n.actors.iter().cloned()).collect();
        for actor in actors {
            self.move_off(&actor, &id, within_ms, now);
        }
        self.settle(now);
        Ok(id)
    }

    fn move_off(&mut self, id: &ActorId, node: &NodeId, within_ms: u64, now: Millis) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        match (&actor.state, &actor.owner) {
            (ActorState::Dead { .. }, _) => {}
            (_, Owner::Pool) if actor.tasks.is_empty() => {
                let error = Error::new(ErrorKind::ActorDied, "its node is being emptied").executed(Some(false));
                self.end_actor(id, error, false, now);
            }
            // It ends when its last task has.
            (_, Owner::Pool) => {
                for task in actor.resting.clone() {
                    self.rest(&task, now);
                }
                self.end_if_emptied(id, now);
            }
            (ActorState::Pending { .. } | ActorState::Starting | ActorState::Live, _) => {
                self.move_to_another(id, node, "moving to another node".to_owned(), within_ms);
            }
        }
    }

    pub(crate) fn is_moving(&self, id: &ActorId) -> bool {
        self.directory.actors.get(id).is_some_and(|a| a.moving.is_some())
    }

    pub(crate) fn move_on(&mut self, id: &ActorId, now: Millis) {
        self.release(id);
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        let why = actor.moving.take().unwrap_or_default();
        actor.state = ActorState::Pending { not_before: now, why };
        let shape = actor.shape();
        self.waiting.push(id.clone(), Standing::Displaced, shape, now, now);
        self.unplanned = true;
    }

    /// It moves, and what it knew is gone: that is a restart like any other, and its bound on restarts holds.
    pub(crate) fn moved_without_state(&mut self, id: &ActorId, why: &str, now: Millis) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        let why = format!("it moved without its state: {why}");
        if actor.is_spent() {
            let error = Error::new(ErrorKind::ActorDied, why).executed(Some(false));
            return self.actor_lost(id, error, true, now);
        }
        actor.restarts += 1;
        actor.last_restart = Some(format!("restarted: {why}"));
        self.move_on(id, now);
    }

    /// A pool actor may be given a task.
    pub(crate) fn takes_tasks(&self, id: &ActorId) -> bool {
        let Some(actor) = self.directory.actors.get(id).filter(|a| a.stuck.is_none()) else { return false };
        actor.node.as_ref().and_then(|node| self.nodes.get(node)).is_none_or(|n| !n.draining)
    }
}
