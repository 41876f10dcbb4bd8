//! What the log has and the tables do not have yet: kept in memory for readers, and brought over in large groups.

use std::{
    collections::VecDeque,
    fs::File,
    iter, mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use covey_domain::{ActorId, Envelope, TaskId, TaskRecord};
use parking_lot::Mutex;
use sqlx::SqliteConnection;
use tokio::sync::{Notify, watch};

use crate::{
    Blob, Error, TaskChange, Written,
    group::Group,
    log::Safe,
    rows::{numbered, parse},
    tables,
};

/// How long something waits for others at most.
const APPLY_AFTER: Duration = Duration::from_millis(500);
/// Bytes of the log that are enough for a group.
const APPLY_BYTES: usize = 4 << 20;
/// Bytes of the log that are kept in memory; above it commits wait.
const LATE_BYTES_MAX: usize = 64 << 20;
/// Pause after the tables could not be written.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Groups that are to be brought over, oldest first, and the one that grows.
#[derive(Debug, Default)]
struct Groups {
    closed: VecDeque<Arc<Group>>,
    fresh: Group,
}

impl Groups {
    fn all(&self) -> impl DoubleEndedIterator<Item = &Group> {
        self.closed.iter().map(|group| &**group).chain(iter::once(&self.fresh))
    }

    fn close(&mut self) {
        if !self.fresh.is_empty() {
            self.closed.push_back(Arc::new(mem::take(&mut self.fresh)));
        }
    }
}

/// What is known of a task beside the tables.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub made: Option<Arc<TaskRecord>>,
    pub change: Option<TaskChange>,
}

#[derive(Debug)]
pub(crate) struct Late {
    groups: Mutex<Groups>,
    /// There is something; there is a whole group; somebody waits for all of it.
    some: Notify,
    enough: Notify,
    asked: Notify,
    /// Number of the last batch that is in the tables.
    applied: watch::Sender<u64>,
    /// The tables could not be synced, after which nothing is known of them.
    lost: AtomicBool,
}

impl Late {
    pub fn new(applied: u64) -> Self {
        Self {
            groups: Mutex::default(),
            some: Notify::new(),
            enough: Notify::new(),
            asked: Notify::new(),
            applied: watch::Sender::new(applied),
            lost: AtomicBool::new(false),
        }
    }

    /// Shows durable batches to readers, and has them brought to the tables. Gives their events.
    pub fn keep(&self, written: Vec<Written>) -> Vec<Arc<Envelope>> {
        let mut groups = self.groups.lock();
        let mut events = Vec::new();
        for written in written {
            events.append(&mut groups.fresh.push(written));
        }
        let enough = groups.fresh.bytes >= APPLY_BYTES;
        if enough {
            groups.close();
        }
        drop(groups);
        self.some.notify_one();
        if enough {
            self.enough.notify_one();
        }
        events
    }

    /// Waits until there is room for another batch.
    pub async fn room(&self) -> Result<(), Error> {
        let full = || self.groups.lock().all().map(|group| group.bytes).sum::<usize>() >= LATE_BYTES_MAX;
        let mut applied = self.applied.subscribe();
        while full() && applied.changed().await.is_ok() {}
        if self.lost.load(Ordering::Acquire) { Err(Error::Lost) } else { Ok(()) }
    }

    /// Waits until the tables have all that was durable when this was called.
    pub async fn settled(&self) {
        let last = self.groups.lock().all().map(|group| group.last).max().unwrap_or(0);
        let mut applied = self.applied.subscribe();
        if *applied.borrow_and_update() < last {
            self.asked.notify_one();
            // It ends with the store.
            let _ = applied.wait_for(|number| *number >= last).await;
        }
    }

    pub fn task(&self, id: &TaskId) -> Beside {
        let groups = self.groups.lock();
        let mut beside = Beside::default();
        for known in groups.all().filter_map(|group| group.task(id)) {
            beside.made = known.made.as_ref().map(|(record, _)| record.clone()).or(beside.made);
            beside.change = known.change.clone().or(beside.change);
        }
        beside
    }

    /// Events of a task above `after`, and the number of the first that is here at all.
    pub fn events(&self, task: &TaskId, after: u64) -> Result<(Vec<Arc<Envelope>>, Option<u64>), Error> {
        let groups = self.groups.lock();
        let first = groups.all().find_map(|group| group.first(task));
        let runs: Vec<_> = groups.all().flat_map(|group| group.runs(task, after)).collect();
        // Commits need not wait for what follows.
        drop(groups);
        let mut events = Vec::new();
        for (first, json) in runs {
            let run = numbered(task, first, parse("events", &json)?).filter(|event| event.seq > after);
            events.extend(run.map(Arc::new));
        }
        Ok((events, first))
    }

    /// The state of an actor, where it changed; `Some(None)`: it has none any more.
    /// The epoch of whoever wrote it, and the state; `None` = it has none any more.
    pub fn state(&self, actor: &ActorId) -> Option<(u64, Option<Blob>)> {
        let groups = self.groups.lock();
        // Of equal epochs `max_by_key` takes the last, which is the newest.
        groups.all().filter_map(|group| group.states.get(actor)).max_by_key(|(epoch, _)| *epoch).cloned()
    }

    fn oldest(&self) -> Option<Arc<Group>> {
        self.groups.lock().closed.front().cloned()
    }

    /// The oldest group is in the tables.
    fn carried(&self, number: u64) {
        let gone = self.groups.lock().closed.pop_front();
        self.applied.send_replace(number);
        // Not under the lock: it may be much.
        drop(gone);
    }
}

/// Brings groups to the tables as they come.
pub(crate) struct Carrier {
    pub late: Arc<Late>,
    /// Does not wait for the disk: the log has it all.
    pub db: SqliteConnection,
    /// Held while the tables are written.
    pub writer: Arc<tokio::sync::Mutex<SqliteConnection>>,
    /// Bytes that checkpoints wait for.
    pub written: Arc<AtomicU64>,
    pub safe: Arc<Safe>,
    /// SQLite's own log.
    pub wal: PathBuf,
}

impl Carrier {
    /// Begins, on a thread and a runtime of its own: a large group takes many milliseconds, and whoever holds the store may
    /// let go of it after its runtime has ended. It ends after `open` is gone, and lets go of `lock` then.
    pub fn start(self, lock: File, open: watch::Receiver<()>) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let run = move || {
            runtime.block_on(self.run(open));
            drop(lock);
        };
        std::thread::Builder::new().name("covey-tables".into()).spawn(run).map(drop)
    }

    async fn run(mut self, mut open: watch::Receiver<()>) {
        loop {
            tokio::select! {
                () = self.late.some.notified() => {}
                _ = open.changed() => return,
            }
            tokio::select! {
                () = self.late.enough.notified() => {}
                () = self.late.asked.notified() => self.late.groups.lock().close(),
                () = tokio::time::sleep(APPLY_AFTER) => self.late.groups.lock().close(),
                _ = open.changed() => return,
            }
            while let Some(group) = self.late.oldest() {
                while let Err(error) = self.carry(&group).await {
                    tracing::error!(%error, "failed to bring the log to the tables; commits go on while there is room");
                    tokio::time::sleep(AGAIN_AFTER).await;
                    if open.has_changed().is_err() {
                        return;
                    }
                }
                self.late.carried(group.last);
            }
            if let Err(error) = self.make_safe() {
                tracing::error!(%error, "failed to sync the tables");
                self.late.lost.store(true, Ordering::Release);
                // Nobody waits for the tables in vain; the next commit stops the head.
                self.late.applied.send_replace(u64::MAX);
                return;
            }
        }
    }

    async fn carry(&mut self, group: &Group) -> Result<(), Error> {
        let _alone = self.writer.lock().await;
        let bytes = tables::write(&mut self.db, group).await?;
        self.written.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes sure that the tables are on disk, if a file of the log waits for that.
    fn make_safe(&self) -> std::io::Result<()> {
        let (applied, wanted) = (*self.late.applied.borrow(), self.safe.wanted.load(Ordering::Acquire));
        if wanted <= self.safe.tables.load(Ordering::Acquire) || applied < wanted {
            return Ok(());
        }
        sync_file(&self.wal)?;
        self.safe.tables.store(applied, Ordering::Release);
        Ok(())
    }
}

/// What was written to a file is on disk then, whoever wrote it.
pub(crate) fn sync_file(path: &std::path::Path) -> std::io::Result<()> {
    File::open(path)?.sync_data()
}
