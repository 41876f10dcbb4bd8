//! What is not tried again: calls that ended their actor's process time after time, and tasks out of attempts.
//!
//! And its opposite number, links: actors that end with each other.

use std::collections::VecDeque;

use covey_domain::{ActorId, AgentName, Error, ErrorKind, Millis, TaskId, caps};

use crate::{directory::ActorState, head::Head};

/// What was given up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// When.
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

/// The newest of them.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters(VecDeque<DeadLetter>);

impl DeadLetters {
    pub fn push(&mut self, letter: DeadLetter) {
        if self.0.len() == caps::DEAD_LETTERS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(letter);
    }
}

impl Head {
    /// What was given up, oldest first; of the last [`caps::DEAD_LETTERS_MAX`].
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.dead_letters.0.iter().cloned().collect()
    }

    /// A caller gave up a call that ended its actor's process time after time.
    pub fn dead_letter(&mut self, letter: DeadLetter) {
        self.dead_letters.push(letter);
    }

    /// From now on, each of the two ends when the other does, unless that was stopped gently.
    pub fn link(&mut self, one: &ActorId, other: &ActorId) -> Result<(), Error> {
        if one == other {
            return Err(Error::invalid("an actor cannot be linked to itself"));
        }
        for id in [one, other] {
            let actor = self.directory.actors.get(id).ok_or_else(|| Error::not_found("actor", id))?;
            if let ActorState::Dead { error } = &actor.state {
                return Err(Error::new(ErrorKind::ActorDied, format!("actor `{id}` is over: {}", error.message)));
            }
        }
        for (id, with) in [(one, other), (other, one)] {
            if let Some(actor) = self.directory.actors.get_mut(id) {
                actor.linked.insert(with.clone());
            }
        }
        Ok(())
    }

    /// An actor ended: those linked to it are next.
    pub(crate) fn doom_linked(&mut self, id: &ActorId, error: &Error) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        for other in std::mem::take(&mut actor.linked) {
            // The root cause travels along a chain of links, not a chain of causes.
            let text = match error.message.contains("it is linked to") {
                true => error.message.clone(),
                false => format!("actor `{id}`, which it is linked to, ended: {}", error.message),
            };
            self.doomed.push_back((other, Error::new(ErrorKind::ActorDied, text).executed(None)));
        }
    }
}
