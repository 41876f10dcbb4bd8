//! The control plane process: one owner of the truth, a journal in front of every acknowledgement, one port.
//!
//! ```text
//! gRPC, HTTP ─→ services ─→ owner (cluster_core::Head) ─→ journal (SQLite, group commit) ─→ replies, links, feed
//!                  └──────→ relay (calls; nothing durable) ⇄ links
//! ```

mod client_service;
mod cluster;
mod feed;
mod journal;
mod link_service;
mod metrics;
mod owner;
mod relay;
mod server;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use covey_cluster_core::{
    Head, HeadConfig,
    head::{Reminder, Stored, StoredActor},
};
use covey_domain::{AgentName, AgentSpec, Error, ErrorKind};
use covey_node::Credentials;
use covey_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How a head is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Folder of the store.
    pub data: PathBuf,
    /// File of the credentials.
    pub credentials: PathBuf,
    /// Listen beyond loopback although there is no TLS yet.
    pub allow_plaintext: bool,
    /// Agents registered at start.
    pub agents: Vec<(AgentSpec, Option<Vec<u8>>)>,
    /// The agent at the root paths; the first registered by default.
    pub default_agent: Option<AgentName>,
    /// Times of the cluster.
    pub times: HeadConfig,
}

impl Config {
    /// Defaults below the home folder, on `listen`.
    pub fn new(listen: SocketAddr) -> Self {
        let home = covey_node::home::root();
        Self {
            listen,
            data: home.join("head"),
            credentials: home.join("credentials.json"),
            allow_plaintext: false,
            agents: Vec::new(),
            default_agent: None,
            times: HeadConfig::default(),
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
    serving: tokio::task::JoinHandle<()>,
}

/// What the services share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub owner: owner::Handle,
    pub relay: relay::Relay,
    pub feed: feed::Feed,
    pub store: Arc<Store>,
    pub term: u64,
    pub times: HeadConfig,
    pub default_agent: Option<AgentName>,
    pub started: Instant,
    pub shutdown: CancellationToken,
}

impl HeadNode {
    /// Binds, reads the store, and serves until `shutdown`.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Self, Error> {
        if !config.listen.ip().is_loopback() && !config.allow_plaintext {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("`{}` is not a loopback address and TLS is not set up", config.listen),
            )
            .hint("listen on 127.0.0.1, or say --allow-plaintext when the network is private"));
        }
        let listener = TcpListener::bind(config.listen).await.map_err(|e| {
            Error::new(ErrorKind::AlreadyExists, format!("failed to listen on `{}`: {e}", config.listen))
                .hint("another head may run there: `covey status` tells, `--port` takes another")
        })?;
        let io = |what: &str, e: &dyn std::fmt::Display| Error::internal(format!("failed to {what}: {e}"));
        let address = listener.local_addr().map_err(|e| io("read the bound address", &e))?;
        covey_node::home::private_dir(&config.data)
            .map_err(|e| io(&format!("make `{}`", config.data.display()), &e))?;
        let credentials = Credentials::load_or_create(&config.credentials, &address.to_string())
            .map_err(|e| io(&format!("read or write `{}`", config.credentials.display()), &e))?;
        let store = Store::open(&config.data.join("covey.db"))
            .await
            .map_err(|e| io(&format!("open the store in `{}`", config.data.display()), &e))?;
        let snapshot = store.begin().await.map_err(|e| io("read the store", &e))?;

        let now = now_ms();
        let mut head = Head::new(config.times, now);
        head.set_term(snapshot.term);
        let feed = feed::Feed::new();
        for spec in snapshot.agents {
            head.restore_agent(spec);
        }
        for (node, incarnation, number) in snapshot.cursors {
            head.restore_cursor(node, incarnation, number);
        }
        for (id, actor, saved) in snapshot.actors {
            let stored = StoredActor { name: actor.name, spec: actor.spec, init: actor.init };
            head.restore_actor(id, stored, saved, now);
        }
        for (actor, name, r) in snapshot.reminders {
            let reminder = Reminder { due_ms: r.due_ms, every_ms: r.every_ms, method: r.method, args: r.args };
            head.restore_reminder((actor, name, reminder));
        }
        let mut unfinished = 0;
        for (record, events) in snapshot.tasks {
            if !record.state.is_terminal() {
                unfinished += 1;
                feed.restore(&record.id, events.len() as u64);
            }
            head.restore(Stored { record, events: events.into_iter().map(|e| e.event).collect() }, now);
        }
        let mut first_agent = None;
        for (spec, code) in config.agents {
            if let (Some(digest), Some(code)) = (spec.code(), &code) {
                store.put_blob(digest.as_str(), code).await.map_err(|e| io("keep an agent's code", &e))?;
            }
            first_agent.get_or_insert_with(|| spec.name.clone());
            head.register(spec, now)?;
        }

        let store = Arc::new(store);
        let (wake, mut sleepers) = tokio::sync::mpsc::unbounded_channel();
        let relay = relay::Relay::new(wake);
        let journal = journal::spawn(store.clone(), relay.clone(), feed.clone());
        let owner = owner::spawn(head, journal, shutdown.clone());
        let waker = owner.clone();
        tokio::spawn(async move {
            while let Some(news) = sleepers.recv().await {
                waker.tell(news).await;
            }
        });
        let shared = Shared {
            owner,
            relay,
            feed,
            store,
            term: snapshot.term,
            times: config.times,
            default_agent: config.default_agent.or(first_agent),
            started: Instant::now(),
            shutdown: shutdown.clone(),
        };
        tracing::info!(%address, term = snapshot.term, unfinished, "head is ready");
        let serving = tokio::spawn(server::serve(listener, shared, credentials.clone(), shutdown));
        Ok(Self { address, credentials, serving })
    }

    /// Waits until it has stopped.
    pub async fn stopped(self) {
        let _ = self.serving.await;
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A fresh id: time and random bits, so that ids sort roughly by age and never meet.
pub(crate) fn fresh_id(prefix: &str) -> String {
    format!("{prefix}-{:x}{:08x}", now_ms(), rand::random::<u32>())
}
