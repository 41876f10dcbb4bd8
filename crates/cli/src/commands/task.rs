//! `covey task`: durable tasks of any agent, listed, shown and ended.

use covey_client::Client;
use covey_domain::{
    Error, ErrorKind, TaskId, TaskRecord, TaskState,
    event::{Outcome, TaskEvent},
    log::Answer,
};
use futures::StreamExt as _;

use super::question::Question;

/// Characters of a request that a listing shows.
const SHOWN_MAX: usize = 60;

#[derive(clap::Subcommand)]
#[command(
    after_help = "Examples:\n  covey task ls --agent Researcher --state working\n  covey task show 01JZ…\n  covey task cancel 01JZ…"
)]
pub(crate) enum Command {
    /// List tasks, newest first
    Ls(Ls),
    /// Show a task: its state, why it waits, what it asks, what it has answered so far
    Show(Show),
    /// End a task
    Cancel(Cancel),
}

#[derive(clap::Args)]
pub(crate) struct Ls {
    /// Only of this agent
    #[arg(long)]
    agent: Option<String>,
    /// Only in this state: submitted, working, input-required, auth-required, completed, failed, canceled, rejected
    #[arg(long)]
    state: Option<String>,
    /// Most tasks shown
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Only those that are older than this task
    #[arg(long, value_name = "TASK")]
    before: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Show {
    /// The task
    task: String,
    /// Print its record and its events so far as JSON, one a line
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Cancel {
    /// The task
    task: String,
    /// What its answer says of it
    #[arg(long, default_value = "cancelled with `covey task cancel`")]
    reason: String,
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    match command {
        Command::Ls(args) => list(&client, &args).await,
        Command::Show(args) => show(&client, &args).await,
        Command::Cancel(args) => {
            let id = record(&client, &args.task).await?.id;
            line(&client.cancel_task(&id, &args.reason).await?);
            Ok(())
        }
    }
}

async fn record(client: &Client, id: &str) -> Result<TaskRecord, Error> {
    client.task(&TaskId::from(id)).await.map_err(|error| match error.kind {
        ErrorKind::NotFound => error.hint("`covey task ls` lists them"),
        _ => error,
    })
}

async fn list(client: &Client, args: &Ls) -> Result<(), Error> {
    let state = args.state.as_deref().unwrap_or_default();
    if !state.is_empty() && TaskState::named(state).is_none() {
        return Err(Error::invalid(format!("there is no state `{state}`")).hint("`covey task ls --help` names them"));
    }
    let (agent, before) = (args.agent.as_deref().unwrap_or_default(), args.before.as_deref().unwrap_or_default());
    let tasks = client.tasks(agent, state, before, args.limit).await?;
    if args.json {
        return super::status::print_json(&tasks);
    }
    tasks.iter().for_each(line);
    if tasks.len() as u32 == args.limit
        && let Some(last) = tasks.last()
    {
        errln!("… there may be more: `covey task ls --before {}`", last.id);
    }
    Ok(())
}

fn line(task: &TaskRecord) {
    let ago = super::seconds_since(task.created_ms);
    let (text, skill) = (task.input.text(), if task.skill.is_empty() { "" } else { "." });
    let first = text.lines().next().unwrap_or_default();
    let cut: String = first.chars().take(SHOWN_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    let name = format!("{}{skill}{}", task.agent, task.skill);
    let said = if cut.is_empty() { String::new() } else { format!(" · {cut}{more}") };
    outln!("{} · {name} · {} · {ago} s ago{said}", task.id, task.state.name());
}

async fn show(client: &Client, args: &Show) -> Result<(), Error> {
    let task = record(client, &args.task).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&task).map_err(|e| Error::internal(e.to_string()))?);
    } else {
        line(&task);
        outln!("asked by {} over {} · attempt {} · context {}", task.caller, task.protocol, task.attempt, task.context);
    }
    let (mut answer, mut asked) = (Answer::default(), Vec::<Question>::new());
    // Of one that goes on, what there is now; the events of one that is over end by themselves.
    let last = if task.state.is_terminal() { u64::MAX } else { client.last_event(&task.id).await? };
    let mut events = Box::pin(client.follow(&task.id, 0));
    while last > 0
        && let Some(envelope) = events.next().await
    {
        let envelope = envelope?;
        if args.json {
            outln!("{}", serde_json::to_string(&envelope).map_err(|e| Error::internal(e.to_string()))?);
        }
        match &envelope.event {
            TaskEvent::InterruptRaised { .. } => asked.extend(Question::of(&envelope.event)),
            TaskEvent::InterruptResolved { id, .. } => asked.retain(|question| question.id != *id),
            TaskEvent::StepReset { .. } => asked.clear(),
            _ => {}
        }
        answer.push(&envelope.event);
        if envelope.seq >= last {
            break;
        }
    }
    if args.json {
        return Ok(());
    }
    if task.state == TaskState::Submitted
        && let Some(why) = why_queued(client, &task).await?
    {
        outln!("waits: {why}");
    }
    if !task.state.is_terminal() {
        for question in &asked {
            outln!("asks: {}", question.words());
            question.details().iter().for_each(|detail| outln!("  {detail}"));
            if let Some(refused) = &question.refused {
                outln!("  the answer before was refused: {}", refused.why);
            }
            outln!("  (answer with `covey answer {} TEXT`)", task.id);
        }
    }
    match &answer.outcome {
        Some(Outcome::Failed { error }) => outln!("failed: {}", error.message),
        Some(Outcome::Rejected { reason }) => outln!("rejected: {reason}"),
        Some(Outcome::Cancelled { reason, .. }) => outln!("cancelled: {reason}"),
        Some(Outcome::Completed { .. }) | None => {}
    }
    let said = answer.display();
    if !said.is_empty() {
        outln!("{said}");
    }
    Ok(())
}

/// Why tasks of its agent are not given to an actor.
async fn why_queued(client: &Client, task: &TaskRecord) -> Result<Option<String>, Error> {
    let of_agent = format!(" tasks of {}", task.agent);
    let pending = client.status().await?.pending;
    Ok(pending.into_iter().find(|pending| pending.what.ends_with(&of_agent)).map(|pending| pending.why))
}
