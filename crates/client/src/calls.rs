//! Calls: straight to the worker that has the actor, through the head where no worker can be reached.
//!
//! One stream leads to the head: it says where actors are ([`Placement`](covey_proto::v1::Placement)), carries calls to models,
//! and carries what no other stream can. It is opened again whenever it breaks, and the session goes on by it ([`head`]);
//! meanwhile calls on lanes go on, and what needs the head waits for it. Each worker that has an actor of ours gets one stream
//! of its own, a *lane*, opened when first needed. Many calls share a frame, answers come back in the order they were made.
//!
//! What is decided, and so what is promised of order, of what runs again and of ends, is [`Caller`]'s. Here are its streams, its clock, and
//! those who are told.

mod handlers;
mod head;
mod lane;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use covey_call_core::{Caller, Config, LaneId, Now, Output, Request};
use covey_domain::{ActorId, Error, ErrorKind, NodeId, Retry, agent::known_as, caps};
use covey_proto::{
    payload_json,
    v1::{self, CallBatch, CallFrame, DeadLetter, Empty, Payload, call_frame::Body, covey_client::CoveyClient},
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
use handlers::{Handlers, Told};
use wire::{Address, Args};

pub(crate) use head::Session;
pub use lane::Loopback;

/// How often it is looked whether a call is answered, by those who stop an actor gently.
const SETTLED_LOOK: Duration = Duration::from_millis(2);
/// How long a driver that leaves waits for the head to know it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Frames of a message that are taken before others may start calls: who waits for the lock spins for as long, and does not sleep.
const TAKEN_AT_ONCE: usize = 16;

pub use covey_call_core::Target;

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
type Notice = Arc<dyn Fn(&Waits) + Send + Sync>;

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
    core: Mutex<Core>,
    handlers: Handlers,
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
    /// The machine's clock begins here.
    began: Instant,
    /// When the clock looks at the machine next, milliseconds; it is told when that is too late.
    armed: AtomicU64,
    rearm: Arc<Notify>,
}

/// What is decided, and the queues where that is put. One lock, so that frames go in the order in which they were decided.
struct Core {
    machine: Caller<Args, Address>,
    head: lane::Sender,
    lanes: HashMap<LaneId, lane::Sender>,
    /// Called once an actor has a place, or never will.
    hooks: HashMap<ActorId, Vec<Hook>>,
    /// Frames of a lane that could not be opened.
    returned: Vec<CallFrame>,
    /// The driver goes for good.
    left: bool,
}

type Hook = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What is told once nothing is locked.
#[derive(Default)]
struct News {
    told: Vec<Told>,
    placed: Vec<(Hook, Result<(), Error>)>,
    waits: Vec<Waits>,
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
        let _ = opened.gate.send(());
        if let Some(grace) = opened.grace {
            patience.store(grace.as_millis() as u64, Ordering::Relaxed);
        }
        let core = Core {
            machine: Caller::new(Config::default(), rand::random()),
            head,
            lanes: HashMap::new(),
            hooks: HashMap::new(),
            returned: Vec::new(),
            left: false,
        };
        let inner = Arc::new(Inner {
            core: Mutex::new(core),
            handlers: Handlers::default(),
            notice: Mutex::new(None),
            loopback: Mutex::new(None),
            roads,
            runtime: Handle::current(),
            outgoing,
            patience,
            losses: AtomicU64::new(0),
            gone: Notify::new(),
            began: Instant::now(),
            armed: AtomicU64::new(u64::MAX),
            rearm: Arc::default(),
        });
        tokio::spawn(head::run(Arc::downgrade(&inner), link, opened.answers));
        tokio::spawn(clock(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Leaves for good: what is open ends, and the head ends what lives for the session. Returns once the head knows that, or
    /// after a second.
    pub async fn leave(&self) {
        let away = self.inner.act(|core, _| {
            core.left = true;
            core.machine.leave();
            core.machine.is_away()
        });
        self.inner.close(&Error::unavailable("the session was closed"));
        if !away {
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, self.inner.gone.notified()).await;
        }
    }

    /// The head cannot be reached at this moment.
    pub fn is_away(&self) -> bool {
        self.inner.core.lock().machine.is_away()
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
        *self.inner.notice.lock() = Some(Arc::new(notice));
    }

    /// Tells whoever listens to [`Self::on_pending`].
    pub(crate) fn tell_waits(&self, waits: &Waits) {
        // It may call back, or wait for a lock that is held by one who calls: nothing is locked here meanwhile.
        let notice = self.inner.notice.lock().clone();
        if let Some(notice) = notice {
            notice(waits);
        }
    }

    /// Why an actor has had no place for two seconds.
    pub(crate) fn why_waiting(&self, actor: &ActorId) -> Option<String> {
        self.inner.core.lock().machine.why_waiting(self.inner.now(), actor)
    }

    /// Says whether the session goes on, and does not hold it.
    pub(crate) fn goes_on(&self) -> impl Fn() -> bool + Send + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade().is_some_and(|inner| inner.core.lock().machine.closed().is_none())
    }

    /// The driver has left, or the head refuses it; nothing can be called any more.
    pub fn is_closed(&self) -> bool {
        self.inner.core.lock().machine.closed().is_some()
    }

    /// Opens a call; `handler` gets its id and its events, on a connection's own task: it must not block, and must not
    /// call back into `self`.
    pub fn start(&self, call: NewCall, handler: impl FnMut(u64, CallEvent) + Send + 'static) -> u64 {
        let (id, news) = self.inner.begin(call, Box::new(handler));
        self.inner.tell(news);
        id
    }

    /// Like [`Self::start`], but what goes wrong at once is told on another task, so that the caller may hold locks
    /// that `handler` takes.
    pub(crate) fn start_deferred(&self, call: NewCall, handler: impl FnMut(u64, CallEvent) + Send + 'static) -> u64 {
        let (id, news) = self.inner.begin(call, Box::new(handler));
        self.inner.tell_later(news);
        id
    }

    /// Calls `hook` once the actor has a place, or when it will never have one.
    pub fn when_placed(&self, actor: &ActorId, hook: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let hook: Hook = Box::new(hook);
        let now = self.inner.act(|core, now| match core.machine.watch(now, actor) {
            Some(result) => Some((hook, result)),
            None => {
                core.hooks.entry(actor.clone()).or_default().push(hook);
                None
            }
        });
        if let Some((hook, result)) = now {
            hook(result);
        }
    }

    /// Where an actor is, when that is known here.
    pub fn node_of(&self, actor: &ActorId) -> Option<NodeId> {
        self.inner.core.lock().machine.node_of(actor)
    }

    /// Waits until every call that was started on the actor here is answered.
    pub async fn settled(&self, actor: &ActorId) {
        let calls = self.inner.core.lock().machine.calls_on(actor);
        for id in calls {
            // Listeners of a topic have no handler.
            while self.inner.core.lock().machine.is_open(id) || self.inner.handlers.contains(id) {
                tokio::time::sleep(SETTLED_LOOK).await;
            }
        }
    }

    /// What is known of this actor's place is dropped, and asked for again by the next call. After a stop, that call
    /// then hears of it even when it would reach the worker sooner than the stop.
    pub fn forget(&self, actor: &ActorId) {
        self.inner.core.lock().machine.forget(actor);
    }

    /// The next message asks anew who listens: after an actor joined or left by another way than this connection.
    pub fn forget_topic(&self, topic: &str) {
        self.inner.core.lock().machine.forget_topic(topic);
    }

    pub(crate) fn runtime(&self) -> Handle {
        self.inner.runtime.clone()
    }

    /// Cancels a call; its end arrives as `Cancelled`.
    pub fn cancel(&self, id: u64) {
        self.inner.act(|core, now| core.machine.cancel(now, id, ErrorKind::Cancelled, "cancelled"));
    }

    /// Tells the worker of a call to stop it. Its end says whether its turn goes on all the same.
    pub(crate) fn cancel_there(&self, id: u64) {
        let ((), news) = self.inner.decide(|core, now| core.machine.cancel_there(now, id));
        self.inner.tell_later(news);
    }

    /// The reader has room for more items.
    pub fn credit(&self, id: u64, items: u32) {
        self.inner.act(|core, _| core.machine.credit(id, items));
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
    fn now(&self) -> Now {
        self.began.elapsed().as_millis() as u64
    }

    /// Opens a call; gives its number and what is to be told at once.
    fn begin(self: &Arc<Self>, call: NewCall, handler: Handler) -> (u64, News) {
        let refused = covey_proto::check_size("the call's argument", &call.args).err();
        let NewCall { target, method, args, timeout_ms, key, retries, .. } = call;
        let NewCall { chain, mut traceparent, run_timeout_ms, retry, alone, .. } = call;
        let about = match &target {
            Target::Actor(actor) => Some([("covey.actor", actor.as_str())]),
            Target::Model(model) => Some([("covey.model", model.as_str())]),
            Target::Topic(_) => None,
        };
        let mut span = Span::default();
        if let Some(about) = about.filter(|_| refused.is_none()) {
            span = Span::begin(Kind::Call, known_as(&method), &traceparent, &about);
            traceparent = span.traceparent(&traceparent);
        }
        let args = Args(args);
        let request = Request { method, args, key, chain, traceparent, timeout_ms, run_timeout_ms, retry, alone };
        self.decide(|core, now| {
            let id = core.machine.next_id();
            self.handlers.insert(id, handler, span);
            match refused {
                Some(error) => core.machine.refuse_start(id, error),
                None => core.machine.start(now, id, target, request, retries),
            }
            id
        })
    }

    /// Decides something, and puts what follows from it on its way; gives what is to be told.
    fn decide<T>(self: &Arc<Self>, decision: impl FnOnce(&mut Core, Now) -> T) -> (T, News) {
        let mut news = News::default();
        let mut core = self.core.lock();
        let decided = decision(&mut core, self.now());
        self.carry_out(&mut core, &mut news);
        self.arm(&core);
        (decided, news)
    }

    /// The same, and tells it.
    fn act<T>(self: &Arc<Self>, decision: impl FnOnce(&mut Core, Now) -> T) -> T {
        let (decided, news) = self.decide(decision);
        self.tell(news);
        decided
    }

    /// Does what the machine wants, in its order.
    fn carry_out(self: &Arc<Self>, core: &mut Core, news: &mut News) {
        while let Some(output) = core.machine.poll() {
            match output {
                Output::Send(LaneId::HEAD, frame) => drop(core.head.send(wire::frame(frame))),
                Output::Send(lane, frame) => {
                    if let Some(lane) = core.lanes.get(&lane) {
                        let _ = lane.send(wire::frame(frame));
                    }
                }
                Output::Dial(id, at) => {
                    let loopback =
                        self.loopback.lock().as_ref().filter(|(own, _)| *own == at.node).map(|(_, l)| l.clone());
                    let lane = match loopback {
                        Some(loopback) => lane::local(self, id, loopback),
                        None => lane::open(self, id, at),
                    };
                    core.lanes.insert(id, lane);
                }
                Output::ToHead(lane) => {
                    core.lanes.remove(&lane);
                    for frame in std::mem::take(&mut core.returned) {
                        let _ = core.head.send(frame);
                    }
                }
                Output::Close(lane) => {
                    core.lanes.remove(&lane);
                    core.returned.clear();
                }
                Output::DropWaiting => {
                    let stays = |frame: &CallFrame| matches!(frame.body, Some(Body::DeadLetter(_) | Body::Leave(_)));
                    let mut outgoing = self.outgoing.lock();
                    let unsent = outgoing.unsent();
                    outgoing.put_back(unsent.into_iter().filter(stays));
                }
                Output::Ended(id, end) => {
                    news.told.push(Told::End(id, end.map(|reached| Some(payload_json(&reached)))));
                }
                Output::Placed(actor, result) => {
                    let hooks = core.hooks.remove(&actor).into_iter().flatten();
                    news.placed.extend(hooks.map(|hook| (hook, result.clone())));
                }
                Output::Overdue(overdue) => {
                    let what = format!("actor {}", overdue.actor);
                    news.waits.push(Waits { what, why: overdue.why, calls: overdue.calls });
                }
            }
        }
    }

    fn tell(&self, news: News) {
        let News { told, placed, waits } = news;
        self.handlers.tell(told);
        placed.into_iter().for_each(|(hook, result)| hook(result));
        if waits.is_empty() {
            return;
        }
        // It may take its time, and streams do not wait for it.
        if let Some(notice) = self.notice.lock().clone() {
            self.runtime.spawn(async move { waits.iter().for_each(|waits| notice(waits)) });
        }
    }

    /// Tells it on another task: whoever decided it may hold locks that handlers take.
    fn tell_later(self: &Arc<Self>, news: News) {
        if !(news.told.is_empty() && news.placed.is_empty() && news.waits.is_empty()) {
            let inner = self.clone();
            self.runtime.spawn(async move { inner.tell(news) });
        }
    }

    /// Has the clock look at the machine when something is due.
    fn arm(&self, core: &Core) {
        if let Some(due) = core.machine.next_timeout()
            && due < self.armed.load(Ordering::Acquire)
        {
            self.armed.store(due, Ordering::Release);
            self.rearm.notify_one();
        }
    }

    /// Takes what came over a stream.
    fn take(self: &Arc<Self>, batch: CallBatch) {
        let mut frames = batch.frames.into_iter();
        while frames.len() > 0 {
            let mut news = News::default();
            {
                let mut core = self.core.lock();
                let (now, mut room) = (self.now(), TAKEN_AT_ONCE);
                while room > 0
                    && let Some(frame) = frames.next()
                {
                    room -= 1;
                    match frame.body {
                        Some(Body::Item(first)) => take_items(&mut core, frame.id, first, &mut frames, &mut news.told),
                        _ => take_frame(&mut core, now, frame, &mut news.told),
                    }
                    self.carry_out(&mut core, &mut news);
                }
                self.arm(&core);
            }
            self.tell(news);
        }
    }

    fn has_left(&self) -> bool {
        self.core.lock().left
    }

    fn left(&self) {
        self.gone.notify_one();
    }

    fn close(self: &Arc<Self>, error: &Error) {
        self.act(|core, now| {
            core.machine.close(now, error);
            core.hooks.clear();
        });
    }

    /// Tells the head of a call that is not tried again.
    fn dead_letter(&self, letter: DeadLetter) {
        let _ = self.core.lock().head.send(CallFrame { id: 0, body: Some(Body::DeadLetter(letter)) });
    }

    /// A lane broke. `close` gives what it did not take.
    fn lane_lost(self: &Arc<Self>, lane: LaneId, close: impl FnOnce() -> Vec<CallFrame>, why: &str) {
        self.act(|core, now| {
            // Whoever starts a call waits for this, so that a call is either in what is left or was sent.
            let unsent: HashSet<u64> = close().iter().flat_map(wire::opens).collect();
            core.machine.lane_lost(now, lane, &unsent, why);
            core.lanes.remove(&lane);
        });
    }

    /// A worker cannot be dialled: what was sent to it goes through the head.
    fn lane_to_head(self: &Arc<Self>, lane: LaneId, close: impl FnOnce() -> Vec<CallFrame>) {
        self.act(|core, now| {
            core.returned = close();
            core.machine.lane_unreachable(now, lane);
        });
    }

    /// The stream to the head broke. What it had not taken waits for the next.
    fn head_lost(self: &Arc<Self>, why: &Error) {
        self.act(|core, now| {
            let unsent: HashSet<u64> = {
                let mut outgoing = self.outgoing.lock();
                let unsent = outgoing.cut();
                let calls = unsent.iter().flat_map(wire::opens).collect();
                outgoing.put_back(unsent.into_iter().filter(wire::outlives_head));
                calls
            };
            core.machine.set_patience(self.patience.load(Ordering::Relaxed));
            core.machine.head_lost(now, &unsent, &why.message);
        });
    }

    /// There is a stream to the head again; `resumed`: by the same session.
    fn head_back(self: &Arc<Self>, resumed: bool) {
        if !resumed {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
        self.act(|core, _| core.machine.head_back());
    }
}

/// Takes an item and those of the same call that follow it: they decide nothing, and are told at once.
fn take_items(
    core: &mut Core,
    id: u64,
    first: Payload,
    frames: &mut std::vec::IntoIter<CallFrame>,
    told: &mut Vec<Told>,
) {
    let mut items = vec![first];
    while matches!(frames.as_slice(), [CallFrame { id: of, body: Some(Body::Item(_)) }, ..] if *of == id)
        && let Some(CallFrame { body: Some(Body::Item(item)), .. }) = frames.next()
    {
        items.push(item);
    }
    if core.machine.item(id) {
        told.push(Told::Items(id, items));
    }
}

fn take_frame(core: &mut Core, now: Now, frame: CallFrame, told: &mut Vec<Told>) {
    let id = frame.id;
    match frame.body {
        Some(Body::End(end)) => match covey_proto::call_result(end) {
            Ok(value) => {
                if core.machine.succeeded(id) {
                    told.push(Told::End(id, Ok(value)));
                }
            }
            Err(error) => core.machine.failed(now, id, error),
        },
        Some(Body::Placement(placement)) => {
            if let Some((actor, placement)) = wire::placement(placement) {
                core.machine.placed(now, &actor, placement);
            }
        }
        Some(Body::Fence(_)) => core.machine.fence_back(now, id),
        Some(Body::Topic(v1::TopicMembers { topic, members })) => {
            let members = members.into_iter().map(|one| (ActorId::from(one.actor), one.method)).collect();
            core.machine.topic_told(now, &topic, members);
        }
        // Items are taken in runs.
        Some(Body::Item(_) | Body::Open(_) | Body::Cancel(_) | Body::Credit(_) | Body::Locate(_))
        | Some(Body::DeadLetter(_) | Body::WatchTopic(_) | Body::Piece(_) | Body::Leave(_))
        | None => {}
    }
}

/// Lets the machine do what is due, when it is.
async fn clock(weak: WeakInner) {
    loop {
        let Some(inner) = weak.upgrade() else { return };
        let due = {
            let core = inner.core.lock();
            let due = core.machine.next_timeout();
            inner.armed.store(due.unwrap_or(u64::MAX), Ordering::Release);
            due
        };
        if due.is_some_and(|due| due <= inner.now()) {
            // The clock goes on whatever a handler does.
            let ((), news) = inner.decide(|core, now| core.machine.handle_timeout(now));
            inner.tell_later(news);
            continue;
        }
        let until = due.map(|due| inner.began + Duration::from_millis(due));
        let rearm = inner.rearm.clone();
        drop(inner);
        match until {
            Some(until) => drop(tokio::time::timeout_at(until.into(), rearm.notified()).await),
            None => rearm.notified().await,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let core = self.core.get_mut();
        if !core.left {
            let _ = core.head.send(CallFrame { id: 0, body: Some(Body::Leave(Empty {})) });
        }
        // The clock ends.
        self.rearm.notify_one();
        for id in self.handlers.all() {
            self.handlers.end(id, Err(Error::unavailable("the connection was closed").executed(None)));
        }
    }
}

type WeakInner = Weak<Inner>;
