//! The OpenAI-compatible endpoints: chat completions, completions, responses, embeddings, models; and rerank, which has
//! the shape that Jina, Cohere and vLLM share.
//!
//! Requests go to the worker that holds the model. A dropped connection cancels the work. `temperature` is greedy when
//! it is absent, which small local models want; everything else means what OpenAI says, and what is not served is an
//! error in OpenAI's shape.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, Request, State},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use covey_domain::{
    Error, ErrorKind,
    infer::{Chat, ChatMessage, Prompt, Work},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Caller, Cluster,
    errors::{refusal, words},
};

mod answer;
mod audio;
mod options;
mod responses;
mod vectors;

use answer::{CHAT, TEXT, answer};
use options::{ChatOptions, Options};

/// Prompts of one completion request, at most.
const PROMPTS_MAX: usize = 64;

type Port = State<Arc<dyn Cluster>>;

/// Routes below `/v1`.
pub fn router(cluster: Arc<dyn Cluster>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(vectors::embeddings))
        .route("/v1/audio/transcriptions", post(audio::transcriptions))
        .route("/v1/audio/translations", post(audio::translations))
        .route("/rerank", post(vectors::rerank))
        .route("/v1/rerank", post(vectors::rerank))
        .route("/v2/rerank", post(vectors::rerank))
        .with_state(cluster.clone())
        .merge(responses::router(cluster))
}

struct Failed(Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl axum::response::IntoResponse for Failed {
    fn into_response(self) -> Response {
        refusal(&self.0, &error_body(&self.0))
    }
}

/// What is said where a caller asks too much at once.
pub(crate) fn overloaded(_: &Request, error: Error) -> Response {
    Failed(error).into_response()
}

fn error_body(error: &Error) -> Value {
    let message = words(error);
    // Clients look for this code of OpenAI's.
    let no_model = error.kind == ErrorKind::NotFound && error.message.starts_with("no model");
    let code = if no_model { "model_not_found" } else { error.kind.name() };
    json!({"error": {"message": message, "type": error.kind.faces().openai, "param": null, "code": code}})
}

#[derive(Deserialize)]
struct ChatRequest {
    #[serde(flatten)]
    options: Options,
    #[serde(flatten)]
    chat: ChatOptions,
    messages: Vec<Value>,
}

#[derive(Deserialize)]
struct CompletionRequest {
    #[serde(flatten)]
    options: Options,
    prompt: Prompts,
}

/// One text or several, the tokens of one or of several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Many(Vec<Vec<u32>>),
}

impl Prompts {
    fn into_vec(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Texts(all) => all.into_iter().map(Prompt::Text).collect(),
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::Many(all) => all.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Failed> {
    covey_domain::json::read("the request", body).map_err(Failed::from)
}

async fn models(State(cluster): Port) -> Json<Value> {
    let data: Vec<_> = cluster.models().await.iter().map(|m| model_body(&m.name)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(State(cluster): Port, Path(name): Path<String>) -> Result<Json<Value>, Failed> {
    match cluster.models().await.iter().find(|m| m.name == name) {
        Some(model) => Ok(Json(model_body(&model.name))),
        None => Err(Error::not_found("model", name).into()),
    }
}

fn model_body(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "covey"})
}

async fn chat(State(cluster): Port, Extension(caller): Extension<Caller>, body: Bytes) -> Result<Response, Failed> {
    let request: ChatRequest = read(&body)?;
    let messages = request.messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(Error::invalid("`messages` is empty").into());
    }
    let (model, sampling, reply) = request.options.split(&caller)?;
    let chat = request.chat.into_chat(Chat { messages, sampling, ..Chat::default() })?;
    answer(cluster, model, vec![Work::Chat(chat)], reply, &CHAT).await
}

async fn completions(
    State(cluster): Port,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Failed> {
    let request: CompletionRequest = read(&body)?;
    let prompts = request.prompt.into_vec();
    if prompts.is_empty() || prompts.len() > PROMPTS_MAX {
        return Err(Error::invalid("`prompt` must be one text or up to 64").into());
    }
    let (model, sampling, reply) = request.options.split(&caller)?;
    let works = prompts.into_iter().map(|prompt| Work::Complete { prompt, sampling: sampling.clone() }).collect();
    answer(cluster, model, works, reply, &TEXT).await
}

/// Text, or the texts of a list of parts.
fn content_text(content: &Value) -> Result<String, Error> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(parts) => {
            let pictures = |part: &&Value| matches!(part["type"].as_str(), Some("image_url" | "input_image"));
            let texts = parts.iter().filter(|part| !pictures(part)).map(|part| {
                let kind = &part["type"];
                part["text"]
                    .as_str()
                    .ok_or_else(|| Error::invalid(format!("a part of type {kind} is not served; text is")))
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.concat())
        }
        _ => Err(Error::invalid("`content` is neither text nor a list of parts")),
    }
}

/// Pictures among the parts, in base64. Nothing is fetched: who asks could make the head look into its own network.
fn content_images(content: &Value) -> Result<Vec<String>, Error> {
    let parts = content.as_array().map_or(&[][..], Vec::as_slice);
    let urls = parts.iter().filter_map(|part| match part["type"].as_str() {
        Some("image_url") => Some(&part["image_url"]["url"]),
        Some("input_image") => Some(&part["image_url"]),
        _ => None,
    });
    urls.map(|url| {
        let data = url.as_str().and_then(|url| url.strip_prefix("data:")).and_then(|url| url.split_once(";base64,"));
        let (_, body) =
            data.ok_or_else(|| Error::invalid("a picture must be a data URL in base64; none is fetched"))?;
        Ok(body.to_owned())
    })
    .collect()
}

/// A message whose content is text or a list of text and picture parts.
fn message(value: Value) -> Result<ChatMessage, Failed> {
    let wrong = |why: &str| Failed(Error::invalid(format!("a message is wrong: {why}")));
    let Value::Object(mut fields) = value else { return Err(wrong("it is not an object")) };
    let role = match fields.remove("role") {
        Some(Value::String(role)) => {
            if role == "developer" {
                "system".to_owned()
            } else {
                role
            }
        }
        _ => return Err(wrong("`role` is missing")),
    };
    let content = fields.remove("content").unwrap_or_default();
    let (images, content) = (content_images(&content)?, content_text(&content)?);
    Ok(ChatMessage { role, content, images, extra: fields })
}
