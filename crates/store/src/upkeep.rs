//! Care of a store: a look at all of it, a copy of it while a head runs, and the check of such a copy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use covey_domain::{Hook, TaskId, TaskState, event::TaskEvent};
use covey_pages::Damage;
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteRow};

use crate::{
    Batch, Error, Store, beside, fault,
    log::{self, Record},
    rows::{events_in, parse, record_of},
    salvage, schema, sums,
};

/// How long a running head has to bring its log into the tables.
const FLUSHED_WITHIN: Duration = Duration::from_secs(60);
/// Findings of one kind that are told.
const TOLD_MAX: usize = 20;

/// What was found wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What there is, in words.
    pub about: Vec<String>,
    /// What is wrong and costs something, but not the store.
    pub warnings: Vec<String>,
    /// What must not be.
    pub errors: Vec<String>,
}

impl Report {
    fn error(&mut self, text: String) {
        if self.errors.len() < TOLD_MAX {
            self.errors.push(text);
        }
    }
}

async fn read_only(path: &Path) -> Result<SqliteConnection, Error> {
    let options = sums::options(path)?.read_only(true).busy_timeout(Duration::from_secs(30));
    Ok(SqliteConnection::connect_with(&options).await?)
}

async fn number(db: &mut SqliteConnection, key: &str) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT value FROM meta WHERE key = ?").bind(key).fetch_optional(db).await
}

/// Whether a head has the store.
fn in_use(path: &Path) -> bool {
    let lock = File::open(beside(path, "-lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

/// Reads the log and the tables, checks what must be true of them, and changes nothing. A head may run.
pub async fn examine(path: &Path) -> Result<Report, Error> {
    let mut report = Report::default();
    if !path.exists() {
        return Err(Error::Missing { file: path.display().to_string() });
    }
    let running = in_use(path);
    report.about.push(format!(
        "`{}`, {}",
        path.display(),
        if running { "a head runs on it" } else { "no head runs on it" }
    ));
    let mut pages = examine_pages(path, &mut report)?;
    match examine_tables(path, running, &mut report).await {
        // What is damaged is a finding; the rest cannot be looked at.
        Err(error @ Error::Corrupt { .. }) => report.error(error.to_string()),
        Err(Error::Sql(error)) if fault::is_fatal(&error) => {
            report.error(format!("the tables cannot be read: {error}"))
        }
        done => done?,
    }
    pages.extend(covey_pages::damaged(path).iter().map(ToString::to_string));
    let named = pages.iter().take(TOLD_MAX).map(|page| format!("the tables `{}`: {page}", path.display()));
    report.errors.splice(0..0, named);
    if pages.len() > TOLD_MAX {
        report.errors.push(format!("{} pages are damaged in all", pages.len()));
    }
    for broken in salvage::set_aside_before(path).map_err(Error::Log)? {
        let task = broken.task.as_ref().map_or("no task", TaskId::as_str);
        let file = salvage::quarantine(path);
        report.warnings.push(format!(
            "{} of `{task}` was set aside in `{}`: {}",
            broken.what,
            file.display(),
            broken.why
        ));
    }
    Ok(report)
}

/// Looks at all that the tables hold, and at the log.
async fn examine_tables(path: &Path, running: bool, report: &mut Report) -> Result<(), Error> {
    let mut db = read_only(path).await?;
    let version = number(&mut db, "schema").await?.unwrap_or(0);
    report.about.push(format!("schema version {version}, this program writes {}", schema::VERSION));
    for row in sqlx::query("PRAGMA integrity_check(20)").fetch_all(&mut db).await? {
        let said: &str = row.get(0);
        if said != "ok" {
            report.error(format!("SQLite's check of the tables: {said}"));
        }
    }
    if version != schema::VERSION && version != schema::WITHOUT_SUMS {
        report.warnings.push("the rest is checked once a head of this version has opened it".to_owned());
        return Ok(());
    }
    examine_log(path, &mut db, running, report).await?;
    examine_tasks(&mut db, report).await?;
    examine_rest(&mut db, report).await
}

/// Reads all pages where nobody writes to them, else those that are in use are read by SQLite's check; gives what is damaged.
fn examine_pages(path: &Path, report: &mut Report) -> Result<BTreeSet<String>, Error> {
    // What is in the write-ahead log is newer than what is in the file, and a crash may have torn the latter.
    let is_behind = beside(path, "-wal").metadata().is_ok_and(|log| log.len() > 0);
    if !sums::are_kept(path)? {
        report.warnings.push("the pages of the tables have no sums: damage within a value is not noticed".to_owned());
    } else if !is_behind && let Some(scan) = covey_pages::scan(path).map_err(Error::Log)? {
        report.about.push(format!("{} pages, {} of them damaged", scan.pages, scan.damaged.len()));
        let named = |page: &u64| Damage { database: path.to_owned(), in_log: false, page: *page }.to_string();
        return Ok(scan.damaged.iter().map(named).collect());
    }
    Ok(BTreeSet::new())
}

async fn examine_log(path: &Path, db: &mut SqliteConnection, running: bool, report: &mut Report) -> Result<(), Error> {
    let Some(store) = number(db, "store").await? else {
        if let Some(log) = log::orphan(path)? {
            let (log, tables) = (log.display().to_string(), path.display().to_string());
            report.error(Error::Orphan { log, tables }.to_string());
        }
        return Ok(());
    };
    // A head that runs may use a file again between two looks.
    for left in (0..5).rev() {
        let applied = number(db, "applied").await?.unwrap_or(0) as u64;
        match log::records(path, store as u64, applied) {
            Ok(records) => {
                report.about.push(format!("the log is sound; {} records are not in the tables yet", records.len()));
                for Record { number, body } in records {
                    if let Err(error) = Batch::decode(&body) {
                        report.warnings.push(format!("record {number} of the log cannot be read whole: {error}"));
                    }
                }
                return Ok(());
            }
            Err(_) if running && left > 0 => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => report.error(error.to_string()),
        }
    }
    Ok(())
}

/// A task, while its log goes by.
struct Look {
    id: String,
    last: u64,
    state: TaskState,
    ended: bool,
}

async fn examine_tasks(db: &mut SqliteConnection, report: &mut Report) -> Result<(), Error> {
    let sql = "SELECT record, state, changed_ms, attempt, id, ended FROM tasks ORDER BY id";
    let (mut known, mut tasks) = (BTreeMap::new(), 0_u64);
    let mut rows = sqlx::query(sql).fetch(&mut *db);
    while let Some(row) = rows.try_next().await? {
        tasks += 1;
        let (id, ended): (&str, bool) = (row.get(4), row.get(5));
        match record_of(&row) {
            Ok(record) if record.state.is_terminal() != ended => {
                report.error(format!(
                    "task `{id}` is `{}` and kept as {}",
                    record.state.name(),
                    if ended { "ended" } else { "not ended" }
                ));
            }
            Ok(record) if !ended => drop(known.insert(id.to_owned(), record.state)),
            Ok(_) => {}
            Err(error) => report.error(format!("task `{id}` cannot be read: {error}")),
        }
    }
    drop(rows);
    report.about.push(format!("{tasks} tasks, {} of them not ended", known.len()));
    let sql = "SELECT e.seq, e.body, e.task, t.ended, t.state, d.task IS NOT NULL FROM events AS e
        LEFT JOIN tasks AS t ON t.id = e.task LEFT JOIN doomed AS d ON d.task = e.task ORDER BY e.task, e.seq";
    let mut look: Option<Look> = None;
    let mut rows = sqlx::query(sql).fetch(&mut *db);
    while let Some(row) = rows.try_next().await? {
        let id: &str = row.get(2);
        if look.as_ref().is_none_or(|look| look.id != id) {
            look.take().into_iter().for_each(|look| finish(&look, report));
            let state: Option<&str> = row.get(4);
            if state.is_none() && !row.get::<bool, _>(5) {
                report.error(format!("there are events of `{id}`, and no such task"));
            }
            look = Some(Look {
                id: id.to_owned(),
                last: 0,
                state: TaskState::Submitted,
                ended: row.get::<Option<bool>, _>(3).unwrap_or(false),
            });
        }
        if let Some(look) = &mut look {
            take(look, &row, report);
        }
    }
    look.into_iter().for_each(|look| finish(&look, report));
    drop(rows);
    let silent = "SELECT id FROM tasks WHERE id NOT IN (SELECT task FROM events)";
    for row in sqlx::query(silent).fetch_all(&mut *db).await? {
        report.error(format!("T-2: task `{}` has no log", row.get::<&str, _>(0)));
    }
    Ok(())
}

fn take(look: &mut Look, row: &SqliteRow, report: &mut Report) {
    let (last, body): (i64, &str) = (row.get(0), row.get(1));
    let doomed: bool = row.get(5);
    let events = match events_in(&TaskId::from(look.id.as_str()), last as u64, body) {
        Ok(events) => events,
        Err(error) => {
            look.last = last as u64;
            return report.error(format!("events of `{}` up to {last} cannot be read: {error}", look.id));
        }
    };
    for event in events {
        if event.seq != look.last + 1 && !doomed {
            report.error(format!("T-3: the log of `{}` goes from {} to {}", look.id, look.last, event.seq));
        }
        if look.state.is_terminal() {
            report.error(format!("T-2: the log of `{}` goes on behind its end, with event {}", look.id, event.seq));
        }
        look.last = event.seq;
        look.state = look.state.after(&event.event);
        if event.seq == 1 && !matches!(event.event, TaskEvent::Started { .. }) {
            report.error(format!("the log of `{}` does not begin with its start", look.id));
        }
    }
}

fn finish(look: &Look, report: &mut Report) {
    if look.ended && !look.state.is_terminal() {
        report.error(format!("T-2: task `{}` has ended, and its log has no end", look.id));
    }
}

async fn examine_rest(db: &mut SqliteConnection, report: &mut Report) -> Result<(), Error> {
    for row in sqlx::query("SELECT hook, task IN (SELECT id FROM tasks) FROM hooks").fetch_all(&mut *db).await? {
        match parse::<Hook>("webhook", row.get(0)) {
            Ok(hook) if !row.get::<bool, _>(1) => {
                report.warnings.push(format!("a webhook is of task `{}`, which is not kept", hook.task));
            }
            Ok(_) => {}
            Err(error) => report.error(error.to_string()),
        }
    }
    let counts = "SELECT state, count(*) - coalesce((SELECT count FROM ended_counts AS c WHERE c.state = t.state), 0)
        FROM tasks AS t WHERE ended = 1 GROUP BY state";
    for row in sqlx::query(counts).fetch_all(&mut *db).await? {
        let (state, off): (&str, i64) = (row.get(0), row.get(1));
        if off != 0 {
            report.warnings.push(format!("the count of `{state}` tasks is off by {off}"));
        }
    }
    Ok(())
}

/// A copy of a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backup {
    /// Where it is.
    pub path: PathBuf,
    /// When it was made, milliseconds since 1970.
    pub at_ms: u64,
    /// How many tasks are in it.
    pub tasks: u64,
}

impl Backup {
    /// The folder that it is in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

/// Copies the tables to `to`, with all that was acknowledged before this was called, and checks the copy. A head may run. The
/// copy needs no log: a head that opens it makes a new one.
pub async fn backup(path: &Path, to: &Path, at_ms: u64) -> Result<Backup, Error> {
    if !in_use(path) {
        // Nobody brings the log into the tables but who opens the store.
        let store = Store::open(path).await?;
        store.memtable.flush().await;
    }
    let mut db = read_only(path).await?;
    flushed(path, &mut db).await?;
    let tasks = copy(&mut db, to).await.inspect_err(|_| drop(std::fs::remove_file(to)))?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(to, private).map_err(Error::Log)?;
    File::open(to).and_then(|file| file.sync_all()).and_then(|()| log::sync_folder_of(to)).map_err(Error::Log)?;
    let made = Backup { path: to.to_owned(), at_ms, tasks };
    remember(path, &made).map_err(Error::Log)?;
    Ok(made)
}

/// Writes the tables to another file, with sums, and checks it. A damaged page is not copied: it is an error.
async fn copy(db: &mut SqliteConnection, to: &Path) -> Result<u64, Error> {
    covey_pages::reserve(db).await?;
    sqlx::query("VACUUM INTO ?").bind(to.display().to_string()).execute(db).await?;
    let mut copy = SqliteConnection::connect_with(&sums::options(to)?).await?;
    sqlx::query("DELETE FROM meta WHERE key IN ('store', 'log_format')").execute(&mut copy).await?;
    copy.close().await?;
    verify(to).await
}

/// Waits until the tables have what the log had when this was called.
async fn flushed(path: &Path, db: &mut SqliteConnection) -> Result<(), Error> {
    let Some(store) = number(db, "store").await? else { return Ok(()) };
    let end = std::time::Instant::now() + FLUSHED_WITHIN;
    let mut wanted = None;
    loop {
        let applied = number(db, "applied").await?.unwrap_or(0) as u64;
        match log::records(path, store as u64, applied) {
            Ok(records) => {
                let last = *wanted.get_or_insert(records.last().map_or(applied, |record| record.number));
                if applied >= last {
                    return Ok(());
                }
            }
            // The head uses a file again at this moment.
            Err(error) if std::time::Instant::now() > end => return Err(error),
            Err(_) => {}
        }
        if std::time::Instant::now() > end {
            return Err(Error::Lost("the tables do not catch up with the log".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Checks a copy, each page of it; gives how many tasks it has.
pub async fn verify(copy: &Path) -> Result<u64, Error> {
    sums::verified(copy)?;
    let mut db = read_only(copy).await?;
    let said: String = sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(&mut db).await?;
    if said != "ok" {
        return Err(Error::Corrupt { file: copy.display().to_string(), why: said });
    }
    let tasks: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks").fetch_one(&mut db).await?;
    db.close().await?;
    Ok(tasks as u64)
}

fn remember(path: &Path, backup: &Backup) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(beside(path, "-backups"))?;
    let mut line = serde_json::to_vec(backup)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_all()
}

/// The newest copy that was made of a store and is still there.
pub fn last_backup(path: &Path) -> Option<Backup> {
    let text = std::fs::read_to_string(beside(path, "-backups")).ok()?;
    let all = text.lines().rev().filter_map(|line| serde_json::from_str::<Backup>(line).ok());
    let mut there = all.filter(|backup| backup.path.exists());
    there.next()
}
