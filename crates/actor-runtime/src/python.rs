//! Python processes: user code never runs inside the worker. Many actors share a process; one that asks gets its own.
//!
//! A process is `python -m covey._host <socket>`; it dials the worker's Unix socket and speaks batches of `HostFrame`s
//! behind a 4-byte length; over a second connection it hears that it is replaced. Its standard output is the user's and
//! no channel of ours. When it dies, its actors die with it and the head starts them elsewhere; the worker always makes
//! another ([`hosts`]). A turn that goes on after it was given up has its process replaced ([`stuck`]).

mod actor;
mod begun;
mod code;
mod find;
mod host;
mod hosts;
mod spawn;
mod stack;
mod stuck;

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use covey_domain::ActorId;
use tokio::sync::{mpsc, oneshot};

use crate::{Models, Outward, envs::Environments, launch::Launcher};

pub(crate) use actor::PythonActor;
pub use find::find;
pub(crate) use hosts::{Hosts, Lives, StartTerms};

/// An interpreter that has the `covey` package.
#[derive(Clone, Debug)]
pub struct Python {
    /// The interpreter.
    pub path: PathBuf,
    /// `major.minor`.
    pub version: String,
    /// Where it finds packages: the one with `covey`, and its site folders.
    pub paths: Vec<String>,
    /// Folders that it reads: its own, and all that it looks for modules in.
    pub roots: Vec<PathBuf>,
}

/// What the processes of a worker need.
pub(crate) struct HostsConfig {
    pub python: Python,
    /// For sockets.
    pub folder: PathBuf,
    /// For what processes print.
    pub logs: PathBuf,
    pub environments: Arc<Environments>,
    /// Variables of every process.
    pub environment: Vec<(String, String)>,
    pub launcher: Arc<Launcher>,
    /// Processes that share actors, at most.
    pub shared_max: usize,
    pub models: Arc<Models>,
    pub outward: Arc<dyn Outward>,
    /// Told what becomes of processes.
    pub news: mpsc::UnboundedSender<News>,
}

/// A new file for this user alone, through which a process tells something; it is deleted once the process has opened it.
fn private_file(path: &Path) -> io::Result<File> {
    let _ = fs::remove_file(path);
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Which process of a worker, counted from 0.
pub(crate) type HostNumber = u64;

/// What became of a process, told to the owner of the actors. Actors that have left the process since are not meant.
pub(crate) enum News {
    /// It ended, and these actors with it; `suspects` are agents with turns that ran there, where others could be taken along, or
    /// were kept apart for that reason.
    Died { host: HostNumber, actors: Vec<ActorId>, suspects: HashSet<String>, why: String },
    /// A turn of this actor goes on although it was given up. `told` is dropped once the head has been sent that.
    Stuck { host: HostNumber, actor: ActorId, why: String, told: oneshot::Sender<()> },
    /// No turn of this actor is stuck any more.
    Free { host: HostNumber, actor: ActorId },
    /// It is being replaced because turns of `stuck` did not end; `others` can still finish the turns that run and move.
    Replaced { host: HostNumber, stuck: Vec<ActorId>, others: Vec<ActorId>, why: String },
    /// A task of this actor cannot go on there.
    Lost { host: HostNumber, actor: ActorId, why: String },
    /// All turns of an actor wait for others, or not any more.
    Waits { host: HostNumber, actor: ActorId, waits: bool },
}
