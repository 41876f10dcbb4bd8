//! Control groups, version 2 or 1, where this process may make some: they bound a process with all of its children, and
//! count what it keeps in memory file systems.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Where control groups are mounted by all common systems.
const MOUNT: &str = "/sys/fs/cgroup";

/// The group of one process; goes with the value, once the process has gone.
#[derive(Debug)]
pub(crate) struct Group {
    folder: PathBuf,
    unified: bool,
}

/// This process's own group, below which others are made.
#[derive(Debug)]
struct Base {
    folder: PathBuf,
    unified: bool,
}

static BASE: OnceLock<Option<Base>> = OnceLock::new();

impl Group {
    /// Looks for a place for groups.
    pub fn prepare() {
        BASE.get_or_init(Base::find);
    }

    /// Bounds the process and what it starts from now on, bytes. `None` where there are no groups for us.
    pub fn of(pid: u32, limit: u64) -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let base = BASE.get_or_init(Base::find).as_ref()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = base.folder.join(format!("covey-{}-{number}", std::process::id()));
        let group = Self { folder, unified: base.unified };
        match group.make(pid, limit) {
            Ok(()) => Some(group),
            Err(error) => {
                tracing::debug!(folder = %group.folder.display(), %error, "no control group");
                None
            }
        }
    }

    fn make(&self, pid: u32, limit: u64) -> io::Result<()> {
        fs::create_dir(&self.folder)?;
        let set = |name: &str, value: &str| fs::write(self.folder.join(name), value);
        if self.unified {
            set("memory.max", &limit.to_string())?;
            // Not all kernels have these: swap, and that the processes of a group go together.
            let _ = set("memory.swap.max", "0");
            let _ = set("memory.oom.group", "1");
        } else {
            set("memory.limit_in_bytes", &limit.to_string())?;
            let _ = set("memory.memsw.limit_in_bytes", &limit.to_string());
        }
        set("cgroup.procs", &pid.to_string())
    }

    /// Whether the kernel ended a process for being over the bound.
    pub fn ran_out(&self) -> bool {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count.trim() != "0")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that still has processes stays, and is taken away by the next worker.
        let _ = fs::remove_dir(&self.folder);
    }
}

impl Base {
    fn find() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let base = Self::of(&own, Path::new(MOUNT))?;
        if base.unified && !base.hands_memory_on() {
            return None;
        }
        for entry in fs::read_dir(&base.folder).ok()?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("covey-") {
                // Of a worker that was killed; one in use is not empty.
                let _ = fs::remove_dir(entry.path());
            }
        }
        tracing::debug!(folder = %base.folder.display(), "memory is bounded by control groups");
        Some(base)
    }

    /// The group that `/proc/self/cgroup` names, when it can bound memory.
    fn of(own: &str, mount: &Path) -> Option<Self> {
        let below = |mount: PathBuf, path: &str| mount.join(path.trim_start_matches('/'));
        let found = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            if number == "0" && mount.join("cgroup.controllers").exists() {
                return Some(Self { folder: below(mount.to_owned(), path), unified: true });
            }
            let memory = controllers.split(',').any(|c| c == "memory");
            memory.then(|| Self { folder: below(mount.join("memory"), path), unified: false })
        })?;
        let file = if found.unified { "cgroup.procs" } else { "memory.limit_in_bytes" };
        found.folder.join(file).exists().then_some(found)
    }

    /// Version 2 bounds the memory of groups below one only where that has no processes of its own: this one moves into a
    /// group beside those that it will make.
    fn hands_memory_on(&self) -> bool {
        let control = self.folder.join("cgroup.subtree_control");
        let has = || fs::read_to_string(&control).is_ok_and(|on| on.split_whitespace().any(|c| c == "memory"));
        if has() {
            return true;
        }
        let (own, pid) = (self.folder.join("covey-worker"), std::process::id().to_string());
        let moved = fs::create_dir_all(&own).and_then(|()| fs::write(own.join("cgroup.procs"), &pid));
        if moved.and_then(|()| fs::write(&control, "+memory")).is_ok() && has() {
            return true;
        }
        // Somebody else lives there.
        let _ = fs::write(self.folder.join("cgroup.procs"), pid);
        let _ = fs::remove_dir(own);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_both_versions() {
        let mount = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        make("memory/some/where/memory.limit_in_bytes");
        let own = "9:name=systemd:/\n4:cpu,memory:/some/where\n0::/\n";
        let found = Base::of(own, mount.path()).unwrap();
        assert!(!found.unified && found.folder.ends_with("memory/some/where"));
        assert!(Base::of("4:memory:/else/where\n", mount.path()).is_none());
        make("cgroup.controllers");
        make("user.slice/cgroup.procs");
        let found = Base::of("0::/user.slice\n", mount.path()).unwrap();
        assert!(found.unified && found.folder.ends_with("user.slice"));
    }
}
