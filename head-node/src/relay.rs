//! Calls through the head: frames from clients go to the worker that has the actor or the model, answers come back.
//!
//! Nothing here is durable and nothing passes the owner: the owner only says where actors are ([`Relay::route`]).
//! Callers that ask where an actor is are told now and at every change; they call its worker themselves, and come here
//! only when they cannot reach it.
//! Queues towards clients and workers are bounded by count and by bytes: whoever does not read loses its stream, see
//! [`crate::queue`].

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use covey_cluster_core::head::{Reminder, Route};
use covey_cluster_core::topics::Members;
use covey_domain::{ActorId, Error, ErrorKind, NodeId, caps, status::ModelStatus};
use covey_proto::{
    CallQueue, failure,
    v1::{self, CallFrame, CallOpen, HeadFrame, call_frame::Body, call_open::Target, head_frame},
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    link_service::Over,
    metrics::RelayCounts,
    owner::Input,
    queue::{self, Bounds, Frames},
};

mod models;

use models::{Awaited, Beginnings, MODEL_PATIENCE, ModelCall};

/// How far a caller may be behind with what it is answered.
pub(crate) const CLIENT: Bounds = Bounds { items: caps::CLIENT_QUEUE_DEPTH_MAX, bytes: caps::CLIENT_QUEUE_BYTES_MAX };
/// How far a worker may be behind with what it is told.
pub(crate) const LINK: Bounds = Bounds { items: caps::LINK_QUEUE_DEPTH_MAX, bytes: caps::LINK_QUEUE_BYTES_MAX };

/// Actors that are over and whose end late callers are still told.
const GONE_MAX: usize = 100_000;

/// Where callers reach a worker without us.
#[derive(Clone, Debug, Default)]
pub(crate) struct Direct {
    /// `None` = only through us.
    pub port: Option<v1::WorkerPort>,
    /// Which machine it runs on.
    pub machine: String,
    /// Folder of its objects there.
    pub objects: String,
}

#[derive(Clone)]
pub(crate) struct Relay {
    state: Arc<Mutex<State>>,
    owner: mpsc::UnboundedSender<Input>,
}

/// A question of an origin whether all that it sent was taken or refused.
struct Fence {
    origin: u64,
    id: u64,
    left: HashSet<NodeId>,
}

struct State {
    /// Hears of virtual actors that somebody speaks to.
    owner: mpsc::UnboundedSender<Input>,
    next: u64,
    /// Calls that came this way.
    relayed: u64,
    routes: HashMap<ActorId, Route>,
    links: HashMap<NodeId, Link>,
    origins: HashMap<u64, Origin>,
    calls: HashMap<u64, Call>,
    by_origin: HashMap<(u64, u64), u64>,
    /// Fences that are not back from all workers.
    fences: HashMap<u64, Fence>,
    waiting: HashMap<ActorId, CallQueue>,
    /// Calls on each actor's current activation.
    on_actor: HashMap<ActorId, HashSet<u64>>,
    /// Origins that want to know where an actor is.
    watchers: HashMap<ActorId, Vec<u64>>,
    /// Actors that are over, oldest first.
    gone: VecDeque<ActorId>,
    topics: HashMap<String, Members>,
    /// Origins that want to know who listens.
    topic_watchers: HashMap<String, HashSet<u64>>,
    /// Where beginnings of requests to models were seen.
    beginnings: Beginnings,
    /// Requests for models that no worker has, and may have soon.
    awaited: Vec<Awaited>,
    began: Instant,
    /// Until then workers may not have told yet which actors they have.
    recovering_until: Instant,
}

struct Link {
    conn: u64,
    over: Over,
    frames: Frames<HeadFrame>,
    models: Vec<ModelStatus>,
    model_calls: BTreeMap<String, usize>,
    direct: Direct,
}

struct Origin {
    frames: Frames<CallFrame>,
    open: usize,
    watched: HashSet<ActorId>,
}

struct Call {
    origin: u64,
    id: u64,
    place: Place,
}

enum Place {
    /// It is refused at once, or waits for a model.
    Nowhere,
    Waiting(ActorId),
    Actor(NodeId, ActorId),
    Model(Box<ModelCall>),
}

impl Call {
    fn node(&self) -> Option<&NodeId> {
        match &self.place {
            Place::Nowhere | Place::Waiting(_) => None,
            Place::Actor(node, _) => Some(node),
            Place::Model(known) => Some(&known.node),
        }
    }
}

impl Relay {
    /// Nothing is known yet; `owner` hears of virtual actors that somebody speaks to, and of reminders. For so long workers may
    /// not have told yet which actors they have.
    pub fn new(owner: mpsc::UnboundedSender<Input>, recovering_for: Duration) -> Self {
        let state = State {
            owner: owner.clone(),
            next: 0,
            relayed: 0,
            routes: HashMap::new(),
            links: HashMap::new(),
            origins: HashMap::new(),
            calls: HashMap::new(),
            by_origin: HashMap::new(),
            fences: HashMap::new(),
            waiting: HashMap::new(),
            on_actor: HashMap::new(),
            watchers: HashMap::new(),
            gone: VecDeque::new(),
            topics: HashMap::new(),
            topic_watchers: HashMap::new(),
            beginnings: Beginnings::default(),
            awaited: Vec::new(),
            began: Instant::now(),
            recovering_until: Instant::now() + recovering_for,
        };
        Self { state: Arc::new(Mutex::new(state)), owner }
    }

    /// Calls an actor because a reminder is due, and tells the owner how that went.
    pub fn remind(&self, actor: ActorId, name: String, reminder: Arc<Reminder>) {
        let (tx, mut rx) = queue::queue(CLIENT);
        let origin = self.origin(tx);
        let open = CallOpen {
            method: reminder.method.clone(),
            // Written by this head from a decoded payload, so it decodes.
            args: prost::Message::decode(&*reminder.args).ok(),
            target: Some(Target::Actor(actor.to_string())),
            ..CallOpen::default()
        };
        self.take_from_origin(origin, CallFrame { id: 1, body: Some(Body::Open(open)) });
        let relay = self.clone();
        tokio::spawn(async move {
            let mut answered = false;
            while let Some(frame) = rx.recv().await {
                match frame.body {
                    Some(Body::Item(_)) => {
                        relay.take_from_origin(origin, CallFrame { id: 1, body: Some(Body::Credit(1)) });
                    }
                    Some(Body::End(end)) => {
                        let failure = match end.result {
                            Some(v1::call_end::Result::Failure(failure)) => Some(Error::from(failure)),
                            _ => None,
                        };
                        if let Some(error) = &failure {
                            tracing::warn!(%actor, name, %error, "a reminder's call failed");
                        }
                        // What the method itself raised is an answer; what was not run is tried again.
                        answered = failure.is_none_or(|e| {
                            !matches!(e.kind, ErrorKind::ActorDied | ErrorKind::Unavailable | ErrorKind::Overloaded)
                        });
                        break;
                    }
                    _ => {}
                }
            }
            relay.origin_gone(origin);
            let _ = relay.owner.send(Input::Reminded(actor, name, reminder, answered));
        });
    }

    /// For those who watch the head.
    pub fn counts(&self) -> RelayCounts {
        let state = self.state.lock();
        RelayCounts {
            calls: state.relayed,
            open: state.calls.len(),
            callers: state.origins.len(),
            watched: state.watchers.len(),
        }
    }

    /// A new origin of calls: a client's stream, a worker, the gateway.
    pub fn origin(&self, frames: Frames<CallFrame>) -> u64 {
        let mut state = self.state.lock();
        let id = state.fresh();
        state.origins.insert(id, Origin { frames, open: 0, watched: HashSet::new() });
        id
    }

    /// An origin is gone; what it had open is cancelled.
    pub fn origin_gone(&self, origin: u64) {
        let mut state = self.state.lock();
        for actor in state.origins.remove(&origin).map(|o| o.watched).unwrap_or_default() {
            if let Some(watchers) = state.watchers.get_mut(&actor) {
                watchers.retain(|w| *w != origin);
                if watchers.is_empty() {
                    state.watchers.remove(&actor);
                }
            }
        }
        state.topic_watchers.retain(|_, watchers| {
            watchers.remove(&origin);
            !watchers.is_empty()
        });
        let open: Vec<_> = state.calls.iter().filter(|(_, c)| c.origin == origin).map(|(id, _)| *id).collect();
        for id in open {
            state.cancel(id, v1::CallCancel { reason: "the caller is gone".into(), gone: true });
        }
        state.fences.retain(|_, fence| fence.origin != origin);
    }

    /// A frame from an origin.
    pub fn take_from_origin(&self, origin: u64, frame: CallFrame) {
        let mut state = self.state.lock();
        match frame.body {
            // Several actors of one node, whose worker the caller cannot reach: from here on they are calls of their own.
            Some(Body::Open(open)) if !open.also.is_empty() => {
                for (id, open) in (frame.id..).zip(covey_proto::each_of(open)) {
                    state.open(origin, id, open);
                }
            }
            Some(Body::Open(open)) => {
                let awaited = state.awaited.len();
                state.open(origin, frame.id, open);
                if let Some(call) = state.awaited.get(awaited).map(|a| a.call) {
                    let relay = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(MODEL_PATIENCE).await;
                        relay.state.lock().give_up(call);
                    });
                }
            }
            Some(Body::Cancel(cancel)) => {
                if let Some(id) = state.by_origin.get(&(origin, frame.id)).copied() {
                    state.cancel(id, cancel);
                    state.answer(
                        origin,
                        frame.id,
                        failure(Error::new(ErrorKind::Cancelled, "cancelled by the caller")),
                    );
                }
            }
            Some(Body::Credit(items)) => {
                if let Some(id) = state.by_origin.get(&(origin, frame.id)).copied()
                    && let Some(node) = state.calls.get(&id).and_then(Call::node).cloned()
                {
                    state.to_node(&node, CallFrame { id, body: Some(Body::Credit(items)) });
                }
            }
            Some(Body::Locate(locate)) => state.locate(origin, &ActorId::from(locate.actor)),
            Some(Body::WatchTopic(topic)) => {
                state.topic_watchers.entry(topic.clone()).or_default().insert(origin);
                state.tell_topic(origin, &topic);
            }
            Some(Body::Fence(_)) => state.fence(origin, frame.id),
            Some(Body::DeadLetter(letter)) => {
                let _ = state.owner.send(Input::DeadLetter(letter));
            }
            Some(
                Body::Item(_) | Body::End(_) | Body::Placement(_) | Body::Topic(_) | Body::Piece(_) | Body::Leave(_),
            )
            | None => {}
        }
    }

    /// A frame from a worker: an answer to a call we passed on.
    pub fn take_from_worker(&self, node: &NodeId, frame: CallFrame) {
        let mut state = self.state.lock();
        if let Some(Body::Fence(_)) = frame.body {
            return state.fence_back(frame.id, node);
        }
        let Some(call) = state.calls.get_mut(&frame.id) else { return };
        if call.node() != Some(node) {
            return;
        }
        let (origin, id) = (call.origin, call.id);
        if let (Place::Model(known), Some(Body::Item(item))) = (&mut call.place, &frame.body)
            && !known.passes(item)
        {
            return;
        }
        match frame.body {
            Some(Body::End(end)) => {
                if let Some(v1::call_end::Result::Failure(failure)) = &end.result
                    && State::is_of_the_worker(&Error::from(failure.clone()))
                    && state.elsewhere(frame.id)
                {
                    return;
                }
                state.forget(frame.id);
                state.answer(origin, id, end);
            }
            Some(body @ Body::Item(_)) => state.to_origin(origin, CallFrame { id, body: Some(body) }),
            _ => {}
        }
    }

    /// Where calls to an actor go now.
    pub fn route(&self, actor: &ActorId, route: Route) {
        let mut state = self.state.lock();
        let waiting = match &route {
            Route::Wait { never: false, .. } | Route::Moving(_) => CallQueue::default(),
            _ => state.waiting.remove(actor).unwrap_or_default(),
        };
        // Calls on an activation that is over will not be answered by it.
        let stale: Vec<_> = state.on_actor.get(actor).into_iter().flatten().copied().collect();
        let over = match &route {
            Route::At { .. } | Route::Draining(_) | Route::Moving(_) => None,
            Route::Wait { why, .. } => {
                Some(Error::new(ErrorKind::ActorDied, format!("the actor died: {why}")).executed(None))
            }
            Route::Gone(error) => Some(Error { executed: None, ..error.clone() }),
            // It went to sleep with nothing to do; what reached it later was refused and comes back.
            Route::Asleep => Some(Error::new(ErrorKind::ActorDied, "the actor fell asleep").executed(Some(false))),
        };
        if let Some(error) = over {
            for id in stale {
                state.fail(id, error.clone());
            }
        }
        if route == Route::Asleep {
            state.routes.remove(actor);
            // Who believes in the old place is refused there and asks again; of what sleeps nothing is remembered.
            for origin in state.watchers.remove(actor).unwrap_or_default() {
                if let Some(origin) = state.origins.get_mut(&origin) {
                    origin.watched.remove(actor);
                }
            }
            if !waiting.is_empty() {
                state.wake(actor);
                state.waiting.insert(actor.clone(), waiting);
            }
            return;
        }
        if matches!(route, Route::Gone(_) | Route::Draining(_)) {
            state.gone.push_back(actor.clone());
            if state.gone.len() > GONE_MAX
                && let Some(oldest) = state.gone.pop_front()
                && matches!(state.routes.get(&oldest), Some(Route::Gone(_) | Route::Draining(_)))
            {
                state.routes.remove(&oldest);
            }
        }
        state.routes.insert(actor.clone(), route);
        for origin in state.watchers.get(actor).cloned().unwrap_or_default() {
            state.tell_place(origin, actor);
        }
        for (id, open) in waiting {
            state.place(id, actor, open);
        }
    }

    /// Who listens to a topic now.
    pub fn topic(&self, topic: String, members: Members) {
        let mut state = self.state.lock();
        if members.is_empty() {
            state.topics.remove(&topic);
        } else {
            state.topics.insert(topic.clone(), members);
        }
        for origin in state.topic_watchers.get(&topic).cloned().unwrap_or_default() {
            state.tell_topic(origin, &topic);
        }
    }

    /// A link is up. Commands for this node go to `frames` from now on.
    pub fn link(
        &self,
        node: &NodeId,
        conn: u64,
        frames: Frames<HeadFrame>,
        over: Over,
        models: Vec<ModelStatus>,
        direct: Direct,
    ) {
        let link = Link { conn, over, frames, models, model_calls: BTreeMap::new(), direct };
        let old = self.state.lock().links.insert(node.clone(), link);
        if let Some(old) = old {
            old.over.close();
            self.lost(node);
        }
        self.state.lock().models_came();
    }

    /// A node's work was given to others: its link is closed, if `conn` is still the current one, and its worker told to stop.
    pub fn fence(&self, node: &NodeId, conn: u64, why: &'static str) {
        if let Some(link) = self.state.lock().links.get(node).filter(|l| l.conn == conn) {
            link.over.fence(why);
        }
        self.drop_link(node, conn);
    }

    /// A link is over, if `conn` is still the current one.
    pub fn drop_link(&self, node: &NodeId, conn: u64) {
        let mut state = self.state.lock();
        if state.links.get(node).is_some_and(|l| l.conn == conn)
            && let Some(link) = state.links.remove(node)
        {
            drop(state);
            link.over.close();
            self.lost(node);
        }
    }

    fn lost(&self, node: &NodeId) {
        let mut state = self.state.lock();
        let open: Vec<_> = state.calls.iter().filter(|(_, c)| c.node() == Some(node)).map(|(id, _)| *id).collect();
        for id in open {
            if !state.elsewhere(id) {
                let why = format!("the link to worker `{node}` broke");
                state.fail(id, Error::new(ErrorKind::ActorDied, why).executed(None));
            }
        }
        state.fences_without(node);
    }

    /// Sends a command to a node; one without a link gets it by reconciliation when it dials again.
    pub fn send(&self, node: &NodeId, body: head_frame::Body) {
        if let Some(link) = self.state.lock().links.get(node) {
            link.frames.send(HeadFrame { body: Some(body) });
        }
    }

    /// Everything up to `number` that came over this link is on disk.
    pub fn durable(&self, node: &NodeId, conn: u64, number: u64) {
        if let Some(link) = self.state.lock().links.get(node).filter(|link| link.conn == conn) {
            link.frames.send(HeadFrame { body: Some(head_frame::Body::Durable(v1::Durable { number })) });
        }
    }

    /// Workers that keep objects.
    pub fn stores(&self) -> Vec<v1::Store> {
        let state = self.state.lock();
        let mut stores: Vec<_> = state
            .links
            .iter()
            .map(|(node, link)| v1::Store {
                node: node.to_string(),
                port: link.direct.port.clone(),
                machine: link.direct.machine.clone(),
                folder: link.direct.objects.clone(),
            })
            .collect();
        stores.sort_by(|a, b| a.node.cmp(&b.node));
        stores
    }

    /// A driver is gone for good: workers drop what they keep for it.
    pub fn session_over(&self, session: &str) {
        for link in self.state.lock().links.values() {
            link.frames.send(HeadFrame { body: Some(head_frame::Body::SessionOver(session.to_owned())) });
        }
    }

    /// A worker's models changed.
    pub fn models(&self, node: &NodeId, models: Vec<ModelStatus>) {
        let mut state = self.state.lock();
        if let Some(link) = state.links.get_mut(node) {
            link.models = models;
            state.models_came();
        }
    }
}

impl State {
    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn open(&mut self, origin: u64, id: u64, open: CallOpen) {
        self.relayed += 1;
        let Some(from) = self.origins.get_mut(&origin) else { return };
        if from.open >= caps::CALLS_OPEN_MAX {
            let error =
                Error::new(ErrorKind::Overloaded, format!("{} calls are open", from.open)).executed(Some(false));
            return self.answer(origin, id, failure(error));
        }
        from.open += 1;
        let call = self.fresh();
        match &open.target {
            Some(Target::Actor(actor)) => {
                let actor = ActorId::from(actor.as_str());
                self.calls.insert(call, Call { origin, id, place: Place::Waiting(actor.clone()) });
                self.by_origin.insert((origin, id), call);
                self.place(call, &actor, open);
            }
            Some(Target::Model(model)) => {
                let model = model.clone();
                self.by_origin.insert((origin, id), call);
                self.open_model(call, (origin, id), model, open);
            }
            Some(Target::Pool(_) | Target::Topic(_)) | None => {
                self.calls.insert(call, Call { origin, id, place: Place::Nowhere });
                self.by_origin.insert((origin, id), call);
                self.fail(call, Error::invalid("a call without a target"));
            }
        }
    }

    /// Passes a fence on to all workers: what they refused of this origin's calls comes back before it does.
    fn fence(&mut self, origin: u64, id: u64) {
        let fence = self.fresh();
        let nodes: Vec<_> = self.links.keys().cloned().collect();
        let mut left = HashSet::new();
        for node in nodes {
            if self.to_node(&node, CallFrame { id: fence, body: Some(Body::Fence(v1::Empty {})) }) {
                left.insert(node);
            }
        }
        self.fences.insert(fence, Fence { origin, id, left });
        self.fences_over();
    }

    /// A worker has sent a fence back, or will not.
    fn fence_back(&mut self, fence: u64, node: &NodeId) {
        if let Some(known) = self.fences.get_mut(&fence) {
            known.left.remove(node);
        }
        self.fences_over();
    }

    fn fences_without(&mut self, node: &NodeId) {
        for fence in self.fences.values_mut() {
            fence.left.remove(node);
        }
        self.fences_over();
    }

    fn fences_over(&mut self) {
        let over: Vec<_> = self.fences.extract_if(|_, fence| fence.left.is_empty()).collect();
        for (_, Fence { origin, id, .. }) in over {
            self.to_origin(origin, CallFrame { id, body: Some(Body::Fence(v1::Empty {})) });
        }
    }

    /// Tells an origin where an actor is, now and from now on.
    fn locate(&mut self, origin: u64, actor: &ActorId) {
        if let Some(from) = self.origins.get_mut(&origin)
            && from.watched.insert(actor.clone())
        {
            self.watchers.entry(actor.clone()).or_default().push(origin);
        }
        self.tell_place(origin, actor);
    }

    fn wake(&self, actor: &ActorId) {
        let _ = self.owner.send(Input::Wake(actor.clone()));
    }

    fn tell_place(&self, origin: u64, actor: &ActorId) {
        use v1::placement::State;
        let recovering = Instant::now() < self.recovering_until;
        let waiting = |why: &str, never| State::Waiting(v1::Waiting { why: why.to_owned(), never, recovering });
        let state = match self.routes.get(actor) {
            Some(Route::At { node, epoch }) => {
                let port = self.links.get(node).and_then(|l| l.direct.port.clone());
                State::At(v1::At { node: node.to_string(), epoch: epoch.0, port })
            }
            Some(Route::Wait { why, never }) => waiting(why, *never),
            Some(Route::Moving(why)) => waiting(why, false),
            Some(Route::Gone(error) | Route::Draining(error)) => State::Gone(over(error).into()),
            None if actor.key().is_some() => {
                self.wake(actor);
                waiting("waking", false)
            }
            Some(Route::Asleep) | None => State::Gone(Error::not_found("actor", actor).into()),
        };
        let placement = v1::Placement { actor: actor.to_string(), state: Some(state) };
        self.to_origin(origin, CallFrame { id: 0, body: Some(Body::Placement(placement)) });
    }

    fn tell_topic(&self, origin: u64, topic: &str) {
        let members = self.topics.get(topic).map_or(&[][..], |members| members);
        let told = covey_proto::topic_members(topic.to_owned(), members);
        self.to_origin(origin, CallFrame { id: 0, body: Some(Body::Topic(told)) });
    }

    fn place(&mut self, call: u64, actor: &ActorId, open: CallOpen) {
        match self.routes.get(actor).cloned() {
            Some(Route::At { node, .. }) => {
                let Some(known) = self.calls.get_mut(&call) else { return };
                known.place = Place::Actor(node.clone(), actor.clone());
                self.on_actor.entry(actor.clone()).or_default().insert(call);
                if !self.to_node(&node, CallFrame { id: call, body: Some(Body::Open(open)) }) {
                    self.fail(call, Error::unavailable(format!("worker `{node}` has no link")).executed(Some(false)));
                }
            }
            Some(Route::Wait { why, never: true }) => {
                self.fail(call, Error::new(ErrorKind::Unschedulable, why).executed(Some(false)));
            }
            Some(Route::Wait { .. } | Route::Moving(_)) => {
                self.park(call, actor, open);
            }
            Some(Route::Gone(error) | Route::Draining(error)) => {
                self.fail(call, over(&error).executed(Some(false)));
            }
            None if actor.key().is_some() => {
                self.wake(actor);
                self.park(call, actor, open);
            }
            Some(Route::Asleep) | None => {
                self.fail(call, Error::not_found("actor", actor).executed(Some(false)));
            }
        }
    }

    /// Keeps a call until its actor has a place.
    fn park(&mut self, call: u64, actor: &ActorId, open: CallOpen) {
        if let Err(error) = self.waiting.entry(actor.clone()).or_default().push(call, open) {
            self.fail(call, error);
        }
    }

    fn cancel(&mut self, call: u64, why: v1::CallCancel) {
        if let Some(node) = self.calls.get(&call).and_then(Call::node).cloned() {
            self.to_node(&node, CallFrame { id: call, body: Some(Body::Cancel(why)) });
        }
        self.forget(call);
    }

    fn fail(&mut self, call: u64, error: Error) {
        if let Some((origin, id)) = self.forget(call) {
            self.answer(origin, id, failure(error));
        }
    }

    fn forget(&mut self, call: u64) -> Option<(u64, u64)> {
        self.leave_model(call);
        let known = self.calls.remove(&call)?;
        self.by_origin.remove(&(known.origin, known.id));
        if let Some(origin) = self.origins.get_mut(&known.origin) {
            origin.open = origin.open.saturating_sub(1);
        }
        match &known.place {
            Place::Waiting(actor) => {
                if let Some(queue) = self.waiting.get_mut(actor) {
                    queue.remove(call);
                    if queue.is_empty() {
                        self.waiting.remove(actor);
                    }
                }
            }
            Place::Nowhere | Place::Model(_) => {}
            Place::Actor(_, actor) => {
                if let Some(calls) = self.on_actor.get_mut(actor) {
                    calls.remove(&call);
                    if calls.is_empty() {
                        self.on_actor.remove(actor);
                    }
                }
            }
        }
        Some((known.origin, known.id))
    }

    fn answer(&mut self, origin: u64, id: u64, end: v1::CallEnd) {
        self.to_origin(origin, CallFrame { id, body: Some(Body::End(end)) });
    }

    fn to_origin(&self, origin: u64, frame: CallFrame) {
        if let Some(origin) = self.origins.get(&origin) {
            // A closed receiver is an origin whose end is being noticed elsewhere.
            origin.frames.send(frame);
        }
    }

    fn to_node(&self, node: &NodeId, frame: CallFrame) -> bool {
        let body = Some(head_frame::Body::Call(frame));
        self.links.get(node).is_some_and(|l| l.frames.send(HeadFrame { body }))
    }
}

/// What callers of an actor that is over are told: it died, or never had a place.
fn over(error: &Error) -> Error {
    let kind = match error.kind {
        ErrorKind::Unschedulable => ErrorKind::Unschedulable,
        _ => ErrorKind::ActorDied,
    };
    Error { kind, ..error.clone() }
}
