//! Is a worker that has no link still a process? Its own port tells: a machine that is up and refuses a connection to a port
//! that it took before has nobody listening there any more, so the process is over and its work can be given to others at once.
//!
//! Whatever else comes back (a connection, silence, no route) proves nothing, and its lease decides. A firewall that begins
//! to *reject* (not drop) connections to the port of a live worker would be taken for its death.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use covey_domain::NodeId;
use tokio::{net::TcpStream, time::Instant};

use crate::{Shared, owner::Input};

/// Pause between two looks: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LAST: Duration = Duration::from_millis(500);
/// A connection that is not there by then is silence.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// The same when a worker joins, which waits for it.
const ANSWERS_WITHIN: Duration = Duration::from_millis(300);

/// The port that a worker names, as an address, where it is at the address that the worker's own link came `from` and takes
/// connections. The head dials no other: a worker must not have it knock at doors that are not the worker's.
pub(crate) async fn answers(port: &str, from: Option<IpAddr>) -> Option<SocketAddr> {
    let from = from?.to_canonical();
    let look = async {
        let named = tokio::net::lookup_host(port).await.ok()?;
        let own = named.into_iter().find(|at| at.ip().to_canonical() == from)?;
        TcpStream::connect(own).await.ok().map(|_| own)
    };
    if port.is_empty() { None } else { tokio::time::timeout(ANSWERS_WITHIN, look).await.ok().flatten() }
}

/// Looks until the process is proven to be over, or its lease has passed anyway. Only for a port that [`answers`] said yes of.
pub(crate) async fn watch(shared: Shared, node: NodeId, incarnation: u64, port: String) {
    let end = Instant::now() + Duration::from_millis(shared.times.lease_ms);
    let mut pause = PAUSE_FIRST;
    while Instant::now() < end && !shared.shutdown.is_cancelled() {
        let tried = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(&port)).await;
        if let Ok(Err(error)) = tried
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            tracing::warn!(%node, port, "the worker's process is over");
            return shared.owner.tell(Input::Gone(node, incarnation)).await;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_the_workers_own_address_is_dialled() {
        let (own, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        assert_eq!(answers(&port.to_string(), Some(own)).await, Some(port));
        assert_eq!(answers(&format!("localhost:{}", port.port()), Some(own)).await, Some(port));
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(answers(&port.to_string(), Some(mapped)).await, Some(port), "the same address");
        // Another's port: nobody knocks there.
        for from in [Some(other), None] {
            assert_eq!(answers(&port.to_string(), from).await, None);
        }
        for _ in 0..3 {
            drop(listener.accept().await.unwrap());
        }
        let more = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(more.is_err(), "it was dialled from where it must not be");
        assert_eq!(answers("", Some(own)).await, None);
    }
}
