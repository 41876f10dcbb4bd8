//! `covey submit` and `covey answer`.

use std::io::{BufRead as _, IsTerminal as _};

use covey_client::{Client, NewTask};
use covey_domain::{
    Error, ErrorKind, TaskId,
    event::{Choice, Content, Delta, InterruptKind, Outcome, TaskEvent},
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

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey answer 01JZ… \"the blue one\"")]
pub(crate) struct AnswerArgs {
    /// Task
    task: String,
    /// The answer to its oldest question, or a word to what it does
    message: String,
    /// Same id, said once
    #[arg(long, default_value = "")]
    message_id: String,
    /// Leave at once instead of showing what the task says from there on
    #[arg(long)]
    detach: bool,
}

/// Says something to a task, and shows what comes of it.
pub(crate) async fn answer(args: AnswerArgs) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let task = TaskId::from(args.task);
    let after = client.last_event(&task).await?;
    client.say(&task, &[Content::Text(args.message)], &args.message_id).await?;
    if args.detach { Ok(()) } else { show(&client, &task, after).await }
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
        outln!("{}", made.task);
        return Ok(());
    }
    errln!("task {}", made.task);
    let id = TaskId::from(made.task.as_str());
    tokio::select! {
        result = show(&client, &id, 0) => result,
        _ = tokio::signal::ctrl_c() => {
            client.cancel_task(&id, "interrupted at the terminal").await?;
            Err(Error::new(ErrorKind::Cancelled, "cancelled"))
        }
    }
}

/// Prints the answer while it is made, from event `after` on. What the task asks is asked at the terminal.
pub(crate) async fn show(client: &Client, id: &TaskId, after: u64) -> Result<(), Error> {
    let mut events = Box::pin(client.subscribe(id, after).await?);
    let mut answer = Answer::default();
    while let Some(envelope) = events.next().await {
        let event = envelope?.event;
        answer.push(&event);
        match &event {
            TaskEvent::PartDelta { delta: Delta::Text(text), .. } => {
                out!("{text}");
                crate::out::flush();
            }
            TaskEvent::PartDelta { delta: Delta::Data(value), .. } => outln!("{value}"),
            TaskEvent::StepReset { .. } => errln!("\n(the worker was lost; trying again)"),
            TaskEvent::InterruptRaised { kind, prompt, options, .. } => {
                ask(kind, prompt, options);
                match std::io::stdin().is_terminal() {
                    true => tell(client.clone(), id.clone()),
                    false => errln!("(answer with `covey answer {id} TEXT`)"),
                }
            }
            _ => {}
        }
    }
    match &answer.outcome {
        Some(Outcome::Completed { .. }) => {
            if answer.text.is_empty() && answer.data.is_empty() {
                out!("{}", answer.display());
            }
            outln!();
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

/// Shows a question, beside the answer.
fn ask(kind: &InterruptKind, prompt: &str, options: &[Choice]) {
    errln!("\n? {prompt}");
    if let InterruptKind::Auth { url: Some(url) } = kind {
        errln!("  {url}");
    }
    for option in options {
        match option.id == option.label {
            true => errln!("  {}", option.id),
            false => errln!("  {} · {}", option.id, option.label),
        }
    }
}

/// Takes a line from the terminal to the task.
fn tell(client: Client, task: TaskId) {
    let runtime = tokio::runtime::Handle::current();
    // A thread that nobody waits for: somebody else may answer first, and the line never come.
    std::thread::spawn(move || {
        let mut line = String::new();
        if !matches!(std::io::stdin().lock().read_line(&mut line), Ok(1..)) {
            return;
        }
        let said = runtime.block_on(client.say(&task, &[Content::Text(line.trim().to_owned())], ""));
        if let Err(error) = said {
            errln!("(not said: {})", error.message);
        }
    });
}
