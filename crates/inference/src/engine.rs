//! One thread a model. It takes requests, plans a step, computes the packed tokens of all sequences, draws, and sends.
//!
//! A request whose receiver is gone is dropped before the next step and its blocks are free (C-1). A reader that is slow
//! pauses its own sequence only (B-2). The queue is bounded and says no when full (B-1).

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use covey_domain::{
    caps,
    infer::{Finish, InferEvent, Prompt, Sampling, Usage, Work},
};
use covey_kernels::KvStore;
use parking_lot::RwLock;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{
    Error, Generator, Model,
    decoder::step::{Token, Workspace},
    sampler::{Drawn, Sampler},
    scheduler::{Limits, Rank, Scheduler, SequenceId},
    text,
};

/// New tokens where a request names no bound.
const DEFAULT_NEW_TOKENS: usize = 512;

/// Events of a request that its reader has not taken yet. A full channel pauses that sequence only.
const UNREAD_MAX: usize = 256;

/// Share of the machine's free memory that keys and values may take where nothing is said.
const KV_SHARE: f64 = 0.25;

/// Blocks of keys and values that every engine has at least.
const KV_BLOCKS_MIN: usize = 64;

/// How an engine is set up.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Bytes for keys and values; a quarter of the free memory by default.
    pub kv_bytes: Option<u64>,
    /// Blocks of 16 positions that it has at least; 64 by default.
    pub kv_blocks_min: Option<usize>,
    /// Tokens of a step; 512 by default.
    pub step_tokens_max: Option<usize>,
    /// Sequences that hold blocks at once; 256 by default.
    pub running_max: Option<usize>,
}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub work: Work,
    /// Where the answer goes.
    pub events: mpsc::Sender<Result<InferEvent, Error>>,
}

/// What an engine has done and holds, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Steps computed.
    pub steps: u64,
    /// Tokens of prompts computed.
    pub prompt_tokens: u64,
    /// Tokens made.
    pub made_tokens: u64,
    /// Tokens of prompts looked up in the prefix cache, and those found.
    pub asked_tokens: u64,
    /// Of those, found.
    pub found_tokens: u64,
    /// Sequences in the last step.
    pub batch: u64,
    /// Sequences that wait, and those that hold blocks.
    pub waiting: u64,
    /// Sequences that hold blocks.
    pub running: u64,
    /// Sequences that had to give blocks back.
    pub preemptions: u64,
    /// Blocks of 16 positions.
    pub kv_blocks: u64,
    /// In nobody's hands, unknown to the prefix cache.
    pub kv_free: u64,
    /// Kept by the prefix cache for who comes.
    pub kv_cached: u64,
    /// Bytes of a block.
    pub kv_block_bytes: u64,
    /// Prefix blocks given up for others.
    pub evictions: u64,
}

/// A way to a model's thread. The thread ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Engine {
    requests: mpsc::Sender<Request>,
    stats: Arc<RwLock<EngineStats>>,
}

impl Engine {
    /// Gives a model its thread.
    pub fn start(name: &str, model: Model) -> std::io::Result<Self> {
        Self::start_with(name, model, EngineConfig::default())
    }

    /// Gives a model its thread, with bounds.
    pub fn start_with(name: &str, model: Model, config: EngineConfig) -> std::io::Result<Self> {
        let (requests, rx) = mpsc::channel(caps::MODEL_QUEUE_DEPTH_MAX);
        let stats = Arc::new(RwLock::new(EngineStats::default()));
        let told = stats.clone();
        std::thread::Builder::new().name(format!("covey-model-{name}")).spawn(move || match model {
            Model::Generate(generator) => Loop::new(&generator, &config, told).run(rx),
            Model::Embed(embedder) => embed(&embedder, rx),
        })?;
        Ok(Self { requests, stats })
    }

    /// Asks; the answer streams from the receiver, and dropping that cancels the work.
    pub fn ask(&self, work: Work) -> Result<mpsc::Receiver<Result<InferEvent, Error>>, Error> {
        let (events, rx) = mpsc::channel(UNREAD_MAX);
        match self.requests.try_send(Request { work, events }) {
            Ok(()) => Ok(rx),
            Err(TrySendError::Full(_)) => Err(Error::Full),
            Err(TrySendError::Closed(_)) => Err(Error::Stopped),
        }
    }

    /// Numbers as of the last step.
    pub fn stats(&self) -> EngineStats {
        *self.stats.read()
    }
}

fn embed(embedder: &crate::embed::Embedder, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { work, events }) = requests.blocking_recv() {
        let Work::Embed { texts } = work else {
            let _ = events.blocking_send(Err(Error::Request("this model makes vectors, not text".into())));
            continue;
        };
        match embedder.embed(&texts, || !events.is_closed()) {
            Ok(None) => {}
            Ok(Some((data, input))) => {
                let _ = events.blocking_send(Ok(InferEvent::Vectors { dims: embedder.dims(), data }));
                let done = InferEvent::Done { finish: Finish::Stop, usage: Usage { input, output: 0 } };
                let _ = events.blocking_send(Ok(done));
            }
            Err(error) => {
                let _ = events.blocking_send(Err(error));
            }
        }
    }
}

/// One answer in the making.
struct Stream {
    events: mpsc::Sender<Result<InferEvent, Error>>,
    sampler: Sampler,
    detokenizer: text::Detokenizer,
    stops: text::Stops,
    usage: Usage,
    room: u64,
    ignore_eos: bool,
    /// Made but not taken by the reader yet.
    unsent: Option<InferEvent>,
    finish: Option<Finish>,
}

struct Loop<'a> {
    generator: &'a Generator,
    scheduler: Scheduler,
    kv: KvStore,
    work: Workspace,
    streams: BTreeMap<SequenceId, Stream>,
    limits: Limits,
    stats: EngineStats,
    told: Arc<RwLock<EngineStats>>,
}

impl<'a> Loop<'a> {
    fn new(generator: &'a Generator, config: &EngineConfig, told: Arc<RwLock<EngineStats>>) -> Self {
        let defaults = Limits::default();
        let step_tokens_max = config.step_tokens_max.unwrap_or(defaults.step_tokens_max).max(1);
        let limits = Limits {
            step_tokens_max,
            beside_decode_max: defaults.beside_decode_max.min(step_tokens_max),
            running_max: config.running_max.unwrap_or(defaults.running_max).max(1),
        };
        let one = generator.decoder.kv_shape(1).block_bytes() as u64;
        let room = config.kv_bytes.unwrap_or_else(|| (crate::free_memory() as f64 * KV_SHARE) as u64);
        let most = generator.decoder.shape.context.div_ceil(covey_kernels::BLOCK) * limits.running_max;
        let blocks = ((room / one) as usize).clamp(config.kv_blocks_min.unwrap_or(KV_BLOCKS_MIN).clamp(1, most), most);
        Self {
            generator,
            scheduler: Scheduler::new(blocks, limits),
            kv: KvStore::new(generator.decoder.kv_shape(blocks)),
            work: Workspace::new(crate::pool()),
            streams: BTreeMap::new(),
            limits,
            stats: EngineStats { kv_block_bytes: one, ..EngineStats::default() },
            told,
        }
    }

    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        self.tell();
        loop {
            if self.streams.is_empty() {
                match requests.blocking_recv() {
                    Some(request) => self.admit(request),
                    None => return,
                }
            }
            while self.scheduler.load().waiting < caps::MODEL_QUEUE_DEPTH_MAX {
                match requests.try_recv() {
                    Ok(request) => self.admit(request),
                    Err(_) => break,
                }
            }
            self.flush();
            if self.step() == 0 && !self.streams.is_empty() {
                // All readers are slow: there is nothing to compute until one of them reads.
                std::thread::sleep(Duration::from_millis(1));
            }
            self.tell();
        }
    }

    fn tell(&mut self) {
        let (load, cache) = (self.scheduler.load(), self.scheduler.cache.stats());
        self.stats = EngineStats {
            asked_tokens: cache.asked_tokens,
            found_tokens: cache.found_tokens,
            waiting: load.waiting as u64,
            running: load.running as u64,
            preemptions: load.preemptions,
            kv_blocks: cache.blocks as u64,
            kv_free: cache.free as u64,
            kv_cached: cache.cached as u64,
            evictions: cache.evictions,
            ..self.stats
        };
        *self.told.write() = self.stats;
    }

    fn admit(&mut self, request: Request) {
        let Request { work, events } = request;
        match self.begin(work) {
            Ok((tokens, sampling)) => {
                let context = self.generator.decoder.shape.context;
                let room = sampling.max_tokens.map_or(DEFAULT_NEW_TOKENS, |n| n as usize).min(context - tokens.len());
                let stream = Stream {
                    events,
                    sampler: Sampler::new(&sampling, &tokens),
                    detokenizer: text::Detokenizer::default(),
                    stops: text::Stops::new(&sampling.stop),
                    usage: Usage { input: tokens.len() as u64, output: 0 },
                    room: room as u64,
                    ignore_eos: sampling.ignore_eos,
                    unsent: None,
                    finish: (room == 0).then_some(Finish::Length),
                };
                let id = self.scheduler.add(tokens, 0, Rank::default());
                self.streams.insert(id, stream);
            }
            Err(error) => {
                let _ = events.blocking_send(Err(error));
            }
        }
    }

    fn begin(&self, work: Work) -> Result<(Vec<u32>, Sampling), Error> {
        let generator = self.generator;
        let encode = |text: String, special: bool| {
            let encoded = generator.tokenizer.encode(text, special);
            let encoded = encoded.map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
            Ok::<_, Error>(encoded.get_ids().to_vec())
        };
        let (tokens, sampling) = match work {
            Work::Chat { messages, tools, sampling } => {
                let template = generator
                    .template
                    .as_ref()
                    .ok_or_else(|| Error::Request("this model has no chat template; use completions".into()))?;
                (encode(template.render(&messages, &tools)?, false)?, sampling)
            }
            Work::Complete { prompt: Prompt::Text(prompt), sampling } => (encode(prompt, true)?, sampling),
            Work::Complete { prompt: Prompt::Tokens(tokens), sampling } => {
                let vocab = generator.decoder.shape.vocab;
                if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab) {
                    return Err(Error::Request(format!("token {token} is not in the vocabulary of {vocab}")));
                }
                (tokens, sampling)
            }
            Work::Embed { .. } => return Err(Error::Request("this model makes text, not vectors".into())),
        };
        let context = generator.decoder.shape.context.min(self.scheduler.cache.stats().blocks * covey_kernels::BLOCK);
        if tokens.is_empty() {
            return Err(Error::Request("the prompt is empty".into()));
        }
        if tokens.len() >= context {
            let why = format!("the prompt has {} tokens, the model takes {}", tokens.len(), context - 1);
            return Err(Error::Request(why));
        }
        Ok((tokens, sampling))
    }

    /// Sends what is unsent, ends what is over, and pauses who does not read.
    fn flush(&mut self) {
        let mut over = Vec::new();
        for (id, stream) in &mut self.streams {
            if stream.events.is_closed() {
                over.push(*id);
                continue;
            }
            loop {
                let event = match (stream.unsent.take(), stream.finish) {
                    (Some(event), _) => event,
                    (None, Some(finish)) => InferEvent::Done { finish, usage: stream.usage },
                    (None, None) => break,
                };
                let last = matches!(event, InferEvent::Done { .. });
                match stream.events.try_send(Ok(event)) {
                    Ok(()) if last => {
                        over.push(*id);
                        break;
                    }
                    Ok(()) => {}
                    Err(TrySendError::Full(event)) => {
                        stream.unsent = event.ok();
                        break;
                    }
                    Err(TrySendError::Closed(_)) => {
                        over.push(*id);
                        break;
                    }
                }
            }
            self.scheduler.pause(*id, stream.unsent.is_some() || stream.finish.is_some());
        }
        for id in over {
            self.end(id);
        }
    }

    fn end(&mut self, id: SequenceId) {
        self.streams.remove(&id);
        self.scheduler.remove(id);
    }

    /// Computes a step; gives the tokens in it.
    fn step(&mut self) -> usize {
        let plan = self.scheduler.plan();
        if plan.is_empty() {
            return 0;
        }
        let mut tokens = Vec::new();
        for part in &plan {
            let Some(sequence) = self.scheduler.get(part.sequence) else { continue };
            let end = part.from + part.count;
            tokens.extend((part.from..end).map(|at| Token {
                id: sequence.tokens[at],
                position: at as u32,
                table: sequence.table(),
                wanted: part.last && at + 1 == end,
            }));
        }
        let count = tokens.len();
        let (decoder, kv, work) = (&self.generator.decoder, &self.kv, &mut self.work);
        let computed = std::panic::catch_unwind(AssertUnwindSafe(|| {
            decoder.step(work, kv, &tokens);
        }));
        if computed.is_err() {
            self.fail();
            return count;
        }
        self.stats.steps += 1;
        self.stats.batch = plan.len() as u64;
        self.stats.prompt_tokens += (count - plan.iter().filter(|p| p.last).count()) as u64;
        let last: Vec<SequenceId> = plan.iter().filter(|p| p.last).map(|p| p.sequence).collect();
        for (id, drawn) in last.iter().zip(self.draw(&last)) {
            self.take(*id, drawn);
        }
        count
    }

    /// Draws a token for each row of logits, on all threads.
    fn draw(&mut self, rows: &[SequenceId]) -> Vec<Drawn> {
        let vocab = self.generator.decoder.logits();
        let drawn: Vec<Mutex<Drawn>> = rows.iter().map(|_| Mutex::default()).collect();
        let (streams, scheduler) = (&self.streams, &self.scheduler);
        let samplers: Vec<(&Sampler, usize)> = rows
            .iter()
            .filter_map(|id| Some((&streams.get(id)?.sampler, scheduler.get(*id)?.tokens.len())))
            .collect();
        let pool = self.work.pool().clone();
        pool.rows(self.work.logits(), vocab, 1, |i, logits| {
            if let Some((sampler, position)) = samplers.get(i) {
                *drawn[i].lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                    sampler.draw(logits, *position, None);
            }
        });
        drawn.into_iter().map(|d| d.into_inner().unwrap_or_default()).collect()
    }

    /// Puts a drawn token behind its sequence and into its reader's stream.
    fn take(&mut self, id: SequenceId, drawn: Drawn) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let token = drawn.token;
        self.stats.made_tokens += 1;
        stream.usage.output += 1;
        stream.sampler.saw(token);
        let mut shown = String::new();
        if !stream.ignore_eos && self.generator.eos.contains(&token) {
            stream.finish = Some(Finish::Stop);
        } else {
            let piece = stream.detokenizer.push(&self.generator.tokenizer, token);
            let (text, stopped) = stream.stops.push(&piece);
            shown = text;
            self.scheduler.push(id, token);
            if stopped {
                stream.finish = Some(Finish::Stop);
            } else if stream.usage.output >= stream.room {
                stream.finish = Some(Finish::Length);
            }
        }
        if stream.finish.is_some() {
            shown.push_str(&stream.stops.flush());
        }
        if !shown.is_empty() {
            stream.unsent = Some(InferEvent::Delta { text: shown });
        }
    }

    /// A kernel broke: everyone is told, and the engine begins anew.
    fn fail(&mut self) {
        for (_, stream) in std::mem::take(&mut self.streams) {
            let _ = stream.events.try_send(Err(Error::Broken));
        }
        let blocks = self.kv.shape().blocks;
        self.scheduler = Scheduler::new(blocks, self.limits);
        self.work = Workspace::new(crate::pool());
    }
}
