//! What both processes share: where files live, credentials, identity, logs, shutdown.

pub mod auth;
pub mod credentials;
pub mod home;
pub mod identity;
pub mod telemetry;
pub mod tls;

pub use credentials::Credentials;
pub use identity::Identity;

use tokio_util::sync::CancellationToken;

/// Default port of a head.
pub const DEFAULT_PORT: u16 = 7420;

/// A token that is cancelled by Ctrl-C or SIGTERM.
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
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        cancelled.cancel();
    });
    token
}
