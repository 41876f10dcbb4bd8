//! What is stored and cannot be read costs the task it is of, not the store: the rest is read, and what is not is set aside in
//! the file `<store>-quarantine`, a line of JSON each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use covey_domain::{TaskId, TaskRecord, task::TaskInput};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{Batch, beside, rows::numbered};

/// Something that could not be read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Broken {
    /// What it is.
    pub what: String,
    /// Of which task, where that is known.
    pub task: Option<TaskId>,
    /// Why it could not be read.
    pub why: String,
    /// As it is stored.
    pub body: String,
}

/// Where such things are set aside.
pub(crate) fn quarantine(path: &Path) -> PathBuf {
    beside(path, "-quarantine")
}

/// Sets things aside, for good.
pub(crate) fn set_aside(path: &Path, broken: &[Broken]) -> io::Result<()> {
    if broken.is_empty() {
        return Ok(());
    }
    let path = quarantine(path);
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    for one in broken {
        let task = one.task.as_ref().map_or("none", TaskId::as_str);
        tracing::error!(what = one.what, task, why = one.why, file = %path.display(), "what is stored cannot be read; it was set aside");
        let mut line = serde_json::to_vec(one)?;
        line.push(b'\n');
        file.write_all(&line)?;
    }
    file.sync_all()?;
    crate::log::sync_folder_of(&path)
}

/// What was set aside.
pub(crate) fn set_aside_before(path: &Path) -> io::Result<Vec<Broken>> {
    match std::fs::read_to_string(quarantine(path)) {
        Ok(text) => text.lines().map(|line| serde_json::from_str(line).map_err(io::Error::other)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The parts of a batch, unread. Passing over a value takes no recursion, so this works at any depth.
#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow)]
    made: Vec<&'a RawValue>,
    #[serde(borrow)]
    runs: Vec<&'a RawValue>,
    #[serde(borrow)]
    rest: BTreeMap<&'a str, &'a RawValue>,
}

/// A record of a task without what it was asked with, which is what may be deep.
pub(crate) fn record_without_input(body: &str) -> Option<TaskRecord> {
    let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_str(body).ok()?;
    let none = serde_json::value::to_raw_value(&TaskInput::default()).ok()?;
    fields.insert("input", &none);
    serde_json::from_str(&serde_json::to_string(&fields).ok()?).ok()
}

/// What can be read of a batch that cannot be read whole, and what cannot.
pub(crate) fn batch(json: &[u8], error: &serde_json::Error) -> (Batch, Vec<Broken>) {
    let mut broken = Vec::new();
    let Ok(parts) = serde_json::from_slice::<Parts<'_>>(json) else {
        let body = String::from_utf8_lossy(json).into_owned();
        broken.push(Broken { what: "a record of the log".into(), task: None, why: error.to_string(), body });
        return (Batch::default(), broken);
    };
    let mut batch = rest(parts.rest, &mut broken);
    for raw in parts.made {
        match serde_json::from_str::<TaskRecord>(raw.get()) {
            Ok(record) => batch.made.push(Arc::new(record)),
            Err(error) => {
                let known = record_without_input(raw.get());
                let task = known.as_ref().map(|record| record.id.clone());
                batch.made.extend(known.map(Arc::new));
                broken.push(Broken { what: "a task".into(), task, why: error.to_string(), body: raw.get().into() });
            }
        }
    }
    let mut cut = BTreeSet::new();
    for raw in parts.runs {
        let run: Result<(TaskId, u64, &RawValue), _> = serde_json::from_str(raw.get());
        let read = run.map(|(task, first, entries)| (numbered(&task, first, entries.get()), task));
        let (error, task) = match read {
            // Events without those before them are no log.
            Ok((Ok(_), task)) if cut.contains(&task) => continue,
            Ok((Ok(events), _)) => {
                batch.events.extend(events.into_iter().map(Arc::new));
                continue;
            }
            Ok((Err(error), task)) => (error, Some(task)),
            Err(error) => (error, None),
        };
        cut.extend(task.clone());
        broken.push(Broken { what: "events of a task".into(), task, why: error.to_string(), body: raw.get().into() });
    }
    (batch, broken)
}

/// The lists of a batch, element by element.
fn rest(mut lists: BTreeMap<&str, &RawValue>, broken: &mut Vec<Broken>) -> Batch {
    let mut list = |name: &str| lists.remove(name);
    let term = list("term").and_then(|raw| serde_json::from_str(raw.get()).ok());
    let clock_ms = list("clock_ms").and_then(|raw| serde_json::from_str(raw.get()).ok());
    Batch {
        term,
        clock_ms,
        agents: each("an agent", list("agents"), broken),
        tasks: each("a change of a task", list("tasks"), broken),
        cursors: each("a cursor", list("cursors"), broken),
        states: each("the state of an actor", list("states"), broken),
        activations: each("an activation", list("activations"), broken),
        members: each("a member", list("members"), broken),
        actors: each("an actor", list("actors"), broken),
        reminders: each("a reminder", list("reminders"), broken),
        listeners: each("a listener", list("listeners"), broken),
        sessions: each("a session", list("sessions"), broken),
        session_actors: each("an actor of a session", list("session_actors"), broken),
        links: each("a link of actors", list("links"), broken),
        gangs: each("a gang", list("gangs"), broken),
        dead_letters: each("a dead letter", list("dead_letters"), broken),
        made: Vec::new(),
        events: Vec::new(),
    }
}

fn each<T: DeserializeOwned>(what: &str, list: Option<&RawValue>, broken: &mut Vec<Broken>) -> Vec<T> {
    let all: Vec<&RawValue> = list.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let mut good = Vec::with_capacity(all.len());
    for raw in all {
        match serde_json::from_str(raw.get()) {
            Ok(value) => good.push(value),
            Err(error) => {
                let (what, why, body) = (what.to_owned(), error.to_string(), raw.get().to_owned());
                broken.push(Broken { what, task: None, why, body });
            }
        }
    }
    good
}
