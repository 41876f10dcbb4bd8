//! The tables, and how those of older versions become those of this one.

use sqlx::SqliteConnection;

/// Version of the tables below. A file of a later version is refused.
pub(crate) const VERSION: i64 = 11;
/// The same tables in a file whose pages have no sums. It stays that where there is no room to write them anew.
pub(crate) const WITHOUT_SUMS: i64 = 10;
/// Versions whose pages have sums.
pub(crate) const WITH_SUMS: [i64; 2] = [9, VERSION];

/// Indexes over columns that older files get only by [`migrate`].
const INDEXES: &str = "
DROP INDEX IF EXISTS tasks_by_change;
CREATE INDEX IF NOT EXISTS tasks_listed ON tasks (caller, changed_ms, id, agent, state, context);
CREATE INDEX IF NOT EXISTS tasks_by_message ON tasks (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_unfinished ON tasks (created_ms, id) WHERE ended = 0;
CREATE INDEX IF NOT EXISTS tasks_by_end ON tasks (ended_at, id) WHERE ended = 1;
";

pub(crate) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS agents (name TEXT PRIMARY KEY, spec TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS blobs (digest TEXT PRIMARY KEY, body BLOB NOT NULL, used_at INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS actor_states (actor TEXT PRIMARY KEY, state BLOB NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS activations (actor TEXT PRIMARY KEY, node TEXT NOT NULL, epoch INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (node TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, port TEXT NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS actors (id TEXT PRIMARY KEY, name TEXT, spec TEXT NOT NULL, init BLOB) STRICT;
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, proof TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS session_actors (id TEXT PRIMARY KEY, session TEXT NOT NULL, name TEXT, spec TEXT NOT NULL,
    init BLOB) STRICT;
CREATE TABLE IF NOT EXISTS reminders (actor TEXT NOT NULL, name TEXT NOT NULL, due_ms INTEGER NOT NULL,
    every_ms INTEGER, method TEXT NOT NULL, args BLOB NOT NULL, PRIMARY KEY (actor, name)) STRICT;
CREATE TABLE IF NOT EXISTS listeners (topic TEXT NOT NULL, actor TEXT NOT NULL, method TEXT NOT NULL,
    PRIMARY KEY (topic, actor)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS links (one TEXT NOT NULL, other TEXT NOT NULL, PRIMARY KEY (one, other)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gangs (name TEXT PRIMARY KEY, gang TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead_letters (number INTEGER PRIMARY KEY, letter TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS cursors (node TEXT NOT NULL, incarnation INTEGER NOT NULL, number INTEGER NOT NULL,
    touched_at INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (node, incarnation)) STRICT;
CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, agent TEXT NOT NULL, context TEXT NOT NULL,
    caller TEXT NOT NULL, state TEXT NOT NULL, created_ms INTEGER NOT NULL, ended INTEGER NOT NULL,
    record TEXT NOT NULL, changed_ms INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0,
    message_id TEXT, ended_at INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS ended_counts (state TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS tasks_by_context ON tasks (context, created_ms);
CREATE INDEX IF NOT EXISTS tasks_by_time ON tasks (created_ms);
CREATE TABLE IF NOT EXISTS doomed (task TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
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
pub(crate) const VIEW: &str = "
CREATE TEMP VIEW commits AS SELECT '' AS changed, '' AS cursors, 0 AS last, 0 AS age;
CREATE TEMP TRIGGER commit_tasks INSTEAD OF INSERT ON commits BEGIN
    UPDATE tasks SET state = new.s, ended = new.e, changed_ms = new.c, attempt = new.a, ended_at = new.e * NEW.age
        FROM (SELECT value->>0 AS i, value->>1 AS s, value->>2 AS e, value->>3 AS c, value->>4 AS a FROM json_each(NEW.changed)) AS new
        WHERE tasks.id = new.i;
    INSERT OR REPLACE INTO cursors SELECT value->>0, value->>1, value->>2, NEW.age FROM json_each(NEW.cursors);
    INSERT OR REPLACE INTO meta VALUES ('applied', NEW.last), ('age', NEW.age);
END;
";

/// Brings a file of an older version up to this one.
pub(crate) async fn migrate(db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
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
    if found.is_some_and(|version| version < 7) {
        // Version 7 finds tasks by their message and by their end; ends are told by the store's own clock, which begins where
        // the newest task is. Its log has headers and watermarks, which older programs do not read.
        tracing::info!("the store is brought up to version 7; with many tasks that takes a while");
        sqlx::raw_sql(
            "BEGIN; ALTER TABLE tasks ADD COLUMN message_id TEXT; ALTER TABLE tasks ADD COLUMN ended_at INTEGER NOT NULL DEFAULT 0;
             UPDATE tasks SET message_id = json_extract(record, '$.message_id'), ended_at = ended * changed_ms;
             ALTER TABLE blobs ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE cursors ADD COLUMN touched_at INTEGER NOT NULL DEFAULT 0;
             INSERT OR REPLACE INTO meta SELECT 'age', max(changed_ms) FROM tasks HAVING max(changed_ms) IS NOT NULL;
             UPDATE blobs SET used_at = coalesce((SELECT value FROM meta WHERE key = 'age'), 0);
             UPDATE cursors SET touched_at = coalesce((SELECT value FROM meta WHERE key = 'age'), 0);
             INSERT INTO ended_counts SELECT state, count(*) FROM tasks WHERE ended = 1 GROUP BY state;
             UPDATE meta SET value = 7 WHERE key = 'schema'; COMMIT;",
        )
        .execute(&mut *db)
        .await?;
    }
    if found.is_some_and(|version| version < 8) {
        // Version 8 keeps sessions of drivers and their actors; an older program would lose them without a word.
        sqlx::query("UPDATE meta SET value = 8 WHERE key = 'schema'").execute(&mut *db).await?;
    }
    // Version 9 has sums on its pages, which no older program writes: `sums::give`. Version 10 keeps links of actors, gangs that
    // wait and dead letters, which an older program would lose without a word; version 11 has both.
    // Only now the columns are there in every file.
    sqlx::raw_sql(INDEXES).execute(db).await?;
    Ok(())
}
