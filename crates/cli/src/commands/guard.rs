//! `covey guard`: stands between a worker and the code that it starts, puts a sandbox on, and becomes that code.

use std::os::unix::process::CommandExt as _;

/// Not for people: workers start processes with it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the process may reach: a policy as JSON
    #[arg(long)]
    policy: Option<String>,
    /// It ends when its parent does
    #[arg(long)]
    with_parent: bool,
    /// Only finds out whether there could be namespaces
    #[arg(long)]
    probe: bool,
    #[arg(last = true, required_unless_present = "probe")]
    command: Vec<String>,
}

/// Runs before there are threads: a sandbox is put on one.
pub(crate) fn run(args: &Args) -> ! {
    if args.probe {
        std::process::exit(i32::from(!covey_sandbox::can_separate()));
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if args.with_parent {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    }
    let mut command = std::process::Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    if let Some(policy) = &args.policy {
        let policy = serde_json::from_str(policy).map_err(|e| e.to_string());
        match policy.and_then(|policy| covey_sandbox::enter(&policy)) {
            Ok(temporary) => {
                command.envs(temporary.map(|folder| ("TMPDIR", folder)));
            }
            Err(error) => {
                errln!(
                    "error: failed to isolate `{}`: {error}; `covey doctor` says what this machine can do",
                    args.command[0]
                );
                std::process::exit(126);
            }
        }
    }
    let error = command.exec();
    errln!("error: failed to run `{}`: {error}", args.command[0]);
    // As a shell says it.
    std::process::exit(127)
}
