//! Group commit: whatever queued up while the last commit ran becomes durable in one transaction, then its effects
//! are carried out in order. A failed commit ends the process; a fsync is never tried twice.

use std::sync::Arc;

use covey_cluster_core::head::{Command, Reminder, Route};
use covey_cluster_core::topics::Members;
use covey_domain::{ActorId, AgentSpec, Digest, NodeId, caps};
use covey_proto::{
    to_json,
    v1::{self, head_frame::Body},
};
use covey_store::{Batch, Store};
use tokio::sync::mpsc;

use crate::{Agents, elsewhere::Passes, feed::Feed, relay::Relay};

/// Items of one commit.
const GROUP_MAX: usize = 4_096;

/// What one input of the owner leads to.
#[derive(Default)]
pub(crate) struct Item {
    pub batch: Batch,
    pub effects: Vec<Effect>,
}

/// Carried out once everything before it is durable.
pub(crate) enum Effect {
    Agent(Arc<AgentSpec>),
    Send(NodeId, Command),
    Route(ActorId, Route),
    Drop(NodeId, u64),
    Topic(String, Members),
    Remind(ActorId, String, Arc<Reminder>),
    Reply(Box<dyn FnOnce() + Send>),
}

/// Starts the journal.
pub(crate) fn spawn(
    store: Arc<Store>,
    relay: Relay,
    feed: Feed,
    agents: Agents,
    passes: Arc<Passes>,
) -> mpsc::Sender<Item> {
    let (tx, rx) = mpsc::channel(caps::OWNER_QUEUE_DEPTH_MAX);
    tokio::spawn(run(store, relay, feed, agents, passes, rx));
    tx
}

async fn run(
    store: Arc<Store>,
    relay: Relay,
    feed: Feed,
    agents: Agents,
    passes: Arc<Passes>,
    mut items: mpsc::Receiver<Item>,
) {
    let mut group = Vec::new();
    while items.recv_many(&mut group, GROUP_MAX).await > 0 {
        let (mut batch, mut effects) = (Batch::default(), Vec::new());
        for item in group.drain(..) {
            batch.agents.extend(item.batch.agents);
            batch.made.extend(item.batch.made);
            batch.tasks.extend(item.batch.tasks);
            batch.events.extend(item.batch.events);
            batch.cursors.extend(item.batch.cursors);
            batch.states.extend(item.batch.states);
            batch.actors.extend(item.batch.actors);
            batch.reminders.extend(item.batch.reminders);
            batch.listeners.extend(item.batch.listeners);
            effects.extend(item.effects);
        }
        if let Err(error) = store.commit(&batch).await {
            tracing::error!(%error, "failed to commit; stopping, so that nothing is acknowledged that is not on disk");
            std::process::exit(70);
        }
        feed.publish(&batch.events);
        for effect in effects {
            match effect {
                Effect::Agent(spec) => drop(agents.write().insert(spec.name.clone(), spec)),
                Effect::Send(node, command) => send(&store, &relay, &passes, &node, command).await,
                Effect::Route(actor, route) => relay.route(&actor, route),
                Effect::Topic(topic, members) => relay.topic(topic, members),
                Effect::Remind(actor, name, reminder) => relay.remind(actor, name, reminder),
                Effect::Drop(node, conn) => relay.drop_link(&node, conn),
                Effect::Reply(reply) => reply(),
            }
        }
    }
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

async fn send(store: &Store, relay: &Relay, passes: &Passes, node: &NodeId, command: Command) {
    let body = match command {
        Command::Start { actor, epoch, spec, init, owner, with_code, with_dir, with_state } => {
            let mut state = None;
            if with_state {
                match store.state(&actor).await {
                    Ok(found) => state = found.and_then(|bytes| prost::Message::decode(&*bytes).ok()),
                    Err(error) => tracing::error!(%error, %actor, "failed to read the state of an actor"),
                }
            }
            let code = blob(store, &spec, with_code.then(|| spec.code()).flatten()).await;
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
                pass: passes.of(&spec.name).map(|pass| to_json(&pass)).unwrap_or_default(),
            })
        }
        Command::Stop { actor, epoch, drain } => {
            Body::Stop(v1::StopActor { actor: actor.to_string(), epoch: epoch.0, drain })
        }
        Command::Run { record, actor, timeout_ms, said } => Body::Run(v1::RunTask {
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
        }),
        Command::Say { task, attempt, said } => {
            Body::Say(v1::SayTask { task: task.to_string(), attempt, said: to_json(&said) })
        }
        Command::CancelTask { task, attempt, reason } => {
            Body::Cancel(v1::CancelTask { task: task.to_string(), attempt, reason })
        }
        Command::Durable { number } => Body::Durable(v1::Durable { number }),
    };
    relay.send(node, body);
}
