//! The gateway in front of a cluster that answers at once: tasks are in memory and end as soon as they are asked for.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::Response};
use covey_domain::{
    AgentName, AgentSpec, CallerId, Digest, Envelope, Error, ErrorKind, Hook, HookState, TaskEvent, TaskId, TaskRecord,
    TaskState,
    event::{Outcome, Phase},
    infer::{InferEvent, InferRequest},
    log::Writer,
    status::{ClusterStatus, ModelStatus},
};
use covey_gateway::{ArtifactBody, Caller, Cluster, FoundTask, ListedTasks, SayTask, Settings, Signer, SubmitTask, TaskQuery};
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

/// Tasks that are remembered.
const TASKS_MAX: usize = 1_000;

type Log = Vec<Arc<Envelope>>;

struct Desk {
    agent: Arc<AgentSpec>,
    tasks: Mutex<HashMap<TaskId, (Arc<TaskRecord>, Log)>>,
    hooks: Mutex<HashMap<(TaskId, String), Hook>>,
    made: AtomicU64,
}

fn log(record: &TaskRecord) -> Log {
    let mut events = vec![
        TaskEvent::Started {
            agent: record.agent.clone(),
            context: record.context.clone(),
            skill: record.skill.clone(),
            model: None,
            protocol: record.protocol.clone(),
            parent: None,
            resumes: Vec::new(),
        },
        TaskEvent::Status { state: Phase::Working, message: None },
    ];
    let mut writer = Writer::new(record.id.clone(), 1);
    for content in &record.input.content {
        events.extend(writer.content(content.clone()));
        events.push(TaskEvent::ArtifactChunk {
            artifact: format!("{}-copy", record.id).into(),
            name: None,
            parts: vec![content.clone()],
            append: true,
            last: false,
        });
    }
    events.extend(writer.finish(Outcome::Completed { finish: "stop".into(), result: None }, Default::default()));
    let numbered = (1..).zip(events).map(|(seq, event)| {
        Arc::new(Envelope { task: record.id.clone(), seq, ts_ms: seq, sub: None, event, meta: Default::default() })
    });
    numbered.collect()
}

impl Cluster for Desk {
    fn agents(&self) -> BoxFuture<'_, Vec<Arc<AgentSpec>>> {
        async { vec![self.agent.clone()] }.boxed()
    }

    fn agent<'a>(&'a self, name: &'a AgentName) -> BoxFuture<'a, Option<Arc<AgentSpec>>> {
        async { Some(self.agent.clone()).filter(|agent| agent.name == *name) }.boxed()
    }

    fn default_agent(&self) -> BoxFuture<'_, Option<Arc<AgentSpec>>> {
        async { Some(self.agent.clone()) }.boxed()
    }

    fn submit(&self, task: SubmitTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, bool), Error>> {
        async move {
            self.agent.skill(task.skill.as_deref())?;
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            let record = Arc::new(TaskRecord {
                id: format!("task-{}", number % TASKS_MAX as u64).into(),
                context: task.context.unwrap_or_else(|| "ctx".into()),
                agent: task.agent,
                skill: "run".into(),
                caller: task.caller,
                message_id: task.message_id,
                model: task.model,
                protocol: task.protocol.into(),
                input: Arc::new(task.input),
                state: TaskState::Completed,
                created_ms: number,
                changed_ms: number,
                timeout_ms: None,
                expires_ms: None,
                attempt: 1,
            });
            self.tasks.lock().insert(record.id.clone(), (record.clone(), log(&record)));
            Ok((record, true))
        }
        .boxed()
    }

    fn say(&self, say: SayTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, u64), Error>> {
        async move {
            self.task(&say.caller, &say.task).await?;
            Err(Error::new(ErrorKind::FailedPrecondition, "it has ended"))
        }
        .boxed()
    }

    fn task<'a>(&'a self, _: &'a CallerId, id: &'a TaskId) -> BoxFuture<'a, Result<FoundTask, Error>> {
        let found = self.tasks.lock().get(id).map(|(record, _)| (record.clone(), None));
        async move { found.ok_or_else(|| Error::not_found("task", id)) }.boxed()
    }

    fn tasks<'a>(
        &'a self,
        _: &'a CallerId,
        query: &'a TaskQuery,
    ) -> BoxFuture<'a, Result<ListedTasks, Error>> {
        let tasks = self.tasks.lock();
        let records = tasks.values().take(query.limit as usize).map(|(record, _)| (**record).clone()).collect();
        let all = tasks.len() as u64;
        async move { Ok(ListedTasks { records, next: None, all }) }.boxed()
    }

    fn cancel<'a>(
        &'a self,
        _: &'a CallerId,
        id: &'a TaskId,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Arc<TaskRecord>, Error>> {
        async move { Err(Error::new(ErrorKind::FailedPrecondition, format!("{id} has ended"))) }.boxed()
    }

    fn events(&self, task: TaskId, after: u64) -> BoxStream<'static, Result<Arc<Envelope>, Error>> {
        let log = self.tasks.lock().get(&task).map(|(_, log)| log.clone()).unwrap_or_default();
        stream::iter(log.into_iter().filter(move |entry| entry.seq > after).map(Ok)).boxed()
    }

    fn artifact<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, Error>> {
        async move { Err(Error::not_found("artifact", digest)) }.boxed()
    }

    fn artifact_body<'a>(
        &'a self,
        digest: &'a Digest,
        _: Range<u64>,
    ) -> BoxFuture<'a, Result<ArtifactBody, Error>> {
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
        stream::empty().boxed()
    }

    fn models(&self) -> BoxFuture<'_, Vec<ModelStatus>> {
        async { Vec::new() }.boxed()
    }

    fn status(&self) -> BoxFuture<'_, ClusterStatus> {
        async { ClusterStatus::default() }.boxed()
    }
}

fn desk() -> &'static (Runtime, Router) {
    static DESK: OnceLock<(Runtime, Router)> = OnceLock::new();
    DESK.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let agent = serde_json::json!({"name": "echo", "kind": {"type": "native", "implementation": "echo"},
            "skills": [{"id": "run", "streaming": true}]});
        let cluster: Arc<dyn Cluster> = Arc::new(Desk {
            agent: serde_json::from_value(agent).expect("an agent"),
            tasks: Mutex::default(),
            hooks: Mutex::default(),
            made: AtomicU64::new(0),
        });
        let settings = Settings {
            signer: Signer::new([7; 32], |bytes| bytes.iter().rev().take(64).copied().collect()),
            push_allow: Vec::new(),
            root: "http://h".into(),
            origins: Vec::new(),
            links_for: Duration::from_secs(60),
            background: runtime.handle().clone(),
        };
        let router = runtime.block_on(async {
            covey_gateway::router(cluster.clone(), &settings).merge(covey_gateway::open_router(cluster, &settings))
        });
        (runtime, router)
    })
}

/// The answer to a request, and its whole body.
pub fn ask(mut request: Request<Body>) -> (Response<()>, Vec<u8>) {
    let (runtime, router) = desk();
    request.extensions_mut().insert(Caller::of_all("me".into()));
    runtime.block_on(async {
        let answer = router.clone().oneshot(request).await.expect("a router always answers");
        let (head, body) = answer.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.expect("an answer has an end");
        (Response::from_parts(head, ()), body.to_vec())
    })
}
