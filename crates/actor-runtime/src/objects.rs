//! A worker's objects: files named by their digest, in memory first, on disk when there are too many.
//!
//! Writers put a file under another name and rename it, so what has the name is whole. Readers map files; one that is
//! moved or removed under them stays as long as they hold it.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use covey_domain::{Error, ErrorKind};
use parking_lot::Mutex;

/// Where objects are and how much room they have.
#[derive(Clone, Debug)]
pub struct ObjectsConfig {
    /// Folder in memory.
    pub memory: PathBuf,
    /// Its bound, bytes; what was used least recently goes to disk beyond it.
    pub memory_bytes_max: u64,
    /// Folder on disk.
    pub disk: PathBuf,
    /// Its bound, bytes; beyond it nothing more is taken.
    pub disk_bytes_max: u64,
}

/// The objects of one worker.
#[derive(Clone)]
pub struct Objects {
    config: Arc<ObjectsConfig>,
    /// One fetch at a time for each object.
    fetching: Arc<Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Session and digest.
type Name = (String, String);

/// Letters, digits and `-`: nothing that walks out of the folder.
fn safe(text: &str) -> Result<&str, Error> {
    let good = !text.is_empty() && text.len() <= 128 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    good.then_some(text).ok_or_else(|| Error::invalid(format!("`{text}` does not name an object")))
}

impl Objects {
    /// Makes the folders, for this user alone.
    pub fn new(config: ObjectsConfig) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        for folder in [&config.memory, &config.disk] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        Ok(Self { config: Arc::new(config), fetching: Arc::default() })
    }

    /// The folder that others on this machine may write to.
    pub fn folder(&self) -> &Path {
        &self.config.memory
    }

    /// The file of an object that is here.
    pub fn find(&self, session: &str, digest: &str) -> Result<Option<PathBuf>, Error> {
        let name = Path::new(safe(session)?).join(safe(digest)?);
        let found = [&self.config.memory, &self.config.disk].into_iter().map(|f| f.join(&name)).find(|p| p.exists());
        if let Some(path) = &found
            && let Ok(file) = fs::File::open(path)
        {
            // The time of last use, for those who make room.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(found)
    }

    /// A fresh name in an object's folder, to write it under.
    pub fn draft(&self, session: &str) -> Result<PathBuf, Error> {
        let folder = self.config.memory.join(safe(session)?);
        fs::create_dir_all(&folder).map_err(|e| Error::internal(format!("failed to make room for an object: {e}")))?;
        let number = std::sync::atomic::AtomicU64::fetch_add(&DRAFTS, 1, std::sync::atomic::Ordering::Relaxed);
        Ok(folder.join(format!(".draft-{}-{number}", std::process::id())))
    }

    /// Gives a draft its name.
    pub fn keep(&self, draft: &Path, session: &str, digest: &str) -> Result<PathBuf, Error> {
        let path = self.config.memory.join(safe(session)?).join(safe(digest)?);
        fs::rename(draft, &path).map_err(|e| Error::internal(format!("failed to keep an object: {e}")))?;
        Ok(path)
    }

    /// The object, brought here by `fetch` (which writes a draft) when it is not; one fetch for all who ask.
    pub async fn obtain<F>(
        &self,
        session: &str,
        digest: &str,
        fetch: impl FnOnce(PathBuf) -> F,
    ) -> Result<PathBuf, Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        if let Some(path) = self.find(session, digest)? {
            return Ok(path);
        }
        let key = (session.to_owned(), digest.to_owned());
        let turn = self.fetching.lock().entry(key.clone()).or_default().clone();
        let _turn = turn.lock().await;
        if let Some(path) = self.find(session, digest)? {
            return Ok(path);
        }
        let draft = self.draft(session)?;
        let fetched = fetch(draft.clone()).await;
        self.fetching.lock().remove(&key);
        let result = fetched.and_then(|()| self.keep(&draft, session, digest));
        if result.is_err() {
            let _ = fs::remove_file(&draft);
        }
        result
    }

    /// What lived for a driver that is gone.
    pub fn forget(&self, session: &str) {
        if let Ok(session) = safe(session) {
            for folder in [&self.config.memory, &self.config.disk] {
                let _ = fs::remove_dir_all(folder.join(session));
            }
        }
    }

    /// Everything; the worker stops.
    pub fn clear(&self) {
        for folder in [&self.config.memory, &self.config.disk] {
            let _ = fs::remove_dir_all(folder);
        }
    }

    /// Refuses more when even the disk's share is full.
    pub fn check_room(&self) -> Result<(), Error> {
        let used: u64 = files(&self.config.disk).iter().map(|f| f.1).sum();
        if used <= self.config.disk_bytes_max {
            return Ok(());
        }
        let text = format!("the worker keeps {} MiB of objects on disk already", used >> 20);
        Err(Error::new(ErrorKind::Overloaded, text).hint("drop references to objects, or give the worker more disk"))
    }

    /// Moves what was used least recently to disk until memory has room. Meant for once a second; cheap when nothing is
    /// to be done.
    pub fn make_room(&self) {
        let mut all = files(&self.config.memory);
        let mut used: u64 = all.iter().map(|f| f.1).sum();
        if used <= self.config.memory_bytes_max {
            return;
        }
        all.sort_by_key(|f| f.2);
        for (path, bytes, _) in all {
            if used <= self.config.memory_bytes_max {
                return;
            }
            if let Err(error) = self.spill(&path) {
                tracing::warn!(%error, path = %path.display(), "failed to move an object to disk");
                return;
            }
            used -= bytes;
        }
    }

    fn spill(&self, path: &Path) -> io::Result<()> {
        let name = path.strip_prefix(&self.config.memory).map_err(io::Error::other)?;
        let (to, draft) = (self.config.disk.join(name), self.config.disk.join(name).with_extension("draft"));
        fs::create_dir_all(to.parent().unwrap_or(&self.config.disk))?;
        fs::copy(path, &draft)?;
        fs::rename(&draft, &to)?;
        fs::remove_file(path)
    }
}

static DRAFTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Whole objects in a store's folder: path, bytes, last use.
fn files(folder: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut found = Vec::new();
    for session in fs::read_dir(folder).into_iter().flatten().flatten() {
        for file in fs::read_dir(session.path()).into_iter().flatten().flatten() {
            if let Ok(about) = file.metadata()
                && !file.file_name().to_string_lossy().starts_with('.')
            {
                found.push((file.path(), about.len(), about.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &Path, memory: u64, disk: u64) -> Objects {
        let config = ObjectsConfig {
            memory: folder.join("memory"),
            memory_bytes_max: memory,
            disk: folder.join("disk"),
            disk_bytes_max: disk,
        };
        Objects::new(config).expect("a temporary folder is writable")
    }

    fn put(store: &Objects, session: &str, digest: &str, bytes: usize, age_s: u64) {
        let draft = store.draft(session).expect("a draft");
        fs::write(&draft, vec![7; bytes]).expect("a file");
        let path = store.keep(&draft, session, digest).expect("a name");
        let when = SystemTime::now() - std::time::Duration::from_secs(age_s);
        fs::File::open(path).and_then(|f| f.set_modified(when)).expect("a time");
    }

    #[test]
    fn the_oldest_goes_to_disk_and_is_still_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 250, 1_000);
        for (digest, age_s) in [("aa", 30), ("bb", 20), ("cc", 10)] {
            put(&store, "s", digest, 100, age_s);
        }
        store.make_room();
        let at = |digest: &str| store.find("s", digest).expect("a name").expect("it is here");
        assert!(at("aa").starts_with(folder.path().join("disk")));
        assert!(at("bb").starts_with(folder.path().join("memory")));
        assert!(store.check_room().is_ok());
        store.forget("s");
        assert_eq!(store.find("s", "aa").expect("a name"), None);
    }

    #[test]
    fn a_full_disk_refuses_and_names_stay_in_the_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 10, 100);
        put(&store, "s", "aa", 200, 5);
        store.make_room();
        assert_eq!(store.check_room().expect_err("it is full").kind, ErrorKind::Overloaded);
        for name in ["..", "a/b", "", "/etc/passwd"] {
            assert!(store.find(name, "aa").is_err(), "{name}");
            assert!(store.find("s", name).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn many_who_ask_lead_to_one_fetch() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 1_000, 1_000);
        let fetched = std::sync::atomic::AtomicUsize::new(0);
        let ask = || {
            store.obtain("s", "aa", async |draft: PathBuf| {
                fetched.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
                fs::write(draft, b"x").map_err(|e| Error::internal(e.to_string()))
            })
        };
        let all = futures::future::join_all((0..10).map(|_| ask())).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(fetched.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
