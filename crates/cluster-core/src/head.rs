//! The head's truth and its verbs.
//!
//! A shell calls the verbs below with the time in hand, then drains [`Head::poll_output`] until it is empty. The
//! contract that makes acknowledged work safe: outputs are carried out in order, and nothing after a
//! [`Output::Write`] is carried out before that write is durable. But for [`Command::Run`], which nobody is told of: for it
//! the write must only outlive the head's process.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use covey_domain::{
    ActorId, AgentName, AgentSpec, Digest, Envelope, Epoch, Error, ErrorKind, Gang, Isolation, Millis, NodeId,
    SessionId, TaskId, TaskRecord, caps, shown,
    status::{ActorFilter, ActorStatus, ClusterStatus, ModelStatus, NodeStatus, Pending},
    task::Said,
};
use hashbrown::HashMap;

pub use covey_domain::DeadLetter;

use crate::{
    dead_letters::DeadLetters,
    directory::{Actor, Directory},
    link::Take,
    links::Links,
    liveness::Liveness,
    membership::{Node, NodeState},
    pending::{Pending as Waiting, Standing},
    placing::WaitingGang,
    reminders::Reminders,
    scheduler::Placer,
    sessions::Sessions,
    tasks::Tasks,
    topics::{Members, Topics},
    unserved::Unserved,
};
pub use crate::{
    directory::{ActorState, Owner},
    membership::{HeldTask, Hello, LivingActor, Member},
    reminders::{Reminder, StoredReminder},
    tasks::{Stored, Submission, Submitted},
    virtuals::StoredActor,
};

/// Times of the cluster, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct HeadConfig {
    /// A worker that is silent this long is dead; by its own clock it stopped working before. After a restart of the head:
    /// how long workers have to bring back what they hold.
    pub lease_ms: u64,
    /// Pause before an actor that crashed twice in a row starts again; doubles with each further crash.
    pub backoff_ms: u64,
    /// Longest such pause.
    pub backoff_max_ms: u64,
    /// A driver whose connection broke has this long to come back before its actors end.
    pub session_grace_ms: u64,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { lease_ms: 10_000, backoff_ms: 100, backoff_max_ms: 30_000, session_grace_ms: caps::SESSION_GRACE_MS }
    }
}

/// How often the cluster's clock is written.
const CLOCK_EVERY_MS: Millis = 30_000;
/// A life of this long forgives earlier crashes.
const FORGIVEN_AFTER_MS: u64 = 60_000;

/// What the shell must do, in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Put on disk, before anything that follows.
    Write(Write),
    /// Send to a node's link.
    Send(NodeId, Command),
    /// Where calls to this actor go now.
    Route(ActorId, Route),
    /// Who listens to this topic now.
    Topic(String, Members),
    /// A driver is gone for good: workers drop what they keep for it.
    SessionOver(SessionId),
    /// This node is no longer a member; close its link.
    Drop(NodeId, u64),
    /// A reminder is due: call the actor, and say how that went ([`Head::reminded`]).
    Remind(ActorId, String, Arc<Reminder>),
}

/// A change of durable state.
#[derive(Clone, Debug)]
pub enum Write {
    /// An agent was registered or replaced.
    Agent(Arc<AgentSpec>),
    /// A task was made.
    NewTask(Arc<TaskRecord>),
    /// A task's state or attempt changed.
    Task(Arc<TaskRecord>),
    /// A task's log grew.
    Event(Arc<Envelope>),
    /// An actor's state; the store refuses it from an activation older than the one that wrote last.
    State(ActorId, Epoch, Arc<[u8]>),
    /// An actor is over for good, and its state with it.
    NoState(ActorId, Epoch),
    /// A virtual or detached actor begins a life on a node, before that node hears of it; or that life is over.
    Activation(ActorId, Option<(NodeId, Epoch)>),
    /// A node is a member, or is one no more.
    Member(NodeId, Option<Member>),
    /// The cluster's own clock; an earlier one goes on from here.
    Clock(Millis),
    /// A detached actor was made, or is over.
    Actor(ActorId, Option<Arc<StoredActor>>),
    /// A driver's session began (with the digest of its secret), or is over.
    Session(SessionId, Option<Digest>),
    /// The same of an actor of a session. A head that dies must not take it along; the machine may.
    OwnedLife(ActorId, Option<(NodeId, Epoch)>),
    /// An actor of a session was made, or is over. A head that dies must not take it along; the machine may.
    Owned(ActorId, Option<(SessionId, Arc<StoredActor>)>),
    /// An actor that lasts listens to a topic with this method, or no more.
    Listener(String, ActorId, Option<String>),
    /// Two actors end with each other from now on, or no more.
    Link(ActorId, ActorId, bool),
    /// The same where one of them is of a session. A head that dies must not take it along; the machine may.
    OwnedLink(ActorId, ActorId, bool),
    /// A gang waits for its places, or no more: the name of the gang, and who is in it.
    Gang(ActorId, Option<Arc<Gang>>),
    /// A call or a task was given up.
    DeadLetter(Arc<DeadLetter>),
    /// A reminder was set, or is over.
    Reminder(ActorId, String, Option<Arc<Reminder>>),
    /// Everything from this incarnation of a node up to `number` is taken.
    Cursor {
        /// Which node.
        node: NodeId,
        /// Which process of it.
        incarnation: u64,
        /// Up to where.
        number: u64,
    },
}

/// What is sent to a worker.
#[derive(Clone, Debug)]
pub enum Command {
    /// Start an actor.
    Start {
        /// Which.
        actor: ActorId,
        /// Which activation.
        epoch: Epoch,
        /// What it is.
        spec: Arc<AgentSpec>,
        /// Constructor arguments, as the client encoded them.
        init: Option<Arc<[u8]>>,
        /// Who it lives for.
        owner: String,
        /// The worker does not hold the code blob yet.
        with_code: bool,
        /// Nor the zip of the working folder.
        with_dir: bool,
        /// Its state may be in the store.
        with_state: bool,
    },
    /// Stop an actor.
    Stop {
        /// Which.
        actor: ActorId,
        /// Which activation.
        epoch: Epoch,
        /// Let it finish what it has.
        drain: bool,
        /// But not for longer than this: what goes on then is ended. `None` = as long as it takes.
        within_ms: Option<u64>,
    },
    /// Run a task.
    Run {
        /// What.
        record: Arc<TaskRecord>,
        /// On which actor.
        actor: ActorId,
        /// Time left.
        timeout_ms: Option<u64>,
        /// Messages that came since the task began, to earlier runs of it too.
        said: Vec<Said>,
    },
    /// A message to a task that runs; may come twice.
    Say {
        /// Which task.
        task: TaskId,
        /// Which attempt.
        attempt: u32,
        /// The message.
        said: Said,
    },
    /// Stop running a task.
    CancelTask {
        /// Which.
        task: TaskId,
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// Everything up to `number` is on disk.
    Durable {
        /// Over which link it came; another process of the node counts anew.
        conn: u64,
        /// Up to where.
        number: u64,
    },
}

/// Where calls to an actor go.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// Nowhere yet: keep them.
    Wait {
        /// Why.
        why: String,
        /// No node now known could ever hold the actor.
        never: bool,
    },
    /// To this node.
    At {
        /// Which.
        node: NodeId,
        /// Which activation.
        epoch: Epoch,
    },
    /// Nowhere yet, but what it has it will still answer.
    Moving(String),
    /// Nowhere any more.
    Gone(Error),
    /// Nowhere any more, but what it has it will still answer.
    Draining(Error),
    /// Nowhere until somebody speaks to it.
    Asleep,
}

/// A request for an actor.
#[derive(Clone, Debug)]
pub struct CreateActor {
    /// Id to use, minted by the shell.
    pub id: ActorId,
    /// Of which agent.
    pub agent: AgentName,
    /// Unique name.
    pub name: Option<String>,
    /// Take the one that has the name.
    pub get_if_exists: bool,
    /// Who it lives for.
    pub owner: Owner,
    /// Constructor arguments, opaque.
    pub init: Option<Arc<[u8]>>,
    /// Merged over the agent's spec.
    pub overrides: serde_json::Map<String, serde_json::Value>,
    /// How much whoever asks is kept from: it makes nothing that is kept from less.
    pub least: Isolation,
    /// The labels of its agent hold, whatever is merged over them: whoever asks may not say where others' code goes.
    pub keeps_labels: bool,
}

/// What came of [`CreateActor`] or a look-up.
#[derive(Clone, Debug)]
pub struct ActorInfo {
    /// Its id.
    pub id: ActorId,
    /// Its spec, overrides merged.
    pub spec: Arc<AgentSpec>,
    /// Its state's name.
    pub state: &'static str,
    /// It was made by this request.
    pub created: bool,
}

/// The owner of the cluster's truth.
#[derive(Debug)]
pub struct Head {
    pub(crate) config: HeadConfig,
    pub(crate) agents: BTreeMap<AgentName, Arc<AgentSpec>>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) cursors: HashMap<(NodeId, u64), u64>,
    pub(crate) directory: Directory,
    pub(crate) tasks: Tasks,
    pub(crate) out: VecDeque<Output>,
    /// Free resources, nodes or waiting actors changed since the last plan.
    pub(crate) unplanned: bool,
    pub(crate) minted: u64,
    pub(crate) seed: u64,
    pub(crate) activations: u64,
    pub(crate) placer: Placer,
    pub(crate) waiting: Waiting,
    pub(crate) gangs: Vec<WaitingGang>,
    pub(crate) links: Links,
    /// Linked to actors that ended; end at the end of the verb.
    pub(crate) doomed: VecDeque<(ActorId, Error)>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) topics: Topics,
    pub(crate) reminders: Reminders,
    pub(crate) sessions: Sessions,
    pub(crate) liveness: Liveness,
    /// Activations of before a restart whose node has not come back.
    pub(crate) believed: BTreeMap<ActorId, (NodeId, Epoch)>,
    /// Wall clock minus the cluster's own clock, milliseconds.
    pub(crate) wall_ahead: i64,
    clock_written: Millis,
    pub(crate) unserved: Unserved,
}

impl Head {
    /// A head with nothing in it; `seed` makes its ids differ from those of any earlier head.
    pub fn new(config: HeadConfig, seed: u64) -> Self {
        Self {
            config,
            agents: BTreeMap::new(),
            nodes: BTreeMap::new(),
            cursors: HashMap::new(),
            directory: Directory::default(),
            tasks: Tasks::default(),
            out: VecDeque::new(),
            unplanned: false,
            minted: 0,
            seed,
            activations: 0,
            placer: Placer::default(),
            waiting: Waiting::default(),
            gangs: Vec::new(),
            links: Links::default(),
            doomed: VecDeque::new(),
            dead_letters: DeadLetters::default(),
            topics: Topics::default(),
            reminders: Reminders::default(),
            sessions: Sessions::default(),
            liveness: Liveness::default(),
            believed: BTreeMap::new(),
            wall_ahead: 0,
            clock_written: 0,
            unserved: Unserved::default(),
        }
    }

    /// Epochs given by this head are above those of heads with a smaller term.
    pub fn set_term(&mut self, term: u64) {
        self.activations = term << 32;
    }

    /// What the wall clock shows now. It stamps records and reminders; it decides nothing about life, death or deletion (D-3).
    pub fn set_wall(&mut self, now: Millis, wall: Millis) {
        self.wall_ahead = wall as i64 - now as i64;
    }

    /// The wall clock at a time of the cluster's own.
    pub(crate) fn wall(&self, now: Millis) -> Millis {
        now.saturating_add_signed(self.wall_ahead)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Times of this cluster.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// Agents known, by name.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<AgentSpec>> {
        self.agents.values()
    }

    /// One agent.
    pub fn agent(&self, name: &str) -> Result<&Arc<AgentSpec>, Error> {
        self.agents.get(name).ok_or_else(|| {
            let known: Vec<_> = self.agents.keys().map(AgentName::as_str).take(20).collect();
            let hint = if known.is_empty() {
                "no agents are registered yet".into()
            } else {
                format!("known: {}", known.join(", "))
            };
            Error::not_found("agent", name).hint(hint)
        })
    }

    /// Makes an agent known. The same definition again is no change; a changed one holds for new actors, and idle pool
    /// actors of the old one are stopped.
    pub fn register(&mut self, spec: AgentSpec, now: Millis) -> Result<bool, Error> {
        let spec = spec.validated()?;
        let known = self.agents.get(&spec.name);
        if known.is_some_and(|k| **k == spec) {
            return Ok(false);
        }
        let created = known.is_none();
        let spec = Arc::new(spec);
        let name = spec.name.clone();
        self.agents.insert(name.clone(), spec.clone());
        self.out.push_back(Output::Write(Write::Agent(spec)));
        for id in self.directory.pools.get(&name).cloned().unwrap_or_default() {
            if self.directory.actors.get(&id).is_some_and(|a| a.tasks.is_empty()) {
                self.end_actor(&id, Error::new(ErrorKind::ActorDied, "its agent was redefined"), false, now);
            }
        }
        self.settle(now);
        Ok(created)
    }

    /// Makes an actor, or finds the one that has the name.
    pub fn create_actor(&mut self, ask: CreateActor, now: Millis) -> Result<ActorInfo, Error> {
        let info = self.make_actor(ask, now, now)?;
        self.settle(now);
        Ok(ActorInfo { created: info.created, ..self.actor(&info.id)? })
    }

    pub(crate) fn make_actor(&mut self, ask: CreateActor, not_before: Millis, now: Millis) -> Result<ActorInfo, Error> {
        if let Some(known) = self.directory.actors.get(&ask.id) {
            // The request came before, and its answer was lost.
            if known.spec.name == ask.agent && known.owner == ask.owner {
                return Ok(ActorInfo { created: true, ..self.actor(&ask.id)? });
            }
            return Err(Error::new(ErrorKind::AlreadyExists, format!("another actor is `{}`", ask.id)));
        }
        self.check_owner(&ask.owner)?;
        if let Some(name) = &ask.name {
            shown::check_name("the actor's name", name)?;
        }
        let base = self.agent(ask.agent.as_str())?.clone();
        if let Some(name) = &ask.name
            && let Some(id) = self.directory.names.get(name).cloned()
        {
            if !ask.get_if_exists {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("an actor named `{name}` exists"))
                    .hint("use get_if_exists=True, or another name"));
            }
            return self.actor(&id);
        }
        let mut spec = if ask.overrides.is_empty() { base } else { Arc::new(merged(&base, &ask.overrides)?) };
        if ask.keeps_labels {
            keep_labels(&self.agent(ask.agent.as_str())?.labels, &mut spec)?;
        }
        let isolation = ask.least.of_made(spec.isolation)?;
        if isolation != spec.isolation {
            Arc::make_mut(&mut spec).isolation = isolation;
        }
        let stored = || Arc::new(StoredActor { name: ask.name.clone(), spec: spec.clone(), init: ask.init.clone() });
        match &ask.owner {
            Owner::Detached => self.out.push_back(Output::Write(Write::Actor(ask.id.clone(), Some(stored())))),
            Owner::Session(session) => {
                let owned = Some((session.clone(), stored()));
                self.out.push_back(Output::Write(Write::Owned(ask.id.clone(), owned)));
            }
            Owner::Pool | Owner::Virtual => {}
        }
        self.insert_actor_later(ask.id.clone(), ask.name, spec, ask.init, ask.owner, not_before, now);
        let mut info = self.actor(&ask.id)?;
        info.created = true;
        Ok(info)
    }

    /// One actor by id.
    pub fn actor(&self, id: &ActorId) -> Result<ActorInfo, Error> {
        let actor = self.directory.actors.get(id).ok_or_else(|| Error::not_found("actor", id))?;
        Ok(ActorInfo { id: id.clone(), spec: actor.spec.clone(), state: actor.state.name(), created: false })
    }

    /// One actor by name.
    pub fn actor_named(&self, name: &str) -> Result<ActorInfo, Error> {
        let id = self.directory.names.get(name).ok_or_else(|| Error::not_found("actor named", name))?;
        self.actor(id)
    }

    /// Ends an actor.
    pub fn stop_actor(&mut self, id: &ActorId, drain: bool, now: Millis) -> Result<(), Error> {
        self.actor(id)?;
        self.end_actor(id, Error::new(ErrorKind::ActorDied, "it was stopped").executed(Some(false)), drain, now);
        self.settle(now);
        Ok(())
    }

    /// A worker's models changed.
    pub fn models(&mut self, id: &NodeId, models: Vec<ModelStatus>) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.hello.models = models;
        }
        self.refresh(id);
    }

    /// An entry of a worker's outbox. A gap means that the link must be closed.
    pub fn entry(&mut self, id: &NodeId, conn: u64, entry: Entry, now: Millis) -> Result<(), Error> {
        let Some(node) = self.nodes.get_mut(id) else {
            return Ok(());
        };
        if node.conn != conn || node.state == NodeState::Dead {
            return Ok(());
        }
        match node.inbox.take(entry.number) {
            Take::New => {}
            Take::Again => {
                self.out.push_back(Output::Send(id.clone(), Command::Durable { conn, number: node.inbox.last() }));
                return Ok(());
            }
            Take::Gap => return Err(Error::internal(format!("entry {} of node `{id}` came too early", entry.number))),
        }
        let (incarnation, number) = (node.hello.incarnation, entry.number);
        self.cursors.insert((id.clone(), incarnation), number);
        self.task_events(id, entry, now);
        self.out.push_back(Output::Write(Write::Cursor { node: id.clone(), incarnation, number }));
        self.out.push_back(Output::Send(id.clone(), Command::Durable { conn, number }));
        self.settle(now);
        Ok(())
    }

    /// A worker says how an actor is. Reports of another epoch or node are stale.
    pub fn actor_report(&mut self, id: &NodeId, actor: &ActorId, epoch: Epoch, report: ActorReport, now: Millis) {
        let current = self.directory.actors.get(actor).is_some_and(|a| a.epoch == epoch && a.node.as_ref() == Some(id));
        if !current {
            return;
        }
        match report {
            ActorReport::Live => {
                let Some(known) = self.directory.actors.get_mut(actor) else { return };
                // One that was told to move is told nothing else, whatever it says meanwhile.
                if known.state == ActorState::Starting && known.moving.is_none() {
                    known.state = ActorState::Live;
                    known.live_since = now;
                    known.hopeless_since = None;
                    let agent = (known.owner == Owner::Pool).then(|| known.spec.name.clone());
                    if let Some(agent) = agent {
                        self.unserved.served(&agent);
                        // Its tasks may be over, and its place what others wait for.
                        self.unplanned = true;
                    }
                    self.out.push_back(Output::Route(actor.clone(), Route::At { node: id.clone(), epoch }));
                } else if known.state == ActorState::Live {
                    self.goes_on(actor);
                }
            }
            said @ (ActorReport::Stuck(_) | ActorReport::Leaving(_) | ActorReport::Waiting) => {
                self.says(id, actor, said, now);
            }
            ActorReport::Died { error, retryable } => {
                let known = self.directory.actors.get(actor);
                let starting = known.is_some_and(|a| a.state == ActorState::Starting && a.moving.is_none());
                self.actor_lost(actor, error.clone(), retryable, now);
                if starting && retryable {
                    self.start_failed(actor, &error, now);
                }
            }
            ActorReport::Slept => {
                self.release(actor);
                self.directory.retire(actor);
                self.directory.remove(actor);
                self.out.push_back(Output::Route(actor.clone(), Route::Asleep));
            }
            ActorReport::Preparing(why) => {
                if self.directory.actors.get(actor).is_some_and(|a| a.state == ActorState::Starting) {
                    self.out.push_back(Output::Route(actor.clone(), Route::Wait { why, never: false }));
                }
            }
            // It made room on a node that is being emptied; it lives on elsewhere, with what it kept.
            ActorReport::Stopped { lost } if self.is_moving(actor) => match lost {
                None => self.move_on(actor, now),
                Some(why) => self.moved_without_state(actor, &why, now),
            },
            ActorReport::Stopped { .. } => {
                self.release(actor);
                self.end_actor(actor, Error::new(ErrorKind::ActorDied, "it stopped"), false, now);
            }
        }
        self.settle(now);
    }

    /// Time has passed: leases, backoffs and deadlines. `true` when there is more to do than one verb should: it wants to be
    /// called again soon.
    pub fn tick(&mut self, now: Millis) -> bool {
        self.judge(now);
        self.keep_time(now);
        self.recover(now);
        self.expire_sessions(now);
        let mut more = self.liveness.recover_until.is_none() && self.requeue_orphans(now);
        more |= self.expire_tasks(now);
        more |= self.fail_waiting(now);
        self.expire_unserved(now);
        self.ripen_tasks(now);
        self.remind(now);
        self.unplanned |= self.waiting.ripen(now);
        self.settle(now);
        more
    }

    /// Now and then the clock itself is written: a head that starts again goes on from there.
    fn keep_time(&mut self, now: Millis) {
        if now >= self.clock_written + CLOCK_EVERY_MS {
            self.clock_written = now;
            self.out.push_back(Output::Write(Write::Clock(now)));
        }
    }

    /// A picture of now.
    pub fn status(&self) -> ClusterStatus {
        let mut running: BTreeMap<&NodeId, u64> = BTreeMap::new();
        for actor in self.directory.actors.values() {
            if let Some(node) = &actor.node {
                *running.entry(node).or_default() += actor.tasks.len() as u64;
            }
        }
        let nodes = self.nodes.iter().map(|(id, n)| NodeStatus {
            id: id.clone(),
            name: n.hello.name.clone(),
            state: if n.draining && n.expires().is_some() { "draining" } else { n.state_name() }.to_owned(),
            total: n.hello.total.clone(),
            free: n.free.clone(),
            labels: n.hello.labels.clone(),
            models: n.hello.models.clone(),
            pid: n.hello.pid,
            no_python: n.hello.no_python.clone(),
            actors: n.actors.len() as u64,
            tasks_running: running.get(id).copied().unwrap_or(0),
            tasks_done: n.tasks_done,
        });
        let mut actor_counts: BTreeMap<String, u64> = BTreeMap::new();
        for actor in self.directory.actors.values() {
            *actor_counts.entry(actor.state_name().to_owned()).or_default() += 1;
        }
        let listed = |over: bool| {
            let known = self.directory.ids.iter().filter_map(|id| self.directory.actors.get(id).map(|a| (id, a)));
            known.filter(move |(_, a)| matches!(a.state, ActorState::Dead { .. }) == over).map(|(id, a)| a.status(id))
        };
        let actors: Vec<_> = listed(false).chain(listed(true)).take(caps::STATUS_ACTORS_MAX).collect();
        let mut pending: Vec<_> = actors
            .iter()
            .filter(|a| a.state == "pending")
            .map(|a| Pending {
                what: format!("actor {} ({})", a.id, a.shown_agent()),
                why: a.why.clone().unwrap_or_default(),
            })
            .collect();
        for (agent, waiting) in self.tasks.waiting() {
            pending.push(Pending { what: format!("{waiting} tasks of {agent}"), why: self.why_queued(agent) });
        }
        ClusterStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: 0,
            nodes: nodes.collect(),
            actor_counts,
            actors,
            tasks: self.tasks.counts(),
            pending,
        }
    }

    /// Actors above `after` in the order of ids, up to `limit`; and from where to go on, if there may be more.
    pub fn list_actors(
        &self,
        filter: &ActorFilter,
        after: &ActorId,
        limit: usize,
    ) -> (Vec<ActorStatus>, Option<ActorId>) {
        use std::ops::Bound;
        let limit = limit.clamp(1, caps::PAGE_MAX);
        let is = |wanted: &str, have: &str| wanted.is_empty() || wanted == have;
        let mut page = Vec::new();
        for (looked, id) in self.directory.ids.range((Bound::Excluded(after.clone()), Bound::Unbounded)).enumerate() {
            // A filter that takes little must not hold up everybody else.
            if page.len() == limit || looked == 10 * caps::PAGE_MAX {
                let last = self.directory.ids.range(..id.clone()).next_back().cloned();
                return (page, last);
            }
            let Some(actor) = self.directory.actors.get(id) else { continue };
            let node = actor.node.as_ref().map_or("", NodeId::as_str);
            let named = is(&filter.name, id.as_str()) || actor.name.as_deref() == Some(filter.name.as_str());
            if is(&filter.agent, actor.spec.name.as_str())
                && is(&filter.state, actor.state_name())
                && is(&filter.node, node)
                && named
            {
                page.push(actor.status(id));
            }
        }
        (page, None)
    }

    // ---- shared by the verbs -------------------------------------------------------------------------------------

    pub(crate) fn mint(&mut self, prefix: &str) -> String {
        self.minted += 1;
        format!("{prefix}-{:x}-{:x}", self.seed, self.minted)
    }

    /// An actor that is not placed before a time; `Millis::MAX`: it is placed with its gang.
    #[expect(clippy::too_many_arguments, reason = "the fields of an actor")]
    pub(crate) fn insert_actor_later(
        &mut self,
        id: ActorId,
        name: Option<String>,
        spec: Arc<AgentSpec>,
        init: Option<Arc<[u8]>>,
        owner: Owner,
        not_before: Millis,
        now: Millis,
    ) {
        let state = ActorState::Pending { not_before, why: "not placed yet".into() };
        let actor = Actor {
            name,
            spec,
            init,
            owner,
            state,
            node: None,
            last_node: None,
            epoch: Epoch(0),
            restarts: 0,
            streak: 0,
            live_since: 0,
            tasks: BTreeMap::new(),
            resting: BTreeSet::new(),
            saved: false,
            alone: false,
            moving: None,
            stuck: None,
            leaving: false,
            lends: false,
            hopeless_since: None,
            last_restart: None,
        };
        let shape = actor.shape();
        self.directory.insert(id.clone(), actor);
        if not_before < Millis::MAX {
            self.waiting.push(id.clone(), Standing::New, shape, not_before, now);
        }
        self.out.push_back(Output::Route(id, Route::Wait { why: "not placed yet".into(), never: false }));
        self.unplanned = true;
    }

    /// An actor crashed or its node did: it starts again, or that was its last life. Its tasks go to others.
    pub(crate) fn actor_lost(&mut self, id: &ActorId, error: Error, retryable: bool, now: Millis) {
        self.release(id);
        let config = self.config;
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        if matches!(actor.state, ActorState::Dead { .. }) {
            return;
        }
        let was_starting = actor.state == ActorState::Starting;
        let spent = actor.is_spent();
        let tasks = actor.drop_tasks();
        actor.moving = None;
        let pool = actor.owner == Owner::Pool;
        let agent = actor.spec.name.clone();
        if pool || !retryable || spent {
            // Pool actors are made anew on demand, so a lost one is simply gone.
            let mut last = error.clone();
            if spent && retryable {
                last.message = format!("{} (after {} restarts)", last.message, actor.restarts);
            }
            actor.state = ActorState::Dead { error: last.clone() };
            self.out.extend(over_in_store(id, &actor.owner));
            self.directory.retire(id);
            self.doom_linked(id, &last);
            if id.key().is_none() {
                self.leave_topics(id);
            }
            self.out.push_back(Output::Route(id.clone(), Route::Gone(last)));
        } else {
            if !was_starting && now.saturating_sub(actor.live_since) > FORGIVEN_AFTER_MS {
                actor.streak = 0;
            }
            // The first crash after a good life is not worth a pause.
            let pause = match actor.streak {
                0 => 0,
                n => (config.backoff_ms << (n - 1).min(16)).min(config.backoff_max_ms),
            };
            actor.streak += 1;
            actor.restarts += 1;
            actor.last_restart = Some(format!("restarted: {}", error.message));
            actor.state =
                ActorState::Pending { not_before: now + pause, why: format!("restarting: {}", error.message) };
            let shape = actor.shape();
            self.waiting.push(id.clone(), Standing::Displaced, shape, now + pause, now);
            let why = format!("restarting: {}", error.message);
            self.out.push_back(Output::Route(id.clone(), Route::Wait { why, never: false }));
        }
        for task in tasks.into_keys() {
            self.task_lost(&task, &error, now);
        }
        if pool && was_starting && !retryable {
            self.pool_cannot_start(&agent, &error, now);
        }
        self.unplanned = true;
    }

    /// Ends an actor for good.
    pub(crate) fn end_actor(&mut self, id: &ActorId, error: Error, drain: bool, now: Millis) {
        let Some(actor) = self.directory.actors.get_mut(id) else { return };
        if matches!(actor.state, ActorState::Dead { .. }) {
            return;
        }
        let (epoch, node) = (actor.epoch, actor.node.clone());
        // One that has not begun has nothing to finish.
        let (gentle, drain) = (drain, drain && actor.state == ActorState::Live);
        actor.state = ActorState::Dead { error: error.clone() };
        let tasks = actor.drop_tasks();
        // A virtual actor keeps its state: it is only this life that is over.
        if actor.saved && actor.owner != Owner::Virtual {
            self.out.push_back(Output::Write(Write::NoState(id.clone(), epoch)));
        }
        self.out.extend(over_in_store(id, &actor.owner));
        self.release(id);
        self.directory.retire(id);
        match gentle {
            true => drop(self.unlink(id)),
            false => self.doom_linked(id, &error),
        }
        if id.key().is_none() {
            self.leave_topics(id);
        }
        if let Some(node) = node {
            self.out.push_back(Output::Send(node, Command::Stop { actor: id.clone(), epoch, drain, within_ms: None }));
        }
        let route = if drain { Route::Draining(error.clone()) } else { Route::Gone(error.clone()) };
        self.out.push_back(Output::Route(id.clone(), route));
        for task in tasks.into_keys() {
            self.task_lost(&task, &error, now);
        }
    }

    /// Actors an agent's tasks may use at once.
    pub(crate) fn pool_max(&self, spec: &AgentSpec) -> usize {
        let cpus: u64 = self.nodes.values().filter(|n| n.is_live()).map(|n| n.hello.total.cpu_milli / 1000).sum();
        spec.pool.map_or(cpus.max(1) as usize, |p| p.max(1) as usize)
    }

    /// Every model some live worker can serve, by name.
    pub fn models_known(&self) -> Vec<ModelStatus> {
        let mut all: BTreeMap<String, ModelStatus> = BTreeMap::new();
        for model in self.nodes.values().filter(|n| n.is_live()).flat_map(|n| &n.hello.models) {
            let known = all.entry(model.name.clone()).or_insert_with(|| model.clone());
            known.loaded |= model.loaded;
        }
        all.into_values().collect()
    }
}

/// One entry of a worker's outbox.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// Of which task.
    pub task: TaskId,
    /// Of which attempt.
    pub attempt: u32,
    /// When the worker made it.
    pub ts_ms: Millis,
    /// What happened; or why that cannot be read, which ends the task.
    pub events: Result<Vec<covey_domain::TaskEvent>, Error>,
}

/// How an actor is, as its worker says.
#[derive(Clone, Debug)]
pub enum ActorReport {
    /// It takes calls.
    Live,
    /// It crashed or could not start.
    Died {
        /// How.
        error: Error,
        /// Another start may help.
        retryable: bool,
    },
    /// It stopped as asked; or why the state that it had is not kept.
    Stopped {
        /// `None`: it is kept.
        lost: Option<String>,
    },
    /// Something must be made first; this is what is done now.
    Preparing(String),
    /// It had nothing to do; its state is in the store.
    Slept,
    /// A turn goes on although it was given up: nothing new goes there. `Live` says that it is over.
    Stuck(String),
    /// Its process is replaced: it is to be moved.
    Leaving(String),
    /// All its turns wait for others, and others may have its CPU. `Live` says that one goes on.
    Waiting,
}

/// What the store is told of the life of an actor that outlasts a head. What a worker says that it has after a restart is compared
/// with it.
pub(crate) fn life_in_store(id: &ActorId, owner: &Owner, life: Option<(NodeId, Epoch)>) -> Option<Output> {
    match owner {
        Owner::Virtual | Owner::Detached | Owner::Pool => Some(Output::Write(Write::Activation(id.clone(), life))),
        Owner::Session(_) => Some(Output::Write(Write::OwnedLife(id.clone(), life))),
    }
}

/// An actor that the store knows is over.
fn over_in_store(id: &ActorId, owner: &Owner) -> Option<Output> {
    match owner {
        Owner::Detached => Some(Output::Write(Write::Actor(id.clone(), None))),
        Owner::Session(_) => Some(Output::Write(Write::Owned(id.clone(), None))),
        Owner::Pool | Owner::Virtual => None,
    }
}

/// Puts labels of an agent on an actor of it; another value for one of them is refused.
fn keep_labels(labels: &BTreeMap<String, String>, spec: &mut Arc<AgentSpec>) -> Result<(), Error> {
    for (key, value) in labels {
        match spec.labels.get(key) {
            Some(known) if known == value => {}
            Some(other) => {
                let text = format!("agent `{}` is only where the label {key} is {value}, not {other}", spec.name);
                return Err(Error::new(ErrorKind::PermissionDenied, text)
                    .hint("drivers move actors of an agent elsewhere; actors and workers do not"));
            }
            None => drop(Arc::make_mut(spec).labels.insert(key.clone(), value.clone())),
        }
    }
    Ok(())
}

fn merged(base: &AgentSpec, overrides: &serde_json::Map<String, serde_json::Value>) -> Result<AgentSpec, Error> {
    const MAY: [&str; 12] = [
        "description",
        "resources",
        "labels",
        "near",
        "own_process",
        "model",
        "concurrency",
        "max_restarts",
        "timeout_ms",
        "schedule_timeout_ms",
        "strategy",
        "isolation",
    ];
    let mut value = serde_json::to_value(base).map_err(|e| Error::internal(e.to_string()))?;
    for (key, wanted) in overrides {
        if !MAY.contains(&key.as_str()) {
            return Err(Error::invalid(format!("option `{key}` cannot be set for one actor"))
                .hint(format!("can be set: {}", MAY.join(", "))));
        }
        match key.as_str() {
            "own_process" => value["kind"][key] = wanted.clone(),
            _ => value[key] = wanted.clone(),
        }
    }
    serde_json::from_value::<AgentSpec>(value)
        .map_err(|e| Error::invalid(format!("failed to read options: {e}")))?
        .validated()
}
