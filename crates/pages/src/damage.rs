//! Which pages were found damaged, for those who tell of it: SQLite's own error says no more than "disk I/O error".

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

/// Damaged pages that are remembered.
const KNOWN_MAX: usize = 4096;

/// A page that does not have its sum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The database.
    pub database: PathBuf,
    /// It lies in the database's write-ahead log.
    pub in_log: bool,
    /// Its number, from 1.
    pub page: u64,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.in_log { " in the write-ahead log" } else { "" };
        write!(f, "page {}{place} is not as it was written", self.page)
    }
}

#[derive(Default)]
struct Known {
    all: BTreeSet<Damage>,
    latest: Option<Damage>,
}

static KNOWN: Mutex<Known> = Mutex::new(Known { all: BTreeSet::new(), latest: None });

/// Remembers a page, and logs it the first time.
pub(crate) fn found(damage: Damage) {
    let is_new = {
        let mut known = KNOWN.lock();
        known.latest = Some(damage.clone());
        known.all.len() < KNOWN_MAX && known.all.insert(damage.clone())
    };
    if is_new {
        tracing::error!(
            file = %damage.database.display(), page = damage.page, in_log = damage.in_log,
            "a page is damaged, and what it held cannot be read; `covey doctor` names all such pages, `covey restore` brings back a backup"
        );
    }
}

/// The page that was found damaged last, in any database of this process.
pub fn latest() -> Option<Damage> {
    KNOWN.lock().latest.clone()
}

/// Pages of a database that were found damaged since this process began, in order.
pub fn damaged(database: &Path) -> Vec<Damage> {
    let real = std::fs::canonicalize(database);
    let named =
        |damage: &&Damage| damage.database == database || real.as_ref().is_ok_and(|real| *real == damage.database);
    KNOWN.lock().all.iter().filter(named).cloned().collect()
}
