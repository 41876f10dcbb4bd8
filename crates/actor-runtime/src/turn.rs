//! One turn of an actor and where its answer goes: a caller's stream with credits, or a task's log.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use covey_domain::{
    Error, ErrorKind, InterruptId, ModelName, TaskEvent, TaskId, caps,
    event::{Content, Outcome},
    infer::Usage,
    log::Writer,
    task::Said,
};
use covey_proto::{
    call_end, failure, from_json, payload_json,
    v1::{CallEnd, CallFrame, Codec, Payload, call_frame::Body},
};
use covey_trace::Span;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    ahead::{Ahead, Backlog},
    behavior::Invocation,
    runtime::Report,
};

mod task_log;

use task_log::TaskLog;

/// The provider of models that this cluster serves itself, in [`TaskEvent::Usage`].
const LOCAL: &str = "covey";

/// Where an answer goes. Whatever happens, it ends once: a sink that is dropped unended reports the actor's death.
pub struct Sink {
    target: Target,
    usage: Mutex<BTreeMap<ModelName, Usage>>,
    span: Span,
    ended: bool,
}

enum Target {
    Call { out: Out, id: u64, control: Arc<Control>, memo: Option<Arc<Memo>> },
    Task(Box<TaskLog>),
}

/// Where the frames of a caller's stream go.
#[derive(Clone)]
pub(crate) enum Out {
    /// Over the link of this number, in order with all other reports.
    Link(u64, mpsc::UnboundedSender<Report>),
    /// Straight to the caller.
    Lane(mpsc::UnboundedSender<CallFrame>),
}

impl Out {
    pub fn send(&self, id: u64, body: Body) {
        let frame = CallFrame { id, body: Some(body) };
        // A closed channel is a caller that has gone; its calls are being cancelled.
        match self {
            Self::Link(link, reports) => drop(reports.send(Report::Call(*link, frame))),
            Self::Lane(frames) => drop(frames.send(frame)),
        }
    }
}

/// What the caller of a turn may still do to it.
pub(crate) struct Control {
    pub token: CancellationToken,
    /// Items the reader can take.
    pub credits: Semaphore,
    /// Where the turn runs when that is not here.
    onward: OnceLock<(Arc<dyn Onward>, u64)>,
    /// Messages to its task.
    pub inbox: Inbox,
    /// How far its task's log is ahead of the head.
    pub backlog: Backlog,
    /// Its actor is gone: what its task's log says of its end is said by the head, and a caller hears of that and not of a
    /// cancellation that it did not ask for.
    lost: AtomicBool,
    /// Items were sent to the caller.
    streamed: AtomicBool,
    /// Nobody reads the answer now; it is kept for who asks again.
    detached: AtomicBool,
}

/// Messages to a task that nobody has taken yet, each once however often it comes.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    last: u64,
    waiting: VecDeque<Said>,
    /// Questions of the turn that are open.
    asked: Vec<InterruptId>,
    /// Told of each message.
    news: Arc<Notify>,
}

impl Inbox {
    /// The next message.
    pub fn next(&self) -> Option<Said> {
        self.0.lock().waiting.pop_front()
    }

    /// The next message, when it comes; the answers of questions too.
    pub async fn wait(&self) -> Said {
        let news = self.0.lock().news.clone();
        loop {
            let mut told = std::pin::pin!(news.notified());
            told.as_mut().enable();
            match self.next() {
                Some(said) => return said,
                None => told.await,
            }
        }
    }
}

/// A place outside this process that runs turns.
pub(crate) trait Onward: Send + Sync {
    /// The caller does not want the answer any more.
    fn cancel(&self, call: u64);
    /// The reader can take more items.
    fn credit(&self, call: u64, items: u32);
    /// A message to the turn's task.
    fn say(&self, call: u64, said: &Said);
}

impl Control {
    /// Credits begin with a full window.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            token: CancellationToken::new(),
            credits: Semaphore::new(caps::STREAM_WINDOW as usize),
            onward: OnceLock::new(),
            inbox: Inbox::default(),
            backlog: Backlog::default(),
            lost: AtomicBool::new(false),
            streamed: AtomicBool::new(false),
            detached: AtomicBool::new(false),
        })
    }

    /// The turn runs there from now on. What was said to its task goes there too.
    pub fn go_on(&self, place: Arc<dyn Onward>, call: u64) {
        let mut heard = self.inbox.0.lock();
        heard.waiting.drain(..).for_each(|said| place.say(call, &said));
        let _ = self.onward.set((place, call));
    }

    /// Takes a message to the turn's task.
    pub fn say(&self, said: Said) {
        let mut heard = self.inbox.0.lock();
        if said.seq <= heard.last {
            return;
        }
        heard.last = said.seq;
        heard.asked.retain(|asked| Some(asked) != said.answers.as_ref());
        match self.onward.get() {
            Some((place, call)) => place.say(*call, &said),
            None => {
                heard.waiting.push_back(said);
                heard.news.notify_waiters();
            }
        }
    }

    /// Stops the turn because its actor goes. A task is not over by that: the head gives it to another.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.cancel();
    }

    pub fn cancel(&self) {
        self.token.cancel();
        if let Some((place, call)) = self.onward.get() {
            place.cancel(*call);
        }
    }

    /// The way to the caller is gone, and the call has a key: the caller may come back by another way and ask again. A stream
    /// cannot be read again, so one is cancelled.
    pub fn detach(&self) {
        self.detached.store(true, Ordering::SeqCst);
        if self.streamed.load(Ordering::SeqCst) {
            self.cancel();
        }
    }

    /// The first item is about to be sent.
    fn streams(&self) {
        self.streamed.store(true, Ordering::SeqCst);
        if self.detached.load(Ordering::SeqCst) {
            self.cancel();
        }
    }

    pub fn credit(&self, items: u32) {
        let items = items.min(caps::STREAM_WINDOW);
        match self.onward.get() {
            Some((place, call)) => place.credit(*call, items),
            None => self.credits.add_permits(items as usize),
        }
    }
}

/// How a call ends whose actor is stopped under it.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::ActorDied, "the actor was stopped before it answered").executed(None)
}

/// What the log of a task keeps of an error: an exception of the agent's own, unless it is large, so that who asked for the task
/// raises the same as who calls the method.
fn for_the_log(error: Error) -> Error {
    let kept = |detail: &String| error.kind == ErrorKind::Application && detail.len() <= caps::ERROR_DETAIL_MAX;
    Error { detail: error.detail.clone().filter(kept), ..error }
}

/// The answer to a call with a key, for callers that ask again.
#[derive(Default)]
pub(crate) struct Memo {
    state: Mutex<Asked>,
}

#[derive(Default)]
enum Asked {
    /// Not yet, or in vain: whoever asked was refused unrun.
    #[default]
    Never,
    /// A turn runs; these wait for its answer too.
    Running(Vec<(Out, u64)>),
    /// The answer.
    Done(CallEnd),
}

impl Memo {
    /// Of a call that was answered.
    pub fn of(end: CallEnd) -> Self {
        Self { state: Mutex::new(Asked::Done(end)) }
    }

    /// It was answered, or a turn runs for it.
    pub fn is_asked(&self) -> bool {
        !matches!(&*self.state.lock(), Asked::Never)
    }

    /// The answer, once there is one.
    pub fn answer(&self) -> Option<CallEnd> {
        match &*self.state.lock() {
            Asked::Done(end) => Some(end.clone()),
            Asked::Never | Asked::Running(_) => None,
        }
    }

    /// `true` when the turn is to be run for this caller. Others are answered now, or when the turn that runs is over.
    pub fn begin(&self, out: &Out, id: u64) -> bool {
        let mut state = self.state.lock();
        match &mut *state {
            Asked::Never => {
                *state = Asked::Running(Vec::new());
                return true;
            }
            Asked::Running(waiting) => waiting.push((out.clone(), id)),
            Asked::Done(end) => out.send(id, Body::End(end.clone())),
        }
        false
    }

    /// The turn is over. What was not run is not an answer to remember.
    fn keep(&self, end: &CallEnd, unrun: bool) {
        let next = if unrun { Asked::Never } else { Asked::Done(end.clone()) };
        if let Asked::Running(waiting) = std::mem::replace(&mut *self.state.lock(), next) {
            waiting.into_iter().for_each(|(out, id)| out.send(id, Body::End(end.clone())));
        }
    }
}

impl Sink {
    pub(crate) fn call(out: Out, id: u64, control: Arc<Control>, memo: Option<Arc<Memo>>) -> Self {
        Self::new(Target::Call { out, id, control, memo })
    }

    /// With the span of the turn, which ends with it.
    pub(crate) fn traced(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// What the turn does is done for this.
    pub(crate) fn traceparent(&self) -> String {
        self.span.traceparent("")
    }

    pub(crate) fn task(out: mpsc::UnboundedSender<Report>, task: TaskId, attempt: u32, control: Arc<Control>) -> Self {
        let writer = Mutex::new(Some(Writer::new(task.clone(), attempt)));
        let (ending, broken) = (Mutex::default(), Mutex::default());
        Self::new(Target::Task(Box::new(TaskLog { out, task, attempt, writer, control, ending, broken })))
    }

    /// Its task waits for an answer from outside.
    pub(crate) fn rests(&self) -> bool {
        match &self.target {
            Target::Call { .. } => false,
            Target::Task(log) => !log.control.inbox.0.lock().asked.is_empty(),
        }
    }

    fn new(target: Target) -> Self {
        Self { target, usage: Mutex::default(), ended: false, span: Span::default() }
    }

    /// The answer goes to a task's log.
    pub(crate) fn is_task(&self) -> bool {
        matches!(self.target, Target::Task(_))
    }

    /// More text of the answer.
    pub async fn text(&self, text: &str) {
        match &self.target {
            Target::Call { .. } => self.item(payload_json(&text)).await,
            Target::Task(log) => {
                log.control.backlog.room().await;
                let events = log.writer.lock().as_mut().map(|w| w.text(text)).unwrap_or_default();
                self.events(events);
            }
        }
    }

    /// One item of the answer. Waits while the reader is [`caps::STREAM_WINDOW`] items behind, or the head
    /// [`caps::TASK_AHEAD_BYTES_MAX`] of the task's log.
    pub async fn item(&self, item: Payload) {
        match &self.target {
            Target::Call { control, .. } => {
                if let Ok(permit) = control.credits.acquire().await {
                    permit.forget();
                }
            }
            Target::Task(log) => log.control.backlog.room().await,
        }
        self.push(item);
    }

    /// Whether a process may go on with `items` more of the answer of a task. If not, it gets the credit for them later; a
    /// caller gives credit itself.
    pub(crate) fn may_go_on(&self, items: u32) -> bool {
        match &self.target {
            Target::Call { .. } => false,
            Target::Task(log) => log.control.backlog.may_go_on(items),
        }
    }

    /// One item of the answer, from a place that keeps to the reader's window itself.
    pub(crate) fn push(&self, item: Payload) {
        match &self.target {
            Target::Call { out, id, control, .. } => {
                if !control.streamed.load(Ordering::Relaxed) {
                    control.streams();
                }
                out.send(*id, Body::Item(item));
            }
            Target::Task(log) => {
                let content = contents(&item).unwrap_or_else(|error| {
                    log.breaks(error);
                    Vec::new()
                });
                let events =
                    log.writer.lock().as_mut().map(|w| content.into_iter().flat_map(|c| w.content(c)).collect());
                self.events(events.unwrap_or_default());
            }
        }
    }

    /// [`Self::emit`], once the head is less than [`caps::TASK_AHEAD_BYTES_MAX`] of the task's log behind: for events that come one
    /// after the other.
    pub async fn write(&self, event: TaskEvent) -> Result<(), Error> {
        if let Target::Task(log) = &self.target {
            log.control.backlog.room().await;
        }
        self.emit(event)
    }

    /// Writes an event of the turn into its task's log, in the turn's own names: a tool call, a piece of delegated work and an
    /// artifact have an id within the turn, thoughts and results name no part and no message, and [`TaskEvent::Finished`] says
    /// how the task ends once the turn does. A turn of no task has no log: there it does nothing.
    ///
    /// # Errors
    /// The event is not a turn's to write, or the log cannot keep it. The turn is to end with this error: it may wait for an answer
    /// to what nobody was asked.
    pub fn emit(&self, event: TaskEvent) -> Result<(), Error> {
        let Target::Task(log) = &self.target else { return Ok(()) };
        // Before anything is noted of it: what is refused has not happened.
        event.check_names()?;
        event.check()?;
        if log.control.backlog.bytes() > caps::TURN_UNSAVED_BYTES_MAX {
            let most = caps::TURN_UNSAVED_BYTES_MAX >> 20;
            let text = format!("the turn wrote {most} MiB of events that the head has not on disk yet");
            return Err(Error::new(ErrorKind::Overloaded, text).hint("write less at once, or yield it: yielding waits"));
        }
        if let TaskEvent::Usage { model, usage, .. } = &event {
            self.count(model, *usage)?;
        }
        self.events(log.entries(event)?);
        Ok(())
    }

    /// Forgets the answer so far: it begins anew. Only a task's log can.
    pub(crate) fn begin_anew(&self) -> bool {
        let Target::Task(log) = &self.target else { return false };
        let events = log.writer.lock().as_mut().map(Writer::begin_anew).unwrap_or_default();
        self.events(events);
        true
    }

    /// Tokens that a model of this cluster read and made for the turn.
    pub fn used(&self, model: &ModelName, usage: Usage) {
        match &self.target {
            Target::Call { .. } => drop(self.count(model, usage)),
            // An entry of counts fits every log.
            Target::Task(_) => {
                drop(self.emit(TaskEvent::Usage { provider: LOCAL.into(), model: model.clone(), usage }))
            }
        }
    }

    fn count(&self, model: &ModelName, usage: Usage) -> Result<(), Error> {
        let mut all = self.usage.lock();
        if all.len() >= caps::TURN_MODELS_MAX && !all.contains_key(model) {
            let text = format!("a turn counts the tokens of {} models", caps::TURN_MODELS_MAX);
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        let sum = all.entry(model.clone()).or_default();
        sum.input = sum.input.saturating_add(usage.input);
        sum.output = sum.output.saturating_add(usage.output);
        Ok(())
    }

    /// The actor is gone, before it answered or before it began. A caller is told so. A task is not over: the head hears
    /// of the actor's end by the actor's report, and tries the task again.
    pub(crate) fn lost(mut self, error: Error) {
        match &self.target {
            Target::Call { .. } => self.finish(Err(error)),
            Target::Task(_) => {
                self.span.fail(&error);
                self.ended = true;
            }
        }
    }

    /// The end of the answer.
    pub(crate) fn end(mut self, result: Result<Option<Payload>, Error>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Option<Payload>, Error>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Err(error) = &result {
            self.span.fail(error);
        }
        drop(std::mem::take(&mut self.span));
        match &self.target {
            Target::Call { out, id, memo, control } => {
                let cancelled = matches!(&result, Err(error) if error.kind == ErrorKind::Cancelled);
                let result = if cancelled && control.lost.load(Ordering::Acquire) { Err(stopped()) } else { result };
                // What is tried again with the same key is run again.
                let unrun = matches!(&result, Err(error) if error.executed == Some(false) || error.retry);
                let end = call_end(result);
                if let Some(memo) = memo {
                    if control.streamed.load(Ordering::Relaxed) {
                        let text = "this key's call was a stream, which cannot be read again";
                        let again = Error::new(ErrorKind::FailedPrecondition, text).executed(Some(true));
                        memo.keep(&failure(again), false);
                    } else {
                        memo.keep(&end, unrun);
                    }
                }
                out.send(*id, Body::End(end));
            }
            // What was stopped with its actor is tried again.
            Target::Task(log) if result.is_err() && log.control.lost.load(Ordering::Acquire) => {}
            Target::Task(log) => {
                if let Ok(Some(value)) = &result
                    && value.codec() == Codec::Content
                {
                    self.push(value.clone());
                }
                let said = log.ending.lock().take();
                let outcome = match (result, said) {
                    (Err(error), _) if error.kind == ErrorKind::Cancelled => {
                        Outcome::Cancelled { by: "worker".into(), reason: error.message }
                    }
                    (_, Some(said)) => said,
                    (Ok(value), None) => {
                        let value = value.filter(|v| v.codec() == Codec::Json);
                        let read =
                            |v: Payload| from_json("the result", &v.body).map_err(|error| log.breaks(error)).ok();
                        Outcome::Completed { finish: "stop".into(), result: value.and_then(read) }
                    }
                    (Err(error), None) => Outcome::Failed { error: for_the_log(error) },
                };
                let end = TaskEvent::Finished { outcome: outcome.clone(), usage: BTreeMap::new() };
                let _ = end.check().map_err(|error| log.breaks(error));
                let outcome = log.broken.lock().take().map_or(outcome, |error| Outcome::Failed { error });
                if let Some(writer) = log.writer.lock().take() {
                    let events = writer.finish(outcome, std::mem::take(&mut *self.usage.lock()));
                    self.events(events);
                }
            }
        }
    }

    fn events(&self, mut events: Vec<TaskEvent>) {
        if let Target::Task(log) = &self.target
            && !events.is_empty()
        {
            events.retain(|event| event.check().map_err(|error| log.breaks(error)).is_ok());
            let ahead = Ahead::new(&log.control, events.iter().map(TaskEvent::weight).sum());
            let _ = log.out.send(Report::Events { task: log.task.clone(), attempt: log.attempt, events, ahead });
        }
    }
}

/// What an item of a task's answer holds.
fn contents(item: &Payload) -> Result<Vec<Content>, Error> {
    if item.codec() == Codec::Content {
        return from_json("an item of the answer", &item.body);
    }
    Ok(match from_json("an item of the answer", &item.body)? {
        serde_json::Value::String(text) => vec![Content::Text(text)],
        other => vec![Content::Data(other)],
    })
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.ended {
            match &self.target {
                // The head learns of the actor's end by its own report and tries the task again elsewhere.
                Target::Task(_) => {}
                Target::Call { .. } => {
                    self.finish(Err(
                        Error::new(ErrorKind::ActorDied, "the actor stopped before it answered").executed(None)
                    ));
                }
            }
        }
    }
}

/// A request in an actor's mailbox.
pub(crate) struct Turn {
    pub invocation: Invocation,
    pub sink: Sink,
    pub control: Arc<Control>,
    pub deadline: Option<tokio::time::Instant>,
    /// Bound on the turn itself, from its start.
    pub run_timeout: Option<Duration>,
    /// Exceptions, `module.name`, that are to be marked as worth another try.
    pub retry_on: Vec<String>,
    /// Processes died while they ran it: nothing runs beside it in its process.
    pub alone: bool,
    /// Called when the turn is over, however it ended.
    pub over: Over,
}

/// Runs a closure when dropped.
pub(crate) struct Over(pub Option<Box<dyn FnOnce() + Send>>);

impl Drop for Over {
    fn drop(&mut self) {
        if let Some(over) = self.0.take() {
            over();
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test sends has an end")]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_once_and_waits_for_the_place_of_its_turn() {
        struct Place(Mutex<Vec<u64>>);
        impl Onward for Place {
            fn cancel(&self, _: u64) {}
            fn credit(&self, _: u64, _: u32) {}
            fn say(&self, _: u64, said: &Said) {
                self.0.lock().push(said.seq);
            }
        }
        let said = |seq| Said { seq, answers: None, prompt: String::new(), message_id: None, parts: vec![] };
        let (control, place) = (Control::new(), Arc::new(Place(Mutex::default())));
        [3, 4, 3].into_iter().for_each(|seq| control.say(said(seq)));
        control.go_on(place.clone(), 1);
        [4, 5].into_iter().for_each(|seq| control.say(said(seq)));
        assert_eq!(*place.0.lock(), [3, 4, 5]);
        assert!(control.inbox.next().is_none());
    }

    #[test]
    fn a_task_whose_answer_its_log_cannot_keep_fails_with_the_reason() {
        let deep =
            |levels| payload_json(&(0..levels).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner])));
        let broken = Payload { body: "NaN".into(), ..payload_json(&1) };
        for (item, result, good) in [
            (deep(64), deep(64), true),
            (deep(65), deep(1), false),
            (deep(1), deep(65), false),
            (deep(1), deep(200), false),
            (broken.clone(), deep(1), false),
            (deep(1), broken, false),
        ] {
            let (tx, mut rx) = mpsc::unbounded_channel();
            let sink = Sink::task(tx, "t".into(), 1, Control::new());
            sink.push(item);
            sink.end(Ok(Some(result)));
            let mut ends = Vec::new();
            while let Ok(Report::Events { events, .. }) = rx.try_recv() {
                assert!(events.iter().all(|event| event.check().is_ok()));
                ends.extend(events.into_iter().filter_map(|event| match event {
                    TaskEvent::Finished { outcome, .. } => Some(matches!(outcome, Outcome::Completed { .. })),
                    _ => None,
                }));
            }
            assert_eq!(ends, [good]);
        }
    }

    #[test]
    fn a_key_is_answered_from_memory_but_a_refusal_is_none() {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let out = Out::Lane(tx);
        let memo = Arc::new(Memo::default());
        let mut told = || rx.try_recv().ok().map(|frame| frame.id);
        let turn = |id| Sink::call(out.clone(), id, Control::new(), Some(memo.clone()));
        assert!(memo.begin(&out, 1));
        assert!(!memo.begin(&out, 2), "it runs already");
        turn(1).end(Err(Error::new(ErrorKind::ActorDied, "not here").executed(Some(false))));
        assert_eq!([told(), told(), told()], [Some(2), Some(1), None], "all who waited are refused");
        assert!(memo.begin(&out, 3), "a refused call is run when it comes again");
        turn(3).end(Ok(None));
        assert!(!memo.begin(&out, 4));
        assert_eq!([told(), told(), told()], [Some(3), Some(4), None]);
    }
}
