//! `covey key`: callers that do not own the cluster.

use covey_client::Client;
use covey_domain::Error;
use covey_proto::v1::AddKeyRequest;

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
        /// It opens nothing after this time, like 30m, 12h, 90d [default: until it is removed]
        #[arg(long = "for", value_name = "TIME", value_parser = super::duration_ms)]
        for_ms: Option<u64>,
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
    /// Make one of the cluster's own secrets anew; the old one opens nothing any more
    Rotate {
        /// Which one: admin, join (and all join tokens), or workers (what workers and jobs were given; workers come back by
        /// their join token)
        #[arg(value_parser = ["admin", "join", "workers"])]
        what: String,
    },
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    match command {
        Command::Add { caller, agents, models, for_ms } => {
            let known = client.agents().await?;
            if let Some(missing) = agents.iter().find(|name| !known.iter().any(|a| a.name.as_str() == name.as_str())) {
                errln!("(there is no agent `{missing}` yet)");
            }
            let ask = AddKeyRequest { caller, agents, models, for_ms: for_ms.unwrap_or(0) };
            outln!("{}", client.add_key(ask).await?);
        }
        Command::Ls { json } => {
            for key in client.keys().await? {
                if json {
                    let until_ms = (key.until_ms > 0).then_some(key.until_ms);
                    let line = serde_json::json!({
                        "caller": key.caller, "agents": key.agents, "models": key.models, "made_ms": key.made_ms,
                        "until_ms": until_ms,
                    });
                    outln!("{line}");
                    continue;
                }
                let agents = if key.agents.is_empty() { "all agents".to_owned() } else { key.agents.join(", ") };
                let models = if key.models { " · models" } else { "" };
                let until = match key.until_ms {
                    0 => String::new(),
                    until if super::seconds_since(until) > 0 => " · its time is over".to_owned(),
                    until => format!(" · for {} s", super::seconds_until(until)),
                };
                outln!("{} · {agents}{models} · {} s ago{until}", key.caller, super::seconds_since(key.made_ms));
            }
        }
        Command::Rm { caller } => client.remove_key(&caller).await?,
        Command::Rotate { what } => match client.rotate_key(&what).await?.as_str() {
            "" => {
                errln!(
                    "(workers come back with the join token that they were started with, and are given new credentials;"
                );
                errln!(" one whose token was rotated since, or was for one use, ends: start it again with a new one)");
            }
            key if what == "join" => {
                outln!("{key}");
                errln!(
                    "(workers that are connected go on; each that is to come back after `covey key rotate workers` must be"
                );
                errln!(" started again with this token first)");
            }
            key => outln!("{key}"),
        },
    }
    Ok(())
}
