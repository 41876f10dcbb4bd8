//! One decoder for Llama, Mistral, Qwen2, Qwen3 and SmolLM: grouped-query attention, rotary positions, SwiGLU.
//!
//! Shapes: `t` new tokens, `s` tokens in the cache after them, `h` hidden, `d` head size. A sequence's keys and
//! values live in its own [`Cache`], so sequences of one model are independent; a packed step over many of them will
//! take its place here.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{kv_cache::KvCache, ops};

use crate::{
    config::{Family, Shape},
    weights::{Linear, Source},
};

/// A decoder's weights.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub shape: Shape,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    /// `[context, d/2]` each, f32 whatever the weights are: half precision loses positions beyond 2048.
    cos: Tensor,
    sin: Tensor,
}

/// Keys and values of one sequence.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<KvCache>,
    pub len: usize,
}

#[derive(Debug)]
struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    gate: Linear,
    up: Linear,
    down: Linear,
    before_attention: Tensor,
    before_mlp: Tensor,
}

impl Decoder {
    pub fn load(shape: Shape, source: &mut Source) -> Result<Self> {
        let embedding = source.tensor("model.embed_tokens.weight")?;
        let mut layers = Vec::with_capacity(shape.layers);
        for i in 0..shape.layers {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let qk_norm = shape.family == Family::Qwen3;
            layers.push(Layer {
                q: source.linear(&name("self_attn.q_proj"))?,
                k: source.linear(&name("self_attn.k_proj"))?,
                v: source.linear(&name("self_attn.v_proj"))?,
                o: source.linear(&name("self_attn.o_proj"))?,
                q_norm: if qk_norm { Some(source.tensor(&name("self_attn.q_norm.weight"))?) } else { None },
                k_norm: if qk_norm { Some(source.tensor(&name("self_attn.k_norm.weight"))?) } else { None },
                gate: source.linear(&name("mlp.gate_proj"))?,
                up: source.linear(&name("mlp.up_proj"))?,
                down: source.linear(&name("mlp.down_proj"))?,
                before_attention: source.tensor(&name("input_layernorm.weight"))?,
                before_mlp: source.tensor(&name("post_attention_layernorm.weight"))?,
            });
        }
        let norm = source.tensor("model.norm.weight")?;
        let head = if source.has("lm_head.weight") { source.linear("lm_head")? } else { Linear::tied(&embedding)? };
        let (cos, sin) = rotation(&shape)?;
        Ok(Self { shape, embedding, layers, norm, head, cos, sin })
    }

    /// An empty cache with room for `tokens`.
    pub fn cache(&self, tokens: usize) -> Cache {
        Cache { layers: (0..self.shape.layers).map(|_| KvCache::new(1, tokens.max(1))).collect(), len: 0 }
    }

    /// Takes `tokens` into the cache and gives the logits after the last of them, `[vocab]`.
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let (t, at) = (tokens.len(), cache.len);
        if t == 0 || at + t > self.shape.context {
            candle_core::bail!("{t} tokens at position {at} do not fit the context of {}", self.shape.context);
        }
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        let (cos, sin) = (self.cos.narrow(0, at, t)?, self.sin.narrow(0, at, t)?);
        let mask = if t > 1 { Some(causal(t, at)?) } else { None };
        for (layer, kv) in self.layers.iter().zip(&mut cache.layers) {
            let y = ops::rms_norm(&x, &layer.before_attention, self.shape.eps as f32)?;
            x = (x + self.attention(layer, kv, &y, &cos, &sin, mask.as_ref())?)?;
            let y = ops::rms_norm(&x, &layer.before_mlp, self.shape.eps as f32)?;
            let gated = (ops::silu(&layer.gate.forward(&y)?)? * layer.up.forward(&y)?)?;
            x = (x + layer.down.forward(&gated)?)?;
        }
        cache.len += t;
        let last = x.i(t - 1..)?.contiguous()?;
        self.head.forward(&ops::rms_norm(&last, &self.norm, self.shape.eps as f32)?)?.squeeze(0)
    }

    fn attention(
        &self,
        layer: &Layer,
        kv: &mut KvCache,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Shape { heads, kv_heads, head_dim: d, eps, .. } = self.shape;
        let t = x.dim(0)?;
        let groups = heads / kv_heads;
        let split = |y: Tensor, n: usize, norm: &Option<Tensor>| -> Result<Tensor> {
            let y = y.reshape((t, n, d))?;
            let y = match norm {
                Some(weight) => ops::rms_norm(&y.contiguous()?, weight, eps as f32)?,
                None => y,
            };
            y.transpose(0, 1)?.contiguous()
        };
        let q = self.rotate(&split(layer.q.forward(x)?, heads, &layer.q_norm)?, cos, sin)?;
        let k = self.rotate(&split(layer.k.forward(x)?, kv_heads, &layer.k_norm)?, cos, sin)?;
        let v = split(layer.v.forward(x)?, kv_heads, &None)?;
        let (k, v) = kv.append(&k, &v)?;
        let s = k.dim(1)?;
        // Heads that share keys stand beside each other: [heads, t, d] = [kv_heads, groups * t, d].
        let q = (q.reshape((kv_heads, groups * t, d))? * (d as f64).powf(-0.5))?;
        let scores = q.matmul(&k.t()?)?;
        let scores = match mask {
            Some(mask) => {
                scores.reshape((kv_heads, groups, t, s))?.broadcast_add(mask)?.reshape((kv_heads, groups * t, s))?
            }
            None => scores,
        };
        let y = ops::softmax_last_dim(&scores)?.matmul(&v.contiguous()?)?;
        let y = y.reshape((heads, t, d))?.transpose(0, 1)?.reshape((t, heads * d))?;
        layer.o.forward(&y)
    }

    fn rotate(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let x = x.unsqueeze(0)?;
        let y = if self.shape.rope_pairs {
            candle_nn::rotary_emb::rope_i(&x, cos, sin)?
        } else {
            candle_nn::rotary_emb::rope(&x, cos, sin)?
        };
        y.squeeze(0)
    }
}

/// `[t, s]`: 0 where a token may look, -inf where it may not.
fn causal(t: usize, at: usize) -> Result<Tensor> {
    let s = at + t;
    let rows: Vec<f32> =
        (0..t).flat_map(|i| (0..s).map(move |j| if j <= at + i { 0.0 } else { f32::NEG_INFINITY })).collect();
    Tensor::from_vec(rows, (t, s), &Device::Cpu)
}

fn rotation(shape: &Shape) -> Result<(Tensor, Tensor)> {
    let half = shape.head_dim / 2;
    let mut freqs: Vec<f64> = (0..half).map(|i| shape.theta.powf(-((2 * i) as f64) / shape.head_dim as f64)).collect();
    if let Some(s) = &shape.scaling {
        let (low, high) = (
            s.original_max_position_embeddings / s.low_freq_factor,
            s.original_max_position_embeddings / s.high_freq_factor,
        );
        for f in &mut freqs {
            let wave = 2.0 * std::f64::consts::PI / *f;
            if wave > low {
                *f /= s.factor;
            } else if wave > high {
                let smooth = (s.original_max_position_embeddings / wave - s.low_freq_factor)
                    / (s.high_freq_factor - s.low_freq_factor);
                *f = (1.0 - smooth) * *f / s.factor + smooth * *f;
            }
        }
    }
    let angles: Vec<f32> = (0..shape.context).flat_map(|p| freqs.iter().map(move |f| (p as f64 * f) as f32)).collect();
    let angles = Tensor::from_vec(angles, (shape.context, half), &Device::Cpu)?.to_dtype(DType::F32)?;
    Ok((angles.cos()?, angles.sin()?))
}
