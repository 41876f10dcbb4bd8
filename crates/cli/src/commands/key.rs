//! `covey key`: callers that do not own the cluster.

use covey_client::Client;
use covey_domain::Error;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a key for a caller of agents, and print it: this once
    #[command(after_help = "Example:\n  covey key add alice --agents echo,painter")]
    Add {
        /// The caller's name; its tasks are seen under no other
        caller: String,
        /// Agents that are there for it [default: all]
        #[arg(long, value_delimiter = ',')]
        agents: Vec<String>,
        /// The OpenAI API is there for it too
        #[arg(long)]
        models: bool,
    },
    /// List callers
    Ls {
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Let a caller's key open nothing any more; its tasks stay
    Rm {
        /// The caller's name
        caller: String,
    },
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    match command {
        Command::Add { caller, agents, models } => {
            let known = client.agents().await?;
            if let Some(missing) = agents.iter().find(|name| !known.iter().any(|a| a.name.as_str() == name.as_str())) {
                eprintln!("(there is no agent `{missing}` yet)");
            }
            println!("{}", client.add_key(&caller, agents, models).await?);
        }
        Command::Ls { json } => {
            for key in client.keys().await? {
                if json {
                    let (caller, agents, models, made_ms) = (key.caller, key.agents, key.models, key.made_ms);
                    println!(
                        "{}",
                        serde_json::json!({"caller": caller, "agents": agents, "models": models, "made_ms": made_ms})
                    );
                    continue;
                }
                let agents = if key.agents.is_empty() { "all agents".to_owned() } else { key.agents.join(", ") };
                let models = if key.models { " · models" } else { "" };
                println!("{} · {agents}{models} · {} s ago", key.caller, super::seconds_since(key.made_ms));
            }
        }
        Command::Rm { caller } => client.remove_key(&caller).await?,
    }
    Ok(())
}
