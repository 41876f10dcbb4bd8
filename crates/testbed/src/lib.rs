//! A simulated world around the real decision machines.
//!
//! [`World`] runs [`covey_cluster_core::Head`] and the worker's [`Outbox`] and [`Lease`] against a made-up network: seeded dice
//! cut links, make them silent without closing them, stop and kill workers, stop and restart the head, time jumps from event to
//! event and runs faster on one worker than on another, and the invariants are checked as it goes. The code under test is the
//! code that production runs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use covey_cluster_core::{
    Head, HeadConfig, Output,
    head::{ActorReport, Command, Entry, HeldTask, Hello, LivingActor, Member, Stored, Submission, Write},
    lease::{self, Lease},
    link::Outbox,
};
use covey_domain::{
    ActorId, AgentSpec, Envelope, Epoch, NodeId, Resources, TaskEvent, TaskId, TaskRecord, caps,
    event::{Content, InterruptKind, Outcome, Phase},
    log::Writer,
};

/// Dice that give the same throws for the same seed (xorshift64*).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n.max(1)
    }
}

/// What is on the head's disk.
#[derive(Debug, Default)]
struct Disk {
    tasks: BTreeMap<TaskId, TaskRecord>,
    events: BTreeMap<TaskId, Vec<Envelope>>,
    cursors: BTreeMap<(NodeId, u64), u64>,
    members: BTreeMap<NodeId, Member>,
    activations: BTreeMap<ActorId, (NodeId, Epoch)>,
}

/// One worker: its actors, the attempts it runs, and its outbox.
#[derive(Debug)]
struct Worker {
    incarnation: u64,
    conn: u64,
    /// As the worker sees it.
    linked: bool,
    /// Nothing passes between it and the head, and neither end is told.
    silent: bool,
    /// It stands still (SIGSTOP) until then.
    stopped_until: u64,
    lease: Lease,
    /// Thousandths of the world's time that its clock shows.
    rate: u64,
    /// What it sent and the head has not heard.
    wire: VecDeque<Sent>,
    actors: BTreeMap<ActorId, Epoch>,
    running: BTreeMap<(TaskId, u32), Attempt>,
    held: BTreeMap<(TaskId, u32), ActorId>,
    outbox: Outbox<(TaskId, u32, Vec<TaskEvent>)>,
    inbox: VecDeque<Command>,
}

/// What a worker sends over a link.
#[derive(Debug)]
enum Sent {
    Beat(u64),
    Entry(Entry),
    Live(ActorId, Epoch),
}

impl Worker {
    fn clock(&self, now: u64) -> u64 {
        now * self.rate / 1_000
    }

    /// Everything here stops, and the link with it.
    fn fence(&mut self) {
        self.actors.clear();
        self.running.clear();
        self.lease.end();
        self.unlink();
    }

    fn unlink(&mut self) {
        self.linked = false;
        self.silent = false;
        self.wire.clear();
        self.inbox.clear();
    }

    fn is_stopped(&self, now: u64) -> bool {
        now < self.stopped_until
    }
}

/// A run of a task: it says three words, and every third task asks before the last one.
#[derive(Debug)]
struct Attempt {
    actor: ActorId,
    writer: Option<Writer>,
    words: u32,
    asked: bool,
    answered: bool,
}

/// What every third task asks.
const QUESTION: &str = "go on?";

fn asks(task: &TaskId) -> bool {
    task.as_str()[1..].parse::<usize>().is_ok_and(|number| number % 3 == 0)
}

/// What waits for the next fsync: what one verb of the head wrote, and what may be done once that is on disk.
#[derive(Debug, Default)]
struct Unsynced {
    writes: Vec<Write>,
    sends: Vec<(NodeId, Command)>,
    drops: Vec<(NodeId, u64)>,
    acknowledges: Option<TaskId>,
}

/// The whole world.
#[derive(Debug)]
pub struct World {
    dice: Dice,
    head: Head,
    disk: Disk,
    unsynced: VecDeque<Unsynced>,
    workers: BTreeMap<NodeId, Worker>,
    agent: AgentSpec,
    now: u64,
    conns: u64,
    submitted: BTreeSet<TaskId>,
    /// The head stands still until then.
    head_stopped_until: u64,
    /// Processes that are over, which the head will find out.
    proofs: VecDeque<(NodeId, u64)>,
    /// The newest attempt of each task that did something outside.
    effects: BTreeMap<TaskId, u32>,
}

impl World {
    /// A world with `workers` workers that have joined.
    pub fn new(seed: u64, workers: usize) -> Self {
        let agent: AgentSpec = serde_json::from_value(serde_json::json!({
            "name": "a", "kind": {"type": "native", "implementation": "a"}, "concurrency": 2, "pool": 4,
        }))
        .expect("a valid agent");
        let mut world = Self {
            dice: Dice::new(seed),
            head: Head::new(HeadConfig::default(), seed),
            disk: Disk::default(),
            unsynced: VecDeque::new(),
            workers: BTreeMap::new(),
            agent: agent.clone().validated().expect("a valid agent"),
            now: 1_000,
            conns: 0,
            submitted: BTreeSet::new(),
            head_stopped_until: 0,
            proofs: VecDeque::new(),
            effects: BTreeMap::new(),
        };
        world.head.register(agent, world.now).expect("a valid agent");
        for number in 0..workers {
            world.join_new(&NodeId::from(format!("w{number}")));
        }
        world.sync();
        world
    }

    /// Submits a task; once it is acknowledged it must never be lost.
    pub fn submit(&mut self, number: usize) {
        let id = TaskId::from(format!("t{number}"));
        let submission = Submission {
            id: id.clone(),
            context: "c".into(),
            caller: "me".into(),
            agent: "a".into(),
            skill: None,
            input: Default::default(),
            message_id: Some(format!("m{number}")),
            model: None,
            protocol: "test".into(),
            timeout_ms: None,
            looked_at: u64::MAX,
            tasks_max: usize::MAX,
            refused: None,
        };
        self.head.submit(submission, self.now).expect("room for a task");
        self.drain();
        self.unsynced.back_mut().expect("a task is written").acknowledges = Some(id);
    }

    /// One throw of the dice: work, or trouble when `trouble`.
    pub fn step(&mut self, trouble: bool) {
        self.now += self.dice.below(120);
        let names: Vec<_> = self.workers.keys().cloned().collect();
        let name = names[self.dice.below(names.len() as u64) as usize].clone();
        self.fence_late();
        match self.dice.below(if trouble { 110 } else { 100 }) {
            0..70 => self.work(&name),
            70..90 => self.heartbeat(),
            90..98 => self.relink(&name),
            98 | 99 => self.heal(&name),
            100 | 101 => self.cut(&name),
            102 | 103 => self.kill(&name),
            104 | 105 => self.restart_head(),
            106 => self.silence(&name),
            107 => self.stop(&name),
            108 => self.head_stopped_until = self.now + self.dice.below(15_000),
            _ => self.now += 700,
        }
        if self.head_stopped() {
            return;
        }
        for name in &names {
            self.carry(name);
        }
        if self.dice.below(4) == 0
            && let Some((node, incarnation)) = self.proofs.pop_front()
        {
            self.head.gone(&node, incarnation, self.now);
        }
        if self.dice.below(8) == 0 {
            self.answer();
        }
        self.head.tick(self.now);
        self.drain();
        if self.dice.below(3) > 0 {
            self.sync();
        }
    }

    /// Whoever may not act any more by its own clock stops, before it does anything else.
    fn fence_late(&mut self) {
        let now = self.now;
        for worker in self.workers.values_mut().filter(|w| !w.is_stopped(now)) {
            if worker.lease.is_over(worker.clock(now)) {
                worker.fence();
            }
        }
    }

    fn head_stopped(&self) -> bool {
        self.now < self.head_stopped_until
    }

    fn silence(&mut self, name: &NodeId) {
        if let Some(worker) = self.workers.get_mut(name).filter(|w| w.linked) {
            worker.silent = true;
        }
    }

    fn heal(&mut self, name: &NodeId) {
        if let Some(worker) = self.workers.get_mut(name) {
            worker.silent = false;
        }
    }

    fn stop(&mut self, name: &NodeId) {
        let until = self.now + self.dice.below(20_000);
        if let Some(worker) = self.workers.get_mut(name) {
            worker.stopped_until = until;
        }
    }

    /// What a worker sent reaches the head, unless the link is silent.
    fn carry(&mut self, name: &NodeId) {
        while let Some(worker) = self.workers.get_mut(name).filter(|w| w.linked && !w.silent)
            && let Some(sent) = worker.wire.pop_front()
        {
            let conn = worker.conn;
            let renewed = self.head.heard(name, conn, self.now);
            match sent {
                Sent::Beat(sent) if renewed => {
                    let worker = self.workers.get_mut(name).expect("it is there");
                    let clock = worker.clock(self.now);
                    worker.lease.renewed(sent, clock);
                }
                Sent::Entry(entry) if renewed => {
                    self.head.entry(name, conn, entry, self.now).expect("no gap on a live link");
                }
                Sent::Live(actor, epoch) => {
                    self.head.actor_report(name, &actor, epoch, ActorReport::Live, self.now);
                }
                Sent::Beat(_) | Sent::Entry(_) => {
                    self.workers.get_mut(name).expect("it is there").unlink();
                    self.head.unlinked(name, conn);
                }
            }
        }
    }

    /// No task is unfinished.
    pub fn is_done(&self) -> bool {
        self.submitted.iter().all(|id| self.disk.tasks.get(id).is_some_and(|t| t.state.is_terminal()))
    }

    /// T-1, T-2, T-3 and T-5 of `docs/architecture.md`, for everything on the disk.
    pub fn check(&self) {
        for id in &self.submitted {
            let events = &self.disk.events[id];
            for (at, event) in events.iter().enumerate() {
                assert_eq!(event.seq, at as u64 + 1, "T-3: {id} has a gap");
            }
            let answers = events.iter().filter(|e| matches!(e.event, TaskEvent::Steered { .. })).count();
            assert!(answers <= 1, "{id} took one message {answers} times");
            let mut late = events.iter().skip_while(|e| !matches!(e.event, TaskEvent::Steered { .. }));
            assert!(!late.any(|e| matches!(e.event, TaskEvent::InterruptRaised { .. })), "{id} asks what it was told");
            let ends = events.iter().filter(|e| e.event.is_terminal()).count();
            assert!(ends <= 1, "T-2: {id} ended {ends} times");
            if ends == 1 {
                assert!(events.last().is_some_and(|e| e.event.is_terminal()), "T-2: {id} goes on after its end");
                let mut answer = covey_domain::log::Answer::default();
                events.iter().for_each(|e| answer.push(&e.event));
                match &answer.outcome {
                    Some(Outcome::Completed { .. }) => {
                        assert_eq!(answer.text, "one two three ", "T-5: {id}");
                        assert_eq!(answers, usize::from(asks(id)), "{id} went on without its answer");
                    }
                    // A task that takes its actor down again and again is its own fault in the end.
                    Some(Outcome::Failed { .. }) => {
                        assert!(self.disk.tasks[id].attempt >= caps::TASK_ATTEMPTS_MAX, "T-1: {id} failed early");
                    }
                    other => panic!("T-1: {id} ended as {other:?}"),
                }
            }
        }
    }

    /// The head's picture and the workers', for a seed that failed.
    pub fn describe(&self) -> String {
        format!("{:#?}\n{:#?}", self.head.status(), self.workers)
    }

    fn join_new(&mut self, name: &NodeId) {
        let incarnation = self.dice.below(1 << 30) + 1;
        let rate = 950 + self.dice.below(100);
        let worker = Worker {
            incarnation,
            conn: 0,
            linked: false,
            silent: false,
            stopped_until: 0,
            lease: Lease::default(),
            rate,
            wire: VecDeque::new(),
            actors: BTreeMap::new(),
            running: BTreeMap::new(),
            held: BTreeMap::new(),
            outbox: Outbox::default(),
            inbox: VecDeque::new(),
        };
        self.workers.insert(name.clone(), worker);
        self.relink(name);
    }

    fn relink(&mut self, name: &NodeId) {
        let stopped = self.head_stopped();
        let now = self.now;
        let Some(worker) = self.workers.get_mut(name).filter(|w| !w.linked && !w.is_stopped(now) && !stopped) else {
            return;
        };
        self.conns += 1;
        worker.conn = self.conns;
        let mut tasks: BTreeMap<(TaskId, u32), ActorId> =
            worker.running.iter().map(|(key, attempt)| (key.clone(), attempt.actor.clone())).collect();
        let over = |events: &[TaskEvent]| events.iter().any(TaskEvent::is_terminal);
        for (_, (task, attempt, _)) in worker.outbox.unacknowledged().filter(|(_, (_, _, events))| over(events)) {
            let key = (task.clone(), *attempt);
            if let Some(actor) = worker.held.get(&key) {
                tasks.insert(key, actor.clone());
            }
        }
        let hello = Hello {
            incarnation: worker.incarnation,
            name: name.to_string(),
            total: Resources { cpu_milli: 2_000, ..Resources::default() },
            actors: worker
                .actors
                .iter()
                .map(|(actor, epoch)| LivingActor {
                    actor: actor.clone(),
                    epoch: *epoch,
                    agent: "a".into(),
                    owner: "pool".into(),
                    starting: false,
                    said: None,
                })
                .collect(),
            tasks: tasks.into_iter().map(|((task, attempt), actor)| HeldTask { task, attempt, actor }).collect(),
            ..Hello::default()
        };
        let Ok(durable) = self.head.joined(name, worker.conn, hello, now) else { return };
        worker.linked = true;
        let asked = worker.clock(now);
        worker.lease.granted(asked, lease::told_ms(self.head.config().lease_ms));
        // The welcome waits for the disk.
        self.sync();
        let Some(worker) = self.workers.get_mut(name).filter(|w| w.linked) else { return };
        worker.outbox.acknowledge(durable);
        let resend: Vec<_> = worker.outbox.unacknowledged().map(|(n, e)| (n, e.clone())).collect();
        for (number, (task, attempt, events)) in resend {
            worker.wire.push_back(Sent::Entry(Entry { number, task, attempt, ts_ms: now, events: Ok(events) }));
        }
        self.carry(name);
        self.drain();
    }

    fn cut(&mut self, name: &NodeId) {
        if let Some(worker) = self.workers.get_mut(name).filter(|w| w.linked) {
            worker.unlink();
            self.head.unlinked(name, worker.conn);
        }
    }

    fn kill(&mut self, name: &NodeId) {
        self.cut(name);
        self.proofs.push_back((name.clone(), self.workers[name].incarnation));
        self.join_new(&name.clone());
    }

    fn heartbeat(&mut self) {
        let now = self.now;
        for worker in self.workers.values_mut().filter(|w| w.linked && !w.is_stopped(now)) {
            let beat = Sent::Beat(worker.clock(now));
            worker.wire.push_back(beat);
        }
    }

    /// The head dies. What it wrote stays, unless its machine lost its power: then some of what was not synced is gone. Of
    /// what waited for an fsync nothing was done.
    fn restart_head(&mut self) {
        if self.dice.below(2) == 0 {
            let kept = self.dice.below(self.unsynced.len() as u64 + 1) as usize;
            self.unsynced.truncate(kept);
        }
        for Unsynced { writes, .. } in std::mem::take(&mut self.unsynced) {
            writes.into_iter().for_each(|write| self.disk.write(write));
        }
        let seed = self.dice.below(1 << 30);
        self.head = Head::new(HeadConfig::default(), seed);
        self.head.restore_agent(self.agent.clone());
        for ((node, incarnation), number) in &self.disk.cursors {
            self.head.restore_cursor(node.clone(), *incarnation, *number);
        }
        for (node, member) in &self.disk.members {
            self.head.restore_member(node.clone(), member.clone(), self.now);
        }
        for (actor, (node, epoch)) in &self.disk.activations {
            self.head.restore_activation(actor.clone(), node.clone(), *epoch, self.now);
        }
        for record in self.disk.tasks.values().filter(|record| !record.state.is_terminal()) {
            let events = self.disk.events.get(&record.id).map(|all| all.iter().map(|e| e.event.clone()).collect());
            self.head
                .restore(Stored { record: record.clone(), events: events.unwrap_or_default(), broken: None }, self.now);
        }
        self.head_stopped_until = 0;
        self.workers.values_mut().for_each(Worker::unlink);
    }

    /// A worker takes one command, or one of its attempts says one word more.
    fn work(&mut self, name: &NodeId) {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(name).filter(|w| !w.is_stopped(now)) else { return };
        if !worker.silent
            && let Some(command) = worker.inbox.pop_front()
        {
            match command {
                Command::Start { actor, epoch, .. } => {
                    worker.actors.insert(actor.clone(), epoch);
                    worker.wire.push_back(Sent::Live(actor, epoch));
                }
                Command::Stop { actor, .. } => {
                    worker.actors.remove(&actor);
                    worker.running.retain(|_, attempt| attempt.actor != actor);
                }
                Command::Run { record, actor, said, .. } => {
                    let key = (record.id.clone(), record.attempt);
                    worker.held.insert(key.clone(), actor.clone());
                    let writer = Some(Writer::new(record.id.clone(), record.attempt));
                    let answered = said.iter().any(|said| said.answers.is_some());
                    worker.running.insert(key, Attempt { actor, writer, words: 0, asked: false, answered });
                }
                Command::CancelTask { task, attempt, .. } => {
                    if let Some(run) = worker.running.remove(&(task.clone(), attempt)) {
                        let cancelled = Outcome::Cancelled { by: "w".into(), reason: String::new() };
                        let events = run.writer.map(|w| w.finish(cancelled, BTreeMap::new())).unwrap_or_default();
                        self.say(name, task, attempt, events);
                    }
                }
                Command::Say { task, attempt, said } => {
                    if let Some(run) = worker.running.get_mut(&(task, attempt)) {
                        run.answered |= said.answers.is_some();
                    }
                }
                Command::Durable { number, .. } => worker.outbox.acknowledge(number),
            }
            return;
        }
        let keys: Vec<_> = worker.running.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.dice.below(keys.len() as u64) as usize].clone();
        let Some(run) = worker.running.get_mut(&key) else { return };
        let newest = self.effects.entry(key.0.clone()).or_default();
        assert!(*newest <= key.1, "L-1: attempt {} of {} acts after attempt {newest} began", key.1, key.0);
        *newest = key.1;
        let events = match run.words {
            3 => {
                let done = Outcome::Completed { finish: "stop".into(), result: None };
                let events = run.writer.take().map(|w| w.finish(done, BTreeMap::new())).unwrap_or_default();
                worker.running.remove(&key);
                events
            }
            2 if asks(&key.0) && !run.answered => {
                if std::mem::replace(&mut run.asked, true) {
                    return;
                }
                let question = TaskEvent::InterruptRaised {
                    id: format!("{}-i1", key.0).into(),
                    kind: InterruptKind::Custom { value: serde_json::Value::Null },
                    prompt: QUESTION.into(),
                    options: Vec::new(),
                    response_schema: None,
                    expires_at_ms: None,
                    refused: None,
                };
                vec![question, TaskEvent::Status { state: Phase::Waiting, message: None }]
            }
            n => {
                run.words += 1;
                let word = ["one ", "two ", "three "][n as usize];
                run.writer.as_mut().map(|w| w.text(word)).unwrap_or_default()
            }
        };
        self.say(name, key.0, key.1, events);
    }

    /// Whoever waits for some task answers it, and does so again.
    fn answer(&mut self) {
        self.sync();
        let waits = |t: &TaskRecord| t.state.waits();
        let waiting: Vec<_> = self.disk.tasks.values().filter(|t| waits(t)).map(|t| t.id.clone()).collect();
        if waiting.is_empty() {
            return;
        }
        let id = &waiting[self.dice.below(waiting.len() as u64) as usize];
        for _ in 0..2 {
            self.head.say(id, "me", Some("yes".into()), vec![Content::Text("yes".into())], self.now).expect("it waits");
        }
    }

    fn say(&mut self, name: &NodeId, task: TaskId, attempt: u32, events: Vec<TaskEvent>) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        let number = worker.outbox.push((task.clone(), attempt, events.clone())).expect("room in the outbox");
        if worker.linked {
            worker.wire.push_back(Sent::Entry(Entry { number, task, attempt, ts_ms: self.now, events: Ok(events) }));
        }
    }

    /// Writes what the head decided. Runs need no more than that; the rest follows the fsync.
    fn drain(&mut self) {
        let mut unsynced = Unsynced::default();
        let mut waits = false;
        while let Some(output) = self.head.poll_output() {
            match output {
                Output::Write(write) => unsynced.writes.push(write),
                Output::Send(node, run @ Command::Run { .. }) if !waits => self.deliver(&node, run),
                Output::Send(node, command) => {
                    waits |= matches!(command, Command::Start { .. } | Command::Stop { .. });
                    unsynced.sends.push((node, command));
                }
                Output::Drop(node, conn) => unsynced.drops.push((node, conn)),
                Output::Route(..) | Output::Topic(..) | Output::Remind(..) | Output::SessionOver(_) => {}
            }
        }
        self.unsynced.push_back(unsynced);
    }

    /// An fsync, and what waited for it.
    fn sync(&mut self) {
        self.drain();
        for Unsynced { writes, sends, drops, acknowledges } in std::mem::take(&mut self.unsynced) {
            writes.into_iter().for_each(|write| self.disk.write(write));
            sends.into_iter().for_each(|(node, command)| self.deliver(&node, command));
            for (node, conn) in drops {
                // The worker is told, unless nothing reaches it: then its own clock tells it.
                let now = self.now;
                if let Some(worker) = self.workers.get_mut(&node).filter(|w| w.conn == conn && w.linked && !w.silent) {
                    if worker.is_stopped(now) {
                        worker.unlink();
                    } else {
                        worker.fence();
                    }
                }
            }
            self.submitted.extend(acknowledges);
        }
    }

    fn deliver(&mut self, node: &NodeId, command: Command) {
        let current = |w: &&mut Worker| w.linked && !matches!(command, Command::Durable { conn, .. } if conn != w.conn);
        if let Some(worker) = self.workers.get_mut(node).filter(current) {
            worker.inbox.push_back(command);
        }
    }
}

impl Disk {
    fn write(&mut self, write: Write) {
        match write {
            Write::NewTask(record) | Write::Task(record) => {
                self.tasks.insert(record.id.clone(), (*record).clone());
            }
            Write::Event(event) => self.events.entry(event.task.clone()).or_default().push((*event).clone()),
            Write::Cursor { node, incarnation, number } => {
                self.cursors.insert((node, incarnation), number);
            }
            Write::Member(node, Some(member)) => drop(self.members.insert(node, member)),
            Write::Member(node, None) => drop(self.members.remove(&node)),
            Write::Activation(actor, Some(life)) => drop(self.activations.insert(actor, life)),
            Write::Activation(actor, None) => drop(self.activations.remove(&actor)),
            Write::Agent(_)
            | Write::State(..)
            | Write::NoState(..)
            | Write::Clock(_)
            | Write::Actor(..)
            | Write::Reminder(..)
            | Write::Session(..)
            | Write::Owned(..)
            | Write::OwnedLife(..)
            | Write::Link(..)
            | Write::OwnedLink(..)
            | Write::Gang(..)
            | Write::DeadLetter(_)
            | Write::Listener(..) => {}
        }
    }
}
