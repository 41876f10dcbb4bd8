//! Streams of drivers, and the sessions they belong to.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use covey_cluster_core::sessions::SessionOpened;
use covey_domain::{Digest, Error, SessionId};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request,
    metadata::{MetadataMap, MetadataValue},
};

use crate::{
    Shared,
    owner::{Handle, Input},
};

/// Longest id of a session, bytes.
const ID_MAX: usize = 128;
/// Shortest secret of a session, characters.
const SECRET_MIN: usize = 16;

/// The current stream of each session.
type Streams = Arc<Mutex<HashMap<SessionId, (u64, CancellationToken)>>>;

#[derive(Default)]
pub(crate) struct Drivers {
    conns: AtomicU64,
    streams: Streams,
}

/// One stream, and the session it holds open.
pub(crate) struct Driver {
    session: Option<Held>,
    grace_ms: u64,
    opened: Option<SessionOpened>,
    replaced: CancellationToken,
    shutdown: CancellationToken,
}

/// Says that the stream is gone, however that comes about.
struct Held {
    id: SessionId,
    conn: u64,
    owner: Handle,
    streams: Streams,
    /// The owner is told already, or is not to be told.
    over: bool,
}

impl Drivers {
    /// Opens or resumes the session that the metadata name. A stream without one is only a stream.
    pub async fn connect<T>(&self, request: &Request<T>, shared: &Shared) -> Result<Driver, Error> {
        let (grace_ms, shutdown) = (shared.times.session_grace_ms, shared.shutdown.clone());
        let Some((id, proof)) = named(request.metadata())? else {
            // What a head that was just started knows of places must be told before anybody asks.
            shared.owner.ask(Input::Settled).await?;
            let replaced = CancellationToken::new();
            return Ok(Driver { session: None, grace_ms, opened: None, replaced, shutdown });
        };
        let conn = self.conns.fetch_add(1, Ordering::Relaxed) + 1;
        // From here on nothing that happens to this request leaves the session without an end.
        let (owner, streams) = (shared.owner.clone(), self.streams.clone());
        let held = Held { id: id.clone(), conn, owner, streams, over: false };
        let opened = shared.owner.ask(|tx| Input::OpenSession(id.clone(), proof, conn, tx)).await??;
        let replaced = CancellationToken::new();
        if let Some((_, before)) = self.streams.lock().insert(id.clone(), (conn, replaced.clone())) {
            before.cancel();
        }
        tracing::info!(session = %id, resumed = opened == SessionOpened::Resumed, "a driver connected");
        Ok(Driver { session: Some(held), grace_ms, opened: Some(opened), replaced, shutdown })
    }
}

fn named(metadata: &MetadataMap) -> Result<Option<(SessionId, Digest)>, Error> {
    let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
    match (text("covey-session"), text("covey-session-secret")) {
        (None, None) => Ok(None),
        (Some(id), Some(secret)) if !id.is_empty() && id.len() <= ID_MAX && secret.len() >= SECRET_MIN => {
            Ok(Some((id.into(), Digest::of(secret.as_bytes()))))
        }
        _ => Err(Error::invalid(format!("a session has an id and a secret of at least {SECRET_MIN} characters"))),
    }
}

impl Driver {
    /// Another stream of the same session has come.
    pub fn replaced(&self) -> CancellationToken {
        self.replaced.clone()
    }

    /// What the driver is told of its session.
    pub fn describe(&self, metadata: &mut MetadataMap) {
        if let Some(opened) = self.opened {
            let state = match opened {
                SessionOpened::New => "new",
                SessionOpened::Resumed => "resumed",
            };
            metadata.insert("covey-session-state", MetadataValue::from_static(state));
        }
        metadata.insert("covey-session-grace-ms", MetadataValue::from(self.grace_ms));
    }

    /// The stream is over; with `left` the driver has said that it goes for good.
    pub async fn disconnect(mut self, left: bool) {
        let Some(held) = &mut self.session else { return };
        if left {
            held.over = true;
            tracing::info!(session = %held.id, "a driver left");
            held.owner.tell(Input::SessionLeft(held.id.clone(), held.conn)).await;
        } else if self.shutdown.is_cancelled() {
            // The next head of this store gives it its time.
            held.over = true;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut streams = self.streams.lock();
        if streams.get(&self.id).is_some_and(|(conn, _)| *conn == self.conn) {
            streams.remove(&self.id);
        }
        drop(streams);
        if self.over {
            return;
        }
        let (owner, id, conn) = (self.owner.clone(), self.id.clone(), self.conn);
        tokio::spawn(async move {
            tracing::info!(session = %id, "a driver's connection broke; it may come back");
            owner.tell(Input::SessionUnlinked(id, conn)).await;
        });
    }
}
