//! `covey drain`.

use std::time::{Duration, Instant};

use covey_client::Client;
use covey_domain::{Error, ErrorKind};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey drain worker-1")]
pub(crate) struct Args {
    /// Id or name of the node
    node: String,
    /// Calls under way have so many seconds; then they end, and their callers are told so
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
    let begin = Instant::now();
    loop {
        let status = client.status().await?;
        let left = status.nodes.iter().find(|n| n.id.as_str() == node).map_or(0, |n| n.actors);
        if left == 0 {
            outln!("{} is empty", args.node);
            return Ok(());
        }
        if begin.elapsed() > Duration::from_secs(args.timeout_s) {
            let text = format!("{left} actors are still on `{}` after {} s", args.node, args.timeout_s);
            return Err(Error::new(ErrorKind::DeadlineExceeded, text).hint("it goes on; `covey status` shows them"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
