//! Models of a worker: those on its disk, loaded on first use; upstreams, where configured; all others by the head.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use covey_domain::{
    Error, ErrorKind,
    infer::{InferEvent, InferRequest},
    status::ModelStatus,
};
use covey_inference::{Discovered, Engine, Model};
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};

mod upstream;

pub use upstream::Upstream;

/// Asks the head for a model this worker does not have.
pub type RemoteInfer = Arc<dyn Fn(InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> + Send + Sync>;

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
                let mut answer = upstream::ask(upstream.clone(), request.work);
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
            let mut events = engine.ask_with(request.work, request.terms, request.made).map_err(told)?;
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
