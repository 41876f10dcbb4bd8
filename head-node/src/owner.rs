//! The one owner of the cluster's truth: a task that feeds [`Head`] one input after the other.
//!
//! Everything that can happen to the head is a variant of [`Input`]. Its effects go through the journal in order, so
//! a reply is sent only after what it acknowledges is on disk.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use covey_cluster_core::{
    Head, Output,
    head::{
        ActorInfo, ActorReport, CreateActor, DeadLetter, Entry, Hello, Member, Reminder, StoredActor, Submission,
        Submitted, Write,
    },
    sessions::SessionOpened,
    topics::Members,
};
use covey_domain::{
    ActorId, AgentName, AgentSpec, Digest, Epoch, Error, ErrorKind, NodeId, SessionId, TaskId, TaskRecord,
    agent::GangStrategy,
    caps,
    error::STOPPING,
    status::{ActorFilter, ActorStatus, ClusterStatus, ModelStatus},
};
use covey_gateway::{Answered, SayTask};
use covey_proto::v1;
use covey_store::{
    Batch, Blob, Capacity, DetachedActor, SessionActor, StateChange, StoredMember, StoredReminder, TaskChange,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    journal::{Effect, Item, Journal},
    now_ms,
    room::{self, Fate},
    vital::{self, Pulse},
};

/// Inputs that are written together.
const TAKEN_MAX: usize = 256;
/// How often leases, deadlines and backoffs are looked at.
const TICK: Duration = Duration::from_millis(50);

type Reply<T> = oneshot::Sender<T>;

/// All that can happen to the head.
pub(crate) enum Input {
    Register(Box<AgentSpec>, Reply<Result<bool, Error>>),
    /// Why no worker that is there now could run the agent.
    Unservable(AgentName, Reply<Option<String>>),
    CreateActor(Box<CreateActor>, Reply<Result<ActorInfo, Error>>),
    CreateGang(Vec<CreateActor>, GangStrategy, Reply<Result<Vec<ActorInfo>, Error>>),
    ListActors(ActorFilter, ActorId, usize, Reply<(Vec<ActorStatus>, Option<ActorId>)>),
    Link(ActorId, ActorId, Reply<Result<(), Error>>),
    DeadLetter(v1::DeadLetter),
    DeadLetters(Reply<Vec<Arc<DeadLetter>>>),
    Actor(ActorId, Reply<Result<ActorInfo, Error>>),
    ActorNamed(String, Reply<Result<ActorInfo, Error>>),
    StopActor(ActorId, bool, Reply<Result<(), Error>>),
    OpenSession(SessionId, Digest, u64, Reply<Result<SessionOpened, Error>>),
    /// Answered once what was decided before is carried out.
    Settled(Reply<()>),
    SessionUnlinked(SessionId, u64),
    SessionLeft(SessionId, u64),
    Submit(Box<Submission>, Answered, Reply<Result<Submitted, Error>>),
    CancelTask(TaskId, String, String, Reply<Result<Arc<TaskRecord>, Error>>),
    /// Has the worker of a task stop it, for this reason; nothing is written.
    StopTurn(TaskId, String),
    Say(Box<SayTask>, Reply<Result<(Arc<TaskRecord>, u64), Error>>),
    ActiveTask(TaskId, Reply<Option<(Arc<TaskRecord>, u64)>>),
    /// Tasks that actors of a node have.
    TasksOn(NodeId, Reply<Vec<Arc<TaskRecord>>>),
    /// The closure makes the link known, once the owner has taken the hello and before it speaks to the node.
    Joined(NodeId, u64, Box<Hello>, Box<dyn FnOnce() + Send>, Reply<Result<u64, Error>>),
    Heard(NodeId, u64, Reply<bool>),
    Models(NodeId, Vec<ModelStatus>),
    ModelsKnown(Reply<Vec<ModelStatus>>),
    Unlinked(NodeId, u64),
    LetGo(NodeId, u64),
    Gone(NodeId, u64),
    Entries(NodeId, u64, Vec<Entry>, Reply<Result<(), Error>>),
    ActorReport(NodeId, ActorId, Epoch, ActorReport),
    Wake(ActorId),
    Drain(String, u64, Reply<Result<NodeId, Error>>),
    SaveState(NodeId, ActorId, Epoch, Arc<[u8]>, Reply<Result<(), Error>>),
    SetReminder(ActorId, String, Box<Reminder>, Reply<Result<(), Error>>),
    ForgetReminder(ActorId, String, Reply<bool>),
    JoinTopic(String, ActorId, String, Reply<Result<(), Error>>),
    LeaveTopic(String, ActorId, Reply<bool>),
    Topics(Reply<Vec<(String, Members)>>),
    Reminded(ActorId, String, Arc<Reminder>, bool),
    Status(Reply<ClusterStatus>),
}

/// A cheap way to the owner.
#[derive(Clone)]
pub(crate) struct Handle {
    inputs: mpsc::Sender<Input>,
}

impl Handle {
    /// Sends an input; waits when [`caps::OWNER_QUEUE_DEPTH_MAX`] are queued.
    pub async fn tell(&self, input: Input) {
        let _ = self.inputs.send(input).await;
    }

    #[cfg(test)]
    pub fn of(inputs: mpsc::Sender<Input>) -> Self {
        Self { inputs }
    }

    /// Sends an input and waits for its reply.
    pub async fn ask<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, Error> {
        let (tx, rx) = oneshot::channel();
        self.tell(input(tx)).await;
        rx.await.map_err(|_| Error::unavailable(STOPPING))
    }
}

/// Starts the owner.
pub(crate) fn spawn(head: Head, journal: Journal, clock: Clock, pulse: Pulse, shutdown: CancellationToken) -> Handle {
    let (inputs, rx) = mpsc::channel(caps::OWNER_QUEUE_DEPTH_MAX);
    vital::spawn("the owner", shutdown.clone(), run(head, rx, journal, clock, pulse, shutdown));
    Handle { inputs }
}

async fn run(
    mut head: Head,
    mut inputs: mpsc::Receiver<Input>,
    mut journal: Journal,
    clock: Clock,
    pulse: Pulse,
    shutdown: CancellationToken,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut taken, mut crowded) = (Vec::new(), false);
    // What waits until the store has room.
    let mut held: VecDeque<Input> = VecDeque::new();
    loop {
        pulse.beat();
        let due = journal.due();
        let count = tokio::select! {
            () = shutdown.cancelled() => return,
            count = inputs.recv_many(&mut taken, TAKEN_MAX), if held.len() < caps::OWNER_QUEUE_DEPTH_MAX => Some(count),
            _ = tick.tick() => {
                // What waits is read before anybody is judged by the clock.
                for _ in 0..inputs.len() {
                    taken.extend(inputs.try_recv().ok());
                }
                None
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if journal.flush().await {
                    continue;
                }
                return;
            }
        };
        if count == Some(0) {
            return;
        }
        if crowded || taken.len() > 1 {
            // Whoever is about to say something says it now, and one write takes it all.
            tokio::task::yield_now().await;
            while taken.len() < TAKEN_MAX
                && let Ok(input) = inputs.try_recv()
            {
                taken.push(input);
            }
        }
        crowded = taken.len() > 1;
        let capacity = journal.capacity().await;
        if capacity == Capacity::Free {
            if !held.is_empty() {
                drop(taken.splice(..0, held.drain(..)));
            }
        } else {
            // Time stands still for what would have to be written.
            for input in std::mem::take(&mut taken) {
                match room::judge(input, capacity) {
                    Fate::Taken(input) => taken.push(*input),
                    Fate::Held(input) => held.push_back(*input),
                    Fate::Refused => {}
                }
            }
        }
        let mut item = Item { hurries: count.is_none(), ..Item::default() };
        let now = clock.now_ms();
        head.set_wall(now, now_ms());
        for input in taken.drain(..) {
            let reply = handle(&mut head, input, now);
            let more = drain(&mut head, &mut item);
            // Whoever asks and changes nothing is no reason for an fsync.
            item.hurries |= reply.as_ref().map_or(more, |reply| !matches!(reply, Effect::Answer(_)));
            item.effects.extend(reply);
        }
        if count.is_none() && capacity == Capacity::Free {
            if head.tick(now) {
                tick.reset_immediately();
            }
            drain(&mut head, &mut item);
        }
        item.ended = head.ended();
        let idle = item.batch.is_empty() && item.loose.is_empty() && item.effects.is_empty();
        if !idle && !journal.put(item).await {
            return;
        }
    }
}

/// Whether there was anything.
fn drain(head: &mut Head, item: &mut Item) -> bool {
    let mut any = false;
    while let Some(output) = head.poll_output() {
        collect(item, output);
        any = true;
    }
    any
}

/// Of inputs that were taken together all writes come before all effects, which only strengthens the machine's contract.
fn collect(item: &mut Item, output: Output) {
    let batch: &mut Batch = &mut item.batch;
    match output {
        Output::Write(Write::Agent(spec)) => {
            batch.agents.push(spec.clone());
            item.effects.push(Effect::Agent(spec));
        }
        Output::Write(Write::NewTask(record)) => batch.made.push(record),
        Output::Write(Write::Task(record)) => batch.tasks.push(TaskChange::of(&record)),
        Output::Write(Write::Event(event)) => batch.events.push(event),
        Output::Write(Write::State(actor, epoch, state)) => {
            batch.states.push(StateChange(actor, Some(Blob(state)), epoch.0));
        }
        Output::Write(Write::NoState(actor, epoch)) => batch.states.push(StateChange(actor, None, epoch.0)),
        Output::Write(Write::Activation(actor, life)) => {
            batch.activations.push((actor, life.map(|(node, epoch)| (node, epoch.0))));
        }
        Output::Write(Write::OwnedLife(actor, life)) => {
            item.loose.activations.push((actor, life.map(|(node, epoch)| (node, epoch.0))));
        }
        Output::Write(Write::Member(node, member)) => {
            let kept = |m: Member| StoredMember { incarnation: m.incarnation, port: m.port };
            batch.members.push((node, member.map(kept)));
        }
        Output::Write(Write::Clock(now)) => batch.clock_ms = Some(now),
        Output::Write(Write::Actor(id, actor)) => {
            batch.actors.push((id, actor.map(|actor| kept(&actor))));
        }
        Output::Write(Write::Session(id, proof)) => batch.sessions.push((id, proof)),
        Output::Write(Write::Owned(id, owned)) => {
            let owned = owned.map(|(session, actor)| SessionActor { session, actor: kept(&actor) });
            item.loose.session_actors.push((id, owned));
        }
        Output::SessionOver(session) => item.effects.push(Effect::SessionOver(session)),
        Output::Write(Write::Reminder(actor, name, reminder)) => {
            let stored = |r: Arc<Reminder>| StoredReminder {
                due_ms: r.due_ms,
                every_ms: r.every_ms,
                method: r.method.clone(),
                args: Blob(r.args.clone()),
            };
            batch.reminders.push((actor, name, reminder.map(stored)));
        }
        Output::Topic(topic, members) => item.effects.push(Effect::Topic(topic, members)),
        Output::Write(Write::Listener(topic, actor, method)) => batch.listeners.push((topic, actor, method)),
        Output::Remind(actor, name, reminder) => item.effects.push(Effect::Remind(actor, name, reminder)),
        Output::Write(Write::Link(one, other, is_linked)) => batch.links.push((one, other, is_linked)),
        Output::Write(Write::OwnedLink(one, other, is_linked)) => item.loose.links.push((one, other, is_linked)),
        Output::Write(Write::Gang(name, Some(gang))) => batch.gangs.push((name, Some(gang))),
        // After the lives of its members: a head that finds one of these knows that the gang had its places.
        Output::Write(Write::Gang(name, None)) => item.loose.gangs.push((name, None)),
        Output::Write(Write::DeadLetter(letter)) => batch.dead_letters.push(letter),
        Output::Write(Write::Cursor { node, incarnation, number }) => batch.cursors.push((node, incarnation, number)),
        Output::Send(node, command) => item.effects.push(Effect::Send(node, command)),
        Output::Route(actor, route) => item.effects.push(Effect::Route(actor, route)),
        Output::Drop(node, conn) => item.effects.push(Effect::Drop(node, conn)),
    }
}

fn kept(actor: &StoredActor) -> DetachedActor {
    DetachedActor { name: actor.name.clone(), spec: actor.spec.clone(), init: actor.init.clone().map(Blob) }
}

fn handle(head: &mut Head, input: Input, now: u64) -> Option<Effect> {
    fn later<T: Send + 'static>(tx: Reply<T>, value: T) -> Option<Effect> {
        Some(Effect::Reply(Box::new(move || {
            // The asker may have gone; nothing is lost by that.
            let _ = tx.send(value);
        })))
    }
    /// What changes nothing and acknowledges nothing need not wait for the disk.
    fn now_or_never<T>(tx: Reply<T>, value: T) -> Option<Effect> {
        let _ = tx.send(value);
        None
    }
    match input {
        Input::Register(spec, tx) => later(tx, head.register(*spec, now)),
        Input::Unservable(agent, tx) => now_or_never(tx, head.unservable(&agent)),
        Input::CreateActor(ask, tx) => later(tx, head.create_actor(*ask, now)),
        Input::CreateGang(asks, strategy, tx) => later(tx, head.create_gang(asks, strategy, now)),
        Input::ListActors(filter, after, limit, tx) => later(tx, head.list_actors(&filter, &after, limit)),
        Input::Link(one, other, tx) => later(tx, head.link(&one, &other)),
        Input::DeadLetters(tx) => later(tx, head.dead_letters()),
        Input::Actor(id, tx) => later(tx, head.actor(&id)),
        Input::ActorNamed(name, tx) => later(tx, head.actor_named(&name)),
        Input::StopActor(id, drain, tx) => later(tx, head.stop_actor(&id, drain, now)),
        Input::Submit(ask, answered, tx) => {
            let submitted = head.submit(*ask, now);
            match answered {
                // The end of a task may still be on its way to the disk, where the asker looks for it.
                _ if matches!(submitted, Ok(Submitted::Ended(_))) => later(tx, submitted),
                Answered::Durable => later(tx, submitted),
                Answered::Early => Some(Effect::Answer(Box::new(move || drop(tx.send(submitted))))),
            }
        }
        Input::CancelTask(id, by, reason, tx) => later(tx, head.cancel_task(&id, &by, &reason, now)),
        Input::StopTurn(id, reason) => {
            head.stop_turn(&id, reason);
            None
        }
        Input::Say(say, tx) => {
            let SayTask { caller, task, message_id, parts } = *say;
            later(tx, head.say(&task, caller.as_str(), message_id, parts, now))
        }
        Input::ActiveTask(id, tx) => now_or_never(tx, head.active_task(&id)),
        Input::TasksOn(node, tx) => now_or_never(tx, head.tasks_on(&node)),
        Input::ModelsKnown(tx) => now_or_never(tx, head.models_known()),
        Input::Status(tx) => now_or_never(tx, head.status()),
        Input::Joined(node, conn, hello, link, tx) => {
            let joined = head.joined(&node, conn, *hello, now);
            if joined.is_ok() {
                link();
            }
            // What was taken of its entries is durable when it hears so.
            later(tx, joined)
        }
        Input::Entries(node, conn, entries, tx) => {
            if !head.heard(&node, conn, now) {
                return now_or_never(tx, Err(Error::unavailable("this link is over")));
            }
            let taken = entries.into_iter().try_for_each(|entry| head.entry(&node, conn, entry, now));
            now_or_never(tx, taken)
        }
        Input::SaveState(node, actor, epoch, state, tx) => later(tx, head.save_state(&node, &actor, epoch, state)),
        Input::Drain(node, within_ms, tx) => later(tx, head.drain(&node, within_ms, now)),
        Input::SetReminder(actor, name, reminder, tx) => later(tx, head.set_reminder(actor, name, *reminder)),
        Input::JoinTopic(topic, actor, method, tx) => later(tx, head.join_topic(&topic, &actor, &method)),
        Input::LeaveTopic(topic, actor, tx) => later(tx, head.leave_topic(&topic, &actor)),
        Input::Topics(tx) => later(tx, head.topics()),
        Input::ForgetReminder(actor, name, tx) => later(tx, head.forget_reminder(&actor, &name)),
        Input::DeadLetter(letter) => {
            let actor = ActorId::from(letter.actor);
            head.dead_letter(DeadLetter {
                at_ms: now_ms(),
                agent: head.actor(&actor).map_or_else(|_| AgentName::from(letter.agent), |info| info.spec.name.clone()),
                actor: Some(actor),
                task: None,
                method: letter.method,
                bytes: letter.bytes,
                attempts: letter.attempts,
                error: Error::new(ErrorKind::ActorDied, letter.error),
            });
            None
        }
        Input::Reminded(actor, name, reminder, answered) => {
            head.reminded(&actor, &name, &reminder, answered, now);
            None
        }
        Input::Wake(actor) => {
            head.wake(&actor, now);
            None
        }
        Input::OpenSession(session, proof, conn, tx) => later(tx, head.open_session(session, proof, conn)),
        Input::Settled(tx) => later(tx, ()),
        Input::SessionUnlinked(session, conn) => {
            head.session_unlinked(&session, conn, now);
            None
        }
        Input::SessionLeft(session, conn) => {
            head.session_left(&session, conn, now);
            None
        }
        Input::Heard(node, conn, tx) => now_or_never(tx, head.heard(&node, conn, now)),
        Input::Models(node, models) => {
            head.models(&node, models);
            None
        }
        Input::Unlinked(node, conn) => {
            head.unlinked(&node, conn);
            None
        }
        Input::LetGo(node, conn) => {
            head.let_go(&node, conn, now);
            None
        }
        Input::Gone(node, incarnation) => {
            head.gone(&node, incarnation, now);
            None
        }
        Input::ActorReport(node, actor, epoch, report) => {
            head.actor_report(&node, &actor, epoch, report, now);
            None
        }
    }
}
