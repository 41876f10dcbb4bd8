//! Actors whose turns do not end, whose process is replaced, or that only wait.
//!
//! A worker tells of a turn that goes on after it was given up: its actor is given nothing new, and its pool grows beside
//! it. When the process is replaced, the other actors in it move as from a node that is emptied. An actor whose turns all
//! wait for calls of their own lends its CPU to others until one goes on; for a moment there may then be more turns than CPUs.

use covey_domain::{ActorId, Error, ErrorKind, Millis, NodeId, Resources};

use crate::{
    directory::{ActorState, Owner},
    drain::MOVE_WITHIN_MS,
    head::{ActorReport, Head, Output, Route},
    membership::Node,
};

impl Head {
    /// What a live actor says beyond that it lives; nothing else counts here.
    pub(crate) fn says(&mut self, node: &NodeId, id: &ActorId, said: ActorReport, now: Millis) {
        match said {
            ActorReport::Stuck(why) => self.stuck(id, why),
            ActorReport::Leaving(why) => self.leaving(id, node, why, now),
            ActorReport::Waiting => self.lend(id),
            _ => {}
        }
    }

    /// A turn of the actor goes on although it was given up.
    fn stuck(&mut self, id: &ActorId, why: String) {
        if let Some(actor) = self.directory.actors.get_mut(id) {
            actor.stuck = Some(why);
        }
    }

    /// The actor's process is replaced: it finishes what it has, and starts in another one with its state.
    fn leaving(&mut self, id: &ActorId, node: &NodeId, why: String, now: Millis) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        if actor.owner == Owner::Pool {
            (actor.stuck, actor.leaving) = (Some(why), true);
            self.end_if_emptied(id, now);
        } else if actor.state == ActorState::Live {
            self.move_to_another(id, node, format!("moving to another process: {why}"), MOVE_WITHIN_MS);
        }
    }

    /// No turn is stuck any more, and one runs.
    pub(crate) fn goes_on(&mut self, id: &ActorId) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        actor.stuck = None;
        if !std::mem::take(&mut actor.lends) {
            return;
        }
        let cpu_milli = actor.spec.resources.cpu_milli;
        let Some(node_id) = actor.node.clone() else { return };
        if let Some(node) = self.nodes.get_mut(&node_id) {
            node.take_back(cpu_milli);
        }
        self.touch(&node_id);
    }

    /// All turns of the actor wait for calls of their own.
    fn lend(&mut self, id: &ActorId) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        if actor.lends || actor.state != ActorState::Live {
            return;
        }
        actor.lends = true;
        let cpu_milli = actor.spec.resources.cpu_milli;
        let Some(node_id) = actor.node.clone() else { return };
        if let Some(node) = self.nodes.get_mut(&node_id) {
            node.put_back(&Resources { cpu_milli, ..Resources::default() });
        }
        self.touch(&node_id);
        self.unplanned = true;
    }

    /// A pool actor that takes no more tasks has finished its last one.
    pub(crate) fn end_if_emptied(&mut self, id: &ActorId, now: Millis) {
        let idle = self.directory.actors.get(id).filter(|a| a.owner == Owner::Pool && a.tasks.is_empty());
        let Some(actor) = idle else { return };
        let draining = actor.node.as_ref().and_then(|node| self.nodes.get(node)).is_some_and(|n| n.draining);
        let why = match &actor.stuck {
            Some(why) if actor.leaving => format!("its process is replaced: {why}"),
            Some(_) | None if draining => "its node is being emptied".to_owned(),
            Some(_) | None => return,
        };
        let error = Error::new(ErrorKind::ActorDied, why).executed(Some(false));
        self.end_actor(id, error, false, now);
    }

    /// Tells an actor to finish what it has within a time and keep its state; it starts anew when it has.
    pub(crate) fn move_to_another(&mut self, id: &ActorId, node: &NodeId, why: String, within_ms: u64) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        actor.moving = Some(why.clone());
        // No call is routed there and no task assigned any more.
        actor.state = ActorState::Starting;
        let (actor, epoch) = (id.clone(), actor.epoch);
        self.out.push_back(Output::Route(actor.clone(), Route::Moving(why)));
        let stop = crate::head::Command::Stop { actor, epoch, drain: true, within_ms: Some(within_ms) };
        self.out.push_back(Output::Send(node.clone(), stop));
    }
}

impl Node {
    /// What an actor held is free again, but for what is owed to those that lent theirs.
    pub fn put_back(&mut self, resources: &Resources) {
        let paid = resources.cpu_milli.min(self.owed_cpu_milli);
        self.owed_cpu_milli -= paid;
        let cpu_milli = resources.cpu_milli - paid;
        self.free.put_back(&Resources { cpu_milli, ..resources.clone() });
    }

    /// An actor that lent its CPU goes on; what others have of it is owed.
    fn take_back(&mut self, cpu_milli: u64) {
        let there = cpu_milli.min(self.free.cpu_milli);
        self.free.cpu_milli -= there;
        self.owed_cpu_milli += cpu_milli - there;
    }
}
