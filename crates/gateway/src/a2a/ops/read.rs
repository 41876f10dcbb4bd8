//! Tasks: one as it stands, a page of them, what happens in one, and stopping one.

use std::sync::Arc;

use covey_a2a::{Error, Kind, Timestamp, content, v1};
use covey_domain::{ErrorKind, caps};

use super::{
    super::{
        errors::{failed, no_task},
        project::Projection,
        weight,
    },
    Ask, Events, history, task_id,
};
use crate::{
    ListedTasks, TaskQuery,
    answers::{Turn, Written},
    fold::{Until, find_in, replay},
    follow::View,
};

/// Tasks of a page where nothing is said, and at most.
const PAGE_DEFAULT: i32 = 50;
const PAGE_MAX: i32 = 100;

impl Ask {
    /// A task as it stands.
    pub async fn get<T>(
        &self,
        request: &v1::GetTaskRequest,
        write: impl Fn(v1::Task) -> Written<T, Error>,
    ) -> Result<T, Error> {
        let history = history(request.history_length)?;
        let (id, write, tasks) = (&task_id(&request.id)?, &write, self.tasks());
        let make = move |mut turn: Turn| async move {
            let (record, last) = find_in(&tasks, &mut turn, id).await?;
            let until = last.map_or(Until::End, Until::Seq);
            write(self.shown(replay(tasks.cluster, record, until, &mut turn).await?, history))
        };
        Ok(self.keep(self.hub.answers.read(&self.caller.id, make).await?))
    }

    /// The caller's tasks with this agent, newest change first. A page ends early where it is large.
    pub async fn list<T>(
        &self,
        request: v1::ListTasksRequest,
        write: impl Fn(v1::ListTasksResponse) -> Written<T, Error>,
    ) -> Result<T, Error> {
        let history = history(request.history_length)?;
        let with_artifacts = request.include_artifacts == Some(true);
        let (query, write) = (&self.query(&request)?, &write);
        let make =
            move |mut turn: Turn| async move { write(self.page(query, history, with_artifacts, &mut turn).await?) };
        Ok(self.keep(self.hub.answers.read(&self.caller.id, make).await?))
    }

    fn query(&self, request: &v1::ListTasksRequest) -> Result<TaskQuery, Error> {
        let page_size = request.page_size.unwrap_or(PAGE_DEFAULT);
        if !(1..=PAGE_MAX).contains(&page_size) {
            return Err(Error::field("pageSize", format!("must be between 1 and {PAGE_MAX}")));
        }
        let before = match request.page_token.as_str() {
            "" => None,
            token => {
                let place = token.split_once('-').and_then(|(at, task)| Some((at.parse().ok()?, task.into())));
                Some(place.ok_or_else(|| Error::field("pageToken", "is none that was given"))?)
            }
        };
        Ok(TaskQuery {
            agent: Some(self.agent.name.clone()),
            context: Some(request.context_id.as_str()).filter(|c| !c.is_empty()).map(Into::into),
            state: content::state_in(request.status()),
            since_ms: request.status_timestamp_after.map_or(0, Timestamp::ms),
            before,
            limit: page_size as u32,
        })
    }

    async fn page(
        &self,
        query: &TaskQuery,
        history: Option<usize>,
        with_artifacts: bool,
        turn: &mut Turn,
    ) -> Result<v1::ListTasksResponse, Error> {
        let cluster = &*self.hub.cluster;
        let ListedTasks { records, mut next, all } = cluster.tasks(&self.caller.id, query).await.map_err(failed)?;
        let mut tasks = Vec::with_capacity(records.len());
        let (mut records, mut bytes) = (records.into_iter(), 0);
        while let Some(record) = records.next() {
            let place = (record.changed_ms, record.id.clone());
            // What the record does not have is in the log, which is read for those who ask for it.
            let projection = if with_artifacts {
                let (_, last) = self.tasks().find(&record.id).await.map_err(failed)?;
                replay(cluster, Arc::new(record), last.map_or(Until::End, Until::Seq), turn).await?
            } else {
                Projection::of_record(Arc::new(record))
            };
            let task = self.shown(projection, history);
            bytes += weight::of_task(&task);
            turn.weighs(bytes).await?;
            tasks.push(task);
            if bytes >= caps::LIST_PAGE_BYTES_MAX && records.len() > 0 {
                next = Some(place);
                break;
            }
        }
        let next_page_token = next.map_or(String::new(), |(at, task)| format!("{at}-{task}"));
        let total_size = all.min(i32::MAX as u64) as i32;
        Ok(v1::ListTasksResponse { tasks, next_page_token, page_size: query.limit as i32, total_size })
    }

    /// Stops a task.
    pub async fn cancel<T>(&self, id: &str, write: impl Fn(v1::Task) -> Written<T, Error>) -> Result<T, Error> {
        let stopped = self.tasks().cancel(&task_id(id)?, "cancelled by the client").await;
        let record = stopped.map_err(|error| match error.kind {
            ErrorKind::FailedPrecondition => {
                Error::new(Kind::TaskNotCancelable, format!("Task cannot be canceled: {id} has ended"))
                    .about("taskId", id)
            }
            _ => no_task(error, id),
        })?;
        self.done(record, Until::End, |projection| write(self.shown(projection, None))).await
    }

    /// What happens in a task from now on, or from where the reader was.
    pub async fn subscribe(&self, id: &str) -> Result<Events, Error> {
        self.may_stream()?;
        let (record, last) = self.find(id).await?;
        if record.state.is_terminal() && self.seen.is_none() {
            let why = "the task has ended; send Last-Event-ID to read the rest of its log";
            return Err(Error::new(Kind::UnsupportedOperation, why).about("taskId", id));
        }
        // Without a cursor the reader gets the task as it stands, then what follows.
        let begins_with = if self.seen.is_none() { record.input.weight() } else { 0 };
        let share = self.hub.shares.stream(&self.caller.id, begins_with).map_err(failed)?;
        Ok(share.held_by(match self.seen {
            Some(seen) => self.events(record, View { seen, ..View::default() }),
            None => self.events(record, View { snapshot: Some(last.unwrap_or(1)), ..View::default() }),
        }))
    }
}
