//! What is written together.

use std::{borrow::Cow, io::Write as _, ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use covey_domain::{
    ActorId, AgentSpec, DeadLetter, Digest, Envelope, Gang, Millis, NodeId, SessionId, TaskId, TaskRecord, TaskState,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    SessionActor,
    rows::{Entry, numbered},
    salvage::{self, Broken},
};

/// Events of a task that share a row, at most.
pub(crate) const EVENTS_PER_ROW: usize = 256;

/// Changes that become durable together.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Batch {
    /// A term began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// Agents registered or replaced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<Arc<AgentSpec>>,
    /// Tasks made.
    #[serde(skip)]
    pub made: Vec<Arc<TaskRecord>>,
    /// Tasks whose state or attempt changed; of several for one task the last holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskChange>,
    /// Events, in order.
    #[serde(skip)]
    pub events: Vec<Arc<Envelope>>,
    /// Up to where each incarnation of a node is taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cursors: Vec<(NodeId, u64, u64)>,
    /// States of actors, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<StateChange>,
    /// Lives of virtual and detached actors, in order: node and epoch; `None` = it is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub activations: Vec<(ActorId, Option<(NodeId, u64)>)>,
    /// Members, in order; `None` = it is one no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<(NodeId, Option<StoredMember>)>,
    /// The cluster's own clock, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ms: Option<u64>,
    /// Detached actors, in order; `None` = it is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub actors: Vec<(ActorId, Option<DetachedActor>)>,
    /// Reminders by actor and name, in order; `None` = it is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reminders: Vec<(ActorId, String, Option<StoredReminder>)>,
    /// Sessions that began, with the digests of their secrets, in order; `None` = it is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<(SessionId, Option<Digest>)>,
    /// Actors of sessions, in order; `None` = it is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub session_actors: Vec<(ActorId, Option<SessionActor>)>,
    /// Listeners by topic and actor, and the method of each, in order; `None` = it listens no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<(String, ActorId, Option<String>)>,
    /// Pairs of actors that are linked (`true`), or no more, in order; the smaller id first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<(ActorId, ActorId, bool)>,
    /// Gangs that wait for their places, by name, in order; `None` = it waits no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gangs: Vec<(ActorId, Option<Arc<Gang>>)>,
    /// Calls and tasks that were given up, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dead_letters: Vec<Arc<DeadLetter>>,
}

/// A change of an actor's state: whose, the state (`None` = it has none any more), and the epoch of the activation that wrote
/// it. The store keeps what the highest epoch wrote. Records of older versions do not say the epoch; it is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateChange(pub ActorId, pub Option<Blob>, #[serde(default)] pub u64);

/// A worker that was a member when the head was last heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMember {
    /// Which process.
    pub incarnation: u64,
    /// `host:port` of its own port; empty = none.
    pub port: String,
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
    /// As it was written.
    pub(crate) json: Json,
    pub(crate) batch: Batch,
}

/// A batch as JSON, and where in it lies what the tables take as it is.
#[derive(Debug)]
pub(crate) struct Json {
    pub text: String,
    /// Records of tasks.
    pub made: Vec<Range<usize>>,
    /// Events, in order: entries with commas between them.
    pub runs: Vec<Run>,
}

/// Neighbours of one task.
#[derive(Debug)]
pub(crate) struct Run {
    pub count: usize,
    pub at: Range<usize>,
}

/// What [`Batch::encode`] writes.
#[derive(Deserialize)]
struct Encoded<'a> {
    made: Vec<Arc<TaskRecord>>,
    #[serde(borrow)]
    runs: Vec<(TaskId, u64, &'a RawValue)>,
    rest: Batch,
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
    /// As JSON: records of tasks and runs of events first, each in one piece that the tables can take over.
    pub(crate) fn encode(&self) -> serde_json::Result<Json> {
        let mut text = Vec::with_capacity(512 * (1 + self.made.len()) + 192 * self.events.len());
        let (mut made, mut runs) = (Vec::with_capacity(self.made.len()), Vec::new());
        text.extend(b"{\"made\":[");
        for record in &self.made {
            next(&mut text);
            let start = text.len();
            serde_json::to_writer(&mut text, record)?;
            made.push(start..text.len());
        }
        text.extend(b"],\"runs\":[");
        let neighbours = self.events.chunk_by(|one, other| one.seq + 1 == other.seq && one.task == other.task);
        for run in neighbours.flat_map(|run| run.chunks(EVENTS_PER_ROW)) {
            next(&mut text);
            text.push(b'[');
            serde_json::to_writer(&mut text, &run[0].task)?;
            write!(text, ",{},[", run[0].seq).map_err(serde_json::Error::io)?;
            let start = text.len();
            for event in run {
                next(&mut text);
                serde_json::to_writer(&mut text, &Entry::of(event))?;
            }
            runs.push(Run { count: run.len(), at: start..text.len() });
            text.extend(b"]]");
        }
        text.extend(b"],\"rest\":");
        serde_json::to_writer(&mut text, self)?;
        text.push(b'}');
        let text = String::from_utf8(text).expect("serde_json writes UTF-8");
        Ok(Json { text, made, runs })
    }

    /// The other way round.
    pub(crate) fn decode(json: &[u8]) -> serde_json::Result<Self> {
        let Encoded { made, runs, rest } = serde_json::from_slice(json)?;
        let mut events = Vec::new();
        for (task, first, entries) in runs {
            events.extend(numbered(&task, first, entries.get())?.into_iter().map(Arc::new));
        }
        Ok(Self { made, events, ..rest })
    }

    /// The same for one that was taken before there was a rule for what can be read: what can be of it, and what cannot.
    pub(crate) fn decode_or_salvage(json: &[u8]) -> (Self, Vec<Broken>) {
        match Self::decode(json) {
            Ok(batch) => (batch, Vec::new()),
            Err(error) => salvage::batch(json, &error),
        }
    }

    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.term.is_none()
            && self.agents.is_empty()
            && self.made.is_empty()
            && self.tasks.is_empty()
            && self.events.is_empty()
            && self.cursors.is_empty()
            && self.states.is_empty()
            && self.actors.is_empty()
            && self.reminders.is_empty()
            && self.listeners.is_empty()
            && self.activations.is_empty()
            && self.members.is_empty()
            && self.clock_ms.is_none()
            && self.sessions.is_empty()
            && self.session_actors.is_empty()
            && self.links.is_empty()
            && self.gangs.is_empty()
            && self.dead_letters.is_empty()
    }
}

/// A comma, unless something begins here.
fn next(text: &mut Vec<u8>) {
    if text.last() != Some(&b'[') {
        text.push(b',');
    }
}
