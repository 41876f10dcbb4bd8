//! All Python processes of a worker: which one an actor gets, and when another is made.
//!
//! There is always one to be had, or an error that says why not: a process that has ended is known by its own end, not by
//! who tries to write to it next. Making one takes a while and holds nobody up who can go elsewhere.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use covey_domain::{
    ActorId, Error, Isolation,
    agent::{PythonAgent, PythonEnv},
    caps,
};
use covey_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use super::{HostNumber, HostsConfig, News, Python, PythonActor, host::Host};
use crate::{
    Models, Outward,
    envs::{Environments, Progress},
    launch::Launcher,
    output::Output,
    outward::Saver,
    recent::Recent,
};

/// An agent whose turns ran in a process that died shares no process with others for so long.
const SUSPECT: Duration = Duration::from_secs(60);
/// Processes over which its actors are spread.
const SUSPECT_PROCESSES: usize = 16;
/// Agents that are kept apart at once, at most.
const SUSPECTS_MAX: usize = 16;

/// All Python processes of a worker.
pub(crate) struct Hosts {
    pub(super) python: Python,
    pub(super) folder: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) environment: Vec<(String, String)>,
    pub(super) launcher: Arc<Launcher>,
    environments: Arc<Environments>,
    /// Processes that share actors, at most.
    shared_max: usize,
    pub(super) models: Arc<Models>,
    pub(super) outward: Arc<dyn Outward>,
    state: Mutex<State>,
    /// A process has come up, or could not.
    changed: Notify,
    made: AtomicU64,
    /// What the processes print.
    outputs: Mutex<Vec<(HostNumber, Weak<Output>)>>,
    /// Told of each line that one prints.
    pub printed: watch::Sender<()>,
    /// Processes and logs of actors, also of those that are over.
    past: Mutex<Recent<ActorId, Lives>>,
    pub(super) news: mpsc::UnboundedSender<News>,
}

#[derive(Default)]
struct State {
    hosts: Vec<Arc<Host>>,
    /// What is being made for actors to share.
    coming: Vec<Kind>,
    spare: Spare,
    suspects: HashMap<String, Instant>,
}

/// A process that is up and has nothing, so that an actor whose process died is back at once.
#[derive(Default)]
enum Spare {
    #[default]
    None,
    Coming,
    There(Arc<Host>),
}

/// Actors share a process with others of the same kind.
#[derive(Clone, PartialEq)]
struct Kind {
    env: PythonEnv,
    level: Isolation,
    /// Kept apart from other agents.
    agent: Option<String>,
}

impl Host {
    fn is_of(&self, kind: &Kind) -> bool {
        !self.own.load(Ordering::Relaxed)
            && self.level == kind.level
            && self.env == kind.env
            && self.agent.get() == kind.agent.as_ref()
    }
}

/// Where an actor goes.
enum Choice {
    Here(Arc<Host>),
    New,
    /// To one of those that are being made.
    Wait,
}

impl State {
    fn choose(&mut self, kind: &Kind, own: bool, shared_max: usize) -> Choice {
        self.hosts.retain(|host| host.is_open());
        if own {
            return Choice::New;
        }
        let alike: Vec<_> = self.hosts.iter().filter(|host| host.is_of(kind)).collect();
        let coming = self.coming.iter().filter(|other| *other == kind).count();
        let idlest = alike.iter().map(|host| (host.load(), *host)).min_by_key(|(load, _)| *load);
        match idlest {
            Some((load, host)) if load == 0 || alike.len() + coming >= shared_max => Choice::Here(host.clone()),
            None if coming >= shared_max => Choice::Wait,
            Some(_) | None => Choice::New,
        }
    }

    /// The spare process, if it is one an actor can have.
    fn take_spare(&mut self) -> Option<Arc<Host>> {
        match std::mem::take(&mut self.spare) {
            Spare::There(host) => Some(host).filter(|host| host.is_open()),
            coming @ (Spare::Coming | Spare::None) => {
                self.spare = coming;
                None
            }
        }
    }

    fn is_suspect(&mut self, agent: &str) -> bool {
        self.suspects.retain(|_, since| since.elapsed() < SUSPECT);
        self.suspects.contains_key(agent)
    }
}

/// Gives up the claim on a process that is being made, however that went.
struct Coming<'a> {
    hosts: &'a Hosts,
    kind: Option<Kind>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if let Some(kind) = &self.kind {
            let mut state = self.hosts.state.lock();
            if let Some(at) = state.coming.iter().position(|other| other == kind) {
                state.coming.swap_remove(at);
            }
        }
        self.hosts.changed.notify_waiters();
    }
}

/// Logs of the processes that an actor was in, oldest first, by their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lives {
    /// Number of the oldest that is known.
    pub first: u64,
    pub logs: VecDeque<PathBuf>,
}

impl Lives {
    /// It begins anew, in the process with this log.
    fn begin(&mut self, log: PathBuf) {
        if self.logs.back() == Some(&log) {
            return;
        }
        self.logs.push_back(log);
        if self.logs.len() > caps::PAST_LIVES_MAX {
            self.logs.pop_front();
            self.first += 1;
        }
    }
}

/// What an agent says of the start of its actors.
pub(crate) struct StartTerms {
    /// How long a constructor may take.
    pub within: Duration,
    /// What its process is kept from at least; `None` = what the worker says.
    pub isolation: Option<Isolation>,
}

impl Hosts {
    pub fn new(config: HostsConfig) -> Self {
        crate::output::clean(&config.logs);
        let HostsConfig {
            python,
            folder,
            logs,
            environments,
            environment,
            launcher,
            shared_max,
            models,
            outward,
            news,
        } = config;
        Self {
            environments,
            python,
            folder,
            logs,
            environment,
            launcher,
            shared_max: shared_max.max(1),
            models,
            outward,
            state: Mutex::default(),
            changed: Notify::new(),
            made: AtomicU64::new(0),
            outputs: Mutex::default(),
            printed: watch::Sender::default(),
            past: Mutex::new(Recent::new(caps::PAST_LOGS_MAX)),
            news,
        }
    }

    /// Makes an object of a class in some process, whose constructor is to return within the time of its terms. `archive` is its working folder as
    /// a zip, where it is not unpacked yet.
    pub async fn start(
        self: &Arc<Self>,
        start: v1::HostStart,
        agent: &PythonAgent,
        StartTerms { within, isolation }: StartTerms,
        archive: &[u8],
        progress: &Progress,
        saver: Saver,
    ) -> Result<Arc<PythonActor>, Error> {
        let level = self.launcher.level(isolation);
        let host = self.host(&start, agent, level, archive, progress).await?;
        let actor = ActorId::from(start.actor.as_str());
        self.past.lock().get_or_insert(actor.clone()).begin(host.output.path().to_owned());
        host.start(start, within, self.python.version.as_str()).await?;
        Ok(Arc::new(PythonActor::new(actor, host, saver)))
    }

    /// Agents with turns in a process that died are kept apart for a while: what ends its process again and again ends
    /// nobody else's.
    pub fn suspect(&self, agents: impl IntoIterator<Item = String>) {
        let mut state = self.state.lock();
        for agent in agents {
            if state.suspects.len() < SUSPECTS_MAX || state.suspects.contains_key(&agent) {
                state.suspects.insert(agent, Instant::now());
            }
        }
    }

    /// One more process prints.
    pub(super) fn prints(&self, number: HostNumber, output: &Arc<Output>) {
        let mut outputs = self.outputs.lock();
        outputs.retain(|(_, output)| output.strong_count() > 0);
        outputs.push((number, Arc::downgrade(output)));
    }

    /// What each process prints, as long as somebody reads or writes it.
    pub fn outputs(&self) -> Vec<(HostNumber, Arc<Output>)> {
        self.outputs.lock().iter().filter_map(|(number, output)| Some((*number, output.upgrade()?))).collect()
    }

    /// Logs of an actor that was here, and may be over.
    pub fn logs_of(&self, actor: &str) -> Option<Lives> {
        self.past.lock().get(actor).cloned()
    }

    /// No method runs in any process.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state
            .hosts
            .iter()
            .all(|host| host.with(|live| live.calls.is_empty() && live.given_up.is_empty()).unwrap_or(true))
    }

    /// Ends all processes at once, whatever they are doing.
    pub fn kill_all(&self) {
        let (hosts, spare) = {
            let mut state = self.state.lock();
            let spare = state.take_spare();
            (std::mem::take(&mut state.hosts), spare)
        };
        hosts.into_iter().chain(spare).for_each(|host| host.kill());
    }

    /// A process with a place promised to the actor.
    async fn host(
        self: &Arc<Self>,
        start: &v1::HostStart,
        agent: &PythonAgent,
        level: Isolation,
        dir: &[u8],
        progress: &Progress,
    ) -> Result<Arc<Host>, Error> {
        // Who may run out of memory does so alone.
        let own = agent.own_process || start.memory_bytes > 0;
        // Processes of another environment are another matter; making one may take minutes and holds nobody up.
        let prepared = match agent.env.is_default() {
            true => None,
            false => Some(self.environments.prepare(&agent.env, dir, progress).await?),
        };
        let actor = ActorId::from(start.actor.as_str());
        let promised = |host: &Arc<Host>| host.promise(&actor, &start.agent).is_some();
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let (mut coming, spare) = {
                let mut state = self.state.lock();
                let apart = state.is_suspect(&start.agent).then(|| start.agent.clone());
                let kind = Kind { env: agent.env.clone(), level, agent: apart };
                // Those of a suspect are spread, so that what ends a process ends few beside it.
                let most = if kind.agent.is_some() { self.shared_max.max(SUSPECT_PROCESSES) } else { self.shared_max };
                match state.choose(&kind, own, most) {
                    Choice::Here(host) if promised(&host) => return Ok(host),
                    // It ended at this moment, and is not chosen again.
                    Choice::Here(host) => {
                        host.close();
                        continue;
                    }
                    Choice::Wait => (None, None),
                    Choice::New => {
                        let as_spare = prepared.is_none() && level == self.launcher.level(None);
                        let spare = if as_spare { state.take_spare() } else { None };
                        let shared = (!own).then_some(kind);
                        state.coming.extend(shared.clone());
                        (Some(Coming { hosts: self, kind: shared }), spare)
                    }
                }
            };
            let Some(coming) = coming.take() else {
                changed.await;
                continue;
            };
            let host = match spare {
                Some(host) => host,
                None => self.spawn(self.number(), &agent.env, level, prepared.clone()).await?,
            };
            host.own.store(own, Ordering::Relaxed);
            if let Some(agent) = coming.kind.as_ref().and_then(|kind| kind.agent.clone()) {
                let _ = host.agent.set(agent);
            }
            if start.memory_bytes > 0 {
                host.memory.bound(host.pid, start.memory_bytes);
            }
            self.make_spare();
            if promised(&host) {
                self.state.lock().hosts.push(host.clone());
                return Ok(host);
            }
        }
    }

    fn number(&self) -> HostNumber {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a spare process, unless there is one.
    fn make_spare(self: &Arc<Self>) {
        {
            let mut state = self.state.lock();
            match &state.spare {
                Spare::Coming => return,
                Spare::There(host) if host.is_open() => return,
                Spare::There(_) | Spare::None => state.spare = Spare::Coming,
            }
        }
        let hosts = self.clone();
        tokio::spawn(async move {
            let made = hosts.spawn(hosts.number(), &PythonEnv::default(), hosts.launcher.level(None), None).await;
            let made = made.inspect_err(|error| tracing::warn!(%error, "no spare Python process"));
            hosts.state.lock().spare = made.map_or(Spare::None, Spare::There);
        });
    }
}
