//! The cluster's own clock: milliseconds that heads have run, over all their lives. No wall clock moves it, and it stands while
//! there is no head and while the machine sleeps.

use std::time::Instant;

/// Goes on where the last head's clock was when it was last written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    before_ms: u64,
    started: Instant,
}

impl Clock {
    /// A clock that shows `before_ms` now.
    pub fn from(before_ms: u64) -> Self {
        Self { before_ms, started: Instant::now() }
    }

    /// What it shows.
    pub fn now_ms(&self) -> u64 {
        self.before_ms + self.started.elapsed().as_millis() as u64
    }
}
