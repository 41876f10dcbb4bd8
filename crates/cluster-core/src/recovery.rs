//! After a restart: workers bring back what they hold, and what nobody brings back is tried again.

use std::collections::BTreeSet;

use covey_domain::{Error, ErrorKind, Millis, NodeId};

use crate::{
    directory::{ActorState, Owner},
    head::{Command, Head, Output, Route},
    membership::{HeldTask, LivingActor},
};

impl Head {
    /// Brings the head's picture of a node and the node's own into agreement. Called when a link comes up.
    ///
    /// What both know stays. What only the head knows is lost with the old link and starts anew. What only the worker
    /// knows is adopted when it is a pool actor of a known agent (a head that restarted), and stopped otherwise.
    pub(crate) fn reconcile(&mut self, node: &NodeId, living: &[LivingActor], held: &[HeldTask], now: Millis) {
        for actor in living {
            let known = self.directory.actors.get(&actor.actor);
            let agrees = known.is_some_and(|a| a.epoch == actor.epoch && a.node.as_ref() == Some(node));
            if agrees {
                if let Some(known) = self.directory.actors.get_mut(&actor.actor) {
                    known.state = ActorState::Live;
                }
            } else if known.is_none() && actor.owner == Owner::Pool.as_text() && self.agents.contains_key(&actor.agent)
            {
                self.adopt(node, actor, Owner::Pool, now);
            } else if known.is_none()
                && actor.owner == Owner::Virtual.as_text()
                && self.agents.contains_key(&actor.agent)
            {
                self.adopt(node, actor, Owner::Virtual, now);
            } else if known
                .is_some_and(|a| a.owner == Owner::Detached && a.epoch == covey_domain::Epoch(0) && a.node.is_none())
            {
                // Brought back from the store by a head that restarted; this worker never lost it.
                self.readopt(node, actor, now);
            } else {
                let stop = Command::Stop { actor: actor.actor.clone(), epoch: actor.epoch, drain: false };
                self.out.push_back(Output::Send(node.clone(), stop));
                continue;
            }
            let route = Route::At { node: node.clone(), epoch: actor.epoch };
            self.out.push_back(Output::Route(actor.actor.clone(), route));
        }
        for held in held {
            let on = self.directory.actors.get(&held.actor).is_some_and(|a| a.node.as_ref() == Some(node));
            let claim = self.tasks.active.get_mut(&held.task).filter(|t| t.record.attempt == held.attempt && on);
            match claim {
                Some(task) if task.orphan => {
                    task.orphan = false;
                    task.actor = Some(held.actor.clone());
                    if let Some(actor) = self.directory.actors.get_mut(&held.actor) {
                        actor.tasks.insert(held.task.clone(), held.attempt);
                    }
                    self.say_again(node, &held.task);
                    self.rest(&held.task, now);
                }
                Some(_) => self.say_again(node, &held.task),
                None => {
                    let cancel = Command::CancelTask {
                        task: held.task.clone(),
                        attempt: held.attempt,
                        reason: "given to another worker".into(),
                    };
                    self.out.push_back(Output::Send(node.clone(), cancel));
                }
            }
        }
        self.drop_what_is_missing(node, living, held, now);
    }

    fn drop_what_is_missing(&mut self, node: &NodeId, living: &[LivingActor], held: &[HeldTask], now: Millis) {
        let alive: BTreeSet<_> = living.iter().map(|a| (&a.actor, a.epoch)).collect();
        let has: BTreeSet<_> = held.iter().map(|t| (&t.task, t.attempt)).collect();
        let ours: Vec<_> = self.nodes.get(node).into_iter().flat_map(|n| n.actors.iter().cloned()).collect();
        for id in ours {
            let Some(actor) = self.directory.actors.get(&id) else { continue };
            if !alive.contains(&(&id, actor.epoch)) {
                let error = Error::new(ErrorKind::ActorDied, "it was lost with its link").executed(None);
                self.actor_lost(&id, error, true, now);
                continue;
            }
            let gone: Vec<_> = actor
                .tasks
                .keys()
                .filter(|t| self.tasks.active.get(*t).is_none_or(|known| !has.contains(&(*t, known.record.attempt))))
                .cloned()
                .collect();
            for task in gone {
                if let Some(actor) = self.directory.actors.get_mut(&id) {
                    actor.drop_task(&task);
                }
                self.task_lost(&task, &Error::unavailable("the request was lost with its link"), now);
            }
        }
    }

    fn adopt(&mut self, node: &NodeId, living: &LivingActor, owner: Owner, now: Millis) {
        let Some(spec) = self.agents.get(&living.agent).cloned() else { return };
        self.insert_actor(living.actor.clone(), None, spec, None, owner, now);
        self.readopt(node, living, now);
    }

    fn readopt(&mut self, node: &NodeId, living: &LivingActor, now: Millis) {
        if let (Some(actor), Some(host)) = (self.directory.actors.get_mut(&living.actor), self.nodes.get_mut(node)) {
            actor.epoch = living.epoch;
            actor.state = ActorState::Live;
            actor.node = Some(node.clone());
            actor.live_since = now;
            host.free.take(&actor.spec.resources);
            host.actors.insert(living.actor.clone());
        }
        self.touch(node);
    }

    /// Once workers had their time, tasks that none of them holds are queued again.
    pub(crate) fn recover(&mut self, now: Millis) {
        if self.recover_until == 0 || now < self.recover_until {
            return;
        }
        self.recover_until = 0;
        let orphans: Vec<_> = self.tasks.active.iter().filter(|(_, t)| t.orphan).map(|(id, _)| id.clone()).collect();
        for id in orphans {
            self.task_lost(&id, &Error::unavailable("its worker did not come back"), now);
        }
    }

    /// Brings an agent back from the store, before the first verb.
    pub fn restore_agent(&mut self, spec: covey_domain::AgentSpec) {
        self.agents.insert(spec.name.clone(), std::sync::Arc::new(spec));
    }

    /// Brings back up to where a node's entries are taken, before the first verb.
    pub fn restore_cursor(&mut self, node: NodeId, incarnation: u64, number: u64) {
        self.cursors.insert((node, incarnation), number);
    }
}
