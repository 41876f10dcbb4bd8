//! Where tensors come from: safetensors by Hugging Face's names, GGUF by llama.cpp's.
#![expect(unsafe_code, reason = "weight files are mapped while they are read")]

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QStorage, QTensor, gguf_file::Content},
    safetensors::MmapedSafetensors,
};
use covey_kernels::{Activations, Format, Packed, Pool, Target};

use crate::device::{Matrix, Place};

/// A source of named tensors.
pub(crate) enum Source {
    /// All files of a folder, mapped.
    Safetensors(MmapedSafetensors),
    /// An open GGUF file.
    Gguf(Box<Content>, File),
}

/// A tensor as its file holds it.
struct Raw<'a> {
    kind: Kind,
    dims: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ours(Format),
    /// A block format without kernels of its own; it is held as 16-bit floats.
    Other(GgmlDType),
}

impl Kind {
    /// The type of its numbers, where they are floats.
    fn float(self) -> Option<DType> {
        match self {
            Self::Ours(Format::F32) => Some(DType::F32),
            Self::Ours(Format::F16) => Some(DType::F16),
            Self::Ours(Format::Bf16) => Some(DType::BF16),
            _ => None,
        }
    }

    /// candle's name of it.
    fn ggml(self) -> GgmlDType {
        match self {
            Self::Ours(format) => ggml(format),
            Self::Other(kind) => kind,
        }
    }
}

/// How weights are packed.
#[derive(Clone, Debug)]
pub(crate) struct Packing {
    pub pool: Pool,
    /// Float matrices become this, where their width allows it.
    pub quantize: Option<Format>,
}

impl Source {
    /// Maps safetensors files.
    pub fn safetensors(files: &[PathBuf]) -> Result<Self, String> {
        for file in files {
            // Each alone first, so that an error names its file.
            // SAFETY: a file that is cut short while it is mapped would be a bus error; files of models do not change.
            unsafe { MmapedSafetensors::new(file) }.map_err(|e| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                format!("{name} is damaged or cut short ({e}); copy it again")
            })?;
        }
        // SAFETY: as above.
        unsafe { MmapedSafetensors::multi(files) }.map(Self::Safetensors).map_err(|e| e.to_string())
    }

    /// Whether tensors have llama.cpp's names and its ways.
    pub fn is_gguf(&self) -> bool {
        matches!(self, Self::Gguf(..))
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(all) => all.get(name).is_ok(),
            Self::Gguf(content, _) => content.tensor_infos.contains_key(&gguf_name(name)),
        }
    }

    fn raw(&mut self, name: &str) -> Result<Raw<'_>, String> {
        match self {
            Self::Safetensors(all) => {
                let view = all.get(name).map_err(|_| format!("no tensor `{name}`"))?;
                let kind = match DType::try_from(view.dtype()) {
                    Ok(DType::F32) => Format::F32,
                    Ok(DType::F16) => Format::F16,
                    Ok(DType::BF16) => Format::Bf16,
                    other => return Err(format!("tensor `{name}` has type {other:?}; f32, f16 and bf16 are served")),
                };
                let bytes = Cow::Borrowed(view.data());
                Ok(Raw { kind: Kind::Ours(kind), dims: view.shape().to_vec(), bytes })
            }
            Self::Gguf(content, file) => {
                let name = gguf_name(name);
                let info = content.tensor_infos.get(&name).ok_or_else(|| format!("no tensor `{name}`"))?;
                let kind = info.ggml_dtype;
                let size = info.shape.elem_count() / kind.block_size() * kind.type_size();
                let mut bytes = vec![0u8; size];
                let cut = |e: std::io::Error| format!("tensor `{name}` is cut short ({e})");
                file.seek(SeekFrom::Start(content.tensor_data_offset + info.offset)).map_err(cut)?;
                file.read_exact(&mut bytes).map_err(cut)?;
                let kind = match kind {
                    GgmlDType::F32 => Kind::Ours(Format::F32),
                    GgmlDType::F16 => Kind::Ours(Format::F16),
                    GgmlDType::BF16 => Kind::Ours(Format::Bf16),
                    GgmlDType::Q4_0 => Kind::Ours(Format::Q4_0),
                    GgmlDType::Q8_0 => Kind::Ours(Format::Q8_0),
                    GgmlDType::Q4K => Kind::Ours(Format::Q4K),
                    GgmlDType::Q5K => Kind::Ours(Format::Q5K),
                    GgmlDType::Q6K => Kind::Ours(Format::Q6K),
                    other => Kind::Other(other),
                };
                Ok(Raw { kind, dims: info.shape.dims().to_vec(), bytes: Cow::Owned(bytes) })
            }
        }
    }

    /// A vector as floats.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f32>, String> {
        self.raw(name)?.floats()
    }

    /// The matrix of this full name, packed.
    pub fn matrix(&mut self, name: &str, packing: &Packing) -> Result<Packed, String> {
        let raw = self.raw(name)?;
        let [rows, cols] = raw.dims[..] else { return Err(format!("tensor `{name}` is no matrix")) };
        raw.pack(rows, cols, packing)
    }

    /// The matrices `[count, rows, cols]` of one tensor, packed one by one.
    pub fn matrices(&mut self, name: &str, packing: &Packing) -> Result<Vec<Packed>, String> {
        self.raw(name)?.each(name, |part| part.pack(part.dims[0], part.dims[1], packing))
    }

    /// The matrix of this full name, on a device.
    pub fn matrix_on(&mut self, name: &str, place: &Place) -> Result<Matrix, String> {
        self.raw(name)?.on(place).map_err(|e| format!("tensor `{name}`: {e}"))
    }

    /// The matrices `[count, rows, cols]` of one tensor, on a device.
    pub fn matrices_on(&mut self, name: &str, place: &Place) -> Result<Vec<Matrix>, String> {
        self.raw(name)?.each(name, |part| part.on(place).map_err(|e| format!("tensor `{name}`: {e}")))
    }

    /// How a tensor's numbers are held: a float type, or blocks.
    pub fn dtype(&mut self, name: &str) -> Result<Option<DType>, String> {
        Ok(self.raw(name)?.kind.float())
    }

    /// The matrices `names.weight` (and `names.bias`, where there are some) under each other, as one linear map.
    pub fn linear(&mut self, names: &[String], packing: &Packing) -> Result<Linear, String> {
        let mut parts = Vec::new();
        let mut bias = Vec::new();
        for name in names {
            let matrix = self.matrix(&format!("{name}.weight"), packing)?;
            let name = format!("{name}.bias");
            if self.has(&name) {
                bias.resize(parts.iter().map(Packed::rows).sum(), 0.0);
                bias.extend(self.vector(&name)?);
            }
            parts.push(matrix);
        }
        Ok(Linear::new(parts, bias))
    }
}

impl Raw<'_> {
    /// What `f` makes of each matrix of a stack of them.
    fn each<T>(&self, name: &str, f: impl Fn(&Raw<'_>) -> Result<T, String>) -> Result<Vec<T>, String> {
        let [count, rows, cols] = self.dims[..] else { return Err(format!("tensor `{name}` is no stack of matrices")) };
        let size = self.bytes.len() / count;
        let part = |i: usize| Raw {
            kind: self.kind,
            dims: vec![rows, cols],
            bytes: Cow::Borrowed(&self.bytes[i * size..(i + 1) * size]),
        };
        (0..count).map(|i| f(&part(i))).collect()
    }

    /// As candle holds it on a device: floats of the device's type, or blocks as they are.
    fn on(&self, place: &Place) -> candle_core::Result<Matrix> {
        let blocks = |data: Cow<'_, [u8]>, kind| {
            let storage = QStorage::from_data(data, &place.device, kind)?;
            Ok(Matrix::Blocks(Arc::new(QTensor::new(storage, self.dims.clone())?)))
        };
        let Some(float) = self.kind.float() else { return blocks(Cow::Borrowed(&self.bytes), self.kind.ggml()) };
        let fits = |wanted: &Format| !wanted.is_float() && self.dims[1].is_multiple_of(wanted.block_cols());
        match place.quantize.filter(fits) {
            Some(wanted) => {
                let tensor = Tensor::from_raw_buffer(&self.bytes, float, &self.dims, &Device::Cpu)?;
                let quantized = QTensor::quantize(&tensor.to_dtype(DType::F32)?, ggml(wanted))?;
                blocks(quantized.data()?, ggml(wanted))
            }
            None => {
                let tensor = Tensor::from_raw_buffer(&self.bytes, float, &self.dims, &place.device)?;
                Ok(Matrix::Floats(tensor.to_dtype(place.dtype)?))
            }
        }
    }

    fn tensor(&self) -> Result<Tensor, String> {
        let failed = |e: candle_core::Error| e.to_string();
        let Some(dtype) = self.kind.float() else { return self.dequantized(self.kind.ggml()) };
        let tensor = Tensor::from_raw_buffer(&self.bytes, dtype, &self.dims, &Device::Cpu).map_err(failed)?;
        tensor.to_dtype(DType::F32).map_err(failed)
    }

    fn dequantized(&self, kind: GgmlDType) -> Result<Tensor, String> {
        let storage = QStorage::from_data(self.bytes.clone(), &Device::Cpu, kind);
        let tensor = storage.and_then(|s| QTensor::new(s, self.dims.clone()));
        tensor.and_then(|t| t.dequantize(&Device::Cpu)).map_err(|e| e.to_string())
    }

    fn floats(&self) -> Result<Vec<f32>, String> {
        self.tensor()?.flatten_all().and_then(|t| t.to_vec1()).map_err(|e| e.to_string())
    }

    fn pack(&self, rows: usize, cols: usize, packing: &Packing) -> Result<Packed, String> {
        let failed = |e: candle_core::Error| e.to_string();
        let format = match self.kind {
            Kind::Ours(format) => format,
            Kind::Other(_) => {
                let halves = self.tensor()?.to_dtype(DType::F16).map_err(failed)?.flatten_all().map_err(failed)?;
                let bytes: Vec<u8> =
                    halves.to_vec1::<half::f16>().map_err(failed)?.iter().flat_map(|x| x.to_le_bytes()).collect();
                return Ok(Packed::pack(Format::F16, rows, cols, &bytes, &packing.pool));
            }
        };
        match packing.quantize {
            Some(Format::Bf16) if format == Format::F32 => {
                let brains: Vec<u8> =
                    (self.floats()?.iter()).flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
                Ok(Packed::pack(Format::Bf16, rows, cols, &brains, &packing.pool))
            }
            // Floats of another size stay what they are.
            Some(Format::F32 | Format::F16 | Format::Bf16) => {
                Ok(Packed::pack(format, rows, cols, &self.bytes, &packing.pool))
            }
            Some(wanted) if format.is_float() && cols.is_multiple_of(wanted.block_cols()) => {
                let quantized = QTensor::quantize(&self.tensor()?, ggml(wanted)).map_err(failed)?;
                Ok(Packed::pack(wanted, rows, cols, &quantized.data().map_err(failed)?, &packing.pool))
            }
            _ => Ok(Packed::pack(format, rows, cols, &self.bytes, &packing.pool)),
        }
    }
}

fn ggml(format: Format) -> GgmlDType {
    match format {
        Format::F32 => GgmlDType::F32,
        Format::F16 => GgmlDType::F16,
        Format::Bf16 => GgmlDType::BF16,
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
    }
}

/// All tensors of some safetensors files, for models that candle computes.
pub(crate) fn tensors(files: &[PathBuf]) -> Result<HashMap<String, Tensor>, String> {
    let mut all = HashMap::new();
    for file in files {
        all.extend(candle_core::safetensors::load(file, &Device::Cpu).map_err(|e| e.to_string())?);
    }
    Ok(all)
}

/// What tensors take as 32-bit floats.
pub(crate) fn float_bytes(tensors: &HashMap<String, Tensor>) -> u64 {
    tensors.values().map(|t| t.elem_count() as u64 * 4).sum()
}

/// `x [t, in] → [t, out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Under each other: `out` is the sum of their rows.
    parts: Vec<Arc<Packed>>,
    /// `[out]`, or empty.
    bias: Vec<f32>,
    rows: usize,
}

impl Linear {
    pub fn new(parts: Vec<Packed>, bias: Vec<f32>) -> Self {
        let rows = parts.iter().map(Packed::rows).sum();
        // One matrix is one parallel region.
        let alike =
            parts.windows(2).all(|w| w[0].format() == w[1].format() && w[0].rows().is_multiple_of(covey_kernels::TILE));
        let parts = if parts.len() > 1 && alike {
            vec![Arc::new(Packed::stack(&parts.iter().collect::<Vec<_>>()))]
        } else {
            parts.into_iter().map(Arc::new).collect()
        };
        Self { parts, bias, rows }
    }

    /// A map by a matrix that something else holds, too.
    pub fn shared(matrix: Arc<Packed>) -> Self {
        Self { rows: matrix.rows(), parts: vec![matrix], bias: Vec::new() }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.bytes()).sum()
    }

    /// Products for one token.
    pub fn products(&self) -> usize {
        self.parts.iter().map(|p| p.rows() * p.cols()).sum()
    }

    /// Writes to `y [t, out]`, or adds to it.
    pub fn forward(&self, x: &mut Activations, y: &mut [f32], add: bool, pool: &Pool) {
        let mut at = 0;
        for part in &self.parts {
            covey_kernels::matmul(part, x, Target { y, cols: self.rows, at, add }, pool);
            at += part.rows();
        }
        if !self.bias.is_empty() {
            pool.rows(y, self.rows, 64, |_, row| row.iter_mut().zip(&self.bias).for_each(|(y, b)| *y += b));
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
        "mlp.gate" => "ffn_gate_inp",
        "mlp.experts.gate_proj" => "ffn_gate_exps",
        "mlp.experts.up_proj" => "ffn_up_exps",
        "mlp.experts.down_proj" => "ffn_down_exps",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "gemma.post_attention_layernorm" => "post_attention_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        other => other,
    };
    format!("blk.{layer}.{stem}.{kind}")
}
