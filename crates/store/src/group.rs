//! Neighbouring batches, put together by task. One that begins and ends in a group is one row, and its events share one.
//!
//! Events are kept as the JSON that was written of them: the tables want them so, and who reads the log of a task that has just
//! ended is rare enough to read it again.

use std::{collections::BTreeMap, mem, sync::Arc};

use covey_domain::{ActorId, AgentName, CallerId, Digest, Envelope, NodeId, TaskId, TaskRecord, caps};
use hashbrown::HashMap;

use crate::{
    Batch, Blob, StateChange, TaskChange, Written, artifacts,
    batch::{EVENTS_PER_ROW, Json},
};

/// What a group has of one task.
#[derive(Debug)]
pub(crate) struct GroupTask {
    pub id: TaskId,
    pub made: Option<(Arc<TaskRecord>, Piece)>,
    /// The last one.
    pub change: Option<TaskChange>,
    runs: Vec<RunOf>,
}

/// Something in the JSON of a batch.
#[derive(Debug)]
pub(crate) struct Piece {
    batch: usize,
    at: std::ops::Range<usize>,
}

/// Events that follow each other.
#[derive(Debug)]
struct RunOf {
    first: u64,
    count: usize,
    piece: Piece,
}

impl RunOf {
    fn last(&self) -> u64 {
        self.first + self.count as u64 - 1
    }
}

/// Neighbouring batches.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// As they came up, which is the order of most keys of the tables.
    pub tasks: Vec<GroupTask>,
    at: HashMap<TaskId, usize>,
    /// Tasks made, by message.
    messages: HashMap<(CallerId, AgentName, String), TaskId>,
    /// The epoch of whoever wrote it, and the state.
    pub states: HashMap<ActorId, (u64, Option<Blob>)>,
    pub cursors: BTreeMap<(NodeId, u64), u64>,
    /// What tasks name of the artifact store.
    pub uses: Vec<(TaskId, Digest)>,
    /// What else is in the batches.
    pub rest: Vec<Batch>,
    texts: Vec<String>,
    /// Of the log.
    pub bytes: usize,
    /// Number of the last batch; 0 if there is none.
    pub last: u64,
}

impl Group {
    /// Takes a batch; gives its events.
    pub fn push(
        &mut self,
        Written { number, json: Json { text, made, runs }, mut batch }: Written,
    ) -> Vec<Arc<Envelope>> {
        let body = self.texts.len();
        self.uses.extend(artifacts::uses(&batch));
        for (record, at) in mem::take(&mut batch.made).into_iter().zip(made) {
            let id = record.id.clone();
            if let Some(message) = &record.message_id {
                self.messages.insert((record.caller.clone(), record.agent.clone(), message.clone()), id.clone());
            }
            self.of(&id).made = Some((record, Piece { batch: body, at }));
        }
        for change in mem::take(&mut batch.tasks) {
            let id = change.id.clone();
            self.of(&id).change = Some(change);
        }
        let events = mem::take(&mut batch.events);
        let mut begin = 0;
        for run in runs {
            let first = &events[begin];
            let piece = Piece { batch: body, at: run.at };
            self.of(&first.task).runs.push(RunOf { first: first.seq, count: run.count, piece });
            begin += run.count;
        }
        for (node, incarnation, number) in mem::take(&mut batch.cursors) {
            self.cursors.insert((node, incarnation), number);
        }
        for StateChange(actor, state, epoch) in &batch.states {
            let known = self.states.get(actor).is_some_and(|(newest, _)| newest > epoch);
            if !known {
                self.states.insert(actor.clone(), (*epoch, state.clone()));
            }
        }
        if !batch.is_empty() {
            self.rest.push(batch);
        }
        (self.last, self.bytes) = (number, self.bytes + text.len());
        self.texts.push(text);
        events
    }

    fn of(&mut self, id: &TaskId) -> &mut GroupTask {
        let Self { at, tasks, .. } = self;
        let at = *at.entry(id.clone()).or_insert_with(|| {
            let id = id.clone();
            tasks.push(GroupTask { id, made: None, change: None, runs: Vec::new() });
            tasks.len() - 1
        });
        &mut self.tasks[at]
    }

    pub fn is_empty(&self) -> bool {
        self.last == 0
    }

    pub fn task(&self, id: &TaskId) -> Option<&GroupTask> {
        self.at.get(id).map(|at| &self.tasks[*at])
    }

    pub fn task_of_message(&self, caller: &CallerId, agent: &AgentName, message: &str) -> Option<TaskId> {
        self.messages.get(&(caller.clone(), agent.clone(), message.to_owned())).cloned()
    }

    pub fn json(&self, piece: &Piece) -> &str {
        &self.texts[piece.batch][piece.at.clone()]
    }

    /// Number of the first event of a task that is here.
    pub fn first(&self, task: &TaskId) -> Option<u64> {
        self.task(task)?.runs.first().map(|run| run.first)
    }

    /// Runs of events of a task that end above `after`: the number of the first of each, and the JSON of all.
    pub fn runs(&self, id: &TaskId, after: u64) -> impl Iterator<Item = (u64, String)> {
        let runs = self.task(id).map(|task| &task.runs[..]).unwrap_or_default();
        let behind = runs.iter().filter(move |run| run.last() > after);
        behind.map(|run| (run.first, format!("[{}]", self.json(&run.piece))))
    }

    /// Rows of the events of a task: the number of the last of each, and the JSON of all.
    pub fn rows(&self, task: &GroupTask) -> Vec<(u64, String)> {
        let mut rows: Vec<(u64, String)> = Vec::new();
        let mut inside = 0;
        for run @ RunOf { first, count, piece } in &task.runs {
            let last = run.last();
            match rows.last_mut() {
                Some((end, body))
                    if *end + 1 == *first
                        && inside + count <= EVENTS_PER_ROW
                        && body.len() < caps::EVENT_PAGE_BYTES_MAX =>
                {
                    *end = last;
                    inside += count;
                    body.pop();
                    body.push(',');
                    body.push_str(self.json(piece));
                    body.push(']');
                }
                _ => {
                    inside = *count;
                    rows.push((last, format!("[{}]", self.json(piece))));
                }
            }
        }
        rows
    }
}
