//! One port for gRPC and HTTP, and one checkpoint in front of every route.

use std::sync::{Arc, atomic::AtomicU64};

use axum::{
    Json, Router,
    body::Body,
    extract::Request,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use covey_domain::{CallerId, Error, ErrorKind, TaskId, agent::is_job, caps};
use covey_gateway::{Caller, Cluster as _, Settings, is_grpc};
use covey_node::{
    auth::{Principal, bearer},
    tls::{Port, TlsPeer},
};
use covey_proto::{
    access::Reach,
    to_status,
    v1::{covey_server::CoveyServer, link_server::LinkServer},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceExt as _;

use crate::{
    Shared,
    access::{self, Kind, LIVE, READY},
    callers,
    client_service::ClientService,
    cluster::ClusterPort,
    health::{Found, HealthService, PATIENCE, Readiness},
    hosts::Hosts,
    link_service::LinkService,
    owner::Input,
    pace,
};

pub(crate) async fn serve(
    listener: TcpListener,
    port: Port,
    shared: Shared,
    hosts: Hosts,
    (closed, open): (Router, Router),
    shutdown: CancellationToken,
) {
    let check = Arc::new(Checkpoint { shared, hosts });
    let app = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (check, closed, open) = (check.clone(), closed.clone(), open.clone());
        async move {
            let grpc = is_grpc(request.headers());
            // Streams of frames are as slow as what is said.
            let is_stream = grpc || hyper::body::Body::is_end_stream(request.body());
            let request = request.map(|body| if is_stream { Body::new(body) } else { pace::timed(Body::new(body)) });
            let request = match check.here(request, grpc) {
                Ok(request) => request,
                Err(refused) => return Ok(*refused),
            };
            if access::is_open(request.uri().path()) {
                if !grpc && access::is_of_grpc(request.uri().path()) {
                    return Ok(*of_grpc());
                }
                return open.oneshot(request).await;
            }
            let (request, cut) = match check.pass(request, grpc).await {
                Ok(passed) => passed,
                Err(refused) => return Ok(*refused),
            };
            let answer = tokio::select! {
                biased;
                answer = closed.oneshot(request) => answer,
                () = cut.cancelled() => return Ok(*unknown(grpc)),
            };
            // What is whole already needs no end.
            answer.map(|response| {
                response.map(|body| match hyper::body::Body::size_hint(&body).exact() {
                    Some(_) => body,
                    None => pace::until(body, cut),
                })
            })
        }
    });
    covey_node::tls::serve(listener, port, app, shutdown).await;
}

/// Routes that are behind the checkpoint, and those that are not.
pub(crate) fn routes(shared: Shared, settings: &Settings) -> (Router, Router) {
    let cluster = Arc::new(ClusterPort { shared: shared.clone() });
    let link = LinkServer::new(LinkService { shared, conns: AtomicU64::new(0) })
        .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
    let client = CoveyServer::new(ClientService::new(cluster.clone()))
        .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
    let grpc = tonic::service::Routes::new(link).add_service(client).into_axum_router();
    let (status, seen) = (cluster.clone(), cluster.clone());
    let closed = Router::new()
        .route("/v1/cluster", get(move || async move { Json(status.status().await) }))
        .route("/metrics", get(move || async move { seen.metrics().await }))
        .merge(covey_gateway::router(cluster.clone(), settings))
        .merge(grpc)
        // What gRPC's own routes say to a path that is nobody's is an answer of gRPC, with status 200.
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method);
    let (pulse, shared) = (cluster.shared.pulse.clone(), cluster.shared.clone());
    let live =
        get(move || async move { health(pulse.beats(PATIENCE).await.then_some(()).ok_or("the loop stands still")) });
    let readiness = Readiness::new(shared);
    let health_service = HealthServer::new(HealthService::new(readiness.clone()));
    let asked = tonic::service::Routes::new(health_service).into_axum_router();
    let ready = get(move || async move { health(readiness.look().await) });
    let open = covey_gateway::open_router(cluster, settings).route(LIVE, live).route(READY, ready).merge(asked);
    (closed, open)
}

/// What is said where there is nothing: each sort of client hears its own words.
async fn nowhere(request: Request) -> Response {
    let error = Error::new(ErrorKind::NotFound, format!("there is no `{}` here", request.uri().path()));
    if is_grpc(request.headers()) {
        return tonic::Status::unimplemented(error.message).into_http();
    }
    *refuse(&error, false)
}

fn health(found: Found) -> (StatusCode, &'static str) {
    found.map_or_else(|why| (StatusCode::SERVICE_UNAVAILABLE, why), |()| (StatusCode::OK, "ok"))
}

/// In front of all that is not open: Host, Origin, credentials, the table of access; in this order, before anything reads
/// the body.
struct Checkpoint {
    shared: Shared,
    hosts: Hosts,
}

impl Checkpoint {
    /// The request, if it is meant for this head: its Host and Origin are names of ours.
    fn here(&self, mut request: Request, grpc: bool) -> Result<Request, Box<Response>> {
        // HTTP/2 tells the host with the path. Handlers find it in one place.
        let authority = request.uri().authority().and_then(|a| header::HeaderValue::from_str(a.as_str()).ok());
        if let Some(authority) = authority {
            request.headers_mut().entry(header::HOST).or_insert(authority);
        }
        if self.hosts.know(request.headers()) {
            return Ok(request);
        }
        let error = Error::new(ErrorKind::PermissionDenied, "the Host or Origin of the request is not this head");
        Err(refuse(&error.hint("a head knows the name it is advertised by, and those of `--origin`"), grpc))
    }

    /// The request with its caller and what is cancelled when its credential ends, or what is said instead.
    async fn pass(&self, mut request: Request, grpc: bool) -> Result<(Request, CancellationToken), Box<Response>> {
        let path = request.uri().path();
        let nobody = || {
            self.shared.audit.say(callers::NOBODY, path, false);
            unknown(grpc)
        };
        let opens = |kind: Kind, who: &str| {
            let Some(row) = access::row_of(path) else {
                let error = Error::new(ErrorKind::NotFound, "there is nothing at this path");
                return Err(refuse(&error, grpc));
            };
            if !grpc && access::is_of_grpc(path) {
                return Err(of_grpc());
            }
            let open = row.reach(kind) != Reach::None;
            if !open || access::is_audited(path) {
                self.shared.audit.say(who, path, open);
            }
            if open { Ok(()) } else { Err(closed_to(kind, grpc)) }
        };
        let token = bearer(request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()));
        let token = token.ok_or_else(nobody)?;
        let Some(principal) = self.shared.keys.of(token) else {
            let (caller, cut) = self.shared.callers.of(token).ok_or_else(nobody)?;
            opens(if caller.models { Kind::Models } else { Kind::Caller }, caller.id.as_str())?;
            request.extensions_mut().insert(caller);
            return Ok((request, cut));
        };
        match &principal {
            Principal::Admin => opens(Kind::Admin, callers::OWNER),
            Principal::Join => opens(Kind::Join, "join token"),
            Principal::Worker(node) => opens(Kind::Worker, node.as_str()),
            Principal::Job(task) => opens(Kind::Job, task.as_str()),
        }?;
        let cut = self.shared.keys.cut(&principal);
        let caller = match &principal {
            Principal::Admin => callers::OWNER.into(),
            Principal::Join => callers::NOBODY.into(),
            Principal::Worker(node) => {
                // Where TLS is spoken a worker is its certificate: a credential that was taken elsewhere opens nothing.
                if request.extensions().get::<TlsPeer>().is_some_and(|peer| !peer.is_node(node)) {
                    let text = format!("the certificate of this connection is not that of node `{node}`");
                    return Err(refuse(&Error::new(ErrorKind::PermissionDenied, text), grpc));
                }
                callers::ACTORS.into()
            }
            Principal::Job(task) => self.running(task).await.ok_or_else(|| unknown(grpc))?,
        };
        request.extensions_mut().insert(Caller::of_all(caller));
        request.extensions_mut().insert(principal);
        Ok((request, cut))
    }

    /// Whose job it is, while it runs.
    async fn running(&self, task: &TaskId) -> Option<CallerId> {
        let found = self.shared.owner.ask(|tx| Input::ActiveTask(task.clone(), tx)).await.ok()?;
        found.filter(|(record, _)| is_job(record.agent.as_str())).map(|(record, _)| record.caller.clone())
    }
}

fn of_grpc() -> Box<Response> {
    let error = Error::new(ErrorKind::NotFound, "there is nothing at this path but for gRPC");
    refuse(&error.hint("a request of gRPC has the content type `application/grpc`"), false)
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("`{method}` is no method of `{}`", uri.path());
    let body = serde_json::json!({"error": {"message": message, "type": "invalid_request_error", "code": "method_not_allowed"}});
    (StatusCode::METHOD_NOT_ALLOWED, Json(body)).into_response()
}

fn unknown(grpc: bool) -> Box<Response> {
    let error = Error::new(ErrorKind::Unauthenticated, "no or wrong credentials");
    refuse(&error.hint("send `Authorization: Bearer <key>`; `covey token --admin` prints the key"), grpc)
}

fn closed_to(kind: Kind, grpc: bool) -> Box<Response> {
    let text = format!("this is closed to the credential of a {}", kind.name());
    let error = Error::new(ErrorKind::PermissionDenied, text);
    refuse(&error.hint("docs/security.md says what each kind of credential opens"), grpc)
}

fn refuse(error: &Error, grpc: bool) -> Box<Response> {
    if grpc {
        return Box::new(to_status(error).into_http::<Body>());
    }
    let faces = error.kind.faces();
    let status = StatusCode::from_u16(faces.http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::json!({"error": {
        "message": error.message, "type": faces.openai, "code": error.kind.name(), "hint": error.hint,
    }});
    let mut response = (status, Json(body)).into_response();
    if error.kind == ErrorKind::Unauthenticated {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    }
    Box::new(response)
}
