//! Turns of durable tasks: begun, spoken to, stopped.

use std::time::Duration;

use covey_domain::{ActorId, Error, TaskId, task::TaskInput};
use covey_proto::{
    from_heads_json, from_json,
    v1::{self, Codec, Payload},
};

use covey_trace::{Kind, Span};

use super::{Runtime, deadline};
use crate::{
    Invocation, Sink,
    behavior::TaskTurn,
    turn::{Control, Over, Turn},
};

impl Runtime {
    /// Runs a task on one of the actors here.
    pub fn run_task(&self, run: v1::RunTask) {
        let (task, attempt, actor) = (TaskId::from(run.task.as_str()), run.attempt, ActorId::from(run.actor.as_str()));
        let control = Control::new();
        let sink = Sink::task(self.inner.reports.clone(), task.clone(), attempt, control.clone());
        let input: TaskInput = match from_heads_json("the task's input", &run.input) {
            Ok(input) => input,
            Err(error) => return sink.end(Err(error)),
        };
        let parent = input.traceparent.as_deref().unwrap_or_default();
        let about = [("covey.task", run.task.as_str()), ("covey.actor", run.actor.as_str())];
        let sink = sink.traced(Span::begin(Kind::Turn, &run.skill, parent, &about));
        let args = match &input.call {
            Some(call) => decode_call(call),
            None => Ok(Payload {
                codec: Codec::Content.into(),
                body: covey_proto::to_json(&input.content),
                buffers: vec![],
            }),
        };
        let args = match args {
            Ok(args) => args,
            Err(error) => return sink.end(Err(error)),
        };
        run.said.iter().for_each(|said| say(&control, said));
        let inbox = control.inbox.clone();
        let limit = self.inner.actors.lock().get(&actor).and_then(|cell| cell.spec.timeout_ms);
        let run_timeout = input.run_timeout_ms.or(limit).map(Duration::from_millis);
        let retry_on = input.retry.as_ref().map(|retry| retry.on.clone()).unwrap_or_default();
        let key = (task.clone(), attempt);
        self.inner.tasks.lock().insert(key.clone(), (actor.clone(), control.clone()));
        let inner = self.inner.clone();
        let turn = Turn {
            invocation: Invocation {
                method: run.skill,
                args,
                json: true,
                task: Some(TaskTurn {
                    task,
                    attempt,
                    context: run.context,
                    input,
                    model: run.model,
                    message_id: run.message_id,
                    token: run.token,
                    secrets: run.secrets,
                    caller: run.caller,
                    inbox,
                }),
                chain: String::new(),
            },
            sink,
            control,
            deadline: deadline(run.timeout_ms),
            run_timeout,
            retry_on,
            // The head gives its actor no other task; what else is in its process goes on.
            alone: false,
            over: Over(Some(Box::new(move || {
                inner.tasks.lock().remove(&key);
            }))),
        };
        self.inner.deliver(&actor, 0, turn);
    }

    /// Stops a task that runs here.
    pub fn cancel_task(&self, cancel: &v1::CancelTask) {
        let key = (TaskId::from(cancel.task.as_str()), cancel.attempt);
        let control = self.inner.tasks.lock().get(&key).map(|(_, control)| control.clone());
        if let Some(control) = control {
            control.cancel();
        }
    }

    /// A message to a task that runs here; another is given to whoever runs it.
    pub fn say_task(&self, say: &v1::SayTask) {
        let key = (TaskId::from(say.task.as_str()), say.attempt);
        let control = self.inner.tasks.lock().get(&key).map(|(_, control)| control.clone());
        if let Some(control) = control {
            self::say(&control, &say.said);
        }
    }
}

fn say(control: &Control, said: &[u8]) {
    match from_json("a message to a task", said) {
        Ok(said) => control.say(said),
        Err(error) => tracing::error!(%error, "a message to a task is not passed on"),
    }
}

/// The arguments a native client put into a task: a payload in base64.
fn decode_call(call: &str) -> Result<Payload, Error> {
    use base64::Engine as _;
    use prost::Message as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(call)
        .map_err(|e| Error::invalid(format!("failed to read arguments: {e}")))?;
    Payload::decode(&*bytes).map_err(|e| Error::invalid(format!("failed to read arguments: {e}")))
}
