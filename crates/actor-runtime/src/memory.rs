//! Bounds on the memory of a process.
//!
//! Three guards. A control group, where this machine lets us make one ([`group`]): the kernel then ends what is over the
//! bound, children and memory files counted in. Where not, the kernel refuses private memory far beyond the bound
//! (`RLIMIT_DATA`), so that a burst cannot take the machine down: the process then ends itself, with an exit code of its own.
//! And somebody looks how much is really resident, often, and ends the process that is over its bound.

mod group;

use std::{
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use group::Group;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// How often a bounded process is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Room for stacks of threads and the allocator's reserves, which count as data although nobody uses them.
const RESERVES: u64 = 512 << 20;
/// A process ends itself with this code when it could not get memory.
const RAN_OUT: i32 = 86;

/// Finds out whether there are control groups for us; before there are child processes, which would be in the way.
pub(crate) fn prepare() {
    Group::prepare();
}

/// The memory of one process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// 0 = no bound.
    limit: AtomicU64,
    /// What it used when it was ended for that.
    ended_at: AtomicU64,
    group: OnceLock<Group>,
}

impl Memory {
    /// Bounds the process from now on.
    pub fn bound(&self, pid: u32, limit: u64) {
        self.0.limit.store(limit, Ordering::Relaxed);
        if let Some(group) = Group::of(pid, limit) {
            let _ = self.0.group.set(group);
        }
        let Some(process) = Pid::from_raw(pid as i32) else { return };
        let most = data(pid).unwrap_or(0) + limit + RESERVES;
        let wanted = Rlimit { current: Some(most), maximum: Some(most) };
        if let Err(error) = prlimit(Some(process), Resource::Data, wanted) {
            tracing::warn!(pid, %error, "the kernel does not bound this process; it is only watched");
        }
        let watched = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let (Some(inner), Some(used)) = (watched.upgrade(), resident(pid)) else { return };
                if used > limit {
                    inner.ended_at.store(used, Ordering::Relaxed);
                    let _ = kill_process(process, Signal::KILL);
                    return;
                }
            }
        });
    }

    /// Its bound in bytes; 0 = none.
    pub fn limit(&self) -> u64 {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Why it ended, if that was for lack of memory.
    pub fn ran_out(&self, status: &ExitStatus) -> Option<String> {
        let (limit, used) = (self.limit(), self.0.ended_at.load(Ordering::Relaxed));
        let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
        match (used, status.code(), status.signal()) {
            (1.., _, Some(_)) => Some(format!("ran out of memory: it used {}, its bound is {}", mib(used), mib(limit))),
            (_, _, Some(_)) if self.0.group.get().is_some_and(Group::ran_out) => {
                Some(format!("ran out of memory: the kernel ended it, its bound is {}", mib(limit)))
            }
            (_, Some(RAN_OUT), _) if limit > 0 => Some(format!("ran out of memory: its bound is {}", mib(limit))),
            _ => None,
        }
    }
}

/// What is resident and the process's own (not of files), bytes; `None` when it is gone.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// Private writable memory, bytes, used or only reserved: what `RLIMIT_DATA` counts.
fn data(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmData:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}
