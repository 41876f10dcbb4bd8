//! Agents whose tasks nobody can run, and actors that no node can hold: why, since when, until when.
//!
//! What waits for a busy cluster waits. What waits for a worker that is not there (no Python with the package, a label that no
//! node has, a process that does not start) is told so, is tried again with growing pauses, and fails after the agent's
//! `schedule_timeout`. Detached actors wait on: they are to outlast such times.

use std::collections::{BTreeMap, BTreeSet};

use covey_domain::{
    ActorId, AgentName, Error, ErrorKind, Millis,
    event::{Outcome, Phase, TaskEvent},
};

use crate::{
    directory::{ActorState, Owner, shape_of},
    head::Head,
};

/// Queued tasks of one agent that are told why they wait.
const TOLD_MAX: usize = 1_000;

/// Who waits for what is not there.
#[derive(Debug, Default)]
pub(crate) struct Unserved {
    agents: BTreeMap<AgentName, Trouble>,
    /// Actors of no pool, by the time at which they are given up.
    actors: BTreeSet<(Millis, ActorId)>,
}

/// Why no actor of an agent's pool comes up.
#[derive(Debug)]
struct Trouble {
    since: Millis,
    why: String,
    /// Starts in a row that failed.
    failures: u32,
    /// No further start before this.
    not_before: Millis,
}

impl Unserved {
    /// Why the tasks of an agent wait, if that is not because its actors are busy.
    pub fn why(&self, agent: &AgentName) -> Option<&str> {
        self.agents.get(agent).map(|trouble| trouble.why.as_str())
    }

    /// When the next actor of the agent's pool may start.
    pub fn not_before(&self, agent: &AgentName) -> Millis {
        self.agents.get(agent).map_or(0, |trouble| trouble.not_before)
    }

    /// An actor of the pool lives.
    pub fn served(&mut self, agent: &AgentName) {
        self.agents.remove(agent);
    }

    fn trouble(&mut self, agent: &AgentName, why: &str, now: Millis) -> &mut Trouble {
        let fresh = || Trouble { since: now, why: String::new(), failures: 0, not_before: 0 };
        let trouble = self.agents.entry(agent.clone()).or_insert_with(fresh);
        why.clone_into(&mut trouble.why);
        trouble
    }
}

impl Head {
    /// Why no node that is there now could ever hold an actor of this agent; `None` where one could, or none is there.
    pub fn unservable(&self, agent: &AgentName) -> Option<String> {
        let shape = shape_of(self.agents.get(agent)?);
        self.placer.place(&shape).err().filter(|why| why.never).map(|why| why.text)
    }

    /// No node now known could ever hold this actor, or one could again.
    pub(crate) fn hopeless(&mut self, id: &ActorId, why: &str, never: bool, now: Millis) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        if actor.owner == Owner::Pool {
            let agent = actor.spec.name.clone();
            if never {
                self.unserved.trouble(&agent, why, now);
            } else if self.unserved.agents.get(&agent).is_some_and(|trouble| trouble.failures == 0) {
                self.unserved.served(&agent);
            }
        } else if !never {
            actor.hopeless_since = None;
        } else if actor.hopeless_since.is_none() && actor.owner != Owner::Detached {
            actor.hopeless_since = Some(now);
            self.unserved.actors.insert((now.saturating_add(actor.spec.waits_ms()), id.clone()));
        }
    }

    /// An actor could not start, and another try may help.
    pub(crate) fn start_failed(&mut self, id: &ActorId, error: &Error, now: Millis) {
        let Some(actor) = self.directory.actors.get(id) else { return };
        if actor.owner != Owner::Pool {
            return self.hopeless(id, &error.message, true, now);
        }
        let agent = actor.spec.name.clone();
        let (first, most) = (self.config.backoff_ms, self.config.backoff_max_ms);
        let trouble = self.unserved.trouble(&agent, &error.message, now);
        let pause = first.checked_shl(trouble.failures.min(16)).unwrap_or(most).min(most);
        trouble.failures += 1;
        trouble.not_before = now + pause;
    }

    /// Tells queued tasks why nobody runs them, each reason once.
    pub(crate) fn tell_unserved(&mut self, now: Millis) {
        let waiting: Vec<_> = self
            .unserved
            .agents
            .iter()
            .flat_map(|(agent, trouble)| {
                let queued = self.tasks.queued(agent).take(TOLD_MAX);
                queued.map(move |task| (task.clone(), trouble.why.clone()))
            })
            .collect();
        for (id, why) in waiting {
            let Some(task) = self.tasks.active.get_mut(&id).filter(|task| task.told.as_ref() != Some(&why)) else {
                continue;
            };
            task.told = Some(why.clone());
            let wall = self.wall(now);
            self.append(&id, vec![TaskEvent::Status { state: Phase::Queued, message: Some(why) }], wall);
        }
    }

    /// Gives up what has waited for too long for what is not there.
    pub(crate) fn expire_unserved(&mut self, now: Millis) {
        let late = |head: &Self, agent: &AgentName, since: Millis| {
            head.agents.get(agent).is_none_or(|spec| since.saturating_add(spec.waits_ms()) <= now)
        };
        let over: Vec<_> = self
            .unserved
            .agents
            .iter()
            .filter(|(agent, trouble)| late(self, agent, trouble.since))
            .map(|(agent, trouble)| (agent.clone(), trouble.why.clone()))
            .collect();
        for (agent, why) in over {
            self.unserved.agents.remove(&agent);
            let error = unschedulable(&why);
            for id in self.tasks.queued(&agent).cloned().collect::<Vec<_>>() {
                self.end_task(&id, Outcome::Failed { error: error.clone() }, now);
            }
            for id in self.directory.pools.get(&agent).cloned().unwrap_or_default() {
                if self.directory.actors.get(&id).is_some_and(|a| matches!(a.state, ActorState::Pending { .. })) {
                    self.end_actor(&id, error.clone(), false, now);
                }
            }
        }
        while let Some((due, id)) = self.unserved.actors.first().cloned().filter(|(due, _)| *due <= now) {
            self.unserved.actors.remove(&(due, id.clone()));
            let Some(actor) = self.directory.actors.get(&id) else { continue };
            let waited = actor.hopeless_since.is_some_and(|since| since.saturating_add(actor.spec.waits_ms()) <= now);
            match &actor.state {
                ActorState::Pending { why, .. } if waited => {
                    let error = unschedulable(why).executed(Some(false));
                    self.end_actor(&id, error, false, now);
                }
                // It is being tried once more.
                ActorState::Starting if waited => drop(self.unserved.actors.insert((now + 1_000, id))),
                ActorState::Pending { .. } | ActorState::Starting | ActorState::Live | ActorState::Dead { .. } => {}
            }
        }
    }
}

fn unschedulable(why: &str) -> Error {
    Error::new(ErrorKind::Unschedulable, format!("no worker could run it within its schedule timeout: {why}"))
        .hint("add a worker that can, or give the agent a longer `schedule_timeout`")
}
