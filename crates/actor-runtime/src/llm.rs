//! A prompt around a model, and the tools it may call.
//!
//! The model answers; where it calls tools they run side by side, what they say goes back to it, and it answers again,
//! until it calls none or its budget is at its end. All of it is in the task's log as it happens: thoughts, text, each tool
//! call with its arguments as they grow, its progress and its outcome, and the tokens of each request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use covey_domain::{
    ActorId, Error, ErrorKind, Isolation, ModelName, TaskEvent,
    agent::LlmAgent,
    event::{Content, ToolExec, ToolOutcome},
    infer::{CallDelta, Chat, ChatMessage, InferEvent, InferRequest, Terms, ToolChoice, Usage, Work},
    task::text_of,
};
use covey_proto::v1::Payload;
use futures::{StreamExt as _, future::BoxFuture};
use tokio::{sync::OnceCell, time::Instant};

use crate::{Behavior, Invocation, Models, Outward, Sink, launch::Launcher};

mod agents;
mod mcp;
mod tools;

use tools::{Said, Tools};

/// Requests to the model in one turn, where nothing is said.
const STEPS: u32 = 8;

/// Calls of tools of one answer that run at once.
const CALLS_AT_ONCE: usize = 16;

pub(crate) struct Llm {
    /// The agent's name: turns at the model are fair between agents.
    pub name: String,
    pub actor: ActorId,
    pub agent: LlmAgent,
    pub model: ModelName,
    pub models: Arc<Models>,
    pub outward: Arc<dyn Outward>,
    pub launcher: Arc<Launcher>,
    /// How much the processes of its tools are kept from.
    pub isolation: Option<Isolation>,
    /// Found at the first turn.
    pub tools: OnceCell<Tools>,
}

/// What one answer of the model was.
#[derive(Default)]
struct Answer {
    text: String,
    calls: Vec<CallDelta>,
    usage: Usage,
}

/// A turn's log, and the numbers of its tool calls.
struct Log<'a> {
    sink: &'a Sink,
    calls: AtomicU32,
}

/// A tool call that runs, in its turn's log.
#[derive(Clone, Copy)]
pub(crate) struct CallLog<'a> {
    sink: &'a Sink,
    /// Within the turn.
    id: &'a str,
}

impl Log<'_> {
    /// More of the tool calls of an answer. `ids` are those of its calls, by their place in it.
    async fn calls(&self, ids: &mut Vec<(u32, String)>, more: &[CallDelta]) -> Result<(), Error> {
        for piece in more {
            let id = match ids.iter().find(|(index, _)| *index == piece.index) {
                Some((_, id)) => id.clone(),
                None => {
                    let id = (self.calls.fetch_add(1, Ordering::Relaxed) + 1).to_string();
                    ids.push((piece.index, id.clone()));
                    let opened = TaskEvent::ToolCallOpened {
                        call: id.as_str().into(),
                        name: piece.name.clone(),
                        title: None,
                        exec: ToolExec::Server,
                        message: String::new().into(),
                        provider_call: Some(piece.id.clone()).filter(|id| !id.is_empty()),
                    };
                    self.sink.write(opened).await?;
                    id
                }
            };
            if !piece.arguments.is_empty() {
                let text = piece.arguments.clone();
                self.sink.write(TaskEvent::ToolCallArgsDelta { call: id.into(), text }).await?;
            }
        }
        Ok(())
    }
}

impl CallLog<'_> {
    /// A piece of what a tool says before it is done.
    async fn progress(self, content: serde_json::Value) -> Result<(), Error> {
        let (call, status) = (self.id.into(), "answering".to_owned());
        self.sink.write(TaskEvent::ToolCallProgress { call, status, content: Some(content), progress: None }).await
    }

    /// Another agent does the work of the call.
    fn delegated(self, agent: &str, skill: &str) -> Result<(), Error> {
        let via = format!("tool:{}", self.id);
        let (sub, name, agent) = (self.id.into(), skill.to_owned(), agent.into());
        self.sink.emit(TaskEvent::SubRunStarted { sub, name, agent, via, parent: None })
    }

    fn returned(self, done: bool) -> Result<(), Error> {
        let outcome = if done { "success" } else { "error" }.to_owned();
        self.sink.emit(TaskEvent::SubRunFinished { sub: self.id.into(), outcome })
    }

    fn done(self, said: &Result<Said, Error>) -> Result<(), Error> {
        let outcome = match said {
            Ok(said) => ToolOutcome::Ok { content: said.content.clone(), structured: said.structured.clone() },
            Err(error) => ToolOutcome::Error { message: error.message.clone() },
        };
        // The log mints the id of the result.
        let done = |outcome| TaskEvent::ToolCallDone { call: self.id.into(), outcome, message: String::new().into() };
        let told = self.sink.emit(done(outcome));
        match (told, said) {
            // What the tool said besides is more than a log keeps; the model has the text.
            (Err(error), Ok(said)) if error.kind == ErrorKind::InvalidArgument => {
                let content = vec![Content::Text(said.text.clone())];
                self.sink.emit(done(ToolOutcome::Ok { content, structured: None }))
            }
            (told, _) => told,
        }
    }
}

impl Behavior for Llm {
    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let mut messages = Vec::new();
            if !self.agent.system.is_empty() {
                messages.push(ChatMessage::new("system", &self.agent.system));
            }
            let (mut model, mut sampling) = (self.model.clone(), self.agent.sampling.clone());
            if let Some(task) = &invocation.task {
                sampling = sampling.over(&task.input.sampling).map_err(Error::invalid)?;
                messages.extend(task.input.history.iter().cloned());
                if !task.model.is_empty() {
                    model = ModelName::from(task.model.as_str());
                }
            }
            messages.push(ChatMessage::new("user", invocation.text()?));
            let budget = &self.agent.budget;
            let until = budget.ms.map(|ms| Instant::now() + Duration::from_millis(ms));
            let found = || Tools::find(&self.agent.tools, &self.outward, &self.launcher, self.isolation);
            let tools = self.tools.get_or_try_init(found).await?;
            let chain = match invocation.chain.as_str() {
                "" => self.actor.to_string(),
                chain => format!("{chain}\n{}", self.actor),
            };
            let steps = budget.steps.unwrap_or(STEPS).max(1);
            let log = Log { sink, calls: AtomicU32::new(0) };
            let mut tokens = 0;
            for step in 1..=steps {
                messages.extend(heard(&invocation));
                let chat = Chat {
                    messages: messages.clone(),
                    tools: tools.declared.clone(),
                    // The last step must be an answer.
                    tool_choice: if step < steps { ToolChoice::Auto } else { ToolChoice::None },
                    sampling: sampling.clone(),
                    ..Chat::default()
                };
                let caller = invocation.task.as_ref().map_or("", |task| &task.caller);
                let (answer, ids) = within(until, self.ask(&model, caller, chat, &log)).await?;
                tokens += answer.usage.input + answer.usage.output;
                if answer.calls.is_empty() {
                    // Who said something meanwhile has not been answered yet.
                    let more: Vec<_> = if step < steps { heard(&invocation).collect() } else { Vec::new() };
                    if more.is_empty() {
                        break;
                    }
                    sink.text("\n\n").await;
                    messages.push(ChatMessage::new("assistant", &answer.text));
                    messages.extend(more);
                    continue;
                }
                if let Some(most) = budget.tokens.filter(|most| tokens >= *most) {
                    let why = format!("the agent's budget of {most} tokens is spent");
                    return Err(Error::new(ErrorKind::FailedPrecondition, why));
                }
                messages.push(ChatMessage::calling(answer.text, &answer.calls));
                let traceparent = sink.traceparent();
                let results: Vec<_> = answer
                    .calls
                    .into_iter()
                    .zip(ids)
                    .map(|(call, (_, id))| run(tools, sink, call, id, &chain, &traceparent))
                    .collect();
                let results = futures::stream::iter(results).buffered(CALLS_AT_ONCE).collect::<Vec<_>>();
                let results = within(until, async { Ok(results.await) }).await?;
                messages.extend(results.into_iter().collect::<Result<Vec<_>, Error>>()?);
            }
            Ok(None)
        })
    }
}

impl Llm {
    fn terms(&self, caller: &str) -> Terms {
        let share = if caller.is_empty() { format!("agents/{}", self.name) } else { caller.to_owned() };
        Terms { caller: share, tenant: caller.to_owned(), ..Terms::default() }
    }

    /// `caller` is for whom: turns are fair between callers, and beginnings of prompts are shared among the tasks of one. What
    /// actors ask of the agent has the agent's own share.
    /// Gives the answer, and the ids of its tool calls within the turn.
    async fn ask(
        &self,
        model: &ModelName,
        caller: &str,
        chat: Chat,
        log: &Log<'_>,
    ) -> Result<(Answer, Vec<(u32, String)>), Error> {
        let sink = log.sink;
        let mut span = crate::models::span(model.as_str(), &sink.traceparent());
        let mut events = self.models.infer(InferRequest {
            model: model.clone(),
            work: Work::Chat(chat),
            terms: self.terms(caller),
            made: Vec::new(),
        });
        let (mut answer, mut ids) = (Answer::default(), Vec::new());
        while let Some(event) = events.next().await {
            let event = event.inspect_err(|error| span.fail(error))?;
            crate::models::count(&mut span, &event);
            match event {
                InferEvent::Delta(delta) => {
                    if !delta.reasoning.is_empty() {
                        let part = String::new().into();
                        sink.write(TaskEvent::ThoughtDelta { part, text: delta.reasoning }).await?;
                    }
                    if !delta.text.is_empty() {
                        sink.text(&delta.text).await;
                        answer.text.push_str(&delta.text);
                    }
                    log.calls(&mut ids, &delta.calls).await?;
                    CallDelta::gather(&mut answer.calls, delta.calls);
                }
                InferEvent::Done { usage, .. } => {
                    sink.used(model, usage);
                    answer.usage = usage;
                }
                // An agent answers once.
                InferEvent::Ended { .. } | InferEvent::Heard { .. } => {}
                InferEvent::Vectors { .. } => {
                    return Err(Error::invalid(format!("model `{model}` makes vectors, not text")));
                }
            }
        }
        for (call, (_, id)) in answer.calls.iter().zip(&ids) {
            let args = serde_json::from_str(&call.arguments).ok();
            let (call, args_text) = (id.as_str().into(), call.arguments.clone());
            sink.write(TaskEvent::ToolCallReady { call, args_text, args }).await?;
        }
        Ok((answer, ids))
    }
}

/// Runs a tool call, which the turn calls `id`, and gives what the model is told of it.
async fn run(
    tools: &Tools,
    sink: &Sink,
    call: CallDelta,
    id: String,
    chain: &str,
    traceparent: &str,
) -> Result<ChatMessage, Error> {
    let log = CallLog { sink, id: &id };
    let said = tools.call(&call, log, chain, traceparent).await;
    log.done(&said)?;
    // The model may do something about a failure.
    let text = said.map_or_else(|error| format!("error: {}", error.message), |said| said.text);
    Ok(ChatMessage::of_tool(call.id, text))
}

/// What was said to the task since it was looked at last.
fn heard(invocation: &Invocation) -> impl Iterator<Item = ChatMessage> {
    let inbox = invocation.task.as_ref().map(|task| task.inbox.clone()).unwrap_or_default();
    std::iter::from_fn(move || inbox.next()).map(|said| ChatMessage::new("user", text_of(&said.parts)))
}

async fn within<T>(until: Option<Instant>, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match until {
        None => work.await,
        Some(until) => tokio::time::timeout_at(until, work)
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::DeadlineExceeded, "the agent's budget of time is spent"))),
    }
}
