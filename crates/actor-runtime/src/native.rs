//! Agents written in Rust and compiled into the worker: a registry by name, with an echo and a counter as examples.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use covey_domain::{Error, ErrorKind};
use covey_proto::{payload_json, v1::Payload};
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::{Behavior, Invocation, Sink};

type Make = Arc<dyn Fn(Option<Payload>) -> Result<Arc<dyn Behavior>, Error> + Send + Sync>;

/// Native agents by name.
#[derive(Clone)]
pub struct Registry {
    makers: BTreeMap<String, Make>,
}

impl Default for Registry {
    fn default() -> Self {
        let mut registry = Self { makers: BTreeMap::new() };
        registry.add("echo", |_| Ok(Arc::new(Echo)));
        registry.add("inbox", |init| {
            let depth = init.map(|args| Invocation::of("init", args).arg::<Option<usize>>()).transpose()?.flatten();
            Ok(Arc::new(Inbox::new(depth.unwrap_or(INBOX_DEPTH))))
        });
        registry.add("counter", |init| {
            let start = init.map(|args| Invocation::of("init", args).arg::<i64>());
            Ok(Arc::new(Counter { count: Mutex::new(start.transpose()?.unwrap_or(0)) }))
        });
        registry
    }
}

impl Registry {
    /// Adds an agent's maker.
    pub fn add(
        &mut self,
        name: &str,
        make: impl Fn(Option<Payload>) -> Result<Arc<dyn Behavior>, Error> + Send + Sync + 'static,
    ) {
        self.makers.insert(name.to_owned(), Arc::new(make));
    }

    pub(crate) fn make(&self, name: &str, init: Option<Payload>) -> Result<Arc<dyn Behavior>, Error> {
        let make = self.makers.get(name).ok_or_else(|| {
            let known: Vec<_> = self.makers.keys().map(String::as_str).collect();
            Error::not_found("native agent", name).hint(format!("this worker has: {}", known.join(", ")))
        })?;
        make(init)
    }
}

/// Gives back what it gets. `run` streams word by word; a message that begins with `slow:` pauses half a second after
/// each word, so that streaming can be seen; `fail:` fails in mid-stream.
struct Echo;

impl Behavior for Echo {
    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            match invocation.method.as_str() {
                "echo" => Ok(Some(payload_json(&invocation.arg::<serde_json::Value>()?))),
                "run" => {
                    let text = invocation.text()?;
                    let (text, slow) =
                        text.strip_prefix("slow:").map_or((text.as_str(), false), |t| (t.trim_start(), true));
                    let (text, fail) = text.strip_prefix("fail:").map_or((text, false), |t| (t.trim_start(), true));
                    for word in text.split_inclusive(' ') {
                        sink.text(word).await;
                        if slow {
                            tokio::time::sleep(Duration::from_millis(500)).await;
                        }
                    }
                    if fail {
                        return Err(Error::new(ErrorKind::Application, "failed as asked"));
                    }
                    Ok(None)
                }
                other => Err(Error::not_found("method", other).hint("echo has: run, echo")),
            }
        })
    }
}

/// Messages an inbox holds for its reader unless it is told otherwise.
const INBOX_DEPTH: usize = 10_000;

/// Holds what is put into it until somebody takes it: how a driver listens to a topic. Full, it refuses.
struct Inbox {
    messages: Mutex<VecDeque<Payload>>,
    depth: usize,
    news: tokio::sync::Notify,
}

impl Inbox {
    fn new(depth: usize) -> Self {
        Self { messages: Mutex::default(), depth, news: tokio::sync::Notify::new() }
    }
}

impl Behavior for Inbox {
    fn at_once(&self, invocation: &Invocation) -> Option<Result<Option<Payload>, Error>> {
        if invocation.method != "put" {
            return None;
        }
        let mut messages = self.messages.lock();
        if messages.len() >= self.depth {
            let text = format!("the inbox holds {} messages that nobody takes", self.depth);
            return Some(Err(Error::new(ErrorKind::Overloaded, text).executed(Some(false))));
        }
        messages.push_back(invocation.args.clone());
        drop(messages);
        self.news.notify_one();
        Some(Ok(None))
    }

    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            if invocation.method != "take" {
                return Err(Error::not_found("method", &invocation.method).hint("inbox has: put, take"));
            }
            loop {
                let next = self.messages.lock().pop_front();
                match next {
                    Some(message) => sink.item(message).await,
                    None => self.news.notified().await,
                }
            }
        })
    }
}

/// Counts.
struct Counter {
    count: Mutex<i64>,
}

impl Behavior for Counter {
    fn snapshot(&self) -> Option<Payload> {
        Some(payload_json(&serde_json::json!({"args": [*self.count.lock()]})))
    }

    fn turn<'a>(&'a self, invocation: Invocation, _: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let bincode = invocation.args.codec() == covey_proto::v1::Codec::Bincode;
            let answer = |n: i64| if bincode { covey_proto::codec::encode(&n) } else { Ok(payload_json(&n)) };
            match invocation.method.as_str() {
                "run" | "add" => {
                    let by = invocation.arg::<Option<i64>>()?.unwrap_or(1);
                    let mut count = self.count.lock();
                    *count = count.checked_add(by).ok_or_else(|| Error::invalid("the count does not fit 64 bits"))?;
                    Ok(Some(answer(*count)?))
                }
                "get" => Ok(Some(answer(*self.count.lock())?)),
                other => Err(Error::not_found("method", other).hint("counter has: run, add, get")),
            }
        })
    }
}
