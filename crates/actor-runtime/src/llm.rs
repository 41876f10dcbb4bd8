//! A prompt around a model, and the tools it may call.
//!
//! The model answers; where it calls tools they run side by side, what they say goes back to it, and it answers again,
//! until it calls none or its budget is at its end.

use std::{sync::Arc, time::Duration};

use covey_domain::{
    ActorId, Error, ErrorKind, ModelName, NodeId,
    agent::LlmAgent,
    infer::{CallDelta, Chat, ChatMessage, InferEvent, InferRequest, Terms, ToolChoice, Usage, Work},
};
use covey_proto::v1::Payload;
use futures::{StreamExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio::{sync::OnceCell, time::Instant};

use crate::{Behavior, Invocation, Models, Outward, Sink};

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
    pub node: NodeId,
    pub agent: LlmAgent,
    pub model: ModelName,
    pub models: Arc<Models>,
    pub outward: Arc<dyn Outward>,
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

/// What a turn has used of its budget.
struct Spent {
    steps: u32,
    tokens: u64,
    until: Option<Instant>,
}

impl Behavior for Llm {
    fn turn<'a>(&'a self, invocation: Invocation, sink: &'a Sink) -> BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let mut messages = Vec::new();
            if !self.agent.system.is_empty() {
                messages.push(ChatMessage::new("system", &self.agent.system));
            }
            let mut model = self.model.clone();
            if let Some(task) = &invocation.task {
                messages.extend(task.input.history.iter().cloned());
                if !task.model.is_empty() {
                    model = ModelName::from(task.model.as_str());
                }
            }
            messages.push(ChatMessage::new("user", invocation.text()?));
            let budget = &self.agent.budget;
            let until = budget.ms.map(|ms| Instant::now() + Duration::from_millis(ms));
            let mut spent = Spent { steps: 0, tokens: 0, until };
            let tools =
                self.tools.get_or_try_init(|| Tools::find(&self.agent.tools, &self.outward, &self.node)).await?;
            let steps = budget.steps.unwrap_or(STEPS).max(1);
            loop {
                spent.steps += 1;
                let chat = Chat {
                    messages: messages.clone(),
                    tools: tools.declared.clone(),
                    // The last step must be an answer.
                    tool_choice: if spent.steps < steps { ToolChoice::Auto } else { ToolChoice::None },
                    sampling: self.agent.sampling.clone(),
                    ..Chat::default()
                };
                let answer = within(spent.until, self.ask(&model, chat, sink)).await?;
                spent.tokens += answer.usage.input + answer.usage.output;
                if answer.calls.is_empty() {
                    return Ok(None);
                }
                if budget.tokens.is_some_and(|most| spent.tokens >= most) {
                    let why = format!("the agent's budget of {} tokens is spent", budget.tokens.unwrap_or_default());
                    return Err(Error::new(ErrorKind::FailedPrecondition, why));
                }
                messages.push(called(&answer));
                let chain = match invocation.chain.as_str() {
                    "" => self.actor.to_string(),
                    chain => format!("{chain}\n{}", self.actor),
                };
                let results = answer.calls.into_iter().map(|call| {
                    let chain = chain.clone();
                    async move {
                        let said = tools.call(&call, &chain, &sink.traceparent()).await;
                        // The model may do something about it.
                        (call.id, said.unwrap_or_else(|error| format!("error: {}", error.message)))
                    }
                });
                let results = futures::stream::iter(results).buffered(CALLS_AT_ONCE).collect::<Vec<_>>();
                for (id, said) in within(spent.until, async { Ok(results.await) }).await? {
                    let extra = [("tool_call_id".to_owned(), json!(id))].into_iter().collect();
                    messages.push(ChatMessage { extra, ..ChatMessage::new("tool", said) });
                }
            }
        })
    }
}

impl Llm {
    async fn ask(&self, model: &ModelName, chat: Chat, sink: &Sink) -> Result<Answer, Error> {
        let mut span = crate::models::span(model.as_str(), &sink.traceparent());
        let mut events = self.models.infer(InferRequest {
            model: model.clone(),
            work: Work::Chat(chat),
            terms: Terms { caller: self.name.clone(), ..Terms::default() },
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
                    for call in delta.calls {
                        match answer.calls.iter_mut().find(|c| c.index == call.index) {
                            Some(begun) => begun.arguments.push_str(&call.arguments),
                            None => answer.calls.push(call),
                        }
                    }
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

/// The model's answer as the conversation has it.
fn called(answer: &Answer) -> ChatMessage {
    let calls = answer.calls.iter().map(
        |call| json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}),
    );
    let extra = [("tool_calls".to_owned(), Value::from(calls.collect::<Vec<_>>()))].into_iter().collect();
    ChatMessage { extra, ..ChatMessage::new("assistant", &answer.text) }
}

async fn within<T>(until: Option<Instant>, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match until {
        None => work.await,
        Some(until) => tokio::time::timeout_at(until, work)
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::DeadlineExceeded, "the agent's budget of time is spent"))),
    }
}
