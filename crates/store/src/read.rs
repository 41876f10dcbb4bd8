//! What readers get: from beside the tables where it is not in them yet, else from the tables.

use std::sync::Arc;

use covey_domain::{ActorId, Envelope, TaskId, TaskRecord, caps, json};
use futures::{Stream, TryStreamExt as _};
use sqlx::{Row as _, sqlite::SqliteRow};

use crate::{
    Error, Store,
    memtable::Beside,
    rows::{RECORD, events_of, record_of},
};

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
    /// Or by this one, where there is one.
    pub other: &'a str,
}

/// Records of a listing, as many as were asked for or as [`caps::LIST_PAGE_BYTES_MAX`] lets in.
#[derive(Debug, Default)]
pub struct TaskPage {
    /// Those that can be read. One that cannot costs itself, not the listing.
    pub records: Vec<TaskRecord>,
    /// The last task of the page, and the time by which it is listed; `None` where no other can follow.
    pub next: Option<(u64, TaskId)>,
    /// Whether tasks are missing that are in the log and, while the tables have no room, not in them yet.
    pub lacks: bool,
}

/// Columns of a listing: those of [`record_of`], then the task and the time by which it is listed.
async fn page_of(
    mut rows: impl Stream<Item = Result<SqliteRow, sqlx::Error>> + Unpin,
    limit: u32,
) -> Result<TaskPage, Error> {
    let (mut page, mut count, mut bytes) = (TaskPage::default(), 0, 0);
    // Row by row: a row may have as much as a message.
    while let Some(row) = rows.try_next().await? {
        let body = row.get::<&str, _>(0);
        bytes += body.len() + json::weigh(body.as_bytes());
        count += 1;
        match record_of(&row) {
            Ok(record) => page.records.push(record),
            Err(error) => tracing::error!(%error, "a task in the tables cannot be read; `covey doctor` names it"),
        }
        if count == limit || bytes >= caps::LIST_PAGE_BYTES_MAX {
            page.next = Some((row.get::<i64, _>("at") as u64, row.get::<String, _>("id").into()));
            break;
        }
    }
    Ok(page)
}

impl Store {
    /// The state of an actor.
    pub async fn state(&self, actor: &ActorId) -> Result<Option<Vec<u8>>, Error> {
        // First beside the tables: what is not there any more then is in the tables.
        let beside = self.memtable.state(actor);
        let row = sqlx::query("SELECT state, epoch FROM actor_states WHERE actor = ?")
            .bind(actor.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let newer = |row: &SqliteRow| beside.as_ref().is_none_or(|(epoch, _)| *epoch < row.get::<i64, _>(1) as u64);
        match row.filter(newer) {
            Some(row) => Ok(Some(row.get(0))),
            None => Ok(beside.and_then(|(_, state)| state).map(|state| state.0.to_vec())),
        }
    }

    /// Events of a task with numbers above `after`: a page, bounded by count and by bytes, with one event at least while there
    /// is one. An empty page is the end.
    pub async fn events(&self, task: &TaskId, after: u64) -> Result<Vec<Arc<Envelope>>, Error> {
        // First beside the tables: what is not there any more then is in the tables.
        let (beside, first) = self.memtable.events(task, after)?;
        if first.is_some_and(|first| first <= after + 1) {
            return Ok(beside);
        }
        let mut rows = sqlx::query("SELECT seq, body FROM events WHERE task = ? AND seq > ? ORDER BY seq LIMIT ?")
            .bind(task.as_str())
            .bind(after as i64)
            .bind(caps::EVENT_PAGE_MAX as i64)
            .fetch(&self.readers);
        let (mut events, mut bytes) = (Vec::new(), 0);
        // Row by row: a row may have as much as a message.
        while let Some(row) = rows.try_next().await? {
            let run = events_of(task, &row)?;
            bytes += row.get::<&str, _>(1).len();
            let missing = |seq| seq > after && first.is_none_or(|first| seq < first);
            events.extend(run.into_iter().filter(|event| missing(event.seq)).map(Arc::new));
            // A page is a bound for memory too.
            if events.len() >= caps::EVENT_PAGE_MAX || (bytes >= caps::EVENT_PAGE_BYTES_MAX && !events.is_empty()) {
                return Ok(events);
            }
        }
        events.extend(beside);
        Ok(events)
    }

    /// One task's record.
    pub async fn task(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, Error> {
        let Beside { made, change } = self.memtable.task(id);
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
    pub async fn tasks(&self, filter: TaskFilter<'_>, before: &str, limit: u32) -> Result<TaskPage, Error> {
        let lacks = !self.memtable.flush().await;
        let sql = format!(
            "SELECT {RECORD}, id, created_ms AS at FROM tasks WHERE (?1 = '' OR agent = ?1) AND (?2 = '' OR context = ?2) AND (?3 = '' OR state = ?3)
             AND (?4 = '' OR caller = ?4 OR (?7 <> '' AND caller = ?7))
             AND (?5 = '' OR (created_ms, id) < (SELECT created_ms, id FROM tasks WHERE id = ?5))
             ORDER BY created_ms DESC, id DESC LIMIT ?6",
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(filter.agent)
            .bind(filter.context)
            .bind(filter.state)
            .bind(filter.caller)
            .bind(before)
            .bind(i64::from(limit))
            .bind(filter.other)
            .fetch(&self.lister);
        Ok(TaskPage { lacks, ..page_of(rows, limit).await? })
    }

    /// Records by the last change of their status, newest first, of a caller's tasks that changed at `since_ms` or later;
    /// from below the place `before` (a change and a task) where there is one. And how many there are in all.
    pub async fn changed(
        &self,
        filter: TaskFilter<'_>,
        since_ms: u64,
        before: Option<(u64, &str)>,
        limit: u32,
    ) -> Result<(TaskPage, u64), Error> {
        let lacks = !self.memtable.flush().await;
        let matching =
            "caller = ?1 AND (?2 = '' OR agent = ?2) AND (?3 = '' OR context = ?3) AND (?4 = '' OR state = ?4)
            AND changed_ms >= ?5";
        let count = format!("SELECT count(*) FROM tasks WHERE {matching}");
        let count = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(count));
        let page = format!(
            "SELECT {RECORD}, id, changed_ms AS at FROM tasks WHERE {matching} AND (changed_ms, id) < (?6, ?7)
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
            .fetch_one(&self.lister)
            .await?;
        if all == 0 {
            return Ok((TaskPage { lacks, ..TaskPage::default() }, 0));
        }
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
            .fetch(&self.lister);
        Ok((TaskPage { lacks, ..page_of(rows, limit).await? }, all as u64))
    }
}
