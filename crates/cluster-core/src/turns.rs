//! Messages to tasks that run, and tasks that wait for one.
//!
//! A message goes into the task's log first and to its worker then. The worker may hear it twice, never not at all: it is
//! told again when a link comes up, and a run after a lost one begins with all that was said before. A task that waits
//! for an answer holds no turn of its actor; on a node that is being emptied it is run again elsewhere, and asks the same.

use std::sync::Arc;

use covey_domain::{
    Error, ErrorKind, Millis, NodeId, TaskEvent, TaskId, TaskRecord, caps,
    event::{Content, Decision, Phase},
    task::text_of,
};

use crate::head::{Command, Head, Output};

impl Head {
    /// Takes a message to a task that has not ended: the answer to its oldest question, or a word to what it does. Gives
    /// the task and the number of the last entry of its log that the message made. The same message id is taken once.
    pub fn say(
        &mut self,
        id: &TaskId,
        by: &str,
        message_id: Option<String>,
        parts: Vec<Content>,
        now: Millis,
    ) -> Result<(Arc<TaskRecord>, u64), Error> {
        let ended = || Error::new(ErrorKind::FailedPrecondition, format!("task `{id}` has ended"));
        // The list of parts, the part; the event around them is counted with an input's.
        covey_domain::depth::check("the message", parts.as_slice(), 2)?;
        let task = self.tasks.active.get(id).ok_or_else(ended)?;
        if message_id.is_some()
            && let Some(known) = task.turns.said.iter().find(|said| said.message_id == message_id)
        {
            return Ok((task.record.clone(), known.seq));
        }
        if task.turns.said.len() >= caps::TASK_MESSAGES_MAX {
            let text = format!("task `{id}` had {} messages already", caps::TASK_MESSAGES_MAX);
            return Err(Error::new(ErrorKind::Overloaded, text).hint("begin a new task in the same context"));
        }
        let question = task.turns.asked.first().map(|(question, _)| question.clone());
        let (others, waits) = (task.turns.asked.len() > 1, task.record.state.waits());
        let mut events = Vec::new();
        if let Some(question) = &question {
            let decision = Decision::Accept { payload: payload(&parts), always: false };
            events.push(TaskEvent::InterruptResolved { id: question.clone(), decision, by: by.to_owned() });
        }
        // Where it does not wait, the run that asked was lost, and the next one finds the answer.
        if question.is_some() && waits {
            let state = if others { Phase::Waiting } else { Phase::Working };
            events.push(TaskEvent::Status { state, message: None });
        }
        events.push(TaskEvent::Steered { parts, by: by.to_owned(), message_id, answers: question.clone() });
        self.append(id, events, self.wall(now));
        let task = self.tasks.active.get(id).ok_or_else(ended)?;
        let (record, seq, attempt) = (task.record.clone(), task.seq, task.record.attempt);
        let actor = task.actor.as_ref().filter(|_| !task.orphan);
        let node = actor.and_then(|actor| self.directory.actors.get(actor)).and_then(|actor| actor.node.clone());
        if let (Some(node), Some(said)) = (node, task.turns.said.last().cloned()) {
            self.out.push_back(Output::Send(node, Command::Say { task: id.clone(), attempt, said }));
        }
        self.rest(id, now);
        self.settle(now);
        Ok((record, seq))
    }

    /// What was said to a task, for a worker that may have missed some of it.
    pub(crate) fn say_again(&mut self, node: &NodeId, id: &TaskId) {
        let Some(task) = self.tasks.active.get(id) else { return };
        for said in &task.turns.said {
            let say = Command::Say { task: id.clone(), attempt: task.record.attempt, said: said.clone() };
            self.out.push_back(Output::Send(node.clone(), say));
        }
    }

    /// Keeps the actor's books about a task that began to wait, or waits no more.
    pub(crate) fn rest(&mut self, id: &TaskId, now: Millis) {
        let Some(task) = self.tasks.active.get(id) else { return };
        let (waits, attempt, actor_id) = (task.record.state.waits(), task.record.attempt, task.actor.clone());
        let Some(actor_id) = actor_id else { return };
        let Some(actor) = self.directory.actors.get_mut(&actor_id) else { return };
        if actor.tasks.get(id) != Some(&attempt) {
            return;
        }
        if !waits {
            actor.resting.remove(id);
            return;
        }
        actor.resting.insert(id.clone());
        let node = actor.node.clone().filter(|node| self.nodes.get(node).is_some_and(|n| n.draining));
        let Some(node) = node else { return };
        if let Some(actor) = self.directory.actors.get_mut(&actor_id) {
            actor.drop_task(id);
        }
        let reason = "its node is being emptied".to_owned();
        self.task_lost(id, &Error::unavailable(&reason), now);
        self.out.push_back(Output::Send(node, Command::CancelTask { task: id.clone(), attempt, reason }));
        self.end_if_emptied(&actor_id, now);
    }
}

/// A message as a value: its data, else its text.
fn payload(parts: &[Content]) -> serde_json::Value {
    let data = parts.iter().filter_map(|part| if let Content::Data(value) = part { Some(value) } else { None });
    let data: Vec<_> = data.collect();
    match data.as_slice() {
        [one] => (*one).clone(),
        _ => serde_json::Value::String(text_of(parts)),
    }
}
