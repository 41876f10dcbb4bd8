//! The only vocabulary of what happens in a task: a superset of what any agent protocol can say.
//!
//! The log of a task is a sequence of [`Envelope`]s numbered from 1 without gaps. Every protocol is a projection of
//! a prefix of it, so ids that clients see (messages, parts, calls) are minted here and never in an adapter. Every kind of
//! event has a producer and a consumer: `docs/protocols.md` names both, and a test holds the page to this enum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AgentName, ArtifactId, ContextId, Digest, Error, InterruptId, MessageId, Millis, ModelName, PartId, SubRunId,
    TaskId, ToolCallId, caps, depth, infer::Usage, json,
};

/// One entry of a task's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// Whose log.
    pub task: TaskId,
    /// Number in the log, from 1, without gaps.
    pub seq: u64,
    /// When the writer made it, milliseconds since the epoch.
    pub ts_ms: Millis,
    /// The delegated work it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<SubRunId>,
    /// What happened.
    pub event: TaskEvent,
    /// Open for extensions; `gw` is reserved for the gateway.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, Value>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TaskEvent {
    /// The task is accepted; always number 1.
    Started {
        /// Which agent.
        agent: AgentName,
        /// Which conversation.
        context: ContextId,
        /// Which skill.
        skill: String,
        /// Model asked for, if the request named one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<ModelName>,
        /// Which protocol asked.
        protocol: String,
        /// The task this one was delegated from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<TaskId>,
        /// Interrupts this start answers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        resumes: Vec<InterruptId>,
    },
    /// Progress of the task as a whole.
    Status {
        /// Now.
        state: Phase,
        /// In words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// A step began; an attempt of a task is a step, and so is a model turn.
    StepStarted {
        /// Number, from 1.
        step: u32,
        /// In words.
        name: String,
    },
    /// A step ended.
    StepFinished {
        /// Number.
        step: u32,
        /// How.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        finish: Option<String>,
        /// What it used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        usage: Option<Usage>,
    },
    /// Forget what this step put out: it is tried again.
    StepReset {
        /// Number.
        step: u32,
    },
    /// A message began.
    MessageOpened {
        /// Its id.
        message: MessageId,
        /// Who speaks.
        role: Role,
        /// Which agent, when several speak.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        author: Option<AgentName>,
        /// The answer, or talk beside it.
        #[serde(default)]
        channel: Channel,
    },
    /// The message is complete.
    MessageClosed {
        /// Its id.
        message: MessageId,
    },
    /// A part of a message began.
    PartOpened {
        /// Of which message.
        message: MessageId,
        /// Its id.
        part: PartId,
        /// What it holds.
        kind: PartKind,
    },
    /// More of a part; never before its opener.
    PartDelta {
        /// Which part.
        part: PartId,
        /// More.
        delta: Delta,
    },
    /// More of a part of thoughts. It is another event than [`TaskEvent::PartDelta`], so that nobody takes it for a piece of the answer.
    ThoughtDelta {
        /// Which part.
        part: PartId,
        /// More text.
        text: String,
    },
    /// The part is complete.
    PartClosed {
        /// Which part.
        part: PartId,
        /// Bytes of all deltas together.
        len: u64,
        /// Where it is quoted from.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        citations: Vec<Value>,
    },
    /// A whole part of media at once.
    Media {
        /// Of which message.
        message: MessageId,
        /// Its id.
        part: PartId,
        /// Media type.
        mime: String,
        /// Where its bytes are.
        source: MediaSource,
        /// File name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// A tool call began.
    ToolCallOpened {
        /// Its id.
        call: ToolCallId,
        /// Tool.
        name: String,
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        title: Option<String>,
        /// Who runs it.
        exec: ToolExec,
        /// The message it is part of.
        message: MessageId,
        /// The provider's id of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provider_call: Option<String>,
    },
    /// More raw argument text.
    ToolCallArgsDelta {
        /// Which call.
        call: ToolCallId,
        /// Raw text.
        text: String,
    },
    /// Arguments are complete.
    ToolCallReady {
        /// Which call.
        call: ToolCallId,
        /// Raw text.
        args_text: String,
        /// Parsed; absent when it is not JSON.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        args: Option<Value>,
    },
    /// News from a running tool.
    ToolCallProgress {
        /// Which call.
        call: ToolCallId,
        /// In words.
        status: String,
        /// Content so far.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Value>,
        /// Done and total.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<(u64, u64)>,
    },
    /// The outcome of a tool call; exactly one for each call that was opened.
    ToolCallDone {
        /// Which call.
        call: ToolCallId,
        /// How it went.
        outcome: ToolOutcome,
        /// Id of the result, for protocols in which it is a message of its own.
        message: MessageId,
    },
    /// The task waits for somebody.
    InterruptRaised {
        /// Its id.
        id: InterruptId,
        /// What is asked.
        kind: InterruptKind,
        /// In words.
        prompt: String,
        /// Choices.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        options: Vec<Choice>,
        /// Schema of a good answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        response_schema: Option<Value>,
        /// When the question lapses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at_ms: Option<Millis>,
        /// It is asked again because this answer to it did not fit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refused: Option<Refusal>,
    },
    /// Somebody answered, or time did. Idempotent.
    InterruptResolved {
        /// Which.
        id: InterruptId,
        /// The answer.
        decision: Decision,
        /// Who.
        by: String,
    },
    /// The shared state, whole.
    StateSnapshot {
        /// The state.
        value: Value,
    },
    /// The shared state, changed.
    StateDelta {
        /// RFC 6902.
        patch: Value,
    },
    /// A piece of something produced beside the answer.
    ArtifactChunk {
        /// Which artifact.
        artifact: ArtifactId,
        /// File name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// The piece.
        parts: Vec<Content>,
        /// Adds to the artifact instead of replacing it.
        append: bool,
        /// Seals it.
        last: bool,
    },
    /// Something to draw.
    UiSurface {
        /// Which surface.
        surface: String,
        /// MCP app, A2UI, activity: as its protocol says.
        content: Value,
    },
    /// The plan, whole.
    PlanUpdated {
        /// Entries.
        entries: Vec<PlanEntry>,
    },
    /// A source was used.
    SourceCited {
        /// Its id.
        source: String,
        /// Link or document.
        content: Value,
    },
    /// Delegated work began.
    SubRunStarted {
        /// Its id.
        sub: SubRunId,
        /// In words.
        name: String,
        /// Who does it.
        agent: AgentName,
        /// `local`, `tool` or `a2a`, and the id there.
        via: String,
        /// Work it was delegated from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<SubRunId>,
    },
    /// Delegated work ended.
    SubRunFinished {
        /// Its id.
        sub: SubRunId,
        /// `success`, `suspended` or `error`.
        outcome: String,
    },
    /// Tokens were used.
    Usage {
        /// Where.
        provider: String,
        /// By which model.
        model: ModelName,
        /// How many.
        usage: Usage,
    },
    /// A message of the user was taken in mid-task.
    Steered {
        /// What was said.
        parts: Vec<Content>,
        /// Who.
        by: String,
        /// The asker's own id of the message.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message_id: Option<String>,
        /// The question it answers, if one was open.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answers: Option<InterruptId>,
    },
    /// An agent's own kind of event.
    Custom {
        /// Its name.
        name: String,
        /// Its value.
        value: Value,
    },
    /// The end; closes everything that is still open first.
    Finished {
        /// How.
        outcome: Outcome,
        /// Tokens of the whole task, by model.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        usage: BTreeMap<ModelName, Usage>,
    },
}

/// Where a task as a whole stands between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for an actor.
    Queued,
    /// An actor works on it.
    Working,
    /// Waiting for an answer from outside.
    Waiting,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// The answer, or talk beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Channel {
    #[default]
    Answer,
    Commentary,
}

/// What a part holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum PartKind {
    /// Text for the reader.
    Text,
    /// The model's thinking.
    Reasoning,
    /// JSON of a named shape; its deltas are whole values.
    Data {
        /// Name of the shape.
        name: String,
    },
}

/// More of a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delta {
    /// Text.
    Text(String),
    /// A JSON value.
    Data(Value),
}

impl Delta {
    /// Bytes of text in it; data has none of its own.
    pub fn text_bytes(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Data(_) => 0,
        }
    }
}

/// Where media are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaSource {
    /// Base64.
    Inline(String),
    /// A link.
    Url(String),
    /// In the artifact store: too large for the log.
    Stored {
        /// SHA-256 of its bytes.
        digest: Digest,
        /// How many they are.
        bytes: u64,
    },
}

impl MediaSource {
    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        match self {
            Self::Inline(text) | Self::Url(text) => text.len(),
            Self::Stored { digest, .. } => digest.as_str().len(),
        }
    }

    /// Whether it is too large to travel in its message: more than [`crate::caps::FILE_INLINE_MAX`].
    pub fn is_large(&self) -> bool {
        let Self::Inline(text) = self else { return false };
        // Four letters for three bytes.
        let padding = text.bytes().rev().take(2).filter(|b| *b == b'=').count();
        (text.len() / 4 * 3).saturating_sub(padding) > crate::caps::FILE_INLINE_MAX
    }

    /// The digest of what is in the artifact store.
    pub fn stored(&self) -> Option<&Digest> {
        match self {
            Self::Stored { digest, .. } => Some(digest),
            Self::Inline(_) | Self::Url(_) => None,
        }
    }
}

/// Who runs a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ToolExec {
    Server,
    Client,
    Provider,
}

/// How a tool call went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ToolOutcome {
    /// It answered.
    Ok {
        /// For the model.
        content: Vec<Content>,
        /// For programs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        structured: Option<Value>,
    },
    /// It failed.
    Error {
        /// In words.
        message: String,
    },
    /// It was not allowed.
    Denied {
        /// In words.
        reason: String,
    },
}

/// What is asked of somebody.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum InterruptKind {
    /// May this call run?
    Approval {
        /// The call.
        call: ToolCallId,
    },
    /// Fill this in.
    Form {
        /// JSON schema.
        schema: Value,
    },
    /// Go there.
    Url {
        /// Where.
        url: String,
    },
    /// Log in.
    Auth {
        /// Where.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
    },
    /// Something else.
    Custom {
        /// As the agent says.
        value: Value,
    },
}

/// One choice of an interrupt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Choice {
    pub id: String,
    pub label: String,
    pub kind: String,
}

/// An answer that did not fit what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The question that it answered.
    pub question: InterruptId,
    /// Why it does not fit.
    pub why: String,
}

/// The answer to an interrupt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Decision {
    /// Yes, with content.
    Accept {
        /// The content.
        payload: Value,
        /// For good, or once.
        #[serde(default)]
        always: bool,
    },
    /// No.
    Decline {
        /// Why.
        reason: String,
    },
    /// Forget it.
    Cancel,
    /// Nobody answered in time.
    Expired,
}

/// One entry of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PlanEntry {
    pub id: String,
    pub text: String,
    pub status: String,
    pub priority: String,
}

/// A whole piece of content: what goes in with a request, and what artifacts are made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Text.
    Text(String),
    /// JSON.
    Data(Value),
    /// Bytes or a link.
    #[serde(untagged)]
    File {
        /// Media type.
        mime: String,
        /// File name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Where its bytes are.
        source: MediaSource,
    },
}

impl Content {
    /// The digest of what is in the artifact store.
    pub fn stored(&self) -> Option<&Digest> {
        match self {
            Self::File { source, .. } => source.stored(),
            Self::Text(_) | Self::Data(_) => None,
        }
    }

    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Data(value) => json::weight(value),
            Self::File { source, .. } => source.weight(),
        }
    }
}

/// How a task ends whose whole answer is a message, which may stand for the task.
pub const MESSAGE: &str = "message";
/// How a task ends that has a message as its last word.
pub const REPLY: &str = "reply";

/// Whether a task that ended so has content of a message as its result.
pub fn is_message(finish: &str) -> bool {
    finish == MESSAGE || finish == REPLY
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Completed {
        /// `stop`, `length`, `tool_calls`, `filter`, `refusal` or `max_steps`; [`MESSAGE`] or [`REPLY`] where the result
        /// is content of a message.
        finish: String,
        /// What a method returned, as JSON, when it did not stream.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<Value>,
    },
    /// Somebody stopped it.
    Cancelled {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// The agent will not do it.
    Rejected {
        /// Why.
        reason: String,
    },
    /// Badly.
    Failed {
        /// How.
        error: Error,
    },
}

/// About how many bytes of memory some content takes.
fn weight_of(parts: &[Content]) -> usize {
    parts.iter().map(Content::weight).sum()
}

impl TaskEvent {
    /// Reads an event, like its `Deserialize`, which must keep all of it before it knows which one it is. What most logs
    /// have most of is known by how it begins, as we write it.
    pub fn read(json: &[u8]) -> serde_json::Result<Self> {
        macro_rules! short {
            ($event:ident { $($(#[$attribute:meta])? $field:ident: $of:ty),* $(,)? }) => {{
                #[derive(Deserialize)]
                struct Fields {
                    $($(#[$attribute])? $field: $of,)*
                }
                serde_json::from_slice(json).map(|Fields { $($field,)* }| Self::$event { $($field,)* })
            }};
        }
        let name = json.strip_prefix(br#"{"type":""#).and_then(|rest| rest.split(|byte| *byte == b'"').next());
        match name {
            Some(b"part_delta") => short!(PartDelta { part: PartId, delta: Delta }),
            Some(b"status") => short!(Status { state: Phase, message: Option<String>, }),
            Some(b"step_started") => short!(StepStarted { step: u32, name: String }),
            Some(b"step_finished") => {
                short!(StepFinished { step: u32, finish: Option<String>, usage: Option<Usage>, })
            }
            Some(b"message_opened") => short!(MessageOpened {
                message: MessageId,
                role: Role,
                author: Option<AgentName>,
                #[serde(default)]
                channel: Channel,
            }),
            Some(b"message_closed") => short!(MessageClosed { message: MessageId }),
            Some(b"part_opened") => short!(PartOpened { message: MessageId, part: PartId, kind: PartKind }),
            Some(b"part_closed") => short!(PartClosed {
                part: PartId,
                len: u64,
                #[serde(default)]
                citations: Vec<Value>,
            }),
            Some(b"finished") => short!(Finished {
                outcome: Outcome,
                #[serde(default)]
                usage: BTreeMap<ModelName, Usage>,
            }),
            _ => serde_json::from_slice(json),
        }
    }

    /// The kind of event, as its JSON has it under `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Status { .. } => "status",
            Self::StepStarted { .. } => "step_started",
            Self::StepFinished { .. } => "step_finished",
            Self::StepReset { .. } => "step_reset",
            Self::MessageOpened { .. } => "message_opened",
            Self::MessageClosed { .. } => "message_closed",
            Self::PartOpened { .. } => "part_opened",
            Self::PartDelta { .. } => "part_delta",
            Self::ThoughtDelta { .. } => "thought_delta",
            Self::PartClosed { .. } => "part_closed",
            Self::Media { .. } => "media",
            Self::ToolCallOpened { .. } => "tool_call_opened",
            Self::ToolCallArgsDelta { .. } => "tool_call_args_delta",
            Self::ToolCallReady { .. } => "tool_call_ready",
            Self::ToolCallProgress { .. } => "tool_call_progress",
            Self::ToolCallDone { .. } => "tool_call_done",
            Self::InterruptRaised { .. } => "interrupt_raised",
            Self::InterruptResolved { .. } => "interrupt_resolved",
            Self::StateSnapshot { .. } => "state_snapshot",
            Self::StateDelta { .. } => "state_delta",
            Self::ArtifactChunk { .. } => "artifact_chunk",
            Self::UiSurface { .. } => "ui_surface",
            Self::PlanUpdated { .. } => "plan_updated",
            Self::SourceCited { .. } => "source_cited",
            Self::SubRunStarted { .. } => "sub_run_started",
            Self::SubRunFinished { .. } => "sub_run_finished",
            Self::Usage { .. } => "usage",
            Self::Steered { .. } => "steered",
            Self::Custom { .. } => "custom",
            Self::Finished { .. } => "finished",
        }
    }

    /// Refuses what could be written and not read back.
    pub fn check(&self) -> Result<(), Error> {
        let around = match self {
            // The event, and its delta.
            Self::PartDelta { .. } => 2,
            // The event, its list of parts, the part.
            Self::Steered { .. } | Self::ArtifactChunk { .. } => 3,
            // The event and its outcome; and of a message the list of parts, and the part.
            Self::Finished { outcome: Outcome::Completed { finish, .. }, .. } if is_message(finish) => 4,
            Self::Finished { .. } | Self::InterruptResolved { .. } | Self::InterruptRaised { .. } => 2,
            _ => 4,
        };
        depth::check("an event", self, around)
    }

    /// Refuses names that are longer than [`caps::EVENT_NAME_MAX`].
    pub fn check_names(&self) -> Result<(), Error> {
        let names: [Option<&str>; 3] = match self {
            Self::ToolCallOpened { name, title, provider_call, .. } => {
                [Some(name), title.as_deref(), provider_call.as_deref()]
            }
            Self::SubRunStarted { name, agent, via, .. } => [Some(name), Some(agent.as_str()), Some(via)],
            Self::SubRunFinished { outcome, .. } => [Some(outcome), None, None],
            Self::Usage { provider, model, .. } => [Some(provider), Some(model.as_str()), None],
            Self::UiSurface { surface: name, .. }
            | Self::SourceCited { source: name, .. }
            | Self::Custom { name, .. } => [Some(name), None, None],
            Self::ArtifactChunk { artifact, name, .. } => [Some(artifact.as_str()), name.as_deref(), None],
            _ => return Ok(()),
        };
        match names.into_iter().flatten().map(str::len).max().filter(|len| *len > caps::EVENT_NAME_MAX) {
            Some(len) => {
                let (kind, most) = (self.kind(), caps::EVENT_NAME_MAX);
                Err(Error::invalid(format!("a name in `{kind}` has {len} bytes, the limit is {most}")))
            }
            None => Ok(()),
        }
    }

    /// Nothing may follow it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Finished { .. })
    }

    /// About how many bytes of memory it takes on its way.
    pub fn weight(&self) -> usize {
        // The event itself, and its JSON beside what is counted here.
        let own = 256;
        own + match self {
            Self::PartDelta { delta: Delta::Text(text), .. }
            | Self::ThoughtDelta { text, .. }
            | Self::ToolCallArgsDelta { text, .. } => text.len(),
            Self::PartDelta { delta: Delta::Data(value), .. } => json::weight(value),
            Self::ArtifactChunk { parts, .. } | Self::Steered { parts, .. } => weight_of(parts),
            Self::Media { source, .. } => source.weight(),
            Self::ToolCallReady { args_text, args, .. } => args_text.len() + args.as_ref().map_or(0, json::weight),
            Self::ToolCallProgress { status, content, .. } => status.len() + content.as_ref().map_or(0, json::weight),
            Self::ToolCallDone { outcome: ToolOutcome::Ok { content, structured }, .. } => {
                weight_of(content) + structured.as_ref().map_or(0, json::weight)
            }
            Self::ToolCallDone { outcome: ToolOutcome::Error { message: text }, .. }
            | Self::ToolCallDone { outcome: ToolOutcome::Denied { reason: text }, .. }
            | Self::Status { message: Some(text), .. } => text.len(),
            Self::InterruptRaised { prompt, kind, options, response_schema, .. } => {
                let asked = match kind {
                    InterruptKind::Form { schema: value } | InterruptKind::Custom { value } => json::weight(value),
                    InterruptKind::Approval { .. } | InterruptKind::Url { .. } | InterruptKind::Auth { .. } => 0,
                };
                let options: usize = options.iter().map(|o| own + o.id.len() + o.label.len() + o.kind.len()).sum();
                prompt.len() + asked + options + response_schema.as_ref().map_or(0, json::weight)
            }
            Self::StateSnapshot { value } | Self::StateDelta { patch: value } => json::weight(value),
            Self::UiSurface { surface: name, content: value }
            | Self::SourceCited { source: name, content: value }
            | Self::Custom { name, value } => name.len() + json::weight(value),
            Self::PlanUpdated { entries } => {
                let each = |e: &PlanEntry| own + e.id.len() + e.text.len() + e.status.len() + e.priority.len();
                entries.iter().map(each).sum()
            }
            Self::ToolCallOpened { name, title, provider_call, .. } => {
                let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                name.len() + len(title) + len(provider_call)
            }
            Self::SubRunStarted { name, agent, via, .. } => name.len() + agent.as_str().len() + via.len(),
            Self::Usage { provider, model, .. } => provider.len() + model.as_str().len(),
            Self::Finished { outcome: Outcome::Completed { result: Some(result), .. }, .. } => json::weight(result),
            // Names, numbers, ids.
            Self::Started { .. }
            | Self::Status { message: None, .. }
            | Self::StepStarted { .. }
            | Self::StepFinished { .. }
            | Self::StepReset { .. }
            | Self::MessageOpened { .. }
            | Self::MessageClosed { .. }
            | Self::PartOpened { .. }
            | Self::PartClosed { .. }
            | Self::InterruptResolved { .. }
            | Self::SubRunFinished { .. }
            | Self::Finished { .. } => 0,
        }
    }

    /// What it names of the artifact store.
    pub fn stored(&self) -> Vec<Digest> {
        let of = |parts: &[Content]| parts.iter().filter_map(Content::stored).cloned().collect();
        match self {
            Self::Media { source, .. } => source.stored().cloned().into_iter().collect(),
            Self::ArtifactChunk { parts, .. }
            | Self::Steered { parts, .. }
            | Self::ToolCallDone { outcome: ToolOutcome::Ok { content: parts, .. }, .. } => of(parts),
            Self::Finished { outcome: Outcome::Completed { finish, result: Some(result) }, .. }
                if is_message(finish) =>
            {
                serde_json::from_value::<Vec<Content>>(result.clone()).map(|parts| of(&parts)).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_event_is_named_with_its_producer_and_consumer() {
        // serde knows all variants, and says so.
        let error = serde_json::from_str::<TaskEvent>(r#"{"type":"?"}"#).unwrap_err().to_string();
        let (_, list) = error.split_once("expected one of ").unwrap();
        let (list, _) = list.split_once(" at line").unwrap_or((list, ""));
        let kinds: Vec<_> = list.split(", ").map(|kind| kind.trim_matches('`').to_owned()).collect();
        let page = include_str!("../../../docs/protocols.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let named: Vec<_> = rows
            .filter(|(_, rest)| {
                let mut cells = rest.split('|').skip(1).map(str::trim);
                cells.by_ref().take(2).all(|cell| !cell.is_empty())
            })
            .map(|(kind, _)| kind.to_owned())
            .collect();
        assert_eq!(named, kinds, "each kind has a row with a producer and a consumer, in the enum's order");
    }

    #[test]
    fn an_event_is_read_as_it_was_written() {
        for delta in [Delta::Text("a \"b\" \u{1f600}\n".into()), Delta::Data(serde_json::json!([1, {"x": null}]))] {
            let event = TaskEvent::PartDelta { part: "p".into(), delta };
            let json = serde_json::to_vec(&event).unwrap();
            assert!(json.starts_with(br#"{"type":"part_delta","#), "the short way is taken");
            assert_eq!(TaskEvent::read(&json).unwrap(), event);
        }
        let outcome = Outcome::Completed { finish: "stop".into(), result: Some(serde_json::json!([1])) };
        let usage = Usage { input: 3, ..Usage::default() };
        for event in [
            TaskEvent::Status { state: Phase::Working, message: None },
            TaskEvent::Status { state: Phase::Working, message: Some("on it".into()) },
            TaskEvent::StepStarted { step: 1, name: "attempt 1".into() },
            TaskEvent::StepFinished { step: 1, finish: None, usage: Some(usage) },
            TaskEvent::MessageOpened {
                message: "m".into(),
                role: Role::Assistant,
                author: Some("a".into()),
                channel: Channel::Answer,
            },
            TaskEvent::MessageClosed { message: "m".into() },
            TaskEvent::PartOpened { message: "m".into(), part: "p".into(), kind: PartKind::Text },
            TaskEvent::PartClosed { part: "p".into(), len: 3, citations: Vec::new() },
            TaskEvent::PartClosed { part: "p".into(), len: 3, citations: vec![serde_json::json!({"n": 1})] },
            TaskEvent::Finished { outcome: outcome.clone(), usage: BTreeMap::new() },
            TaskEvent::Finished { outcome, usage: BTreeMap::from([("m".into(), usage)]) },
            TaskEvent::StepReset { step: 1 },
        ] {
            let json = serde_json::to_vec(&event).unwrap();
            assert_eq!(TaskEvent::read(&json).unwrap(), event);
            assert_eq!(serde_json::from_slice::<TaskEvent>(&json).unwrap(), event, "the long way says the same");
        }
        let turned = br#"{"part":"p","delta":{"text":"x"},"type":"part_delta"}"#;
        assert!(matches!(TaskEvent::read(turned), Ok(TaskEvent::PartDelta { .. })));
        assert!(TaskEvent::read(br#"{"type":"part_delta","part":"p"}"#).is_err());
        assert!(TaskEvent::read(br#"{"type":"part_delta","part":"p","delta":{"text":"x"}} "#).is_ok());
        assert!(TaskEvent::read(br#"{"type":"part_delta","part":"p","delta":{"text":"x"}}}"#).is_err());
    }
}
