//! Python processes: user code never runs inside the worker. Many actors share a process; one that asks gets its own.
//!
//! A process is `python -m covey._host <socket>`; it dials the worker's Unix socket and speaks batches of
//! [`HostFrame`]s behind a 4-byte length. Its standard output is the user's and no channel of ours. When it dies, its
//! actors die with it and the head starts them elsewhere.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use covey_domain::{
    ActorId, Error, ErrorKind,
    agent::{PythonAgent, PythonEnv},
    caps,
    error::RUNNING,
    infer::InferRequest,
    task::{Said, TaskInput},
};
use covey_proto::v1::{
    self, CallFrame, HostBatch, HostFrame, Payload, call_frame::Body as Call, call_open, host_frame::Body,
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    sync::{mpsc, oneshot},
};

use crate::{
    Models, Outward,
    envs::{Environments, Prepared, Progress},
    memory::{self, Memory},
    output::Output,
    outward::Saver,
    turn::{Onward, Over, Sink, Turn},
};

/// A process that does not dial back within this time is broken.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Items between two credits to a generator in a process whose items go to a task's log.
const CREDIT_EVERY: u32 = caps::STREAM_WINDOW / 4;
/// A message of a process over this is not one of ours. What is too large for the cluster is refused after this.
const PROCESS_MESSAGE_MAX: u32 = 1 << 30;
/// Frames put into one batch.
const BATCH_MAX: usize = 256;

/// An interpreter that has the `covey` package.
#[derive(Clone, Debug)]
pub struct Python {
    /// The interpreter.
    pub path: PathBuf,
    /// `major.minor`.
    pub version: String,
    /// Where it finds packages: the one with `covey`, and its site folders.
    pub paths: Vec<String>,
}

/// Looks for an interpreter: `wanted`, `$COVEY_PYTHON`, `$VIRTUAL_ENV`, `python3`. `None` when it lacks the package.
pub async fn find(wanted: Option<PathBuf>) -> Option<Python> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = wanted
        .or_else(|| env("COVEY_PYTHON"))
        .or_else(|| env("VIRTUAL_ENV").map(|v| v.join("bin/python")))
        .unwrap_or_else(|| PathBuf::from("python3"));
    let code = "import os, site, sys, covey._bridge\n\
                print(f'{sys.version_info[0]}.{sys.version_info[1]}')\n\
                print(os.path.dirname(os.path.dirname(covey.__file__)))\n\
                print(*site.getsitepackages(), sep='\\n')";
    let out = Command::new(&path).args(["-c", code]).stdin(Stdio::null()).output().await.ok()?;
    if !out.status.success() {
        tracing::info!(python = %path.display(), "this Python lacks the covey package; Python agents are not served here");
        return None;
    }
    let out = String::from_utf8_lossy(&out.stdout);
    let mut lines = out.lines().map(str::to_owned);
    Some(Python { path, version: lines.next()?, paths: lines.collect() })
}

/// What the processes of a worker need.
pub(crate) struct HostsConfig {
    pub python: Python,
    /// For sockets.
    pub folder: PathBuf,
    /// For what processes print.
    pub logs: PathBuf,
    pub environments: Arc<Environments>,
    /// Variables of every process.
    pub environment: Vec<(String, String)>,
    /// Processes that share actors, at most.
    pub shared_max: usize,
    pub models: Arc<Models>,
    pub outward: Arc<dyn Outward>,
    /// Told what went with a process.
    pub died: mpsc::UnboundedSender<Dead>,
}

/// All Python processes of a worker.
pub(crate) struct Hosts {
    python: Python,
    folder: PathBuf,
    logs: PathBuf,
    environment: Vec<(String, String)>,
    environments: Arc<Environments>,
    /// Processes that share actors, at most.
    shared_max: usize,
    models: Arc<Models>,
    outward: Arc<dyn Outward>,
    hosts: tokio::sync::Mutex<Vec<Arc<Host>>>,
    /// A process that is up and has nothing, so that an actor whose process died is back at once.
    spare: Mutex<Option<Arc<Host>>>,
    made: AtomicU64,
    died: mpsc::UnboundedSender<Dead>,
}

impl Hosts {
    pub fn new(config: HostsConfig) -> Self {
        crate::output::clean(&config.logs);
        let HostsConfig { python, folder, logs, environments, environment, shared_max, models, outward, died } = config;
        Self {
            environments,
            python,
            folder,
            logs,
            environment,
            shared_max: shared_max.max(1),
            models,
            outward,
            hosts: Default::default(),
            spare: Mutex::default(),
            made: AtomicU64::new(0),
            died,
        }
    }

    /// Ends all processes at once, whatever they are doing.
    pub async fn kill_all(&self) {
        let spare = self.spare.lock().take();
        let hosts = std::mem::take(&mut *self.hosts.lock().await);
        for host in hosts.into_iter().chain(spare) {
            host.kill();
        }
    }

    /// Makes an object of a class in some process. `archive` is its working folder as a zip, where it is not unpacked yet.
    pub async fn start(
        self: &Arc<Self>,
        start: v1::HostStart,
        agent: &PythonAgent,
        archive: &[u8],
        progress: &Progress,
        saver: Saver,
    ) -> Result<Arc<PythonActor>, Error> {
        let host = self.host(agent, start.memory_bytes, archive, progress).await?;
        let actor = ActorId::from(start.actor.as_str());
        let at_once = start.concurrency.max(1) as usize;
        host.start(start, self.python.version.as_str()).await?;
        Ok(Arc::new(PythonActor { actor, host, running: Arc::default(), saver, at_once }))
    }

    async fn host(
        self: &Arc<Self>,
        agent: &PythonAgent,
        memory_bytes: u64,
        dir: &[u8],
        progress: &Progress,
    ) -> Result<Arc<Host>, Error> {
        // Who may run out of memory does so alone.
        let own = agent.own_process || memory_bytes > 0;
        // Processes of another environment are another matter; making one may take minutes and holds nobody up.
        let prepared = match agent.env.is_default() {
            true => None,
            false => Some(self.environments.prepare(&agent.env, dir, progress).await?),
        };
        let mut hosts = self.hosts.lock().await;
        hosts.retain(|h| h.is_alive());
        let alike = |h: &&Arc<Host>| !h.own.load(Ordering::Relaxed) && h.env == agent.env;
        let shared: Vec<_> = hosts.iter().filter(alike).cloned().collect();
        let idlest = shared.iter().min_by_key(|h| h.actors.lock().len()).cloned();
        match idlest {
            Some(host) if !own && (shared.len() >= self.shared_max || host.actors.lock().is_empty()) => Ok(host),
            _ => {
                let spare = self.spare.lock().take().filter(|host| prepared.is_none() && host.is_alive());
                let host = match spare {
                    Some(host) => host,
                    None => self.spawn(&agent.env, prepared).await?,
                };
                host.own.store(own, Ordering::Relaxed);
                if memory_bytes > 0 {
                    host.memory.bound(host.pid, memory_bytes);
                }
                hosts.push(host.clone());
                let hosts = self.clone();
                tokio::spawn(async move {
                    if hosts.spare.lock().as_ref().is_some_and(|spare| spare.is_alive()) {
                        return;
                    }
                    match hosts.spawn(&PythonEnv::default(), None).await {
                        Ok(host) => *hosts.spare.lock() = Some(host),
                        Err(error) => tracing::warn!(%error, "no spare Python process"),
                    }
                });
                Ok(host)
            }
        }
    }

    async fn spawn(&self, env: &PythonEnv, prepared: Option<Prepared>) -> Result<Arc<Host>, Error> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let socket = self.folder.join(format!("host-{number}.sock"));
        let failed = |what: &str, e: &dyn std::fmt::Display| Error::unavailable(format!("failed to {what}: {e}"));
        private_dir(&self.folder).map_err(|e| failed("make the socket folder", &e))?;
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(|e| failed("bind a Unix socket", &e))?;
        let python = prepared.as_ref().map_or(&self.python.path, |prepared| &prepared.python);
        let mut command = Command::new(python);
        command
            .args(["-m", "covey._host"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.envs(self.environment.iter().cloned());
        if let Some(Prepared { folder, variables, .. }) = prepared {
            command.envs(variables);
            if let Some(folder) = folder {
                command.current_dir(folder);
            }
        }
        let mut child = command.spawn().map_err(|e| failed("start Python", &e))?;
        let log = self.logs.join(format!("python-{}.log", child.id().unwrap_or(0)));
        let output = Arc::new(Output::create(log).map_err(|e| failed("make its log", &e))?);
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            let (first, second) = (output.clone(), output.clone());
            tokio::spawn(async move { first.copy(out).await });
            tokio::spawn(async move { second.copy(err).await });
        }
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(START_TIMEOUT, listener.accept()) => accepted,
            status = child.wait() => {
                let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
                return Err(failed("start Python", &format!("it ended at once ({status})")));
            }
        };
        let (stream, _) = accepted
            .map_err(|_| failed("start Python", &"it did not answer within 20 s"))?
            .map_err(|e| failed("accept", &e))?;
        let _ = std::fs::remove_file(&socket);
        let (read, write) = stream.into_split();
        let (frames, rx) = mpsc::unbounded_channel();
        let (answers, mut answered) = mpsc::unbounded_channel();
        let to_host = frames.clone();
        tokio::spawn(async move {
            while let Some(frame) = answered.recv().await {
                let _ = to_host.send(HostFrame { body: Some(Body::Back(frame)) });
            }
        });
        let host = Arc::new(Host {
            own: false.into(),
            log: output.path().to_owned(),
            env: env.clone(),
            lane: self.outward.lane(answers),
            outward: self.outward.clone(),
            pid: child.id().unwrap_or(0),
            memory: Memory::default(),
            frames,
            calls: Mutex::default(),
            ended: false.into(),
            starting: Mutex::default(),
            actors: Mutex::default(),
            blobs: Mutex::default(),
            snapshots: Mutex::default(),
            asks: Mutex::default(),
            next_call: AtomicU64::new(1),
        });
        tokio::spawn(write_frames(write, rx));
        tokio::spawn(read_frames(host.clone(), read, child, self.models.clone(), self.died.clone()));
        tracing::info!(pid = host.pid, "python process started");
        Ok(host)
    }
}

fn private_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// One process.
struct Host {
    /// For one actor alone.
    own: std::sync::atomic::AtomicBool,
    env: PythonEnv,
    /// What it prints.
    log: PathBuf,
    pid: u32,
    memory: Memory,
    frames: mpsc::UnboundedSender<HostFrame>,
    calls: Mutex<HashMap<u64, Running>>,
    /// The process is gone and its calls are ended; set while `calls` is locked.
    ended: std::sync::atomic::AtomicBool,
    starting: Mutex<HashMap<ActorId, oneshot::Sender<Result<(), Error>>>>,
    actors: Mutex<HashSet<ActorId>>,
    blobs: Mutex<HashSet<String>>,
    /// States that were asked for.
    snapshots: Mutex<HashMap<u64, oneshot::Sender<StateTold>>>,
    /// Requests of its methods to models.
    asks: Mutex<HashMap<u64, tokio::task::AbortHandle>>,
    /// Calls of its methods to other actors.
    lane: mpsc::UnboundedSender<CallFrame>,
    outward: Arc<dyn Outward>,
    next_call: AtomicU64,
}

/// What an object says of its state; `None` = it keeps none.
type StateTold = Result<Option<Payload>, Error>;

/// A call that is in the process.
struct Running {
    actor: ActorId,
    sink: Sink,
    over: Over,
    taken: u32,
    count: Arc<Count>,
    /// To keep before the end is told.
    state: Option<Payload>,
    saver: Saver,
    /// Calls that its actor runs at once.
    at_once: usize,
}

/// What went with a process.
pub(crate) struct Dead {
    pub actors: Vec<ActorId>,
    pub why: String,
}

/// Calls of one actor that are in its process.
#[derive(Default)]
struct Count {
    calls: AtomicU64,
    none: tokio::sync::Notify,
}

impl Count {
    fn down(&self) {
        if self.calls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_waiters();
        }
    }
}

impl Host {
    fn is_alive(&self) -> bool {
        !self.frames.is_closed()
    }

    /// Ends it at once. Whoever reads from it then learns that it died.
    fn kill(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid as i32).filter(|_| self.is_alive()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn send(&self, body: Body) {
        // A closed channel is a dead process, which everyone learns from its end.
        let _ = self.frames.send(HostFrame { body: Some(body) });
    }

    fn back(&self, id: u64, body: Call) {
        self.send(Body::Back(CallFrame { id, body: Some(body) }));
    }

    async fn start(&self, mut start: v1::HostStart, version: &str) -> Result<(), Error> {
        if !self.blobs.lock().insert(start.digest.clone()) {
            start.code = Bytes::new();
        }
        let actor = ActorId::from(start.actor.as_str());
        let (tx, rx) = oneshot::channel();
        self.starting.lock().insert(actor.clone(), tx);
        self.actors.lock().insert(actor.clone());
        self.send(Body::Start(start));
        let result = rx.await.unwrap_or_else(|_| Err(died(self.pid)));
        if let Err(error) = &result {
            self.actors.lock().remove(&actor);
            tracing::info!(%actor, version, %error, "a python actor did not start");
        }
        result
    }
}

fn died(pid: u32) -> Error {
    Error::new(ErrorKind::ActorDied, format!("its Python process {pid} died")).executed(None)
}

async fn write_frames(mut socket: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<HostFrame>) {
    let (mut batch, mut buffer) = (Vec::new(), Vec::new());
    while frames.recv_many(&mut batch, BATCH_MAX).await > 0 {
        buffer.clear();
        buffer.extend_from_slice(&[0; 4]);
        let message = HostBatch { frames: std::mem::take(&mut batch) };
        // Encoding into a Vec grows it; it cannot run out of room.
        let _ = message.encode(&mut buffer);
        let length = (buffer.len() - 4) as u32;
        buffer[..4].copy_from_slice(&length.to_be_bytes());
        if socket.write_all(&buffer).await.is_err() {
            return;
        }
    }
}

async fn read_frames(
    host: Arc<Host>,
    socket: OwnedReadHalf,
    mut child: Child,
    models: Arc<Models>,
    gone: mpsc::UnboundedSender<Dead>,
) {
    let mut socket = BufReader::with_capacity(64 << 10, socket);
    while let Ok(length) = socket.read_u32().await {
        if length > PROCESS_MESSAGE_MAX {
            break;
        }
        let mut body = vec![0; length as usize];
        if socket.read_exact(&mut body).await.is_err() {
            break;
        }
        let Ok(batch) = HostBatch::decode(Bytes::from(body)) else { break };
        for frame in batch.frames {
            if let Some(body) = frame.body {
                take(&host, body, &models);
            }
        }
    }
    let _ = child.start_kill();
    let status = child.wait().await;
    let ran_out = status.as_ref().ok().and_then(|status| host.memory.ran_out(status));
    let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
    let why = match ran_out {
        Some(why) => format!("its Python process {} {why}", host.pid),
        None => format!("its Python process {} ended ({status})", host.pid),
    };
    tracing::warn!(pid = host.pid, why, "python process ended");
    let mut lost: Vec<_> = {
        let mut calls = host.calls.lock();
        // What comes between this and the news of the actors' deaths is refused: nobody would answer it.
        host.ended.store(true, Ordering::Release);
        calls.drain().collect()
    };
    lost.sort_by_key(|(call, _)| *call);
    let mut running_on: HashMap<ActorId, usize> = HashMap::new();
    for (_, running) in lost {
        let before = running_on.entry(running.actor.clone()).or_default();
        *before += 1;
        // The oldest of each actor, as many as it runs at once, were running; the rest waited behind them.
        let detail = (*before <= running.at_once).then(|| RUNNING.to_owned());
        let error = Error::new(ErrorKind::ActorDied, why.clone()).executed(None);
        running.end(Err(Error { detail, ..error }));
    }
    host.starting.lock().clear();
    host.snapshots.lock().clear();
    host.asks.lock().drain().for_each(|(_, ask)| ask.abort());
    let actors: Vec<_> = host.actors.lock().drain().collect();
    let _ = gone.send(Dead { actors, why });
}

fn take(host: &Arc<Host>, body: Body, models: &Arc<Models>) {
    match body {
        Body::Started(started) => {
            let waiting = host.starting.lock().remove(started.actor.as_str());
            if let Some(waiting) = waiting {
                let _ = waiting.send(started.failure.map_or(Ok(()), |f| Err(f.into())));
            }
        }
        Body::Item(item) => {
            let mut calls = host.calls.lock();
            let Some(running) = calls.get_mut(&item.call) else { return };
            let value = item.value.unwrap_or_default();
            if let Err(error) = covey_proto::check_size("an item of the answer", &value) {
                drop(calls);
                return host.give_up(item.call, error);
            }
            running.sink.push(value);
            running.taken += 1;
            // A caller gives credit itself; a task's log takes all there is.
            if running.sink.is_task() && running.taken % CREDIT_EVERY == 0 {
                host.send(Body::Credit(v1::HostCredit { call: item.call, items: CREDIT_EVERY }));
            }
        }
        Body::Remark(told) => {
            let calls = host.calls.lock();
            let Some(running) = calls.get(&told.call) else { return };
            let size = covey_proto::check_bytes("what an agent says beside its answer", told.remark.len());
            match size.and_then(|()| covey_proto::from_json("a remark", &told.remark)) {
                Ok(remark) => running.sink.remark(remark),
                Err(error) => {
                    drop(calls);
                    host.give_up(told.call, error);
                }
            }
        }
        Body::End(end) => {
            let running = host.calls.lock().remove(&end.call);
            let Some(mut running) = running else { return };
            let state = running.state.take();
            let result = covey_proto::call_result(end.end.unwrap_or_default()).and_then(|value| {
                value.iter().try_for_each(|value| covey_proto::check_size("the answer", value))?;
                Ok(value)
            });
            match state {
                None => running.end(result),
                // The answer is given once what it did is on disk.
                Some(state) => drop(tokio::spawn(async move {
                    let saved = running.saver.save(Some(state)).await;
                    running.end(saved.and(result));
                })),
            }
        }
        Body::State(told) if told.call != 0 => {
            if let (Some(running), Some(state)) = (host.calls.lock().get_mut(&told.call), told.state) {
                running.state = Some(state);
            }
        }
        Body::State(told) => {
            let asked = host.snapshots.lock().remove(&told.number);
            if let Some(asked) = asked {
                let _ = asked.send(told.failure.map_or(Ok(told.state), |f| Err(f.into())));
            }
        }
        Body::Out(frame) => out(host, frame, models),
        Body::Verb(verb) => {
            let (host, reply) = (host.clone(), host.outward.verb(verb.name, verb.body));
            tokio::spawn(async move {
                let (body, failure) = match reply.await {
                    Ok(body) => (body, None),
                    Err(error) => (Bytes::new(), Some(error.into())),
                };
                host.send(Body::Reply(v1::HostReply { id: verb.id, body, failure }));
            });
        }
        Body::Log(log) => tracing::info!(pid = host.pid, level = log.level, "{}", log.text),
        _ => {}
    }
}

/// A call of a running method: to a model, which may be here, or to another actor.
fn out(host: &Arc<Host>, frame: CallFrame, models: &Arc<Models>) {
    let id = frame.id;
    match &frame.body {
        Some(Call::Open(open)) if matches!(open.target, Some(call_open::Target::Model(_))) => {
            let request = covey_proto::from_json("the model request", &open.args.clone().unwrap_or_default().body);
            let span = inference(&request, &open.traceparent);
            let running = tokio::spawn(think(host.clone(), id, request, models.clone(), span)).abort_handle();
            host.asks.lock().insert(id, running);
        }
        Some(Call::Cancel(_)) if host.asks.lock().contains_key(&id) => {
            if let Some(running) = host.asks.lock().remove(&id) {
                running.abort();
            }
            let error = Error::new(ErrorKind::Cancelled, "cancelled");
            host.back(id, Call::End(covey_proto::failure(error)));
        }
        _ => drop(host.lane.send(frame)),
    }
}

fn inference(request: &Result<InferRequest, Error>, parent: &str) -> covey_trace::Span {
    let model = request.as_ref().map_or("", |request| request.model.as_str());
    crate::models::span(model, parent)
}

/// A model's answer to a running method.
async fn think(
    host: Arc<Host>,
    id: u64,
    request: Result<InferRequest, Error>,
    models: Arc<Models>,
    mut span: covey_trace::Span,
) {
    let result = async {
        let mut events = models.infer(request?);
        while let Some(event) = events.next().await {
            let event = event?;
            crate::models::count(&mut span, &event);
            host.back(id, Call::Item(covey_proto::infer_payload(&event)));
        }
        Ok(None)
    };
    let result = result.await.inspect_err(|error| span.fail(error));
    drop(span);
    let end = covey_proto::call_end(result);
    if host.asks.lock().remove(&id).is_some() {
        host.back(id, Call::End(end));
    }
}

/// An object in a process.
pub(crate) struct PythonActor {
    actor: ActorId,
    host: Arc<Host>,
    running: Arc<Count>,
    saver: Saver,
    at_once: usize,
}

impl Running {
    fn end(self, result: Result<Option<Payload>, Error>) {
        drop(self.over);
        self.count.down();
        self.sink.end(result);
    }
}

impl Host {
    /// Answers a call that its method may go on with; the method is told to stop.
    fn give_up(&self, call: u64, error: Error) {
        let running = self.calls.lock().remove(&call);
        if let Some(running) = running {
            self.send(Body::Cancel(v1::HostCancel { call }));
            running.end(Err(error));
        }
    }
}

impl Onward for Host {
    fn cancel(&self, call: u64) {
        self.give_up(call, Error::new(ErrorKind::Cancelled, "cancelled").executed(None));
    }

    fn credit(&self, call: u64, items: u32) {
        self.send(Body::Credit(v1::HostCredit { call, items }));
    }

    fn say(&self, call: u64, said: &Said) {
        self.send(Body::Say(v1::HostSay { call, said: covey_proto::to_json(said) }));
    }
}

impl PythonActor {
    /// Hands a turn to the process, which keeps to the actor's order and concurrency.
    pub fn accept(&self, turn: Turn) {
        let Turn { invocation, sink, control, deadline, over } = turn;
        if self.running.calls.fetch_add(1, Ordering::AcqRel) >= caps::MAILBOX_DEPTH_MAX as u64 {
            self.running.down();
            drop(over);
            return sink
                .end(Err(Error::new(ErrorKind::Overloaded, "the actor's mailbox is full").executed(Some(false))));
        }
        let call = self.host.next_call.fetch_add(1, Ordering::Relaxed);
        let traceparent = sink.traceparent();
        let running = Running {
            actor: self.actor.clone(),
            sink,
            over,
            taken: 0,
            count: self.running.clone(),
            state: None,
            saver: self.saver.clone(),
            at_once: self.at_once,
        };
        let mut calls = self.host.calls.lock();
        if self.host.ended.load(Ordering::Acquire) {
            drop(calls);
            return running.end(Err(Error::new(ErrorKind::ActorDied, "its process has ended").executed(Some(false))));
        }
        calls.insert(call, running);
        drop(calls);
        let mut about = v1::HostCall {
            call,
            actor: self.actor.to_string(),
            method: invocation.method,
            args: Some(invocation.args),
            json: invocation.json,
            chain: invocation.chain,
            traceparent,
            timeout_ms: deadline.map_or(0, |at| at.duration_since(tokio::time::Instant::now()).as_millis() as u64),
            ..v1::HostCall::default()
        };
        if let Some(task) = invocation.task {
            let TaskInput { history, sampling, .. } = &task.input;
            if !history.is_empty() {
                about.history = covey_proto::to_json(history);
            }
            if !sampling.is_empty() {
                about.sampling = covey_proto::to_json(sampling);
            }
            (about.task, about.context) = (task.task.to_string(), task.context);
            (about.model, about.message_id) = (task.model, task.message_id);
        }
        self.host.send(Body::Call(about));
        control.go_on(self.host.clone(), call);
        // Cancelled, or the process died, before the two lines above could be seen by whoever does that.
        if control.token.is_cancelled() {
            self.host.cancel(call);
        } else if !self.host.is_alive() {
            self.host.give_up(call, died(self.host.pid));
        }
        if let Some(at) = deadline {
            let host = Arc::downgrade(&self.host);
            tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                if let Some(host) = host.upgrade() {
                    let text = "the time for this call ran out";
                    host.give_up(call, Error::new(ErrorKind::DeadlineExceeded, text).executed(None));
                }
            });
        }
    }

    /// Its process, what that uses, and its bound.
    pub fn usage(&self) -> (u32, u64, u64) {
        (self.host.pid, memory::resident(self.host.pid).unwrap_or(0), self.host.memory.limit())
    }

    /// Process id and log of the process it is in.
    pub fn process(&self) -> (u32, PathBuf) {
        (self.host.pid, self.host.log.clone())
    }

    pub fn is_idle(&self) -> bool {
        self.running.calls.load(Ordering::Acquire) == 0
    }

    /// What `__snapshot__` of the object gives; `None` when it has none.
    pub async fn snapshot(&self) -> Result<Option<Payload>, Error> {
        let number = self.host.next_call.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        self.host.snapshots.lock().insert(number, tx);
        self.host.send(Body::Snapshot(v1::HostSnapshot { actor: self.actor.to_string(), number }));
        if !self.host.is_alive() {
            self.host.snapshots.lock().remove(&number);
        }
        rx.await.unwrap_or_else(|_| Err(died(self.host.pid)))
    }

    /// Waits until no call is in the process.
    pub async fn drained(&self) {
        loop {
            let none = self.running.none.notified();
            if self.running.calls.load(Ordering::Acquire) == 0 {
                return;
            }
            none.await;
        }
    }

    /// The actor is over; what it was doing is not finished.
    pub fn stopped(&self) {
        self.host.actors.lock().remove(&self.actor);
        self.host.send(Body::Stop(v1::HostStop { actor: self.actor.to_string() }));
        let lost: Vec<_> = {
            let mut calls = self.host.calls.lock();
            let ours: Vec<_> = calls.iter().filter(|(_, r)| r.actor == self.actor).map(|(id, _)| *id).collect();
            ours.iter().filter_map(|id| calls.remove(id)).collect()
        };
        for running in lost {
            let text = "the actor was stopped before it answered";
            running.end(Err(Error::new(ErrorKind::ActorDied, text).executed(None)));
        }
        if self.host.own.load(Ordering::Relaxed) {
            // Its only actor is gone; closing the channel ends the process.
            self.host.send(Body::Stop(v1::HostStop { actor: String::new() }));
        }
    }
}
