//! This worker as a client of its cluster: what actors ask of other actors, of models elsewhere, and of the head.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use covey_actor_runtime::{Objects, Outward, RemoteInfer, Runtime};
use covey_client::{CLOSE_POOL, CallEvent, Calls, Client, Loopback, NewCall, Pools, Target, objects::FETCH_OBJECT};
use covey_domain::{Error, ErrorKind, NodeId};
use covey_node::tls::Tunnel;
use covey_proto::{
    call_end, failure, payload_json,
    v1::{
        CallFrame, CallOpen, ListStoresReply, ObjectName, StopActorRequest, TopicRequest, call_frame::Body, call_open,
    },
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use prost::Message as _;
use tokio::sync::{Mutex, mpsc};

use crate::enroll::Door;

#[derive(Clone)]
pub(crate) struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    door: Door,
    tunnel: Option<Arc<dyn Tunnel>>,
    node: NodeId,
    /// Its id and its secret: of this process of the worker, whichever connection it has.
    session: (String, String),
    objects: Objects,
    /// Weak in effect: the runtime's owner outlives this.
    runtime: std::sync::OnceLock<Runtime>,
    connected: Mutex<Option<Connected>>,
}

/// A connection to the head and what stands on it.
#[derive(Clone)]
pub(crate) struct Connected {
    client: Client,
    calls: Calls,
    pools: Pools,
}

impl Connected {
    /// The head cannot be reached at this moment.
    pub fn is_away(&self) -> bool {
        self.calls.is_away()
    }
}

impl Cluster {
    pub fn new(door: Door, tunnel: Option<Arc<dyn Tunnel>>, objects: Objects) -> Self {
        let (runtime, connected) = (std::sync::OnceLock::new(), Mutex::new(None));
        let node = door.identity().node();
        let secret = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let session = (format!("worker:{node}/{:08x}", rand::random::<u32>()), secret);
        Self { inner: Arc::new(Inner { door, tunnel, node, session, objects, runtime, connected }) }
    }

    /// Calls to actors of `runtime` stay in this process from now on.
    pub fn set_runtime(&self, runtime: Runtime) {
        let _ = self.inner.runtime.set(runtime);
    }

    /// The connection in use; dials when there is none, or the head has refused it.
    pub async fn connect(&self) -> Result<Connected, Error> {
        let mut connected = self.inner.connected.lock().await;
        if let Some(connected) = &*connected
            && !connected.calls.is_closed()
        {
            return Ok(connected.clone());
        }
        let Inner { door, tunnel, session: (session, secret), .. } = &*self.inner;
        let mut client = Client::connect_as(&door.head, &door.credential(), Some(door.identity().clone())).await?;
        if let Some(tunnel) = tunnel {
            client = client.with_tunnel(tunnel.clone());
        }
        let calls = client.calls_as(session, secret).await?;
        if let Some(runtime) = self.inner.runtime.get().cloned() {
            let loopback: Loopback = Arc::new(move |answers| {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "calls of this process to its own actors: their mailboxes and windows are the bound"
                )]
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
        let fresh = Connected { pools: Pools::new(client.clone(), calls.clone()), client, calls };
        *connected = Some(fresh.clone());
        Ok(fresh)
    }

    /// Asks the head to empty this worker.
    pub async fn drain(&self, node: &NodeId) -> Result<(), Error> {
        self.connect().await?.client.impatient().drain(node.as_str(), None).await.map(drop)
    }

    /// The way to other workers' models.
    pub fn infer(&self) -> RemoteInfer {
        let cluster = self.clone();
        Arc::new(move |request| {
            let cluster = cluster.clone();
            async_stream::stream! {
                let calls = match cluster.connect().await {
                    Ok(connected) => connected.calls,
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

impl Cluster {
    /// Brings an object here from the worker that has it, unless it is; gives the path of its file.
    async fn fetch_object(&self, connected: &Connected, body: &[u8]) -> Result<Bytes, Error> {
        let name =
            ObjectName::decode(body).map_err(|e| Error::invalid(format!("failed to read the object's name: {e}")))?;
        let ObjectName { session, digest, node } = name.clone();
        let fetch = async |draft: std::path::PathBuf| {
            let reply = connected.client.raw("ListStores", Bytes::new()).await?;
            let stores = ListStoresReply::decode(reply).map_err(|e| Error::internal(e.to_string()))?.stores;
            let from = stores.into_iter().find(|s| s.node == node).ok_or_else(|| {
                Error::not_found("object", &digest).hint(format!("worker `{node}`, which had it, is gone"))
            })?;
            let there = std::path::Path::new(&from.folder).join(&session).join(&digest);
            if from.machine == covey_client::objects::machine() && tokio::fs::hard_link(there, &draft).await.is_ok() {
                return Ok(());
            }
            connected.client.get_file(&from, name, &draft).await
        };
        let path = self.inner.objects.obtain(&session, &digest, fetch).await?;
        Ok(Bytes::from(path.display().to_string()))
    }
}

impl Outward for Cluster {
    fn session(&self) -> String {
        self.inner.session.0.clone()
    }

    fn lane(&self, answers: mpsc::UnboundedSender<CallFrame>) -> mpsc::UnboundedSender<CallFrame> {
        #[expect(
            clippy::disallowed_methods,
            reason = "of one Python process, whose open calls and windows are the bound"
        )]
        let (tx, rx) = mpsc::unbounded_channel();
        tokio::spawn(carry(self.clone(), rx, answers));
        tx
    }

    fn verb(&self, name: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, Error>> {
        let cluster = self.clone();
        async move {
            let connected = cluster.connect().await?;
            if name == FETCH_OBJECT {
                return cluster.fetch_object(&connected, &body).await;
            }
            if name == CLOSE_POOL {
                connected.pools.close(&String::from_utf8_lossy(&body));
                return Ok(Bytes::new());
            }
            let reply = connected.client.raw(&name, body.clone()).await;
            if reply.as_ref().is_err_and(|error| error.kind == ErrorKind::Unauthenticated) {
                // The head made its keys anew; the next connection shows what the link was given since.
                *cluster.inner.connected.lock().await = None;
            }
            let reply = reply?;
            // What this connection believes is not true any more.
            match name.as_str() {
                "StopActor" => {
                    connected.calls.forget(&StopActorRequest::decode(body).unwrap_or_default().actor.into());
                }
                "JoinTopic" | "LeaveTopic" => {
                    connected.calls.forget_topic(&TopicRequest::decode(body).unwrap_or_default().topic);
                }
                _ => {}
            }
            Ok(reply)
        }
        .boxed()
    }
}

type OpenCalls = Arc<parking_lot::Mutex<HashMap<u64, (Connected, u64)>>>;

/// Makes calls of frames, one after the other, so that they keep their order.
async fn carry(
    cluster: Cluster,
    mut frames: mpsc::UnboundedReceiver<CallFrame>,
    answers: mpsc::UnboundedSender<CallFrame>,
) {
    let open = OpenCalls::default();
    let cancel = |(connected, id): (Connected, u64)| {
        if Pools::is_job(id) { connected.pools.cancel(id) } else { connected.calls.cancel(id) }
    };
    while let Some(frame) = frames.recv().await {
        let known = open.lock().get(&frame.id).cloned();
        match (frame.body, known) {
            (Some(Body::Open(call)), _) => match cluster.connect().await {
                Ok(connected) => start(connected, call, frame.id, answers.clone(), &open),
                Err(error) => {
                    let end = Body::End(failure(error.executed(Some(false))));
                    let _ = answers.send(CallFrame { id: frame.id, body: Some(end) });
                }
            },
            (Some(Body::Cancel(_)), Some(known)) => cancel(known),
            (Some(Body::Credit(items)), Some((c, id))) if Pools::is_job(id) => c.pools.credit(id, items),
            (Some(Body::Credit(items)), Some((c, id))) => c.calls.credit(id, items),
            _ => {}
        }
    }
    // The process that asked is gone.
    let left: Vec<_> = open.lock().drain().map(|(_, call)| call).collect();
    left.into_iter().for_each(cancel);
}

fn start(
    connected: Connected,
    call: CallOpen,
    asked: u64,
    answers: mpsc::UnboundedSender<CallFrame>,
    open: &OpenCalls,
) {
    // Known before it starts: its end may come at once.
    open.lock().insert(asked, (connected.clone(), 0));
    let table = open.clone();
    let handler = move |_, event| {
        let body = match event {
            CallEvent::Item(item) => Body::Item(item),
            CallEvent::End(end) => {
                table.lock().remove(&asked);
                Body::End(call_end(end))
            }
        };
        let _ = answers.send(CallFrame { id: asked, body: Some(body) });
    };
    let (target, pool) = match call.target {
        Some(call_open::Target::Actor(actor)) => (Target::Actor(actor.into()), None),
        Some(call_open::Target::Model(model)) => (Target::Model(model), None),
        Some(call_open::Target::Topic(topic)) => (Target::Topic(topic), None),
        Some(call_open::Target::Pool(spec)) => (Target::Actor("".into()), Some(spec)),
        // No client sends such a call; its answer is "no such actor".
        None => (Target::Actor("".into()), None),
    };
    let args = call.args.unwrap_or_default();
    let (timeout_ms, key, retries, chain) = (call.timeout_ms, call.key, call.retries, call.chain);
    let (traceparent, run_timeout_ms, alone) = (call.traceparent, call.run_timeout_ms, call.alone);
    let retry = call.retry.map(|retry| {
        let (backoff_ms, backoff_max_ms) = (retry.backoff_ms, retry.backoff_max_ms);
        Arc::new(covey_domain::Retry { max: retries, on: retry.on, backoff_ms, backoff_max_ms })
    });
    let method = call.method;
    let call =
        NewCall { target, method, args, timeout_ms, key, retries, chain, traceparent, run_timeout_ms, retry, alone };
    let id = match pool {
        Some(spec) => connected.pools.start(&spec, call, handler),
        None => connected.calls.start(call, handler),
    };
    if let Some(known) = open.lock().get_mut(&asked) {
        known.1 = id;
    }
}
