//! `covey dead-letters`.

use covey_client::Client;
use covey_domain::Error;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey dead-letters --json")]
pub(crate) struct Args {
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    for letter in Client::connect_default().await?.dead_letters().await? {
        if args.json {
            let line = serde_json::json!({
                "at_ms": letter.at_ms, "agent": letter.agent, "actor": letter.actor, "task": letter.task,
                "method": letter.method, "bytes": letter.bytes,
                "attempts": letter.attempts, "error": letter.error,
            });
            outln!("{line}");
            continue;
        }
        let ago = super::seconds_since(letter.at_ms);
        let what = match letter.task.is_empty() {
            true => format!("call {}.{} ({} bytes) of {}", letter.agent, letter.method, letter.bytes, letter.actor),
            false => format!("task {} ({}.{})", letter.task, letter.agent, letter.method),
        };
        outln!("{ago} s ago · {what} · tried {} times · {}", letter.attempts, letter.error);
    }
    Ok(())
}
