//! The operations, in 1.0's types: what all bindings of both versions call, and the one place that looks at who asks and for
//! which agent.

use std::sync::{Arc, OnceLock};

use covey_a2a::{
    Error, Fields, Kind, Timestamp,
    card::{EXTENSION_EVENTS, EXTENSION_MODEL, EXTENSION_ONCE},
    content, v1,
};
use covey_domain::{
    AgentSpec, Envelope, ErrorKind, TaskId, TaskRecord, TaskState, agent::Extension, caps, event::Content,
    infer::Sampling, task::TaskInput,
};
use futures::{StreamExt as _, stream::BoxStream};
use v1::{part::Content as Source, send_message_response::Payload as Sent, stream_response::Payload};

use super::{
    Hub,
    answers::{Held, Turn, Written},
    bookmarks::Bookmarks,
    card::{self, Place},
    project::Projection,
    weight,
};
use crate::{Answered, Caller, FoundTask, ListedTasks, SayTask, SubmitTask, TaskQuery};

/// What a message says under [`EXTENSION_MODEL`].
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelAsked {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    sampling: serde_json::Map<String, serde_json::Value>,
}

/// A request as any binding brings it.
pub(super) struct Ask {
    pub hub: Arc<Hub>,
    pub agent: Arc<AgentSpec>,
    pub caller: Caller,
    /// What a stream's reader has seen already.
    pub seen: Option<Cursor>,
    /// How the agent was addressed.
    pub place: Place,
    /// Extensions that the client declares.
    pub extensions: Vec<String>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// The room that its answer has, once that is made: for the extensions of the response.
    pub held: Arc<OnceLock<Held>>,
}

/// A place between two events of a stream: behind entry `seq` of the log and behind `more` events of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cursor {
    pub seq: u64,
    pub more: u32,
}

impl Cursor {
    /// Behind event `i` of the `count` that entry `seq` makes.
    pub fn within(seq: u64, i: usize, count: usize) -> Self {
        if i + 1 == count { Self { seq, more: 0 } } else { Self { seq: seq - 1, more: i as u32 + 1 } }
    }
}

impl std::str::FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (seq, more) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { seq: seq.parse().map_err(drop)?, more: more.parse().map_err(drop)? })
    }
}

/// `12`, or `12.1` in the middle of entry 13.
impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.more {
            0 => write!(f, "{}", self.seq),
            more => write!(f, "{}.{more}", self.seq),
        }
    }
}

/// An event of a stream.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// Where a reader stands that has it.
    pub cursor: Cursor,
    /// Boxed, like the reply: it goes through several streams, and each would copy it.
    pub event: Box<v1::StreamResponse>,
    /// Whether no other follows.
    pub last: bool,
    /// At the end of a task: the message that is the whole answer, where there is one.
    pub reply: Option<Box<v1::Message>>,
}

/// Events up to the end of the task or turn; an error where the log could not be read on.
pub(super) type Events = BoxStream<'static, Result<Told, Error>>;

/// A failure of the cluster as the protocol has it.
pub(super) fn failed(error: covey_domain::Error) -> Error {
    let kind = match error.kind {
        ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::AlreadyExists => Kind::InvalidParams,
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::FailedPrecondition => Kind::UnsupportedOperation,
        ErrorKind::Overloaded => Kind::Exhausted,
        ErrorKind::StorageFull => Kind::StorageFull,
        ErrorKind::DeadlineExceeded => Kind::DeadlineExceeded,
        ErrorKind::Unavailable | ErrorKind::ActorDied | ErrorKind::Unschedulable => Kind::Unavailable,
        ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Cancelled
        | ErrorKind::Application
        | ErrorKind::Internal => Kind::Internal,
    };
    let message = match &error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message.clone(),
    };
    Error::new(kind, message).about("kind", error.kind.name())
}

fn no_task(error: covey_domain::Error, id: &str) -> Error {
    if error.kind == ErrorKind::NotFound { Error::no_task(id) } else { failed(error) }
}

/// Whether a turn is over: the task has ended, or waits for somebody.
fn is_over(state: TaskState) -> bool {
    state.is_terminal() || state.waits()
}

/// A task that took a message.
struct Taken {
    record: Arc<TaskRecord>,
    /// The entry of its log that the message made; 1 where it made the task.
    at: u64,
}

impl Ask {
    async fn take(&self, mut request: v1::SendMessageRequest, old: bool, answered: Answered) -> Result<Taken, Error> {
        let hook = request.configuration.as_mut().and_then(|said| said.task_push_notification_config.take());
        if let Some(hook) = &hook {
            self.may_push()?;
            // Before anything is done, so that a wrong one does nothing.
            self.hub.pusher.check(&self.caller.id, hook)?;
        }
        // A webhook is kept in the tables, which must not know of a task before the log does.
        let answered = if hook.is_some() { Answered::Durable } else { answered };
        let taken = self.take_message(request, answered).await?;
        if let Some(hook) = hook {
            // What a message leads to comes behind it.
            self.hub.pusher.keep(&taken.record, hook, old, taken.at - 1).await?;
        }
        Ok(taken)
    }

    async fn take_message(&self, request: v1::SendMessageRequest, answered: Answered) -> Result<Taken, Error> {
        let message = request.message.ok_or_else(|| Error::field("message", "is missing"))?;
        match message.role() {
            v1::Role::User => {}
            v1::Role::Agent => return Err(Error::field("message.role", "must be that of a user")),
            v1::Role::Unspecified => return Err(Error::field("message.role", "is missing")),
        }
        if message.message_id.is_empty() {
            return Err(Error::field("message.messageId", "is missing"));
        }
        if message.parts.is_empty() {
            return Err(Error::field("message.parts", "is missing or empty"));
        }
        self.check_modes(&message.parts)?;
        if !message.task_id.is_empty() {
            let (record, _) = self.find(&message.task_id).await?;
            if !message.context_id.is_empty() && message.context_id != record.context.as_str() {
                return Err(Error::field("message.contextId", "is not that of the task"));
            }
            let say = SayTask {
                caller: self.caller.id.clone(),
                task: record.id.clone(),
                message_id: Some(message.message_id),
                parts: contents(message.parts)?,
            };
            let (record, at) = self.hub.cluster.say(say).await.map_err(|error| match error.kind {
                ErrorKind::FailedPrecondition => {
                    Error::new(Kind::UnsupportedOperation, "the task has ended").about("taskId", message.task_id)
                }
                _ => no_task(error, &message.task_id),
            })?;
            return Ok(Taken { record, at });
        }
        let told = |name: &str| {
            let of = |fields: &Option<Fields>| fields.as_ref().and_then(|f| f.0.get(name).cloned());
            of(&message.metadata).or_else(|| of(&request.metadata))
        };
        let named = |name: &str| told(name).and_then(|v| v.as_str().map(str::to_owned)).filter(|text| !text.is_empty());
        let (skill, mut model) = (named("skill"), named("model"));
        let mut sampling = serde_json::Map::new();
        if let Some(asked) = told(EXTENSION_MODEL) {
            let name = format!("metadata[\"{EXTENSION_MODEL}\"]");
            let asked: ModelAsked = serde_json::from_value(asked).map_err(|e| Error::field(&name, e.to_string()))?;
            Sampling::default().over(&asked.sampling).map_err(|why| Error::field(&name, why))?;
            (model, sampling) = (asked.model.or(model), asked.sampling);
        }
        if !self.caller.models && model.is_some() {
            return Err(Error::field("metadata", "names a model, and this key opens none: the agent has its own"));
        }
        let content = contents(message.parts)?;
        let submitted = self.hub.cluster.submit(SubmitTask {
            caller: self.caller.id.clone(),
            agent: self.agent.name.clone(),
            skill,
            input: TaskInput { content, sampling, traceparent: self.traceparent.clone(), ..Default::default() },
            context: Some(message.context_id).filter(|c| !c.is_empty()).map(Into::into),
            message_id: Some(message.message_id),
            model: model.map(Into::into),
            protocol: "a2a",
            timeout_ms: None,
            answered,
        });
        let (record, _) = submitted.await.map_err(failed)?;
        Ok(Taken { record, at: 1 })
    }

    /// Sends a message; waits for the end of the turn unless that is not wanted. `write` makes the answer of what is sent back.
    pub async fn send<T>(
        &self,
        request: v1::SendMessageRequest,
        old: bool,
        write: impl Fn(v1::SendMessageResponse) -> Written<T>,
    ) -> Result<T, Error> {
        let said = request.configuration.clone().unwrap_or_default();
        let history = history(said.history_length)?;
        // Whoever waits for the end is told of nothing before it.
        let answered = if said.return_immediately { Answered::Durable } else { Answered::Early };
        let Taken { record, at } = self.take(request, old, answered).await?;
        let until = if said.return_immediately { Until::Seq(at) } else { Until::Over(at) };
        let write = |projection: Projection| {
            let payload = match projection.reply().filter(|_| self.agent.a2a.messages) {
                Some(reply) => {
                    let mut reply = reply.clone();
                    self.hub.links.message(&self.place.root, &mut reply);
                    Sent::Message(reply)
                }
                None => Sent::Task(self.shown(projection, history)),
            };
            write(v1::SendMessageResponse { payload: Some(payload) })
        };
        self.done(record, until, write).await
    }

    /// The answer that is made has this room until it is written.
    fn keep<T>(&self, (answer, held): (T, Held)) -> T {
        // One request has one answer.
        let _ = self.held.set(held);
        answer
    }

    /// The answer to what has been done, once the task is so far. A small one is made of what is read on the way; a large one, and
    /// one that finds no room, when it is its turn: until then it holds nothing.
    async fn done<T>(
        &self,
        record: Arc<TaskRecord>,
        until: Until,
        write: impl Fn(Projection) -> Written<T>,
    ) -> Result<T, Error> {
        let id = record.id.clone();
        let mut until = until;
        if record.state.is_terminal() {
            // Each who asks has a record of its own.
            drop(record);
        } else {
            let (projection, seq) = self.reach(record, until).await?;
            if let Some(projection) = projection {
                let (answer, bytes) = write(projection)?;
                if let Some(held) = self.hub.answers.at_once(&self.caller.id, bytes) {
                    return Ok(self.keep((answer, held)));
                }
            }
            until = Until::Seq(seq);
        }
        let (task, write) = (id.as_str(), &write);
        let make = move |mut turn: Turn| async move {
            let (record, _) = self.find_in(&mut turn, task).await?;
            write(self.replay(&record, until, &mut turn).await?)
        };
        let made = self.hub.answers.done(&self.caller.id, make).await;
        made.map(|made| self.keep(made)).map_err(|error| match error.kind {
            Kind::Exhausted => {
                let why = format!("{}; the message was taken: GetTask tells what became of it", error.message);
                Error::new(Kind::Exhausted, why).about("taskId", id.as_str())
            }
            _ => error,
        })
    }

    /// Reads a log as far as is said: what the task is then, where that is small, and how far that was.
    async fn reach(&self, record: Arc<TaskRecord>, until: Until) -> Result<(Option<Projection>, u64), Error> {
        let (id, mut weight) = (record.id.clone(), record.input.weight());
        let mut projection = Projection::new(record);
        projection.only_fold();
        if weight > SMALL {
            projection.forget();
        }
        let mut events = self.hub.cluster.events(id.clone(), 0);
        while !until.is_reached(&projection) {
            let Some(event) = events.next().await else { break };
            let event = event.map_err(|e| failed(e).about("taskId", id.as_str()))?;
            weight += event.event.weight();
            if weight > SMALL {
                projection.forget();
            }
            projection.push(&event);
        }
        let seq = projection.seq();
        Ok((Some(projection).filter(|_| weight <= SMALL), seq))
    }

    /// Sends a message; the turn streams back.
    pub async fn stream(&self, request: v1::SendMessageRequest, old: bool) -> Result<Events, Error> {
        self.may_stream()?;
        // Before anything is done, so that who is refused may send the same again.
        let share = self.hub.shares.stream(&self.caller.id, 0).map_err(failed)?;
        let Taken { record, at } = self.take(request, old, Answered::Durable).await?;
        // The reader of a task that took a message gets it as it stands, then what follows; what it has seen, no more.
        let snapshot = if at > 1 && self.seen.is_none_or(|seen| seen.seq < at) { at } else { 0 };
        let events = self.events(record, self.seen.unwrap_or_default(), snapshot, Some(at));
        let events =
            if self.agent.a2a.messages && at == 1 && self.seen.is_none() { message_first(events) } else { events };
        Ok(share.held_by(events))
    }

    /// A task as it stands.
    pub async fn get<T>(
        &self,
        request: &v1::GetTaskRequest,
        write: impl Fn(v1::Task) -> Written<T>,
    ) -> Result<T, Error> {
        let history = history(request.history_length)?;
        let write = &write;
        let make = move |mut turn: Turn| async move {
            let (record, last) = self.find_in(&mut turn, &request.id).await?;
            let projection = self.replay(&record, last.map_or(Until::End, Until::Seq), &mut turn).await?;
            write(self.shown(projection, history))
        };
        Ok(self.keep(self.hub.answers.read(&self.caller.id, make).await?))
    }

    /// A task for the outside, with links to its large files.
    fn shown(&self, projection: Projection, history: Option<usize>) -> v1::Task {
        let mut task = projection.into_task(history);
        self.hub.links.task(&self.place.root, &mut task);
        task
    }

    /// The caller's tasks with this agent, newest change first. A page ends early where it is large.
    pub async fn list<T>(
        &self,
        request: v1::ListTasksRequest,
        write: impl Fn(v1::ListTasksResponse) -> Written<T>,
    ) -> Result<T, Error> {
        let history = history(request.history_length)?;
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
        let query = TaskQuery {
            agent: Some(self.agent.name.clone()),
            context: Some(request.context_id.as_str()).filter(|c| !c.is_empty()).map(Into::into),
            state: content::state_in(request.status()),
            since_ms: request.status_timestamp_after.map_or(0, Timestamp::ms),
            before,
            limit: page_size as u32,
        };
        let with_artifacts = request.include_artifacts == Some(true);
        let (query, write) = (&query, &write);
        let make = move |mut turn: Turn| async move {
            let ListedTasks { records, mut next, all } =
                self.hub.cluster.tasks(&self.caller.id, query).await.map_err(failed)?;
            let mut tasks = Vec::with_capacity(records.len());
            let (mut records, mut bytes) = (records.into_iter(), 0);
            while let Some(record) = records.next() {
                let place = (record.changed_ms, record.id.clone());
                let record = Arc::new(record);
                // What the record does not have is in the log, which is read for those who ask for it.
                let projection = if with_artifacts {
                    self.replay(&record, self.last(&record).await?, &mut turn).await?
                } else {
                    Projection::of_record(record)
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
            write(v1::ListTasksResponse { tasks, next_page_token, page_size, total_size })
        };
        Ok(self.keep(self.hub.answers.read(&self.caller.id, make).await?))
    }

    /// How far the log of a task goes now.
    async fn last(&self, record: &TaskRecord) -> Result<Until, Error> {
        let (_, last) = self.hub.cluster.task(&self.caller.id, &record.id).await.map_err(failed)?;
        Ok(last.map_or(Until::End, Until::Seq))
    }

    /// Stops a task.
    pub async fn cancel<T>(&self, id: &str, write: impl Fn(v1::Task) -> Written<T>) -> Result<T, Error> {
        let (record, _) = self.find(id).await?;
        let stopped = self.hub.cluster.cancel(&self.caller.id, &record.id, "cancelled by the client").await;
        stopped.map_err(|error| match error.kind {
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
            Some(seen) => self.events(record, seen, 0, None),
            None => self.events(record, Cursor::default(), last.unwrap_or(1), None),
        }))
    }

    /// The same for the agent that the request's tenant names, where it names one.
    pub async fn of_tenant(mut self, tenant: &str) -> Result<Self, Error> {
        if tenant.is_empty() || tenant == self.agent.name.as_str() {
            return Ok(self);
        }
        if self.place.agent.is_some() {
            return Err(Error::field("tenant", "is not the agent of this address"));
        }
        self.agent = super::find(&*self.hub.cluster, &self.caller, Some(tenant)).await?;
        self.place.agent = Some(tenant.into());
        Ok(self)
    }

    /// Whether the agent takes what it is sent, where it says what it takes.
    fn check_modes(&self, parts: &[v1::Part]) -> Result<(), Error> {
        let face = &self.agent.a2a;
        if face.any_input || face.input_modes.is_empty() {
            return Ok(());
        }
        let kinds = parts.iter().map(content::media_type);
        match kinds.into_iter().find(|kind| !face.input_modes.iter().any(|mode| content::takes(mode, kind))) {
            Some(kind) => {
                let why = format!("the agent takes {}; not {kind}", face.input_modes.join(", "));
                Err(Error::new(Kind::ContentTypeNotSupported, why).about("mediaType", kind))
            }
            None => Ok(()),
        }
    }

    /// Whether the client speaks what the agent insists on.
    pub fn check_extensions(&self) -> Result<(), Error> {
        let missing = |e: &&Extension| e.required && !self.extensions.contains(&e.uri);
        match self.agent.a2a.extensions.iter().find(missing) {
            Some(extension) => {
                let why = format!("the agent wants extension {}; declare it in A2A-Extensions", extension.uri);
                Err(Error::new(Kind::ExtensionSupportRequired, why).about("extension", extension.uri.as_str()))
            }
            None => Ok(()),
        }
    }

    /// The extensions that hold for this request, as the header of the answer has them.
    pub fn active_extensions(&self) -> String {
        let known = |uri: &&String| {
            [EXTENSION_MODEL, EXTENSION_ONCE, EXTENSION_EVENTS].contains(&uri.as_str())
                || self.agent.a2a.extensions.iter().any(|e| e.uri == **uri)
        };
        self.extensions.iter().filter(known).cloned().collect::<Vec<_>>().join(", ")
    }

    fn may_stream(&self) -> Result<(), Error> {
        match self.agent.a2a.streaming {
            true => Ok(()),
            false => Err(Error::new(Kind::UnsupportedOperation, "this agent does not stream")),
        }
    }

    fn may_push(&self) -> Result<(), Error> {
        match self.agent.a2a.push_notifications {
            true => Ok(()),
            false => Err(Error::new(Kind::PushNotificationNotSupported, "this agent sends no push notifications")),
        }
    }

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

    /// What the card says to those who are known.
    pub fn extended_card(&self) -> Result<v1::AgentCard, Error> {
        match self.agent.a2a.extended_card {
            true => Ok(card::extended(&self.hub, &self.agent, &self.place)),
            false => Err(Error::new(Kind::UnsupportedOperation, "this agent has no extended card")),
        }
    }

    /// A task of this caller with this agent; all others are not there.
    async fn find(&self, id: &str) -> Result<FoundTask, Error> {
        if id.is_empty() {
            return Err(Error::field("id", "is missing"));
        }
        let found = self.hub.cluster.task(&self.caller.id, &TaskId::from(id)).await.map_err(|e| no_task(e, id))?;
        if found.0.agent != self.agent.name {
            return Err(Error::no_task(id));
        }
        Ok(found)
    }

    /// The same for an answer that is made: a large one is not held while it waits for others that are large.
    async fn find_in(&self, turn: &mut Turn, id: &str) -> Result<FoundTask, Error> {
        let found = self.find(id).await?;
        let weight = found.0.input.weight();
        if turn.holds(weight) {
            return Ok(found);
        }
        drop(found);
        turn.weighs(weight).await?;
        self.find(id).await
    }

    async fn replay(&self, record: &Arc<TaskRecord>, until: Until, turn: &mut Turn) -> Result<Projection, Error> {
        let mut weight = record.input.weight();
        turn.weighs(weight).await?;
        let mut projection = Projection::new(record.clone());
        projection.only_fold();
        let mut events = self.hub.cluster.events(record.id.clone(), 0);
        while !until.is_reached(&projection) {
            let Some(event) = events.next().await else { break };
            let event = event.map_err(|e| failed(e).about("taskId", record.id.as_str()))?;
            weight += event.event.weight();
            turn.weighs(weight).await?;
            projection.push(&event);
        }
        Ok(projection)
    }

    /// Events behind `seen`; where `snapshot` is a number, the task as of that entry stands for all up to it. They end with
    /// the task, or with the turn that entry `turn` began.
    fn events(&self, record: Arc<TaskRecord>, seen: Cursor, snapshot: u64, turn: Option<u64>) -> Events {
        let id = record.id.clone();
        // One who comes back is read on from near their place.
        let near = (snapshot == 0).then(|| self.hub.bookmarks.before(&id, seen.seq)).flatten();
        let mut projection = match near {
            Some(bookmark) => Projection::resume(record, bookmark),
            None => Projection::new(record),
        };
        if snapshot == 0 {
            projection.only_tell();
        }
        if self.extensions.iter().any(|uri| uri == EXTENSION_EVENTS) {
            projection.show_all();
        }
        let mut log = self.hub.cluster.events(id.clone(), projection.seq());
        let (links, root, hub) = (self.hub.links.clone(), self.place.root.clone(), self.hub.clone());
        async_stream::try_stream! {
            let mut told = seen;
            while let Some(entry) = log.next().await {
                // A reader of a binding without SSE's ids learns where to go on, too.
                let place = |e| failed(e).about("taskId", id.as_str()).about("lastEventId", told.to_string());
                let entry: Arc<Envelope> = entry.map_err(place)?;
                let events = projection.push(&entry);
                if Bookmarks::wants(entry.seq) {
                    hub.bookmarks.keep(&id, projection.bookmark());
                }
                let turned = turn.is_some_and(|at| entry.seq > at && is_over(projection.shown()));
                let over = projection.shown().is_terminal() || turned;
                if entry.seq < snapshot || entry.seq <= seen.seq {
                    continue;
                }
                if entry.seq == snapshot {
                    let mut task = v1::StreamResponse { payload: Some(Payload::Task(projection.give())) };
                    links.event(&root, &mut task);
                    told = Cursor { seq: entry.seq, more: 0 };
                    yield Told { cursor: told, event: Box::new(task), last: over, reply: None };
                    continue;
                }
                let count = events.len();
                let skipped = if entry.seq == seen.seq + 1 { seen.more as usize } else { 0 };
                for (i, mut event) in events.into_iter().enumerate().skip(skipped) {
                    links.event(&root, &mut event);
                    let cursor = Cursor::within(entry.seq, i, count);
                    let mut reply = projection.reply().cloned().map(Box::new);
                    if let Some(reply) = &mut reply {
                        links.message(&root, reply);
                    }
                    told = cursor;
                    yield Told { cursor, event: Box::new(event), last: i + 1 == count && over, reply };
                }
                if turned {
                    return;
                }
            }
        }
        .boxed()
    }
}

/// Holds a task's first events back until it is seen whether it is answered with a mere message, which then stands for all.
fn message_first(mut events: Events) -> Events {
    async_stream::try_stream! {
        let mut held = Vec::new();
        while let Some(told) = events.next().await {
            let told = told?;
            if let Some(reply) = told.reply.clone() {
                let event = v1::StreamResponse { payload: Some(Payload::Message(*reply)) };
                yield Told { event: Box::new(event), ..told };
                return;
            }
            // That it was taken and is worked on says nothing yet.
            let quiet = match &told.event.payload {
                Some(Payload::Task(_)) => true,
                Some(Payload::StatusUpdate(update)) => {
                    update.metadata.is_none()
                        && update.status.as_ref().is_some_and(|status| {
                            matches!(status.state(), v1::TaskState::Submitted | v1::TaskState::Working)
                                && status.message.is_none()
                        })
                }
                _ => false,
            };
            held.push(told);
            if !quiet {
                break;
            }
        }
        for told in held {
            yield told;
        }
        while let Some(told) = events.next().await {
            yield told?;
        }
    }
    .boxed()
}

/// Parts of a message as content.
fn contents(parts: Vec<v1::Part>) -> Result<Vec<Content>, Error> {
    let each = parts.into_iter().map(|part| match &part.content {
        Some(Source::Url(url)) if url.is_empty() => Err(Error::field("message.parts", "has a file without an address")),
        _ => content::content(part).ok_or_else(|| Error::field("message.parts", "has a part without content")),
    });
    each.collect()
}

/// An answer that is made while its task goes on has at most so much, bytes.
const SMALL: usize = 64 << 10;
/// Tasks of a page where nothing is said, and at most.
const PAGE_DEFAULT: i32 = 50;
const PAGE_MAX: i32 = 100;

/// How far a log is read.
#[derive(Clone, Copy)]
enum Until {
    /// Up to this entry.
    Seq(u64),
    /// Up to the end of the turn that this entry began.
    Over(u64),
    /// Up to the end of the task.
    End,
}

impl Until {
    fn is_reached(self, projection: &Projection) -> bool {
        match self {
            Self::Seq(seq) => projection.seq() >= seq,
            Self::Over(at) => projection.seq() >= at && is_over(projection.shown()),
            Self::End => false,
        }
    }
}

fn history(length: Option<i32>) -> Result<Option<usize>, Error> {
    match length {
        None => Ok(None),
        Some(length) => {
            usize::try_from(length).map(Some).map_err(|_| Error::field("historyLength", "must not be negative"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_they_are_written() {
        for cursor in [Cursor::default(), Cursor { seq: 12, more: 0 }, Cursor { seq: 12, more: 3 }] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        assert!("x".parse::<Cursor>().is_err() && "1.y".parse::<Cursor>().is_err());
    }
}
