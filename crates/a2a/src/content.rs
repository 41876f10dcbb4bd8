//! The cluster's own words and A2A's, one for one.

use covey_domain::{
    TaskState,
    event::{Content, MediaSource},
};
use serde_json::Value;

use crate::{
    Json,
    v1::{self, part::Content as Held},
};

/// Text as a part.
pub fn text_part(text: &str) -> v1::Part {
    v1::Part { content: Some(Held::Text(text.to_owned())), ..v1::Part::default() }
}

/// JSON as a part.
pub fn data_part(value: &Value) -> v1::Part {
    v1::Part { content: Some(Held::Data(Json(value.clone()))), ..v1::Part::default() }
}

/// Content as a part.
pub fn part(content: &Content) -> v1::Part {
    match content {
        Content::Text(text) => text_part(text),
        Content::Data(value) => data_part(value),
        Content::File { mime, name, source } => {
            let held = match source {
                // Written by us or checked when it came in.
                MediaSource::Inline(bytes) => Held::Raw(
                    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bytes).unwrap_or_default(),
                ),
                MediaSource::Url(url) | MediaSource::ProviderFile(url) => Held::Url(url.clone()),
            };
            let filename = name.clone().unwrap_or_default();
            v1::Part { content: Some(held), media_type: mime.clone(), filename, metadata: None }
        }
    }
}

/// A part as content.
pub fn content(part: v1::Part) -> Option<Content> {
    let file = |source| Content::File {
        mime: if part.media_type.is_empty() { "application/octet-stream".into() } else { part.media_type.clone() },
        name: Some(part.filename.clone()).filter(|name| !name.is_empty()),
        source,
    };
    Some(match part.content? {
        Held::Text(ref text) => Content::Text(text.clone()),
        Held::Data(Json(ref value)) => Content::Data(value.clone()),
        Held::Raw(ref bytes) => {
            file(MediaSource::Inline(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)))
        }
        Held::Url(ref url) => file(MediaSource::Url(url.clone())),
    })
}

/// A2A's name of a state.
pub fn state(state: TaskState) -> v1::TaskState {
    match state {
        TaskState::Submitted => v1::TaskState::Submitted,
        TaskState::Working => v1::TaskState::Working,
        TaskState::InputRequired => v1::TaskState::InputRequired,
        TaskState::AuthRequired => v1::TaskState::AuthRequired,
        TaskState::Completed => v1::TaskState::Completed,
        TaskState::Failed => v1::TaskState::Failed,
        TaskState::Canceled => v1::TaskState::Canceled,
        TaskState::Rejected => v1::TaskState::Rejected,
    }
}

/// A state as a filter; none where it is not told.
pub fn state_in(state: v1::TaskState) -> Option<TaskState> {
    Some(match state {
        v1::TaskState::Unspecified => return None,
        v1::TaskState::Submitted => TaskState::Submitted,
        v1::TaskState::Working => TaskState::Working,
        v1::TaskState::InputRequired => TaskState::InputRequired,
        v1::TaskState::AuthRequired => TaskState::AuthRequired,
        v1::TaskState::Completed => TaskState::Completed,
        v1::TaskState::Failed => TaskState::Failed,
        v1::TaskState::Canceled => TaskState::Canceled,
        v1::TaskState::Rejected => TaskState::Rejected,
    })
}

/// Puts a part behind others. Neighbouring texts are one part: a snapshot shows the answer, not how it was cut.
pub fn merge(parts: &mut Vec<v1::Part>, more: &v1::Part) {
    if let (Some(v1::Part { content: Some(Held::Text(text)), metadata: None, .. }), Some(Held::Text(more))) =
        (parts.last_mut(), &more.content)
    {
        return text.push_str(more);
    }
    parts.push(more.clone());
}
