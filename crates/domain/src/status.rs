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
    /// Why it serves no Python agents, where it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub no_python: String,
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
    /// `generate`, `embed`, `rank` or `transcribe`.
    pub task: String,
    /// In memory.
    pub loaded: bool,
    /// Bytes of weights on disk.
    pub bytes: u64,
    /// Bytes of memory for weights, keys and values, while it is loaded.
    #[serde(default)]
    pub memory: u64,
    /// What its engine has done since it was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Box<EngineStats>>,
}

/// What an engine has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineStats {
    /// Steps computed.
    pub steps: u64,
    /// Tokens of prompts computed.
    pub prompt_tokens: u64,
    /// Tokens made.
    pub made_tokens: u64,
    /// Tokens guessed ahead.
    pub guessed_tokens: u64,
    /// Of those, right.
    pub right_guesses: u64,
    /// Tokens of prompts looked up in the prefix cache.
    pub asked_tokens: u64,
    /// Of those, found.
    pub found_tokens: u64,
    /// Sequences in the last step.
    pub batch: u64,
    /// Sequences that wait.
    pub waiting: u64,
    /// Sequences that hold blocks.
    pub running: u64,
    /// Times that a sequence had to give its blocks back.
    pub preemptions: u64,
    /// Blocks of 16 positions.
    pub kv_blocks: u64,
    /// In nobody's hands, unknown to the prefix cache.
    pub kv_free: u64,
    /// Kept by the prefix cache for who comes.
    pub kv_cached: u64,
    /// Bytes of a block.
    pub kv_block_bytes: u64,
    /// Prefix blocks given up for others.
    pub evictions: u64,
    /// From the arrival of a request to the first token of its answer.
    pub first_token: Latency,
    /// Between two tokens of an answer.
    pub between_tokens: Latency,
}

/// Upper bounds of a [`Latency`]'s buckets, milliseconds; one more bucket holds what is above.
pub const LATENCY_BOUNDS_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// How often something took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Times in each bucket of [`LATENCY_BOUNDS_MS`], and above.
    pub buckets: [u64; 14],
    /// Sum of all times, microseconds.
    pub sum_us: u64,
}

impl Latency {
    /// Counts one.
    pub fn add(&mut self, took: std::time::Duration) {
        let ms = took.as_secs_f64() * 1e3;
        let bucket = LATENCY_BOUNDS_MS.iter().position(|bound| ms <= *bound as f64);
        self.buckets[bucket.unwrap_or(LATENCY_BOUNDS_MS.len())] += 1;
        self.sum_us += took.as_micros() as u64;
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
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
    /// Of an actor that runs functions: the one that it was made for; it runs others of the same options too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// `pending`, `starting`, `live`, `restarting` or `dead`.
    pub state: String,
    /// Where it is; of one that is dead, where it was.
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

impl ActorStatus {
    /// What people are told that it is: its agent, or the function that it was made for.
    pub fn shown_agent(&self) -> String {
        match &self.function {
            Some(function) => format!("function {function}"),
            None => self.agent.to_string(),
        }
    }
}

/// Something that waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// An actor or a task.
    pub what: String,
    /// Why.
    pub why: String,
}
