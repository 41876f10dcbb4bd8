//! An agent elsewhere as an actor: what it is asked goes there by A2A, and what it says passes through as it comes.
//!
//! Its questions are questions of the task here, and answers go back to it; messages to a task that works reach it there.
//! A turn that is run again after a lost one sends the same message with the same id: servers that know it by that go on
//! where they were.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use covey_a2a::{
    Fields, Json,
    card::{self, EXTENSION_MODEL},
    content::{About, content, part},
    v1::{self, part::Content as Held, stream_response::Payload as News},
};
use covey_a2a_client::{Agent, Options, Talk, state_of};
use covey_domain::{
    Error, ErrorKind, InterruptId, TaskEvent, TaskState,
    agent::{Foreign, Pass},
    event::{Content, InterruptKind, Outcome, Phase, REPLY},
    task::{Said, text_of},
};
use covey_proto::{
    from_json, payload_json, to_json,
    v1::{Codec, Payload},
};
use futures::{StreamExt as _, future::BoxFuture};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::{Behavior, Invocation, Outward, Sink, behavior::TaskTurn, files, turn::Inbox};

/// A card is read again after so long.
const CARD_FRESH: Duration = Duration::from_secs(5 * 60);
/// Conversations whose ids there are remembered.
const CONTEXTS_MAX: usize = 10_000;
/// The skill of requests that name none.
const RUN: &str = "run";

/// An agent, and when its card was read.
type Known = (Instant, Arc<Agent>);

pub(crate) struct Elsewhere {
    options: Options,
    outward: Arc<dyn Outward>,
    agent: Arc<tokio::sync::Mutex<Option<Known>>>,
    contexts: Mutex<Contexts>,
}

/// Ids of conversations: ours, and what they are called there.
#[derive(Default)]
struct Contexts {
    theirs: HashMap<String, String>,
    oldest_first: VecDeque<String>,
}

impl Contexts {
    fn keep(&mut self, ours: &str, theirs: &str) {
        if self.theirs.insert(ours.to_owned(), theirs.to_owned()).is_some() {
            return;
        }
        self.oldest_first.push_back(ours.to_owned());
        if self.oldest_first.len() > CONTEXTS_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.theirs.remove(&oldest);
        }
    }
}

/// How a turn there ended.
enum End {
    /// With its whole answer.
    Done,
    /// The agent asks somebody.
    Asks(Asked),
    /// The agent would not do it.
    Rejected(String),
    Failed(Error),
}

/// What an agent asks.
struct Asked {
    login: bool,
    prompt: String,
    about: About,
}

impl Asked {
    /// A question as a message has it. Its data is part of the words, unless it says what a good answer is.
    fn of(login: bool, said: Vec<Content>) -> Self {
        let (mut about, mut words) = (About::default(), Vec::new());
        for one in said {
            let known = if let Content::Data(data) = &one { About::of(data) } else { None };
            match known {
                Some(known) => about = known,
                None => words.push(one),
            }
        }
        let prompt = match (text_of(&words), login) {
            (text, _) if !text.is_empty() => text,
            (_, true) => "a login is needed".to_owned(),
            (_, false) => "more is needed".to_owned(),
        };
        Self { login, prompt, about }
    }

    /// The question as it is asked here.
    fn raised(self, id: InterruptId) -> TaskEvent {
        let Self { login, prompt, about: About { options, schema, url, value } } = self;
        let kind = match (login, &schema, url) {
            (true, _, url) => InterruptKind::Auth { url },
            (false, Some(schema), _) => InterruptKind::Form { schema: schema.clone() },
            (false, None, Some(url)) => InterruptKind::Url { url },
            (false, None, None) => InterruptKind::Custom { value: value.unwrap_or_default() },
        };
        TaskEvent::InterruptRaised {
            id,
            kind,
            prompt,
            options,
            response_schema: schema,
            expires_at_ms: None,
            refused: None,
        }
    }
}

/// Stops the task there when the turn here is dropped.
struct Stop {
    agent: Arc<Agent>,
    task: Option<String>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            let agent = self.agent.clone();
            tokio::spawn(async move {
                if let Err(error) = agent.cancel(&task).await {
                    tracing::warn!(task, %error, "a task elsewhere is not stopped");
                }
            });
        }
    }
}

impl Elsewhere {
    pub fn new(foreign: &Foreign, pass: &Pass, outward: Arc<dyn Outward>) -> Self {
        Self { options: Options::new(foreign, pass), outward, agent: Default::default(), contexts: Mutex::default() }
    }

    /// The agent as its card says, or said when it was looked at last: only the first turn waits for it.
    async fn agent(&self) -> Result<Arc<Agent>, Error> {
        let mut known = self.agent.lock().await;
        let Some((read, agent)) = &mut *known else {
            // Nothing was asked yet.
            let agent = Arc::new(Agent::find(&self.options).await.map_err(|e| e.executed(Some(false)))?);
            *known = Some((Instant::now(), agent.clone()));
            return Ok(agent);
        };
        if read.elapsed() >= CARD_FRESH {
            *read = Instant::now();
            let (options, place) = (self.options.clone(), self.agent.clone());
            tokio::spawn(async move {
                match Agent::find(&options).await {
                    Ok(agent) => *place.lock().await = Some((Instant::now(), Arc::new(agent))),
                    // It is not reached now: turns will tell. One that is not to be trusted any more is asked nothing.
                    Err(error) if error.kind == ErrorKind::Unavailable => {}
                    Err(_) => *place.lock().await = None,
                }
            });
        }
        Ok(agent.clone())
    }

    /// One turn there: what is said passes on as it comes.
    async fn exchange(&self, turn: &mut Exchange<'_>, request: v1::SendMessageRequest) -> Result<End, Error> {
        let Exchange { talk, sink, task, answer, stop, early, words } = turn;
        let traceparent = sink.traceparent();
        let mut events = std::pin::pin!(talk.ask(request, &traceparent));
        loop {
            let event = match task {
                None => events.next().await,
                Some(task) => tokio::select! {
                    biased;
                    event = events.next() => event,
                    said = task.inbox.wait() => {
                        match (&said.answers, &stop.task) {
                            (None, Some(id)) => drop(words.send((id.clone(), said))),
                            // It waits for its question, or for the task.
                            _ => early.push(said),
                        }
                        continue;
                    }
                },
            };
            let Some(event) = event.transpose()? else {
                return Err(Error::unavailable("the agent's stream ended without an end").executed(None));
            };
            let state = state_of(&event);
            match event.payload {
                Some(News::Message(message)) => {
                    self.learn(task.as_deref(), &message.context_id);
                    answer.say(sink, message.parts).await?;
                    stop.task = None;
                    return Ok(End::Done);
                }
                Some(News::ArtifactUpdate(update)) => {
                    self.learn(task.as_deref(), &update.context_id);
                    let task = stop.task.get_or_insert(update.task_id);
                    let Some(artifact) = update.artifact else { continue };
                    answer.chunk(sink, task, artifact, update.append, update.last_chunk).await?;
                }
                Some(News::StatusUpdate(update)) => {
                    self.learn(task.as_deref(), &update.context_id);
                    stop.task.get_or_insert(update.task_id);
                    if let (Some(id), false) = (&stop.task, state.is_none_or(TaskState::waits)) {
                        for said in early.extract_if(.., |said| said.answers.is_none()) {
                            let _ = words.send((id.clone(), said));
                        }
                    }
                    let parts = update.status.and_then(|s| s.message).map(|m| m.parts).unwrap_or_default();
                    let Some(state) = state else { continue };
                    if state.is_terminal() {
                        stop.task = None;
                    }
                    if let Some(end) = answer.status(sink, state, parts).await? {
                        return Ok(end);
                    }
                }
                Some(News::Task(_)) | None => {}
            }
        }
    }

    fn learn(&self, task: Option<&TaskTurn>, theirs: &str) {
        if let Some(task) = task.filter(|_| !theirs.is_empty()) {
            self.contexts.lock().keep(&task.context, theirs);
        }
    }

    /// The first message of a turn.
    async fn request(
        &self,
        invocation: &Invocation,
        agent: &Agent,
        id: String,
    ) -> Result<v1::SendMessageRequest, Error> {
        let mut metadata = Map::new();
        if invocation.method != RUN {
            metadata.insert("skill".into(), invocation.method.clone().into());
        }
        let mut message = v1::Message {
            message_id: id,
            role: v1::Role::User.into(),
            parts: parts(&*self.outward, &asked(&invocation.args)?).await?,
            ..v1::Message::default()
        };
        if let Some(task) = &invocation.task {
            let known = self.contexts.lock().theirs.get(&task.context).cloned();
            message.context_id = known.unwrap_or_default();
            let asks = !task.model.is_empty() || !task.input.sampling.is_empty();
            if asks && card::has(agent.card(), EXTENSION_MODEL) {
                let mut wish = json!({"sampling": task.input.sampling});
                if !task.model.is_empty() {
                    wish["model"] = task.model.as_str().into();
                }
                metadata.insert(EXTENSION_MODEL.into(), wish);
                message.extensions.push(EXTENSION_MODEL.into());
            }
        }
        message.metadata = (!metadata.is_empty()).then_some(Fields(metadata));
        Ok(v1::SendMessageRequest { message: Some(message), ..v1::SendMessageRequest::default() })
    }
}

/// A turn that is under way.
struct Exchange<'a> {
    talk: Talk,
    sink: &'a Sink,
    task: Option<&'a TaskTurn>,
    answer: Answer,
    stop: Stop,
    /// Messages that came before they could be passed on.
    early: Vec<Said>,
    words: mpsc::UnboundedSender<(String, Said)>,
}

impl Behavior for Elsewhere {
    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let agent = self.agent().await?;
            let task = invocation.task.as_ref();
            // A method that answers at once wants one value.
            let gathered = (task.is_none() && !agent.streams()).then(Vec::new);
            let base = task.map_or_else(fresh_id, |task| task.task.to_string());
            let mut turn = Exchange {
                talk: Talk::new(agent.clone()),
                sink,
                task,
                answer: Answer::new(self.outward.clone(), gathered),
                stop: Stop { agent: agent.clone(), task: None },
                early: Vec::new(),
                words: words(self.outward.clone(), agent.clone()),
            };
            let mut request = self.request(&invocation, &agent, base.clone()).await?;
            let mut again = task.is_some_and(|task| task.attempt > 1);
            let mut asked = 0;
            loop {
                let known = turn.talk.open_task().is_some();
                match (self.exchange(&mut turn, request).await?, task) {
                    (End::Done, _) => return Ok(turn.answer.whole()),
                    (End::Failed(_), Some(task)) if again && !known => {
                        // What ended is told again to whoever sends the same message; this attempt is to be another.
                        again = false;
                        turn.talk = Talk::new(agent.clone());
                        request = self.request(&invocation, &agent, format!("{base}-{}", task.attempt)).await?;
                    }
                    (End::Failed(error), _) => return Err(error),
                    (End::Rejected(reason), Some(_)) => {
                        sink.emit(ends(Outcome::Rejected { reason }))?;
                        return Ok(None);
                    }
                    (End::Rejected(reason), None) => {
                        return Err(Error::new(ErrorKind::FailedPrecondition, format!("rejected: {reason}")));
                    }
                    (End::Asks(asks), None) => {
                        let text = format!("the agent asks: {}", asks.prompt);
                        return Err(
                            Error::new(ErrorKind::FailedPrecondition, text).hint("submit a task: it can be answered")
                        );
                    }
                    (End::Asks(asks), Some(task)) => {
                        asked += 1;
                        // The same for the same question of a run after a lost one.
                        let question = InterruptId::from(format!("{}-i{asked}", task.task));
                        let said = ask(sink, &task.inbox, &mut turn.early, question, asks).await?;
                        request = reply(&*self.outward, &turn.talk, format!("{base}-i{asked}"), &said).await?;
                    }
                }
            }
        })
    }
}

/// How the task ends here.
fn ends(outcome: Outcome) -> TaskEvent {
    TaskEvent::Finished { outcome, usage: BTreeMap::new() }
}

/// Asks here what is asked there.
async fn ask(
    sink: &Sink,
    inbox: &Inbox,
    early: &mut Vec<Said>,
    question: InterruptId,
    asks: Asked,
) -> Result<Said, Error> {
    let is_its_answer = |said: &Said| said.answers.as_ref() == Some(&question) && said.prompt == asks.prompt;
    if let Some(at) = early.iter().position(is_its_answer) {
        return Ok(early.remove(at));
    }
    sink.emit(asks.raised(question.clone()))?;
    loop {
        let said = inbox.wait().await;
        match &said.answers {
            Some(answered) if *answered == question => return Ok(said),
            _ => early.push(said),
        }
    }
}

async fn reply(outward: &dyn Outward, talk: &Talk, id: String, said: &Said) -> Result<v1::SendMessageRequest, Error> {
    let message = v1::Message {
        message_id: id,
        task_id: talk.open_task().unwrap_or_default().to_owned(),
        role: v1::Role::User.into(),
        parts: parts(outward, &said.parts).await?,
        ..v1::Message::default()
    };
    Ok(v1::SendMessageRequest { message: Some(message), ..v1::SendMessageRequest::default() })
}

/// Words to the task that works there, one after the other in the order in which they were said.
fn words(outward: Arc<dyn Outward>, agent: Arc<Agent>) -> mpsc::UnboundedSender<(String, Said)> {
    #[expect(clippy::disallowed_methods, reason = "messages to tasks, each of which takes a bounded number")]
    let (tx, mut rx) = mpsc::unbounded_channel::<(String, Said)>();
    tokio::spawn(async move {
        while let Some((task, said)) = rx.recv().await {
            let told = async {
                let message = v1::Message {
                    message_id: format!("{task}-s{}", said.seq),
                    task_id: task.clone(),
                    role: v1::Role::User.into(),
                    parts: parts(&*outward, &said.parts).await?,
                    ..v1::Message::default()
                };
                agent.tell(message).await
            };
            if let Err(error) = told.await {
                tracing::warn!(task, %error, "a message to a task elsewhere is not taken");
            }
        }
    });
    tx
}

/// What the agent answers, as it is given on.
struct Answer {
    outward: Arc<dyn Outward>,
    /// The artifact that is the answer.
    main: Option<String>,
    /// The one value that is all of the answer.
    value: Option<Value>,
    /// Something of the answer was given on.
    begun: bool,
    /// The answer as far as it is there, where the caller wants it whole.
    gathered: Option<Vec<Content>>,
    names: BTreeMap<String, Option<String>>,
}

impl Answer {
    fn new(outward: Arc<dyn Outward>, gathered: Option<Vec<Content>>) -> Self {
        Self { outward, main: None, value: None, begun: false, gathered, names: BTreeMap::new() }
    }

    async fn contents(&self, parts: Vec<v1::Part>) -> Result<Vec<Content>, Error> {
        files::stored(&*self.outward, parts.into_iter().filter_map(content).collect()).await
    }

    /// Parts of the answer itself.
    async fn say(&mut self, sink: &Sink, parts: Vec<v1::Part>) -> Result<(), Error> {
        for one in self.contents(parts).await? {
            self.begun = true;
            if let Some(gathered) = &mut self.gathered {
                gathered.push(one);
                continue;
            }
            match one {
                Content::Text(text) => sink.text(&text).await,
                Content::Data(value) => sink.item(payload_json(&value)).await,
                file @ Content::File { .. } => {
                    let body = to_json(&[file]);
                    sink.item(Payload { codec: Codec::Content.into(), body, buffers: Vec::new() }).await;
                }
            }
        }
        Ok(())
    }

    async fn chunk(
        &mut self,
        sink: &Sink,
        task: &str,
        artifact: v1::Artifact,
        append: bool,
        last: bool,
    ) -> Result<(), Error> {
        let id = artifact.artifact_id;
        // Covey's artifacts tell which of them is the answer; of others it is the first.
        let is_main = match id.strip_prefix(task).and_then(|rest| rest.strip_prefix('-')) {
            Some(rest) => rest == "answer",
            None => *self.main.get_or_insert_with(|| id.clone()) == id,
        };
        if is_main || !sink.is_task() {
            if let ([v1::Part { content: Some(Held::Data(Json(value))), .. }], true, false, true) =
                (artifact.parts.as_slice(), last && !append, self.begun, sink.is_task())
            {
                (self.value, self.begun) = (Some(value.clone()), true);
                return Ok(());
            }
            if !append && is_main && self.begun && !self.forget(sink) {
                return Err(Error::unavailable("the agent began its answer anew").executed(None));
            }
            return self.say(sink, artifact.parts).await;
        }
        let name = Some(artifact.name).filter(|name| !name.is_empty());
        let name = self.names.entry(id.clone()).or_insert(name).clone();
        let parts = self.contents(artifact.parts).await?;
        sink.emit(TaskEvent::ArtifactChunk { artifact: id.into(), name, parts, append, last })
    }

    /// What a status means for the turn, where it ends it.
    async fn status(&mut self, sink: &Sink, state: TaskState, parts: Vec<v1::Part>) -> Result<Option<End>, Error> {
        let said = self.contents(parts.clone()).await?;
        let text = text_of(&said);
        let or = |usual: &str| if text.is_empty() { usual.to_owned() } else { text.clone() };
        let failed = |kind, usual| Some(End::Failed(Error::new(kind, or(usual))));
        Ok(match state {
            TaskState::Submitted | TaskState::Working => {
                if !text.is_empty() {
                    sink.emit(TaskEvent::Status { state: Phase::Working, message: Some(text) })?;
                }
                None
            }
            TaskState::Completed => {
                // Who has made no artifact has its answer there.
                if !self.begun {
                    self.say(sink, parts).await?;
                } else if !said.is_empty() && sink.is_task() {
                    let result = serde_json::to_value(said).ok();
                    sink.emit(ends(Outcome::Completed { finish: REPLY.into(), result }))?;
                }
                Some(End::Done)
            }
            TaskState::InputRequired => Some(End::Asks(Asked::of(false, said))),
            TaskState::AuthRequired => Some(End::Asks(Asked::of(true, said))),
            TaskState::Rejected => Some(End::Rejected(or("no reason is given"))),
            TaskState::Failed => failed(ErrorKind::Application, "the agent failed"),
            TaskState::Canceled => failed(ErrorKind::Cancelled, "the agent's task was stopped there"),
        })
    }

    /// The answer begins anew; says whether what was given on could be taken back.
    fn forget(&mut self, sink: &Sink) -> bool {
        match (&mut self.gathered, self.value.take()) {
            // Nothing was given on yet.
            (None, Some(_)) => true,
            (Some(gathered), _) => {
                gathered.clear();
                true
            }
            (None, None) => sink.begin_anew(),
        }
    }

    /// The answer, unless it was given on already: text, one value, or content of any kind.
    fn whole(self) -> Option<Payload> {
        if let Some(value) = self.value {
            return Some(payload_json(&value));
        }
        let gathered = self.gathered?;
        if gathered.iter().all(|one| matches!(one, Content::Text(_))) {
            let texts =
                gathered.iter().filter_map(|one| if let Content::Text(text) = one { Some(&**text) } else { None });
            return Some(payload_json(&texts.collect::<String>()));
        }
        match gathered.as_slice() {
            [Content::Data(value)] => Some(payload_json(value)),
            _ => Some(Payload { codec: Codec::Content.into(), body: to_json(&gathered), buffers: Vec::new() }),
        }
    }
}

/// Content as parts of a message, with the bytes of its files.
async fn parts(outward: &dyn Outward, content: &[Content]) -> Result<Vec<v1::Part>, Error> {
    Ok(files::with_bytes(outward, content).await?.iter().map(part).collect())
}

/// Arguments as content of a message: one text is text, one value is data, several are data as they were given.
fn asked(args: &Payload) -> Result<Vec<Content>, Error> {
    if args.codec() == Codec::Content {
        return from_json("the message", &args.body);
    }
    let value: Value = covey_proto::codec::decode(args)?;
    let positional = value["args"].as_array().cloned().unwrap_or_default();
    let named = value["kwargs"].as_object().cloned().unwrap_or_default();
    let one = match (positional.len(), named.len()) {
        (0, 0) => Content::Text(String::new()),
        (1, 0) => match positional.into_iter().next() {
            Some(Value::String(text)) => Content::Text(text),
            other => Content::Data(other.unwrap_or_default()),
        },
        (0, 1..) => Content::Data(Value::Object(named)),
        _ => Content::Data(json!({"args": positional, "kwargs": named})),
    };
    Ok(vec![one])
}

fn fresh_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("call-{now:x}-{:x}-{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
