//! What a task asks, as the terminal shows it.

use covey_domain::{
    InterruptId,
    event::{Choice, InterruptKind, Refusal, TaskEvent},
};
use serde_json::Value;

/// A question of a task.
pub(crate) struct Question {
    pub(crate) id: InterruptId,
    /// The answer before, which did not fit.
    pub(crate) refused: Option<Refusal>,
    kind: InterruptKind,
    prompt: String,
    options: Vec<Choice>,
    schema: Option<Value>,
}

impl Question {
    /// The question that an event asks.
    pub(crate) fn of(event: &TaskEvent) -> Option<Self> {
        let TaskEvent::InterruptRaised { id, kind, prompt, options, response_schema, refused, .. } = event else {
            return None;
        };
        let schema = match (response_schema, kind) {
            (Some(schema), _) | (None, InterruptKind::Form { schema }) => Some(schema.clone()),
            (None, _) => None,
        };
        Some(Self {
            id: id.clone(),
            refused: refused.clone(),
            kind: kind.clone(),
            prompt: prompt.clone(),
            options: options.clone(),
            schema,
        })
    }

    /// Its words, without why it is asked again.
    pub(crate) fn words(&self) -> &str {
        let again = self.refused.as_ref().map(|refused| format!("\n({})", refused.why));
        again.and_then(|again| self.prompt.strip_suffix(&again)).unwrap_or(&self.prompt)
    }

    /// What belongs to it, a line each: where to go, what it takes.
    pub(crate) fn details(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.kind {
            InterruptKind::Url { url } | InterruptKind::Auth { url: Some(url) } => lines.push(url.clone()),
            InterruptKind::Approval { .. }
            | InterruptKind::Form { .. }
            | InterruptKind::Auth { url: None }
            | InterruptKind::Custom { .. } => {}
        }
        lines.extend(self.options.iter().map(|option| match option.id == option.label {
            true => option.id.clone(),
            false => format!("{} · {}", option.id, option.label),
        }));
        lines.extend(self.schema.iter().map(|schema| format!("schema: {schema}")));
        lines
    }

    /// What an answer to it must be; `None` where it may be anything.
    pub(crate) fn takes(&self) -> Option<String> {
        if let Some(schema) = &self.schema {
            return Some(format!("an answer that fits the schema {schema}"));
        }
        let options: Vec<_> = self.options.iter().map(|option| option.id.as_str()).collect();
        (!options.is_empty()).then(|| format!("one of: {}", options.join(", ")))
    }
}
