//! The worker's lease where its Python processes can see it: eight bytes of a file, the end of the lease in milliseconds of the
//! boot clock, native byte order. 0: there is no lease, and nothing ends by it.
//!
//! A process that holds user code arms a timer of the kernel with it (`python-bindings`, `watchdog.rs`). So the code stops in
//! time also when this worker is stopped itself (SIGSTOP, a debugger) and can stop nobody.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use covey_domain::Millis;

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
