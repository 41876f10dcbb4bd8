//! `covey status`, `covey agents`.

use std::collections::BTreeMap;

use covey_client::Client;
use covey_domain::{
    AgentKind, Error, NodeId,
    status::{ActorFilter, ActorStatus, ClusterStatus},
};
use futures::StreamExt as _;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey actors --agent Researcher --state pending")]
pub(crate) struct ActorsArgs {
    /// Only of this agent
    #[arg(long)]
    agent: Option<String>,
    /// Only in this state: pending, starting, live, moving, dead
    #[arg(long)]
    state: Option<String>,
    /// Only on this node, by name or id
    #[arg(long)]
    node: Option<String>,
    /// Print JSON, one actor a line
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct AgentsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Error> {
    outln!("{}", serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?);
    Ok(())
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let status = client.status().await?;
    if args.json {
        return print_json(&status);
    }
    outln!("head {} · version {} · up {} s", client.address(), status.version, status.uptime_s);
    for node in &status.nodes {
        if node.state == "dead" {
            outln!("node {} · dead · {} done · pid {}", node.name, node.tasks_done, node.pid);
            continue;
        }
        outln!(
            "node {} · {} · cpus {:.1}/{:.1} free · {} running, {} done · pid {}",
            node.name,
            node.state,
            node.free.cpu_milli as f64 / 1000.0,
            node.total.cpu_milli as f64 / 1000.0,
            node.tasks_running,
            node.tasks_done,
            node.pid
        );
        if !node.no_python.is_empty() {
            outln!("  no Python agents: {}", node.no_python);
        }
        for model in &node.models {
            outln!(
                "  model {} ({}, {}{})",
                model.name,
                model.family,
                model.task,
                if model.loaded { ", loaded" } else { "" }
            );
        }
    }
    let names = node_names(&status);
    for actor in status.actors.iter().filter(|a| a.state != "dead") {
        // Of one that runs well it would say why it was started again.
        let why = actor.why.as_deref().filter(|_| matches!(actor.state.as_str(), "stuck" | "moving"));
        outln!("actor {}{}", line(actor, &names), why.map(|why| format!(" · {why}")).unwrap_or_default());
    }
    let shown = status.actors.len() as u64;
    let all: u64 = status.actor_counts.values().sum();
    if all > shown {
        outln!("… {} more; `covey actors` lists all", all - shown);
    }
    let tasks: Vec<_> = status.tasks.iter().map(|(state, n)| format!("{n} {state}")).collect();
    outln!("tasks {}", if tasks.is_empty() { "none".to_owned() } else { tasks.join(", ") });
    for pending in &status.pending {
        outln!("pending {}: {}", pending.what, pending.why);
    }
    Ok(())
}

/// Names of nodes, by id.
fn node_names(status: &ClusterStatus) -> BTreeMap<NodeId, String> {
    status.nodes.iter().map(|node| (node.id.clone(), node.name.clone())).collect()
}

/// An actor in a line: what it is called, and on which node it is, or was.
fn line(actor: &ActorStatus, names: &BTreeMap<NodeId, String>) -> String {
    let name = actor.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let node = actor.node.as_ref().map(|node| names.get(node).map_or_else(|| node.to_string(), Clone::clone));
    let node = node.map(|node| format!(" · node {node}")).unwrap_or_default();
    format!("{}{name} · {} · {}{node} · restarts {}", actor.id, actor.shown_agent(), actor.state, actor.restarts)
}

pub(crate) async fn agents(args: AgentsArgs) -> Result<(), Error> {
    let agents = Client::connect_default().await?.agents().await?;
    if args.json {
        return print_json(&agents);
    }
    for agent in agents {
        let kind = match &agent.kind {
            AgentKind::Llm(_) => "llm",
            AgentKind::Python(_) => "python",
            AgentKind::Native { .. } => "native",
            AgentKind::A2a(_) => "a2a",
        };
        let skills: Vec<_> = agent.skills.iter().map(|s| s.id.as_str()).collect();
        outln!(
            "{} ({kind}) · {} · skills: {}",
            agent.name,
            agent.description.lines().next().unwrap_or(""),
            skills.join(", ")
        );
    }
    Ok(())
}

/// Actors as they come, with no bound on how many.
pub(crate) async fn actors(args: ActorsArgs) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let names = node_names(&client.status().await?);
    let mut node = args.node.unwrap_or_default();
    if let Some((id, _)) = names.iter().find(|(_, name)| **name == node) {
        node = id.to_string();
    }
    let (agent, state) = (args.agent.unwrap_or_default(), args.state.unwrap_or_default());
    let mut actors = Box::pin(client.actors(ActorFilter { agent, state, node, name: String::new() }));
    while let Some(actor) = actors.next().await {
        let actor = actor?;
        let shown = if args.json {
            serde_json::to_string(&actor).map_err(|e| Error::internal(e.to_string()))?
        } else {
            let why = actor.why.as_ref().map(|why| format!(" · {why}")).unwrap_or_default();
            format!("{}{why}", line(&actor, &names))
        };
        outln!("{shown}");
    }
    Ok(())
}
