//! Models of a worker: those on its disk, loaded on first use or by order; upstreams, where configured; all others by
//! the head.
//!
//! Loaded models share a budget of memory. Who needs more than is left takes it from models that have nothing to do, the
//! one unused for longest first; models at work keep theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Instant,
};

use covey_domain::{
    Error, ErrorKind,
    infer::{InferEvent, InferRequest},
    status::ModelStatus,
};
use covey_inference::{Compute, Discovered, Engine, EngineConfig, Format, LoadOptions, Model};
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::Outward;

mod upstream;

pub use upstream::Upstream;

/// Asks the head for a model this worker does not have.
pub type RemoteInfer = Arc<dyn Fn(InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> + Send + Sync>;

/// Share of the budget's rest that a model's keys and values may take.
const KV_SHARE: f64 = 0.25;

/// The same on a card, whose memory is for models alone.
const KV_SHARE_OF_CARD: f64 = 0.6;

/// Bytes in memory for a byte of weights on disk, before a model is loaded and known better: tiles are padded.
const WEIGHTS_SHARE: f64 = 1.1;

/// Which models a worker serves, and how.
#[derive(Clone, Debug, Default)]
pub struct ModelsConfig {
    /// Where models are; the first of a name holds.
    pub folders: Vec<PathBuf>,
    /// Models served elsewhere.
    pub upstreams: Vec<Upstream>,
    /// Bytes that models in memory may take.
    pub memory: u64,
    /// What models that make text are computed on.
    pub compute: Compute,
    /// Answers that a model makes at once, and requests that wait for it before others are refused; 256 and 1,024 by
    /// default.
    pub running_max: Option<usize>,
    /// See `running_max`.
    pub waiting_max: Option<usize>,
    /// Smaller models of the same vocabulary that guess ahead for others, by the names of those.
    pub drafts: BTreeMap<String, String>,
    /// What float weights become while they are read, by the names of models.
    pub quantize: BTreeMap<String, Format>,
}

/// All models a worker can serve.
pub struct Models {
    config: ModelsConfig,
    local: RwLock<BTreeMap<String, Arc<Local>>>,
    upstreams: BTreeMap<String, Upstream>,
    remote: Mutex<Option<RemoteInfer>>,
    /// Where secrets are read.
    cluster: OnceLock<Arc<dyn Outward>>,
    /// One model is loaded at a time.
    loads: tokio::sync::Mutex<()>,
    reported: Mutex<Vec<ModelStatus>>,
    /// Told when something about the models changed.
    pub changed: Notify,
}

struct Local {
    found: Discovered,
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    engine: Engine,
    weights: u64,
    /// Requests that it answers.
    busy: usize,
    used: Instant,
}

impl Loaded {
    fn bytes(&self) -> u64 {
        let stats = self.engine.stats();
        self.weights + stats.kv_blocks * stats.kv_block_bytes
    }
}

/// Use of a loaded model; it is not taken from memory meanwhile.
struct Busy {
    local: Arc<Local>,
    engine: Engine,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(loaded) = &mut *self.local.loaded.lock() {
            loaded.busy = loaded.busy.saturating_sub(1);
            loaded.used = Instant::now();
        }
    }
}

impl Local {
    fn new(found: Discovered) -> Arc<Self> {
        Arc::new(Self { found, loaded: Mutex::default() })
    }

    fn enter(self: &Arc<Self>) -> Option<Busy> {
        let mut loaded = self.loaded.lock();
        let loaded = loaded.as_mut()?;
        loaded.busy += 1;
        Some(Busy { local: self.clone(), engine: loaded.engine.clone() })
    }

    fn status(&self) -> ModelStatus {
        let loaded = self.loaded.lock();
        ModelStatus {
            name: self.found.name.clone(),
            family: self.found.family.clone(),
            task: self.found.task.to_owned(),
            loaded: loaded.is_some(),
            bytes: self.found.bytes,
            memory: loaded.as_ref().map_or(0, Loaded::bytes),
            engine: loaded.as_ref().map(|l| Box::new(l.engine.stats())),
        }
    }
}

impl Models {
    /// Models found in the folders, and upstreams.
    pub fn new(config: ModelsConfig) -> Self {
        let models = Self {
            local: RwLock::default(),
            upstreams: config.upstreams.iter().map(|u| (u.name.clone(), u.clone())).collect(),
            cluster: OnceLock::new(),
            remote: Mutex::new(None),
            config,
            loads: tokio::sync::Mutex::default(),
            reported: Mutex::default(),
            changed: Notify::new(),
        };
        models.scan();
        models
    }

    /// Where to ask for models that are not here.
    pub fn set_remote(&self, remote: RemoteInfer) {
        *self.remote.lock() = Some(remote);
    }

    /// Looks into the folders again. Blocking. What is loaded stays, also when its files are gone.
    pub fn scan(&self) {
        let mut found: BTreeMap<String, Discovered> = BTreeMap::new();
        for model in self.config.folders.iter().flat_map(|f| covey_inference::discover(f)) {
            found.entry(model.name.clone()).or_insert(model);
        }
        let mut local = self.local.write();
        local.retain(|name, model| model.loaded.lock().is_some() || found.get(name) == Some(&model.found));
        for (name, model) in found {
            local.entry(name).or_insert_with(|| Local::new(model));
        }
    }

    /// What this worker can serve.
    pub fn status(&self) -> Vec<ModelStatus> {
        let upstreams = self.upstreams.values().map(|u| ModelStatus {
            name: u.name.clone(),
            family: "upstream".into(),
            task: "generate".into(),
            loaded: true,
            bytes: 0,
            memory: 0,
            engine: None,
        });
        self.local.read().values().map(|m| m.status()).chain(upstreams).collect()
    }

    /// Tells of changes since it was asked last.
    pub fn report(&self) {
        let status = self.status();
        let mut reported = self.reported.lock();
        if *reported != status {
            *reported = status;
            self.changed.notify_one();
        }
    }

    /// Where keys of upstreams are read that are secrets of the cluster.
    pub fn set_cluster(&self, cluster: Arc<dyn Outward>) {
        let _ = self.cluster.set(cluster);
    }

    /// Asks a model: here, upstream, or through the head. Dropping the stream cancels the work.
    pub fn infer(self: &Arc<Self>, request: InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> {
        let name = request.model.as_str();
        if self.local.read().contains_key(name) || self.upstreams.contains_key(name) {
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
                let mut answer = upstream::ask(upstream.clone(), this.cluster.get().cloned(), request.work);
                while let Some(event) = answer.next().await {
                    yield event?;
                }
                return;
            }
            let busy = this.enter(name).await?;
            let engine = busy.engine.clone();
            // Templates, tokens and grammars take milliseconds.
            let asked = tokio::task::spawn_blocking(move || engine.ask_with(request.work, request.terms, request.made));
            let mut events =
                asked.await.map_err(|_| Error::internal("reading the request panicked"))?.map_err(told)?;
            while let Some(event) = events.recv().await {
                yield event.map_err(told)?;
            }
        }
        .boxed()
    }

    /// Brings a model into memory.
    pub async fn load(&self, name: &str) -> Result<(), Error> {
        if self.upstreams.contains_key(name) {
            return Ok(());
        }
        self.enter(name).await.map(drop)
    }

    /// Takes a model out of memory; answers that it makes are made to their end.
    pub fn unload(&self, name: &str) -> Result<(), Error> {
        let local = self.find(name)?;
        let had = local.loaded.lock().take();
        if had.is_some() {
            tracing::info!(model = name, "model unloaded");
            self.changed.notify_one();
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Arc<Local>, Error> {
        self.local.read().get(name).cloned().ok_or_else(|| Error::not_found("model", name))
    }

    async fn enter(&self, name: &str) -> Result<Busy, Error> {
        let local = self.find(name)?;
        if let Some(busy) = local.enter() {
            return Ok(busy);
        }
        let _one = self.loads.lock().await;
        if let Some(busy) = local.enter() {
            return Ok(busy);
        }
        let draft = self.config.drafts.get(name).map(|draft| {
            let why = format!("model `{draft}`, which guesses ahead for `{name}` (--draft), is not on this worker");
            self.find(draft).map_err(|_| Error::new(ErrorKind::FailedPrecondition, why))
        });
        let draft = draft.transpose()?;
        let draft = draft.map(|d| d.found.clone());
        let need = local.found.bytes + draft.as_ref().map_or(0, |d| d.bytes);
        let left = self.make_room(name, (need as f64 * WEIGHTS_SHARE) as u64)?;
        let options = LoadOptions { quantize: self.config.quantize.get(name).copied(), compute: self.config.compute };
        let share = if options.compute == Compute::Cpu { KV_SHARE } else { KV_SHARE_OF_CARD };
        let engine = EngineConfig {
            kv_bytes: Some((left as f64 * share) as u64),
            running_max: self.config.running_max,
            waiting_max: self.config.waiting_max,
            ..EngineConfig::default()
        };
        let loaded = load(local.found.clone(), draft, options, engine).await?;
        *local.loaded.lock() = Some(loaded);
        self.changed.notify_one();
        local.enter().ok_or_else(|| Error::unavailable(format!("model `{name}` was unloaded")))
    }

    /// Takes idle models out of memory until there is room for another; gives what is left beside it.
    fn make_room(&self, name: &str, need: u64) -> Result<u64, Error> {
        if need > self.config.memory {
            let why = format!("model `{name}` takes {}; models may take {}", mib(need), mib(self.config.memory));
            return Err(
                Error::new(ErrorKind::FailedPrecondition, why).hint("start the worker with more --model-memory-mib")
            );
        }
        loop {
            let all: Vec<Arc<Local>> = self.local.read().values().cloned().collect();
            let (mut used, mut oldest, mut at_work) = (0, None, BTreeSet::new());
            for local in &all {
                let Some(loaded) = &*local.loaded.lock() else { continue };
                used += loaded.bytes();
                if loaded.busy > 0 {
                    at_work.insert(local.found.name.clone());
                } else if oldest.as_ref().is_none_or(|(at, _)| loaded.used < *at) {
                    oldest = Some((loaded.used, local.clone()));
                }
            }
            if used + need <= self.config.memory {
                return Ok(self.config.memory - used - need);
            }
            let Some((_, idle)) = oldest else {
                let names: Vec<String> = at_work.into_iter().collect();
                let why = format!(
                    "model `{name}` takes {}, and {} of {} are taken by models at work: {}",
                    mib(need),
                    mib(used),
                    mib(self.config.memory),
                    names.join(", ")
                );
                return Err(Error::new(ErrorKind::Overloaded, why));
            };
            tracing::info!(model = idle.found.name, "{} makes room for {name}", idle.found.name);
            *idle.loaded.lock() = None;
        }
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / 1048576.0)
}

async fn load(
    found: Discovered,
    draft: Option<Discovered>,
    options: LoadOptions,
    config: EngineConfig,
) -> Result<Loaded, Error> {
    let started = Instant::now();
    let name = found.name.clone();
    let disk = found.bytes;
    let read = move || {
        let model = Model::load_with(&found.path, &options)?;
        let beside = LoadOptions { quantize: None, ..options };
        let draft = draft.map(|d| Model::load_with(&d.path, &beside)).transpose()?;
        if let Some(draft) = &draft {
            model.takes_draft(draft)?;
        }
        Ok((model, draft))
    };
    let (model, draft) = tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| Error::internal("loading the model panicked"))?
        .map_err(told)?;
    let weights = model.bytes().unwrap_or(disk) + draft.as_ref().and_then(Model::bytes).unwrap_or(0);
    tracing::info!(model = name, device = %options.compute, ms = started.elapsed().as_millis() as u64, "model loaded");
    let engine = Engine::start_with_draft(&name, model, draft, config)
        .map_err(|e| Error::internal(format!("failed to start a model thread: {e}")))?;
    Ok(Loaded { engine, weights, busy: 0, used: Instant::now() })
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

#[cfg(test)]
mod tests {
    use covey_domain::infer::{Chat, ChatMessage, Sampling, Work};

    use super::*;

    fn folder(models: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tiny = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
        for name in models {
            std::os::unix::fs::symlink(&tiny, dir.path().join(name)).unwrap();
        }
        dir
    }

    fn models_in(folder: &std::path::Path, memory: u64) -> Models {
        Models::new(ModelsConfig { folders: vec![folder.into()], memory, ..ModelsConfig::default() })
    }

    fn names(models: &Models) -> Vec<String> {
        models.status().into_iter().filter(|m| m.loaded).map(|m| m.name).collect()
    }

    #[tokio::test]
    async fn models_share_their_memory_and_those_at_work_keep_theirs() {
        let dir = folder(&["a", "b", "c"]);
        let bytes = covey_inference::discover(dir.path())[0].bytes;
        // Room for the weights of two; keys and values are a quarter of what is left each time.
        let models = Arc::new(models_in(dir.path(), bytes * 4));
        models.load("a").await.unwrap();
        models.load("b").await.unwrap();
        let request = |name: &str| InferRequest {
            model: name.into(),
            work: Work::Chat(Chat {
                messages: vec![ChatMessage::new("user", "Repeat: sun")],
                sampling: Sampling { max_tokens: Some(400), ignore_eos: true, ..Sampling::default() },
                ..Chat::default()
            }),
            terms: Default::default(),
            made: vec![],
        };
        let mut busy = models.infer_here(request("a"));
        busy.next().await.unwrap().unwrap();
        models.load("c").await.unwrap();
        let loaded = names(&models);
        assert!(loaded.contains(&"a".to_owned()) && loaded.contains(&"c".to_owned()), "{loaded:?}");
        assert!(!loaded.contains(&"b".to_owned()), "what has nothing to do makes room: {loaded:?}");
        let used: u64 = models.status().iter().map(|m| m.memory).sum();
        assert!(used <= bytes * 4, "{used} of {}", bytes * 4);
        // An unloaded model answers to the end who it had begun to answer, and comes back for who asks next.
        models.unload("a").unwrap();
        assert!(!names(&models).contains(&"a".to_owned()));
        assert!(matches!(busy.collect::<Vec<_>>().await.pop(), Some(Ok(InferEvent::Done { .. }))));
        models.load("a").await.unwrap();
        let small = models_in(dir.path(), bytes / 2);
        assert_eq!(small.load("a").await.unwrap_err().kind, ErrorKind::FailedPrecondition);
        assert_eq!(models.load("none").await.unwrap_err().kind, ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_model_is_quantized_while_it_is_read_and_has_another_one_guess_for_it() {
        let dir = folder(&["big", "small"]);
        let config = ModelsConfig {
            folders: vec![dir.path().into()],
            memory: 1 << 30,
            drafts: [("big".to_owned(), "small".to_owned())].into(),
            quantize: [("big".to_owned(), Format::Q8_0)].into(),
            ..ModelsConfig::default()
        };
        let models = Arc::new(Models::new(config));
        let request = InferRequest {
            model: "big".into(),
            work: Work::Chat(Chat {
                messages: vec![ChatMessage::new("user", "Repeat: sun moon star")],
                ..Chat::default()
            }),
            terms: Default::default(),
            made: vec![],
        };
        let mut text = String::new();
        for event in models.infer_here(request).collect::<Vec<_>>().await {
            if let InferEvent::Delta(delta) = event.unwrap() {
                text.push_str(&delta.text);
            }
        }
        assert_eq!(text, "sun moon star");
        let status = models.status();
        let engine = status.iter().find(|m| m.name == "big").unwrap().engine.clone().unwrap();
        assert!(engine.right_guesses > 0, "{engine:?}");
    }

    #[tokio::test]
    async fn folders_are_looked_into_again() {
        let dir = folder(&["a"]);
        let models = models_in(dir.path(), 1 << 30);
        let gone = folder(&["b"]);
        std::fs::rename(gone.path().join("b"), dir.path().join("b")).unwrap();
        models.scan();
        assert_eq!(models.status().len(), 2);
        models.load("b").await.unwrap();
        std::fs::remove_file(dir.path().join("b")).unwrap();
        std::fs::remove_file(dir.path().join("a")).unwrap();
        models.scan();
        assert_eq!(names(&models), ["b"], "a loaded model stays, also without its files");
        assert_eq!(models.status().len(), 1);
    }
}
