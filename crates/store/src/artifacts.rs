//! Which files are in the artifact store, and which tasks name them. The bytes are elsewhere.

use covey_domain::{Digest, Millis, TaskId};
use sqlx::{Row as _, SqliteConnection};

use crate::{Batch, Error, Store};

/// Which of what tasks of a batch name is in the artifact store.
pub(crate) fn uses(batch: &Batch) -> impl Iterator<Item = (TaskId, Digest)> {
    let asked = batch.made.iter().flat_map(|task| {
        task.input.content.iter().filter_map(|part| part.stored()).map(|digest| (task.id.clone(), digest.clone()))
    });
    let said = batch.events.iter().flat_map(|e| e.event.stored().into_iter().map(|digest| (e.task.clone(), digest)));
    asked.chain(said)
}

pub(crate) async fn write_uses(db: &mut SqliteConnection, uses: &[(TaskId, Digest)]) -> Result<(), Error> {
    for (task, digest) in uses {
        sqlx::query("INSERT OR IGNORE INTO artifact_uses VALUES (?, ?)")
            .bind(task.as_str())
            .bind(digest.as_str())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

impl Store {
    /// A file is in the artifact store from now on.
    pub async fn keep_artifact(&self, digest: &Digest, bytes: u64, now: Millis) -> Result<(), Error> {
        let mut db = self.writer.lock().await;
        sqlx::query("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?)")
            .bind(digest.as_str())
            .bind(bytes as i64)
            .bind(now as i64)
            .execute(&mut *db)
            .await?;
        Ok(())
    }

    /// How many bytes a file has that is in the artifact store.
    pub async fn artifact(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let row = sqlx::query("SELECT bytes FROM artifacts WHERE digest = ?")
            .bind(digest.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map(|row| row.get::<i64, _>(0) as u64))
    }

    /// Forgets files that no task names and that were kept before `before`; gives those, whose bytes may go.
    pub async fn forget_artifacts(&self, before: Millis) -> Result<Vec<Digest>, Error> {
        self.late.settled().await;
        let mut db = self.writer.lock().await;
        let gone = sqlx::query(
            "DELETE FROM artifacts WHERE made_ms < ? AND digest NOT IN (SELECT digest FROM artifact_uses) RETURNING digest",
        )
        .bind(before as i64)
        .fetch_all(&mut *db)
        .await?;
        Ok(gone.iter().map(|row| row.get::<String, _>(0).into()).collect())
    }
}
