//! A prompt around a model, and the tools it may call.
//!
//! The model answers; where it calls tools they run side by side, what they say goes back to it, and it answers again,
//! until it calls none or its budget is at its end.

use std::{sync::Arc, time::Duration};

use covey_domain::{
    ActorId, Error, ErrorKind, Isolation, ModelName,
    agent::LlmAgent,
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

use tools::Tools;

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
                let answer = within(until, self.ask(&model, caller, chat, sink)).await?;
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
                let results = answer.calls.into_iter().map(|call| async {
                    let said = tools.call(&call, &chain, &sink.traceparent()).await;
                    // The model may do something about it.
                    ChatMessage::of_tool(call.id, said.unwrap_or_else(|error| format!("error: {}", error.message)))
                });
                let results = futures::stream::iter(results).buffered(CALLS_AT_ONCE).collect::<Vec<_>>();
                messages.extend(within(until, async { Ok(results.await) }).await?);
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
    async fn ask(&self, model: &ModelName, caller: &str, chat: Chat, sink: &Sink) -> Result<Answer, Error> {
        let mut span = crate::models::span(model.as_str(), &sink.traceparent());
        let mut events = self.models.infer(InferRequest {
            model: model.clone(),
            work: Work::Chat(chat),
            terms: self.terms(caller),
            made: Vec::new(),
        });
        let mut answer = Answer::default();
        while let Some(event) = events.next().await {
            let event = event.inspect_err(|error| span.fail(error))?;
            crate::models::count(&mut span, &event);
            match event {
                InferEvent::Delta(delta) => {
                    if !delta.text.is_empty() {
                        sink.text(&delta.text).await;
                        answer.text.push_str(&delta.text);
                    }
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
        Ok(answer)
    }
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
