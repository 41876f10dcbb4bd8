//! Models on devices. The only door to candle.
//!
//! [`Model::load`] reads a Hugging Face folder (Llama, Qwen2, Qwen3, BERT) or a GGUF file (Llama, Qwen2, Qwen3);
//! [`Engine::start`] gives it a thread of its own and takes requests. Answers stream back; dropping the receiver
//! cancels the work within one step. Batching over packed tokens comes inside the engine and changes no caller.

mod chat;
mod config;
mod decoder;
mod embed;
mod engine;
mod load;
mod sampler;
mod text;
mod weights;

pub use engine::{Engine, Request};
pub use load::{Discovered, discover};

use std::path::Path;

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
}

/// A decoder with its tokenizer and template.
#[derive(Debug)]
pub struct Generator {
    pub(crate) decoder: decoder::Decoder,
    pub(crate) tokenizer: tokenizers::Tokenizer,
    pub(crate) template: Option<chat::Template>,
    pub(crate) eos: Vec<u32>,
}

impl Model {
    /// Reads weights, tokenizer and template. Blocking.
    pub fn load(path: &Path) -> Result<Self, Error> {
        load::load(path)
    }
}

impl Generator {
    /// Logits of the position after `tokens`, `[vocab]`. For parity tests.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let mut cache = self.decoder.cache(tokens.len());
        Ok(self.decoder.forward(tokens, &mut cache)?.to_vec1()?)
    }

    /// `count` greedy tokens after `tokens`, each computed with the cache of the ones before.
    pub fn greedy(&self, tokens: &[u32], count: usize) -> Result<Vec<u32>, Error> {
        let mut cache = self.decoder.cache(tokens.len() + count);
        let mut out = Vec::with_capacity(count);
        let mut next = tokens.to_vec();
        for _ in 0..count {
            let logits: Vec<f32> = self.decoder.forward(&next, &mut cache)?.to_vec1()?;
            let best = sampler::argmax(&logits);
            out.push(best);
            next = vec![best];
        }
        Ok(out)
    }
}

/// Threads for the matrix kernels of this process. Call once, before the first model is loaded.
pub fn set_threads(count: usize) {
    // A pool that exists already (a second worker in one process) is shared.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(count.max(1))
        .thread_name(|i| format!("covey-math-{i}"))
        .build_global();
}
