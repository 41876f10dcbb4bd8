//! One table of ways to fail, with a column for every face: gRPC, HTTP, JSON-RPC, exit code, Python exception.

use serde::{Deserialize, Serialize};

/// What kind of trouble. The names are stable: they travel on every wire and in `docs/errors.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong.
    InvalidArgument,
    /// No or wrong credentials.
    Unauthenticated,
    /// Credentials that do not suffice.
    PermissionDenied,
    /// No such task, agent, actor or model, or not yours.
    NotFound,
    /// The thing is there already.
    AlreadyExists,
    /// The thing is in a state that forbids this.
    FailedPrecondition,
    /// A queue is full; try later.
    Overloaded,
    /// The head's disk is full: nothing new is taken, all else goes on.
    StorageFull,
    /// A payload is over its limit.
    TooLarge,
    /// Time ran out.
    DeadlineExceeded,
    /// Somebody cancelled it.
    Cancelled,
    /// The actor died; whether the call ran may be unknown.
    ActorDied,
    /// No node can ever hold it as asked.
    Unschedulable,
    /// A node or link is gone; try again.
    Unavailable,
    /// The agent's own code raised.
    Application,
    /// A belief of ours broke.
    Internal,
}

/// The columns of one kind.
pub struct Faces {
    /// `tonic::Code` as a number.
    pub grpc: i32,
    /// HTTP status.
    pub http: u16,
    /// JSON-RPC code outside A2A's own.
    pub json_rpc: i32,
    /// Exit code of the command line (sysexits where one fits).
    pub exit: u8,
    /// OpenAI's `error.type`.
    pub openai: &'static str,
    /// Python exception in `covey.errors`.
    pub python: &'static str,
}

/// Message of a head that does not answer any more because it stops; the one that follows it may.
pub const STOPPING: &str = "the head is stopping";

/// [`Error::detail`] of an actor's death: the call was running in the process that died, and may be why.
pub const RUNNING: &str = "running";

/// [`Error::detail`] of a call that was given up: its turn goes on all the same, so its actor has no place for another.
pub const STUCK: &str = "stuck";

impl ErrorKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [ErrorKind; 16] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::Overloaded,
        Self::StorageFull,
        Self::TooLarge,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::ActorDied,
        Self::Unschedulable,
        Self::Unavailable,
        Self::Application,
        Self::Internal,
    ];

    /// The row of the table.
    pub fn faces(self) -> Faces {
        let (name, grpc, http, json_rpc, exit, openai, python) = match self {
            Self::InvalidArgument => {
                ("invalid_argument", 3, 400, -32602, 64, "invalid_request_error", "InvalidArgument")
            }
            Self::Unauthenticated => {
                ("unauthenticated", 16, 401, -32603, 77, "authentication_error", "Unauthenticated")
            }
            Self::PermissionDenied => ("permission_denied", 7, 403, -32603, 77, "permission_error", "PermissionDenied"),
            Self::NotFound => ("not_found", 5, 404, -32602, 66, "invalid_request_error", "NotFound"),
            Self::AlreadyExists => ("already_exists", 6, 409, -32602, 73, "invalid_request_error", "AlreadyExists"),
            Self::FailedPrecondition => {
                ("failed_precondition", 9, 400, -32602, 65, "invalid_request_error", "FailedPrecondition")
            }
            Self::Overloaded => ("overloaded", 8, 429, -32603, 75, "rate_limit_error", "Overloaded"),
            Self::StorageFull => ("storage_full", 8, 503, -32603, 75, "server_error", "StorageFull"),
            Self::TooLarge => ("too_large", 11, 413, -32602, 65, "invalid_request_error", "TooLarge"),
            Self::DeadlineExceeded => ("deadline_exceeded", 4, 504, -32603, 75, "timeout", "DeadlineExceeded"),
            Self::Cancelled => ("cancelled", 1, 499, -32603, 130, "cancelled", "Cancelled"),
            Self::ActorDied => ("actor_died", 10, 502, -32603, 69, "server_error", "ActorDied"),
            Self::Unschedulable => ("unschedulable", 9, 503, -32603, 69, "server_error", "Unschedulable"),
            Self::Unavailable => ("unavailable", 14, 503, -32603, 69, "server_error", "ConnectionLost"),
            Self::Application => ("application", 2, 500, -32603, 1, "server_error", "RemoteError"),
            Self::Internal => ("internal", 13, 500, -32603, 70, "server_error", "InternalError"),
        };
        debug_assert_eq!(name, self.name());
        Faces { grpc, http, json_rpc, exit, openai, python }
    }

    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::FailedPrecondition => "failed_precondition",
            Self::Overloaded => "overloaded",
            Self::StorageFull => "storage_full",
            Self::TooLarge => "too_large",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::ActorDied => "actor_died",
            Self::Unschedulable => "unschedulable",
            Self::Unavailable => "unavailable",
            Self::Application => "application",
            Self::Internal => "internal",
        }
    }

    /// The kind with this stable name; `Internal` for a name from a newer peer.
    pub fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(Self::Internal)
    }
}

/// A failure that may cross a wire: its kind, what happened, and what the reader can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Which row of the table.
    pub kind: ErrorKind,
    /// A lowercase fragment with the value in backticks.
    pub message: String,
    /// What the reader can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For a call: did it run? `None` = unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed: Option<bool>,
    /// Opaque detail; [`RUNNING`] of an actor's death. Else of the agent's language (a pickled exception, a traceback), base64 where binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The agent raised something that its caller wants to be tried again ([`crate::Retry::on`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
}

/// What is behind an error, behind `text`: each cause after a colon.
pub fn with_causes(mut text: String, error: &dyn std::error::Error) -> String {
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, executed: None, detail: None, retry: false }
    }

    /// With what the reader can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With what is known of the call's execution.
    #[must_use]
    pub fn executed(mut self, executed: Option<bool>) -> Self {
        self.executed = executed;
        self
    }

    /// `NotFound` for a thing of `what` named `name`.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("no {what} `{name}`"))
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// A belief of ours broke.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// A node or link is gone.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_row_and_survives_its_name() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), kind);
            let faces = kind.faces();
            assert!(faces.http >= 400 && faces.grpc > 0 && faces.exit > 0, "{kind:?}");
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
