//! What systemd wants to hear of a service of `Type=notify`: that it is ready, that it still turns, that it stops. Without
//! `NOTIFY_SOCKET` nothing is said.

use std::{
    future::Future,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

/// Its socket.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Microseconds within which it wants a sign of life, and from which process.
const WATCHDOG: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// It serves.
pub fn ready() {
    say("READY=1");
}

/// It ends.
pub fn stopping() {
    say("STOPPING=1");
}

/// Gives signs of life, where they are wanted, as long as `turns` ends in time: twice as often as needed.
pub async fn live<F: Future<Output = bool>>(turns: impl Fn() -> F) {
    let Some(every) = watchdog() else { return };
    loop {
        tokio::time::sleep(every / 2).await;
        match tokio::time::timeout(every / 2, turns()).await {
            Ok(true) => say("WATCHDOG=1"),
            // No sign: systemd starts it again.
            Ok(false) | Err(_) => tracing::error!("this process does not turn"),
        }
    }
}

fn watchdog() -> Option<Duration> {
    let said = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let ours = said(WATCHDOG_PID).is_none_or(|pid| pid == u64::from(std::process::id()));
    said(WATCHDOG).filter(|us| ours && *us > 0).map(Duration::from_micros)
}

fn say(state: &str) {
    let Ok(path) = std::env::var(SOCKET) else { return };
    if let Err(error) = send(&path, state) {
        tracing::warn!(%error, state, "systemd was not told");
    }
}

fn send(path: &str, state: &str) -> io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_said_on_sockets_with_and_without_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify").display().to_string();
        let name = format!("covey-test-{}", std::process::id());
        let own = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, path) in [(UnixDatagram::bind(&path).unwrap(), path), (own, format!("@{name}"))] {
            send(&path, "READY=1").unwrap();
            let mut read = [0; 32];
            let count = socket.recv(&mut read).unwrap();
            assert_eq!(&read[..count], b"READY=1");
        }
        assert!(send("/nowhere/at/all", "READY=1").is_err());
    }
}
