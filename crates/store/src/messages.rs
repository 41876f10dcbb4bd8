//! Which messages made a task that is kept: a filter in memory says "no" for nearly all that did not, the tables know the rest.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use covey_domain::{AgentName, CallerId, TaskId, TaskRecord};
use sqlx::{Row as _, SqlitePool};

use crate::{Error, Store};

/// Bits of the filter: 8 MiB. With a million messages one in 80,000 unknown ones is looked for in vain.
const BITS: u64 = 1 << 26;
/// Bits a message sets.
const EACH: u64 = 4;
/// Rows that are read at once while the filter is filled.
const ROWS: i64 = 4_096;

/// A Bloom filter of messages. What it has not is not there; until it is filled it says nothing.
#[derive(Debug)]
pub(crate) struct Filter {
    words: Box<[AtomicU64]>,
    hash: [RandomState; 2],
    filled: AtomicBool,
}

impl Filter {
    pub fn new() -> Self {
        let words = (0..BITS / 64).map(|_| AtomicU64::new(0)).collect();
        Self { words, hash: [RandomState::new(), RandomState::new()], filled: AtomicBool::new(false) }
    }

    fn places(&self, caller: &str, agent: &str, message: &str) -> impl Iterator<Item = u64> {
        let [one, other] = [0, 1].map(|n| self.hash[n].hash_one((caller, agent, message)));
        (0..EACH).map(move |n| one.wrapping_add(n.wrapping_mul(other | 1)) % BITS)
    }

    pub fn insert(&self, caller: &str, agent: &str, message: &str) {
        for place in self.places(caller, agent, message) {
            self.words[(place / 64) as usize].fetch_or(1 << (place % 64), Ordering::Relaxed);
        }
    }

    pub fn insert_of(&self, record: &TaskRecord) {
        if let Some(message) = &record.message_id {
            self.insert(record.caller.as_str(), record.agent.as_str(), message);
        }
    }

    /// `false`: it is not there.
    pub fn may_have(&self, caller: &str, agent: &str, message: &str) -> bool {
        let has = |place: u64| self.words[(place / 64) as usize].load(Ordering::Relaxed) & 1 << (place % 64) != 0;
        !self.filled.load(Ordering::Acquire) || self.places(caller, agent, message).all(has)
    }

    /// Reads all messages of the tables; what is written meanwhile is inserted by who writes it.
    pub async fn fill(&self, readers: SqlitePool) -> Result<(), sqlx::Error> {
        let mut after = 0_i64;
        loop {
            let page = "SELECT rowid, caller, agent, message_id FROM tasks WHERE rowid > ? AND message_id IS NOT NULL
                ORDER BY rowid LIMIT ?";
            let rows = sqlx::query(page).bind(after).bind(ROWS).fetch_all(&readers).await?;
            for row in &rows {
                after = row.get(0);
                self.insert(row.get(1), row.get(2), row.get(3));
            }
            if (rows.len() as i64) < ROWS {
                self.filled.store(true, Ordering::Release);
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Store {
    /// The task that a message of this caller to this agent made, if it is kept: of all that was durable when this was called.
    /// Where there is none, which is nearly always, this costs no look at the disk.
    pub async fn task_of_message(
        &self,
        caller: &CallerId,
        agent: &AgentName,
        message: &str,
    ) -> Result<Option<TaskId>, Error> {
        if !self.messages.may_have(caller.as_str(), agent.as_str(), message) {
            return Ok(None);
        }
        // First beside the tables: what is not there any more then is in the tables.
        if let Some(task) = self.memtable.task_of_message(caller, agent, message) {
            return Ok(Some(task));
        }
        let found =
            sqlx::query_scalar::<_, String>("SELECT id FROM tasks WHERE message_id = ? AND caller = ? AND agent = ?")
                .bind(message)
                .bind(caller.as_str())
                .bind(agent.as_str())
                .fetch_optional(&self.readers)
                .await?;
        Ok(found.map(TaskId::from))
    }
}
