//! Failures as A2A has them: the domain's kinds onto A2A's, and refusals over HTTP.

use axum::{extract::Request, response::Response};
use covey_a2a::{Error, Kind};
use covey_domain::ErrorKind;

use crate::{
    answers::Full,
    errors::{Refusal, words},
    fold::Failure,
};

/// A failure of the cluster.
pub(super) fn failed(error: covey_domain::Error) -> Error {
    let kind = match error.kind {
        ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::AlreadyExists => Kind::InvalidParams,
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::FailedPrecondition => Kind::UnsupportedOperation,
        ErrorKind::Overloaded => Kind::Exhausted,
        ErrorKind::StorageFull => Kind::StorageFull,
        ErrorKind::DeadlineExceeded => Kind::DeadlineExceeded,
        ErrorKind::Unavailable | ErrorKind::ActorDied | ErrorKind::Unschedulable => Kind::Unavailable,
        ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Cancelled
        | ErrorKind::Application
        | ErrorKind::Internal => Kind::Internal,
    };
    Error::new(kind, words(&error)).about("kind", error.kind.name())
}

/// The same where a task was looked for.
pub(super) fn no_task(error: covey_domain::Error, id: &str) -> Error {
    if error.kind == ErrorKind::NotFound { Error::no_task(id) } else { failed(error) }
}

/// The same where an agent was looked for.
pub(super) fn no_agent(error: covey_domain::Error) -> Error {
    if error.kind == ErrorKind::NotFound { Error::new(Kind::NotFound, error.message) } else { failed(error) }
}

impl From<Full> for Error {
    fn from(full: Full) -> Self {
        Self::new(Kind::Exhausted, full.message())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Task(id, error) => no_task(error, id.as_str()),
            Failure::Log(id, error) => failed(error).about("taskId", id.as_str()),
            Failure::Full(full) => full.into(),
        }
    }
}

/// A refusal over HTTP.
pub(super) fn refused(error: &Error) -> Response {
    refused_as(error, "application/json")
}

/// The same of this media type.
pub(super) fn refused_as(error: &Error, mime: &'static str) -> Response {
    let again = error.kind.retry_after();
    Refusal { status: error.kind.http(), again, mime, body: error.http_body().to_string() }.response()
}

/// What is said where a caller asks too much at once.
pub(crate) fn overloaded(request: &Request, error: covey_domain::Error) -> Response {
    let error = failed(error);
    if crate::is_grpc(request.headers()) { tonic::Status::from(error).into_http() } else { refused(&error) }
}
