//! OpenAI-compatible servers elsewhere, offered as models; through `async-openai`, with untyped JSON in and out, so that
//! servers with fields of their own work.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_openai::{Client, config::OpenAIConfig};
use covey_domain::{
    Error,
    infer::{CallDelta, Chat, Constraint, Delta, Finish, InferEvent, ToolChoice, Usage, Work},
    secret,
};
use covey_proto::v1::{SecretName, SecretValue};
use futures::{StreamExt as _, stream::BoxStream};
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Outward;

/// Longest silence of a server before a request to it is given up, seconds, where nothing is said.
const SILENCE_S: u64 = 300;

/// An OpenAI-compatible server elsewhere, offered as a model. Off unless configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Name here.
    pub name: String,
    /// Base URL, up to and with `/v1`.
    pub url: String,
    /// Name there.
    pub model: String,
    /// Environment variable that holds the key.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// File that holds the key.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// Secret of the cluster that is the key, `secret://NAME`; one that is for workers.
    #[serde(default)]
    pub api_key: Option<String>,
    /// Seconds that it may be silent, before its first token and between two; 300 unless said.
    #[serde(default)]
    pub silence_s: Option<u64>,
}

impl Upstream {
    /// What it says next, unless it is silent for too long.
    async fn says<T>(&self, next: impl Future<Output = T>) -> Result<T, Error> {
        let silence_s = self.silence_s.unwrap_or(SILENCE_S);
        tokio::time::timeout(Duration::from_secs(silence_s), next)
            .await
            .map_err(|_| Error::unavailable(format!("upstream `{}` said nothing for {silence_s} s", self.name)))
    }

    /// Refuses what names no key or two, and a key that stands in the file itself.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |why: &str| Err(Error::invalid(format!("upstream `{}`: {why}", self.name)));
        let named = [self.api_key_env.is_some(), self.api_key_file.is_some(), self.api_key.is_some()];
        if named.into_iter().filter(|named| *named).count() > 1 {
            return wrong("`api_key`, `api_key_file` and `api_key_env` exclude each other");
        }
        if self.silence_s == Some(0) {
            return wrong("`silence_s` is at least one second");
        }
        match &self.api_key {
            Some(text) if text.strip_prefix(secret::SCHEME).is_none_or(|name| secret::check_name(name).is_err()) => {
                wrong("`api_key` is `secret://NAME`; a key of its own goes into a file or a variable")
            }
            _ => Ok(()),
        }
    }

    /// The key as it is now.
    async fn key(&self, cluster: Option<Arc<dyn Outward>>) -> Result<String, Error> {
        if let Some(file) = &self.api_key_file {
            let read = tokio::fs::read_to_string(file).await;
            let failed = |e| Error::invalid(format!("failed to read `{}`: {e}", file.display()));
            return read.map(|key| key.trim_end().to_owned()).map_err(failed);
        }
        let Some(name) = self.api_key.as_deref().and_then(|text| text.strip_prefix(secret::SCHEME)) else {
            return Ok(self.api_key_env.as_ref().and_then(|v| std::env::var(v).ok()).unwrap_or_default());
        };
        let cluster = cluster.ok_or_else(|| secret::missing(name))?;
        let asked = SecretName { name: name.to_owned() }.encode_to_vec();
        let reply = cluster.verb("ReadSecret".to_owned(), asked.into()).await?;
        Ok(SecretValue::decode(reply).map_err(|e| Error::internal(e.to_string()))?.value)
    }
}

/// Asks it to chat. Dropping the stream ends the request.
pub(super) fn ask(
    upstream: Upstream,
    cluster: Option<Arc<dyn Outward>>,
    work: Work,
) -> BoxStream<'static, Result<InferEvent, Error>> {
    async_stream::try_stream! {
        let Work::Chat(chat) = work else {
            Err(Error::invalid(format!("upstream `{}` takes chat requests only", upstream.name)))?;
            return;
        };
        let body = body(&upstream, chat)?;
        let key = upstream.key(cluster).await?;
        let config = OpenAIConfig::new().with_api_base(&upstream.url).with_api_key(key);
        let failed = |e: async_openai::error::OpenAIError| {
            Error::unavailable(format!("upstream `{}` failed: {e}", upstream.name))
        };
        let client = Client::with_config(config);
        let chat = client.chat();
        let mut stream = upstream.says(chat.create_stream_byot::<_, Value>(body)).await?.map_err(failed)?;
        let (mut finish, mut usage) = (Finish::Stop, Usage::default());
        while let Some(chunk) = upstream.says(stream.next()).await? {
            let chunk: Value = chunk.map_err(failed)?;
            let choice = &chunk["choices"][0];
            let delta = delta(&choice["delta"]);
            if delta != Delta::default() {
                yield InferEvent::Delta(delta);
            }
            match choice["finish_reason"].as_str() {
                Some("length") => finish = Finish::Length,
                Some("tool_calls") => finish = Finish::ToolCalls,
                _ => {}
            }
            if let Some(n) = chunk["usage"]["prompt_tokens"].as_u64() {
                usage = Usage { input: n, output: chunk["usage"]["completion_tokens"].as_u64().unwrap_or(0) };
            }
        }
        yield InferEvent::Done { finish, usage };
    }
    .boxed()
}

fn body(upstream: &Upstream, chat: Chat) -> Result<Value, Error> {
    let Chat { messages, tools, tool_choice, one_call, template, sampling } = chat;
    let mut body = json!({
        "model": upstream.model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
    });
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body[key] = value;
        }
    };
    set("max_tokens", sampling.max_tokens.map(Into::into));
    set("temperature", sampling.temperature.map(Into::into));
    set("top_p", sampling.top_p.map(Into::into));
    set("seed", sampling.seed.map(Into::into));
    set("stop", (!sampling.stop.is_empty()).then(|| sampling.stop.clone().into()));
    set("presence_penalty", sampling.presence_penalty.map(Into::into));
    set("frequency_penalty", sampling.frequency_penalty.map(Into::into));
    set("chat_template_kwargs", (!template.is_empty()).then(|| template.into()));
    let choice = match tool_choice {
        ToolChoice::Auto => None,
        ToolChoice::None => Some("none".into()),
        ToolChoice::Required => Some("required".into()),
        ToolChoice::Function(name) => Some(json!({"type": "function", "function": {"name": name}})),
    };
    set("tool_choice", choice.filter(|_| !tools.is_empty()));
    set("parallel_tool_calls", one_call.then(|| false.into()));
    set("tools", (!tools.is_empty()).then(|| tools.into()));
    match sampling.constraint {
        Some(Constraint::JsonSchema(schema)) => {
            let schema = json!({"name": "answer", "schema": schema, "strict": true});
            set("response_format", Some(json!({"type": "json_schema", "json_schema": schema})));
        }
        Some(_) => {
            let why = format!("upstream `{}` takes no constraint but JSON Schema", upstream.name);
            return Err(Error::invalid(why));
        }
        None => {}
    }
    Ok(body)
}

fn delta(told: &Value) -> Delta {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let calls = told["tool_calls"].as_array().into_iter().flatten().map(|call| CallDelta {
        index: call["index"].as_u64().unwrap_or(0) as u32,
        id: text(&call["id"]),
        name: text(&call["function"]["name"]),
        arguments: text(&call["function"]["arguments"]),
    });
    Delta {
        text: text(&told["content"]),
        // Servers do not agree on its name.
        reasoning: text(&told["reasoning_content"]) + &text(&told["reasoning"]),
        calls: calls.collect(),
        ..Delta::default()
    }
}
