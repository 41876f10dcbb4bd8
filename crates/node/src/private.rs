//! Clusters that drivers of this user started for themselves (`covey.init()`), and that end with them. Each leaves a note of
//! where its credentials are (`<home>/private/<pid>.json`), so that the command line finds it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use crate::{Credentials, home};

/// Notes that are looked at.
const NOTES_MAX: usize = 1_000;
/// A head on this machine has so long to take a connection.
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);

/// A cluster that runs as long as its driver.
#[derive(Clone, Debug, Deserialize)]
pub struct Private {
    /// Its own home folder.
    pub home: PathBuf,
    /// Process of the driver.
    pub pid: u32,
    /// What that runs.
    #[serde(default)]
    pub program: String,
}

impl Private {
    /// Those whose head takes connections, by process id.
    pub fn running() -> Vec<Self> {
        let notes = fs::read_dir(home::root().join("private")).into_iter().flatten().flatten().take(NOTES_MAX);
        let known = notes.filter_map(|note| serde_json::from_slice::<Self>(&fs::read(note.path()).ok()?).ok());
        let mut running: Vec<_> = known.filter(|private| private.is_running().unwrap_or(false)).collect();
        running.sort_by_key(|private| private.pid);
        running
    }

    /// Its keys.
    pub fn credentials(&self) -> Option<Credentials> {
        serde_json::from_slice(&fs::read(self.home.join("credentials.json")).ok()?).ok()
    }

    fn is_running(&self) -> Option<bool> {
        let at: SocketAddr = self.credentials()?.address.parse().ok()?;
        Some(at.ip().is_loopback() && TcpStream::connect_timeout(&at, DIAL_TIMEOUT).is_ok())
    }

    /// What to type for it, and whose it is.
    pub fn shown(&self) -> String {
        let control = |c: char| if c.is_control() { '?' } else { c };
        let program: String = self.program.chars().map(control).collect();
        format!("COVEY_HOME={} covey …  ({program}, pid {})", self.home.display(), self.pid)
    }
}

/// All of these, a line each.
pub fn shown(running: &[Private]) -> String {
    running.iter().map(Private::shown).collect::<Vec<_>>().join("\n    ")
}
