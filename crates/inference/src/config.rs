//! Shapes of a decoder, from `config.json` or from GGUF metadata.

use candle_core::quantized::gguf_file::Content;
use serde::Deserialize;

/// What the decoder needs to know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub family: Family,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub eps: f64,
    pub theta: f64,
    pub scaling: Option<Llama3Scaling>,
    pub context: usize,
    /// GGUF stores Llama's queries and keys permuted for rotation of neighbouring pairs.
    pub rope_pairs: bool,
}

/// One struct serves all; they differ in biases and in the norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

/// Llama 3.1's stretched rotation (`rope_type: llama3`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<serde_json::Value>,
    max_position_embeddings: Option<usize>,
}

/// The decoder's shape in a Hugging Face `config.json`.
pub(crate) fn from_hf(json: &str) -> Result<Shape, String> {
    let c: HfConfig = serde_json::from_str(json).map_err(|e| format!("config.json: {e}"))?;
    let family = match c.model_type.as_str() {
        "llama" | "mistral" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => return Err(format!("model type `{other}` is not served; llama, mistral, qwen2, qwen3 and bert are")),
    };
    // transformers 5 writes `rope_parameters` with theta and scaling in one place.
    let rope = c.rope_parameters.as_ref().or(c.rope_scaling.as_ref()).filter(|v| v.is_object());
    let theta = rope.and_then(|r| r["rope_theta"].as_f64()).or(c.rope_theta).unwrap_or(10_000.0);
    let scaling = match rope.and_then(|r| r["rope_type"].as_str().or(r["type"].as_str())) {
        None | Some("default") => None,
        Some("llama3") => {
            let value = rope.cloned().unwrap_or_default();
            Some(serde_json::from_value(value).map_err(|e| format!("rope scaling: {e}"))?)
        }
        Some(other) => return Err(format!("rope scaling `{other}` is not served; llama3 is")),
    };
    if c.num_attention_heads == 0 || c.hidden_size == 0 {
        return Err("config.json: zero heads or hidden size".into());
    }
    Ok(Shape {
        family,
        vocab: c.vocab_size,
        hidden: c.hidden_size,
        layers: c.num_hidden_layers,
        heads: c.num_attention_heads,
        kv_heads: c.num_key_value_heads.unwrap_or(c.num_attention_heads),
        head_dim: c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads),
        eps: c.rms_norm_eps.unwrap_or(1e-6),
        theta,
        scaling,
        context: c.max_position_embeddings.unwrap_or(2048),
        rope_pairs: false,
    })
}

/// The decoder's shape in GGUF metadata.
pub(crate) fn from_gguf(content: &Content) -> Result<Shape, String> {
    let text = |key: &str| content.metadata.get(key).and_then(|v| v.to_string().ok().cloned());
    let arch = text("general.architecture").ok_or("no general.architecture")?;
    let family = match arch.as_str() {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => return Err(format!("architecture `{other}` is not served; llama, qwen2 and qwen3 are")),
    };
    let get = |key: &str| content.metadata.get(&format!("{arch}.{key}"));
    let int = |key: &str| get(key).and_then(|v| v.to_u64().ok()).map(|v| v as usize);
    let need = |key: &str| int(key).ok_or_else(|| format!("no {arch}.{key}"));
    let float = |key: &str| get(key).and_then(|v| v.to_f32().ok()).map(f64::from);
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let vocab = content.tensor_infos.get("token_embd.weight").ok_or("no token_embd.weight")?.shape.dims()[0];
    Ok(Shape {
        family,
        vocab,
        hidden,
        layers: need("block_count")?,
        heads,
        kv_heads: int("attention.head_count_kv").unwrap_or(heads),
        head_dim: int("attention.key_length").unwrap_or(hidden / heads.max(1)),
        eps: float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
        theta: float("rope.freq_base").unwrap_or(10_000.0),
        scaling: None,
        context: int("context_length").unwrap_or(2048),
        rope_pairs: family == Family::Llama,
    })
}
