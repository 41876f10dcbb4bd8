//! Actors that outlast their process: virtual ones, which exist when they are spoken to, and those that the store keeps.

use std::sync::Arc;

use covey_domain::{ActorId, AgentSpec, Epoch, Error, ErrorKind, Millis, NodeId};

use crate::{
    directory::{ActorState, Owner},
    head::{Head, Output, Route, Write},
};

/// Longest key of a virtual actor, characters.
const KEY_MAX: usize = 256;

/// An actor as the store keeps it: a detached one, or one of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredActor {
    /// Unique name.
    pub name: Option<String>,
    /// What it is, options merged.
    pub spec: Arc<AgentSpec>,
    /// Constructor arguments.
    pub init: Option<Arc<[u8]>>,
}

impl Head {
    /// Somebody speaks to a virtual actor that is not awake: it is placed. What cannot be is answered as gone.
    pub fn wake(&mut self, id: &ActorId, now: Millis) {
        let awake = self.directory.actors.get(id).is_some_and(|a| !matches!(a.state, ActorState::Dead { .. }));
        if awake {
            return;
        }
        let spec = id
            .key()
            .ok_or_else(|| Error::not_found("actor", id))
            .and_then(|(agent, key)| {
                let good = !key.is_empty() && key.chars().count() <= KEY_MAX && !key.chars().any(char::is_control);
                let wrong = || Error::invalid(format!("a key has 1 to {KEY_MAX} printable characters"));
                good.then_some(agent).ok_or_else(wrong)
            })
            .and_then(|agent| self.agent(agent).cloned());
        match spec {
            Ok(spec) => {
                self.directory.remove(id);
                let not_before = self.may_begin(id, now);
                self.insert_actor_later(id.clone(), None, spec, None, Owner::Virtual, not_before, now);
                self.wait_for_its_node(id, now);
                self.settle(now);
            }
            Err(error) => self.out.push_back(Output::Route(id.clone(), Route::Gone(error))),
        }
    }

    /// Keeps an actor's state. Only the current activation may; what a stale one says is refused, as the loss of that activation:
    /// its turn ran and left nothing, so it may be tried again where that is allowed.
    pub fn save_state(&mut self, node: &NodeId, id: &ActorId, epoch: Epoch, state: Arc<[u8]>) -> Result<(), Error> {
        let current = self.directory.actors.get_mut(id).filter(|a| {
            a.epoch == epoch && a.node.as_ref() == Some(node) && !matches!(a.state, ActorState::Dead { .. })
        });
        let Some(actor) = current else {
            let text = format!("activation {epoch} of actor `{id}` on `{node}` is over");
            return Err(Error::new(ErrorKind::ActorDied, text).executed(None));
        };
        actor.saved = true;
        self.out.push_back(Output::Write(Write::State(id.clone(), epoch, state)));
        Ok(())
    }

    /// Brings an actor back from the store, after its activation and before the first verb. While the node of that may
    /// still have it, it waits; then it is started anew.
    pub fn restore_actor(&mut self, id: ActorId, stored: StoredActor, owner: Owner, saved: bool, now: Millis) {
        let not_before = self.may_begin(&id, now);
        self.insert_actor_later(id.clone(), stored.name, stored.spec, stored.init, owner, not_before, now);
        if let Some(actor) = self.directory.actors.get_mut(&id) {
            actor.saved = saved;
        }
        self.wait_for_its_node(&id, now);
    }

    /// Tells who waits for an actor that its last life may still go on.
    fn wait_for_its_node(&mut self, id: &ActorId, now: Millis) {
        let not_before = self.may_begin(id, now);
        let (Some(actor), Some((node, _))) = (self.directory.actors.get_mut(id), self.believed.get(id)) else { return };
        if not_before > now {
            let why = format!("the head has restarted; worker `{node}` may still have it");
            actor.state = ActorState::Pending { not_before, why: why.clone() };
            self.out.push_back(Output::Route(id.clone(), Route::Wait { why, never: false }));
        }
    }
}
