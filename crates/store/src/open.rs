//! Opens a store: its lock, its tables, its log; and brings what an older version wrote up to this one.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io::{self, Write as _},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use covey_domain::{Millis, TaskId};
use sqlx::{
    Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, watch};

use crate::{
    Error, Store, Written,
    age::Age,
    batch::Batch,
    beside, checkpoints,
    fault::{self, Fault},
    flusher::{Flusher, sync_file},
    group::Group,
    log::{self, Log, Record, Watermark},
    memtable::Memtable,
    messages::Filter,
    salvage::{self, Broken},
    schema, sums, tables,
    usage::{self, Usage},
};

/// How long another head may take to stop.
const ALONE_AFTER: Duration = Duration::from_secs(5);
/// Bytes that are given up when the disk is full, so that a head can start and be read from.
const BALLAST_BYTES: usize = 4 << 20;
/// How the log is written, in the table `meta`.
const LOG_FORMAT: i64 = 2;

/// Waits until nobody else has the store.
async fn alone(path: &Path) -> Result<File, Error> {
    let end = Instant::now() + ALONE_AFTER;
    let file = File::create(beside(path, "-lock")).map_err(Error::Log)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(TryLockError::WouldBlock) => return Err(Error::InUse),
            Err(TryLockError::Error(error)) => return Err(Error::Log(error)),
        }
    }
}

/// Milliseconds since the epoch by the wall clock.
fn wall_ms() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

async fn meta(db: &mut SqliteConnection, key: &str) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT value FROM meta WHERE key = ?").bind(key).fetch_optional(db).await
}

async fn set_meta(db: &mut SqliteConnection, key: &str, value: i64) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT OR REPLACE INTO meta VALUES (?, ?)").bind(key).bind(value).execute(db).await.map(drop)
}

/// So much of the tables' own log stays on the disk once it has been brought into them, bytes.
const WAL_LEFT: u64 = 64 << 20;

/// Has the ballast where there is room for it.
fn keep_ballast(path: &Path) -> io::Result<()> {
    let path = beside(path, "-ballast");
    if path.metadata().is_ok_and(|found| found.len() >= BALLAST_BYTES as u64) {
        return Ok(());
    }
    let mut file = File::create(&path)?;
    let done = file.write_all(&vec![0; BALLAST_BYTES]).and_then(|()| file.sync_all());
    done.inspect_err(|_| drop(std::fs::remove_file(&path)))
}

/// Batches of the log as they are written again; what cannot be read is set aside.
fn decoded(path: &Path, found: Vec<Record>) -> Result<(Vec<Written>, BTreeMap<TaskId, String>), Error> {
    let (mut all, mut aside, mut broken) = (Vec::with_capacity(found.len()), Vec::new(), BTreeMap::new());
    for Record { number, body } in found {
        let (mut batch, unread) = Batch::decode_or_salvage(&body);
        for Broken { task, why, .. } in &unread {
            broken.extend(task.clone().map(|task| (task, why.clone())));
        }
        aside.extend(unread);
        // A task that lacks something of its log has not ended: its head ends it, and says why.
        batch.tasks.retain(|change| !broken.contains_key(&change.id));
        let json = batch.encode().map_err(|source| Error::Body { what: "batch of the log", source })?;
        all.push(Written { number, json, batch });
    }
    salvage::set_aside(path, &aside).map_err(Error::Log)?;
    Ok((all, broken))
}

impl Store {
    /// Opens or makes the file; waits a little for another head that stops.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let lock = alone(path).await?;
        let missing = log::paths(path).iter().any(|log| log.exists()) && !path.exists();
        if missing {
            return Err(Error::Missing { file: path.display().to_string() });
        }
        let ballast = beside(path, "-ballast");
        let opened = match Self::open_tables(path).await {
            Err(error) if fault::is_full(&error) && ballast.exists() => {
                tracing::error!(%error, "the disk is full; the ballast is given up so that the store can be read");
                std::fs::remove_file(&ballast).map_err(Error::Log)?;
                Self::open_tables(path).await
            }
            opened => opened,
        };
        let store = match opened {
            Ok(tables) => Self::open_on(path, lock, tables).await,
            Err(error) => Err(error),
        };
        let store = store.map_err(|error| match error {
            Error::Sql(error) if fault::is_fatal(&error) => {
                Error::Corrupt { file: path.display().to_string(), why: error.to_string() }
            }
            error => error,
        })?;
        if let Err(error) = keep_ballast(path) {
            tracing::warn!(%error, "no room for a ballast; on a full disk a head may not start");
        }
        Ok(store)
    }

    async fn open_tables(path: &Path) -> Result<(SqliteConnectOptions, SqliteConnection), Error> {
        sums::make(path).await?;
        let has_sums = sums::are_kept(path)?;
        let options = sums::options(path)?
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("journal_size_limit", WAL_LEFT.to_string())
            .pragma("cache_size", "-4096");
        // Commits do not wait for pages to be brought into the tables: another connection does that.
        let unattended = options.clone().pragma("wal_autocheckpoint", "0");
        let mut db = SqliteConnection::connect_with(&unattended).await?;
        let made: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetch_optional(&mut db).await?;
        let version = if made.is_some() { meta(&mut db, "schema").await? } else { None };
        if let Some(found) = version.filter(|found| *found > schema::VERSION) {
            return Err(Error::Version { found });
        }
        if version.is_some_and(|found| schema::WITH_SUMS.contains(&found)) && !has_sums {
            let why = "its header says that pages have no sums, and they were written with them".to_owned();
            return Err(Error::Corrupt { file: path.display().to_string(), why });
        }
        if version != Some(schema::VERSION) {
            sqlx::raw_sql(schema::SCHEMA).execute(&mut db).await?;
            schema::migrate(&mut db).await?;
            set_meta(&mut db, "schema", if has_sums { schema::VERSION } else { schema::WITHOUT_SUMS }).await?;
        }
        if !has_sums {
            // Where it fails, mostly for lack of room, the old file is as good as it was.
            if let Err(error) = sums::give(path, db).await {
                tracing::error!(%error, file = %path.display(), "the tables have no sums: damage of them is not noticed; the next start tries again");
            }
            db = SqliteConnection::connect_with(&unattended).await?;
        }
        usage::prepare(&mut db).await?;
        sqlx::raw_sql(schema::VIEW).execute(&mut db).await?;
        Ok((options, db))
    }

    async fn open_on(
        path: &Path,
        lock: File,
        (options, mut writer): (SqliteConnectOptions, SqliteConnection),
    ) -> Result<Self, Error> {
        let wal = beside(path, "-wal");
        let mut applied = meta(&mut writer, "applied").await?.unwrap_or(0) as u64;
        let age = Arc::new(Age::at(match meta(&mut writer, "age").await? {
            Some(age) => age as Millis,
            None => wall_ms(),
        }));
        let known = match (meta(&mut writer, "log_format").await?, meta(&mut writer, "store").await?) {
            (Some(_), Some(store)) => Some(store as u64),
            _ => None,
        };
        let (log, written, broken) = match known {
            Some(store) => {
                let (log, found) = Log::open(path, store, applied)?;
                let (written, broken) = decoded(path, found)?;
                (log, written, broken)
            }
            None => {
                if let Some(log) = log::orphan(path)? {
                    return Err(Error::Orphan { log: log.display().to_string(), tables: path.display().to_string() });
                }
                let (written, broken) = decoded(path, log::v1::read(path, applied)?)?;
                let mut group = Group::default();
                for one in written {
                    applied = one.number;
                    group.push(one);
                }
                if !group.is_empty() {
                    tables::write(&mut writer, &group, age.now()).await?;
                }
                set_meta(&mut writer, "age", age.now() as i64).await?;
                // The log begins anew, so the tables must have all that was in it.
                sync_file(&wal).map_err(Error::Log)?;
                let store = wall_ms() << 20 | u64::from(std::process::id()) & 0xf_ffff;
                let log = Log::create(path, store, applied)?;
                set_meta(&mut writer, "store", store as i64).await?;
                set_meta(&mut writer, "log_format", LOG_FORMAT).await?;
                // From now on the file of the tables itself names its log, though its `-wal` is lost.
                sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut writer).await?;
                (log, Vec::new(), broken)
            }
        };
        // What the tables say they have must be theirs for good before the log is used again.
        if wal.exists() {
            sync_file(&wal).map_err(Error::Log)?;
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .min_connections(0)
            .connect_lazy_with(options.clone().read_only(true));
        let lister = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(0)
            .connect_lazy_with(options.clone().read_only(true));
        let checkpointer = SqliteConnection::connect_with(&options).await?;
        let unattended = options.pragma("wal_autocheckpoint", "0").synchronous(SqliteSynchronous::Normal);
        let mut db = SqliteConnection::connect_with(&unattended.pragma("cache_size", "-16384")).await?;
        sqlx::raw_sql(schema::VIEW).execute(&mut db).await?;
        let fault = Fault::new();
        let usage = Arc::new(Usage::read(&mut writer).await?);
        let (writer, flushed) = (Arc::new(Mutex::new(writer)), Arc::new(watch::Sender::new(0)));
        let (memtable, watermark) = (Arc::new(Memtable::new(applied)), Arc::new(Watermark::default()));
        let messages = Arc::new(Filter::new());
        watermark.tables.store(applied, Ordering::Release);
        for record in written.iter().flat_map(|written| &written.batch.made) {
            messages.insert_of(record);
        }
        memtable.keep(written);
        let checkpoints = checkpoints::keep(checkpointer, writer.clone(), flushed.clone(), fault.clone());
        let filled = (messages.clone(), readers.clone());
        let background = vec![
            tokio::spawn(checkpoints).abort_handle(),
            tokio::spawn(async move {
                if let Err(error) = filled.0.fill(filled.1).await {
                    tracing::warn!(%error, "known messages could not be listed; each is looked for on disk");
                }
            })
            .abort_handle(),
        ];
        let flusher = Flusher {
            memtable: memtable.clone(),
            db,
            writer: writer.clone(),
            written: flushed.clone(),
            watermark: watermark.clone(),
            age: age.clone(),
            usage: usage.clone(),
            fault: fault.clone(),
            wal,
        };
        let (open, closed) = watch::channel(());
        flusher.start(lock, closed).map_err(Error::Log)?;
        let (log, broken) = (parking_lot::Mutex::new(log), parking_lot::Mutex::new(broken));
        let path = path.to_owned();
        Ok(Self {
            path,
            log,
            watermark,
            memtable,
            messages,
            writer,
            flushed,
            readers,
            lister,
            age,
            usage,
            fault,
            broken,
            background,
            _open: open,
        })
    }
}
