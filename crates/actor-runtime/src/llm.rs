//! A prompt around a model.

use std::sync::Arc;

use covey_domain::{
    Error, ModelName,
    agent::LlmAgent,
    infer::{Chat, ChatMessage, InferEvent, InferRequest, Terms, Work},
};
use covey_proto::v1::Payload;
use futures::{StreamExt as _, future::BoxFuture};

use crate::{Behavior, Invocation, Models, Sink};

pub(crate) struct Llm {
    /// The agent's name: turns at the model are fair between agents.
    pub name: String,
    pub agent: LlmAgent,
    pub model: ModelName,
    pub models: Arc<Models>,
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
            let work = Work::Chat(Chat { messages, sampling: self.agent.sampling.clone(), ..Chat::default() });
            let mut span = crate::models::span(model.as_str(), &sink.traceparent());
            let mut events = self.models.infer(InferRequest {
                model: model.clone(),
                work,
                terms: Terms { caller: self.name.clone(), ..Terms::default() },
                made: Vec::new(),
            });
            while let Some(event) = events.next().await {
                let event = event.inspect_err(|error| span.fail(error))?;
                crate::models::count(&mut span, &event);
                match event {
                    InferEvent::Delta(delta) => sink.text(&delta.text).await,
                    InferEvent::Done { usage, .. } => sink.used(&model, usage),
                    // An agent answers once.
                    InferEvent::Ended { .. } => {}
                    InferEvent::Vectors { .. } => {
                        return Err(Error::invalid(format!("model `{model}` makes vectors, not text")));
                    }
                }
            }
            Ok(None)
        })
    }
}
