//! Models on devices. The only door to candle.
//!
//! [`Model::load`] reads a Hugging Face folder (Llama, Qwen2, Qwen3, BERT) or a GGUF file (Llama, Qwen2, Qwen3);
//! [`Engine::start`] gives it a thread of its own and takes requests. Answers stream back; dropping the receiver
//! cancels the work within one step. Batching over packed tokens comes inside the engine and changes no caller.

mod body;
mod cache;
mod chat;
mod config;
mod constraint;
mod decoder;
mod device;
mod dialect;
mod draft;
mod embed;
mod encoder;
mod engine;
pub mod gguf;
mod hear;
mod load;
mod sampler;
mod scheduler;
mod see;
mod text;
mod weights;

pub use covey_domain::status::EngineStats;
pub use covey_kernels::Format;
pub use device::Compute;
pub use engine::{Engine, EngineConfig};
pub use hear::{Heard, Hearing, Listener};
pub use load::{Discovered, LoadOptions, discover};
pub use see::Seer;

use std::{path::Path, sync::OnceLock};

use body::{Body, Session, Token};
use covey_kernels::Pool;

/// Why a model cannot be served or a request not be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or file is not there or not complete.
    #[error("failed to load model from `{path}`: {why}")]
    Load {
        /// Where.
        path: String,
        /// Why, and what to do.
        why: String,
    },
    /// The request cannot be answered by this model.
    #[error("{0}")]
    Request(String),
    /// The queue of the engine is full.
    #[error("the model's queue is full")]
    Full,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// The request's time was up before its answer ended.
    #[error("the model did not answer within {0} ms")]
    Late(u64),
    /// A kernel panicked; the engine goes on with the next request.
    #[error("the model failed in the middle of a step")]
    Broken,
    /// candle failed.
    #[error("the model failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// A model in memory.
#[derive(Debug)]
pub enum Model {
    /// Makes text.
    Generate(Box<Generator>),
    /// Makes vectors.
    Embed(Box<embed::Embedder>),
    /// Makes text of speech.
    Hear(Box<hear::Listener>),
    /// Makes text of pictures and questions.
    See(Box<see::Seer>),
}

/// A decoder with its tokenizer and template.
#[derive(Debug)]
pub struct Generator {
    pub(crate) body: Body,
    pub(crate) tokenizer: tokenizers::Tokenizer,
    pub(crate) template: Option<chat::Template>,
    pub(crate) eos: Vec<u32>,
    /// Made at the first constrained request.
    pub(crate) grammars: OnceLock<constraint::Grammars>,
}

impl Model {
    /// Reads weights, tokenizer and template. Blocking.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::load_with(path, &LoadOptions::default())
    }

    /// Reads weights, tokenizer and template, quantizing as told. Blocking.
    pub fn load_with(path: &Path, options: &LoadOptions) -> Result<Self, Error> {
        load::load(path, options)
    }
}

impl Model {
    /// Whether `draft` can guess for this model: both make text, of the very same tokens.
    pub fn takes_draft(&self, draft: &Model) -> Result<(), Error> {
        let (Self::Generate(large), Self::Generate(small)) = (self, draft) else {
            return Err(Error::Request("only a model that makes text can guess for one that makes text".into()));
        };
        if large.tokenizer.get_vocab(true) != small.tokenizer.get_vocab(true) {
            return Err(Error::Request("the draft model has another vocabulary".into()));
        }
        if small.body.logits() > large.body.logits() {
            return Err(Error::Request("the draft model makes tokens that the model does not know".into()));
        }
        Ok(())
    }

    /// Bytes of weights in memory; of encoders about what their file has.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Generate(generator) => Some(generator.bytes() as u64),
            Self::Hear(listener) => Some(listener.bytes),
            Self::See(seer) => Some(seer.bytes),
            Self::Embed(_) => None,
        }
    }
}

impl Generator {
    /// A matcher for a fresh answer.
    pub(crate) fn constrain(&self, to: &covey_domain::infer::Constraint) -> Result<llguidance::Matcher, Error> {
        let grammars = match self.grammars.get() {
            Some(grammars) => grammars,
            None => {
                let made = constraint::Grammars::new(&self.tokenizer, self.body.logits(), &self.eos)?;
                self.grammars.get_or_init(|| made)
            }
        };
        grammars.start(to)
    }

    /// Logits of the position after `tokens`, `[vocab]`. For parity tests.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.alone(tokens, 1)
    }

    /// Logits after each of `tokens`, `[tokens, vocab]`. For perplexity.
    pub fn all_logits(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.alone(tokens, tokens.len())
    }

    /// Room for one sequence of some positions, and its blocks.
    fn room(&self, positions: usize) -> Result<(Session, Vec<u32>), Error> {
        let blocks = positions.div_ceil(self.body.block());
        Ok((self.body.session(blocks)?, (0..blocks as u32).collect()))
    }

    fn alone(&self, tokens: &[u32], wanted: usize) -> Result<Vec<f32>, Error> {
        let (mut session, table) = self.room(tokens.len())?;
        let batch: Vec<Token<'_>> = (0..tokens.len())
            .map(|at| Token { id: tokens[at], position: at as u32, table: &table, wanted: at + wanted >= tokens.len() })
            .collect();
        Ok(session.step(&self.body, &batch)?.to_vec())
    }

    /// `count` greedy tokens after `tokens`, each computed with the cache of the ones before.
    pub fn greedy(&self, tokens: &[u32], count: usize) -> Result<Vec<u32>, Error> {
        let (mut session, table) = self.room(tokens.len() + count)?;
        let mut all = tokens.to_vec();
        let mut from = 0;
        while all.len() < tokens.len() + count {
            let batch: Vec<Token<'_>> = (from..all.len())
                .map(|at| Token { id: all[at], position: at as u32, table: &table, wanted: at + 1 == all.len() })
                .collect();
            let next = covey_kernels::argmax(covey_kernels::Isa::detect(), session.step(&self.body, &batch)?);
            from = all.len();
            all.push(next as u32);
        }
        Ok(all.split_off(tokens.len()))
    }

    /// Tokens of `text`, which may name special ones.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoded = self.tokenizer.encode(text, false);
        Ok(encoded.map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?.get_ids().to_vec())
    }

    /// Text of `tokens`, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, true).unwrap_or_default()
    }

    /// Bytes of weights in memory.
    pub fn bytes(&self) -> usize {
        self.body.bytes()
    }

    /// Products that one token costs in the weights, its logits included.
    pub fn step_products(&self) -> usize {
        self.body.step_products()
    }

    /// Bytes of weights that one decoded token reads: what memory bandwidth is divided by.
    pub fn step_bytes(&self) -> usize {
        self.body.step_bytes()
    }
}

static POOL: OnceLock<Pool> = OnceLock::new();

/// Threads for the kernels of this process. Call once, before the first model is loaded; later calls change nothing.
pub fn set_threads(count: usize) {
    POOL.get_or_init(|| Pool::new(count));
    // candle's encoders compute on rayon's threads. A pool that exists already is shared.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(count.max(1))
        .thread_name(|i| format!("covey-math-{i}"))
        .build_global();
}

/// The threads that all kernels of this process share.
pub(crate) fn pool() -> Pool {
    POOL.get_or_init(|| Pool::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))).clone()
}

/// Bytes of memory that this process could still take: the system's, or less where a control group bounds it.
pub(crate) fn free_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = read("/proc/meminfo")
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(4 << 30, |kib| kib * 1024);
    let number = |path: &str| read(path).and_then(|t| t.trim().parse::<u64>().ok());
    let bound = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    let old = number("/sys/fs/cgroup/memory/memory.limit_in_bytes")
        .zip(number("/sys/fs/cgroup/memory/memory.usage_in_bytes"));
    bound.or(old).map_or(system, |(most, used)| system.min(most.saturating_sub(used)))
}
