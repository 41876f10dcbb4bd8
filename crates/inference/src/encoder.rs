//! BERT, RoBERTa and XLM-RoBERTa on our kernels: tokens of many texts packed into one matrix, no padding.
//!
//! Matrices are held as brain floats (cosine to float32 above 0.9999); attention sees both ways because every token is
//! given its text's last position.

pub(crate) mod foreign;

use covey_kernels::{
    Activations, Attention, BLOCK, Format, Isa, KvShape, KvStore, Packed, Plan, Pool, attend, gelu_erf, gelu_mul,
    layer_norm,
};
use serde_json::Value;

use crate::weights::{Linear, Packing, Source};

/// Tokens of one pass: their activations stay in the second-level cache.
pub(crate) const PASS_TOKENS: usize = 512;

#[derive(Debug)]
pub(crate) struct Encoder {
    pub hidden: usize,
    heads: usize,
    eps: f32,
    act: Act,
    words: Packed,
    /// `[positions, hidden]`, the embedding of the first kind of text added.
    positions: Vec<f32>,
    /// `[hidden]`: what the embedding of the second kind of text has more; empty where there is one kind.
    second: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    judge: Option<Judge>,
}

/// The head of a cross-encoder: one number from the first token's state.
#[derive(Debug)]
struct Judge {
    dense: Linear,
    out: Linear,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Gelu,
    GeluTanh,
    Relu,
}

#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

impl Encoder {
    /// Reads a BERT by the names of Hugging Face, with or without `bert.` in front.
    pub fn load(config: &Value, source: &mut Source, pool: &Pool) -> Result<Self, String> {
        let need = |key: &str| {
            config[key]
                .as_u64()
                .filter(|n| *n > 0)
                .map(|n| n as usize)
                .ok_or(format!("config.json: `{key}` is missing"))
        };
        let (hidden, heads) = (need("hidden_size")?, need("num_attention_heads")?);
        let act = match config["hidden_act"].as_str().unwrap_or("gelu") {
            "gelu" => Act::Gelu,
            "gelu_new" | "gelu_approximate" | "gelu_pytorch_tanh" => Act::GeluTanh,
            "relu" => Act::Relu,
            other => return Err(format!("activation `{other}` is not served; gelu and relu are")),
        };
        let prefix = ["", "bert.", "roberta."]
            .into_iter()
            .find(|prefix| source.has(&format!("{prefix}embeddings.word_embeddings.weight")))
            .ok_or("no tensor `embeddings.word_embeddings.weight`")?;
        let packing = Packing { pool: pool.clone(), quantize: Some(Format::Bf16) };
        let norm = |source: &mut Source, name: &str| {
            // Checkpoints from TensorFlow say gamma and beta.
            let (weight, bias) =
                if source.has(&format!("{name}.gamma")) { ("gamma", "beta") } else { ("weight", "bias") };
            let mut part = |part: &str| source.vector(&format!("{name}.{part}"));
            Ok::<_, String>(Norm { weight: part(weight)?, bias: part(bias)? })
        };
        let words = source.matrix(&format!("{prefix}embeddings.word_embeddings.weight"), &packing)?;
        let mut positions = source.vector(&format!("{prefix}embeddings.position_embeddings.weight"))?;
        let kinds = source.vector(&format!("{prefix}embeddings.token_type_embeddings.weight"))?;
        if config["model_type"] != "bert" {
            // RoBERTa counts positions from behind the padding token's number.
            let skipped = config["pad_token_id"].as_u64().unwrap_or(1) as usize + 1;
            positions.drain(..(skipped * hidden).min(positions.len()));
        }
        for row in positions.chunks_mut(hidden) {
            row.iter_mut().zip(&kinds).for_each(|(x, k)| *x += k);
        }
        let (first, rest) = kinds.split_at(hidden.min(kinds.len()));
        let second = rest.iter().zip(first).map(|(b, a)| b - a).take(hidden).collect();
        let layers = (0..need("num_hidden_layers")?)
            .map(|i| {
                let name = |part: &str| format!("{prefix}encoder.layer.{i}.{part}");
                let attention = ["query", "key", "value"].map(|p| name(&format!("attention.self.{p}")));
                Ok(Layer {
                    qkv: source.linear(&attention, &packing)?,
                    out: source.linear(&[name("attention.output.dense")], &packing)?,
                    attention_norm: norm(source, &name("attention.output.LayerNorm"))?,
                    up: source.linear(&[name("intermediate.dense")], &packing)?,
                    down: source.linear(&[name("output.dense")], &packing)?,
                    norm: norm(source, &name("output.LayerNorm"))?,
                })
            })
            .collect::<Result<_, String>>()?;
        let norm = norm(source, &format!("{prefix}embeddings.LayerNorm"))?;
        let eps = config["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32;
        let judge = judge(source, prefix, pool)?;
        Ok(Self { hidden, heads, eps, act, words, positions, second, norm, layers, judge })
    }

    /// Whether it has the head of a cross-encoder.
    pub fn ranks(&self) -> bool {
        self.judge.is_some()
    }

    /// One number of each text from its first token's state, as a cross-encoder gives it. `[texts, hidden]` in.
    pub fn judge(&self, first: &[f32], pool: &Pool) -> Vec<f32> {
        let Some(judge) = &self.judge else { return Vec::new() };
        let texts = first.len() / self.hidden;
        let mut input = Activations::new(Isa::detect());
        input.reset(texts, self.hidden).copy_from_slice(first);
        let mut inner = vec![0f32; texts * self.hidden];
        judge.dense.forward(&mut input, &mut inner, false, pool);
        input.reset(texts, self.hidden).iter_mut().zip(&inner).for_each(|(x, y)| *x = y.tanh());
        let mut scores = vec![0f32; texts];
        judge.out.forward(&mut input, &mut scores, false, pool);
        scores
    }

    /// Most tokens of a text.
    pub fn context(&self) -> usize {
        self.positions.len() / self.hidden
    }

    /// Last hidden states of all texts, `[tokens, hidden]`, one text after another. Each has 1 to `context` tokens, and
    /// as many `kinds` (0 or 1: of the first or the second text of a pair) where there are any.
    pub fn forward(&self, texts: &[&[u32]], kinds: &[&[u32]], pool: &Pool) -> Vec<f32> {
        let (hidden, isa) = (self.hidden, Isa::detect());
        let head_dim = hidden / self.heads;
        let mut blocks = 0u32;
        let tables: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| {
                let first = blocks;
                blocks += text.len().div_ceil(BLOCK) as u32;
                (first..blocks).collect()
            })
            .collect();
        let rows: Vec<(usize, usize, u32)> = texts
            .iter()
            .enumerate()
            .flat_map(|(t, text)| text.iter().enumerate().map(move |(at, id)| (t, at, *id)))
            .collect();
        // Each layer writes over the keys and values of the one before.
        let kv = KvStore::new(KvShape { layers: 1, kv_heads: self.heads, head_dim, blocks: blocks as usize });
        let plan = Plan::new(
            &rows.iter().map(|(t, ..)| (texts[*t].len() as u32 - 1, tables[*t].as_slice())).collect::<Vec<_>>(),
        );
        let attention =
            Attention { isa, layer: 0, heads: self.heads, scale: (head_dim as f32).powf(-0.5), window: None };
        let mut x = vec![0f32; rows.len() * hidden];
        pool.rows(&mut x, hidden, 16, |i, row| {
            let (t, at, id) = rows[i];
            self.words.row(id as usize, row);
            if kinds.get(t).is_some_and(|kinds| kinds[at] > 0) {
                row.iter_mut().zip(&self.second).for_each(|(x, k)| *x += k);
            }
            row.iter_mut().zip(&self.positions[at * hidden..]).for_each(|(x, p)| *x += p);
            layer_norm(isa, row, &self.norm.weight, &self.norm.bias, self.eps);
        });
        let (mut input, mut inner) = (Activations::new(isa), Activations::new(isa));
        let (mut qkv, mut up) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            input.reset(rows.len(), hidden).copy_from_slice(&x);
            qkv.resize(rows.len() * 3 * hidden, 0.0);
            layer.qkv.forward(&mut input, &mut qkv, false, pool);
            pool.rows(&mut qkv, 3 * hidden, 16, |i, row| {
                let (t, at, _) = rows[i];
                let (k, v) = row[hidden..].split_at(hidden);
                kv.write(0, tables[t][at / BLOCK], at % BLOCK, k, v);
            });
            attend(attention, &kv, &plan, &qkv, 3 * hidden, inner.reset(rows.len(), hidden), pool);
            layer.out.forward(&mut inner, &mut x, true, pool);
            self.normed(&mut x, &layer.attention_norm, isa, pool);
            input.reset(rows.len(), hidden).copy_from_slice(&x);
            let wide = layer.up.rows();
            up.resize(rows.len() * wide, 0.0);
            layer.up.forward(&mut input, &mut up, false, pool);
            let up = &up;
            pool.rows(inner.reset(rows.len(), wide), wide, 4, |i, row| {
                row.copy_from_slice(&up[i * wide..][..wide]);
                match self.act {
                    Act::Gelu => gelu_erf(isa, row),
                    Act::Relu => row.iter_mut().for_each(|x| *x = x.max(0.0)),
                    Act::GeluTanh => {
                        let both: Vec<f32> = row.iter().copied().chain(std::iter::repeat_n(1.0, wide)).collect();
                        gelu_mul(isa, &both, row);
                    }
                }
            });
            layer.down.forward(&mut inner, &mut x, true, pool);
            self.normed(&mut x, &layer.norm, isa, pool);
        }
        x
    }

    fn normed(&self, x: &mut [f32], norm: &Norm, isa: Isa, pool: &Pool) {
        pool.rows(x, self.hidden, 16, |_, row| layer_norm(isa, row, &norm.weight, &norm.bias, self.eps));
    }
}

/// BERT keeps the first layer of a classifier in its pooler, RoBERTa in the classifier.
fn judge(source: &mut Source, prefix: &str, pool: &Pool) -> Result<Option<Judge>, String> {
    let pooler = format!("{prefix}pooler.dense");
    let (dense, out) = if source.has("classifier.out_proj.weight") {
        ("classifier.dense", "classifier.out_proj")
    } else if source.has("classifier.weight") && source.has(&format!("{pooler}.weight")) {
        (pooler.as_str(), "classifier")
    } else {
        return Ok(None);
    };
    let packing = Packing { pool: pool.clone(), quantize: None };
    let (dense, out) = (source.linear(&[dense.to_owned()], &packing)?, source.linear(&[out.to_owned()], &packing)?);
    match out.rows() {
        1 => Ok(Some(Judge { dense, out })),
        n => Err(format!("it sorts texts into {n} classes; only models with one score are served")),
    }
}
