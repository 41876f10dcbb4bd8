//! What can be seen of the Python processes: what they print, where they hang, what they use.

use std::{collections::BTreeMap, path::PathBuf};

use covey_domain::{Error, ErrorKind};
use covey_proto::v1;

use super::{Inside, Runtime};

/// Bytes of a log given at once.
const LOG_CHUNK: usize = 1 << 20;

impl Runtime {
    /// What the process of an actor printed from `offset` on, and the next offset.
    pub fn log(&self, actor: &str, offset: u64) -> Result<(Vec<u8>, u64), Error> {
        let (_, path) = self.process(actor)?;
        crate::output::read(&path, offset, LOG_CHUNK)
            .map_err(|e| Error::internal(format!("failed to read the log: {e}")))
    }

    /// Bytes the process of an actor has printed.
    pub fn log_length(&self, actor: &str) -> Result<u64, Error> {
        let (_, path) = self.process(actor)?;
        Ok(std::fs::metadata(path).map_or(0, |about| about.len()))
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
