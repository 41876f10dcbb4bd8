//! `covey job`: commands that run on the cluster and survive the terminal they came from.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use covey_actor_runtime::JobSpec;
use covey_client::{Client, NewTask};
use covey_domain::{
    Digest, Error, ErrorKind, Isolation, TaskId, TaskRecord,
    agent::{is_job, job_agent},
    event::{Content, Delta, Outcome, TaskEvent},
    task::TaskInput,
};
use futures::StreamExt as _;

/// Folders that are not shipped.
const SKIPPED: [&str; 11] = [
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "venv",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "node_modules",
    ".ipynb_checkpoints",
];

#[derive(clap::Subcommand)]
#[command(after_help = "Example:\n  covey job submit --working-dir . -- python script.py")]
pub(crate) enum Command {
    /// Run a command on the cluster and follow what it prints; it goes on when you leave
    Submit(Submit),
    /// List jobs, newest first
    Ls(Ls),
    /// Show what a job printed
    Logs(Logs),
    /// Show a job's state
    Status(One),
    /// End a job: SIGTERM, and SIGKILL five seconds later
    Stop(One),
}

#[derive(clap::Args)]
pub(crate) struct Submit {
    /// Folder that is shipped and in which the command runs
    #[arg(long)]
    working_dir: Option<PathBuf>,
    /// A variable, NAME=value; `secret://NAME` in the value is a secret of the cluster; may be given again
    #[arg(long = "env", value_parser = super::up::label)]
    env: Vec<(String, String)>,
    /// A package that pip installs for it; may be given again
    #[arg(long)]
    pip: Vec<String>,
    /// What its processes are kept from, beyond what the worker says: none, default (files of others, other processes), strict
    /// (the network too, and with it the cluster)
    #[arg(long)]
    isolation: Option<Isolation>,
    /// Times it is run again when its worker is lost
    #[arg(long, default_value_t = 0)]
    retries: u32,
    /// End it after this many seconds
    #[arg(long)]
    timeout_s: Option<u64>,
    /// Same id, same job: submitting again finds the one there is
    #[arg(long)]
    id: Option<String>,
    /// Print the job's id and leave
    #[arg(long)]
    detach: bool,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct Ls {
    /// Only jobs in this state: submitted, working, completed, failed, canceled
    #[arg(long)]
    state: Option<String>,
    /// Most jobs shown
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Logs {
    /// The job
    job: String,
    /// Go on until the job ends, and end as it does
    #[arg(long, short)]
    follow: bool,
}

#[derive(clap::Args)]
pub(crate) struct One {
    /// The job
    job: String,
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    match command {
        Command::Submit(args) => submit(&client, args).await,
        Command::Ls(args) => list(&client, &args).await,
        Command::Logs(args) => logs(&client, &job(&client, &args.job).await?.id, args.follow).await,
        Command::Status(args) => {
            line(&job(&client, &args.job).await?);
            Ok(())
        }
        Command::Stop(args) => {
            let id = job(&client, &args.job).await?.id;
            line(&client.cancel_task(&id, "stopped with `covey job stop`").await?);
            Ok(())
        }
    }
}

/// Whether a variable of this name usually holds a secret.
fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["KEY", "TOKEN", "SECRET", "PASSWORD"].iter().any(|end| name.ends_with(end))
}

/// A job by id; other tasks are none.
async fn job(client: &Client, id: &str) -> Result<TaskRecord, Error> {
    let missing = || Error::not_found("job", id).hint("`covey job ls` lists them");
    let record =
        client.task(&id.into()).await.map_err(|e| if e.kind == ErrorKind::NotFound { missing() } else { e })?;
    if is_job(record.agent.as_str()) { Ok(record) } else { Err(missing()) }
}

async fn submit(client: &Client, args: Submit) -> Result<(), Error> {
    let dir = match &args.working_dir {
        Some(folder) => Some(ship(client, folder).await?),
        None => None,
    };
    let shown = args.command.join(" ");
    let env: BTreeMap<_, _> = args.env.into_iter().collect();
    // They are kept with the task too.
    let bare = |(name, value): (&String, &String)| looks_secret(name) && covey_domain::secret::names(value).is_empty();
    if let Some((name, _)) = env.iter().find(|(name, value)| bare((name, value))) {
        errln!(
            "warning: the value of {name} is in the argument list and in the job's record; `covey secret set` keeps secrets"
        );
    }
    let spec = JobSpec { command: args.command, env, dir, pip: args.pip, retries: args.retries };
    let task = NewTask {
        agent: job_agent(args.isolation),
        skill: "run".to_owned(),
        input: TaskInput {
            content: vec![Content::Text(shown)],
            call: Some(covey_client::call_of(&spec)),
            ..TaskInput::default()
        },
        context: String::new(),
        message_id: args.id.unwrap_or_default(),
        timeout_ms: args.timeout_s.unwrap_or(0) * 1000,
        model: String::new(),
    };
    let id = TaskId::from(client.submit(task).await?.task);
    if args.detach {
        outln!("{id}");
        return Ok(());
    }
    errln!("job {id}");
    tokio::select! {
        result = logs(client, &id, true) => result,
        _ = tokio::signal::ctrl_c() => {
            errln!("\nthe job goes on: `covey job logs -f {id}`, `covey job stop {id}`");
            Ok(())
        }
    }
}

async fn list(client: &Client, args: &Ls) -> Result<(), Error> {
    let state = args.state.as_deref().unwrap_or_default();
    let mut jobs = Vec::new();
    for isolation in Isolation::ALL.into_iter().map(Some).chain([None]) {
        jobs.extend(client.tasks(&job_agent(isolation), state, "", args.limit).await?);
    }
    // Newest first, as each of the lists is.
    jobs.sort_by(|one, other| (other.created_ms, &other.id).cmp(&(one.created_ms, &one.id)));
    jobs.truncate(args.limit as usize);
    if args.json {
        return super::status::print_json(&jobs);
    }
    jobs.iter().for_each(line);
    Ok(())
}

fn line(job: &TaskRecord) {
    let ago = super::seconds_since(job.created_ms);
    outln!("{} · {} · {ago} s ago · {}", job.id, job.state.name(), job.input.text());
}

/// Prints what a job printed; with `follow` to its end, and ends as it did.
async fn logs(client: &Client, id: &TaskId, follow: bool) -> Result<(), Error> {
    // Of one that runs, what there is now; the events of one that is over end by themselves.
    let over = follow || client.task(id).await?.state.is_terminal();
    let last = if over { u64::MAX } else { client.last_event(id).await? };
    let mut events = Box::pin(client.follow(id, 0));
    while last > 0
        && let Some(envelope) = events.next().await
    {
        let envelope = envelope?;
        match envelope.event {
            TaskEvent::PartDelta { delta: Delta::Text(text), .. } => crate::out::bytes(text.as_bytes()),
            TaskEvent::StepReset { .. } => errln!("(the worker was lost)"),
            TaskEvent::Finished { outcome, .. } if follow => {
                return match outcome {
                    Outcome::Completed { .. } => Ok(()),
                    Outcome::Failed { error } => Err(error),
                    Outcome::Rejected { reason } => Err(Error::new(ErrorKind::FailedPrecondition, reason)),
                    Outcome::Cancelled { reason, .. } => {
                        Err(Error::new(ErrorKind::Cancelled, format!("stopped: {reason}")))
                    }
                };
            }
            _ => {}
        }
        if envelope.seq >= last {
            break;
        }
    }
    Ok(())
}

/// Brings a folder to the head as a zip that is the same for the same contents.
async fn ship(client: &Client, folder: &Path) -> Result<Digest, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::invalid(format!("failed to pack `{}`: {e}", folder.display()));
    let mut paths = Vec::new();
    walk(folder, &mut paths).map_err(|e| failed(&e))?;
    paths.sort();
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for path in paths {
        let name = path.strip_prefix(folder).map_err(|e| failed(&e))?.display().to_string();
        let mode = std::fs::metadata(&path).map_err(|e| failed(&e))?.permissions().mode() & 0o777;
        let options = zip::write::SimpleFileOptions::default()
            .unix_permissions(mode)
            .last_modified_time(zip::DateTime::default())
            .compression_method(zip::CompressionMethod::Deflated);
        zip.start_file(name, options).map_err(|e| failed(&e))?;
        zip.write_all(&std::fs::read(&path).map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    }
    let body = zip.finish().map_err(|e| failed(&e))?.into_inner();
    let digest = Digest::of(&body);
    client.put_blob(digest.as_str(), body).await?;
    Ok(digest)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        match entry.path() {
            _ if skipped => {}
            path if path.is_dir() => walk(&path, found)?,
            path if path.is_file() => found.push(path),
            _ => {}
        }
    }
    Ok(())
}
