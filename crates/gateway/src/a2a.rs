//! A2A 1.0 and 0.3 by JSON-RPC, HTTP+JSON and gRPC, all on one port.
//!
//! `/a2a/<agent>` is an agent's address for JSON-RPC and HTTP+JSON, `/` and `/a2a` that of the default one; cards are below
//! each. gRPC names the agent by the request's tenant. Every binding calls `ops`, and every stream is a projection of
//! the task's log (`project`): its SSE ids are places in the log, so `Last-Event-ID` resumes without loss.

mod card;
mod errors;
mod grpc;
mod ops;
mod project;
mod push;
mod rest;
mod rpc;
mod weight;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::{from_fn, map_response},
    response::{IntoResponse as _, Response},
    routing::{any, any_service, get, post},
};
use covey_a2a::{
    Error, Kind,
    v1::{self, a2a_service_server::A2aServiceServer},
    v03::a2a_service_server as old,
};
use covey_domain::{AgentSpec, HookState, TaskId, caps};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::{
    Caller, Cluster, Settings, Signer,
    answers::{self, Answers},
    artifacts::Links,
    bookmarks::Bookmarks,
    cursor, follow,
    shares::Shares,
    sse,
    tasks::{self, agents},
};
pub(crate) use errors::overloaded;
use errors::{failed, no_agent, refused};
use ops::{Ask, Events};
use project::{Bookmark, Frame};

/// What all bindings share.
struct Hub {
    links: Links,
    cluster: Arc<dyn Cluster>,
    pusher: push::Pusher,
    signer: Signer,
    /// Where this gateway is known to be.
    origins: Vec<String>,
    known: card::Known,
    bookmarks: Bookmarks<Bookmark>,
    shares: Shares,
    answers: Answers,
    /// Where readers that are behind are served.
    background: Handle,
}

type Port = State<Arc<Hub>>;

/// An event of a stream.
type StreamItem = follow::StreamItem<Frame>;

/// Routes of all agents and of the default one.
pub(crate) fn router(cluster: Arc<dyn Cluster>, shares: Shares, answers: Answers, settings: &Settings) -> Router {
    let pusher = push::Pusher::start(&cluster, settings);
    let links = Links::new(settings);
    let origins = settings.origins.iter().chain([&settings.root]).cloned().collect();
    let (signer, known) = (settings.signer.clone(), card::Known::default());
    let bookmarks = Bookmarks::default();
    let background = settings.background.clone();
    let hub = Arc::new(Hub { links, cluster, pusher, signer, origins, known, bookmarks, shares, answers, background });
    let service = grpc::Grpc { hub: hub.clone() };
    let old_grpc = old::A2aServiceServer::new(service.clone())
        .max_decoding_message_size(caps::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
    let grpc = A2aServiceServer::new(service)
        .max_decoding_message_size(caps::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
    Router::new()
        .route("/.well-known/agent-card.json", get(default_card))
        .route("/.well-known/agent.json", get(default_card))
        .route("/a2a/{agent}/.well-known/agent-card.json", get(agent_card))
        .route("/a2a/{agent}/.well-known/agent.json", get(agent_card))
        .route("/", post(default_rpc))
        .route("/.well-known/api-catalog", get(api_catalog))
        .route("/a2a", post(default_rpc).get(catalogue))
        .route("/a2a/", post(default_rpc).get(catalogue))
        .route("/a2a/message:send", post(default_rest))
        .route("/a2a/message:stream", post(default_rest))
        .route("/a2a/tasks", get(default_rest))
        .route("/a2a/tasks/{*rest}", any(default_rest))
        .route("/a2a/extendedAgentCard", get(default_rest))
        // 0.3's paths; so no agent named `v1` is reached by HTTP+JSON.
        .route("/a2a/v1/{*rest}", any(default_rest))
        .route("/a2a/{agent}", post(agent_rpc))
        .route("/a2a/{agent}/", post(agent_rpc))
        .route("/a2a/{agent}/{*rest}", any(agent_rest))
        .route("/v1/push-notifications", get(hooks))
        .route("/v1/push-notifications/{task}/{id}/replay", post(replay))
        .with_state(hub)
        .route("/lf.a2a.v1.A2AService/{method}", any_service(grpc).layer(from_fn(grpc::weigh)))
        .route("/a2a.v1.A2AService/{method}", any_service(old_grpc).layer(from_fn(grpc::weigh)))
        .layer(map_response(async |response| answers::hold(response)))
}

async fn default_card(State(hub): Port, Extension(caller): Extension<Caller>, headers: HeaderMap) -> Response {
    match tasks::agent(&*hub.cluster, &caller, None).await.map_err(no_agent) {
        Ok(agent) => card::response(&hub, &agent, &place(&headers, None), &headers),
        Err(error) => refused(&error),
    }
}

async fn agent_card(
    State(hub): Port,
    Path(agent): Path<String>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Response {
    match tasks::agent(&*hub.cluster, &caller, Some(&agent)).await.map_err(no_agent) {
        Ok(spec) => card::response(&hub, &spec, &place(&headers, Some(&agent)), &headers),
        Err(error) => refused(&error),
    }
}

async fn default_rpc(
    State(hub): Port,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match ask(hub, None, caller, &headers).await {
        Ok(ask) => rpc::serve(ask, &headers, &body).await,
        Err(error) => refused(&error),
    }
}

async fn agent_rpc(
    State(hub): Port,
    Path(agent): Path<String>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match ask(hub, Some(&agent), caller, &headers).await {
        Ok(ask) => rpc::serve(ask, &headers, &body).await,
        Err(error) => refused(&error),
    }
}

async fn default_rest(
    State(hub): Port,
    Extension(caller): Extension<Caller>,
    method: Method,
    uri: axum::http::Uri,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().strip_prefix("/a2a/").unwrap_or_default();
    match ask(hub, None, caller, &headers).await {
        Ok(ask) => {
            rest::Call { ask, method: &method, path, query: &query, headers: &headers, body: &body }.serve().await
        }
        Err(error) => refused(&error),
    }
}

async fn agent_rest(
    State(hub): Port,
    Path((agent, path)): Path<(String, String)>,
    Extension(caller): Extension<Caller>,
    method: Method,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match ask(hub, Some(&agent), caller, &headers).await {
        Ok(ask) => {
            rest::Call { ask, method: &method, path: &path, query: &query, headers: &headers, body: &body }
                .serve()
                .await
        }
        Err(error) => refused(&error),
    }
}

/// What every binding begins with: who asks which agent, and what its reader has seen.
async fn ask(hub: Arc<Hub>, agent: Option<&str>, caller: Caller, headers: &HeaderMap) -> Result<Ask, Error> {
    let spec = tasks::agent(&*hub.cluster, &caller, agent).await.map_err(no_agent)?;
    // A2A names no header: what is no cursor of ours is not meant for us.
    let seen = cursor::requested(headers, None).and_then(|asked| asked.cursor());
    let place = place(headers, agent);
    let extensions = extensions(headers);
    let traceparent = headers.get("traceparent").and_then(|v| v.to_str().ok()).map(str::to_owned);
    Ok(Ask { hub, agent: spec, caller, seen, place, extensions, traceparent, held: Arc::default() })
}

/// Extensions that the client declares; 0.3 had another name for the header.
fn extensions(headers: &HeaderMap) -> Vec<String> {
    let all = ["a2a-extensions", "x-a2a-extensions"].into_iter().flat_map(|name| headers.get_all(name));
    let each = all.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    each.map(|uri| uri.trim().to_owned()).filter(|uri| !uri.is_empty()).collect()
}

/// Says on an answer which of the extensions that were asked for hold.
fn activated(mut response: Response, active: &str) -> Response {
    if let (false, Ok(value)) = (active.is_empty(), HeaderValue::from_str(active)) {
        response.headers_mut().insert("a2a-extensions", value);
    }
    response
}

/// All agents: what `describe` makes of each, its address and that of its card.
async fn each_agent(
    cluster: &dyn Cluster,
    caller: &Caller,
    headers: &HeaderMap,
    describe: fn(&AgentSpec, String, String) -> Value,
) -> Vec<Value> {
    let one = |agent: &Arc<AgentSpec>| {
        let url = place(headers, Some(agent.name.as_str())).url();
        let card = format!("{url}/.well-known/agent-card.json");
        describe(agent, url, card)
    };
    agents(cluster, caller).await.iter().map(one).collect()
}

/// All agents: what they are, and where their cards are.
async fn catalogue(State(hub): Port, Extension(caller): Extension<Caller>, headers: HeaderMap) -> Json<Value> {
    let agents = each_agent(
        &*hub.cluster,
        &caller,
        &headers,
        |agent, url, card| json!({"name": agent.name, "description": agent.description, "url": url, "card": card}),
    );
    Json(json!({"agents": agents.await}))
}

/// The same as a set of links (RFC 9727).
async fn api_catalog(State(hub): Port, Extension(caller): Extension<Caller>, headers: HeaderMap) -> Response {
    let links = each_agent(
        &*hub.cluster,
        &caller,
        &headers,
        |agent, url, card| json!({"anchor": url, "service-desc": [{"href": card, "type": "application/json", "title": agent.name}]}),
    );
    let body = json!({"linkset": links.await}).to_string();
    ([(header::CONTENT_TYPE, "application/linkset+json")], body).into_response()
}

/// The caller's webhooks in a state, `dead` where none is named: where they go to, how far they are and what was wrong.
async fn hooks(
    State(hub): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let name = query.get("state").map_or("dead", String::as_str);
    let Some(state) = HookState::named(name) else {
        return refused(&Error::field("state", "is none of live, done and dead"));
    };
    match hub.cluster.hooks(None, Some(state)).await {
        Ok(mut hooks) => {
            hooks.retain(|hook| hook.caller == caller);
            Json(json!({"hooks": hooks.iter().map(push::shown).collect::<Vec<_>>()})).into_response()
        }
        Err(error) => refused(&failed(error)),
    }
}

/// Tells a webhook again what it was not told.
async fn replay(
    State(hub): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    Path((task, id)): Path<(String, String)>,
) -> Response {
    let task = TaskId::from(task);
    let found = hub.cluster.hooks(Some(&task), None).await.unwrap_or_default();
    let Some(hook) = found.into_iter().find(|hook| hook.id == id && hook.caller == caller) else {
        return refused(&Error::new(Kind::NotFound, format!("no webhook `{id}` of task {task}")));
    };
    match hub.pusher.replay(hook).await {
        Ok(hook) => Json(push::shown(&hook)).into_response(),
        Err(error) => refused(&error),
    }
}

/// Versions are told by their major number. Whoever says nothing is taken by what it says otherwise.
fn check_version(headers: &HeaderMap) -> Result<(), Error> {
    let Some(asked) = headers.get("a2a-version").and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()) else {
        return Ok(());
    };
    let mut numbers = asked.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(1)), None | Some(Ok(_))) | (Some(Ok(0)), Some(Ok(2 | 3))) => Ok(()),
        _ => {
            let why = format!("version {asked} is not supported; 0.3 and 1.0 are");
            Err(Error::new(Kind::VersionNotSupported, why).about("supportedVersions", "0.3, 1.0"))
        }
    }
}

/// The address the client used, so that cards work through tunnels and other names of this machine.
fn place(headers: &HeaderMap, agent: Option<&str>) -> card::Place {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("127.0.0.1");
    // Set where TLS ends: here, or at a proxy in front.
    let https = headers.get("x-forwarded-proto").is_some_and(|p| p == "https");
    let root = format!("{}://{host}", if https { "https" } else { "http" });
    card::Place { root, agent: agent.map(Into::into) }
}

/// An operation's answer, as a binding over HTTP writes it: the text of a whole one, or a stream.
enum Answer {
    Whole(String),
    Stream(Events),
}

fn whole(value: &impl serde::Serialize) -> Result<Answer, Error> {
    let text = serde_json::to_string(value);
    text.map(Answer::Whole).map_err(|e| Error::new(Kind::Internal, format!("failed to write the answer: {e}")))
}

/// The same with its size, for who gives it room.
fn sized(value: &impl serde::Serialize) -> answers::Written<Answer, Error> {
    whole(value).map(Answer::sized)
}

impl Answer {
    fn sized(self) -> (Self, usize) {
        let bytes = match &self {
            Self::Whole(text) => text.len(),
            // It has what its reader takes.
            Self::Stream(_) => 0,
        };
        (self, bytes)
    }
}

/// A page of tasks. What stands there by default is told all the same: clients read it to know that they are done.
fn listed(page: &v1::ListTasksResponse) -> Answer {
    let mut body = serde_json::to_value(page).unwrap_or_default();
    body["tasks"] = if page.tasks.is_empty() { json!([]) } else { body["tasks"].take() };
    body["nextPageToken"] = page.next_page_token.as_str().into();
    body["pageSize"] = page.page_size.into();
    body["totalSize"] = page.total_size.into();
    Answer::Whole(body.to_string())
}

/// All webhooks of a task.
fn configs(all: Vec<v1::TaskPushNotificationConfig>) -> Answer {
    Answer::Whole(json!({"configs": all, "nextPageToken": ""}).to_string())
}

/// A webhook's id, which must be there.
fn named(id: &str) -> Result<&str, Error> {
    if id.is_empty() { Err(Error::field("id", "is missing")) } else { Ok(id) }
}

/// What could not be read of 0.3.
fn wrong<T>(read: Result<T, covey_a2a::old::Wrong>) -> Result<T, Error> {
    read.map_err(|why| Error::new(Kind::InvalidParams, why))
}

/// A stream of events as `write` has them, as JSON in one line, each with its cursor. One that breaks off ends with what `fail` makes
/// of it.
fn stream(
    background: &Handle,
    events: Events,
    write: impl Fn(StreamItem, &mut Vec<u8>) + Send + Sync + 'static,
    fail: impl Fn(&Error, &mut Vec<u8>) + Send + Sync + 'static,
) -> Response {
    let write = move |told, piece: &mut Vec<u8>| {
        piece.extend(b"data: ");
        write(told, piece);
    };
    let fail = move |error: &Error, piece: &mut Vec<u8>| {
        if error.kind != Kind::Unavailable {
            tracing::warn!(error = error.message, "a stream ended early");
        }
        fail(error, piece);
    };
    sse::followed(background, events, write, fail)
}
