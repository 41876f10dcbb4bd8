//! The log of a task, from the side of the turn that runs it: which events the turn may write, and what they are there.

use std::sync::Arc;

use covey_domain::{
    Error, TaskEvent, TaskId,
    event::{Content, Decision, InterruptKind, Outcome, Phase, is_message},
    log::Writer,
};
use parking_lot::Mutex;
use serde::Deserialize as _;
use tokio::sync::mpsc;

use super::Control;
use crate::runtime::Report;

/// The log of a task, from the side of the turn that runs it.
pub(super) struct TaskLog {
    pub out: mpsc::UnboundedSender<Report>,
    pub task: TaskId,
    pub attempt: u32,
    pub writer: Mutex<Option<Writer>>,
    pub control: Arc<Control>,
    /// How it will end, where the turn has said so.
    pub ending: Mutex<Option<Outcome>>,
    /// Why something it said could not go into the log, which is how it ends then.
    pub broken: Mutex<Option<Error>>,
}

impl TaskLog {
    /// The entries that an event of the turn makes, with the ids of the log. Nothing once the turn has ended.
    pub fn entries(&self, event: TaskEvent) -> Result<Vec<TaskEvent>, Error> {
        let mut writer = self.writer.lock();
        let Some(writer) = writer.as_mut() else { return Ok(Vec::new()) };
        let inbox = &self.control.inbox;
        Ok(match event {
            TaskEvent::Status { message, .. } => {
                let state = if inbox.0.lock().asked.is_empty() { Phase::Working } else { Phase::Waiting };
                vec![TaskEvent::Status { state, message }]
            }
            TaskEvent::InterruptRaised { id, kind, prompt, options, response_schema, expires_at_ms, refused } => {
                let kind = match kind {
                    InterruptKind::Approval { call } => InterruptKind::Approval { call: writer.call_id(call.as_str()) },
                    other => other,
                };
                inbox.0.lock().asked.push(id.clone());
                let raised =
                    TaskEvent::InterruptRaised { id, kind, prompt, options, response_schema, expires_at_ms, refused };
                vec![raised, TaskEvent::Status { state: Phase::Waiting, message: None }]
            }
            // Nobody answered in time; what was answered is told by the head.
            TaskEvent::InterruptResolved { id, decision: Decision::Expired, .. } => {
                let mut heard = inbox.0.lock();
                heard.asked.retain(|asked| *asked != id);
                let state = if heard.asked.is_empty() { Phase::Working } else { Phase::Waiting };
                vec![
                    TaskEvent::InterruptResolved { id, decision: Decision::Expired, by: "time".into() },
                    TaskEvent::Status { state, message: None },
                ]
            }
            TaskEvent::ThoughtDelta { text, .. } => writer.thought(&text),
            TaskEvent::ToolCallOpened { call, name, title, exec, provider_call, .. } => {
                writer.call(call.as_str(), name, title, exec, provider_call)
            }
            TaskEvent::ToolCallArgsDelta { call, text } => {
                vec![TaskEvent::ToolCallArgsDelta { call: writer.call_id(call.as_str()), text }]
            }
            TaskEvent::ToolCallReady { call, args_text, args } => {
                vec![TaskEvent::ToolCallReady { call: writer.call_id(call.as_str()), args_text, args }]
            }
            TaskEvent::ToolCallProgress { call, status, content, progress } => {
                vec![TaskEvent::ToolCallProgress { call: writer.call_id(call.as_str()), status, content, progress }]
            }
            TaskEvent::ToolCallDone { call, outcome, .. } => writer.call_done(call.as_str(), outcome),
            TaskEvent::SubRunStarted { sub, name, agent, via, .. } => {
                let via = match via.strip_prefix("tool:") {
                    Some(call) => format!("tool:{}", writer.call_id(call)),
                    None => via,
                };
                writer.sub(sub.as_str(), name, agent, via)
            }
            TaskEvent::SubRunFinished { sub, outcome } => writer.sub_done(sub.as_str(), outcome),
            TaskEvent::ArtifactChunk { artifact, name, parts, append, last } => {
                let artifact = format!("{}-{artifact}", self.task).into();
                vec![TaskEvent::ArtifactChunk { artifact, name, parts, append, last }]
            }
            TaskEvent::Finished { outcome, .. } => {
                let is_last_word = match &outcome {
                    Outcome::Completed { finish, result: Some(result) } => {
                        let parts = Vec::<Content>::deserialize(result).is_ok_and(|parts| !parts.is_empty());
                        is_message(finish) && parts
                    }
                    Outcome::Completed { result: None, .. } => false,
                    Outcome::Rejected { .. } => true,
                    Outcome::Cancelled { .. } | Outcome::Failed { .. } => false,
                };
                if !is_last_word {
                    return Err(Error::invalid(
                        "a turn ends with what it returns or raises, a message, or a rejection",
                    ));
                }
                *self.ending.lock() = Some(outcome);
                Vec::new()
            }
            event @ (TaskEvent::StateSnapshot { .. }
            | TaskEvent::StateDelta { .. }
            | TaskEvent::UiSurface { .. }
            | TaskEvent::PlanUpdated { .. }
            | TaskEvent::SourceCited { .. }
            | TaskEvent::Usage { .. }
            | TaskEvent::Custom { .. }) => vec![event],
            // The answer goes another way, and the rest is the head's to write.
            event @ (TaskEvent::Started { .. }
            | TaskEvent::StepStarted { .. }
            | TaskEvent::StepFinished { .. }
            | TaskEvent::StepReset { .. }
            | TaskEvent::MessageOpened { .. }
            | TaskEvent::MessageClosed { .. }
            | TaskEvent::PartOpened { .. }
            | TaskEvent::PartDelta { .. }
            | TaskEvent::PartClosed { .. }
            | TaskEvent::Media { .. }
            | TaskEvent::InterruptResolved { .. }
            | TaskEvent::Steered { .. }) => {
                return Err(Error::invalid(format!("`{}` is not an event that a turn may write", event.kind())));
            }
        })
    }

    /// The turn said what the log cannot keep; the first such thing is why the task fails.
    pub fn breaks(&self, error: Error) {
        self.broken.lock().get_or_insert(error);
    }
}
