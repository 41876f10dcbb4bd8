//! Logs go to standard error: for people by default, one JSON object a line with `COVEY_LOG_FORMAT=json`.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Installs the subscriber. `COVEY_LOG` takes the usual filter syntax, `info` by default.
pub fn init(default: &str) {
    let filter =
        EnvFilter::try_from_env("COVEY_LOG").unwrap_or_else(|_| EnvFilter::new(format!("{default},libp2p=warn")));
    // A process whose standard error nobody reads goes on: what cannot be written is not told there either.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    // A second init (several nodes in one test process) keeps the first.
    let _ = match std::env::var("COVEY_LOG_FORMAT").as_deref() {
        Ok("json") => builder.json().try_init(),
        _ => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
}
