//! Webhooks of tasks.

use covey_a2a::{Error, Kind, v1};

use super::Ask;

impl Ask {
    /// Has a webhook told of a task from now on.
    pub async fn push_create(
        &self,
        config: v1::TaskPushNotificationConfig,
        old: bool,
    ) -> Result<v1::TaskPushNotificationConfig, Error> {
        self.may_push()?;
        let (record, last) = self.find(&config.task_id).await?;
        // Of a task that has ended there is nothing to come.
        self.hub.pusher.keep(&record, config, old, last.unwrap_or(u64::MAX >> 1)).await
    }

    /// A webhook of a task; the first where none is named.
    pub async fn push_get(&self, task: &str, id: &str) -> Result<v1::TaskPushNotificationConfig, Error> {
        let all = self.push_list(task).await?;
        let found = all.into_iter().find(|config| id.is_empty() || config.id == id);
        found.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("no push notification config `{id}`")).about("taskId", task)
        })
    }

    /// All webhooks of a task.
    pub async fn push_list(&self, task: &str) -> Result<Vec<v1::TaskPushNotificationConfig>, Error> {
        self.may_push()?;
        let (record, _) = self.find(task).await?;
        self.hub.pusher.of(&record.id).await
    }

    /// Forgets a webhook. Idempotent.
    pub async fn push_delete(&self, task: &str, id: &str) -> Result<(), Error> {
        self.may_push()?;
        let (record, _) = self.find(task).await?;
        self.hub.pusher.forget(&record.id, id).await
    }
}
