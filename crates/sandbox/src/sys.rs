//! The few system calls that need C's names. Strings and flags in, an error out: nothing here holds memory.
#![expect(unsafe_code, reason = "each call takes numbers and strings that outlive it")]

use std::{ffi::CString, io, os::unix::ffi::OsStrExt as _, path::Path, ptr::null};

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Nothing that this thread becomes gets more rights than it has.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Own namespaces from now on: `CLONE_NEW…`.
pub(crate) fn unshare(spaces: libc::c_int) -> io::Result<()> {
    done(unsafe { libc::unshare(spaces) })
}

/// What is mounted from here on stays in this namespace.
pub(crate) fn keep_mounts() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    done(unsafe { libc::mount(null(), c"/".as_ptr(), null(), flags, null()) })
}

/// An empty folder over this one; [`read_only`] seals it.
pub(crate) fn cover_folder(path: &Path) -> io::Result<()> {
    let (path, flags) = (text(path)?, libc::MS_NOSUID | libc::MS_NODEV);
    done(unsafe { libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), flags, null()) })
}

/// What is mounted here is so no more.
pub(crate) fn uncover(path: &Path) -> io::Result<()> {
    let path = text(path)?;
    done(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })
}

/// The file or folder `of` is here, too.
pub(crate) fn bind(of: &Path, here: &Path) -> io::Result<()> {
    let (of, here) = (text(of)?, text(here)?);
    done(unsafe { libc::mount(of.as_ptr(), here.as_ptr(), null(), libc::MS_BIND, null()) })
}

/// Nothing is changed through what is mounted here.
pub(crate) fn read_only(path: &Path) -> io::Result<()> {
    const SAME: libc::c_ulong =
        libc::ST_NOSUID | libc::ST_NODEV | libc::ST_NOEXEC | libc::ST_NOATIME | libc::ST_NODIRATIME;
    let path = text(path)?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    done(unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) })?;
    let is = unsafe { found.assume_init() }.f_flag;
    // What it has been forbidden elsewhere cannot be allowed here; all but one of these flags have the same bits in both calls.
    let kept = is & SAME | if is & libc::ST_RELATIME == 0 { 0 } else { libc::MS_RELATIME };
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | kept;
    done(unsafe { libc::mount(null(), path.as_ptr(), null(), flags, null()) })
}

/// An empty file over this one.
pub(crate) fn cover_file(path: &Path) -> io::Result<()> {
    let path = text(path)?;
    done(unsafe { libc::mount(c"/dev/null".as_ptr(), path.as_ptr(), null(), libc::MS_BIND, null()) })
}

/// Real user and group of this process.
pub(crate) fn who() -> (u32, u32) {
    unsafe { (libc::getuid(), libc::getgid()) }
}
