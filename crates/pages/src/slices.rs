//! What is written goes to the disk in slices, while it is written.
//!
//! SQLite leaves megabytes to the page cache and has them written by one fsync. On the same disk the log in front of the tables
//! syncs a few kilobytes for each request, and each of these syncs waits for all that a fsync of the tables has under way: 20 to 60 ms
//! where it usually takes 0.7 ms. Written in slices there is never more than one under way, and the fsync finds little to do.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "a system call that std does not have"))]

#[cfg(target_os = "linux")]
pub(crate) use linux::Slices;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::Slices;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        collections::HashMap,
        fs::File,
        os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
        path::Path,
        sync::{Arc, LazyLock, Weak},
    };

    use parking_lot::Mutex;

    /// Bytes that are written before they go to the disk.
    const SLICE: usize = 256 << 10;

    /// A descriptor of each file, by device and inode, beside SQLite's own, which nobody is told. It is shared, and closed after SQLite
    /// has closed its last: whoever closes any descriptor of a file gives up all locks that its process has on it.
    static OPEN: LazyLock<Mutex<Files>> = LazyLock::new(Mutex::default);
    type Files = HashMap<(u64, u64), Weak<File>>;

    /// How much of a file was written since the last slice.
    #[derive(Debug)]
    pub(crate) struct Slices {
        /// `None` while it is dropped alone.
        file: Option<Arc<File>>,
        written: usize,
        /// The file system has such a call.
        hurries: bool,
    }

    impl Slices {
        /// Of the file at `path`, which is open.
        pub fn of(path: &Path) -> std::io::Result<Self> {
            Ok(Self { file: Some(shared(path)?), written: 0, hurries: true })
        }

        /// So many bytes more were written. Waits for the disk where they make a slice.
        ///
        /// # Errors
        /// The disk did not take what was written.
        pub fn wrote(&mut self, bytes: usize) -> std::io::Result<()> {
            self.written += bytes;
            if self.written < SLICE || !self.hurries {
                return Ok(());
            }
            self.written = 0;
            let Some(file) = &self.file else { return Ok(()) };
            let flags =
                libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            // SAFETY: the descriptor is open; from 0 on, 0 bytes are all there are.
            if unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } == 0 {
                return Ok(());
            }
            let error = std::io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EIO | libc::ENOSPC | libc::EDQUOT) => Err(error),
                // Its fsync does it all. The descriptor stays: SQLite has the file open.
                _ => {
                    self.hurries = false;
                    Ok(())
                }
            }
        }
    }

    impl Drop for Slices {
        fn drop(&mut self) {
            // Nobody opens the file anew, and takes locks on it, while the last descriptor is closed.
            let _open = OPEN.lock();
            self.file = None;
        }
    }

    fn shared(path: &Path) -> std::io::Result<Arc<File>> {
        let mut open = OPEN.lock();
        open.retain(|_, file| file.strong_count() > 0);
        let about = std::fs::metadata(path)?;
        let key = (about.dev(), about.ino());
        if let Some(file) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = Arc::new(File::open(path)?);
        open.insert(key, Arc::downgrade(&file));
        Ok(file)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_file_has_one_descriptor_however_often_it_is_open() {
            let path = std::env::temp_dir().join(format!("covey-slices-{}", std::process::id()));
            std::fs::write(&path, vec![0; 4 * SLICE]).unwrap();
            let (mut one, two) = (Slices::of(&path).unwrap(), Slices::of(&path).unwrap());
            let about = std::fs::metadata(&path).unwrap();
            let known = || OPEN.lock().get(&(about.dev(), about.ino())).is_some_and(|file| file.strong_count() > 0);
            let of = |slices: &Slices| slices.file.as_ref().unwrap().as_raw_fd();
            assert_eq!(of(&one), of(&two));
            for _ in 0..5 {
                one.wrote(SLICE / 2).unwrap();
            }
            assert_eq!(one.written, SLICE / 2);
            drop(one);
            assert!(known());
            drop(two);
            assert!(!known());
            std::fs::remove_file(path).unwrap();
            assert!(Slices::of(Path::new("/nowhere")).is_err());
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::path::Path;

    /// There is no such call: fsync does it all.
    #[derive(Debug)]
    pub(crate) struct Slices;

    impl Slices {
        pub fn of(_: &Path) -> std::io::Result<Self> {
            Ok(Self)
        }

        pub fn wrote(&mut self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
    }
}
