//! What is not tried again.

use serde::{Deserialize, Serialize};

use crate::{ActorId, AgentName, Error, Millis, TaskId};

/// A call or a task that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// When, by the wall clock.
    pub at_ms: Millis,
    /// Of which agent.
    pub agent: AgentName,
    /// On which actor; `None` for a task.
    pub actor: Option<ActorId>,
    /// The task; `None` for a call.
    pub task: Option<TaskId>,
    /// Method or skill.
    pub method: String,
    /// Bytes of the arguments.
    pub bytes: u64,
    /// Processes it ended, or attempts it had.
    pub attempts: u32,
    /// The last one's end.
    pub error: Error,
}
