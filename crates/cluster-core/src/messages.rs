//! Which message made which task: of tasks that run, and of those that ended last. Older ones are on disk, where the shell
//! looks before the verb.
//!
//! A task may end between that look and the verb, so a look says how many tasks had ended, and were on disk, when it began.
//! Where the memory does not reach back that far, the verb asks for another look.

use std::collections::VecDeque;

use covey_domain::{AgentName, CallerId, TaskId, TaskRecord, caps};
use hashbrown::HashMap;

/// Who sent what to whom.
type Key = (CallerId, AgentName, String);

fn key(record: &TaskRecord) -> Option<Key> {
    record.message_id.as_ref().map(|message| (record.caller.clone(), record.agent.clone(), message.clone()))
}

/// The memory.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    known: HashMap<Key, TaskId>,
    /// Ended last, oldest first.
    recent: VecDeque<(Key, TaskId)>,
    /// How many tasks with a message id have ended.
    ended: u64,
}

impl Messages {
    pub fn find(&self, caller: &CallerId, agent: &AgentName, message: &str) -> Option<&TaskId> {
        self.known.get(&(caller.clone(), agent.clone(), message.to_owned()))
    }

    /// Tasks that ended up to this number may be forgotten here.
    pub fn forgotten(&self) -> u64 {
        self.ended - self.recent.len() as u64
    }

    pub fn ended(&self) -> u64 {
        self.ended
    }

    pub fn begin(&mut self, record: &TaskRecord) {
        if let Some(key) = key(record) {
            self.known.insert(key, record.id.clone());
        }
    }

    pub fn end(&mut self, record: &TaskRecord) {
        let Some(key) = key(record) else { return };
        self.ended += 1;
        self.recent.push_back((key, record.id.clone()));
        if self.recent.len() > caps::MESSAGE_IDS_RECENT_MAX
            && let Some((key, task)) = self.recent.pop_front()
            // The disk may have forgotten the task before, and another was made of the same message.
            && self.known.get(&key) == Some(&task)
        {
            self.known.remove(&key);
        }
    }
}
