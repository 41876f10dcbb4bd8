//! A task's events to its end, over breaks of the connection and restarts of the head.

use std::time::{Duration, Instant};

use covey_domain::{Envelope, Error, ErrorKind, TaskId};
use futures::{Stream, StreamExt as _};

use crate::Client;

/// How long it goes on without a word of a head that is away.
const AWAY_MAX: Duration = Duration::from_secs(30);
/// The pause between two attempts to reach it.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

impl Client {
    /// Events of a task above `after`, to its end. When the connection breaks or the head restarts it goes on behind the last event.
    ///
    /// # Errors
    /// As [`Self::subscribe`]; `Unavailable` once the head was away for 30 s.
    pub fn follow(&self, id: &TaskId, after: u64) -> impl Stream<Item = Result<Envelope, Error>> + use<> {
        let (client, id) = (self.clone(), id.clone());
        async_stream::stream! {
            let (mut last, mut heard) = (after, Instant::now());
            loop {
                let broken = match client.subscribe(&id, last).await {
                    Ok(events) => {
                        let mut events = std::pin::pin!(events);
                        loop {
                            match events.next().await {
                                Some(Ok(envelope)) => {
                                    (last, heard) = (envelope.seq, Instant::now());
                                    let is_over = envelope.event.is_terminal();
                                    yield Ok(envelope);
                                    if is_over {
                                        return;
                                    }
                                }
                                Some(Err(error)) => break error,
                                None => return,
                            }
                        }
                    }
                    Err(error) => error,
                };
                if broken.kind != ErrorKind::Unavailable || heard.elapsed() > AWAY_MAX {
                    yield Err(broken);
                    return;
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}
