//! 0.3's JSON, by conversion: 1.0's types are the only ones inside.
//!
//! Out: [`Task`](v1::Task) and the rest as `serde_json` values with their `kind`. In: parameters of 0.3's methods as
//! 1.0's requests. Unknown members are ignored, as both versions ask; what is required and missing is an error in words.

use serde_json::{Map, Value, json};

use crate::{Fields, Json, v1};

/// Why parameters cannot be read.
pub type Wrong = String;

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

pub(crate) fn fields(value: &Value) -> Option<Fields> {
    value.as_object().map(|map| Fields(map.clone()))
}

pub(crate) fn required(value: &Value, name: &str) -> Result<String, Wrong> {
    value.as_str().filter(|t| !t.is_empty()).map(str::to_owned).ok_or_else(|| format!("`{name}` is missing"))
}

/// Puts what is not empty.
pub(crate) fn put(out: &mut Value, name: &str, value: impl Into<Value>) {
    let value = value.into();
    let empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        _ => false,
    };
    if !empty {
        out[name] = value;
    }
}

fn metadata(out: &mut Value, metadata: &Option<Fields>) {
    put(out, "metadata", metadata.as_ref().map_or(Value::Null, |m| Value::Object(m.0.clone())));
}

/// 0.3's name of a state.
pub fn state_name(state: v1::TaskState) -> &'static str {
    use v1::TaskState as S;
    match state {
        S::Unspecified => "unknown",
        S::Submitted => "submitted",
        S::Working => "working",
        S::Completed => "completed",
        S::Failed => "failed",
        S::Canceled => "canceled",
        S::InputRequired => "input-required",
        S::Rejected => "rejected",
        S::AuthRequired => "auth-required",
    }
}

// ---- out ----

/// A part.
pub fn part(part: &v1::Part) -> Value {
    use v1::part::Content;
    let file = |key: &str, body: Value| {
        let mut file = json!({ key: body });
        put(&mut file, "mimeType", part.media_type.as_str());
        put(&mut file, "name", part.filename.as_str());
        json!({"kind": "file", "file": file})
    };
    let mut out = match &part.content {
        Some(Content::Text(text)) => json!({"kind": "text", "text": text}),
        Some(Content::Raw(bytes)) => {
            file("bytes", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes).into())
        }
        Some(Content::Url(url)) => file("uri", url.as_str().into()),
        // 0.3 wants an object there.
        Some(Content::Data(Json(data))) if data.is_object() => json!({"kind": "data", "data": data}),
        Some(Content::Data(Json(data))) => json!({"kind": "data", "data": {"value": data}}),
        None => json!({"kind": "text", "text": ""}),
    };
    metadata(&mut out, &part.metadata);
    out
}

/// A message.
pub fn message(message: &v1::Message) -> Value {
    let role = if message.role() == v1::Role::Agent { "agent" } else { "user" };
    let parts: Vec<Value> = message.parts.iter().map(part).collect();
    let mut out = json!({"kind": "message", "messageId": message.message_id, "role": role, "parts": parts});
    put(&mut out, "contextId", message.context_id.as_str());
    put(&mut out, "taskId", message.task_id.as_str());
    put(&mut out, "extensions", message.extensions.clone());
    put(&mut out, "referenceTaskIds", message.reference_task_ids.clone());
    metadata(&mut out, &message.metadata);
    out
}

/// A status.
pub fn status(status: &v1::TaskStatus) -> Value {
    let mut out = json!({"state": state_name(status.state())});
    put(&mut out, "timestamp", status.timestamp.map_or(Value::Null, |t| t.to_string().into()));
    put(&mut out, "message", status.message.as_ref().map_or(Value::Null, message));
    out
}

fn artifact(artifact: &v1::Artifact) -> Value {
    let parts: Vec<Value> = artifact.parts.iter().map(part).collect();
    let mut out = json!({"artifactId": artifact.artifact_id, "parts": parts});
    put(&mut out, "name", artifact.name.as_str());
    put(&mut out, "description", artifact.description.as_str());
    put(&mut out, "extensions", artifact.extensions.clone());
    metadata(&mut out, &artifact.metadata);
    out
}

/// A task.
pub fn task(task: &v1::Task) -> Value {
    let now = task.status.clone().unwrap_or_default();
    let mut out = json!({"kind": "task", "id": task.id, "contextId": task.context_id, "status": status(&now)});
    put(&mut out, "artifacts", task.artifacts.iter().map(artifact).collect::<Vec<_>>());
    put(&mut out, "history", task.history.iter().map(message).collect::<Vec<_>>());
    metadata(&mut out, &task.metadata);
    out
}

/// An event of a stream. `last` tells 0.3's readers that no other follows.
pub fn event(event: &v1::StreamResponse, last: bool) -> Value {
    use v1::stream_response::Payload;
    match &event.payload {
        Some(Payload::Task(one)) => task(one),
        Some(Payload::Message(one)) => message(one),
        Some(Payload::StatusUpdate(update)) => {
            let now = status(&update.status.clone().unwrap_or_default());
            let mut out = json!({"kind": "status-update", "taskId": update.task_id, "contextId": update.context_id,
                "status": now, "final": last});
            metadata(&mut out, &update.metadata);
            out
        }
        Some(Payload::ArtifactUpdate(update)) => {
            let made = artifact(&update.artifact.clone().unwrap_or_default());
            let mut out = json!({"kind": "artifact-update", "taskId": update.task_id, "contextId": update.context_id,
                "artifact": made, "append": update.append, "lastChunk": update.last_chunk});
            metadata(&mut out, &update.metadata);
            out
        }
        None => Value::Null,
    }
}

/// What a send answers: the bare task or message.
pub fn sent(response: &v1::SendMessageResponse) -> Value {
    use v1::send_message_response::Payload;
    match &response.payload {
        Some(Payload::Task(one)) => task(one),
        Some(Payload::Message(one)) => message(one),
        None => Value::Null,
    }
}

/// Where notifications about a task go.
pub fn push_config(config: &v1::TaskPushNotificationConfig) -> Value {
    let mut inner = json!({"url": config.url});
    put(&mut inner, "id", config.id.as_str());
    put(&mut inner, "token", config.token.as_str());
    if let Some(auth) = &config.authentication {
        let mut out = json!({"schemes": [auth.scheme]});
        put(&mut out, "credentials", auth.credentials.as_str());
        inner["authentication"] = out;
    }
    json!({"taskId": config.task_id, "pushNotificationConfig": inner})
}

/// 0.3's members beside 1.0's on a card, so that clients of either read it.
pub fn onto_card(card: &mut Value, description: &v1::AgentCard) {
    let mut old = description.supported_interfaces.iter().filter(|i| i.protocol_version.starts_with("0."));
    let Some(first) = old.next() else { return };
    card["protocolVersion"] = "0.3.0".into();
    card["url"] = first.url.as_str().into();
    card["preferredTransport"] = first.protocol_binding.as_str().into();
    let others: Vec<Value> = old.map(|i| json!({"url": i.url, "transport": i.protocol_binding})).collect();
    put(card, "additionalInterfaces", others);
    let extended = description.capabilities.as_ref().and_then(|c| c.extended_agent_card).unwrap_or(false);
    card["supportsAuthenticatedExtendedCard"] = extended.into();
    let requirements: Vec<Value> = (description.security_requirements.iter())
        .map(|r| {
            r.schemes.iter().map(|(name, scopes)| (name.clone(), json!(scopes.list))).collect::<Map<_, _>>().into()
        })
        .collect();
    put(card, "security", requirements);
    let Some(schemes) = card.get_mut("securitySchemes").and_then(Value::as_object_mut) else { return };
    for (name, scheme) in schemes {
        use v1::security_scheme::Scheme;
        match description.security_schemes.get(name).and_then(|s| s.scheme.as_ref()) {
            Some(Scheme::HttpAuthSecurityScheme(http)) => {
                scheme["type"] = "http".into();
                scheme["scheme"] = http.scheme.to_lowercase().into();
            }
            Some(Scheme::ApiKeySecurityScheme(key)) => {
                scheme["type"] = "apiKey".into();
                scheme["in"] = key.location.as_str().into();
                scheme["name"] = key.name.as_str().into();
            }
            Some(Scheme::MtlsSecurityScheme(_)) => scheme["type"] = "mutualTLS".into(),
            _ => {}
        }
    }
}

// ---- in ----

pub(crate) fn part_in(part: &Value) -> Result<v1::Part, Wrong> {
    use v1::part::Content;
    let file = &part["file"];
    let content = match part["kind"].as_str() {
        Some("text") => Content::Text(part["text"].as_str().ok_or("a text part has no `text`")?.to_owned()),
        Some("data") if part["data"].is_null() => return Err("a data part has no `data`".into()),
        Some("data") => Content::Data(Json(part["data"].clone())),
        Some("file") => match (file["bytes"].as_str(), file["uri"].as_str()) {
            (Some(bytes), None) => Content::Raw(
                base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bytes)
                    .map_err(|e| format!("`bytes` of a file are no base64: {e}"))?,
            ),
            (None, Some(uri)) => Content::Url(uri.to_owned()),
            _ => return Err("a file part must have either `bytes` or `uri`".into()),
        },
        Some(other) => return Err(format!("a part of kind `{other}` is not known; text, data and file are")),
        None => return Err("a part has no `kind`".into()),
    };
    Ok(v1::Part {
        content: Some(content),
        metadata: fields(&part["metadata"]),
        filename: text(&file["name"]),
        media_type: text(&file["mimeType"]),
    })
}

/// A message.
pub fn message_in(message: &Value) -> Result<v1::Message, Wrong> {
    if !message.is_object() {
        return Err("`message` is missing".into());
    }
    let role = match message["role"].as_str() {
        Some("user") => v1::Role::User,
        Some("agent") => v1::Role::Agent,
        _ => return Err("`message.role` must be user or agent".into()),
    };
    let parts = message["parts"].as_array().ok_or("`message.parts` is missing")?;
    Ok(v1::Message {
        message_id: required(&message["messageId"], "message.messageId")?,
        context_id: text(&message["contextId"]),
        task_id: text(&message["taskId"]),
        role: role.into(),
        parts: parts.iter().map(part_in).collect::<Result<_, _>>()?,
        metadata: fields(&message["metadata"]),
        extensions: texts(&message["extensions"]),
        reference_task_ids: texts(&message["referenceTaskIds"]),
    })
}

fn history_in(params: &Value) -> Result<Option<i32>, Wrong> {
    match &params["historyLength"] {
        Value::Null => Ok(None),
        value => {
            let length = value.as_i64().and_then(|n| i32::try_from(n).ok());
            length.map(Some).ok_or_else(|| "`historyLength` is no number".to_owned())
        }
    }
}

/// Parameters of `message/send` and `message/stream`. Where nothing is said a send waits, as 0.3's servers do.
pub fn send_in(params: &Value) -> Result<v1::SendMessageRequest, Wrong> {
    let said = &params["configuration"];
    let push = &said["pushNotificationConfig"];
    let configuration = v1::SendMessageConfiguration {
        accepted_output_modes: texts(&said["acceptedOutputModes"]),
        task_push_notification_config: if push.is_object() { Some(push_inner_in("", push)?) } else { None },
        history_length: history_in(said)?,
        return_immediately: said["blocking"] == false,
    };
    Ok(v1::SendMessageRequest {
        tenant: String::new(),
        message: Some(message_in(&params["message"])?),
        configuration: Some(configuration),
        metadata: fields(&params["metadata"]),
    })
}

/// Parameters of `tasks/get`.
pub fn get_in(params: &Value) -> Result<v1::GetTaskRequest, Wrong> {
    let history_length = history_in(params)?;
    Ok(v1::GetTaskRequest { tenant: String::new(), id: required(&params["id"], "id")?, history_length })
}

/// Parameters that name a task: `tasks/cancel`, `tasks/resubscribe`.
pub fn task_in(params: &Value) -> Result<String, Wrong> {
    required(&params["id"], "id")
}

fn push_inner_in(task: &str, inner: &Value) -> Result<v1::TaskPushNotificationConfig, Wrong> {
    let auth = &inner["authentication"];
    Ok(v1::TaskPushNotificationConfig {
        tenant: String::new(),
        id: text(&inner["id"]),
        task_id: task.to_owned(),
        url: required(&inner["url"], "pushNotificationConfig.url")?,
        token: text(&inner["token"]),
        authentication: auth.is_object().then(|| v1::AuthenticationInfo {
            scheme: text(&auth["schemes"][0]),
            credentials: text(&auth["credentials"]),
        }),
    })
}

/// Parameters of `tasks/pushNotificationConfig/set`.
pub fn push_in(params: &Value) -> Result<v1::TaskPushNotificationConfig, Wrong> {
    push_inner_in(&required(&params["taskId"], "taskId")?, &params["pushNotificationConfig"])
}

/// Parameters that name a task and perhaps one of its push configurations: `…/get`, `…/delete`.
pub fn push_name_in(params: &Value) -> Result<(String, String), Wrong> {
    Ok((required(&params["id"], "id")?, text(&params["pushNotificationConfigId"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_in_and_come_out_again() {
        let old = json!({
            "kind": "message", "messageId": "m", "role": "user", "contextId": "c", "metadata": {"a": 1},
            "parts": [
                {"kind": "text", "text": "hi", "metadata": {"b": [2]}},
                {"kind": "data", "data": {"n": 42}},
                {"kind": "file", "file": {"bytes": "dGNr", "mimeType": "text/plain", "name": "x.txt"}},
                {"kind": "file", "file": {"uri": "https://example.com/y", "mimeType": "image/png"}},
            ],
        });
        assert_eq!(message(&message_in(&old).unwrap()), old);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |message: Value| send_in(&json!({ "message": message })).unwrap_err();
        assert!(wrong(Value::Null).contains("message"));
        assert!(wrong(json!({"role": "user", "parts": []})).contains("messageId"));
        assert!(wrong(json!({"messageId": "m", "role": "me", "parts": []})).contains("role"));
        let part = |part: Value| wrong(json!({"messageId": "m", "role": "user", "parts": [part]}));
        assert!(part(json!({"text": "no kind"})).contains("kind"));
        assert!(part(json!({"kind": "file", "file": {}})).contains("bytes"));
        assert!(part(json!({"kind": "file", "file": {"bytes": "%"}})).contains("base64"));
    }

    #[test]
    fn a_send_waits_unless_it_says_otherwise() {
        let waits = |configuration: Value| {
            let message = json!({"messageId": "m", "role": "user", "parts": [{"kind": "text", "text": "x"}]});
            let request = send_in(&json!({"message": message, "configuration": configuration})).unwrap();
            !request.configuration.unwrap().return_immediately
        };
        assert!(waits(Value::Null) && waits(json!({"blocking": true})) && !waits(json!({"blocking": false})));
    }
}
