//! JSON-RPC, both versions on the same paths. A method's name tells its version; `A2A-Version` may only say the same.

use std::io::Write as _;

use axum::{
    Json,
    body::Bytes,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use covey_a2a::{Error, Kind, old, v1};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    Answer, configs, listed, named,
    ops::{Ask, Told},
    stream, whole, wrong,
};

/// A protocol version that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V03,
    V1,
}

/// Answers one request.
pub(super) async fn serve(ask: Ask, headers: &HeaderMap, body: &Bytes) -> Response {
    if !is_json(headers) {
        let error = Error::new(Kind::ContentTypeNotSupported, "JSON-RPC is application/json");
        return refused(&Value::Null, Version::V1, &error);
    }
    let mut request: Value = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(why) => {
            let error = Error::new(Kind::Parse, format!("failed to parse JSON: {why}"));
            return refused(&Value::Null, Version::V1, &error);
        }
    };
    if !request.is_object() {
        // Several at once are not of A2A.
        let error = Error::new(Kind::InvalidRequest, "not a JSON-RPC 2.0 request");
        return refused(&Value::Null, Version::V1, &error);
    }
    let (id, params) = (request["id"].take(), request["params"].take());
    let method = request["method"].as_str().unwrap_or_default();
    let version = if method.contains('/') { Version::V03 } else { Version::V1 };
    let good_id = id.is_null() || id.is_string() || id.is_number();
    if request["jsonrpc"] != "2.0" || !good_id || method.is_empty() {
        let id = if good_id { &id } else { &Value::Null };
        return refused(id, version, &Error::new(Kind::InvalidRequest, "not a JSON-RPC 2.0 request"));
    }
    if let Err(error) = super::check_version(headers) {
        return refused(&id, Version::V1, &error);
    }
    let tenant = params["tenant"].as_str().unwrap_or_default();
    let ask = match ask.of_tenant(tenant).await.and_then(|ask| ask.check_extensions().map(|()| ask)) {
        Ok(ask) => ask,
        Err(error) => return refused(&id, version, &error),
    };
    let active = ask.active_extensions();
    if !(params.is_null() || params.is_object()) {
        return refused(&id, version, &Error::new(Kind::InvalidParams, "`params` must be an object"));
    }
    let response = match dispatch(ask, method, params).await {
        Ok(Answer::Whole(result)) => {
            ([(header::CONTENT_TYPE, "application/json")], response(&id, &result)).into_response()
        }
        Ok(Answer::Stream(events)) => {
            let head = head(&id);
            let write = move |told: Told, piece: &mut Vec<u8>| {
                piece.extend(head.as_bytes());
                // Our own types have string keys, and a vector takes all.
                let _ = match version {
                    Version::V1 => serde_json::to_writer(&mut *piece, &told.event),
                    Version::V03 => serde_json::to_writer(&mut *piece, &old::event(&told.event, told.last)),
                };
                piece.push(b'}');
            };
            let fail = move |error: &Error, piece: &mut Vec<u8>| {
                let _ = write!(piece, "data: {}", body_of(&id, version, error));
            };
            stream(events, write, fail)
        }
        Err(error) => refused(&id, version, &error),
    };
    super::activated(response, &active)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
}

async fn dispatch(ask: Ask, method: &str, params: Value) -> Result<Answer, Error> {
    Ok(match method {
        "SendMessage" => whole(&ask.send(read(params)?, false).await?)?,
        "SendStreamingMessage" => Answer::Stream(ask.stream(read(params)?, false).await?),
        "GetTask" => whole(&ask.get(&read(params)?).await?)?,
        "ListTasks" => listed(&ask.list(read(params)?).await?),
        "CancelTask" => whole(&ask.cancel(&read::<v1::CancelTaskRequest>(params)?.id).await?)?,
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
        "message/send" => Answer::Whole(old::sent(&ask.send(wrong(old::send_in(&params))?, true).await?).to_string()),
        "message/stream" => Answer::Stream(ask.stream(wrong(old::send_in(&params))?, true).await?),
        "tasks/get" => Answer::Whole(old::task(&ask.get(&wrong(old::get_in(&params))?).await?).to_string()),
        "tasks/cancel" => Answer::Whole(old::task(&ask.cancel(&wrong(old::task_in(&params))?).await?).to_string()),
        "tasks/resubscribe" => Answer::Stream(ask.subscribe(&wrong(old::task_in(&params))?).await?),
        "tasks/pushNotificationConfig/set" => {
            let made = ask.push_create(wrong(old::push_in(&params))?, true).await?;
            Answer::Whole(old::push_config(&made).to_string())
        }
        "tasks/pushNotificationConfig/get" => {
            let (task, id) = wrong(old::push_name_in(&params))?;
            Answer::Whole(old::push_config(&ask.push_get(&task, &id).await?).to_string())
        }
        "tasks/pushNotificationConfig/list" => {
            let all = ask.push_list(&wrong(old::task_in(&params))?).await?;
            Answer::Whole(all.iter().map(old::push_config).collect::<Value>().to_string())
        }
        "tasks/pushNotificationConfig/delete" => {
            let (task, id) = wrong(old::push_name_in(&params))?;
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

fn read<T: DeserializeOwned + Default>(params: Value) -> Result<T, Error> {
    if params.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(params).map_err(|e| Error::new(Kind::InvalidParams, format!("`params` are wrong: {e}")))
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

fn refused(id: &Value, version: Version, error: &Error) -> Response {
    Json(body_of(id, version, error)).into_response()
}
