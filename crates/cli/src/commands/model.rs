//! `covey model ls`, `covey model add`.

use std::{fs, path::PathBuf};

use covey_client::Client;
use covey_domain::Error;

use super::up::model_folders;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List models in the models folders, and which of them workers serve
    Ls,
    /// Copy a model folder, a .gguf file, or the model inside a wheel's folder into <home>/models
    Add {
        /// A folder with config.json, or a .gguf file
        path: PathBuf,
        /// Name to serve it under [default: the folder's or file's]
        #[arg(long)]
        name: Option<String>,
    },
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Ls => ls().await,
        Command::Add { path, name } => add(&path, name),
    }
}

async fn ls() -> Result<(), Error> {
    for model in model_folders().iter().flat_map(|f| covey_inference::discover(f)) {
        println!(
            "{} · {} · {} · {:.1} MiB · {}",
            model.name,
            model.family,
            model.task,
            model.bytes as f64 / 1048576.0,
            model.path.display()
        );
    }
    if let Ok(client) = Client::connect_default().await {
        for node in client.status().await?.nodes.iter().filter(|n| n.state == "live") {
            let models: Vec<_> =
                node.models.iter().map(|m| format!("{}{}", m.name, if m.loaded { " (loaded)" } else { "" })).collect();
            println!("served by {}: {}", node.name, models.join(", "));
        }
    }
    Ok(())
}

fn add(path: &std::path::Path, name: Option<String>) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::internal(format!("failed to copy `{}`: {e}", path.display()));
    let is_gguf = path.extension().is_some_and(|e| e == "gguf");
    if !is_gguf && !path.join("config.json").is_file() {
        return Err(Error::invalid(format!("`{}` is not a model", path.display()))
            .hint("a model is a folder with config.json, tokenizer.json and *.safetensors, or a .gguf file"));
    }
    let stem = if is_gguf { path.file_stem() } else { path.file_name() };
    let name = name.or_else(|| stem.map(|s| s.to_string_lossy().into_owned())).unwrap_or_else(|| "model".into());
    let home = covey_node::home::root().join("models");
    fs::create_dir_all(&home).map_err(failed)?;
    let target = if is_gguf { home.join(format!("{name}.gguf")) } else { home.join(&name) };
    // Loading it once finds what is missing or cut short before any worker does.
    covey_inference::Model::load(path).map_err(|e| Error::invalid(e.to_string()))?;
    if is_gguf {
        fs::copy(path, &target).map_err(failed)?;
    } else {
        fs::create_dir_all(&target).map_err(failed)?;
        for entry in fs::read_dir(path).map_err(failed)?.flatten() {
            if entry.path().is_file() {
                fs::copy(entry.path(), target.join(entry.file_name())).map_err(failed)?;
            }
        }
    }
    println!("{name} is in {}; workers that start now serve it", target.display());
    Ok(())
}
