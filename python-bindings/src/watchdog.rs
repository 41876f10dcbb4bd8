//! Ends this process when its worker is over, or when its worker's lease is.
//!
//! The worker shows its lease in a file (`worker-node`, `shared_lease.rs`); a thread that needs no interpreter reads it and sets
//! a timer of the kernel by it. When that runs out the kernel ends the process, whatever its threads are doing and also when
//! none of them runs. So a worker that stands still (SIGSTOP, a stuck disk) leaves nobody behind who goes on with work that
//! the head has given to others; and when a worker is killed, a method that is busy does not go on without it.
#![expect(unsafe_code, reason = "timers of the kernel have no safe binding")]

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open},
};

/// How often the lease is read; far below its length.
const LOOK: Duration = Duration::from_millis(500);

/// Begins to watch, if there is a lease to watch.
pub(crate) fn start() -> io::Result<()> {
    let Some(path) = std::env::var_os("COVEY_LEASE") else { return Ok(()) };
    let lease = File::open(path)?;
    let timer = Timer::create()?;
    let worker = getppid().map(|pid| pidfd_open(pid, PidfdFlags::empty())).transpose()?;
    std::thread::Builder::new().name("covey-watchdog".into()).spawn(move || watch(&lease, &timer, worker.as_ref()))?;
    Ok(())
}

fn watch(lease: &File, timer: &Timer, worker: Option<&OwnedFd>) {
    let (mut known, mut bytes) = (0, [0; 8]);
    let look = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
    loop {
        // What cannot be read renews nothing.
        if lease.read_exact_at(&mut bytes, 0).is_ok() {
            let until = u64::from_ne_bytes(bytes);
            if until != known && timer.set(until).is_ok() {
                known = until;
            }
        }
        let Some(worker) = worker else {
            std::thread::sleep(LOOK);
            continue;
        };
        let mut over = [PollFd::new(worker, PollFlags::IN)];
        if poll(&mut over, Some(&look)).is_ok_and(|ready| ready > 0) {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

/// A timer on the clock that goes on while the machine sleeps; at its end the kernel sends SIGKILL to this process.
struct Timer(libc::timer_t);

// SAFETY: a timer's id is a number of this process, which any thread may use.
unsafe impl Send for Timer {}

impl Timer {
    fn create() -> io::Result<Self> {
        // SAFETY: all zeros is a valid value of this plain struct; the fields that matter are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut id = std::ptr::null_mut();
        // SAFETY: both pointers are to live values, and the kernel keeps neither.
        match unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &mut event, &mut id) } {
            0 => Ok(Self(id)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// It runs out at `until`, milliseconds of the boot clock, or at once if that has passed; 0: never.
    fn set(&self, until: u64) -> io::Result<()> {
        let value = libc::timespec { tv_sec: (until / 1_000) as i64, tv_nsec: (until % 1_000 * 1_000_000) as i64 };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = libc::itimerspec { it_interval: never, it_value: value };
        // SAFETY: the timer is never deleted, and the pointer is to a live value that the kernel does not keep.
        match unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &spec, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
