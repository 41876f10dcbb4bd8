//! Small tables of secrets: in memory, and in a file that only its owner can read.

use std::{collections::BTreeMap, io, path::PathBuf};

use covey_domain::{Error, ErrorKind};
use parking_lot::{RwLock, RwLockReadGuard};
use serde::{Serialize, de::DeserializeOwned};

/// A table that is written whole at each change.
#[derive(Debug)]
pub(crate) struct Kept<V> {
    path: PathBuf,
    all: RwLock<BTreeMap<String, V>>,
}

impl<V: Clone + PartialEq + Serialize + DeserializeOwned> Kept<V> {
    /// As the file has it; without a file it is empty.
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        let read = || -> io::Result<_> {
            match std::fs::read(&path) {
                Ok(body) => Ok(serde_json::from_slice(&body)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
                Err(error) => Err(error),
            }
        };
        let all = read().map_err(|e| Error::internal(format!("failed to read `{}`: {e}", path.display())))?;
        Ok(Self { path, all: RwLock::new(all) })
    }

    /// As it is now.
    pub fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, V>> {
        self.all.read()
    }

    fn unwritten(&self, error: &io::Error) -> Error {
        let text = format!("failed to write `{}`: {error}", self.path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::new(ErrorKind::StorageFull, text).hint("make room on the disk of the head").executed(Some(false))
            }
            _ => Error::internal(text),
        }
    }

    /// Changes it; what cannot be written has not happened.
    pub fn change(&self, change: impl FnOnce(&mut BTreeMap<String, V>) -> Result<(), Error>) -> Result<(), Error> {
        let mut all = self.all.write();
        let mut next = all.clone();
        change(&mut next)?;
        if next != *all {
            let body = serde_json::to_vec(&next).map_err(io::Error::from);
            body.and_then(|body| covey_node::home::write_private(&self.path, &body))
                .map_err(|error| self.unwritten(&error))?;
            *all = next;
        }
        Ok(())
    }
}
