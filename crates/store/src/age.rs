//! The store's own clock: it goes on while a head runs, and never jumps. What is old is old by it, so that no wrong wall clock
//! makes the head forget anything.

use std::time::Instant;

use covey_domain::Millis;

/// Milliseconds; it began with the wall clock's when the store was made.
#[derive(Debug)]
pub(crate) struct Age {
    base: Millis,
    /// Does not go on while the machine sleeps, either.
    since: Instant,
}

impl Age {
    pub fn at(base: Millis) -> Self {
        Self { base, since: Instant::now() }
    }

    pub fn now(&self) -> Millis {
        self.base + self.since.elapsed().as_millis() as Millis
    }
}
