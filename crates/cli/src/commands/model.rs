//! `covey model ls|add|pull-from-cache|load|unload`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use covey_client::{Client, Target};
use covey_domain::{Error, infer::ModelOrder, status::NodeStatus};

use super::up::model_folders;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List models in the models folders, and what workers serve and have in memory
    Ls,
    /// Copy a model folder or a .gguf file into <home>/models; workers on this machine serve it within seconds
    Add {
        /// A folder with config.json, or a .gguf file
        path: PathBuf,
        /// Name to serve it under [default: the folder's or file's]
        #[arg(long)]
        name: Option<String>,
    },
    /// Take a model out of the Hugging Face cache of this machine into <home>/models; nothing is downloaded
    PullFromCache {
        /// As on the hub: org/name
        repository: String,
        /// Name to serve it under [default: the repository's]
        #[arg(long)]
        name: Option<String>,
    },
    /// Bring a model into the memory of workers, before the first request does
    #[command(after_help = "Example:\n  covey model load tiny --replicas 2")]
    Load {
        /// Name
        model: String,
        /// Workers that shall have it in memory
        #[arg(long, default_value_t = 1, conflicts_with = "on")]
        replicas: usize,
        /// Id or name of the worker
        #[arg(long)]
        on: Option<String>,
    },
    /// Take a model out of memory; answers under way are finished
    Unload {
        /// Name
        model: String,
        /// Id or name of the worker [default: all that have it]
        #[arg(long)]
        on: Option<String>,
    },
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Ls => ls().await,
        Command::Add { path, name } => add(&path, name),
        Command::PullFromCache { repository, name } => {
            let path = in_cache(&repository)?;
            let stem = repository.rsplit('/').next().unwrap_or(&repository).to_owned();
            add(&path, name.or(Some(stem)))
        }
        Command::Load { model, replicas, on } => load(&model, replicas, on.as_deref()).await,
        Command::Unload { model, on } => unload(&model, on.as_deref()).await,
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1048576.0)
}

async fn ls() -> Result<(), Error> {
    for model in model_folders().iter().flat_map(|f| covey_inference::discover(f)) {
        let size = mib(model.bytes);
        outln!("{} · {} · {} · {size} · {}", model.name, model.family, model.task, model.path.display());
    }
    let Ok(client) = Client::connect_default().await else { return Ok(()) };
    for node in client.status().await?.nodes.iter().filter(|n| n.state == "live") {
        outln!("served by {}:", node.name);
        for model in &node.models {
            let state = match &model.engine {
                Some(engine) => {
                    let found = 100.0 * engine.found_tokens as f64 / engine.asked_tokens.max(1) as f64;
                    let (running, waiting) = (engine.running, engine.waiting);
                    let memory = mib(model.memory);
                    format!(
                        "loaded, {memory}, {running} running, {waiting} waiting, {found:.0} % of prompts from the cache"
                    )
                }
                None if model.loaded => "loaded".to_owned(),
                None => "on disk".to_owned(),
            };
            outln!("  {} · {state}", model.name);
        }
    }
    Ok(())
}

/// Workers that can serve a model, those that `on` names if it does.
fn serving<'a>(nodes: &'a [NodeStatus], model: &str, on: Option<&str>) -> Result<Vec<&'a NodeStatus>, Error> {
    let named = |n: &&NodeStatus| on.is_none_or(|on| n.name == on || n.id.as_str() == on);
    let live: Vec<_> = nodes.iter().filter(|n| n.state == "live").filter(named).collect();
    if let (Some(on), true) = (on, live.is_empty()) {
        return Err(Error::not_found("live worker", on));
    }
    let serving: Vec<_> = live.into_iter().filter(|n| n.models.iter().any(|m| m.name == model)).collect();
    if serving.is_empty() {
        return Err(Error::not_found("model", model).hint("`covey model ls` lists what workers serve"));
    }
    Ok(serving)
}

fn has_it(node: &NodeStatus, model: &str) -> bool {
    node.models.iter().any(|m| m.name == model && m.loaded)
}

/// Has workers load or unload a model, one after the other.
async fn order(client: &Client, method: &str, model: &str, nodes: &[&NodeStatus]) -> Result<(), Error> {
    let calls = client.calls_without_session().await?;
    for node in nodes {
        let order = ModelOrder { model: model.into(), node: node.id.clone() };
        calls.value(Target::Model(model.to_owned()), method, covey_proto::payload_json(&order)).await?;
        outln!("{model} is {} the memory of {}", if method == "load" { "in" } else { "out of" }, node.name);
    }
    Ok(())
}

async fn load(model: &str, replicas: usize, on: Option<&str>) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let status = client.status().await?;
    let mut serving = serving(&status.nodes, model, on)?;
    if replicas > serving.len() {
        let why = format!("{} live workers can serve `{model}`, {replicas} were asked for", serving.len());
        return Err(Error::invalid(why));
    }
    // Who has it keeps it, then who has least in memory.
    serving.sort_by_key(|n| (!has_it(n, model), n.models.iter().map(|m| m.memory).sum::<u64>()));
    order(&client, "load", model, &serving[..replicas]).await
}

async fn unload(model: &str, on: Option<&str>) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let status = client.status().await?;
    let mut having = serving(&status.nodes, model, on)?;
    having.retain(|n| has_it(n, model));
    order(&client, "unload", model, &having).await
}

/// Where the Hugging Face cache has a repository.
fn in_cache(repository: &str) -> Result<PathBuf, Error> {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = env("HOME").unwrap_or_default();
    let hub = env("HF_HUB_CACHE")
        .or_else(|| env("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| env("HF_HOME").map(|h| h.join("hub")))
        .unwrap_or_else(|| home.join(".cache/huggingface/hub"));
    let found = covey_inference::discover(&hub);
    match found.iter().find(|m| m.name == repository) {
        Some(model) => Ok(model.path.clone()),
        None => {
            let names: Vec<&str> = found.iter().map(|m| m.name.as_str()).collect();
            let has = if names.is_empty() { "no model".to_owned() } else { names.join(", ") };
            let hint = format!("`{}` has {has}; HF_HUB_CACHE names another folder", hub.display());
            Err(Error::not_found("model in the cache", repository).hint(hint))
        }
    }
}

/// Copies a model's folder; of the folders in it what says how the model is used, not weights for other programs.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        // `is_file`, `is_dir` and `copy` follow the links of a cache.
        if path.is_file() {
            fs::copy(&path, to.join(&name))?;
        } else if path.is_dir() && !name.to_string_lossy().starts_with('.') {
            for inner in fs::read_dir(&path)? {
                let inner = inner?;
                let says = inner.path().extension().is_some_and(|e| e == "json" || e == "jinja");
                if says && inner.path().is_file() {
                    fs::create_dir_all(to.join(&name))?;
                    fs::copy(inner.path(), to.join(&name).join(inner.file_name()))?;
                }
            }
        }
    }
    Ok(())
}

fn add(path: &Path, name: Option<String>) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::internal(format!("failed to copy `{}`: {e}", path.display()));
    let is_gguf = path.extension().is_some_and(|e| e == "gguf");
    if !is_gguf && !path.join("config.json").is_file() {
        return Err(Error::invalid(format!("`{}` is not a model", path.display()))
            .hint("a model is a folder with config.json, tokenizer.json and *.safetensors, or a .gguf file"));
    }
    let stem = if is_gguf { path.file_stem() } else { path.file_name() };
    let name = name.or_else(|| stem.map(|s| s.to_string_lossy().into_owned())).unwrap_or_else(|| "model".into());
    let plain = |c: char| c.is_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err(Error::invalid(format!("`{name}` cannot be the name of a model"))
            .hint("letters, digits, `.`, `_` and `-`; it does not begin with a dot"));
    }
    let home = covey_node::home::root().join("models");
    fs::create_dir_all(&home).map_err(failed)?;
    // Loading it once finds what is missing or cut short before any worker does.
    covey_inference::Model::load(path).map_err(|e| Error::invalid(e.to_string()))?;
    // Workers look into the folder at any time: they must find a model whole or not at all.
    let draft = home.join(format!(".{name}.{}", std::process::id()));
    let target = if is_gguf { home.join(format!("{name}.gguf")) } else { home.join(&name) };
    if is_gguf {
        fs::copy(path, &draft).map_err(failed)?;
    } else {
        copy_folder(path, &draft).map_err(failed)?;
        if target.exists() {
            fs::remove_dir_all(&target).map_err(failed)?;
        }
    }
    fs::rename(&draft, &target).map_err(failed)?;
    outln!("{name} is in {}; workers on this machine serve it within seconds", target.display());
    Ok(())
}
