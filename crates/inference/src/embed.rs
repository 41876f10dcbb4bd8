//! Sentence vectors: tokens through an encoder, pooled, unit length.

use std::path::Path;

use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use crate::{
    Error,
    encoder::{Encoder, PASS_TOKENS},
    weights::Source,
};

/// An encoder, its tokenizer, and how its tokens become one vector.
#[derive(Debug)]
pub struct Embedder {
    encoder: Encoder,
    tokenizer: Tokenizer,
    pooling: Pooling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    Mean,
    /// The first token's vector.
    First,
}

impl Embedder {
    pub(crate) fn load(
        path: &Path,
        config: &Value,
        source: &mut Source,
        mut tokenizer: Tokenizer,
    ) -> Result<Self, String> {
        let encoder = Encoder::load(config, source, &crate::pool())?;
        let json = |name: &str| {
            let text = std::fs::read_to_string(path.join(name)).ok()?;
            serde_json::from_str::<Value>(&text).ok()
        };
        let limit = json("sentence_bert_config.json").and_then(|v| v["max_seq_length"].as_u64());
        let limit = limit.map_or(encoder.context(), |n| (n as usize).min(encoder.context()));
        let truncation = TruncationParams { max_length: limit, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| format!("tokenizer: {e}"))?;
        tokenizer.with_padding(None);
        let pooling = json("1_Pooling/config.json").unwrap_or_default();
        let pooling = if pooling["pooling_mode_cls_token"] == true { Pooling::First } else { Pooling::Mean };
        Ok(Self { encoder, tokenizer, pooling })
    }

    /// Length of each vector.
    pub fn dims(&self) -> usize {
        self.encoder.hidden
    }

    /// One unit vector for each text, row-major, and the tokens read. `go_on` is asked before each pass.
    pub fn embed(&self, texts: &[String], go_on: impl Fn() -> bool) -> Result<Option<(Vec<f32>, u64)>, Error> {
        let encoded = self
            .tokenizer
            .encode_batch_fast(texts.iter().map(String::as_str).collect(), true)
            .map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
        // A tokenizer without special tokens makes nothing of an empty text.
        let ids: Vec<&[u32]> =
            encoded.iter().map(|e| if e.get_ids().is_empty() { &[0][..] } else { e.get_ids() }).collect();
        let dims = self.dims();
        let mut data = vec![0f32; texts.len() * dims];
        let mut first = 0;
        while first < texts.len() {
            if !go_on() {
                return Ok(None);
            }
            // As many whole texts as a pass takes, one at least.
            let (mut end, mut tokens) = (first, 0);
            while end < texts.len() && (end == first || tokens + ids[end].len() <= PASS_TOKENS) {
                tokens += ids[end].len();
                end += 1;
            }
            let states = self.encoder.forward(&ids[first..end], &crate::pool());
            let mut at = 0;
            for (i, out) in data[first * dims..end * dims].chunks_mut(dims).enumerate() {
                let count = ids[first + i].len();
                self.pool(&states[at * dims..(at + count) * dims], out);
                at += count;
            }
            first = end;
        }
        Ok(Some((data, ids.iter().map(|ids| ids.len() as u64).sum())))
    }

    fn pool(&self, states: &[f32], out: &mut [f32]) {
        let taken = if self.pooling == Pooling::First { &states[..out.len().min(states.len())] } else { states };
        for row in taken.chunks(out.len()) {
            out.iter_mut().zip(row).for_each(|(o, x)| *o += x);
        }
        let length = out.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 {
            out.iter_mut().for_each(|x| *x /= length);
        }
    }
}
