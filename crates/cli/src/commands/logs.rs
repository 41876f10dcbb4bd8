//! `covey logs`, `covey stack`.

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

pub(crate) async fn logs(args: Args) -> Result<(), Error> {
    let mut chunks = Client::connect_default().await?.logs(&args.actor, args.follow, args.tail).await?.boxed();
    while let Some(chunk) = chunks.next().await {
        crate::out::bytes(&chunk?);
    }
    Ok(())
}

pub(crate) async fn stack(args: StackArgs) -> Result<(), Error> {
    crate::out::bytes(&Client::connect_default().await?.stack(&args.actor).await?);
    Ok(())
}
