//! Durability: what the head must find again after any death. The only door to SQL.
//!
//! One SQLite file in WAL mode with `synchronous = FULL`. All changes of one group commit travel in one
//! [`Batch`] and one transaction: after [`Store::commit`] returns they survive the loss of the process and of power.
//! After a failed commit the caller must stop; retrying a failed fsync is not safe.
//!
//! The bodies of specs, records and events are JSON text, so `sqlite3 covey.db` shows them as they are. A record is
//! written once; what changes of it has columns of its own, which hold. A row of events has a run of them, its number is
//! that of the last.

mod artifacts;
mod checkpoints;
mod hooks;
mod rows;

use std::{
    path::Path,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use covey_domain::{ActorId, AgentSpec, Envelope, NodeId, TaskId, TaskRecord, caps};
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::Mutex;

use crate::rows::{RECORD, Rows, events_of, json, parse, record_of};

/// Version of the tables below. A file of another version is refused.
const SCHEMA_VERSION: i64 = 4;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS agents (name TEXT PRIMARY KEY, spec TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS blobs (digest TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS actor_states (actor TEXT PRIMARY KEY, state BLOB NOT NULL) STRICT, WITHOUT ROWID;
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
    PRIMARY KEY (task, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hooks (task TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, hook TEXT NOT NULL,
    PRIMARY KEY (task, id)) STRICT;
CREATE INDEX IF NOT EXISTS hooks_by_state ON hooks (state);
CREATE TABLE IF NOT EXISTS artifacts (digest TEXT PRIMARY KEY, bytes INTEGER NOT NULL, made_ms INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS artifact_uses (task TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (task, digest))
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS artifact_uses_by_digest ON artifact_uses (digest);
CREATE TEMP VIEW commits AS SELECT '' AS made, '' AS changed, '' AS events, '' AS cursors;
CREATE TEMP TRIGGER commit_tasks INSTEAD OF INSERT ON commits BEGIN
    INSERT INTO tasks (id, agent, context, caller, state, created_ms, ended, record, changed_ms, attempt)
        SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8, value->>9
        FROM json_each(NEW.made);
    UPDATE tasks SET state = new.s, ended = new.e, changed_ms = new.c, attempt = new.a
        FROM (SELECT value->>0 AS i, value->>1 AS s, value->>2 AS e, value->>3 AS c, value->>4 AS a FROM json_each(NEW.changed)) AS new
        WHERE tasks.id = new.i;
    INSERT INTO events SELECT value->>0, value->>1, value->>2 FROM json_each(NEW.events);
    INSERT OR REPLACE INTO cursors SELECT value->>0, value->>1, value->>2 FROM json_each(NEW.cursors);
END;
";

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
    /// SQLite failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// Changes that become durable together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Agents registered or replaced.
    pub agents: Vec<Arc<AgentSpec>>,
    /// Tasks made.
    pub made: Vec<Arc<TaskRecord>>,
    /// Tasks whose state or attempt changed; of several for one task the last holds.
    pub tasks: Vec<Arc<TaskRecord>>,
    /// Events, in order.
    pub events: Vec<Arc<Envelope>>,
    /// Up to where each incarnation of a node is taken.
    pub cursors: Vec<(NodeId, u64, u64)>,
    /// States of actors, in order; `None` = it has none any more.
    pub states: Vec<(ActorId, Option<Arc<[u8]>>)>,
    /// Detached actors, in order; `None` = it is over.
    pub actors: Vec<(ActorId, Option<DetachedActor>)>,
    /// Reminders by actor and name, in order; `None` = it is over.
    pub reminders: Vec<(ActorId, String, Option<StoredReminder>)>,
    /// Listeners by topic and actor, and the method of each, in order; `None` = it listens no more.
    pub listeners: Vec<(String, ActorId, Option<String>)>,
}

/// A detached actor.
#[derive(Clone, Debug, PartialEq)]
pub struct DetachedActor {
    /// Unique name.
    pub name: Option<String>,
    /// What it is.
    pub spec: Arc<AgentSpec>,
    /// Constructor arguments, opaque.
    pub init: Option<Arc<[u8]>>,
}

/// A call to an actor at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredReminder {
    /// When, milliseconds since the epoch.
    pub due_ms: u64,
    /// Again this often.
    pub every_ms: Option<u64>,
    /// Which method.
    pub method: String,
    /// Its arguments, opaque.
    pub args: Arc<[u8]>,
}

impl Batch {
    /// There is nothing in it but what tasks make.
    fn is_all_tasks(&self) -> bool {
        self.agents.is_empty()
            && self.states.is_empty()
            && self.actors.is_empty()
            && self.reminders.is_empty()
            && self.listeners.is_empty()
    }

    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
            && self.made.is_empty()
            && self.tasks.is_empty()
            && self.events.is_empty()
            && self.cursors.is_empty()
            && self.states.is_empty()
            && self.actors.is_empty()
            && self.reminders.is_empty()
            && self.listeners.is_empty()
    }
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
    /// Listeners: topic, actor, method.
    pub listeners: Vec<(String, ActorId, String)>,
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

/// One SQLite file.
#[derive(Debug)]
pub struct Store {
    writer: Arc<Mutex<SqliteConnection>>,
    /// Bytes since the last checkpoint, about.
    written: Arc<AtomicU64>,
    readers: SqlitePool,
    checkpoints: tokio::task::AbortHandle,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.checkpoints.abort();
    }
}

impl Store {
    /// Opens or makes the file.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let options = SqliteConnectOptions::from_str("sqlite://")?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("cache_size", "-4096")
            .disable_statement_logging();
        // Commits do not wait for pages to be brought into the tables: another connection does that.
        let mut writer = SqliteConnection::connect_with(&options.clone().pragma("wal_autocheckpoint", "0")).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut writer).await?;
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
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .min_connections(0)
            .connect_lazy_with(options.clone().read_only(true));
        let checkpointer = SqliteConnection::connect_with(&options).await?;
        let (writer, written) = (Arc::new(Mutex::new(writer)), Arc::new(AtomicU64::new(0)));
        let checkpoints = tokio::spawn(checkpoints::keep(checkpointer, writer.clone(), written.clone()));
        Ok(Self { writer, written, readers, checkpoints: checkpoints.abort_handle() })
    }

    /// Begins a term and reads what a starting head needs.
    pub async fn begin(&self) -> Result<Snapshot, Error> {
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
                init: row.get::<Option<Vec<u8>>, _>(3).map(Into::into),
            };
            snapshot.actors.push((row.get::<String, _>(0).into(), actor, row.get(4)));
        }
        let reminders = "SELECT actor, name, due_ms, every_ms, method, args FROM reminders";
        for row in sqlx::query(reminders).fetch_all(&mut *db).await? {
            let reminder = StoredReminder {
                due_ms: row.get::<i64, _>(2) as u64,
                every_ms: row.get::<Option<i64>, _>(3).map(|ms| ms as u64),
                method: row.get(4),
                args: row.get::<Vec<u8>, _>(5).into(),
            };
            snapshot.reminders.push((row.get::<String, _>(0).into(), row.get(1), reminder));
        }
        for row in sqlx::query("SELECT topic, actor, method FROM listeners").fetch_all(&mut *db).await? {
            snapshot.listeners.push((row.get(0), row.get::<String, _>(1).into(), row.get(2)));
        }
        let tasks = format!("SELECT {RECORD} FROM tasks ORDER BY created_ms, id");
        for row in sqlx::query(sqlx::AssertSqlSafe(tasks)).fetch_all(&mut *db).await? {
            let record = record_of(&row)?;
            let mut events = Vec::new();
            if !record.state.is_terminal() {
                for row in sqlx::query("SELECT body FROM events WHERE task = ? ORDER BY seq")
                    .bind(record.id.as_str())
                    .fetch_all(&mut *db)
                    .await?
                {
                    events.extend(events_of(row.get(0))?);
                }
            }
            snapshot.tasks.push((record, events));
        }
        Ok(snapshot)
    }

    /// Makes a batch durable, whole or not at all.
    pub async fn commit(&self, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut db = self.writer.lock().await;
        let fast = Rows::of(batch);
        self.written.fetch_add(fast.bytes(), Ordering::Relaxed);
        let uses = artifacts::uses(batch);
        if batch.is_all_tasks() && uses.is_empty() {
            // One statement is one transaction, and one errand to SQLite's thread.
            fast.insert().execute(&mut *db).await?;
            return Ok(());
        }
        let mut tx = db.begin().await?;
        fast.insert().execute(&mut *tx).await?;
        artifacts::write_uses(&mut tx, &uses).await?;
        for spec in &batch.agents {
            sqlx::query("INSERT OR REPLACE INTO agents VALUES (?, ?)")
                .bind(spec.name.as_str())
                .bind(json(spec))
                .execute(&mut *tx)
                .await?;
        }
        for (actor, state) in &batch.states {
            match state {
                Some(state) => sqlx::query("INSERT OR REPLACE INTO actor_states VALUES (?, ?)")
                    .bind(actor.as_str())
                    .bind(&**state)
                    .execute(&mut *tx),
                None => sqlx::query("DELETE FROM actor_states WHERE actor = ?").bind(actor.as_str()).execute(&mut *tx),
            }
            .await?;
        }
        for (id, actor) in &batch.actors {
            match actor {
                Some(actor) => sqlx::query("INSERT OR REPLACE INTO actors VALUES (?, ?, ?, ?)")
                    .bind(id.as_str())
                    .bind(&actor.name)
                    .bind(json(&*actor.spec))
                    .bind(actor.init.as_deref())
                    .execute(&mut *tx),
                None => sqlx::query("DELETE FROM actors WHERE id = ?").bind(id.as_str()).execute(&mut *tx),
            }
            .await?;
        }
        for (actor, name, reminder) in &batch.reminders {
            match reminder {
                Some(r) => sqlx::query("INSERT OR REPLACE INTO reminders VALUES (?, ?, ?, ?, ?, ?)")
                    .bind(actor.as_str())
                    .bind(name)
                    .bind(r.due_ms as i64)
                    .bind(r.every_ms.map(|ms| ms as i64))
                    .bind(&r.method)
                    .bind(&*r.args)
                    .execute(&mut *tx),
                None => sqlx::query("DELETE FROM reminders WHERE actor = ? AND name = ?")
                    .bind(actor.as_str())
                    .bind(name)
                    .execute(&mut *tx),
            }
            .await?;
        }
        for (topic, actor, method) in &batch.listeners {
            match method {
                Some(method) => sqlx::query("INSERT OR REPLACE INTO listeners VALUES (?, ?, ?)")
                    .bind(topic)
                    .bind(actor.as_str())
                    .bind(method)
                    .execute(&mut *tx),
                None => sqlx::query("DELETE FROM listeners WHERE topic = ? AND actor = ?")
                    .bind(topic)
                    .bind(actor.as_str())
                    .execute(&mut *tx),
            }
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The state of an actor.
    pub async fn state(&self, actor: &ActorId) -> Result<Option<Vec<u8>>, Error> {
        let row = sqlx::query("SELECT state FROM actor_states WHERE actor = ?")
            .bind(actor.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Events of a task with numbers above `after`, [`caps::EVENT_PAGE_MAX`] at least while there are so many.
    pub async fn events(&self, task: &TaskId, after: u64) -> Result<Vec<Arc<Envelope>>, Error> {
        let rows = sqlx::query("SELECT body FROM events WHERE task = ? AND seq > ? ORDER BY seq LIMIT ?")
            .bind(task.as_str())
            .bind(after as i64)
            .bind(caps::EVENT_PAGE_MAX as i64)
            .fetch_all(&self.readers)
            .await?;
        let mut events = Vec::new();
        for row in rows {
            let run = events_of(row.get(0))?;
            events.extend(run.into_iter().filter(|event| event.seq > after).map(Arc::new));
            // A page is a bound for memory too.
            if events.len() >= caps::EVENT_PAGE_MAX {
                break;
            }
        }
        Ok(events)
    }

    /// One task's record.
    pub async fn task(&self, id: &TaskId) -> Result<Option<TaskRecord>, Error> {
        let sql = format!("SELECT {RECORD} FROM tasks WHERE id = ?");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(&self.readers).await?;
        row.map(|row| record_of(&row)).transpose()
    }

    /// Records, newest first, from below the task `before` where it is not empty.
    pub async fn tasks(&self, filter: TaskFilter<'_>, before: &str, limit: u32) -> Result<Vec<TaskRecord>, Error> {
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
mod tests {
    use covey_domain::{
        Hook, HookState, TaskEvent, TaskState,
        event::{Content, MediaSource, Phase},
        task::TaskInput,
    };

    use super::*;

    fn record(id: &str, state: TaskState) -> Arc<TaskRecord> {
        Arc::new(TaskRecord {
            id: id.into(),
            context: "c".into(),
            agent: "a".into(),
            skill: "run".into(),
            caller: "me".into(),
            message_id: Some(format!("m-{id}")),
            model: None,
            protocol: "native".into(),
            input: TaskInput::default(),
            state,
            created_ms: 1,
            changed_ms: 1,
            timeout_ms: None,
            attempt: 1,
        })
    }

    fn event(task: &str, seq: u64) -> Arc<Envelope> {
        Arc::new(Envelope {
            task: task.into(),
            seq,
            ts_ms: 7,
            sub: None,
            event: TaskEvent::Status { state: Phase::Working, message: None },
            meta: Default::default(),
        })
    }

    #[tokio::test]
    async fn what_is_old_and_over_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
        store.begin().await.unwrap();
        let batch = Batch {
            made: vec![record("over", TaskState::Completed), record("runs", TaskState::Working)],
            events: vec![event("over", 1), event("runs", 1)],
            ..Batch::default()
        };
        store.commit(&batch).await.unwrap();
        assert_eq!(store.purge(1).await.unwrap(), 0, "not old enough");
        assert_eq!(store.purge(2).await.unwrap(), 1);
        assert!(store.task(&"over".into()).await.unwrap().is_none());
        assert!(store.events(&"over".into(), 0).await.unwrap().is_empty());
        assert!(store.task(&"runs".into()).await.unwrap().is_some());
        assert_eq!(store.events(&"runs".into(), 0).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_file_is_forgotten_with_the_last_task_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
        let source = MediaSource::Stored { digest: "d".into(), bytes: 9 };
        let file = Content::File { mime: "image/png".into(), name: None, source };
        let chunk = TaskEvent::ArtifactChunk {
            artifact: "x".into(),
            name: None,
            parts: vec![file.clone()],
            append: false,
            last: true,
        };
        for digest in ["d", "nobody's"] {
            store.keep_artifact(&digest.into(), 9, 5).await.unwrap();
        }
        let asked = TaskRecord {
            input: TaskInput { content: vec![file], ..TaskInput::default() },
            ..(*record("runs", TaskState::Working)).clone()
        };
        let made = vec![record("over", TaskState::Completed), Arc::new(asked)];
        let events = vec![Arc::new(Envelope { event: chunk, ..(*event("over", 1)).clone() })];
        store.commit(&Batch { made, events, ..Batch::default() }).await.unwrap();
        assert!(store.forget_artifacts(5).await.unwrap().is_empty(), "it is too young");
        assert_eq!(store.forget_artifacts(6).await.unwrap(), ["nobody's".into()]);
        assert_eq!(store.artifact(&"d".into()).await.unwrap(), Some(9));
        store.purge(9).await.unwrap();
        assert!(store.forget_artifacts(9).await.unwrap().is_empty(), "the task that runs has it");
        let over = vec![record("runs", TaskState::Completed)];
        store.commit(&Batch { tasks: over, ..Batch::default() }).await.unwrap();
        store.purge(9).await.unwrap();
        assert_eq!(store.forget_artifacts(9).await.unwrap(), ["d".into()]);
    }

    #[tokio::test]
    async fn a_hook_that_was_forgotten_is_not_moved() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
        let hook = |id: &str, state| Hook {
            task: "t".into(),
            id: id.into(),
            caller: "me".into(),
            agent: "a".into(),
            config: "{}".into(),
            seq: 1,
            more: 0,
            attempts: 0,
            due_ms: 0,
            state,
            error: String::new(),
        };
        store.keep_hook(&hook("x", HookState::Live)).await.unwrap();
        store.keep_hook(&hook("y", HookState::Live)).await.unwrap();
        store.forget_hook(&"t".into(), "x").await.unwrap();
        store.move_hooks(&[hook("x", HookState::Done), hook("y", HookState::Dead)]).await.unwrap();
        assert_eq!(store.hooks(Some(&"t".into()), None).await.unwrap(), [hook("y", HookState::Dead)]);
        assert!(store.hooks(None, Some(HookState::Live)).await.unwrap().is_empty());
        store.commit(&Batch { made: vec![record("t", TaskState::Completed)], ..Batch::default() }).await.unwrap();
        store.purge(2).await.unwrap();
        assert!(store.hooks(Some(&"t".into()), None).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn tasks_are_listed_by_their_last_change_page_by_page() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
        store.begin().await.unwrap();
        let at = |id: &str, changed_ms: u64| {
            Arc::new(TaskRecord { changed_ms, ..(*record(id, TaskState::Working)).clone() })
        };
        let made = vec![at("a", 5), at("b", 9), at("c", 9), at("d", 0)];
        let tasks = vec![at("d", 1)];
        store.commit(&Batch { made, tasks, ..Batch::default() }).await.unwrap();
        let mine = TaskFilter { caller: "me", ..TaskFilter::default() };
        let ids = |tasks: &[TaskRecord]| tasks.iter().map(|t| t.id.to_string()).collect::<Vec<_>>();
        let (page, all) = store.changed(mine, 0, None, 2).await.unwrap();
        assert_eq!((ids(&page), all), (vec!["c".to_owned(), "b".to_owned()], 4));
        let (page, _) = store.changed(mine, 0, Some((9, "b")), 2).await.unwrap();
        assert_eq!(ids(&page), ["a", "d"]);
        let (page, all) = store.changed(mine, 5, None, 9).await.unwrap();
        assert_eq!((page.len(), all), (3, 3));
        assert_eq!(store.changed(TaskFilter { caller: "you", ..mine }, 0, None, 9).await.unwrap().1, 0);
    }

    #[tokio::test]
    async fn a_file_of_the_first_version_is_raised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("covey.db");
        drop(Store::open(&path).await.unwrap());
        let mut db = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        let back = "DROP INDEX tasks_by_change; ALTER TABLE tasks DROP COLUMN attempt;
            ALTER TABLE tasks DROP COLUMN changed_ms; UPDATE meta SET value = 1 WHERE key = 'schema';
            INSERT INTO tasks VALUES ('t', 'a', 'c', 'me', 'working', 7, 0, '{\"attempt\": 4}')";
        sqlx::raw_sql(back).execute(&mut db).await.unwrap();
        drop(db);
        let store = Store::open(&path).await.unwrap();
        let at = sqlx::query_as("SELECT changed_ms, attempt FROM tasks").fetch_one(&store.readers).await.unwrap();
        let at: (i64, i64) = at;
        assert_eq!(at, (7, 4));
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("covey.db");
        let spec = serde_json::json!({"name": "a", "kind": {"type": "native", "implementation": "echo"}});
        let actor = DetachedActor {
            name: Some("n".into()),
            spec: serde_json::from_value(spec).unwrap(),
            init: Some((*b"init").into()),
        };
        let reminder = StoredReminder { due_ms: 5, every_ms: Some(7), method: "m".into(), args: (*b"args").into() };
        {
            let store = Store::open(&path).await.unwrap();
            assert_eq!(store.begin().await.unwrap().term, 1);
            let batch = Batch {
                made: vec![record("t1", TaskState::Submitted), record("t2", TaskState::Submitted)],
                tasks: vec![record("t1", TaskState::Working)],
                events: (1..=5_000).map(|n| event("t1", n)).collect(),
                cursors: vec![("n".into(), 9, 3), ("n".into(), 9, 4)],
                states: vec![("a/1".into(), Some((*b"old").into())), ("a/1".into(), Some((*b"new").into()))],
                reminders: vec![("a/1".into(), "r".into(), Some(reminder.clone()))],
                listeners: vec![
                    ("news".into(), "a/1".into(), Some("hear".into())),
                    ("news".into(), "a/2".into(), Some("hear".into())),
                    ("news".into(), "a/2".into(), None),
                ],
                actors: vec![("x".into(), Some(actor.clone())), ("y".into(), Some(actor.clone())), ("y".into(), None)],
                agents: vec![],
            };
            store.commit(&batch).await.unwrap();
            let ended = Arc::new(TaskRecord { attempt: 3, ..(*record("t2", TaskState::Completed)).clone() });
            store.commit(&Batch { tasks: vec![ended], ..Batch::default() }).await.unwrap();
            store.put_blob("d", b"code").await.unwrap();
        }
        let store = Store::open(&path).await.unwrap();
        let snapshot = store.begin().await.unwrap();
        assert_eq!(snapshot.term, 2);
        assert_eq!(snapshot.cursors, [("n".into(), 9, 4)]);
        assert_eq!(snapshot.tasks[0].0.state, TaskState::Working);
        assert_eq!(snapshot.tasks[0].1.len(), 5_000);
        assert!(snapshot.tasks[1].1.is_empty(), "events of ended tasks stay on disk");
        assert_eq!((snapshot.tasks[1].0.state, snapshot.tasks[1].0.attempt), (TaskState::Completed, 3));
        assert_eq!(snapshot.actors, [("x".into(), actor, false)]);
        assert_eq!(snapshot.listeners, [("news".to_owned(), "a/1".into(), "hear".to_owned())]);
        assert_eq!(snapshot.reminders, [("a/1".into(), "r".into(), reminder)]);
        assert_eq!(store.state(&"a/1".into()).await.unwrap().unwrap(), b"new");
        assert_eq!(store.events(&"t1".into(), 4_990).await.unwrap().len(), 10);
        assert_eq!(store.blob("d").await.unwrap().unwrap(), b"code");
    }

    #[tokio::test]
    async fn a_number_is_taken_once_and_a_failed_batch_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
        store.commit(&Batch { events: vec![event("t", 1)], ..Batch::default() }).await.unwrap();
        let twice = Batch {
            events: vec![event("t", 2), event("t", 1)],
            made: vec![record("t", TaskState::Working)],
            ..Batch::default()
        };
        assert!(store.commit(&twice).await.is_err());
        assert_eq!(store.events(&"t".into(), 0).await.unwrap().len(), 1);
        assert!(store.task(&"t".into()).await.unwrap().is_none());
    }
}
