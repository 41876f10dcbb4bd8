//! Frames on their way to one reader, bounded by count and by bytes. Whoever puts frames in holds locks and never waits: a reader
//! that is too far behind loses its stream, and nothing else does.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How far a reader may be behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub items: usize,
    pub bytes: usize,
}

#[derive(Debug)]
struct Held {
    bounds: Bounds,
    items: AtomicUsize,
    bytes: AtomicUsize,
    /// The reader was too far behind.
    full: CancellationToken,
}

/// Where frames are put.
#[derive(Debug)]
pub(crate) struct Frames<T> {
    tx: mpsc::UnboundedSender<(usize, T)>,
    held: Arc<Held>,
}

impl<T> Clone for Frames<T> {
    fn clone(&self) -> Self {
        Self { tx: self.tx.clone(), held: self.held.clone() }
    }
}

/// Where they are taken.
#[derive(Debug)]
pub(crate) struct Reader<T> {
    rx: mpsc::UnboundedReceiver<(usize, T)>,
    held: Arc<Held>,
    taken: Vec<(usize, T)>,
}

/// The reader was too far behind: what waited for it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behind;

/// Both ends.
#[expect(clippy::disallowed_methods, reason = "bounded here, by count and by bytes")]
pub(crate) fn queue<T: Message>(bounds: Bounds) -> (Frames<T>, Reader<T>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let (items, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let held = Arc::new(Held { bounds, items, bytes, full: CancellationToken::new() });
    (Frames { tx, held: held.clone() }, Reader { rx, held, taken: Vec::new() })
}

impl<T: Message> Frames<T> {
    /// Puts a frame in, unless the reader is gone or too far behind: then it is over with it.
    pub fn send(&self, frame: T) -> bool {
        let Held { bounds, items, bytes, full } = &*self.held;
        if full.is_cancelled() {
            return false;
        }
        let size = frame.encoded_len();
        // One frame may be larger than the bound by itself.
        let many = items.fetch_add(1, Ordering::Relaxed) >= bounds.items;
        let much = bytes.fetch_add(size, Ordering::Relaxed).saturating_add(size) > bounds.bytes.max(size);
        if many || much {
            full.cancel();
            return false;
        }
        self.tx.send((size, frame)).is_ok()
    }

    /// Waits until there is no reader any more.
    pub async fn closed(&self) {
        self.tx.closed().await;
    }
}

impl<T> Reader<T> {
    /// Takes what is there, up to `max` frames; waits for the first. 0 = nobody puts anything in any more.
    pub async fn recv_many(&mut self, frames: &mut Vec<T>, max: usize) -> Result<usize, Behind> {
        let Self { rx, held, taken } = self;
        let count = tokio::select! {
            biased;
            () = held.full.cancelled() => return Err(Behind),
            count = rx.recv_many(taken, max) => count,
        };
        let mut bytes = 0;
        frames.extend(taken.drain(..).map(|(size, frame)| {
            bytes += size;
            frame
        }));
        held.items.fetch_sub(count, Ordering::Relaxed);
        held.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(count)
    }

    /// Takes the next one. `None`: there will be none.
    pub async fn recv(&mut self) -> Option<T> {
        let mut one = Vec::with_capacity(1);
        self.recv_many(&mut one, 1).await.ok()?;
        one.pop()
    }

    /// What is there now.
    #[cfg(test)]
    pub fn try_recv(&mut self) -> Result<T, mpsc::error::TryRecvError> {
        self.rx.try_recv().map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use covey_proto::v1::StopActor;

    use super::*;

    fn frame(bytes: usize) -> StopActor {
        StopActor { actor: "x".repeat(bytes), ..StopActor::default() }
    }

    #[tokio::test]
    async fn a_reader_that_keeps_up_gets_everything() {
        let (frames, mut reader) = queue(Bounds { items: 4, bytes: 1_000 });
        for _ in 0..100 {
            assert!((0..4).all(|_| frames.send(frame(100))));
            let mut taken = Vec::new();
            assert_eq!(reader.recv_many(&mut taken, 10).await, Ok(4));
        }
        assert!(frames.send(frame(5_000)), "one that is larger than all");
        assert_eq!(reader.recv().await.map(|frame| frame.actor.len()), Some(5_000));
        drop(frames);
        assert_eq!(reader.recv_many(&mut Vec::new(), 1).await, Ok(0));
    }

    #[tokio::test]
    async fn a_reader_that_is_behind_by_count_or_by_bytes_loses_its_stream() {
        for (size, fits) in [(1, 4), (400, 2)] {
            let (frames, mut reader) = queue(Bounds { items: 4, bytes: 1_000 });
            assert_eq!((0..10).filter(|_| frames.send(frame(size))).count(), fits, "{size}");
            assert_eq!(reader.recv_many(&mut Vec::new(), 10).await, Err(Behind));
            assert!(!frames.send(frame(1)), "it stays so");
            assert_eq!(reader.recv().await, None);
        }
    }
}
