//! Starts and stops actors, brings calls and tasks to their mailboxes, and remembers what runs.

mod held;
mod lane;
mod live;
mod look;
mod processes;
mod starting;
mod tasks;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use covey_domain::{
    ActorId, AgentKind, AgentSpec, Epoch, Error, ErrorKind, NodeId, TaskId,
    agent::{Pass, PythonAgent, PythonCode, Snapshot as Keep},
    caps,
    isolation::Offer,
};
use covey_proto::{
    from_json,
    v1::{self, CallFrame, Payload},
};
use kameo::{
    actor::{ActorRef, Spawn as _},
    mailbox,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use held::Held;
pub use lane::Lane;
use lane::LaneInner;
use live::LiveActor;
use starting::Starting;

use crate::elsewhere::Elsewhere;
use crate::{
    Behavior, Models, Outward, Python, Registry,
    envs::{Environments, Progress},
    job::{Jobs, JobsOf},
    launch::{LaunchConfig, Launcher},
    llm::Llm,
    memos::SharedMemos,
    outward::Saver,
    python::{Hosts, HostsConfig, PythonActor, StartTerms},
    turn::{Control, Out, Turn},
};

/// How often idle actors are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// A mailbox that had nothing to do for this long is given back; its actor stays.
const MAILBOX_IDLE: Duration = Duration::from_secs(10);
/// What runs here has so long to end when the worker leaves.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const LEAVE_LOOK: Duration = Duration::from_millis(10);
/// Owner of actors that exist when they are spoken to.
const VIRTUAL: &str = "virtual";
/// Decoded specs remembered.
const SPECS_MAX: usize = 1_024;

/// What happens on this worker, in order.
#[derive(Debug)]
pub enum Report {
    /// An actor's state changed.
    Actor(v1::ActorReport),
    /// A task's log grew; must reach the head's disk.
    Events {
        /// Which task.
        task: TaskId,
        /// Which attempt.
        attempt: u32,
        /// In order.
        events: Vec<covey_domain::TaskEvent>,
        /// Kept until they are on the head's disk.
        ahead: crate::Ahead,
    },
    /// A frame of a call that came over the link of this number; it means nothing on another.
    Call(u64, CallFrame),
}

/// What a runtime needs.
pub struct RuntimeConfig {
    /// Native agents.
    pub registry: Registry,
    /// Models.
    pub models: Arc<Models>,
    /// Interpreter; `None` = Python agents are refused.
    pub python: Option<Python>,
    /// Folder for sockets.
    pub folder: PathBuf,
    /// Python processes that share actors, at most.
    pub python_processes: usize,
    /// The rest of the cluster.
    pub outward: Arc<dyn Outward>,
    /// This worker.
    pub node: NodeId,
    /// Folder of what Python processes print.
    pub logs: PathBuf,
    /// Folder of what is prepared once: environments of Python processes.
    pub cache: PathBuf,
    /// Environment of Python processes beside the worker's own.
    pub environment: Vec<(String, String)>,
    /// Environment of jobs: how they find the cluster, and what opens it.
    pub job_environment: Vec<(String, String)>,
    /// How processes of user code are started.
    pub launch: LaunchConfig,
}

/// What lives here.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Actors.
    pub actors: Vec<v1::ActorReport>,
    /// Tasks that run: task, attempt, actor.
    pub tasks: Vec<(TaskId, u32, ActorId)>,
}

/// The actors of one worker.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    models: Arc<Models>,
    outward: Arc<dyn Outward>,
    node: NodeId,
    hosts: Option<Arc<Hosts>>,
    jobs: Arc<Jobs>,
    launcher: Arc<Launcher>,
    /// Begun since the start.
    turns: AtomicU64,
    reports: mpsc::UnboundedSender<Report>,
    actors: Mutex<HashMap<ActorId, Cell>>,
    /// Of them, those that [`Inner::sweep`] must look at: with a mailbox, virtual, or saved now and then. Locked after
    /// `actors`, and while that is held.
    restless: Mutex<HashSet<ActorId>>,
    /// Actors that take nothing any more and finish what they have.
    ending: AtomicUsize,
    lanes: Mutex<Vec<Weak<LaneInner>>>,
    tasks: Mutex<HashMap<Attempt, (ActorId, Arc<Control>)>>,
    blobs: Mutex<HashMap<String, bytes::Bytes>>,
    specs: Mutex<HashMap<bytes::Bytes, Arc<AgentSpec>>>,
    /// Actors on their way up. Locked before `actors`, so that one that comes up is seen in one of the two.
    starting: Mutex<Starting>,
}

/// A task and which attempt of it.
type Attempt = (TaskId, u32);

/// What is behind a mailbox.
#[derive(Clone)]
enum Inside {
    /// Code of this process.
    Here(Arc<dyn Behavior>),
    /// An object in a Python process, which keeps to the actor's concurrency itself: calls are handed on at once.
    Process(Arc<PythonActor>),
}

impl Inside {
    /// What a later activation begins with.
    async fn snapshot(&self) -> Result<Option<Payload>, Error> {
        match self {
            Self::Here(behavior) => Ok(behavior.snapshot()),
            Self::Process(actor) => actor.snapshot().await,
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Here(_) => true,
            Self::Process(actor) => actor.is_idle(),
        }
    }

    fn stopped(&self) {
        match self {
            Self::Here(behavior) => behavior.stopped(),
            Self::Process(actor) => actor.stopped(),
        }
    }
}

struct Cell {
    epoch: Epoch,
    spec: Arc<AgentSpec>,
    owner: String,
    inside: Inside,
    turns: Arc<Semaphore>,
    /// Made when first needed: a kameo actor costs 7 kB, an idle one of ours less than one.
    mailbox: Option<ActorRef<LiveActor>>,
    held: Held,
    used: Instant,
    saved: Instant,
    memos: SharedMemos,
    /// What it said last beyond that it lives, and why: a head that did not hear it is told again.
    said: Option<Box<(v1::actor_report::State, String)>>,
}

impl Runtime {
    /// A runtime without actors; what happens in it arrives at `reports`.
    pub fn new(config: RuntimeConfig, reports: mpsc::UnboundedSender<Report>) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "starts, ends and states of processes and their actors, without payloads"
        )]
        let (news, mut told) = mpsc::unbounded_channel();
        let (models, outward) = (config.models.clone(), config.outward.clone());
        let mut launch = config.launch;
        launch.read.extend(config.python.iter().flat_map(|python| python.roots.iter().cloned()));
        let launcher = Arc::new(Launcher::new(launch));
        let environments = config
            .python
            .as_ref()
            .map(|python| Arc::new(Environments::new(config.cache, python.clone(), launcher.clone())));
        crate::memory::prepare();
        let jobs = Arc::new(Jobs {
            outward: outward.clone(),
            environments: environments.clone(),
            python: config.python.clone(),
            environment: config.job_environment,
            launcher: launcher.clone(),
            folder: config.folder.join("jobs"),
            groups: Arc::default(),
        });
        let hosts = config.python.zip(environments).map(|(python, environments)| {
            Arc::new(Hosts::new(HostsConfig {
                python,
                folder: config.folder,
                logs: config.logs,
                environments,
                environment: config.environment,
                launcher: launcher.clone(),
                shared_max: config.python_processes,
                models,
                outward,
                news,
            }))
        });
        let inner = Arc::new(Inner {
            registry: config.registry,
            models: config.models,
            outward: config.outward,
            node: config.node,
            hosts,
            jobs,
            launcher,
            turns: Default::default(),
            reports,
            actors: Mutex::default(),
            restless: Mutex::default(),
            ending: AtomicUsize::new(0),
            lanes: Mutex::default(),
            tasks: Mutex::default(),
            blobs: Mutex::default(),
            specs: Mutex::default(),
            starting: Mutex::default(),
        });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            while let Some(news) = told.recv().await {
                let Some(inner) = weak.upgrade() else { return };
                inner.of_process(news);
            }
        });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let mut every = tokio::time::interval(SWEEP);
            loop {
                every.tick().await;
                let Some(inner) = weak.upgrade() else { return };
                inner.sweep();
            }
        });
        Self { inner }
    }

    /// How much this worker can keep processes from.
    pub async fn isolation(&self) -> Offer {
        self.inner.launcher.offer().await
    }

    /// What lives here now.
    pub fn snapshot(&self) -> Snapshot {
        let starting = self.inner.starting.lock();
        let actors = self.inner.actors.lock();
        let tasks = self.inner.tasks.lock();
        let coming = starting.wanted().map(|(id, one)| {
            let report = actor_report(id.as_str(), one.epoch.0, &one.owner, v1::actor_report::State::Starting);
            v1::ActorReport { agent: one.agent.clone(), ..report }
        });
        let live = actors.iter().map(|(id, cell)| cell.stands(id));
        Snapshot {
            actors: live.chain(coming).collect(),
            tasks: tasks.iter().map(|((task, attempt), (actor, _))| (task.clone(), *attempt, actor.clone())).collect(),
        }
    }

    /// Starts an actor and reports how that went. An older activation of the same actor ends first.
    pub async fn start(&self, start: v1::StartActor) {
        let id = ActorId::from(start.actor.as_str());
        let epoch = Epoch(start.epoch);
        let newer = self.inner.actors.lock().get(&id).is_some_and(|cell| cell.epoch > epoch);
        let agent = self.spec(&start.spec).map(|spec| spec.name.to_string()).unwrap_or_default();
        if newer || !self.inner.starting.lock().begin(&id, epoch, &agent, &start.owner) {
            return;
        }
        self.end(&id, None, false, None).await;
        let memos = SharedMemos::inherited(start.answered.clone());
        let built = self.build(&start, &memos).await;
        let mut starting = self.inner.starting.lock();
        let wanted = starting.finish(&id, epoch);
        match built {
            Ok((_, inside)) if !wanted => inside.stopped(),
            Ok((spec, inside)) => self.go_live(id, epoch, start.owner, spec, inside, memos),
            Err(error) => {
                let retryable = matches!(error.kind, ErrorKind::ActorDied | ErrorKind::Unavailable);
                let report = actor_report(&start.actor, start.epoch, &start.owner, v1::actor_report::State::Died);
                self.inner.report(v1::ActorReport { failure: Some(error.into()), retryable, ..report });
            }
        }
    }

    /// Keeps the code and the working folder that come with a start: those of others that were sent behind it come
    /// without, and run beside it.
    pub fn keep_blobs(&self, start: &v1::StartActor) {
        if start.code.is_empty() && start.dir.is_empty() {
            return;
        }
        let Ok(spec) = self.spec(&start.spec) else { return };
        let all = [(spec.code(), &start.code), (spec.dir(), &start.dir)];
        let mut blobs = self.inner.blobs.lock();
        for (digest, body) in all {
            if let Some(digest) = digest.filter(|_| !body.is_empty()) {
                blobs.insert(digest.to_string(), body.clone());
            }
        }
    }

    fn spec(&self, bytes: &bytes::Bytes) -> Result<Arc<AgentSpec>, Error> {
        let mut specs = self.inner.specs.lock();
        if let Some(spec) = specs.get(bytes) {
            return Ok(spec.clone());
        }
        let spec: Arc<AgentSpec> = Arc::new(from_json("the agent", bytes)?);
        if specs.len() >= SPECS_MAX {
            specs.clear();
        }
        // A copy: the original is a slice of a whole message.
        specs.insert(bytes::Bytes::copy_from_slice(bytes), spec.clone());
        Ok(spec)
    }

    /// Tells the head what is made before an actor can start.
    fn progress(&self, start: &v1::StartActor) -> Progress {
        let inner = self.inner.clone();
        let report = actor_report(&start.actor, start.epoch, &start.owner, v1::actor_report::State::Preparing);
        Arc::new(move |what| {
            let failure = Some(Error::new(ErrorKind::Unavailable, what).into());
            inner.report(v1::ActorReport { failure, ..report.clone() });
        })
    }

    async fn build(&self, start: &v1::StartActor, memos: &SharedMemos) -> Result<(Arc<AgentSpec>, Inside), Error> {
        let spec = self.spec(&start.spec)?;
        let secret = |name: &str| start.secrets.get(name).cloned();
        let behavior: Arc<dyn Behavior> = match &spec.kind {
            AgentKind::Native { implementation } if implementation == "job" => {
                Arc::new(JobsOf { jobs: self.inner.jobs.clone(), isolation: spec.isolation })
            }
            AgentKind::Native { implementation } => {
                // What it was is what it begins with.
                let init = start.state.clone().or_else(|| start.init.clone());
                self.inner.registry.make(implementation, init)?
            }
            AgentKind::Llm(agent) => Arc::new(Llm {
                name: spec.name.to_string(),
                actor: start.actor.as_str().into(),
                outward: self.inner.outward.clone(),
                launcher: self.inner.launcher.clone(),
                isolation: spec.isolation,
                tools: Default::default(),
                agent: agent.resolved(secret)?,
                model: spec.model.clone().unwrap_or_else(|| "tiny".into()),
                models: self.inner.models.clone(),
            }),
            AgentKind::A2a(foreign) => {
                let pass = match start.pass.is_empty() {
                    true => Pass::default(),
                    false => from_json::<Pass>("what opens the agent", &start.pass)?.resolved(secret)?,
                };
                Arc::new(Elsewhere::new(foreign, &pass, self.inner.outward.clone()))
            }
            AgentKind::Python(python) => {
                let hosts = self.inner.hosts.as_ref().ok_or_else(|| {
                    Error::new(ErrorKind::FailedPrecondition, "this worker has no Python with the covey package")
                })?;
                let (digest, class_name) = match &python.code {
                    PythonCode::Pickle { digest } => (digest, String::new()),
                    PythonCode::Source { digest, class } => (digest, class.clone()),
                };
                let code = self.inner.blobs.lock().get(digest.as_str()).cloned();
                let code = code
                    .ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, format!("code `{digest}` is not here")))?;
                let host_start = v1::HostStart {
                    actor: start.actor.clone(),
                    agent: spec.name.to_string(),
                    digest: digest.to_string(),
                    code,
                    class_name,
                    init: start.init.clone(),
                    concurrency: spec.concurrency,
                    model: spec.model.as_ref().map(ToString::to_string).unwrap_or_default(),
                    owner: start.owner.clone(),
                    state: start.state.clone(),
                    memory_bytes: spec.resources.memory_bytes,
                    save_turns: spec.snapshot == Keep::Turn,
                    reentrant: spec.reentrant,
                };
                // Actors share a process where their environments, with the secrets in them, are the same.
                let python = PythonAgent { env: python.env.resolved(secret)?, ..python.clone() };
                let saver = self.inner.saver(&ActorId::from(start.actor.as_str()), Epoch(start.epoch), memos);
                let folder = spec.dir().map(ToString::to_string);
                let archive = folder.as_ref().and_then(|digest| self.inner.blobs.lock().get(digest).cloned());
                let archive = archive.unwrap_or_default();
                let within = Duration::from_millis(spec.schedule_timeout_ms.unwrap_or(caps::START_TIMEOUT_MS));
                let progress = self.progress(start);
                let terms = StartTerms { within, isolation: spec.isolation };
                let actor = hosts.start(host_start, &python, terms, &archive, &progress, saver).await?;
                // From now on it lies unpacked in the cache.
                folder.and_then(|digest| self.inner.blobs.lock().remove(&digest));
                return Ok((spec, Inside::Process(actor)));
            }
        };
        Ok((spec, Inside::Here(behavior)))
    }

    fn go_live(
        &self,
        id: ActorId,
        epoch: Epoch,
        owner: String,
        spec: Arc<AgentSpec>,
        inside: Inside,
        memos: SharedMemos,
    ) {
        let turns = Arc::new(Semaphore::new(spec.concurrency as usize));
        let now = Instant::now();
        let cell = Cell {
            epoch,
            spec,
            owner,
            inside,
            turns,
            mailbox: None,
            held: Held::default(),
            used: now,
            saved: now,
            memos,
            said: None,
        };
        let report = cell.report(&id, v1::actor_report::State::Live);
        let mut actors = self.inner.actors.lock();
        if cell.is_restless() {
            self.inner.restless.lock().insert(id.clone());
        }
        let process = match &cell.inside {
            Inside::Process(process) => Some(process.clone()),
            Inside::Here(_) => None,
        };
        actors.insert(id.clone(), cell);
        drop(actors);
        self.inner.report(report);
        // What becomes of its process may have been told before the actor could be found here.
        let Some(process) = process else { return };
        if !process.is_alive() {
            self.inner.lost(&id, "its Python process ended");
        } else if let Some(why) = process.replaced() {
            self.inner.say(&id, process.host(), v1::actor_report::State::Leaving, &why);
        }
    }

    /// Stops an actor as asked.
    pub async fn stop(&self, stop: v1::StopActor) {
        let _ending = Ending::of(&self.inner.ending);
        let id = ActorId::from(stop.actor.as_str());
        let coming = self.inner.starting.lock().stop(&id, Epoch(stop.epoch)).map(|one| one.owner);
        let live = self.inner.actors.lock().get(&id).filter(|c| c.epoch.0 == stop.epoch).map(|c| c.owner.clone());
        let owner = coming.or(live);
        let within = (stop.within_ms > 0).then(|| Duration::from_millis(stop.within_ms));
        let lost = self.end(&id, Some(Epoch(stop.epoch)), stop.drain, within).await;
        if let (true, Some(owner)) = (stop.drain, owner) {
            let mut report = actor_report(&stop.actor, stop.epoch, &owner, v1::actor_report::State::Stopped);
            report.failure = lost.map(|why| Error::new(ErrorKind::ActorDied, why).into());
            self.inner.report(report);
        }
    }

    /// Nothing lives here, and nothing that did still answers.
    pub fn is_empty(&self) -> bool {
        self.inner.actors.lock().is_empty()
            && self.inner.starting.lock().is_empty()
            && self.inner.ending.load(Ordering::Acquire) == 0
    }

    /// Ends an actor; with `drain` it finishes what it has first, `within` a time where there is one, and its state is kept.
    /// Says why that could not be.
    async fn end(&self, id: &ActorId, epoch: Option<Epoch>, drain: bool, within: Option<Duration>) -> Option<String> {
        let cell = self.inner.take_out(id, epoch)?;
        let lost;
        if drain {
            let drained = cell.drained();
            let all = match within {
                Some(within) => tokio::time::timeout(within, drained).await.is_ok(),
                None => {
                    drained.await;
                    true
                }
            };
            if !all {
                tracing::info!(actor = %id, "calls that go on are ended: their actor moves");
                if let Some(mailbox) = &cell.mailbox {
                    mailbox.kill();
                }
            }
            lost = match self.inner.save(id, &cell).await {
                Ok(true) => None,
                Ok(false) => Some(format!("`{}` has no `__snapshot__`", cell.spec.name)),
                Err(error) => {
                    tracing::warn!(actor = %id, %error, "the state of an actor could not be kept");
                    Some(error.message)
                }
            };
        } else {
            if let Some(mailbox) = &cell.mailbox {
                mailbox.kill();
            }
            cell.inside.stopped();
            let running: Vec<_> =
                self.inner.tasks.lock().values().filter(|(a, _)| a == id).map(|(_, c)| c.clone()).collect();
            running.iter().for_each(|control| control.lose());
            return None;
        }
        cell.inside.stopped();
        lost
    }

    /// The lease ran out: this worker may not finish anything any more.
    pub async fn stop_everything(&self) {
        self.inner.starting.lock().stop_all();
        self.inner.jobs.kill_all();
        if let Some(hosts) = &self.inner.hosts {
            hosts.kill_all();
        }
        self.end_all().await;
    }

    /// This worker leaves: everything is told to stop, has a second for it, and is stopped then.
    pub async fn leave(&self) {
        self.end_all().await;
        let end = Instant::now() + LEAVE_WITHIN;
        while self.inner.hosts.as_ref().is_some_and(|hosts| !hosts.is_idle()) && Instant::now() < end {
            tokio::time::sleep(LEAVE_LOOK).await;
        }
        self.stop_everything().await;
    }

    async fn end_all(&self) {
        let all: Vec<_> = self.inner.actors.lock().keys().cloned().collect();
        for id in all {
            self.end(&id, None, false, None).await;
        }
        let lanes: Vec<_> = self.inner.lanes.lock().iter().filter_map(Weak::upgrade).collect();
        lanes.iter().for_each(|lane| lane.lose_all());
    }

    /// The stream of calls that come over the link of this number: each link has its own, as the head counts calls anew when it
    /// starts.
    pub fn link_lane(&self, link: u64) -> Lane {
        self.new_lane(Out::Link(link, self.inner.reports.clone()))
    }

    /// A stream of calls that come straight from a caller; answers go to `frames`.
    pub fn lane(&self, frames: mpsc::UnboundedSender<CallFrame>) -> Lane {
        self.new_lane(Out::Lane(frames))
    }

    fn new_lane(&self, out: Out) -> Lane {
        let inner = Arc::new(LaneInner { runtime: Arc::downgrade(&self.inner), out, calls: Mutex::default() });
        let mut lanes = self.inner.lanes.lock();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&inner));
        drop(lanes);
        Lane { inner }
    }
}

impl Inner {
    fn report(&self, report: v1::ActorReport) {
        // The other end is the worker's own loop; it is gone only when the process is.
        let _ = self.reports.send(Report::Actor(report));
    }

    /// Puts a turn into an actor's mailbox. A caller that believes in another activation is refused: it looks again.
    fn deliver(self: &Arc<Self>, actor: &ActorId, epoch: u64, mut turn: Turn) {
        let mut made = None;
        let mut actors = self.actors.lock();
        let Some(cell) = actors.get_mut(actor).filter(|c| epoch == 0 || c.epoch.0 == epoch) else {
            drop(actors);
            let error = Error::new(ErrorKind::ActorDied, format!("actor `{actor}` is not on this worker"))
                .executed(Some(false));
            drop(turn.over);
            return turn.sink.lost(error);
        };
        if !cell.held.admit(&mut turn) {
            drop(actors);
            drop(turn.over);
            let text = "what waits in the actor's mailbox is too large";
            return turn.sink.end(Err(Error::new(ErrorKind::Overloaded, text).executed(Some(false))));
        }
        cell.used = Instant::now();
        self.turns.fetch_add(1, Ordering::Relaxed);
        let behavior = match &cell.inside {
            Inside::Here(behavior) => behavior,
            Inside::Process(process) => {
                // Its mailbox is in the process, which keeps order and concurrency: no stop on the way.
                let process = process.clone();
                drop(actors);
                return process.accept(turn);
            }
        };
        let mailbox = cell.mailbox.get_or_insert_with(|| {
            let live = LiveActor {
                behavior: behavior.clone(),
                turns: cell.turns.clone(),
                concurrency: cell.spec.concurrency,
                running: JoinSet::new(),
            };
            let mailbox = LiveActor::spawn_with_mailbox(live, mailbox::bounded(caps::MAILBOX_DEPTH_MAX));
            made = Some((mailbox.clone(), cell.epoch));
            mailbox
        });
        // Under the lock, so that a mailbox that is being given back is never sent to.
        let sent = mailbox.tell(turn).try_send();
        if made.is_some() {
            self.restless.lock().insert(actor.clone());
        }
        drop(actors);
        if let Some((mailbox, epoch)) = made {
            self.watch(actor.clone(), epoch, mailbox);
        }
        if let Err(error) = sent {
            let full = matches!(&error, kameo::error::SendError::MailboxFull(_));
            if let Some(turn) = error.msg() {
                drop(turn.over);
                if full {
                    let error = Error::new(ErrorKind::Overloaded, "the actor's mailbox is full");
                    turn.sink.end(Err(error.executed(Some(false))));
                } else {
                    let error = Error::new(ErrorKind::ActorDied, "the actor has stopped");
                    turn.sink.lost(error.executed(Some(false)));
                }
            }
        }
    }

    /// A panic in native code stops the kameo actor; the head hears of it and starts another.
    fn watch(self: &Arc<Self>, id: ActorId, epoch: Epoch, mailbox: ActorRef<LiveActor>) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            mailbox.wait_for_shutdown().await;
            if let Some(inner) = weak.upgrade() {
                let ours =
                    inner.actors.lock().get(&id).is_some_and(|c| {
                        c.epoch == epoch && c.mailbox.as_ref().is_some_and(|m| m.id() == mailbox.id())
                    });
                if ours {
                    inner.lost(&id, "it panicked");
                }
            }
        });
    }

    /// Gives mailboxes back that had nothing to do for a while, puts virtual actors to sleep, and keeps the state of
    /// those that want that now and then.
    fn sweep(self: &Arc<Self>) {
        let (mut idle, mut sleepy, mut unsaved) = (Vec::new(), Vec::new(), Vec::new());
        let mut actors = self.actors.lock();
        self.restless.lock().retain(|id| {
            let Some(cell) = actors.get_mut(id) else { return false };
            let resting = cell.turns.available_permits() == cell.spec.concurrency as usize && cell.inside.is_idle();
            if resting && cell.owner == VIRTUAL && cell.used.elapsed() > Duration::from_millis(cell.spec.idle_ms) {
                sleepy.push((id.clone(), cell.epoch));
            } else if resting
                && cell.used.elapsed() > MAILBOX_IDLE
                && let Some(mailbox) = cell.mailbox.take()
            {
                idle.push(mailbox);
            }
            if let Keep::Every(ms) = cell.spec.snapshot
                && cell.used > cell.saved
                && cell.saved.elapsed() > Duration::from_millis(ms)
            {
                cell.saved = Instant::now();
                unsaved.push((id.clone(), cell.epoch, cell.memos.clone(), cell.inside.clone()));
            }
            cell.is_restless()
        });
        drop(actors);
        // What reached one of them meanwhile is still handled.
        for mailbox in idle {
            tokio::spawn(async move {
                let _ = mailbox.stop_gracefully().await;
            });
        }
        for (id, epoch) in sleepy {
            let inner = self.clone();
            tokio::spawn(async move { inner.sleep(&id, epoch).await });
        }
        for (id, epoch, memos, inside) in unsaved {
            let inner = self.clone();
            tokio::spawn(async move {
                let saved = async { inner.saver(&id, epoch, &memos).save(inside.snapshot().await?).await };
                if let Err(error) = saved.await {
                    tracing::warn!(actor = %id, %error, "the state of an actor could not be kept");
                }
            });
        }
    }

    /// The actor takes nothing from now on, if this activation (`None` = any) is the one that lives.
    fn take_out(&self, id: &ActorId, epoch: Option<Epoch>) -> Option<Cell> {
        let mut actors = self.actors.lock();
        actors.get(id).filter(|cell| epoch.is_none_or(|e| e == cell.epoch))?;
        actors.remove(id)
    }

    fn saver(&self, id: &ActorId, epoch: Epoch, memos: &SharedMemos) -> Saver {
        let (outward, node) = (self.outward.clone(), self.node.clone());
        Saver { outward, node, actor: id.to_string(), epoch: epoch.0, memos: memos.clone() }
    }

    async fn save(&self, id: &ActorId, cell: &Cell) -> Result<bool, Error> {
        self.saver(id, cell.epoch, &cell.memos).save(cell.inside.snapshot().await?).await
    }

    /// Nothing to do for a while: the state is kept, and the actor is gone until somebody speaks to it. Calls that come
    /// meanwhile are refused unrun, and their callers look again.
    async fn sleep(&self, id: &ActorId, epoch: Epoch) {
        let _ending = Ending::of(&self.ending);
        let Some(cell) = self.take_out(id, Some(epoch)) else { return };
        cell.drained().await;
        match self.save(id, &cell).await {
            Ok(_) => {
                cell.inside.stopped();
                self.report(cell.report(id, v1::actor_report::State::Slept));
            }
            Err(error) => {
                // It stays awake rather than forget.
                tracing::warn!(actor = %id, %error, "an actor could not be put to sleep");
                let mut actors = self.actors.lock();
                self.restless.lock().insert(id.clone());
                actors.entry(id.clone()).or_insert(Cell { mailbox: None, used: Instant::now(), ..cell });
            }
        }
    }

    /// The actor has ended by itself; the head starts it again. Gives what it was.
    fn lost(&self, id: &ActorId, why: &str) -> Option<Cell> {
        let cell = self.actors.lock().remove(id)?;
        if let Some(mailbox) = &cell.mailbox {
            mailbox.kill();
        }
        let mut report = cell.report(id, v1::actor_report::State::Died);
        report.failure = Some(Error::new(ErrorKind::ActorDied, format!("the actor died: {why}")).executed(None).into());
        report.retryable = true;
        self.report(report);
        Some(cell)
    }
}

/// Counts one as long as it is there.
struct Ending<'a>(&'a AtomicUsize);

impl<'a> Ending<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Cell {
    fn is_restless(&self) -> bool {
        self.mailbox.is_some() || self.owner == VIRTUAL || matches!(self.spec.snapshot, Keep::Every(_))
    }

    /// Waits until everything that was accepted is answered.
    async fn drained(&self) {
        if let Some(mailbox) = &self.mailbox {
            let _ = mailbox.stop_gracefully().await;
            mailbox.wait_for_shutdown().await;
        }
        if let Inside::Process(actor) = &self.inside {
            actor.drained().await;
        }
    }

    fn report(&self, id: &ActorId, state: v1::actor_report::State) -> v1::ActorReport {
        let agent = self.spec.name.to_string();
        v1::ActorReport { agent, ..actor_report(id.as_str(), self.epoch.0, &self.owner, state) }
    }
}

fn actor_report(actor: &str, epoch: u64, owner: &str, state: v1::actor_report::State) -> v1::ActorReport {
    v1::ActorReport {
        actor: actor.to_owned(),
        epoch,
        state: state.into(),
        owner: owner.to_owned(),
        ..v1::ActorReport::default()
    }
}

/// A call must be answered by then; 0 = whenever it is.
fn deadline(asked_ms: u64) -> Option<tokio::time::Instant> {
    (asked_ms > 0).then(|| tokio::time::Instant::now() + Duration::from_millis(asked_ms))
}

/// The bound on a turn: what the caller asks for (0 = nothing), at most the agent's own.
fn least(asked_ms: u64, limit_ms: Option<u64>) -> Option<Duration> {
    let asked = (asked_ms > 0).then_some(asked_ms);
    asked.into_iter().chain(limit_ms).min().map(Duration::from_millis)
}
