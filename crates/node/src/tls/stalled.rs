//! Streams of HTTP/2 whose reader takes nothing. A connection that answers pings can keep the window of a stream closed for ever,
//! and with it what the answer holds. Nothing outside of the stream can end it but its own future, so each is run with a clock.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

tokio::task_local! {
    /// Of the stream whose future runs.
    static STREAM: Arc<Taken>;
}

/// Since when an answer's next piece is not asked for.
struct Taken {
    began: Instant,
    /// Milliseconds since then, and one; 0 = the reader waits for the answer, not the other way round.
    waits: AtomicU64,
}

impl Taken {
    fn new() -> Self {
        Self { began: Instant::now(), waits: AtomicU64::new(0) }
    }

    /// Returns when a piece was not asked for during all of `patience`.
    async fn over(&self, patience: Duration) {
        let mut pause = patience;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.waits.load(Ordering::Relaxed) {
                0 => patience,
                since => {
                    let until = self.began + Duration::from_millis(since - 1) + patience;
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    left
                }
            };
        }
    }
}

/// The reader of the stream that runs has a piece to take, or the beginning of the answer.
pub(super) fn offered() {
    let _ = STREAM.try_with(|taken| {
        let since = taken.began.elapsed().as_millis() as u64 + 1;
        taken.waits.store(since, Ordering::Relaxed);
    });
}

/// It asks for the next one.
pub(super) fn asked() {
    let _ = STREAM.try_with(|taken| taken.waits.store(0, Ordering::Relaxed));
}

/// Runs streams, each until its end or until its reader takes nothing for too long. What is dropped is reset.
#[derive(Clone)]
pub(super) struct Streams {
    pub patience: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let (taken, patience) = (Arc::new(Taken::new()), self.patience);
        let seen = taken.clone();
        tokio::spawn(STREAM.scope(taken, async move {
            tokio::select! {
                biased;
                _ = stream => {}
                () = seen.over(patience) => tracing::debug!("a stream whose reader takes nothing was reset"),
            }
        }));
    }
}
