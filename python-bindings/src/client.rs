//! What Python can ask of the cluster, for drivers and for actors alike.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use covey_client::{Client as RustClient, NewCall, Pools, Target, objects};
use covey_domain::{Envelope, Error, ErrorKind, Retry, TaskId};
use covey_proto::v1::{self, Payload};
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::Mutex;
use pyo3::{prelude::*, types::PyBytes};
use tokio::{
    runtime::{Handle, Runtime},
    sync::mpsc,
};

use crate::{
    backend::Backend,
    call::{Call, Slot},
    forked::Own,
    from_py, raise,
};

/// How long a wait goes before Python may look for signals.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// One way to a cluster. A driver's has a runtime of its own; an actor's goes through its worker.
#[pyclass]
pub struct Client {
    own: Own<Way>,
    address: String,
}

/// Both are gone once the client is closed.
struct Way {
    runtime: Mutex<Option<Runtime>>,
    backend: Mutex<Option<Arc<Backend>>>,
}

impl Way {
    fn new(runtime: Option<Runtime>, backend: Backend) -> Own<Self> {
        Own::new(Self { runtime: Mutex::new(runtime), backend: Mutex::new(Some(Arc::new(backend))) })
    }
}

/// Codec, body, buffers.
pub(crate) type Args = (i32, Vec<u8>, Vec<Vec<u8>>);
/// Actors and the method of each.
type Listeners = Vec<(String, String)>;
/// Actor, agent, state, spec as JSON, whether it was made now.
type Made = (String, String, String, String, bool);

impl Client {
    pub(crate) fn of(backend: Backend) -> Self {
        Self { own: Way::new(None, backend), address: String::new() }
    }

    fn store(backend: &Backend, py: Python<'_>, node: &str) -> PyResult<v1::Store> {
        let reply: v1::ListStoresReply = backend.rpc(py, "ListStores", &v1::Empty {})?;
        reply.stores.into_iter().find(|s| s.node == node).ok_or_else(|| raise(&Error::not_found("worker", node)))
    }

    fn backend(&self, py: Python<'_>) -> PyResult<Arc<Backend>> {
        self.own.here(py)?.backend.lock().clone().ok_or_else(|| {
            raise(
                &Error::unavailable("this session was shut down")
                    .hint("covey.init() or covey.connect() begins another"),
            )
        })
    }
}

fn new_actor(
    agent: String,
    session: String,
    name: String,
    get_if_exists: bool,
    init: Option<Args>,
    overrides: String,
) -> PyResult<v1::CreateActorRequest> {
    let init = init.map(|(codec, body, buffers)| from_py(codec, &body, buffers));
    if let Some(init) = &init {
        covey_proto::check_size("the constructor's argument", init).map_err(|e| raise(&e))?;
    }
    let overrides = if overrides == "{}" { String::new() } else { overrides };
    // Minted here, so that it can be sent again where the answer was lost.
    let id = covey_client::fresh_id("actor");
    let request = v1::CreateActorRequest { agent, session, name, get_if_exists, init, id, ..Default::default() };
    Ok(v1::CreateActorRequest { overrides: overrides.into(), ..request })
}

fn made(reply: v1::ActorReply) -> Made {
    let spec = String::from_utf8_lossy(&reply.spec).into_owned();
    (reply.actor, reply.agent, reply.state, spec, reply.created)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[pymethods]
impl Client {
    /// Connects; `session` names this driver. `pending` is called with what calls wait for that has no place, the reason, and
    /// the number of the calls.
    #[new]
    fn new(py: Python<'_>, address: &str, key: &str, session: &str, pending: Py<PyAny>) -> PyResult<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("covey-client")
            .build()
            .map_err(|e| raise(&Error::internal(format!("failed to start the client: {e}"))))?;
        let connected = py.detach(|| {
            runtime.block_on(async {
                covey_trace::init("covey-driver").map_err(Error::invalid)?;
                let client = RustClient::connect(address, key).await?;
                let calls = client.calls(session).await?;
                Ok((client, calls))
            })
        });
        let (client, calls) = connected.map_err(|e: Error| raise(&e))?;
        calls.on_pending(move |waits| {
            Python::attach(|py| {
                if let Err(error) = pending.call1(py, (waits.what.as_str(), waits.why.as_str(), waits.calls)) {
                    error.write_unraisable(py, None);
                }
            });
        });
        let address = client.address().to_owned();
        let backend = Backend::Driver {
            pools: Pools::new(client.clone(), calls.clone()),
            client,
            calls,
            runtime: runtime.handle().clone(),
        };
        Ok(Self { own: Way::new(Some(runtime), backend), address })
    }

    #[getter]
    fn address(&self) -> String {
        self.address.clone()
    }

    /// Times the session was lost because the head could not be reached for longer than its grace time.
    #[getter]
    fn losses(&self) -> u64 {
        match self.own.get().and_then(|own| own.backend.lock().clone()).as_deref() {
            Some(Backend::Driver { calls, .. }) => calls.losses(),
            Some(Backend::Host(_)) | None => 0,
        }
    }

    /// Gives what is to be warned of.
    fn register(&self, py: Python<'_>, spec: &str, code: &[u8]) -> PyResult<Vec<String>> {
        let request = v1::RegisterAgentRequest { spec: spec.to_owned().into(), code: code.to_vec().into() };
        let reply: v1::RegisterAgentReply = self.backend(py)?.rpc(py, "RegisterAgent", &request)?;
        Ok(reply.warnings)
    }

    /// Makes an agent elsewhere one of the cluster; its spec as JSON, with what its card says.
    fn connect_agent(&self, py: Python<'_>, spec: String, pass: String) -> PyResult<String> {
        let request = v1::ConnectAgentRequest { spec: spec.into(), pass: pass.into() };
        let reply: v1::ConnectAgentReply = self.backend(py)?.rpc(py, "ConnectAgent", &request)?;
        Ok(text(&reply.spec))
    }

    /// Keeps a blob; without a body it only asks whether it is there.
    fn put_blob(&self, py: Python<'_>, digest: String, body: &[u8]) -> PyResult<()> {
        let request = v1::PutBlobRequest { digest, body: body.to_vec().into() };
        let _: v1::Empty = self.backend(py)?.rpc(py, "PutBlob", &request)?;
        Ok(())
    }

    /// One piece of a file for the artifact store; gives the upload's name, for the next one.
    fn put_artifact(
        &self,
        py: Python<'_>,
        upload: String,
        digest: String,
        body: &[u8],
        last: bool,
    ) -> PyResult<String> {
        let request = v1::PutArtifactRequest { upload, digest, body: body.to_vec().into(), last };
        let reply: v1::PutArtifactReply = self.backend(py)?.rpc(py, "PutArtifact", &request)?;
        Ok(reply.upload)
    }

    /// Bytes of a file of the artifact store: at most so many from an offset on.
    fn get_artifact<'py>(
        &self,
        py: Python<'py>,
        digest: String,
        offset: u64,
        limit: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let request = v1::GetArtifactRequest { digest, offset, limit };
        let reply: v1::GetArtifactReply = self.backend(py)?.rpc(py, "GetArtifact", &request)?;
        Ok(PyBytes::new(py, &reply.body))
    }

    /// Specs as JSON.
    fn agents(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let reply: v1::ListAgentsReply = self.backend(py)?.rpc(py, "ListAgents", &v1::ListAgentsRequest {})?;
        Ok(reply.specs.iter().map(|spec| text(spec)).collect())
    }

    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn create_actor(
        &self,
        py: Python<'_>,
        agent: String,
        session: String,
        name: String,
        get_if_exists: bool,
        init: Option<Args>,
        overrides: String,
    ) -> PyResult<Made> {
        let request = new_actor(agent, session, name, get_if_exists, init, overrides)?;
        Ok(made(self.backend(py)?.rpc(py, "CreateActor", &request)?))
    }

    /// Actors placed all at once or not at all; each as agent, name, init, overrides, and whether it is detached.
    fn create_gang(
        &self,
        py: Python<'_>,
        session: String,
        actors: Vec<(String, String, Option<Args>, String, bool)>,
        strategy: String,
    ) -> PyResult<Vec<Made>> {
        let actors = actors.into_iter().map(|(agent, name, init, overrides, detached)| {
            let session = if detached { String::new() } else { session.clone() };
            new_actor(agent, session, name, false, init, overrides)
        });
        let actors = actors.collect::<PyResult<Vec<_>>>()?;
        let request = v1::CreateGangRequest { actors, strategy };
        let reply: v1::CreateGangReply = self.backend(py)?.rpc(py, "CreateGang", &request)?;
        Ok(reply.actors.into_iter().map(made).collect())
    }

    /// From now on each of two actors ends when the other does.
    fn link_actors(&self, py: Python<'_>, one: String, other: String) -> PyResult<()> {
        let _: v1::Empty = self.backend(py)?.rpc(py, "LinkActors", &v1::LinkActorsRequest { one, other })?;
        Ok(())
    }

    fn actor_named(&self, py: Python<'_>, name: String) -> PyResult<Made> {
        let request = v1::GetActorRequest { actor: String::new(), name };
        Ok(made(self.backend(py)?.rpc(py, "GetActor", &request)?))
    }

    fn stop_actor(&self, py: Python<'_>, actor: String, drain: bool) -> PyResult<()> {
        let backend = self.backend(py)?;
        if let (true, Backend::Driver { calls, runtime, .. }) = (drain, &*backend) {
            // What was called before is answered before.
            py.detach(|| runtime.block_on(calls.settled(&actor.as_str().into())));
        }
        let _: v1::Empty = backend.rpc(py, "StopActor", &v1::StopActorRequest { actor: actor.clone(), drain })?;
        if let Backend::Driver { calls, .. } = &*backend {
            calls.forget(&actor.into());
        }
        Ok(())
    }

    /// Gives task, context, and the capability that opens the task.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn submit(
        &self,
        py: Python<'_>,
        agent: String,
        skill: String,
        input: String,
        context: String,
        message_id: String,
        timeout_ms: u64,
        model: String,
    ) -> PyResult<(String, String, String)> {
        let input = Payload { body: input.into(), ..Payload::default() };
        covey_proto::check_task_size("the task's input", &input).map_err(|e| raise(&e))?;
        let message_id = covey_client::some_id(message_id);
        let request = v1::SubmitRequest { agent, skill, input: input.body, context, message_id, timeout_ms, model };
        let reply: v1::SubmitReply = self.backend(py)?.rpc(py, "Submit", &request)?;
        Ok((reply.task, reply.context, reply.capability))
    }

    /// A task's record as JSON, and the capability that opens it.
    fn task(&self, py: Python<'_>, id: String, capability: String) -> PyResult<(String, String)> {
        let request = v1::GetTaskRequest { task: id, capability };
        let reply: v1::TaskReply = self.backend(py)?.rpc(py, "GetTask", &request)?;
        Ok((text(&reply.record), reply.capability))
    }

    /// One page of actors as JSON, and where the next begins (empty = nowhere).
    fn actors(
        &self,
        py: Python<'_>,
        agent: String,
        state: String,
        node: String,
        after: String,
    ) -> PyResult<(Vec<String>, String)> {
        let request = v1::ListActorsRequest { agent, state, node, after, ..Default::default() };
        let reply: v1::ListActorsReply = self.backend(py)?.rpc(py, "ListActors", &request)?;
        Ok((reply.actors.iter().map(|actor| text(actor)).collect(), reply.next))
    }

    /// A page of records as JSON, newest first, from below the task `before` where there is one; and what `before` is of the next
    /// page, empty where there is none.
    fn tasks(
        &self,
        py: Python<'_>,
        agent: String,
        state: String,
        before: String,
        limit: u32,
    ) -> PyResult<(Vec<String>, String)> {
        let request = v1::ListTasksRequest { agent, state, limit, before };
        let reply: v1::ListTasksReply = self.backend(py)?.rpc(py, "ListTasks", &request)?;
        Ok((reply.records.iter().map(|record| text(record)).collect(), reply.next))
    }

    fn cancel_task(&self, py: Python<'_>, id: String, reason: String, capability: String) -> PyResult<()> {
        let request = v1::CancelTaskRequest { task: id, reason, capability };
        let _: v1::TaskReply = self.backend(py)?.rpc(py, "CancelTask", &request)?;
        Ok(())
    }

    /// A message to a task: content as JSON.
    fn say_task(
        &self,
        py: Python<'_>,
        id: String,
        parts: String,
        message_id: String,
        capability: String,
    ) -> PyResult<()> {
        let parts = Payload { body: parts.into(), ..Payload::default() };
        covey_proto::check_task_size("the message", &parts).map_err(|e| raise(&e))?;
        let message_id = covey_client::some_id(message_id);
        let request = v1::SayTaskRequest { task: id, parts: parts.body, message_id, capability };
        let _: v1::TaskReply = self.backend(py)?.rpc(py, "SayTask", &request)?;
        Ok(())
    }

    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let reply: v1::StatusReply = self.backend(py)?.rpc(py, "Status", &v1::StatusRequest {})?;
        Ok(text(&reply.status))
    }

    /// What actors of this session print, and those of none, from now on.
    fn printed(&self, py: Python<'_>, session: &str) -> PyResult<Printed> {
        let backend = self.backend(py)?;
        let Backend::Driver { client, runtime, .. } = &*backend else {
            return Err(raise(&Error::internal("what actors print is shown by drivers")));
        };
        let _inside = runtime.enter();
        Ok(Printed { batches: Own::new(Mutex::new(Some(client.printed(session)))), handle: runtime.clone() })
    }

    fn subscribe(&self, py: Python<'_>, id: &str, after: u64) -> PyResult<Subscription> {
        let backend = self.backend(py)?;
        let Backend::Driver { client, runtime, .. } = &*backend else {
            let error =
                Error::new(ErrorKind::FailedPrecondition, "the events of a task cannot be read inside an actor");
            return Err(raise(
                &error.hint("poll Task.state(), or call the agent's method instead of submitting a task"),
            ));
        };
        let events = py.detach(|| runtime.block_on(client.subscribe(&TaskId::from(id), after)));
        let events = events.map_err(|e| raise(&e))?.boxed();
        Ok(Subscription { events: Own::new(Mutex::new(Some(events))), handle: runtime.clone() })
    }

    /// Asks for events of a task above `after`, for which the head waits a while; the end is for `events_of`. `stands`: this thread is
    /// about to wait for it.
    fn read_events(
        &self,
        py: Python<'_>,
        id: String,
        after: u64,
        wait_ms: u32,
        capability: String,
        stands: bool,
    ) -> PyResult<Call> {
        let request = v1::ReadEventsRequest { task: id, after, wait_ms, capability };
        let (slot, backend) = (Arc::new(Slot::default()), self.backend(py)?);
        backend.ask(py, "ReadEvents", &request, stands, slot.clone());
        Ok(Call::new(slot, backend, 0))
    }

    /// Cancels what a pool has and stops its actors.
    fn close_pool(&self, py: Python<'_>, spec: &str) -> PyResult<()> {
        self.backend(py)?.close_pool(py, spec)
    }

    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn set_reminder(
        &self,
        py: Python<'_>,
        actor: String,
        name: String,
        after_ms: u64,
        every_ms: u64,
        method: String,
        args: Args,
    ) -> PyResult<()> {
        let args = Some(from_py(args.0, &args.1, args.2));
        let request = v1::SetReminderRequest { actor, name, after_ms, every_ms, method, args };
        let _: v1::Empty = self.backend(py)?.rpc(py, "SetReminder", &request)?;
        Ok(())
    }

    /// Has an actor's method called with whatever is published to a topic; `method` empty: no more.
    fn set_listener(&self, py: Python<'_>, topic: String, actor: String, method: String) -> PyResult<()> {
        let backend = self.backend(py)?;
        let verb = if method.is_empty() { "LeaveTopic" } else { "JoinTopic" };
        let _: v1::Empty = backend.rpc(py, verb, &v1::TopicRequest { topic: topic.clone(), actor, method })?;
        if let Backend::Driver { calls, .. } = &*backend {
            calls.forget_topic(&topic);
        }
        Ok(())
    }

    /// Topics, and actors and methods that listen to each.
    fn topics(&self, py: Python<'_>) -> PyResult<Vec<(String, Listeners)>> {
        let reply: v1::ListTopicsReply = self.backend(py)?.rpc(py, "ListTopics", &v1::Empty {})?;
        let members = |t: v1::TopicMembers| t.members.into_iter().map(|m| (m.actor, m.method)).collect();
        Ok(reply.topics.into_iter().map(|t| (t.topic.clone(), members(t))).collect())
    }

    fn forget_reminder(&self, py: Python<'_>, actor: String, name: String) -> PyResult<()> {
        let request = v1::SetReminderRequest { actor, name, ..Default::default() };
        let _: v1::Empty = self.backend(py)?.rpc(py, "ForgetReminder", &request)?;
        Ok(())
    }

    /// Node, machine and folder of the stores of objects; the one of this process first, when it has one.
    fn stores(&self, py: Python<'_>) -> PyResult<Vec<(String, bool, String)>> {
        let reply: v1::ListStoresReply = self.backend(py)?.rpc(py, "ListStores", &v1::Empty {})?;
        let here = objects::machine();
        Ok(reply.stores.into_iter().map(|s| (s.node, s.machine == here, s.folder)).collect())
    }

    /// The node that an actor is on, where this driver has called it already.
    fn node_of(&self, py: Python<'_>, actor: &str) -> PyResult<Option<String>> {
        Ok(match &*self.backend(py)? {
            Backend::Driver { calls, .. } => calls.node_of(&actor.into()).map(|node| node.to_string()),
            Backend::Host(_) => None,
        })
    }

    /// Sends the object in the file at `path` to a worker's store.
    fn put_object(&self, py: Python<'_>, node: &str, session: String, digest: String, path: PathBuf) -> PyResult<()> {
        let backend = self.backend(py)?;
        let store = Self::store(&backend, py, node)?;
        let Backend::Driver { client, runtime, .. } = &*backend else {
            return Err(raise(&Error::internal("an actor's objects go to its own worker")));
        };
        let name = v1::ObjectName { session, digest, node: String::new() };
        py.detach(|| runtime.block_on(client.put_file(&store, name, &path))).map_err(|e| raise(&e))
    }

    /// Brings an object to this machine; gives the path of its file. A driver writes it to `path`.
    fn fetch_object(
        &self,
        py: Python<'_>,
        node: String,
        session: String,
        digest: String,
        path: PathBuf,
    ) -> PyResult<PathBuf> {
        let backend = self.backend(py)?;
        match &*backend {
            Backend::Host(host) => {
                let ask = v1::ObjectName { session, digest, node };
                let found = host.verb(py, objects::FETCH_OBJECT, prost::Message::encode_to_vec(&ask).into());
                Ok(PathBuf::from(text(&found.map_err(|e| raise(&e))?)))
            }
            Backend::Driver { client, runtime, .. } => {
                let store = Self::store(&backend, py, &node)?;
                let name = v1::ObjectName { session, digest, node };
                let got = py.detach(|| runtime.block_on(client.get_file(&store, name, &path)));
                got.map_err(|e| raise(&e))?;
                Ok(path)
            }
        }
    }

    /// Opens a call: `kind` 0 on an actor, 1 on a model, 2 on a pool, 3 on a topic.
    #[expect(clippy::too_many_arguments, reason = "the fast path: positional arguments only")]
    fn start(
        &self,
        py: Python<'_>,
        kind: u8,
        target: &str,
        method: &str,
        codec: i32,
        body: &[u8],
        buffers: Vec<Vec<u8>>,
        timeout_ms: u64,
        key: &str,
        retries: u32,
        chain: &str,
        traceparent: &str,
        run_timeout_ms: u64,
        retry: Option<(Vec<String>, u64, u64)>,
    ) -> PyResult<Call> {
        let backend = self.backend(py)?;
        let pool = (kind == 2).then(|| target.to_owned());
        let target = match kind {
            1 => Target::Model(target.to_owned()),
            3 => Target::Topic(target.to_owned()),
            2 => Target::Actor("".into()),
            _ => Target::Actor(target.into()),
        };
        let args = from_py(codec, body, buffers);
        let call = NewCall {
            target,
            method: method.to_owned(),
            args,
            timeout_ms,
            key: key.to_owned(),
            retries,
            chain: chain.to_owned(),
            traceparent: traceparent.to_owned(),
            run_timeout_ms,
            retry: retry.map(|(on, backoff_ms, backoff_max_ms)| {
                Arc::new(Retry { max: retries, on, backoff_ms, backoff_max_ms })
            }),
            alone: false,
        };
        let slot = Arc::new(Slot::default());
        let id = backend.start(call, pool, slot.clone());
        Ok(Call::new(slot, backend, id))
    }

    /// Closes the connection; the head stops this driver's actors.
    fn close(&self, py: Python<'_>) {
        let Some(own) = self.own.get() else { return };
        let backend = own.backend.lock().take();
        let runtime = own.runtime.lock().take();
        if let (Some(Backend::Driver { calls, pools, .. }), Some(runtime)) = (backend.as_deref(), &runtime) {
            pools.leave();
            py.detach(|| runtime.block_on(calls.leave()));
        }
        py.detach(covey_trace::flush);
        if let Some(runtime) = runtime {
            py.detach(|| runtime.shutdown_timeout(Duration::from_millis(300)));
        }
    }
}

/// What actors print.
#[pyclass]
pub struct Printed {
    batches: Own<Mutex<Option<mpsc::Receiver<covey_client::Printed>>>>,
    handle: Handle,
}

/// A line: what its actor is called, agent, process, whether it went to standard error, whether its actor is the driver's own, text.
type Line = (String, String, u32, bool, bool, String);

#[pymethods]
impl Printed {
    /// What was printed at about the same time on one node: its name, how many lines are missing before, and the lines. `None`
    /// when nothing was within `timeout` seconds. Not to be called when the connection is closed.
    fn next(&self, py: Python<'_>, timeout: f64) -> Option<(String, u64, Vec<Line>)> {
        let wait = Duration::from_secs_f64(timeout.clamp(0.0, 60.0));
        let batch = py.detach(|| {
            let mut batches = self.batches.get()?.lock();
            let batches = batches.as_mut()?;
            self.handle.block_on(async { tokio::time::timeout(wait, batches.recv()).await }).ok().flatten()
        })?;
        let lines = batch.lines.into_iter().map(|l| (l.label, l.agent, l.pid, l.stderr, l.own, l.text));
        Some((batch.node, batch.left_out, lines.collect()))
    }

    /// Nothing is asked for any more.
    fn close(&self, py: Python<'_>) {
        let Some(batches) = self.batches.get() else { return };
        py.detach(|| batches.lock().take());
    }
}

type Events = BoxStream<'static, Result<Envelope, Error>>;

/// Events of one task.
#[pyclass]
pub struct Subscription {
    events: Own<Mutex<Option<Events>>>,
    handle: Handle,
}

#[pymethods]
impl Subscription {
    /// The next events as JSON, at least one; `None` at the end, none when `timeout` seconds were not enough.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<Py<PyBytes>>>> {
        let events = self.events.here(py)?;
        let end = timeout.map(|t| Instant::now() + Duration::from_secs_f64(t.clamp(0.0, 1e9)));
        let batch = loop {
            let slice = end.map_or(SIGNAL_CHECK, |end| end.saturating_duration_since(Instant::now()).min(SIGNAL_CHECK));
            let batch = py.detach(|| {
                let mut events = events.lock();
                let Some(stream) = events.as_mut() else { return Some(Ok(None)) };
                let next = async { tokio::time::timeout(slice, stream.ready_chunks(256).next()).await };
                match self.handle.block_on(next) {
                    Ok(Some(batch)) => Some(batch.into_iter().collect::<Result<Vec<_>, _>>().map(Some)),
                    Ok(None) => Some(Ok(None)),
                    Err(_) => None,
                }
            });
            if let Some(batch) = batch {
                break batch;
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(Some(Vec::new()));
            }
            py.check_signals()?;
        };
        let batch = batch.map_err(|e: Error| raise(&e))?;
        Ok(batch.map(|events| events.iter().map(|e| PyBytes::new(py, &covey_proto::to_json(e)).unbind()).collect()))
    }
}

/// Events as JSON, and whether there will be no more.
#[pyfunction]
pub fn events_of(py: Python<'_>, batch: &[u8]) -> PyResult<(Vec<Py<PyBytes>>, bool)> {
    let batch: v1::EventBatch = prost::Message::decode(batch)
        .map_err(|e| raise(&Error::internal(format!("failed to read the events of a task: {e}"))))?;
    Ok((batch.envelopes.iter().map(|event| PyBytes::new(py, event).unbind()).collect(), batch.ended))
}
