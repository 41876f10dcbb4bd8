//! `covey drain`.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use covey_client::Client;
use covey_domain::{
    Error, ErrorKind,
    status::{ActorFilter, ActorStatus},
};
use futures::TryStreamExt as _;

/// How often the node is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Names of actors or agents in one line, at most.
const NAMED_MAX: usize = 5;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey drain worker-1")]
pub(crate) struct Args {
    /// Id or name of the node
    node: String,
    /// Calls under way have so many seconds; then they end, and their callers are told so. Durable tasks are let finish,
    /// however long they take
    #[arg(long, default_value_t = 30)]
    grace_s: u64,
    /// Give up waiting after this many seconds
    #[arg(long, default_value_t = 60)]
    timeout_s: u64,
    /// Do not wait until it is empty
    #[arg(long)]
    no_wait: bool,
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let node = client.drain(&args.node, Some(Duration::from_secs(args.grace_s))).await?;
    if args.no_wait {
        return Ok(());
    }
    let (begin, mut grace) = (Instant::now(), Some(Duration::from_secs(args.grace_s)));
    let mut before = Left::default();
    loop {
        let left = Left::look(&client, &node).await?;
        if grace.is_some_and(|grace| begin.elapsed() >= grace) {
            grace = None;
            if !before.moving.is_empty() {
                let whose = listed(&before.moving);
                errln!("{} s are over: calls that still ran are ended, of {whose}", args.grace_s);
            }
        }
        if left.is_empty() {
            outln!("{} is empty", args.node);
            return Ok(());
        }
        if left != before {
            errln!("waits for {}", left.shown(grace.map(|_| args.grace_s)));
            before = left;
        }
        if begin.elapsed() > Duration::from_secs(args.timeout_s) {
            let text = format!("`{}` is not empty after {} s: {}", args.node, args.timeout_s, before.shown(None));
            let hint = match before.tasks {
                0 => "it goes on; `covey status` shows it",
                _ => "it goes on; `covey task ls --state working` shows tasks, `covey task cancel TASK` ends one",
            };
            return Err(Error::new(ErrorKind::DeadlineExceeded, text).hint(hint));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is still on a node that is being emptied.
#[derive(Default, PartialEq)]
struct Left {
    /// All of it, as the head counts it.
    actors: u64,
    /// Durable tasks that run.
    tasks: u64,
    /// Agents of actors that run tasks.
    agents: BTreeSet<String>,
    /// Actors that finish their calls and move then.
    moving: BTreeSet<String>,
}

impl Left {
    async fn look(client: &Client, node: &str) -> Result<Self, Error> {
        let status = client.status().await?;
        let Some(known) = status.nodes.iter().find(|n| n.id.as_str() == node && n.actors > 0) else {
            return Ok(Self::default());
        };
        let filter = ActorFilter { node: node.to_owned(), ..ActorFilter::default() };
        let on_it: Vec<ActorStatus> = client.actors(filter).try_collect().await?;
        let (moving, others): (Vec<_>, Vec<_>) = on_it.into_iter().partition(|actor| actor.state == "moving");
        Ok(Self {
            actors: known.actors,
            tasks: known.tasks_running,
            agents: others.into_iter().map(|actor| actor.shown_agent()).collect(),
            moving: moving.iter().map(shown).collect(),
        })
    }

    fn is_empty(&self) -> bool {
        self.actors == 0
    }

    /// In words; with `grace_s` while calls still have time.
    fn shown(&self, grace_s: Option<u64>) -> String {
        let mut all = Vec::new();
        if !self.moving.is_empty() {
            let time = grace_s.map(|s| format!("; their calls have {s} s")).unwrap_or_default();
            all.push(format!("{} to move: {}{time}", counted(self.moving.len() as u64, "actor"), listed(&self.moving)));
        }
        if self.tasks > 0 {
            let tasks = counted(self.tasks, "durable task");
            all.push(format!("{tasks} of {}, without a bound of time", listed(&self.agents)));
        }
        if all.is_empty() {
            all.push(counted(self.actors, "actor"));
        }
        all.join("; ")
    }
}

/// An actor by its name, or its id.
fn shown(actor: &ActorStatus) -> String {
    actor.name.clone().unwrap_or_else(|| format!("{} ({})", actor.id, actor.shown_agent()))
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The first of them, and how many more there are.
fn listed(names: &BTreeSet<String>) -> String {
    let mut shown: Vec<_> = names.iter().take(NAMED_MAX).cloned().collect();
    if names.len() > NAMED_MAX {
        shown.push(format!("{} more", names.len() - NAMED_MAX));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_said_in_words() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let both = Left { actors: 3, tasks: 1, agents: names(&["Report"]), moving: names(&["a", "b"]) };
        let words = "2 actors to move: a, b; their calls have 3 s; 1 durable task of Report, without a bound of time";
        assert_eq!(both.shown(Some(3)), words);
        let many = Left { actors: 7, moving: names(&["a", "b", "c", "d", "e", "f", "g"]), ..Left::default() };
        assert_eq!(many.shown(None), "7 actors to move: a, b, c, d, e, 2 more");
        assert_eq!(Left { actors: 1, ..Left::default() }.shown(None), "1 actor");
    }
}
