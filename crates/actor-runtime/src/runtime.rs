//! Starts and stops actors, brings calls and tasks to their mailboxes, and remembers what runs.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use covey_domain::{
    ActorId, AgentKind, AgentSpec, Epoch, Error, ErrorKind, TaskId, agent::PythonCode, caps, infer::InferRequest,
    task::TaskInput,
};
use covey_proto::{
    from_json, infer_payload,
    v1::{self, CallFrame, CallOpen, Codec, Payload, call_frame::Body, call_open::Target},
};
use futures::StreamExt as _;
use kameo::{
    Actor,
    actor::{ActorRef, Spawn as _},
    mailbox,
    message::{Context, Message},
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    Behavior, Invocation, Models, Python, Registry,
    behavior::TaskTurn,
    llm::Llm,
    python::Hosts,
    turn::{Over, Sink, Turn, window},
};

/// What happens on this worker, in order.
#[derive(Debug)]
pub enum Report {
    /// An actor's state changed.
    Actor(v1::ActorReport),
    /// A task's log grew; must reach the head's disk.
    Events {
        /// Which task.
        task: TaskId,
        /// Which attempt.
        attempt: u32,
        /// In order.
        events: Vec<covey_domain::TaskEvent>,
    },
    /// A frame of a call.
    Call(CallFrame),
}

/// What a runtime needs.
pub struct RuntimeConfig {
    /// Native agents.
    pub registry: Registry,
    /// Models.
    pub models: Arc<Models>,
    /// Interpreter; `None` = Python agents are refused.
    pub python: Option<Python>,
    /// Folder for sockets.
    pub folder: PathBuf,
    /// Python processes that share actors, at most.
    pub python_processes: usize,
}

/// What lives here.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Actors.
    pub actors: Vec<v1::ActorReport>,
    /// Tasks that run: task, attempt, actor.
    pub tasks: Vec<(TaskId, u32, ActorId)>,
}

/// The actors of one worker.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    models: Arc<Models>,
    hosts: Option<Hosts>,
    reports: mpsc::UnboundedSender<Report>,
    actors: Mutex<HashMap<ActorId, Cell>>,
    calls: Mutex<HashMap<u64, Running>>,
    tasks: Mutex<HashMap<(TaskId, u32), (ActorId, CancellationToken)>>,
    blobs: Mutex<HashMap<String, bytes::Bytes>>,
    /// Actors on their way up; `true` once somebody asked them to stop.
    starting: Mutex<HashMap<ActorId, bool>>,
}

struct Cell {
    epoch: Epoch,
    agent: String,
    owner: String,
    mailbox: ActorRef<LiveActor>,
    behavior: Arc<dyn Behavior>,
    timeout_ms: Option<u64>,
}

struct Running {
    cancel: CancellationToken,
    credits: Arc<Semaphore>,
}

/// The kameo actor: a mailbox in front of a behavior.
#[derive(Actor)]
struct LiveActor {
    behavior: Arc<dyn Behavior>,
    turns: Arc<Semaphore>,
    concurrency: u32,
}

impl Message<Turn> for LiveActor {
    type Reply = ();

    async fn handle(&mut self, turn: Turn, _: &mut Context<Self, Self::Reply>) {
        if self.concurrency <= 1 {
            run(&*self.behavior, turn).await;
            return;
        }
        let Ok(permit) = self.turns.clone().acquire_owned().await else { return };
        let behavior = self.behavior.clone();
        tokio::spawn(async move {
            run(&*behavior, turn).await;
            drop(permit);
        });
    }
}

async fn run(behavior: &dyn Behavior, turn: Turn) {
    let Turn { invocation, sink, cancel, deadline, over } = turn;
    let late = async {
        match deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "cancelled").executed(None)),
        () = late => Err(Error::new(ErrorKind::DeadlineExceeded, "the time for this call ran out").executed(None)),
        result = behavior.turn(invocation, &sink) => result,
    };
    // The turn is over before its answer is seen, so that a caller who has it finds the actor free.
    drop(over);
    sink.end(result);
}

impl Runtime {
    /// A runtime without actors; what happens in it arrives at `reports`.
    pub fn new(config: RuntimeConfig, reports: mpsc::UnboundedSender<Report>) -> Self {
        let (died, mut dead) = mpsc::unbounded_channel::<Vec<ActorId>>();
        let models = config.models.clone();
        let hosts = config.python.map(|p| Hosts::new(p, config.folder, config.python_processes, models, died));
        let inner = Arc::new(Inner {
            registry: config.registry,
            models: config.models,
            hosts,
            reports,
            actors: Mutex::default(),
            calls: Mutex::default(),
            tasks: Mutex::default(),
            blobs: Mutex::default(),
            starting: Mutex::default(),
        });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            while let Some(actors) = dead.recv().await {
                let Some(inner) = weak.upgrade() else { return };
                for actor in actors {
                    inner.lost(&actor, "its Python process died");
                }
            }
        });
        Self { inner }
    }

    /// What lives here now.
    pub fn snapshot(&self) -> Snapshot {
        let actors = self.inner.actors.lock();
        let tasks = self.inner.tasks.lock();
        Snapshot {
            actors: actors.iter().map(|(id, cell)| cell.report(id, v1::actor_report::State::Live)).collect(),
            tasks: tasks.iter().map(|((task, attempt), (actor, _))| (task.clone(), *attempt, actor.clone())).collect(),
        }
    }

    /// Starts an actor and reports how that went. An older activation of the same actor ends first.
    pub async fn start(&self, start: v1::StartActor) {
        let id = ActorId::from(start.actor.as_str());
        let epoch = Epoch(start.epoch);
        self.end(&id, None, false).await;
        self.inner.starting.lock().insert(id.clone(), false);
        let built = self.build(&start).await;
        let unwanted = self.inner.starting.lock().remove(&id).unwrap_or(false);
        match built {
            Ok((_, behavior)) if unwanted => behavior.stopped(),
            Ok((spec, behavior)) => self.go_live(id, epoch, start.owner, &spec, behavior),
            Err(error) => {
                let retryable = matches!(error.kind, ErrorKind::ActorDied | ErrorKind::Unavailable);
                self.inner.report(v1::ActorReport {
                    actor: start.actor,
                    epoch: start.epoch,
                    state: v1::actor_report::State::Died.into(),
                    failure: Some(error.into()),
                    retryable,
                    agent: String::new(),
                    owner: start.owner,
                });
            }
        }
    }

    async fn build(&self, start: &v1::StartActor) -> Result<(AgentSpec, Arc<dyn Behavior>), Error> {
        let spec: AgentSpec = from_json("the agent", &start.spec)?;
        let behavior: Arc<dyn Behavior> = match &spec.kind {
            AgentKind::Native { implementation } => self.inner.registry.make(implementation, start.init.clone())?,
            AgentKind::Llm(agent) => Arc::new(Llm {
                agent: agent.clone(),
                model: spec.model.clone().unwrap_or_else(|| "tiny".into()),
                models: self.inner.models.clone(),
            }),
            AgentKind::Python(python) => {
                let hosts = self.inner.hosts.as_ref().ok_or_else(|| {
                    Error::new(ErrorKind::FailedPrecondition, "this worker has no Python with the covey package")
                })?;
                let (digest, class_name) = match &python.code {
                    PythonCode::Pickle { digest } => (digest, String::new()),
                    PythonCode::Source { digest, class } => (digest, class.clone()),
                };
                let code = {
                    let mut blobs = self.inner.blobs.lock();
                    if !start.code.is_empty() {
                        blobs.insert(digest.to_string(), start.code.clone());
                    }
                    blobs.get(digest.as_str()).cloned()
                };
                let code = code
                    .ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, format!("code `{digest}` is not here")))?;
                let host_start = v1::HostStart {
                    actor: start.actor.clone(),
                    agent: spec.name.to_string(),
                    digest: digest.to_string(),
                    code,
                    class_name,
                    init: start.init.clone(),
                    concurrency: spec.concurrency,
                    model: spec.model.as_ref().map(ToString::to_string).unwrap_or_default(),
                };
                hosts.start(host_start, python.own_process).await?
            }
        };
        Ok((spec, behavior))
    }

    fn go_live(&self, id: ActorId, epoch: Epoch, owner: String, spec: &AgentSpec, behavior: Arc<dyn Behavior>) {
        let live = LiveActor {
            behavior: behavior.clone(),
            turns: Arc::new(Semaphore::new(spec.concurrency as usize)),
            concurrency: spec.concurrency,
        };
        let mailbox = LiveActor::spawn_with_mailbox(live, mailbox::bounded(caps::MAILBOX_DEPTH_MAX));
        let cell = Cell {
            epoch,
            agent: spec.name.to_string(),
            owner,
            mailbox: mailbox.clone(),
            behavior,
            timeout_ms: spec.timeout_ms,
        };
        let report = cell.report(&id, v1::actor_report::State::Live);
        self.inner.actors.lock().insert(id.clone(), cell);
        self.inner.report(report);
        // A panic in native code stops the kameo actor; the head hears of it and starts another.
        let weak = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            mailbox.wait_for_shutdown().await;
            if let Some(inner) = weak.upgrade() {
                let ours = inner.actors.lock().get(&id).is_some_and(|c| c.epoch == epoch && !c.mailbox.is_alive());
                if ours {
                    inner.lost(&id, "it panicked");
                }
            }
        });
    }

    /// Stops an actor as asked.
    pub async fn stop(&self, stop: v1::StopActor) {
        let id = ActorId::from(stop.actor.as_str());
        if let Some(unwanted) = self.inner.starting.lock().get_mut(&id) {
            *unwanted = true;
        }
        self.end(&id, Some(Epoch(stop.epoch)), stop.drain).await;
    }

    async fn end(&self, id: &ActorId, epoch: Option<Epoch>, drain: bool) {
        let cell = {
            let mut actors = self.inner.actors.lock();
            match actors.get(id) {
                Some(cell) if epoch.is_none_or(|e| e == cell.epoch) => actors.remove(id),
                _ => None,
            }
        };
        let Some(cell) = cell else { return };
        if drain {
            let _ = cell.mailbox.stop_gracefully().await;
            cell.mailbox.wait_for_shutdown().await;
        } else {
            cell.mailbox.kill();
            let running: Vec<_> =
                self.inner.tasks.lock().values().filter(|(a, _)| a == id).map(|(_, c)| c.clone()).collect();
            running.iter().for_each(CancellationToken::cancel);
        }
        cell.behavior.stopped();
    }

    /// The lease ran out: this worker may not finish anything any more.
    pub async fn stop_everything(&self) {
        let all: Vec<_> = self.inner.actors.lock().keys().cloned().collect();
        for id in all {
            self.end(&id, None, false).await;
        }
        self.inner.calls.lock().values().for_each(|c| c.cancel.cancel());
    }

    /// Runs a task on one of the actors here.
    pub fn run_task(&self, run: v1::RunTask) {
        let (task, attempt, actor) = (TaskId::from(run.task.as_str()), run.attempt, ActorId::from(run.actor.as_str()));
        let sink = Sink::task(self.inner.reports.clone(), task.clone(), attempt);
        let input: TaskInput = match from_json("the task's input", &run.input) {
            Ok(input) => input,
            Err(error) => return sink.end(Err(error)),
        };
        let args = match &input.call {
            Some(call) => decode_call(call),
            None => Ok(Payload {
                codec: Codec::Content.into(),
                body: covey_proto::to_json(&input.content),
                buffers: vec![],
            }),
        };
        let args = match args {
            Ok(args) => args,
            Err(error) => return sink.end(Err(error)),
        };
        let cancel = CancellationToken::new();
        let key = (task.clone(), attempt);
        self.inner.tasks.lock().insert(key.clone(), (actor.clone(), cancel.clone()));
        let inner = self.inner.clone();
        let turn = Turn {
            invocation: Invocation {
                method: run.skill,
                args,
                json: true,
                task: Some(TaskTurn { task, context: run.context, input, model: run.model }),
            },
            sink,
            cancel,
            deadline: deadline(run.timeout_ms, None),
            over: Over(Some(Box::new(move || {
                inner.tasks.lock().remove(&key);
            }))),
        };
        self.inner.deliver(&actor, turn);
    }

    /// Stops a task that runs here.
    pub fn cancel_task(&self, cancel: &v1::CancelTask) {
        let key = (TaskId::from(cancel.task.as_str()), cancel.attempt);
        if let Some((_, token)) = self.inner.tasks.lock().get(&key) {
            token.cancel();
        }
    }

    /// A frame of a call, from the head or from a caller.
    pub fn call(&self, frame: CallFrame) {
        match frame.body {
            Some(Body::Open(open)) => self.open(frame.id, open),
            Some(Body::Cancel(_)) => {
                if let Some(call) = self.inner.calls.lock().get(&frame.id) {
                    call.cancel.cancel();
                }
            }
            Some(Body::Credit(items)) => {
                if let Some(call) = self.inner.calls.lock().get(&frame.id) {
                    call.credits.add_permits((items as usize).min(caps::STREAM_WINDOW as usize));
                }
            }
            Some(Body::Item(_) | Body::End(_)) | None => {}
        }
    }

    /// Every link is new to the callers behind it: what they had open is cancelled.
    pub fn cancel_calls(&self) {
        self.inner.calls.lock().values().for_each(|c| c.cancel.cancel());
    }

    fn open(&self, id: u64, open: CallOpen) {
        let (cancel, credits) = (CancellationToken::new(), window());
        let running = Running { cancel: cancel.clone(), credits: credits.clone() };
        self.inner.calls.lock().insert(id, running);
        let inner = self.inner.clone();
        let over = Over(Some(Box::new(move || {
            inner.calls.lock().remove(&id);
        })));
        let sink = Sink::call(self.inner.reports.clone(), id, credits);
        match open.target {
            Some(Target::Actor(actor)) => {
                let actor = ActorId::from(actor);
                let limit = self.inner.actors.lock().get(&actor).and_then(|c| c.timeout_ms);
                let args = open.args.unwrap_or_default();
                let json = args.codec() != Codec::Pickle;
                let turn = Turn {
                    invocation: Invocation { method: open.method, args, json, task: None },
                    sink,
                    cancel,
                    deadline: deadline(open.timeout_ms, limit),
                    over,
                };
                self.inner.deliver(&actor, turn);
            }
            Some(Target::Model(_)) => {
                let models = self.inner.models.clone();
                let deadline = deadline(open.timeout_ms, None);
                let invocation =
                    Invocation { method: open.method, args: open.args.unwrap_or_default(), json: true, task: None };
                tokio::spawn(async move {
                    run(&ModelCall(models), Turn { invocation, sink, cancel, deadline, over }).await;
                });
            }
            None => sink.end(Err(Error::invalid("a call without a target"))),
        }
    }
}

/// A request to a model, in the shape of a turn.
struct ModelCall(Arc<Models>);

impl Behavior for ModelCall {
    fn turn<'a>(
        &'a self,
        invocation: Invocation,
        sink: &'a Sink,
    ) -> futures::future::BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let request: InferRequest = from_json("the model request", &invocation.args.body)?;
            let mut events = self.0.infer_here(request);
            while let Some(event) = events.next().await {
                sink.item(infer_payload(&event?)).await;
            }
            Ok(None)
        })
    }
}

impl Inner {
    fn report(&self, report: v1::ActorReport) {
        // The other end is the worker's own loop; it is gone only when the process is.
        let _ = self.reports.send(Report::Actor(report));
    }

    fn deliver(&self, actor: &ActorId, turn: Turn) {
        let mailbox = self.actors.lock().get(actor).map(|c| c.mailbox.clone());
        let Some(mailbox) = mailbox else {
            let error = Error::new(ErrorKind::ActorDied, format!("actor `{actor}` is not on this worker"))
                .executed(Some(false));
            drop(turn.over);
            return turn.sink.end(Err(error));
        };
        if let Err(error) = mailbox.tell(turn).try_send() {
            let refused = match &error {
                kameo::error::SendError::MailboxFull(_) => {
                    Error::new(ErrorKind::Overloaded, "the actor's mailbox is full")
                }
                _ => Error::new(ErrorKind::ActorDied, "the actor has stopped"),
            };
            if let Some(turn) = error.msg() {
                drop(turn.over);
                turn.sink.end(Err(refused.executed(Some(false))));
            }
        }
    }

    fn lost(&self, id: &ActorId, why: &str) {
        let Some(cell) = self.actors.lock().remove(id) else { return };
        cell.mailbox.kill();
        let mut report = cell.report(id, v1::actor_report::State::Died);
        report.failure = Some(Error::new(ErrorKind::ActorDied, format!("the actor died: {why}")).executed(None).into());
        report.retryable = true;
        self.report(report);
    }
}

impl Cell {
    fn report(&self, id: &ActorId, state: v1::actor_report::State) -> v1::ActorReport {
        v1::ActorReport {
            actor: id.to_string(),
            epoch: self.epoch.0,
            state: state.into(),
            failure: None,
            retryable: false,
            agent: self.agent.clone(),
            owner: self.owner.clone(),
        }
    }
}

fn deadline(asked_ms: u64, limit_ms: Option<u64>) -> Option<tokio::time::Instant> {
    let ms = match (asked_ms, limit_ms) {
        (0, None) => return None,
        (0, Some(limit)) => limit,
        (asked, None) => asked,
        (asked, Some(limit)) => asked.min(limit),
    };
    Some(tokio::time::Instant::now() + Duration::from_millis(ms))
}

/// The arguments a native client put into a task: a payload in base64.
fn decode_call(call: &str) -> Result<Payload, Error> {
    use base64::Engine as _;
    use prost::Message as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(call)
        .map_err(|e| Error::invalid(format!("failed to read arguments: {e}")))?;
    Payload::decode(&*bytes).map_err(|e| Error::invalid(format!("failed to read arguments: {e}")))
}
