//! Rows made of domain values, and the other way round.

use std::{collections::BTreeMap, mem};

use covey_domain::{Envelope, Millis, SubRunId, TaskEvent, TaskId, TaskRecord, TaskState};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};

use crate::{Error, TaskChange, group::Group};

/// The columns that make a record, for [`record_of`].
pub(crate) const RECORD: &str = "record, state, changed_ms, attempt";

pub(crate) fn record_of(row: &SqliteRow) -> Result<TaskRecord, Error> {
    record_from(row.get(0), row.get(1), (row.get(2), row.get(3)))
}

/// The same, of the columns' values: the JSON, the state, and when it changed and its attempt.
pub(crate) fn record_from(body: &str, state: &str, (changed_ms, attempt): (i64, i64)) -> Result<TaskRecord, Error> {
    let record: TaskRecord = parse("task", body)?;
    let state = TaskState::named(state).unwrap_or(record.state);
    Ok(TaskRecord { state, changed_ms: changed_ms as u64, attempt: attempt as u32, ..record })
}

/// What a row of `tasks` is made of.
struct Made<'a> {
    record: &'a TaskRecord,
    body: &'a str,
    now: TaskChange,
}

/// Writes tasks, their events and the cursors. Gives how many bytes that was of each task.
pub(crate) async fn write<'a>(
    db: &mut SqliteConnection,
    group: &'a Group,
    age: Millis,
) -> Result<HashMap<&'a str, u64>, sqlx::Error> {
    const TASKS: &str = "INSERT OR IGNORE INTO tasks (id, agent, context, caller, state, created_ms, ended, record, changed_ms, \
        attempt, message_id, ended_at) ";
    let mut sizes: HashMap<&'a str, u64> = HashMap::with_capacity(group.tasks.len());
    let made = group.tasks.iter().filter_map(|task| {
        let (record, piece) = task.made.as_ref()?;
        let now = task.change.clone().unwrap_or_else(|| TaskChange::of(record));
        Some(Made { record, body: group.json(piece), now })
    });
    let mut ended: BTreeMap<&str, i64> = BTreeMap::new();
    for made in chunks(&mut made.collect::<Vec<_>>()) {
        let mut insert = QueryBuilder::<Sqlite>::new(TASKS);
        insert.push_values(&*made, |mut row, Made { record, body, now }| {
            *sizes.entry(record.id.as_str()).or_default() += body.len() as u64;
            row.push_bind(record.id.as_str()).push_bind(record.agent.as_str()).push_bind(record.context.as_str());
            row.push_bind(record.caller.as_str()).push_bind(now.state.name()).push_bind(record.created_ms as i64);
            row.push_bind(now.state.is_terminal()).push_bind(*body);
            row.push_bind(now.changed_ms as i64).push_bind(now.attempt).push_bind(record.message_id.as_deref());
            row.push_bind(if now.state.is_terminal() { age as i64 } else { 0 });
            if now.state.is_terminal() {
                *ended.entry(now.state.name()).or_default() += 1;
            }
        });
        let done = insert.build().execute(&mut *db).await?;
        if done.rows_affected() < made.len() as u64 {
            clashes(db, group, made).await?;
        }
    }
    let rows =
        group.tasks.iter().flat_map(|task| group.rows(task).into_iter().map(|(last, body)| (&task.id, last, body)));
    let mut rows: Vec<_> = rows.collect();
    for rows in chunks(&mut rows) {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO events ");
        insert.push_values(rows, |mut row, (task, last, body)| {
            *sizes.entry(task.as_str()).or_default() += body.len() as u64;
            row.push_bind(task.as_str()).push_bind(*last as i64).push_bind(mem::take(body));
        });
        insert.build().execute(&mut *db).await?;
    }
    let changed = list(group.tasks.iter().filter(|task| task.made.is_none()).filter_map(|task| {
        let t = task.change.as_ref()?;
        if t.state.is_terminal() {
            *ended.entry(t.state.name()).or_default() += 1;
        }
        Some(json(&(t.id.as_str(), t.state.name(), u32::from(t.state.is_terminal()), t.changed_ms, t.attempt)))
    }));
    // Signed, as SQLite has its numbers.
    let cursors = list(
        group
            .cursors
            .iter()
            .map(|((node, incarnation), number)| json(&(node.as_str(), *incarnation as i64, *number as i64))),
    );
    let rest = sqlx::query("INSERT INTO commits VALUES (?, ?, ?, ?)");
    rest.bind(changed).bind(cursors).bind(group.last as i64).bind(age as i64).execute(&mut *db).await?;
    for (state, count) in ended {
        let add =
            "INSERT INTO ended_counts VALUES (?, ?) ON CONFLICT (state) DO UPDATE SET count = count + excluded.count";
        sqlx::query(add).bind(state).bind(count).execute(&mut *db).await?;
    }
    Ok(sizes)
}

/// Tells of tasks whose ids the tables had already. A group is written once, so each is two tasks of one id, and the first holds.
async fn clashes(db: &mut SqliteConnection, group: &Group, made: &[Made<'_>]) -> Result<(), sqlx::Error> {
    for Made { record, body, .. } in made {
        let known: Option<String> = sqlx::query_scalar("SELECT record FROM tasks WHERE id = ?")
            .bind(record.id.as_str())
            .fetch_optional(&mut *db)
            .await?;
        if known.as_deref() != Some(*body) {
            tracing::error!(task_id = %record.id, batch = group.last, "two tasks have one id; the second is not kept");
        }
    }
    Ok(())
}

/// Rows of one statement: few sizes, so that SQLite has its plans ready.
fn chunks<T>(all: &mut [T]) -> impl Iterator<Item = &mut [T]> {
    let (large, small) = all.as_chunks_mut::<64>();
    large.iter_mut().map(<[T; 64]>::as_mut_slice).chain(small.chunks_mut(1))
}

fn list(items: impl Iterator<Item = String>) -> String {
    let mut text = String::from("[");
    for item in items {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&item);
    }
    text.push(']');
    text
}

/// An event as it is stored: without what its row says.
#[derive(Serialize)]
pub(crate) struct Entry<'a> {
    ts_ms: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a SubRunId>,
    event: &'a TaskEvent,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: &'a BTreeMap<String, Value>,
}

impl<'a> Entry<'a> {
    pub fn of(Envelope { ts_ms, sub, event, meta, .. }: &'a Envelope) -> Self {
        Self { ts_ms: *ts_ms, sub: sub.as_ref(), event, meta }
    }
}

/// The same, read. Files up to version 4 have more in it.
#[derive(Deserialize)]
struct StoredEntry<'a> {
    ts_ms: Millis,
    #[serde(default)]
    sub: Option<SubRunId>,
    #[serde(borrow)]
    event: &'a RawValue,
    #[serde(default)]
    meta: BTreeMap<String, Value>,
}

impl StoredEntry<'_> {
    fn numbered(self, task: &TaskId, seq: u64) -> serde_json::Result<Envelope> {
        let Self { ts_ms, sub, event, meta } = self;
        Ok(Envelope { task: task.clone(), seq, ts_ms, sub, event: TaskEvent::read(event.get().as_bytes())?, meta })
    }
}

/// Events of a task, made of a list of entries that follow each other; `first` is the number of the first.
pub(crate) fn numbered(task: &TaskId, first: u64, entries: &str) -> serde_json::Result<Vec<Envelope>> {
    let entries: Vec<StoredEntry<'_>> = serde_json::from_str(entries)?;
    entries.into_iter().zip(first..).map(|(entry, seq)| entry.numbered(task, seq)).collect()
}

/// What a row of events has: the number of the last, and the entries.
pub(crate) fn events_in(task: &TaskId, last: u64, body: &str) -> serde_json::Result<Vec<Envelope>> {
    if !body.starts_with('[') {
        return Ok(vec![serde_json::from_str::<StoredEntry<'_>>(body)?.numbered(task, last)?]);
    }
    let entries: Vec<StoredEntry<'_>> = serde_json::from_str(body)?;
    let first = last + 1 - entries.len() as u64;
    entries.into_iter().zip(first..).map(|(entry, seq)| entry.numbered(task, seq)).collect()
}

/// The same, of the columns `seq` and `body`.
pub(crate) fn events_of(task: &TaskId, row: &SqliteRow) -> Result<Vec<Envelope>, Error> {
    let (last, body): (i64, &str) = (row.get(0), row.get(1));
    events_in(task, last as u64, body).map_err(|source| Error::Body { what: "event", source })
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("domain values have string keys and no failing serializer")
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|source| Error::Body { what, source })
}
