//! JSON-RPC, both versions on the same paths. A method's name tells its version; `A2A-Version` may only say the same.

use std::{borrow::Cow, io::Write as _};

use axum::{
    body::Bytes,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use covey_a2a::{Error, Kind, old, v1};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};

use super::{Answer, StreamItem, configs, listed, named, ops::Ask, sized, stream, whole, wrong};
use crate::errors::Refusal;

/// A protocol version that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V03,
    V1,
}

/// A request. What its method takes is read once it is known which one that is.
#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(default)]
    id: Value,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// Answers one request.
pub(super) async fn serve(ask: Ask, headers: &HeaderMap, body: &Bytes) -> Response {
    if !is_json(headers) {
        let error = Error::new(Kind::ContentTypeNotSupported, "JSON-RPC is application/json");
        return refused(&Value::Null, Version::V1, &error);
    }
    if let Err(error) = covey_domain::json::check("the request", body) {
        return refused(&Value::Null, Version::V1, &super::errors::failed(error));
    }
    let Request { jsonrpc, id, method, params } = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(_) => return no_request(body),
    };
    let (method, params) = (&*method, params.map_or("null", RawValue::get));
    let version = version_of(method);
    if jsonrpc != "2.0" || !is_id(&id) || method.is_empty() {
        return no_request(body);
    }
    if let Err(error) = super::check_version(headers) {
        return refused(&id, Version::V1, &error);
    }
    let ask = match ask.of_tenant(&tenant_in(params)).await.and_then(|ask| ask.check_extensions().map(|()| ask)) {
        Ok(ask) => ask,
        Err(error) => return refused(&id, version, &error),
    };
    let (active, background, held) = (ask.active_extensions(), ask.hub.background.clone(), ask.held.clone());
    if !(params == "null" || params.starts_with('{')) {
        return refused(&id, version, &Error::new(Kind::InvalidParams, "`params` must be an object"));
    }
    let response = match dispatch(ask, method, params).await {
        Ok(Answer::Whole(result)) => {
            ([(header::CONTENT_TYPE, "application/json")], response(&id, &result)).into_response()
        }
        Ok(Answer::Stream(events)) => {
            let head = head(&id);
            let write = move |told: StreamItem, piece: &mut Vec<u8>| {
                piece.extend(head.as_bytes());
                // Our own types have string keys, and a vector takes all.
                let _ = match version {
                    Version::V1 => serde_json::to_writer(&mut *piece, &told.frame.event),
                    Version::V03 => serde_json::to_writer(&mut *piece, &old::event(&told.frame.event, told.last)),
                };
                piece.push(b'}');
            };
            let fail = move |error: &Error, piece: &mut Vec<u8>| {
                let _ = write!(piece, "data: {}", body_of(&id, version, error));
            };
            stream(&background, events, write, fail)
        }
        Err(error) => refused(&id, version, &error),
    };
    let mut response = super::activated(response, &active);
    crate::answers::Held::put(&held, response.extensions_mut());
    response
}

/// What is no request: no JSON, or JSON of something else. Several at once are not of A2A.
fn no_request(body: &[u8]) -> Response {
    let (id, version, error) = match serde_json::from_slice::<Value>(body) {
        Ok(mut other) => {
            let id = other.get_mut("id").map(Value::take).filter(is_id).unwrap_or_default();
            let version = other.get("method").and_then(Value::as_str).map_or(Version::V1, version_of);
            (id, version, Error::new(Kind::InvalidRequest, "not a JSON-RPC 2.0 request"))
        }
        Err(why) => (Value::Null, Version::V1, Error::new(Kind::Parse, format!("failed to parse JSON: {why}"))),
    };
    refused(&id, version, &error)
}

fn is_id(id: &Value) -> bool {
    id.is_null() || id.is_string() || id.is_number()
}

fn version_of(method: &str) -> Version {
    if method.contains('/') { Version::V03 } else { Version::V1 }
}

/// The agent that parameters name.
fn tenant_in(params: &str) -> String {
    #[derive(Deserialize)]
    struct Tenant {
        tenant: String,
    }
    // Most name none, and need not be read twice.
    let found = params.contains("tenant").then(|| serde_json::from_str::<Tenant>(params).ok()).flatten();
    found.map(|found| found.tenant).unwrap_or_default()
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
}

async fn dispatch(ask: Ask, method: &str, params: &str) -> Result<Answer, Error> {
    Ok(match method {
        "SendMessage" => ask.send(read(params)?, false, |sent| sized(&sent)).await?,
        "SendStreamingMessage" => Answer::Stream(ask.stream(read(params)?, false).await?),
        "GetTask" => ask.get(&read(params)?, |task| sized(&task)).await?,
        "ListTasks" => ask.list(read(params)?, |page| Ok(listed(&page).sized())).await?,
        "CancelTask" => ask.cancel(&read::<v1::CancelTaskRequest>(params)?.id, |task| sized(&task)).await?,
        "SubscribeToTask" => Answer::Stream(ask.subscribe(&read::<v1::SubscribeToTaskRequest>(params)?.id).await?),
        "CreateTaskPushNotificationConfig" => whole(&ask.push_create(read(params)?, false).await?)?,
        "GetTaskPushNotificationConfig" => {
            let request: v1::GetTaskPushNotificationConfigRequest = read(params)?;
            whole(&ask.push_get(&request.task_id, named(&request.id)?).await?)?
        }
        "ListTaskPushNotificationConfigs" => {
            let request: v1::ListTaskPushNotificationConfigsRequest = read(params)?;
            configs(ask.push_list(&request.task_id).await?)
        }
        "DeleteTaskPushNotificationConfig" => {
            let request: v1::DeleteTaskPushNotificationConfigRequest = read(params)?;
            ask.push_delete(&request.task_id, named(&request.id)?).await?;
            Answer::Whole("{}".into())
        }
        "GetExtendedAgentCard" => whole(&ask.extended_card()?)?,
        "message/send" => ask.send(old_in(params, old::send_in)?, true, |sent| sized(&old::sent(&sent))).await?,
        "message/stream" => Answer::Stream(ask.stream(old_in(params, old::send_in)?, true).await?),
        "tasks/get" => ask.get(&old_in(params, old::get_in)?, |task| sized(&old::task(&task))).await?,
        "tasks/cancel" => ask.cancel(&old_in(params, old::task_in)?, |task| sized(&old::task(&task))).await?,
        "tasks/resubscribe" => Answer::Stream(ask.subscribe(&old_in(params, old::task_in)?).await?),
        "tasks/pushNotificationConfig/set" => {
            let made = ask.push_create(old_in(params, old::push_in)?, true).await?;
            Answer::Whole(old::push_config(&made).to_string())
        }
        "tasks/pushNotificationConfig/get" => {
            let (task, id) = old_in(params, old::push_name_in)?;
            Answer::Whole(old::push_config(&ask.push_get(&task, &id).await?).to_string())
        }
        "tasks/pushNotificationConfig/list" => {
            let all = ask.push_list(&old_in(params, old::task_in)?).await?;
            Answer::Whole(all.iter().map(old::push_config).collect::<Value>().to_string())
        }
        "tasks/pushNotificationConfig/delete" => {
            let (task, id) = old_in(params, old::push_name_in)?;
            ask.push_delete(&task, named(&id)?).await?;
            Answer::Whole("null".into())
        }
        "agent/getAuthenticatedExtendedCard" => {
            let card = ask.extended_card()?;
            let mut body = serde_json::to_value(&card).unwrap_or_default();
            old::onto_card(&mut body, &card);
            Answer::Whole(body.to_string())
        }
        other => return Err(Error::new(Kind::MethodNotFound, format!("method `{other}` is not served"))),
    })
}

fn read<T: DeserializeOwned + Default>(params: &str) -> Result<T, Error> {
    let read: Result<Option<T>, _> = serde_json::from_str(params);
    read.map(Option::unwrap_or_default).map_err(|e| Error::new(Kind::InvalidParams, format!("`params` are wrong: {e}")))
}

/// The same of 0.3, which has no types of its own here.
fn old_in<T>(params: &str, read_in: impl FnOnce(&Value) -> Result<T, old::Wrong>) -> Result<T, Error> {
    wrong(read_in(&read(params)?))
}

/// What stands before a result; a brace ends it.
fn head(id: &Value) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#)
}

fn response(id: &Value, result: &str) -> String {
    head(id) + result + "}"
}

fn body_of(id: &Value, version: Version, error: &Error) -> Value {
    let error = if version == Version::V1 { error.rpc_body() } else { error.old_rpc_body() };
    json!({"jsonrpc": "2.0", "id": id, "error": error})
}

/// An error is an answer like any other, HTTP's status too.
fn refused(id: &Value, version: Version, error: &Error) -> Response {
    let body = body_of(id, version, error).to_string();
    Refusal { status: 200, again: error.kind.retry_after(), mime: "application/json", body }.response()
}
