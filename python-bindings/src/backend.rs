//! How Python reaches the cluster: a driver over its own connection, an actor's process through its worker.

use std::sync::Arc;

use bytes::Bytes;
use covey_client::{Calls, Client as RustClient, NewCall, Pools};
use covey_domain::Error;
use prost::Message;
use pyo3::prelude::*;
use tokio::runtime::Handle;

use crate::{call::Slot, host::HostLink, raise};

#[expect(clippy::large_enum_variant, reason = "one for each process")]
pub(crate) enum Backend {
    Driver { client: RustClient, calls: Calls, pools: Pools, runtime: Handle },
    Host(Arc<HostLink>),
}

impl Backend {
    /// Opens a call, on a pool when `pool` is its spec.
    pub fn start(&self, call: NewCall, pool: Option<String>, slot: Arc<Slot>) -> u64 {
        match (self, pool) {
            (Self::Driver { calls, .. }, None) => calls.start(call, move |_, event| slot.push(event)),
            (Self::Driver { pools, .. }, Some(spec)) => pools.start(&spec, call, move |_, event| slot.push(event)),
            (Self::Host(host), pool) => host.start(call, pool, slot),
        }
    }

    pub fn close_pool(&self, py: Python<'_>, spec: &str) -> PyResult<()> {
        match self {
            Self::Driver { pools, .. } => pools.close(spec),
            Self::Host(host) => {
                let closed = host.verb(py, covey_client::CLOSE_POOL, Bytes::copy_from_slice(spec.as_bytes()));
                closed.map_err(|e| raise(&e))?;
            }
        }
        Ok(())
    }

    pub fn cancel(&self, id: u64) {
        match self {
            Self::Driver { pools, .. } if Pools::is_job(id) => pools.cancel(id),
            Self::Driver { calls, .. } => calls.cancel(id),
            Self::Host(host) => host.cancel(id),
        }
    }

    pub fn credit(&self, id: u64, items: u32) {
        match self {
            Self::Driver { pools, .. } if Pools::is_job(id) => pools.credit(id, items),
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
