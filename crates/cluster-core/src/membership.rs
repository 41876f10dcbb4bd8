//! Who is a member, until when, and what it carries.

use std::collections::{BTreeMap, BTreeSet};

use covey_domain::{ActorId, Digest, Millis, ModelName, NodeId, Resources, isolation::Offer, status::ModelStatus};

use crate::{link::Inbox, scheduler::NodeView};

/// What a worker says of itself when it joins.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// Made when its process started.
    pub incarnation: u64,
    /// Human name.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// What it has.
    pub total: Resources,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Models it can serve.
    pub models: Vec<ModelStatus>,
    /// `major.minor` of its Python.
    pub python: Option<String>,
    /// Why it has none; may be empty.
    pub no_python: String,
    /// `host:port` of its own port; empty = none.
    pub port: String,
    /// How much it can keep processes from.
    pub isolation: Offer,
    /// Actors that live on it.
    pub actors: Vec<LivingActor>,
    /// Tasks it runs or has events of.
    pub tasks: Vec<HeldTask>,
}

/// An actor that lives on a worker that joins.
#[derive(Clone, Debug)]
pub struct LivingActor {
    /// Its id.
    pub actor: ActorId,
    /// Which activation.
    pub epoch: covey_domain::Epoch,
    /// Its agent.
    pub agent: covey_domain::AgentName,
    /// As the head said when it was started.
    pub owner: String,
    /// It is on its way up and takes no calls yet.
    pub starting: bool,
    /// How it stands: what counts is whether it is stuck, leaves, or waits.
    pub said: Option<crate::head::ActorReport>,
}

/// A member as the store keeps it: what a head that starts again must wait for, or know to be over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Which process.
    pub incarnation: u64,
    /// `host:port` of its own port; empty = none.
    pub port: String,
}

/// A task that a worker that joins holds.
#[derive(Clone, Debug)]
pub struct HeldTask {
    /// Its id.
    pub task: covey_domain::TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// On which actor.
    pub actor: ActorId,
}

/// One worker as the head sees it.
#[derive(Debug)]
pub(crate) struct Node {
    pub hello: Hello,
    pub state: NodeState,
    pub conn: u64,
    pub inbox: Inbox,
    pub free: Resources,
    /// Thousandths of CPUs that actors lent and want back, and that others have still.
    pub owed_cpu_milli: u64,
    pub actors: BTreeSet<ActorId>,
    /// Code blobs it holds already.
    pub blobs: BTreeSet<Digest>,
    pub tasks_done: u64,
    /// Takes no new actors; what it has is moved.
    pub draining: bool,
}

/// Live while its lease runs. A lost link takes nothing from the lease: the worker may act until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// Linked, until its next heartbeat is overdue.
    Live { until: Millis },
    /// Not linked; may act, and come back, until then.
    Suspect { until: Millis },
    /// Its epoch is over; what it still sends is refused.
    Dead,
}

/// Labels that every node has: its name, and its id.
pub(crate) const RESERVED_LABELS: [&str; 2] = ["node", "node_id"];

impl Node {
    pub fn is_live(&self) -> bool {
        matches!(self.state, NodeState::Live { .. })
    }

    pub fn expires(&self) -> Option<Millis> {
        match self.state {
            NodeState::Live { until } | NodeState::Suspect { until } => Some(until),
            NodeState::Dead => None,
        }
    }

    /// Its lease ends so much later.
    pub fn extend(&mut self, by: Millis) {
        match &mut self.state {
            NodeState::Live { until } | NodeState::Suspect { until } => *until += by,
            NodeState::Dead => {}
        }
    }

    pub fn state_name(&self) -> &'static str {
        match self.state {
            NodeState::Live { .. } => "live",
            NodeState::Suspect { .. } => "suspect",
            NodeState::Dead => "dead",
        }
    }

    pub fn view(&self, id: &NodeId) -> NodeView {
        let named = |m: &&ModelStatus| ModelName::from(m.name.as_str());
        NodeView {
            total: self.hello.total.clone(),
            free: self.free.clone(),
            labels: {
                // Beside what its user says: to ask for that node and no other.
                let mut labels = self.hello.labels.clone();
                labels.extend(
                    RESERVED_LABELS.map(str::to_owned).into_iter().zip([self.hello.name.clone(), id.to_string()]),
                );
                labels
            },
            loaded: self.hello.models.iter().filter(|m| m.loaded).map(|m| named(&m)).collect(),
            available: self.hello.models.iter().map(|m| named(&m)).collect(),
            actors: self.actors.len(),
            python: self.hello.python.clone(),
            no_python: self.hello.no_python.clone(),
            isolation: self.hello.isolation.clone(),
        }
    }
}
