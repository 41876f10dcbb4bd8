//! Is a worker that has no link still a process? Its own port tells: a machine that is up and refuses a connection to a port
//! that it took before has nobody listening there any more, so the process is over and its work can be given to others at once.
//!
//! Whatever else comes back (a connection, silence, no route) proves nothing, and its lease decides. A firewall that begins
//! to *reject* (not drop) connections to the port of a live worker would be taken for its death.

use std::time::Duration;

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

/// Whether the port takes connections from here.
pub(crate) async fn answers(port: &str) -> bool {
    !port.is_empty() && matches!(tokio::time::timeout(ANSWERS_WITHIN, TcpStream::connect(port)).await, Ok(Ok(_)))
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
