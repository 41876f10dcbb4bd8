//! The Rust client. Python and the command line stand on it, with the same words.
//!
//! [`Client::connect`] opens one channel; unary verbs go over it, again where the head was away ([`Client::raw`]), and all calls share one stream
//! ([`Calls`]) that batches frames both ways.

mod calls;
mod follow;
mod logs;
pub mod objects;
mod pool;
mod raw;
mod reach;
mod retry;

use reach::Roads;

pub use calls::{CallEvent, Calls, Loopback, NewCall, Target, Waits, retry_message};
pub use logs::Printed;
pub use pool::{CLOSE_POOL, PoolSpec, Pools};

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use covey_domain::{
    AgentSpec, Envelope, Error, ErrorKind, NodeId, TaskId, TaskRecord, caps,
    event::Content,
    status::{ActorFilter, ActorStatus, ClusterStatus},
    task::TaskInput,
};
use covey_mesh::Visitor;
use covey_node::{
    Identity,
    private::{self, Private},
    tls::{PinnedAddress, Tls, Tunnel, dial},
};
use covey_proto::{
    from_heads_json, from_status, to_json,
    v1::{self, Payload, covey_client::CoveyClient},
};
use futures::{Stream, StreamExt as _};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// Puts the credentials on every request.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    fn of(key: &str) -> Result<Self, Error> {
        let value = MetadataValue::try_from(format!("Bearer {key}"));
        value.map(Self).map_err(|_| Error::invalid("the key is not text"))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A connection to a head. Clones share it.
#[derive(Clone)]
pub struct Client {
    rpc: CoveyClient<InterceptedService<Channel, Bearer>>,
    service: InterceptedService<Channel, Bearer>,
    address: String,
    roads: Roads,
    /// How long a verb waits for a head that is away, milliseconds.
    patience: Arc<AtomicU64>,
}

/// A request for an actor.
#[derive(Clone, Debug, Default)]
pub struct NewActor {
    /// Of which agent.
    pub agent: String,
    /// The session it lives for; empty = detached.
    pub session: String,
    /// Unique name; empty = none.
    pub name: String,
    /// Take the one that has the name.
    pub get_if_exists: bool,
    /// Constructor arguments.
    pub init: Option<Payload>,
    /// Merged over the agent's spec.
    pub overrides: BTreeMap<String, serde_json::Value>,
    /// Isolation of the process that asks, as a worker says it; empty = none.
    pub least: String,
}

/// A request for a task.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Of which agent.
    pub agent: String,
    /// Which skill; empty = the default.
    pub skill: String,
    /// What is asked.
    pub input: TaskInput,
    /// Which conversation; empty = a new one.
    pub context: String,
    /// Same id, same task; empty = always a new one.
    pub message_id: String,
    /// Bound; 0 = the agent's.
    pub timeout_ms: u64,
    /// Model asked for; empty = the agent's.
    pub model: String,
}

/// How long a port has to answer the first word.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Somebody listens there, who does not speak as a head does.
fn not_a_head(address: &str, what: &str) -> Error {
    let what = if what.is_empty() { "it closes the connection" } else { what };
    let text = format!("what listens at `{address}` is no head that speaks without TLS: {what}");
    Error::unavailable(text).hint(
        "`covey up` and `covey head` print a head's address; does it speak TLS? then its address carries a fingerprint: \
         `covey token --address` prints it",
    )
}

impl Client {
    /// Connects to `host:port`, or `host:port#fingerprint` where the head speaks TLS (`covey://` may stand before both),
    /// with a key. Workers that cannot be dialled are reached through the mesh, where the head has one.
    pub async fn connect(address: &str, key: &str) -> Result<Self, Error> {
        let at: PinnedAddress = address.parse()?;
        let mut client = Self::connect_as(&at, key, None).await?;
        if at.pin.is_none() {
            // A port that speaks only TLS, or another protocol, takes the connection and breaks it at the first word.
            let mut rpc = client.rpc.clone();
            let first = tokio::time::timeout(FIRST_ANSWER, rpc.list_stores(v1::Empty {})).await;
            let first = first.unwrap_or_else(|_| Err(Status::unavailable("it says nothing")));
            if let Err(error) = first.map_err(|s| from_status(&s)) {
                return Err(match error.kind {
                    ErrorKind::Unavailable => not_a_head(&at.address, &error.message),
                    _ => error,
                });
            }
        }
        if !at.is_loopback() {
            let door = client.clone();
            client.roads.tunnel = Some(Arc::new(Visitor::new(move |node| {
                let door = door.clone();
                Box::pin(async move { door.enter_mesh(node).await })
            })));
        }
        Ok(client)
    }

    /// Like [`Self::connect`], for a node that shows its certificate to whom it dials.
    pub async fn connect_as(at: &PinnedAddress, key: &str, identity: Option<Arc<Identity>>) -> Result<Self, Error> {
        at.check()?;
        let bearer = Bearer::of(key)?;
        let tls = at.pin.map(|pin| Tls::head(pin, identity.as_ref())).transpose()?;
        let channel = dial(&at.address, tls, |endpoint| {
            endpoint
                .connect_timeout(Duration::from_secs(5))
                // A head that is gone without a word is noticed while a stream to it is open.
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(10))
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
        });
        let channel = channel.await.map_err(|e| match e.kind {
            ErrorKind::Unavailable => {
                let text = format!("failed to reach a head at `{}`: {}", at.address, e.message);
                Error::unavailable(text).hint(match at.pin {
                    Some(_) => "is it running, and of that cluster? `covey token --address` on its machine prints its address and fingerprint",
                    None => "is it running? `covey up` starts one; a head on another machine wants an address with a fingerprint",
                })
            }
            _ => e,
        })?;
        let service = InterceptedService::new(channel, bearer);
        let rpc = CoveyClient::new(service.clone())
            .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
        let patience = Arc::new(AtomicU64::new(caps::SESSION_GRACE_MS));
        Ok(Self { rpc, service, address: at.address.clone(), roads: Roads { identity, tunnel: None }, patience })
    }

    /// Reaches workers that it cannot dial through `tunnel`.
    #[must_use]
    pub fn with_tunnel(mut self, tunnel: Arc<dyn Tunnel>) -> Self {
        self.roads.tunnel = Some(tunnel);
        self
    }

    /// The same connection; its verbs fail at once where the head is away, instead of waiting for it.
    #[must_use]
    pub fn impatient(&self) -> Self {
        Self { patience: Arc::new(AtomicU64::new(0)), ..self.clone() }
    }

    /// Asks the head to let `node` into the mesh; gives the addresses of its relay, and who that is.
    pub async fn enter_mesh(&self, node: NodeId) -> Result<(Vec<SocketAddr>, NodeId), Error> {
        let request = v1::EnterMeshRequest { node: node.to_string() };
        let relay = self.verb::<v1::EnterMeshReply>("EnterMesh", &request).await?.node;
        let found = tokio::net::lookup_host(&self.address).await;
        let at = found.map_err(|e| Error::unavailable(format!("failed to look up `{}`: {e}", self.address)))?;
        Ok((at.collect(), relay.into()))
    }

    /// Connects with what [`covey_node::Credentials::find`] finds.
    pub async fn connect_default() -> Result<Self, Error> {
        let (address, key) = covey_node::Credentials::find()?;
        Self::connect(&address, &key).await.map_err(|error| match error.kind {
            // Whoever looks for a driver's own cluster is told of it.
            ErrorKind::Unavailable => match Private::running().as_slice() {
                [] => error,
                running => {
                    error.hint(format!("drivers have clusters of their own here:\n    {}", private::shown(running)))
                }
            },
            _ => error,
        })
    }

    /// `host:port` of the head.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes an agent known. `false`: it was, with the same definition.
    pub async fn register(&self, spec: &AgentSpec, code: Vec<u8>) -> Result<bool, Error> {
        let request = v1::RegisterAgentRequest { spec: to_json(spec), code: code.into() };
        Ok(self.verb::<v1::RegisterAgentReply>("RegisterAgent", &request).await?.created)
    }

    /// All agents.
    pub async fn agents(&self) -> Result<Vec<AgentSpec>, Error> {
        let reply = self.verb::<v1::ListAgentsReply>("ListAgents", &v1::ListAgentsRequest {}).await?;
        reply.specs.iter().map(|s| from_heads_json("an agent", s)).collect()
    }

    /// Makes an actor.
    pub async fn create_actor(&self, new: NewActor) -> Result<v1::ActorReply, Error> {
        let request = v1::CreateActorRequest {
            agent: new.agent,
            session: new.session,
            name: new.name,
            get_if_exists: new.get_if_exists,
            init: new.init,
            id: fresh_id("actor"),
            overrides: if new.overrides.is_empty() { Default::default() } else { to_json(&new.overrides) },
            least: new.least,
        };
        self.verb("CreateActor", &request).await
    }

    /// An actor by name.
    pub async fn actor_named(&self, name: &str) -> Result<v1::ActorReply, Error> {
        let request = v1::GetActorRequest { actor: String::new(), name: name.to_owned() };
        self.verb("GetActor", &request).await
    }

    /// Ends an actor.
    pub async fn stop_actor(&self, actor: &str, drain: bool) -> Result<(), Error> {
        let request = v1::StopActorRequest { actor: actor.to_owned(), drain };
        self.verb::<v1::Empty>("StopActor", &request).await?;
        Ok(())
    }

    /// Makes a task; when this returns it is on the head's disk.
    pub async fn submit(&self, new: NewTask) -> Result<v1::SubmitReply, Error> {
        let input = Payload { body: to_json(&new.input), ..Payload::default() };
        covey_proto::check_task_size("the task's input", &input)?;
        let request = v1::SubmitRequest {
            agent: new.agent,
            skill: new.skill,
            input: input.body,
            context: new.context,
            // So that it can be sent again where the answer was lost.
            message_id: some_id(new.message_id),
            timeout_ms: new.timeout_ms,
            model: new.model,
        };
        self.verb("Submit", &request).await
    }

    /// Says something to a task that has not ended: the answer to its oldest question, or a word to what it does. The same
    /// `message_id` is taken once; empty is none.
    pub async fn say(&self, task: &TaskId, parts: &[Content], message_id: &str) -> Result<(), Error> {
        let parts = Payload { body: to_json(&parts), ..Payload::default() };
        covey_proto::check_task_size("the message", &parts)?;
        let request = v1::SayTaskRequest {
            task: task.to_string(),
            parts: parts.body,
            message_id: some_id(message_id.to_owned()),
            ..v1::SayTaskRequest::default()
        };
        self.verb::<v1::TaskReply>("SayTask", &request).await?;
        Ok(())
    }

    /// A key for a caller that does not own the cluster: it sees these agents (none = all) and its own tasks.
    pub async fn add_key(&self, request: v1::AddKeyRequest) -> Result<String, Error> {
        Ok(self.verb::<v1::AddKeyReply>("AddKey", &request).await?.key)
    }

    /// A join token beside the cluster's own, for so long (0 = a day), for one node where that is said.
    pub async fn add_join_token(&self, once: bool, for_ms: u64) -> Result<String, Error> {
        let request = v1::AddJoinTokenRequest { once, for_ms };
        Ok(self.verb::<v1::AddKeyReply>("AddJoinToken", &request).await?.key)
    }

    /// Makes one of the cluster's secrets anew: `admin`, `join` or `workers`. Gives the new one, of the first two.
    pub async fn rotate_key(&self, what: &str) -> Result<String, Error> {
        let request = v1::RotateKeyRequest { what: what.to_owned() };
        Ok(self.verb::<v1::AddKeyReply>("RotateKey", &request).await?.key)
    }

    /// Sets a secret that definitions refer to as `secret://NAME`. With `workers`, workers may read it for what their own
    /// settings refer to.
    pub async fn set_secret(&self, name: &str, value: &str, workers: bool) -> Result<(), Error> {
        let request = v1::SetSecretRequest { name: name.to_owned(), value: value.to_owned(), workers };
        self.verb::<v1::Empty>("SetSecret", &request).await.map(drop)
    }

    /// Names of secrets; their values are not told.
    pub async fn secrets(&self) -> Result<Vec<v1::list_secrets_reply::Secret>, Error> {
        Ok(self.verb::<v1::ListSecretsReply>("ListSecrets", &v1::Empty {}).await?.secrets)
    }

    /// Takes a secret away. What runs keeps what it was started with.
    pub async fn remove_secret(&self, name: &str) -> Result<(), Error> {
        let request = v1::SecretName { name: name.to_owned() };
        self.verb::<v1::Empty>("RemoveSecret", &request).await.map(drop)
    }

    /// What is known of callers' keys.
    pub async fn keys(&self) -> Result<Vec<v1::CallerKey>, Error> {
        let reply = self.verb::<v1::ListKeysReply>("ListKeys", &v1::ListKeysRequest {}).await?;
        Ok(reply.keys)
    }

    /// A caller's key opens nothing any more.
    pub async fn remove_key(&self, caller: &str) -> Result<(), Error> {
        let request = v1::RemoveKeyRequest { caller: caller.to_owned() };
        self.verb::<v1::Empty>("RemoveKey", &request).await.map(drop)
    }

    /// A task's record.
    pub async fn task(&self, id: &TaskId) -> Result<TaskRecord, Error> {
        let request = v1::GetTaskRequest { task: id.to_string(), ..v1::GetTaskRequest::default() };
        let reply = self.verb::<v1::TaskReply>("GetTask", &request).await?;
        from_heads_json("a task", &reply.record)
    }

    /// The number of a task's last event.
    pub async fn last_event(&self, id: &TaskId) -> Result<u64, Error> {
        let request = v1::GetTaskRequest { task: id.to_string(), ..v1::GetTaskRequest::default() };
        Ok(self.verb::<v1::TaskReply>("GetTask", &request).await?.last_seq)
    }

    /// Keeps a blob at the head under its digest (SHA-256, hex).
    pub async fn put_blob(&self, digest: &str, body: Vec<u8>) -> Result<(), Error> {
        let request = v1::PutBlobRequest { digest: digest.to_owned(), body: body.into() };
        self.verb::<v1::Empty>("PutBlob", &request).await?;
        Ok(())
    }

    /// Tasks, newest first, up to `limit`, from below the task `before`; empty filters take all.
    pub async fn tasks(&self, agent: &str, state: &str, before: &str, limit: u32) -> Result<Vec<TaskRecord>, Error> {
        let (agent, state) = (agent.to_owned(), state.to_owned());
        let mut request = v1::ListTasksRequest { agent, state, limit, before: before.to_owned() };
        let mut tasks = Vec::new();
        while request.limit > 0 {
            let reply = self.verb::<v1::ListTasksReply>("ListTasks", &request).await?;
            for record in &reply.records {
                tasks.push(from_heads_json("a task", record)?);
            }
            request.limit = limit.saturating_sub(tasks.len() as u32);
            request.before = reply.next;
            if request.before.is_empty() {
                break;
            }
        }
        Ok(tasks)
    }

    /// Actors in the order of their ids, fetched page by page as they are read.
    pub fn actors(&self, filter: ActorFilter) -> impl Stream<Item = Result<ActorStatus, Error>> + use<> {
        let client = self.clone();
        async_stream::try_stream! {
            let ActorFilter { agent, state, node, name } = filter;
            let mut request = v1::ListActorsRequest { agent, state, node, name, ..v1::ListActorsRequest::default() };
            loop {
                let reply = client.verb::<v1::ListActorsReply>("ListActors", &request).await?;
                for actor in &reply.actors {
                    yield from_heads_json("an actor", actor)?;
                }
                if reply.next.is_empty() {
                    return;
                }
                request.after = reply.next;
            }
        }
    }

    /// What the Python processes of each worker use, by node; an error where a worker cannot be reached from here.
    pub async fn usage(&self) -> Result<Vec<(NodeId, Result<v1::UsageReply, Error>)>, Error> {
        let stores = self.verb::<v1::ListStoresReply>("ListStores", &v1::Empty {}).await?.stores;
        let asked = stores.into_iter().map(|store| async move {
            let usage = async {
                let mut worker = self.reach(&store).await?;
                Ok(worker.get_usage(v1::Empty {}).await.map_err(|s| from_status(&s))?.into_inner())
            };
            let usage = usage.await;
            (NodeId::from(store.node), usage)
        });
        Ok(futures::future::join_all(asked).await)
    }

    /// Ends a task.
    pub async fn cancel_task(&self, id: &TaskId, reason: &str) -> Result<TaskRecord, Error> {
        let (task, reason) = (id.to_string(), reason.to_owned());
        let request = v1::CancelTaskRequest { task, reason, ..v1::CancelTaskRequest::default() };
        from_heads_json("a task", &self.verb::<v1::TaskReply>("CancelTask", &request).await?.record)
    }

    /// Events of a task above `after`, to its end. A broken connection is an error; read on from the last number.
    pub async fn subscribe(
        &self,
        id: &TaskId,
        after: u64,
    ) -> Result<impl Stream<Item = Result<Envelope, Error>> + use<>, Error> {
        let request = v1::SubscribeRequest { task: id.to_string(), after };
        let stream = self.rpc.clone().subscribe(request).await.map_err(|s| from_status(&s))?.into_inner();
        Ok(stream.flat_map(|batch| {
            let events = match batch {
                Ok(batch) => batch.envelopes.iter().map(|e| from_heads_json("an event", e)).collect(),
                Err(status) => vec![Err(from_status(&status))],
            };
            futures::stream::iter(events)
        }))
    }

    /// Begins to empty a node, by id or name; gives its id. It is empty once its status lists no actors. Calls under way are
    /// ended after `within`, or after the head's own time (30 s).
    pub async fn drain(&self, node: &str, within: Option<Duration>) -> Result<String, Error> {
        let within_ms = within.map_or(0, |t| (t.as_millis() as u64).max(1));
        let request = v1::DrainNodeRequest { node: node.to_owned(), within_ms };
        Ok(self.verb::<v1::DrainNodeReply>("DrainNode", &request).await?.node)
    }

    /// What is not tried again, oldest first: calls that ended their actor's process, tasks out of attempts.
    pub async fn dead_letters(&self) -> Result<Vec<v1::DeadLetter>, Error> {
        Ok(self.verb::<v1::ListDeadLettersReply>("ListDeadLetters", &v1::Empty {}).await?.letters)
    }

    /// A picture of the cluster.
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        let reply = self.verb::<v1::StatusReply>("Status", &v1::StatusRequest {}).await?;
        from_heads_json("the status", &reply.status)
    }

    /// The stream all calls of `session` share. The session outlives breaks of it, for the head's grace time; it ends, and
    /// its actors with it, when [`Calls::leave`] says so or the last clone is dropped.
    pub async fn calls(&self, session: &str) -> Result<Calls, Error> {
        self.calls_of(Some(calls::Session::new(session))).await
    }

    /// The same with a secret of the caller's own, at least 16 characters: with it another process goes on with the session.
    pub async fn calls_as(&self, session: &str, secret: &str) -> Result<Calls, Error> {
        let (id, secret) = (session.to_owned(), secret.to_owned());
        self.calls_of(Some(calls::Session { id, secret })).await
    }

    async fn calls_of(&self, session: Option<calls::Session>) -> Result<Calls, Error> {
        Calls::open(self.rpc.clone(), session, self.roads.clone(), self.patience.clone()).await
    }

    /// The same for whoever has no actors of its own.
    pub async fn calls_without_session(&self) -> Result<Calls, Error> {
        self.calls_of(None).await
    }
}

/// An id that nobody else makes: time and random bits.
pub fn fresh_id(prefix: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    format!("{prefix}-{since:x}{:016x}", rand::random::<u64>())
}

/// The id of a message, or a fresh one: a message without cannot be sent again when it is not known whether it arrived.
pub fn some_id(id: String) -> String {
    if id.is_empty() { fresh_id("m") } else { id }
}

/// One argument for a task of a native agent, as [`TaskInput::call`] takes it.
pub fn call_of<T: serde::Serialize>(argument: &T) -> String {
    use base64::Engine as _;
    use prost::Message as _;
    let payload = covey_proto::payload_json(&serde_json::json!({"args": [argument]}));
    base64::engine::general_purpose::STANDARD.encode(payload.encode_to_vec())
}
