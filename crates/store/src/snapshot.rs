//! What a starting head reads: all but tasks that have ended, which stay on disk.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use covey_domain::{ActorId, AgentSpec, DeadLetter, Envelope, NodeId, TaskId, TaskRecord, TaskState};
use hashbrown::HashMap;
use rusqlite::Connection;
use serde::de::DeserializeOwned;
use sqlx::{Row as _, SqliteConnection};
use tokio::sync::mpsc;

use crate::{
    Batch, Blob, DetachedActor, Error, SessionActor, Store, StoredLinks, StoredMember, StoredReminder, StoredSessions,
    rows::{RECORD, events_in, record_from},
    salvage::{self, Broken},
    tables,
    transaction::Transaction,
};

/// Tasks of one page, and about how many bytes of records.
const PAGE_TASKS: usize = 512;
const PAGE_BYTES: usize = 4 << 20;

/// A piece of what a starting head reads.
#[derive(Debug)]
pub enum Page {
    /// All but its tasks; the first page.
    Snapshot(Box<Snapshot>),
    /// Tasks that have not ended, oldest first.
    Tasks(Vec<StoredTask>),
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
    /// Tasks that have not ended, oldest first; none in a page.
    pub tasks: Vec<StoredTask>,
    /// How many tasks have not ended.
    pub unfinished: usize,
    /// How many tasks of each state have ended.
    pub ended: Vec<(TaskState, u64)>,
    /// Detached actors, and whether a state of each is kept.
    pub actors: Vec<(ActorId, DetachedActor, bool)>,
    /// Reminders by actor and name.
    pub reminders: Vec<(ActorId, String, StoredReminder)>,
    /// Sessions of drivers, and their actors.
    pub sessions: StoredSessions,
    /// Which actors end together, which wait together, and what was given up.
    pub links: StoredLinks,
    /// Listeners: topic, actor, method.
    pub listeners: Vec<(String, ActorId, String)>,
    /// Lives of virtual and detached actors: actor, node, epoch.
    pub activations: Vec<(ActorId, NodeId, u64)>,
    /// Members.
    pub members: Vec<(NodeId, StoredMember)>,
    /// Where the cluster's own clock was when it was last written, milliseconds.
    pub clock_ms: u64,
}

/// A task that has not ended.
#[derive(Debug)]
pub struct StoredTask {
    /// Its record.
    pub record: TaskRecord,
    /// Its log; of a broken one up to what cannot be read.
    pub events: Vec<Envelope>,
    /// Why it cannot be read whole.
    pub broken: Option<String>,
}

impl Store {
    /// Begins a term and reads what a starting head needs, all at once.
    pub async fn begin(&self) -> Result<Snapshot, Error> {
        let (to, mut pages) = mpsc::channel(1);
        let gather = async {
            let mut snapshot = Snapshot::default();
            while let Some(page) = pages.recv().await {
                match page {
                    Page::Snapshot(first) => snapshot = *first,
                    Page::Tasks(tasks) => snapshot.tasks.extend(tasks),
                }
            }
            snapshot
        };
        let (read, snapshot) = tokio::join!(self.begin_paged(to), gather);
        read.map(|()| snapshot)
    }

    /// Begins a term and sends what a starting head needs, page by page: as each is read it can be taken, and nothing holds
    /// all of them beside that. What was sent counts once this says `Ok`.
    pub async fn begin_paged(&self, to: mpsc::Sender<Page>) -> Result<(), Error> {
        while !self.memtable.flush().await && !self.is_stuck() {
            self.fault.check()?;
        }
        let mut db = self.writer.lock().await;
        let broken = self.broken.lock().clone();
        let mut reader = Reader { path: self.path.clone(), broken, aside: Vec::new(), to };
        let term = if self.is_stuck() {
            // The tables cannot be written: they are read as they would be.
            sqlx::query("PRAGMA cache_spill = OFF").execute(&mut *db).await?;
            let mut tx = Transaction::begin(&mut db).await?;
            let term = self.as_it_would_be(&mut tx, &mut reader).await;
            tx.roll_back().await;
            term?
        } else {
            let term = reader.read(&mut db).await?;
            reader.mend(&mut db).await?;
            term
        };
        drop(db);
        let written = self.write(Batch { term: Some(term), ..Batch::default() })?;
        self.sync(vec![written])?;
        Ok(())
    }

    async fn as_it_would_be(&self, tx: &mut SqliteConnection, reader: &mut Reader) -> Result<u64, Error> {
        for group in self.memtable.all() {
            tables::write_in(tx, &group, self.age.now()).await?;
        }
        reader.read(tx).await
    }
}

/// A page of tasks, and its last place, where there may be more behind it.
struct Tasks {
    tasks: Vec<StoredTask>,
    last: Option<(i64, String)>,
}

fn text<'a>(row: &'a rusqlite::Row<'_>, at: usize) -> rusqlite::Result<&'a str> {
    Ok(row.get_ref(at)?.as_str()?)
}

/// Reads the tables, and keeps what cannot be read.
struct Reader {
    path: PathBuf,
    /// Tasks that are known to be broken, and why.
    broken: BTreeMap<TaskId, String>,
    aside: Vec<Broken>,
    to: mpsc::Sender<Page>,
}

impl Reader {
    /// Sends all, and gives the term that begins.
    async fn read(&mut self, db: &mut SqliteConnection) -> Result<u64, Error> {
        let term: Option<i64> =
            sqlx::query_scalar("SELECT value FROM meta WHERE key = 'term'").fetch_optional(&mut *db).await?;
        let term = term.unwrap_or(0) as u64 + 1;
        let mut snapshot = Snapshot { term, ..Snapshot::default() };
        for row in sqlx::query("SELECT spec FROM agents ORDER BY name").fetch_all(&mut *db).await? {
            snapshot.agents.extend(self.parsed::<AgentSpec>("an agent", row.get(0)));
        }
        for row in sqlx::query("SELECT node, incarnation, number FROM cursors").fetch_all(&mut *db).await? {
            let (incarnation, number): (i64, i64) = (row.get(1), row.get(2));
            snapshot.cursors.push((row.get::<String, _>(0).into(), incarnation as u64, number as u64));
        }
        let actors = "SELECT id, name, spec, init, id IN (SELECT actor FROM actor_states) FROM actors ORDER BY id";
        for row in sqlx::query(actors).fetch_all(&mut *db).await? {
            let Some(spec) = self.parsed("a detached actor", row.get(2)) else { continue };
            let init = row.get::<Option<Vec<u8>>, _>(3).map(|bytes| Blob(bytes.into()));
            let actor = DetachedActor { name: row.get(1), spec: Arc::new(spec), init };
            snapshot.actors.push((row.get::<String, _>(0).into(), actor, row.get(4)));
        }
        snapshot.sessions = self.sessions(db).await?;
        snapshot.links = self.links(db).await?;
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
        for row in sqlx::query("SELECT state, count FROM ended_counts").fetch_all(&mut *db).await? {
            let state = TaskState::named(row.get(0));
            snapshot.ended.extend(state.map(|state| (state, row.get::<i64, _>(1).max(0) as u64)));
        }
        let unfinished: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tasks WHERE ended = 0").fetch_one(&mut *db).await?;
        snapshot.unfinished = unfinished as usize;
        self.send(Page::Snapshot(Box::new(snapshot))).await;
        self.tasks(db).await?;
        Ok(term)
    }

    /// Where nobody reads any more there is nobody to tell.
    async fn send(&self, page: Page) {
        let _ = self.to.send(page).await;
    }

    async fn sessions(&mut self, db: &mut SqliteConnection) -> Result<StoredSessions, Error> {
        let mut found = StoredSessions::default();
        for row in sqlx::query("SELECT id, proof FROM sessions ORDER BY id").fetch_all(&mut *db).await? {
            found.sessions.push((row.get::<String, _>(0).into(), row.get::<String, _>(1).into()));
        }
        let actors = "SELECT id, session, name, spec, init, id IN (SELECT actor FROM actor_states) FROM session_actors ORDER BY id";
        for row in sqlx::query(actors).fetch_all(&mut *db).await? {
            let Some(spec) = self.parsed("an actor of a session", row.get(3)) else { continue };
            let init = row.get::<Option<Vec<u8>>, _>(4).map(|bytes| Blob(bytes.into()));
            let actor = DetachedActor { name: row.get(2), spec: Arc::new(spec), init };
            let owned = SessionActor { session: row.get::<String, _>(1).into(), actor };
            found.actors.push((row.get::<String, _>(0).into(), owned, row.get(5)));
        }
        Ok(found)
    }

    async fn links(&mut self, db: &mut SqliteConnection) -> Result<StoredLinks, Error> {
        let mut found = StoredLinks::default();
        for row in sqlx::query("SELECT one, other FROM links").fetch_all(&mut *db).await? {
            found.links.push((row.get::<String, _>(0).into(), row.get::<String, _>(1).into()));
        }
        for row in sqlx::query("SELECT name, gang FROM gangs ORDER BY name").fetch_all(&mut *db).await? {
            let Some(gang) = self.parsed("a gang", row.get(1)) else { continue };
            found.gangs.push((row.get::<String, _>(0).into(), gang));
        }
        for row in sqlx::query("SELECT letter FROM dead_letters ORDER BY number").fetch_all(&mut *db).await? {
            found.dead_letters.extend(self.parsed::<DeadLetter>("a dead letter", row.get(0)));
        }
        Ok(found)
    }

    fn parsed<T: DeserializeOwned>(&mut self, what: &str, body: &str) -> Option<T> {
        let read = serde_json::from_str(body);
        read.map_err(|error: serde_json::Error| {
            let (what, why, body) = (what.to_owned(), error.to_string(), body.to_owned());
            self.aside.push(Broken { what, task: None, why, body });
        })
        .ok()
    }

    /// Sends the tasks that have not ended, oldest first.
    async fn tasks(&mut self, db: &mut SqliteConnection) -> Result<(), Error> {
        let mut last = Some((i64::MIN, String::new()));
        while let Some(after) = last {
            let page = covey_pages::on_this_thread(db, |db| self.page(db, after)).await?;
            last = page.last;
            if !page.tasks.is_empty() {
                self.send(Page::Tasks(page.tasks)).await;
            }
        }
        Ok(())
    }

    /// Tasks after a place, with their logs: two passes in one order.
    fn page(&mut self, db: &Connection, after: (i64, String)) -> rusqlite::Result<Tasks> {
        let records = format!(
            "SELECT {RECORD}, id, created_ms FROM tasks WHERE ended = 0 AND (created_ms, id) > (?, ?)
            ORDER BY created_ms, id LIMIT {PAGE_TASKS}"
        );
        let (mut tasks, mut last, mut bytes) = (Vec::new(), None, 0);
        let mut records = db.prepare(&records)?;
        let mut rows = records.query((after.0, &after.1))?;
        while bytes < PAGE_BYTES
            && let Some(row) = rows.next()?
        {
            let (body, id) = (text(row, 0)?, text(row, 4)?);
            bytes += body.len();
            last = Some((row.get::<_, i64>(5)?, id.to_owned()));
            let (record, broken) = match record_from(body, text(row, 1)?, (row.get(2)?, row.get(3)?)) {
                Ok(record) => {
                    let broken = self.broken.get(&record.id).cloned();
                    (record, broken)
                }
                Err(error) => {
                    let why = error.to_string();
                    let task = Some(TaskId::from(id));
                    self.aside.push(Broken { what: "a task".into(), task, why: why.clone(), body: body.to_owned() });
                    // Without even that it is nobody's task any more.
                    let Some(record) = salvage::record_without_input(body) else { continue };
                    (record, Some(why))
                }
            };
            tasks.push(StoredTask { record, events: Vec::new(), broken });
        }
        drop(rows);
        let Some(last) = last else { return Ok(Tasks { tasks, last }) };
        let at: HashMap<TaskId, usize> =
            tasks.iter().enumerate().map(|(at, task)| (task.record.id.clone(), at)).collect();
        let events = "SELECT e.task, e.seq, e.body FROM tasks AS t CROSS JOIN events AS e ON e.task = t.id
            WHERE t.ended = 0 AND (t.created_ms, t.id) > (?, ?) AND (t.created_ms, t.id) <= (?, ?)
            ORDER BY t.created_ms, t.id, e.seq";
        let mut events = db.prepare(events)?;
        let mut rows = events.query((after.0, &after.1, last.0, &last.1))?;
        let mut current = None;
        while let Some(row) = rows.next()? {
            let (id, seq, body): (_, i64, _) = (text(row, 0)?, row.get(1)?, text(row, 2)?);
            // Rows of a task follow each other.
            if current.is_none_or(|at: usize| tasks[at].record.id.as_str() != id) {
                current = at.get(id).copied();
            }
            let Some(task) = current.map(|at| &mut tasks[at]) else { continue };
            if let Err(why) = take(task, seq as u64, body) {
                task.broken.get_or_insert_with(|| why.clone());
                let (id, body) = (Some(task.record.id.clone()), body.to_owned());
                self.aside.push(Broken { what: "events of a task".into(), task: id, why, body });
            }
        }
        Ok(Tasks { tasks, last: Some(last) })
    }

    /// Sets aside what cannot be read, and takes it out of the tables.
    async fn mend(&mut self, db: &mut SqliteConnection) -> Result<(), Error> {
        salvage::set_aside(&self.path, &self.aside).map_err(Error::Log)?;
        for Broken { what, task, body, .. } in &self.aside {
            let sql = match (what.as_str(), task) {
                ("events of a task", Some(_)) => "DELETE FROM events WHERE task = ?1 AND body = ?2",
                ("a task", Some(_)) => {
                    "UPDATE tasks SET record = json_set(record, '$.input', json('{}')) WHERE id = ?1 AND record = ?2"
                }
                ("an agent", _) => "DELETE FROM agents WHERE spec = ?2",
                ("a detached actor", _) => "DELETE FROM actors WHERE spec = ?2",
                ("an actor of a session", _) => "DELETE FROM session_actors WHERE spec = ?2",
                ("a gang", _) => "DELETE FROM gangs WHERE gang = ?2",
                ("a dead letter", _) => "DELETE FROM dead_letters WHERE letter = ?2",
                _ => continue,
            };
            sqlx::query(sql).bind(task.as_ref().map(TaskId::as_str)).bind(body).execute(&mut *db).await?;
        }
        Ok(())
    }
}

/// Takes a row of events; what cannot be read, or does not follow what is there, is refused.
fn take(task: &mut StoredTask, last: u64, body: &str) -> Result<(), String> {
    let events = events_in(&task.record.id, last, body).map_err(|error| error.to_string())?;
    let expected = task.events.len() as u64 + 1;
    match events.first() {
        Some(first) if first.seq == expected => {
            task.events.extend(events);
            Ok(())
        }
        first => Err(format!("event {expected} is missing before {}", first.map_or(last, |event| event.seq))),
    }
}
