//! Where tensors come from: safetensors by Hugging Face's names, GGUF by llama.cpp's.

use std::{collections::HashMap, fs::File, sync::Arc};

use candle_core::{
    DType, Device, Module, Result, Tensor,
    quantized::{QMatMul, gguf_file::Content},
};

/// A source of named tensors.
pub(crate) enum Source {
    /// All tensors of all files, as stored.
    Safetensors(HashMap<String, Tensor>),
    /// An open GGUF file.
    Gguf(Box<Content>, File),
}

impl Source {
    /// The tensor of this Hugging Face name as f32.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor> {
        match self {
            Self::Safetensors(all) => match all.get(name) {
                // On a CPU bf16 would be widened again in every matmul, so it is widened once, here.
                Some(tensor) => tensor.to_dtype(DType::F32),
                None => candle_core::bail!("no tensor `{name}`"),
            },
            Self::Gguf(content, file) => content.tensor(file, &gguf_name(name), &Device::Cpu)?.dequantize(&Device::Cpu),
        }
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(all) => all.contains_key(name),
            Self::Gguf(content, _) => content.tensor_infos.contains_key(&gguf_name(name)),
        }
    }

    /// The matrix `name.weight` (and `name.bias`, where there is one) as a linear map.
    pub fn linear(&mut self, name: &str) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.tensor(&bias)?) } else { None };
        let map = match self {
            Self::Safetensors(_) => Map::Dense(self.tensor(&weight)?.t()?),
            Self::Gguf(content, file) => {
                let tensor = content.tensor(file, &gguf_name(&weight), &Device::Cpu)?;
                Map::Quantized(QMatMul::from_arc(Arc::new(tensor))?)
            }
        };
        Ok(Linear { map, bias })
    }
}

/// `x [t, in] → [t, out]`.
#[derive(Debug)]
pub(crate) struct Linear {
    map: Map,
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Map {
    /// `[in, out]`, f32.
    Dense(Tensor),
    /// `[out, in]`, as in the file.
    Quantized(QMatMul),
}

impl Linear {
    /// A map that shares the embedding `[vocab, hidden]`.
    pub fn tied(embedding: &Tensor) -> Result<Self> {
        Ok(Self { map: Map::Dense(embedding.t()?), bias: None })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.map {
            Map::Dense(weight) => x.matmul(weight)?,
            Map::Quantized(weight) => weight.forward(x)?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// llama.cpp's name of a Hugging Face tensor.
fn gguf_name(hf: &str) -> String {
    let flat = match hf {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => "",
    };
    if !flat.is_empty() {
        return flat.to_owned();
    }
    let Some((layer, rest)) = hf.strip_prefix("model.layers.").and_then(|r| r.split_once('.')) else {
        return hf.to_owned();
    };
    let (stem, kind) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let stem = match stem {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        other => other,
    };
    format!("blk.{layer}.{stem}.{kind}")
}
