//! Webhooks that are told of a task: durable readers of its log.

use serde::{Deserialize, Serialize};

use crate::{AgentName, CallerId, Millis, TaskId};

/// One webhook of one task, and how far it has been told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Of which task.
    pub task: TaskId,
    /// Its id within the task.
    pub id: String,
    /// Whose.
    pub caller: CallerId,
    /// The task's agent.
    pub agent: AgentName,
    /// Where to and how, as the protocol that made it has it.
    pub config: String,
    /// It has everything of the log up to this entry …
    pub seq: u64,
    /// … and so much of what the next entry makes.
    pub more: u32,
    /// Where what is on its way to it ends, in the same terms: kept before it is sent, so that it is sent again as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_way: Option<(u64, u32)>,
    /// Times in a row it was not reached.
    pub attempts: u32,
    /// Not before this time it is tried again.
    pub due_ms: Millis,
    /// Where it stands.
    pub state: HookState,
    /// Why it was not reached, the last time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// Where a webhook stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookState {
    /// It is told what happens.
    Live,
    /// It has been told the end.
    Done,
    /// It could not be told, and is not tried again unless somebody asks for it.
    Dead,
}

impl HookState {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Done => "done",
            Self::Dead => "dead",
        }
    }

    /// The state of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Live, Self::Done, Self::Dead].into_iter().find(|state| state.name() == name)
    }
}
