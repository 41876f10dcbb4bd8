//! Rows made of domain values, and the other way round.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use covey_domain::{Envelope, NodeId, TaskId, TaskRecord, TaskState};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};

use crate::{Batch, Error, TaskChange};

/// Events of a task that were committed together and share a row, at most.
const EVENTS_PER_ROW: usize = 256;

/// The columns that make a record, for [`record_of`].
pub(crate) const RECORD: &str = "record, state, changed_ms, attempt";

pub(crate) fn record_of(row: &SqliteRow) -> Result<TaskRecord, Error> {
    let record: TaskRecord = parse("task", row.get(0))?;
    let state = TaskState::named(row.get(1)).unwrap_or(record.state);
    let (changed_ms, attempt): (i64, i64) = (row.get(2), row.get(3));
    Ok(TaskRecord { state, changed_ms: changed_ms as u64, attempt: attempt as u32, ..record })
}

/// A row of `tasks`.
struct Made<'a> {
    record: &'a TaskRecord,
    now: TaskChange,
}

/// What tasks make of neighbouring batches: rows of their own, and lists in JSON for the view `commits`.
pub(crate) struct Rows<'a> {
    made: Vec<Made<'a>>,
    runs: Vec<Run<'a>>,
    changed: String,
    cursors: String,
}

impl<'a> Rows<'a> {
    pub(crate) fn of(batches: &'a [Batch]) -> Self {
        // Of several states of one task only the last is written.
        let changes = batches.iter().flat_map(|batch| &batch.tasks);
        let mut last: HashMap<&TaskId, &TaskChange> = changes.map(|change| (&change.id, change)).collect();
        let made = batches.iter().flat_map(|batch| &batch.made).map(|record| {
            let now = last.remove(&record.id).cloned().unwrap_or_else(|| TaskChange::of(record));
            Made { record, now }
        });
        let made = made.collect();
        let changed = list(last.into_values().map(|t| {
            json(&(t.id.as_str(), t.state.name(), u32::from(t.state.is_terminal()), t.changed_ms, t.attempt))
        }));
        let runs = runs(batches.iter().flat_map(|batch| &batch.events));
        let mut cursors: BTreeMap<(&NodeId, u64), u64> = BTreeMap::new();
        for (node, incarnation, number) in batches.iter().flat_map(|batch| &batch.cursors) {
            cursors.insert((node, *incarnation), *number);
        }
        // Signed, as SQLite has its numbers.
        let cursors = cursors
            .into_iter()
            .map(|((node, incarnation), number)| json(&(node.as_str(), incarnation as i64, number as i64)));
        Self { made, runs, changed, cursors: list(cursors) }
    }

    /// Writes them all; `last` is the number of the last batch. Gives about how many bytes that was.
    pub(crate) async fn write(&self, db: &mut SqliteConnection, last: u64) -> Result<u64, sqlx::Error> {
        const TASKS: &str = "INSERT OR IGNORE INTO tasks (id, agent, context, caller, state, created_ms, ended, record, changed_ms, attempt) ";
        let mut bytes = 0;
        for made in chunks(&self.made) {
            let mut insert = QueryBuilder::<Sqlite>::new(TASKS);
            insert.push_values(made, |mut row, Made { record, now }| {
                let body = json(record);
                bytes += body.len() as u64;
                row.push_bind(record.id.as_str()).push_bind(record.agent.as_str()).push_bind(record.context.as_str());
                row.push_bind(record.caller.as_str()).push_bind(now.state.name()).push_bind(record.created_ms as i64);
                row.push_bind(now.state.is_terminal()).push_bind(body);
                row.push_bind(now.changed_ms as i64).push_bind(now.attempt);
            });
            insert.build().execute(&mut *db).await?;
        }
        for runs in chunks(&self.runs) {
            let mut insert = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO events ");
            insert.push_values(runs, |mut row, run| {
                let body = if run.events.len() == 1 { json(run.events[0]) } else { json(&run.events) };
                bytes += body.len() as u64;
                row.push_bind(run.task.as_str()).push_bind(run.last as i64).push_bind(body);
            });
            insert.build().execute(&mut *db).await?;
        }
        let rest = sqlx::query("INSERT INTO commits VALUES (?, ?, ?)");
        rest.bind(&self.changed).bind(&self.cursors).bind(last as i64).execute(&mut *db).await?;
        Ok(bytes)
    }
}

/// Rows of one statement: few sizes, so that SQLite has its plans ready.
fn chunks<T>(all: &[T]) -> impl Iterator<Item = &[T]> {
    let (large, small) = all.as_chunks::<64>();
    large.iter().map(<[T; 64]>::as_slice).chain(small.chunks(1))
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

/// Neighbours of one task, which share a row.
struct Run<'a> {
    task: &'a TaskId,
    last: u64,
    events: Vec<&'a Envelope>,
}

fn runs<'a>(events: impl Iterator<Item = &'a Arc<Envelope>>) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    let mut open: HashMap<&TaskId, usize> = HashMap::new();
    for event in events {
        let known = open.get(&event.task).map(|at| &mut runs[*at]);
        match known.filter(|run| run.last + 1 == event.seq && run.events.len() < EVENTS_PER_ROW) {
            Some(run) => {
                run.events.push(event);
                run.last = event.seq;
            }
            None => {
                open.insert(&event.task, runs.len());
                runs.push(Run { task: &event.task, last: event.seq, events: vec![event] });
            }
        }
    }
    runs
}

pub(crate) fn events_of(body: String) -> Result<Vec<Envelope>, Error> {
    if body.starts_with('[') { parse("events", body) } else { parse("event", body).map(|event| vec![event]) }
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("domain values have string keys and no failing serializer")
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(what: &'static str, text: String) -> Result<T, Error> {
    serde_json::from_str(&text).map_err(|source| Error::Body { what, source })
}
