//! One port for gRPC and HTTP, and one checkpoint in front of every route.

use std::sync::{Arc, atomic::AtomicU64};

use axum::{
    Json, Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use covey_domain::{Error, ErrorKind, caps};
use covey_gateway::{Caller, Cluster as _, Settings};
use covey_node::{Credentials, auth, tls::Port};
use covey_proto::{
    to_status,
    v1::{covey_server::CoveyServer, link_server::LinkServer},
};
use futures::future::Either;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::{
    Shared,
    callers::{self, Callers},
    client_service::ClientService,
    cluster::ClusterPort,
    link_service::LinkService,
};

/// Tells that this process runs.
const LIVE: &str = "/livez";

pub(crate) async fn serve(
    listener: TcpListener,
    port: Port,
    shared: Shared,
    credentials: Credentials,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let check = Arc::new(Checkpoint { keys: credentials, known: shared.callers.clone() });
    let (closed, open) = routes(shared, settings);
    let app = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let request = request.map(Body::new);
        let path = request.uri().path();
        if path == LIVE || covey_gateway::is_open(path) {
            return Either::Left(open.clone().call(request));
        }
        match check.pass(request) {
            Ok(request) => Either::Left(closed.clone().call(request)),
            Err(refused) => Either::Right(std::future::ready(Ok(*refused))),
        }
    });
    covey_node::tls::serve(listener, port, app, shutdown).await;
}

/// Routes that are behind the checkpoint, and those that are not.
fn routes(shared: Shared, settings: Settings) -> (Router, Router) {
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
        .merge(covey_gateway::router(cluster.clone(), &settings))
        .merge(grpc)
        .fallback(unknown);
    (closed, covey_gateway::open_router(cluster, &settings).route(LIVE, get(|| async { "ok" })))
}

/// What is said where there is nothing: each sort of client hears its own words.
async fn unknown(request: Request) -> Response {
    let error = Error::new(ErrorKind::NotFound, format!("there is no `{}` here", request.uri().path()));
    if is_grpc(request.headers()) {
        return tonic::Status::unimplemented(error.message).into_http();
    }
    *refuse(&error, false)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// In front of all that is not open: Host, Origin, credentials; in this order, before anything reads the body.
struct Checkpoint {
    keys: Credentials,
    known: Arc<Callers>,
}

impl Checkpoint {
    /// The request with its caller, or what is said instead.
    fn pass(&self, mut request: Request) -> Result<Request, Box<Response>> {
        // HTTP/2 tells the host with the path. Handlers find it in one place.
        let authority = request.uri().authority().and_then(|a| header::HeaderValue::from_str(a.as_str()).ok());
        if let Some(authority) = authority {
            request.headers_mut().entry(header::HOST).or_insert(authority);
        }
        let headers = request.headers();
        let grpc = is_grpc(headers);
        if !from_here(headers, &self.keys.address) {
            let error = Error::new(ErrorKind::PermissionDenied, "the Host or Origin of the request is not this head");
            return Err(refuse(&error.hint("address the head by 127.0.0.1 or localhost"), grpc));
        }
        let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let joining = request.uri().path().starts_with("/covey.v1.Link/");
        // What actors ask of the cluster comes through their worker, in the name of whoever runs the cluster.
        let client = request.uri().path().starts_with("/covey.v1.Covey/");
        let caller = match auth::authenticate(&self.keys, authorization) {
            Some(auth::Principal::Admin(caller)) if !joining => Caller::of_all(caller),
            Some(auth::Principal::Worker | auth::Principal::Admin(_)) if joining => return Ok(request),
            Some(auth::Principal::Worker) if client => Caller::of_all(callers::OWNER.into()),
            Some(_) => {
                let error = Error::new(ErrorKind::PermissionDenied, "a join token does not open this");
                return Err(refuse(&error, grpc));
            }
            None => {
                let Some((caller, models)) = self.known.of(authorization) else {
                    let error = Error::new(ErrorKind::Unauthenticated, "no or wrong credentials");
                    let hint = "send `Authorization: Bearer <key>`; `covey token --admin` prints the key";
                    return Err(refuse(&error.hint(hint), grpc));
                };
                if !callers::is_open(request.uri().path(), models) {
                    let error = Error::new(ErrorKind::PermissionDenied, "this is not there for callers of agents");
                    return Err(refuse(&error, grpc));
                }
                caller
            }
        };
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

/// Guards against DNS rebinding and pages of other sites. Only a head on loopback knows all its names.
fn from_here(headers: &HeaderMap, address: &str) -> bool {
    let local = |name: &str| matches!(name, "127.0.0.1" | "localhost" | "[::1]" | "::1");
    let name = |authority: &str| {
        authority
            .rsplit_once(':')
            .filter(|(_, p)| p.chars().all(|c| c.is_ascii_digit()))
            .map_or(authority, |(n, _)| n)
            .to_owned()
    };
    if !local(&name(address)) {
        return true;
    }
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let origin = headers.get(header::ORIGIN).and_then(|v| v.to_str().ok());
    let origin_ok = origin.is_none_or(|o| o.split_once("://").is_some_and(|(_, rest)| local(&name(rest))));
    host.is_some_and(|h| local(&name(h))) && origin_ok
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_names_are_refused_on_loopback() {
        let with = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            from_here(&headers, "127.0.0.1:7420")
        };
        assert!(with("127.0.0.1:7420", None));
        assert!(with("localhost", Some("http://localhost:3000")));
        assert!(!with("evil.example:7420", None));
        assert!(!with("127.0.0.1:7420", Some("https://evil.example")));
        assert!(!with("127.0.0.1:7420", Some("null")));
    }
}
