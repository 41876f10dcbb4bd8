//! How Python reaches the cluster: a driver over its own connection, an actor's process through its worker.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use covey_client::{CallEvent, Calls, Client as RustClient, NewCall, Pools};
use covey_domain::Error;
use parking_lot::Mutex;
use prost::Message;
use pyo3::prelude::*;
use tokio::runtime::Handle;

use crate::{
    call::{Slot, raw_end},
    host::HostLink,
    raise,
};

#[expect(clippy::large_enum_variant, reason = "one for each process")]
pub(crate) enum Backend {
    Driver { client: RustClient, calls: Calls, pools: Pools, runtime: Handle },
    Host(Arc<HostLink>),
}

/// How long a wait goes before Python may look for signals.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// Waits for work of the runtime with the GIL released; Ctrl-C ends the wait, not the work.
pub(crate) fn wait<T: Send + 'static>(
    py: Python<'_>,
    runtime: &Handle,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> PyResult<Result<T, Error>> {
    let (tx, rx) = mpsc::sync_channel(1);
    // The asker may have been interrupted; nothing is lost by that.
    runtime.spawn(async move { drop(tx.send(work.await)) });
    let rx = Mutex::new(rx);
    loop {
        match py.detach(|| rx.lock().recv_timeout(SIGNAL_CHECK)) {
            Ok(result) => return Ok(result),
            Err(mpsc::RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Ok(Err(Error::unavailable("the client was closed")));
            }
        }
    }
}

/// A slot that has an end in any case: work that is dropped with its runtime gives none.
struct Ends(Option<Arc<Slot>>);

impl Ends {
    fn with(mut self, end: CallEvent) {
        if let Some(slot) = self.0.take() {
            slot.push(end);
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.push(raw_end(Err(Error::unavailable("the session was closed"))));
        }
    }
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

    /// A unary method of service `covey.v1.Covey` whose reply, encoded, ends the slot. `stands`: this thread is about to wait for it.
    pub fn ask(&self, py: Python<'_>, method: &'static str, request: &impl Message, stands: bool, slot: Arc<Slot>) {
        let body = Bytes::from(request.encode_to_vec());
        match self {
            Self::Driver { client, runtime, .. } => {
                let (client, ends) = (client.clone(), Ends(Some(slot)));
                runtime.spawn(async move { ends.with(raw_end(client.raw(method, body).await)) });
            }
            // Nobody else would read the reply.
            Self::Host(host) if stands && host.is_reader() => slot.push(raw_end(host.verb(py, method, body))),
            Self::Host(host) => host.ask(method, body, slot),
        }
    }

    /// A unary method of service `covey.v1.Covey`.
    pub fn rpc<R: Message + Default>(&self, py: Python<'_>, method: &str, request: &impl Message) -> PyResult<R> {
        let body = Bytes::from(request.encode_to_vec());
        let reply = match self {
            Self::Driver { client, runtime, .. } => {
                let (client, method) = (client.clone(), method.to_owned());
                wait(py, runtime, async move { client.raw(&method, body).await })?
            }
            Self::Host(host) => host.verb(py, method, body),
        };
        let reply = reply.map_err(|e| raise(&e))?;
        R::decode(reply).map_err(|e| raise(&Error::internal(format!("failed to read the reply to {method}: {e}"))))
    }
}
