//! Group commit: whatever queued up while the last fsync ran becomes durable with the next one, then its effects are carried
//! out in order. A failed commit ends the process; a fsync is never tried twice.
//!
//! Two things do not wait for the fsync, only for the write before it, which a head that dies does not take with it: that a
//! worker begins with a task, and the answer to somebody who tells nobody of the task before its log does. If the machine
//! dies in between, a task nobody was told of may have begun.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use covey_cluster_core::head::{Command, Reminder, Route};
use covey_cluster_core::topics::Members;
use covey_domain::{
    ActorId, AgentSpec, Digest, NodeId, SessionId, TaskRecord, agent::is_job, caps, error::with_causes, task::Said,
};
use covey_proto::{
    to_json,
    v1::{self, head_frame::Body},
};
use covey_store::{Batch, Capacity, Store, Written};
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};

use crate::{Agents, elsewhere::Passes, feed::Feed, keys::Keys, relay::Relay, vital};

/// What waits for one fsync.
const GROUP_MAX: usize = 4_096;
/// How long what nobody waits for stays without an fsync.
const SYNC_AFTER: Duration = Duration::from_millis(2);
/// How long the owner waits for tables that are behind, before it refuses.
const PATIENCE: Duration = Duration::from_secs(1);

/// What inputs of the owner lead to.
#[derive(Default)]
pub(crate) struct Item {
    pub batch: Batch,
    /// What must outlive the process alone: it is written before the effects and nobody waits for its fsync.
    pub loose: Batch,
    pub effects: Vec<Effect>,
    /// Somebody waits for it to be durable.
    pub hurries: bool,
    /// How many tasks have ended by then.
    pub ended: u64,
}

/// Carried out once everything before it is durable, or written where that is enough.
pub(crate) enum Effect {
    Agent(Arc<AgentSpec>),
    Send(NodeId, Command),
    Route(ActorId, Route),
    Drop(NodeId, u64),
    Topic(String, Members),
    SessionOver(SessionId),
    Remind(ActorId, String, Arc<Reminder>),
    Reply(Box<dyn FnOnce() + Send>),
    /// The same for somebody who waits for the log.
    Answer(Box<dyn FnOnce() + Send>),
}

/// The owner's side: writes.
pub(crate) struct Journal {
    store: Arc<Store>,
    relay: Relay,
    feed: Feed,
    keys: Arc<Keys>,
    /// Written, and nobody waits for it yet.
    held: Vec<Waiting>,
    due: Option<Instant>,
    syncs: mpsc::Sender<Waiting>,
}

/// What an fsync makes durable, and what may be done then.
struct Waiting {
    written: Option<Written>,
    effects: Vec<Effect>,
    ended: u64,
}

impl Journal {
    /// Starts its other side, which waits for the disk, on a thread of its own.
    pub fn start(
        store: Arc<Store>,
        relay: Relay,
        feed: Feed,
        agents: Agents,
        passes: Arc<Passes>,
        ended: Arc<AtomicU64>,
        keys: Arc<Keys>,
    ) -> std::io::Result<Self> {
        let (syncs, waiting) = mpsc::channel(caps::OWNER_QUEUE_DEPTH_MAX);
        let syncer = Syncer {
            store: store.clone(),
            relay: relay.clone(),
            feed: feed.clone(),
            agents,
            passes,
            ended,
            keys: keys.clone(),
        };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("covey-journal".into())
            .spawn(move || vital::run_thread("the journal", || runtime.block_on(syncer.run(waiting))))?;
        Ok(Self { store, relay, feed, keys, held: Vec::new(), due: None, syncs })
    }

    /// When [`Self::flush`] should be called, if at all.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the store takes more. Waits a little for tables that are behind.
    pub async fn capacity(&mut self) -> Capacity {
        let now = self.store.capacity();
        if now != Capacity::Behind {
            return now;
        }
        let end = Instant::now() + PATIENCE;
        while self.store.capacity() == Capacity::Behind && Instant::now() < end {
            self.store.caught_up(end - Instant::now()).await;
        }
        self.store.capacity()
    }

    /// Writes what an input or some led to, and carries out what needs no more; the rest follows the fsync. `false`: the
    /// other side is gone.
    pub async fn put(&mut self, Item { batch, loose, effects, hurries, ended }: Item) -> bool {
        let mut written = None;
        if !batch.is_empty() {
            self.feed.expect(&batch.made);
            written = Some(or_stop(self.store.write(batch)));
        }
        let loose = match loose.is_empty() {
            true => None,
            false => Some(or_stop(self.store.write(loose))),
        };
        let (mut late, mut waits) = (Vec::new(), false);
        for effect in effects {
            match effect {
                Effect::Answer(answer) => answer(),
                Effect::Send(node, Command::Run { record, actor, timeout_ms, said }) if !waits => {
                    self.relay.send(&node, run(&self.keys, &record, &actor, timeout_ms, &said));
                }
                effect => {
                    // A worker hears of an actor before it hears what the actor shall do.
                    waits |= matches!(&effect, Effect::Send(_, Command::Start { .. } | Command::Stop { .. }));
                    late.push(effect);
                }
            }
        }
        if written.is_some() || !late.is_empty() {
            self.held.push(Waiting { written, effects: late, ended });
            self.due.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
        }
        if hurries && !self.flush().await {
            return false;
        }
        if loose.is_some() {
            self.held.push(Waiting { written: loose, effects: Vec::new(), ended });
            self.due.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
        }
        true
    }

    /// Has everything synced that was written.
    pub async fn flush(&mut self) -> bool {
        self.due = None;
        for waiting in self.held.drain(..) {
            if self.syncs.send(waiting).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// A commit that failed must not be followed by another.
fn or_stop<T>(done: Result<T, covey_store::Error>) -> T {
    done.unwrap_or_else(|error| {
        let error = with_causes(error.to_string(), &error);
        tracing::error!(%error, "failed to commit; stopping, so that nothing is acknowledged that is not on disk");
        std::process::exit(70)
    })
}

/// The side that waits for the disk.
struct Syncer {
    store: Arc<Store>,
    relay: Relay,
    feed: Feed,
    agents: Agents,
    passes: Arc<Passes>,
    /// How many tasks have ended and are on disk.
    ended: Arc<AtomicU64>,
    keys: Arc<Keys>,
}

impl Syncer {
    async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut group = Vec::new();
        while waiting.recv_many(&mut group, GROUP_MAX).await > 0 {
            let (mut written, mut effects, mut ended) = (Vec::new(), Vec::new(), 0);
            for waiting in group.drain(..) {
                ended = waiting.ended;
                written.extend(waiting.written);
                effects.extend(waiting.effects);
            }
            if !written.is_empty() {
                self.feed.publish(&or_stop(self.store.sync(written)));
            }
            self.ended.store(ended, Ordering::Release);
            self.carry_out(effects).await;
        }
    }

    async fn carry_out(&self, effects: Vec<Effect>) {
        // Of how far a node's entries are durable it needs the last word only.
        let mut durable: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Send(node, Command::Durable { conn, number }) => drop(durable.insert(node, (conn, number))),
                Effect::Agent(spec) => drop(self.agents.write().insert(spec.name.clone(), spec)),
                Effect::Send(node, command) => self.send(&node, command).await,
                Effect::Route(actor, route) => self.relay.route(&actor, route),
                Effect::Topic(topic, members) => self.relay.topic(topic, members),
                Effect::SessionOver(session) => self.relay.session_over(session.as_str()),
                Effect::Remind(actor, name, reminder) => self.relay.remind(actor, name, reminder),
                Effect::Drop(node, conn) => {
                    self.relay.fence(&node, conn, "its lease has passed, and its work was given to others");
                }
                Effect::Reply(reply) | Effect::Answer(reply) => reply(),
            }
        }
        for (node, (conn, number)) in durable {
            self.relay.durable(&node, conn, number);
        }
    }
}

fn run(keys: &Keys, record: &TaskRecord, actor: &ActorId, timeout_ms: Option<u64>, said: &[Said]) -> Body {
    let is_job = is_job(record.agent.as_str());
    Body::Run(v1::RunTask {
        task: record.id.to_string(),
        attempt: record.attempt,
        actor: actor.to_string(),
        skill: record.skill.clone(),
        input: to_json(&record.input),
        context: record.context.to_string(),
        timeout_ms: timeout_ms.unwrap_or(0),
        model: record.model.as_ref().map(ToString::to_string).unwrap_or_default(),
        said: said.iter().map(to_json).collect(),
        message_id: record.message_id.clone().unwrap_or_default(),
        caller: record.caller.to_string(),
        token: if is_job { keys.for_job(&record.id) } else { String::new() },
        secrets: if is_job { keys.secrets.of_job(record) } else { Default::default() },
    })
}

async fn blob(store: &Store, spec: &AgentSpec, digest: Option<&Digest>) -> Vec<u8> {
    let Some(digest) = digest else { return Vec::new() };
    match store.blob(digest.as_str()).await {
        Ok(Some(body)) => return body,
        Ok(None) => tracing::warn!(agent = %spec.name, %digest, "a blob of an agent is not in the store"),
        Err(error) => tracing::error!(%error, "failed to read a blob"),
    }
    Vec::new()
}

impl Syncer {
    async fn send(&self, node: &NodeId, command: Command) {
        let Self { store, relay, passes, keys, .. } = self;
        let body = match command {
            Command::Start { actor, epoch, spec, init, owner, with_code, with_dir, with_state } => {
                let mut saved = None;
                if with_state {
                    match store.state(&actor).await {
                        Ok(found) => saved = found.and_then(|bytes| v1::SavedState::decode(&*bytes).ok()),
                        Err(error) => tracing::error!(%error, %actor, "failed to read the state of an actor"),
                    }
                }
                let v1::SavedState { codec, body, buffers, answered, stateless } =
                    saved.unwrap_or_else(|| v1::SavedState { stateless: true, ..Default::default() });
                let state = (!stateless).then_some(v1::Payload { codec, body, buffers });
                let code = blob(store, &spec, with_code.then(|| spec.code()).flatten()).await;
                let pass = passes.of(&spec);
                let dir = blob(store, &spec, with_dir.then(|| spec.dir()).flatten()).await;
                Body::Start(v1::StartActor {
                    actor: actor.to_string(),
                    epoch: epoch.0,
                    spec: to_json(&*spec),
                    // Written by this head from a decoded payload, so it decodes.
                    init: init.and_then(|bytes| prost::Message::decode(&*bytes).ok()),
                    code: code.into(),
                    dir: dir.into(),
                    owner,
                    state,
                    answered,
                    secrets: keys.secrets.of_agent(&spec, pass.as_ref()),
                    pass: pass.map(|pass| to_json(&pass)).unwrap_or_default(),
                })
            }
            Command::Stop { actor, epoch, drain, within_ms } => Body::Stop(v1::StopActor {
                actor: actor.to_string(),
                epoch: epoch.0,
                drain,
                within_ms: within_ms.map_or(0, |ms| ms.max(1)),
            }),
            Command::Run { record, actor, timeout_ms, said } => run(keys, &record, &actor, timeout_ms, &said),
            Command::Say { task, attempt, said } => {
                Body::Say(v1::SayTask { task: task.to_string(), attempt, said: to_json(&said) })
            }
            Command::CancelTask { task, attempt, reason } => {
                Body::Cancel(v1::CancelTask { task: task.to_string(), attempt, reason })
            }
            Command::Durable { conn, number } => return relay.durable(node, conn, number),
        };
        relay.send(node, body);
    }
}
