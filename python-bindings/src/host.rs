//! The worker's socket, from the side of the Python process.
//!
//! The process's event loop waits for the socket itself: no thread stands between. Answers are queued and written once
//! per turn of the loop. Whoever waits for the worker's reply on the loop's own thread reads the socket meanwhile, so
//! blocking verbs work there too; frames for Python that arrive then are kept for the loop.
//!
//! A second connection says one thing: the worker closes its side of it when the process is replaced. A thread waits for
//! that and reads the socket from then on, because the loop may be blocked (`covey._standby`).

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::ThreadId,
};

use bytes::{Buf as _, Bytes, BytesMut};
use covey_client::{CallEvent, NewCall, Target};
use covey_domain::{Error, ErrorKind, caps};
use covey_proto::v1::{
    CallCancel, CallFrame, CallOpen, HostBatch, HostBegan, HostEnd, HostEvent, HostFrame, HostItem, HostStarted,
    HostState, HostVerb, HostWaits, Payload, call_frame::Body as Step, call_open, host_frame::Body,
};
use parking_lot::{Condvar, Mutex};
use prost::Message as _;
use pyo3::{
    prelude::*,
    types::{PyBytes, PyList, PyString, PyTuple},
};

use crate::{
    backend::Backend,
    call::{Slot, raw_end},
    client::{Args, Client},
    from_py, raise, scalar, to_py,
};

/// What a busy thread queued is written after this time.
const FLUSH_LATE: std::time::Duration = std::time::Duration::from_micros(500);
/// Frames that are not kept for later.
const FLUSH_MANY: usize = 64;
/// Bytes read at once.
const READ_MAX: usize = 256 << 10;

/// The socket and what waits for it.
pub(crate) struct HostLink {
    socket: UnixStream,
    /// Ends when the process is replaced.
    standby: UnixStream,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Vec<HostFrame>>,
    writing: Mutex<()>,
    /// For Python, in order.
    frames: Mutex<VecDeque<Body>>,
    calls: Mutex<HashMap<u64, Arc<Slot>>>,
    replies: Mutex<HashMap<u64, Option<Result<Bytes, Error>>>>,
    replied: Condvar,
    /// Verbs whose replies go to slots.
    asked: Mutex<HashMap<u64, Arc<Slot>>>,
    next: AtomicU64,
    reader: ThreadId,
    /// Something was queued that the flusher shall write.
    late: Mutex<bool>,
    is_late: Condvar,
}

/// What was read and is not taken apart yet.
struct Incoming {
    buffer: BytesMut,
    scratch: Box<[u8]>,
    /// Bytes of the frame that has begun, with its head; 0 = none has.
    wanted: usize,
}

/// The socket. `recv` is for one thread at a time, the senders for any.
#[pyclass(frozen)]
pub struct Host {
    link: Arc<HostLink>,
    /// The actor and the method of the call before; often those of the next.
    names: Mutex<(Text, Text)>,
}

/// A text as Python has it, kept for the next time it is asked for.
#[derive(Default)]
struct Text(Option<(String, Py<PyString>)>);

impl Text {
    fn get<'py>(&mut self, py: Python<'py>, text: &str) -> Bound<'py, PyString> {
        match &self.0 {
            Some((kept, made)) if kept == text => made.bind(py).clone(),
            _ => {
                let made = PyString::new(py, text);
                self.0 = Some((text.to_owned(), made.clone().unbind()));
                made
            }
        }
    }
}

fn told(e: &dyn std::fmt::Display) -> PyErr {
    raise(&Error::unavailable(format!("the worker's socket failed: {e}")))
}

/// Several errors fit into one message between workers, whatever was raised.
fn error(kind: &str, mut message: String, detail: Option<String>) -> Error {
    if message.len() > caps::CALL_ERROR_BYTES_MAX {
        let all = message.len();
        message.truncate(message.floor_char_boundary(caps::CALL_ERROR_BYTES_MAX));
        let _ = write!(message, "… (cut; {all} bytes in all)");
    }
    let detail = detail.filter(|detail| detail.len() <= caps::CALL_ERROR_BYTES_MAX);
    Error { detail, ..Error::new(ErrorKind::from_name(kind), message).executed(Some(true)) }
}

impl HostLink {
    fn queue(&self, body: Body) {
        self.outgoing.lock().push(HostFrame { body: Some(body) });
    }

    fn end(&self, call: u64, result: Result<Option<Payload>, Error>) {
        self.queue(Body::End(HostEnd { call, end: Some(covey_proto::call_end(result)) }));
    }

    fn flush(&self) -> std::io::Result<()> {
        let _turn = self.writing.lock();
        let frames = std::mem::take(&mut *self.outgoing.lock());
        if frames.is_empty() {
            return Ok(());
        }
        let batch = HostBatch { frames };
        let length = batch.encoded_len();
        let mut bytes = Vec::with_capacity(length + 4);
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        batch.encode(&mut bytes).map_err(std::io::Error::other)?;
        (&self.socket).write_all(&bytes)
    }

    /// Has what is queued written a moment later, from a thread of its own.
    fn flush_soon(&self) {
        let mut late = self.late.lock();
        if !*late {
            *late = true;
            self.is_late.notify_one();
        }
    }

    /// Writes what threads queued while they were busy, a moment later, whatever they do meanwhile.
    fn flush_late(self: Arc<Self>) {
        loop {
            {
                let mut late = self.late.lock();
                while !*late {
                    self.is_late.wait(&mut late);
                }
                *late = false;
            }
            std::thread::sleep(FLUSH_LATE);
            if self.flush().is_err() {
                return;
            }
        }
    }

    fn send(&self, body: Body) {
        self.queue(body);
        // A broken socket ends the process from its reading side.
        let _ = self.flush();
    }

    /// Takes what one read gives. Answers to our own calls go to their slots, the rest waits for Python.
    fn read(&self, incoming: &mut Incoming, block: bool) -> std::io::Result<()> {
        let Incoming { buffer, scratch, wanted } = incoming;
        // A big frame is read to where it stays; small ones through a block that is never cleared.
        let big = wanted.saturating_sub(buffer.len());
        let start = buffer.len();
        let into = if big > READ_MAX {
            buffer.resize(start + big, 0);
            &mut buffer[start..]
        } else {
            &mut scratch[..]
        };
        let read = if block {
            (&self.socket).read(into)
        } else {
            use rustix::net::{RecvFlags, recv};
            recv(&self.socket, into, RecvFlags::DONTWAIT).map(|(_, n)| n).map_err(Into::into)
        };
        let count = match read {
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(count),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => Ok(0),
            Err(e) => Err(e),
        };
        let count = count.inspect_err(|_| buffer.truncate(start))?;
        if big > READ_MAX {
            buffer.truncate(start + count);
        } else {
            buffer.extend_from_slice(&scratch[..count]);
        }
        *wanted = 0;
        while let Some(head) = buffer.first_chunk::<4>() {
            let length = u32::from_be_bytes(*head) as usize;
            if buffer.len() < 4 + length {
                *wanted = 4 + length;
                break;
            }
            buffer.advance(4);
            let batch = HostBatch::decode(buffer.split_to(length).freeze()).map_err(std::io::Error::other)?;
            for body in batch.frames.into_iter().filter_map(|frame| frame.body) {
                self.take(body);
            }
        }
        Ok(())
    }

    fn take(&self, body: Body) {
        match body {
            Body::Back(CallFrame { id, body: Some(Step::Item(item)) }) => {
                let slot = self.calls.lock().get(&id).cloned();
                if let Some(slot) = slot {
                    slot.push(CallEvent::Item(item));
                }
            }
            Body::Back(CallFrame { id, body: Some(Step::End(end)) }) => {
                let slot = self.calls.lock().remove(&id);
                if let Some(slot) = slot {
                    slot.push(CallEvent::End(covey_proto::call_result(end)));
                }
            }
            Body::Reply(reply) => {
                let asked = self.asked.lock().remove(&reply.id);
                let said = reply.failure.map_or(Ok(reply.body), |f| Err(f.into()));
                if let Some(slot) = asked {
                    slot.push(raw_end(said));
                } else if let Some(waiting) = self.replies.lock().get_mut(&reply.id) {
                    *waiting = Some(said);
                }
                self.replied.notify_all();
            }
            other => self.frames.lock().push_back(other),
        }
    }

    pub fn start(&self, call: NewCall, pool: Option<String>, slot: Arc<Slot>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = covey_proto::check_size("the call's argument", &call.args) {
            slot.push(CallEvent::End(Err(error.executed(Some(false)))));
            return id;
        }
        self.calls.lock().insert(id, slot);
        let target = match (pool, call.target) {
            (Some(spec), _) => call_open::Target::Pool(spec),
            (None, Target::Actor(actor)) => call_open::Target::Actor(actor.to_string()),
            (None, Target::Model(model)) => call_open::Target::Model(model),
            (None, Target::Topic(topic)) => call_open::Target::Topic(topic),
        };
        let open = CallOpen {
            method: call.method,
            args: Some(call.args),
            timeout_ms: call.timeout_ms,
            run_timeout_ms: call.run_timeout_ms,
            retry: covey_client::retry_message(&call.retry),
            traceparent: call.traceparent,
            epoch: 0,
            tried: 0,
            key: call.key,
            retries: call.retries,
            chain: call.chain,
            also: Vec::new(),
            alone: call.alone,
            target: Some(target),
        };
        self.send(Body::Out(CallFrame { id, body: Some(Step::Open(open)) }));
        id
    }

    pub fn cancel(&self, id: u64) {
        if self.calls.lock().contains_key(&id) {
            self.send(Body::Out(CallFrame { id, body: Some(Step::Cancel(CallCancel::default())) }));
        }
    }

    pub fn credit(&self, id: u64, items: u32) {
        self.send(Body::Out(CallFrame { id, body: Some(Step::Credit(items)) }));
    }

    /// A verb whose reply, raw, ends the slot.
    pub fn ask(&self, method: &str, body: Bytes, slot: Arc<Slot>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.asked.lock().insert(id, slot);
        self.send(Body::Verb(HostVerb { id, name: method.to_owned(), body }));
    }

    /// The thread that reads the socket: nothing comes while it waits for something else.
    pub fn is_reader(&self) -> bool {
        std::thread::current().id() == self.reader
    }

    pub fn verb(&self, py: Python<'_>, method: &str, body: Bytes) -> Result<Bytes, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.replies.lock().insert(id, None);
        self.send(Body::Verb(HostVerb { id, name: method.to_owned(), body }));
        let gone = |e: std::io::Error| Error::unavailable(format!("the worker's socket failed: {e}"));
        py.detach(|| {
            if self.is_reader() {
                // Nobody else reads while the loop stands still, unless the process is replaced.
                loop {
                    let mut incoming = self.incoming.lock();
                    if !matches!(self.replies.lock().get(&id), Some(None)) {
                        break;
                    }
                    self.read(&mut incoming, true).map_err(gone)?;
                }
            }
            let mut replies = self.replies.lock();
            while matches!(replies.get(&id), Some(None)) {
                self.replied.wait(&mut replies);
            }
            replies.remove(&id).flatten().unwrap_or_else(|| Err(Error::internal("a reply that nobody waits for")))
        })
    }
}

#[pymethods]
impl Host {
    #[new]
    fn new(path: &str) -> PyResult<Self> {
        let connect = || UnixStream::connect(path).map_err(|e| told(&e));
        // The worker takes them in this order.
        let (socket, standby) = (connect()?, connect()?);
        let link = Arc::new(HostLink {
            socket,
            standby,
            incoming: Mutex::new(Incoming { buffer: BytesMut::new(), scratch: vec![0; READ_MAX].into(), wanted: 0 }),
            outgoing: Mutex::default(),
            writing: Mutex::default(),
            frames: Mutex::default(),
            calls: Mutex::default(),
            replies: Mutex::default(),
            replied: Condvar::new(),
            asked: Mutex::default(),
            next: AtomicU64::new(1),
            reader: std::thread::current().id(),
            late: Mutex::default(),
            is_late: Condvar::new(),
        });
        let flusher = link.clone();
        std::thread::Builder::new()
            .name("covey-flush".into())
            .spawn(move || flusher.flush_late())
            .map_err(|e| told(&e))?;
        crate::watchdog::start().map_err(|e| told(&e))?;
        Ok(Self { link, names: Mutex::default() })
    }

    /// The cluster around this process's worker.
    fn client(&self) -> Client {
        Client::of(Backend::Host(self.link.clone()))
    }

    fn fileno(&self) -> i32 {
        self.link.socket.as_raw_fd()
    }

    /// Frames that have come, at most `limit`, as tuples that begin with their name, and whether there are more, of which
    /// the socket says nothing; does not wait. Raises when the worker is gone.
    fn recv<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<(Bound<'py, PyList>, bool)> {
        let few = |frames: &VecDeque<Body>| frames.len() < limit;
        if few(&self.link.frames.lock()) {
            // Turns on threads go on while the bytes are taken apart. Whoever reads meanwhile keeps the frames for us.
            let read = || self.link.incoming.try_lock().map_or(Ok(()), |mut i| self.link.read(&mut i, false));
            py.detach(read).map_err(|e| told(&e))?;
        }
        let (frames, more): (Vec<Body>, bool) = {
            let mut frames = self.link.frames.lock();
            let count = frames.len().min(limit);
            (frames.drain(..count).collect(), !frames.is_empty())
        };
        let out = PyList::empty(py);
        let mut names = self.names.lock();
        for body in frames {
            let tuple = match body {
                Body::Call(c) => {
                    let args = to_py(py, &c.args.unwrap_or_default());
                    let plain = !c.json
                        && c.timeout_ms == 0
                        && c.run_timeout_ms == 0
                        && c.retry_on.is_empty()
                        && !c.alone
                        && [&c.task, &c.context, &c.chain, &c.traceparent].iter().all(|text| text.is_empty());
                    // What only tasks have comes with their id.
                    let asked = (!c.task.is_empty()).then(|| {
                        (PyBytes::new(py, &c.history), &c.model, PyBytes::new(py, &c.sampling), &c.message_id)
                    });
                    let about = (!plain).then_some((
                        c.json,
                        &c.task,
                        &c.context,
                        c.timeout_ms,
                        &c.chain,
                        &c.traceparent,
                        asked,
                        c.run_timeout_ms,
                        c.retry_on,
                        c.alone,
                    ));
                    ("call", c.call, names.0.get(py, &c.actor), names.1.get(py, &c.method), args, about)
                        .into_pyobject(py)?
                }
                Body::Start(s) => {
                    let code = PyBytes::new(py, &s.code);
                    let init = s.init.as_ref().map(|p| to_py(py, p));
                    let state = s.state.as_ref().map(|p| to_py(py, p));
                    let bounded = s.memory_bytes > 0;
                    let about =
                        (s.class_name, s.concurrency, s.model, s.owner, state, s.save_turns, s.reentrant, bounded);
                    ("start", s.actor, s.agent, s.digest, code, init, about).into_pyobject(py)?
                }
                Body::Snapshot(s) => ("snapshot", s.actor, s.number).into_pyobject(py)?,
                Body::Say(s) => ("say", s.call, PyBytes::new(py, &s.said)).into_pyobject(py)?,
                Body::Cancel(c) => ("cancel", c.call).into_pyobject(py)?,
                Body::Credit(c) => ("credit", c.call, c.items).into_pyobject(py)?,
                Body::Stop(s) => ("stop", s.actor).into_pyobject(py)?,
                _ => continue,
            };
            let tuple: Bound<'py, PyTuple> = tuple;
            out.append(tuple)?;
        }
        Ok((out, more))
    }

    /// Waits until the worker says that this process is replaced, or is gone.
    fn wait_replaced(&self, py: Python<'_>) {
        py.detach(|| {
            while (&self.link.standby).read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::Interrupted) {}
        });
    }

    /// Tells the worker that nothing more begins here; what was queued before is written first.
    fn retired(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.link.flush().and_then(|()| (&self.link.standby).write_all(&[1]))).map_err(|e| told(&e))
    }

    /// Writes what is queued.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.link.flush()).map_err(|e| told(&e))
    }

    /// Writes what is queued, a moment later, from a thread of its own; at once when it is much.
    fn flush_late(&self, py: Python<'_>) {
        if self.link.outgoing.lock().len() >= FLUSH_MANY {
            // A broken socket ends the process from its reading side.
            let _ = py.detach(|| self.link.flush());
            return;
        }
        self.link.flush_soon();
    }

    #[pyo3(signature = (actor, failure=None))]
    fn started(&self, actor: String, failure: Option<(String, String, Option<String>)>) {
        let failure = failure.map(|(kind, message, detail)| error(&kind, message, detail).into());
        self.link.queue(Body::Started(HostStarted { actor, failure }));
    }

    /// An actor's state, asked for by `number`, or to be kept before the end of `call`.
    fn state(&self, number: u64, call: u64, state: Option<Args>) {
        let state = state.map(|(codec, body, buffers)| from_py(codec, &body, buffers));
        self.link.queue(Body::State(HostState { number, call, state, failure: None }));
    }

    fn no_state(&self, number: u64, message: String) {
        let failure = Some(error("application", message, None).into());
        self.link.queue(Body::State(HostState { number, call: 0, state: None, failure }));
    }

    fn item(&self, call: u64, codec: i32, body: &[u8], buffers: Vec<Vec<u8>>) {
        self.link.queue(Body::Item(HostItem { call, value: Some(from_py(codec, body, buffers)) }));
    }

    /// An item that is text, a number, a boolean or `None`; `False`, and nothing is sent, for any other.
    fn scalar(&self, call: u64, item: &Bound<'_, PyAny>) -> bool {
        let Some(value) = scalar::encode(item) else { return false };
        self.link.queue(Body::Item(HostItem { call, value: Some(value) }));
        true
    }

    /// What a turn of a task writes into its log beside its answer: a domain `TaskEvent` as JSON.
    fn event(&self, call: u64, event: &[u8]) {
        self.link.queue(Body::Event(HostEvent { call, event: Bytes::copy_from_slice(event) }));
    }

    fn value(&self, call: u64, codec: i32, body: &[u8], buffers: Vec<Vec<u8>>) {
        self.link.end(call, Ok(Some(from_py(codec, body, buffers))));
    }

    /// The same of what [`fn@Host::scalar`] takes.
    fn scalar_value(&self, call: u64, value: &Bound<'_, PyAny>) -> bool {
        let Some(value) = scalar::encode(value) else { return false };
        self.link.end(call, Ok(Some(value)));
        true
    }

    fn done(&self, call: u64) {
        self.link.end(call, Ok(None));
    }

    /// `retry`: the exception is one that the caller wants to be tried again.
    #[pyo3(signature = (call, kind, message, detail, retry=false))]
    fn failed(&self, call: u64, kind: &str, message: String, detail: Option<String>, retry: bool) {
        self.link.end(call, Err(Error { retry, ..error(kind, message, detail) }));
    }

    /// The turn of a call did not begin, and will not: its actor is gone.
    fn refused(&self, call: u64) {
        let text = "the actor was stopped before the call's turn came";
        self.link.end(call, Err(Error::new(ErrorKind::ActorDied, text).executed(Some(false))));
    }

    /// The turn of a call cannot go on: its process is replaced.
    fn lost(&self, call: u64, message: String) {
        self.link.end(call, Err(Error::new(ErrorKind::ActorDied, message).executed(None)));
    }

    /// The turn of a call runs; written a moment later, whatever the interpreter does meanwhile.
    fn began(&self, call: u64, method: &str) {
        self.link.queue(Body::Began(HostBegan { call, method: method.to_owned() }));
        self.link.flush_soon();
    }

    /// All turns of an actor wait for others, or one goes on.
    fn waits(&self, actor: &str, waits: bool) {
        self.link.queue(Body::Waits(HostWaits { actor: actor.to_owned(), waits }));
        self.link.flush_soon();
    }
}
