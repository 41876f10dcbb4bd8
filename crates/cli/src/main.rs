//! `covey`: one binary for everything. Each command is a file in `commands`.

// They panic when nobody reads what is written; `out` has what does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod out;

mod agent_file;
mod commands;
mod tiny_model;

use clap::{Parser, Subcommand};
use covey_domain::{Error, ErrorKind};

/// A request is many small pieces that one thread makes and another forgets, which the C library's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A cluster of agent actors, in one program.
#[derive(Parser)]
#[command(
    name = "covey",
    version,
    about = "A cluster of agent actors: start a head and workers, submit agents, serve local models.",
    after_help = "Examples:
  covey up                              head and worker on this machine
  covey head --port 7420                a head alone
  covey token | covey worker --join -   a worker for it
  covey chat                            talk to the default agent
  covey submit echo \"hello there\"       run a task and watch its answer
  covey status                          what runs where

Exit codes: 0 well · 1 the agent failed · 64 wrong input · 66 not found · 69 no head or worker · 70 internal
  73 exists or port taken · 75 try later · 77 not allowed · 130 cancelled"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "made once, when the process starts")]
enum Command {
    /// Start a head and a worker in one process, for a laptop
    Up(commands::up::Args),
    /// Start a head
    Head(commands::up::HeadArgs),
    /// Start a worker that joins a head
    Worker(commands::up::WorkerOnly),
    /// Show nodes, actors, tasks, and why something waits
    Status(commands::status::Args),
    /// Watch nodes, rates, memory, and what waits
    Top(commands::top::Args),
    /// List actors, all of them
    Actors(commands::status::ActorsArgs),
    /// Empty a node: its actors move to others, it takes nothing new
    Drain(commands::drain::Args),
    /// Show what is not tried again: calls that ended their actor's process time after time, tasks out of attempts
    DeadLetters(commands::dead_letters::Args),
    /// Show what a Python actor's process prints
    Logs(commands::logs::Args),
    /// Show the Python stacks of an actor's process, also when it hangs
    Stack(commands::logs::StackArgs),
    /// List agents
    Agents(commands::status::AgentsArgs),
    /// Run a task on an agent and stream its answer
    Submit(commands::submit::Args),
    /// Say something to a task that runs: the answer to its question, or a word
    Answer(commands::submit::AnswerArgs),
    /// Durable tasks of any agent: ls, show, cancel
    #[command(subcommand)]
    Task(commands::task::Command),
    /// Talk to an agent
    Chat(commands::chat::Args),
    /// Run commands on the cluster: submit, ls, logs, status, stop
    #[command(subcommand)]
    Job(commands::job::Command),
    #[command(hide = true)]
    Guard(commands::guard::Args),
    /// Print the join token, or the admin key
    Token(commands::token::Args),
    /// Give keys to callers that see agents and their own tasks, and nothing else
    #[command(subcommand)]
    Key(commands::key::Command),
    /// Keep what agents need and nobody else should read: they refer to it as secret://NAME
    #[command(subcommand)]
    Secret(commands::secret::Command),
    /// List models, add one to the models folder, bring one into memory or out of it
    #[command(subcommand)]
    Model(commands::model::Command),
    /// Look at this machine and at what Covey keeps, and say what is wrong
    Doctor(commands::doctor::Args),
    /// Copy the head's store, keys and files while it runs
    Backup(commands::upkeep::BackupArgs),
    /// Make a head's folder of a backup
    Restore(commands::upkeep::RestoreArgs),
    /// Measure
    #[command(subcommand)]
    Bench(commands::bench::Command),
}

fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return misread(&told),
    };
    if let Command::Guard(args) = &cli.command {
        commands::guard::run(args);
    }
    let serving = matches!(cli.command, Command::Up(_) | Command::Head(_) | Command::Worker(_));
    if serving {
        out::serves();
        // Whatever is written is its user's alone; processes of agents have the usual mask again.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        files();
    }
    covey_node::telemetry::init(if serving { "info" } else { "error" });
    // Half of the cores, but two where there are two: agents' code and models have threads and processes of their own. A
    // second thread costs a request that is alone a tenth, and lets a loaded head do a quarter more.
    let threads = std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).max(n.get().min(2)));
    let threads = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(threads);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            errln!("error: failed to start the runtime: {error}");
            return std::process::ExitCode::from(70);
        }
    };
    let service = match cli.command {
        Command::Up(_) => "covey",
        Command::Head(_) => "covey-head",
        Command::Worker(_) => "covey-worker",
        _ => "covey-cli",
    };
    let result = runtime.block_on(async {
        covey_trace::init(service).map_err(Error::invalid)?;
        match cli.command {
            Command::Up(args) => commands::up::up(args).await,
            Command::Head(args) => commands::up::head(args).await,
            Command::Worker(args) => commands::up::worker(args).await,
            Command::Status(args) => commands::status::run(args).await,
            Command::Top(args) => commands::top::run(args).await,
            Command::Actors(args) => commands::status::actors(args).await,
            Command::Drain(args) => commands::drain::run(args).await,
            Command::DeadLetters(args) => commands::dead_letters::run(args).await,
            Command::Logs(args) => commands::logs::logs(args).await,
            Command::Stack(args) => commands::logs::stack(args).await,
            Command::Agents(args) => commands::status::agents(args).await,
            Command::Submit(args) => commands::submit::run(args).await,
            Command::Answer(args) => commands::submit::answer(args).await,
            Command::Task(command) => commands::task::run(command).await,
            Command::Chat(args) => commands::chat::run(args).await,
            Command::Job(command) => commands::job::run(command).await,
            Command::Guard(args) => commands::guard::run(&args),
            Command::Doctor(args) => commands::doctor::run(args).await,
            Command::Token(args) => commands::token::run(&args).await,
            Command::Key(command) => commands::key::run(command).await,
            Command::Secret(command) => commands::secret::run(command).await,
            Command::Model(command) => commands::model::run(command).await,
            Command::Backup(args) => commands::upkeep::backup(args).await,
            Command::Restore(args) => commands::upkeep::restore(args).await,
            Command::Bench(command) => commands::bench::run(command).await,
        }
    });
    covey_trace::flush();
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            std::process::ExitCode::from(error.kind.faces().exit)
        }
    }
}

/// What clap says instead of a command: help and version that were asked for, or what is wrong. Its own exit code for that, 2, is
/// none of ours.
fn misread(told: &clap::Error) -> std::process::ExitCode {
    // Where nobody reads it, nobody is told.
    let _ = told.print();
    if told.use_stderr() {
        std::process::ExitCode::from(ErrorKind::InvalidArgument.faces().exit)
    } else {
        std::process::ExitCode::SUCCESS
    }
}

/// As many files as this process may have: each client and each process of agents takes some.
fn files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        errln!("note: this process has {:?} files, and not more: {error}", limit.current);
    }
}

fn report(error: &Error) {
    errln!("error: {}", error.message);
    if let Some(hint) = &error.hint {
        errln!("  hint: {hint}");
    }
}
