//! A durable request and its life.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    AgentName, CallerId, ContextId, Error, InterruptId, Millis, ModelName, TaskId, depth,
    event::{Content, InterruptKind, Outcome, Phase, TaskEvent},
};

/// A2A's life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Accepted and durable.
    Submitted,
    /// An actor works on it.
    Working,
    /// Waits for a form, a choice, a message.
    InputRequired,
    /// Waits for a login.
    AuthRequired,
    /// Ended well.
    Completed,
    /// Ended badly.
    Failed,
    /// Stopped by somebody.
    Canceled,
    /// The agent would not do it.
    Rejected,
}

impl TaskState {
    /// Nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled | Self::Rejected)
    }

    /// Somebody outside has to do something first.
    pub fn waits(self) -> bool {
        matches!(self, Self::InputRequired | Self::AuthRequired)
    }

    /// The state after `event`. Pure, so that every reader of a log agrees.
    #[must_use]
    pub fn after(self, event: &TaskEvent) -> Self {
        if self.is_terminal() {
            return self;
        }
        match event {
            TaskEvent::Status { state: Phase::Queued, .. } => Self::Submitted,
            TaskEvent::Status { state: Phase::Working, .. } => Self::Working,
            // A question says what it waits for, and comes before the status.
            TaskEvent::InterruptRaised { kind: InterruptKind::Auth { .. }, .. } => Self::AuthRequired,
            TaskEvent::InterruptRaised { .. } => Self::InputRequired,
            TaskEvent::Status { state: Phase::Waiting, .. } if self == Self::AuthRequired => self,
            TaskEvent::Status { state: Phase::Waiting, .. } => Self::InputRequired,
            TaskEvent::Finished { outcome, .. } => match outcome {
                Outcome::Completed { .. } => Self::Completed,
                Outcome::Cancelled { .. } => Self::Canceled,
                Outcome::Rejected { .. } => Self::Rejected,
                Outcome::Failed { .. } => Self::Failed,
            },
            _ => self,
        }
    }

    /// The state of this name.
    pub fn named(name: &str) -> Option<Self> {
        use TaskState::{AuthRequired, Canceled, Completed, Failed, InputRequired, Rejected, Submitted, Working};
        let all = [Submitted, Working, InputRequired, AuthRequired, Completed, Failed, Canceled, Rejected];
        all.into_iter().find(|state| state.name() == name)
    }

    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Working => "working",
            Self::InputRequired => "input-required",
            Self::AuthRequired => "auth-required",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
        }
    }
}

/// What a task was asked with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskInput {
    /// What a protocol message carried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content: Vec<Content>,
    /// Positional and keyword arguments in the agent's own language, base64; wins over `content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// Earlier turns of the conversation, oldest first, for agents that think in turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<crate::infer::ChatMessage>,
    /// Sampling options that the request puts over the agent's own.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub sampling: serde_json::Map<String, serde_json::Value>,
    /// W3C trace context of the request, if it came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Bound on each run, counted from the start of its turn, milliseconds; over the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_timeout_ms: Option<u64>,
    /// Which exceptions of the agent are no end of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<crate::Retry>,
}

impl TaskInput {
    /// All text in it, a line each.
    pub fn text(&self) -> String {
        text_of(&self.content)
    }

    /// Refuses what could be written and not read back.
    pub fn check(&self) -> Result<(), Error> {
        // The input, its list of contents, the content.
        depth::check("the message", self, 3)
    }

    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        let content: usize = self.content.iter().map(Content::weight).sum();
        let history: usize = self.history.iter().map(|message| message.content.len()).sum();
        content + history + self.call.as_ref().map_or(0, String::len)
    }
}

/// All text in a message, a line each; data as JSON, files left out.
pub fn text_of(content: &[Content]) -> String {
    let texts = content.iter().filter_map(|c| match c {
        Content::Text(text) => Some(text.clone()),
        Content::Data(value) => Some(value.to_string()),
        Content::File { .. } => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// A task as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its id.
    pub id: TaskId,
    /// Its conversation.
    pub context: ContextId,
    /// Its agent.
    pub agent: AgentName,
    /// Its skill.
    pub skill: String,
    /// Who asked; nobody else sees it.
    pub caller: CallerId,
    /// The asker's id of the message: the same one makes the same task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Model asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Which protocol asked.
    pub protocol: String,
    /// What was asked. Shared: it may be much, and a record is copied with each change of its state.
    pub input: Arc<TaskInput>,
    /// Now.
    pub state: TaskState,
    /// When it was accepted.
    pub created_ms: Millis,
    /// When its status changed last.
    #[serde(default)]
    pub changed_ms: Millis,
    /// Its bound, from acceptance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// When that has passed, by the cluster's own clock, which no wall clock moves and which stands while there is no head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<Millis>,
    /// Attempts so far; the attempt's number is its epoch.
    #[serde(default)]
    pub attempt: u32,
}

/// A message to a task that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Its number in the task's log. Whoever has heard it takes it no second time.
    pub seq: u64,
    /// The question it answers, if one was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<InterruptId>,
    /// The words of that question: a run after a lost one asks it again, and knows it by them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt: String,
    /// The asker's own id of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// What was said.
    pub parts: Vec<Content>,
}
