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
    ActorId, Error, ErrorKind, caps,
    infer::{InferEvent, InferRequest},
};
use covey_proto::v1::{self, CallEnd, HostBatch, HostFrame, Payload, call_end, host_frame::Body};
use futures::{StreamExt as _, future::BoxFuture};
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

use crate::{Behavior, Invocation, Models, Sink};

/// A process that does not dial back within this time is broken.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Items between two credits to a generator in a process.
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
}

/// Looks for an interpreter: `wanted`, `$COVEY_PYTHON`, `$VIRTUAL_ENV`, `python3`. `None` when it lacks the package.
pub async fn find(wanted: Option<PathBuf>) -> Option<Python> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = wanted
        .or_else(|| env("COVEY_PYTHON"))
        .or_else(|| env("VIRTUAL_ENV").map(|v| v.join("bin/python")))
        .unwrap_or_else(|| PathBuf::from("python3"));
    let code = "import sys, covey._bridge; print(f'{sys.version_info[0]}.{sys.version_info[1]}')";
    let out = Command::new(&path).args(["-c", code]).stdin(Stdio::null()).output().await.ok()?;
    if !out.status.success() {
        tracing::info!(python = %path.display(), "this Python lacks the covey package; Python agents are not served here");
        return None;
    }
    Some(Python { path, version: String::from_utf8_lossy(&out.stdout).trim().to_owned() })
}

/// All Python processes of a worker.
pub(crate) struct Hosts {
    python: Python,
    folder: PathBuf,
    /// Processes that share actors, at most.
    shared_max: usize,
    models: Arc<Models>,
    hosts: tokio::sync::Mutex<Vec<Arc<Host>>>,
    made: AtomicU64,
    died: mpsc::UnboundedSender<Vec<ActorId>>,
}

impl Hosts {
    pub fn new(
        python: Python,
        folder: PathBuf,
        shared_max: usize,
        models: Arc<Models>,
        died: mpsc::UnboundedSender<Vec<ActorId>>,
    ) -> Self {
        Self {
            python,
            folder,
            shared_max: shared_max.max(1),
            models,
            hosts: Default::default(),
            made: AtomicU64::new(0),
            died,
        }
    }

    /// Makes an object of a class in some process.
    pub async fn start(&self, start: v1::HostStart, own_process: bool) -> Result<Arc<dyn Behavior>, Error> {
        let host = self.host(own_process).await?;
        let actor = ActorId::from(start.actor.as_str());
        host.start(start, self.python.version.as_str()).await?;
        Ok(Arc::new(PythonActor { actor, host }))
    }

    async fn host(&self, own: bool) -> Result<Arc<Host>, Error> {
        let mut hosts = self.hosts.lock().await;
        hosts.retain(|h| h.is_alive());
        let shared: Vec<_> = hosts.iter().filter(|h| !h.own).cloned().collect();
        let idlest = shared.iter().min_by_key(|h| h.actors.lock().len()).cloned();
        match idlest {
            Some(host) if !own && (shared.len() >= self.shared_max || host.actors.lock().is_empty()) => Ok(host),
            _ => {
                let host = self.spawn(own).await?;
                hosts.push(host.clone());
                Ok(host)
            }
        }
    }

    async fn spawn(&self, own: bool) -> Result<Arc<Host>, Error> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let socket = self.folder.join(format!("host-{number}.sock"));
        let failed = |what: &str, e: &dyn std::fmt::Display| Error::unavailable(format!("failed to {what}: {e}"));
        private_dir(&self.folder).map_err(|e| failed("make the socket folder", &e))?;
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(|e| failed("bind a Unix socket", &e))?;
        let mut command = Command::new(&self.python.path);
        command.args(["-m", "covey._host"]).arg(&socket).stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| failed("start Python", &e))?;
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
        let host = Arc::new(Host {
            own,
            pid: child.id().unwrap_or(0),
            frames,
            calls: Mutex::default(),
            starting: Mutex::default(),
            actors: Mutex::default(),
            blobs: Mutex::default(),
            asks: Mutex::default(),
            next_call: AtomicU64::new(1),
        });
        tokio::spawn(write_frames(write, rx));
        tokio::spawn(read_frames(host.clone(), read, child, self.models.clone(), self.died.clone()));
        tracing::info!(pid = host.pid, own, "python process started");
        Ok(host)
    }
}

fn private_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// One process.
struct Host {
    own: bool,
    pid: u32,
    frames: mpsc::UnboundedSender<HostFrame>,
    calls: Mutex<HashMap<u64, mpsc::UnboundedSender<FromHost>>>,
    starting: Mutex<HashMap<ActorId, oneshot::Sender<Result<(), Error>>>>,
    actors: Mutex<HashSet<ActorId>>,
    blobs: Mutex<HashSet<String>>,
    asks: Mutex<HashMap<u64, tokio::task::AbortHandle>>,
    next_call: AtomicU64,
}

enum FromHost {
    Item(Payload),
    End(CallEnd),
}

impl Host {
    fn is_alive(&self) -> bool {
        !self.frames.is_closed()
    }

    fn send(&self, body: Body) {
        // A closed channel is a dead process, which everyone learns from its end.
        let _ = self.frames.send(HostFrame { body: Some(body) });
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
    gone: mpsc::UnboundedSender<Vec<ActorId>>,
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
    let status = child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
    tracing::warn!(pid = host.pid, status, "python process ended");
    // Waking everyone who waits: their senders are dropped.
    host.calls.lock().clear();
    host.starting.lock().clear();
    host.asks.lock().drain().for_each(|(_, ask)| ask.abort());
    let actors: Vec<_> = host.actors.lock().drain().collect();
    let _ = gone.send(actors);
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
            if let (Some(call), Some(value)) = (host.calls.lock().get(&item.call), item.value) {
                let _ = call.send(FromHost::Item(value));
            }
        }
        Body::End(end) => {
            if let Some(call) = host.calls.lock().remove(&end.call) {
                let _ = call.send(FromHost::End(end.end.unwrap_or_default()));
            }
        }
        Body::Ask(ask) if ask.cancel => {
            if let Some(running) = host.asks.lock().remove(&ask.ask) {
                running.abort();
            }
        }
        Body::Ask(ask) => {
            let id = ask.ask;
            let running = tokio::spawn(answer(host.clone(), ask, models.clone())).abort_handle();
            host.asks.lock().insert(id, running);
        }
        Body::Log(log) => tracing::info!(pid = host.pid, level = log.level, "{}", log.text),
        _ => {}
    }
}

/// A model request of a running method.
async fn answer(host: Arc<Host>, ask: v1::HostAsk, models: Arc<Models>) {
    let id = ask.ask;
    let part = |event: Bytes, end: bool, failure: Option<Error>, vectors: Option<Payload>| {
        host.send(Body::Answer(v1::HostAnswer { ask: id, event, end, failure: failure.map(Into::into), vectors }));
    };
    let request: InferRequest = match covey_proto::from_json("the model request", &ask.request) {
        Ok(request) => request,
        Err(error) => return part(Bytes::new(), true, Some(error), None),
    };
    let mut events = models.infer(request);
    while let Some(event) = events.next().await {
        match event {
            Ok(event @ InferEvent::Vectors { .. }) => {
                part(Bytes::new(), false, None, Some(covey_proto::infer_payload(&event)))
            }
            Ok(event) => part(covey_proto::to_json(&event), false, None, None),
            Err(error) => {
                part(Bytes::new(), true, Some(error), None);
                host.asks.lock().remove(&id);
                return;
            }
        }
    }
    part(Bytes::new(), true, None, None);
    host.asks.lock().remove(&id);
}

struct PythonActor {
    actor: ActorId,
    host: Arc<Host>,
}

/// Cancels the method when the turn is dropped before its end.
struct Running<'a> {
    host: &'a Host,
    call: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.host.calls.lock().remove(&self.call).is_some() {
            self.host.send(Body::Cancel(v1::HostCancel { call: self.call }));
        }
    }
}

impl Behavior for PythonActor {
    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let call = self.host.next_call.fetch_add(1, Ordering::Relaxed);
            let (tx, mut rx) = mpsc::unbounded_channel();
            self.host.calls.lock().insert(call, tx);
            let running = Running { host: &self.host, call };
            let (task, context) = invocation.task.map_or_else(Default::default, |t| (t.task.to_string(), t.context));
            self.host.send(Body::Call(v1::HostCall {
                call,
                actor: self.actor.to_string(),
                method: invocation.method,
                args: Some(invocation.args),
                json: invocation.json,
                task,
                context,
                timeout_ms: 0,
            }));
            let mut taken = 0;
            while let Some(from) = rx.recv().await {
                match from {
                    FromHost::Item(item) => {
                        covey_proto::check_size("an item of the answer", &item)?;
                        sink.item(item).await;
                        taken += 1;
                        if taken % CREDIT_EVERY == 0 {
                            self.host.send(Body::Credit(v1::HostCredit { call, items: CREDIT_EVERY }));
                        }
                    }
                    FromHost::End(end) => {
                        drop(running);
                        return match end.result {
                            Some(call_end::Result::Value(value)) => {
                                covey_proto::check_size("the answer", &value)?;
                                Ok(Some(value))
                            }
                            Some(call_end::Result::Failure(failure)) => Err(failure.into()),
                            Some(call_end::Result::Done(_)) | None => Ok(None),
                        };
                    }
                }
            }
            Err(died(self.host.pid))
        })
    }

    fn stopped(&self) {
        self.host.actors.lock().remove(&self.actor);
        self.host.send(Body::Stop(v1::HostStop { actor: self.actor.to_string() }));
        if self.host.own {
            // Its only actor is gone; closing the channel ends the process.
            self.host.send(Body::Stop(v1::HostStop { actor: String::new() }));
        }
    }
}
