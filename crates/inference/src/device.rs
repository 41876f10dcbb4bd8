//! The decoder on candle's tensors: for NVIDIA cards (feature `cuda`, paged flash attention) and Apple's (feature
//! `metal`). The engine above is the same as on the processor: packed tokens, blocks of keys and values, one step for
//! all sequences.
//!
//! The limit of a step is the card's memory bandwidth, as long as launching kernels is not: about ten a layer here. What
//! the host does in a step is one transfer of numbers up (ids, positions, tables) and one of logits down.

mod attend;
mod step;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, quantized::QTensor};
use covey_kernels::Format;

use crate::{config::Shape, weights::Source};

/// Positions of a block of keys and values: what candle's paged attention wants is a multiple of 32.
pub(crate) const BLOCK: usize = 64;

/// What models that make text are computed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// This processor, by our own kernels.
    #[default]
    Cpu,
    /// An NVIDIA card, by its number. Needs the feature `cuda`.
    Cuda(usize),
    /// Apple's card. Needs the feature `metal`.
    Metal,
    /// This processor, by candle's kernels: slow, and the same steps as on a card. For tests.
    Candle,
}

impl Compute {
    /// A card if this build knows one and the machine has it, else the processor.
    pub fn best() -> Self {
        [Self::Cuda(0), Self::Metal].into_iter().find(|c| c.device().is_ok()).unwrap_or_default()
    }

    fn device(self) -> Result<Device, String> {
        let device = match self {
            Self::Cpu | Self::Candle => Ok(Device::Cpu),
            Self::Cuda(number) => Device::new_cuda(number),
            Self::Metal => Device::new_metal(0),
        };
        device.map_err(|e| format!("failed to open the device `{self}`: {e}"))
    }

    /// Whether it is there; else why not.
    pub fn check(self) -> Result<(), String> {
        self.device().map(drop)
    }

    /// Bytes of memory that are free there, about.
    pub fn free_memory(self) -> u64 {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => {
                let free = Device::new_cuda(number).and_then(|device| {
                    let context = device.as_cuda_device()?.cuda_stream().context().clone();
                    let (free, _) = context.mem_get_info().map_err(candle_core::Error::wrap)?;
                    Ok(free as u64)
                });
                free.unwrap_or(0)
            }
            // Apple's memory is one for both.
            _ => crate::free_memory(),
        }
    }
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
            Self::Candle => f.write_str("candle"),
        }
    }
}

impl std::str::FromStr for Compute {
    type Err = String;

    /// `auto`, `cpu`, `cuda`, `cuda:1`, `metal`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no device; auto, cpu, cuda, cuda:N and metal are");
        match text.split_once(':').unwrap_or((text, "0")) {
            ("auto", "0") => Ok(Self::best()),
            ("cpu", "0") => Ok(Self::Cpu),
            ("cuda", number) => number.parse().map(Self::Cuda).map_err(|_| wrong()),
            ("metal", "0") => Ok(Self::Metal),
            ("candle", "0") => Ok(Self::Candle),
            _ => Err(wrong()),
        }
    }
}

/// Where tensors go, and as what.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub device: Device,
    /// Of float weights and of the residual stream.
    pub dtype: DType,
    /// Float matrices become this, where their width allows it.
    pub quantize: Option<Format>,
}

/// A matrix `[out, in]` on a device.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    Floats(Tensor),
    Blocks(Arc<QTensor>),
}

/// `x [t, in] → [t, out]`.
#[derive(Debug)]
struct Linear {
    /// Under each other: `out` is the sum of their rows.
    parts: Vec<Matrix>,
    /// `[out]`.
    bias: Option<Tensor>,
}

/// All weights of a decoder on a device.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub shape: Shape,
    pub compute: Compute,
    place: Place,
    /// Of keys and values.
    kv_dtype: DType,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    /// For each rotation: radians a position of each pair of numbers, and what cosines and sines are multiplied by.
    ropes: Vec<(Vec<f64>, f64)>,
}

#[derive(Debug)]
struct Layer {
    /// Queries, keys and values under each other.
    qkv: Linear,
    o: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    before_attention: Tensor,
    after_attention: Option<Tensor>,
    before_mlp: Tensor,
    after_mlp: Option<Tensor>,
    mlp: Mlp,
}

#[derive(Debug)]
enum Mlp {
    Dense(Gated),
    Sparse { router: Linear, experts: Vec<Gated> },
}

/// `down(act(gate x) * up x)`; gate and up are under each other.
#[derive(Debug)]
struct Gated {
    gate_up: Linear,
    down: Linear,
}

/// Keys and values of all layers on a device: `[blocks * BLOCK, kv_heads * head_dim]` each.
pub(crate) struct KvStore {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

impl KvStore {
    /// Copies a block of all layers.
    pub fn copy(&mut self, from: u32, to: u32) -> candle_core::Result<()> {
        for tensor in self.keys.iter().chain(&self.values) {
            let block = tensor.narrow(0, from as usize * BLOCK, BLOCK)?.copy()?;
            tensor.slice_set(&block, 0, to as usize * BLOCK)?;
        }
        Ok(())
    }
}

impl Decoder {
    /// Reads all weights onto the device.
    pub fn load(shape: Shape, source: &mut Source, quantize: Option<Format>, compute: Compute) -> Result<Self, String> {
        let failed = |e: candle_core::Error| e.to_string();
        let device = compute.device()?;
        let held = source.dtype("model.layers.0.self_attn.o_proj.weight")?;
        let dtype = match (compute, held.filter(|_| quantize.is_none())) {
            // Products with blocks are made in 32 bits.
            (Compute::Candle | Compute::Cpu, _) | (_, None) => DType::F32,
            // Half the bytes, and what paged attention takes.
            (Compute::Cuda(_), Some(DType::F32)) => DType::BF16,
            (_, Some(held)) => held,
        };
        let kv_dtype = match (compute, dtype) {
            (Compute::Cuda(_) | Compute::Metal, DType::F32) => DType::F16,
            (_, dtype) => dtype,
        };
        let quantize = quantize.filter(|format| !format.is_float());
        let place = Place { device, dtype, quantize };
        let embedding = source.matrix_on("model.embed_tokens.weight", &Place { quantize: None, ..place.clone() })?;
        let table = match &embedding {
            Matrix::Floats(tensor) => tensor.clone(),
            // Rows are looked up in it: it is held as floats, of half the size.
            Matrix::Blocks(blocks) => {
                let floats = blocks.dequantize(&place.device).map_err(failed)?;
                if compute == Compute::Candle { floats } else { floats.to_dtype(DType::F16).map_err(failed)? }
            }
        };
        let (rows, cols) = table.dims2().map_err(failed)?;
        if rows < shape.vocab || cols != shape.hidden {
            let (vocab, hidden) = (shape.vocab, shape.hidden);
            return Err(format!("the embedding is {rows} by {cols}, the configuration says {vocab} by {hidden}"));
        }
        let reader = Reader { shape: &shape, place: &place };
        let layers = (0..shape.layers.len()).map(|i| reader.layer(i, source)).collect::<Result<_, _>>()?;
        let norm = reader.norm(source, "model.norm.weight")?;
        let head = match source.has("lm_head.weight") {
            true => reader.linear(source, &["lm_head".into()])?,
            false => Linear { parts: vec![embedding], bias: None },
        };
        let factors = if source.has("rope_freqs.weight") { Some(source.vector("rope_freqs.weight")?) } else { None };
        let ropes = shape.rope_tables(factors.as_deref());
        Ok(Self { compute, kv_dtype, embedding: table, layers, norm, head, ropes, place, shape })
    }

    /// Width of a row of logits.
    pub fn logits(&self) -> usize {
        self.head.rows()
    }

    /// Bytes of a block of keys and values in all layers.
    pub fn block_bytes(&self) -> usize {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        2 * self.layers.len() * BLOCK * kv_heads * head_dim * self.kv_dtype.size_in_bytes()
    }

    /// Room for `blocks` blocks.
    pub fn kv_store(&self, blocks: usize) -> candle_core::Result<KvStore> {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let make = || -> candle_core::Result<Vec<Tensor>> {
            let shape = (blocks * BLOCK, kv_heads * head_dim);
            self.layers.iter().map(|_| Tensor::zeros(shape, self.kv_dtype, &self.place.device)).collect()
        };
        Ok(KvStore { keys: make()?, values: make()? })
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        let table = self.embedding.elem_count() * self.embedding.dtype().size_in_bytes();
        self.sum(usize::MAX, Matrix::bytes) + table
    }

    /// Bytes of weights that a step over one token reads.
    pub fn step_bytes(&self) -> usize {
        self.sum(self.shape.experts.map_or(0, |e| e.used), Matrix::bytes)
    }

    /// Products of a step over one token.
    pub fn step_products(&self) -> usize {
        self.sum(self.shape.experts.map_or(0, |e| e.used), |m| m.rows() * m.cols())
    }

    /// What all matrices come to, with `experts` of each mixture.
    fn sum(&self, experts: usize, of: impl Fn(&Matrix) -> usize) -> usize {
        let linear = |l: &Linear| l.parts.iter().map(&of).sum::<usize>();
        let gated = |g: &Gated| linear(&g.gate_up) + linear(&g.down);
        let layers = self.layers.iter().map(|l| {
            let mlp = match &l.mlp {
                Mlp::Dense(one) => gated(one),
                Mlp::Sparse { router, experts: all } => {
                    linear(router) + all.iter().take(experts).map(gated).sum::<usize>()
                }
            };
            linear(&l.qkv) + linear(&l.o) + mlp
        });
        layers.sum::<usize>() + linear(&self.head)
    }
}

impl Matrix {
    fn rows(&self) -> usize {
        match self {
            Self::Floats(tensor) => tensor.dims()[0],
            Self::Blocks(blocks) => blocks.shape().dims()[0],
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Floats(tensor) => tensor.dims()[1],
            Self::Blocks(blocks) => blocks.shape().dims()[1],
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Floats(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Blocks(blocks) => blocks.storage_size_in_bytes(),
        }
    }
}

impl Linear {
    fn new(parts: Vec<Matrix>, bias: Option<Tensor>) -> candle_core::Result<Self> {
        // Floats are one product.
        let floats: Vec<&Tensor> = (parts.iter())
            .filter_map(|p| match p {
                Matrix::Floats(tensor) => Some(tensor),
                Matrix::Blocks(_) => None,
            })
            .collect();
        let parts = match floats.len() == parts.len() && parts.len() > 1 {
            true => vec![Matrix::Floats(Tensor::cat(&floats, 0)?)],
            false => parts,
        };
        Ok(Self { parts, bias })
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(Matrix::rows).sum()
    }
}

/// Reads the parts of a decoder.
struct Reader<'a> {
    shape: &'a Shape,
    place: &'a Place,
}

impl Reader<'_> {
    fn vector(&self, values: Vec<f32>) -> Result<Tensor, String> {
        let tensor = Tensor::new(values, &self.place.device).and_then(|t| t.to_dtype(self.place.dtype));
        tensor.map_err(|e| e.to_string())
    }

    fn norm(&self, source: &mut Source, name: &str) -> Result<Tensor, String> {
        let weights = source.vector(name)?;
        self.vector(weights.into_iter().map(|w| w + self.shape.norm_offset).collect())
    }

    /// The matrices `names.weight` (and `names.bias`, where there are some) under each other.
    fn linear(&self, source: &mut Source, names: &[String]) -> Result<Linear, String> {
        let (mut parts, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            let matrix = source.matrix_on(&format!("{name}.weight"), self.place)?;
            let name = format!("{name}.bias");
            if source.has(&name) {
                bias.resize(parts.iter().map(Matrix::rows).sum(), 0.0);
                bias.extend(source.vector(&name)?);
            }
            parts.push(matrix);
        }
        let bias = if bias.is_empty() { None } else { Some(self.vector(bias)?) };
        Linear::new(parts, bias).map_err(|e| e.to_string())
    }

    fn layer(&self, i: usize, source: &mut Source) -> Result<Layer, String> {
        let Shape { heads, kv_heads, head_dim, hidden, qk_norm, post_norms, .. } = *self.shape;
        let names = crate::decoder::Names::new(i, source, post_norms);
        let optional = |source: &mut Source, part: &str, wanted: bool| match wanted {
            true => self.norm(source, &names.weight(part)).map(Some),
            false => Ok(None),
        };
        let mlp = if self.shape.layers[i].sparse {
            let router = Reader { place: &Place { quantize: None, ..self.place.clone() }, ..*self };
            let router = router.linear(source, &[names.part("mlp.gate")])?;
            Mlp::Sparse { router, experts: self.experts(source, &names.part("mlp.experts"))? }
        } else {
            Mlp::Dense(Gated {
                gate_up: self.linear(source, &["mlp.gate_proj", "mlp.up_proj"].map(|p| names.part(p)))?,
                down: self.linear(source, &[names.part("mlp.down_proj")])?,
            })
        };
        let attention = ["q_proj", "k_proj", "v_proj"].map(|p| names.part(&format!("self_attn.{p}")));
        let layer = Layer {
            qkv: self.linear(source, &attention)?,
            o: self.linear(source, &[names.part("self_attn.o_proj")])?,
            q_norm: optional(source, "self_attn.q_norm", qk_norm)?,
            k_norm: optional(source, "self_attn.k_norm", qk_norm)?,
            before_attention: self.norm(source, &names.weight("input_layernorm"))?,
            after_attention: optional(source, names.after_attention, post_norms)?,
            before_mlp: self.norm(source, &names.weight(names.before_mlp))?,
            after_mlp: optional(source, "post_feedforward_layernorm", post_norms)?,
            mlp,
        };
        if layer.qkv.rows() != (heads + 2 * kv_heads) * head_dim || layer.o.rows() != hidden {
            return Err(format!("the matrices of layer {i} do not fit the configuration"));
        }
        Ok(layer)
    }

    /// Experts as single tensors each (Hugging Face), or stacked in three tensors (GGUF, newer transformers).
    fn experts(&self, source: &mut Source, name: &str) -> Result<Vec<Gated>, String> {
        let count = self.shape.experts.map_or(0, |e| e.count);
        if source.has(&format!("{name}.0.gate_proj.weight")) {
            let expert = |e: usize| {
                let part = |p: &str| format!("{name}.{e}.{p}");
                Ok(Gated {
                    gate_up: self.linear(source, &[part("gate_proj"), part("up_proj")])?,
                    down: self.linear(source, &[part("down_proj")])?,
                })
            };
            return (0..count).map(expert).collect();
        }
        let failed = |e: candle_core::Error| e.to_string();
        let down = if source.has(&format!("{name}.down_proj")) { "down_proj" } else { "down_proj.weight" };
        let downs = source.matrices_on(&format!("{name}.{down}"), self.place)?;
        let both: Vec<Vec<Matrix>> = if source.has(&format!("{name}.gate_up_proj")) {
            source.matrices_on(&format!("{name}.gate_up_proj"), self.place)?.into_iter().map(|m| vec![m]).collect()
        } else {
            let gates = source.matrices_on(&format!("{name}.gate_proj.weight"), self.place)?;
            let ups = source.matrices_on(&format!("{name}.up_proj.weight"), self.place)?;
            gates.into_iter().zip(ups).map(|(gate, up)| vec![gate, up]).collect()
        };
        let gated = |(both, down)| {
            let gate_up = Linear::new(both, None).map_err(failed)?;
            Ok(Gated { gate_up, down: Linear::new(vec![down], None).map_err(failed)? })
        };
        both.into_iter().zip(downs).map(gated).collect()
    }
}
