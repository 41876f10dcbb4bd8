//! How Python reaches the cluster: a driver over its own connection, an actor's process through its worker.

use std::sync::Arc;

use bytes::Bytes;
use covey_client::{Calls, Client as RustClient, NewCall};
use covey_domain::Error;
use prost::Message;
use pyo3::prelude::*;
use tokio::runtime::Handle;

use crate::{call::Slot, host::HostLink, raise};

#[derive(Clone)]
pub(crate) enum Backend {
    Driver { client: RustClient, calls: Calls, runtime: Handle },
    Host(Arc<HostLink>),
}

impl Backend {
    pub fn start(&self, call: NewCall, slot: Arc<Slot>) -> u64 {
        match self {
            Self::Driver { calls, .. } => calls.start(call, move |_, event| slot.push(event)),
            Self::Host(host) => host.start(call, slot),
        }
    }

    pub fn cancel(&self, id: u64) {
        match self {
            Self::Driver { calls, .. } => calls.cancel(id),
            Self::Host(host) => host.cancel(id),
        }
    }

    pub fn credit(&self, id: u64, items: u32) {
        match self {
            Self::Driver { calls, .. } => calls.credit(id, items),
            Self::Host(host) => host.credit(id, items),
        }
    }

    /// A unary method of service `covey.v1.Covey`.
    pub fn rpc<R: Message + Default>(&self, py: Python<'_>, method: &str, request: &impl Message) -> PyResult<R> {
        let body = Bytes::from(request.encode_to_vec());
        let reply = match self {
            Self::Driver { client, runtime, .. } => py.detach(|| runtime.block_on(client.raw(method, body))),
            Self::Host(host) => host.verb(py, method, body),
        };
        let reply = reply.map_err(|e| raise(&e))?;
        R::decode(reply).map_err(|e| raise(&Error::internal(format!("failed to read the reply to {method}: {e}"))))
    }
}
