//! Calls: straight to the worker that has the actor, through the head where no worker can be reached.
//!
//! One stream leads to the head: it says where actors are ([`Placement`]), carries calls to models, and carries what
//! no other stream can. It is opened again whenever it breaks, and the session goes on by it ([`head`]); meanwhile calls
//! on lanes go on, and what needs the head waits for it. Each worker that has an actor of ours gets one stream of its own, a *lane*, opened when first
//! needed. Many calls share a frame, answers come back in the order they were made.
//!
//! What is promised, and how:
//! - Calls of one [`Calls`] to one actor arrive in the order they were started. While an actor has no place they wait
//!   here; when it moves, a fence on the old lane brings back what that worker refused before new calls go out.
//! - What a worker refused without running it (`executed = false`) is placed again; it is never run twice by this.
//! - What was under way when a lane broke fails with `executed = None`, unless the call carries a key: then it is sent
//!   again, and the activation that has run it answers from memory, or one that began with its state. Any other does not run
//!   it, unless `retries` allow that.

mod head;
mod lane;
mod losses;
pub(crate) mod open;
mod place;
mod topics;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use covey_domain::{ActorId, Error, ErrorKind, NodeId, Retry, agent::known_as, caps};
use covey_proto::v1::{
    CallBatch, CallCancel, CallFrame, CallOpen, DeadLetter, Empty, Payload, Placement, call_frame::Body, call_open,
    covey_client::CoveyClient, placement,
};
use covey_trace::{Kind, Span};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use crate::{Bearer, Roads};
use open::{Open, OpenCalls};
use place::{Place, State};

pub(crate) use head::Session;
pub use lane::Loopback;

/// Callers are told why an actor still has no place after this time.
const PENDING_NOTICE: Duration = Duration::from_secs(2);
/// A fence that does not come back within this time was not heard.
const FENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is looked whether a call is answered, by those who stop an actor gently.
const SETTLED_LOOK: Duration = Duration::from_millis(2);
/// Pause before the head is asked again where an actor is that was not where it said.
const STALE_PAUSE: Duration = Duration::from_millis(5);
/// A worker that has a call whose deadline is over has so long to say so.
const DEADLINE_ANSWER: Duration = Duration::from_millis(500);
/// How long a driver that leaves waits for the head to know it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Who is called.
#[derive(Clone, Debug)]
pub enum Target {
    /// An actor, by id.
    Actor(ActorId),
    /// A model, by name; the payload is an `InferRequest`.
    Model(String),
    /// Whoever listens to this topic; the method is that of each listener. With `retries` the message arrives at least
    /// once, and the call ends with how many listeners it reached; without, it ends at once with how many there are.
    Topic(String),
}

/// One call.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// Who is called.
    pub target: Target,
    /// Which method.
    pub method: String,
    /// Its arguments.
    pub args: Payload,
    /// Bound, milliseconds; 0 = the agent's.
    pub timeout_ms: u64,
    /// Same key, same actor: it runs once. Empty = no such promise.
    pub key: String,
    /// Times it is sent again when its actor dies under it; it may then run more than once, unless it has a key.
    pub retries: u32,
    /// Actors whose turns wait for this call, one a line; empty for a driver.
    pub chain: String,
    /// W3C `traceparent` of what it is made for; empty = none.
    pub traceparent: String,
    /// Bound on its turn, counted from the start of that, milliseconds; 0 = the agent's.
    pub run_timeout_ms: u64,
    /// Exceptions of the agent after which it is tried again, and the pauses before that.
    pub retry: Option<Arc<Retry>>,
    /// Processes died while they ran it: it runs with nothing beside it.
    pub alone: bool,
}

/// As it travels.
pub fn retry_message(retry: &Option<Arc<Retry>>) -> Option<covey_proto::v1::Retry> {
    retry.as_ref().map(|retry| covey_proto::v1::Retry {
        on: retry.on.clone(),
        backoff_ms: retry.backoff_ms,
        backoff_max_ms: retry.backoff_max_ms,
    })
}

impl NewCall {
    /// A call without bound or key.
    pub fn new(target: Target, method: &str, args: Payload) -> Self {
        Self {
            target,
            method: method.to_owned(),
            args,
            timeout_ms: 0,
            key: String::new(),
            retries: 0,
            chain: String::new(),
            traceparent: String::new(),
            run_timeout_ms: 0,
            retry: None,
            alone: false,
        }
    }
}

/// What comes back, in order. `End` is last.
#[derive(Debug)]
pub enum CallEvent {
    /// One item of a stream.
    Item(Payload),
    /// The end: a value, nothing (a stream), or an error.
    End(Result<Option<Payload>, Error>),
}

type Handler = Box<dyn FnMut(u64, CallEvent) + Send>;
type Notice = Box<dyn Fn(&Waits) + Send + Sync>;

/// Calls that have waited for a place for two seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// What they wait for: "actor `id`", or an actor of a pool.
    pub what: String,
    /// Why there is none, in the scheduler's words.
    pub why: String,
    /// How many they are.
    pub calls: usize,
}

/// The calls of one driver. Clones share them; the streams close when the last is gone.
#[derive(Clone)]
pub struct Calls {
    inner: Arc<Inner>,
}

struct Inner {
    next: AtomicU64,
    count: AtomicUsize,
    open: OpenCalls,
    state: Mutex<State>,
    notice: Mutex<Option<Notice>>,
    loopback: Mutex<Option<(NodeId, Loopback)>>,
    roads: Roads,
    runtime: Handle,
    /// Frames for the head.
    outgoing: Arc<Mutex<head::Outgoing>>,
    /// How long what needs the head waits for it, milliseconds.
    patience: Arc<AtomicU64>,
    /// Times the session was lost, with all that lived for it.
    losses: AtomicU64,
    /// The head knows that the driver has left.
    gone: Notify,
}

impl Calls {
    /// Tells the head of a call that is not tried again.
    pub(crate) fn dead_letter(&self, letter: DeadLetter) {
        self.inner.dead_letter(letter);
    }

    pub(crate) async fn open(
        rpc: CoveyClient<InterceptedService<Channel, Bearer>>,
        session: Option<Session>,
        roads: Roads,
        patience: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        #[expect(clippy::disallowed_methods, reason = "calls that this client has open, which have a bound")]
        let (head, rx) = mpsc::unbounded_channel();
        let outgoing = Arc::new(Mutex::new(head::Outgoing::new(rx)));
        let mut link = head::Link { rpc, session, outgoing: outgoing.clone() };
        let opened = link.open().await?;
        if let Some(grace) = opened.grace {
            patience.store(grace.as_millis() as u64, Ordering::Relaxed);
        }
        let inner = Arc::new(Inner {
            next: AtomicU64::new(1),
            count: AtomicUsize::new(0),
            open: OpenCalls::default(),
            state: Mutex::new(State::new(head)),
            notice: Mutex::new(None),
            loopback: Mutex::new(None),
            roads,
            runtime: Handle::current(),
            outgoing,
            patience,
            losses: AtomicU64::new(0),
            gone: Notify::new(),
        });
        tokio::spawn(head::run(Arc::downgrade(&inner), link, opened.answers));
        Ok(Self { inner })
    }

    /// Leaves for good: what is open ends, and the head ends what lives for the session. Returns once the head knows that, or
    /// after a second.
    pub async fn leave(&self) {
        let away = {
            let mut state = self.inner.state.lock();
            state.left = true;
            let _ = state.head.send(CallFrame { id: 0, body: Some(Body::Leave(Empty {})) });
            state.away.is_some()
        };
        self.inner.close(&Error::unavailable("the session was closed"));
        if !away {
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, self.inner.gone.notified()).await;
        }
    }

    /// The head cannot be reached at this moment.
    pub fn is_away(&self) -> bool {
        let state = self.inner.state.lock();
        state.away.is_some() || state.closed.is_some()
    }

    /// Times the session was lost because the head could not be reached for longer than its grace time: what lived for it is
    /// gone, and what the head was told may have to be told again.
    pub fn losses(&self) -> u64 {
        self.inner.losses.load(Ordering::Relaxed)
    }

    /// Calls to actors on `node`, which is this process, do not touch the network.
    pub fn set_loopback(&self, node: NodeId, loopback: Loopback) {
        *self.inner.loopback.lock() = Some((node, loopback));
    }

    /// `notice` is told when an actor with waiting calls, or all actors of a pool with waiting jobs, have had no place for
    /// two seconds; of each reason once.
    pub fn on_pending(&self, notice: impl Fn(&Waits) + Send + Sync + 'static) {
        *self.inner.notice.lock() = Some(Box::new(notice));
    }

    /// Tells whoever listens to [`Self::on_pending`].
    pub(crate) fn tell_waits(&self, waits: &Waits) {
        if let Some(notice) = &*self.inner.notice.lock() {
            notice(waits);
        }
    }

    /// Why an actor has had no place for two seconds.
    pub(crate) fn why_waiting(&self, actor: &ActorId) -> Option<String> {
        self.inner.state.lock().why_waiting(actor, PENDING_NOTICE)
    }

    /// Says whether the session goes on, and does not hold it.
    pub(crate) fn goes_on(&self) -> impl Fn() -> bool + Send + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade().is_some_and(|inner| inner.state.lock().closed.is_none())
    }

    /// The driver has left, or the head refuses it; nothing can be called any more.
    pub fn is_closed(&self) -> bool {
        self.inner.state.lock().closed.is_some()
    }

    /// Opens a call; `handler` gets its id and its events, on a connection's own task: it must not block, and must not
    /// call back into `self`.
    pub fn start(&self, call: NewCall, handler: impl FnMut(u64, CallEvent) + Send + 'static) -> u64 {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner.start(id, call, Box::new(handler));
        id
    }

    /// Like [`Self::start`], but what goes wrong at once is told on another task, so that the caller may hold locks
    /// that `handler` takes.
    pub(crate) fn start_deferred(&self, call: NewCall, handler: impl FnMut(u64, CallEvent) + Send + 'static) -> u64 {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = self.inner.begin(id, call, Box::new(handler)) {
            let inner = self.inner.clone();
            self.inner.runtime.spawn(async move { inner.end(id, Err(error.executed(Some(false)))) });
        }
        id
    }

    /// Calls `hook` once the actor has a place, or when it will never have one.
    pub fn when_placed(&self, actor: &ActorId, hook: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let mut state = self.inner.state.lock();
        if !state.places.contains_key(actor) {
            self.inner.locate(&mut state, actor);
        }
        let now = match state.places.get(actor) {
            Some(Place::At { .. }) => Ok(()),
            Some(Place::Gone(error)) => Err(error.clone()),
            Some(Place::Waiting { .. } | Place::Moving { .. }) | None => {
                return state.hooks.entry(actor.clone()).or_default().push(Box::new(hook));
            }
        };
        drop(state);
        hook(now);
    }

    /// Where an actor is, when that is known here.
    pub fn node_of(&self, actor: &ActorId) -> Option<NodeId> {
        match self.inner.state.lock().places.get(actor) {
            Some(Place::At { at, .. }) => Some(NodeId::from(at.node.as_str())),
            _ => None,
        }
    }

    /// Waits until every call that was started on the actor here is answered.
    pub async fn settled(&self, actor: &ActorId) {
        for id in self.inner.open.on_actor(actor) {
            while self.inner.open.contains(id) {
                tokio::time::sleep(SETTLED_LOOK).await;
            }
        }
    }

    /// What is known of this actor's place is dropped, and asked for again by the next call. After a stop, that call
    /// then hears of it even when it would reach the worker sooner than the stop.
    pub fn forget(&self, actor: &ActorId) {
        let mut state = self.inner.state.lock();
        if let Some(Place::At { .. } | Place::Gone(_)) = state.places.get(actor) {
            state.places.remove(actor);
        }
    }

    /// The next message asks anew who listens: after an actor joined or left by another way than this connection.
    pub fn forget_topic(&self, topic: &str) {
        self.inner.forget_topic(topic);
    }

    pub(crate) fn runtime(&self) -> Handle {
        self.inner.runtime.clone()
    }

    /// Cancels a call; its end arrives as `Cancelled`.
    pub fn cancel(&self, id: u64) {
        self.inner.cancel(id, ErrorKind::Cancelled, "cancelled");
    }

    /// Tells the worker of a call to stop it. Its end says whether its turn goes on all the same.
    pub(crate) fn cancel_there(&self, id: u64) {
        let queued = self.inner.open.actor(id).is_some_and(|actor| self.inner.state.lock().unqueue(&actor, id));
        match self.inner.open.lane(id).filter(|_| !queued) {
            Some(_) => {
                self.inner.to_lane(id, || Body::Cancel(CallCancel { reason: "cancelled".to_owned(), gone: false }))
            }
            None => {
                let error = Error::new(ErrorKind::Cancelled, "cancelled").executed(queued.then_some(false));
                let inner = self.inner.clone();
                self.inner.runtime.spawn(async move { inner.end(id, Err(error)) });
            }
        }
    }

    /// The reader has room for more items.
    pub fn credit(&self, id: u64, items: u32) {
        self.inner.to_lane(id, || Body::Credit(items));
    }

    /// A call that returns one value.
    pub async fn value(&self, target: Target, method: &str, args: Payload) -> Result<Option<Payload>, Error> {
        self.value_of(NewCall::new(target, method, args)).await
    }

    /// A call that returns one value. Dropping the future cancels it.
    pub async fn value_of(&self, call: NewCall) -> Result<Option<Payload>, Error> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let mut tx = Some(tx);
        let id = self.start(call, move |_, event| {
            if let (CallEvent::End(end), Some(tx)) = (event, tx.take()) {
                let _ = tx.send(end);
            }
        });
        let mut leave = Leave { calls: self, id, over: false };
        let end = rx.await;
        leave.over = true;
        end.map_err(|_| Error::unavailable("the connection to the head is closed"))?
    }

    /// A call that streams. Dropping the stream cancels it.
    pub fn stream(
        &self,
        target: Target,
        method: &str,
        args: Payload,
    ) -> impl Stream<Item = Result<Payload, Error>> + use<> {
        #[expect(clippy::disallowed_methods, reason = "items of one stream, a window ahead at most")]
        let (tx, mut rx) = mpsc::unbounded_channel();
        let calls = self.clone();
        let id = self.start(NewCall::new(target, method, args), move |_, event| {
            let _ = tx.send(event);
        });
        async_stream::stream! {
            let mut leave = Leave { calls: &calls, id, over: false };
            let mut taken = 0u32;
            while let Some(event) = rx.recv().await {
                match event {
                    CallEvent::Item(item) => {
                        taken += 1;
                        if taken == caps::STREAM_WINDOW / 2 {
                            calls.credit(id, taken);
                            taken = 0;
                        }
                        yield Ok(item);
                    }
                    CallEvent::End(end) => {
                        leave.over = true;
                        match end {
                            Ok(Some(value)) => yield Ok(value),
                            Ok(None) => {}
                            Err(error) => yield Err(error),
                        }
                        return;
                    }
                }
            }
        }
        .boxed()
    }
}

/// Cancels a call whose reader went before its end.
struct Leave<'a> {
    calls: &'a Calls,
    id: u64,
    over: bool,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.calls.cancel(self.id);
        }
    }
}

impl Inner {
    fn start(self: &Arc<Self>, id: u64, call: NewCall, handler: Handler) {
        if let Some(error) = self.begin(id, call, handler) {
            self.end(id, Err(error.executed(Some(false))));
        }
    }

    /// Opens a call; gives why it cannot be, with its handler kept for that news.
    fn begin(self: &Arc<Self>, id: u64, call: NewCall, handler: Handler) -> Option<Error> {
        let refused = covey_proto::check_size("the call's argument", &call.args).err().or_else(|| {
            let many = self.count.load(Ordering::Relaxed) >= caps::CALLS_OPEN_MAX;
            many.then(|| Error::new(ErrorKind::Overloaded, format!("{} calls are open", caps::CALLS_OPEN_MAX)))
        });
        self.count.fetch_add(1, Ordering::Relaxed);
        if refused.is_some() {
            self.open.insert(id, Open::new(handler));
            return refused;
        }
        let mut call = call;
        if let Target::Topic(topic) = &call.target {
            let topic = topic.clone();
            self.open.insert(id, Open::new(handler));
            let failed = self.publish(id, &topic, &mut call);
            if failed.is_none() {
                self.limit(id, call.timeout_ms);
            }
            return failed;
        }
        let NewCall { target, method, args, timeout_ms, key, retries, .. } = call;
        let NewCall { chain, traceparent, run_timeout_ms, retry, alone, .. } = call;
        let (actor, target) = match target {
            Target::Actor(actor) => (Some(actor.clone()), call_open::Target::Actor(actor.to_string())),
            Target::Model(model) => (None, call_open::Target::Model(model)),
            Target::Topic(topic) => (None, call_open::Target::Topic(topic)),
        };
        let about = match &target {
            call_open::Target::Actor(actor) => [("covey.actor", actor.as_str())],
            call_open::Target::Model(model) => [("covey.model", model.as_str())],
            call_open::Target::Pool(pool) | call_open::Target::Topic(pool) => [("covey.target", pool.as_str())],
        };
        let span = Span::begin(Kind::Call, known_as(&method), &traceparent, &about);
        let frame = CallOpen {
            method,
            args: Some(args),
            timeout_ms,
            traceparent: span.traceparent(&traceparent),
            target: Some(target),
            epoch: 0,
            key,
            tried: 0,
            retries: 0,
            chain,
            also: Vec::new(),
            run_timeout_ms,
            retry: retry_message(&retry),
            alone,
        };
        let again = actor.as_ref().map(|_| frame.clone());
        self.open.insert(id, Open { actor: actor.clone(), again, retries, retry, span, ..Open::new(handler) });
        let failed = {
            let mut state = self.state.lock();
            match actor {
                Some(actor) => self.route(&mut state, id, &actor, frame),
                None => state.to_head(self, id, frame),
            }
        };
        if let Err(error) = failed {
            return Some(error);
        }
        self.limit(id, timeout_ms);
        None
    }

    /// Ends a call that is not over in time.
    fn limit(self: &Arc<Self>, id: u64, timeout_ms: u64) {
        if timeout_ms > 0 {
            let weak = Arc::downgrade(self);
            self.runtime.spawn(async move {
                tokio::time::sleep(Duration::from_millis(timeout_ms)).await;
                // A worker that has the call ends it itself, and knows whether its turn goes on.
                if weak.upgrade().is_some_and(|inner| inner.open.lane(id).is_some()) {
                    tokio::time::sleep(DEADLINE_ANSWER).await;
                }
                if let Some(inner) = weak.upgrade() {
                    inner.cancel(id, ErrorKind::DeadlineExceeded, "the time for this call ran out");
                }
            });
        }
    }

    /// Sends a call to where its actor is, or keeps it until that is known.
    fn route(self: &Arc<Self>, state: &mut State, id: u64, actor: &ActorId, frame: CallOpen) -> Result<(), Error> {
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        // Nothing waits for a head that was given up.
        if matches!(state.places.get(actor), None | Some(Place::Waiting { .. }))
            && let Some(error) = state.no_head()
        {
            return Err(error);
        }
        if !state.places.contains_key(actor) {
            self.locate(state, actor);
        }
        match state.places.get_mut(actor) {
            Some(Place::At { at, lane }) => {
                let (at, mut lane) = (at.clone(), lane.clone());
                if lane.is_closed() && state.may_return(&lane) {
                    // What the lane had comes back at this moment, and goes first.
                    self.fence(state, actor, &lane, at);
                    return self.route(state, id, actor, frame);
                }
                if lane.is_closed() {
                    lane = self.lane(state, &at);
                    state.places.insert(actor.clone(), Place::At { at: at.clone(), lane: lane.clone() });
                }
                self.send_open(&lane, at.epoch, id, frame);
                Ok(())
            }
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => {
                let is_first = queue.is_empty();
                queue.push(id, frame)?;
                self.open.queued(id);
                if is_first {
                    self.notice_later(actor.clone());
                }
                Ok(())
            }
            Some(Place::Gone(error)) => Err(error.clone()),
            None => Err(Error::internal("an actor without a place")),
        }
    }

    /// Asks the head where an actor is; calls wait meanwhile.
    fn locate(self: &Arc<Self>, state: &mut State, actor: &ActorId) {
        state.wait(actor, "asking the head where it is");
        state.ask(actor);
    }

    /// Whoever calls is told after a while why the actor still has no place: begun by the first call that waits, and by each
    /// new reason while one waits.
    fn notice_later(self: &Arc<Self>, actor: ActorId) {
        let weak = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(PENDING_NOTICE).await;
            let Some(inner) = weak.upgrade() else { return };
            let told = inner.state.lock().overdue(&actor, PENDING_NOTICE);
            if let (Some((why, calls)), Some(notice)) = (told, &*inner.notice.lock()) {
                notice(&Waits { what: format!("actor {actor}"), why, calls });
            }
        });
    }

    fn take(self: &Arc<Self>, batch: CallBatch) {
        let mut frames = batch.frames.into_iter();
        while let Some(frame) = frames.next() {
            match frame.body {
                Some(Body::Item(item)) => {
                    let end = self.open.items(frame.id, item, &mut frames);
                    self.tell_end(frame.id, end);
                }
                Some(Body::End(end)) => match covey_proto::call_result(end) {
                    Err(error) if error.retry => self.raised(frame.id, error),
                    Err(error) if refused(&error) => self.again(frame.id, error),
                    Err(error) if lost(&error) => self.lost(frame.id, error),
                    end => self.end(frame.id, end),
                },
                Some(Body::Placement(placement)) => self.placed(placement),
                Some(Body::Fence(_)) => self.fenced(frame.id),
                Some(Body::Topic(members)) => self.topic_told(members),
                Some(Body::Open(_) | Body::Cancel(_) | Body::Credit(_) | Body::Locate(_))
                | Some(Body::DeadLetter(_) | Body::WatchTopic(_) | Body::Piece(_) | Body::Leave(_))
                | None => {}
            }
        }
    }

    fn placed(self: &Arc<Self>, placement: Placement) {
        let actor = ActorId::from(placement.actor.as_str());
        let (mut failed, mut never) = (Vec::new(), None);
        let mut state = self.state.lock();
        if let Some(placement::State::At(at)) = &placement.state
            && state.is_stale(&actor, at.epoch)
        {
            // The head has not heard yet what the worker knows already: ask again in a moment.
            drop(state);
            let weak = Arc::downgrade(self);
            self.runtime.spawn(async move {
                tokio::time::sleep(STALE_PAUSE).await;
                if let Some(inner) = weak.upgrade() {
                    inner.state.lock().ask(&actor);
                }
            });
            return;
        }
        match placement.state {
            Some(placement::State::At(at)) => match state.places.get(&actor) {
                Some(Place::At { at: known, .. }) if known.epoch >= at.epoch && known.port == at.port => {}
                Some(Place::At { lane: old, .. } | Place::Waiting { left: Some(old), .. }) if state.may_return(old) => {
                    let old = old.clone();
                    self.fence(&mut state, &actor, &old, at);
                }
                Some(Place::Moving { .. }) => state.moving_to(&actor, at),
                Some(Place::At { .. } | Place::Waiting { .. } | Place::Gone(_)) | None => {
                    self.settle(&mut state, &actor, at);
                }
            },
            Some(placement::State::Waiting(waiting)) if waiting.never => {
                let error = Error::new(ErrorKind::Unschedulable, waiting.why).executed(Some(false));
                failed = state.refuse(&actor, &error, false);
                never = Some(error);
            }
            Some(placement::State::Waiting(waiting)) if waiting.recovering && state.holds_still(&actor) => {}
            Some(placement::State::Waiting(waiting)) => {
                let is_new = state.wait(&actor, &waiting.why);
                if is_new && state.has_calls(&actor) {
                    self.notice_later(actor.clone());
                }
            }
            Some(placement::State::Gone(gone)) => {
                let error = Error::from(gone);
                let error = Error { executed: Some(false), ..error };
                failed = state.refuse(&actor, &error, true);
            }
            None => {}
        }
        let news = state.news(&actor, never);
        drop(state);
        for (id, error) in failed {
            self.end(id, Err(error));
        }
        if let Some((hooks, result)) = news {
            hooks.into_iter().for_each(|hook| hook(result.clone()));
        }
    }

    /// An actor has a place: what waited for it goes there, in order.
    fn settle(self: &Arc<Self>, state: &mut State, actor: &ActorId, at: covey_proto::v1::At) {
        let lane = self.lane(state, &at);
        let epoch = at.epoch;
        for (id, frame) in state.settle(actor, at, lane.clone()) {
            self.send_open(&lane, epoch, id, frame);
        }
    }

    /// What the old worker refused must be back here before anything new goes to the next one.
    fn fence(self: &Arc<Self>, state: &mut State, actor: &ActorId, old: &lane::Sender, to: covey_proto::v1::At) {
        let fence = self.next.fetch_add(1, Ordering::Relaxed);
        state.fence(actor, fence, to, old.clone());
        // A lane that breaks gives back its fences when it has given back its calls.
        if old.send(CallFrame { id: fence, body: Some(Body::Fence(Default::default())) }).is_ok() {
            let weak = Arc::downgrade(self);
            self.runtime.spawn(async move {
                tokio::time::sleep(FENCE_TIMEOUT).await;
                if let Some(inner) = weak.upgrade() {
                    inner.fenced(fence);
                }
            });
        }
    }

    fn send_open(&self, lane: &lane::Sender, epoch: u64, id: u64, frame: CallOpen) {
        self.open.sent(id, lane.clone(), epoch);
        let _ = lane.send(CallFrame { id, body: Some(Body::Open(CallOpen { epoch, ..frame })) });
    }

    fn fenced(self: &Arc<Self>, fence: u64) {
        let mut state = self.state.lock();
        if let Some((actor, at)) = state.take_fence(fence) {
            self.settle(&mut state, &actor, at);
        }
    }

    fn lane(self: &Arc<Self>, state: &mut State, at: &covey_proto::v1::At) -> lane::Sender {
        let node = NodeId::from(at.node.as_str());
        if let Some((port, lane)) = state.lanes.get(&node)
            && *port == at.port
            && !lane.is_closed()
        {
            return lane.clone();
        }
        let loopback = self.loopback.lock().as_ref().filter(|(own, _)| *own == node).map(|(_, l)| l.clone());
        let lane = match loopback {
            Some(loopback) => lane::local(self, loopback),
            None => lane::open(self, at.clone()),
        };
        state.lanes.insert(node, (at.port.clone(), lane.clone()));
        lane
    }

    fn has_left(&self) -> bool {
        self.state.lock().left
    }

    fn left(&self) {
        self.gone.notify_one();
    }

    /// Says something of a call where it is.
    fn to_lane(&self, id: u64, body: impl Fn() -> Body) {
        let send = || self.open.lane(id).is_none_or(|lane| lane.send(CallFrame { id, body: Some(body()) }).is_ok());
        if !send() {
            // Its lane was given up at this moment; it is on another now, or it is over.
            send();
        }
    }

    fn cancel(&self, id: u64, kind: ErrorKind, why: &str) {
        let queued = self.open.actor(id).is_some_and(|actor| self.state.lock().unqueue(&actor, id));
        if !queued {
            self.to_lane(id, || Body::Cancel(CallCancel { reason: why.to_owned(), gone: false }));
        }
        self.end(id, Err(Error::new(kind, why).executed(if queued { Some(false) } else { None })));
    }

    fn end(&self, id: u64, end: open::End) {
        self.tell_end(id, self.open.end(id, end));
    }

    fn tell_end(&self, id: u64, over: Option<(Open, open::End)>) {
        let Some((Open { handler: Some(mut handler), mut span, .. }, end)) = over else { return };
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = &end {
            span.fail(error);
        }
        drop(span);
        handler(id, CallEvent::End(end));
    }

    fn close(&self, error: &Error) {
        self.state.lock().close(error);
        for id in self.open.all() {
            self.end(id, Err(error.clone().executed(None)));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if !state.left {
            let _ = state.head.send(CallFrame { id: 0, body: Some(Body::Leave(Empty {})) });
        }
        for id in self.open.all() {
            self.end(id, Err(Error::unavailable("the connection was closed").executed(None)));
        }
    }
}

/// The worker did not run it, and another place may.
fn refused(error: &Error) -> bool {
    error.executed == Some(false) && matches!(error.kind, ErrorKind::ActorDied | ErrorKind::Unavailable)
}

/// It may have run; its actor is gone.
fn lost(error: &Error) -> bool {
    error.executed.is_none() && matches!(error.kind, ErrorKind::ActorDied | ErrorKind::Unavailable)
}

type WeakInner = Weak<Inner>;
