//! One decoder for the Llama family, Gemma 3 and mixtures of experts: its weights, packed for the CPU's kernels.
//!
//! [`step`] takes tokens of any sequences together: rows that decode and chunks of prompts are all the same to it.

pub(crate) mod step;

use std::sync::Arc;

use covey_kernels::{KvShape, Packed};

use crate::{
    config::Shape,
    weights::{Linear, Packing, Source},
};

/// All weights of a decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub shape: Shape,
    embedding: Arc<Packed>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
    /// For each rotation: radians a position of each pair of numbers, and what cosines and sines are multiplied by.
    ropes: Vec<(Vec<f64>, f64)>,
}

#[derive(Debug)]
struct Layer {
    /// Queries, keys and values under each other.
    qkv: Linear,
    o: Linear,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    before_attention: Vec<f32>,
    after_attention: Vec<f32>,
    before_mlp: Vec<f32>,
    after_mlp: Vec<f32>,
    mlp: Mlp,
}

#[derive(Debug)]
enum Mlp {
    Dense(Gated),
    Sparse { router: Linear, experts: Vec<Gated> },
}

/// `down(act(gate x) * up x)`.
#[derive(Debug)]
struct Gated {
    /// Gate and up under each other.
    gate_up: Linear,
    down: Linear,
}

impl Decoder {
    /// Reads and packs all weights.
    pub fn load(shape: Shape, source: &mut Source, packing: &Packing) -> Result<Self, String> {
        let embedding = Arc::new(source.matrix("model.embed_tokens.weight", packing)?);
        if embedding.rows() < shape.vocab || embedding.cols() != shape.hidden {
            return Err(format!(
                "the embedding is {} by {}, the configuration says {} by {}",
                embedding.rows(),
                embedding.cols(),
                shape.vocab,
                shape.hidden
            ));
        }
        let layers =
            (0..shape.layers.len()).map(|i| Layer::load(&shape, i, source, packing)).collect::<Result<_, _>>()?;
        let norm = source.vector("model.norm.weight")?;
        let head = if source.has("lm_head.weight") {
            source.linear(&["lm_head".into()], packing)?
        } else {
            Linear::shared(embedding.clone())
        };
        let factors = if source.has("rope_freqs.weight") { Some(source.vector("rope_freqs.weight")?) } else { None };
        let ropes = shape.rope_tables(factors.as_deref());
        Ok(Self { shape, embedding, layers, norm, head, ropes })
    }

    /// Bytes of weights that a step over one token reads.
    pub fn step_bytes(&self) -> usize {
        self.sum(self.shape.experts.map_or(0, |e| e.used), Linear::bytes)
    }

    /// Products of a step over one token.
    pub fn step_products(&self) -> usize {
        self.sum(self.shape.experts.map_or(0, |e| e.used), Linear::products)
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        self.sum(usize::MAX, Linear::bytes) + self.embedding.bytes()
    }

    /// What all linear maps come to, with `experts` of each mixture.
    fn sum(&self, experts: usize, of: impl Fn(&Linear) -> usize) -> usize {
        let gated = |g: &Gated| of(&g.gate_up) + of(&g.down);
        let layers = self.layers.iter().map(|l| {
            let mlp = match &l.mlp {
                Mlp::Dense(one) => gated(one),
                Mlp::Sparse { router, experts: all } => of(router) + all.iter().take(experts).map(gated).sum::<usize>(),
            };
            of(&l.qkv) + of(&l.o) + mlp
        });
        layers.sum::<usize>() + of(&self.head)
    }

    /// The shape of a cache with `blocks` blocks.
    pub fn kv_shape(&self, blocks: usize) -> KvShape {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        KvShape { layers: self.layers.len(), kv_heads, head_dim, blocks }
    }
}

/// Names of a layer's tensors.
pub(crate) struct Names {
    layer: usize,
    /// The norm behind attention, where the family has one.
    pub after_attention: &'static str,
    pub before_mlp: &'static str,
}

impl Names {
    /// `post` families have norms behind attention and MLP, and other names for those before.
    pub fn new(layer: usize, source: &Source, post: bool) -> Self {
        Self {
            layer,
            after_attention: match source.is_gguf() {
                true => "gemma.post_attention_layernorm",
                false => "post_attention_layernorm",
            },
            before_mlp: if post { "pre_feedforward_layernorm" } else { "post_attention_layernorm" },
        }
    }

    pub fn part(&self, part: &str) -> String {
        format!("model.layers.{}.{part}", self.layer)
    }

    pub fn weight(&self, part: &str) -> String {
        self.part(&format!("{part}.weight"))
    }
}

impl Layer {
    fn load(shape: &Shape, i: usize, source: &mut Source, packing: &Packing) -> Result<Self, String> {
        let post = shape.post_norms;
        let names = Names::new(i, source, post);
        let name = |part: &str| names.part(part);
        let norm = |source: &mut Source, part: &str, wanted: bool| {
            if wanted { source.vector(&names.weight(part)) } else { Ok(Vec::new()) }
        };
        let attention = ["q_proj", "k_proj", "v_proj"].map(|p| name(&format!("self_attn.{p}")));
        let mlp = if shape.layers[i].sparse {
            let router = source.linear(&[name("mlp.gate")], &Packing { quantize: None, ..packing.clone() })?;
            let count = shape.experts.map_or(0, |e| e.count);
            Mlp::Sparse { router, experts: experts(&name("mlp.experts"), count, source, packing)? }
        } else {
            Mlp::Dense(Gated {
                gate_up: source.linear(&[name("mlp.gate_proj"), name("mlp.up_proj")], packing)?,
                down: source.linear(&[name("mlp.down_proj")], packing)?,
            })
        };
        let layer = Self {
            qkv: source.linear(&attention, packing)?,
            o: source.linear(&[name("self_attn.o_proj")], packing)?,
            q_norm: norm(source, "self_attn.q_norm", shape.qk_norm)?,
            k_norm: norm(source, "self_attn.k_norm", shape.qk_norm)?,
            before_attention: norm(source, "input_layernorm", true)?,
            after_attention: norm(source, names.after_attention, post)?,
            before_mlp: norm(source, names.before_mlp, true)?,
            after_mlp: norm(source, "post_feedforward_layernorm", post)?,
            mlp,
        };
        let rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        if layer.qkv.rows() != rows || layer.o.rows() != shape.hidden || layer.before_mlp.len() != shape.hidden {
            return Err(format!("the matrices of layer {i} do not fit the configuration"));
        }
        Ok(layer)
    }
}

/// Experts as single tensors each (Hugging Face), or stacked in three tensors (GGUF, newer transformers).
fn experts(name: &str, count: usize, source: &mut Source, packing: &Packing) -> Result<Vec<Gated>, String> {
    if source.has(&format!("{name}.0.gate_proj.weight")) {
        return (0..count)
            .map(|e| {
                let part = |p: &str| format!("{name}.{e}.{p}");
                Ok(Gated {
                    gate_up: source.linear(&[part("gate_proj"), part("up_proj")], packing)?,
                    down: source.linear(&[part("down_proj")], packing)?,
                })
            })
            .collect();
    }
    let down = if source.has(&format!("{name}.down_proj")) { "down_proj" } else { "down_proj.weight" };
    let down = source.matrices(&format!("{name}.{down}"), packing)?;
    let gate_up: Vec<Linear> = if source.has(&format!("{name}.gate_up_proj")) {
        let both = source.matrices(&format!("{name}.gate_up_proj"), packing)?;
        both.into_iter().map(|m| Linear::new(vec![m], Vec::new())).collect()
    } else {
        let gates = source.matrices(&format!("{name}.gate_proj.weight"), packing)?;
        let ups = source.matrices(&format!("{name}.up_proj.weight"), packing)?;
        gates.into_iter().zip(ups).map(|(g, u)| Linear::new(vec![g, u], Vec::new())).collect()
    };
    let down = down.into_iter().map(|m| Linear::new(vec![m], Vec::new()));
    Ok(gate_up.into_iter().zip(down).map(|(gate_up, down)| Gated { gate_up, down }).collect())
}
