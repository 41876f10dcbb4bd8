//! What Python processes print: a file for each, cut by size and age, read by `covey logs`.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// A file this large is put aside; one older one is kept.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Files of processes that ended this long ago are removed.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The output of one process.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    file: Mutex<(File, u64)>,
}

impl Output {
    pub fn create(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::create(&path)?;
        Ok(Self { path, file: Mutex::new((file, 0)) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn line(&self, line: &str) -> io::Result<()> {
        let mut file = self.file.lock();
        if file.1 > FILE_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *file = (File::create(&self.path)?, 0);
        }
        file.0.write_all(line.as_bytes())?;
        file.0.write_all(b"\n")?;
        file.1 += line.len() as u64 + 1;
        Ok(())
    }

    /// Copies what a process prints to the file, and to the worker's own output, until it ends.
    pub async fn copy(&self, from: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(from).split(b'\n');
        while let Ok(Some(bytes)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&bytes);
            // A worker whose own output is closed still keeps the line.
            let _ = writeln!(io::stderr(), "{line}");
            if let Err(error) = self.line(&line) {
                tracing::warn!(%error, path = %self.path.display(), "a line of output was not kept");
            }
        }
    }
}

/// What a file has from `offset` on, at most `most` bytes; from the start when it was cut meanwhile. Gives the next offset.
pub(crate) fn read(path: &Path, offset: u64, most: usize) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = if offset > length { 0 } else { offset };
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    let next = from + bytes.len() as u64;
    Ok((bytes, next))
}

/// Removes files that nobody will want any more.
pub(crate) fn clean(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age =
            entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| SystemTime::now().duration_since(t).ok());
        if age.is_some_and(|age| age > AGE_MAX) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_kept_and_the_file_is_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Output::create(folder.path().join("p.log")).expect("a file");
        output.copy(&b"one\ntwo \xff\nthree"[..]).await;
        let (bytes, next) = read(output.path(), 0, 1 << 20).expect("readable");
        assert_eq!(String::from_utf8_lossy(&bytes), "one\ntwo \u{fffd}\nthree\n");
        assert_eq!(read(output.path(), next, 1 << 20).expect("readable").0, b"");
        let long = "x".repeat(1 << 20);
        for _ in 0..10 {
            output.line(&long).expect("room");
        }
        assert!(fs::metadata(output.path()).expect("there").len() < FILE_BYTES_MAX);
        assert!(folder.path().join("p.log.1").exists());
        assert!(
            !read(output.path(), u64::MAX, 10).expect("readable").0.is_empty(),
            "a cut file is read from its start"
        );
    }
}
