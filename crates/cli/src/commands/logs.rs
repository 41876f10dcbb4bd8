//! `covey logs`, `covey stack`.

use std::io::Write as _;

use covey_client::Client;
use covey_domain::Error;
use futures::StreamExt as _;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey logs -f my-actor")]
pub(crate) struct Args {
    /// Id or name of the actor
    actor: String,
    /// Go on while it prints
    #[arg(long, short)]
    follow: bool,
    /// Only the last bytes of the past
    #[arg(long, default_value_t = 0)]
    tail: u64,
}

#[derive(clap::Args)]
pub(crate) struct StackArgs {
    /// Id or name of the actor
    actor: String,
}

fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    // A closed pipe is a reader that has seen enough.
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| Error::unavailable(e.to_string()))
}

pub(crate) async fn logs(args: Args) -> Result<(), Error> {
    let mut chunks = Client::connect_default().await?.logs(&args.actor, args.follow, args.tail).await?.boxed();
    while let Some(chunk) = chunks.next().await {
        print(&chunk?)?;
    }
    Ok(())
}

pub(crate) async fn stack(args: StackArgs) -> Result<(), Error> {
    print(&Client::connect_default().await?.stack(&args.actor).await?)
}
