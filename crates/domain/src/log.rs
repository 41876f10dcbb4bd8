//! Folding a task's log: what is open, what it says so far, and how to close it.
//!
//! The same fold runs in the worker that writes the log, in the head that keeps it and in every protocol that shows
//! it, so they cannot disagree. [`OpenParts`] knows what must be closed before the end, [`Turns`] what is asked and what
//! was said to it; [`Answer`] is the text and data a reader has in hand.

use serde_json::Value;

use crate::{
    InterruptId, MessageId, PartId, SubRunId, TaskId, ToolCallId,
    event::{
        Channel, Content, Delta, MediaSource, Outcome, PartKind, Role, TaskEvent, ToolExec, ToolOutcome, is_message,
    },
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
    Call(ToolCallId),
    Sub(SubRunId),
}

impl Open {
    /// What closes it.
    fn closer(&self) -> TaskEvent {
        match self {
            Self::Step(step) => TaskEvent::StepFinished { step: *step, finish: None, usage: None },
            Self::Message(message) => TaskEvent::MessageClosed { message: message.clone() },
            Self::Part(part, len) => TaskEvent::PartClosed { part: part.clone(), len: *len, citations: Vec::new() },
            Self::Call(call) => TaskEvent::ToolCallDone {
                call: call.clone(),
                outcome: ToolOutcome::Error { message: "its turn ended before it did".into() },
                message: result_of(call),
            },
            Self::Sub(sub) => TaskEvent::SubRunFinished { sub: sub.clone(), outcome: "error".into() },
        }
    }
}

/// Id of the message that carries the result of a tool call.
fn result_of(call: &ToolCallId) -> MessageId {
    MessageId::from(format!("{call}-result"))
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
            TaskEvent::PartDelta { part, delta } => self.grow(part, delta.text_bytes()),
            TaskEvent::ThoughtDelta { part, text } => self.grow(part, text.len() as u64),
            TaskEvent::PartClosed { part, .. } => self.close(|o| matches!(o, Open::Part(p, _) if p == part), part),
            TaskEvent::ToolCallOpened { call, message, .. } => {
                self.require(|o| matches!(o, Open::Message(m) if m == message), message)?;
                self.open(Open::Call(call.clone()))
            }
            TaskEvent::ToolCallArgsDelta { call, .. }
            | TaskEvent::ToolCallReady { call, .. }
            | TaskEvent::ToolCallProgress { call, .. } => {
                self.require(|o| matches!(o, Open::Call(c) if c == call), call)
            }
            TaskEvent::ToolCallDone { call, .. } => self.close(|o| matches!(o, Open::Call(c) if c == call), call),
            TaskEvent::SubRunStarted { sub, .. } => self.open(Open::Sub(sub.clone())),
            TaskEvent::SubRunFinished { sub, .. } => self.close(|o| matches!(o, Open::Sub(s) if s == sub), sub),
            TaskEvent::Finished { .. } => match self.stack.last() {
                Some(open) => Err(Misfit::StillOpen(format!("{open:?}"))),
                None => {
                    self.finished = event.is_terminal();
                    Ok(())
                }
            },
            TaskEvent::Started { .. }
            | TaskEvent::Status { .. }
            | TaskEvent::StepReset { .. }
            | TaskEvent::Media { .. }
            | TaskEvent::InterruptRaised { .. }
            | TaskEvent::InterruptResolved { .. }
            | TaskEvent::StateSnapshot { .. }
            | TaskEvent::StateDelta { .. }
            | TaskEvent::ArtifactChunk { .. }
            | TaskEvent::UiSurface { .. }
            | TaskEvent::PlanUpdated { .. }
            | TaskEvent::SourceCited { .. }
            | TaskEvent::Usage { .. }
            | TaskEvent::Steered { .. }
            | TaskEvent::Custom { .. } => Ok(()),
        }
    }

    /// What must be written before the end, innermost first. Steps stay open when `keep_steps`: a reset follows.
    pub fn closers(&self, keep_steps: bool) -> Vec<TaskEvent> {
        let kept = |open: &&Open| !(keep_steps && matches!(open, Open::Step(_)));
        self.stack.iter().rev().filter(kept).map(Open::closer).collect()
    }

    /// Whether something is open that must be closed before the end.
    pub fn is_open(&self) -> bool {
        !self.stack.is_empty()
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

    fn grow(&mut self, part: &PartId, added: u64) -> Result<(), Misfit> {
        match self.stack.iter_mut().rev().find(|o| matches!(o, Open::Part(p, _) if p == part)) {
            Some(Open::Part(_, len)) => {
                *len += added;
                Ok(())
            }
            _ => Err(Misfit::NotOpen(part.to_string())),
        }
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
                Delta::Text(_) => {}
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
/// Ids are `<task>-m<attempt>` for the message, `<task>-p<attempt>.<n>` for its parts, and `<task>-c<attempt>.<id>` and
/// `<task>-s<attempt>.<id>` for tool calls and delegated work, so the same events always carry the same ids.
#[derive(Debug)]
pub struct Writer {
    task: TaskId,
    step: u32,
    /// How often the attempt began anew.
    again: u32,
    message: Option<MessageId>,
    part: Option<(PartId, PartKind, u64)>,
    parts: u32,
    /// Tool calls and delegated work that have not ended, in the order they began.
    open: Vec<Open>,
}

impl Writer {
    /// A writer for attempt `step` of `task`; the head has written the step's start already.
    pub fn new(task: TaskId, step: u32) -> Self {
        Self { task, step, again: 0, message: None, part: None, parts: 0, open: Vec::new() }
    }

    /// Id in the log of what a turn calls `id`; `kind` is `c` for a tool call, `s` for delegated work.
    fn id(&self, kind: char, id: &str) -> String {
        format!("{}-{kind}{}.{id}", self.task, self.step)
    }

    /// Id in the log of the tool call that the turn calls `id`.
    pub fn call_id(&self, id: &str) -> ToolCallId {
        self.id('c', id).into()
    }

    /// Id in the log of the delegated work that the turn calls `id`.
    pub fn sub_id(&self, id: &str) -> SubRunId {
        self.id('s', id).into()
    }

    /// Events that add to the thoughts behind the answer.
    pub fn thought(&mut self, text: &str) -> Vec<TaskEvent> {
        if text.is_empty() {
            return Vec::new();
        }
        let (mut events, part) = self.part(PartKind::Reasoning, text.len() as u64);
        events.push(TaskEvent::ThoughtDelta { part, text: text.to_owned() });
        events
    }

    /// Events that begin a tool call, which the turn calls `id`. Text behind it is a part of its own.
    pub fn call(
        &mut self,
        id: &str,
        name: String,
        title: Option<String>,
        exec: ToolExec,
        provider_call: Option<String>,
    ) -> Vec<TaskEvent> {
        let mut events = Vec::new();
        let message = self.message(&mut events);
        self.close_part(&mut events);
        let call = self.call_id(id);
        self.open.push(Open::Call(call.clone()));
        events.push(TaskEvent::ToolCallOpened { call, name, title, exec, message, provider_call });
        events
    }

    /// Events that end a tool call.
    pub fn call_done(&mut self, id: &str, outcome: ToolOutcome) -> Vec<TaskEvent> {
        let call = self.call_id(id);
        let message = result_of(&call);
        self.open.retain(|open| *open != Open::Call(call.clone()));
        vec![TaskEvent::ToolCallDone { call, outcome, message }]
    }

    /// Events that begin delegated work, which the turn calls `id`: `via` says how it is reached.
    pub fn sub(&mut self, id: &str, name: String, agent: crate::AgentName, via: String) -> Vec<TaskEvent> {
        let sub = self.sub_id(id);
        self.open.push(Open::Sub(sub.clone()));
        vec![TaskEvent::SubRunStarted { sub, name, agent, via, parent: None }]
    }

    /// Events that end delegated work.
    pub fn sub_done(&mut self, id: &str, outcome: String) -> Vec<TaskEvent> {
        let sub = self.sub_id(id);
        self.open.retain(|open| *open != Open::Sub(sub.clone()));
        vec![TaskEvent::SubRunFinished { sub, outcome }]
    }

    /// Events after which readers forget what the attempt said: it begins anew.
    pub fn begin_anew(&mut self) -> Vec<TaskEvent> {
        let mut events = Vec::new();
        self.close(&mut events);
        self.again += 1;
        events.push(TaskEvent::StepReset { step: self.step });
        events
    }

    /// Events that add text to the answer.
    pub fn text(&mut self, text: &str) -> Vec<TaskEvent> {
        if text.is_empty() {
            return Vec::new();
        }
        self.delta(PartKind::Text, Delta::Text(text.to_owned()))
    }

    /// Events that add a JSON value to the answer, as a part of its own.
    pub fn data(&mut self, value: Value) -> Vec<TaskEvent> {
        self.delta(PartKind::Data { name: "yield".into() }, Delta::Data(value))
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
        self.close(&mut events);
        events.push(TaskEvent::StepFinished { step: self.step, finish: None, usage: None });
        events.push(TaskEvent::Finished { outcome, usage });
        events
    }

    /// Closes all that is open but the step.
    fn close(&mut self, events: &mut Vec<TaskEvent>) {
        self.close_part(events);
        events.extend(self.open.drain(..).rev().map(|open| open.closer()));
        if let Some(message) = self.message.take() {
            events.push(TaskEvent::MessageClosed { message });
        }
    }

    fn delta(&mut self, kind: PartKind, delta: Delta) -> Vec<TaskEvent> {
        let (mut events, part) = self.part(kind, delta.text_bytes());
        events.push(TaskEvent::PartDelta { part, delta });
        events
    }

    /// The open part of this kind, which grows by `added` bytes, and the events that open it.
    fn part(&mut self, kind: PartKind, added: u64) -> (Vec<TaskEvent>, PartId) {
        let mut events = Vec::new();
        let message = self.message(&mut events);
        if let Some((part, open, total)) = &mut self.part
            && *open == kind
        {
            *total += added;
            return (events, part.clone());
        }
        self.close_part(&mut events);
        let part = self.next_part();
        events.push(TaskEvent::PartOpened { message, part: part.clone(), kind: kind.clone() });
        self.part = Some((part.clone(), kind, added));
        (events, part)
    }

    /// The message of the answer, opened when there is first something to put into it.
    fn message(&mut self, events: &mut Vec<TaskEvent>) -> MessageId {
        if let Some(message) = &self.message {
            return message.clone();
        }
        let message = MessageId::from(match self.again {
            0 => format!("{}-m{}", self.task, self.step),
            again => format!("{}-m{}.{again}", self.task, self.step),
        });
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
    fn what_a_turn_leaves_open_is_closed_at_its_end_and_when_it_begins_anew() {
        let mut writer = Writer::new("t1".into(), 1);
        let (mut open, mut answer) = (OpenParts::default(), Answer::default());
        let mut events = vec![TaskEvent::StepStarted { step: 1, name: "attempt".into() }];
        events.extend(writer.thought("hm"));
        events.extend(writer.text("first "));
        events.extend(writer.call("1", "search".into(), None, ToolExec::Server, None));
        events.extend(writer.sub("1", "search".into(), "finder".into(), "tool".into()));
        events.extend(writer.begin_anew());
        events.extend(writer.text("again"));
        events.extend(writer.call("2", "search".into(), None, ToolExec::Server, None));
        events.extend(writer.call_done("2", ToolOutcome::Ok { content: vec![], structured: None }));
        events.extend(writer.call("3", "search".into(), None, ToolExec::Server, None));
        events.extend(writer.finish(finished(), Default::default()));
        let mut done = Vec::new();
        for event in &events {
            open.push(event).unwrap();
            answer.push(event);
            if let TaskEvent::ToolCallDone { call, outcome, .. } = event {
                done.push((call.as_str(), matches!(outcome, ToolOutcome::Ok { .. })));
            }
        }
        assert_eq!(answer.text, "again");
        assert_eq!(done, [("t1-c1.1", false), ("t1-c1.2", true), ("t1-c1.3", false)]);
        // The head closes the same where a worker is lost.
        let mut open = OpenParts::default();
        events[..9].iter().for_each(|event| open.push(event).unwrap());
        let closers = open.closers(true);
        assert!(closers.iter().any(|event| matches!(event, TaskEvent::ToolCallDone { .. })));
        assert_eq!(
            open.push(&TaskEvent::ToolCallReady { call: "x".into(), args_text: String::new(), args: None }),
            Err(Misfit::NotOpen("x".into()))
        );
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
