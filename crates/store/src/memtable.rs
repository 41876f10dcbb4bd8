//! What the log has and the tables do not have yet: kept in memory for readers, and written to the tables in large groups.

use std::{
    collections::VecDeque,
    iter, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use covey_domain::{ActorId, AgentName, CallerId, Envelope, TaskId, TaskRecord, caps};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{Blob, Error, TaskChange, Written, group::Group, rows::numbered};

/// Bytes of the log that are enough for a group.
const GROUP_BYTES: usize = 4 << 20;
/// How long who lists waits for tables that cannot be written, at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Groups that are to be written, oldest first, and the one that grows.
#[derive(Debug, Default)]
struct Groups {
    closed: VecDeque<Arc<Group>>,
    fresh: Group,
}

impl Groups {
    fn all(&self) -> impl DoubleEndedIterator<Item = &Group> {
        self.closed.iter().map(|group| &**group).chain(iter::once(&self.fresh))
    }

    fn close(&mut self) {
        if !self.fresh.is_empty() {
            self.closed.push_back(Arc::new(mem::take(&mut self.fresh)));
        }
    }
}

/// What is known of a task beside the tables.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub made: Option<Arc<TaskRecord>>,
    pub change: Option<TaskChange>,
}

#[derive(Debug)]
pub(crate) struct Memtable {
    groups: Mutex<Groups>,
    bytes: AtomicUsize,
    /// There is something; there is a whole group; somebody waits for all of it.
    pub some: Notify,
    pub enough: Notify,
    pub asked: Notify,
    /// Number of the last batch that is in the tables.
    pub flushed: watch::Sender<u64>,
    /// The tables cannot be written for now.
    pub stuck: AtomicBool,
}

impl Memtable {
    pub fn new(flushed: u64) -> Self {
        Self {
            groups: Mutex::default(),
            bytes: AtomicUsize::new(0),
            some: Notify::new(),
            enough: Notify::new(),
            asked: Notify::new(),
            flushed: watch::Sender::new(flushed),
            stuck: AtomicBool::new(false),
        }
    }

    /// Shows durable batches to readers, and has them written to the tables. Gives their events.
    pub fn keep(&self, written: Vec<Written>) -> Vec<Arc<Envelope>> {
        let mut groups = self.groups.lock();
        let mut events = Vec::new();
        for written in written {
            self.bytes.fetch_add(written.json.text.len(), Ordering::Relaxed);
            events.append(&mut groups.fresh.push(written));
        }
        let enough = groups.fresh.bytes >= GROUP_BYTES;
        if enough {
            groups.close();
        }
        drop(groups);
        self.some.notify_one();
        if enough {
            self.enough.notify_one();
        }
        events
    }

    /// Whether it has as much as it should have at most.
    pub fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= caps::STORE_LAG_BYTES_MAX
    }

    /// Waits until the tables have all that was durable when this was called. `false`: they cannot be written for now.
    pub async fn flush(&self) -> bool {
        let last = self.groups.lock().all().map(|group| group.last).max().unwrap_or(0);
        let mut flushed = self.flushed.subscribe();
        if *flushed.borrow_and_update() >= last {
            return true;
        }
        if self.stuck.load(Ordering::Acquire) {
            return false;
        }
        self.asked.notify_one();
        // It ends with the store.
        let there = |number: &u64| *number >= last || self.stuck.load(Ordering::Acquire);
        let _ = tokio::time::timeout(PATIENCE, flushed.wait_for(there)).await;
        *self.flushed.borrow() >= last
    }

    /// All groups, for whoever wants them before the tables have them.
    pub fn all(&self) -> Vec<Arc<Group>> {
        let mut groups = self.groups.lock();
        groups.close();
        groups.closed.iter().cloned().collect()
    }

    /// The growing group waits no longer for more.
    pub fn close(&self) {
        self.groups.lock().close();
    }

    pub fn task(&self, id: &TaskId) -> Beside {
        let groups = self.groups.lock();
        let mut beside = Beside::default();
        for known in groups.all().filter_map(|group| group.task(id)) {
            beside.made = known.made.as_ref().map(|(record, _)| record.clone()).or(beside.made);
            beside.change = known.change.clone().or(beside.change);
        }
        beside
    }

    /// The task that this message made, where that is here.
    pub fn task_of_message(&self, caller: &CallerId, agent: &AgentName, message: &str) -> Option<TaskId> {
        let groups = self.groups.lock();
        groups.all().find_map(|group| group.task_of_message(caller, agent, message))
    }

    /// A page of events of a task above `after`, and the number of the first that is here at all.
    pub fn events(&self, task: &TaskId, after: u64) -> Result<(Vec<Arc<Envelope>>, Option<u64>), Error> {
        let groups = self.groups.lock();
        let first = groups.all().find_map(|group| group.first(task));
        let mut bytes = 0;
        let runs = groups.all().flat_map(|group| group.runs(task, after)).take_while(|(_, json)| {
            let is_room = bytes < caps::EVENT_PAGE_BYTES_MAX;
            bytes += json.len();
            is_room
        });
        let runs: Vec<_> = runs.collect();
        // Commits need not wait for what follows.
        drop(groups);
        let mut events = Vec::new();
        for (first, json) in runs {
            let run = numbered(task, first, &json).map_err(|source| Error::Body { what: "event", source })?;
            events.extend(run.into_iter().filter(|event| event.seq > after).map(Arc::new));
        }
        Ok((events, first))
    }

    /// The state of an actor, where it changed: the epoch of whoever wrote it, and the state; `None` = it has none any more.
    pub fn state(&self, actor: &ActorId) -> Option<(u64, Option<Blob>)> {
        let groups = self.groups.lock();
        // Of equal epochs `max_by_key` takes the last, which is the newest.
        groups.all().filter_map(|group| group.states.get(actor)).max_by_key(|(epoch, _)| *epoch).cloned()
    }

    pub fn oldest(&self) -> Option<Arc<Group>> {
        self.groups.lock().closed.front().cloned()
    }

    /// The oldest group is in the tables.
    pub fn carried(&self, number: u64) {
        let gone = self.groups.lock().closed.pop_front();
        self.bytes.fetch_sub(gone.as_ref().map_or(0, |group| group.bytes), Ordering::Relaxed);
        self.flushed.send_replace(number);
        // Not under the lock: it may be much.
        drop(gone);
    }
}
