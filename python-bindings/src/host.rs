//! The worker's socket, from the side of the Python process.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use bytes::Bytes;
use covey_domain::{Error, ErrorKind};
use covey_proto::{
    failure,
    v1::{CallEnd, Empty, HostAsk, HostBatch, HostEnd, HostFrame, HostItem, HostStarted, call_end, host_frame::Body},
};
use parking_lot::Mutex;
use prost::Message as _;
use pyo3::{
    prelude::*,
    types::{PyBytes, PyList, PyTuple},
};

use crate::{from_py, raise, to_py};

/// The socket. `recv` is for one thread, the senders for any.
#[pyclass]
pub struct Host {
    reader: Mutex<UnixStream>,
    writer: Mutex<UnixStream>,
}

fn told(e: &dyn std::fmt::Display) -> PyErr {
    raise(&Error::unavailable(format!("the worker's socket failed: {e}")))
}

fn error(kind: &str, message: String, detail: Option<String>) -> Error {
    Error { detail, ..Error::new(ErrorKind::from_name(kind), message).executed(Some(true)) }
}

impl Host {
    fn send(&self, py: Python<'_>, body: Body) -> PyResult<()> {
        let batch = HostBatch { frames: vec![HostFrame { body: Some(body) }] };
        let mut bytes = Vec::with_capacity(batch.encoded_len() + 4);
        bytes.extend_from_slice(&(batch.encoded_len() as u32).to_be_bytes());
        batch.encode(&mut bytes).map_err(|e| told(&e))?;
        py.detach(|| self.writer.lock().write_all(&bytes)).map_err(|e| told(&e))
    }
}

#[pymethods]
impl Host {
    #[new]
    fn new(path: &str) -> PyResult<Self> {
        let reader = UnixStream::connect(path).map_err(|e| told(&e))?;
        let writer = reader.try_clone().map_err(|e| told(&e))?;
        Ok(Self { reader: Mutex::new(reader), writer: Mutex::new(writer) })
    }

    /// The next frames as tuples that begin with their name. Raises when the worker is gone.
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let batch = py.detach(|| -> Result<HostBatch, std::io::Error> {
            let mut reader = self.reader.lock();
            let mut length = [0; 4];
            reader.read_exact(&mut length)?;
            let mut body = vec![0; u32::from_be_bytes(length) as usize];
            reader.read_exact(&mut body)?;
            HostBatch::decode(Bytes::from(body)).map_err(std::io::Error::other)
        });
        let out = PyList::empty(py);
        for frame in batch.map_err(|e| told(&e))?.frames {
            let tuple = match frame.body {
                Some(Body::Start(s)) => {
                    let code = PyBytes::new(py, &s.code);
                    let init = s.init.as_ref().map(|p| to_py(py, p));
                    ("start", s.actor, s.agent, s.digest, code, s.class_name, init, s.concurrency, s.model)
                        .into_pyobject(py)?
                }
                Some(Body::Call(c)) => {
                    let args = to_py(py, &c.args.unwrap_or_default());
                    ("call", c.call, c.actor, c.method, args, c.json, c.task, c.context).into_pyobject(py)?
                }
                Some(Body::Cancel(c)) => ("cancel", c.call).into_pyobject(py)?,
                Some(Body::Credit(c)) => ("credit", c.call, c.items).into_pyobject(py)?,
                Some(Body::Stop(s)) => ("stop", s.actor).into_pyobject(py)?,
                Some(Body::Answer(a)) => {
                    let failed = a.failure.map(|f| crate::failure(&f.into()));
                    let vectors = a.vectors.as_ref().map(|v| PyBytes::new(py, &v.body));
                    ("answer", a.ask, PyBytes::new(py, &a.event), a.end, failed, vectors).into_pyobject(py)?
                }
                _ => continue,
            };
            let tuple: Bound<'py, PyTuple> = tuple;
            out.append(tuple)?;
        }
        Ok(out)
    }

    #[pyo3(signature = (actor, failure=None))]
    fn started(
        &self,
        py: Python<'_>,
        actor: String,
        failure: Option<(String, String, Option<String>)>,
    ) -> PyResult<()> {
        let failure = failure.map(|(kind, message, detail)| error(&kind, message, detail).into());
        self.send(py, Body::Started(HostStarted { actor, failure }))
    }

    fn item(&self, py: Python<'_>, call: u64, codec: i32, body: &[u8], buffers: Vec<Vec<u8>>) -> PyResult<()> {
        self.send(py, Body::Item(HostItem { call, value: Some(from_py(codec, body, buffers)) }))
    }

    fn value(&self, py: Python<'_>, call: u64, codec: i32, body: &[u8], buffers: Vec<Vec<u8>>) -> PyResult<()> {
        let end = CallEnd { result: Some(call_end::Result::Value(from_py(codec, body, buffers))) };
        self.send(py, Body::End(HostEnd { call, end: Some(end) }))
    }

    fn done(&self, py: Python<'_>, call: u64) -> PyResult<()> {
        let end = CallEnd { result: Some(call_end::Result::Done(Empty {})) };
        self.send(py, Body::End(HostEnd { call, end: Some(end) }))
    }

    fn failed(&self, py: Python<'_>, call: u64, kind: &str, message: String, detail: Option<String>) -> PyResult<()> {
        self.send(py, Body::End(HostEnd { call, end: Some(failure(error(kind, message, detail))) }))
    }

    fn ask(&self, py: Python<'_>, ask: u64, call: u64, request: &[u8], cancel: bool) -> PyResult<()> {
        self.send(py, Body::Ask(HostAsk { ask, call, request: Bytes::copy_from_slice(request), cancel }))
    }
}
