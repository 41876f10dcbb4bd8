//! Brings the write-ahead log into the tables.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::SqliteConnection;
use tokio::sync::Mutex;

use crate::fault::Fault;

/// Bytes of bodies that are committed before the write-ahead log is brought into the tables.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// How often it is looked how many there are, and after how many looks fewer will do.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);
const CHECKPOINT_LATEST: u32 = 25;
/// Pages of the log at which commits wait until it can begin anew.
const LOG_PAGES_MAX: i64 = 16_384;

/// Brings what was committed from the write-ahead log into the tables, beside the commits.
pub(crate) async fn keep(
    mut db: SqliteConnection,
    writer: Arc<Mutex<SqliteConnection>>,
    written: Arc<AtomicU64>,
    fault: Fault,
) {
    let mut every = tokio::time::interval(CHECKPOINT_EVERY);
    let mut quiet = 0;
    loop {
        every.tick().await;
        let bytes = written.load(Ordering::Relaxed);
        quiet = if bytes == 0 { 0 } else { quiet + 1 };
        if bytes < CHECKPOINT_BYTES && quiet < CHECKPOINT_LATEST {
            continue;
        }
        (quiet, _) = (0, written.fetch_sub(bytes, Ordering::Relaxed));
        // Blocked or not, pages in the log, pages brought over.
        let done: Result<(i64, i64, i64), _> =
            sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(&mut db).await;
        let outcome = match done {
            // The log begins anew only when nobody writes; under steady load somebody must see to that.
            Ok((_, pages, _)) if pages > LOG_PAGES_MAX => {
                let _pause = writer.lock().await;
                sqlx::query("PRAGMA wal_checkpoint(RESTART)").execute(&mut db).await.map(drop)
            }
            other => other.map(drop),
        };
        if let Err(error) = fault.sound(outcome) {
            tracing::warn!(%error, "a checkpoint failed; the write-ahead log grows");
            // It is tried again.
            written.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}
