//! Forgets what is old: tasks by the time since they ended, and by how much there is; with them their events, webhooks and uses of
//! files, and then cursors and blobs that nobody needs. In small steps, so that nobody who writes waits long.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use covey_domain::{Millis, TaskState};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use crate::{Error, Store, transaction::Transaction, usage};

/// A step should hold the writer no longer than this; the next one takes less where it did.
const STEP_TARGET: Duration = Duration::from_millis(15);
/// Tasks of a step, at first and at most; and rows of events.
const STEP_TASKS: u32 = 16;
const STEP_MAX: u32 = 256;
const STEP_ROWS: i64 = 256;
/// Bytes of what a step forgets, one row aside: a row may have as much as a message.
const STEP_BYTES: i64 = 4 << 20;
/// Pages that a step gives back to the file system.
const STEP_PAGES: u32 = 256;
/// So much of the file stays free for what comes, bytes.
const FREE_LEFT: u64 = 16 << 20;
/// Pause between steps, so that others get their turn.
const PAUSE: Duration = Duration::from_millis(5);

/// How long, and how much, is kept of what has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Since its end, by the store's own clock, which goes on only while a head runs.
    pub age: Duration,
    /// Bytes of the tables; the oldest go first.
    pub bytes: Option<u64>,
}

/// What was forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Tasks that had ended.
    pub tasks: u64,
    /// Cursors of processes of workers that are no more.
    pub cursors: u64,
    /// Blobs that nothing names.
    pub blobs: u64,
    /// The longest time that others could not write.
    pub held_max: Duration,
}

impl Store {
    /// Forgets all that should not be kept.
    pub async fn forget(&self, keep: Retention) -> Result<Forgotten, Error> {
        let mut done = Forgotten::default();
        let before = self.age.now().saturating_sub(keep.age.as_millis() as Millis);
        let mut limit = STEP_TASKS;
        loop {
            let held = Instant::now();
            let swept = self.sweep_events(limit).await?;
            let mut held = held.elapsed();
            if !swept {
                let over = match keep.bytes {
                    Some(most) => self.bytes().await?.saturating_sub(most),
                    None => 0,
                };
                // Near the bound one task may be enough, and none goes that need not.
                let near = over < keep.bytes.unwrap_or(0) / 64;
                let (before, some) = match over {
                    0 => (before, limit),
                    _ => (Millis::MAX >> 1, if near { 1 } else { limit }),
                };
                let now = Instant::now();
                let tasks = self.forget_tasks(before, some).await?;
                held = now.elapsed();
                if tasks == 0 {
                    break;
                }
                done.tasks += tasks;
            }
            done.held_max = done.held_max.max(held);
            self.changed_pages();
            limit = if held > STEP_TARGET { (limit / 2).max(1) } else { (limit * 2).min(STEP_MAX) };
            tokio::time::sleep(PAUSE).await;
        }
        (done.cursors, done.blobs) = self.forget_unused(before).await?;
        while self.may_shrink().await? {
            let held = self.shrink().await?;
            done.held_max = done.held_max.max(held);
            self.changed_pages();
            tokio::time::sleep(PAUSE).await;
        }
        Ok(done)
    }

    /// A step has changed pages, which the next checkpoint brings into the file: without one it keeps its size.
    fn changed_pages(&self) {
        self.flushed.send_modify(|bytes| *bytes += STEP_BYTES as u64);
    }

    /// Whether the file has more free pages than it should, and can give them back.
    async fn may_shrink(&self) -> Result<bool, Error> {
        let sql = "SELECT freelist_count * page_size > ? AND auto_vacuum = 2
            FROM pragma_freelist_count, pragma_page_size, pragma_auto_vacuum";
        Ok(sqlx::query_scalar(sql).bind(FREE_LEFT as i64).fetch_one(&self.readers).await?)
    }

    /// Gives some free pages back; says for how long nobody could write.
    async fn shrink(&self) -> Result<Duration, Error> {
        let mut db = self.writer.lock().await;
        let held = Instant::now();
        let sql = format!("PRAGMA incremental_vacuum({STEP_PAGES})");
        let done = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *db).await;
        self.fault.sound(done)?;
        Ok(held.elapsed())
    }

    /// Bytes of the tables that are in use.
    pub async fn bytes(&self) -> Result<u64, Error> {
        let sql = "SELECT (page_count - freelist_count) * page_size
            FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
        let bytes: i64 = sqlx::query_scalar(sql).fetch_one(&self.readers).await?;
        Ok(bytes as u64)
    }

    /// Some of those that ended before `before`: nobody finds them any more, and their events are doomed.
    async fn forget_tasks(&self, before: Millis, limit: u32) -> Result<u64, Error> {
        // Their bytes are counted before others wait.
        let old = format!(
            "SELECT id, state, caller, {}, octet_length(record) FROM tasks
             WHERE ended = 1 AND ended_at < ? ORDER BY ended_at, id LIMIT ?",
            usage::OF_TASK
        );
        let old =
            sqlx::query(sqlx::AssertSqlSafe(old)).bind(before as i64).bind(limit).fetch_all(&self.readers).await?;
        if old.is_empty() {
            return Ok(0);
        }
        let mut left = STEP_BYTES;
        let fits = |row: &&SqliteRow| {
            let fits = left > 0;
            left -= row.get::<i64, _>(4);
            fits
        };
        let old: Vec<Old> = old
            .iter()
            .take_while(fits)
            .map(|row| Old { id: row.get(0), state: row.get(1), caller: row.get(2), bytes: row.get(3) })
            .collect();
        let mut db = self.writer.lock().await;
        let (gone, usage) = self.fault.sound(doom(&mut db, &old).await)?;
        self.usage.set(usage);
        Ok(gone)
    }

    /// Some of the events of doomed tasks. `false`: there were none.
    async fn sweep_events(&self, limit: u32) -> Result<bool, Error> {
        let doomed = sqlx::query_scalar::<_, String>("SELECT task FROM doomed LIMIT ?").bind(limit);
        let doomed = doomed.fetch_all(&self.readers).await?;
        if doomed.is_empty() {
            return Ok(false);
        }
        let mut db = self.writer.lock().await;
        self.fault.sound(sweep(&mut db, &doomed).await)?;
        Ok(true)
    }

    async fn forget_unused(&self, before: Millis) -> Result<(u64, u64), Error> {
        let mut db = self.writer.lock().await;
        // A process of a worker may have said nothing for long; only one that another process of its node came after is gone.
        let cursors = "DELETE FROM cursors WHERE touched_at < ? AND EXISTS
            (SELECT 1 FROM cursors AS other WHERE other.node = cursors.node AND other.touched_at > cursors.touched_at)";
        let cursors = sqlx::query(cursors).bind(before as i64).execute(&mut *db).await;
        // What a task that waits may still need is as old as the task.
        let blobs = "DELETE FROM blobs WHERE used_at < ?1
            AND NOT EXISTS (SELECT 1 FROM agents WHERE instr(spec, digest))
            AND NOT EXISTS (SELECT 1 FROM actors WHERE instr(spec, digest))
            AND NOT EXISTS (SELECT 1 FROM tasks WHERE ended = 0 AND created_ms <= used_at + 86400000)";
        let blobs = sqlx::query(blobs).bind(before as i64).execute(&mut *db).await;
        Ok((self.fault.sound(cursors)?.rows_affected(), self.fault.sound(blobs)?.rows_affected()))
    }
}

/// A task that ended long ago.
struct Old {
    id: String,
    state: String,
    caller: String,
    bytes: i64,
}

async fn doom(db: &mut SqliteConnection, old: &[Old]) -> Result<(u64, usage::Changed), sqlx::Error> {
    let mut tx = Transaction::begin(db).await?;
    let done = doom_in(&mut tx, old).await;
    tx.end(done).await
}

async fn doom_in(tx: &mut SqliteConnection, old: &[Old]) -> Result<(u64, usage::Changed), sqlx::Error> {
    let (mut gone, mut less) = (0, BTreeMap::<&str, i64>::new());
    for Old { id, state, caller, bytes } in old {
        let task = sqlx::query("DELETE FROM tasks WHERE id = ? AND ended = 1").bind(id).execute(&mut *tx).await?;
        if task.rows_affected() == 0 {
            continue;
        }
        gone += 1;
        *less.entry(caller).or_default() += bytes;
        for sql in [
            "DELETE FROM hooks WHERE task = ?",
            "DELETE FROM artifact_uses WHERE task = ?",
            "INSERT OR IGNORE INTO doomed VALUES (?)",
        ] {
            sqlx::query(sql).bind(id).execute(&mut *tx).await?;
        }
        if let Some(state) = TaskState::named(state) {
            let fewer = "UPDATE ended_counts SET count = count - 1 WHERE state = ?";
            sqlx::query(fewer).bind(state.name()).execute(&mut *tx).await?;
        }
    }
    Ok((gone, usage::sub(tx, &less).await?))
}

async fn sweep(db: &mut SqliteConnection, doomed: &[String]) -> Result<(), sqlx::Error> {
    let mut tx = Transaction::begin(db).await?;
    let done = sweep_in(&mut tx, doomed).await;
    tx.end(done).await
}

async fn sweep_in(tx: &mut SqliteConnection, doomed: &[String]) -> Result<(), sqlx::Error> {
    // Pages of a large row are read before they are free.
    let some = "SELECT count(*), coalesce(max(seq), 0), coalesce(sum(bytes), 0) FROM
        (SELECT seq, bytes, sum(bytes) OVER (ORDER BY seq) - bytes AS before FROM
            (SELECT seq, octet_length(body) AS bytes FROM events WHERE task = ? ORDER BY seq LIMIT ?)) WHERE before < ?";
    let (mut rows, mut bytes) = (STEP_ROWS, STEP_BYTES);
    for id in doomed {
        let found = sqlx::query_as(sqlx::AssertSqlSafe(some)).bind(id).bind(rows).bind(bytes);
        let (count, last, size): (i64, i64, i64) = found.fetch_one(&mut *tx).await?;
        if count > 0 {
            let events = "DELETE FROM events WHERE task = ? AND seq <= ?";
            sqlx::query(events).bind(id).bind(last).execute(&mut *tx).await?;
        }
        (rows, bytes) = (rows - count, bytes - size);
        if rows <= 0 || bytes <= 0 {
            break;
        }
        sqlx::query("DELETE FROM doomed WHERE task = ?").bind(id).execute(&mut *tx).await?;
    }
    Ok(())
}
