//! What is written together.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use covey_domain::{ActorId, AgentSpec, Envelope, Millis, NodeId, TaskId, TaskRecord, TaskState};
use serde::{Deserialize, Serialize};

/// Changes that become durable together.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Batch {
    /// Agents registered or replaced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<Arc<AgentSpec>>,
    /// Tasks made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<Arc<TaskRecord>>,
    /// Tasks whose state or attempt changed; of several for one task the last holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskChange>,
    /// Events, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Arc<Envelope>>,
    /// Up to where each incarnation of a node is taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cursors: Vec<(NodeId, u64, u64)>,
    /// States of actors, in order; `None` = it has none any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<(ActorId, Option<Blob>)>,
    /// Detached actors, in order; `None` = it is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub actors: Vec<(ActorId, Option<DetachedActor>)>,
    /// Reminders by actor and name, in order; `None` = it is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reminders: Vec<(ActorId, String, Option<StoredReminder>)>,
    /// Listeners by topic and actor, and the method of each, in order; `None` = it listens no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<(String, ActorId, Option<String>)>,
}

/// A detached actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetachedActor {
    /// Unique name.
    pub name: Option<String>,
    /// What it is.
    pub spec: Arc<AgentSpec>,
    /// Constructor arguments, opaque.
    pub init: Option<Blob>,
}

/// A call to an actor at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredReminder {
    /// When, milliseconds since the epoch.
    pub due_ms: u64,
    /// Again this often.
    pub every_ms: Option<u64>,
    /// Which method.
    pub method: String,
    /// Its arguments, opaque.
    pub args: Blob,
}

/// A batch that is written and not known to be on disk.
#[derive(Debug)]
pub struct Written {
    pub(crate) number: u64,
    /// Of its record in the log.
    pub(crate) bytes: usize,
    pub(crate) batch: Batch,
}

impl Written {
    /// What was written.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}

/// What changes of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskChange {
    /// Of which task.
    pub id: TaskId,
    /// Its state.
    pub state: TaskState,
    /// Since when.
    pub changed_ms: Millis,
    /// Which attempt at it runs.
    pub attempt: u32,
}

impl TaskChange {
    /// How this record is now.
    pub fn of(record: &TaskRecord) -> Self {
        let TaskRecord { id, state, changed_ms, attempt, .. } = record;
        Self { id: id.clone(), state: *state, changed_ms: *changed_ms, attempt: *attempt }
    }

    pub(crate) fn over(&self, record: &TaskRecord) -> TaskRecord {
        let Self { state, changed_ms, attempt, .. } = *self;
        TaskRecord { state, changed_ms, attempt, ..record.clone() }
    }
}

/// Bytes of somebody else's making; base64 in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob(pub Arc<[u8]>);

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&base64::display::Base64Display::new(&self.0, &STANDARD))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        STANDARD.decode(&*text).map(|bytes| Self(bytes.into())).map_err(serde::de::Error::custom)
    }
}

impl Batch {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
            && self.made.is_empty()
            && self.tasks.is_empty()
            && self.events.is_empty()
            && self.cursors.is_empty()
            && self.states.is_empty()
            && self.actors.is_empty()
            && self.reminders.is_empty()
            && self.listeners.is_empty()
    }
}
