//! Whole answers, folded out of the log of a task up to a place, within what the caller may have in memory.
//!
//! A small answer is made of what is read on the way. A large one, and one that finds no room, is made when it is its turn
//! ([`answers`](crate::answers)), from the log anew: a request that waits, for the task or for its turn, holds nothing.

use std::sync::Arc;

use covey_domain::{Error, TaskId, TaskRecord};
use futures::StreamExt as _;

use crate::{
    Cluster, FoundTask,
    answers::{Answers, Full, Held, Turn, Written},
    follow::{Projection, is_over},
    tasks::Tasks,
};

/// An answer that is made while its task goes on has at most so much, bytes.
const SMALL: usize = 64 << 10;

/// A projection that puts a whole answer together.
pub(crate) trait Fold: Projection {
    /// One that stands before the first entry and makes no frames.
    fn fold(record: Arc<TaskRecord>) -> Self;

    /// From here on nothing is put together, and what was is let go: what is left is where the task stands.
    fn forget(&mut self);
}

/// How far a log is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// Up to this entry.
    Seq(u64),
    /// Up to the end of the turn that this entry began.
    Over(u64),
    /// Up to the end of the task.
    End,
}

impl Until {
    fn is_reached(self, projection: &impl Projection) -> bool {
        match self {
            Self::Seq(seq) => projection.seq() >= seq,
            Self::Over(at) => projection.seq() >= at && is_over(projection.shown()),
            Self::End => false,
        }
    }
}

/// Why a whole answer could not be made.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The task is not there, or was not found for another reason.
    Task(TaskId, Error),
    /// Its log could not be read.
    Log(TaskId, Error),
    /// The caller has no room for it.
    Full(Full),
}

impl From<Full> for Failure {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Task(_, error) | Failure::Log(_, error) => error,
            Failure::Full(full) => full.into(),
        }
    }
}

/// A task for an answer that is made: a large one is not held while it waits for others that are large.
pub(crate) async fn find_in(tasks: &Tasks<'_>, turn: &mut Turn, id: &TaskId) -> Result<FoundTask, Failure> {
    let find = async || tasks.find(id).await.map_err(|error| Failure::Task(id.clone(), error));
    let found = find().await?;
    let weight = found.0.input.weight();
    if turn.holds(weight) {
        return Ok(found);
    }
    drop(found);
    turn.weighs(weight).await?;
    find().await
}

/// Folds the log of a task as far as is said, when it is its turn.
pub(crate) async fn replay<P: Fold>(
    cluster: &dyn Cluster,
    record: Arc<TaskRecord>,
    until: Until,
    turn: &mut Turn,
) -> Result<P, Failure> {
    let (id, mut weight) = (record.id.clone(), record.input.weight());
    turn.weighs(weight).await?;
    let mut projection = P::fold(record);
    let mut log = cluster.events(id.clone(), 0);
    while !until.is_reached(&projection) {
        let Some(entry) = log.next().await else { break };
        let entry = entry.map_err(|error| Failure::Log(id.clone(), error))?;
        weight += entry.event.weight();
        turn.weighs(weight).await?;
        projection.push(&entry);
    }
    Ok(projection)
}

/// Reads a log as far as is said: what it folds to, where that is small, and how far that was.
async fn reach<P: Fold>(
    cluster: &dyn Cluster,
    record: Arc<TaskRecord>,
    until: Until,
) -> Result<(Option<P>, u64), Failure> {
    let (id, mut weight) = (record.id.clone(), record.input.weight());
    let mut projection = P::fold(record);
    if weight > SMALL {
        projection.forget();
    }
    let mut log = cluster.events(id.clone(), 0);
    while !until.is_reached(&projection) {
        let Some(entry) = log.next().await else { break };
        let entry = entry.map_err(|error| Failure::Log(id.clone(), error))?;
        weight += entry.event.weight();
        if weight > SMALL {
            projection.forget();
        }
        projection.push(&entry);
    }
    let seq = projection.seq();
    Ok((Some(projection).filter(|_| weight <= SMALL), seq))
}

/// The answer to what has been done, once the task is so far, and the room that the answer has. `write` makes it of the fold.
pub(crate) async fn done<P: Fold, T, E: From<Failure> + From<Full>>(
    tasks: Tasks<'_>,
    answers: &Answers,
    record: Arc<TaskRecord>,
    until: Until,
    write: impl Fn(P) -> Written<T, E>,
) -> Result<(T, Held), E> {
    let id = record.id.clone();
    let mut until = until;
    if record.state.is_terminal() {
        // Each who asks has a record of its own.
        drop(record);
    } else {
        let (projection, seq) = reach(tasks.cluster, record, until).await?;
        if let Some(projection) = projection {
            let (answer, bytes) = write(projection)?;
            if let Some(held) = answers.at_once(&tasks.caller.id, bytes) {
                return Ok((answer, held));
            }
        }
        until = Until::Seq(seq);
    }
    let (id, write) = (&id, &write);
    let make = move |mut turn: Turn| async move {
        let (record, _) = find_in(&tasks, &mut turn, id).await?;
        write(replay(tasks.cluster, record, until, &mut turn).await?)
    };
    answers.done(&tasks.caller.id, make).await
}

#[cfg(test)]
mod tests;
