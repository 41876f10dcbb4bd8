//! The worker's lease where its Python processes can see it: eight bytes of a file, the end of the lease in milliseconds of the
//! boot clock, native byte order. 0: there is no lease, and nothing ends by it.
//!
//! Code of agents can read the file and not write it: it is not in a folder for temporary files. Whoever writes it keeps others'
//! processes from ending, or ends them.
//!
//! A process that holds user code arms a timer of the kernel with it (`python-bindings`, `watchdog.rs`). So the code stops in
//! time also when this worker is stopped itself (SIGSTOP, a debugger) and can stop nobody.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use covey_domain::Millis;

/// A folder for it below `home`, of this process alone. Takes away those of processes that are over.
pub(crate) fn folder(home: &Path) -> io::Result<PathBuf> {
    let all = std::path::absolute(home)?.join("run");
    covey_node::home::private_dir(&all)?;
    for entry in fs::read_dir(&all)?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.split_once('-')).map(|(pid, _)| pid);
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let own = all.join(format!("{}-{:016x}", std::process::id(), rand::random::<u64>()));
    covey_node::home::own_dir(&own)?;
    Ok(own)
}

/// The worker's end of it: writes.
#[derive(Debug)]
pub(crate) struct SharedLease {
    file: File,
}

impl SharedLease {
    /// A file at `path` without a lease in it.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).open(path)?;
        let lease = Self { file };
        lease.file.write_all_at(&0u64.to_ne_bytes(), 0)?;
        Ok(lease)
    }

    /// Until when those who read it may act.
    pub fn set(&self, until: Option<Millis>) {
        if let Err(error) = self.file.write_all_at(&until.unwrap_or(0).to_ne_bytes(), 0) {
            // What cannot read a renewal ends with the lease it knows.
            tracing::error!(%error, "the lease could not be shown to the Python processes");
        }
    }
}
