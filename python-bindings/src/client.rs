//! The Rust client for Python.

use std::{future::Future, sync::Arc, time::Duration};

use covey_client::{CallEvent, Calls, Client as RustClient, NewActor, NewTask, Target};
use covey_domain::{Envelope, Error, TaskId};
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::{Condvar, Mutex};
use pyo3::{prelude::*, types::PyBytes};
use tokio::runtime::{Handle, Runtime};

use crate::{PyFailure, PyPayload, failure, from_py, raise, to_py};

/// One connection to a head, with a runtime of its own.
#[pyclass]
pub struct Client {
    runtime: Mutex<Option<Runtime>>,
    rust: RustClient,
    calls: Mutex<Option<Calls>>,
    done: Arc<Queue>,
}

/// Answers that Python has not taken yet.
#[derive(Default)]
struct Queue {
    events: Mutex<(Vec<(u64, CallEvent)>, bool)>,
    ready: Condvar,
}

/// Call, `item` / `value` / `done` / `failed`, payload, failure.
type Completion = (u64, &'static str, Option<PyPayload>, Option<PyFailure>);

impl Client {
    fn handle(&self) -> PyResult<Handle> {
        let runtime = self.runtime.lock();
        runtime.as_ref().map(|r| r.handle().clone()).ok_or_else(|| raise(&Error::unavailable("the client is closed")))
    }

    fn wait<T: Send>(&self, py: Python<'_>, work: impl Future<Output = Result<T, Error>> + Send) -> PyResult<T> {
        let handle = self.handle()?;
        py.detach(|| handle.block_on(work)).map_err(|e| raise(&e))
    }
}

#[pymethods]
impl Client {
    /// Connects; `session` names this driver.
    #[new]
    fn new(py: Python<'_>, address: &str, key: &str, session: &str) -> PyResult<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("covey-client")
            .build()
            .map_err(|e| raise(&Error::internal(format!("failed to start the client: {e}"))))?;
        let connected = py.detach(|| {
            runtime.block_on(async {
                let rust = RustClient::connect(address, key).await?;
                let calls = rust.calls(session).await?;
                Ok((rust, calls))
            })
        });
        let (rust, calls) = connected.map_err(|e: Error| raise(&e))?;
        Ok(Self { runtime: Mutex::new(Some(runtime)), rust, calls: Mutex::new(Some(calls)), done: Arc::default() })
    }

    #[getter]
    fn address(&self) -> String {
        self.rust.address().to_owned()
    }

    fn register(&self, py: Python<'_>, spec: &str, code: &[u8]) -> PyResult<bool> {
        let spec =
            serde_json::from_str(spec).map_err(|e| raise(&Error::invalid(format!("failed to read the agent: {e}"))))?;
        let code = code.to_vec();
        self.wait(py, async move { self.rust.register(&spec, code).await })
    }

    fn agents(&self, py: Python<'_>) -> PyResult<String> {
        let agents = self.wait(py, self.rust.agents())?;
        serde_json::to_string(&agents).map_err(|e| raise(&Error::internal(e.to_string())))
    }

    /// Gives id, agent, state, spec as JSON.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn create_actor(
        &self,
        py: Python<'_>,
        agent: String,
        session: String,
        name: String,
        get_if_exists: bool,
        init: Option<(i32, Vec<u8>, Vec<Vec<u8>>)>,
        overrides: &str,
    ) -> PyResult<(String, String, String, String)> {
        let overrides = serde_json::from_str(overrides).map_err(|e| raise(&Error::invalid(e.to_string())))?;
        let init = init.map(|(codec, body, buffers)| from_py(codec, &body, buffers));
        let new = NewActor { agent, session, name, get_if_exists, init, overrides };
        let made = self.wait(py, self.rust.create_actor(new))?;
        Ok((made.actor, made.agent, made.state, String::from_utf8_lossy(&made.spec).into_owned()))
    }

    fn actor_named(&self, py: Python<'_>, name: &str) -> PyResult<(String, String, String, String)> {
        let found = self.wait(py, self.rust.actor_named(name))?;
        Ok((found.actor, found.agent, found.state, String::from_utf8_lossy(&found.spec).into_owned()))
    }

    fn stop_actor(&self, py: Python<'_>, actor: &str, drain: bool) -> PyResult<()> {
        self.wait(py, self.rust.stop_actor(actor, drain))
    }

    /// Gives task and context.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn submit(
        &self,
        py: Python<'_>,
        agent: String,
        skill: String,
        input: &str,
        context: String,
        message_id: String,
        timeout_ms: u64,
        model: String,
    ) -> PyResult<(String, String)> {
        let input = serde_json::from_str(input).map_err(|e| raise(&Error::invalid(e.to_string())))?;
        let new = NewTask { agent, skill, input, context, message_id, timeout_ms, model };
        let made = self.wait(py, self.rust.submit(new))?;
        Ok((made.task, made.context))
    }

    fn task(&self, py: Python<'_>, id: &str) -> PyResult<String> {
        let record = self.wait(py, self.rust.task(&TaskId::from(id)))?;
        serde_json::to_string(&record).map_err(|e| raise(&Error::internal(e.to_string())))
    }

    fn tasks(&self, py: Python<'_>, agent: &str, state: &str, limit: u32) -> PyResult<String> {
        let records = self.wait(py, self.rust.tasks(agent, state, limit))?;
        serde_json::to_string(&records).map_err(|e| raise(&Error::internal(e.to_string())))
    }

    fn cancel_task(&self, py: Python<'_>, id: &str, reason: &str) -> PyResult<()> {
        self.wait(py, self.rust.cancel_task(&TaskId::from(id), reason)).map(drop)
    }

    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let status = self.wait(py, self.rust.status())?;
        serde_json::to_string(&status).map_err(|e| raise(&Error::internal(e.to_string())))
    }

    fn subscribe(&self, py: Python<'_>, id: &str, after: u64) -> PyResult<Subscription> {
        let events = self.wait(py, self.rust.subscribe(&TaskId::from(id), after))?;
        Ok(Subscription { events: Mutex::new(Some(events.boxed())), handle: self.handle()? })
    }

    /// Opens a call on an `actor` or a `model`; its answers arrive at `poll`.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn start(
        &self,
        kind: &str,
        target: String,
        method: &str,
        codec: i32,
        body: &[u8],
        buffers: Vec<Vec<u8>>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let target = if kind == "model" { Target::Model(target) } else { Target::Actor(target) };
        let calls = self.calls.lock().clone().ok_or_else(|| raise(&Error::unavailable("the client is closed")))?;
        let done = self.done.clone();
        let args = from_py(codec, body, buffers);
        Ok(calls.start(target, method, args, timeout_ms, move |id, event| done.push((id, event))))
    }

    fn cancel(&self, id: u64) {
        if let Some(calls) = &*self.calls.lock() {
            calls.cancel(id);
        }
    }

    fn credit(&self, id: u64, items: u32) {
        if let Some(calls) = &*self.calls.lock() {
            calls.credit(id, items);
        }
    }

    /// All answers there are, waiting for the first. Empty when the client is closed.
    fn poll(&self, py: Python<'_>) -> Vec<Completion> {
        let events = py.detach(|| self.done.take());
        let one = |(id, event): (u64, CallEvent)| match event {
            CallEvent::Item(item) => (id, "item", Some(to_py(py, &item)), None),
            CallEvent::End(Ok(Some(value))) => (id, "value", Some(to_py(py, &value)), None),
            CallEvent::End(Ok(None)) => (id, "done", None, None),
            CallEvent::End(Err(error)) => (id, "failed", None, Some(failure(&error))),
        };
        events.into_iter().map(one).collect()
    }

    /// Closes the connection; the head stops this driver's actors.
    fn close(&self, py: Python<'_>) {
        self.calls.lock().take();
        self.done.close();
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            py.detach(|| runtime.shutdown_timeout(Duration::from_millis(300)));
        }
    }
}

impl Queue {
    fn push(&self, event: (u64, CallEvent)) {
        let mut state = self.events.lock();
        let idle = state.0.is_empty();
        state.0.push(event);
        drop(state);
        if idle {
            self.ready.notify_one();
        }
    }

    fn take(&self) -> Vec<(u64, CallEvent)> {
        let mut state = self.events.lock();
        while state.0.is_empty() && !state.1 {
            self.ready.wait(&mut state);
        }
        std::mem::take(&mut state.0)
    }

    fn close(&self) {
        self.events.lock().1 = true;
        self.ready.notify_all();
    }
}

/// Events of one task.
#[pyclass]
pub struct Subscription {
    events: Mutex<Option<BoxStream<'static, Result<Envelope, Error>>>>,
    handle: Handle,
}

#[pymethods]
impl Subscription {
    /// The next events as JSON, at least one; `None` at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Vec<Py<PyBytes>>>> {
        let batch = py.detach(|| {
            let mut events = self.events.lock();
            let Some(stream) = events.as_mut() else { return Ok(None) };
            let batch = self.handle.block_on(async { stream.ready_chunks(256).next().await });
            match batch {
                Some(batch) => batch.into_iter().collect::<Result<Vec<_>, _>>().map(Some),
                None => Ok(None),
            }
        });
        let batch = batch.map_err(|e: Error| raise(&e))?;
        Ok(batch.map(|events| events.iter().map(|e| PyBytes::new(py, &covey_proto::to_json(e)).unbind()).collect()))
    }
}
