//! The operations, in 1.0's types: what all bindings of both versions call. Messages are in `send`, what reads and stops tasks in `read`,
//! webhooks in `hooks`. Who may ask what is decided in [`tasks`].

mod hooks;
mod read;
mod send;

use std::sync::{Arc, OnceLock};

use covey_a2a::{
    Error, Kind,
    card::{EXTENSION_EVENTS, EXTENSION_MODEL, EXTENSION_ONCE},
    content, v1,
};
use covey_domain::{AgentSpec, TaskId, TaskRecord, agent::Extension};
use futures::{StreamExt as _, stream::BoxStream};

use super::{
    Hub,
    card::{self, Place},
    errors::{failed, no_agent, no_task},
    project::{Frame, Projection},
};
use crate::{
    Caller, FoundTask,
    answers::{Held, Written},
    cursor::Cursor,
    fold::{self, Until},
    follow::{StreamItem, View, follow},
    tasks::{self, Tasks},
};

/// A request as any binding brings it.
pub(super) struct Ask {
    pub hub: Arc<Hub>,
    pub agent: Arc<AgentSpec>,
    pub caller: Caller,
    /// What a stream's reader has seen already.
    pub seen: Option<Cursor>,
    /// How the agent was addressed.
    pub place: Place,
    /// Extensions that the client declares.
    pub extensions: Vec<String>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// The room that its answer has, once that is made: for the extensions of the response.
    pub held: Arc<OnceLock<Held>>,
}

/// Events up to the end of the task or turn; an error where the log could not be read on.
pub(super) type Events = BoxStream<'static, Result<StreamItem<Frame>, Error>>;

impl Ask {
    /// What this caller may ask of tasks with this agent.
    fn tasks(&self) -> Tasks<'_> {
        Tasks { cluster: &*self.hub.cluster, caller: &self.caller, agent: Some(&self.agent.name) }
    }

    /// A task of this caller with this agent; all others are not there.
    async fn find(&self, id: &str) -> Result<FoundTask, Error> {
        self.tasks().find(&task_id(id)?).await.map_err(|error| no_task(error, id))
    }

    /// The answer that is made has this room until it is written.
    fn keep<T>(&self, (answer, held): (T, Held)) -> T {
        // One request has one answer.
        let _ = self.held.set(held);
        answer
    }

    /// A task for the outside, with links to its large files.
    fn shown(&self, projection: Projection, history: Option<usize>) -> v1::Task {
        let mut task = projection.into_task(history);
        self.hub.links.task(&self.place.root, &mut task);
        task
    }

    /// The answer to what has been done, once the task is so far.
    async fn done<T>(
        &self,
        record: Arc<TaskRecord>,
        until: Until,
        write: impl Fn(Projection) -> Written<T, Error>,
    ) -> Result<T, Error> {
        let id = record.id.clone();
        let made = fold::done(self.tasks(), &self.hub.answers, record, until, write).await;
        made.map(|made| self.keep(made)).map_err(|error| match error.kind {
            Kind::Exhausted => {
                let why = format!("{}; the message was taken: GetTask tells what became of it", error.message);
                Error::new(Kind::Exhausted, why).about("taskId", id.as_str())
            }
            _ => error,
        })
    }

    /// Events of a task.
    fn events(&self, record: Arc<TaskRecord>, view: View) -> Events {
        let id = record.id.clone();
        // One who comes back is read on from near their place.
        let mut projection = match view.bookmark(&self.hub.bookmarks, &id) {
            Some(bookmark) => Projection::resume(record, bookmark),
            None => Projection::new(record),
        };
        if view.snapshot.is_none() {
            projection.only_tell();
        }
        if self.extensions.iter().any(|uri| uri == EXTENSION_EVENTS) {
            projection.show_all();
        }
        let (links, root) = (self.hub.links.clone(), self.place.root.clone());
        let events = follow(&*self.hub.cluster, id.clone(), projection, view, Some(self.hub.bookmarks.clone()));
        let events = events.map(move |told| match told {
            Ok(mut told) => {
                links.event(&root, &mut told.frame.event);
                if let Some(reply) = &mut told.frame.reply {
                    links.message(&root, reply);
                }
                Ok(told)
            }
            // A reader of a binding without SSE's ids learns where to go on, too.
            Err(broken) => {
                let error = failed(broken.error).about("taskId", id.as_str());
                Err(error.about("lastEventId", broken.cursor.to_string()))
            }
        });
        events.boxed()
    }

    /// The same for the agent that the request's tenant names, where it names one.
    pub async fn of_tenant(mut self, tenant: &str) -> Result<Self, Error> {
        if tenant.is_empty() || tenant == self.agent.name.as_str() {
            return Ok(self);
        }
        if self.place.agent.is_some() {
            return Err(Error::field("tenant", "is not the agent of this address"));
        }
        self.agent = tasks::agent(&*self.hub.cluster, &self.caller, Some(tenant)).await.map_err(no_agent)?;
        self.place.agent = Some(tenant.into());
        Ok(self)
    }

    /// Whether the agent takes what it is sent, where it says what it takes.
    fn check_modes(&self, parts: &[v1::Part]) -> Result<(), Error> {
        let face = &self.agent.a2a;
        if face.any_input || face.input_modes.is_empty() {
            return Ok(());
        }
        let kinds = parts.iter().map(content::media_type);
        match kinds.into_iter().find(|kind| !face.input_modes.iter().any(|mode| content::takes(mode, kind))) {
            Some(kind) => {
                let why = format!("the agent takes {}; not {kind}", face.input_modes.join(", "));
                Err(Error::new(Kind::ContentTypeNotSupported, why).about("mediaType", kind))
            }
            None => Ok(()),
        }
    }

    /// Whether the client speaks what the agent insists on.
    pub fn check_extensions(&self) -> Result<(), Error> {
        let missing = |e: &&Extension| e.required && !self.extensions.contains(&e.uri);
        match self.agent.a2a.extensions.iter().find(missing) {
            Some(extension) => {
                let why = format!("the agent wants extension {}; declare it in A2A-Extensions", extension.uri);
                Err(Error::new(Kind::ExtensionSupportRequired, why).about("extension", extension.uri.as_str()))
            }
            None => Ok(()),
        }
    }

    /// The extensions that hold for this request, as the header of the answer has them.
    pub fn active_extensions(&self) -> String {
        let known = |uri: &&String| {
            [EXTENSION_MODEL, EXTENSION_ONCE, EXTENSION_EVENTS].contains(&uri.as_str())
                || self.agent.a2a.extensions.iter().any(|e| e.uri == **uri)
        };
        self.extensions.iter().filter(known).cloned().collect::<Vec<_>>().join(", ")
    }

    fn may_stream(&self) -> Result<(), Error> {
        match self.agent.a2a.streaming {
            true => Ok(()),
            false => Err(Error::new(Kind::UnsupportedOperation, "this agent does not stream")),
        }
    }

    fn may_push(&self) -> Result<(), Error> {
        match self.agent.a2a.push_notifications {
            true => Ok(()),
            false => Err(Error::new(Kind::PushNotificationNotSupported, "this agent sends no push notifications")),
        }
    }

    /// What the card says to those who are known.
    pub fn extended_card(&self) -> Result<v1::AgentCard, Error> {
        match self.agent.a2a.extended_card {
            true => Ok(card::extended(&self.hub, &self.agent, &self.place)),
            false => Err(Error::new(Kind::UnsupportedOperation, "this agent has no extended card")),
        }
    }
}

/// The id of a task, which must be there.
fn task_id(id: &str) -> Result<TaskId, Error> {
    if id.is_empty() { Err(Error::field("id", "is missing")) } else { Ok(id.into()) }
}

fn history(length: Option<i32>) -> Result<Option<usize>, Error> {
    match length {
        None => Ok(None),
        Some(length) => {
            usize::try_from(length).map(Some).map_err(|_| Error::field("historyLength", "must not be negative"))
        }
    }
}
