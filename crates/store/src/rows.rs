//! Rows made of domain values, and the other way round.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use covey_domain::{Envelope, NodeId, TaskId, TaskRecord, TaskState};
use sqlx::{Row, Sqlite, sqlite::SqliteRow};

use crate::{Batch, Error};

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

/// What tasks make of a commit, as lists in JSON for the view `commits`.
pub(crate) struct Rows {
    made: String,
    changed: String,
    events: String,
    cursors: String,
}

impl Rows {
    pub(crate) fn of(batch: &Batch) -> Self {
        // Of several states of one task only the last is written.
        let mut last: HashMap<&TaskId, &Arc<TaskRecord>> = batch.tasks.iter().map(|t| (&t.id, t)).collect();
        let made = batch.made.iter().map(|made| {
            let now = last.remove(&made.id).unwrap_or(made);
            (
                (made.id.as_str(), made.agent.as_str(), made.context.as_str(), made.caller.as_str()),
                (now.state.name(), made.created_ms, u32::from(now.state.is_terminal())),
                (json(made.as_ref()), now.changed_ms, now.attempt),
            )
        });
        let made =
            list(made.map(|((id, agent, context, caller), (state, created, ended), (record, changed, attempt))| {
                json(&(id, agent, context, caller, state, created, ended, record, changed, attempt))
            }));
        let changed = list(last.into_values().map(|t| {
            json(&(t.id.as_str(), t.state.name(), u32::from(t.state.is_terminal()), t.changed_ms, t.attempt))
        }));
        let runs = runs(&batch.events);
        let events = list(runs.iter().map(|run| {
            let body = if run.events.len() == 1 { json(run.events[0]) } else { json(&run.events) };
            json(&(run.task.as_str(), run.last, body))
        }));
        let mut cursors: BTreeMap<(&NodeId, u64), u64> = BTreeMap::new();
        for (node, incarnation, number) in &batch.cursors {
            cursors.insert((node, *incarnation), *number);
        }
        // Signed, as SQLite has its numbers.
        let cursors = cursors
            .into_iter()
            .map(|((node, incarnation), number)| json(&(node.as_str(), incarnation as i64, number as i64)));
        Self { made, changed, events, cursors: list(cursors) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.made.len() + self.changed.len() + self.events.len()) as u64
    }

    pub(crate) fn insert(&self) -> sqlx::query::Query<'_, Sqlite, sqlx::sqlite::SqliteArguments> {
        let insert = sqlx::query("INSERT INTO commits VALUES (?, ?, ?, ?)");
        insert.bind(&self.made).bind(&self.changed).bind(&self.events).bind(&self.cursors)
    }
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

fn runs(events: &[Arc<Envelope>]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
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
