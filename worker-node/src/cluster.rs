//! This worker as a client of its cluster: what actors ask of other actors, of models elsewhere, and of the head.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use covey_actor_runtime::{Outward, RemoteInfer, Runtime};
use covey_client::{CallEvent, Calls, Client, Loopback, NewCall, Target};
use covey_domain::{Error, NodeId};
use covey_proto::{
    failure, payload_json,
    v1::{CallEnd, CallFrame, CallOpen, Empty, call_end, call_frame::Body, call_open},
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::sync::{Mutex, mpsc};

#[derive(Clone)]
pub(crate) struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    head: String,
    secret: String,
    node: NodeId,
    /// Weak in effect: the runtime's owner outlives this.
    runtime: std::sync::OnceLock<Runtime>,
    connected: Mutex<Option<(Client, Calls)>>,
}

impl Cluster {
    pub fn new(head: String, secret: String, node: NodeId) -> Self {
        let (runtime, connected) = (std::sync::OnceLock::new(), Mutex::new(None));
        Self { inner: Arc::new(Inner { head, secret, node, runtime, connected }) }
    }

    /// Calls to actors of `runtime` stay in this process from now on.
    pub fn set_runtime(&self, runtime: Runtime) {
        let _ = self.inner.runtime.set(runtime);
    }

    /// The connection in use; dials when there is none or the head has gone.
    pub async fn connect(&self) -> Result<(Client, Calls), Error> {
        let mut connected = self.inner.connected.lock().await;
        if let Some((client, calls)) = &*connected
            && !calls.is_closed()
        {
            return Ok((client.clone(), calls.clone()));
        }
        let client = Client::connect(&self.inner.head, &self.inner.secret).await?;
        let calls = client.calls(&format!("worker:{}", self.inner.node)).await?;
        if let Some(runtime) = self.inner.runtime.get().cloned() {
            let loopback: Loopback = Arc::new(move |answers| {
                let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
                let lane = runtime.lane(answers);
                tokio::spawn(async move {
                    while let Some(frame) = rx.recv().await {
                        lane.take(frame);
                    }
                });
                tx
            });
            calls.set_loopback(self.inner.node.clone(), loopback);
        }
        *connected = Some((client.clone(), calls.clone()));
        Ok((client, calls))
    }

    /// The way to other workers' models.
    pub fn infer(&self) -> RemoteInfer {
        let cluster = self.clone();
        Arc::new(move |request| {
            let cluster = cluster.clone();
            async_stream::stream! {
                let calls = match cluster.connect().await {
                    Ok((_, calls)) => calls,
                    Err(error) => {
                        yield Err(error);
                        return;
                    }
                };
                let target = Target::Model(request.model.to_string());
                let mut items = calls.stream(target, "infer", payload_json(&request));
                while let Some(item) = items.next().await {
                    yield item.and_then(|item| covey_proto::infer_event(&item));
                }
            }
            .boxed()
        })
    }
}

impl Outward for Cluster {
    fn lane(&self, answers: mpsc::UnboundedSender<CallFrame>) -> mpsc::UnboundedSender<CallFrame> {
        let (tx, rx) = mpsc::unbounded_channel();
        tokio::spawn(carry(self.clone(), rx, answers));
        tx
    }

    fn verb(&self, name: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, Error>> {
        let cluster = self.clone();
        async move { cluster.connect().await?.0.raw(&name, body).await }.boxed()
    }
}

/// Makes calls of frames, one after the other, so that they keep their order.
async fn carry(
    cluster: Cluster,
    mut frames: mpsc::UnboundedReceiver<CallFrame>,
    answers: mpsc::UnboundedSender<CallFrame>,
) {
    let open: Arc<parking_lot::Mutex<HashMap<u64, (Calls, u64)>>> = Arc::default();
    while let Some(frame) = frames.recv().await {
        let known = open.lock().get(&frame.id).cloned();
        match (frame.body, known) {
            (Some(Body::Open(call)), _) => {
                let end = |error: Error| CallFrame { id: frame.id, body: Some(Body::End(failure(error))) };
                match (new_call(call), cluster.connect().await) {
                    (Ok(call), Ok((_, calls))) => {
                        let id = start(&calls, call, frame.id, answers.clone(), open.clone());
                        open.lock().entry(frame.id).and_modify(|known| known.1 = id);
                    }
                    (Err(error), _) | (_, Err(error)) => drop(answers.send(end(error.executed(Some(false))))),
                }
            }
            (Some(Body::Cancel(_)), Some((calls, id))) => calls.cancel(id),
            (Some(Body::Credit(items)), Some((calls, id))) => calls.credit(id, items),
            _ => {}
        }
    }
    // The process that asked is gone.
    let left: Vec<_> = open.lock().drain().map(|(_, call)| call).collect();
    for (calls, id) in left {
        calls.cancel(id);
    }
}

fn new_call(open: CallOpen) -> Result<NewCall, Error> {
    let target = match open.target {
        Some(call_open::Target::Actor(actor)) => Target::Actor(actor.into()),
        Some(call_open::Target::Model(model)) => Target::Model(model),
        None => return Err(Error::invalid("a call without a target")),
    };
    let args = open.args.unwrap_or_default();
    Ok(NewCall { target, method: open.method, args, timeout_ms: open.timeout_ms, key: open.key, retries: open.retries })
}

type OpenCalls = Arc<parking_lot::Mutex<HashMap<u64, (Calls, u64)>>>;

fn start(calls: &Calls, call: NewCall, asked: u64, answers: mpsc::UnboundedSender<CallFrame>, open: OpenCalls) -> u64 {
    // Known before it starts: its end may come at once.
    open.lock().insert(asked, (calls.clone(), 0));
    calls.start(call, move |_, event| {
        let body = match event {
            CallEvent::Item(item) => Body::Item(item),
            CallEvent::End(end) => {
                open.lock().remove(&asked);
                Body::End(match end {
                    Ok(Some(value)) => CallEnd { result: Some(call_end::Result::Value(value)) },
                    Ok(None) => CallEnd { result: Some(call_end::Result::Done(Empty {})) },
                    Err(error) => failure(error),
                })
            }
        };
        let _ = answers.send(CallFrame { id: asked, body: Some(body) });
    })
}
