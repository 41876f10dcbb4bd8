//! 0.3's JSON from the other side: what a client sends, and what it reads of a server's answers.

use serde_json::{Value, json};

use crate::{
    Timestamp,
    old::{self, Wrong, fields, message_in, part_in, put, required, text, texts},
    v1::{self, stream_response::Payload},
};

/// Parameters of `message/send` and `message/stream`.
pub fn send_out(request: &v1::SendMessageRequest) -> Value {
    let mut out = json!({"message": old::message(&request.message.clone().unwrap_or_default())});
    if let Some(said) = &request.configuration {
        let mut configuration = json!({"blocking": !said.return_immediately});
        put(&mut configuration, "acceptedOutputModes", said.accepted_output_modes.clone());
        if let Some(length) = said.history_length {
            configuration["historyLength"] = length.into();
        }
        out["configuration"] = configuration;
    }
    put(&mut out, "metadata", request.metadata.as_ref().map_or(Value::Null, |m| Value::Object(m.0.clone())));
    out
}

/// A result of `message/send`, `message/stream` or `tasks/resubscribe`.
pub fn event_in(value: &Value) -> Result<v1::StreamResponse, Wrong> {
    let payload = match value["kind"].as_str() {
        Some("task") => Payload::Task(task_in(value)?),
        Some("message") => Payload::Message(message_in(value)?),
        Some("status-update") => Payload::StatusUpdate(v1::TaskStatusUpdateEvent {
            task_id: required(&value["taskId"], "taskId")?,
            context_id: text(&value["contextId"]),
            status: Some(status_in(&value["status"])?),
            metadata: fields(&value["metadata"]),
        }),
        Some("artifact-update") => Payload::ArtifactUpdate(v1::TaskArtifactUpdateEvent {
            task_id: required(&value["taskId"], "taskId")?,
            context_id: text(&value["contextId"]),
            artifact: Some(artifact_in(&value["artifact"])?),
            append: value["append"] == true,
            last_chunk: value["lastChunk"] == true,
            metadata: fields(&value["metadata"]),
        }),
        Some(other) => return Err(format!("an event of kind `{other}` is not known")),
        None => return Err("an event has no `kind`".into()),
    };
    Ok(v1::StreamResponse { payload: Some(payload) })
}

/// A task.
pub fn task_in(value: &Value) -> Result<v1::Task, Wrong> {
    let all = |name: &str| value[name].as_array().into_iter().flatten();
    Ok(v1::Task {
        id: required(&value["id"], "task.id")?,
        context_id: text(&value["contextId"]),
        status: Some(status_in(&value["status"])?),
        artifacts: all("artifacts").map(artifact_in).collect::<Result<_, _>>()?,
        history: all("history").map(message_in).collect::<Result<_, _>>()?,
        metadata: fields(&value["metadata"]),
    })
}

fn status_in(value: &Value) -> Result<v1::TaskStatus, Wrong> {
    let name = value["state"].as_str().ok_or("a status has no `state`")?;
    let all = (0..).map_while(|number| v1::TaskState::try_from(number).ok());
    let state = all.into_iter().find(|state| old::state_name(*state) == name);
    Ok(v1::TaskStatus {
        state: state.ok_or_else(|| format!("the state `{name}` is not known"))?.into(),
        message: if value["message"].is_object() { Some(message_in(&value["message"])?) } else { None },
        // Some servers write local times; none of them is worth an error.
        timestamp: serde_json::from_value::<Timestamp>(value["timestamp"].clone()).ok(),
    })
}

fn artifact_in(value: &Value) -> Result<v1::Artifact, Wrong> {
    let parts = value["parts"].as_array().ok_or("an artifact has no `parts`")?;
    Ok(v1::Artifact {
        artifact_id: required(&value["artifactId"], "artifact.artifactId")?,
        name: text(&value["name"]),
        description: text(&value["description"]),
        parts: parts.iter().map(part_in).collect::<Result<_, _>>()?,
        metadata: fields(&value["metadata"]),
        extensions: texts(&value["extensions"]),
    })
}

/// A card of 0.3, with its addresses as interfaces of version 0.3.
pub fn card_in(value: &Value) -> Result<v1::AgentCard, Wrong> {
    let interface = |url: &Value, transport: &Value| v1::AgentInterface {
        url: text(url),
        protocol_binding: transport.as_str().unwrap_or("JSONRPC").to_owned(),
        tenant: String::new(),
        protocol_version: "0.3".to_owned(),
    };
    required(&value["url"], "url")?;
    let first = interface(&value["url"], &value["preferredTransport"]);
    let more = value["additionalInterfaces"].as_array().into_iter().flatten();
    let more = more.map(|i| interface(&i["url"], &i["transport"])).filter(|i| *i != first);
    let flag = |value: &Value| value.as_bool();
    let skill = |skill: &Value| {
        Ok(v1::AgentSkill {
            id: required(&skill["id"], "skill.id")?,
            name: text(&skill["name"]),
            description: text(&skill["description"]),
            tags: texts(&skill["tags"]),
            examples: texts(&skill["examples"]),
            ..v1::AgentSkill::default()
        })
    };
    let schemes = value["securitySchemes"].as_object().into_iter().flatten();
    Ok(v1::AgentCard {
        name: required(&value["name"], "name")?,
        description: text(&value["description"]),
        supported_interfaces: std::iter::once(first.clone()).chain(more).collect(),
        version: text(&value["version"]),
        capabilities: Some(v1::AgentCapabilities {
            streaming: flag(&value["capabilities"]["streaming"]),
            push_notifications: flag(&value["capabilities"]["pushNotifications"]),
            extended_agent_card: flag(&value["supportsAuthenticatedExtendedCard"]),
            extensions: Vec::new(),
        }),
        security_schemes: schemes
            .filter_map(|(name, scheme)| Some((name.clone(), v1::SecurityScheme { scheme: Some(scheme_in(scheme)?) })))
            .collect(),
        default_input_modes: texts(&value["defaultInputModes"]),
        default_output_modes: texts(&value["defaultOutputModes"]),
        skills: value["skills"].as_array().into_iter().flatten().map(skill).collect::<Result<_, Wrong>>()?,
        ..v1::AgentCard::default()
    })
}

fn scheme_in(scheme: &Value) -> Option<v1::security_scheme::Scheme> {
    use v1::security_scheme::Scheme;
    match scheme["type"].as_str()? {
        "http" => Some(Scheme::HttpAuthSecurityScheme(v1::HttpAuthSecurityScheme {
            scheme: text(&scheme["scheme"]),
            ..Default::default()
        })),
        "apiKey" => Some(Scheme::ApiKeySecurityScheme(v1::ApiKeySecurityScheme {
            location: text(&scheme["in"]),
            name: text(&scheme["name"]),
            ..Default::default()
        })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Json;

    #[test]
    fn what_a_server_tells_is_read_as_it_was() {
        let part = |text: &str| v1::Part { content: Some(v1::part::Content::Text(text.into())), ..v1::Part::default() };
        let artifact = v1::Artifact { artifact_id: "a".into(), parts: vec![part("x")], ..v1::Artifact::default() };
        let message = v1::Message {
            message_id: "m".into(),
            role: v1::Role::Agent.into(),
            parts: vec![
                part("which?"),
                v1::Part { content: Some(v1::part::Content::Data(Json(json!({"n": 1})))), ..v1::Part::default() },
            ],
            ..v1::Message::default()
        };
        let status = v1::TaskStatus {
            state: v1::TaskState::InputRequired.into(),
            message: Some(message.clone()),
            timestamp: Some(Timestamp::from_ms(1_700_000_000_123)),
        };
        let task = v1::Task {
            id: "t".into(),
            context_id: "c".into(),
            status: Some(status.clone()),
            artifacts: vec![artifact.clone()],
            history: vec![message.clone()],
            metadata: None,
        };
        let (task_id, context_id) = ("t".to_owned(), "c".to_owned());
        for payload in [
            Payload::Task(task),
            Payload::Message(message),
            Payload::StatusUpdate(v1::TaskStatusUpdateEvent {
                task_id: task_id.clone(),
                context_id: context_id.clone(),
                status: Some(status),
                metadata: None,
            }),
            Payload::ArtifactUpdate(v1::TaskArtifactUpdateEvent {
                task_id,
                context_id,
                artifact: Some(artifact),
                append: true,
                last_chunk: true,
                metadata: None,
            }),
        ] {
            let event = v1::StreamResponse { payload: Some(payload) };
            assert_eq!(event_in(&old::event(&event, false)).unwrap(), event);
        }
    }

    #[test]
    fn a_send_is_read_by_a_server_as_it_was_meant() {
        let request = v1::SendMessageRequest {
            message: Some(v1::Message {
                message_id: "m".into(),
                role: v1::Role::User.into(),
                ..v1::Message::default()
            }),
            configuration: Some(v1::SendMessageConfiguration {
                history_length: Some(3),
                return_immediately: true,
                ..Default::default()
            }),
            ..v1::SendMessageRequest::default()
        };
        assert_eq!(old::send_in(&send_out(&request)).unwrap(), request);
    }

    #[test]
    fn a_card_of_old_has_interfaces() {
        let card = json!({
            "name": "X", "url": "https://h/a2a", "version": "1", "capabilities": {"streaming": true},
            "additionalInterfaces": [{"url": "https://h/a2a", "transport": "JSONRPC"}, {"url": "https://h/rest", "transport": "HTTP+JSON"}],
            "securitySchemes": {"k": {"type": "apiKey", "in": "header", "name": "X-Key"}},
            "skills": [{"id": "s", "name": "S", "description": "does", "tags": ["t"]}],
        });
        let card = card_in(&card).unwrap();
        let urls: Vec<_> = card.supported_interfaces.iter().map(|i| (&*i.url, &*i.protocol_binding)).collect();
        assert_eq!(urls, [("https://h/a2a", "JSONRPC"), ("https://h/rest", "HTTP+JSON")]);
        assert_eq!(card.capabilities.unwrap().streaming, Some(true));
        assert!(card.security_schemes.contains_key("k") && card.skills[0].id == "s");
        assert!(card_in(&json!({"name": "X"})).unwrap_err().contains("url"));
    }
}
