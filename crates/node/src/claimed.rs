//! Folders in shared places (temporary files, shared memory) that go with who made them, however that ends: each holds a file
//! `lock`, which its owners keep locked while they run. The kernel gives the lock back at their end; whoever comes later takes
//! away the folders whose lock is free. `python/covey/_claimed.py` is the same for programs in Python.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// The file that is locked.
const LOCK: &str = "lock";
/// What it is called until it is locked: nobody finds it free before.
const NEW: &str = "lock.new";
/// Folders looked at in one place.
const LOOKED_AT_MAX: usize = 10_000;

/// A folder is taken away by nobody else as long as this is.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

/// Claims a folder that this process has made.
pub fn claim(folder: &Path) -> io::Result<Claim> {
    let new = folder.join(NEW);
    let lock = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    lock.lock_shared()?;
    fs::rename(new, folder.join(LOCK))?;
    Ok(Claim { _lock: lock })
}

/// Claims a folder that another process has claimed, beside that one; `None` where nobody has.
pub fn join(folder: &Path) -> Option<Claim> {
    let lock = File::open(folder.join(LOCK)).ok()?;
    lock.lock_shared().ok()?;
    Some(Claim { _lock: lock })
}

/// Takes away folders of this user in `parent` whose names begin so and whose owners are over, with what lies `beside` them under
/// the same name. Folders without a lock are not looked at.
pub fn sweep(parent: &Path, prefix: &str, beside: Option<&Path>) {
    let own = rustix::process::getuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten().take(LOOKED_AT_MAX) {
        let (name, folder) = (entry.file_name(), entry.path());
        if !name.to_string_lossy().starts_with(prefix) {
            continue;
        }
        // Not through links: it is the entry itself that is asked about.
        if !entry.metadata().is_ok_and(|about| about.is_dir() && about.uid() == own) {
            continue;
        }
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let Ok(lock) = File::options().read(true).custom_flags(flags).open(folder.join(LOCK)) else { continue };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => continue,
        }
        let _ = fs::remove_dir_all(&folder);
        if let Some(other) = beside.map(|beside| beside.join(&name)) {
            let _ = fs::remove_dir_all(other);
        }
        tracing::info!(folder = %folder.display(), "its owner is over: taken away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_whose_owners_are_over_are_taken_away_and_no_others() {
        let (dir, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = |name: &str| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::create_dir(beside.path().join(name)).unwrap();
            folder
        };
        let (kept, gone, joined) = (made("covey-kept"), made("covey-gone"), made("covey-joined"));
        let (plain, other) = (made("covey-plain"), made("other"));
        let _kept = claim(&kept).unwrap();
        drop(claim(&gone).unwrap());
        drop(claim(&other).unwrap());
        let owner = claim(&joined).unwrap();
        let _second = join(&joined).unwrap();
        drop(owner);
        assert!(join(&plain).is_none());
        sweep(dir.path(), "covey-", Some(beside.path()));
        assert!(!gone.exists() && !beside.path().join("covey-gone").exists());
        for there in [kept, joined, plain, other] {
            assert!(there.exists(), "{}", there.display());
            assert!(beside.path().join(there.file_name().unwrap()).exists());
        }
    }
}
