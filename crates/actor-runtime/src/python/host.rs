//! One Python process, from the worker's side: what it has, what it says, and what its end means for both.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use covey_domain::{
    ActorId, Error, ErrorKind, Isolation, agent::PythonEnv, caps, error::RUNNING, infer::InferRequest, task::Said,
};
use covey_proto::v1::{
    self, CallFrame, HostBatch, HostFrame, Payload, call_frame::Body as Call, call_open, host_frame::Body,
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{HostNumber, News, actor::Count, begun::Begun, code::Code, spawn::Socket, stack::Stacks, stuck::GivenUp};
use crate::{
    Models, Outward,
    asks::{self, Asker},
    memory::Memory,
    output::Output,
    outward::Saver,
    turn::{Onward, Over, Sink, stopped},
};

/// Items between two credits to a generator in a process whose items go to a task's log.
const CREDIT_EVERY: u32 = caps::STREAM_WINDOW / 4;
/// A message of a process over this is not one of ours. What is too large for the cluster is refused after this.
const PROCESS_MESSAGE_MAX: u32 = 1 << 30;

/// What a [`Host`] is made of.
pub(super) struct HostParts {
    pub number: HostNumber,
    pub env: PythonEnv,
    pub level: Isolation,
    /// What it prints.
    pub output: Arc<Output>,
    pub pid: u32,
    pub begun: Begun,
    pub stacks: Stacks,
    /// Its second connection.
    pub standby: UnixStream,
    pub frames: mpsc::UnboundedSender<HostFrame>,
    /// Calls of its methods to other actors.
    pub lane: mpsc::UnboundedSender<CallFrame>,
    pub outward: Arc<dyn Outward>,
    pub news: mpsc::UnboundedSender<News>,
}

/// One process.
pub(super) struct Host {
    me: Weak<Host>,
    pub number: HostNumber,
    /// For one actor alone.
    pub own: AtomicBool,
    /// For actors of this agent alone, because a process that had some of them died under them.
    pub agent: OnceLock<String>,
    pub env: PythonEnv,
    /// How much it is kept from.
    pub level: Isolation,
    pub output: Arc<Output>,
    pub pid: u32,
    pub memory: Memory,
    /// Which of its calls have begun.
    begun: Begun,
    stacks: Stacks,
    /// Shut down, it tells the process to begin nothing more.
    standby: Mutex<Option<UnixStream>>,
    frames: mpsc::UnboundedSender<HostFrame>,
    /// What is in it. `None` = the process has ended: nothing can be put into one that nobody would take out again.
    pub live: Mutex<Option<Live>>,
    /// Its end has been noticed.
    closed: AtomicBool,
    /// Why it is replaced: no actor goes there any more.
    pub retired: OnceLock<String>,
    /// Ends the process.
    pub unwanted: CancellationToken,
    code: Code,
    /// What it may ask of the cluster.
    pub asker: Asker,
    lane: mpsc::UnboundedSender<CallFrame>,
    outward: Arc<dyn Outward>,
    pub news: mpsc::UnboundedSender<News>,
    pub next_call: AtomicU64,
}

/// What is in a process.
#[derive(Default)]
pub(super) struct Live {
    pub calls: HashMap<u64, Running>,
    /// Calls that were given up and whose turns have not ended.
    pub given_up: HashMap<u64, GivenUp>,
    pub starting: HashMap<ActorId, oneshot::Sender<Result<(), Error>>>,
    /// Actors in it, or promised to it, with their agents.
    pub actors: HashMap<ActorId, String>,
    /// States that were asked for.
    pub snapshots: HashMap<u64, oneshot::Sender<StateTold>>,
    /// Requests of its methods to models.
    asks: HashMap<u64, tokio::task::AbortHandle>,
}

/// What an object says of its state; `None` = it keeps none.
pub(super) type StateTold = Result<Option<Payload>, Error>;

/// A call that is in the process.
pub(super) struct Running {
    pub actor: ActorId,
    pub sink: Sink,
    pub over: Over,
    pub taken: u32,
    pub count: Arc<Count>,
    /// To keep before the end is told.
    pub state: Option<Payload>,
    pub saver: Saver,
    pub method: String,
    /// From the start of its turn.
    pub run_timeout: Option<Duration>,
    /// The process has said that its turn runs; its table of calls knows it sooner, and when the process can say nothing.
    pub begun: bool,
    /// Its actor was told to stop: an end without an answer means that.
    pub stopping: bool,
}

impl Running {
    pub fn end(self, result: Result<Option<Payload>, Error>) {
        drop(self.over);
        self.count.down();
        self.sink.end(result);
    }

    /// Its actor or process is gone: a caller is told so, a task is tried again.
    pub fn lost(self, error: Error) {
        drop(self.over);
        self.count.down();
        self.sink.lost(error);
    }
}

/// Refuses an answer that is too large, with what does instead for whoever reads it.
fn check_answer(what: &str, value: &Payload, is_task: bool) -> Result<(), Error> {
    if is_task { covey_proto::check_task_size(what, value) } else { covey_proto::check_size(what, value) }
}

impl Host {
    pub fn new(parts: HostParts) -> Arc<Self> {
        let HostParts { number, env, level, output, pid, begun, stacks, standby, frames, lane, outward, news } = parts;
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            number,
            own: AtomicBool::new(false),
            agent: OnceLock::new(),
            env,
            level,
            output,
            pid,
            memory: Memory::default(),
            begun,
            stacks,
            standby: Mutex::new(Some(standby)),
            frames,
            live: Mutex::new(Some(Live::default())),
            closed: AtomicBool::new(false),
            retired: OnceLock::new(),
            unwanted: CancellationToken::new(),
            code: Code::default(),
            asker: Asker::new(level),
            lane,
            outward,
            news,
            next_call: AtomicU64::new(1),
        })
    }

    /// It can be given an actor.
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire) && self.retired.get().is_none()
    }

    /// It is over, or about to be.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Promises a place to an actor; `None` when the process has ended.
    pub fn promise(&self, actor: &ActorId, agent: &str) -> Option<()> {
        self.live.lock().as_mut()?.actors.insert(actor.clone(), agent.to_owned());
        Some(())
    }

    /// Actors in it.
    pub fn load(&self) -> usize {
        self.live.lock().as_ref().map_or(0, |live| live.actors.len())
    }

    /// Ends it at once. Whoever watches over it then learns that it ended.
    pub fn kill(&self) {
        self.close();
        let there = self.live.lock().is_some();
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid as i32).filter(|_| there) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    pub fn send(&self, body: Body) {
        // A closed channel is a dead process, which everyone learns from its end.
        let _ = self.frames.send(HostFrame { body: Some(body) });
    }

    fn back(&self, id: u64, body: Call) {
        self.send(Body::Back(CallFrame { id, body: Some(body) }));
    }

    /// What whoever wanted something of it is told once it has ended.
    pub fn died(&self) -> Error {
        Error::new(ErrorKind::ActorDied, format!("its Python process {} died", self.pid)).executed(None)
    }

    /// Makes an object in it, at the place it promised.
    ///
    /// # Errors
    /// Its constructor has raised, its process has died, or the constructor has not returned `within`: then the process is
    /// replaced, since nothing ends a constructor from outside.
    pub async fn start(&self, start: v1::HostStart, within: Duration, version: &str) -> Result<(), Error> {
        let actor = ActorId::from(start.actor.as_str());
        let (tx, rx) = oneshot::channel();
        match self.live.lock().as_mut() {
            Some(live) => drop(live.starting.insert(actor.clone(), tx)),
            None => return Err(self.died()),
        }
        self.asker.started(&actor, &start.owner);
        self.output.enter(&actor, &start.agent, &start.owner);
        self.code.send(start, |start| self.send(Body::Start(start)));
        if self.retired.get().is_some() {
            self.start_nothing();
        }
        let result = match tokio::time::timeout(within, rx).await {
            Ok(told) => told.unwrap_or_else(|_| Err(self.died())),
            Err(_) => Err(self.hangs(&actor, within)),
        };
        if let Err(error) = &result {
            if let Some(live) = self.live.lock().as_mut() {
                live.actors.remove(&actor);
                live.starting.remove(&actor);
            }
            self.asker.stopped(&actor);
            self.output.leave(&actor);
            tracing::info!(%actor, version, %error, "a python actor did not start");
        }
        result
    }

    /// Whether the turn of a call has begun, as its process wrote down; `None` where that cannot be known.
    pub fn has_begun(&self, call: u64) -> Option<bool> {
        self.begun.has(call)
    }

    /// Where its threads are.
    pub async fn stack(&self) -> Result<Vec<u8>, Error> {
        self.stacks.ask(self.pid).await
    }

    /// Tells the process to begin nothing more, so that what waits in it comes back unrun and runs elsewhere. It answers by a
    /// thread of its own; `false` when it does not, because something keeps the interpreter.
    pub async fn retire(&self) -> bool {
        const ANSWERS: Duration = Duration::from_millis(caps::REPLACE_ANSWER_MS);
        let Some(mut standby) = self.standby.lock().take() else { return true };
        let answered = async {
            let _ = standby.shutdown().await;
            let _ = standby.read(&mut [0]).await;
        };
        tokio::time::timeout(ANSWERS, answered).await.is_ok()
    }

    /// Actors that are on their way up in a process that is replaced come up elsewhere.
    pub fn start_nothing(&self) {
        let starting = self.with(|live| std::mem::take(&mut live.starting)).unwrap_or_default();
        for waiting in starting.into_values() {
            let _ = waiting.send(Err(Error::unavailable("its Python process is replaced").executed(Some(false))));
        }
    }

    /// Reads what the process says until it has no more to say.
    pub async fn read(self: Arc<Self>, socket: Socket, models: Arc<Models>) {
        let mut socket = BufReader::with_capacity(64 << 10, socket);
        while let Ok(length) = socket.read_u32().await {
            if length > PROCESS_MESSAGE_MAX {
                break;
            }
            let mut body = vec![0; length as usize];
            if socket.read_exact(&mut body).await.is_err() {
                break;
            }
            let Ok(batch) = HostBatch::decode(Bytes::from(body)) else { break };
            for frame in batch.frames {
                if let Some(body) = frame.body {
                    self.take(body, &models);
                }
            }
        }
    }

    /// The process has ended: what was in it is told so. Gives the actors that were, and the agents that had turns.
    pub fn bury(&self, why: &str) -> (Vec<ActorId>, HashSet<String>) {
        self.close();
        let Some(live) = self.live.lock().take() else { return Default::default() };
        let Live { calls, given_up, starting, actors, snapshots, asks } = live;
        let may_run = calls.iter().filter(|(call, _)| self.begun.has(**call) != Some(false));
        let agents = may_run.filter_map(|(_, running)| actors.get(&running.actor).cloned()).collect();
        let error = Error::new(ErrorKind::ActorDied, why).executed(None);
        given_up.into_values().for_each(GivenUp::over);
        let mut lost: Vec<_> = calls.into_iter().collect();
        lost.sort_by_key(|(call, _)| *call);
        for (call, running) in lost {
            let begun = self.begun.has(call);
            let error = match begun {
                _ if running.stopping => stopped(),
                // What ran in a process that we ended is not why it ended.
                Some(true) if self.retired.get().is_none() => {
                    Error { detail: Some(RUNNING.to_owned()), ..error.clone() }
                }
                Some(_) | None => error.clone(),
            };
            // What waited behind others runs elsewhere.
            running.lost(if begun == Some(false) { error.executed(Some(false)) } else { error });
        }
        for waiting in starting.into_values() {
            let _ = waiting.send(Err(error.clone()));
        }
        drop(snapshots);
        asks.into_values().for_each(|ask| ask.abort());
        (actors.into_keys().collect(), agents)
    }

    fn take(&self, body: Body, models: &Arc<Models>) {
        match body {
            Body::Started(started) => {
                let waiting = self.with(|live| live.starting.remove(started.actor.as_str())).flatten();
                if let Some(waiting) = waiting {
                    let _ = waiting.send(started.failure.map_or(Ok(()), |f| Err(f.into())));
                }
            }
            Body::Item(item) => self.item(item),
            Body::Event(told) => self.event(told),
            Body::Began(began) => self.began(began.call),
            Body::End(end) => self.ended(end),
            Body::State(told) if told.call != 0 => {
                self.with(|live| {
                    if let (Some(running), Some(state)) = (live.calls.get_mut(&told.call), told.state) {
                        running.state = Some(state);
                    }
                });
            }
            Body::State(told) => {
                let asked = self.with(|live| live.snapshots.remove(&told.number)).flatten();
                if let Some(asked) = asked {
                    let _ = asked.send(told.failure.map_or(Ok(told.state), |f| Err(f.into())));
                }
            }
            Body::Waits(told) => {
                let news = News::Waits { host: self.number, actor: told.actor.into(), waits: told.waits };
                let _ = self.news.send(news);
            }
            Body::Out(frame) => self.out(frame, models),
            Body::Verb(verb) => {
                let asked = match self.asker.check(&verb.name, &verb.body) {
                    Ok(asked) => asked,
                    Err(error) => {
                        let failure = Some(error.into());
                        return self.send(Body::Reply(v1::HostReply { id: verb.id, body: Bytes::new(), failure }));
                    }
                };
                let (host, reply) = (self.me.clone(), self.outward.verb(verb.name.clone(), asked));
                tokio::spawn(async move {
                    let (body, failure) = match reply.await {
                        Ok(body) => (asks::shown(&verb.name, body), None),
                        Err(error) => (Bytes::new(), Some(error.into())),
                    };
                    if let Some(host) = host.upgrade() {
                        host.send(Body::Reply(v1::HostReply { id: verb.id, body, failure }));
                    }
                });
            }
            Body::Log(log) => tracing::info!(pid = self.pid, level = log.level, "{}", log.text),
            _ => {}
        }
    }

    /// What is in the process, unless that has ended.
    pub fn with<T>(&self, look: impl FnOnce(&mut Live) -> T) -> Option<T> {
        self.live.lock().as_mut().map(look)
    }

    fn item(&self, item: v1::HostItem) {
        let mut guard = self.live.lock();
        let Some(running) = guard.as_mut().and_then(|live| live.calls.get_mut(&item.call)) else { return };
        let value = item.value.unwrap_or_default();
        if let Err(error) = check_answer("an item of the answer", &value, running.sink.is_task()) {
            drop(guard);
            return self.give_up(item.call, error);
        }
        running.sink.push(value);
        running.taken += 1;
        if running.taken % CREDIT_EVERY == 0 && running.sink.may_go_on(CREDIT_EVERY) {
            self.send(Body::Credit(v1::HostCredit { call: item.call, items: CREDIT_EVERY }));
        }
    }

    fn event(&self, told: v1::HostEvent) {
        let guard = self.live.lock();
        let Some(running) = guard.as_ref().and_then(|live| live.calls.get(&told.call)) else { return };
        let size = covey_proto::check_bytes("an event of the turn", told.event.len());
        let read = size.and_then(|()| covey_proto::from_json("an event of the turn", &told.event));
        if let Err(error) = read.and_then(|event| running.sink.emit(event)) {
            drop(guard);
            self.give_up(told.call, error);
        }
    }

    fn ended(&self, end: v1::HostEnd) {
        let mut guard = self.live.lock();
        let Some(live) = guard.as_mut() else { return };
        let Some(mut running) = live.calls.remove(&end.call) else {
            drop(guard);
            return self.given_up_ended(end.call);
        };
        drop(guard);
        let state = running.state.take();
        let is_task = running.sink.is_task();
        let result = covey_proto::call_result(end.end.unwrap_or_default()).and_then(|value| {
            value.iter().try_for_each(|value| check_answer("the answer", value, is_task))?;
            Ok(value)
        });
        if let Err(error) = &result {
            // It waited behind others, and its actor went before its turn came; or it waits for a loop that is blocked.
            if error.kind == ErrorKind::ActorDied {
                let (actor, why) = (running.actor.clone(), error.message.clone());
                running.lost(error.clone());
                if is_task && error.executed.is_none() {
                    // The head gives it to another actor once this one is gone.
                    let _ = self.news.send(News::Lost { host: self.number, actor, why });
                }
                return;
            }
            if running.stopping && error.kind == ErrorKind::Cancelled {
                return running.lost(stopped());
            }
        }
        match state {
            None => running.end(result),
            // The answer is given once what it did is on disk.
            Some(state) => drop(tokio::spawn(async move {
                match running.saver.save(Some(state)).await {
                    Err(error) if error.kind == ErrorKind::ActorDied => running.lost(error),
                    saved => running.end(saved.and(result)),
                }
            })),
        }
    }

    /// A call of a running method: to a model, which may be here, or to another actor.
    fn out(&self, mut frame: CallFrame, models: &Arc<Models>) {
        let id = frame.id;
        match &mut frame.body {
            Some(Call::Open(open)) if matches!(open.target, Some(call_open::Target::Model(_))) => {
                let request = covey_proto::from_json("the model request", &open.args.clone().unwrap_or_default().body)
                    .map(|request| asks::ranked(request, self.number));
                let span = inference(&request, &open.traceparent);
                let Some(me) = self.me.upgrade() else { return };
                let running = tokio::spawn(think(me, id, request, models.clone(), span)).abort_handle();
                self.with(|live| live.asks.insert(id, running));
            }
            Some(Call::Open(v1::CallOpen { target: Some(call_open::Target::Pool(spec)), .. })) => {
                match self.asker.check_pool(spec) {
                    Ok(asked) => {
                        *spec = asked;
                        let _ = self.lane.send(frame);
                    }
                    Err(error) => self.back(id, Call::End(covey_proto::failure(error.executed(Some(false))))),
                }
            }
            Some(Call::Cancel(_)) => match self.with(|live| live.asks.remove(&id)).flatten() {
                Some(running) => {
                    running.abort();
                    let error = Error::new(ErrorKind::Cancelled, "cancelled");
                    self.back(id, Call::End(covey_proto::failure(error)));
                }
                None => drop(self.lane.send(frame)),
            },
            _ => drop(self.lane.send(frame)),
        }
    }
}

fn inference(request: &Result<InferRequest, Error>, parent: &str) -> covey_trace::Span {
    let model = request.as_ref().map_or("", |request| request.model.as_str());
    crate::models::span(model, parent)
}

/// A model's answer to a running method.
async fn think(
    host: Arc<Host>,
    id: u64,
    request: Result<InferRequest, Error>,
    models: Arc<Models>,
    mut span: covey_trace::Span,
) {
    let result = async {
        let mut events = models.infer(request?);
        while let Some(event) = events.next().await {
            let event = event?;
            crate::models::count(&mut span, &event);
            host.back(id, Call::Item(covey_proto::infer_payload(&event)));
        }
        Ok(None)
    };
    let result = result.await.inspect_err(|error| span.fail(error));
    drop(span);
    let end = covey_proto::call_end(result);
    if host.with(|live| live.asks.remove(&id)).flatten().is_some() {
        host.back(id, Call::End(end));
    }
}

impl Onward for Host {
    fn cancel(&self, call: u64) {
        self.give_up(call, Error::new(ErrorKind::Cancelled, "cancelled").executed(None));
    }

    fn credit(&self, call: u64, items: u32) {
        self.send(Body::Credit(v1::HostCredit { call, items }));
    }

    fn say(&self, call: u64, said: &Said) {
        self.send(Body::Say(v1::HostSay { call, said: covey_proto::to_json(said) }));
    }
}

impl Host {
    /// A handle of its own, for work that outlasts the asker.
    pub fn weak(&self) -> Weak<Host> {
        self.me.clone()
    }
}
