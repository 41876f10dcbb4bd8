//! What this machine has, within the limits of its cgroup.

use std::fs;

/// CPUs: the cgroup's quota where there is one, else what the scheduler offers.
pub(crate) fn cpus() -> f64 {
    let offered = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let quota = fs::read_to_string("/sys/fs/cgroup/cpu.max").ok().and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    });
    quota.map_or(offered, |q| q.min(offered))
}

/// Bytes of memory: the cgroup's limit where there is one, else the machine's.
pub(crate) fn memory() -> u64 {
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse::<u64>().ok());
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    match (limit, total) {
        (Some(limit), Some(total)) => limit.min(total),
        (limit, total) => limit.or(total).unwrap_or(1 << 30),
    }
}

/// A folder of files in memory; an ordinary temporary folder where the machine has none.
pub(crate) fn memory_folder() -> std::path::PathBuf {
    let shm = std::path::PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { std::env::temp_dir() }
}

/// Bytes that objects may take of a folder: a share of the memory, and of what its file system has (containers often
/// have little).
pub(crate) fn room_for_objects(folder: &std::path::Path, memory_bytes: u64) -> u64 {
    let there = rustix::fs::statvfs(folder).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    (memory_bytes / 10 * 3).min(there / 10 * 8)
}

/// Milliseconds since the machine started, those in which it slept included.
pub(crate) fn boot_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
}
