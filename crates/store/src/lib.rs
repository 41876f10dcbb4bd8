//! Durability: what the head must find again after any death. The only door to SQL.
//!
//! One SQLite file in WAL mode and a log in front of it. All changes of one group commit travel in one [`Batch`], which is
//! one record of the log: after [`Store::sync`] they survive the loss of the process and of power, and readers see them. The tables
//! get them a little later, in large groups; who lists waits for that. After a failure the caller must stop; retrying a
//! failed fsync is not safe.
//!
//! The bodies of specs, records and events are JSON text, so `sqlite3 covey.db` shows them as they are. A record is
//! written once; what changes of it has columns of its own, which hold. A row of events has a run of them, its number is
//! that of the last.

mod artifacts;
mod batch;
mod checkpoints;
mod group;
mod hooks;
mod late;
mod log;
mod rows;
mod sessions;
mod tables;

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use covey_domain::{ActorId, AgentSpec, Envelope, NodeId, TaskId, TaskRecord, caps};
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::sync::{Mutex, watch};

pub use batch::{Batch, Blob, DetachedActor, StateChange, StoredMember, StoredReminder, TaskChange, Written};
pub use sessions::{SessionActor, StoredSessions};

use crate::{
    group::Group,
    late::{Beside, Carrier, Late},
    log::{Log, Record, Safe},
    rows::{RECORD, events_of, parse, record_of},
};

/// Version of the tables below. A file of another version is refused.
const SCHEMA_VERSION: i64 = 6;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS agents (name TEXT PRIMARY KEY, spec TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS blobs (digest TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS actor_states (actor TEXT PRIMARY KEY, state BLOB NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS activations (actor TEXT PRIMARY KEY, node TEXT NOT NULL, epoch INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (node TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, port TEXT NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS actors (id TEXT PRIMARY KEY, name TEXT, spec TEXT NOT NULL, init BLOB) STRICT;
CREATE TABLE IF NOT EXISTS reminders (actor TEXT NOT NULL, name TEXT NOT NULL, due_ms INTEGER NOT NULL,
    every_ms INTEGER, method TEXT NOT NULL, args BLOB NOT NULL, PRIMARY KEY (actor, name)) STRICT;
CREATE TABLE IF NOT EXISTS listeners (topic TEXT NOT NULL, actor TEXT NOT NULL, method TEXT NOT NULL,
    PRIMARY KEY (topic, actor)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (node TEXT NOT NULL, incarnation INTEGER NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (node, incarnation)) STRICT;
CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, agent TEXT NOT NULL, context TEXT NOT NULL,
    caller TEXT NOT NULL, state TEXT NOT NULL, created_ms INTEGER NOT NULL, ended INTEGER NOT NULL,
    record TEXT NOT NULL, changed_ms INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX IF NOT EXISTS tasks_by_context ON tasks (context, created_ms);
CREATE INDEX IF NOT EXISTS tasks_by_time ON tasks (created_ms);
CREATE TABLE IF NOT EXISTS events (task TEXT NOT NULL, seq INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (task, seq)) STRICT;
CREATE TABLE IF NOT EXISTS hooks (task TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, hook TEXT NOT NULL,
    PRIMARY KEY (task, id)) STRICT;
CREATE INDEX IF NOT EXISTS hooks_by_state ON hooks (state);
CREATE TABLE IF NOT EXISTS artifacts (digest TEXT PRIMARY KEY, bytes INTEGER NOT NULL, made_ms INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS artifact_uses (task TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (task, digest))
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS artifact_uses_by_digest ON artifact_uses (digest);
";

/// What changes of tasks goes to the tables as lists in JSON, in one statement.
const VIEW: &str = "
CREATE TEMP VIEW commits AS SELECT '' AS changed, '' AS cursors, 0 AS last;
CREATE TEMP TRIGGER commit_tasks INSTEAD OF INSERT ON commits BEGIN
    UPDATE tasks SET state = new.s, ended = new.e, changed_ms = new.c, attempt = new.a
        FROM (SELECT value->>0 AS i, value->>1 AS s, value->>2 AS e, value->>3 AS c, value->>4 AS a FROM json_each(NEW.changed)) AS new
        WHERE tasks.id = new.i;
    INSERT OR REPLACE INTO cursors SELECT value->>0, value->>1, value->>2 FROM json_each(NEW.cursors);
    INSERT OR REPLACE INTO meta VALUES ('applied', NEW.last);
END;
";

/// How long another head may take to stop.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// Why the store cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is of another version of Covey.
    #[error("the store has schema version {found}, this program writes {SCHEMA_VERSION}")]
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
    /// A record of the log is not there, and later ones are.
    #[error("the log is damaged: record {missing} is missing before {found}")]
    Damaged {
        /// Number of the one.
        missing: u64,
        /// Number of the next.
        found: u64,
    },
    /// The log could not be read or written.
    #[error("failed to read or write the log")]
    Log(#[source] std::io::Error),
    /// Another process has it.
    #[error("another head uses this store")]
    InUse,
    /// The tables could not be synced.
    #[error("it is not known what of the tables is on disk")]
    Lost,
    /// SQLite failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// All that a starting head needs.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Of this start: one more than of the last.
    pub term: u64,
    /// Agents.
    pub agents: Vec<AgentSpec>,
    /// Node, incarnation, number.
    pub cursors: Vec<(NodeId, u64, u64)>,
    /// Tasks, oldest first; with all their events unless they have ended.
    pub tasks: Vec<(TaskRecord, Vec<Envelope>)>,
    /// Detached actors, and whether a state of each is kept.
    pub actors: Vec<(ActorId, DetachedActor, bool)>,
    /// Reminders by actor and name.
    pub reminders: Vec<(ActorId, String, StoredReminder)>,
    /// Sessions of drivers, and their actors.
    pub sessions: StoredSessions,
    /// Listeners: topic, actor, method.
    pub listeners: Vec<(String, ActorId, String)>,
    /// Lives of virtual and detached actors: actor, node, epoch.
    pub activations: Vec<(ActorId, NodeId, u64)>,
    /// Members.
    pub members: Vec<(NodeId, StoredMember)>,
    /// Where the cluster's own clock was when it was last written, milliseconds.
    pub clock_ms: u64,
}

/// Brings a file of an older version up to this one.
async fn raise(db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let found: Option<i64> =
        sqlx::query_scalar("SELECT value FROM meta WHERE key = 'schema'").fetch_optional(&mut *db).await?;
    if found.is_some_and(|version| version < 2) {
        // Version 2 knows when a task's status changed.
        sqlx::raw_sql(
            "BEGIN; ALTER TABLE tasks ADD COLUMN changed_ms INTEGER NOT NULL DEFAULT 0;
             UPDATE tasks SET changed_ms = created_ms; UPDATE meta SET value = 2 WHERE key = 'schema'; COMMIT;",
        )
        .execute(&mut *db)
        .await?;
    }
    if found.is_some_and(|version| version < 3) {
        // Version 3 keeps what changes of a task apart; its rows of events may hold several, which older programs cannot read.
        sqlx::raw_sql(
            "BEGIN; ALTER TABLE tasks ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
             UPDATE tasks SET attempt = coalesce(json_extract(record, '$.attempt'), 0);
             UPDATE meta SET value = 3 WHERE key = 'schema'; COMMIT;",
        )
        .execute(&mut *db)
        .await?;
    }
    if found.is_some_and(|version| version < 4) {
        // Events of version 4 may name files of the artifact store, which older programs do not know.
        sqlx::query("UPDATE meta SET value = 4 WHERE key = 'schema'").execute(&mut *db).await?;
    }
    if found.is_some_and(|version| version < 5) {
        // What is new may be in the log only, which older programs do not read. And bodies of events are kept in a tree whose
        // pages hold several: in the older one each above 1 KiB took a page more.
        sqlx::raw_sql(
            "BEGIN; ALTER TABLE events RENAME TO events_4;
             CREATE TABLE events (task TEXT NOT NULL, seq INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (task, seq)) STRICT;
             INSERT INTO events SELECT * FROM events_4 ORDER BY task, seq; DROP TABLE events_4;
             UPDATE meta SET value = 5 WHERE key = 'schema'; COMMIT;",
        )
        .execute(&mut *db)
        .await?;
    }
    if found.is_some_and(|version| version < 6) {
        // Version 6 keeps with each state the epoch of the activation that wrote it.
        sqlx::raw_sql(
            "BEGIN; ALTER TABLE actor_states ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
             UPDATE meta SET value = 6 WHERE key = 'schema'; COMMIT;",
        )
        .execute(&mut *db)
        .await?;
    }
    // Only now the column is there in every file.
    sqlx::raw_sql("CREATE INDEX IF NOT EXISTS tasks_by_change ON tasks (caller, changed_ms, id);").execute(db).await?;
    Ok(())
}

/// Which tasks are listed; an empty filter takes all.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskFilter<'a> {
    /// Of this agent.
    pub agent: &'a str,
    /// Of this conversation.
    pub context: &'a str,
    /// In this state.
    pub state: &'a str,
    /// Asked for by this caller.
    pub caller: &'a str,
}

/// One SQLite file and the log in front of it.
#[derive(Debug)]
pub struct Store {
    log: parking_lot::Mutex<Log>,
    safe: Arc<Safe>,
    late: Arc<Late>,
    writer: Arc<Mutex<SqliteConnection>>,
    readers: SqlitePool,
    checkpoints: tokio::task::AbortHandle,
    /// What carries to the tables ends once this is gone.
    _open: watch::Sender<()>,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.checkpoints.abort();
    }
}

/// A file that belongs to the one at `path`.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Waits until nobody else has the store.
async fn alone(path: &Path) -> Result<File, Error> {
    let end = Instant::now() + ALONE_AFTER;
    let file = File::create(beside(path, "-lock")).map_err(Error::Log)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(TryLockError::WouldBlock) => return Err(Error::InUse),
            Err(TryLockError::Error(error)) => return Err(Error::Log(error)),
        }
    }
}

impl Store {
    /// Opens or makes the file; waits a little for another head that stops.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let lock = alone(path).await?;
        let options = SqliteConnectOptions::from_str("sqlite://")?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("cache_size", "-4096")
            .disable_statement_logging();
        // Commits do not wait for pages to be brought into the tables: another connection does that.
        let unattended = options.clone().pragma("wal_autocheckpoint", "0");
        let mut writer = SqliteConnection::connect_with(&unattended).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut writer).await?;
        sqlx::raw_sql(sessions::SCHEMA).execute(&mut writer).await?;
        sqlx::raw_sql(VIEW).execute(&mut writer).await?;
        raise(&mut writer).await?;
        sqlx::query("INSERT OR IGNORE INTO meta VALUES ('schema', ?)")
            .bind(SCHEMA_VERSION)
            .execute(&mut writer)
            .await?;
        let found: i64 =
            sqlx::query_scalar("SELECT value FROM meta WHERE key = 'schema'").fetch_one(&mut writer).await?;
        if found != SCHEMA_VERSION {
            return Err(Error::Version { found });
        }
        let applied: Option<i64> =
            sqlx::query_scalar("SELECT value FROM meta WHERE key = 'applied'").fetch_optional(&mut writer).await?;
        let mut applied = applied.unwrap_or(0) as u64;
        let (log, found) = Log::open(path, applied)?;
        if let Some(last) = found.last() {
            applied = last.number;
            // All at once: each transaction here is an fsync.
            let mut group = Group::default();
            for Record { number, batch } in found {
                let json = batch.encode().map_err(|source| Error::Body { what: "batch of the log", source })?;
                group.push(Written { number, json, batch });
            }
            tables::write(&mut writer, &group).await?;
        }
        let wal = beside(path, "-wal");
        // The log begins anew, so the tables must have all that was in it.
        late::sync_file(&wal).map_err(Error::Log)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .min_connections(0)
            .connect_lazy_with(options.clone().read_only(true));
        let checkpointer = SqliteConnection::connect_with(&options).await?;
        let mut db = SqliteConnection::connect_with(
            &unattended.synchronous(SqliteSynchronous::Normal).pragma("cache_size", "-16384"),
        )
        .await?;
        sqlx::raw_sql(VIEW).execute(&mut db).await?;
        let (writer, written) = (Arc::new(Mutex::new(writer)), Arc::new(AtomicU64::new(0)));
        let (late, safe) = (Arc::new(Late::new(applied)), Arc::new(Safe::default()));
        safe.tables.store(applied, Ordering::Release);
        let checkpoints = tokio::spawn(checkpoints::keep(checkpointer, writer.clone(), written.clone()));
        let carrier = Carrier { late: late.clone(), db, writer: writer.clone(), written, safe: safe.clone(), wal };
        let (open, closed) = watch::channel(());
        carrier.start(lock, closed).map_err(Error::Log)?;
        let (log, checkpoints) = (parking_lot::Mutex::new(log), checkpoints.abort_handle());
        Ok(Self { log, safe, late, writer, readers, checkpoints, _open: open })
    }

    /// Begins a term and reads what a starting head needs.
    pub async fn begin(&self) -> Result<Snapshot, Error> {
        self.late.settled().await;
        let mut db = self.writer.lock().await;
        sqlx::query("INSERT INTO meta VALUES ('term', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1")
            .execute(&mut *db)
            .await?;
        let term: i64 = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'term'").fetch_one(&mut *db).await?;
        let mut snapshot = Snapshot { term: term as u64, ..Snapshot::default() };
        for row in sqlx::query("SELECT spec FROM agents ORDER BY name").fetch_all(&mut *db).await? {
            snapshot.agents.push(parse("agent", row.get(0))?);
        }
        for row in sqlx::query("SELECT node, incarnation, number FROM cursors").fetch_all(&mut *db).await? {
            snapshot.cursors.push((
                row.get::<String, _>(0).into(),
                row.get::<i64, _>(1) as u64,
                row.get::<i64, _>(2) as u64,
            ));
        }
        let actors = "SELECT id, name, spec, init, id IN (SELECT actor FROM actor_states) FROM actors ORDER BY id";
        for row in sqlx::query(actors).fetch_all(&mut *db).await? {
            let actor = DetachedActor {
                name: row.get(1),
                spec: Arc::new(parse("agent", row.get(2))?),
                init: row.get::<Option<Vec<u8>>, _>(3).map(|bytes| Blob(bytes.into())),
            };
            snapshot.actors.push((row.get::<String, _>(0).into(), actor, row.get(4)));
        }
        snapshot.sessions = sessions::read(&mut db).await?;
        let reminders = "SELECT actor, name, due_ms, every_ms, method, args FROM reminders";
        for row in sqlx::query(reminders).fetch_all(&mut *db).await? {
            let reminder = StoredReminder {
                due_ms: row.get::<i64, _>(2) as u64,
                every_ms: row.get::<Option<i64>, _>(3).map(|ms| ms as u64),
                method: row.get(4),
                args: Blob(row.get::<Vec<u8>, _>(5).into()),
            };
            snapshot.reminders.push((row.get::<String, _>(0).into(), row.get(1), reminder));
        }
        for row in sqlx::query("SELECT topic, actor, method FROM listeners").fetch_all(&mut *db).await? {
            snapshot.listeners.push((row.get(0), row.get::<String, _>(1).into(), row.get(2)));
        }
        for row in sqlx::query("SELECT actor, node, epoch FROM activations").fetch_all(&mut *db).await? {
            let (actor, node) = (row.get::<String, _>(0), row.get::<String, _>(1));
            snapshot.activations.push((actor.into(), node.into(), row.get::<i64, _>(2) as u64));
        }
        for row in sqlx::query("SELECT node, incarnation, port FROM members").fetch_all(&mut *db).await? {
            let member = StoredMember { incarnation: row.get::<i64, _>(1) as u64, port: row.get(2) };
            snapshot.members.push((row.get::<String, _>(0).into(), member));
        }
        let clock: Option<i64> =
            sqlx::query_scalar("SELECT value FROM meta WHERE key = 'clock_ms'").fetch_optional(&mut *db).await?;
        snapshot.clock_ms = clock.unwrap_or(0) as u64;
        let tasks = format!("SELECT {RECORD} FROM tasks ORDER BY created_ms, id");
        for row in sqlx::query(sqlx::AssertSqlSafe(tasks)).fetch_all(&mut *db).await? {
            let record = record_of(&row)?;
            let mut events = Vec::new();
            if !record.state.is_terminal() {
                for row in sqlx::query("SELECT seq, body FROM events WHERE task = ? ORDER BY seq")
                    .bind(record.id.as_str())
                    .fetch_all(&mut *db)
                    .await?
                {
                    events.extend(events_of(&record.id, &row)?);
                }
            }
            snapshot.tasks.push((record, events));
        }
        Ok(snapshot)
    }

    /// Waits until there is room for another batch.
    pub async fn room(&self) -> Result<(), Error> {
        self.late.room().await
    }

    /// Writes a batch, whole or not at all. It outlives the process from now on, and once it was [`Self::sync`]ed the machine.
    pub fn write(&self, batch: Batch) -> Result<Written, Error> {
        let (number, json) = self.log.lock().write(&batch, &self.safe).map_err(Error::Log)?;
        Ok(Written { number, json, batch })
    }

    /// Returns once what was written is on disk and shown to readers; gives the events of it. Blocks the thread: it is an
    /// fsync. After an error the caller must stop.
    pub fn sync(&self, written: Vec<Written>) -> Result<Vec<Arc<Envelope>>, Error> {
        // Others may write meanwhile.
        let file = self.log.lock().unsynced();
        file.sync_data().map_err(Error::Log)?;
        Ok(self.late.keep(written))
    }

    /// The state of an actor.
    pub async fn state(&self, actor: &ActorId) -> Result<Option<Vec<u8>>, Error> {
        // First beside the tables: what is not there any more then is in the tables.
        let late = self.late.state(actor);
        let row = sqlx::query("SELECT state, epoch FROM actor_states WHERE actor = ?")
            .bind(actor.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let newer = |row: &SqliteRow| late.as_ref().is_none_or(|(epoch, _)| *epoch < row.get::<i64, _>(1) as u64);
        match row.filter(newer) {
            Some(row) => Ok(Some(row.get(0))),
            None => Ok(late.and_then(|(_, state)| state).map(|state| state.0.to_vec())),
        }
    }

    /// Events of a task with numbers above `after`, [`caps::EVENT_PAGE_MAX`] at least while there are so many.
    pub async fn events(&self, task: &TaskId, after: u64) -> Result<Vec<Arc<Envelope>>, Error> {
        // First beside the tables: what is not there any more then is in the tables.
        let (late, first) = self.late.events(task, after)?;
        if first.is_some_and(|first| first <= after + 1) {
            return Ok(late);
        }
        let rows = sqlx::query("SELECT seq, body FROM events WHERE task = ? AND seq > ? ORDER BY seq LIMIT ?")
            .bind(task.as_str())
            .bind(after as i64)
            .bind(caps::EVENT_PAGE_MAX as i64)
            .fetch_all(&self.readers)
            .await?;
        let mut events = Vec::new();
        for row in rows {
            let run = events_of(task, &row)?;
            let missing = |seq| seq > after && first.is_none_or(|first| seq < first);
            events.extend(run.into_iter().filter(|event| missing(event.seq)).map(Arc::new));
            // A page is a bound for memory too.
            if events.len() >= caps::EVENT_PAGE_MAX {
                return Ok(events);
            }
        }
        events.extend(late);
        Ok(events)
    }

    /// One task's record.
    pub async fn task(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, Error> {
        let Beside { made, change } = self.late.task(id);
        let found = match made {
            Some(made) => Some(made),
            None => {
                let sql = format!("SELECT {RECORD} FROM tasks WHERE id = ?");
                let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(&self.readers).await?;
                row.map(|row| record_of(&row)).transpose()?.map(Arc::new)
            }
        };
        Ok(match (found, change) {
            (Some(record), Some(change)) => Some(Arc::new(change.over(&record))),
            (found, _) => found,
        })
    }

    /// Records, newest first, from below the task `before` where it is not empty.
    pub async fn tasks(&self, filter: TaskFilter<'_>, before: &str, limit: u32) -> Result<Vec<TaskRecord>, Error> {
        self.late.settled().await;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {RECORD} FROM tasks WHERE (?1 = '' OR agent = ?1) AND (?2 = '' OR context = ?2) AND (?3 = '' OR state = ?3)
             AND (?4 = '' OR caller = ?4)
             AND (?5 = '' OR (created_ms, id) < (SELECT created_ms, id FROM tasks WHERE id = ?5))
             ORDER BY created_ms DESC, id DESC LIMIT ?6",
        )))
        .bind(filter.agent)
        .bind(filter.context)
        .bind(filter.state)
        .bind(filter.caller)
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(record_of).collect()
    }

    /// Records by the last change of their status, newest first, of a caller's tasks that changed at `since_ms` or later;
    /// from below the place `before` (a change and a task) where there is one. And how many there are in all.
    pub async fn changed(
        &self,
        filter: TaskFilter<'_>,
        since_ms: u64,
        before: Option<(u64, &str)>,
        limit: u32,
    ) -> Result<(Vec<TaskRecord>, u64), Error> {
        self.late.settled().await;
        let matching =
            "caller = ?1 AND (?2 = '' OR agent = ?2) AND (?3 = '' OR context = ?3) AND (?4 = '' OR state = ?4)
            AND changed_ms >= ?5";
        let count = format!("SELECT count(*) FROM tasks WHERE {matching}");
        let count = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(count));
        let page = format!(
            "SELECT {RECORD} FROM tasks WHERE {matching} AND (changed_ms, id) < (?6, ?7)
             ORDER BY changed_ms DESC, id DESC LIMIT ?8"
        );
        let page = sqlx::query(sqlx::AssertSqlSafe(page));
        let since = since_ms as i64;
        let all = count
            .bind(filter.caller)
            .bind(filter.agent)
            .bind(filter.context)
            .bind(filter.state)
            .bind(since)
            .fetch_one(&self.readers)
            .await?;
        let (at, task) = before.map_or((i64::MAX, ""), |(at, task)| (at as i64, task));
        let rows = page
            .bind(filter.caller)
            .bind(filter.agent)
            .bind(filter.context)
            .bind(filter.state)
            .bind(since)
            .bind(at)
            .bind(task)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        let records = rows.iter().map(record_of).collect::<Result<_, _>>()?;
        Ok((records, all as u64))
    }

    /// Forgets tasks that had ended and were made before `before_ms`, with their events; gives how many.
    pub async fn purge(&self, before_ms: u64) -> Result<u64, Error> {
        self.late.settled().await;
        let mut db = self.writer.lock().await;
        let mut tx = db.begin().await?;
        let old = "SELECT id FROM tasks WHERE ended = 1 AND created_ms < ?";
        sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM events WHERE task IN ({old})")))
            .bind(before_ms as i64)
            .execute(&mut *tx)
            .await?;
        sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM hooks WHERE task IN ({old})")))
            .bind(before_ms as i64)
            .execute(&mut *tx)
            .await?;
        sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM artifact_uses WHERE task IN ({old})")))
            .bind(before_ms as i64)
            .execute(&mut *tx)
            .await?;
        let gone = sqlx::query("DELETE FROM tasks WHERE ended = 1 AND created_ms < ?")
            .bind(before_ms as i64)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }

    /// Keeps a blob under its digest.
    pub async fn put_blob(&self, digest: &str, body: &[u8]) -> Result<(), Error> {
        let mut db = self.writer.lock().await;
        sqlx::query("INSERT OR IGNORE INTO blobs VALUES (?, ?)").bind(digest).bind(body).execute(&mut *db).await?;
        Ok(())
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
