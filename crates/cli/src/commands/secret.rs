//! `covey secret`: what agents need and nobody else should read. A value comes from standard input or a file, never from the
//! command line, which every user of the machine can read.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
};

use covey_client::Client;
use covey_domain::{Error, caps, secret};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Set a secret, or set it anew: its value is read from standard input, or asked for on a terminal
    #[command(after_help = "Examples:\n  covey secret set OPENAI_API_KEY < key.txt\n  covey secret set SEARCH_KEY\n\n\
Agents, jobs, MCP servers, agents elsewhere and webhooks refer to it as secret://NAME. What runs already keeps the value that it \
was started with.")]
    Set {
        /// Its name: letters, digits, `_`, `-`, `.`
        name: String,
        /// Read the value from this file
        #[arg(long)]
        file: Option<PathBuf>,
        /// Workers may read it, for what their own settings refer to, like `api_key` of an upstream
        #[arg(long)]
        workers: bool,
    },
    /// List the names of secrets
    Ls {
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Take a secret away; what runs keeps what it was started with
    Rm {
        /// Its name
        name: String,
    },
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Set { name, file, workers } => {
            secret::check_name(&name)?;
            let value = read(&name, file)?;
            Client::connect_default().await?.set_secret(&name, &value, workers).await
        }
        Command::Ls { json } => {
            for found in Client::connect_default().await?.secrets().await? {
                if json {
                    let line =
                        serde_json::json!({"name": found.name, "workers": found.workers, "set_ms": found.set_ms});
                    outln!("{line}");
                } else {
                    let workers = if found.workers { " · workers" } else { "" };
                    outln!("{}{workers} · {} s ago", found.name, super::seconds_since(found.set_ms));
                }
            }
            Ok(())
        }
        Command::Rm { name } => Client::connect_default().await?.remove_secret(&name).await,
    }
}

/// The value, without the end of its last line.
fn read(name: &str, file: Option<PathBuf>) -> Result<String, Error> {
    let failed = |e: std::io::Error| Error::invalid(format!("failed to read the value: {e}"));
    let mut value = String::new();
    match file {
        Some(path) => value = std::fs::read_to_string(path).map_err(failed)?,
        None if std::io::stdin().is_terminal() => {
            err!("value of {name}: ");
            let _ = std::io::stderr().flush();
            value = unseen().map_err(failed)?;
            errln!();
        }
        None => {
            let bound = caps::SECRET_BYTES_MAX as u64 + 2;
            std::io::stdin().take(bound).read_to_string(&mut value).map_err(failed)?;
        }
    }
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    Ok(value)
}

/// A line that the terminal does not show.
fn unseen() -> std::io::Result<String> {
    let terminal = std::io::stdin();
    let before = tcgetattr(&terminal)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &quiet)?;
    let mut line = String::new();
    let read = terminal.read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    read.map(|_| line)
}
