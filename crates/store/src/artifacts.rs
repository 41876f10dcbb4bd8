//! Which files are in the artifact store, and which tasks name them. The bytes are elsewhere.

use std::time::Duration;

use covey_domain::{Digest, Millis, TaskId};
use hashbrown::HashMap;
use sqlx::{Row as _, SqliteConnection};

use crate::{Batch, Error, Store};

/// Files that are forgotten in one step.
const FORGOTTEN_AT_ONCE: u32 = 128;

/// Which of what tasks of a batch name is in the artifact store.
pub(crate) fn uses(batch: &Batch) -> impl Iterator<Item = (TaskId, Digest)> {
    let asked = batch.made.iter().flat_map(|task| {
        task.input.content.iter().filter_map(|part| part.stored()).map(|digest| (task.id.clone(), digest.clone()))
    });
    let said = batch.events.iter().flat_map(|e| e.event.stored().into_iter().map(|digest| (e.task.clone(), digest)));
    asked.chain(said)
}

/// Writes what tasks name, and adds how large that is to what each of them takes.
pub(crate) async fn write_uses<'a>(
    db: &mut SqliteConnection,
    uses: &'a [(TaskId, Digest)],
    sizes: &mut HashMap<&'a str, u64>,
) -> Result<(), Error> {
    for (task, digest) in uses {
        let sql = "INSERT OR IGNORE INTO artifact_uses VALUES (?1, ?2)
            RETURNING coalesce((SELECT bytes FROM artifacts WHERE digest = ?2), 0)";
        let bytes: Option<i64> =
            sqlx::query_scalar(sql).bind(task.as_str()).bind(digest.as_str()).fetch_optional(&mut *db).await?;
        *sizes.entry(task.as_str()).or_default() += bytes.unwrap_or(0) as u64;
    }
    Ok(())
}

impl Store {
    /// A file is in the artifact store from now on.
    pub async fn keep_artifact(&self, digest: &Digest, bytes: u64) -> Result<(), Error> {
        let mut db = self.writer.lock().await;
        let done = sqlx::query("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?)")
            .bind(digest.as_str())
            .bind(bytes as i64)
            .bind(self.age.now() as i64)
            .execute(&mut *db)
            .await;
        self.fault.sound(done).map(drop)
    }

    /// How many bytes a file has that is in the artifact store.
    pub async fn artifact(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let row = sqlx::query("SELECT bytes FROM artifacts WHERE digest = ?")
            .bind(digest.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map(|row| row.get::<i64, _>(0) as u64))
    }

    /// Forgets some of the files that no task names and that were kept longer than `spared` ago; gives those, whose bytes may
    /// go. It is called again until there are none.
    pub async fn forget_artifacts(&self, spared: Duration) -> Result<Vec<Digest>, Error> {
        if !self.memtable.flush().await {
            // A use that the tables do not have yet would be overlooked.
            return Ok(Vec::new());
        }
        let before = self.age.now().saturating_sub(spared.as_millis() as Millis);
        let mut db = self.writer.lock().await;
        let gone = sqlx::query(
            "DELETE FROM artifacts WHERE digest IN (SELECT digest FROM artifacts AS a WHERE made_ms <= ?
                AND NOT EXISTS (SELECT 1 FROM artifact_uses AS u WHERE u.digest = a.digest) LIMIT ?) RETURNING digest",
        )
        .bind(before as i64)
        .bind(FORGOTTEN_AT_ONCE)
        .fetch_all(&mut *db)
        .await;
        Ok(self.fault.sound(gone)?.iter().map(|row| row.get::<String, _>(0).into()).collect())
    }
}
