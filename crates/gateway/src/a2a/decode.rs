//! Wire → command, for both versions.

use covey_domain::{
    event::{Content, MediaSource},
    task::TaskInput,
};
use serde_json::Value;

use super::encode::Version;

/// A message to an agent.
pub(super) struct Message {
    pub id: String,
    pub task: Option<String>,
    pub context: Option<String>,
    pub skill: Option<String>,
    pub model: Option<String>,
    pub input: TaskInput,
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|t| !t.is_empty()).map(str::to_owned)
}

pub(super) fn message(params: &Value) -> Result<Message, String> {
    let message = &params["message"];
    if !message.is_object() {
        return Err("`message` is missing".into());
    }
    match message["role"].as_str() {
        Some("user" | "ROLE_USER") => {}
        Some("agent" | "ROLE_AGENT") => return Err("a client's message has role user".into()),
        _ => return Err("`message.role` is missing or not known".into()),
    }
    let parts = message["parts"].as_array().filter(|p| !p.is_empty()).ok_or("`message.parts` is missing or empty")?;
    let content = parts.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    Ok(Message {
        id: text(&message["messageId"]).ok_or("`message.messageId` is missing")?,
        task: text(&message["taskId"]),
        context: text(&message["contextId"]),
        skill: text(&message["metadata"]["skill"]),
        model: text(&message["metadata"]["model"]),
        input: TaskInput { content, call: None, history: Vec::new() },
    })
}

fn part(part: &Value) -> Result<Content, String> {
    let mime = |keys: [&Value; 2]| keys.into_iter().find_map(text).unwrap_or_else(|| "application/octet-stream".into());
    if let Some(text) = part["text"].as_str() {
        return Ok(Content::Text(text.to_owned()));
    }
    if !part["data"].is_null() {
        return Ok(Content::Data(part["data"].clone()));
    }
    let file = &part["file"];
    let (bytes, link) =
        (text(&part["raw"]).or_else(|| text(&file["bytes"])), text(&part["url"]).or_else(|| text(&file["uri"])));
    let source = match (bytes, link) {
        (Some(bytes), _) => MediaSource::Inline(bytes),
        (None, Some(link)) => MediaSource::Url(link),
        (None, None) => return Err("a part must hold text, data, bytes or a link".into()),
    };
    Ok(Content::File {
        mime: mime([&part["mediaType"], &file["mimeType"]]),
        name: text(&part["filename"]).or_else(|| text(&file["name"])),
        source,
    })
}

/// Whether a send waits for the end: 0.3 unless `blocking` is false, 1.0 unless `returnImmediately` is true.
pub(super) fn waits(params: &Value, version: Version) -> bool {
    let configuration = &params["configuration"];
    match version {
        Version::V03 => configuration["blocking"].as_bool().unwrap_or(true),
        Version::V1 => !configuration["returnImmediately"].as_bool().unwrap_or(false),
    }
}

pub(super) fn task_id(params: &Value) -> Result<String, String> {
    text(&params["id"]).ok_or_else(|| "`id` is missing".to_owned())
}

pub(super) fn history_length(params: &Value) -> Option<usize> {
    params["historyLength"].as_u64().map(|n| n as usize)
}
