//! `covey token`.

use std::io::IsTerminal as _;

use covey_client::Client;
use covey_domain::{Error, ErrorKind};
use covey_node::{Credentials, home, tls::PinnedAddress};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey token --once --for 1h")]
pub(crate) struct Args {
    /// Print the admin key instead
    #[arg(long)]
    admin: bool,
    /// Print the head's address instead, with its fingerprint where it speaks TLS: what COVEY_ADDRESS takes
    #[arg(long, conflicts_with = "admin")]
    address: bool,
    /// Make a join token that enrols one node
    #[arg(long, conflicts_with_all = ["admin", "address"])]
    once: bool,
    /// Make a join token that is good for this time, like 30m, 12h, 90d [default with --once: 1d]
    #[arg(long = "for", value_name = "TIME", value_parser = super::duration_ms, conflicts_with_all = ["admin", "address"])]
    for_ms: Option<u64>,
}

pub(crate) async fn run(args: &Args) -> Result<(), Error> {
    if args.once || args.for_ms.is_some() {
        let (address, key) = Credentials::find()?;
        let client = Client::connect(&address, &key).await?;
        let secret = client.add_join_token(args.once, args.for_ms.unwrap_or(0)).await?;
        outln!("{secret}@{address}");
        tell_reach(&address);
        return Ok(());
    }
    let path = home::root().join("credentials.json");
    let missing = |_| {
        Error::new(ErrorKind::NotFound, format!("no credentials in `{}`", path.display()))
            .hint("they are made when a head first starts: `covey up`")
    };
    let body = std::fs::read(&path).map_err(missing)?;
    let keys: Credentials = serde_json::from_slice(&body)
        .map_err(|e| Error::invalid(format!("failed to read `{}`: {e}", path.display())))?;
    of_that_head(&keys, &path)?;
    match args {
        Args { admin: true, .. } => outln!("{}", keys.admin_key),
        Args { address: true, .. } => outln!("{}", keys.pinned_address()),
        _ => {
            outln!("{}", keys.join_token());
            tell_reach(&keys.pinned_address().to_string());
        }
    }
    Ok(())
}

/// Refuses to print what belongs to another head than COVEY_ADDRESS names: a worker would join the wrong cluster. A head has many
/// addresses, so only those are told apart that cannot be of one head.
fn of_that_head(keys: &Credentials, path: &std::path::Path) -> Result<(), Error> {
    let asked = std::env::var("COVEY_ADDRESS").unwrap_or_default();
    let Ok(asked) = asked.parse::<PinnedAddress>() else { return Ok(()) };
    let own = keys.pinned_address();
    let is_other = match (asked.pin, own.pin) {
        (Some(asked), Some(own)) => asked != own,
        (None, None) => asked.is_loopback() && own.is_loopback() && port(&asked) != port(&own),
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !is_other {
        return Ok(());
    }
    let (asked, own, path) = (asked.address, own.address, path.display());
    let text = format!("COVEY_ADDRESS names the head at `{asked}`, and `{path}` has the keys of the head at `{own}`");
    Err(Error::new(ErrorKind::FailedPrecondition, text)
        .hint("unset COVEY_ADDRESS, or set COVEY_HOME; `covey token --once` asks the head that COVEY_ADDRESS names"))
}

fn port(at: &PinnedAddress) -> Option<&str> {
    at.address.rsplit_once(':').map(|(_, port)| port)
}

/// On another machine a loopback address is that machine itself. A head with TLS is meant for others, so that is told always; of
/// one without, a pipe is not told: it joins a worker here.
fn tell_reach(address: &str) {
    let Ok(at) = address.parse::<PinnedAddress>() else { return };
    if !at.is_loopback() {
        return;
    }
    if at.pin.is_some() {
        errln!("warning: on another machine `{}` is that machine: this token joins workers of this one", at.address);
        errln!("  hint: `covey head --advertise-head HOST` says by which name or address others reach the head");
    } else if std::io::stdout().is_terminal() {
        errln!("note: the head listens on `{}`: this token joins workers of this machine", at.address);
        errln!("  hint: `covey head --host 0.0.0.0` takes workers of others");
    }
}
