//! What an actor does with a turn.

use std::collections::HashMap;

use covey_domain::{
    Error, TaskId,
    event::Content,
    task::{TaskInput, text_of},
};
use covey_proto::v1::{Codec, Payload};
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::turn::{Inbox, Sink};

/// One request to an actor.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Which method.
    pub method: String,
    /// Arguments: JSON `{"args": […], "kwargs": {…}}`, pickle, bincode, or content of a message.
    pub args: Payload,
    /// The answer is read by any protocol: JSON, not pickle.
    pub json: bool,
    /// The durable task it belongs to.
    pub task: Option<TaskTurn>,
    /// Actors whose turns wait for this one, one a line.
    pub chain: String,
}

/// What a durable turn knows beside its arguments.
#[derive(Clone, Debug)]
pub struct TaskTurn {
    /// Which task.
    pub task: TaskId,
    /// Which run of it, from 1.
    pub attempt: u32,
    /// Which conversation.
    pub context: String,
    /// What was asked, with earlier turns.
    pub input: TaskInput,
    /// Model asked for; empty = the agent's.
    pub model: String,
    /// The asker's own id of the request; may be empty.
    pub message_id: String,
    /// Who asked.
    pub caller: String,
    /// Of a job: what opens the cluster to it while it runs; empty = nothing does.
    pub token: String,
    /// Of a job: values of the secrets that its variables refer to.
    pub secrets: HashMap<String, String>,
    /// What is said to the task while it runs.
    pub inbox: Inbox,
}

/// The inside of an actor. Turns run one at a time unless the agent says `concurrency`; dropping the future of a turn
/// cancels it.
pub trait Behavior: Send + Sync + 'static {
    /// Answers one request: streams through `sink`, or returns a value, or both fails and says how.
    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>>;

    /// Answers a request that needs no waiting, before the next one is looked at: such turns keep their order even where
    /// many run at once. `None` = [`Self::turn`] answers.
    fn at_once(&self, _: &Invocation) -> Option<Result<Option<Payload>, Error>> {
        None
    }

    /// What a later activation begins with, as its constructor's argument; `None` = nothing is kept.
    fn snapshot(&self) -> Option<Payload> {
        None
    }

    /// The actor is over.
    fn stopped(&self) {}
}

impl Invocation {
    /// A request outside any task, with nobody else waiting for it.
    pub fn of(method: &str, args: Payload) -> Self {
        Self { method: method.to_owned(), args, json: false, task: None, chain: String::new() }
    }

    /// The first argument, whatever it travels in.
    pub fn arg<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match self.args.codec() {
            Codec::Json => {
                let value: serde_json::Value = covey_proto::codec::decode(&self.args)?;
                let first =
                    value["args"].get(0).or_else(|| value["kwargs"].as_object().and_then(|k| k.values().next()));
                let first = first.cloned().unwrap_or(serde_json::Value::Null);
                serde_json::from_value(first)
                    .map_err(|e| Error::invalid(format!("`{}` got a wrong argument: {e}", self.method)))
            }
            Codec::Content => {
                let text = serde_json::Value::String(self.text()?);
                let parsed = serde_json::from_value(text.clone());
                // A number in a message is still text there.
                parsed
                    .or_else(|_| serde_json::from_str(text.as_str().unwrap_or_default()))
                    .map_err(|e| Error::invalid(format!("`{}` cannot read the message: {e}", self.method)))
            }
            Codec::Raw | Codec::Pickle | Codec::Lent | Codec::Bincode => covey_proto::codec::decode(&self.args),
        }
    }

    /// The request as text.
    pub fn text(&self) -> Result<String, Error> {
        if self.args.codec() == Codec::Content {
            let content: Vec<Content> = covey_proto::from_json("the message", &self.args.body)?;
            return Ok(text_of(&content));
        }
        match self.arg::<serde_json::Value>()? {
            serde_json::Value::String(text) => Ok(text),
            other => Ok(other.to_string()),
        }
    }
}
