//! Following the log of a task through a protocol's projection: frames behind a cursor, each with the cursor behind it, up to the end of
//! the task or of a turn.
//!
//! ```text
//! log      1   2   3   4   5   6   7 …        entries, numbered without gaps
//! frames   a       b c     d   e f            a projection makes none, one or more of each
//! cursors  1       2.1 3   5   5.1 6          behind each frame
//! ```
//!
//! A reader that names a cursor gets the frames behind it, the same ones as a reader that never left, also after a restart of the head:
//! a projection is a pure function of the log's prefix.

use std::sync::Arc;

use covey_domain::{Envelope, Error, TaskId, TaskState};
use futures::{Stream, StreamExt as _};

use crate::{
    Cluster,
    bookmarks::{self, Bookmarks},
    cursor::Cursor,
};

/// A task's log as one protocol has it: a pure function of the log's prefix and of what the reader declared.
pub(crate) trait Projection: Send + 'static {
    /// What a reader is sent at a time. It may be several events on the wire, which then have one cursor.
    type Frame: Send + 'static;
    /// What frames of later entries depend on, at some place of a log; not on what its reader declared. Small: thousands are kept.
    type Bookmark: Clone + Send + 'static;

    /// Number of the last entry taken.
    fn seq(&self) -> u64;

    /// Where the task stands, as the reader was told.
    fn shown(&self) -> TaskState;

    /// Takes the next entry; gives the frames that it makes.
    fn push(&mut self, entry: &Arc<Envelope>) -> Vec<Self::Frame>;

    /// The task as it stands, for a reader that has seen nothing; from here on only later frames are wanted. `None` where the protocol
    /// has no such frame: the reader then gets what comes behind it.
    fn snapshot(&mut self) -> Option<Self::Frame>;

    /// This place.
    fn bookmark(&self) -> Self::Bookmark;
}

/// Which part of a log a reader wants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    /// The reader has what is before it.
    pub seen: Cursor,
    /// The task as of this entry stands for all entries up to it; behind what was seen.
    pub snapshot: Option<u64>,
    /// It ends with the turn that this entry began; `None` = with the task.
    pub turn: Option<u64>,
}

/// A frame of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StreamItem<F> {
    /// Where a reader stands that has it.
    pub cursor: Cursor,
    pub frame: F,
    /// Whether no other follows.
    pub last: bool,
}

/// The log could not be read on.
#[derive(Debug)]
pub(crate) struct Broken {
    pub error: Error,
    /// Where a reader stands that has all frames before this: for bindings whose frames carry no cursor, such as gRPC.
    pub cursor: Cursor,
}

/// Whether a turn is over: the task has ended, or waits for somebody.
pub(crate) fn is_over(state: TaskState) -> bool {
    state.is_terminal() || state.waits()
}

impl View {
    /// The nearest place that is remembered, where the projection may begin for this view. A snapshot is put together from the first
    /// entry on.
    pub fn bookmark<T: Clone>(&self, bookmarks: &Bookmarks<T>, task: &TaskId) -> Option<T> {
        if self.snapshot.is_some() {
            return None;
        }
        bookmarks.before(task, self.seen.seq)
    }
}

/// Frames of a view. The projection stands anywhere before it: at the beginning, or at [`View::bookmark`]. Places that are passed go
/// into `bookmarks`, where the protocol has some.
pub(crate) fn follow<P: Projection>(
    cluster: &dyn Cluster,
    task: TaskId,
    mut projection: P,
    view: View,
    bookmarks: Option<Bookmarks<P::Bookmark>>,
) -> impl Stream<Item = Result<StreamItem<P::Frame>, Broken>> + Send + use<P> {
    let mut log = cluster.events(task.clone(), projection.seq());
    let View { seen, snapshot, turn } = view;
    async_stream::try_stream! {
        let mut told = seen;
        while let Some(entry) = log.next().await {
            let entry = entry.map_err(|error| Broken { error, cursor: told })?;
            let frames = projection.push(&entry);
            if let Some(bookmarks) = bookmarks.as_ref().filter(|_| bookmarks::is_kept(entry.seq)) {
                bookmarks.keep(&task, entry.seq, projection.bookmark());
            }
            let turned = turn.is_some_and(|at| entry.seq > at && is_over(projection.shown()));
            let over = projection.shown().is_terminal() || turned;
            if entry.seq <= seen.seq || snapshot.is_some_and(|at| entry.seq < at) {
                if turned {
                    // The reader has seen the end of its turn.
                    return;
                }
                continue;
            }
            if snapshot == Some(entry.seq) {
                told = Cursor { seq: entry.seq, more: 0 };
                if let Some(frame) = projection.snapshot() {
                    yield StreamItem { cursor: told, frame, last: over };
                }
                continue;
            }
            let count = frames.len();
            let skipped = if entry.seq == seen.seq + 1 { seen.more as usize } else { 0 };
            for (i, frame) in frames.into_iter().enumerate().skip(skipped) {
                told = Cursor::within(entry.seq, i, count);
                yield StreamItem { cursor: told, frame, last: i + 1 == count && over };
            }
            if turned {
                return;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
