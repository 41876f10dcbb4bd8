//! A2A over JSON-RPC, versions 0.3 and 1.0 on the same paths; the version is told by the method's name.
//!
//! `POST /a2a/<agent>` speaks to one agent, `POST /` and `/a2a` to the default one; cards are below each. A stream is
//! a projection of the task's log (`encode`), its SSE ids are the log's numbers, so `Last-Event-ID` resumes without
//! loss. The rest of the protocol (push, listing, REST, gRPC) comes with its own issue.

mod card;
mod decode;
mod encode;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response, Sse, sse},
    routing::get,
};
use covey_domain::{AgentSpec, CallerId, Envelope, Error, ErrorKind, TaskId, TaskRecord};
use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};

use crate::{Caller, Cluster, FoundTask, SubmitTask};
use encode::{Encoder, Version};

type Port = State<Arc<dyn Cluster>>;

/// Routes of all agents and of the default one.
pub fn router(cluster: Arc<dyn Cluster>) -> Router {
    Router::new()
        .route("/.well-known/agent-card.json", get(default_card))
        .route("/.well-known/agent.json", get(default_card))
        .route("/a2a/{agent}/.well-known/agent-card.json", get(agent_card))
        .route("/a2a/{agent}/.well-known/agent.json", get(agent_card))
        .route("/", axum::routing::post(default_rpc))
        .route("/a2a", axum::routing::post(default_rpc))
        .route("/a2a/", axum::routing::post(default_rpc))
        .route("/a2a/{agent}", axum::routing::post(agent_rpc))
        .route("/a2a/{agent}/", axum::routing::post(agent_rpc))
        .with_state(cluster)
}

/// A JSON-RPC error of A2A's table.
pub(crate) struct RpcError {
    code: i32,
    message: String,
    reason: &'static str,
}

impl RpcError {
    pub(crate) fn new(code: i32, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), reason }
    }

    fn params(message: impl Into<String>) -> Self {
        Self::new(-32602, "INVALID_PARAMS", message)
    }

    fn unsupported(message: impl Into<String>) -> Self {
        Self::new(-32004, "UNSUPPORTED_OPERATION", message)
    }

    fn body(&self, id: &Value, version: Version) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if version == Version::V1 {
            error["data"] = json!([{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": self.reason, "domain": "a2a-protocol.org",
            }]);
        }
        json!({"jsonrpc": "2.0", "id": id, "error": error})
    }
}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        let message = match &error.hint {
            Some(hint) => format!("{} ({hint})", error.message),
            None => error.message.clone(),
        };
        Self::new(error.kind.faces().json_rpc, "COVEY", message)
    }
}

fn no_task(error: Error, id: &TaskId) -> RpcError {
    if error.kind == ErrorKind::NotFound {
        RpcError::new(-32001, "TASK_NOT_FOUND", format!("Task not found: {id}"))
    } else {
        error.into()
    }
}

async fn default_card(State(cluster): Port, headers: HeaderMap) -> Response {
    match cluster.default_agent().await {
        Some(agent) => card::response(&agent, &base(&headers), true, &headers),
        None => missing("no agent is registered"),
    }
}

async fn agent_card(State(cluster): Port, Path(agent): Path<String>, headers: HeaderMap) -> Response {
    match find(&*cluster, &agent).await {
        Some(spec) => card::response(&spec, &base(&headers), false, &headers),
        None => missing(&format!("no agent `{agent}`")),
    }
}

async fn default_rpc(
    State(cluster): Port,
    Extension(Caller(caller)): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match cluster.default_agent().await {
        Some(agent) => rpc(cluster, agent, caller, headers, body).await,
        None => missing("no agent is registered"),
    }
}

async fn agent_rpc(
    State(cluster): Port,
    Path(agent): Path<String>,
    Extension(Caller(caller)): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match find(&*cluster, &agent).await {
        Some(spec) => rpc(cluster, spec, caller, headers, body).await,
        None => missing(&format!("no agent `{agent}`")),
    }
}

async fn find(cluster: &dyn Cluster, name: &str) -> Option<Arc<AgentSpec>> {
    cluster.agents().await.into_iter().find(|a| a.name.as_str() == name)
}

fn missing(why: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({"error": {"code": 404, "status": "NOT_FOUND", "message": why}})))
        .into_response()
}

/// The address the client used, so that cards work through tunnels and other names of this machine.
fn base(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("127.0.0.1");
    // Set where TLS ends: here, or at a proxy in front.
    let https = headers.get("x-forwarded-proto").is_some_and(|p| p == "https");
    format!("{}://{host}", if https { "https" } else { "http" })
}

async fn rpc(
    cluster: Arc<dyn Cluster>,
    agent: Arc<AgentSpec>,
    caller: CallerId,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request: Value = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let error = RpcError::new(-32700, "PARSE_ERROR", format!("failed to parse JSON: {error}"));
            return Json(error.body(&Value::Null, Version::V03)).into_response();
        }
    };
    let id = request["id"].clone();
    let method = request["method"].as_str().unwrap_or_default();
    let version = if method.contains('/') { Version::V03 } else { Version::V1 };
    let good_id = id.is_null() || id.is_string() || id.is_number();
    if request["jsonrpc"] != "2.0" || !good_id || method.is_empty() {
        let error = RpcError::new(-32600, "INVALID_REQUEST", "not a JSON-RPC 2.0 request");
        return Json(error.body(&id, version)).into_response();
    }
    if let Some(asked) = headers.get("a2a-version").and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty())
        && !matches!(asked.split('.').next(), Some("0" | "1"))
    {
        let error = RpcError::new(
            -32009,
            "VERSION_NOT_SUPPORTED",
            format!("version {asked} is not supported; 0.3 and 1.0 are"),
        );
        return Json(error.body(&id, Version::V1)).into_response();
    }
    let call =
        Rpc { cluster, agent, caller, version, params: request["params"].clone(), last_event: last_event(&headers) };
    let result = match method {
        "message/send" | "SendMessage" => call.send().await,
        "tasks/get" | "GetTask" => call.get().await,
        "tasks/cancel" | "CancelTask" => call.cancel().await,
        "message/stream" | "SendStreamingMessage" => match call.stream().await {
            Ok(frames) => return sse(frames, id),
            Err(error) => Err(error),
        },
        "tasks/resubscribe" | "SubscribeToTask" => match call.subscribe().await {
            Ok(frames) => return sse(frames, id),
            Err(error) => Err(error),
        },
        other => Err(RpcError::new(-32601, "METHOD_NOT_FOUND", format!("method `{other}` is not served"))),
    };
    Json(match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(error) => error.body(&id, version),
    })
    .into_response()
}

fn last_event(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// One frame of a stream: the log's number and the result.
type Frame = (u64, Value);

struct Rpc {
    cluster: Arc<dyn Cluster>,
    agent: Arc<AgentSpec>,
    caller: CallerId,
    version: Version,
    params: Value,
    last_event: Option<u64>,
}

impl Rpc {
    async fn submit(&self) -> Result<Arc<TaskRecord>, RpcError> {
        let message = decode::message(&self.params).map_err(RpcError::params)?;
        if let Some(task) = &message.task {
            let id = TaskId::from(task.as_str());
            let (record, _) = self.cluster.task(&self.caller, &id).await.map_err(|e| no_task(e, &id))?;
            let why =
                if record.state.is_terminal() { "the task has ended" } else { "the task takes no further messages" };
            return Err(RpcError::unsupported(why));
        }
        let (record, _) = self
            .cluster
            .submit(SubmitTask {
                caller: self.caller.clone(),
                agent: self.agent.name.clone(),
                skill: message.skill,
                input: message.input,
                context: message.context.map(Into::into),
                message_id: Some(message.id),
                model: message.model.map(Into::into),
                protocol: "a2a",
                timeout_ms: None,
            })
            .await?;
        Ok(record)
    }

    async fn send(&self) -> Result<Value, RpcError> {
        let wait = decode::waits(&self.params, self.version);
        let record = self.submit().await?;
        let encoder = self.replay(&record, if wait { None } else { Some(1) }).await?;
        Ok(encoder.wrapped_task())
    }

    async fn get(&self) -> Result<Value, RpcError> {
        let (record, last) = self.record().await?;
        Ok(self.replay(&record, last).await?.task(decode::history_length(&self.params)))
    }

    async fn cancel(&self) -> Result<Value, RpcError> {
        let (record, _) = self.record().await?;
        let id = &record.id;
        self.cluster.cancel(&self.caller, id, "cancelled by the client").await.map_err(|e| match e.kind {
            ErrorKind::FailedPrecondition => {
                RpcError::new(-32002, "TASK_NOT_CANCELABLE", format!("Task cannot be canceled: {id} has ended"))
            }
            _ => no_task(e, id),
        })?;
        Ok(self.replay(&record, None).await?.task(None))
    }

    async fn stream(&self) -> Result<impl Stream<Item = Frame> + Send + use<>, RpcError> {
        let record = self.submit().await?;
        Ok(frames(
            self.cluster.events(record.id.clone(), 0),
            Encoder::new(self.version, record),
            self.last_event.unwrap_or(0),
            0,
        ))
    }

    async fn subscribe(&self) -> Result<impl Stream<Item = Frame> + Send + use<>, RpcError> {
        let (record, last) = self.record().await?;
        if record.state.is_terminal() && self.last_event.is_none() {
            return Err(RpcError::unsupported("the task has ended; send Last-Event-ID to read the rest of its log"));
        }
        // Without a cursor the reader gets the task as it stands, then what follows.
        let seen = match self.last_event {
            Some(_) => 0,
            None => self.replay(&record, last).await?.seq(),
        };
        Ok(frames(
            self.cluster.events(record.id.clone(), 0),
            Encoder::new(self.version, record),
            self.last_event.unwrap_or(0),
            seen,
        ))
    }

    async fn record(&self) -> Result<FoundTask, RpcError> {
        let id = decode::task_id(&self.params).map_err(RpcError::params)?;
        let id = TaskId::from(id.as_str());
        let (record, last) = self.cluster.task(&self.caller, &id).await.map_err(|e| no_task(e, &id))?;
        if record.agent != self.agent.name {
            return Err(no_task(Error::not_found("task", &id), &id));
        }
        Ok((record, last))
    }

    /// Folds the log up to number `last`, or to its end.
    async fn replay(&self, record: &Arc<TaskRecord>, last: Option<u64>) -> Result<Encoder, RpcError> {
        let mut encoder = Encoder::new(self.version, record.clone());
        let mut events = self.cluster.events(record.id.clone(), 0);
        while last.is_none_or(|last| encoder.seq() < last) {
            let Some(event) = events.next().await else { break };
            encoder.push(&*event?);
        }
        Ok(encoder)
    }
}

/// Frames above `after`; when `seen` is set, one snapshot stands for all up to it.
fn frames(
    events: impl Stream<Item = Result<Arc<Envelope>, Error>> + Send + 'static,
    mut encoder: Encoder,
    after: u64,
    seen: u64,
) -> impl Stream<Item = Frame> + Send {
    async_stream::stream! {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let made = encoder.push(&event);
                    if event.seq < seen || event.seq <= after {
                        continue;
                    }
                    if event.seq == seen {
                        yield (seen, encoder.wrapped_task());
                        continue;
                    }
                    for frame in made {
                        yield (event.seq, frame);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a stream ended early");
                    return;
                }
            }
        }
    }
}

fn sse(frames: impl Stream<Item = Frame> + Send + 'static, id: Value) -> Response {
    let events = frames.map(move |(seq, result)| {
        let body = json!({"jsonrpc": "2.0", "id": id, "result": result});
        Ok::<_, Infallible>(sse::Event::default().id(seq.to_string()).data(body.to_string()))
    });
    let keep_alive = sse::KeepAlive::new().interval(Duration::from_secs(15)).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    response
}
