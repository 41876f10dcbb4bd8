//! Writes what the log has to the tables, beside the commits, on a thread of its own.

use std::{
    fs::File,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sqlx::SqliteConnection;
use tokio::sync::{Mutex, watch};

use crate::{Error, age::Age, fault::Fault, group::Group, log::Watermark, memtable::Memtable, tables, usage::Usage};

/// How long something waits for others at most.
const FLUSH_AFTER: Duration = Duration::from_millis(500);
/// Pause after the tables could not be written.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Writes groups to the tables as they come.
pub(crate) struct Flusher {
    pub memtable: Arc<Memtable>,
    /// Does not wait for the disk: the log has it all.
    pub db: SqliteConnection,
    /// Held while the tables are written.
    pub writer: Arc<Mutex<SqliteConnection>>,
    /// Bytes that checkpoints wait for.
    pub written: Arc<watch::Sender<u64>>,
    pub watermark: Arc<Watermark>,
    pub age: Arc<Age>,
    pub usage: Arc<Usage>,
    pub fault: Fault,
    /// SQLite's own log.
    pub wal: PathBuf,
}

impl Flusher {
    /// Begins, on a thread and a runtime of its own: a large group takes many milliseconds, and whoever holds the store may
    /// let go of it after its runtime has ended. It ends after `open` is gone, and lets go of `lock` then.
    pub fn start(self, lock: File, open: watch::Receiver<()>) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let run = move || {
            let fault = self.fault.clone();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(self.run(open))));
            if done.is_err() {
                fault.raise("the thread that writes the tables panicked");
            }
            drop(lock);
        };
        std::thread::Builder::new().name("covey-tables".into()).spawn(run).map(drop)
    }

    async fn run(mut self, mut open: watch::Receiver<()>) {
        loop {
            tokio::select! {
                () = self.memtable.some.notified() => {}
                _ = open.changed() => return,
            }
            tokio::select! {
                () = self.memtable.enough.notified() => {}
                () = self.memtable.asked.notified() => self.memtable.close(),
                () = tokio::time::sleep(FLUSH_AFTER) => self.memtable.close(),
                _ = open.changed() => return,
            }
            while let Some(group) = self.memtable.oldest() {
                while let Err(error) = self.flush(&group).await {
                    if !crate::fault::is_full(&error) {
                        self.fault.raise(&format!("the tables cannot be written: {error}"));
                        return;
                    }
                    if !self.memtable.stuck.swap(true, Ordering::AcqRel) {
                        tracing::error!(%error, "no room for the tables; new work is refused when the log is full");
                        // Whoever waits for them waits no longer.
                        self.memtable.flushed.send_modify(|_| {});
                    }
                    tokio::time::sleep(AGAIN_AFTER).await;
                    if open.has_changed().is_err() {
                        return;
                    }
                }
                if self.memtable.stuck.swap(false, Ordering::AcqRel) {
                    tracing::info!("the tables can be written again");
                }
                self.memtable.carried(group.last);
                // After each group, not when there is none left: under load there always is, and the log waits for this.
                if let Err(error) = self.make_durable() {
                    return self.fault.raise(&format!("the tables could not be synced: {error}"));
                }
            }
        }
    }

    async fn flush(&mut self, group: &Group) -> Result<(), Error> {
        let _alone = self.writer.lock().await;
        let done = tables::write(&mut self.db, group, self.age.now()).await?;
        self.written.send_modify(|sum| *sum += done.bytes);
        self.usage.set(done.usage);
        Ok(())
    }

    /// Makes sure that the tables are on disk, if a file of the log waits for that.
    fn make_durable(&self) -> std::io::Result<()> {
        let (flushed, wanted) = (*self.memtable.flushed.borrow(), self.watermark.wanted.load(Ordering::Acquire));
        if wanted <= self.watermark.tables.load(Ordering::Acquire) || flushed < wanted {
            return Ok(());
        }
        sync_file(&self.wal)?;
        self.watermark.tables.store(flushed, Ordering::Release);
        Ok(())
    }
}

/// What was written to a file is on disk then, whoever wrote it.
pub(crate) fn sync_file(path: &std::path::Path) -> std::io::Result<()> {
    File::open(path)?.sync_data()
}
