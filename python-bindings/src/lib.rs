//! The private bridge of the Python package: a few classes that convert and wait, with the GIL released.
//!
//! `Client` reaches the cluster, from a driver or from inside an actor; each `Call` is a slot that any thread may wait
//! at, and a `Port` tells an event loop which of its calls have something. `Host` is the socket between a worker and its
//! Python process.
#![allow(missing_docs, reason = "the public face is the Python package, documented there")]

mod backend;
mod call;
mod client;
mod host;

use bytes::Bytes;
use covey_domain::Error;
use covey_proto::v1::{Codec, Payload};
use pyo3::{create_exception, exceptions::PyException, prelude::*, types::PyBytes};

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

#[pymodule]
fn _bridge(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("BridgeError", module.py().get_type::<BridgeError>())?;
    for (name, codec) in
        [("RAW", Codec::Raw), ("PICKLE", Codec::Pickle), ("JSON", Codec::Json), ("CONTENT", Codec::Content)]
    {
        module.add(name, codec as i32)?;
    }
    module.add_function(wrap_pyfunction!(encode_payload, module)?)?;
    module.add_class::<client::Client>()?;
    module.add_class::<call::Call>()?;
    module.add_class::<call::Port>()?;
    module.add_class::<client::Subscription>()?;
    module.add_class::<host::Host>()
}
