//! What can be seen of the Python processes: what they print, where they hang, what they use.

use std::{collections::BTreeMap, path::PathBuf};

use covey_domain::{Error, ErrorKind};
use covey_proto::v1;

use super::{Inside, Runtime};
use crate::{Printed, output};

/// Bytes of a log given at once.
const LOG_CHUNK: usize = 1 << 20;

impl Runtime {
    /// What an actor printed from `offset` of its process's log on, in whole lines, with those that say no actor, and the next offset. It
    /// may be over.
    pub fn log(&self, actor: &str, offset: u64) -> Result<(Vec<u8>, u64), Error> {
        let (_, path) = self.process(actor).or_else(|error| self.past(actor).ok_or(error))?;
        let (bytes, next) = output::read_lines(&path, offset, LOG_CHUNK).map_err(|e| unreadable(&e))?;
        Ok((output::plain_of(&bytes, actor), next))
    }

    /// Where the last lines of what the process of an actor printed begin, at most so many bytes; 0 = all there is.
    pub fn log_tail(&self, actor: &str, bytes: u64) -> Result<u64, Error> {
        let (_, path) = self.process(actor).or_else(|error| self.past(actor).ok_or(error))?;
        let length = std::fs::metadata(&path).map_err(|e| unreadable(&e))?.len();
        let offset = if bytes == 0 { 0 } else { length.saturating_sub(bytes) };
        output::line_start(&path, offset, LOG_CHUNK).map_err(|e| unreadable(&e))
    }

    /// An actor may print more.
    pub fn prints(&self, actor: &str) -> bool {
        self.process(actor).is_ok()
    }

    /// What is printed here by actors of a driver, and by those of none; with `fresh` also what the first printed before.
    pub fn printed(&self, session: &str, fresh: bool) -> Printed {
        Printed::new(self.inner.hosts.clone(), session, fresh)
    }

    fn past(&self, actor: &str) -> Option<(u32, PathBuf)> {
        self.inner.hosts.as_ref()?.log_of(actor)
    }

    /// The stacks of the process of an actor. It prints them itself, whatever it is doing.
    pub async fn stack(&self, actor: &str) -> Result<Vec<u8>, Error> {
        let (pid, path) = self.process(actor)?;
        crate::python::stack(pid, &path).await
    }

    fn process(&self, actor: &str) -> Result<(u32, PathBuf), Error> {
        match self.inner.actors.lock().get(actor).map(|cell| cell.inside.clone()) {
            Some(Inside::Process(process)) => Ok(process.process()),
            Some(Inside::Here(_)) => {
                Err(Error::new(ErrorKind::FailedPrecondition, format!("actor `{actor}` is not Python")))
            }
            None => Err(Error::not_found("actor on this worker", actor)),
        }
    }

    /// The Python processes here (pid, memory in bytes, its bound, and whose they are), and turns begun so far.
    pub fn usage(&self) -> v1::UsageReply {
        let mut processes: BTreeMap<u32, v1::ProcessUsage> = BTreeMap::new();
        for (id, cell) in self.inner.actors.lock().iter() {
            if let Inside::Process(process) = &cell.inside {
                let pid = process.process().0;
                let known = processes.entry(pid).or_insert_with(|| {
                    let (pid, memory_bytes, memory_max) = process.usage();
                    v1::ProcessUsage { pid, memory_bytes, memory_max, actors: Vec::new() }
                });
                known.actors.push(id.to_string());
            }
        }
        let turns = self.inner.turns.load(std::sync::atomic::Ordering::Relaxed);
        v1::UsageReply { processes: processes.into_values().collect(), turns }
    }
}

fn unreadable(error: &std::io::Error) -> Error {
    Error::internal(format!("failed to read the log: {error}"))
}
