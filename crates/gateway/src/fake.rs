//! A cluster for tests: its tasks are vectors, and all that happens to one has happened when it is asked for.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use covey_domain::{
    AgentName, AgentSpec, CallerId, Digest, Envelope, Error, ErrorKind, Hook, HookState, TaskEvent, TaskId, TaskRecord,
    TaskState,
    event::{Content, Decision, Delta, InterruptKind, MESSAGE, Outcome, Phase},
    infer::{InferEvent, InferRequest},
    log::Writer,
    status::{ClusterStatus, ModelStatus},
    task::TaskInput,
};
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use parking_lot::Mutex;
use serde_json::json;

use crate::{
    ArtifactBody, Cluster, FoundTask, ListedTasks, SayTask, SubmitTask, TaskQuery, fold::Fold, follow::Projection,
};

/// A log that ends with this kind of event breaks off there, where it is read.
pub(crate) const CUT: &str = "cut";

/// A record and its log.
type Kept = (Arc<TaskRecord>, Vec<Arc<Envelope>>);

/// The cluster.
pub(crate) struct Fake {
    /// The first is the default one.
    pub agents: Vec<Arc<AgentSpec>>,
    pub tasks: Mutex<BTreeMap<TaskId, Kept>>,
    hooks: Mutex<BTreeMap<(TaskId, String), Hook>>,
}

/// The record of a task of agent `echo` and caller `me`.
pub(crate) fn record(id: &str) -> TaskRecord {
    TaskRecord {
        id: id.into(),
        context: "ctx".into(),
        agent: "echo".into(),
        skill: "run".into(),
        caller: "me".into(),
        message_id: Some("m".into()),
        model: None,
        protocol: "a2a".into(),
        input: Arc::new(TaskInput { content: vec![Content::Text("hi".into())], ..Default::default() }),
        state: TaskState::Submitted,
        created_ms: 0,
        changed_ms: 0,
        timeout_ms: None,
        expires_ms: None,
        attempt: 1,
    }
}

/// What every log begins with.
pub(crate) fn begun() -> Vec<TaskEvent> {
    vec![
        TaskEvent::Started {
            agent: "echo".into(),
            context: "ctx".into(),
            skill: "run".into(),
            model: None,
            protocol: "a2a".into(),
            parent: None,
            resumes: vec![],
        },
        TaskEvent::Status { state: Phase::Working, message: None },
    ]
}

/// A question, and that the task waits for its answer.
pub(crate) fn asks(id: &str) -> Vec<TaskEvent> {
    let raised = TaskEvent::InterruptRaised {
        id: id.into(),
        kind: InterruptKind::Form { schema: json!({"type": "string"}) },
        prompt: "which one?".into(),
        options: vec![],
        response_schema: None,
        expires_at_ms: None,
        refused: None,
    };
    vec![raised, TaskEvent::Status { state: Phase::Waiting, message: None }]
}

/// The answer to a question.
pub(crate) fn answers(id: &str, text: &str, message_id: Option<String>) -> Vec<TaskEvent> {
    let decision = Decision::Accept { payload: json!(text), always: false };
    vec![
        TaskEvent::InterruptResolved { id: id.into(), decision, by: "me".into() },
        TaskEvent::Status { state: Phase::Working, message: None },
        TaskEvent::Steered {
            parts: vec![Content::Text(text.into())],
            by: "me".into(),
            message_id,
            answers: Some(id.into()),
        },
    ]
}

/// The end of a turn.
pub(crate) fn finished(writer: Writer, result: Option<serde_json::Value>) -> Vec<TaskEvent> {
    writer.finish(Outcome::Completed { finish: "stop".into(), result }, Default::default())
}

/// Entries of these events, each a millisecond after the one before.
pub(crate) fn log_of(task: &TaskId, events: Vec<TaskEvent>) -> Vec<Arc<Envelope>> {
    let numbered = (1..).zip(events).map(|(seq, event)| {
        Arc::new(Envelope { task: task.clone(), seq, ts_ms: seq, sub: None, event, meta: Default::default() })
    });
    numbered.collect()
}

impl Fake {
    /// With agents of these definitions.
    pub fn new(agents: impl IntoIterator<Item = serde_json::Value>) -> Self {
        let read = |agent| Arc::new(serde_json::from_value(agent).expect("an agent"));
        Self { agents: agents.into_iter().map(read).collect(), tasks: Mutex::default(), hooks: Mutex::default() }
    }

    /// Keeps a task with the log of these events, and the state that they lead to.
    pub fn keep(&self, mut record: TaskRecord, events: Vec<TaskEvent>) -> Arc<TaskRecord> {
        record.state = events.iter().fold(TaskState::Submitted, |state, event| state.after(event));
        record.changed_ms = events.len() as u64;
        let (record, log) = (Arc::new(record.clone()), log_of(&record.id, events));
        self.tasks.lock().insert(record.id.clone(), (record.clone(), log));
        record
    }

    /// Has more happen to a task.
    fn more(&self, id: &TaskId, more: Vec<TaskEvent>) -> Result<Arc<TaskRecord>, Error> {
        let (record, log) = self.tasks.lock().get(id).cloned().ok_or_else(|| Error::not_found("task", id))?;
        if record.state.is_terminal() {
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("task `{id}` has ended")));
        }
        let before = log.iter().map(|entry| entry.event.clone());
        Ok(self.keep((*record).clone(), before.chain(more).collect()))
    }

    fn find(&self, caller: &CallerId, id: &TaskId) -> Result<Kept, Error> {
        let found = self.tasks.lock().get(id).filter(|(record, _)| record.caller == *caller).cloned();
        found.ok_or_else(|| Error::not_found("task", id))
    }
}

/// What `echo` makes of a text.
fn turn(id: &TaskId, text: &str) -> Vec<TaskEvent> {
    let mut writer = Writer::new(id.clone(), 1);
    let mut events = Vec::new();
    match text {
        "ask" => return asks("q"),
        "reply" => {
            let result = json!([Content::Text("a message".into())]);
            let outcome = Outcome::Completed { finish: MESSAGE.into(), result: Some(result) };
            return writer.finish(outcome, Default::default());
        }
        text => text.split(' ').for_each(|word| events.extend(writer.text(word))),
    }
    events.extend(finished(writer, None));
    events
}

impl Cluster for Fake {
    fn agents(&self) -> BoxFuture<'_, Vec<Arc<AgentSpec>>> {
        async { self.agents.clone() }.boxed()
    }

    fn agent<'a>(&'a self, name: &'a AgentName) -> BoxFuture<'a, Option<Arc<AgentSpec>>> {
        async { self.agents.iter().find(|agent| agent.name == *name).cloned() }.boxed()
    }

    fn default_agent(&self) -> BoxFuture<'_, Option<Arc<AgentSpec>>> {
        async { self.agents.first().cloned() }.boxed()
    }

    fn submit(&self, task: SubmitTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, bool), Error>> {
        async move {
            let text = task.input.text();
            match text.as_str() {
                "busy" => return Err(Error::new(ErrorKind::Overloaded, "too much").hint("come again")),
                "gone" => return Err(Error::unavailable("no worker")),
                "full" => return Err(Error::new(ErrorKind::StorageFull, "the disk is full")),
                _ => {}
            }
            let id = TaskId::from(format!("new-{}", self.tasks.lock().len()));
            let context = task.context.unwrap_or_else(|| "ctx".into());
            let made = TaskRecord {
                context,
                agent: task.agent,
                caller: task.caller,
                message_id: task.message_id,
                input: Arc::new(task.input),
                ..record(id.as_str())
            };
            let events = begun().into_iter().chain(turn(&id, &text)).collect();
            self.keep(made.clone(), events);
            // A task that was made just now has done nothing.
            Ok((Arc::new(made), true))
        }
        .boxed()
    }

    fn say(&self, say: SayTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, u64), Error>> {
        async move {
            let (before, log) = self.find(&say.caller, &say.task)?;
            let text = covey_domain::task::text_of(&say.parts);
            let (mut more, answered) = (answers("q", &text, say.message_id), log.len() as u64 + 3);
            more.extend(turn(&say.task, &text));
            self.more(&say.task, more)?;
            Ok((before, answered))
        }
        .boxed()
    }

    fn task<'a>(&'a self, caller: &'a CallerId, id: &'a TaskId) -> BoxFuture<'a, Result<FoundTask, Error>> {
        async move {
            let (record, log) = self.find(caller, id)?;
            let last = Some(log.len() as u64).filter(|_| !record.state.is_terminal());
            Ok((record, last))
        }
        .boxed()
    }

    fn tasks<'a>(&'a self, caller: &'a CallerId, query: &'a TaskQuery) -> BoxFuture<'a, Result<ListedTasks, Error>> {
        let wanted = |record: &TaskRecord| {
            record.caller == *caller
                && query.agent.as_ref().is_none_or(|agent| record.agent == *agent)
                && query.state.is_none_or(|state| record.state == state)
        };
        let tasks = self.tasks.lock();
        let mut records: Vec<_> = tasks.values().map(|(record, _)| (**record).clone()).collect();
        records.retain(wanted);
        let all = records.len() as u64;
        records.truncate(query.limit as usize);
        let next = records.last().filter(|_| (records.len() as u64) < all).map(|r| (r.changed_ms, r.id.clone()));
        async move { Ok(ListedTasks { records, next, all }) }.boxed()
    }

    fn cancel<'a>(
        &'a self,
        caller: &'a CallerId,
        id: &'a TaskId,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<Arc<TaskRecord>, Error>> {
        async move {
            self.find(caller, id)?;
            let outcome = Outcome::Cancelled { by: "me".into(), reason: reason.to_owned() };
            self.more(id, vec![TaskEvent::Finished { outcome, usage: Default::default() }])
        }
        .boxed()
    }

    fn events(&self, task: TaskId, after: u64) -> BoxStream<'static, Result<Arc<Envelope>, Error>> {
        let log = self.tasks.lock().get(&task).map(|(_, log)| log.clone()).unwrap_or_default();
        let mut entries = Vec::new();
        for entry in log.into_iter().filter(|entry| entry.seq > after) {
            if matches!(&entry.event, TaskEvent::Custom { name, .. } if name == CUT) {
                entries.push(Err(Error::internal("the log is damaged").hint("look at the disk")));
                break;
            }
            entries.push(Ok(entry));
        }
        stream::iter(entries).boxed()
    }

    fn artifact<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, Error>> {
        async move { Err(Error::not_found("artifact", digest)) }.boxed()
    }

    fn artifact_body<'a>(&'a self, digest: &'a Digest, _: Range<u64>) -> BoxFuture<'a, Result<ArtifactBody, Error>> {
        async move { Err(Error::not_found("artifact", digest)) }.boxed()
    }

    fn hooks<'a>(
        &'a self,
        task: Option<&'a TaskId>,
        state: Option<HookState>,
    ) -> BoxFuture<'a, Result<Vec<Hook>, Error>> {
        let wanted = |hook: &&Hook| task.is_none_or(|t| hook.task == *t) && state.is_none_or(|s| hook.state == s);
        let found = self.hooks.lock().values().filter(wanted).cloned().collect();
        async move { Ok(found) }.boxed()
    }

    fn keep_hook<'a>(&'a self, hook: &'a Hook) -> BoxFuture<'a, Result<(), Error>> {
        self.hooks.lock().insert((hook.task.clone(), hook.id.clone()), hook.clone());
        async { Ok(()) }.boxed()
    }

    fn move_hooks<'a>(&'a self, _: &'a [Hook]) -> BoxFuture<'a, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn forget_hook<'a>(&'a self, task: &'a TaskId, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.hooks.lock().remove(&(task.clone(), id.to_owned()));
        async { Ok(()) }.boxed()
    }

    fn is_known(&self, _: &CallerId) -> bool {
        true
    }

    fn resolve(&self, _: &CallerId, text: &str) -> Result<String, Error> {
        Ok(text.to_owned())
    }

    fn infer(&self, _: InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> {
        stream::iter([Err(Error::unavailable("no model is there"))]).boxed()
    }

    fn models(&self) -> BoxFuture<'_, Vec<ModelStatus>> {
        async { Vec::new() }.boxed()
    }

    fn status(&self) -> BoxFuture<'_, ClusterStatus> {
        async { ClusterStatus::default() }.boxed()
    }
}

/// A projection for tests: each letter of the answer is a frame, with its number among all letters.
#[derive(Clone, Debug)]
pub(crate) struct Letters {
    seq: u64,
    state: TaskState,
    count: usize,
    /// All letters, unless they are not put together.
    pub text: Option<String>,
}

impl Letters {
    /// From the beginning, or behind a place.
    pub fn begin(place: Option<(u64, TaskState, usize)>) -> Self {
        match place {
            Some((seq, state, count)) => Self { seq, state, count, text: None },
            None => Self { seq: 0, state: TaskState::Submitted, count: 0, text: Some(String::new()) },
        }
    }
}

impl Projection for Letters {
    type Frame = String;
    type Bookmark = (u64, TaskState, usize);

    fn seq(&self) -> u64 {
        self.seq
    }

    fn shown(&self) -> TaskState {
        self.state
    }

    fn push(&mut self, entry: &Arc<Envelope>) -> Vec<String> {
        (self.seq, self.state) = (entry.seq, self.state.after(&entry.event));
        let TaskEvent::PartDelta { delta: Delta::Text(more), .. } = &entry.event else { return Vec::new() };
        if let Some(text) = &mut self.text {
            text.push_str(more);
        }
        let first = self.count;
        self.count += more.chars().count();
        (first..).zip(more.chars()).map(|(number, letter)| format!("{number}{letter}")).collect()
    }

    fn snapshot(&mut self) -> Option<String> {
        self.text.take()
    }

    fn bookmark(&self) -> (u64, TaskState, usize) {
        (self.seq, self.state, self.count)
    }
}

impl Fold for Letters {
    fn fold(_: Arc<TaskRecord>) -> Self {
        Self::begin(None)
    }

    fn forget(&mut self) {
        self.text = None;
    }
}
