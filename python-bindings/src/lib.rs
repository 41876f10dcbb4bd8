//! The private bridge of the Python package: a few classes that convert and wait, with the GIL released.
//!
//! `Client` reaches the cluster, from a driver or from inside an actor; each `Call` is a slot that any thread may wait
//! at, and a `Port` tells an event loop which of its calls have something. `Host` is the socket between a worker and its
//! Python process.
#![allow(missing_docs, reason = "the public face is the Python package, documented there")]

mod backend;
mod call;
mod client;
mod forked;
mod host;
mod scalar;
mod watchdog;

use bytes::Bytes;
use covey_domain::Error;
use covey_proto::v1::{Codec, Payload};
use pyo3::{
    create_exception,
    exceptions::PyException,
    prelude::*,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};

create_exception!(_bridge, BridgeError, PyException, "args: kind, message, hint, executed, detail");

/// Codec number, body, out-of-band buffers.
type PyPayload = (i32, Py<PyBytes>, Vec<Py<PyBytes>>);
/// kind, message, hint, executed, detail.
type PyFailure = (String, String, Option<String>, Option<bool>, Option<String>);

fn to_py(py: Python<'_>, payload: &Payload) -> PyPayload {
    let bytes = |b: &Bytes| PyBytes::new(py, b).unbind();
    (payload.codec, bytes(&payload.body), payload.buffers.iter().map(bytes).collect())
}

fn from_py(codec: i32, body: &[u8], buffers: Vec<Vec<u8>>) -> Payload {
    Payload { codec, body: Bytes::copy_from_slice(body), buffers: buffers.into_iter().map(Bytes::from).collect() }
}

fn failure(error: &Error) -> PyFailure {
    (error.kind.name().to_owned(), error.message.clone(), error.hint.clone(), error.executed, error.detail.clone())
}

fn raise(error: &Error) -> PyErr {
    BridgeError::new_err(failure(error))
}

/// A payload as bytes, for arguments that are stored with a task.
#[pyfunction]
fn encode_payload<'py>(py: Python<'py>, codec: i32, body: &[u8], buffers: Vec<Vec<u8>>) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &prost::Message::encode_to_vec(&from_py(codec, body, buffers)))
}

/// 1: nothing in `value` but numbers, text, bytes and small containers of them. 2: NumPy arrays too. 0: anything else,
/// which may hold code.
#[pyfunction]
fn is_plain(value: &Bound<'_, PyAny>) -> u8 {
    plain(value, 4)
}

fn plain(value: &Bound<'_, PyAny>, depth: u8) -> u8 {
    /// Containers over this are not searched.
    const SEARCHED_MAX: usize = 16;
    if value.is_none()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBytes>()
        || value.is_exact_instance_of::<PyBool>()
    {
        return 1;
    }
    let all = |items: &mut dyn Iterator<Item = Bound<'_, PyAny>>| {
        let mut worst = 1;
        for item in items {
            match plain(&item, depth - 1) {
                0 => return 0,
                kind => worst = worst.max(kind),
            }
        }
        worst
    };
    if depth > 0 {
        if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return if tuple.len() <= SEARCHED_MAX { all(&mut tuple.iter()) } else { 0 };
        }
        if let Ok(list) = value.cast_exact::<PyList>() {
            return if list.len() <= SEARCHED_MAX { all(&mut list.iter()) } else { 0 };
        }
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            return if dict.len() <= SEARCHED_MAX { all(&mut dict.iter().flat_map(|(k, v)| [k, v])) } else { 0 };
        }
    }
    let numpy = value.get_type().module().is_ok_and(|m| m.to_str().is_ok_and(|m| m == "numpy"));
    // Arrays of objects may hold anything.
    let objects = || value.getattr("dtype").and_then(|d| d.getattr("hasobject")).and_then(|o| o.is_truthy());
    if numpy && !objects().unwrap_or(true) { 2 } else { 0 }
}

/// BLAKE3 of a file, made on a thread of its own while the file is written, or in the end when it is small.
#[pyclass]
#[derive(Default)]
struct FileDigest {
    path: std::path::PathBuf,
    growing: Option<forked::Own<covey_client::objects::Growing>>,
}

/// From this size on, a thread is worth it. Bytes.
const DIGEST_BESIDE: u64 = 4 << 20;

#[pymethods]
impl FileDigest {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The file at `path` will have so many bytes.
    fn begin(&mut self, path: std::path::PathBuf, size: u64) -> PyResult<()> {
        let growing = (size >= DIGEST_BESIDE).then(|| covey_client::objects::Growing::begin(&path)).transpose()?;
        self.growing = growing.map(forked::Own::new);
        self.path = path;
        Ok(())
    }

    /// So many bytes are there.
    fn upto(&self, bytes: u64) {
        if let Some(growing) = self.growing.as_ref().and_then(forked::Own::get) {
            growing.upto(bytes);
        }
    }

    /// The digest of what is there, hex.
    fn end(&mut self, py: Python<'_>) -> PyResult<String> {
        let growing = self.growing.take().map(|growing| growing.into_here(py)).transpose()?;
        Ok(py.detach(|| match growing {
            Some(growing) => growing.end(),
            None => covey_client::objects::digest(&self.path),
        })?)
    }
}

/// A copy of the head and the pickle of the object at `path`, if the file is what `digest` names.
#[pyfunction]
fn checked_object(py: Python<'_>, path: std::path::PathBuf, digest: &str) -> PyResult<Py<PyBytes>> {
    let head = py.detach(|| covey_client::objects::checked(&path, digest))?;
    Ok(PyBytes::new(py, &head).unbind())
}

#[pymodule]
fn _bridge(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    forked::watch(module)?;
    module.add("BridgeError", module.py().get_type::<BridgeError>())?;
    for (name, codec) in [
        ("RAW", Codec::Raw),
        ("PICKLE", Codec::Pickle),
        ("JSON", Codec::Json),
        ("CONTENT", Codec::Content),
        ("LENT", Codec::Lent),
    ] {
        module.add(name, codec as i32)?;
    }
    module.add_function(wrap_pyfunction!(encode_payload, module)?)?;
    module.add_function(wrap_pyfunction!(is_plain, module)?)?;
    module.add_function(wrap_pyfunction!(client::events_of, module)?)?;
    module.add_class::<FileDigest>()?;
    module.add_function(wrap_pyfunction!(checked_object, module)?)?;
    module.add_class::<client::Client>()?;
    module.add_class::<call::Call>()?;
    module.add_class::<call::Port>()?;
    module.add_class::<client::Subscription>()?;
    module.add_class::<host::Host>()
}
