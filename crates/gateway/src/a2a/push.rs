//! Push notifications. A webhook is a durable reader of its task's log: what it has been told is a place there, so nothing
//! is skipped, nothing is told out of order, and a head that starts again goes on where the last one was.
//!
//! Each notification has an id that stays the same when it is sent again: `<task>/<hook>/<place>`. What cannot be delivered
//! is tried again after growing pauses, then kept as a dead letter that can be replayed.

mod guard;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use covey_a2a::{Error, Kind, old, v1};
use covey_domain::{
    CallerId, Envelope, ErrorKind, Hook, HookState, Millis, TaskId, TaskRecord, caps, error::with_causes,
};
use futures::{FutureExt as _, StreamExt as _};
use guard::{Guard, Resolver};
use parking_lot::Mutex;
use rand::Rng as _;
use reqwest::{StatusCode, Url, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use v1::stream_response::Payload;

use super::{errors::failed, project::Projection};
use crate::{Cluster, Settings, Signer, artifacts::Links, cursor::Cursor};

/// One attempt may take so long.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after the first attempt that failed; it doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause, also where the receiver asks for a longer one.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// Attempts in a row before it is a dead letter: a bit over two hours.
const ATTEMPTS_MAX: u32 = 16;
/// Notifications on their way at once: of all, and to one host.
const AT_ONCE: usize = 256;
const AT_ONCE_PER_HOST: usize = 8;
/// Hosts that may have turns before those that nobody waits for are forgotten.
const HOSTS_KNOWN: usize = 1024;
/// Places that were reached are written together this often, and with what is to be sent next. What a crash forgets is sent
/// again as it was, with the same id.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// Text of neighbouring chunks that waits is sent as one up to this size, bytes.
const MERGE_MAX: usize = 1 << 20;
/// Notifications of one hook that are made before the first of them is sent.
const QUEUE_MAX: usize = 64;
/// A signature holds for so long.
const SIGNED_FOR: Duration = Duration::from_secs(5 * 60);

/// Where notifications go, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Target {
    #[serde(flatten)]
    config: v1::TaskPushNotificationConfig,
    /// Made by a client of 0.3, which gets whole tasks.
    #[serde(default)]
    old: bool,
}

/// Sends notifications.
#[derive(Clone)]
pub(crate) struct Pusher(Arc<Inner>);

struct Inner {
    cluster: Weak<dyn Cluster>,
    guard: Arc<Guard>,
    secure: Result<reqwest::Client, String>,
    plain: Result<reqwest::Client, String>,
    signer: Signer,
    links: Links,
    /// What links begin with.
    root: String,
    all: Semaphore,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Hooks that are told, and whose they are.
    running: Mutex<HashMap<(TaskId, String), (CallerId, tokio::task::AbortHandle)>>,
    places: mpsc::UnboundedSender<Moved>,
}

/// A hook that is elsewhere than it was written, and who waits until it is.
type Moved = (Hook, Option<oneshot::Sender<()>>);

/// What a hook is to be told.
struct News {
    cursor: Cursor,
    body: v1::StreamResponse,
    /// The whole task, for 0.3.
    task: Option<v1::Task>,
}

/// What an attempt sends beside the body.
struct Notification<'a> {
    config: &'a v1::TaskPushNotificationConfig,
    caller: &'a CallerId,
    old: bool,
    id: &'a str,
    task: &'a TaskId,
    cursor: Cursor,
    traceparent: Option<&'a str>,
}

/// How far a hook came.
enum Way {
    /// To the end of the task.
    Told,
    /// As far as this head goes: it stops, and the next one goes on.
    Left,
}

/// What came of an attempt.
enum Failed {
    /// Another may help; not before this pause, if the receiver said one.
    Now(String, Option<Duration>),
    /// No other will.
    ForGood(String),
}

impl Pusher {
    /// Goes on with the hooks of earlier days.
    pub fn start(cluster: &Arc<dyn Cluster>, settings: &Settings) -> Self {
        let guard = Arc::new(Guard { allowed: settings.push_allow.clone() });
        let client = |tls| {
            reqwest::Client::builder()
                .dns_resolver(Arc::new(Resolver { guard: guard.clone(), tls }))
                .redirect(reqwest::redirect::Policy::none())
                // A proxy of the environment would be asked in the head's place, and it looks nowhere.
                .no_proxy()
                .timeout(TIMEOUT)
                .user_agent(concat!("covey/", env!("CARGO_PKG_VERSION")))
                .https_only(tls)
                .build()
                // Another client would not look where it goes.
                .map_err(|e| format!("no notification can be sent: {}", chain(&e)))
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a hook waits until its place is written before it sends: two for each hook that runs"
        )]
        let (places, moved) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            cluster: Arc::downgrade(cluster),
            secure: client(true),
            plain: client(false),
            guard,
            signer: settings.signer.clone(),
            links: Links::new(settings),
            root: settings.root.clone(),
            all: Semaphore::new(AT_ONCE),
            hosts: Mutex::default(),
            running: Mutex::default(),
            places,
        });
        tokio::spawn(write_places(inner.cluster.clone(), moved));
        let pusher = Self(inner);
        let (again, cluster) = (pusher.clone(), cluster.clone());
        tokio::spawn(async move {
            match cluster.hooks(None, Some(HookState::Live)).await {
                Ok(hooks) => hooks.into_iter().for_each(|hook| again.run(hook)),
                Err(error) => tracing::error!(%error, "failed to read the webhooks; none is told"),
            }
        });
        pusher
    }

    fn cluster(&self) -> Result<Arc<dyn Cluster>, Error> {
        self.0.cluster.upgrade().ok_or_else(|| Error::new(Kind::Unavailable, "the head is stopping"))
    }

    /// Says why a configuration cannot be.
    pub fn check(&self, caller: &CallerId, config: &v1::TaskPushNotificationConfig) -> Result<(), Error> {
        let url: Url = config.url.parse().map_err(|e| Error::field("url", format!("is wrong: {e}")))?;
        self.0.guard.check(&url).map_err(|why| Error::field("url", why))?;
        for (name, text) in [("id", &config.id), ("token", &config.token)] {
            if text.len() > caps::HOOK_TEXT_MAX || header::HeaderValue::from_str(text).is_err() {
                return Err(Error::field(name, "is too long, or has characters that no header has"));
            }
        }
        let credentials = config.authentication.as_ref().map_or("", |auth| &auth.credentials);
        for (name, text) in [("token", config.token.as_str()), ("authentication.credentials", credentials)] {
            self.cluster()?.resolve(caller, text).map_err(|why| Error::field(name, why.message))?;
        }
        Ok(())
    }

    /// Keeps a configuration. One of the same id is replaced, and goes on where that was. A new one begins behind `seq`.
    pub async fn keep(
        &self,
        record: &TaskRecord,
        mut config: v1::TaskPushNotificationConfig,
        old: bool,
        seq: u64,
    ) -> Result<v1::TaskPushNotificationConfig, Error> {
        self.check(&record.caller, &config)?;
        if config.id.is_empty() {
            // The same one again is the same hook: who sends a message twice is told once.
            config.id = hex(&Sha256::digest(format!("{}\n{}", config.url, config.token))[..8]);
        }
        config.task_id = record.id.to_string();
        let cluster = self.cluster()?;
        let known = cluster.hooks(Some(&record.id), None).await.map_err(failed)?;
        let before = known.iter().find(|hook| hook.id == config.id);
        // What other receivers are told ends elsewhere.
        let alike = before.filter(|hook| serde_json::from_str::<Target>(&hook.config).is_ok_and(|t| t.old == old));
        if before.is_none() && known.len() >= caps::HOOKS_PER_TASK_MAX {
            let why = format!("the task has {} webhooks already", caps::HOOKS_PER_TASK_MAX);
            return Err(Error::new(Kind::Exhausted, why));
        }
        let of_caller = || self.0.running.lock().values().filter(|(caller, _)| *caller == record.caller).count();
        if before.is_none() && of_caller() >= caps::CALLER_HOOKS_MAX {
            let why = format!("{} webhooks of `{}` are not told everything yet", caps::CALLER_HOOKS_MAX, record.caller);
            return Err(Error::new(Kind::Exhausted, why));
        }
        let target = Target { config: config.clone(), old };
        let text = serde_json::to_string(&target).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        let hook = Hook {
            task: record.id.clone(),
            id: config.id.clone(),
            caller: record.caller.clone(),
            agent: record.agent.clone(),
            config: text,
            seq: before.map_or(seq, |hook| hook.seq),
            more: before.map_or(0, |hook| hook.more),
            on_way: alike.and_then(|hook| hook.on_way),
            attempts: 0,
            due_ms: 0,
            state: HookState::Live,
            error: String::new(),
        };
        self.stop(&hook.task, &hook.id);
        cluster.keep_hook(&hook).await.map_err(failed)?;
        self.run(hook);
        Ok(config)
    }

    /// Configurations of a task, by id.
    pub async fn of(&self, task: &TaskId) -> Result<Vec<v1::TaskPushNotificationConfig>, Error> {
        let hooks = self.cluster()?.hooks(Some(task), None).await.map_err(failed)?;
        let read = |hook: Hook| serde_json::from_str::<Target>(&hook.config).map(|target| target.config);
        hooks.into_iter().map(read).collect::<Result<_, _>>().map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }

    /// Forgets a configuration, and what it was not told yet.
    pub async fn forget(&self, task: &TaskId, id: &str) -> Result<(), Error> {
        self.stop(task, id);
        self.cluster()?.forget_hook(task, id).await.map_err(failed)
    }

    /// Tells a dead hook again what it was not told.
    pub async fn replay(&self, mut hook: Hook) -> Result<Hook, Error> {
        self.stop(&hook.task, &hook.id);
        (hook.state, hook.attempts, hook.due_ms) = (HookState::Live, 0, 0);
        hook.error.clear();
        self.cluster()?.keep_hook(&hook).await.map_err(failed)?;
        self.run(hook.clone());
        Ok(hook)
    }

    fn stop(&self, task: &TaskId, id: &str) {
        if let Some((_, running)) = self.0.running.lock().remove(&(task.clone(), id.to_owned())) {
            running.abort();
        }
    }

    fn run(&self, hook: Hook) {
        let (key, caller) = ((hook.task.clone(), hook.id.clone()), hook.caller.clone());
        let inner = self.0.clone();
        // It waits for the lock, so that it is in the table before it can be over.
        let mut running = self.0.running.lock();
        let task = tokio::spawn(async move {
            let key = (hook.task.clone(), hook.id.clone());
            inner.tell(hook).await;
            inner.running.lock().remove(&key);
        });
        running.insert(key, (caller, task.abort_handle()));
    }
}

impl Inner {
    async fn tell(&self, mut hook: Hook) {
        let state = match self.tell_all(&mut hook).await {
            Ok(Way::Told) => HookState::Done,
            Ok(Way::Left) => return,
            Err(why) => {
                tracing::warn!(task = %hook.task, hook = hook.id, why, "a webhook is given up");
                hook.error = why;
                HookState::Dead
            }
        };
        hook.state = state;
        self.moved(&hook);
    }

    /// Has it written some time where a hook is.
    fn moved(&self, hook: &Hook) {
        let _ = self.places.send((hook.clone(), None));
    }

    /// Writes where what is sent next ends. Whoever sends it again finds the same.
    async fn sets_out(&self, hook: &mut Hook, cursor: Cursor) {
        if on_way(hook) != Some(cursor) {
            hook.on_way = Some((cursor.seq, cursor.more));
            let (written, waits) = oneshot::channel();
            let _ = self.places.send((hook.clone(), Some(written)));
            let _ = waits.await;
        }
    }

    /// Tells it everything up to the end of the task.
    async fn tell_all(&self, hook: &mut Hook) -> Result<Way, String> {
        let Target { config, old } = serde_json::from_str(&hook.config).map_err(|e| e.to_string())?;
        let Some(cluster) = self.cluster.upgrade() else { return Ok(Way::Left) };
        let (record, _) = match cluster.task(&hook.caller, &hook.task).await {
            Ok(found) => found,
            Err(error) => return left(error),
        };
        let traceparent = record.input.traceparent.clone();
        let mut log = cluster.events(hook.task.clone(), 0);
        drop(cluster);
        let mut projection = Projection::new(record);
        if !old {
            projection.only_tell();
        }
        let mut queue = VecDeque::new();
        loop {
            // One at least, what was on its way once, and all that are there already.
            let entry = match queue.len() {
                0 => log.next().await,
                1 if queue.back().is_some_and(|news: &News| Some(news.cursor) < on_way(hook)) => log.next().await,
                1..QUEUE_MAX => log.next().now_or_never().flatten(),
                _ => None,
            };
            match entry {
                Some(Ok(entry)) => {
                    take(&mut queue, &mut projection, &entry, hook, old);
                    continue;
                }
                Some(Err(error)) => return left(error),
                None if queue.is_empty() => return Ok(Way::Told),
                None => {}
            }
            while let Some(mut news) = queue.pop_front() {
                self.links.event(&self.root, &mut news.body);
                if let Some(task) = &mut news.task {
                    self.links.task(&self.root, task);
                }
                self.sets_out(hook, news.cursor).await;
                self.deliver(hook, &config, old, &news, traceparent.as_deref()).await?;
            }
        }
    }

    /// Sends until it is taken.
    async fn deliver(
        &self,
        hook: &mut Hook,
        config: &v1::TaskPushNotificationConfig,
        old: bool,
        news: &News,
        traceparent: Option<&str>,
    ) -> Result<(), String> {
        let body = match &news.task {
            Some(task) => old::task(task).to_string(),
            None => serde_json::to_string(&news.body).map_err(|e| e.to_string())?,
        };
        let id = format!("{}/{}/{}", hook.task, hook.id, news.cursor);
        loop {
            let wait = hook.due_ms.saturating_sub(now_ms());
            if wait > 0 {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            if self.cluster.upgrade().is_some_and(|cluster| !cluster.is_known(&hook.caller)) {
                return Err("the key of its caller opens nothing any more".to_owned());
            }
            match self
                .post(
                    Notification {
                        config,
                        caller: &hook.caller,
                        old,
                        id: &id,
                        task: &hook.task,
                        cursor: news.cursor,
                        traceparent,
                    },
                    body.clone(),
                )
                .await
            {
                Ok(()) => {
                    (hook.seq, hook.more, hook.attempts, hook.due_ms) = (news.cursor.seq, news.cursor.more, 0, 0);
                    hook.error.clear();
                    self.moved(hook);
                    return Ok(());
                }
                Err(Failed::ForGood(why)) => return Err(why),
                Err(Failed::Now(why, after)) => {
                    hook.attempts += 1;
                    if hook.attempts >= ATTEMPTS_MAX {
                        return Err(format!("{why} (after {ATTEMPTS_MAX} attempts)"));
                    }
                    tracing::debug!(id, why, attempt = hook.attempts, "a webhook was not reached");
                    hook.due_ms = now_ms() + pause(hook.attempts, after).as_millis() as u64;
                    hook.error = why;
                    self.moved(hook);
                }
            }
        }
    }

    /// A secret may be set again while its hook is tried again.
    fn resolved(&self, caller: &CallerId, text: &str) -> Result<String, Failed> {
        let stopping = || Failed::Now("the head is stopping".into(), None);
        let cluster = self.cluster.upgrade().ok_or_else(stopping)?;
        cluster.resolve(caller, text).map_err(|why| Failed::Now(why.message, None))
    }

    /// Whoever holds it may wait for a turn at a host.
    fn turn_at(&self, host: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock();
        if hosts.len() >= HOSTS_KNOWN {
            hosts.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE_PER_HOST))).clone()
    }

    async fn post(&self, about: Notification<'_>, body: String) -> Result<(), Failed> {
        let Notification { config, caller, old, id, task, cursor, traceparent } = about;
        let url: Url = config.url.parse().map_err(|_| Failed::ForGood("the address is wrong".into()))?;
        // The head may allow less today than when it was made.
        self.guard.check(&url).map_err(|why| Failed::ForGood(format!("the address {why}")))?;
        let host = url.origin().ascii_serialization();
        let turn = self.turn_at(&host);
        let _turn = turn.acquire().await;
        let _turn_of_all = self.all.acquire().await;
        let digest = hex(&Sha256::digest(&body));
        let now = now_ms() / 1000;
        let signature = self.signer.jwt(&json!({
            "iss": "covey", "aud": host, "sub": task, "jti": id, "iat": now, "exp": now + SIGNED_FOR.as_secs(),
            "request_body_sha256": digest,
        }));
        let client = if url.scheme() == "https" { &self.secure } else { &self.plain };
        let client = client.as_ref().map_err(|why| Failed::ForGood(why.clone()))?;
        let kind = if old { "application/json" } else { "application/a2a+json" };
        let mut request = client
            .post(url)
            .header(header::CONTENT_TYPE, kind)
            .header("A2A-Version", if old { "0.3" } else { "1.0" })
            .header("A2A-Notification-Id", id)
            .header("A2A-Notification-Place", cursor.to_string())
            .header("A2A-Notification-Signature", &signature);
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        if !config.token.is_empty() {
            let token = self.resolved(caller, &config.token)?;
            // Who wrote which client looks for one or the other.
            request = request.header("A2A-Notification-Token", &token).header("X-A2A-Notification-Token", &token);
        }
        if let Some(auth) = &config.authentication {
            let bearer = auth.scheme.eq_ignore_ascii_case("bearer");
            let credentials = match auth.credentials.is_empty() && bearer {
                true => signature,
                false => self.resolved(caller, &auth.credentials)?,
            };
            if !auth.scheme.is_empty() {
                request = request.header(header::AUTHORIZATION, format!("{} {credentials}", auth.scheme));
            }
        }
        let response = request.body(body).send().await.map_err(|e| Failed::Now(chain(&e), None))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let why = format!("the receiver answered {status}");
        let later =
            matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
        if !later && !status.is_server_error() {
            return Err(Failed::ForGood(why));
        }
        let after = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(retry_after);
        Err(Failed::Now(why, after))
    }
}

/// A head that stops says nothing about a hook.
fn left(error: covey_domain::Error) -> Result<Way, String> {
    if error.kind == ErrorKind::Unavailable { Ok(Way::Left) } else { Err(error.message) }
}

/// A hook for people: without what opens its receiver.
pub(super) fn shown(hook: &Hook) -> serde_json::Value {
    let url = serde_json::from_str::<Target>(&hook.config).map(|target| target.config.url).unwrap_or_default();
    json!({
        "task": hook.task, "id": hook.id, "agent": hook.agent, "url": url, "state": hook.state, "attempts": hook.attempts,
        "dueMs": hook.due_ms, "place": Cursor { seq: hook.seq, more: hook.more }.to_string(), "error": hook.error,
    })
}

/// Where what is on its way to a hook ends.
fn on_way(hook: &Hook) -> Option<Cursor> {
    hook.on_way.map(|(seq, more)| Cursor { seq, more })
}

/// What an entry of the log makes for a hook. Text of neighbouring chunks that waits becomes one.
fn take(queue: &mut VecDeque<News>, projection: &mut Projection, entry: &Envelope, hook: &Hook, old: bool) {
    let events = projection.take(entry);
    let count = events.len();
    let seen = Cursor { seq: hook.seq, more: hook.more };
    for (i, body) in events.into_iter().enumerate() {
        let cursor = Cursor::within(entry.seq, i, count);
        if cursor <= seen {
            continue;
        }
        if old {
            // 0.3 tells of a task's status, with all of the task.
            if !matches!(body.payload, Some(Payload::ArtifactUpdate(_))) {
                queue.push_back(News { cursor, body, task: Some(projection.task()) });
            }
            continue;
        }
        let ends = |last: &News| on_way(hook) == Some(last.cursor);
        match queue.back_mut().filter(|last| !ends(last) && joins(&last.body, &body)) {
            Some(last) => {
                last.cursor = cursor;
                join(&mut last.body, body);
            }
            None => queue.push_back(News { cursor, body, task: None }),
        }
    }
}

fn text_of(body: &v1::StreamResponse) -> Option<(&str, &str, bool)> {
    let Some(Payload::ArtifactUpdate(update)) = &body.payload else { return None };
    let artifact = update.artifact.as_ref()?;
    let [v1::Part { content: Some(v1::part::Content::Text(text)), metadata: None, .. }] = artifact.parts.as_slice()
    else {
        return None;
    };
    Some((&artifact.artifact_id, text, update.append))
}

fn joins(last: &v1::StreamResponse, next: &v1::StreamResponse) -> bool {
    match (text_of(last), text_of(next)) {
        (Some((a, text, _)), Some((b, more, true))) => a == b && text.len() + more.len() <= MERGE_MAX,
        _ => false,
    }
}

fn join(last: &mut v1::StreamResponse, next: v1::StreamResponse) {
    let (Some(Payload::ArtifactUpdate(last)), Some(Payload::ArtifactUpdate(next))) = (&mut last.payload, next.payload)
    else {
        return;
    };
    last.last_chunk = next.last_chunk;
    let more = next.artifact.and_then(|artifact| artifact.parts.into_iter().next()?.content);
    let part = last.artifact.as_mut().and_then(|artifact| artifact.parts.first_mut()?.content.as_mut());
    if let (Some(v1::part::Content::Text(text)), Some(v1::part::Content::Text(more))) = (part, more) {
        text.push_str(&more);
    }
}

/// Writes how far hooks are, many in one transaction; at once where somebody waits for it.
async fn write_places(cluster: Weak<dyn Cluster>, mut moved: mpsc::UnboundedReceiver<Moved>) {
    while let Some(first) = moved.recv().await {
        let (mut latest, mut waiting) = (HashMap::new(), Vec::new());
        let mut take = |(hook, waits): Moved, waiting: &mut Vec<oneshot::Sender<()>>| {
            latest.insert((hook.task.clone(), hook.id.clone()), hook);
            waiting.extend(waits);
        };
        take(first, &mut waiting);
        let due = Instant::now() + WRITE_EVERY;
        while waiting.is_empty() {
            let Ok(Some(next)) = tokio::time::timeout_at(due, moved.recv()).await else { break };
            take(next, &mut waiting);
        }
        while let Ok(next) = moved.try_recv() {
            take(next, &mut waiting);
        }
        let Some(cluster) = cluster.upgrade() else { return };
        let hooks: Vec<_> = latest.into_values().collect();
        if let Err(error) = cluster.move_hooks(&hooks).await {
            tracing::error!(%error, "failed to write how far webhooks are; some may be told twice");
        }
        // Who waits goes on at the end of this.
    }
}

/// How long until the next attempt: at random, up to twice the last bound.
fn pause(attempts: u32, asked: Option<Duration>) -> Duration {
    let bound = PAUSE_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(PAUSE_MAX);
    let own = bound / 2 + bound.mul_f64(rand::rng().random::<f64>() / 2.0);
    asked.map_or(own, |asked| asked.clamp(own.min(PAUSE_MAX), PAUSE_MAX))
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}

/// An error with what is behind it; the address may carry secrets and is left out.
fn chain(error: &reqwest::Error) -> String {
    let text = if error.is_timeout() { "no answer in time" } else { "the receiver was not reached" };
    with_causes(text.to_owned(), error)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn now_ms() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_the_receiver_may_ask_for_longer_ones() {
        for attempts in 1..=ATTEMPTS_MAX {
            let bound = PAUSE_FIRST.saturating_mul(1 << (attempts - 1)).min(PAUSE_MAX);
            let pause = super::pause(attempts, None);
            assert!(pause >= bound / 2 && pause <= bound, "{attempts}: {pause:?}");
        }
        assert_eq!(pause(1, Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert_eq!(pause(1, Some(Duration::from_secs(99_999))), PAUSE_MAX);
        assert!(pause(5, Some(Duration::ZERO)) >= Duration::from_secs(8), "it asks for nothing");
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT").is_none());
    }
}
