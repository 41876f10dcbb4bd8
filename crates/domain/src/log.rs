//! Folding a task's log: what is open, what it says so far, and how to close it.
//!
//! The same fold runs in the worker that writes the log, in the head that keeps it and in every protocol that shows
//! it, so they cannot disagree. [`OpenParts`] knows what must be closed before the end, [`Turns`] what is asked and what
//! was said to it; [`Answer`] is the text and data a reader has in hand.

use serde_json::Value;

use crate::{
    InterruptId, MessageId, PartId, SubRunId, TaskId,
    event::{Channel, Content, Delta, MediaSource, Outcome, PartKind, Role, TaskEvent, is_message},
    task::{Said, text_of},
};

/// What is open in a log, in the order it was opened.
#[derive(Clone, Debug, Default)]
pub struct OpenParts {
    stack: Vec<Open>,
    finished: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Open {
    Step(u32),
    Message(MessageId),
    Part(PartId, u64),
    Sub(SubRunId),
}

/// Why an event does not fit the log it is offered to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The log has its end already.
    #[error("the task has ended")]
    Ended,
    /// A delta or closer of something that is not open.
    #[error("`{0}` is not open")]
    NotOpen(String),
    /// An opener of something that is open.
    #[error("`{0}` is open already")]
    OpenAlready(String),
    /// The end while something is open.
    #[error("`{0}` is still open at the end")]
    StillOpen(String),
}

impl OpenParts {
    /// Takes `event` into account, or says why it does not fit.
    pub fn push(&mut self, event: &TaskEvent) -> Result<(), Misfit> {
        if self.finished {
            return Err(Misfit::Ended);
        }
        match event {
            TaskEvent::StepStarted { step, .. } => self.open(Open::Step(*step)),
            TaskEvent::StepFinished { step, .. } => self.close(|o| *o == Open::Step(*step), step),
            TaskEvent::MessageOpened { message, .. } => self.open(Open::Message(message.clone())),
            TaskEvent::MessageClosed { message } => {
                self.close(|o| matches!(o, Open::Message(m) if m == message), message)
            }
            TaskEvent::PartOpened { message, part, .. } => {
                self.require(|o| matches!(o, Open::Message(m) if m == message), message)?;
                self.open(Open::Part(part.clone(), 0))
            }
            TaskEvent::PartDelta { part, delta } => {
                let added = match delta {
                    Delta::Text(text) | Delta::Bytes(text) => text.len() as u64,
                    Delta::Data(_) => 0,
                };
                match self.stack.iter_mut().rev().find(|o| matches!(o, Open::Part(p, _) if p == part)) {
                    Some(Open::Part(_, len)) => {
                        *len += added;
                        Ok(())
                    }
                    _ => Err(Misfit::NotOpen(part.to_string())),
                }
            }
            TaskEvent::PartClosed { part, .. } => self.close(|o| matches!(o, Open::Part(p, _) if p == part), part),
            TaskEvent::SubRunStarted { sub, .. } => self.open(Open::Sub(sub.clone())),
            TaskEvent::SubRunFinished { sub, .. } => self.close(|o| matches!(o, Open::Sub(s) if s == sub), sub),
            TaskEvent::Finished { .. } => match self.stack.last() {
                Some(open) => Err(Misfit::StillOpen(format!("{open:?}"))),
                None => {
                    self.finished = event.is_terminal();
                    Ok(())
                }
            },
            _ => Ok(()),
        }
    }

    /// What must be written before the end, innermost first. Steps stay open when `keep_steps`: a reset follows.
    pub fn closers(&self, keep_steps: bool) -> Vec<TaskEvent> {
        self.stack
            .iter()
            .rev()
            .filter_map(|open| match open {
                Open::Step(_) if keep_steps => None,
                Open::Step(step) => Some(TaskEvent::StepFinished { step: *step, finish: None, usage: None }),
                Open::Message(message) => Some(TaskEvent::MessageClosed { message: message.clone() }),
                Open::Part(part, len) => {
                    Some(TaskEvent::PartClosed { part: part.clone(), len: *len, citations: Vec::new() })
                }
                Open::Sub(sub) => Some(TaskEvent::SubRunFinished { sub: sub.clone(), outcome: "error".into() }),
            })
            .collect()
    }

    /// Whether an attempt is under way.
    pub fn in_step(&self) -> bool {
        self.stack.iter().any(|open| matches!(open, Open::Step(_)))
    }

    fn open(&mut self, open: Open) -> Result<(), Misfit> {
        let same = |o: &Open| match (o, &open) {
            (Open::Part(a, _), Open::Part(b, _)) => a == b,
            (a, b) => a == b,
        };
        if self.stack.iter().any(same) {
            return Err(Misfit::OpenAlready(format!("{open:?}")));
        }
        self.stack.push(open);
        Ok(())
    }

    fn require(&self, is: impl Fn(&Open) -> bool, name: impl ToString) -> Result<(), Misfit> {
        if self.stack.iter().any(is) { Ok(()) } else { Err(Misfit::NotOpen(name.to_string())) }
    }

    fn close(&mut self, is: impl Fn(&Open) -> bool, name: impl ToString) -> Result<(), Misfit> {
        match self.stack.iter().rposition(is) {
            Some(at) => {
                self.stack.remove(at);
                Ok(())
            }
            None => Err(Misfit::NotOpen(name.to_string())),
        }
    }
}

/// The questions of a task that nobody has answered, and what was said to it since it began.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// Ids and words of open questions, oldest first. They outlive a lost run: the next one asks them again.
    pub asked: Vec<(InterruptId, String)>,
    /// Messages, in order.
    pub said: Vec<Said>,
    prompts: Vec<(InterruptId, String)>,
}

impl Turns {
    /// Whether this question, in these words, has its answer.
    pub fn answered(&self, question: &InterruptId, prompt: &str) -> bool {
        self.said.iter().any(|said| said.answers.as_ref() == Some(question) && said.prompt == prompt)
    }

    /// Takes the event of this number into account.
    pub fn push(&mut self, seq: u64, event: &TaskEvent) {
        match event {
            TaskEvent::InterruptRaised { id, prompt, .. } => {
                for known in [&mut self.asked, &mut self.prompts] {
                    known.retain(|(other, _)| other != id);
                    known.push((id.clone(), prompt.clone()));
                }
            }
            TaskEvent::InterruptResolved { id, .. } => self.asked.retain(|(other, _)| other != id),
            TaskEvent::Steered { parts, message_id, answers, .. } => {
                let asked = self.prompts.iter().find(|(id, _)| Some(id) == answers.as_ref());
                self.said.push(Said {
                    seq,
                    answers: answers.clone(),
                    prompt: asked.map(|(_, prompt)| prompt.clone()).unwrap_or_default(),
                    message_id: message_id.clone(),
                    parts: parts.clone(),
                });
            }
            _ => {}
        }
    }
}

/// What a reader of a log has in hand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Text of all answer parts, in order.
    pub text: String,
    /// Values of all data parts, in order.
    pub data: Vec<Value>,
    /// What the method returned, if it did not stream.
    pub result: Option<Value>,
    /// Names of all files, in order.
    pub files: Vec<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    parts: Vec<(PartId, bool)>,
}

impl Answer {
    /// Takes one event into account.
    pub fn push(&mut self, event: &TaskEvent) {
        match event {
            TaskEvent::PartOpened { part, kind, .. } => self.parts.push((part.clone(), *kind == PartKind::Text)),
            TaskEvent::PartDelta { part, delta } => match delta {
                Delta::Text(text) if self.parts.iter().any(|(p, is_text)| p == part && *is_text) => {
                    self.text.push_str(text);
                }
                Delta::Data(value) => self.data.push(value.clone()),
                Delta::Text(_) | Delta::Bytes(_) => {}
            },
            TaskEvent::Media { mime, name, .. } => self.files.push(name.clone().unwrap_or_else(|| mime.clone())),
            TaskEvent::StepReset { .. } => *self = Self::default(),
            TaskEvent::Finished { outcome, .. } => {
                if let Outcome::Completed { result, .. } = outcome {
                    self.result = result.clone();
                }
                self.outcome = Some(outcome.clone());
            }
            _ => {}
        }
    }

    /// What to show as text: what was streamed, else what was returned; then each data part in a line, and files by their
    /// names.
    pub fn display(&self) -> String {
        let shown = match &self.result {
            _ if !self.text.is_empty() => self.text.clone(),
            Some(content) if self.is_message() => {
                let content: Vec<_> = serde_json::from_value(content.clone()).unwrap_or_default();
                text_of(&content)
            }
            Some(Value::String(text)) => text.clone(),
            Some(value) if !value.is_null() => value.to_string(),
            _ => String::new(),
        };
        let text = std::iter::once(shown).filter(|text| !text.is_empty());
        let data = self.data.iter().map(Value::to_string);
        let files = self.files.iter().map(|file| format!("[{file}]"));
        text.chain(data).chain(files).collect::<Vec<_>>().join("\n")
    }

    fn is_message(&self) -> bool {
        matches!(&self.outcome, Some(Outcome::Completed { finish, .. }) if is_message(finish))
    }
}

/// Writes the events of one attempt of a task: opens lazily, closes in order, mints ids from the task's own.
///
/// Ids are `<task>-m<attempt>` for the message and `<task>-p<attempt>.<n>` for its parts, so the same events always
/// carry the same ids.
#[derive(Debug)]
pub struct Writer {
    task: TaskId,
    step: u32,
    message: Option<MessageId>,
    part: Option<(PartId, PartKind, u64)>,
    parts: u32,
}

impl Writer {
    /// A writer for attempt `step` of `task`; the head has written the step's start already.
    pub fn new(task: TaskId, step: u32) -> Self {
        Self { task, step, message: None, part: None, parts: 0 }
    }

    /// Events that add text to the answer.
    pub fn text(&mut self, text: &str) -> Vec<TaskEvent> {
        if text.is_empty() {
            return Vec::new();
        }
        self.delta(PartKind::Text, Delta::Text(text.to_owned()), text.len() as u64)
    }

    /// Events that add a JSON value to the answer, as a part of its own.
    pub fn data(&mut self, value: Value) -> Vec<TaskEvent> {
        self.delta(PartKind::Data { name: "yield".into() }, Delta::Data(value), 0)
    }

    /// Events that add a file to the answer.
    pub fn file(&mut self, mime: String, name: Option<String>, source: MediaSource) -> Vec<TaskEvent> {
        let mut events = Vec::new();
        let message = self.message(&mut events);
        self.close_part(&mut events);
        let part = self.next_part();
        events.push(TaskEvent::Media { message, part, mime, source, name });
        events
    }

    /// Events that add content of any kind.
    pub fn content(&mut self, content: Content) -> Vec<TaskEvent> {
        match content {
            Content::Text(text) => self.text(&text),
            Content::Data(value) => self.data(value),
            Content::File { mime, name, source } => self.file(mime, name, source),
        }
    }

    /// Events that end the attempt with `outcome`.
    pub fn finish(
        mut self,
        outcome: Outcome,
        usage: std::collections::BTreeMap<crate::ModelName, crate::infer::Usage>,
    ) -> Vec<TaskEvent> {
        let mut events = Vec::new();
        self.close_part(&mut events);
        if let Some(message) = self.message.take() {
            events.push(TaskEvent::MessageClosed { message });
        }
        events.push(TaskEvent::StepFinished { step: self.step, finish: None, usage: None });
        events.push(TaskEvent::Finished { outcome, usage });
        events
    }

    fn delta(&mut self, kind: PartKind, delta: Delta, len: u64) -> Vec<TaskEvent> {
        let mut events = Vec::new();
        let message = self.message(&mut events);
        if !matches!(&self.part, Some((_, open, _)) if *open == kind) {
            self.close_part(&mut events);
            let part = self.next_part();
            events.push(TaskEvent::PartOpened { message, part: part.clone(), kind: kind.clone() });
            self.part = Some((part, kind, 0));
        }
        if let Some((part, _, total)) = &mut self.part {
            *total += len;
            events.push(TaskEvent::PartDelta { part: part.clone(), delta });
        }
        events
    }

    /// The message of the answer, opened when there is first something to put into it.
    fn message(&mut self, events: &mut Vec<TaskEvent>) -> MessageId {
        if let Some(message) = &self.message {
            return message.clone();
        }
        let message = MessageId::from(format!("{}-m{}", self.task, self.step));
        events.push(TaskEvent::MessageOpened {
            message: message.clone(),
            role: Role::Assistant,
            author: None,
            channel: Channel::Answer,
        });
        self.message = Some(message.clone());
        message
    }

    fn next_part(&mut self) -> PartId {
        self.parts += 1;
        PartId::from(format!("{}-p{}.{}", self.task, self.step, self.parts))
    }

    fn close_part(&mut self, events: &mut Vec<TaskEvent>) {
        if let Some((part, _, len)) = self.part.take() {
            events.push(TaskEvent::PartClosed { part, len, citations: Vec::new() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished() -> Outcome {
        Outcome::Completed { finish: "stop".into(), result: None }
    }

    #[test]
    fn what_the_writer_writes_fits_the_log_and_adds_up() {
        let mut writer = Writer::new("t1".into(), 1);
        let mut events = vec![TaskEvent::StepStarted { step: 1, name: "attempt".into() }];
        events.extend(writer.text("hel"));
        events.extend(writer.text("lo "));
        events.extend(writer.data(serde_json::json!({"n": 1})));
        events.extend(writer.text("world"));
        events.extend(writer.finish(finished(), Default::default()));
        let (mut open, mut answer) = (OpenParts::default(), Answer::default());
        for event in &events {
            open.push(event).unwrap();
            answer.push(event);
        }
        assert_eq!(answer.text, "hello world");
        assert_eq!(answer.data, [serde_json::json!({"n": 1})]);
        assert_eq!(open.push(&events[0]), Err(Misfit::Ended));
    }

    #[test]
    fn what_is_shown_of_an_answer_has_its_data_beside_its_text() {
        let shown = |content: Vec<Content>, outcome: Outcome| {
            let (mut writer, mut answer) = (Writer::new("t1".into(), 1), Answer::default());
            let mut events: Vec<_> = content.into_iter().flat_map(|part| writer.content(part)).collect();
            events.extend(writer.finish(outcome, Default::default()));
            events.iter().for_each(|event| answer.push(event));
            answer.display()
        };
        let (text, data) = (Content::Text("two of them".into()), Content::Data(serde_json::json!({"n": 2})));
        assert_eq!(shown(vec![text.clone(), data.clone()], finished()), "two of them\n{\"n\":2}");
        let result = serde_json::to_value([text, data]).ok();
        let reply = Outcome::Completed { finish: crate::event::REPLY.into(), result };
        assert_eq!(shown(vec![], reply), "two of them\n{\"n\":2}");
    }

    #[test]
    fn closers_close_in_stack_order_and_a_reset_forgets() {
        let mut writer = Writer::new("t1".into(), 1);
        let (mut open, mut answer) = (OpenParts::default(), Answer::default());
        let mut events = vec![TaskEvent::StepStarted { step: 1, name: "attempt".into() }];
        events.extend(writer.text("partial"));
        for event in &events {
            open.push(event).unwrap();
            answer.push(event);
        }
        let closers = open.closers(true);
        assert!(matches!(closers[0], TaskEvent::PartClosed { len: 7, .. }));
        assert!(matches!(closers[1], TaskEvent::MessageClosed { .. }));
        assert_eq!(closers.len(), 2);
        for event in &closers {
            open.push(event).unwrap();
        }
        answer.push(&TaskEvent::StepReset { step: 1 });
        assert_eq!(answer, Answer::default());
        let end = TaskEvent::Finished { outcome: finished(), usage: Default::default() };
        assert!(matches!(open.push(&end), Err(Misfit::StillOpen(_))));
        open.push(&open.closers(false)[0].clone()).unwrap();
        open.push(&end).unwrap();
    }

    #[test]
    fn events_round_trip_as_json() {
        let events = [
            TaskEvent::ArtifactChunk {
                artifact: "a".into(),
                name: None,
                parts: vec![
                    crate::event::Content::Text("x".into()),
                    crate::event::Content::File {
                        mime: "image/png".into(),
                        name: None,
                        source: crate::event::MediaSource::Url("https://example.org/x".into()),
                    },
                ],
                append: false,
                last: true,
            },
            TaskEvent::Finished {
                outcome: Outcome::Failed { error: crate::Error::internal("x") },
                usage: [("tiny".into(), crate::infer::Usage { input: 1, output: 2 })].into(),
            },
        ];
        for event in events {
            let json = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<TaskEvent>(&json).unwrap(), event, "{json}");
        }
    }
}
