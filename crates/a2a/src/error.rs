//! What can go wrong, once, and how each binding says it (specification §5.4 of 1.0.1).

use std::{collections::HashMap, time::Duration};

use serde_json::{Map, Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// Who says the reasons of errors.
const DOMAIN: &str = "a2a-protocol.org";

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such task, or one of somebody else.
    TaskNotFound,
    /// It has ended.
    TaskNotCancelable,
    /// The agent sends no notifications.
    PushNotificationNotSupported,
    /// The agent, or the state of the task, does not allow it.
    UnsupportedOperation,
    /// A media type that the agent does not take.
    ContentTypeNotSupported,
    /// The agent answered with what is none of the protocol's shapes.
    InvalidAgentResponse,
    /// There is no extended card.
    ExtendedAgentCardNotConfigured,
    /// A required extension was not declared.
    ExtensionSupportRequired,
    /// Another version than those served.
    VersionNotSupported,
    /// No JSON.
    Parse,
    /// No request.
    InvalidRequest,
    /// No such method.
    MethodNotFound,
    /// Parameters that are missing or wrong.
    InvalidParams,
    /// No such thing beside tasks: an agent, a configuration.
    NotFound,
    /// More than is served at once; come again.
    Exhausted,
    /// The disk is full.
    StorageFull,
    /// Not now.
    Unavailable,
    /// Not in time.
    DeadlineExceeded,
    /// Our fault.
    Internal,
}

/// A kind as each binding says it.
struct Faces {
    rpc: i32,
    grpc: Code,
    http: u16,
    status: &'static str,
    reason: &'static str,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::TaskNotFound,
        Self::TaskNotCancelable,
        Self::PushNotificationNotSupported,
        Self::UnsupportedOperation,
        Self::ContentTypeNotSupported,
        Self::InvalidAgentResponse,
        Self::ExtendedAgentCardNotConfigured,
        Self::ExtensionSupportRequired,
        Self::VersionNotSupported,
        Self::Parse,
        Self::InvalidRequest,
        Self::MethodNotFound,
        Self::InvalidParams,
        Self::NotFound,
        Self::Exhausted,
        Self::StorageFull,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    fn faces(self) -> Faces {
        let of = |rpc, grpc, http, status, reason| Faces { rpc, grpc, http, status, reason };
        let refused = |rpc, reason| of(rpc, Code::FailedPrecondition, 400, "FAILED_PRECONDITION", reason);
        let wrong = |rpc, reason| of(rpc, Code::InvalidArgument, 400, "INVALID_ARGUMENT", reason);
        match self {
            Self::TaskNotFound => of(-32001, Code::NotFound, 404, "NOT_FOUND", "TASK_NOT_FOUND"),
            Self::TaskNotCancelable => refused(-32002, "TASK_NOT_CANCELABLE"),
            Self::PushNotificationNotSupported => refused(-32003, "PUSH_NOTIFICATION_NOT_SUPPORTED"),
            Self::UnsupportedOperation => refused(-32004, "UNSUPPORTED_OPERATION"),
            Self::ContentTypeNotSupported => wrong(-32005, "CONTENT_TYPE_NOT_SUPPORTED"),
            Self::InvalidAgentResponse => of(-32006, Code::Internal, 500, "INTERNAL", "INVALID_AGENT_RESPONSE"),
            Self::ExtendedAgentCardNotConfigured => refused(-32007, "EXTENDED_AGENT_CARD_NOT_CONFIGURED"),
            Self::ExtensionSupportRequired => refused(-32008, "EXTENSION_SUPPORT_REQUIRED"),
            Self::VersionNotSupported => refused(-32009, "VERSION_NOT_SUPPORTED"),
            Self::Parse => wrong(-32700, "PARSE_ERROR"),
            Self::InvalidRequest => wrong(-32600, "INVALID_REQUEST"),
            Self::MethodNotFound => of(-32601, Code::Unimplemented, 404, "UNIMPLEMENTED", "METHOD_NOT_FOUND"),
            Self::InvalidParams => wrong(-32602, "INVALID_PARAMS"),
            Self::NotFound => of(-32602, Code::NotFound, 404, "NOT_FOUND", "NOT_FOUND"),
            Self::Exhausted => of(-32603, Code::ResourceExhausted, 429, "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
            Self::StorageFull => of(-32603, Code::ResourceExhausted, 503, "RESOURCE_EXHAUSTED", "STORAGE_FULL"),
            Self::Unavailable => of(-32603, Code::Unavailable, 503, "UNAVAILABLE", "UNAVAILABLE"),
            Self::DeadlineExceeded => of(-32603, Code::DeadlineExceeded, 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
            Self::Internal => of(-32603, Code::Internal, 500, "INTERNAL", "INTERNAL"),
        }
    }

    /// JSON-RPC's code.
    pub fn rpc(self) -> i32 {
        self.faces().rpc
    }

    /// HTTP's status.
    pub fn http(self) -> u16 {
        self.faces().http
    }

    /// When it may be worth to come again, where that is likely.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Exhausted => Some(Duration::from_secs(1)),
            Self::Unavailable => Some(Duration::from_secs(2)),
            _ => None,
        }
    }

    /// The name that programs look at.
    pub fn reason(self) -> &'static str {
        self.faces().reason
    }
}

/// An error of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What.
    pub kind: Kind,
    /// In words.
    pub message: String,
    /// For programs: which task, which version.
    pub about: Vec<(&'static str, String)>,
    /// Fields of the request that are wrong, and why.
    pub fields: Vec<(String, String)>,
}

impl Error {
    /// Of this kind, in words.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), about: Vec::new(), fields: Vec::new() }
    }

    /// No such task for this caller.
    pub fn no_task(id: &str) -> Self {
        Self::new(Kind::TaskNotFound, format!("Task not found: {id}")).about("taskId", id)
    }

    /// A field that is missing or wrong.
    pub fn field(name: impl Into<String>, why: impl Into<String>) -> Self {
        let (name, why) = (name.into(), why.into());
        let mut error = Self::new(Kind::InvalidParams, format!("`{name}` {why}"));
        error.fields.push((name, why));
        error
    }

    /// With one more thing that programs may want.
    #[must_use]
    pub fn about(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.about.push((name, value.into()));
        self
    }

    /// `google.rpc` details, as ProtoJSON has them.
    fn details(&self) -> Value {
        let mut info = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": self.kind.reason(),
            "domain": DOMAIN});
        if !self.about.is_empty() {
            info["metadata"] = self.about.iter().map(|(k, v)| ((*k).to_owned(), Value::from(v.clone()))).collect();
        }
        let mut all = vec![info];
        if let Some(after) = self.kind.retry_after() {
            let delay = format!("{}s", after.as_secs());
            all.push(json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}));
        }
        if !self.fields.is_empty() {
            let one = |(field, why): &(String, String)| json!({"field": field, "description": why});
            let violations: Vec<Value> = self.fields.iter().map(one).collect();
            all.push(json!({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}));
        }
        all.into()
    }

    /// The `error` member of a JSON-RPC response of 1.0.
    pub fn rpc_body(&self) -> Value {
        json!({"code": self.kind.rpc(), "message": self.message, "data": self.details()})
    }

    /// The same of 0.3, which knows fewer codes.
    pub fn old_rpc_body(&self) -> Value {
        let code = match self.kind.rpc() {
            code @ (-32_007..=-32_001 | -32_700 | -32_603..=-32_600) => code,
            _ => Kind::Internal.rpc(),
        };
        let mut data: Map<_, _> = self.about.iter().map(|(k, v)| ((*k).to_owned(), Value::from(v.clone()))).collect();
        data.insert("reason".to_owned(), self.kind.reason().into());
        if let Some(after) = self.kind.retry_after() {
            data.insert("retryAfter".to_owned(), after.as_secs().into());
        }
        json!({"code": code, "message": self.message, "data": data})
    }

    /// The body of an HTTP response.
    pub fn http_body(&self) -> Value {
        let Faces { http, status, .. } = self.kind.faces();
        json!({"error": {"code": http, "status": status, "message": self.message, "details": self.details()}})
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let Faces { grpc, reason, .. } = error.kind.faces();
        let about: HashMap<String, String> = error.about.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, about);
        if let Some(after) = error.kind.retry_after() {
            details.set_retry_info(Some(after));
        }
        if !error.fields.is_empty() {
            let all = error.fields.into_iter().map(|(field, why)| FieldViolation::new(field, why));
            details.set_bad_request(all.collect::<Vec<_>>());
        }
        Self::with_error_details(grpc, error.message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_says_the_same() {
        let mut reasons = std::collections::HashSet::new();
        for kind in Kind::ALL {
            let error = Error::new(kind, "why").about("taskId", "t");
            assert!(reasons.insert(kind.reason()), "{kind:?} has a reason of its own");
            assert_eq!(error.rpc_body()["data"][0]["reason"], kind.reason());
            assert_eq!(error.http_body()["error"]["details"][0]["metadata"]["taskId"], "t");
            let status = Status::from(error.clone());
            assert_eq!(status.get_details_error_info().unwrap().reason, kind.reason());
            assert_eq!(status.message(), "why");
            let told = status.get_details_retry_info().and_then(|info| info.retry_delay);
            assert_eq!(told, kind.retry_after());
            assert_eq!(error.old_rpc_body()["data"].get("retryAfter").is_some(), told.is_some());
            assert_eq!(error.rpc_body().to_string().contains("retryDelay"), told.is_some());
            assert!(error.old_rpc_body()["code"].as_i64().is_some_and(|code| !(-32_500..=-32_008).contains(&code)));
        }
        let wrong = Error::field("message.parts", "is empty");
        assert_eq!(wrong.rpc_body()["data"][1]["fieldViolations"][0]["field"], "message.parts");
        assert_eq!(Status::from(wrong).get_details_bad_request().unwrap().field_violations[0].description, "is empty");
    }
}
