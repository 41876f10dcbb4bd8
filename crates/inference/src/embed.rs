//! Sentence vectors: tokens through an encoder, pooled, unit length.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use crate::{
    Error,
    encoder::{
        Encoder, PASS_TOKENS,
        foreign::{self, Foreign},
    },
    weights::Source,
};

/// Families of encoders, by `model_type`.
pub(crate) const FAMILIES: [&str; 5] = ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert"];

/// An encoder, its tokenizer, and how its tokens become one vector.
#[derive(Debug)]
pub struct Embedder {
    states: States,
    dims: usize,
    tokenizer: Tokenizer,
    pooling: Pooling,
}

/// Who computes hidden states.
#[derive(Debug)]
enum States {
    Ours(Box<Encoder>),
    Candle(Box<Foreign>),
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
        files: &[PathBuf],
        mut tokenizer: Tokenizer,
    ) -> Result<Self, String> {
        let mut source = Source::safetensors(files)?;
        let family = config["model_type"].as_str().unwrap_or_default();
        let (states, dims, context) = if matches!(family, "bert" | "roberta" | "xlm-roberta") {
            let encoder = Box::new(Encoder::load(config, &mut source, &crate::pool())?);
            let (dims, context) = (encoder.hidden, encoder.context());
            (States::Ours(encoder), dims, context)
        } else {
            let (model, dims, context) = Foreign::load(family, config, files)?;
            (States::Candle(Box::new(model)), dims, context)
        };
        let json = |name: &str| {
            let text = std::fs::read_to_string(path.join(name)).ok()?;
            serde_json::from_str::<Value>(&text).ok()
        };
        let limit = json("sentence_bert_config.json").and_then(|v| v["max_seq_length"].as_u64());
        let limit = limit.map_or(context, |n| (n as usize).min(context));
        let truncation = TruncationParams { max_length: limit, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| format!("tokenizer: {e}"))?;
        tokenizer.with_padding(None);
        let pooling = json("1_Pooling/config.json").unwrap_or_default();
        let pooling = if pooling["pooling_mode_cls_token"] == true { Pooling::First } else { Pooling::Mean };
        Ok(Self { states, dims, tokenizer, pooling })
    }

    /// Length of each vector.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// How well each text answers `query`, in (0, 1) by a cross-encoder, by other models the cosine of their vectors;
    /// and the tokens read. `go_on` is asked before each pass.
    pub fn rank(
        &self,
        query: &str,
        texts: &[String],
        go_on: impl Fn() -> bool,
    ) -> Result<Option<(Vec<f32>, u64)>, Error> {
        let States::Ours(encoder) = &self.states else { return self.compare(query, texts, go_on) };
        if !encoder.ranks() {
            return self.compare(query, texts, go_on);
        }
        let encoded = self
            .tokenizer
            .encode_batch_fast(texts.iter().map(|text| (query, text.as_str())).collect(), true)
            .map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
        let ids: Vec<&[u32]> = encoded.iter().map(|e| e.get_ids()).collect();
        let kinds: Vec<&[u32]> = encoded.iter().map(|e| e.get_type_ids()).collect();
        let mut first = Vec::with_capacity(texts.len() * self.dims);
        // Texts come in their order.
        if !self.states(&ids, &kinds, go_on, |_, states| first.extend_from_slice(&states[..self.dims]))? {
            return Ok(None);
        }
        let scores = encoder.judge(&first, &crate::pool()).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        Ok(Some((scores, ids.iter().map(|ids| ids.len() as u64).sum())))
    }

    /// The cosine of each text's vector with that of `query`.
    fn compare(
        &self,
        query: &str,
        texts: &[String],
        go_on: impl Fn() -> bool,
    ) -> Result<Option<(Vec<f32>, u64)>, Error> {
        let all: Vec<String> = std::iter::once(query.to_owned()).chain(texts.iter().cloned()).collect();
        let Some((vectors, tokens)) = self.embed(&all, go_on)? else { return Ok(None) };
        let (query, texts) = vectors.split_at(self.dims);
        let cosine = |text: &[f32]| text.iter().zip(query).map(|(a, b)| a * b).sum();
        Ok(Some((texts.chunks(self.dims).map(cosine).collect(), tokens)))
    }

    /// One unit vector for each text, row-major, and the tokens read. `go_on` is asked before each pass.
    pub fn embed(&self, texts: &[String], go_on: impl Fn() -> bool) -> Result<Option<(Vec<f32>, u64)>, Error> {
        if matches!(&self.states, States::Ours(encoder) if encoder.ranks()) {
            return Err(Error::Request("this model ranks texts by a question; it makes no vectors of them".into()));
        }
        let encoded = self
            .tokenizer
            .encode_batch_fast(texts.iter().map(String::as_str).collect(), true)
            .map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
        // A tokenizer without special tokens makes nothing of an empty text.
        let ids: Vec<&[u32]> =
            encoded.iter().map(|e| if e.get_ids().is_empty() { &[0][..] } else { e.get_ids() }).collect();
        let dims = self.dims();
        let mut data = vec![0f32; texts.len() * dims];
        if !self.states(&ids, &[], go_on, |i, states| self.pool(states, &mut data[i * dims..(i + 1) * dims]))? {
            return Ok(None);
        }
        Ok(Some((data, ids.iter().map(|ids| ids.len() as u64).sum())))
    }

    /// Gives `each` text's number and hidden states, pass by pass; false when `go_on` has said no. Ours come in order.
    fn states(
        &self,
        ids: &[&[u32]],
        kinds: &[&[u32]],
        go_on: impl Fn() -> bool,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<bool, Error> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        if matches!(self.states, States::Candle(_)) {
            order.sort_by_key(|i| ids[*i].len());
        }
        let mut rest = &order[..];
        while !rest.is_empty() {
            if !go_on() {
                return Ok(false);
            }
            let (pass, after) = rest.split_at(self.pass(rest, ids));
            rest = after;
            let batch: Vec<&[u32]> = pass.iter().map(|i| ids[*i]).collect();
            let states = match &self.states {
                States::Ours(encoder) => {
                    let kinds: Vec<&[u32]> = pass.iter().filter_map(|i| kinds.get(*i).copied()).collect();
                    encoder.forward(&batch, &kinds, &crate::pool())
                }
                States::Candle(model) => model.forward(&batch, self.dims)?,
            };
            let mut at = 0;
            for i in pass {
                let end = at + ids[*i].len() * self.dims;
                each(*i, &states[at..end]);
                at = end;
            }
        }
        Ok(true)
    }

    /// How many of `rest` one pass takes: whole texts, one at least.
    fn pass(&self, rest: &[usize], ids: &[&[u32]]) -> usize {
        if matches!(self.states, States::Candle(_)) {
            return rest.len().min(foreign::BATCH);
        }
        let mut tokens = 0;
        let fit = rest.iter().take_while(|i| {
            tokens += ids[**i].len();
            tokens <= PASS_TOKENS
        });
        fit.count().max(1)
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
