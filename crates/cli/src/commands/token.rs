//! `covey token`.

use covey_domain::{Error, ErrorKind};
use covey_node::{Credentials, home};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print the admin key instead
    #[arg(long)]
    admin: bool,
    /// Print the head's address instead, with its fingerprint where it speaks TLS: what COVEY_ADDRESS takes
    #[arg(long, conflicts_with = "admin")]
    address: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let path = home::root().join("credentials.json");
    let missing = |_| {
        Error::new(ErrorKind::NotFound, format!("no credentials in `{}`", path.display()))
            .hint("they are made when a head first starts: `covey up`")
    };
    let body = std::fs::read(&path).map_err(missing)?;
    let keys: Credentials = serde_json::from_slice(&body)
        .map_err(|e| Error::invalid(format!("failed to read `{}`: {e}", path.display())))?;
    match args {
        Args { admin: true, .. } => println!("{}", keys.admin_key),
        Args { address: true, .. } => println!("{}", keys.pinned_address()),
        _ => println!("{}", keys.join_token()),
    }
    Ok(())
}
