//! Durability: what the head must find again after any death. The only door to SQL.
//!
//! One SQLite file in WAL mode and a log in front of it. All changes of one group commit travel in one [`Batch`], which is
//! one record of the log: after [`Store::sync`] they survive the loss of the process and of power, and readers see them. The tables
//! get them a little later, in large groups; who lists waits for that. After a failure the caller must stop; retrying a
//! failed fsync is not safe. A full disk is no failure: see [`Store::capacity`].
//!
//! The bodies of specs, records and events are JSON text, so `sqlite3 covey.db` shows them as they are. A record is
//! written once; what changes of it has columns of its own, which hold. A row of events has a run of them, its number is
//! that of the last.

mod age;
mod artifacts;
mod batch;
mod checkpoints;
mod fault;
mod flusher;
#[cfg(fuzzing)]
pub mod fuzzing;
mod group;
mod hooks;
mod links;
mod log;
mod memtable;
mod messages;
mod open;
mod read;
mod retain;
mod rows;
mod salvage;
mod schema;
mod sessions;
mod snapshot;
mod sums;
mod tables;
mod transaction;
pub mod upkeep;
mod usage;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use covey_domain::{CallerId, Envelope, TaskId, caps};
use sqlx::{Row as _, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, watch};

pub use batch::{Batch, Blob, DetachedActor, StateChange, StoredMember, StoredReminder, TaskChange, Written};
pub use links::StoredLinks;
pub use read::{TaskFilter, TaskPage};
pub use retain::{Forgotten, Retention};
pub use salvage::Broken;
pub use sessions::{SessionActor, StoredSessions};
pub use snapshot::{Page, Snapshot, StoredTask};

use crate::{
    age::Age,
    fault::Fault,
    log::{Log, Watermark},
    memtable::Memtable,
    messages::Filter,
    usage::Usage,
};

/// Why the store cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is of a later version of Covey.
    #[error("the store has schema version {found}, this program writes {written}", written = schema::VERSION)]
    Version {
        /// Of the file.
        found: i64,
    },
    /// A body is not what this version writes.
    #[error("failed to read a stored {what}")]
    Body {
        /// Of what.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// What was on disk cannot be read any more.
    #[error("the log `{file}` is damaged at byte {at}: {why}")]
    Damaged {
        /// Which file.
        file: String,
        /// Where.
        at: u64,
        /// How.
        why: String,
    },
    /// A file is not there.
    #[error("`{file}` is missing, and the rest of the store is there")]
    Missing {
        /// Which file.
        file: String,
    },
    /// A file belongs to another store.
    #[error("the log `{file}` belongs to another store")]
    Foreign {
        /// Which file.
        file: String,
    },
    /// There is a log, and the tables know of none: they, or the part of them that is in their write-ahead log, were lost.
    #[error(
        "the log `{log}` holds records, and the tables `{tables}` know of no log: the tables or their `-wal` file were lost, or \
         are of another store; restore a backup, or move the log away to go on without what it holds"
    )]
    Orphan {
        /// Which file.
        log: String,
        /// The tables beside it.
        tables: String,
    },
    /// The tables are damaged, or a page of them that was read is.
    #[error("the tables `{file}` are damaged: {why}")]
    Corrupt {
        /// Which file.
        file: String,
        /// What SQLite says, or which page it is.
        why: String,
    },
    /// The log could not be read or written.
    #[error("failed to read or write the log")]
    Log(#[source] std::io::Error),
    /// Another process has it.
    #[error("another head uses this store")]
    InUse,
    /// It is not known any more what is on disk.
    #[error("the store cannot go on: {0}")]
    Lost(String),
    /// SQLite failed.
    #[error(transparent)]
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for Error {
    /// A damaged page is told as such; SQLite says "disk I/O error".
    fn from(error: sqlx::Error) -> Self {
        match covey_pages::latest().filter(|_| fault::is_damaged_page(&error)) {
            Some(damage) => Self::Corrupt { file: damage.database.display().to_string(), why: damage.to_string() },
            None => Self::Sql(error),
        }
    }
}

/// Why the store takes no more for now. What is under way still has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// It takes more.
    Free,
    /// The tables are far behind the log; they catch up.
    Behind,
    /// The disk is full.
    DiskFull,
}

/// One SQLite file and the log in front of it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    log: parking_lot::Mutex<Log>,
    watermark: Arc<Watermark>,
    memtable: Arc<Memtable>,
    messages: Arc<Filter>,
    writer: Arc<Mutex<SqliteConnection>>,
    /// Bytes that checkpoints wait for.
    flushed: Arc<watch::Sender<u64>>,
    readers: SqlitePool,
    /// For what walks over many rows: nothing that looks for one thing stands behind it.
    lister: SqlitePool,
    age: Arc<Age>,
    usage: Arc<Usage>,
    fault: Fault,
    /// Tasks of the log that could not be read whole, and why.
    broken: parking_lot::Mutex<BTreeMap<TaskId, String>>,
    background: Vec<tokio::task::AbortHandle>,
    /// What flushes ends once this is gone.
    _open: watch::Sender<()>,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.background.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// A file that belongs to the one at `path`.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Store {
    /// Whether another batch should be made. Whoever makes work asks before it does.
    pub fn capacity(&self) -> Capacity {
        let mut log = self.log.lock();
        if !log.has_room() {
            return Capacity::DiskFull;
        }
        if !self.memtable.is_full() && log.length() < caps::STORE_LOG_BYTES_MAX {
            return Capacity::Free;
        }
        if self.is_stuck() { Capacity::DiskFull } else { Capacity::Behind }
    }

    /// Bytes that the tasks of a caller take in the tables, with the files that they name; what is in the log alone is not counted.
    pub fn usage(&self, caller: &CallerId) -> u64 {
        self.usage.of(caller)
    }

    /// Waits until the tables have caught up somewhat, at most so long.
    pub async fn caught_up(&self, patience: Duration) {
        let mut flushed = self.memtable.flushed.subscribe();
        flushed.mark_unchanged();
        if self.capacity() == Capacity::Behind {
            let _ = tokio::time::timeout(patience, flushed.changed()).await;
        }
    }

    /// The tables cannot be written for now.
    fn is_stuck(&self) -> bool {
        self.memtable.stuck.load(Ordering::Acquire)
    }

    /// Ends with the reason when the store cannot go on: the process must end then, and a new one read what is on disk.
    pub async fn failed(&self) -> String {
        self.fault.raised().await
    }

    /// Writes a batch, whole or not at all. It outlives the process from now on, and once it was [`Self::sync`]ed the machine.
    pub fn write(&self, batch: Batch) -> Result<Written, Error> {
        self.fault.check()?;
        batch.made.iter().for_each(|record| self.messages.insert_of(record));
        let json = batch.encode().map_err(|e| Error::Log(e.into()))?;
        let number = self.log.lock().write(&json, &self.watermark).map_err(Error::Log)?;
        Ok(Written { number, json, batch })
    }

    /// Returns once what was written is on disk and shown to readers; gives the events of it. Blocks the thread: it is an
    /// fsync. After an error the caller must stop.
    pub fn sync(&self, written: Vec<Written>) -> Result<Vec<Arc<Envelope>>, Error> {
        self.probe()?;
        Ok(self.memtable.keep(written))
    }

    /// Syncs the log, whether there is something new in it or not. Blocks the thread.
    pub fn probe(&self) -> Result<(), Error> {
        self.fault.check()?;
        // Others may write meanwhile.
        let (file, number) = self.log.lock().unsynced();
        file.sync_data().map_err(Error::Log)?;
        let other = {
            let mut log = self.log.lock();
            log.mark(number, &self.watermark).map_err(Error::Log)?;
            log.make_ready(&self.watermark).map_err(Error::Log)?
        };
        let Some(other) = other else { return Ok(()) };
        other.sync_data().map_err(Error::Log)?;
        self.log.lock().made_ready();
        Ok(())
    }

    /// Keeps a blob under its digest.
    pub async fn put_blob(&self, digest: &str, body: &[u8]) -> Result<(), Error> {
        let mut db = self.writer.lock().await;
        let put = "INSERT INTO blobs VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE SET used_at = excluded.used_at";
        let done = sqlx::query(put).bind(digest).bind(body).bind(self.age.now() as i64).execute(&mut *db).await;
        self.fault.sound(done).map(drop)
    }

    /// The blob of this digest.
    pub async fn blob(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        let row =
            sqlx::query("SELECT body FROM blobs WHERE digest = ?").bind(digest).fetch_optional(&self.readers).await?;
        Ok(row.map(|row| row.get(0)))
    }
}

#[cfg(test)]
mod tests;
