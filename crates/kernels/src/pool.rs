//! One pool of threads for all kernels of a process.
//!
//! A step of a small model is a few hundred parallel regions of 20–500 µs, so a region must begin and end within
//! about a microsecond: helpers spin for a moment between regions and sleep when none comes. Work is taken in pieces
//! from a counter, so a helper that the system has put aside for a network thread delays nobody, and a region never
//! waits for a helper that has not begun.
#![expect(unsafe_code, reason = "a region borrows the caller's closure for exactly as long as helpers are inside it")]

use crate::format::SendPtr;
use std::{
    cell::UnsafeCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Thread,
};

/// Looks at the state before a helper gives its core away: about 50 µs.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Times a helper gives its core away before it sleeps.
const YIELDS_BEFORE_SLEEP: u32 = 50;

/// Low half of the state: helpers inside the region. `OPEN` is set while more may come in.
const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;

type Piece<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads that compute together. Clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    owner: Arc<Owner>,
}

struct Shared {
    /// High half: number of the region. Low half: `OPEN` and the helpers inside.
    state: AtomicU64,
    piece: UnsafeCell<Option<Piece<'static>>>,
    pieces: AtomicUsize,
    next: AtomicUsize,
    left: AtomicU32,
    panicked: AtomicBool,
    asleep: AtomicU32,
    stop: AtomicBool,
}

// SAFETY: `piece` is written only while no region is open, and read only by helpers that joined an open one.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

struct Owner {
    shared: Arc<Shared>,
    /// Held for the length of a region: one region at a time.
    region: Mutex<()>,
    helpers: Vec<Thread>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of `threads`, the caller of [`Pool::run`] being one of them.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            piece: UnsafeCell::new(None),
            pieces: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            left: AtomicU32::new(0),
            panicked: AtomicBool::new(false),
            asleep: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let helpers = (1..threads.max(1))
            .filter_map(|i| {
                let shared = shared.clone();
                let spawned = std::thread::Builder::new().name(format!("covey-math-{i}")).spawn(move || help(&shared));
                // With fewer threads than asked for the work is done all the same.
                spawned.ok().map(|handle| handle.thread().clone())
            })
            .collect();
        let owner = Arc::new(Owner { shared: shared.clone(), region: Mutex::new(()), helpers });
        Self { shared, owner }
    }

    /// Threads that take part, the caller included.
    pub fn threads(&self) -> usize {
        self.owner.helpers.len() + 1
    }

    /// Calls `piece(0)`, … `piece(pieces - 1)`, each once, on any of the threads, and returns when all are done.
    ///
    /// # Panics
    /// When a piece panicked.
    pub fn run(&self, pieces: usize, piece: impl Fn(usize) + Sync) {
        if pieces <= 1 || self.owner.helpers.is_empty() {
            (0..pieces).for_each(piece);
            return;
        }
        let _one = self.owner.region.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shared = &*self.shared;
        let borrowed: Piece<'_> = &piece;
        // SAFETY: the region is closed and empty before this function returns, so nobody holds the longer life.
        let forever: Piece<'static> = unsafe { std::mem::transmute::<Piece<'_>, Piece<'static>>(borrowed) };
        // SAFETY: no region is open (we hold the lock and the last one was emptied), so nobody reads.
        unsafe { *shared.piece.get() = Some(forever) };
        shared.pieces.store(pieces, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        shared.left.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        let region = (shared.state.load(Ordering::Relaxed) >> 32) + 1;
        shared.state.store((region << 32) | OPEN, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.owner.helpers.iter().for_each(Thread::unpark);
        }
        let close = Close(shared);
        shared.take(&piece);
        drop(close);
        if shared.panicked.load(Ordering::Relaxed) {
            panic!("a kernel panicked on a helper thread");
        }
    }

    /// Like [`Pool::run`] over `0..len` in ranges of at least `grain`, a few for each thread.
    pub fn ranges(&self, len: usize, grain: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
        // Six for each thread: small enough that a late thread costs little, large enough to stream.
        let size = len.div_ceil(self.threads() * 6).max(grain.max(1));
        self.run(len.div_ceil(size), |i| work(i * size..((i + 1) * size).min(len)));
    }
}

impl Pool {
    /// Calls `work(i, row)` for each row of `data [rows, width]`, on several threads where there are more than `grain`.
    pub fn rows<T: Send>(&self, data: &mut [T], width: usize, grain: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let rows = data.len() / width;
        let start = SendPtr(data.as_mut_ptr());
        self.ranges(rows, grain, |range| {
            for i in range {
                // SAFETY: rows are disjoint, and inside `data`.
                work(i, unsafe { std::slice::from_raw_parts_mut(start.at(i * width), width) });
            }
        });
    }
}

/// Ends a region also when the caller's own piece panics.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        // When the caller's piece panicked, nothing more is begun.
        self.0.next.store(usize::MAX / 2, Ordering::Relaxed);
        let inside = (self.0.state.fetch_and(!OPEN, Ordering::AcqRel) & JOINED) as u32;
        let mut spins = 0u32;
        while self.0.left.load(Ordering::Acquire) < inside {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        // SAFETY: the region is closed and empty.
        unsafe { *self.0.piece.get() = None };
    }
}

impl Shared {
    fn take(&self, piece: Piece<'_>) {
        let pieces = self.pieces.load(Ordering::Relaxed);
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= pieces {
                return;
            }
            piece(i);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.helpers.iter().for_each(Thread::unpark);
    }
}

fn help(shared: &Shared) {
    let mut seen = 0;
    loop {
        let Some(region) = wait(shared, seen) else { return };
        seen = region;
        // SAFETY: we joined an open region, which keeps the closure alive until we have left.
        let piece = unsafe { *shared.piece.get() };
        if let Some(piece) = piece {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shared.take(piece)));
            if done.is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.left.fetch_add(1, Ordering::Release);
    }
}

/// Joins a region that is not `seen`, and gives its number; `None` when the pool is gone.
fn wait(shared: &Shared, seen: u64) -> Option<u64> {
    let (mut spins, mut yields) = (0, 0);
    loop {
        let state = shared.state.load(Ordering::Acquire);
        if state & OPEN != 0 && state >> 32 != seen {
            if shared.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Some(state >> 32);
            }
            continue;
        }
        if shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        if spins < SPINS_BEFORE_YIELD {
            spins += 1;
            std::hint::spin_loop();
        } else if yields < YIELDS_BEFORE_SLEEP {
            yields += 1;
            std::thread::yield_now();
        } else {
            shared.asleep.fetch_add(1, Ordering::SeqCst);
            let state = shared.state.load(Ordering::SeqCst);
            let none = state & OPEN == 0 || state >> 32 == seen;
            if none && !shared.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            shared.asleep.fetch_sub(1, Ordering::SeqCst);
            (spins, yields) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_piece_is_done_once_also_after_sleep_and_from_many_threads() {
        let pool = Pool::new(4);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..400usize {
                        let counts: Vec<AtomicUsize> = (0..round % 37).map(|_| AtomicUsize::new(0)).collect();
                        pool.run(counts.len(), |i| {
                            counts[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                        if round % 100 == 0 {
                            std::thread::sleep(std::time::Duration::from_millis(5));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3);
        for _ in 0..50 {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(64, |i| assert!(i != 13, "unlucky"));
            }));
            assert!(caught.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.ranges(1000, 7, |range| {
            sum.fetch_add(range.sum(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 499_500);
    }
}
