//! Where every actor is, and in which life.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use covey_domain::{
    ActorId, AgentName, AgentSpec, Epoch, Millis, NodeId, SessionId, TaskId, caps, status::ActorStatus,
};
use hashbrown::HashMap;

use crate::scheduler::Shape;

/// Actors that are over and whose end late callers are still told.
const DEAD_MAX: usize = 10_000;

/// Who an actor lives for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Goes when this driver goes.
    Session(SessionId),
    /// Stays until stopped.
    Detached,
    /// Made by the head to run tasks.
    Pool,
    /// Exists when it is spoken to: asleep, it is nothing but its stored state.
    Virtual,
}

impl Owner {
    /// As it travels to the worker and back.
    pub fn as_text(&self) -> String {
        match self {
            Self::Session(id) => format!("session:{id}"),
            Self::Detached => "detached".into(),
            Self::Pool => "pool".into(),
            Self::Virtual => "virtual".into(),
        }
    }
}

/// Where an actor stands. `Pending → Starting → Live`, back to `Pending` after a crash, `Dead` at the end.
#[derive(Clone, Debug, PartialEq)]
pub enum ActorState {
    /// Waits for a place, not before `not_before` (backoff).
    Pending {
        /// Earliest next try.
        not_before: Millis,
        /// Why it waits.
        why: String,
    },
    /// Sent to its node.
    Starting,
    /// Takes calls.
    Live,
    /// Over, and why.
    Dead {
        /// In words.
        error: covey_domain::Error,
    },
}

impl ActorState {
    /// The stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending { .. } => "pending",
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Dead { .. } => "dead",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Actor {
    pub name: Option<String>,
    pub spec: Arc<AgentSpec>,
    pub init: Option<Arc<[u8]>>,
    pub owner: Owner,
    pub state: ActorState,
    pub node: Option<NodeId>,
    /// Where it was before, or when it ended.
    pub last_node: Option<NodeId>,
    pub epoch: Epoch,
    pub restarts: u32,
    /// Crashes in a row, for the backoff; a life of a minute forgives them.
    pub streak: u32,
    pub live_since: Millis,
    /// Tasks that hold a turn, and which attempt of each.
    pub tasks: BTreeMap<TaskId, u32>,
    /// Those of them that wait for an answer from outside, and hold no turn meanwhile.
    pub resting: BTreeSet<TaskId>,
    /// Its state is in the store.
    pub saved: bool,
    /// The task that it was given last runs alone.
    pub alone: bool,
    /// Was told to finish what it has, and why; then it starts elsewhere.
    pub moving: Option<String>,
    /// Why it takes nothing new: a turn of it does not end, or its process is replaced. Of this life alone.
    pub stuck: Option<String>,
    /// Of a pool: it ends with its last task, because its process is replaced.
    pub leaving: bool,
    /// Its CPU is lent while all its turns wait.
    pub lends: bool,
    /// Since when no node could hold it, or its process does not start.
    pub hopeless_since: Option<Millis>,
    /// Why it was started again the last time.
    pub last_restart: Option<String>,
}

/// What an actor of this spec asks of its node.
pub(crate) fn shape_of(spec: &AgentSpec) -> Shape {
    let python = match &spec.kind {
        covey_domain::AgentKind::Python(python) => Some(python.version.clone().unwrap_or_default()),
        _ => None,
    };
    Shape {
        resources: spec.resources.clone(),
        labels: spec.labels.clone(),
        model: spec.model.clone(),
        strategy: spec.strategy,
        python,
        near: spec.near.clone(),
        isolation: spec.isolation,
    }
}

impl Actor {
    /// It may not begin anew once more.
    pub fn is_spent(&self) -> bool {
        self.spec.max_restarts.is_some_and(|most| self.restarts >= most)
    }

    pub fn shape(&self) -> Shape {
        shape_of(&self.spec)
    }

    /// There is a turn for one more task.
    pub fn has_turn(&self) -> bool {
        let most = if self.alone { 1 } else { self.spec.concurrency as usize };
        self.running() < most && self.resting.len() < caps::TASKS_RESTING_MAX
    }

    /// Tasks that have a turn.
    pub fn running(&self) -> usize {
        self.tasks.len() - self.resting.len()
    }

    /// The task is not its own any more.
    pub fn drop_task(&mut self, task: &TaskId) {
        self.tasks.remove(task);
        self.resting.remove(task);
    }

    /// Takes all its tasks from it.
    pub fn drop_tasks(&mut self) -> BTreeMap<TaskId, u32> {
        self.resting.clear();
        std::mem::take(&mut self.tasks)
    }

    /// The stable name of its state.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            _ if self.moving.is_some() => "moving",
            ActorState::Live if self.stuck.is_some() => "stuck",
            _ => self.state.name(),
        }
    }

    pub fn status(&self, id: &ActorId) -> ActorStatus {
        let why = match &self.state {
            ActorState::Pending { why, .. } => Some(why.clone()),
            ActorState::Dead { error } => Some(error.message.clone()),
            ActorState::Starting | ActorState::Live => {
                let now = self.moving.as_ref().or(self.stuck.as_ref());
                now.or(self.last_restart.as_ref()).cloned()
            }
        };
        let was_on = self.last_node.as_ref().filter(|_| matches!(self.state, ActorState::Dead { .. }));
        ActorStatus {
            id: id.clone(),
            name: self.name.clone(),
            agent: self.spec.name.clone(),
            function: self.spec.function().map(str::to_owned),
            state: self.state_name().to_owned(),
            node: self.node.as_ref().or(was_on).cloned(),
            epoch: self.epoch,
            restarts: self.restarts,
            why,
        }
    }
}

/// All actors, and the ways to find them.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub actors: HashMap<ActorId, Actor>,
    /// All of them, for listings.
    pub ids: BTreeSet<ActorId>,
    pub names: BTreeMap<String, ActorId>,
    /// Pool actors of each agent, in the order they were made.
    pub pools: BTreeMap<AgentName, Vec<ActorId>>,
    /// Those that are over, oldest first.
    dead: VecDeque<ActorId>,
}

impl Directory {
    pub fn insert(&mut self, id: ActorId, actor: Actor) {
        if let Some(name) = &actor.name {
            self.names.insert(name.clone(), id.clone());
        }
        if actor.owner == Owner::Pool {
            self.pools.entry(actor.spec.name.clone()).or_default().push(id.clone());
        }
        self.ids.insert(id.clone());
        self.actors.insert(id, actor);
    }

    /// Nothing is known of the actor any more.
    pub fn remove(&mut self, id: &ActorId) {
        self.ids.remove(id);
        self.actors.remove(id);
    }

    /// Forgets an actor: its name is free again. Its record stays a while so that late callers learn why it is gone.
    pub fn retire(&mut self, id: &ActorId) {
        if let Some(actor) = self.actors.get(id) {
            if let Some(name) = &actor.name
                && self.names.get(name) == Some(id)
            {
                self.names.remove(name);
            }
            if let Some(pool) = self.pools.get_mut(&actor.spec.name) {
                pool.retain(|a| a != id);
            }
        }
        self.dead.push_back(id.clone());
        if self.dead.len() > DEAD_MAX
            && let Some(oldest) = self.dead.pop_front()
            && self.actors.get(&oldest).is_some_and(|a| matches!(a.state, ActorState::Dead { .. }))
        {
            self.remove(&oldest);
        }
    }
}
