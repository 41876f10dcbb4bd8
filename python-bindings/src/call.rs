//! Calls under way, seen from Python: a slot that fills, a port that tells an event loop which slots have.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use covey_client::CallEvent;
use covey_domain::Error;
use covey_proto::v1::{Codec, Payload};
use parking_lot::{Condvar, Mutex, MutexGuard};
use pyo3::prelude::*;

use crate::{PyFailure, backend::Backend, failure, forked::Own, raise, scalar, to_py};

/// How long a wait goes before Python may look for signals.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// From so many on, those that have gone are looked for.
const WAKERS_MANY: usize = 4;

/// Where the answer to one call collects.
#[derive(Default)]
pub(crate) struct Slot {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    items: VecDeque<Payload>,
    end: Option<Result<Option<Payload>, Error>>,
    /// Who waits for the next news, each in its own way: an event loop, a thread, a `wait` that was given up.
    wakers: Vec<(Weak<PortState>, u64)>,
    /// Who waits for the end alone.
    enders: Vec<(Weak<PortState>, u64)>,
}

impl Slot {
    pub fn push(&self, event: CallEvent) {
        let wakers = {
            let mut state = self.state.lock();
            match event {
                CallEvent::Item(item) => state.items.push_back(item),
                CallEvent::End(end) => state.end = Some(end),
            }
            let mut wakers = std::mem::take(&mut state.wakers);
            if state.end.is_some() {
                wakers.append(&mut state.enders);
            }
            wakers
        };
        self.ready.notify_all();
        for (port, token) in wakers {
            if let Some(port) = port.upgrade() {
                port.push(token);
            }
        }
    }

    /// Waits until `ready`, with the GIL released and signals looked at. `false` when `timeout` seconds were not enough.
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        ready: impl Fn(&State) -> bool + Send + Sync,
    ) -> PyResult<bool> {
        let end = timeout.map(|t| Instant::now() + Duration::from_secs_f64(t.clamp(0.0, 1e9)));
        loop {
            let done = py.detach(|| {
                let mut state = self.state.lock();
                let slice = Instant::now() + SIGNAL_CHECK;
                let until = end.map_or(slice, |end| end.min(slice));
                while !ready(&state) {
                    if self.ready.wait_until(&mut state, until).timed_out() {
                        return ready(&state);
                    }
                }
                true
            });
            if done {
                return Ok(true);
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }
}

/// The end of a call that gives bytes.
pub(crate) fn raw_end(reply: Result<Bytes, Error>) -> CallEvent {
    CallEvent::End(reply.map(|body| Some(Payload { codec: Codec::Raw as i32, body, buffers: Vec::new() })))
}

/// Value and failure of a call.
type PyEnd = (Option<Py<PyAny>>, Option<PyFailure>);

/// A payload as a tuple.
fn object(py: Python<'_>, payload: &Payload) -> PyResult<Py<PyAny>> {
    Ok(to_py(py, payload).into_pyobject(py)?.into_any().unbind())
}

/// One call. What had come before a fork can be read in the child, too; nothing more will come there.
#[pyclass(frozen)]
pub struct Call {
    slot: Arc<Slot>,
    backend: Own<Arc<Backend>>,
    id: u64,
}

impl Call {
    pub(crate) fn new(slot: Arc<Slot>, backend: Arc<Backend>, id: u64) -> Self {
        Self { slot, backend: Own::new(backend), id }
    }

    /// In a child of a fork, a thread that is not there may have the lock for ever: nothing was begun there that it could wait for.
    fn state(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, State>> {
        match self.backend.here(py) {
            Ok(_) => Ok(self.slot.state.lock()),
            Err(forked) => self.slot.state.try_lock().ok_or(forked),
        }
    }
}

#[pymethods]
impl Call {
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state(py)?.end.is_some())
    }

    /// Waits for the end; `False` when `timeout` seconds were not enough.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.done(py)? {
            return Ok(true);
        }
        self.backend.here(py)?;
        self.slot.wait(py, timeout, |state| state.end.is_some())
    }

    /// Value and failure once it is done, else `None`.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<PyEnd>> {
        if self.done(py)? { self.end(py).map(Some) } else { Ok(None) }
    }

    /// Value and failure of a call that is done; both `None` for a stream. Text, numbers and booleans are themselves, other values
    /// are payloads (tuples).
    fn end(&self, py: Python<'_>) -> PyResult<PyEnd> {
        // Not under the lock: making Python objects may run any Python code, which may look at this very call.
        let end = self.state(py)?.end.clone();
        Ok(match end {
            Some(Ok(Some(value))) => {
                let scalar = scalar::decode(py, &value).filter(|scalar| !scalar.is_none(py));
                (Some(scalar.map_or_else(|| object(py, &value), Ok)?), None)
            }
            Some(Err(error)) => (None, Some(failure(&error))),
            Some(Ok(None)) | None => (None, None),
        })
    }

    /// Items there are, waiting for the first when `block`; and whether these are the last. Text, numbers, booleans and `None` are
    /// themselves, others are payloads (tuples).
    fn items(&self, py: Python<'_>, block: bool) -> PyResult<(Vec<Py<PyAny>>, bool)> {
        let there = |state: &State| !state.items.is_empty() || state.end.is_some();
        if block && !there(&*self.state(py)?) {
            self.backend.here(py)?;
            self.slot.wait(py, None, there)?;
        }
        let mut state = self.state(py)?;
        let items = std::mem::take(&mut state.items);
        let ended = state.end.is_some();
        drop(state);
        let value = |item: &Payload| scalar::decode(py, item).map_or_else(|| object(py, item), Ok);
        Ok((items.iter().map(value).collect::<PyResult<_>>()?, ended))
    }

    /// Tells `port` of `token` at the next item or the end; `True` when there is something already.
    fn notify(&self, py: Python<'_>, port: &Port, token: u64) -> PyResult<bool> {
        let mut state = self.state(py)?;
        if !state.items.is_empty() || state.end.is_some() {
            return Ok(true);
        }
        self.backend.here(py)?;
        if state.wakers.len() >= WAKERS_MANY {
            state.wakers.retain(|(port, _)| port.strong_count() > 0);
        }
        state.wakers.push((Arc::downgrade(&port.state), token));
        Ok(false)
    }

    /// Tells `port` of `token` at the end; `True` when it has come already.
    fn notify_end(&self, py: Python<'_>, port: &Port, token: u64) -> PyResult<bool> {
        let mut state = self.state(py)?;
        if state.end.is_none() {
            self.backend.here(py)?;
            state.enders.push((Arc::downgrade(&port.state), token));
        }
        Ok(state.end.is_some())
    }

    /// Nothing in a child of a fork: the work is the other process's.
    fn cancel(&self) {
        if let Some(backend) = self.backend.get() {
            backend.cancel(self.id);
        }
    }

    fn credit(&self, items: u32) {
        if let Some(backend) = self.backend.get() {
            backend.credit(self.id, items);
        }
    }
}

/// Tokens of calls that have something, for one event loop or one thread.
#[pyclass(frozen)]
pub struct Port {
    state: Arc<PortState>,
    reader: Own<UnixStream>,
}

pub(crate) struct PortState {
    ready: Mutex<Vec<u64>>,
    some: Condvar,
    writer: UnixStream,
}

impl PortState {
    fn push(&self, token: u64) {
        let first = {
            let mut ready = self.ready.lock();
            ready.push(token);
            ready.len() == 1
        };
        if first {
            self.some.notify_one();
            // One byte wakes the loop for any number of tokens; a full pipe is a loop that is awake.
            let _ = (&self.writer).write(&[1]);
        }
    }
}

#[pymethods]
impl Port {
    #[new]
    fn new() -> PyResult<Self> {
        let pair = || {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            writer.set_nonblocking(true)?;
            Ok((reader, writer))
        };
        let (reader, writer) = pair().map_err(|e: std::io::Error| raise(&Error::internal(e.to_string())))?;
        Ok(Self {
            state: Arc::new(PortState { ready: Mutex::default(), some: Condvar::new(), writer }),
            reader: Own::new(reader),
        })
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        Ok(self.reader.here(py)?.as_raw_fd())
    }

    /// Adds a token of something that is no call.
    fn push(&self, token: u64) {
        self.state.push(token);
    }

    /// Tokens since the last time.
    fn drain(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        let mut reader = self.reader.here(py)?;
        let _ = reader.read(&mut [0; 64]);
        Ok(std::mem::take(&mut *self.state.ready.lock()))
    }

    /// Like `drain`, waiting for the first; empty when `timeout` seconds were not enough.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Vec<u64>> {
        self.reader.here(py)?;
        let end = timeout.map(|t| Instant::now() + Duration::from_secs_f64(t.clamp(0.0, 1e9)));
        loop {
            py.detach(|| {
                let mut ready = self.state.ready.lock();
                let slice = Instant::now() + SIGNAL_CHECK;
                let until = end.map_or(slice, |end| end.min(slice));
                while ready.is_empty() && !self.state.some.wait_until(&mut ready, until).timed_out() {}
            });
            let tokens = self.drain(py)?;
            if !tokens.is_empty() || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(tokens);
            }
            py.check_signals()?;
        }
    }
}
