//! The control plane process: one owner of the truth, a journal in front of every acknowledgement, one port.
//!
//! ```text
//! gRPC, HTTP ─→ services ─→ owner (cluster_core::Head) ─→ journal (SQLite, group commit) ─→ replies, links, feed
//!                  └──────→ relay (calls; nothing durable) ⇄ links
//! ```

mod access;
mod artifacts;
mod audit;
mod callers;
mod client_service;
mod clock;
mod cluster;
mod drivers;
mod elsewhere;
mod feed;
mod handing;
mod health;
mod hosts;
mod journal;
mod kept;
mod keys;
mod link_service;
mod metrics;
mod owner;
mod pace;
mod probe;
mod queue;
mod relay;
mod room;
mod secrets;
mod server;
mod vital;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use audit::{Broken as BrokenAudit, verify as verify_audit};
use covey_artifacts::Artifacts;
use covey_cluster_core::{
    Head, HeadConfig,
    head::{Member, Owner, Reminder, Stored, StoredActor},
};
use covey_domain::{AgentKind, AgentName, AgentSpec, Epoch, Error, ErrorKind, agent::Pass, caps};
pub use covey_gateway::IpNet;
use covey_gateway::{Settings, Signer};
use covey_node::{
    Credentials, Identity,
    background::Background,
    tls::{Authority, MeshEntry, PinnedAddress, Port},
};
use covey_store::{Forgotten, Page, SessionActor, Snapshot, Store, StoredLinks, StoredMember, StoredTask};
pub use covey_store::{Retention, upkeep};
use hosts::Hosts;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::owner::Input;

/// HTTP/2 flow control, bytes: of one stream, of a connection.
const WINDOWS: (u32, u32) = (4 << 20, 16 << 20);

/// Pages of tasks that are read ahead at a start.
const PAGES_AHEAD: usize = 4;
/// How often it is looked for what is old, or too much.
const PURGE_EVERY: Duration = Duration::from_secs(60);

/// An agent that a head starts with.
#[derive(Clone, Debug)]
pub struct Declared {
    /// What it is.
    pub spec: AgentSpec,
    /// The code it needs on a worker.
    pub code: Option<Vec<u8>>,
    /// What opens it, of one elsewhere.
    pub pass: Pass,
}

/// How a head is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Folder of the store.
    pub data: PathBuf,
    /// File of the credentials.
    pub credentials: PathBuf,
    /// The name that `listen` was looked up by: requests and certificates may name it.
    pub name: Option<String>,
    /// Host name or address that others are told instead of the one it listens on.
    pub advertise: Option<String>,
    /// Speak nothing but TLS, on loopback too.
    pub tls: bool,
    /// Beyond loopback, take connections without TLS too.
    pub allow_plaintext: bool,
    /// Takes the connections of nodes that cannot dial each other.
    pub mesh: Option<MeshEntry>,
    /// Where else clients reach it, `https://agents.example`, by a proxy or another name: cards are signed for these.
    pub origins: Vec<String>,
    /// PEM files of certificates and key for clients that trust public authorities.
    pub site: Option<(PathBuf, PathBuf)>,
    /// Agents registered at start.
    pub agents: Vec<Declared>,
    /// The agent at the root paths; the first registered by default.
    pub default_agent: Option<AgentName>,
    /// Times of the cluster.
    pub times: HeadConfig,
    /// Tasks that have ended, and what jobs printed, are kept this long, and while they are no more than this.
    pub keep: Retention,
    /// Bytes that the tasks of one caller's key may take in the store, with the files that they name.
    pub caller_bytes: u64,
    /// Networks that webhooks may be in although they are not public.
    pub push_allow: Vec<IpNet>,
    /// Where large files are: a folder, or `s3://bucket/prefix`. A folder beside the store where nothing is said.
    pub artifacts: Option<String>,
    /// A link to a large file opens it for so long.
    pub links_for: Duration,
}

impl Config {
    /// Defaults below the home folder, on `listen`.
    pub fn new(listen: SocketAddr) -> Self {
        let home = covey_node::home::root();
        Self {
            listen,
            name: None,
            data: home.join("head"),
            credentials: home.join("credentials.json"),
            advertise: None,
            tls: false,
            allow_plaintext: false,
            mesh: None,
            origins: Vec::new(),
            site: None,
            agents: Vec::new(),
            default_agent: None,
            times: HeadConfig::default(),
            keep: Retention { age: Duration::from_secs(30 * 24 * 3600), bytes: None },
            caller_bytes: caps::CALLER_STORE_BYTES,
            push_allow: Vec::new(),
            artifacts: None,
            links_for: Duration::from_secs(3600),
        }
    }
}

/// A running head.
#[derive(Debug)]
pub struct HeadNode {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its keys.
    pub credentials: Credentials,
    /// `false`: it listens on all addresses of a machine that has no route to a network, so that others are told an address
    /// of loopback.
    pub is_reachable: bool,
    serving: tokio::task::JoinHandle<()>,
    /// What answers with credentials, and without.
    #[cfg(test)]
    paths: (std::collections::BTreeSet<String>, std::collections::BTreeSet<String>),
}

/// Agents by name.
pub(crate) type Agents = Arc<RwLock<BTreeMap<AgentName, Arc<AgentSpec>>>>;

/// What the services share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub owner: owner::Handle,
    /// As far as they are on disk: who looks for one need not ask the owner.
    pub agents: Agents,
    pub keys: Arc<keys::Keys>,
    pub audit: audit::Audit,
    pub callers: Arc<callers::Callers>,
    pub passes: Arc<elsewhere::Passes>,
    pub files: Arc<artifacts::Files>,
    pub relay: relay::Relay,
    pub feed: feed::Feed,
    pub store: Arc<Store>,
    /// Bytes that the tasks of one caller may take in it.
    pub caller_bytes: u64,
    /// How many tasks have ended and are on disk.
    pub ended: Arc<AtomicU64>,
    pub pulse: vital::Pulse,
    pub term: u64,
    pub times: HeadConfig,
    pub default_agent: Option<AgentName>,
    pub authority: Arc<Authority>,
    pub mesh: Option<MeshEntry>,
    pub started: Instant,
    pub shutdown: CancellationToken,
}

/// Why a head does not start on its store, and what can be done about it.
fn refused(data: &Path, done: &str, error: &covey_store::Error) -> Error {
    let refused = Error::internal(format!("failed to {done} the store in `{}`: {error}", data.display()));
    match error {
        covey_store::Error::Corrupt { .. }
        | covey_store::Error::Damaged { .. }
        | covey_store::Error::Missing { .. }
        | covey_store::Error::Orphan { .. }
        | covey_store::Error::Foreign { .. } => refused.hint(match upkeep::last_backup(&data.join("covey.db")) {
            Some(backup) => format!("`covey restore {}` brings back its newest backup", backup.folder().display()),
            None => "`covey doctor` tells more; `covey restore` brings back a backup".to_owned(),
        }),
        _ => refused,
    }
}

impl HeadNode {
    /// Binds, reads the store, and serves until `shutdown`.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Self, Error> {
        let listener = covey_node::listen::bind(config.listen).await.map_err(|error| match error.kind {
            ErrorKind::AlreadyExists => {
                error.hint("another head may run there: `covey status` tells, `--port` takes another")
            }
            _ => error,
        })?;
        let io = |what: &str, e: &dyn std::fmt::Display| Error::internal(format!("failed to {what}: {e}"));
        let address = listener.local_addr().map_err(|e| io("read the bound address", &e))?;
        covey_node::home::private_dir(&config.data)
            .map_err(|e| io(&format!("make `{}`", config.data.display()), &e))?;
        // First of all: another head of this folder must find everything as it is.
        let place = config.artifacts.unwrap_or_else(|| config.data.join("artifacts").display().to_string());
        let place = Artifacts::open(&place).map_err(|e| Error::invalid(e.to_string()))?;
        let store = Store::open(&config.data.join("covey.db")).await.map_err(|e| match e {
            covey_store::Error::InUse => {
                Error::new(ErrorKind::AlreadyExists, format!("{e}: `{}`", config.data.display()))
                    .hint("`--data` or COVEY_HOME takes another folder")
            }
            e => refused(&config.data, "open", &e),
        })?;
        let authority = Authority::load_or_create(&config.data)
            .map_err(|e| io(&format!("read or write the authority in `{}`", config.data.display()), &e))?;
        let authority = Arc::new(authority);
        let path = config.data.join("signing.key");
        let key =
            Identity::load_or_create(&path).map_err(|e| io(&format!("read or write `{}`", path.display()), &e))?;
        let signer = Signer::new(key.public_key()?, move |bytes| key.sign(bytes));
        // Whoever is given a token speaks TLS, except on loopback and where the network is said to be private.
        let open = !config.tls && (address.ip().is_loopback() || config.allow_plaintext);
        let reachable =
            config.advertise.clone().or_else(|| covey_node::home::reachable(address.ip()).map(|ip| ip.to_string()));
        let is_reachable = reachable.is_some();
        let host = reachable.unwrap_or_else(|| Ipv4Addr::LOCALHOST.to_string());
        let told = PinnedAddress {
            address: covey_node::home::with_port(&host, address.port()),
            pin: (!open).then(|| authority.pin()),
        };
        let root = format!("{}://{}", if open { "http" } else { "https" }, told.address);
        let mut origins = config.origins.clone();
        if address.ip().is_loopback() {
            let scheme = if open { "http" } else { "https" };
            origins.extend(["127.0.0.1", "localhost"].map(|name| format!("{scheme}://{name}:{}", address.port())));
        }
        let hosts = Hosts::new(&address, [host.as_str()].into_iter().chain(config.name.as_deref()), &origins);
        let background = Background::start().map_err(|e| io("start the threads for large requests", &e))?;
        let settings = Settings {
            signer,
            push_allow: config.push_allow,
            root,
            origins,
            links_for: config.links_for,
            background: background.handle(),
        };
        let site = config.site.as_ref().map(|(chain, key)| covey_node::tls::site(chain, key)).transpose()?;
        let mut names = vec![host, "localhost".into(), "127.0.0.1".into(), address.ip().to_string()];
        names.extend(config.name);
        let port = Port {
            tls: Some(Arc::new(authority.head_tls(names, site)?)),
            plaintext: open,
            mesh: config.mesh.clone(),
            windows: WINDOWS,
        };
        let credentials = Credentials::load_or_create(&config.credentials, &told)
            .map_err(|e| io(&format!("read or write `{}`", config.credentials.display()), &e))?;
        let store = Arc::new(store);
        let (to, mut pages) = tokio::sync::mpsc::channel(PAGES_AHEAD);
        // What one page says is taken while the next one is read.
        let reader = store.clone();
        let reading = tokio::spawn(async move { reader.begin_paged(to).await });
        let snapshot = match pages.recv().await {
            Some(Page::Snapshot(snapshot)) => *snapshot,
            _ => Snapshot::default(),
        };

        let clock = clock::Clock::from(snapshot.clock_ms);
        let now = clock.now_ms();
        let mut head = Head::new(config.times, rand::random::<u64>() >> 16);
        head.set_term(snapshot.term);
        head.set_wall(now, now_ms());
        let feed = feed::Feed::new();
        for spec in snapshot.agents {
            head.restore_agent(spec);
        }
        for (node, incarnation, number) in snapshot.cursors {
            head.restore_cursor(node, incarnation, number);
        }
        for (node, StoredMember { incarnation, port }) in &snapshot.members {
            head.restore_member(node.clone(), Member { incarnation: *incarnation, port: port.clone() }, now);
        }
        for (actor, node, epoch) in snapshot.activations {
            head.restore_activation(actor, node, Epoch(epoch), now);
        }
        for (id, actor, saved) in snapshot.actors {
            let stored = StoredActor { name: actor.name, spec: actor.spec, init: actor.init.map(|init| init.0) };
            head.restore_actor(id, stored, Owner::Detached, saved, now);
        }
        for (id, proof) in snapshot.sessions.sessions {
            head.restore_session(id, proof, now);
        }
        for (id, owned, saved) in snapshot.sessions.actors {
            let SessionActor { session, actor } = owned;
            let stored = StoredActor { name: actor.name, spec: actor.spec, init: actor.init.map(|init| init.0) };
            head.restore_owned(id, session, stored, saved, now);
        }
        let StoredLinks { links, gangs, dead_letters } = snapshot.links;
        for (name, gang) in gangs {
            head.restore_gang(name, gang);
        }
        for (one, other) in links {
            head.restore_link(one, other);
        }
        for letter in dead_letters {
            head.restore_dead_letter(letter);
        }
        for (topic, actor, method) in snapshot.listeners {
            head.restore_listener(topic, actor, method);
        }
        for (actor, name, r) in snapshot.reminders {
            let reminder = Reminder { due_ms: r.due_ms, every_ms: r.every_ms, method: r.method, args: r.args.0 };
            head.restore_reminder((actor, name, reminder));
        }
        let unfinished = snapshot.unfinished;
        head.restore_counts(snapshot.ended, unfinished);
        feed.reserve(unfinished);
        while let Some(page) = pages.recv().await {
            let Page::Tasks(tasks) = page else { continue };
            for StoredTask { record, events, broken } in tasks {
                feed.restore(&record.id, events.len() as u64);
                head.restore(Stored { record, events: events.into_iter().map(|e| e.event).collect(), broken }, now);
            }
        }
        let read = reading.await.map_err(|e| Error::internal(format!("the reading of the store ended: {e}")))?;
        read.map_err(|e| refused(&config.data, "read", &e))?;
        let mut first_agent = None;
        let callers = callers::Callers::load(config.data.join("callers.json"))?;
        let keys = keys::Keys::load(credentials.clone(), config.credentials.clone(), &config.data)?;
        let keys = Arc::new(keys);
        let passes = elsewhere::Passes::load(config.data.join("passes.json"))?;
        let mut elsewhere = Vec::new();
        for Declared { spec, code, pass } in config.agents {
            if let (Some(digest), Some(code)) = (spec.code(), &code) {
                store.put_blob(digest.as_str(), code).await.map_err(|e| io("keep an agent's code", &e))?;
            }
            if matches!(spec.kind, AgentKind::A2a(_)) {
                passes.keep(&spec, pass.clone())?;
                elsewhere.push((spec.clone(), pass));
            }
            first_agent.get_or_insert_with(|| spec.name.clone());
            head.register(spec, now)?;
        }

        let passes = Arc::new(passes);
        #[expect(
            clippy::disallowed_methods,
            reason = "without payloads: one for each open call to an actor that sleeps, and calls have a bound; the relay puts them in under its lock"
        )]
        let (wake, mut sleepers) = tokio::sync::mpsc::unbounded_channel();
        let relay = relay::Relay::new(wake, Duration::from_millis(config.times.lease_ms));
        for (topic, members) in head.topics() {
            relay.topic(topic, members);
        }
        let known = head.agents().map(|spec| (spec.name.clone(), spec.clone())).collect();
        let agents: Agents = Arc::new(RwLock::new(known));
        let (ended, pulse) = (Arc::<AtomicU64>::default(), vital::Pulse::default());
        let (to, of) = (store.clone(), (relay.clone(), feed.clone(), agents.clone(), passes.clone()));
        let journal = journal::Journal::start(to, of.0, of.1, of.2, of.3, ended.clone(), keys.clone())
            .map_err(|e| io("start the journal's thread", &e))?;
        let files = Arc::new(artifacts::Files::new(place, store.clone()));
        vital::spawn("retention", shutdown.clone(), purge(store.clone(), files.clone(), config.keep, shutdown.clone()));
        let (watched, stops) = (store.clone(), shutdown.clone());
        vital::spawn("the store", shutdown.clone(), async move {
            tokio::select! {
                why = watched.failed() => vital::stop_process(&why),
                () = stops.cancelled() => {}
            }
        });
        pulse.watch(shutdown.clone()).map_err(|e| io("start the watchdog", &e))?;
        let owner = owner::spawn(head, journal, clock, pulse.clone(), shutdown.clone());
        let (waker, stops) = (owner.clone(), shutdown.clone());
        vital::spawn("the relay", shutdown.clone(), async move {
            while let Some(Some(news)) = stops.run_until_cancelled(sleepers.recv()).await {
                waker.tell(news).await;
            }
        });
        let (readers, stops) = (feed.clone(), shutdown.clone());
        tokio::spawn(async move {
            stops.cancelled().await;
            readers.stop();
        });
        for (spec, pass) in elsewhere {
            tokio::spawn(elsewhere::look_for(owner.clone(), keys.clone(), spec, pass));
        }
        let shared = Shared {
            owner,
            keys,
            audit: audit::Audit::start(&config.data.join("audit.log"))?,
            callers: Arc::new(callers),
            passes,
            files,
            agents,
            relay,
            feed,
            store,
            caller_bytes: config.caller_bytes,
            ended,
            pulse,
            term: snapshot.term,
            times: config.times,
            default_agent: config.default_agent.or(first_agent),
            authority,
            mesh: config.mesh,
            started: Instant::now(),
            shutdown: shutdown.clone(),
        };
        for (node, member) in snapshot.members {
            if !member.port.is_empty() {
                tokio::spawn(probe::watch(shared.clone(), node, member.incarnation, member.port));
            }
        }
        tracing::info!(%address, term = snapshot.term, unfinished, "head is ready");
        let turns = shared.owner.clone();
        let living = covey_node::systemd::live(move || {
            let owner = turns.clone();
            async move { owner.ask(|tx| Input::ActiveTask("".into(), tx)).await.is_ok() }
        });
        // A head that is told to end does not turn any more, and that is no fault.
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(living));
        tokio::spawn(callers::watch(shared.clone()));
        let routes = server::routes(shared.clone(), &settings);
        #[cfg(test)]
        let paths = (access::tests::paths(&routes.0), access::tests::paths(&routes.1));
        let serving = tokio::spawn(async move {
            server::serve(listener, port, shared, hosts, routes, shutdown).await;
            drop(background);
        });
        Ok(Self {
            is_reachable,
            address,
            credentials,
            serving,
            #[cfg(test)]
            paths,
        })
    }

    /// How it is reached from this machine.
    pub fn near(&self) -> PinnedAddress {
        let host = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
            ip => ip.to_string(),
        };
        let address = covey_node::home::with_port(&host, self.address.port());
        PinnedAddress { address, pin: self.credentials.pin }
    }

    /// Waits until it has stopped.
    pub async fn stopped(self) {
        let _ = self.serving.await;
    }
}

/// Forgets what is old.
async fn purge(store: Arc<Store>, files: Arc<artifacts::Files>, keep: Retention, shutdown: CancellationToken) {
    let mut every = tokio::time::interval(PURGE_EVERY);
    while shutdown.run_until_cancelled(every.tick()).await.is_some() {
        match store.forget(keep).await {
            Ok(gone) if gone.tasks + gone.cursors + gone.blobs == 0 => {}
            Ok(Forgotten { tasks, cursors, blobs, held_max }) => {
                let held_ms = held_max.as_millis() as u64;
                tracing::info!(tasks, cursors, blobs, held_ms, "what is old was forgotten");
            }
            Err(error) => tracing::warn!(%error, "what is old could not be forgotten"),
        }
        loop {
            match files.purge().await {
                Ok(0) => break,
                Ok(count) => tracing::info!(count, "files that no task names were forgotten"),
                Err(error) => {
                    tracing::warn!(%error, "files that no task names could not be forgotten");
                    break;
                }
            }
        }
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A fresh id: time and 128 random bits, so that ids sort roughly by age, never meet and cannot be guessed.
pub(crate) fn fresh_id(prefix: &str) -> String {
    format!("{prefix}-{:x}{:032x}", now_ms(), rand::random::<u128>())
}
