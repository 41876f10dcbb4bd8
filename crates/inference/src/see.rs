//! Pictures and a question to text: PaliGemma (arXiv 2407.07726) from candle-transformers' SigLIP and Gemma, one request
//! at a time.
//!
//! The glue is ours: candle's own puts the picture's features at unit length, where the model was trained on them as they
//! are.

use std::path::PathBuf;

use candle_core::{DType, Device, Module as _, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma, siglip};
use covey_domain::caps;
use image::imageops::FilterType;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::Error;

/// Bytes that decoding a picture may take.
const PICTURE_BYTES_MAX: u64 = 256 << 20;

/// A PaliGemma with its tokenizer.
pub struct Seer {
    vision: siglip::VisionModel,
    projector: candle_nn::Linear,
    language: gemma::Model,
    pub(crate) tokenizer: Tokenizer,
    hidden: usize,
    side: usize,
    pub(crate) context: usize,
    begin: u32,
    pub(crate) end: Vec<u32>,
    /// Of its weights in memory.
    pub(crate) bytes: u64,
}

impl std::fmt::Debug for Seer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seer")
    }
}

impl Seer {
    pub(crate) fn load(config: &Value, files: &[PathBuf], tokenizer: Tokenizer) -> Result<Self, String> {
        let mut text = config["text_config"].clone();
        let family = text["model_type"].as_str().unwrap_or("gemma");
        if family != "gemma" {
            return Err(format!("its text model is `{family}`; PaliGemma is served with Gemma only"));
        }
        let hidden = text["hidden_size"].as_u64().ok_or("config.json: no text_config.hidden_size")? as usize;
        let mut set = |key: &str, value: Value| {
            if text[key].is_null() {
                text[key] = value;
            }
        };
        // What newer files leave out, as transformers has it.
        set("head_dim", json!(256));
        set("attention_bias", json!(false));
        set("rms_norm_eps", json!(1e-6));
        set("max_position_embeddings", json!(8192));
        let theta = config["text_config"]["rope_parameters"]["rope_theta"].as_f64().unwrap_or(10_000.0);
        set("rope_theta", json!(theta));
        text["hidden_act"] = Value::Null;
        text["hidden_activation"] = json!("gelu_pytorch_tanh");
        let wrong = |e: serde_json::Error| format!("config.json: {e}");
        let text: gemma::Config = serde_json::from_value(text).map_err(wrong)?;
        let vision: siglip::VisionConfig = serde_json::from_value(config["vision_config"].clone()).map_err(wrong)?;
        let tensors = crate::weights::tensors(files)?;
        // Versions of transformers do not agree on names.
        let flat = !tensors.keys().any(|name| name.contains("vision_tower.vision_model."));
        let moved = tensors.keys().any(|name| name.starts_with("model.vision_tower."));
        let bare = tensors.keys().any(|name| name.contains("language_model.layers."));
        let bytes = crate::weights::float_bytes(&tensors);
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let vars = vars.rename_f(move |name: &str| {
            let name = if bare { name.replace("language_model.model.", "language_model.") } else { name.to_owned() };
            let name = if flat { name.replace("vision_tower.vision_model.", "vision_tower.") } else { name };
            if moved { format!("model.{name}") } else { name }
        });
        let failed = |e: candle_core::Error| e.to_string();
        let token = |name: &str| tokenizer.token_to_id(name);
        let end = config["eos_token_id"].as_u64().map(|id| id as u32).or(token("<eos>"));
        Ok(Self {
            vision: siglip::VisionModel::new(&vision, false, vars.pp("vision_tower.vision_model")).map_err(failed)?,
            projector: candle_nn::linear(vision.hidden_size, hidden, vars.pp("multi_modal_projector.linear"))
                .map_err(failed)?,
            language: gemma::Model::new(false, &text, vars.pp("language_model")).map_err(failed)?,
            hidden,
            bytes,
            side: vision.image_size,
            context: text.max_position_embeddings,
            begin: config["bos_token_id"].as_u64().map(|id| id as u32).or(token("<bos>")).unwrap_or(2),
            end: end.into_iter().collect(),
            tokenizer,
        })
    }

    /// A file (PNG, JPEG, WebP, GIF) as `[1, 3, side, side]` in [-1, 1].
    pub fn picture(&self, file: &[u8]) -> Result<Tensor, Error> {
        let wrong = |e: image::ImageError| {
            Error::Request(format!("failed to read the picture: {e}; PNG, JPEG, WebP and GIF are served"))
        };
        let reader = || {
            let reader = image::ImageReader::new(std::io::Cursor::new(file)).with_guessed_format();
            let mut reader = reader.map_err(|e| wrong(image::ImageError::IoError(e)))?;
            let mut limits = image::Limits::default();
            limits.max_alloc = Some(PICTURE_BYTES_MAX);
            reader.limits(limits);
            Ok::<_, Error>(reader)
        };
        let (width, height) = reader()?.into_dimensions().map_err(wrong)?;
        if u64::from(width) * u64::from(height) > caps::PICTURE_PIXELS_MAX {
            let most = caps::PICTURE_PIXELS_MAX;
            return Err(Error::Request(format!("the picture has {width} by {height} pixels; {most} are served")));
        }
        let side = self.side as u32;
        let picture = reader()?.decode().map_err(wrong)?.to_rgb8();
        let small = image::imageops::resize(&picture, side, side, FilterType::CatmullRom);
        let scaled: Vec<f32> = small.into_raw().into_iter().map(|x| f32::from(x) / 127.5 - 1.0).collect();
        let rows = Tensor::from_vec(scaled, (self.side, self.side, 3), &Device::Cpu)?;
        Ok(rows.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?)
    }

    /// Tokens of a question, as the model was taught them: all on one line, and the end of the line.
    pub(crate) fn question(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoded = self.tokenizer.encode(format!("{text}\n"), false);
        let encoded = encoded.map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
        Ok(std::iter::once(self.begin).chain(encoded.get_ids().iter().copied()).collect())
    }

    /// Reads pictures and a question; gives the logits of the answer's first token and how many places were read.
    pub fn begin(&mut self, pictures: &[Tensor], question: &[u32]) -> Result<(Vec<f32>, usize), Error> {
        self.language.clear_kv_cache();
        let mut parts = Vec::new();
        for picture in pictures {
            let features = self.projector.forward(&self.vision.forward(picture)?)?;
            // Gemma multiplies what it reads by this; features are to come out as they are.
            parts.push((features / (self.hidden as f64).sqrt())?);
        }
        let ids = Tensor::new(question, &Device::Cpu)?.unsqueeze(0)?;
        parts.push(self.language.embed_tokens().forward(&ids)?);
        let all = Tensor::cat(&parts, 1)?;
        let places = all.dim(1)?;
        if places >= self.context {
            return Err(Error::Request(format!("the question takes {places} places, the model has {}", self.context)));
        }
        // Pictures and question see each other both ways.
        Ok((self.language.forward_embeds(&all, None, 0)?.flatten_all()?.to_vec1()?, places))
    }

    /// The logits behind `token` at `place`.
    pub fn next(&mut self, token: u32, place: usize) -> Result<Vec<f32>, Error> {
        let ids = Tensor::new(&[token], &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.language.forward(&ids, place)?.flatten_all()?.to_vec1()?)
    }
}
