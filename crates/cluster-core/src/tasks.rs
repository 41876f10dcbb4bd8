//! The life of a task: accepted, queued, given to an actor, tried again when that is lost, ended once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use covey_domain::{
    ActorId, AgentName, CallerId, ContextId, Envelope, Error, ErrorKind, Millis, ModelName, NodeId, TaskEvent, TaskId,
    TaskRecord, TaskState, caps,
    event::{Outcome, Phase},
    log::{OpenParts, Turns},
    task::TaskInput,
};
use hashbrown::{HashMap, hash_map};

use crate::{
    dead_letters::DeadLetter,
    directory::{ActorState, Owner},
    fair::{FairQueue, Load, Ticket},
    head::{Command, Entry, Head, Output, Write},
};

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
    pub input: TaskInput,
    /// The asker's own id of the request.
    pub message_id: Option<String>,
    /// Model asked for.
    pub model: Option<ModelName>,
    /// Which protocol.
    pub protocol: String,
    /// Bound from now on.
    pub timeout_ms: Option<u64>,
    /// Tasks of this caller that may have not ended at once.
    pub tasks_max: usize,
}

/// What came of a submission. It is acknowledged once the writes before it are durable.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// The task; without its input where it has ended already.
    pub record: Arc<TaskRecord>,
    /// `false`: the same message had made it before.
    pub created: bool,
}

/// A task as it comes back from the store.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its record.
    pub record: TaskRecord,
    /// Its log; only read for tasks that have not ended.
    pub events: Vec<TaskEvent>,
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
    /// Its place in the queue, while it waits for an actor.
    pub ticket: Option<Ticket>,
    /// Bytes it was asked with.
    pub weight: usize,
}

/// All tasks that have not ended, and the memory of message ids.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub active: HashMap<TaskId, Task>,
    queue: FairQueue,
    load: Load,
    by_message: HashMap<(CallerId, AgentName, String), Arc<TaskRecord>>,
    message_order: VecDeque<(CallerId, AgentName, String)>,
    ended: BTreeMap<&'static str, u64>,
}

impl Tasks {
    pub fn waiting(&self) -> impl Iterator<Item = (&AgentName, usize)> {
        self.queue.waiting()
    }

    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<String, u64> = self.ended.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        for task in self.active.values() {
            *counts.entry(task.record.state.name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// A task that is known begins to wait for an actor; `again`: it had one, and comes before what its caller has waiting.
    fn enqueue(&mut self, id: &TaskId, again: bool) {
        let Some(task) = self.active.get_mut(id) else { return };
        let (agent, caller) = (&task.record.agent, &task.record.caller);
        let ticket = match again {
            true => self.queue.push_front(agent, caller, id.clone()),
            false => self.queue.push_back(agent, caller, id.clone()),
        };
        task.ticket = Some(ticket);
    }

    /// The next task that waits for an actor of this agent.
    fn next(&mut self, agent: &AgentName) -> Option<TaskId> {
        let id = self.queue.pop(agent)?;
        if let Some(task) = self.active.get_mut(&id) {
            task.ticket = None;
        }
        Some(id)
    }

    /// It does not wait any more.
    fn dequeue(&mut self, id: &TaskId) {
        if let Some(task) = self.active.get_mut(id)
            && let Some(ticket) = task.ticket.take()
        {
            self.queue.remove(&task.record.agent, &task.record.caller, ticket);
        }
    }

    fn begin(&mut self, task: Task) {
        self.load.add(&task.record.caller, task.weight);
        self.active.insert(task.record.id.clone(), task);
    }

    fn remember(&mut self, record: &Arc<TaskRecord>) {
        if let Some(message_id) = &record.message_id {
            let key = (record.caller.clone(), record.agent.clone(), message_id.clone());
            match self.by_message.entry(key) {
                hash_map::Entry::Occupied(mut known) => drop(known.insert(record.clone())),
                hash_map::Entry::Vacant(new) => {
                    self.message_order.push_back(new.key().clone());
                    new.insert(record.clone());
                }
            }
            if self.message_order.len() > caps::MESSAGE_IDS_MAX
                && let Some(oldest) = self.message_order.pop_front()
            {
                self.by_message.remove(&oldest);
            }
        }
    }
}

/// What is remembered of a task that has ended: a million of them must not weigh what they were asked with.
fn without_input(record: &TaskRecord) -> Arc<TaskRecord> {
    Arc::new(TaskRecord { input: Arc::default(), ..record.clone() })
}

impl Head {
    /// Brings a task back from the store, before the first verb.
    pub fn restore(&mut self, stored: Stored, now: Millis) {
        let record = Arc::new(stored.record);
        if record.state.is_terminal() {
            self.tasks.remember(&without_input(&record));
            *self.tasks.ended.entry(record.state.name()).or_default() += 1;
            return;
        }
        self.tasks.remember(&record);
        let (mut open, mut turns) = (OpenParts::default(), Turns::default());
        let (mut state, mut excused) = (TaskState::Submitted, 0);
        for (event, seq) in stored.events.iter().zip(1..) {
            // What is stored was checked when it was taken.
            let _ = open.push(event);
            turns.push(seq, event);
            excused += u32::from(matches!(event, TaskEvent::StepReset { .. }) && state.waits());
            state = state.after(event);
        }
        let begun = open.in_step();
        if begun {
            self.liveness.recover_until.get_or_insert(now + self.config.lease_ms);
        }
        // Records of older versions do not say it; those begin their time anew.
        let deadline = record.expires_ms.or(record.timeout_ms.map(|t| now + t));
        let seq = stored.events.len() as u64;
        let (id, weight) = (record.id.clone(), record.input.weight());
        let orphan = begun;
        self.tasks.begin(Task {
            seq,
            open,
            turns,
            excused,
            actor: None,
            deadline,
            orphan,
            ticket: None,
            weight,
            record,
        });
        if !begun {
            self.tasks.enqueue(&id, false);
        }
    }

    /// Accepts a task, or finds the one the same message made.
    pub fn submit(&mut self, ask: Submission, now: Millis) -> Result<Submitted, Error> {
        let spec = self.agent(ask.agent.as_str())?.clone();
        if let Some(message_id) = &ask.message_id
            && let Some(known) = self.tasks.by_message.get(&(ask.caller.clone(), ask.agent.clone(), message_id.clone()))
        {
            let record = self.tasks.active.get(&known.id).map_or(known, |t| &t.record).clone();
            return Ok(Submitted { record, created: false });
        }
        let skill = spec.skill(ask.skill.as_deref())?.id.clone();
        let weight = ask.input.weight();
        self.tasks.load.admit(&ask.caller, weight, ask.tasks_max, self.tasks.queue.len())?;
        let timeout_ms = ask.timeout_ms.or(spec.timeout_ms);
        let record = Arc::new(TaskRecord {
            id: ask.id,
            context: ask.context,
            agent: ask.agent,
            skill,
            caller: ask.caller,
            message_id: ask.message_id,
            model: ask.model,
            protocol: ask.protocol,
            input: Arc::new(ask.input),
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
            ticket: None,
            weight,
        };
        self.tasks.remember(&record);
        self.tasks.begin(task);
        self.out.push_back(Output::Write(Write::NewTask(record.clone())));
        self.append(&record.id, vec![started], self.wall(now));
        self.tasks.enqueue(&record.id, false);
        self.settle(now);
        Ok(Submitted { record, created: true })
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

    /// A task that has not ended.
    pub fn active_task(&self, id: &TaskId) -> Option<(Arc<TaskRecord>, u64)> {
        self.tasks.active.get(id).map(|t| (t.record.clone(), t.seq))
    }

    /// Events a worker wrote; what a stale attempt says is refused, except that its actor is free again.
    pub(crate) fn task_events(&mut self, node: &NodeId, entry: Entry, now: Millis) {
        let Entry { task: id, attempt, events, ts_ms, .. } = entry;
        let ends = events.iter().any(TaskEvent::is_terminal);
        let fresh = self.tasks.active.get(&id).filter(|t| t.record.attempt == attempt && !t.orphan);
        let actor = fresh.and_then(|t| t.actor.clone());
        let ours =
            actor.as_ref().and_then(|a| self.directory.actors.get(a)).is_some_and(|a| a.node.as_ref() == Some(node));
        if ours {
            self.append(&id, events, ts_ms);
            self.after_events(&id);
            self.rest(&id, now);
        }
        if ends {
            if let Some(known) = self.nodes.get_mut(node) {
                known.tasks_done += u64::from(ours);
            }
            if let Some(actor) = self.free_slot(node, &id, attempt) {
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
                    let Some(task) = self.tasks.next(&agent) else { break };
                    self.assign(&task, id, now);
                }
            }
            let waiting = self.tasks.queue.of(&agent).saturating_sub(coming);
            let more = waiting.div_ceil(spec.concurrency.max(1) as usize);
            let room = self.pool_max(&spec).saturating_sub(pool.len());
            for _ in 0..more.min(room) {
                let id = ActorId::from(self.mint("pool"));
                self.insert_actor(id, None, spec.clone(), None, Owner::Pool, now);
            }
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
            self.dead_letters.push(DeadLetter {
                at_ms: wall,
                agent: task.record.agent.clone(),
                actor: None,
                task: Some(id.clone()),
                method: task.record.skill.clone(),
                bytes: 0,
                attempts: attempt,
                error: error.clone(),
            });
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
        let alive = self
            .directory
            .pools
            .get(agent)
            .into_iter()
            .flatten()
            .any(|id| self.directory.actors.get(id).is_some_and(|a| a.state == ActorState::Live));
        if alive {
            return;
        }
        for id in self.tasks.queue.tasks(agent) {
            self.end_task(&id, Outcome::Failed { error: error.clone() }, now);
        }
    }

    pub(crate) fn expire_tasks(&mut self, now: Millis) {
        let late: Vec<_> = self
            .tasks
            .active
            .iter()
            .filter(|(_, t)| t.deadline.is_some_and(|d| d <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            let limit = self.tasks.active.get(&id).and_then(|t| t.record.timeout_ms).unwrap_or(0);
            let error = Error::new(ErrorKind::DeadlineExceeded, format!("the task took longer than {limit} ms"));
            self.end_task(&id, Outcome::Failed { error }, now);
        }
    }

    /// Writes the end of a task by the head's own hand; the worker is told and its actor stays taken until it answers.
    fn end_task(&mut self, id: &TaskId, outcome: Outcome, now: Millis) {
        let Some(task) = self.tasks.active.get(id) else { return };
        let reason = match &outcome {
            Outcome::Cancelled { reason, .. } | Outcome::Rejected { reason } => reason.clone(),
            Outcome::Failed { error } => error.message.clone(),
            Outcome::Completed { .. } | Outcome::Interrupted { .. } => String::new(),
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
        for event in events {
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
            task.record = Arc::new(TaskRecord { state, changed_ms: ts_ms, ..(*task.record).clone() });
            self.out.push_back(Output::Write(Write::Task(task.record.clone())));
        }
    }

    /// Retires a task whose log has its end.
    fn after_events(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.active.get(id) else { return };
        if !task.record.state.is_terminal() {
            return;
        }
        let record = task.record.clone();
        self.tasks.dequeue(id);
        if let Some(task) = self.tasks.active.remove(id) {
            self.tasks.load.sub(&record.caller, task.weight);
        }
        *self.tasks.ended.entry(record.state.name()).or_default() += 1;
        self.tasks.remember(&without_input(&record));
    }

    /// The worker has ended an attempt, so its actor has a turn to give.
    fn free_slot(&mut self, node: &NodeId, task: &TaskId, attempt: u32) -> Option<ActorId> {
        let node = self.nodes.get(node)?;
        for id in &node.actors {
            if let Some(actor) = self.directory.actors.get_mut(id)
                && actor.tasks.get(task) == Some(&attempt)
            {
                // An older attempt's end says nothing about the turn that a newer one holds.
                actor.drop_task(task);
                return Some(id.clone());
            }
        }
        None
    }
}
