//! Files of the cluster that lie below folders that the code may reach: out of reach all the same.
//!
//! Where there are mount namespaces an empty folder lies over each of them ([`mask`]). What the policy names below it is put back
//! into that folder, and cannot be changed there unless the policy says so. The folder itself is covered and not its files one by
//! one: a file that is renamed over another takes away what covers it.
//!
//! Where there are none, the folders that hold them are given in parts ([`cut`]): Landlock can only add.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{Policy, SYSTEM, TEMPORARY, sys};

/// The place itself, whatever leads to it.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Files and folders of a policy that the code would reach if they were not hidden, without those below others of them.
pub(crate) fn hidden(policy: &Policy) -> Vec<PathBuf> {
    let given = SYSTEM.iter().chain(TEMPORARY).map(Path::new);
    let given: Vec<_> = given.chain(policy.read.iter().chain(&policy.write).map(|p| p.as_path())).map(real).collect();
    let wanted = policy.hide.iter().filter(|path| path.exists()).map(|path| real(path));
    // One that holds a folder that is given holds more than that.
    let mut found: Vec<_> = wanted.filter(|path| given.iter().any(|given| path.starts_with(given))).collect();
    found.sort();
    found.dedup_by(|path, above| path.starts_with(&*above));
    found
}

/// What the policy names below a hidden folder, parents first, and whether it may be changed.
fn kept(policy: &Policy, hidden: &Path) -> Vec<(PathBuf, bool)> {
    let read = policy.read.iter().map(|path| (real(path), false));
    let all = read.chain(policy.write.iter().map(|path| (real(path), true)));
    let mut below: Vec<_> =
        all.filter(|(path, _)| path.starts_with(hidden) && path != hidden && path.exists()).collect();
    // Of one that is named twice the word that says more is the last.
    below.sort();
    below.dedup_by(|next, first| {
        let same = next.0 == first.0;
        first.1 |= same && next.1;
        same
    });
    below
}

/// Covers a file or folder for this process and what it becomes, in a mount namespace of its own.
pub(crate) fn mask(policy: &Policy, hidden: &Path) -> io::Result<()> {
    if !hidden.is_dir() {
        return sys::cover_file(hidden);
    }
    // By what is opened now they are found once the folder is covered.
    let open = |path: &Path| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let kept = kept(policy, hidden).into_iter().map(|(path, write)| Ok((open(&path)?, path, write)));
    let kept = kept.collect::<io::Result<Vec<_>>>()?;
    sys::cover_folder(hidden)?;
    let put_back = kept.iter().try_for_each(|(open, path, write)| put_back(open, path, *write));
    put_back.and_then(|()| sys::read_only(hidden)).inspect_err(|_| {
        // It is cut out instead.
        let _ = sys::uncover(hidden);
    })
}

fn put_back(open: &File, path: &Path, write: bool) -> io::Result<()> {
    if open.metadata()?.is_dir() {
        fs::create_dir_all(path)?;
    } else {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        OpenOptions::new().create(true).append(true).open(path)?;
    }
    sys::bind(&Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()), path)?;
    if write { Ok(()) } else { sys::read_only(path) }
}

/// The parts of a folder that can be given: all of it, or what is in it now without what is cut out of it.
pub(crate) fn cut(root: &Path, out: &[PathBuf]) -> Vec<PathBuf> {
    let place = real(root);
    let over = |path: &Path| out.iter().any(|hidden| hidden.starts_with(path));
    if !over(&place) {
        return vec![root.to_owned()];
    }
    let (mut parts, mut left) = (Vec::new(), vec![place]);
    while let Some(folder) = left.pop() {
        if out.contains(&folder) {
            continue;
        }
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // A link leads where it leads.
            let (path, is_link) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_symlink()));
            let place = real(&path);
            if out.iter().any(|hidden| place.starts_with(hidden)) {
                continue;
            }
            match (over(&place), is_link) {
                (false, _) => parts.push(path),
                (true, false) => left.push(path),
                (true, true) => {}
            }
        }
    }
    parts
}
