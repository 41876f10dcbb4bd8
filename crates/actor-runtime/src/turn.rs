//! One turn of an actor and where its answer goes: a caller's stream with credits, or a task's log.

use std::{collections::BTreeMap, sync::Arc};

use covey_domain::{Error, ErrorKind, ModelName, TaskId, caps, event::Outcome, infer::Usage, log::Writer};
use covey_proto::{
    failure, from_json, payload_json,
    v1::{CallEnd, CallFrame, Codec, Empty, Payload, call_end, call_frame::Body},
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{behavior::Invocation, runtime::Report};

/// Where an answer goes. Whatever happens, it ends once: a sink that is dropped unended reports the actor's death.
pub struct Sink {
    reports: mpsc::UnboundedSender<Report>,
    target: Target,
    streamed: std::sync::atomic::AtomicBool,
    usage: Mutex<BTreeMap<ModelName, Usage>>,
    ended: bool,
}

enum Target {
    Call { id: u64, credits: Arc<Semaphore> },
    Task { task: TaskId, attempt: u32, writer: Mutex<Option<Writer>> },
}

impl Sink {
    pub(crate) fn call(reports: mpsc::UnboundedSender<Report>, id: u64, credits: Arc<Semaphore>) -> Self {
        Self::new(reports, Target::Call { id, credits })
    }

    pub(crate) fn task(reports: mpsc::UnboundedSender<Report>, task: TaskId, attempt: u32) -> Self {
        let writer = Mutex::new(Some(Writer::new(task.clone(), attempt)));
        Self::new(reports, Target::Task { task, attempt, writer })
    }

    fn new(reports: mpsc::UnboundedSender<Report>, target: Target) -> Self {
        Self { reports, target, streamed: false.into(), usage: Mutex::default(), ended: false }
    }

    /// More text of the answer.
    pub async fn text(&self, text: &str) {
        match &self.target {
            Target::Call { .. } => self.item(payload_json(&text)).await,
            Target::Task { task, attempt, writer } => {
                let events = writer.lock().as_mut().map(|w| w.text(text)).unwrap_or_default();
                self.events(task, *attempt, events);
            }
        }
    }

    /// One item of the answer. Waits while the reader is [`caps::STREAM_WINDOW`] items behind.
    pub async fn item(&self, item: Payload) {
        match &self.target {
            Target::Call { id, credits } => {
                if let Ok(permit) = credits.acquire().await {
                    permit.forget();
                }
                self.streamed.store(true, std::sync::atomic::Ordering::Relaxed);
                self.frame(*id, Body::Item(item));
            }
            Target::Task { task, attempt, writer } => {
                let value: serde_json::Value = from_json("an item", &item.body).unwrap_or_default();
                let events = writer.lock().as_mut().map(|w| match value {
                    serde_json::Value::String(text) => w.text(&text),
                    other => w.data(other),
                });
                self.events(task, *attempt, events.unwrap_or_default());
            }
        }
    }

    /// Tokens used on the way.
    pub fn used(&self, model: &ModelName, usage: Usage) {
        let mut all = self.usage.lock();
        let sum = all.entry(model.clone()).or_default();
        sum.input += usage.input;
        sum.output += usage.output;
    }

    /// The end of the answer.
    pub(crate) fn end(mut self, result: Result<Option<Payload>, Error>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Option<Payload>, Error>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &self.target {
            Target::Call { id, .. } => {
                let end = match result {
                    Ok(Some(value)) => CallEnd { result: Some(call_end::Result::Value(value)) },
                    Ok(None) => CallEnd { result: Some(call_end::Result::Done(Empty {})) },
                    Err(error) => failure(error),
                };
                self.frame(*id, Body::End(end));
            }
            Target::Task { task, attempt, writer } => {
                let outcome = match result {
                    Ok(value) => Outcome::Completed {
                        finish: "stop".into(),
                        result: value
                            .filter(|v| v.codec() == Codec::Json)
                            .and_then(|v| from_json("a result", &v.body).ok()),
                    },
                    Err(error) if error.kind == ErrorKind::Cancelled => {
                        Outcome::Cancelled { by: "worker".into(), reason: error.message }
                    }
                    Err(error) => Outcome::Failed { error: Error { detail: None, ..error } },
                };
                if let Some(writer) = writer.lock().take() {
                    let events = writer.finish(outcome, std::mem::take(&mut *self.usage.lock()));
                    self.events(task, *attempt, events);
                }
            }
        }
    }

    fn frame(&self, id: u64, body: Body) {
        // The other end is the worker's own loop; it is gone only when the process is.
        let _ = self.reports.send(Report::Call(CallFrame { id, body: Some(body) }));
    }

    fn events(&self, task: &TaskId, attempt: u32, events: Vec<covey_domain::TaskEvent>) {
        if !events.is_empty() {
            let _ = self.reports.send(Report::Events { task: task.clone(), attempt, events });
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.ended {
            match &self.target {
                // The head learns of the actor's end by its own report and tries the task again elsewhere.
                Target::Task { .. } => {}
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
    pub cancel: CancellationToken,
    pub deadline: Option<tokio::time::Instant>,
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

/// Credits a stream begins with.
pub(crate) fn window() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(caps::STREAM_WINDOW as usize))
}
