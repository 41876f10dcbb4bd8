//! Brings the write-ahead log into the tables.

use std::{sync::Arc, time::Duration};

use sqlx::SqliteConnection;
use tokio::sync::{Mutex, watch};

use crate::fault::Fault;

/// Bytes of bodies that are committed before the write-ahead log is brought into the tables.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// While there are some it is looked so often how many, and after how many looks fewer will do.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);
const CHECKPOINT_LATEST: u32 = 25;
/// Pages of the log at which commits wait until it can begin anew.
const LOG_PAGES_MAX: i64 = 16_384;

/// Brings what was committed from the write-ahead log into the tables, beside the commits.
pub(crate) async fn keep(
    mut db: SqliteConnection,
    writer: Arc<Mutex<SqliteConnection>>,
    written: Arc<watch::Sender<u64>>,
    fault: Fault,
) {
    let mut some = written.subscribe();
    let mut every = tokio::time::interval(CHECKPOINT_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looks = 0;
    loop {
        // It does not end: the sender is here too.
        let _ = some.wait_for(|bytes| *bytes > 0).await;
        every.tick().await;
        let bytes = *written.borrow();
        looks += 1;
        if bytes < CHECKPOINT_BYTES && looks < CHECKPOINT_LATEST {
            continue;
        }
        looks = 0;
        written.send_modify(|sum| *sum -= bytes);
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
            written.send_modify(|sum| *sum += bytes);
        }
    }
}
