//! Pools: many jobs over several actors of one agent, as many as there is room and work for.
//!
//! A job goes to the actor with the fewest jobs. Each actor gets as many ahead as it does in [`AHEAD`], measured, so
//! short jobs travel in company and a long one never has another waiting behind it for long. A job whose actor died is
//! tried again elsewhere as often as it may; an actor that has nothing to do for [`IDLE`] is stopped, and what it
//! held is free for others.

mod waiting;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::Engine as _;
use covey_domain::{
    ActorId, AgentSpec, Error, ErrorKind, Resources,
    agent::{FUNCTIONS, known_as},
    caps,
    error::RUNNING,
    error::STUCK,
};
use covey_proto::v1::{DeadLetter, Payload};
use parking_lot::Mutex;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use waiting::Waiting;

use crate::{
    CallEvent, Calls, Client, NewActor, NewCall, Target, Waits,
    retry::{Backoff, pause},
};

/// Work that is sent ahead to one actor.
const AHEAD: Duration = Duration::from_millis(4);
/// Jobs sent ahead to one actor, however short they are.
const AHEAD_MAX: usize = 256;
/// An actor of a pool without a fixed size goes after this time without work.
const IDLE: Duration = Duration::from_secs(1);
/// So many actors end before they have a place, none in between, and what waits fails with the last one's error: no more would start.
const FAILED_MAX: u32 = 3;
/// Actors that are started at once.
const STARTING_MAX: usize = 64;
/// The verb by which a process closes a pool that its worker keeps for it; its body is the spec.
pub const CLOSE_POOL: &str = "ClosePool";
/// Ids of jobs have this bit, ids of calls do not.
pub(crate) const JOB: u64 = 1 << 62;

/// What a pool is made of. Equal specs of one client are one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolSpec {
    /// Of which agent.
    pub agent: String,
    /// Whom the actors live for.
    pub session: String,
    /// JSON object merged over the agent's spec.
    pub overrides: String,
    /// Constructor arguments: an encoded payload in base64.
    pub init: String,
    /// Actors; `None` = as many as the cluster's CPUs hold, for as long as there is work.
    pub actors: Option<usize>,
    /// Turns at once on each actor.
    pub concurrency: usize,
    /// Times a job is tried again after its actor died.
    pub retries: u32,
    /// Jobs sent ahead to one actor at most, beyond its turns: 0 = none waits behind another while there are actors to be had.
    /// `None` = as many as it does in 4 ms.
    pub ahead: Option<usize>,
    /// Tells pools apart that are otherwise equal.
    pub id: String,
    /// Isolation of the process that it is for, as its worker says it; empty = none.
    pub least: String,
}

type Handler = Box<dyn FnMut(u64, CallEvent) + Send>;

/// All pools of one client.
#[derive(Clone)]
pub struct Pools {
    client: Client,
    calls: Calls,
    next: Arc<AtomicU64>,
    pools: Arc<Mutex<HashMap<String, Arc<Pool>>>>,
    jobs: Arc<Mutex<HashMap<u64, Weak<Pool>>>>,
    left: Arc<AtomicBool>,
}

impl Pools {
    /// No pools yet.
    pub fn new(client: Client, calls: Calls) -> Self {
        Self { client, calls, next: Arc::default(), pools: Arc::default(), jobs: Arc::default(), left: Arc::default() }
    }

    /// Starts a job on the pool that `spec` (JSON of a [`PoolSpec`]) names; the pool is made when it is new.
    pub fn start(&self, spec: &str, call: NewCall, mut handler: impl FnMut(u64, CallEvent) + Send + 'static) -> u64 {
        let id = JOB | self.next.fetch_add(1, Ordering::Relaxed);
        let refuse = |error: Error| CallEvent::End(Err(error.executed(Some(false))));
        if let Err(error) = covey_proto::check_size("the argument", &call.args) {
            handler(id, refuse(error));
            return id;
        }
        let pool = match self.pool(spec) {
            Ok(pool) => pool,
            Err(error) => {
                handler(id, refuse(error));
                return id;
            }
        };
        self.jobs.lock().insert(id, Arc::downgrade(&pool));
        let jobs = self.jobs.clone();
        let job = Job {
            id,
            retries: pool.spec.retries.max(call.retries),
            tried: 0,
            killed: 0,
            until: (call.timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(call.timeout_ms)),
            parent: None,
            call,
            handler: Box::new(move |id, event| {
                if matches!(event, CallEvent::End(_)) {
                    jobs.lock().remove(&id);
                }
                handler(id, event);
            }),
            cancelled: false,
        };
        let until = job.until;
        pool.add(job);
        if let Some(until) = until {
            let pool = Arc::downgrade(&pool);
            self.calls.runtime().spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                if let Some(pool) = pool.upgrade() {
                    pool.late(id);
                }
            });
        }
        id
    }

    fn pool(&self, spec: &str) -> Result<Arc<Pool>, Error> {
        let (pool, is_new) = once(&self.pools, spec, || {
            if self.left.load(Ordering::Relaxed) {
                return Err(left());
            }
            let parsed: PoolSpec = covey_proto::from_json("the pool", spec.as_bytes())?;
            Ok(Pool {
                client: self.client.clone(),
                calls: self.calls.clone(),
                runtime: self.calls.runtime(),
                depth_max: parsed.ahead.unwrap_or(AHEAD_MAX).max(parsed.concurrency.max(1)),
                spec: parsed,
                state: Mutex::default(),
            })
        })?;
        if is_new {
            let weak = Arc::downgrade(&pool);
            pool.runtime.spawn(async move {
                let mut every = tokio::time::interval(IDLE / 4);
                loop {
                    every.tick().await;
                    let Some(pool) = weak.upgrade() else { return };
                    pool.tick();
                    pool.tell_waits();
                }
            });
        }
        Ok(pool)
    }

    /// Whether an id is one of a job.
    pub fn is_job(id: u64) -> bool {
        id & JOB != 0
    }

    /// Cancels a job; its end arrives as `Cancelled`.
    pub fn cancel(&self, id: u64) {
        let pool = self.jobs.lock().get(&id).and_then(Weak::upgrade);
        if let Some(pool) = pool {
            pool.cancel(id);
        }
    }

    /// The reader of a job's stream has room for more items.
    pub fn credit(&self, id: u64, items: u32) {
        let pool = self.jobs.lock().get(&id).and_then(Weak::upgrade);
        if let Some(pool) = pool {
            let call = pool.state.lock().running.get(&id).map(|running| running.call);
            call.into_iter().for_each(|call| pool.calls.credit(call, items));
        }
    }

    /// Cancels what the pool has and stops its actors.
    pub fn close(&self, spec: &str) {
        let pool = self.pools.lock().remove(spec);
        if let Some(pool) = pool {
            pool.close();
        }
    }

    /// Ends all jobs, those under way too, and refuses new ones: before [`Calls::leave`], with which the actors go.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        let pools: Vec<_> = self.pools.lock().drain().map(|(_, pool)| pool).collect();
        pools.into_iter().for_each(|pool| pool.leave());
    }
}

/// What is known by this name, made by whoever asks first, and whether that was now: of those who ask at the same moment
/// nobody gets one of his own.
fn once<T>(
    known: &Mutex<HashMap<String, Arc<T>>>,
    name: &str,
    make: impl FnOnce() -> Result<T, Error>,
) -> Result<(Arc<T>, bool), Error> {
    let mut known = known.lock();
    if let Some(one) = known.get(name) {
        return Ok((one.clone(), false));
    }
    let made = Arc::new(make()?);
    known.insert(name.to_owned(), made.clone());
    Ok((made, true))
}

struct Pool {
    client: Client,
    calls: Calls,
    runtime: tokio::runtime::Handle,
    spec: PoolSpec,
    depth_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: Waiting,
    /// Those that are tried again after a pause.
    paused: HashMap<u64, Job>,
    running: HashMap<u64, Running>,
    members: HashMap<ActorId, Member>,
    /// Being made.
    making: usize,
    /// Made, without a place yet.
    unplaced: HashSet<ActorId>,
    /// Actors that ended before they had a place, since the last that got one.
    failed: u32,
    /// Actors the cluster has room for, and when that was asked.
    room: Option<(usize, Instant)>,
    asking: bool,
    /// Why nothing runs, as whoever waits was told last.
    told: Option<String>,
    /// The function that was called last, of those that its actors run.
    function: String,
    closed: bool,
}

struct Job {
    id: u64,
    call: NewCall,
    handler: Handler,
    retries: u32,
    /// Tries after exceptions.
    tried: u32,
    /// Processes that died while they ran it.
    killed: u32,
    /// It must be over by then.
    until: Option<Instant>,
    /// The actor of the pool and the turn there that wait for it, or will.
    parent: Option<(ActorId, String)>,
    cancelled: bool,
}

struct Running {
    job: Job,
    actor: ActorId,
    call: u64,
    sent: Instant,
}

struct Member {
    jobs: usize,
    /// Seconds that one job takes, smoothed; `None` before the first is over.
    job_s: Option<f64>,
    last: Instant,
    /// Its turns that wait for jobs of this pool, and for how many.
    waits: HashMap<String, usize>,
}

impl State {
    /// A method was called; `run:resize` runs the function `resize`.
    fn called(&mut self, method: &str) {
        let function = method.split_once(':').map_or("", |(_, function)| function);
        if self.function != function {
            function.clone_into(&mut self.function);
        }
    }

    /// Nothing waits for this job any more.
    fn over(&mut self, job: &Job) {
        let Some((actor, turn)) = &job.parent else { return };
        let Some(member) = self.members.get_mut(actor) else { return };
        if let Some(count) = member.waits.get_mut(turn) {
            *count -= 1;
            if *count == 0 {
                member.waits.remove(turn);
            }
        }
    }

    /// Takes a job that is not under way.
    fn take_waiting(&mut self, id: u64) -> Option<Job> {
        let job = self.paused.remove(&id).or_else(|| self.queue.remove(id))?;
        self.over(&job);
        Some(job)
    }
}

impl Member {
    /// Jobs it may have now.
    fn depth(&self, concurrency: usize, most: usize) -> usize {
        let ahead = self.job_s.map_or(1.0, |s| AHEAD.as_secs_f64() / s.max(1e-6));
        (ahead as usize).max(concurrency).min(most) + self.waits.len()
    }
}

impl Pool {
    fn add(self: &Arc<Self>, job: Job) {
        let refused = {
            let mut state = self.state.lock();
            if state.closed {
                Some((job, Error::new(ErrorKind::FailedPrecondition, "the pool is closed")))
            } else if state.queue.len() >= caps::TASK_QUEUE_DEPTH_MAX {
                Some((job, Error::new(ErrorKind::Overloaded, format!("{} jobs wait", state.queue.len()))))
            } else {
                let job = self.adopted(&mut state, job);
                state.called(&job.call.method);
                state.queue.push(job);
                self.dispatch(&mut state);
                None
            }
        };
        if let Some((mut job, error)) = refused {
            (job.handler)(job.id, CallEvent::End(Err(error.executed(Some(false)))));
        }
    }

    /// Finds the turn of the pool's own that a new job comes out of. A turn of a function that waits gives its place away, so
    /// its actor has room for one more: functions may call functions as deep as they like, however few actors there are.
    fn adopted(&self, state: &mut State, mut job: Job) -> Job {
        if job.call.chain.is_empty() || !self.spec.agent.starts_with(FUNCTIONS) {
            return job;
        }
        let links = job.call.chain.lines().rev().filter_map(|link| Some((link.rsplit_once('#')?.0, link)));
        let own = links.map(|(actor, link)| (ActorId::from(actor), link)).find(|(a, _)| state.members.contains_key(a));
        if let Some((actor, link)) = own {
            // `actor#turn.call`: all calls of one turn are one parent.
            let turn = link.rsplit_once('.').map_or(link, |(turn, _)| turn).to_owned();
            if let Some(member) = state.members.get_mut(&actor) {
                *member.waits.entry(turn.clone()).or_default() += 1;
            }
            job.parent = Some((actor, turn));
        }
        job
    }

    /// Gives what waits to actors with room, and asks for more actors when there is more.
    fn dispatch(self: &Arc<Self>, state: &mut State) {
        let concurrency = self.spec.concurrency.max(1);
        while !state.queue.is_empty() {
            let free = state
                .members
                .iter()
                .filter(|(_, m)| m.jobs < m.depth(concurrency, self.depth_max))
                .min_by_key(|(_, m)| m.jobs - m.waits.len().min(m.jobs))
                .map(|(actor, _)| actor.clone());
            let Some(actor) = free else { break };
            if let Some(job) = state.queue.pop() {
                self.send(state, actor, job);
            }
        }
        self.grow(state);
    }

    fn send(self: &Arc<Self>, state: &mut State, actor: ActorId, job: Job) {
        if let Some(member) = state.members.get_mut(&actor) {
            if member.jobs == 0 {
                member.last = Instant::now();
            }
            member.jobs += 1;
        }
        let left = |until: Instant| until.saturating_duration_since(Instant::now()).as_millis().max(1) as u64;
        let timeout_ms = job.until.map_or(0, left);
        let call = NewCall { target: Target::Actor(actor.clone()), retries: 0, timeout_ms, ..job.call.clone() };
        let (id, weak) = (job.id, Arc::downgrade(self));
        state.running.insert(id, Running { job, actor, call: 0, sent: Instant::now() });
        // The handler may run before `start` returns, on another thread; it waits for the lock held here.
        let call = self.calls.start_deferred(call, move |_, event| {
            if let Some(pool) = weak.upgrade() {
                pool.event(id, event);
            }
        });
        if let Some(running) = state.running.get_mut(&id) {
            running.call = call;
        }
    }

    fn event(self: &Arc<Self>, id: u64, event: CallEvent) {
        let end = match event {
            CallEvent::End(end) => end,
            item @ CallEvent::Item(_) => {
                if let Some(running) = self.state.lock().running.get_mut(&id) {
                    // What has been answered in part is not tried again.
                    running.job.retries = 0;
                    (running.job.handler)(id, item);
                }
                return;
            }
        };
        let mut gone = None;
        let finished = {
            let mut state = self.state.lock();
            let Some(Running { mut job, actor, sent, .. }) = state.running.remove(&id) else { return };
            let now = Instant::now();
            let died = matches!(&end, Err(e) if matches!(e.kind, ErrorKind::ActorDied | ErrorKind::Unavailable));
            if died {
                // The cluster would start it again, for nobody.
                gone = state.members.remove(&actor).map(|_| actor.clone());
            } else if matches!(&end, Err(e) if e.detail.as_deref() == Some(STUCK)) {
                // Its turn goes on: nothing new is sent behind it, and another takes its place.
                state.members.remove(&actor);
                gone = Some(actor.clone());
            } else if let Some(member) = state.members.get_mut(&actor) {
                member.jobs -= 1;
                let took = now.saturating_duration_since(member.last.max(sent)).as_secs_f64();
                member.job_s = Some(member.job_s.map_or(took, |s| s * 0.8 + took * 0.2));
                member.last = now;
            }
            job.killed += u32::from(matches!(&end, Err(e) if e.detail.as_deref() == Some(RUNNING)));
            let unrun = matches!(&end, Err(e) if e.executed == Some(false)) && died;
            let raised = matches!(&end, Err(e) if e.retry);
            let again = !job.cancelled && !state.closed && (unrun || ((died || raised) && job.retries > 0));
            let finished = if again {
                if !unrun {
                    job.retries -= 1;
                    job.call.alone = covey_call_core::alone(job.killed, job.retries);
                }
                if raised {
                    self.pause(&mut state, job);
                } else {
                    state.queue.push_first(job);
                }
                None
            } else {
                state.over(&job);
                Some((job, actor, end))
            };
            self.dispatch(&mut state);
            finished
        };
        // What was sent ahead to it comes back unrun.
        self.stop(gone.into_iter().collect());
        if let Some((mut job, actor, mut end)) = finished {
            if let Err(error) = &mut end
                && job.killed >= caps::POISON_AFTER
            {
                self.give_up(&job, actor, error);
            }
            (job.handler)(job.id, CallEvent::End(end));
        }
    }

    /// A job that ended process after process has no try left: the head lists it.
    fn give_up(&self, job: &Job, actor: ActorId, error: &mut Error) {
        self.calls.dead_letter(DeadLetter {
            actor: actor.to_string(),
            method: known_as(&job.call.method).to_owned(),
            agent: self.spec.agent.clone(),
            bytes: covey_proto::size_of(&job.call.args) as u64,
            attempts: job.killed,
            error: error.message.clone(),
            ..DeadLetter::default()
        });
        error.message =
            format!("{} processes died while they ran this call, the last because {}", job.killed, error.message);
        error.hint.get_or_insert_with(|| "`covey dead-letters` lists such calls".to_owned());
    }

    /// A job that raised what is worth another try waits a while for it.
    fn pause(self: &Arc<Self>, state: &mut State, mut job: Job) {
        let pause = job.call.retry.as_ref().map_or(Duration::ZERO, |retry| pause(retry, job.tried));
        job.tried += 1;
        let (id, weak) = (job.id, Arc::downgrade(self));
        state.paused.insert(id, job);
        self.runtime.spawn(async move {
            tokio::time::sleep(pause).await;
            let Some(pool) = weak.upgrade() else { return };
            let mut state = pool.state.lock();
            if let Some(job) = state.paused.remove(&id) {
                state.queue.push_first(job);
                pool.dispatch(&mut state);
            }
        });
    }

    /// The deadline of a job that does not run is over; the worker of one that does ends it.
    fn late(&self, id: u64) {
        let job = self.state.lock().take_waiting(id);
        if let Some(mut job) = job {
            let error = Error::new(ErrorKind::DeadlineExceeded, "the time for this call ran out before its turn came");
            (job.handler)(id, CallEvent::End(Err(error.executed(Some(false)))));
        }
    }

    fn grow(self: &Arc<Self>, state: &mut State) {
        if state.closed || state.queue.is_empty() {
            return;
        }
        let most = match self.spec.actors {
            Some(actors) => actors.max(1),
            None => {
                if state.room.is_none_or(|(_, asked)| asked.elapsed() > Duration::from_secs(2)) && !state.asking {
                    state.asking = true;
                    let pool = self.clone();
                    self.runtime.spawn(async move { pool.ask_room().await });
                }
                state.room.map_or(1, |(room, _)| room)
            }
        };
        let have = state.members.len() + state.unplaced.len() + state.making;
        let want = state.queue.len().min(most.saturating_sub(have));
        let start = want.min(STARTING_MAX.saturating_sub(state.making));
        for _ in 0..start {
            state.making += 1;
            let pool = self.clone();
            self.runtime.spawn(async move { pool.make().await });
        }
    }

    /// How many actors of this pool the cluster's live nodes could hold.
    async fn ask_room(self: Arc<Self>) {
        let need = self.need().await;
        let status = self.client.status().await;
        let room = status.map_or(1, |status| {
            let per_node = status.nodes.iter().filter(|n| n.state == "live").map(|n| {
                let cpus = n.total.cpu_milli.checked_div(need.cpu_milli).unwrap_or(n.total.cpu_milli.div_ceil(1000));
                let gpus = n.total.gpu_milli.checked_div(need.gpu_milli).unwrap_or(u64::MAX);
                let memory = n.total.memory_bytes.checked_div(need.memory_bytes).unwrap_or(u64::MAX);
                cpus.min(gpus).min(memory) as usize
            });
            per_node.sum::<usize>().max(1)
        });
        let mut state = self.state.lock();
        state.room = Some((room, Instant::now()));
        state.asking = false;
        self.grow(&mut state);
    }

    async fn need(&self) -> Resources {
        let overrides: serde_json::Value = serde_json::from_str(&self.spec.overrides).unwrap_or_default();
        if let Some(resources) = overrides.get("resources") {
            return serde_json::from_value(resources.clone()).unwrap_or_default();
        }
        let agents = self.client.agents().await.unwrap_or_default();
        agents.into_iter().find(|a| a.name.as_str() == self.spec.agent).map(|a| a.resources).unwrap_or_default()
    }

    async fn make(self: Arc<Self>) {
        let new = || -> Result<NewActor, Error> {
            let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text);
            let init = match self.spec.init.as_str() {
                "" => None,
                text => Some(
                    decode(text)
                        .ok()
                        .and_then(|bytes| Payload::decode(&*bytes).ok())
                        .ok_or_else(|| Error::invalid("failed to read the pool's constructor arguments"))?,
                ),
            };
            let mut overrides: BTreeMap<_, _> = match self.spec.overrides.as_str() {
                "" => Default::default(),
                text => covey_proto::from_json("options", text.as_bytes())?,
            };
            let function = self.state.lock().function.clone();
            if self.spec.agent.starts_with(FUNCTIONS) && !function.is_empty() {
                overrides.insert("description".into(), AgentSpec::about_function(&function).into());
            }
            Ok(NewActor {
                agent: self.spec.agent.clone(),
                session: self.spec.session.clone(),
                init,
                overrides,
                least: self.spec.least.clone(),
                ..NewActor::default()
            })
        };
        let made = match new() {
            Ok(new) => self.client.create_actor(new).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(reply) => {
                let actor = ActorId::from(reply.actor);
                let stop = {
                    let mut state = self.state.lock();
                    state.making -= 1;
                    if !state.closed {
                        state.unplaced.insert(actor.clone());
                    }
                    state.closed
                };
                if stop {
                    let _ = self.client.stop_actor(actor.as_str(), false).await;
                    return;
                }
                let pool = Arc::downgrade(&self);
                let placed = actor.clone();
                self.calls.when_placed(&actor, move |result| {
                    if let Some(pool) = pool.upgrade() {
                        pool.placed(placed, result);
                    }
                });
            }
            Err(error) => {
                let alone = {
                    let mut state = self.state.lock();
                    state.making -= 1;
                    state.unplaced.is_empty()
                };
                if alone {
                    self.fail_waiting(&error);
                }
            }
        }
    }

    fn placed(self: &Arc<Self>, actor: ActorId, result: Result<(), Error>) {
        let mut gone = None;
        let failed = {
            let mut state = self.state.lock();
            state.unplaced.remove(&actor);
            match result {
                Ok(()) => {
                    state.failed = 0;
                    state
                        .members
                        .insert(actor, Member { jobs: 0, job_s: None, last: Instant::now(), waits: HashMap::new() });
                    self.dispatch(&mut state);
                    None
                }
                // Others may still take the work. It may be there all the same: its place was not heard of.
                Err(error) => {
                    gone = Some(actor);
                    state.failed += 1;
                    let last = state.unplaced.is_empty() || state.failed >= FAILED_MAX;
                    (state.members.is_empty() && last).then_some(error)
                }
            }
        };
        self.stop(gone.into_iter().collect());
        if let Some(error) = failed {
            self.fail_waiting(&error);
        }
    }

    /// Ends what waits while no actor is there.
    fn fail_waiting(&self, error: &Error) {
        let waiting = {
            let mut state = self.state.lock();
            if !state.members.is_empty() {
                return;
            }
            state.failed = 0;
            state.queue.take()
        };
        for mut job in waiting {
            (job.handler)(job.id, CallEvent::End(Err(error.clone().executed(Some(false)))));
        }
    }

    fn cancel(&self, id: u64) {
        let (ended, call) = {
            let mut state = self.state.lock();
            let waiting = state.take_waiting(id).map(|job| (job.handler, Some(false)));
            let running = state.running.get_mut(&id).filter(|running| !running.job.cancelled).map(|running| {
                running.job.cancelled = true;
                // Whoever asked is told now. Its actor has a place again once its worker says so.
                (std::mem::replace(&mut running.job.handler, Box::new(|_, _| {})), running.call)
            });
            let call = running.as_ref().map(|(_, call)| *call);
            (waiting.or(running.map(|(handler, _)| (handler, None))), call)
        };
        if let Some((mut handler, executed)) = ended {
            handler(id, CallEvent::End(Err(Error::new(ErrorKind::Cancelled, "cancelled").executed(executed))));
        }
        if let Some(call) = call {
            self.calls.cancel_there(call);
        }
    }

    /// Whoever waits is told why no actor of the pool has a place: of each reason once.
    fn tell_waits(&self) {
        let waits = {
            let mut state = self.state.lock();
            if state.queue.is_empty() || !state.members.is_empty() {
                state.told = None;
                return;
            }
            let Some(why) = state.unplaced.iter().find_map(|actor| self.calls.why_waiting(actor)) else { return };
            if state.told.as_ref() == Some(&why) {
                return;
            }
            state.told = Some(why.clone());
            let what = match self.spec.agent.starts_with(FUNCTIONS) {
                true => "an actor that runs functions".to_owned(),
                false => format!("an actor of the pool of {}", self.spec.agent),
            };
            Waits { what, why, calls: state.queue.len() }
        };
        self.calls.tell_waits(&waits);
    }

    /// Stops actors that have had nothing to do for a while. Where jobs wait, asks again for actors: nodes come, and room that
    /// was asked for may not have been told.
    fn tick(self: &Arc<Self>) {
        let idle: Vec<_> = {
            let mut state = self.state.lock();
            if !state.queue.is_empty() {
                return self.dispatch(&mut state);
            }
            if self.spec.actors.is_some() {
                return;
            }
            let idle = |m: &Member| m.jobs == 0 && m.last.elapsed() > IDLE;
            let gone: Vec<_> = state.members.iter().filter(|(_, m)| idle(m)).map(|(a, _)| a.clone()).collect();
            for actor in &gone {
                state.members.remove(actor);
            }
            gone.into_iter().chain(state.unplaced.drain()).collect()
        };
        self.stop(idle);
    }

    /// Nobody else knows of them: they would hold their CPUs for as long as the session is there. A head that is away is
    /// told once it is back.
    fn stop(&self, actors: Vec<ActorId>) {
        for actor in actors {
            self.calls.forget(&actor);
            let (client, goes_on) = (self.client.clone(), self.calls.goes_on());
            self.runtime.spawn(async move {
                let mut pauses = Backoff::default();
                while matches!(client.stop_actor(actor.as_str(), false).await, Err(e) if e.kind == ErrorKind::Unavailable)
                    && goes_on()
                {
                    tokio::time::sleep(pauses.pause()).await;
                }
            });
        }
    }

    fn close(&self) {
        let (queue, running, actors) = {
            let mut state = self.state.lock();
            state.closed = true;
            let mut actors: Vec<_> = state.members.drain().map(|(actor, _)| actor).collect();
            actors.extend(state.unplaced.drain());
            let running: Vec<_> = state.running.values().map(|r| r.call).collect();
            let paused: Vec<_> = state.paused.drain().map(|(_, job)| job).collect();
            let mut queue = state.queue.take();
            queue.extend(paused);
            (queue, running, actors)
        };
        let error = Error::new(ErrorKind::Cancelled, "the pool was closed").executed(Some(false));
        for mut job in queue {
            (job.handler)(job.id, CallEvent::End(Err(error.clone())));
        }
        for call in running {
            self.calls.cancel(call);
        }
        self.stop(actors);
    }

    fn leave(&self) {
        let jobs: Vec<_> = {
            let mut state = self.state.lock();
            state.closed = true;
            let running: Vec<_> = state.running.drain().map(|(_, running)| (running.job, None)).collect();
            let paused: Vec<_> = state.paused.drain().map(|(_, job)| (job, Some(false))).collect();
            let waiting = state.queue.take().into_iter().map(|job| (job, Some(false)));
            waiting.chain(paused).chain(running).collect()
        };
        for (mut job, executed) in jobs {
            (job.handler)(job.id, CallEvent::End(Err(left().executed(executed))));
        }
    }
}

impl Drop for Pool {
    /// Nobody can put anything in any more: what waits for an answer gets one.
    fn drop(&mut self) {
        self.leave();
    }
}

fn left() -> Error {
    Error::unavailable("the session was closed")
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn those_who_ask_at_once_get_the_same() {
        for round in 0..200 {
            let (known, together, name) = (Mutex::default(), Barrier::new(4), round.to_string());
            let got: Vec<Arc<u32>> = std::thread::scope(|scope| {
                let ask = || {
                    together.wait();
                    once(&known, &name, || Ok(round)).map(|(one, _)| one)
                };
                let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
                asking.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
            });
            assert!(got.iter().all(|one| Arc::ptr_eq(one, &got[0])), "round {round}");
        }
        let refused = once(&Mutex::new(HashMap::<String, Arc<u32>>::new()), "x", || Err(Error::invalid("no")));
        assert!(refused.is_err());
    }
}
