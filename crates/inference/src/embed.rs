//! Sentence vectors with a BERT of candle-transformers: mean over tokens, unit length.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use tokenizers::{Tokenizer, TruncationParams};

use crate::Error;

/// Texts to one forward pass; they are sorted by length first, so padding is small.
const BATCH: usize = 16;

/// A BERT and its tokenizer.
pub struct Embedder {
    model: BertModel,
    tokenizer: Tokenizer,
    dims: usize,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder").field("dims", &self.dims).finish_non_exhaustive()
    }
}

impl Embedder {
    pub(crate) fn load(
        path: &Path,
        config: &str,
        tensors: std::collections::HashMap<String, Tensor>,
        mut tokenizer: Tokenizer,
    ) -> Result<Self, String> {
        let config: Config = serde_json::from_str(config).map_err(|e| format!("config.json: {e}"))?;
        let limit = std::fs::read_to_string(path.join("sentence_bert_config.json"))
            .ok()
            .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
            .and_then(|v| v["max_seq_length"].as_u64())
            .map_or(config.max_position_embeddings, |n| (n as usize).min(config.max_position_embeddings));
        let truncation = TruncationParams { max_length: limit, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| format!("tokenizer: {e}"))?;
        tokenizer.with_padding(None);
        let dims = config.hidden_size;
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let model = BertModel::load(vars, &config).map_err(|e| e.to_string())?;
        Ok(Self { model, tokenizer, dims })
    }

    /// Length of each vector.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// One unit vector for each text, row-major, and the tokens read. `go_on` is asked before each batch.
    pub fn embed(&self, texts: &[String], go_on: impl Fn() -> bool) -> Result<Option<(Vec<f32>, u64)>, Error> {
        let encoded = self
            .tokenizer
            .encode_batch(texts.to_vec(), true)
            .map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| encoded[*i].get_ids().len());
        let mut data = vec![0f32; texts.len() * self.dims];
        let mut tokens = 0;
        for rows in order.chunks(BATCH) {
            if !go_on() {
                return Ok(None);
            }
            let width = rows.iter().map(|i| encoded[*i].get_ids().len()).max().unwrap_or(0).max(1);
            let (mut ids, mut mask) = (Vec::with_capacity(rows.len() * width), Vec::with_capacity(rows.len() * width));
            for row in rows {
                let text = encoded[*row].get_ids();
                tokens += text.len() as u64;
                ids.extend(text.iter().copied().chain(std::iter::repeat_n(0, width - text.len())));
                mask.extend((0..width).map(|at| if at < text.len() { 1f32 } else { 0.0 }));
            }
            let ids = Tensor::from_vec(ids, (rows.len(), width), &Device::Cpu)?;
            let mask = Tensor::from_vec(mask, (rows.len(), width), &Device::Cpu)?;
            let hidden = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
            let weight = mask.unsqueeze(2)?;
            let mean = hidden.broadcast_mul(&weight)?.sum(1)?.broadcast_div(&mask.sum_keepdim(1)?)?;
            let unit = mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)?;
            for (row, vector) in rows.iter().zip(unit.to_vec2::<f32>()?) {
                data[row * self.dims..(row + 1) * self.dims].copy_from_slice(&vector);
            }
        }
        Ok(Some((data, tokens)))
    }
}
