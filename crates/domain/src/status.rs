//! What `covey status` shows: a picture of the cluster at one moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ActorId, AgentName, Epoch, NodeId, Resources};

/// The whole picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// Version of the head.
    pub version: String,
    /// Seconds since the head started.
    pub uptime_s: u64,
    /// Every node known since the start.
    pub nodes: Vec<NodeStatus>,
    /// Actors by state.
    pub actor_counts: BTreeMap<String, u64>,
    /// The first [`crate::caps::STATUS_ACTORS_MAX`] actors, those that live before those that are over; a listing has all.
    pub actors: Vec<ActorStatus>,
    /// Tasks by state.
    pub tasks: BTreeMap<String, u64>,
    /// What waits, and why; of actors, those among `actors`.
    pub pending: Vec<Pending>,
}

/// Which actors are listed; an empty filter takes all.
#[derive(Clone, Debug, Default)]
pub struct ActorFilter {
    /// Of this agent.
    pub agent: String,
    /// In this state.
    pub state: String,
    /// On this node, by id.
    pub node: String,
    /// Of this name, or this id.
    pub name: String,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its human name.
    pub name: String,
    /// `live`, `suspect` (link lost, lease running) or `dead`.
    pub state: String,
    /// What it has.
    pub total: Resources,
    /// What is left.
    pub free: Resources,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Models it can serve.
    pub models: Vec<ModelStatus>,
    /// Process id.
    pub pid: u32,
    /// Actors on it.
    #[serde(default)]
    pub actors: u64,
    /// Tasks it runs now.
    pub tasks_running: u64,
    /// Tasks it has finished since it joined.
    pub tasks_done: u64,
}

/// One model on one worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Name.
    pub name: String,
    /// `llama`, `qwen2`, `qwen3`, `bert`, `upstream`.
    pub family: String,
    /// `generate`, `embed` or `rank`.
    pub task: String,
    /// In memory.
    pub loaded: bool,
    /// Bytes of weights on disk.
    pub bytes: u64,
}

/// One actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActorStatus {
    /// Its id.
    pub id: ActorId,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its agent.
    pub agent: AgentName,
    /// `pending`, `starting`, `live`, `restarting` or `dead`.
    pub state: String,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Which activation.
    pub epoch: Epoch,
    /// Restarts so far.
    pub restarts: u32,
    /// Why it is pending or dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Something that waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// An actor or a task.
    pub what: String,
    /// Why.
    pub why: String,
}
