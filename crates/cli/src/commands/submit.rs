//! `covey submit` and `covey answer`.

use std::{
    convert::Infallible,
    io::{BufRead as _, IsTerminal as _},
    time::Duration,
};

use covey_client::{Client, NewTask};
use covey_domain::{
    Error, ErrorKind, TaskId, TaskState,
    event::{Content, Delta, Outcome, TaskEvent},
    log::Answer,
    task::TaskInput,
};
use futures::StreamExt as _;

use super::question::Question;

/// How often it is looked why a task has not begun.
const WAITS_LOOK: Duration = Duration::from_secs(2);

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
    /// Print all that happens, an entry of the task's log in each line, as JSON, instead of the answer
    #[arg(long, conflicts_with = "detach")]
    events: bool,
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
    let parts = [Content::Text(args.message)];
    client.say(&task, &parts, &args.message_id).await?;
    if args.detach { Ok(()) } else { follow(&client, &task, after, Some(&parts)).await }
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let task = NewTask {
        agent: args.agent.clone(),
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
        result = async {
            if args.events { log(&client, &id).await } else { show(&client, &id, 0).await }
        } => result,
        never = say_why_it_waits(&client, &id, &args.agent) => match never {},
        _ = tokio::signal::ctrl_c() => {
            client.cancel_task(&id, "interrupted at the terminal").await?;
            Err(Error::new(ErrorKind::Cancelled, "cancelled"))
        }
    }
}

/// As long as a task has not begun, whoever looks on is told why, of each reason once.
async fn say_why_it_waits(client: &Client, id: &TaskId, agent: &str) -> Infallible {
    let (theirs, mut said) = (format!(" tasks of {agent}"), String::new());
    loop {
        tokio::time::sleep(WAITS_LOOK).await;
        // What fails here fails for the one who follows the task, too.
        match client.task(id).await {
            Ok(task) if task.state == TaskState::Submitted => {}
            _ => return std::future::pending().await,
        }
        let Ok(status) = client.status().await else { continue };
        let why = status.pending.into_iter().find(|pending| pending.what.ends_with(&theirs)).map(|pending| pending.why);
        if let Some(why) = why.filter(|why| *why != said) {
            errln!("(waits: {why})");
            said = why;
        }
    }
}

/// Prints the answer while it is made, from event `after` on. What the task asks is asked at the terminal.
pub(crate) async fn show(client: &Client, id: &TaskId, after: u64) -> Result<(), Error> {
    follow(client, id, after, None).await
}

/// The same after something was `said` to the task. Where that answered a question and did not fit, and nobody is at the
/// terminal to say something else, it ends with the reason.
async fn follow(client: &Client, id: &TaskId, after: u64, said: Option<&[Content]>) -> Result<(), Error> {
    let mut events = Box::pin(client.follow(id, after));
    let (mut answer, mut answered) = (Answer::default(), None);
    while let Some(envelope) = events.next().await {
        let event = envelope?.event;
        answer.push(&event);
        match &event {
            TaskEvent::PartDelta { delta: Delta::Text(text), .. } => {
                crate::out::answer(text);
            }
            TaskEvent::PartDelta { delta: Delta::Data(value), .. } => outln!("{value}"),
            TaskEvent::StepReset { .. } => errln!("\n(the worker was lost; trying again)"),
            TaskEvent::Steered { parts, answers: Some(question), .. } if said == Some(parts.as_slice()) => {
                answered = Some(question.clone());
            }
            TaskEvent::InterruptRaised { refused, .. } => {
                let question = Question::of(&event);
                let at_terminal = std::io::stdin().is_terminal();
                let ours = refused.as_ref().filter(|refused| answered.as_ref() == Some(&refused.question));
                if let (Some(refused), false) = (ours, at_terminal) {
                    return Err(not_taken(id, &refused.why, question.and_then(|question| question.takes())));
                }
                question.iter().for_each(ask);
                match at_terminal {
                    true => tell(client.clone(), id.clone()),
                    false => errln!("(answer with `covey answer {id} TEXT`)"),
                }
            }
            _ => {}
        }
    }
    ended(answer.outcome.as_ref())?;
    if answer.text.is_empty() && answer.data.is_empty() {
        crate::out::answer(&answer.display());
    }
    outln!();
    Ok(())
}

/// Prints the log of a task to its end, an entry in each line. What the task asks is answered elsewhere (`covey answer`).
async fn log(client: &Client, id: &TaskId) -> Result<(), Error> {
    let mut events = Box::pin(client.follow(id, 0));
    let mut outcome = None;
    while let Some(envelope) = events.next().await {
        let envelope = envelope?;
        // Entries were read from JSON, and are written so.
        let entry = serde_json::to_string(&envelope).unwrap_or_default();
        out!("{}\n", covey_domain::shown::plain_json(&entry));
        crate::out::flush();
        if let TaskEvent::Finished { outcome: how, .. } = &envelope.event {
            outcome = Some(how.clone());
        }
    }
    ended(outcome.as_ref())
}

/// How a task ended, where that is no error.
fn ended(outcome: Option<&Outcome>) -> Result<(), Error> {
    match outcome {
        Some(Outcome::Completed { .. }) => Ok(()),
        Some(Outcome::Failed { error }) => Err(error.clone()),
        Some(Outcome::Rejected { reason }) => {
            Err(Error::new(ErrorKind::FailedPrecondition, format!("rejected: {reason}")))
        }
        Some(Outcome::Cancelled { reason, .. }) => {
            Err(Error::new(ErrorKind::Cancelled, format!("cancelled: {reason}")))
        }
        None => Err(Error::unavailable("the stream ended before the task did")),
    }
}

/// The task asks the same again.
fn not_taken(id: &TaskId, why: &str, takes: Option<String>) -> Error {
    let takes = takes.map(|takes| format!("it takes {takes}; ")).unwrap_or_default();
    Error::invalid(format!("the answer was refused: {why}"))
        .hint(format!("{takes}the task still waits: `covey answer {id} TEXT`"))
}

/// Shows a question, beside the answer.
fn ask(question: &Question) {
    errln!("\n? {}", question.words());
    if let Some(refused) = &question.refused {
        errln!("  (refused: {})", refused.why);
    }
    question.details().iter().for_each(|detail| errln!("  {detail}"));
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
