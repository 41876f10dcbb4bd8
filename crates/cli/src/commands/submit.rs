//! `covey submit`.

use std::io::Write as _;

use covey_client::{Client, NewTask};
use covey_domain::{
    Error, ErrorKind, TaskId,
    event::{Content, Delta, Outcome, TaskEvent},
    log::Answer,
    task::TaskInput,
};
use futures::StreamExt as _;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  covey submit echo \"hello there\"\n  covey submit assistant \"Repeat: sun moon\" --detach"
)]
pub(crate) struct Args {
    /// Agent
    agent: String,
    /// What to ask
    message: String,
    /// Skill [default: the agent's]
    #[arg(long)]
    skill: Option<String>,
    /// Conversation to go on with
    #[arg(long)]
    context: Option<String>,
    /// Same id, same task
    #[arg(long)]
    message_id: Option<String>,
    /// Bound, milliseconds
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Print the task's id and leave
    #[arg(long)]
    detach: bool,
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let task = NewTask {
        agent: args.agent,
        skill: args.skill.unwrap_or_default(),
        input: TaskInput { content: vec![Content::Text(args.message)], ..Default::default() },
        context: args.context.unwrap_or_default(),
        message_id: args.message_id.unwrap_or_default(),
        timeout_ms: args.timeout_ms.unwrap_or(0),
        model: String::new(),
    };
    let made = client.submit(task).await?;
    if args.detach {
        println!("{}", made.task);
        return Ok(());
    }
    eprintln!("task {}", made.task);
    let id = TaskId::from(made.task.as_str());
    tokio::select! {
        result = show(&client, &id) => result,
        _ = tokio::signal::ctrl_c() => {
            client.cancel_task(&id, "interrupted at the terminal").await?;
            Err(Error::new(ErrorKind::Cancelled, "cancelled"))
        }
    }
}

/// Prints the answer while it is made.
pub(crate) async fn show(client: &Client, id: &TaskId) -> Result<(), Error> {
    let mut events = Box::pin(client.subscribe(id, 0).await?);
    let mut answer = Answer::default();
    while let Some(envelope) = events.next().await {
        let event = envelope?.event;
        answer.push(&event);
        match &event {
            TaskEvent::PartDelta { delta: Delta::Text(text), .. } => {
                print!("{text}");
                let _ = std::io::stdout().flush();
            }
            TaskEvent::PartDelta { delta: Delta::Data(value), .. } => println!("{value}"),
            TaskEvent::StepReset { .. } => eprintln!("\n(the worker was lost; trying again)"),
            _ => {}
        }
    }
    match &answer.outcome {
        Some(Outcome::Completed { .. }) => {
            if answer.text.is_empty() && answer.data.is_empty() {
                print!("{}", answer.display());
            }
            println!();
            Ok(())
        }
        Some(Outcome::Failed { error }) => Err(error.clone()),
        Some(Outcome::Rejected { reason }) => {
            Err(Error::new(ErrorKind::FailedPrecondition, format!("rejected: {reason}")))
        }
        Some(Outcome::Cancelled { reason, .. }) => {
            Err(Error::new(ErrorKind::Cancelled, format!("cancelled: {reason}")))
        }
        Some(Outcome::Interrupted { .. }) | None => Err(Error::unavailable("the stream ended before the task did")),
    }
}
