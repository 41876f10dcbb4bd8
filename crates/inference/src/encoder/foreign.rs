//! Encoders of candle-transformers as they are, for families that our kernels do not know. Padded batches, float32.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{distilbert, modernbert};
use serde_json::Value;

/// Texts of one forward pass; they are sorted by length first, so padding is small.
pub(crate) const BATCH: usize = 16;

/// An encoder that candle computes.
pub(crate) enum Foreign {
    Distil(Box<distilbert::DistilBertModel>),
    Modern(Box<modernbert::ModernBert>),
}

impl std::fmt::Debug for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Distil(_) => "DistilBert",
            Self::Modern(_) => "ModernBert",
        })
    }
}

impl Foreign {
    /// Reads the weights of a folder; gives the model, its vectors' length and most tokens.
    pub fn load(family: &str, config: &Value, files: &[PathBuf]) -> Result<(Self, usize, usize), String> {
        let tensors = crate::weights::tensors(files)?;
        let size = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
        let context = size("max_position_embeddings").max(1);
        // ModernBERT's names begin with `model.` where the file holds a bare encoder's without.
        let bare = tensors.contains_key("embeddings.tok_embeddings.weight");
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let config = config.clone();
        let read = |e: serde_json::Error| format!("config.json: {e}");
        if family == "distilbert" {
            let dims = size_of_vectors(&config, "dim")?;
            let config = serde_json::from_value(config).map_err(read)?;
            let model = distilbert::DistilBertModel::load(vars, &config).map_err(|e| e.to_string())?;
            return Ok((Self::Distil(Box::new(model)), dims, context));
        }
        let dims = size_of_vectors(&config, "hidden_size")?;
        let config = serde_json::from_value(modern(config)).map_err(read)?;
        let vars = if bare { vars.rename_f(|name: &str| name.trim_start_matches("model.").to_owned()) } else { vars };
        let model = modernbert::ModernBert::load(vars, &config).map_err(|e| e.to_string())?;
        Ok((Self::Modern(Box::new(model)), dims, context))
    }

    /// Last hidden states of a few texts, `[tokens, hidden]`, one text after another.
    pub fn forward(&self, texts: &[&[u32]], dims: usize) -> candle_core::Result<Vec<f32>> {
        let width = texts.iter().map(|t| t.len()).max().unwrap_or(1).max(1);
        let mut ids = Vec::with_capacity(texts.len() * width);
        let mut there = Vec::with_capacity(texts.len() * width);
        for text in texts {
            ids.extend(text.iter().copied().chain(std::iter::repeat_n(0, width - text.len())));
            there.extend((0..width).map(|at| at < text.len()));
        }
        let ids = Tensor::from_vec(ids, (texts.len(), width), &Device::Cpu)?;
        let states = match self {
            Self::Distil(model) => {
                let hidden: Vec<u8> = there.iter().map(|t| u8::from(!t)).collect();
                model.forward(&ids, &Tensor::from_vec(hidden, (texts.len(), 1, 1, width), &Device::Cpu)?)?
            }
            Self::Modern(model) => {
                let seen: Vec<u32> = there.iter().map(|t| u32::from(*t)).collect();
                model.forward(&ids, &Tensor::from_vec(seen, (texts.len(), width), &Device::Cpu)?)?
            }
        };
        let padded: Vec<f32> = states.flatten_all()?.to_vec1()?;
        let rows = padded.chunks(width * dims).zip(texts);
        Ok(rows.flat_map(|(row, text)| row[..text.len() * dims].iter().copied()).collect())
    }
}

/// A ModernBERT's settings under the names that candle-transformers reads.
fn modern(mut config: Value) -> Value {
    let theta = |kind: &str, old: &str, default: f64| {
        config["rope_parameters"][kind]["rope_theta"].as_f64().or(config[old].as_f64()).unwrap_or(default)
    };
    let (global, local) = (
        theta("full_attention", "global_rope_theta", 160_000.0),
        theta("sliding_attention", "local_rope_theta", 10_000.0),
    );
    let eps = config["norm_eps"].as_f64().or(config["layer_norm_eps"].as_f64()).unwrap_or(1e-5);
    config["global_rope_theta"] = global.into();
    config["local_rope_theta"] = local.into();
    config["layer_norm_eps"] = eps.into();
    config
}

fn size_of_vectors(config: &Value, key: &str) -> Result<usize, String> {
    config[key].as_u64().filter(|n| *n > 0).map(|n| n as usize).ok_or(format!("config.json: `{key}` is missing"))
}
