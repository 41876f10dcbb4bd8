//! Finding models on disk and reading them. Every error says which file and what to do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{quantized::gguf_file::Content, quantized::tokenizer::TokenizerFromGguf as _};
use covey_kernels::Format;
use tokenizers::Tokenizer;

use crate::{
    Error, Generator, Model,
    body::Body,
    chat::{Sources, Template},
    config,
    device::Compute,
    dialect::Dialect,
    embed::{Embedder, FAMILIES},
    hear::Listener,
    see::Seer,
    weights::{Packing, Source},
};

/// How a model is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Float weights become this while they are read. What is quantized on disk stays as it is.
    pub quantize: Option<Format>,
    /// What models that make text are computed on; all others are computed on the processor.
    pub compute: Compute,
}

/// A model found on disk, not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// Its name: the folder's or the file's stem.
    pub name: String,
    /// A folder with `config.json`, or a `.gguf` file.
    pub path: PathBuf,
    /// `llama`, `qwen2`, `qwen3`, `bert`, `gguf`.
    pub family: String,
    /// `generate`, `embed`, `rank` or `transcribe`.
    pub task: &'static str,
    /// Bytes of weights.
    pub bytes: u64,
}

/// Models in `dir`: folders with a `config.json`, `.gguf` files, and the Hugging Face cache's
/// `models--<org>--<name>/snapshots/<revision>`, which is named `<org>/<name>`. A missing folder has none.
pub fn discover(dir: &Path) -> Vec<Discovered> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            // A model that is being copied.
            continue;
        }
        if let Some(hub) = name.strip_prefix("models--") {
            let revision = fs::read_to_string(path.join("refs/main")).ok();
            let snapshots = fs::read_dir(path.join("snapshots")).into_iter().flatten().flatten().map(|e| e.path());
            let snapshot = match revision {
                Some(revision) => Some(path.join("snapshots").join(revision.trim())),
                None => snapshots.max(),
            };
            if let Some(snapshot) = snapshot {
                found.extend(describe(hub.replace("--", "/"), snapshot));
            }
        } else if path.extension().is_some_and(|e| e == "gguf") {
            let name = path.file_stem().map_or_else(|| name.clone(), |s| s.to_string_lossy().into_owned());
            let bytes = fs::metadata(&path).map_or(0, |m| m.len());
            found.push(Discovered { name, path, family: "gguf".into(), task: "generate", bytes });
        } else if path.is_dir() {
            found.extend(describe(name, path));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn describe(name: String, path: PathBuf) -> Option<Discovered> {
    let text = fs::read_to_string(path.join("config.json")).ok()?;
    let config = serde_json::from_str::<serde_json::Value>(&text).ok()?;
    let family = config["model_type"].as_str()?.to_owned();
    let judges = config["architectures"][0].as_str().is_some_and(|a| a.ends_with("ForSequenceClassification"));
    let task = match FAMILIES.contains(&family.as_str()) {
        false if family == "whisper" => "transcribe",
        true if judges => "rank",
        true => "embed",
        false => "generate",
    };
    let bytes = weight_files(&path).iter().filter_map(|f| fs::metadata(f).ok()).map(|m| m.len()).sum();
    Some(Discovered { name, path, family, task, bytes })
}

fn weight_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

pub(crate) fn load(path: &Path, options: &LoadOptions) -> Result<Model, Error> {
    let packing = Packing { pool: crate::pool(), quantize: options.quantize };
    let told = |why: String| Error::Load { path: path.display().to_string(), why };
    if path.extension().is_some_and(|e| e == "gguf") {
        return gguf(path, &packing, options.compute).map_err(told);
    }
    if !path.is_dir() {
        return Err(told("there is no such folder; a model is a folder with config.json, tokenizer.json and *.safetensors, or a .gguf file".into()));
    }
    folder(path, &packing, options.compute).map_err(told)
}

fn folder(path: &Path, packing: &Packing, compute: Compute) -> Result<Model, String> {
    let read = |name: &str| fs::read_to_string(path.join(name)).map_err(|e| format!("{name}: {e}"));
    let json = read("config.json")?;
    let tokenizer = Tokenizer::from_file(path.join("tokenizer.json")).map_err(|e| format!("tokenizer.json: {e}"))?;
    let files = weight_files(path);
    if files.is_empty() {
        return Err("no *.safetensors file in it".into());
    }
    let raw: serde_json::Value = serde_json::from_str(&json).map_err(|e| format!("config.json: {e}"))?;
    if raw["model_type"].as_str().is_some_and(|family| FAMILIES.contains(&family)) {
        let embedder = Embedder::load(path, &raw, &files, tokenizer)?;
        return Ok(Model::Embed(Box::new(embedder)));
    }
    if raw["model_type"] == "whisper" {
        return Ok(Model::Hear(Box::new(Listener::load(path, &raw, &files, tokenizer)?)));
    }
    if raw["model_type"] == "paligemma" {
        return Ok(Model::See(Box::new(Seer::load(&raw, &files, tokenizer)?)));
    }
    let shape = config::from_hf(&raw)?;
    let body = Body::load(shape, &mut Source::safetensors(&files)?, packing, compute)?;
    let settings: serde_json::Value = fs::read_to_string(path.join("tokenizer_config.json"))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let special =
        |key: &str| settings[key].as_str().or(settings[key]["content"].as_str()).unwrap_or_default().to_owned();
    // A file of its own goes before what the settings say, as in transformers.
    let text = |name: &str| fs::read_to_string(path.join(name)).ok();
    let sources = match text("chat_template.jinja") {
        Some(chat) => Some(Sources { chat, tools: text("additional_chat_templates/tool_use.jinja") }),
        None => Sources::of_settings(&settings["chat_template"]),
    };
    let template = sources.map(|sources| {
        let dialect = Dialect::new(&sources, &tokenizer, body.shape().vocab);
        Template::new(&sources, special("bos_token"), special("eos_token"), dialect)
    });
    let template = template.transpose()?;
    let generation: serde_json::Value = fs::read_to_string(path.join("generation_config.json"))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let mut eos = ids(&generation["eos_token_id"]);
    eos.extend(ids(&raw["eos_token_id"]));
    eos.extend(tokenizer.token_to_id(&special("eos_token")));
    eos.sort_unstable();
    eos.dedup();
    Ok(Model::Generate(Box::new(Generator { body, tokenizer, template, eos, grammars: Default::default() })))
}

fn gguf(path: &Path, packing: &Packing, compute: Compute) -> Result<Model, String> {
    let mut file = fs::File::open(path).map_err(|e| e.to_string())?;
    crate::gguf::check(&mut file).map_err(|why| format!("it is damaged or hostile ({why}); copy it again"))?;
    std::io::Seek::rewind(&mut file).map_err(|e| e.to_string())?;
    let content = Content::read(&mut file).map_err(|e| format!("it is damaged or cut short ({e}); copy it again"))?;
    let shape = config::from_gguf(&content)?;
    let tokenizer = Tokenizer::from_gguf(&content).map_err(|e| format!("tokenizer: {e}"))?;
    let text = |key: &str| content.metadata.get(key).and_then(|v| v.to_string().ok().cloned());
    let id = |key: &str| content.metadata.get(key).and_then(|v| v.to_u32().ok());
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
    let (bos, eos) = (token(id("tokenizer.ggml.bos_token_id")), token(id("tokenizer.ggml.eos_token_id")));
    let template = text("tokenizer.chat_template").map(|chat| {
        let sources = Sources { chat, tools: text("tokenizer.chat_template.tool_use") };
        let dialect = Dialect::new(&sources, &tokenizer, shape.vocab);
        Template::new(&sources, bos, eos, dialect)
    });
    let template = template.transpose()?;
    let eos = id("tokenizer.ggml.eos_token_id").into_iter().chain(id("tokenizer.ggml.eot_token_id")).collect();
    let body = Body::load(shape, &mut Source::Gguf(Box::new(content), file), packing, compute)
        .map_err(|e| format!("it is damaged or cut short ({e}); copy it again"))?;
    Ok(Model::Generate(Box::new(Generator { body, tokenizer, template, eos, grammars: Default::default() })))
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    match value {
        serde_json::Value::Number(n) => n.as_u64().map(|n| n as u32).into_iter().collect(),
        serde_json::Value::Array(all) => all.iter().flat_map(ids).collect(),
        _ => Vec::new(),
    }
}
