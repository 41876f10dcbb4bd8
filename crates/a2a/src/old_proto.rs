//! 0.3's protobuf messages ([`v03`]), by conversion: for its gRPC, and for its HTTP+JSON, which is their ProtoJSON.

use crate::{Fields, Json, old::Wrong, v1, v03};

// ---- out ----

fn part(part: v1::Part) -> v03::Part {
    use v1::part::Content;
    use v03::{file_part::File, part::Part as Held};
    let (mime_type, name) = (part.media_type, part.filename);
    let file = |file| Held::File(v03::FilePart { file: Some(file), mime_type, name });
    let held = match part.content {
        Some(Content::Text(text)) => Held::Text(text),
        Some(Content::Raw(bytes)) => file(File::FileWithBytes(bytes)),
        Some(Content::Url(url)) => file(File::FileWithUri(url)),
        Some(Content::Data(Json(serde_json::Value::Object(fields)))) => {
            Held::Data(v03::DataPart { data: Some(Fields(fields)) })
        }
        // 0.3 wants an object there.
        Some(Content::Data(Json(value))) => {
            let fields = [("value".to_owned(), value)].into_iter().collect();
            Held::Data(v03::DataPart { data: Some(Fields(fields)) })
        }
        None => Held::Text(String::new()),
    };
    v03::Part { part: Some(held), metadata: part.metadata }
}

/// A message.
pub fn message(message: v1::Message) -> v03::Message {
    v03::Message {
        message_id: message.message_id,
        context_id: message.context_id,
        task_id: message.task_id,
        // The numbers are the same.
        role: message.role,
        content: message.parts.into_iter().map(part).collect(),
        metadata: message.metadata,
        extensions: message.extensions,
    }
}

fn status(status: v1::TaskStatus) -> v03::TaskStatus {
    // The numbers are the same; only a name is spelt otherwise.
    v03::TaskStatus { state: status.state, update: status.message.map(message), timestamp: status.timestamp }
}

fn artifact(artifact: v1::Artifact) -> v03::Artifact {
    v03::Artifact {
        artifact_id: artifact.artifact_id,
        name: artifact.name,
        description: artifact.description,
        parts: artifact.parts.into_iter().map(part).collect(),
        metadata: artifact.metadata,
        extensions: artifact.extensions,
    }
}

/// A task.
pub fn task(task: v1::Task) -> v03::Task {
    v03::Task {
        id: task.id,
        context_id: task.context_id,
        status: task.status.map(status),
        artifacts: task.artifacts.into_iter().map(artifact).collect(),
        history: task.history.into_iter().map(message).collect(),
        metadata: task.metadata,
    }
}

/// An event of a stream. `last` tells 0.3's readers that no other follows.
pub fn event(event: v1::StreamResponse, last: bool) -> v03::StreamResponse {
    use v1::stream_response::Payload as New;
    use v03::stream_response::Payload as Old;
    let payload = event.payload.map(|payload| match payload {
        New::Task(one) => Old::Task(task(one)),
        New::Message(one) => Old::Msg(message(one)),
        New::StatusUpdate(update) => Old::StatusUpdate(v03::TaskStatusUpdateEvent {
            task_id: update.task_id,
            context_id: update.context_id,
            status: update.status.map(status),
            r#final: last,
            metadata: update.metadata,
        }),
        New::ArtifactUpdate(update) => Old::ArtifactUpdate(v03::TaskArtifactUpdateEvent {
            task_id: update.task_id,
            context_id: update.context_id,
            artifact: update.artifact.map(artifact),
            append: update.append,
            last_chunk: update.last_chunk,
            metadata: update.metadata,
        }),
    });
    v03::StreamResponse { payload }
}

/// What a send answers.
pub fn sent(response: v1::SendMessageResponse) -> v03::SendMessageResponse {
    use v1::send_message_response::Payload as New;
    use v03::send_message_response::Payload as Old;
    let payload = response.payload.map(|payload| match payload {
        New::Task(one) => Old::Task(task(one)),
        New::Message(one) => Old::Msg(message(one)),
    });
    v03::SendMessageResponse { payload }
}

// ---- in ----

fn part_in(part: v03::Part) -> Result<v1::Part, Wrong> {
    use v1::part::Content;
    use v03::{file_part::File, part::Part as Held};
    let mut out = v1::Part { metadata: part.metadata, ..v1::Part::default() };
    out.content = Some(match part.part.ok_or("a part is empty")? {
        Held::Text(text) => Content::Text(text),
        Held::Data(data) => Content::Data(Json(serde_json::Value::Object(data.data.unwrap_or_default().0))),
        Held::File(file) => {
            (out.media_type, out.filename) = (file.mime_type, file.name);
            match file.file.ok_or("a file part has neither bytes nor a URI")? {
                File::FileWithUri(uri) => Content::Url(uri),
                File::FileWithBytes(bytes) => Content::Raw(bytes),
            }
        }
    });
    Ok(out)
}

/// A message.
pub fn message_in(message: v03::Message) -> Result<v1::Message, Wrong> {
    Ok(v1::Message {
        message_id: message.message_id,
        context_id: message.context_id,
        task_id: message.task_id,
        role: message.role,
        parts: message.content.into_iter().map(part_in).collect::<Result<_, _>>()?,
        metadata: message.metadata,
        extensions: message.extensions,
        reference_task_ids: Vec::new(),
    })
}

/// A request to send. Without a configuration a send waits; with one it does as that says.
pub fn send_in(request: v03::SendMessageRequest) -> Result<v1::SendMessageRequest, Wrong> {
    let message = message_in(request.request.ok_or("`message` is missing")?)?;
    let configuration = request.configuration.map(|said| v1::SendMessageConfiguration {
        accepted_output_modes: said.accepted_output_modes,
        task_push_notification_config: said.push_notification.map(|config| push_in(String::new(), config)),
        // 0.3's message cannot tell nothing from zero.
        history_length: Some(said.history_length).filter(|n| *n != 0),
        return_immediately: !said.blocking,
    });
    let metadata = request.metadata;
    Ok(v1::SendMessageRequest { tenant: String::new(), message: Some(message), configuration, metadata })
}

/// Where notifications about a task go.
pub fn push_in(task: String, config: v03::PushNotificationConfig) -> v1::TaskPushNotificationConfig {
    v1::TaskPushNotificationConfig {
        tenant: String::new(),
        id: config.id,
        task_id: task,
        url: config.url,
        token: config.token,
        authentication: config.authentication.map(|auth| v1::AuthenticationInfo {
            scheme: auth.schemes.into_iter().next().unwrap_or_default(),
            credentials: auth.credentials,
        }),
    }
}

/// A card, with the interfaces of 0.3.
pub fn card(card: v1::AgentCard) -> v03::AgentCard {
    use v1::security_scheme::Scheme;
    let mut old = card.supported_interfaces.into_iter().filter(|i| i.protocol_version.starts_with("0."));
    let first = old.next().unwrap_or_default();
    let lists = |lists: std::collections::HashMap<String, v1::StringList>| {
        lists.into_iter().map(|(name, scopes)| (name, v03::StringList { list: scopes.list })).collect()
    };
    let scheme = |scheme: v1::SecurityScheme| match scheme.scheme {
        Some(Scheme::HttpAuthSecurityScheme(http)) => {
            let http = v03::HttpAuthSecurityScheme {
                description: http.description,
                scheme: http.scheme,
                bearer_format: http.bearer_format,
            };
            v03::SecurityScheme { scheme: Some(v03::security_scheme::Scheme::HttpAuthSecurityScheme(http)) }
        }
        // This gateway's cards have no other.
        _ => v03::SecurityScheme::default(),
    };
    let capabilities = card.capabilities.unwrap_or_default();
    let security = |all: Vec<v1::SecurityRequirement>| {
        all.into_iter().map(|one| v03::Security { schemes: lists(one.schemes) }).collect::<Vec<_>>()
    };
    v03::AgentCard {
        protocol_version: "0.3.0".into(),
        name: card.name,
        description: card.description,
        url: first.url,
        preferred_transport: first.protocol_binding,
        additional_interfaces: old.map(|i| v03::AgentInterface { url: i.url, transport: i.protocol_binding }).collect(),
        provider: card.provider.map(|p| v03::AgentProvider { url: p.url, organization: p.organization }),
        version: card.version,
        documentation_url: card.documentation_url.unwrap_or_default(),
        capabilities: Some(v03::AgentCapabilities {
            streaming: capabilities.streaming.unwrap_or_default(),
            push_notifications: capabilities.push_notifications.unwrap_or_default(),
            extensions: capabilities
                .extensions
                .into_iter()
                .map(|e| v03::AgentExtension {
                    uri: e.uri,
                    description: e.description,
                    required: e.required,
                    params: e.params,
                })
                .collect(),
        }),
        security_schemes: card.security_schemes.into_iter().map(|(name, one)| (name, scheme(one))).collect(),
        security: security(card.security_requirements),
        default_input_modes: card.default_input_modes,
        default_output_modes: card.default_output_modes,
        skills: card
            .skills
            .into_iter()
            .map(|s| v03::AgentSkill {
                id: s.id,
                name: s.name,
                description: s.description,
                tags: s.tags,
                examples: s.examples,
                input_modes: s.input_modes,
                output_modes: s.output_modes,
                security: security(s.security_requirements),
            })
            .collect(),
        supports_authenticated_extended_card: capabilities.extended_agent_card.unwrap_or_default(),
        // They are over the card as 1.0 has it.
        signatures: Vec::new(),
        icon_url: card.icon_url.unwrap_or_default(),
    }
}

/// A configuration under its resource name.
pub fn push_config(config: v1::TaskPushNotificationConfig) -> v03::TaskPushNotificationConfig {
    v03::TaskPushNotificationConfig {
        name: format!("tasks/{}/pushNotificationConfigs/{}", config.task_id, config.id),
        push_notification_config: Some(v03::PushNotificationConfig {
            id: config.id,
            url: config.url,
            token: config.token,
            authentication: config
                .authentication
                .map(|auth| v03::AuthenticationInfo { schemes: vec![auth.scheme], credentials: auth.credentials }),
        }),
    }
}

/// The ids in a resource name, `tasks/ID/pushNotificationConfigs/ID`.
pub fn push_name_in(name: &str) -> Result<(&str, &str), Wrong> {
    let wrong = || format!("`{name}` names no configuration; tasks/ID/pushNotificationConfigs/ID does");
    let rest = name.strip_prefix("tasks/").ok_or_else(wrong)?;
    rest.split_once("/pushNotificationConfigs/")
        .filter(|(task, id)| !task.is_empty() && !id.is_empty())
        .ok_or_else(wrong)
}

/// The id in a resource name, `tasks/ID`.
pub fn task_in(name: &str) -> Result<&str, Wrong> {
    let id = name.strip_prefix("tasks/").unwrap_or(name);
    if id.is_empty() || id.contains('/') { Err(format!("`{name}` names no task; tasks/ID does")) } else { Ok(id) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    #[test]
    fn messages_go_in_and_come_out_again() {
        use v03::{file_part::File, part::Part as Held};
        let file = |file| Held::File(v03::FilePart { file: Some(file), mime_type: "a/b".into(), name: "n".into() });
        let data = serde_json::from_str(r#"{"n": 42}"#).unwrap();
        let held = [
            Held::Text("hi".into()),
            Held::Data(v03::DataPart { data: Some(data) }),
            file(File::FileWithBytes(vec![1, 2])),
            file(File::FileWithUri("https://example.com".into())),
        ];
        let content = held.map(|part| v03::Part { part: Some(part), metadata: None }).to_vec();
        let old = v03::Message { message_id: "m".into(), role: 1, content, ..v03::Message::default() };
        assert_eq!(message(message_in(old.clone()).unwrap()), old);
        assert!(message_in(v03::Message { content: vec![v03::Part::default()], ..old }).is_err());
    }

    #[test]
    fn a_task_keeps_its_state_and_its_question() {
        let asked = v1::Message { message_id: "q".into(), role: 2, ..v1::Message::default() };
        let now = v1::TaskStatus {
            state: v1::TaskState::AuthRequired.into(),
            message: Some(asked),
            timestamp: Some(Timestamp::from_ms(5)),
        };
        let old = task(v1::Task { id: "t".into(), status: Some(now), ..v1::Task::default() });
        let status = old.status.unwrap();
        assert_eq!(status.state(), v03::TaskState::AuthRequired);
        assert_eq!(status.update.unwrap().message_id, "q");
    }

    #[test]
    fn resource_names_are_read() {
        assert_eq!(task_in("tasks/t-1"), Ok("t-1"));
        assert_eq!(task_in("t-1"), Ok("t-1"));
        assert!(task_in("tasks/").is_err() && task_in("tasks/a/b").is_err());
    }
}
