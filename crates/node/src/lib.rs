//! What both processes share: where files live, credentials, identity, logs, shutdown.

pub mod auth;
pub mod background;
pub mod claimed;
pub mod credentials;
pub mod home;
pub mod identity;
pub mod issuer;
pub mod listen;
pub mod private;
pub mod systemd;
pub mod telemetry;
pub mod tls;

pub use credentials::Credentials;
pub use identity::Identity;
pub use issuer::Issuer;

use tokio_util::sync::CancellationToken;

/// Default port of a head.
pub const DEFAULT_PORT: u16 = 7420;

/// A process that a second signal ends says this with its exit code: 128 and the number of SIGTERM.
const ENDED: i32 = 143;

/// A token that is cancelled by Ctrl-C or SIGTERM. A second one ends the process at once: what is on disk is whole at any time.
pub fn shutdown_on_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut term = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(term) => term,
            Err(error) => {
                tracing::warn!(%error, "failed to listen for SIGTERM");
                return;
            }
        };
        for ends in [false, true] {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
            }
            if ends {
                tracing::warn!("asked a second time: stopping at once");
                std::process::exit(ENDED);
            }
            systemd::stopping();
            cancelled.cancel();
        }
    });
    token
}
