//! What can be seen of the Python processes: what they print, where they hang, what they use.

use std::{collections::BTreeMap, sync::Arc};

use covey_domain::{Error, ErrorKind};
use covey_proto::v1;

use super::{Inside, Runtime};
use crate::{
    Printed, output,
    python::{Lives, PythonActor},
};

/// A place in what an actor printed, through all its lives here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    life: u64,
    offset: u64,
}

/// Bytes of a log given at once.
const LOG_CHUNK: usize = 1 << 20;

impl Runtime {
    /// What an actor printed from a place on, in whole lines, with those that say no actor, and the next place. It may be
    /// over; what it printed before it began anew here comes first.
    pub fn log(&self, actor: &str, from: LogPlace) -> Result<(Vec<u8>, LogPlace), Error> {
        let lives = self.lives(actor)?;
        // Older ones are forgotten.
        let from = if from.life < lives.first { LogPlace { life: lives.first, offset: 0 } } else { from };
        let at = (from.life - lives.first) as usize;
        let path = lives.logs.get(at).ok_or_else(|| Error::not_found("log of actor", actor))?;
        let later = at + 1 < lives.logs.len();
        let (bytes, next) = match output::read_lines(path, from.offset, LOG_CHUNK) {
            Ok((bytes, offset)) => (bytes, LogPlace { offset, ..from }),
            // It was old enough to be removed.
            Err(error) if later && error.kind() == std::io::ErrorKind::NotFound => (Vec::new(), from),
            Err(error) => return Err(unreadable(&error)),
        };
        let next = if bytes.is_empty() && later { LogPlace { life: from.life + 1, offset: 0 } } else { next };
        Ok((output::plain_of(&bytes, actor), next))
    }

    /// Where the last lines of what the processes of an actor printed begin, at most so many bytes; 0 = all there is.
    pub fn log_tail(&self, actor: &str, bytes: u64) -> Result<LogPlace, Error> {
        let lives = self.lives(actor)?;
        if bytes == 0 {
            return Ok(LogPlace { life: lives.first, offset: 0 });
        }
        let mut left = bytes;
        let mut place = LogPlace { life: lives.first, offset: 0 };
        for (at, path) in lives.logs.iter().enumerate().rev() {
            let length = match std::fs::metadata(path) {
                Ok(about) => about.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(error) => return Err(unreadable(&error)),
            };
            let offset = length.saturating_sub(left);
            let offset = output::line_start(path, offset, LOG_CHUNK).map_err(|e| unreadable(&e))?;
            place = LogPlace { life: lives.first + at as u64, offset };
            left = left.saturating_sub(length);
            if left == 0 {
                break;
            }
        }
        Ok(place)
    }

    /// An actor may print more.
    pub fn prints(&self, actor: &str) -> bool {
        self.process(actor).is_ok()
    }

    /// What is printed here by actors of a driver, and by those of none; with `fresh` also what the first printed before.
    pub fn printed(&self, session: &str, fresh: bool) -> Printed {
        Printed::new(self.inner.hosts.clone(), session, fresh)
    }

    fn lives(&self, actor: &str) -> Result<Lives, Error> {
        let known = self.inner.hosts.as_ref().and_then(|hosts| hosts.logs_of(actor));
        known.map_or_else(|| Err(self.process(actor).err().unwrap_or_else(|| Error::not_found("actor", actor))), Ok)
    }

    /// The stacks of the process of an actor. It writes them itself, whatever it is doing.
    pub async fn stack(&self, actor: &str) -> Result<Vec<u8>, Error> {
        self.process(actor)?.stack().await
    }

    fn process(&self, actor: &str) -> Result<Arc<PythonActor>, Error> {
        match self.inner.actors.lock().get(actor).map(|cell| cell.inside.clone()) {
            Some(Inside::Process(process)) => Ok(process),
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
                let pid = process.pid();
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
