//! Webhooks and how far they have been told.

use covey_domain::{Hook, HookState, TaskId};
use sqlx::{Row as _, SqliteConnection};

use crate::{
    Error, Store,
    rows::{json, parse},
    transaction::Transaction,
};

impl Store {
    /// Keeps a webhook; one of the same id is replaced.
    pub async fn keep_hook(&self, hook: &Hook) -> Result<(), Error> {
        let mut db = self.writer.lock().await;
        let done = sqlx::query("INSERT OR REPLACE INTO hooks VALUES (?, ?, ?, ?)")
            .bind(hook.task.as_str())
            .bind(&hook.id)
            .bind(hook.state.name())
            .bind(json(hook))
            .execute(&mut *db)
            .await;
        self.fault.sound(done).map(drop)
    }

    /// Webhooks of a task, in a state, or all, by task and id.
    pub async fn hooks(&self, task: Option<&TaskId>, state: Option<HookState>) -> Result<Vec<Hook>, Error> {
        let rows = sqlx::query(
            "SELECT hook FROM hooks WHERE (?1 IS NULL OR task = ?1) AND (?2 IS NULL OR state = ?2) ORDER BY task, id",
        )
        .bind(task.map(TaskId::as_str))
        .bind(state.map(HookState::name))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| parse("webhook", row.get(0))).collect()
    }

    /// Writes how far webhooks are, those that were not forgotten or given another configuration meanwhile.
    pub async fn move_hooks(&self, hooks: &[Hook]) -> Result<(), Error> {
        let mut db = self.writer.lock().await;
        let mut tx = Transaction::begin(&mut db).await?;
        let done = write_moved(&mut tx, hooks).await;
        self.fault.sound(tx.end(done).await)
    }

    /// Forgets a webhook. Idempotent.
    pub async fn forget_hook(&self, task: &TaskId, id: &str) -> Result<(), Error> {
        let mut db = self.writer.lock().await;
        let done = sqlx::query("DELETE FROM hooks WHERE task = ? AND id = ?")
            .bind(task.as_str())
            .bind(id)
            .execute(&mut *db)
            .await;
        self.fault.sound(done).map(drop)
    }
}

async fn write_moved(tx: &mut SqliteConnection, hooks: &[Hook]) -> Result<(), sqlx::Error> {
    for hook in hooks {
        sqlx::query("UPDATE hooks SET state = ?3, hook = ?4 WHERE task = ?1 AND id = ?2 AND hook ->> '$.config' = ?5")
            .bind(hook.task.as_str())
            .bind(&hook.id)
            .bind(hook.state.name())
            .bind(json(hook))
            .bind(&hook.config)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}
