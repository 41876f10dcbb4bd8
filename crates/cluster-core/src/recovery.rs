//! After a restart: workers bring back what they hold, and what nobody brings back is tried again.

use std::collections::BTreeSet;

use covey_domain::{ActorId, Epoch, Error, ErrorKind, Millis, NodeId};

use crate::{
    directory::{ActorState, Owner},
    drain::MOVE_WITHIN_MS,
    head::{Command, Head, Output, Route, Write, life_in_store},
    membership::{HeldTask, LivingActor, Member},
    pending::Standing,
};

/// What the head makes of an actor that a worker says it has.
enum Claim {
    /// As the head knows it.
    Known,
    /// From before the restart, and nobody has spoken to it since.
    Adopt(Owner),
    /// From before the restart, and the head has not begun another life of it.
    Newer,
    /// The head knows a newer life, or its end.
    Stale,
}

impl Head {
    /// Brings the head's picture of a node and the node's own into agreement. Called when a link comes up.
    ///
    /// What both know stays. What only the head knows is lost with the old link and starts anew. What only the worker
    /// knows is adopted when it is of before a restart of the head, and stopped otherwise. Of two activations of one
    /// actor the one with the higher epoch is the newer one, and stays.
    pub(crate) fn reconcile(&mut self, node: &NodeId, living: &[LivingActor], held: &[HeldTask], now: Millis) {
        for actor in living {
            match self.claim(node, actor) {
                Claim::Known => self.confirm(node, actor, now),
                Claim::Adopt(owner) => self.adopt(node, actor, owner, now),
                Claim::Newer => self.readopt(node, actor, now),
                Claim::Stale => {
                    let stop =
                        Command::Stop { actor: actor.actor.clone(), epoch: actor.epoch, drain: false, within_ms: None };
                    self.out.push_back(Output::Send(node.clone(), stop));
                }
            }
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

    /// What a worker's word about an actor is worth.
    fn claim(&self, node: &NodeId, living: &LivingActor) -> Claim {
        let known = self.directory.actors.get(&living.actor);
        if let Some(known) = known.filter(|a| a.node.as_ref() == Some(node) && a.epoch == living.epoch) {
            return if matches!(known.state, ActorState::Dead { .. }) { Claim::Stale } else { Claim::Known };
        }
        // Its beginning was written before the worker heard of it, so a worker can only know this one or an older one.
        let believed = self.believed.get(&living.actor).is_some_and(|(on, epoch)| (on, *epoch) == (node, living.epoch));
        match known {
            Some(known) if matches!(known.state, ActorState::Dead { .. }) => Claim::Stale,
            Some(known) if believed && living.epoch > known.epoch => Claim::Newer,
            Some(_) => Claim::Stale,
            None if !self.agents.contains_key(&living.agent) => Claim::Stale,
            // A worker has what it was given, and nothing that it says it has.
            None if believed && living.owner == Owner::Pool.as_text() => Claim::Adopt(Owner::Pool),
            None if believed && living.owner == Owner::Virtual.as_text() => Claim::Adopt(Owner::Virtual),
            None => Claim::Stale,
        }
    }

    /// Both know it. What it said while there was no link was not heard.
    fn confirm(&mut self, node: &NodeId, living: &LivingActor, now: Millis) {
        let Some(known) = self.directory.actors.get_mut(&living.actor) else { return };
        if known.moving.is_some() {
            let (actor, epoch) = (living.actor.clone(), living.epoch);
            let within_ms = Some(MOVE_WITHIN_MS);
            self.out.push_back(Output::Send(node.clone(), Command::Stop { actor, epoch, drain: true, within_ms }));
        } else if !living.starting {
            known.state = ActorState::Live;
            let route = Route::At { node: node.clone(), epoch: living.epoch };
            self.out.push_back(Output::Route(living.actor.clone(), route));
            self.goes_on(&living.actor);
            self.said(node, living, now);
        }
    }

    fn said(&mut self, node: &NodeId, living: &LivingActor, now: Millis) {
        if let Some(said) = living.said.clone() {
            self.says(node, &living.actor, said, now);
        }
    }

    fn adopt(&mut self, node: &NodeId, living: &LivingActor, owner: Owner, now: Millis) {
        let Some(spec) = self.agents.get(&living.agent).cloned() else { return };
        self.insert_actor_later(living.actor.clone(), None, spec, None, owner, Millis::MAX, now);
        self.readopt(node, living, now);
    }

    /// Takes over an activation that began under an earlier head.
    fn readopt(&mut self, node: &NodeId, living: &LivingActor, now: Millis) {
        self.believed.remove(&living.actor);
        let (Some(actor), Some(host)) = (self.directory.actors.get_mut(&living.actor), self.nodes.get_mut(node)) else {
            return;
        };
        actor.epoch = living.epoch;
        actor.state = if living.starting { ActorState::Starting } else { ActorState::Live };
        actor.node = Some(node.clone());
        actor.live_since = now;
        host.free.take(&actor.spec.resources);
        host.actors.insert(living.actor.clone());
        let route = match living.starting {
            true => Route::Wait { why: "starting".into(), never: false },
            false => Route::At { node: node.clone(), epoch: living.epoch },
        };
        self.out.push_back(Output::Route(living.actor.clone(), route));
        self.touch(node);
        self.said(node, living, now);
    }

    /// A member of before the restart has come back, or never will: what it did not bring back is over.
    pub(crate) fn came_back(&mut self, node: &NodeId, now: Millis) {
        if self.liveness.expected.remove(node).is_none() {
            return;
        }
        let lost: Vec<_> = self.believed.iter().filter(|(_, (on, _))| on == node).map(|(id, _)| id.clone()).collect();
        for id in lost {
            self.disbelieve(&id, now);
        }
        self.recover(now);
    }

    /// The activation that an earlier head began is to end: its worker is told so when it comes back.
    pub(crate) fn forget_life(&mut self, id: &ActorId) {
        if self.believed.remove(id).is_some() {
            self.out.extend(life_in_store(id, &Owner::Virtual, None));
        }
    }

    /// The activation that an earlier head began is over. Whoever waited for it gets a new one.
    fn disbelieve(&mut self, id: &ActorId, now: Millis) {
        self.believed.remove(id);
        let owner = self.directory.actors.get(id).map_or(&Owner::Virtual, |actor| &actor.owner);
        self.out.extend(life_in_store(id, owner, None));
        let waiting = self.directory.actors.get(id);
        if waiting.is_none() && id.key().is_none() {
            let error = Error::new(ErrorKind::ActorDied, "its worker stopped it while there was no head");
            return self.doom_linked(id, &error);
        }
        let Some(actor) = waiting.filter(|a| matches!(a.state, ActorState::Pending { .. })) else { return };
        if actor.owner == Owner::Virtual {
            let shape = actor.shape();
            if let Some(actor) = self.directory.actors.get_mut(id) {
                actor.state = ActorState::Pending { not_before: now, why: "not placed yet".into() };
            }
            self.waiting.push(id.clone(), Standing::Displaced, shape, now, now);
            self.unplanned = true;
        } else {
            // What it knew is gone, unless it was kept: that is a restart like any other, and counts.
            let error = Error::new(ErrorKind::ActorDied, "its worker stopped it while there was no head");
            self.actor_lost(id, error.executed(None), true, now);
        }
    }

    /// When an actor may begin a new life: not before the node that may still have its last one is back, or is over.
    pub(crate) fn may_begin(&self, id: &ActorId, now: Millis) -> Millis {
        match self.believed.get(id) {
            Some(_) => self.liveness.recover_until.unwrap_or(now),
            None => now,
        }
    }

    /// Once all members of before the restart are back, or their leases have passed, what none of them holds begins anew.
    pub(crate) fn recover(&mut self, now: Millis) {
        let Some(until) = self.liveness.recover_until else { return };
        if now < until && !self.liveness.expected.is_empty() {
            return;
        }
        self.liveness.recover_until = None;
        for node in std::mem::take(&mut self.liveness.expected).into_keys() {
            self.out.push_back(Output::Write(Write::Member(node, None)));
        }
        for id in self.believed.keys().cloned().collect::<Vec<_>>() {
            self.disbelieve(&id, now);
        }
        // From now on a place that no node has is one that nobody has.
        self.waiting.tell_again();
        self.gangs.iter_mut().for_each(|gang| gang.told = None);
        self.unplanned = true;
        // The rest of them follows with the next ticks.
        self.requeue_orphans(now);
    }

    /// Brings a member back from the store, before the first verb.
    pub fn restore_member(&mut self, node: NodeId, member: Member, now: Millis) {
        self.liveness.recover_until = Some(now + self.config.lease_ms);
        self.liveness.expected.insert(node, member);
    }

    /// Brings an activation back from the store, after all members and before detached actors. Its node has until the end of
    /// its lease to say that it has it.
    pub fn restore_activation(&mut self, id: ActorId, node: NodeId, epoch: Epoch, now: Millis) {
        self.liveness.recover_until.get_or_insert(now + self.config.lease_ms);
        self.believed.insert(id, (node, epoch));
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

#[cfg(test)]
mod tests {
    use covey_domain::{AgentSpec, Resources};

    use super::*;
    use crate::{HeadConfig, membership::Hello};

    const TERM: u64 = 1 << 32;

    /// A head that has just restarted: `a/1` lived on `n` in the epoch `TERM + 5`, and `m` was a member too.
    fn restarted() -> Head {
        let mut head = Head::new(HeadConfig::default(), 1);
        head.set_term(2);
        let spec = serde_json::json!({"name": "a", "kind": {"type": "native", "implementation": "a"}});
        head.restore_agent(
            serde_json::from_value::<AgentSpec>(spec).expect("an agent").validated().expect("a good one"),
        );
        for (node, incarnation) in [("n", 1), ("m", 2)] {
            head.restore_member(node.into(), Member { incarnation, port: String::new() }, 0);
        }
        head.restore_activation("a/1".into(), "n".into(), Epoch(TERM + 5), 0);
        head
    }

    fn join(head: &mut Head, node: &str, incarnation: u64, living: &[(u64, bool)], now: Millis) {
        let actors = living.iter().map(|(epoch, starting)| LivingActor {
            actor: "a/1".into(),
            epoch: Epoch(TERM + epoch),
            agent: "a".into(),
            owner: "virtual".into(),
            starting: *starting,
            said: None,
        });
        let total = Resources { cpu_milli: 4_000, ..Resources::default() };
        let hello = Hello { incarnation, name: node.into(), total, actors: actors.collect(), ..Hello::default() };
        head.joined(&node.into(), incarnation, hello, now).expect("it is known");
    }

    /// What the head told: starts and stops as `node verb epoch`, and where calls go.
    fn told(head: &mut Head) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(output) = head.poll_output() {
            let epoch = |epoch: Epoch| epoch.0 as i64 - TERM as i64;
            all.push(match output {
                Output::Send(node, Command::Start { epoch: e, .. }) => format!("{node} start {}", epoch(e)),
                Output::Send(node, Command::Stop { epoch: e, .. }) => format!("{node} stop {}", epoch(e)),
                Output::Route(_, Route::At { node, epoch: e }) => format!("at {node} {}", epoch(e)),
                Output::Route(_, Route::Wait { .. }) => "wait".into(),
                _ => continue,
            });
        }
        all
    }

    #[test]
    fn a_call_that_comes_before_its_worker_waits_and_finds_the_activation_that_lives() {
        let mut head = restarted();
        head.wake(&"a/1".into(), 10);
        join(&mut head, "m", 2, &[], 20);
        head.tick(30);
        assert!(told(&mut head).iter().all(|what| what == "wait"), "nothing begins while it may live elsewhere");
        join(&mut head, "n", 1, &[(5, false)], 40);
        assert_eq!(told(&mut head), ["at n 5"]);
    }

    #[test]
    fn a_worker_is_believed_to_have_what_it_was_given() {
        let pool = |actor: &str, agent: &str| LivingActor {
            actor: actor.into(),
            epoch: Epoch(TERM + 1),
            agent: agent.into(),
            owner: Owner::Pool.as_text(),
            starting: false,
            said: None,
        };
        let join = |head: &mut Head, node: &str, incarnation, actors| {
            let total = Resources { cpu_milli: 4_000, ..Resources::default() };
            let hello = Hello { incarnation, name: node.into(), total, actors, ..Hello::default() };
            head.joined(&node.into(), incarnation, hello, 10).expect("it is known");
        };
        let mut head = restarted();
        head.restore_activation("p1".into(), "n".into(), Epoch(TERM + 1), 0);
        // Tasks of `a` would go to an actor that the head believes in.
        join(&mut head, "m", 2, vec![pool("p1", "a"), pool("p2", "a")]);
        assert_eq!(told(&mut head), ["m stop 1", "m stop 1"], "one is another's, one is nobody's");
        join(&mut head, "n", 1, vec![pool("p1", "a"), pool("p2", "a")]);
        assert_eq!(told(&mut head), ["wait", "at n 1", "n stop 1"]);
    }

    #[test]
    fn the_newest_epoch_wins_whoever_comes_first() {
        let mut head = restarted();
        join(&mut head, "m", 2, &[(4, false)], 10);
        assert_eq!(told(&mut head), ["m stop 4"]);
        join(&mut head, "n", 1, &[(5, false)], 20);
        assert_eq!(told(&mut head), ["wait", "at n 5"]);
    }

    #[test]
    fn one_that_is_on_its_way_up_is_waited_for() {
        let mut head = restarted();
        head.wake(&"a/1".into(), 10);
        join(&mut head, "n", 1, &[(5, true)], 20);
        assert!(told(&mut head).iter().all(|what| what == "wait"));
        head.actor_report(&"n".into(), &"a/1".into(), Epoch(TERM + 5), crate::head::ActorReport::Live, 30);
        assert_eq!(told(&mut head), ["at n 5"]);
    }

    #[test]
    fn what_its_worker_did_not_bring_back_begins_anew_at_once() {
        let mut head = restarted();
        head.wake(&"a/1".into(), 10);
        join(&mut head, "m", 2, &[], 20);
        told(&mut head);
        head.gone(&"n".into(), 1, 30);
        let begun = told(&mut head);
        assert_eq!(begun.len(), 1, "{begun:?}");
        assert_eq!(begun[0], format!("m start {}", TERM + 1), "in an epoch above all of the earlier head");
    }

    #[test]
    fn a_lease_that_nobody_can_still_have_ends_the_wait() {
        let mut head = restarted();
        head.wake(&"a/1".into(), 10);
        join(&mut head, "m", 2, &[], 20);
        for now in (50..=10_050).step_by(50) {
            head.tick(now);
        }
        assert!(told(&mut head).iter().any(|what| what.starts_with("m start")));
    }
}
