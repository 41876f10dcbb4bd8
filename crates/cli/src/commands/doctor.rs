//! `covey doctor`: what this machine can do, and what is wrong. A section each, in a file of its own.

mod machine;

use covey_domain::Error;

use super::upkeep;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: upkeep::DoctorArgs,
}

/// What was found of one thing.
pub(crate) enum Finding {
    Good(String),
    /// It works, with less than there could be.
    Less(String),
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    if !args.store.json {
        outln!("this machine");
        for finding in machine::look() {
            match finding {
                Finding::Good(text) => outln!("  ok    {text}"),
                Finding::Less(text) => outln!("  note  {text}"),
            }
        }
        outln!("the head's store");
    }
    upkeep::doctor(args.store).await
}
