//! The cluster's own words and A2A's, one for one.

use covey_domain::{
    TaskState,
    event::{Choice, Content, MediaSource},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Json,
    v1::{self, part::Content as Held},
};

/// What addresses begin with that are files of the artifact store, until whoever tells them makes links of them.
pub const STORED: &str = "covey:artifact/";

/// What a question says beside its words, as the data that goes with them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Choices, where the answer is to be one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<Choice>,
    /// JSON schema of a good answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Where to go for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Whatever else the agent says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

impl About {
    /// Data as such; none where it says something else, or nothing.
    pub fn of(data: &Value) -> Option<Self> {
        Self::deserialize(data).ok().filter(|about| *about != Self::default())
    }
}

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
                MediaSource::Stored { digest, .. } => Held::Url(format!("{STORED}{digest}")),
                // Only what is in the store gets a link to it.
                MediaSource::Url(url) if url.starts_with(STORED) => Held::Url("about:blank".to_owned()),
                MediaSource::Url(url) => Held::Url(url.clone()),
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

/// The media type of a part, as it says or as its kind has it.
pub fn media_type(part: &v1::Part) -> &str {
    match (&part.content, part.media_type.as_str()) {
        (Some(Held::Text(_)), "") => "text/plain",
        (Some(Held::Data(_)), "") => "application/json",
        (_, "") => "application/octet-stream",
        (_, said) => said,
    }
}

/// Whether a mode (`image/png`, `image/*`, `*/*`) takes a media type; its parameters count for nothing.
pub fn takes(mode: &str, kind: &str) -> bool {
    let bare = |text: &str| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (mode, kind) = (bare(mode), bare(kind));
    match mode.strip_suffix("/*") {
        Some("*") => true,
        Some(family) => kind.split('/').next() == Some(family),
        None => mode == kind,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_take_what_they_name() {
        for (mode, kind) in [("text/plain", "Text/Plain; charset=utf-8"), ("image/*", "image/png"), ("*/*", "a/b")] {
            assert!(takes(mode, kind), "{mode} {kind}");
        }
        for (mode, kind) in [("text/plain", "text/html"), ("image/*", "imagery/png"), ("image/png", "image/*")] {
            assert!(!takes(mode, kind), "{mode} {kind}");
        }
    }

    #[test]
    fn a_question_is_known_by_its_data() {
        let options = vec![Choice { id: "red".into(), label: "red".into(), kind: "option".into() }];
        let schema = Some(json!({"type": "string"}));
        for about in [
            About { options, ..About::default() },
            About { schema, url: Some("https://there.example".into()), ..About::default() },
            About { value: Some(json!([1])), ..About::default() },
        ] {
            assert_eq!(About::of(&json!(about)), Some(about));
        }
        for other in [json!({}), json!(1), json!({"n": 1}), json!({"options": ["red"]}), json!({"url": "u", "n": 1})] {
            assert_eq!(About::of(&other), None, "{other}");
        }
    }

    #[test]
    fn nobody_gets_a_link_by_an_address_of_that_form() {
        let file = |source| Content::File { mime: "image/png".into(), name: None, source };
        let stored = part(&file(MediaSource::Stored { digest: "d".into(), bytes: 1 }));
        assert_eq!(stored.content, Some(Held::Url("covey:artifact/d".into())));
        let forged = part(&file(MediaSource::Url("covey:artifact/d".into())));
        assert_eq!(forged.content, Some(Held::Url("about:blank".into())));
    }
}
