//! Operations as a binding has them over HTTP.

use std::time::Duration;

use bytes::Bytes;
use covey_a2a::{old_client, v1};
use covey_domain::{Error, ErrorKind, caps};
use eventsource_stream::Eventsource as _;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    card::{Binding, Face},
    chain,
};

/// Short operations may take so long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer or of one event of a stream, at most: twice a message, as base64 needs.
const ANSWER_BYTES_MAX: usize = 2 * caps::MESSAGE_BYTES_MAX;

/// Why an operation gave nothing.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The way to the agent broke. `sent` = it may have heard what was asked.
    Cut { why: String, sent: bool },
    /// The agent said so, or what it said cannot be read.
    Said(Error),
}

impl Failed {
    fn cut(error: reqwest::Error) -> Self {
        let sent = !error.is_connect() && !error.is_builder();
        Self::Cut { why: chain(error), sent }
    }

    fn wrong(why: impl std::fmt::Display) -> Self {
        Self::Said(Error::internal(format!("the agent's answer cannot be read: {why}")))
    }

    pub fn into_error(self) -> Error {
        match self {
            Self::Said(error) => error,
            Self::Cut { why, sent } => {
                let executed = if sent { None } else { Some(false) };
                Error::unavailable(format!("the agent was not reached: {why}")).executed(executed)
            }
        }
    }
}

/// An event of a stream, with the place that the server gave it.
pub(crate) type Frame = (Option<String>, v1::StreamResponse);
pub(crate) type Frames = BoxStream<'static, Result<Frame, Failed>>;

/// An address and how it is spoken to.
#[derive(Debug)]
pub(crate) struct Wire {
    pub http: Client,
    pub headers: HeaderMap,
    pub face: Face,
}

/// Names of an operation: JSON-RPC's of 1.0 and 0.3, HTTP+JSON's method and path.
struct Operation<'a> {
    name: &'static str,
    old: &'static str,
    method: Method,
    path: &'a [&'a str],
}

impl Wire {
    /// Sends a message and reads what comes of it while it is made.
    pub async fn stream(&self, request: &v1::SendMessageRequest, traceparent: &str) -> Result<Frames, Failed> {
        let operation = Operation {
            name: "SendStreamingMessage",
            old: "message/stream",
            method: Method::POST,
            path: &["message:stream"],
        };
        let call = about(self.request(&operation, self.send_params(request)?), request, traceparent);
        frames(self.face.binding, call.send().await.map_err(Failed::cut)?).await
    }

    /// Sends a message and waits for the end of the turn.
    pub async fn send(
        &self,
        request: &v1::SendMessageRequest,
        traceparent: &str,
    ) -> Result<v1::StreamResponse, Failed> {
        let operation =
            Operation { name: "SendMessage", old: "message/send", method: Method::POST, path: &["message:send"] };
        let call = about(self.request(&operation, self.send_params(request)?), request, traceparent);
        let answer = self.answer(call).await?;
        event(self.face.binding, answer)
    }

    /// Reads on behind `place`; without one a task as it is now, and what becomes of it.
    pub async fn subscribe(&self, task: &str, place: Option<&str>) -> Result<Frames, Failed> {
        let path = ["tasks", &format!("{task}:subscribe")];
        let operation =
            Operation { name: "SubscribeToTask", old: "tasks/resubscribe", method: Method::GET, path: &path };
        let mut call = self.request(&operation, self.task_params(task));
        if let Some(place) = place {
            call = call.header("last-event-id", place);
        }
        frames(self.face.binding, call.send().await.map_err(Failed::cut)?).await
    }

    pub async fn get(&self, task: &str) -> Result<v1::Task, Failed> {
        let path = ["tasks", task];
        let operation = Operation { name: "GetTask", old: "tasks/get", method: Method::GET, path: &path };
        let answer = self.answer(self.request(&operation, self.task_params(task)).timeout(TIMEOUT)).await?;
        match self.face.binding {
            Binding::Old => old_client::task_in(&answer).map_err(Failed::wrong),
            Binding::JsonRpc | Binding::Rest => read(answer),
        }
    }

    pub async fn cancel(&self, task: &str) -> Result<Value, Failed> {
        let path = ["tasks", &format!("{task}:cancel")];
        let operation = Operation { name: "CancelTask", old: "tasks/cancel", method: Method::POST, path: &path };
        self.answer(self.request(&operation, self.task_params(task)).timeout(TIMEOUT)).await
    }

    fn send_params(&self, request: &v1::SendMessageRequest) -> Result<Value, Failed> {
        match self.face.binding {
            Binding::Old => Ok(old_client::send_out(request)),
            Binding::JsonRpc | Binding::Rest => {
                let request = v1::SendMessageRequest { tenant: self.face.tenant.clone(), ..request.clone() };
                serde_json::to_value(&request).map_err(Failed::wrong)
            }
        }
    }

    fn task_params(&self, task: &str) -> Value {
        match self.face.tenant.as_str() {
            "" => json!({"id": task}),
            tenant => json!({"id": task, "tenant": tenant}),
        }
    }

    fn request(&self, operation: &Operation<'_>, params: Value) -> RequestBuilder {
        let face = &self.face;
        let request = match face.binding {
            Binding::JsonRpc | Binding::Old => {
                let method = if face.binding == Binding::Old { operation.old } else { operation.name };
                let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
                self.http.post(face.url.clone()).header(CONTENT_TYPE, "application/json").body(body.to_string())
            }
            Binding::Rest => {
                let request = self.http.request(operation.method.clone(), under(face, operation.path));
                match operation.method {
                    Method::GET => request,
                    _ => request.header(CONTENT_TYPE, "application/json").body(params.to_string()),
                }
            }
        };
        let version = if face.binding == Binding::Old { "0.3" } else { "1.0" };
        request.headers(self.headers.clone()).header("a2a-version", version)
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Value, Failed> {
        let response = request.header(ACCEPT, "application/json").send().await.map_err(Failed::cut)?;
        whole(self.face.binding, response).await
    }
}

/// What goes with a message: extensions that it speaks, the trace it is a part of.
fn about(mut call: RequestBuilder, request: &v1::SendMessageRequest, traceparent: &str) -> RequestBuilder {
    let extensions = request.message.as_ref().map(|m| m.extensions.join(", ")).unwrap_or_default();
    for (name, value) in [("a2a-extensions", extensions.as_str()), ("traceparent", traceparent)] {
        if !value.is_empty() {
            call = call.header(name, value);
        }
    }
    call
}

/// The address of an operation, whatever the task's id is made of.
fn under(face: &Face, path: &[&str]) -> Url {
    let mut url = face.url.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(Some(&face.tenant).filter(|tenant| !tenant.is_empty())).extend(path);
    }
    url
}

/// The whole answer of an operation.
async fn whole(binding: Binding, response: Response) -> Result<Value, Failed> {
    let status = response.status();
    let body = body(response).await?;
    covey_domain::json::check("the answer", &body).map_err(Failed::Said)?;
    let value: Value = match serde_json::from_slice(&body) {
        Ok(value) => value,
        Err(_) if !status.is_success() => return Err(Failed::Said(refused(status, &String::from_utf8_lossy(&body)))),
        Err(error) => return Err(Failed::wrong(error)),
    };
    if status.is_success() || value["error"].is_object() {
        result(binding, value, status)
    } else {
        Err(Failed::Said(refused(status, value["message"].as_str().unwrap_or_default())))
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, Failed> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Failed::cut)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(Failed::Said(Error::new(
                ErrorKind::TooLarge,
                format!("the agent's answer is larger than {ANSWER_BYTES_MAX} bytes"),
            )));
        }
    }
    Ok(body)
}

/// What the binding puts around a result, taken off.
fn result(binding: Binding, mut value: Value, status: StatusCode) -> Result<Value, Failed> {
    if value["error"].is_object() {
        return Err(Failed::Said(error(&value["error"], status)));
    }
    match binding {
        Binding::Rest => Ok(value),
        Binding::JsonRpc | Binding::Old => match value.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(Failed::wrong("it has neither a result nor an error")),
        },
    }
}

fn event(binding: Binding, value: Value) -> Result<v1::StreamResponse, Failed> {
    let event = match binding {
        Binding::Old => old_client::event_in(&value).map_err(Failed::wrong)?,
        Binding::JsonRpc | Binding::Rest => read::<v1::StreamResponse>(value)?,
    };
    match event.payload {
        Some(_) => Ok(event),
        None => Err(Failed::wrong("it is neither a task nor a message nor news of one")),
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, Failed> {
    serde_json::from_value(value).map_err(Failed::wrong)
}

async fn frames(binding: Binding, response: Response) -> Result<Frames, Failed> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !response.status().is_success() || !kind.starts_with("text/event-stream") {
        // An error, or an agent that has the whole answer at once.
        let answer = whole(binding, response).await.and_then(|value| event(binding, value))?;
        return Ok(futures::stream::once(async { Ok((None, answer)) }).boxed());
    }
    Ok(events(binding, response.bytes_stream().map_err(Failed::cut)))
}

/// Server-sent events as what the binding means by them.
pub(crate) fn events(binding: Binding, bytes: impl Stream<Item = Result<Bytes, Failed>> + Send + 'static) -> Frames {
    let mut unbroken = 0;
    let bytes = bytes.map(move |bytes| {
        let bytes = bytes?;
        // An event that never ends would be gathered without end.
        unbroken = if bytes.contains(&b'\n') { 0 } else { unbroken + bytes.len() };
        if unbroken > ANSWER_BYTES_MAX { Err(Failed::wrong("an event is too large")) } else { Ok(bytes) }
    });
    let frames = bytes.eventsource().map(move |frame| {
        let frame = frame.map_err(|error| match error {
            eventsource_stream::EventStreamError::Transport(failed) => failed,
            eventsource_stream::EventStreamError::Utf8(why) => Failed::wrong(why),
            eventsource_stream::EventStreamError::Parser(why) => Failed::wrong(why),
        })?;
        covey_domain::json::check("an event", frame.data.as_bytes()).map_err(Failed::Said)?;
        let value: Value = serde_json::from_str(&frame.data).map_err(Failed::wrong)?;
        let event = event(binding, result(binding, value, StatusCode::OK)?)?;
        Ok((Some(frame.id).filter(|id| !id.is_empty()), event))
    });
    frames.boxed()
}

/// An error as the agent tells it.
fn error(error: &Value, status: StatusCode) -> Error {
    let message = error["message"].as_str().unwrap_or("no reason is given");
    let kind = match error["code"].as_i64().unwrap_or_default() {
        -32001 | 404 => ErrorKind::NotFound,
        -32700 | -32600 | -32602 | -32005 => ErrorKind::InvalidArgument,
        -32601 | -32004..=-32002 | -32009..=-32007 => ErrorKind::FailedPrecondition,
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::PermissionDenied,
        // HTTP+JSON tells one status for many; the reason says which.
        400 => match error["details"][0]["reason"].as_str() {
            Some("INVALID_PARAMS" | "INVALID_REQUEST" | "PARSE_ERROR" | "CONTENT_TYPE_NOT_SUPPORTED") => {
                ErrorKind::InvalidArgument
            }
            Some(_) => ErrorKind::FailedPrecondition,
            None => ErrorKind::InvalidArgument,
        },
        409 => ErrorKind::FailedPrecondition,
        429 => ErrorKind::Overloaded,
        503 => ErrorKind::Unavailable,
        504 => ErrorKind::DeadlineExceeded,
        _ if status == StatusCode::UNAUTHORIZED => ErrorKind::Unauthenticated,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("the agent refused: {message}")).executed(Some(false))
}

/// A status without words of the protocol, as proxies and doors give it.
fn refused(status: StatusCode, text: &str) -> Error {
    let kind = match status {
        StatusCode::UNAUTHORIZED => ErrorKind::Unauthenticated,
        StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::TOO_MANY_REQUESTS => ErrorKind::Overloaded,
        _ if status.is_server_error() => ErrorKind::Unavailable,
        _ => ErrorKind::FailedPrecondition,
    };
    let text: String = text.chars().take(200).collect();
    Error::new(kind, format!("the agent's server answered {status}: {text}")).executed(Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_both_bindings_are_known() {
        let of = |value: Value| error(&value, StatusCode::OK).kind;
        assert_eq!(of(json!({"code": -32001, "message": "x"})), ErrorKind::NotFound);
        assert_eq!(of(json!({"code": -32004, "message": "x"})), ErrorKind::FailedPrecondition);
        let rest = covey_a2a::Error::new(covey_a2a::Kind::UnsupportedOperation, "x").http_body();
        assert_eq!(of(rest["error"].clone()), ErrorKind::FailedPrecondition);
        let rest = covey_a2a::Error::field("id", "is missing").http_body();
        assert_eq!(of(rest["error"].clone()), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_task_has_a_name_for_paths() {
        let face = Face {
            binding: Binding::Rest,
            url: "https://h/a2a/".parse().unwrap(),
            version: "1.0".into(),
            tenant: "t".into(),
        };
        assert_eq!(under(&face, &["tasks", "a/b?:cancel"]).as_str(), "https://h/a2a/t/tasks/a%2Fb%3F:cancel");
    }
}
