//! How far a task's log on this worker is ahead of the head's disk. A turn that is too far ahead waits: what it says is memory here
//! and on the way, and stands before what other tasks say.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use covey_domain::caps;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::turn::Control;

/// What the log of one attempt is ahead.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: AtomicUsize,
    /// Items of a process whose credit waits until there is room.
    owed: Mutex<u32>,
    room: Notify,
}

impl Backlog {
    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Acquire) >= caps::TASK_AHEAD_BYTES_MAX
    }

    /// Bytes that the log is ahead.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Returns once the log is not too far ahead.
    pub async fn room(&self) {
        while self.is_full() {
            let mut told = std::pin::pin!(self.room.notified());
            told.as_mut().enable();
            // Whoever makes room from here on tells so.
            if self.is_full() {
                told.await;
            }
        }
    }

    /// Whether a process may go on now with `items` more. If not, it is told so when there is room.
    pub fn may_go_on(&self, items: u32) -> bool {
        if !self.is_full() {
            return true;
        }
        let mut owed = self.owed.lock();
        // Whoever makes room from here on waits for the lock.
        let full = self.is_full();
        if full {
            *owed += items;
        }
        !full
    }
}

/// Events that are not known to be on the head's disk: until this is dropped.
pub struct Ahead {
    of: Arc<Control>,
    bytes: usize,
}

impl Ahead {
    pub(crate) fn new(of: &Arc<Control>, bytes: usize) -> Self {
        of.backlog.bytes.fetch_add(bytes, Ordering::AcqRel);
        Self { of: of.clone(), bytes }
    }

    /// Counts what `other`, of the same attempt, counted.
    pub fn join(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.of, &other.of), "attempts are not mixed");
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let backlog = &self.of.backlog;
        let before = backlog.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if before < caps::TASK_AHEAD_BYTES_MAX || before - self.bytes >= caps::TASK_AHEAD_BYTES_MAX {
            return;
        }
        let owed = std::mem::take(&mut *backlog.owed.lock());
        backlog.room.notify_waiters();
        if owed > 0 {
            self.of.credit(owed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn who_is_too_far_ahead_waits_until_the_head_has_it() {
        let control = Control::new();
        let backlog = &control.backlog;
        let mut first = Ahead::new(&control, caps::TASK_AHEAD_BYTES_MAX - 1);
        assert!(backlog.room().now_or_never().is_some() && backlog.may_go_on(1));
        let second = Ahead::new(&control, 1);
        let mut room = std::pin::pin!(backlog.room());
        assert!(room.as_mut().now_or_never().is_none() && !backlog.may_go_on(5));
        let third = Ahead::new(&control, 7);
        drop(second);
        assert!(room.as_mut().now_or_never().is_none(), "there is more now");
        first.join(third);
        let before = control.credits.available_permits();
        drop(first);
        assert!(room.now_or_never().is_some() && backlog.may_go_on(1));
        assert_eq!(control.credits.available_permits(), before + 5, "the process hears that it may go on");
        assert_eq!(backlog.bytes.load(Ordering::SeqCst), 0);
    }
}
