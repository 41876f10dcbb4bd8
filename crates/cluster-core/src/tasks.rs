//! The life of a task: accepted, queued, given to an actor, tried again when that is lost, ended once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use covey_domain::{
    ActorId, AgentName, CallerId, ContextId, DeadLetter, Envelope, Error, ErrorKind, Millis, ModelName, NodeId,
    TaskEvent, TaskId, TaskRecord, TaskState, caps,
    event::{Outcome, Phase},
    log::{OpenParts, Turns},
    task::TaskInput,
};
use hashbrown::HashMap;

use crate::{
    directory::{ActorState, Owner},
    fair::{FairQueue, Load, Ticket},
    head::{Command, Entry, Head, Output, Write},
    messages::Messages,
    retries::is_retry,
};

/// Tasks that one tick ends, fails or queues again; the next one goes on. It keeps each verb short.
const STEP: usize = 512;

/// A request for a task.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Id to use, minted by the shell.
    pub id: TaskId,
    /// Conversation.
    pub context: ContextId,
    /// Who asks.
    pub caller: CallerId,
    /// Which agent.
    pub agent: AgentName,
    /// Which skill; `None` = the agent's default.
    pub skill: Option<String>,
    /// What is asked.
    pub input: Arc<TaskInput>,
    /// The asker's own id of the request.
    pub message_id: Option<String>,
    /// Model asked for.
    pub model: Option<ModelName>,
    /// Which protocol.
    pub protocol: String,
    /// Bound from now on.
    pub timeout_ms: Option<u64>,
    /// How many tasks had ended, and were on disk ([`Head::ended`]), when the disk was looked at for the task that the
    /// same message made, in vain.
    pub looked_at: u64,
    /// Tasks of this caller that may have not ended at once.
    pub tasks_max: usize,
    /// Why the caller may make no new task; the one that its message made is found all the same.
    pub refused: Option<Error>,
}

/// What came of a submission. It is acknowledged once the writes before it are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    /// A new task.
    Made(Arc<TaskRecord>),
    /// The same message had made it before, and it runs.
    Runs(Arc<TaskRecord>),
    /// The same message had made it before, and it has ended: the disk has it.
    Ended(TaskId),
    /// Too many tasks ended since the disk was looked at; it may be one of those.
    LookAgain,
}

/// A task as it comes back from the store.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its record.
    pub record: TaskRecord,
    /// Its log.
    pub events: Vec<TaskEvent>,
    /// Why the rest of its log or its input could not be read: it fails with this.
    pub broken: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub record: Arc<TaskRecord>,
    pub seq: u64,
    pub open: OpenParts,
    pub turns: Turns,
    /// Attempts that were lost while they waited for an answer: those say nothing against the task.
    pub excused: u32,
    pub actor: Option<ActorId>,
    pub deadline: Option<Millis>,
    /// Brought back from the store and not yet claimed by a worker.
    pub orphan: bool,
    /// Tries after the agent raised what is to be tried again.
    pub retried: u32,
    /// Why nobody runs it, as its log says.
    pub told: Option<String>,
    /// Its place in the queue, while it waits for an actor.
    pub ticket: Option<Ticket>,
    /// Bytes it was asked with.
    pub weight: usize,
}

/// All tasks that have not ended, and what must be known of the others.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub active: HashMap<TaskId, Task>,
    queue: FairQueue,
    load: Load,
    messages: Messages,
    deadlines: BTreeSet<(Millis, TaskId)>,
    /// Brought back from the store while they ran; those that no worker claims are queued again.
    pub orphans: VecDeque<TaskId>,
    /// Agents whose actors cannot start: what waited up to a ticket fails.
    failing: BTreeMap<AgentName, (Ticket, Error)>,
    /// Tasks by state, the ended ones that were there at the start included.
    counts: BTreeMap<&'static str, u64>,
    /// Tasks that wait until they are tried again.
    pub(crate) later: BTreeSet<(Millis, TaskId)>,
}

impl Tasks {
    pub fn waiting(&self) -> impl Iterator<Item = (&AgentName, usize)> {
        self.queue.waiting()
    }

    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(state, count)| ((*state).to_owned(), *count))
            .collect()
    }

    fn insert(&mut self, task: Task) {
        let record = &task.record;
        self.messages.begin(record);
        self.load.add(&record.caller, task.weight);
        *self.counts.entry(record.state.name()).or_default() += 1;
        if let Some(deadline) = task.deadline {
            self.deadlines.insert((deadline, record.id.clone()));
        }
        self.active.insert(record.id.clone(), task);
    }

    /// A task that is known begins to wait for an actor; `again`: it had one, and comes before what its caller has waiting.
    pub(crate) fn enqueue(&mut self, id: &TaskId, again: bool) {
        let Some(task) = self.active.get_mut(id).filter(|task| task.ticket.is_none()) else { return };
        let (agent, caller) = (&task.record.agent, &task.record.caller);
        let ticket = match again {
            true => self.queue.push_front(agent, caller, id.clone()),
            false => self.queue.push_back(agent, caller, id.clone()),
        };
        task.ticket = Some(ticket);
    }

    /// Tasks of an agent that wait for an actor.
    pub(crate) fn queued(&self, agent: &AgentName) -> impl Iterator<Item = &TaskId> {
        self.queue.of(agent)
    }

    /// The next task that waits for an actor of this agent.
    fn next(&mut self, agent: &AgentName) -> Option<TaskId> {
        let id = self.queue.pop(agent)?;
        if let Some(task) = self.active.get_mut(&id) {
            task.ticket = None;
        }
        Some(id)
    }

    /// Actors died under it time after time. It may be why, or may have run beside what is: that is told apart when it runs alone.
    fn runs_alone(&self, id: &TaskId) -> bool {
        self.active.get(id).is_some_and(|task| task.record.attempt - task.excused >= caps::ALONE_AFTER)
    }

    /// It does not wait any more.
    fn dequeue(&mut self, id: &TaskId) {
        if let Some(task) = self.active.get_mut(id)
            && let Some(ticket) = task.ticket.take()
        {
            self.queue.remove(&task.record.agent, &task.record.caller, ticket);
        }
    }

    fn moves(&mut self, from: TaskState, to: TaskState) {
        if let Some(count) = self.counts.get_mut(from.name()) {
            *count -= 1;
        }
        *self.counts.entry(to.name()).or_default() += 1;
    }

    fn retire(&mut self, id: &TaskId) {
        self.dequeue(id);
        let Some(task) = self.active.remove(id) else { return };
        if let Some(deadline) = task.deadline {
            self.deadlines.remove(&(deadline, id.clone()));
        }
        self.load.sub(&task.record.caller, task.weight);
        self.messages.end(&task.record);
    }
}

impl Head {
    /// Tasks with a message id that have ended since this head began; for [`Submission::looked_at`].
    pub fn ended(&self) -> u64 {
        self.tasks.messages.ended()
    }

    /// How many tasks of each state the store has that have ended, before the first verb; and how many have not, which follow.
    pub fn restore_counts(&mut self, ended: impl IntoIterator<Item = (TaskState, u64)>, unfinished: usize) {
        self.tasks.active.reserve(unfinished);
        for (state, count) in ended {
            *self.tasks.counts.entry(state.name()).or_default() += count;
        }
    }

    /// Brings a task that has not ended back from the store, before the first verb.
    pub fn restore(&mut self, stored: Stored, now: Millis) {
        let record = Arc::new(stored.record);
        let (mut open, mut turns) = (OpenParts::default(), Turns::default());
        let (mut state, mut excused, mut retried) = (TaskState::Submitted, 0, 0);
        for (event, seq) in stored.events.iter().zip(1..) {
            // What is stored was checked when it was taken.
            let _ = open.push(event);
            turns.push(seq, event);
            excused += u32::from(matches!(event, TaskEvent::StepReset { .. }) && state.waits());
            retried += u32::from(is_retry(event));
            state = state.after(event);
        }
        let (begun, id) = (open.in_step(), record.id.clone());
        if begun {
            self.tasks.orphans.push_back(id.clone());
        }
        if begun {
            self.liveness.recover_until.get_or_insert(now + self.config.lease_ms);
        }
        // Records of older versions do not say it; those begin their time anew.
        let deadline = record.expires_ms.or(record.timeout_ms.map(|t| now + t));
        let seq = stored.events.len() as u64;
        let excused = excused + retried;
        let (orphan, told, ticket, weight) = (begun, None, None, record.input.weight());
        let task =
            Task { seq, open, turns, excused, actor: None, deadline, orphan, record, retried, told, ticket, weight };
        self.tasks.insert(task);
        if !begun {
            self.tasks.enqueue(&id, false);
        }
        if let Some(why) = stored.broken {
            let error = Error::internal(format!("what is stored of the task could not be read: {why}"));
            self.end_task(
                &id,
                Outcome::Failed { error: error.hint("`covey doctor` tells where it was set aside") },
                now,
            );
        }
    }

    /// Accepts a task, or finds the one the same message made.
    pub fn submit(&mut self, ask: Submission, now: Millis) -> Result<Submitted, Error> {
        let spec = self.agent(ask.agent.as_str())?.clone();
        if let Some(message_id) = &ask.message_id {
            if let Some(known) = self.tasks.messages.find(&ask.caller, &ask.agent, message_id) {
                let runs = self.tasks.active.get(known).map(|task| task.record.clone());
                return Ok(runs.map_or_else(|| Submitted::Ended(known.clone()), Submitted::Runs));
            }
            if ask.looked_at < self.tasks.messages.forgotten() {
                return Ok(Submitted::LookAgain);
            }
        }
        if let Some(error) = ask.refused {
            return Err(error);
        }
        if self.tasks.active.contains_key(&ask.id) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a task `{}` already", ask.id)));
        }
        ask.input.check()?;
        let skill = spec.skill(ask.skill.as_deref())?.id.clone();
        let weight = ask.input.weight();
        self.tasks.load.admit(&ask.caller, weight, ask.tasks_max, self.tasks.queue.len())?;
        // The agent's own bound is one on each run, and its worker's matter.
        let timeout_ms = ask.timeout_ms;
        let record = Arc::new(TaskRecord {
            id: ask.id,
            context: ask.context,
            agent: ask.agent,
            skill,
            caller: ask.caller,
            message_id: ask.message_id,
            model: ask.model,
            protocol: ask.protocol,
            input: ask.input,
            state: TaskState::Submitted,
            created_ms: self.wall(now),
            changed_ms: self.wall(now),
            timeout_ms,
            expires_ms: timeout_ms.map(|t| now + t),
            attempt: 0,
        });
        let started = TaskEvent::Started {
            agent: record.agent.clone(),
            context: record.context.clone(),
            skill: record.skill.clone(),
            model: record.model.clone(),
            protocol: record.protocol.clone(),
            parent: None,
            resumes: Vec::new(),
        };
        let task = Task {
            record: record.clone(),
            seq: 0,
            open: OpenParts::default(),
            turns: Turns::default(),
            excused: 0,
            actor: None,
            deadline: timeout_ms.map(|t| now + t),
            orphan: false,
            retried: 0,
            told: None,
            ticket: None,
            weight,
        };
        self.tasks.insert(task);
        self.out.push_back(Output::Write(Write::NewTask(record.clone())));
        self.append(&record.id, vec![started], self.wall(now));
        self.tasks.enqueue(&record.id, false);
        self.settle(now);
        Ok(Submitted::Made(record))
    }

    /// Ends a task because somebody asks for it. Idempotent while it runs; a task that has ended stays as it is.
    pub fn cancel_task(&mut self, id: &TaskId, by: &str, reason: &str, now: Millis) -> Result<Arc<TaskRecord>, Error> {
        let ended = || Error::new(ErrorKind::FailedPrecondition, format!("task `{id}` has ended"));
        let task = self.tasks.active.get(id).ok_or_else(ended)?;
        let record = task.record.clone();
        self.end_task(id, Outcome::Cancelled { by: by.to_owned(), reason: reason.to_owned() }, now);
        self.settle(now);
        Ok(Arc::new(TaskRecord { state: TaskState::Canceled, ..(*record).clone() }))
    }

    /// Has the worker of a task stop its turn. The task ends when the worker says so.
    pub fn stop_turn(&mut self, id: &TaskId, reason: String) {
        let Some(task) = self.tasks.active.get(id) else { return };
        let attempt = task.record.attempt;
        let node = task.actor.as_ref().and_then(|a| self.directory.actors.get(a)).and_then(|a| a.node.clone());
        if let Some(node) = node {
            self.out.push_back(Output::Send(node, Command::CancelTask { task: id.clone(), attempt, reason }));
        }
    }

    /// A task that has not ended.
    pub fn active_task(&self, id: &TaskId) -> Option<(Arc<TaskRecord>, u64)> {
        self.tasks.active.get(id).map(|t| (t.record.clone(), t.seq))
    }

    /// Tasks that actors of a node have.
    pub fn tasks_on(&self, node: &NodeId) -> Vec<Arc<TaskRecord>> {
        let actors = self.nodes.get(node).into_iter().flat_map(|node| &node.actors);
        let tasks = actors.filter_map(|id| self.directory.actors.get(id)).flat_map(|actor| actor.tasks.keys());
        tasks.filter_map(|id| self.tasks.active.get(id)).map(|task| task.record.clone()).collect()
    }

    /// Events a worker wrote; what a stale attempt says is refused, except that its actor is free again.
    pub(crate) fn task_events(&mut self, node: &NodeId, entry: Entry, now: Millis) {
        let Entry { task: id, attempt, events, ts_ms, .. } = entry;
        let taken = events.and_then(|events| events.iter().try_for_each(TaskEvent::check).map(|()| events));
        // What cannot be taken may have been the end: nothing more is waited for.
        let ends = taken.as_ref().map_or(true, |events| events.iter().any(TaskEvent::is_terminal));
        let fresh = self.tasks.active.get(&id).filter(|t| t.record.attempt == attempt && !t.orphan);
        let actor = fresh.and_then(|t| t.actor.clone());
        let ours =
            actor.as_ref().and_then(|a| self.directory.actors.get(a)).is_some_and(|a| a.node.as_ref() == Some(node));
        match taken {
            Ok(events) if ours => match self.worth_another_try(&id, &events) {
                Some(error) => self.try_again(&id, events, &error, ts_ms, now),
                None => {
                    self.append(&id, events, ts_ms);
                    self.after_events(&id);
                    self.rest(&id, now);
                }
            },
            Err(error) if ours => {
                // It would be refused again, however often it came.
                let message = format!("what its worker said of it cannot be kept: {}", error.message);
                self.end_task(&id, Outcome::Failed { error: Error { message, ..error } }, now);
            }
            Ok(_) | Err(_) => {}
        }
        if ends {
            if let Some(known) = self.nodes.get_mut(node) {
                known.tasks_done += u64::from(ours);
            }
            if let Some(actor) = self.free_slot(node, actor, &id, attempt) {
                self.end_if_emptied(&actor, now);
            }
        }
    }

    /// Gives queued tasks to actors with a free turn, and asks for more actors where the pool may grow.
    pub(crate) fn dispatch(&mut self, now: Millis) {
        let agents: Vec<_> = self.tasks.waiting().map(|(a, _)| a.clone()).collect();
        for agent in agents {
            let Some(spec) = self.agents.get(&agent).cloned() else { continue };
            let pool = self.directory.pools.get(&agent).cloned().unwrap_or_default();
            let mut coming = 0;
            for id in &pool {
                while let Some(actor) = self.directory.actors.get(id) {
                    if actor.state != ActorState::Live {
                        coming += usize::from(!matches!(actor.state, ActorState::Dead { .. }))
                            * actor.spec.concurrency as usize;
                        break;
                    }
                    if !actor.has_turn() || !self.takes_tasks(id) {
                        break;
                    }
                    let busy = actor.running() > 0;
                    let Some(task) = self.tasks.next(&agent) else { break };
                    if busy && self.tasks.runs_alone(&task) {
                        self.tasks.enqueue(&task, true);
                        break;
                    }
                    self.assign(&task, id, now);
                }
            }
            let waiting = self.tasks.queue.waiting_for(&agent).saturating_sub(coming);
            let more = waiting.div_ceil(spec.concurrency.max(1) as usize);
            // Beside those that hang there is room for others.
            let stuck = |id: &&ActorId| self.directory.actors.get(*id).is_some_and(|actor| actor.stuck.is_some());
            let usable = pool.len() - pool.iter().filter(stuck).count();
            let room = self.pool_max(&spec).saturating_sub(usable);
            let not_before = self.unserved.not_before(&agent).max(now);
            for _ in 0..more.min(room) {
                let id = ActorId::from(self.mint("pool"));
                self.insert_actor_later(id.clone(), None, spec.clone(), None, Owner::Pool, not_before, now);
                if let (Some(actor), Some(why)) = (self.directory.actors.get_mut(&id), self.unserved.why(&agent)) {
                    actor.state = ActorState::Pending { not_before, why: why.to_owned() };
                }
            }
        }
    }

    /// Why tasks of an agent wait.
    pub(crate) fn why_queued(&self, agent: &AgentName) -> String {
        if let Some(why) = self.unserved.why(agent) {
            return why.to_owned();
        }
        let pool = self.directory.pools.get(agent).into_iter().flatten();
        let actors: Vec<_> = pool.filter_map(|id| self.directory.actors.get(id)).collect();
        let pending = actors.iter().find_map(|actor| match &actor.state {
            ActorState::Pending { why, .. } => Some(why.clone()),
            ActorState::Starting | ActorState::Live | ActorState::Dead { .. } => None,
        });
        if let Some(why) = pending {
            return why;
        }
        if let Some(why) = actors.iter().find_map(|actor| actor.stuck.clone()) {
            return why;
        }
        match actors.iter().filter(|actor| actor.state == ActorState::Live).count() {
            0 => "an actor is starting".into(),
            1 => "its actor is busy".into(),
            live => format!("its {live} actors are busy"),
        }
    }

    fn assign(&mut self, id: &TaskId, actor_id: &ActorId, now: Millis) {
        let Some(task) = self.tasks.active.get_mut(id) else { return };
        let Some(actor) = self.directory.actors.get_mut(actor_id) else { return };
        let Some(node) = actor.node.clone() else { return };
        let attempt = task.record.attempt + 1;
        task.record = Arc::new(TaskRecord { attempt, ..(*task.record).clone() });
        task.actor = Some(actor_id.clone());
        actor.tasks.insert(id.clone(), attempt);
        actor.alone = attempt - task.excused > caps::ALONE_AFTER;
        let timeout_ms = task.deadline.map(|d| d.saturating_sub(now).max(1));
        self.append(
            id,
            vec![
                TaskEvent::Status { state: Phase::Working, message: None },
                TaskEvent::StepStarted { step: attempt, name: format!("attempt {attempt}") },
            ],
            self.wall(now),
        );
        let Some(task) = self.tasks.active.get(id) else { return };
        let (record, said) = (task.record.clone(), task.turns.said.clone());
        self.out.push_back(Output::Send(node, Command::Run { record, actor: actor_id.clone(), timeout_ms, said }));
    }

    /// The actor that ran a task is gone: close what it left open, forget it, and queue the task again.
    pub(crate) fn task_lost(&mut self, id: &TaskId, error: &Error, now: Millis) {
        let wall = self.wall(now);
        let Some(task) = self.tasks.active.get_mut(id) else { return };
        task.actor = None;
        task.orphan = false;
        let attempt = task.record.attempt;
        task.excused += u32::from(task.record.state.waits());
        if attempt - task.excused >= caps::TASK_ATTEMPTS_MAX {
            let error = Error { message: format!("{} (after {attempt} attempts)", error.message), ..error.clone() };
            let letter = DeadLetter {
                at_ms: wall,
                agent: task.record.agent.clone(),
                actor: None,
                task: Some(id.clone()),
                method: task.record.skill.clone(),
                bytes: 0,
                attempts: attempt,
                error: error.clone(),
            };
            self.dead_letter(letter);
            self.end_task(id, Outcome::Failed { error }, now);
            return;
        }
        let mut events = task.open.closers(true);
        events.push(TaskEvent::StepReset { step: attempt });
        events.push(TaskEvent::StepFinished { step: attempt, finish: Some("lost".into()), usage: None });
        events.push(TaskEvent::Status {
            state: Phase::Queued,
            message: Some(format!("trying again: {}", error.message)),
        });
        self.append(id, events, wall);
        self.tasks.enqueue(id, true);
    }

    /// No actor of this agent can start, so its queued tasks never will.
    pub(crate) fn pool_cannot_start(&mut self, agent: &AgentName, error: &Error, now: Millis) {
        if self.tasks.queue.waiting_for(agent) > 0 {
            self.tasks.failing.insert(agent.clone(), (self.tasks.queue.last(), error.clone()));
            self.fail_waiting(now);
        }
    }

    /// Fails some of the tasks that wait for actors that cannot start. `true` while there are more.
    pub(crate) fn fail_waiting(&mut self, now: Millis) -> bool {
        let mut left = STEP;
        while let Some((agent, (last, error))) =
            self.tasks.failing.first_key_value().map(|(a, f)| (a.clone(), f.clone()))
        {
            let mut pool = self.directory.pools.get(&agent).into_iter().flatten();
            let alive = pool.any(|id| self.directory.actors.get(id).is_some_and(|a| a.state == ActorState::Live));
            let first = if alive { None } else { self.tasks.queue.first_up_to(&agent, last).cloned() };
            let Some(task) = first else {
                self.tasks.failing.remove(&agent);
                continue;
            };
            if left == 0 {
                return true;
            }
            left -= 1;
            self.end_task(&task, Outcome::Failed { error }, now);
        }
        false
    }

    /// Ends some of the tasks whose time is over. `true` while there are more.
    pub(crate) fn expire_tasks(&mut self, now: Millis) -> bool {
        for _ in 0..STEP {
            if self.tasks.deadlines.first().is_none_or(|(deadline, _)| *deadline > now) {
                return false;
            }
            let Some((_, id)) = self.tasks.deadlines.pop_first() else { return false };
            let limit = self.tasks.active.get(&id).and_then(|t| t.record.timeout_ms).unwrap_or(0);
            let error = Error::new(ErrorKind::DeadlineExceeded, format!("the task took longer than {limit} ms"));
            self.end_task(&id, Outcome::Failed { error }, now);
        }
        true
    }

    /// Queues some of the tasks again that no worker brought back. `true` while there are more.
    pub(crate) fn requeue_orphans(&mut self, now: Millis) -> bool {
        for _ in 0..STEP {
            let Some(id) = self.tasks.orphans.pop_front() else { return false };
            if self.tasks.active.get(&id).is_some_and(|task| task.orphan) {
                self.task_lost(&id, &Error::unavailable("its worker did not come back"), now);
            }
        }
        true
    }

    /// Writes the end of a task by the head's own hand; the worker is told and its actor stays taken until it answers.
    pub(crate) fn end_task(&mut self, id: &TaskId, outcome: Outcome, now: Millis) {
        let Some(task) = self.tasks.active.get(id) else { return };
        let reason = match &outcome {
            Outcome::Cancelled { reason, .. } | Outcome::Rejected { reason } => reason.clone(),
            Outcome::Failed { error } => error.message.clone(),
            Outcome::Completed { .. } => String::new(),
        };
        let (attempt, actor) = (task.record.attempt, task.actor.clone());
        let mut events = task.open.closers(false);
        events.push(TaskEvent::Finished { outcome, usage: BTreeMap::new() });
        self.tasks.dequeue(id);
        self.append(id, events, self.wall(now));
        self.after_events(id);
        if let Some(node) = actor.and_then(|a| self.directory.actors.get(&a)).and_then(|a| a.node.clone()) {
            self.out.push_back(Output::Send(node, Command::CancelTask { task: id.clone(), attempt, reason }));
        }
    }

    /// Numbers events and writes them, and the record where they change it; what does not fit the log is left out.
    pub(crate) fn append(&mut self, id: &TaskId, events: Vec<TaskEvent>, ts_ms: Millis) {
        let Some(task) = self.tasks.active.get_mut(id) else { return };
        let (mut state, mut changed) = (task.record.state, false);
        let mut events = std::collections::VecDeque::from(events);
        while let Some(event) = events.pop_front() {
            // Whatever its writer forgot to close: a task that has ended has its end.
            if matches!(event, TaskEvent::Finished { .. }) && task.open.is_open() {
                events.push_front(event);
                task.open.closers(false).into_iter().rev().for_each(|closer| events.push_front(closer));
                continue;
            }
            // A run that asked again just before it heard the answer does not wait for another.
            let late = match &event {
                TaskEvent::InterruptRaised { id, prompt, .. } => task.turns.answered(id, prompt),
                TaskEvent::Status { state: Phase::Waiting, .. } => task.turns.asked.is_empty(),
                _ => false,
            };
            if late || task.open.push(&event).is_err() {
                continue;
            }
            state = state.after(&event);
            changed |= matches!(event, TaskEvent::Status { .. } | TaskEvent::Finished { .. });
            task.seq += 1;
            task.turns.push(task.seq, &event);
            let envelope = Envelope { task: id.clone(), seq: task.seq, ts_ms, sub: None, event, meta: BTreeMap::new() };
            self.out.push_back(Output::Write(Write::Event(Arc::new(envelope))));
        }
        if changed {
            let before = task.record.state;
            task.record = Arc::new(TaskRecord { state, changed_ms: ts_ms, ..(*task.record).clone() });
            self.out.push_back(Output::Write(Write::Task(task.record.clone())));
            self.tasks.moves(before, state);
        }
    }

    /// Retires a task whose log has its end.
    fn after_events(&mut self, id: &TaskId) {
        if self.tasks.active.get(id).is_some_and(|task| task.record.state.is_terminal()) {
            self.tasks.retire(id);
        }
    }

    /// The worker has ended an attempt, so its actor has a turn to give. It is `likely` unless the attempt is an older one.
    fn free_slot(&mut self, node: &NodeId, likely: Option<ActorId>, task: &TaskId, attempt: u32) -> Option<ActorId> {
        let known = self.nodes.get(node)?;
        let likely = likely.filter(|id| known.actors.contains(id));
        for id in likely.iter().chain(&known.actors) {
            if let Some(actor) = self.directory.actors.get_mut(id)
                && actor.tasks.get(task) == Some(&attempt)
            {
                // An older attempt's end says nothing about the turn that a newer one holds.
                actor.drop_task(task);
                // Its place may be what others wait for.
                self.unplanned |= actor.tasks.is_empty();
                return Some(id.clone());
            }
        }
        None
    }
}
