//! Shapes of a decoder, from `config.json` or from GGUF metadata.

use candle_core::quantized::gguf_file::Content;
use serde_json::Value;

/// What the decoder needs to know. One struct describes all families; they differ in what is `Some`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub vocab: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub eps: f32,
    pub context: usize,
    /// One entry a layer.
    pub layers: Vec<LayerShape>,
    /// Rotations that layers name by index.
    pub ropes: Vec<Rope>,
    /// GGUF stores Llama's queries and keys permuted for rotation of neighbouring pairs.
    pub rope_pairs: bool,
    /// Queries and keys are normed before they are rotated (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Norms follow attention and MLP, too (Gemma 3).
    pub post_norms: bool,
    /// Added to every norm's weight (Gemma's files hold them less one).
    pub norm_offset: f32,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// Scores are multiplied by this.
    pub score_scale: f32,
    pub gate: Gate,
    pub experts: Option<Experts>,
}

/// What differs between layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LayerShape {
    /// How many positions back a token sees.
    pub window: Option<usize>,
    /// Index of its rotation; `None` where positions are not told (SmolLM3).
    pub rope: Option<usize>,
    /// Whether its MLP is a mixture of experts.
    pub sparse: bool,
}

/// The activation of the MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Silu,
    Gelu,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Experts {
    pub count: usize,
    /// Experts that a token meets.
    pub used: usize,
    /// Whether the weights of those add up to one.
    pub normalized: bool,
}

/// A rotation of queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub theta: f64,
    pub scaling: Scaling,
}

/// How positions are stretched beyond those of training.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// All frequencies divided by this.
    Linear(f64),
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    /// YaRN (arXiv 2309.00071): as above by wave lengths, and cosines and sines multiplied.
    Yarn {
        factor: f64,
        fast: f64,
        slow: f64,
        original: f64,
        attention: f64,
    },
}

impl Shape {
    /// For each rotation: radians a position of each pair of numbers, and what cosines and sines are multiplied by.
    /// Llama 3.1 as GGUF stretches by the `factors` of a tensor.
    pub fn rope_tables(&self, factors: Option<&[f32]>) -> Vec<(Vec<f64>, f64)> {
        let table = |rope: &Rope| {
            let (mut frequencies, factor) = rope.frequencies(self.head_dim);
            for (f, by) in frequencies.iter_mut().zip(factors.into_iter().flatten()) {
                *f /= f64::from(*by);
            }
            (frequencies, factor)
        };
        self.ropes.iter().map(table).collect()
    }
}

impl Rope {
    /// Radians a position of each pair of numbers, and what cosines and sines are multiplied by.
    pub fn frequencies(&self, head_dim: usize) -> (Vec<f64>, f64) {
        let half = head_dim / 2;
        let mut all: Vec<f64> = (0..half).map(|i| self.theta.powf(-((2 * i) as f64) / head_dim as f64)).collect();
        match self.scaling {
            Scaling::None => (all, 1.0),
            Scaling::Linear(factor) => {
                all.iter_mut().for_each(|f| *f /= factor);
                (all, 1.0)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                for f in &mut all {
                    let wave = 2.0 * std::f64::consts::PI / *f;
                    if wave > original / low {
                        *f /= factor;
                    } else if wave > original / high {
                        let smooth = (original / wave - low) / (high - low);
                        *f = (1.0 - smooth) * *f / factor + smooth * *f;
                    }
                }
                (all, 1.0)
            }
            Scaling::Yarn { factor, fast, slow, original, attention } => {
                let pair = |rotations: f64| {
                    head_dim as f64 * (original / (rotations * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let from = pair(fast).floor().max(0.0);
                let to = pair(slow).ceil().min(head_dim as f64 - 1.0);
                let to = if to > from { to } else { from + 0.001 };
                for (i, f) in all.iter_mut().enumerate() {
                    let stretched = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                    *f = stretched * *f / factor + (1.0 - stretched) * *f;
                }
                (all, attention)
            }
        }
    }
}

/// Families by the name that `config.json` and GGUF give them.
const SERVED: &str = "llama, mistral, smollm3, qwen2, qwen3, qwen3_moe, gemma3 and bert";

/// The decoder's shape in a Hugging Face `config.json`.
pub(crate) fn from_hf(json: &Value) -> Result<Shape, String> {
    // Gemma 3 with eyes keeps the text model's settings one level down.
    let c = if json["text_config"].is_object() { &json["text_config"] } else { json };
    let family = c["model_type"].as_str().or(json["model_type"].as_str()).unwrap_or_default();
    let known = ["llama", "mistral", "smollm3", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "gemma3"];
    if !known.contains(&family) {
        return Err(format!("model type `{family}` is not served; {SERVED} are"));
    }
    let int = |key: &str| c[key].as_u64().map(|n| n as usize);
    let need =
        |key: &str| int(key).filter(|n| *n > 0).ok_or_else(|| format!("config.json: `{key}` is missing or zero"));
    let float = |key: &str| c[key].as_f64();
    let gemma = family.starts_with("gemma3");
    let (hidden, heads, count) = (need("hidden_size")?, need("num_attention_heads")?, need("num_hidden_layers")?);
    let head_dim = int("head_dim").unwrap_or(hidden / heads);
    let context = int("max_position_embeddings").unwrap_or(2048);
    // transformers 5 writes `rope_parameters` with theta and scaling in one place, Gemma one for each kind of layer.
    let told =
        [&c["rope_parameters"], &c["rope_scaling"]].into_iter().find(|v| v.is_object()).cloned().unwrap_or_default();
    let theta = float("rope_theta").unwrap_or(10_000.0);
    let ropes = if gemma {
        let (local, global) = (&told["sliding_attention"], &told["full_attention"]);
        let local_theta = float("rope_local_base_freq").unwrap_or(10_000.0);
        let global = if global.is_object() { global } else { &told };
        vec![rope(local, local_theta, context)?, rope(global, float("rope_theta").unwrap_or(1e6), context)?]
    } else {
        vec![rope(&told, theta, context)?]
    };
    let window = int("sliding_window").filter(|_| match family {
        "qwen2" | "qwen3" | "qwen3_moe" => c["use_sliding_window"] == true,
        _ => true,
    });
    let experts = (family == "qwen3_moe").then(|| {
        let count = int("num_experts").or(int("num_local_experts")).unwrap_or(128);
        Experts {
            count,
            used: int("num_experts_per_tok").unwrap_or(8),
            normalized: c["norm_topk_prob"].as_bool().unwrap_or(false),
        }
    });
    let sparse_step = int("decoder_sparse_step").unwrap_or(1).max(1);
    let dense: Vec<u64> = c["mlp_only_layers"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let pattern = int("sliding_window_pattern").or(int("_sliding_window_pattern")).unwrap_or(6).max(1);
    let layers = (0..count)
        .map(|i| {
            let sliding = match c["layer_types"][i].as_str() {
                Some(kind) => kind == "sliding_attention",
                None if gemma => (i + 1) % pattern != 0,
                None => match family {
                    "qwen2" | "qwen3" | "qwen3_moe" => i >= int("max_window_layers").unwrap_or(0),
                    _ => true,
                },
            };
            let silent =
                family == "smollm3" && c["no_rope_layers"][i].as_u64().map_or((i + 1) % 4 == 0, |rotated| rotated == 0);
            LayerShape {
                window: if sliding { window } else { None },
                rope: if silent { None } else { Some(usize::from(gemma && !sliding)) },
                sparse: experts.is_some() && (i + 1) % sparse_step == 0 && !dense.contains(&(i as u64)),
            }
        })
        .collect();
    Ok(Shape {
        vocab: int("vocab_size").unwrap_or(262_208),
        hidden,
        heads,
        kv_heads: int("num_key_value_heads").unwrap_or(heads),
        head_dim,
        eps: float("rms_norm_eps").unwrap_or(1e-6) as f32,
        context,
        layers,
        ropes,
        rope_pairs: false,
        qk_norm: family.starts_with("qwen3") || gemma,
        post_norms: gemma,
        norm_offset: if gemma { 1.0 } else { 0.0 },
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        score_scale: float("query_pre_attn_scalar").filter(|_| gemma).unwrap_or(head_dim as f64).powf(-0.5) as f32,
        gate: if gemma { Gate::Gelu } else { Gate::Silu },
        experts,
    })
}

fn rope(told: &Value, theta: f64, context: usize) -> Result<Rope, String> {
    let theta = told["rope_theta"].as_f64().unwrap_or(theta);
    let factor = told["factor"].as_f64().unwrap_or(1.0);
    let original = told["original_max_position_embeddings"].as_f64().unwrap_or(context as f64);
    let scaling = match told["rope_type"].as_str().or(told["type"].as_str()) {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear(factor),
        Some("llama3") => Scaling::Llama3 {
            factor,
            low: told["low_freq_factor"].as_f64().unwrap_or(1.0),
            high: told["high_freq_factor"].as_f64().unwrap_or(4.0),
            original,
        },
        Some("yarn") => Scaling::Yarn {
            factor,
            fast: told["beta_fast"].as_f64().unwrap_or(32.0),
            slow: told["beta_slow"].as_f64().unwrap_or(1.0),
            original,
            attention: told["attention_factor"].as_f64().unwrap_or(if factor > 1.0 {
                0.1 * factor.ln() + 1.0
            } else {
                1.0
            }),
        },
        Some(other) => return Err(format!("rope scaling `{other}` is not served; linear, llama3 and yarn are")),
    };
    Ok(Rope { theta, scaling })
}

/// The decoder's shape in GGUF metadata.
pub(crate) fn from_gguf(content: &Content) -> Result<Shape, String> {
    let text = |key: &str| content.metadata.get(key).and_then(|v| v.to_string().ok().cloned());
    let arch = text("general.architecture").ok_or("no general.architecture")?;
    let known = ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "smollm3"];
    if !known.contains(&arch.as_str()) {
        return Err(format!("architecture `{arch}` is not served; {} are", known.join(", ")));
    }
    let get = |key: &str| content.metadata.get(&format!("{arch}.{key}"));
    let int =
        |key: &str| get(key).and_then(|v| v.to_u64().or_else(|_| v.to_u32().map(u64::from)).ok()).map(|v| v as usize);
    let need = |key: &str| int(key).filter(|n| *n > 0).ok_or_else(|| format!("no {arch}.{key}"));
    let float = |key: &str| get(key).and_then(|v| v.to_f32().ok()).map(f64::from);
    let gemma = arch == "gemma3";
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = int("attention.key_length").unwrap_or(hidden / heads);
    let dims = content.tensor_infos.get("token_embd.weight").ok_or("no token_embd.weight")?.shape.dims();
    let context = int("context_length").unwrap_or(2048);
    let theta = float("rope.freq_base").unwrap_or(if gemma { 1e6 } else { 10_000.0 });
    let scaling = match get("rope.scaling.type").and_then(|v| v.to_string().ok()).map(String::as_str) {
        Some("linear") => Scaling::Linear(float("rope.scaling.factor").unwrap_or(1.0)),
        Some("yarn") => {
            let factor = float("rope.scaling.factor").unwrap_or(1.0);
            Scaling::Yarn {
                factor,
                fast: 32.0,
                slow: 1.0,
                original: float("rope.scaling.original_context_length")
                    .or(int("rope.scaling.original_context_length").map(|n| n as f64))
                    .unwrap_or(context as f64),
                attention: 0.1 * factor.ln() + 1.0,
            }
        }
        _ => Scaling::None,
    };
    let mut ropes = vec![Rope { theta, scaling }];
    if gemma {
        ropes.insert(0, Rope { theta: 10_000.0, scaling: Scaling::None });
    }
    let experts = int("expert_count").filter(|n| *n > 0).map(|count| Experts {
        count,
        used: int("expert_used_count").unwrap_or(8),
        normalized: true,
    });
    let window = int("attention.sliding_window").filter(|n| *n > 0);
    let layers = (0..need("block_count")?)
        .map(|i| {
            let sliding = !gemma || (i + 1) % 6 != 0;
            LayerShape {
                window: if sliding { window } else { None },
                rope: if arch == "smollm3" && (i + 1) % 4 == 0 { None } else { Some(usize::from(gemma && !sliding)) },
                sparse: experts.is_some(),
            }
        })
        .collect();
    Ok(Shape {
        vocab: dims[0],
        hidden,
        heads,
        kv_heads: int("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        eps: float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6) as f32,
        context,
        layers,
        ropes,
        // Those whose rows llama.cpp's converter permutes.
        rope_pairs: matches!(arch.as_str(), "llama" | "smollm3"),
        qk_norm: arch.starts_with("qwen3") || gemma,
        post_norms: gemma,
        // llama.cpp's converter has added the one already.
        norm_offset: 0.0,
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        score_scale: (head_dim as f32).powf(-0.5),
        gate: if gemma { Gate::Gelu } else { Gate::Silu },
        experts,
    })
}
