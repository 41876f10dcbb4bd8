//! The native client API.

use std::{collections::HashSet, sync::Arc, time::Duration};

use covey_cluster_core::MOVE_WITHIN_MS;
use covey_cluster_core::head::{ActorInfo, CreateActor, Owner, Reminder};
use covey_domain::{
    ActorId, AgentName, AgentSpec, CallerId, Digest, Envelope, Epoch, Error, ErrorKind, Isolation, NodeId, SessionId,
    TaskId,
    agent::{Pass, is_job},
    caps,
    status::ActorFilter,
};
use covey_gateway::{Answered, Caller, Cluster as _, FoundTask, SayTask, SubmitTask};
use covey_proto::{
    from_json, to_json, to_status,
    v1::{self, CallBatch, call_frame::Body, covey_server::Covey},
};
use covey_store::TaskFilter;
use futures::{
    FutureExt as _, StreamExt as _,
    stream::{self, BoxStream, Fuse},
};
use parking_lot::Mutex;
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    callers,
    cluster::ClusterPort,
    drivers::Drivers,
    elsewhere, fresh_id,
    link_service::{node_of, not_the_node},
    owner::Input,
    queue::{self, Behind},
    relay::CLIENT,
    secrets::{Listed, names},
};

/// Longest wait for events that are read without a stream.
const READ_WAIT_MAX: Duration = Duration::from_secs(30);
/// Frames or events put into one message.
const BATCH_MAX: usize = 256;
/// Bytes of events put into one message, with one event above it: a few large ones would be more than a message may be.
const BATCH_BYTES: usize = 1 << 20;

/// The next events of a log as a message: those that are there, once there is one. `None`: there are no more.
async fn batch(
    events: &mut Fuse<BoxStream<'static, Result<Arc<Envelope>, Error>>>,
) -> Option<Result<v1::EventBatch, Status>> {
    let mut next = events.next().await;
    let (mut envelopes, mut bytes) = (Vec::new(), 0);
    while let Some(event) = next {
        match event {
            Ok(event) => envelopes.push(to_json(&*event)),
            Err(error) if envelopes.is_empty() => return Some(Err(to_status(&error))),
            // What was read goes out; its reader comes back for the rest, and hears of the error then.
            Err(_) => break,
        }
        bytes += envelopes.last().map_or(0, bytes::Bytes::len);
        if envelopes.len() >= BATCH_MAX || bytes >= BATCH_BYTES {
            break;
        }
        next = events.next().now_or_never().flatten();
    }
    (!envelopes.is_empty()).then_some(Ok(v1::EventBatch { envelopes, ended: false }))
}

pub(crate) struct ClientService {
    cluster: Arc<ClusterPort>,
    drivers: Drivers,
    /// Agents that actors made known, since this head's start: what others did is not theirs to replace.
    by_actors: Mutex<HashSet<AgentName>>,
}

impl ClientService {
    pub fn new(cluster: Arc<ClusterPort>) -> Self {
        Self { cluster, drivers: Drivers::default(), by_actors: Mutex::default() }
    }

    /// Whether an actor may make this agent what it says. One that the owner or a job made known stays as it is: the actor
    /// uses that.
    fn actors_may_register(&self, spec: &AgentSpec) -> bool {
        let mut theirs = self.by_actors.lock();
        let is_new = self.cluster.shared.agents.read().get(&spec.name).is_none_or(|known| **known == *spec);
        if is_new {
            theirs.insert(spec.name.clone());
        }
        is_new || theirs.contains(&spec.name)
    }

    /// A task that the caller sees, or that a capability opens; and for whom the caller acts on it. With a capability that is
    /// whoever submitted it: what is said to the task counts as that one's.
    async fn task_of(&self, caller: CallerId, task: &TaskId, capability: &str) -> Result<(CallerId, FoundTask), Error> {
        let Some(found) = self.cluster.look_up(task).await? else { return Err(not_seen(&caller, task)) };
        if callers::sees(&caller, &found.0.caller) {
            return Ok((caller, found));
        }
        match self.cluster.shared.keys.opens(capability, task) {
            true => Ok((found.0.caller.clone(), found)),
            false => Err(not_seen(&caller, task)),
        }
    }

    /// Keeps a blob under its digest; without a body it must be there.
    async fn keep_blob(&self, what: &str, digest: &str, body: &[u8]) -> Result<(), Error> {
        if body.len() > caps::CODE_BYTES_MAX {
            let text = format!("{what} is {} bytes, the limit is {}", body.len(), caps::CODE_BYTES_MAX);
            return Err(Error::new(ErrorKind::TooLarge, text).hint(
                "load big data inside the agent, or share it with covey.put, instead of shipping it with the code",
            ));
        }
        let store = &self.cluster.shared.store;
        let failed = |e: covey_store::Error| Error::internal(format!("failed to keep a blob: {e}"));
        if body.is_empty() {
            let known = store.blob(digest).await.map_err(failed)?.is_some();
            let missing =
                || Error::new(ErrorKind::FailedPrecondition, format!("{what}, `{digest}`, is not known here"));
            return known.then_some(()).ok_or_else(missing);
        }
        let own = Digest::of(body);
        if own.as_str() != digest {
            return Err(Error::invalid(format!("{what} does not have the digest that names it")));
        }
        store.put_blob(own.as_str(), body).await.map_err(failed)
    }
}

fn caller<T>(request: &Request<T>) -> CallerId {
    request.extensions().get::<Caller>().map_or_else(|| CallerId::from("nobody"), |c| c.id.clone())
}

/// Another's task is not found, as one that there never was.
fn not_seen(caller: &CallerId, task: &TaskId) -> Error {
    let error = Error::not_found("task", task);
    match caller.as_str() {
        callers::ACTORS => error.hint(
            "actors find the tasks that actors submitted; for another one, give the actor the `covey.Task` itself as an \
             argument, not its id",
        ),
        _ => error,
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn reply(info: ActorInfo) -> v1::ActorReply {
    v1::ActorReply {
        actor: info.id.to_string(),
        agent: info.spec.name.to_string(),
        state: info.state.to_owned(),
        why: String::new(),
        created: info.created,
        spec: to_json(&*info.spec),
    }
}

/// The id that a client made for an actor: it must not look like any other name.
fn chosen(id: String) -> Result<ActorId, Error> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match id.strip_prefix("actor-") {
        Some(rest) if !rest.is_empty() && id.len() <= 64 && rest.chars().all(plain) => Ok(id.into()),
        _ => Err(Error::invalid(format!("`{id}` is not an id for an actor"))),
    }
}

/// `by_worker`: a worker asks, for itself or for code in its processes.
fn new_actor(request: v1::CreateActorRequest, by_worker: bool) -> Result<CreateActor, Error> {
    let overrides =
        if request.overrides.is_empty() { Default::default() } else { from_json("options", &request.overrides)? };
    let least = match request.least.as_str() {
        "" => Isolation::None,
        name => {
            name.parse::<Isolation>().map_err(|e| Error::invalid(format!("`{name}` is no level of isolation: {e}")))?
        }
    };
    Ok(CreateActor {
        id: some(request.id).map_or_else(|| Ok(fresh_id("actor").into()), chosen)?,
        agent: request.agent.into(),
        name: some(request.name),
        get_if_exists: request.get_if_exists,
        owner: some(request.session).map_or(Owner::Detached, |s| Owner::Session(SessionId::from(s))),
        init: request.init.map(|payload| payload.encode_to_vec().into()),
        overrides,
        least,
        keeps_labels: by_worker,
    })
}

#[tonic::async_trait]
impl Covey for ClientService {
    type SubscribeStream = BoxStream<'static, Result<v1::EventBatch, Status>>;
    type CallsStream = BoxStream<'static, Result<CallBatch, Status>>;

    async fn register_agent(
        &self,
        request: Request<v1::RegisterAgentRequest>,
    ) -> Result<Response<v1::RegisterAgentReply>, Status> {
        let (by_actor, by_owner) = (node_of(&request).is_some(), caller(&request).as_str() == callers::OWNER);
        let request = request.into_inner();
        let result = async {
            let spec: AgentSpec = from_json("the agent", &request.spec)?;
            if by_actor && !self.actors_may_register(&spec) {
                tracing::debug!(agent = %spec.name, "an actor's definition of an agent that others made known was not taken");
                return Ok((false, Vec::new()));
            }
            let keys = &self.cluster.shared.keys;
            let known = self.cluster.shared.agents.read().get(&spec.name).is_some_and(|known| **known == spec);
            if !by_owner && !known && !spec.secrets().is_empty() {
                let text = "only the owner of the cluster, and the owner's jobs, define agents that refer to secrets";
                return Err(Error::new(ErrorKind::PermissionDenied, text));
            }
            let unset = spec.secrets().into_iter().find(|name| keys.secrets.value(name).is_none());
            let unset =
                unset.map(|name| format!("agent `{}` refers to the secret `{name}`, which is not set", spec.name));
            if let Some(digest) = spec.code() {
                let what = format!("the code of `{}`", spec.name);
                self.keep_blob(&what, digest.as_str(), &request.code).await?;
            }
            if let Some(digest) = spec.dir() {
                self.keep_blob(&format!("the working folder of `{}`", spec.name), digest.as_str(), &[]).await?;
            }
            let (owner, name) = (&self.cluster.shared.owner, spec.name.clone());
            let created = owner.ask(|tx| Input::Register(Box::new(spec), tx)).await??;
            let why = owner.ask(|tx| Input::Unservable(name.clone(), tx)).await?;
            let warning = |why| format!("no worker that is there now can run agent `{name}`: {why}");
            Ok((created, unset.into_iter().chain(why.map(warning)).collect()))
        };
        let (created, warnings) = result.await.map_err(|e: Error| to_status(&e))?;
        Ok(Response::new(v1::RegisterAgentReply { created, warnings }))
    }

    async fn connect_agent(
        &self,
        request: Request<v1::ConnectAgentRequest>,
    ) -> Result<Response<v1::ConnectAgentReply>, Status> {
        let request = request.into_inner();
        let connect = async {
            let spec: AgentSpec = from_json("the agent", &request.spec)?;
            let pass: Pass = from_json("what opens the agent", &request.pass)?;
            let was_named = !spec.name.as_str().is_empty();
            let shared = &self.cluster.shared;
            let spec = elsewhere::described(spec, &pass.resolved(|name| shared.keys.secrets.value(name))?).await?;
            // Who names an agent means to replace it.
            let known = shared.agents.read().get(&spec.name).cloned().filter(|known| known.kind != spec.kind);
            if known.is_some() && !was_named {
                let text = format!("another agent is named `{}` here", spec.name);
                return Err(Error::new(ErrorKind::AlreadyExists, text).hint("give this one a name of its own"));
            }
            shared.passes.keep(&spec, pass)?;
            let told = to_json(&spec);
            shared.owner.ask(|tx| Input::Register(Box::new(spec), tx)).await??;
            Ok(told)
        };
        let spec = connect.await.map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::ConnectAgentReply { spec }))
    }

    async fn add_key(&self, request: Request<v1::AddKeyRequest>) -> Result<Response<v1::AddKeyReply>, Status> {
        let v1::AddKeyRequest { caller, agents, models, for_ms } = request.into_inner();
        let agents = agents.into_iter().map(Into::into).collect();
        let key = self.cluster.shared.callers.add(&caller, agents, models, for_ms).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::AddKeyReply { key }))
    }

    async fn list_keys(&self, _: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysReply>, Status> {
        let all = self.cluster.shared.callers.list().into_iter();
        let keys = all.map(|(caller, key)| v1::CallerKey {
            caller,
            agents: key.agents.iter().map(ToString::to_string).collect(),
            models: key.models,
            made_ms: key.made_ms,
            until_ms: key.until_ms.unwrap_or(0),
        });
        Ok(Response::new(v1::ListKeysReply { keys: keys.collect() }))
    }

    async fn remove_key(&self, request: Request<v1::RemoveKeyRequest>) -> Result<Response<v1::Empty>, Status> {
        let (shared, name) = (&self.cluster.shared, request.into_inner().caller);
        shared.callers.remove(&name).map_err(|e| to_status(&e))?;
        callers::end(shared, &name.into()).await;
        Ok(Response::new(v1::Empty {}))
    }

    async fn add_join_token(
        &self,
        request: Request<v1::AddJoinTokenRequest>,
    ) -> Result<Response<v1::AddKeyReply>, Status> {
        let v1::AddJoinTokenRequest { once, for_ms } = request.into_inner();
        let key = self.cluster.shared.keys.add_join_token(once, for_ms).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::AddKeyReply { key }))
    }

    async fn rotate_key(&self, request: Request<v1::RotateKeyRequest>) -> Result<Response<v1::AddKeyReply>, Status> {
        let what = request.into_inner().what;
        let key = self.cluster.shared.keys.rotate(&what).map_err(|e| to_status(&e))?;
        tracing::warn!(what, "a secret of the cluster was made anew");
        Ok(Response::new(v1::AddKeyReply { key }))
    }

    async fn set_secret(&self, request: Request<v1::SetSecretRequest>) -> Result<Response<v1::Empty>, Status> {
        let v1::SetSecretRequest { name, value, workers } = request.into_inner();
        self.cluster.shared.keys.secrets.set(&name, value, workers).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn list_secrets(&self, _: Request<v1::Empty>) -> Result<Response<v1::ListSecretsReply>, Status> {
        let all = self.cluster.shared.keys.secrets.list().into_iter();
        let secrets =
            all.map(|Listed { name, workers, set_ms }| v1::list_secrets_reply::Secret { name, workers, set_ms });
        Ok(Response::new(v1::ListSecretsReply { secrets: secrets.collect() }))
    }

    async fn remove_secret(&self, request: Request<v1::SecretName>) -> Result<Response<v1::Empty>, Status> {
        self.cluster.shared.keys.secrets.remove(&request.into_inner().name).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn read_secret(&self, request: Request<v1::SecretName>) -> Result<Response<v1::SecretValue>, Status> {
        let value = self.cluster.shared.keys.secrets.for_worker(&request.into_inner().name);
        Ok(Response::new(v1::SecretValue { value: value.map_err(|e| to_status(&e))? }))
    }

    async fn put_blob(&self, request: Request<v1::PutBlobRequest>) -> Result<Response<v1::Empty>, Status> {
        let request = request.into_inner();
        self.keep_blob("the blob", &request.digest, &request.body).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn get_blob(&self, request: Request<v1::GetBlobRequest>) -> Result<Response<v1::GetBlobReply>, Status> {
        let node = node_of(&request);
        let digest = request.into_inner().digest;
        if let Some(node) = node {
            // Code comes with the start of its actor; what a worker asks for is the folder of a job that it runs.
            let tasks = self.cluster.shared.owner.ask(|tx| Input::TasksOn(node, tx)).await;
            let tasks = tasks.map_err(|e| to_status(&e))?;
            if digest.is_empty() || !tasks.iter().any(|task| is_job(task.agent.as_str()) && names(task, &digest)) {
                return Err(to_status(&Error::not_found("blob", &digest)));
            }
        }
        let found = self.cluster.shared.store.blob(&digest).await;
        let found = found.map_err(|e| Error::internal(format!("failed to read a blob: {e}")));
        let body = found.and_then(|body| body.ok_or_else(|| Error::not_found("blob", &digest)));
        Ok(Response::new(v1::GetBlobReply { body: body.map_err(|e| to_status(&e))?.into() }))
    }

    async fn put_artifact(
        &self,
        request: Request<v1::PutArtifactRequest>,
    ) -> Result<Response<v1::PutArtifactReply>, Status> {
        let v1::PutArtifactRequest { upload, digest, body, last } = request.into_inner();
        let upload = self.cluster.shared.files.put(upload, &digest, &body, last).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::PutArtifactReply { upload }))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<v1::GetArtifactReply>, Status> {
        let v1::GetArtifactRequest { digest, offset, limit } = request.into_inner();
        let (body, bytes) = self.cluster.shared.files.read(&digest, offset, limit).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::GetArtifactReply { body, bytes }))
    }

    async fn list_agents(&self, _: Request<v1::ListAgentsRequest>) -> Result<Response<v1::ListAgentsReply>, Status> {
        let specs = self.cluster.agents().await.iter().map(|a| to_json(&**a)).collect();
        Ok(Response::new(v1::ListAgentsReply { specs }))
    }

    async fn create_actor(&self, request: Request<v1::CreateActorRequest>) -> Result<Response<v1::ActorReply>, Status> {
        let by_worker = node_of(&request).is_some();
        let create = new_actor(request.into_inner(), by_worker).map_err(|e| to_status(&e))?;
        let made = self.cluster.shared.owner.ask(|tx| Input::CreateActor(Box::new(create), tx)).await.and_then(|r| r);
        Ok(Response::new(reply(made.map_err(|e| to_status(&e))?)))
    }

    async fn create_gang(
        &self,
        request: Request<v1::CreateGangRequest>,
    ) -> Result<Response<v1::CreateGangReply>, Status> {
        let by_worker = node_of(&request).is_some();
        let request = request.into_inner();
        let made = async {
            let asks = request.actors.into_iter().map(|actor| new_actor(actor, by_worker));
            let asks = asks.collect::<Result<Vec<_>, _>>()?;
            let strategy = from_json("the strategy", &to_json(&request.strategy))
                .map_err(|e| e.hint("pack, spread, strict_pack or strict_spread"))?;
            self.cluster.shared.owner.ask(|tx| Input::CreateGang(asks, strategy, tx)).await?
        };
        let actors = made.await.map_err(|e| to_status(&e))?.into_iter().map(reply).collect();
        Ok(Response::new(v1::CreateGangReply { actors }))
    }

    async fn list_actors(
        &self,
        request: Request<v1::ListActorsRequest>,
    ) -> Result<Response<v1::ListActorsReply>, Status> {
        let r = request.into_inner();
        let filter = ActorFilter { agent: r.agent, state: r.state, node: r.node, name: r.name };
        let limit = if r.limit == 0 { 1_000 } else { r.limit as usize };
        let listed = self.cluster.shared.owner.ask(|tx| Input::ListActors(filter, r.after.into(), limit, tx)).await;
        let (actors, next) = listed.map_err(|e| to_status(&e))?;
        let next = next.map(|id| id.to_string()).unwrap_or_default();
        Ok(Response::new(v1::ListActorsReply { actors: actors.iter().map(to_json).collect(), next }))
    }

    async fn link_actors(&self, request: Request<v1::LinkActorsRequest>) -> Result<Response<v1::Empty>, Status> {
        let request = request.into_inner();
        let linked = self.cluster.shared.owner.ask(|tx| Input::Link(request.one.into(), request.other.into(), tx));
        linked.await.and_then(|r| r).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn list_dead_letters(&self, _: Request<v1::Empty>) -> Result<Response<v1::ListDeadLettersReply>, Status> {
        let letters = self.cluster.shared.owner.ask(Input::DeadLetters).await.map_err(|e| to_status(&e))?;
        let letters = letters.into_iter().map(|letter| v1::DeadLetter {
            at_ms: letter.at_ms,
            agent: letter.agent.to_string(),
            actor: letter.actor.as_ref().map(ToString::to_string).unwrap_or_default(),
            task: letter.task.as_ref().map(ToString::to_string).unwrap_or_default(),
            method: letter.method.clone(),
            bytes: letter.bytes,
            attempts: letter.attempts,
            error: letter.error.message.clone(),
        });
        Ok(Response::new(v1::ListDeadLettersReply { letters: letters.collect() }))
    }

    async fn get_actor(&self, request: Request<v1::GetActorRequest>) -> Result<Response<v1::ActorReply>, Status> {
        let request = request.into_inner();
        let owner = &self.cluster.shared.owner;
        let found = if request.name.is_empty() {
            owner.ask(|tx| Input::Actor(ActorId::from(request.actor), tx)).await
        } else {
            owner.ask(|tx| Input::ActorNamed(request.name, tx)).await
        };
        Ok(Response::new(reply(found.and_then(|r| r).map_err(|e| to_status(&e))?)))
    }

    async fn stop_actor(&self, request: Request<v1::StopActorRequest>) -> Result<Response<v1::Empty>, Status> {
        let request = request.into_inner();
        let stop =
            self.cluster.shared.owner.ask(|tx| Input::StopActor(ActorId::from(request.actor), request.drain, tx));
        stop.await.and_then(|r| r).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitReply>, Status> {
        let caller = caller(&request);
        if node_of(&request).is_some() && is_job(&request.get_ref().agent) {
            let error = Error::new(ErrorKind::PermissionDenied, "an actor submits no jobs");
            return Err(to_status(&error.hint("`covey job submit` does")));
        }
        let request = request.into_inner();
        let input = from_json("the input", &request.input).map_err(|e| to_status(&e))?;
        let task = SubmitTask {
            caller,
            agent: request.agent.into(),
            skill: some(request.skill),
            input,
            context: some(request.context).map(Into::into),
            message_id: some(request.message_id),
            model: some(request.model).map(Into::into),
            protocol: "native",
            timeout_ms: (request.timeout_ms > 0).then_some(request.timeout_ms),
            answered: Answered::Durable,
        };
        let (record, created) = self.cluster.submit(task).await.map_err(|e| to_status(&e))?;
        let capability = self.cluster.shared.keys.capability(&record.id);
        let (task, context) = (record.id.to_string(), record.context.to_string());
        Ok(Response::new(v1::SubmitReply { task, created, context, capability }))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::TaskReply>, Status> {
        let caller = caller(&request);
        let v1::GetTaskRequest { task, capability } = request.into_inner();
        let id = TaskId::from(task);
        let found = self.task_of(caller, &id, &capability).await.map_err(|e| to_status(&e))?;
        let (_, (record, last)) = found;
        let capability = self.cluster.shared.keys.capability(&id);
        Ok(Response::new(v1::TaskReply { record: to_json(&*record), last_seq: last.unwrap_or(0), capability }))
    }

    async fn list_tasks(&self, request: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksReply>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let limit = if request.limit == 0 { 100 } else { request.limit.min(10_000) };
        let filter = TaskFilter {
            agent: &request.agent,
            state: &request.state,
            caller: caller.as_str(),
            other: callers::seen_too(&caller),
            ..TaskFilter::default()
        };
        let page = self.cluster.shared.store.tasks(filter, &request.before, limit).await;
        let page = page.map_err(|e| to_status(&Error::internal(e.to_string())))?;
        let next = page.next.map_or(String::new(), |(_, task)| task.to_string());
        Ok(Response::new(v1::ListTasksReply { records: page.records.iter().map(to_json).collect(), next }))
    }

    async fn cancel_task(&self, request: Request<v1::CancelTaskRequest>) -> Result<Response<v1::TaskReply>, Status> {
        let caller = caller(&request);
        let v1::CancelTaskRequest { task, reason, capability } = request.into_inner();
        let id = TaskId::from(task);
        let cancelled = async {
            let (caller, _) = self.task_of(caller, &id, &capability).await?;
            self.cluster.cancel(&caller, &id, &reason).await
        };
        let record = cancelled.await.map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::TaskReply { record: to_json(&*record), ..v1::TaskReply::default() }))
    }

    async fn say_task(&self, request: Request<v1::SayTaskRequest>) -> Result<Response<v1::TaskReply>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let said = async {
            let parts: Vec<_> = from_json("the message", &request.parts)?;
            let task = TaskId::from(request.task);
            let (caller, _) = self.task_of(caller, &task, &request.capability).await?;
            self.cluster.say(SayTask { caller, task, message_id: some(request.message_id), parts }).await
        };
        let (record, last_seq) = said.await.map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::TaskReply { record: to_json(&*record), last_seq, ..v1::TaskReply::default() }))
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let id = TaskId::from(request.task);
        self.cluster.task(&caller, &id).await.map_err(|e| to_status(&e))?;
        let events = self.cluster.events(id, request.after).fuse();
        let batches = stream::unfold(events, |mut events| async move { Some((batch(&mut events).await?, events)) });
        Ok(Response::new(Box::pin(batches)))
    }

    async fn read_events(&self, request: Request<v1::ReadEventsRequest>) -> Result<Response<v1::EventBatch>, Status> {
        let caller = caller(&request);
        let v1::ReadEventsRequest { task, after, wait_ms, capability } = request.into_inner();
        let id = TaskId::from(task);
        self.task_of(caller, &id, &capability).await.map_err(|e| to_status(&e))?;
        let mut events = self.cluster.events(id, after).fuse();
        let wait = Duration::from_millis(u64::from(wait_ms)).min(READ_WAIT_MAX);
        let batch = match tokio::time::timeout(wait, batch(&mut events)).await {
            Err(_) => v1::EventBatch::default(),
            Ok(None) => v1::EventBatch { ended: true, ..v1::EventBatch::default() },
            Ok(Some(batch)) => batch?,
        };
        Ok(Response::new(batch))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        Ok(Response::new(v1::StatusReply { status: to_json(&self.cluster.status().await) }))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Result<Response<v1::DrainNodeReply>, Status> {
        let known = node_of(&request);
        let v1::DrainNodeRequest { node, within_ms } = request.into_inner();
        if let Some(known) = known.filter(|known| known.as_str() != node) {
            return Err(to_status(&not_the_node(&known, &node.into())));
        }
        let within_ms = if within_ms == 0 { MOVE_WITHIN_MS } else { within_ms };
        tracing::info!(node, within_ms, "node is being emptied");
        let drained = self.cluster.shared.owner.ask(|tx| Input::Drain(node, within_ms, tx)).await;
        let node = drained.and_then(|r| r).map_err(|e| to_status(&e))?.to_string();
        Ok(Response::new(v1::DrainNodeReply { node }))
    }

    async fn save_state(&self, request: Request<v1::SaveStateRequest>) -> Result<Response<v1::Empty>, Status> {
        let known = node_of(&request);
        let request = request.into_inner();
        if known.as_ref().is_none_or(|known| known.as_str() != request.node) {
            let known = known.unwrap_or_else(|| "".into());
            return Err(to_status(&not_the_node(&known, &request.node.into())));
        }
        let stateless = request.state.is_none();
        let state = request.state.unwrap_or_default();
        let bytes = state.encoded_len();
        if bytes > caps::STATE_BYTES_MAX {
            let text = format!("the state has {bytes} bytes, the limit is {}", caps::STATE_BYTES_MAX);
            return Err(to_status(
                &Error::new(ErrorKind::TooLarge, text).hint("keep big data with covey.put or in files"),
            ));
        }
        let v1::Payload { codec, body, buffers } = state;
        let state = v1::SavedState { codec, body, buffers, answered: request.answered, stateless };
        let (node, actor) = (NodeId::from(request.node), ActorId::from(request.actor));
        let state: Arc<[u8]> = state.encode_to_vec().into();
        let owner = &self.cluster.shared.owner;
        let saved = owner.ask(|tx| Input::SaveState(node, actor, Epoch(request.epoch), state, tx)).await;
        saved.and_then(|r| r).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn set_reminder(&self, request: Request<v1::SetReminderRequest>) -> Result<Response<v1::Empty>, Status> {
        let request = request.into_inner();
        let reminder = Reminder {
            due_ms: crate::now_ms() + request.after_ms,
            every_ms: (request.every_ms > 0).then_some(request.every_ms),
            method: request.method,
            args: request.args.unwrap_or_default().encode_to_vec().into(),
        };
        let actor = ActorId::from(request.actor);
        let owner = &self.cluster.shared.owner;
        let set = owner.ask(|tx| Input::SetReminder(actor, request.name, Box::new(reminder), tx)).await;
        set.and_then(|r| r).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn forget_reminder(&self, request: Request<v1::SetReminderRequest>) -> Result<Response<v1::Empty>, Status> {
        let request = request.into_inner();
        let actor = ActorId::from(request.actor);
        let known = self.cluster.shared.owner.ask(|tx| Input::ForgetReminder(actor, request.name.clone(), tx)).await;
        match known {
            Ok(true) => Ok(Response::new(v1::Empty {})),
            Ok(false) => Err(to_status(&Error::not_found("reminder", &request.name))),
            Err(error) => Err(to_status(&error)),
        }
    }

    async fn join_topic(&self, request: Request<v1::TopicRequest>) -> Result<Response<v1::Empty>, Status> {
        let r = request.into_inner();
        let owner = &self.cluster.shared.owner;
        let joined = owner.ask(|tx| Input::JoinTopic(r.topic, r.actor.into(), r.method, tx)).await;
        joined.and_then(|joined| joined).map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn leave_topic(&self, request: Request<v1::TopicRequest>) -> Result<Response<v1::Empty>, Status> {
        let r = request.into_inner();
        let owner = &self.cluster.shared.owner;
        match owner.ask(|tx| Input::LeaveTopic(r.topic.clone(), r.actor.as_str().into(), tx)).await {
            Ok(true) => Ok(Response::new(v1::Empty {})),
            Ok(false) => {
                let error = Error::new(ErrorKind::NotFound, format!("`{}` does not listen to `{}`", r.actor, r.topic));
                Err(to_status(&error))
            }
            Err(error) => Err(to_status(&error)),
        }
    }

    async fn list_topics(&self, _: Request<v1::Empty>) -> Result<Response<v1::ListTopicsReply>, Status> {
        let topics = self.cluster.shared.owner.ask(Input::Topics).await.map_err(|e| to_status(&e))?;
        let topics = topics.into_iter().map(|(topic, members)| covey_proto::topic_members(topic, &members));
        Ok(Response::new(v1::ListTopicsReply { topics: topics.collect() }))
    }

    async fn list_stores(&self, _: Request<v1::Empty>) -> Result<Response<v1::ListStoresReply>, Status> {
        Ok(Response::new(v1::ListStoresReply { stores: self.cluster.shared.relay.stores() }))
    }

    async fn enter_mesh(&self, request: Request<v1::EnterMeshRequest>) -> Result<Response<v1::EnterMeshReply>, Status> {
        let Some(mesh) = &self.cluster.shared.mesh else {
            let error = Error::new(ErrorKind::FailedPrecondition, "this head has no mesh");
            return Err(to_status(
                &error.hint("a head that listens beyond loopback has one, unless started with --no-mesh"),
            ));
        };
        let known = node_of(&request);
        let node = NodeId::from(request.into_inner().node);
        if let Some(known) = known.filter(|known| *known != node) {
            return Err(to_status(&not_the_node(&known, &node)));
        }
        mesh.admit(node);
        Ok(Response::new(v1::EnterMeshReply { node: mesh.node.to_string() }))
    }

    async fn calls(&self, request: Request<Streaming<CallBatch>>) -> Result<Response<Self::CallsStream>, Status> {
        let session = request.metadata().get("covey-session").and_then(|s| s.to_str().ok()).map(SessionId::from);
        if let Some(node) = node_of(&request)
            && session.as_ref().is_some_and(|session| !session.as_str().starts_with(&format!("worker:{node}/")))
        {
            // The end of a stream is the end of its session.
            let error = Error::new(ErrorKind::PermissionDenied, "the session of a worker's calls is its own");
            return Err(to_status(&error));
        }
        let shared = self.cluster.shared.clone();
        let driver = self.drivers.connect(&request, &shared).await.map_err(|e| to_status(&e))?;
        let mut stream = request.into_inner();
        let (tx, mut rx) = queue::queue(CLIENT);
        let origin = shared.relay.origin(tx);
        let mut reply = tonic::metadata::MetadataMap::new();
        driver.describe(&mut reply);
        let (stop, replaced) = (shared.shutdown.clone(), driver.replaced());
        tokio::spawn(async move {
            let mut left = false;
            while !left {
                let message = tokio::select! {
                    () = shared.shutdown.cancelled() => break,
                    () = replaced.cancelled() => break,
                    message = stream.message() => message,
                };
                let Ok(Some(batch)) = message else { break };
                for frame in batch.frames {
                    left |= matches!(frame.body, Some(Body::Leave(_)));
                    shared.relay.take_from_origin(origin, frame);
                }
            }
            driver.disconnect(left).await;
            // The end of the answers tells a driver that leaves that this is known.
            shared.relay.origin_gone(origin);
        });
        let answers = async_stream::stream! {
            loop {
                let mut frames = Vec::new();
                let more = tokio::select! {
                    () = stop.cancelled() => 0,
                    taken = rx.recv_many(&mut frames, BATCH_MAX) => match taken {
                        Ok(n) => n,
                        Err(Behind) => {
                            let error = Error::new(ErrorKind::Overloaded, "this client does not take its answers");
                            yield Err(to_status(&error));
                            return;
                        }
                    },
                };
                if more == 0 {
                    return;
                }
                for frames in covey_proto::split(frames) {
                    yield Ok(CallBatch { frames });
                }
            }
        };
        let mut response: Response<Self::CallsStream> = Response::new(Box::pin(answers));
        *response.metadata_mut() = reply;
        Ok(response)
    }
}
