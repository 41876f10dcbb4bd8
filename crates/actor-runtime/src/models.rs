//! Models of a worker: those on its disk, loaded on first use; upstreams, where configured; all others by the head.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_openai::{Client, config::OpenAIConfig};
use covey_domain::{
    Error, ErrorKind,
    infer::{Finish, InferEvent, InferRequest, Usage, Work},
    status::ModelStatus,
};
use covey_inference::{Discovered, Engine, Model};
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Notify, OnceCell};

/// Asks the head for a model this worker does not have.
pub type RemoteInfer = Arc<dyn Fn(InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> + Send + Sync>;

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
}

/// All models a worker can serve.
pub struct Models {
    local: BTreeMap<String, Local>,
    upstreams: BTreeMap<String, Upstream>,
    remote: Mutex<Option<RemoteInfer>>,
    /// Told when a model was loaded.
    pub changed: Notify,
}

struct Local {
    found: Discovered,
    engine: OnceCell<Engine>,
}

impl Models {
    /// Models found in `folders` (the first of a name holds) and upstreams.
    pub fn new(folders: &[PathBuf], upstreams: Vec<Upstream>) -> Self {
        let mut local = BTreeMap::new();
        for found in folders.iter().flat_map(|f| covey_inference::discover(f)) {
            local.entry(found.name.clone()).or_insert(Local { found, engine: OnceCell::new() });
        }
        let upstreams = upstreams.into_iter().map(|u| (u.name.clone(), u)).collect();
        Self { local, upstreams, remote: Mutex::new(None), changed: Notify::new() }
    }

    /// Where to ask for models that are not here.
    pub fn set_remote(&self, remote: RemoteInfer) {
        *self.remote.lock() = Some(remote);
    }

    /// What this worker can serve.
    pub fn status(&self) -> Vec<ModelStatus> {
        let local = self.local.values().map(|m| ModelStatus {
            name: m.found.name.clone(),
            family: m.found.family.clone(),
            task: m.found.task.to_owned(),
            loaded: m.engine.initialized(),
            bytes: m.found.bytes,
        });
        let upstreams = self.upstreams.values().map(|u| ModelStatus {
            name: u.name.clone(),
            family: "upstream".into(),
            task: "generate".into(),
            loaded: true,
            bytes: 0,
        });
        local.chain(upstreams).collect()
    }

    /// Asks a model: here, upstream, or through the head. Dropping the stream cancels the work.
    pub fn infer(self: &Arc<Self>, request: InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> {
        if self.local.contains_key(request.model.as_str()) || self.upstreams.contains_key(request.model.as_str()) {
            return self.infer_here(request);
        }
        let remote = self.remote.lock().clone();
        match remote {
            Some(remote) => remote(request),
            None => futures::stream::iter([Err(Error::not_found("model", request.model))]).boxed(),
        }
    }

    /// Asks a model of this worker only.
    pub fn infer_here(self: &Arc<Self>, request: InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> {
        let this = self.clone();
        async_stream::try_stream! {
            let name = request.model.as_str();
            if let Some(upstream) = this.upstreams.get(name) {
                let mut answer = ask_upstream(upstream.clone(), request.work);
                while let Some(event) = answer.next().await {
                    yield event?;
                }
                return;
            }
            let local = this.local.get(name).ok_or_else(|| Error::not_found("model", name))?;
            let fresh = !local.engine.initialized();
            let engine = local.engine.get_or_try_init(|| load(local.found.clone())).await?;
            if fresh {
                this.changed.notify_one();
            }
            let mut events = engine.ask_with(request.work, request.terms).map_err(told)?;
            while let Some(event) = events.recv().await {
                yield event.map_err(told)?;
            }
        }
        .boxed()
    }
}

async fn load(found: Discovered) -> Result<Engine, Error> {
    let started = std::time::Instant::now();
    let name = found.name.clone();
    let model = tokio::task::spawn_blocking(move || Model::load(&found.path))
        .await
        .map_err(|_| Error::internal("loading the model panicked"))?
        .map_err(told)?;
    tracing::info!(model = name, ms = started.elapsed().as_millis() as u64, "model loaded");
    Engine::start(&name, model).map_err(|e| Error::internal(format!("failed to start a model thread: {e}")))
}

fn told(error: covey_inference::Error) -> Error {
    use covey_inference::Error as E;
    let kind = match &error {
        E::Load { .. } => ErrorKind::FailedPrecondition,
        E::Request(_) => ErrorKind::InvalidArgument,
        E::Full => ErrorKind::Overloaded,
        E::Stopped => ErrorKind::Unavailable,
        E::Late(_) => ErrorKind::DeadlineExceeded,
        E::Compute(_) | E::Broken => ErrorKind::Internal,
    };
    Error::new(kind, error.to_string())
}

/// Chat through `async-openai`; untyped JSON in and out, so that upstreams with their own fields work.
fn ask_upstream(upstream: Upstream, work: Work) -> BoxStream<'static, Result<InferEvent, Error>> {
    async_stream::try_stream! {
        let Work::Chat { messages, tools, sampling } = work else {
            Err(Error::invalid(format!("upstream `{}` takes chat requests only", upstream.name)))?;
            return;
        };
        let key = upstream.api_key_env.as_ref().and_then(|v| std::env::var(v).ok()).unwrap_or_default();
        let config = OpenAIConfig::new().with_api_base(&upstream.url).with_api_key(key);
        let mut body = serde_json::json!({
            "model": upstream.model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
        });
        let mut set = |key: &str, value: Option<serde_json::Value>| if let Some(value) = value { body[key] = value };
        set("max_tokens", sampling.max_tokens.map(Into::into));
        set("temperature", sampling.temperature.map(Into::into));
        set("top_p", sampling.top_p.map(Into::into));
        set("seed", sampling.seed.map(Into::into));
        set("stop", (!sampling.stop.is_empty()).then(|| sampling.stop.clone().into()));
        set("tools", (!tools.is_empty()).then(|| tools.into()));
        let failed = |e: async_openai::error::OpenAIError| Error::unavailable(format!("upstream `{}` failed: {e}", upstream.name));
        let client = Client::with_config(config);
        let mut stream = client.chat().create_stream_byot::<_, serde_json::Value>(body).await.map_err(failed)?;
        let (mut finish, mut usage) = (Finish::Stop, Usage::default());
        while let Some(chunk) = stream.next().await {
            let chunk: serde_json::Value = chunk.map_err(failed)?;
            let choice = &chunk["choices"][0];
            if let Some(text) = choice["delta"]["content"].as_str().filter(|t| !t.is_empty()) {
                yield InferEvent::text(text);
            }
            if choice["finish_reason"] == "length" {
                finish = Finish::Length;
            }
            if let Some(n) = chunk["usage"]["prompt_tokens"].as_u64() {
                usage = Usage { input: n, output: chunk["usage"]["completion_tokens"].as_u64().unwrap_or(0) };
            }
        }
        yield InferEvent::Done { finish, usage };
    }
    .boxed()
}

/// The span of one request to a model, under the names of OpenTelemetry's conventions for generative models.
pub(crate) fn span(model: &str, parent: &str) -> covey_trace::Span {
    let about = [("gen_ai.request.model", model), ("gen_ai.provider.name", "covey")];
    covey_trace::Span::begin(covey_trace::Kind::Inside, &format!("chat {model}"), parent, &about)
}

/// Puts what a request used on its span.
pub(crate) fn count(span: &mut covey_trace::Span, event: &InferEvent) {
    if let InferEvent::Done { usage, .. } = event {
        span.set("gen_ai.usage.input_tokens", usage.input as i64);
        span.set("gen_ai.usage.output_tokens", usage.output as i64);
    }
}
