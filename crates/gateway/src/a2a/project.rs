//! A task's log as A2A sees it: a pure function of the log's prefix, so that every reader, binding and replay gets the same
//! task and the same events. Types are 1.0's; 0.3 is made of them at the edge.
//!
//! What A2A has no form for (thoughts, tool calls as they grow, the state, …) reaches readers that declare [`EXTENSION_EVENTS`], as
//! updates of the status that carry the entry of the log; `docs/protocols.md` has the table.

use std::{collections::HashSet, sync::Arc};

use covey_a2a::{
    Fields, Timestamp,
    card::EXTENSION_EVENTS,
    content::{About, data_part, merge, part, state, text_part},
    v1,
};
use covey_domain::{
    Envelope, InterruptId, PartId, TaskEvent, TaskRecord, TaskState, ToolCallId,
    event::{Content, Delta, InterruptKind, MESSAGE, Outcome, PartKind, is_message},
};
use serde_json::{Value, json};
use v1::stream_response::Payload;

use crate::{fold, follow};

/// Folds a log into a task and tells what each entry adds to it.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    record: Arc<TaskRecord>,
    task: v1::Task,
    state: TaskState,
    /// Whether artifacts and messages are put into the task. A stream that has given its snapshot needs no more of it.
    folds: bool,
    /// Whether events are made. Who wants the task alone needs none.
    tells: bool,
    /// Whether entries that A2A has no form for are told as they are.
    shows: bool,
    /// Open parts whose text is for the reader.
    texts: Vec<PartId>,
    /// Tool calls that are not done.
    calls: Vec<Call>,
    /// Artifacts that have begun, and are begun anew after a step was reset.
    begun: HashSet<String>,
    /// What the task asks, until it is answered.
    asked: Vec<(InterruptId, v1::Message)>,
    /// The state that was told last.
    shown: TaskState,
    /// The message that is the whole answer, where there is one.
    reply: Option<v1::Message>,
    seq: u64,
}

/// A tool call as far as it is known.
#[derive(Clone, Debug)]
struct Call {
    id: ToolCallId,
    name: String,
    /// Shared with what resumes here; not of arguments that are large.
    arguments: Option<Arc<Value>>,
}

/// Bytes of a tool call's arguments that its messages repeat.
const ARGUMENTS_BYTES_MAX: usize = 64 << 10;

impl Call {
    /// As messages have it.
    fn shown(&self) -> Value {
        json!({"toolCall": {"id": self.id, "name": self.name, "arguments": self.arguments.as_deref()}})
    }
}

/// What later events of a stream depend on, at some place of a log; without what the task is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Bookmark {
    seq: u64,
    state: Option<TaskState>,
    shown: Option<TaskState>,
    texts: Vec<PartId>,
    calls: Vec<Call>,
    begun: HashSet<String>,
    asked: Vec<(InterruptId, v1::Message)>,
}

/// What a reader of a stream is sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frame {
    /// Boxed, like the reply: it goes through several streams, and each would copy it.
    pub event: Box<v1::StreamResponse>,
    /// At the end of a task: the message that is the whole answer, where there is one.
    pub reply: Option<Box<v1::Message>>,
}

impl follow::Projection for Projection {
    type Frame = Frame;
    type Bookmark = Bookmark;

    fn seq(&self) -> u64 {
        self.seq
    }

    fn shown(&self) -> TaskState {
        self.shown
    }

    fn push(&mut self, entry: &Arc<Envelope>) -> Vec<Frame> {
        let events = self.take(entry);
        let frame = |event| Frame { event: Box::new(event), reply: self.reply.clone().map(Box::new) };
        events.into_iter().map(frame).collect()
    }

    fn snapshot(&mut self) -> Option<Frame> {
        let event = v1::StreamResponse { payload: Some(Payload::Task(self.give())) };
        Some(Frame { event: Box::new(event), reply: None })
    }

    fn bookmark(&self) -> Bookmark {
        Bookmark {
            seq: self.seq,
            state: Some(self.state),
            shown: Some(self.shown),
            texts: self.texts.clone(),
            calls: self.calls.clone(),
            begun: self.begun.clone(),
            asked: self.asked.clone(),
        }
    }
}

impl fold::Fold for Projection {
    fn fold(record: Arc<TaskRecord>) -> Self {
        Self { tells: false, ..Self::new(record) }
    }

    fn forget(&mut self) {
        (self.folds, self.tells) = (false, false);
        (self.task.artifacts, self.task.history) = (Vec::new(), Vec::new());
        self.calls = Vec::new();
    }
}

impl Projection {
    /// Goes on behind a bookmark. It can tell events, and has nothing of the task before.
    pub fn resume(record: Arc<TaskRecord>, bookmark: Bookmark) -> Self {
        let Bookmark { seq, state, shown, texts, calls, begun, asked } = bookmark;
        let mut projection = Self { seq, texts, calls, begun, asked, ..Self::new(record) };
        projection.state = state.unwrap_or(projection.state);
        projection.shown = shown.unwrap_or(projection.shown);
        projection
    }

    pub fn new(record: Arc<TaskRecord>) -> Self {
        let task = v1::Task {
            id: record.id.to_string(),
            context_id: record.context.to_string(),
            history: vec![said_by_user(&record)],
            ..v1::Task::default()
        };
        let mut projection = Self {
            state: TaskState::Submitted,
            folds: true,
            tells: true,
            shows: false,
            texts: Vec::new(),
            calls: Vec::new(),
            begun: HashSet::new(),
            asked: Vec::new(),
            shown: TaskState::Submitted,
            reply: None,
            seq: 0,
            task,
            record,
        };
        projection.now(projection.record.created_ms, None);
        projection
    }

    /// A task as its record alone tells it: without what it made.
    pub fn of_record(record: Arc<TaskRecord>) -> Self {
        let (state, at) = (record.state, record.changed_ms);
        let mut projection = Self::new(record);
        projection.state = state;
        projection.now(at, None);
        projection
    }

    /// The message that is the whole answer, once the task has ended with one.
    pub fn reply(&self) -> Option<&v1::Message> {
        self.reply.as_ref()
    }

    /// The task as it stands.
    pub fn task(&self) -> v1::Task {
        self.task.clone()
    }

    /// The task as it stands, with at most so many of its latest messages.
    pub fn into_task(self, history: Option<usize>) -> v1::Task {
        let mut task = self.task;
        let all = task.history.len();
        task.history.drain(..all - history.unwrap_or(all).min(all));
        task
    }

    /// The task as it stands, for who keeps it; from here on events are told and not put together.
    pub fn give(&mut self) -> v1::Task {
        self.folds = false;
        let v1::Task { id, context_id, status, .. } = &self.task;
        let (id, context_id, status) = (id.clone(), context_id.clone(), status.clone());
        std::mem::replace(&mut self.task, v1::Task { id, context_id, status, ..v1::Task::default() })
    }

    /// From here on events are told and not put together.
    pub fn only_tell(&mut self) {
        self.folds = false;
        self.task.artifacts = Vec::new();
    }

    /// From here on entries that make no event are told as they are: the reader declared [`EXTENSION_EVENTS`].
    pub fn show_all(&mut self) {
        self.shows = true;
    }

    /// Takes an entry of the log; gives the events it makes.
    pub fn take(&mut self, envelope: &Envelope) -> Vec<v1::StreamResponse> {
        let events = self.events_of(envelope);
        if !events.is_empty() || !self.shows {
            return events;
        }
        self.told(|task| {
            let timestamp = Some(Timestamp::from_ms(envelope.ts_ms));
            let entry = serde_json::to_value(envelope).unwrap_or_default();
            Payload::StatusUpdate(v1::TaskStatusUpdateEvent {
                task_id: task.task.id.clone(),
                context_id: task.task.context_id.clone(),
                status: Some(v1::TaskStatus { state: state(task.shown).into(), message: None, timestamp }),
                metadata: Some(Fields(serde_json::Map::from_iter([(EXTENSION_EVENTS.to_owned(), entry)]))),
            })
        })
        .into_iter()
        .collect()
    }

    fn events_of(&mut self, envelope: &Envelope) -> Vec<v1::StreamResponse> {
        self.seq = envelope.seq;
        self.state = self.state.after(&envelope.event);
        let at = envelope.ts_ms;
        match &envelope.event {
            TaskEvent::Started { .. } => {
                self.now(at, None);
                if !self.tells {
                    return Vec::new();
                }
                // A message may be large, and only who puts the task together needs it again.
                let task = if self.folds { self.task() } else { self.give() };
                vec![v1::StreamResponse { payload: Some(Payload::Task(task)) }]
            }
            TaskEvent::Status { message, .. } => {
                let question = self.asked.first().filter(|_| self.state.waits());
                if self.shown == self.state && message.is_none() && question.is_none() {
                    return Vec::new();
                }
                let said = question.map(|(_, question)| question.clone());
                let said = said.or_else(|| message.as_ref().map(|text| self.said(vec![text_part(text)])));
                self.now(at, said);
                self.status_update().into_iter().collect()
            }
            TaskEvent::InterruptRaised { id, kind, prompt, options, response_schema, .. } => {
                let mut parts = vec![text_part(prompt)];
                let mut about = About { options: options.clone(), ..About::default() };
                match (kind, response_schema) {
                    (InterruptKind::Form { schema }, _) | (_, Some(schema)) => about.schema = Some(schema.clone()),
                    (InterruptKind::Url { url } | InterruptKind::Auth { url: Some(url) }, _) => {
                        about.url = Some(url.clone());
                    }
                    (InterruptKind::Custom { value }, _) if !value.is_null() => about.value = Some(value.clone()),
                    (InterruptKind::Approval { call }, _) => {
                        about.value = self.calls.iter().find(|known| known.id == *call).map(Call::shown);
                    }
                    (InterruptKind::Custom { .. } | InterruptKind::Auth { url: None }, _) => {}
                }
                if about != About::default() {
                    parts.push(data_part(&json!(about)));
                }
                let question = self.said(parts);
                self.asked.retain(|(other, _)| other != id);
                self.asked.push((id.clone(), question));
                Vec::new()
            }
            TaskEvent::InterruptResolved { id, .. } => {
                // A question stays in the conversation once it is answered.
                if let Some(at) = self.asked.iter().position(|(other, _)| other == id) {
                    let (_, question) = self.asked.remove(at);
                    if self.folds {
                        self.task.history.push(question);
                    }
                }
                Vec::new()
            }
            TaskEvent::Steered { parts, message_id, .. } => {
                if self.folds {
                    let own = || format!("{}-u{}", self.task.id, self.seq);
                    let message = v1::Message {
                        message_id: message_id.clone().unwrap_or_else(own),
                        role: v1::Role::User.into(),
                        ..self.said(parts.iter().map(part).collect())
                    };
                    self.task.history.push(message);
                }
                Vec::new()
            }
            TaskEvent::PartOpened { part, kind: PartKind::Text, .. } => {
                self.texts.push(part.clone());
                Vec::new()
            }
            TaskEvent::PartDelta { part, delta } => match delta {
                Delta::Text(text) if self.texts.contains(part) => {
                    self.answer(text_part(text), false).into_iter().collect()
                }
                Delta::Data(value) => self.answer(data_part(value), false).into_iter().collect(),
                Delta::Text(_) => Vec::new(),
            },
            TaskEvent::PartClosed { part, .. } => {
                self.texts.retain(|open| open != part);
                Vec::new()
            }
            TaskEvent::ToolCallOpened { call, name, .. } => {
                self.calls.push(Call { id: call.clone(), name: name.clone(), arguments: None });
                Vec::new()
            }
            TaskEvent::ToolCallReady { call, args, args_text } => {
                let Some(known) = self.calls.iter_mut().find(|known| known.id == *call) else { return Vec::new() };
                if envelope.event.weight() <= ARGUMENTS_BYTES_MAX {
                    known.arguments = Some(Arc::new(args.clone().unwrap_or_else(|| args_text.as_str().into())));
                }
                let parts = vec![text_part(&format!("calls `{}`", known.name)), data_part(&known.shown())];
                self.says(parts, at)
            }
            TaskEvent::ToolCallDone { call, .. } => {
                self.calls.retain(|open| open.id != *call);
                Vec::new()
            }
            TaskEvent::PlanUpdated { entries } => {
                let line = |entry: &covey_domain::event::PlanEntry| format!("[{}] {}", entry.status, entry.text);
                let text = entries.iter().map(line).collect::<Vec<_>>().join("\n");
                self.says(vec![text_part(&text), data_part(&json!({"plan": entries}))], at)
            }
            TaskEvent::UiSurface { surface, content } => {
                let artifact = v1::Artifact {
                    // Artifacts of the agent's own have a hyphen there.
                    artifact_id: format!("{}:ui:{surface}", self.task.id),
                    name: surface.clone(),
                    parts: vec![data_part(content)],
                    ..v1::Artifact::default()
                };
                self.chunk(artifact, false, false).into_iter().collect()
            }
            TaskEvent::Media { mime, source, name, .. } => {
                let content = Content::File { mime: mime.clone(), name: name.clone(), source: source.clone() };
                self.answer(part(&content), false).into_iter().collect()
            }
            TaskEvent::ArtifactChunk { artifact, name, parts, append, last } => {
                let made = v1::Artifact {
                    artifact_id: artifact.to_string(),
                    name: name.clone().unwrap_or_default(),
                    parts: parts.iter().map(part).collect(),
                    ..v1::Artifact::default()
                };
                self.chunk(made, *append, *last).into_iter().collect()
            }
            TaskEvent::StepReset { .. } => {
                self.begun.clear();
                self.asked.clear();
                self.calls.clear();
                self.texts.clear();
                self.task.artifacts.clear();
                Vec::new()
            }
            TaskEvent::Finished { outcome, .. } => self.finished(outcome, at),
            // A2A has no form for these.
            TaskEvent::StepStarted { .. }
            | TaskEvent::StepFinished { .. }
            | TaskEvent::MessageOpened { .. }
            | TaskEvent::MessageClosed { .. }
            | TaskEvent::PartOpened { .. }
            | TaskEvent::ThoughtDelta { .. }
            | TaskEvent::ToolCallArgsDelta { .. }
            | TaskEvent::ToolCallProgress { .. }
            | TaskEvent::StateSnapshot { .. }
            | TaskEvent::StateDelta { .. }
            | TaskEvent::SourceCited { .. }
            | TaskEvent::SubRunStarted { .. }
            | TaskEvent::SubRunFinished { .. }
            | TaskEvent::Usage { .. }
            | TaskEvent::Custom { .. } => Vec::new(),
        }
    }

    /// What the agent says of its work, while it works.
    fn says(&mut self, parts: Vec<v1::Part>, at: u64) -> Vec<v1::StreamResponse> {
        if self.state != TaskState::Working {
            return Vec::new();
        }
        let said = self.said(parts);
        self.now(at, Some(said));
        self.status_update().into_iter().collect()
    }

    fn finished(&mut self, outcome: &Outcome, at: u64) -> Vec<v1::StreamResponse> {
        let mut events = Vec::new();
        let said = match outcome {
            Outcome::Completed { finish, result: Some(result) } if is_message(finish) => {
                let parts: Vec<Content> = serde_json::from_value(result.clone()).unwrap_or_default();
                let message = self.said(parts.iter().map(part).collect());
                self.reply = Some(message.clone()).filter(|_| finish == MESSAGE);
                Some(message)
            }
            Outcome::Completed { result: Some(result), .. } if self.begun.is_empty() && !result.is_null() => {
                let part = match result {
                    Value::String(text) => text_part(text),
                    other => data_part(other),
                };
                events.extend(self.answer(part, true));
                None
            }
            Outcome::Completed { .. } => None,
            Outcome::Cancelled { reason, .. } | Outcome::Rejected { reason } => {
                Some(self.said(vec![text_part(reason)]))
            }
            Outcome::Failed { error } => Some(self.said(vec![text_part(&error.message)])),
        };
        self.now(at, said);
        events.extend(self.status_update());
        events
    }

    /// What the agent says beside its answer.
    fn said(&self, parts: Vec<v1::Part>) -> v1::Message {
        v1::Message {
            message_id: format!("{}-s{}", self.task.id, self.seq),
            context_id: self.task.context_id.clone(),
            task_id: self.task.id.clone(),
            role: v1::Role::Agent.into(),
            parts,
            ..v1::Message::default()
        }
    }

    fn now(&mut self, at: u64, message: Option<v1::Message>) {
        self.shown = self.state;
        let state = state(self.state).into();
        self.task.status = Some(v1::TaskStatus { state, message, timestamp: Some(Timestamp::from_ms(at)) });
    }

    fn told(&self, payload: impl FnOnce(&Self) -> Payload) -> Option<v1::StreamResponse> {
        self.tells.then(|| v1::StreamResponse { payload: Some(payload(self)) })
    }

    fn status_update(&self) -> Option<v1::StreamResponse> {
        self.told(|task| {
            Payload::StatusUpdate(v1::TaskStatusUpdateEvent {
                task_id: task.task.id.clone(),
                context_id: task.task.context_id.clone(),
                status: task.task.status.clone(),
                metadata: None,
            })
        })
    }

    /// More of the one artifact that what an agent says and yields makes.
    fn answer(&mut self, part: v1::Part, last: bool) -> Option<v1::StreamResponse> {
        let artifact = v1::Artifact {
            artifact_id: format!("{}-answer", self.task.id),
            name: "answer".into(),
            parts: vec![part],
            ..v1::Artifact::default()
        };
        self.chunk(artifact, true, last)
    }

    fn chunk(&mut self, artifact: v1::Artifact, append: bool, last: bool) -> Option<v1::StreamResponse> {
        let new = !self.begun.contains(&artifact.artifact_id);
        if new {
            self.begun.insert(artifact.artifact_id.clone());
        }
        let append = append && !new;
        if !self.folds {
            return self.told(|task| task.update(artifact, append, last));
        }
        let update = self.told(|task| task.update(artifact.clone(), append, last));
        match self.task.artifacts.iter_mut().find(|a| a.artifact_id == artifact.artifact_id) {
            Some(known) if append => artifact.parts.iter().for_each(|part| merge(&mut known.parts, part)),
            Some(known) => *known = artifact,
            None => self.task.artifacts.push(artifact),
        }
        update
    }

    fn update(&self, artifact: v1::Artifact, append: bool, last_chunk: bool) -> Payload {
        Payload::ArtifactUpdate(v1::TaskArtifactUpdateEvent {
            task_id: self.task.id.clone(),
            context_id: self.task.context_id.clone(),
            artifact: Some(artifact),
            append,
            last_chunk,
            metadata: None,
        })
    }
}

fn said_by_user(record: &TaskRecord) -> v1::Message {
    v1::Message {
        message_id: record.message_id.clone().unwrap_or_else(|| format!("{}-in", record.id)),
        context_id: record.context.to_string(),
        task_id: record.id.to_string(),
        role: v1::Role::User.into(),
        parts: record.input.content.iter().map(part).collect(),
        ..v1::Message::default()
    }
}

#[cfg(test)]
mod tests;
