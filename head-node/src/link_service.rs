//! The head's end of a worker's link.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use covey_cluster_core::{
    head::{ActorReport, Entry, HeldTask, Hello, LivingActor},
    lease,
};
use covey_domain::{
    ActorId, Epoch, Error, Isolation, NodeId, Resources, TaskEvent, caps, isolation::Offer, shown, status::ModelStatus,
};
use covey_node::{
    auth::{Principal, bearer},
    tls::CameFrom,
};
use covey_proto::{
    from_json, to_status,
    v1::{self, FromWorker, HeadFrame, ToWorker, head_frame, link_server, worker_frame::Body},
};
use futures::stream::BoxStream;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Shared,
    handing::Handing,
    owner::Input,
    probe,
    queue::{self, Behind, Frames, Reader},
    relay::{Direct, LINK},
};

/// Frames put into one message.
const BATCH_MAX: usize = 1_024;

/// The worker that a request's credential is of.
pub(crate) fn node_of<T>(request: &Request<T>) -> Option<NodeId> {
    match request.extensions().get::<Principal>() {
        Some(Principal::Worker(node)) => Some(node.clone()),
        _ => None,
    }
}

/// A worker spoke in the name of another.
pub(crate) fn not_the_node(own: &NodeId, named: &NodeId) -> Error {
    let text = format!("the credential is that of node `{own}`, the request is about node `{named}`");
    Error::new(covey_domain::ErrorKind::PermissionDenied, text)
}

pub(crate) struct LinkService {
    pub shared: Shared,
    pub conns: AtomicU64,
}

#[tonic::async_trait]
impl link_server::Link for LinkService {
    type AttachStream = BoxStream<'static, Result<ToWorker, Status>>;

    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollReply>, Status> {
        let (authority, keys) = (&self.shared.authority, &self.shared.keys);
        let token = bearer(request.metadata().get("authorization").and_then(|v| v.to_str().ok())).unwrap_or_default();
        let token = token.to_owned();
        let known = node_of(&request);
        let v1::EnrollRequest { public_key, proof } = request.into_inner();
        let enroll = || {
            let (node, certificate) = authority.for_node(&token, &public_key, &proof)?;
            match known {
                Some(known) if known != node => return Err(not_the_node(&known, &node)),
                Some(_) => {}
                None => keys.enrols(&token, &node)?,
            }
            Ok((node, certificate))
        };
        let (node, certificate) = enroll().map_err(|e| to_status(&e))?;
        let (credential, until_s) = keys.for_worker(&node);
        tracing::info!(%node, "a node was enrolled");
        let authority = authority.certificate().to_vec().into();
        Ok(Response::new(v1::EnrollReply { certificate: certificate.into(), authority, credential, until_s }))
    }

    async fn attach(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::AttachStream>, Status> {
        let known = node_of(&request);
        let from = request.extensions().get::<CameFrom>().map(|from| from.0);
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(10), stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        let mut frames = first.map(|m| m.frames).unwrap_or_default().into_iter();
        let Some(Body::Hello(hello)) = frames.next().and_then(|f| f.body) else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        if hello.version != env!("CARGO_PKG_VERSION") {
            let error = Error::new(
                covey_domain::ErrorKind::FailedPrecondition,
                format!("the worker is version {}, the head {}", hello.version, env!("CARGO_PKG_VERSION")),
            );
            return Err(to_status(&error.hint("run the same version on all nodes")));
        }
        let node = NodeId::from(hello.node.as_str());
        // The node of a link is the node of its credential.
        match known {
            Some(known) if known == node => {}
            known => return Err(to_status(&not_the_node(&known.unwrap_or_else(|| "".into()), &node))),
        }
        let conn = self.conns.fetch_add(1, Ordering::Relaxed) + 1;
        let direct =
            Direct { port: hello.port.clone(), machine: hello.machine.clone(), objects: hello.objects.clone() };
        let mut hello = decode_hello(&hello).map_err(|e| to_status(&e))?;
        hello.port = probe::answers(&hello.port, from).await.map(|at| at.to_string()).unwrap_or_default();
        let shared = self.shared.clone();
        let (tx, rx) = queue::queue(LINK);
        let over = Over::default();
        let link = Link { node, conn, incarnation: hello.incarnation, port: hello.port.clone(), over: over.clone() };
        let (name, models) = (hello.name.clone(), hello.models.clone());
        // The link is known before the owner speaks to the node, and the welcome comes before both.
        let known = {
            let (relay, node, tx) = (shared.relay.clone(), link.node.clone(), tx.clone());
            Box::new(move || relay.link(&node, conn, tx, over, models, direct))
        };
        let joined = shared.owner.ask(|reply| Input::Joined(link.node.clone(), conn, Box::new(hello), known, reply));
        let durable = joined.await.and_then(|joined| joined).map_err(|e| to_status(&e))?;
        let welcome = v1::Welcome {
            term: shared.term,
            durable,
            lease_ms: lease::told_ms(shared.times.lease_ms),
            heartbeat_ms: (shared.times.lease_ms / 10).clamp(50, 1_000),
        };
        tracing::info!(node = %link.node, name, conn, durable, "worker joined");
        let outgoing = write(welcome, rx, link.over.clone(), shared.shutdown.clone());
        tokio::spawn(link.read(shared, stream, tx));
        Ok(Response::new(Box::pin(outgoing)))
    }
}

/// Ends a link in both directions, whoever else still holds an end of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Over(Arc<(CancellationToken, OnceLock<&'static str>)>);

impl Over {
    /// The link is closed. The worker may dial anew and keep what it has.
    pub fn close(&self) {
        self.0.0.cancel();
    }

    /// The link is closed, and the worker is told to stop everything it has first.
    pub fn fence(&self, reason: &'static str) {
        let _ = self.0.1.set(reason);
        self.close();
    }

    /// Waits for the end; gives the reason of a fence.
    async fn wait(&self) -> Option<&'static str> {
        self.0.0.cancelled().await;
        self.0.1.get().copied()
    }
}

/// One link from its hello to its end.
struct Link {
    node: NodeId,
    conn: u64,
    incarnation: u64,
    /// Where its process can be seen to be there; empty = nowhere.
    port: String,
    over: Over,
}

/// Everything sent before the welcome was queued after it here: the worker sees the welcome first. What is sent before the link
/// is over still goes out; then the worker is told of a fence.
fn write(
    welcome: v1::Welcome,
    mut rx: Reader<HeadFrame>,
    over: Over,
    shutdown: CancellationToken,
) -> impl futures::Stream<Item = Result<ToWorker, Status>> {
    async_stream::stream! {
        yield Ok(ToWorker { frames: vec![HeadFrame { body: Some(head_frame::Body::Welcome(welcome)) }] });
        loop {
            let mut frames = Vec::new();
            let more = tokio::select! {
                biased;
                () = shutdown.cancelled() => 0,
                taken = rx.recv_many(&mut frames, BATCH_MAX) => taken.unwrap_or_else(|Behind| {
                    tracing::warn!("a worker does not take what it is told; its link is closed");
                    0
                }),
                reason = over.wait() => {
                    if let Some(reason) = reason {
                        let fenced = head_frame::Body::Fenced(v1::Fenced { reason: reason.to_owned() });
                        yield Ok(ToWorker { frames: vec![HeadFrame { body: Some(fenced) }] });
                    }
                    0
                }
            };
            if more == 0 {
                return;
            }
            for frames in covey_proto::split(frames) {
                yield Ok(ToWorker { frames });
            }
        }
    }
}

impl Link {
    async fn read(self, shared: Shared, mut stream: Streaming<FromWorker>, tx: Frames<HeadFrame>) {
        let Self { node, conn, .. } = &self;
        let mut handing = Handing::default();
        let reason = loop {
            let message = tokio::select! {
                reason = self.over.wait() => break reason.unwrap_or("a newer link took its place").to_owned(),
                () = tx.closed() => break "the answer stream was closed".to_owned(),
                answer = handing.answered() => match answer {
                    Ok(()) => continue,
                    Err(error) => break error.message,
                },
                message = stream.message() => message,
            };
            match message {
                Ok(Some(message)) => {
                    if let Err(error) = take_all(&shared, node, *conn, message.frames, &mut handing, &tx).await {
                        break error.message;
                    }
                }
                Ok(None) => break "the worker closed it".to_owned(),
                Err(status) => break status.message().to_owned(),
            }
        };
        tracing::warn!(%node, conn, reason, "link lost");
        self.over.close();
        shared.owner.tell(Input::Unlinked(node.clone(), *conn)).await;
        shared.relay.drop_link(node, *conn);
        if !self.port.is_empty() {
            probe::watch(shared, self.node, self.incarnation, self.port).await;
        }
    }
}

/// Takes the frames of one message in their order; neighbouring entries reach the owner together, and not too much of them: what
/// others say comes between.
async fn take_all(
    shared: &Shared,
    node: &NodeId,
    conn: u64,
    frames: Vec<v1::WorkerFrame>,
    handing: &mut Handing,
    tx: &Frames<HeadFrame>,
) -> Result<(), Error> {
    let mut gathered = Gathered::default();
    for body in frames.into_iter().filter_map(|frame| frame.body) {
        match body {
            Body::Entry(entry) => {
                let more = entry.encoded_len();
                if gathered.bytes + more > caps::ENTRY_BYTES_MAX {
                    gathered.hand_over(shared, node, conn, handing).await?;
                }
                gathered.bytes += more;
                gathered.entries.push(decode_entry(entry));
            }
            other => {
                gathered.hand_over(shared, node, conn, handing).await?;
                take(shared, node, conn, other, tx).await?;
            }
        }
    }
    gathered.hand_over(shared, node, conn, handing).await
}

/// Neighbouring entries of one message, and their bytes.
#[derive(Default)]
struct Gathered {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Gathered {
    /// Gives to the owner what there is, if there is anything.
    async fn hand_over(
        &mut self,
        shared: &Shared,
        node: &NodeId,
        conn: u64,
        handing: &mut Handing,
    ) -> Result<(), Error> {
        let Self { entries, bytes } = std::mem::take(self);
        match entries.is_empty() {
            true => Ok(()),
            false => handing.give(&shared.owner, node, conn, entries, bytes).await,
        }
    }
}

/// What cannot be read is taken too, as that: the worker would send it again for ever.
fn decode_entry(entry: v1::OutboxEntry) -> Entry {
    let read = |event: &bytes::Bytes| {
        covey_domain::json::check("an event", event)?;
        TaskEvent::read(event).map_err(|why| Error::invalid(format!("failed to read an event: {why}")))
    };
    let events = entry.events.iter().map(read).collect();
    let (number, attempt, ts_ms) = (entry.number, entry.attempt, entry.ts_ms);
    Entry { number, task: entry.task.into(), attempt, ts_ms, events }
}

/// What a worker says of an actor. `None`: that it is on its way up, which only a hello says.
fn decode_report(report: &v1::ActorReport) -> Option<ActorReport> {
    use v1::actor_report::State;
    let why = || report.failure.as_ref().map(|f| f.message.clone()).unwrap_or_default();
    Some(match report.state() {
        State::Starting => return None,
        State::Live => ActorReport::Live,
        State::Stopped => ActorReport::Stopped { lost: report.failure.as_ref().map(|f| f.message.clone()) },
        State::Preparing => ActorReport::Preparing(why()),
        State::Slept => ActorReport::Slept,
        State::Waiting => ActorReport::Waiting,
        State::Stuck => ActorReport::Stuck(why()),
        State::Leaving => ActorReport::Leaving(why()),
        State::Died => ActorReport::Died {
            error: report.failure.clone().map_or_else(|| Error::internal("the actor died"), Error::from),
            retryable: report.retryable,
        },
    })
}

async fn take(shared: &Shared, node: &NodeId, conn: u64, body: Body, tx: &Frames<HeadFrame>) -> Result<(), Error> {
    match body {
        Body::Hello(_) => return Err(Error::invalid("a second hello")),
        Body::Heartbeat(heartbeat) => {
            // The worker goes by this answer, so it comes after the owner has counted the beat.
            if !shared.owner.ask(|reply| Input::Heard(node.clone(), conn, reply)).await? {
                return Err(Error::unavailable("this link is over"));
            }
            tx.send(HeadFrame { body: Some(head_frame::Body::Heartbeat(heartbeat)) });
        }
        Body::Goodbye(_) => shared.owner.tell(Input::LetGo(node.clone(), conn)).await,
        Body::Entry(_) => return Err(Error::internal("entries are handed over together")),
        Body::Actor(report) => {
            let actor = ActorId::from(report.actor.as_str());
            let said = decode_report(&report).ok_or_else(|| Error::invalid("only a hello says what is starting"))?;
            shared.owner.tell(Input::ActorReport(node.clone(), actor, Epoch(report.epoch), said)).await;
        }
        Body::Call(frame) => shared.relay.take_from_worker(node, frame),
        Body::Models(report) => {
            let models: Vec<ModelStatus> = from_json("models", &report.models)?;
            shared.relay.models(node, models.clone());
            shared.owner.tell(Input::Models(node.clone(), models)).await;
        }
    }
    Ok(())
}

/// Of what a worker says its kernel lacks, so much is shown to those who wait.
const LACKS_CHARS_MAX: usize = 200;

fn decode_hello(hello: &v1::Hello) -> Result<Hello, Error> {
    let models: Vec<_> = hello.models.as_ref().map(|m| from_json("models", &m.models)).transpose()?.unwrap_or_default();
    shown::check_name("the worker's name", &hello.name)?;
    for (label, value) in &hello.labels {
        shown::check_name("a label of the worker", label)?;
        if !value.is_empty() {
            shown::check_name(&format!("label `{label}` of the worker"), value)?;
        }
    }
    let total: Resources = from_json("resources", &hello.resources)?;
    total.custom.keys().try_for_each(|name| shown::check_name("a resource of the worker", name))?;
    Ok(Hello {
        incarnation: hello.incarnation,
        name: hello.name.clone(),
        pid: hello.pid,
        total,
        labels: hello.labels.clone().into_iter().collect(),
        models,
        port: hello.port.as_ref().map(|port| port.address.clone()).unwrap_or_default(),
        python: (!hello.python.is_empty()).then(|| hello.python.clone()),
        no_python: hello.no_python.clone(),
        isolation: Offer {
            least: level(&hello.isolation_least)?,
            most: level(&hello.isolation_most)?,
            lacks: hello.isolation_lacks.chars().take(LACKS_CHARS_MAX).collect(),
        },
        actors: hello
            .actors
            .iter()
            .map(|a| LivingActor {
                actor: a.actor.as_str().into(),
                epoch: Epoch(a.epoch),
                agent: a.agent.as_str().into(),
                owner: a.owner.clone(),
                starting: a.state() == v1::actor_report::State::Starting,
                said: decode_report(a),
            })
            .collect(),
        tasks: hello
            .tasks
            .iter()
            .map(|t| HeldTask { task: t.task.as_str().into(), attempt: t.attempt, actor: t.actor.as_str().into() })
            .collect(),
    })
}

/// A level of isolation; workers of before say nothing of it.
fn level(name: &str) -> Result<Isolation, Error> {
    if name.is_empty() {
        return Ok(Isolation::default());
    }
    name.parse::<Isolation>().map_err(|e| Error::invalid(format!("`{name}` is no level of isolation: {e}")))
}
