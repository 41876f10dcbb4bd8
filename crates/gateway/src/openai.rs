//! The OpenAI-compatible endpoints: chat completions, completions, embeddings, models.
//!
//! Requests go to the worker that holds the model. A dropped connection cancels the work. `temperature` is greedy when
//! it is absent, which small local models want; everything else means what OpenAI says, and what is not served is an
//! error in OpenAI's shape.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use base64::Engine as _;
use covey_domain::{
    CallerId, Error, ErrorKind,
    infer::{ChatMessage, Constraint, InferEvent, InferRequest, Prompt, Sampling, Terms, Work},
};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Caller, Cluster};

mod answer;

use answer::{CHAT, TEXT, answer};

/// Answers to one request, at most.
const CHOICES_MAX: u32 = 128;

/// Likeliest tokens told for each token, at most.
const TOP_LOGPROBS_MAX: u64 = 20;

/// Prompts of one completion request, at most.
const PROMPTS_MAX: usize = 64;

type Port = State<Arc<dyn Cluster>>;

/// Routes below `/v1`.
pub fn router(cluster: Arc<dyn Cluster>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .with_state(cluster)
}

struct Failed(Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl axum::response::IntoResponse for Failed {
    fn into_response(self) -> Response {
        let faces = self.0.kind.faces();
        let status = StatusCode::from_u16(faces.http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(error_body(&self.0))).into_response();
        if self.0.kind == ErrorKind::Overloaded {
            response.headers_mut().insert("retry-after", axum::http::HeaderValue::from_static("1"));
        }
        response
    }
}

fn error_body(error: &Error) -> Value {
    let message = match &error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message.clone(),
    };
    let code = if error.kind == ErrorKind::NotFound { "model_not_found" } else { error.kind.name() };
    json!({"error": {"message": message, "type": error.kind.faces().openai, "param": null, "code": code}})
}

#[derive(Deserialize)]
struct Options {
    model: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    seed: Option<u64>,
    stop: Option<OneOrMany>,
    min_p: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    #[serde(default)]
    logit_bias: Option<std::collections::BTreeMap<String, f64>>,
    response_format: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    #[serde(default)]
    ignore_eos: bool,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    logprobs: Option<Value>,
    top_logprobs: Option<u8>,
    user: Option<String>,
    /// As vLLM's: lower goes first.
    priority: Option<i32>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
struct ChatRequest {
    #[serde(flatten)]
    options: Options,
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
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

#[derive(Deserialize)]
struct EmbeddingRequest {
    model: String,
    input: OneOrMany,
    encoding_format: Option<String>,
}

fn read<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Failed> {
    serde_json::from_slice(body).map_err(|e| Error::invalid(format!("failed to read the request: {e}")).into())
}

impl Options {
    /// What the answer must look like: OpenAI's `response_format`, or vLLM's `guided_*`.
    fn constraint(&self) -> Result<Option<Constraint>, Error> {
        let guided = [
            self.guided_json.clone().map(Constraint::JsonSchema),
            self.guided_regex.clone().map(Constraint::Regex),
            self.guided_choice.clone().map(Constraint::Choice),
            self.guided_grammar.clone().map(Constraint::Lark),
        ];
        let mut all: Vec<Constraint> = guided.into_iter().flatten().collect();
        if let Some(format) = self.response_format.as_ref().filter(|f| !f.is_null()) {
            match format["type"].as_str() {
                Some("text") => {}
                Some("json_object") => all.push(Constraint::JsonSchema(json!({"type": "object"}))),
                Some("json_schema") => {
                    let schema = &format["json_schema"]["schema"];
                    if !schema.is_object() {
                        return Err(Error::invalid("`response_format.json_schema.schema` is missing"));
                    }
                    all.push(Constraint::JsonSchema(schema.clone()));
                }
                _ => return Err(Error::invalid("`response_format.type` must be text, json_object or json_schema")),
            }
        }
        if all.len() > 1 {
            return Err(Error::invalid("only one of `response_format` and `guided_*` may be given"));
        }
        Ok(all.pop())
    }

    fn split(self, caller: &CallerId) -> Result<(String, Sampling, Reply), Failed> {
        let check = |ok: bool, why: &str| if ok { Ok(()) } else { Err(Error::invalid(why)) };
        check((1..=CHOICES_MAX).contains(&self.n.unwrap_or(1)), "`n` must be between 1 and 128")?;
        let logprobs = match &self.logprobs {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(u64::from(self.top_logprobs.unwrap_or(0))),
            Some(other) => {
                Some(other.as_u64().ok_or_else(|| Error::invalid("`logprobs` must be true, false or a number"))?)
            }
        };
        check(logprobs.is_none_or(|n| n <= TOP_LOGPROBS_MAX), "`top_logprobs` must be at most 20")?;
        check(self.temperature.is_none_or(|t| (0.0..=100.0).contains(&t)), "`temperature` must be between 0 and 100")?;
        check(self.top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "`top_p` must be above 0 and at most 1")?;
        let within = |x: Option<f64>, from: f64, to: f64| x.is_none_or(|x| (from..=to).contains(&x));
        check(within(self.min_p, 0.0, 1.0), "`min_p` must be between 0 and 1")?;
        check(within(self.presence_penalty, -2.0, 2.0), "`presence_penalty` must be between -2 and 2")?;
        check(within(self.frequency_penalty, -2.0, 2.0), "`frequency_penalty` must be between -2 and 2")?;
        check(within(self.repetition_penalty, 0.01, 10.0), "`repetition_penalty` must be between 0.01 and 10")?;
        let constraint = self.constraint()?;
        let mut logit_bias = std::collections::BTreeMap::new();
        for (token, by) in self.logit_bias.unwrap_or_default() {
            let id = token
                .parse()
                .map_err(|_| Error::invalid(format!("`logit_bias` has `{token}`, which is no token id")))?;
            check((-100.0..=100.0).contains(&by), "`logit_bias` must be between -100 and 100")?;
            logit_bias.insert(id, by);
        }
        let model = self.model.filter(|m| !m.is_empty()).ok_or_else(|| Error::invalid("`model` is missing"))?;
        let sampling = Sampling {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            stop: self.stop.map(OneOrMany::into_vec).unwrap_or_default(),
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias,
            constraint,
            n: self.n.filter(|n| *n > 1),
            logprobs: logprobs.map(|n| n as u8),
            ignore_eos: self.ignore_eos,
        };
        let reply = Reply {
            stream: self.stream,
            usage: self.stream_options.is_some_and(|o| o.include_usage),
            choices: self.n.unwrap_or(1),
            terms: Terms {
                // Users of one key take turns; the key's owner is who shares beginnings with itself.
                caller: format!("{}/{}", caller.as_str(), self.user.unwrap_or_default()),
                tenant: caller.as_str().to_owned(),
                priority: self.priority.map_or(0, i32::saturating_neg),
                timeout_ms: None,
            },
        };
        Ok((model, sampling, reply))
    }
}

struct Reply {
    stream: bool,
    usage: bool,
    /// Answers to each prompt.
    choices: u32,
    /// How the model ranks it.
    terms: Terms,
}

async fn models(State(cluster): Port) -> Json<Value> {
    let data: Vec<_> = cluster
        .models()
        .await
        .iter()
        .map(|m| json!({"id": m.name, "object": "model", "created": 0, "owned_by": "covey"}))
        .collect();
    Json(json!({"object": "list", "data": data}))
}

async fn chat(
    State(cluster): Port,
    Extension(Caller(caller)): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Failed> {
    let request: ChatRequest = read(&body)?;
    let messages = request.messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(Error::invalid("`messages` is empty").into());
    }
    let (model, sampling, reply) = request.options.split(&caller)?;
    let work = Work::Chat { messages, tools: request.tools, sampling };
    answer(cluster, model, vec![work], reply, &CHAT).await
}

async fn completions(
    State(cluster): Port,
    Extension(Caller(caller)): Extension<Caller>,
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

/// A message whose content is text or a list of text parts.
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
    let content = match fields.remove("content") {
        Some(Value::String(text)) => text,
        None | Some(Value::Null) => String::new(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|p| p["text"].as_str().ok_or_else(|| wrong("only text parts are served")));
            texts.collect::<Result<Vec<_>, _>>()?.concat()
        }
        Some(_) => return Err(wrong("`content` is neither text nor a list of parts")),
    };
    Ok(ChatMessage { role, content, extra: fields })
}

async fn embeddings(
    State(cluster): Port,
    Extension(Caller(caller)): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Failed> {
    let request: EmbeddingRequest = read(&body)?;
    let texts = request.input.into_vec();
    if texts.is_empty() {
        return Err(Error::invalid("`input` is empty").into());
    }
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Error::invalid(format!("encoding_format `{other}` is not known; float and base64 are")).into());
        }
    };
    let mut events = cluster.infer(InferRequest {
        model: request.model.as_str().into(),
        work: Work::Embed { texts },
        terms: Terms { caller: caller.as_str().to_owned(), ..Terms::default() },
    });
    let (mut vectors, mut tokens) = (None, 0);
    while let Some(event) = events.next().await {
        match event? {
            InferEvent::Vectors { dims, data } => vectors = Some((dims, data)),
            InferEvent::Done { usage, .. } => tokens = usage.input,
            InferEvent::Delta { .. } | InferEvent::Ended { .. } => {}
        }
    }
    let (dims, data) = vectors.ok_or_else(|| Error::unavailable("the model's worker was lost"))?;
    let rows: Vec<_> = data
        .chunks(dims)
        .enumerate()
        .map(|(index, row)| {
            let embedding = if base64 {
                let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            } else {
                json!(row)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(json!({"object": "list", "data": rows, "model": request.model, "usage": usage})).into_response())
}
