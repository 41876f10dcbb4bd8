//! Messages: a new task, or a word to one that runs; answered when the turn is over, or by a stream.

use std::sync::Arc;

use covey_a2a::{Error, Fields, Kind, card::EXTENSION_MODEL, content, v1};
use covey_domain::{ErrorKind, ModelName, TaskRecord, event::Content, infer::Sampling, task::TaskInput};
use futures::StreamExt as _;
use serde_json::{Map, Value};
use v1::{part::Content as Source, send_message_response::Payload as Sent, stream_response::Payload};

use super::{
    super::{
        errors::{failed, no_task},
        project::{Frame, Projection},
    },
    Ask, Events, history,
};
use crate::{
    Answered, SubmitTask,
    answers::Written,
    fold::Until,
    follow::{StreamItem, View},
};

/// What a message says under [`EXTENSION_MODEL`].
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelAsked {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    sampling: Map<String, Value>,
}

/// What a message and its request say of the task that it makes, beside the content.
struct Wishes {
    skill: Option<String>,
    model: Option<ModelName>,
    sampling: Map<String, Value>,
}

/// A task that took a message.
struct Taken {
    record: Arc<TaskRecord>,
    /// The entry of its log that the message made; 1 where it made the task.
    at: u64,
}

impl Ask {
    async fn take(&self, mut request: v1::SendMessageRequest, old: bool, answered: Answered) -> Result<Taken, Error> {
        let hook = request.configuration.as_mut().and_then(|said| said.task_push_notification_config.take());
        if let Some(hook) = &hook {
            self.may_push()?;
            // Before anything is done, so that a wrong one does nothing.
            self.hub.pusher.check(&self.caller.id, hook)?;
        }
        // A webhook is kept in the tables, which must not know of a task before the log does.
        let answered = if hook.is_some() { Answered::Durable } else { answered };
        let taken = self.take_message(request, answered).await?;
        if let Some(hook) = hook {
            // What a message leads to comes behind it.
            self.hub.pusher.keep(&taken.record, hook, old, taken.at - 1).await?;
        }
        Ok(taken)
    }

    async fn take_message(&self, request: v1::SendMessageRequest, answered: Answered) -> Result<Taken, Error> {
        let v1::SendMessageRequest { message, metadata, .. } = request;
        let message = message.ok_or_else(|| Error::field("message", "is missing"))?;
        check_message(&message)?;
        self.check_modes(&message.parts)?;
        if message.task_id.is_empty() {
            self.begin(message, metadata.as_ref(), answered).await
        } else {
            self.say(message).await
        }
    }

    /// A message to a task that runs: the answer to its question, or a word to what it does.
    async fn say(&self, message: v1::Message) -> Result<Taken, Error> {
        let (record, _) = self.find(&message.task_id).await?;
        if !message.context_id.is_empty() && message.context_id != record.context.as_str() {
            return Err(Error::field("message.contextId", "is not that of the task"));
        }
        let said = self.tasks().send_message(&record, Some(message.message_id), contents(message.parts)?).await;
        let (record, at) = said.map_err(|error| match error.kind {
            ErrorKind::FailedPrecondition => {
                Error::new(Kind::UnsupportedOperation, "the task has ended").about("taskId", message.task_id)
            }
            _ => no_task(error, &message.task_id),
        })?;
        Ok(Taken { record, at })
    }

    /// A message that makes a task.
    async fn begin(&self, message: v1::Message, metadata: Option<&Fields>, answered: Answered) -> Result<Taken, Error> {
        let Wishes { skill, model, sampling } = wishes(&message, metadata)?;
        if !self.caller.models && model.is_some() {
            return Err(Error::field("metadata", "names a model, and this key opens none: the agent has its own"));
        }
        let content = contents(message.parts)?;
        let task = SubmitTask {
            caller: self.caller.id.clone(),
            agent: self.agent.name.clone(),
            skill,
            input: TaskInput { content, sampling, traceparent: self.traceparent.clone(), ..Default::default() },
            context: Some(message.context_id).filter(|c| !c.is_empty()).map(Into::into),
            message_id: Some(message.message_id),
            model,
            protocol: "a2a",
            timeout_ms: None,
            answered,
        };
        let record = self.tasks().submit(task).await.map_err(failed)?;
        Ok(Taken { record, at: 1 })
    }

    /// Sends a message; waits for the end of the turn unless that is not wanted. `write` makes the answer of what is sent back.
    pub async fn send<T>(
        &self,
        request: v1::SendMessageRequest,
        old: bool,
        write: impl Fn(v1::SendMessageResponse) -> Written<T, Error>,
    ) -> Result<T, Error> {
        let said = request.configuration.clone().unwrap_or_default();
        let history = history(said.history_length)?;
        // Whoever waits for the end is told of nothing before it.
        let answered = if said.return_immediately { Answered::Durable } else { Answered::Early };
        let Taken { record, at } = self.take(request, old, answered).await?;
        let until = if said.return_immediately { Until::Seq(at) } else { Until::Over(at) };
        let write = |projection: Projection| {
            let payload = match projection.reply().filter(|_| self.agent.a2a.messages) {
                Some(reply) => {
                    let mut reply = reply.clone();
                    self.hub.links.message(&self.place.root, &mut reply);
                    Sent::Message(reply)
                }
                None => Sent::Task(self.shown(projection, history)),
            };
            write(v1::SendMessageResponse { payload: Some(payload) })
        };
        self.done(record, until, write).await
    }

    /// Sends a message; the turn streams back.
    pub async fn stream(&self, request: v1::SendMessageRequest, old: bool) -> Result<Events, Error> {
        self.may_stream()?;
        // Before anything is done, so that who is refused may send the same again.
        let share = self.hub.shares.stream(&self.caller.id, 0).map_err(failed)?;
        let Taken { record, at } = self.take(request, old, Answered::Durable).await?;
        // The reader of a task that took a message gets it as it stands, then what follows; what it has seen, no more.
        let snapshot = Some(at).filter(|at| *at > 1 && self.seen.is_none_or(|seen| seen.seq < *at));
        let events = self.events(record, View { seen: self.seen.unwrap_or_default(), snapshot, turn: Some(at) });
        let events =
            if self.agent.a2a.messages && at == 1 && self.seen.is_none() { message_first(events) } else { events };
        Ok(share.held_by(events))
    }
}

/// What a message must have.
fn check_message(message: &v1::Message) -> Result<(), Error> {
    match message.role() {
        v1::Role::User => {}
        v1::Role::Agent => return Err(Error::field("message.role", "must be that of a user")),
        v1::Role::Unspecified => return Err(Error::field("message.role", "is missing")),
    }
    if message.message_id.is_empty() {
        return Err(Error::field("message.messageId", "is missing"));
    }
    if message.parts.is_empty() {
        return Err(Error::field("message.parts", "is missing or empty"));
    }
    Ok(())
}

/// Reads the metadata of a message, else of its request.
fn wishes(message: &v1::Message, metadata: Option<&Fields>) -> Result<Wishes, Error> {
    let told = |name: &str| {
        let of = |fields: Option<&Fields>| fields.and_then(|f| f.0.get(name).cloned());
        of(message.metadata.as_ref()).or_else(|| of(metadata))
    };
    let named = |name: &str| told(name).and_then(|v| v.as_str().map(str::to_owned)).filter(|text| !text.is_empty());
    let (skill, mut model) = (named("skill"), named("model"));
    let mut sampling = Map::new();
    if let Some(asked) = told(EXTENSION_MODEL) {
        let name = format!("metadata[\"{EXTENSION_MODEL}\"]");
        let asked: ModelAsked = serde_json::from_value(asked).map_err(|e| Error::field(&name, e.to_string()))?;
        Sampling::default().over(&asked.sampling).map_err(|why| Error::field(&name, why))?;
        (model, sampling) = (asked.model.or(model), asked.sampling);
    }
    Ok(Wishes { skill, model: model.map(Into::into), sampling })
}

/// Holds a task's first events back until it is seen whether it is answered with a mere message, which then stands for all.
fn message_first(mut events: Events) -> Events {
    async_stream::try_stream! {
        let mut held = Vec::new();
        while let Some(told) = events.next().await {
            let told = told?;
            if let Some(reply) = told.frame.reply.clone() {
                let event = v1::StreamResponse { payload: Some(Payload::Message(*reply)) };
                let frame = Frame { event: Box::new(event), ..told.frame };
                yield StreamItem { frame, ..told };
                return;
            }
            // That it was taken and is worked on says nothing yet.
            let quiet = match &told.frame.event.payload {
                Some(Payload::Task(_)) => true,
                Some(Payload::StatusUpdate(update)) => {
                    update.metadata.is_none()
                        && update.status.as_ref().is_some_and(|status| {
                            matches!(status.state(), v1::TaskState::Submitted | v1::TaskState::Working)
                                && status.message.is_none()
                        })
                }
                _ => false,
            };
            held.push(told);
            if !quiet {
                break;
            }
        }
        for told in held {
            yield told;
        }
        while let Some(told) = events.next().await {
            yield told?;
        }
    }
    .boxed()
}

/// Parts of a message as content.
fn contents(parts: Vec<v1::Part>) -> Result<Vec<Content>, Error> {
    let each = parts.into_iter().map(|part| match &part.content {
        Some(Source::Url(url)) if url.is_empty() => Err(Error::field("message.parts", "has a file without an address")),
        _ => content::content(part).ok_or_else(|| Error::field("message.parts", "has a part without content")),
    });
    each.collect()
}
