//! What a model's text means: what it thinks, which tools it calls, and what it says.
//!
//! Families write calls in three forms. Template and vocabulary tell which one a model speaks; one that was never taught
//! any is told of the first in its system message.

use std::sync::Arc;

use covey_domain::infer::{CallDelta, Chat, ChatMessage, Constraint, Delta, ToolChoice};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::chat::Sources;

mod functions;
mod scan;

use scan::{Found, Scan};

/// How a family writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen, SmolLM 3.
    Tagged,
    /// `<tool_call><function=name><parameter=key>…</parameter></function></tool_call>`: Qwen3-Coder.
    Functions,
    /// `{"name": …, "parameters": {…}}` and nothing else, with or without `<|python_tag|>`: Llama 3.
    Bare,
    /// `[TOOL_CALLS]` with a list of objects: Mistral.
    Listed,
    /// `[TOOL_CALLS]name[ARGS]{…}`, once for each call: newer Mistral.
    Named,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";
/// Between a name and its arguments, in newer Mistral models.
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

/// Pairs around what a model thinks.
const THOUGHTS: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];

/// Texts with a meaning, which some vocabularies hold as special tokens; a reader must see them.
pub(crate) const MARKS: [&str; 10] =
    [OPEN, CLOSE, LIST, PYTHON, ARGS, CALL_ID, THOUGHTS[0].0, THOUGHTS[0].1, THOUGHTS[1].0, THOUGHTS[1].1];

/// How one model writes.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    form: Form,
    /// Whether its template tells it of tools.
    pub knows_tools: bool,
    /// Whether its template takes a system message.
    pub knows_system: bool,
    thoughts: Option<(&'static str, &'static str)>,
    /// Special tokens among the [`MARKS`].
    marks: Vec<(u32, &'static str)>,
    /// Tokens with a character that ends a mark: behind them the meaning of text may change.
    turns: Vec<bool>,
}

impl Dialect {
    /// Reads it from a template and a vocabulary of `vocab` tokens.
    pub fn new(sources: &Sources, tokenizer: &Tokenizer, vocab: usize) -> Self {
        let template = &[sources.chat.as_str(), sources.tools.as_deref().unwrap_or_default()].concat();
        let token = |text: &str| tokenizer.token_to_id(text).is_some();
        let has = |text: &str| template.contains(text) || token(text);
        let form = if template.contains(functions::OPEN) {
            Form::Functions
        } else if template.contains(OPEN) {
            Form::Tagged
        } else if has(LIST) {
            if template.contains(ARGS) { Form::Named } else { Form::Listed }
        } else if has(PYTHON) || template.contains("\"parameters\"") {
            Form::Bare
        } else {
            Form::Tagged
        };
        let marks = MARKS.into_iter().filter_map(|mark| Some((tokenizer.token_to_id(mark)?, mark))).collect();
        let turns = (0..vocab as u32)
            .map(|id| tokenizer.id_to_token(id).is_some_and(|text| text.contains(['>', ']', '}'])))
            .collect();
        Self {
            form,
            knows_tools: template.contains("tools"),
            knows_system: !template.contains("System role not supported"),
            thoughts: THOUGHTS.into_iter().find(|(open, _)| has(open)),
            marks,
            turns,
        }
    }

    /// What `token` shows to a reader, if it is one of the [`MARKS`].
    pub fn mark(&self, token: u32) -> Option<&'static str> {
        self.marks.iter().find(|(id, _)| *id == token).map(|(_, text)| *text)
    }

    /// Whether behind `token` text may mean something else than before.
    pub fn may_turn(&self, token: u32) -> bool {
        self.turns.get(token as usize).copied().unwrap_or(false)
    }

    /// A reader of the answer to `prompt`.
    pub fn reader(&self, prompt: &str, chat: &Chat) -> Reader {
        let calls = !chat.tools.is_empty() && chat.tool_choice != ToolChoice::None;
        let thinks = self.thoughts.is_some_and(|(open, _)| prompt.trim_end().ends_with(open));
        Reader {
            form: calls.then_some(self.form),
            tools: chat.tools.clone().into(),
            thoughts: self.thoughts,
            state: if thinks { State::Think } else { State::Say },
            held: String::new(),
            said: false,
            skips_blanks: thinks,
            calls: 0,
            raw: String::new(),
        }
    }

    /// What the answer must look like as a whole, if anything: calls where it must call, and where an answer has a
    /// schema, that or calls.
    pub fn whole(&self, chat: &Chat) -> Option<Constraint> {
        let offered = !chat.tools.is_empty();
        let more = |between: &str| if chat.one_call { String::new() } else { format!(" ({between} call)*") };
        let calls = match self.form {
            Form::Tagged | Form::Functions => {
                format!("calls: call{}\ncall: {} body", more(r#""\n""#), quoted(OPEN))
            }
            Form::Bare => "calls: object".to_owned(),
            Form::Listed => format!("calls: {} body", quoted(LIST)),
            Form::Named => format!("calls: call{}\ncall: {} body", more(""), quoted(LIST)),
        };
        match (&chat.tool_choice, &chat.sampling.constraint) {
            (ToolChoice::Required, _) if offered => {
                Some(Constraint::Lark(format!("start: calls\n{calls}\n{}", self.rules(chat, None))))
            }
            (ToolChoice::Function(name), _) if offered => {
                Some(Constraint::Lark(format!("start: calls\n{calls}\n{}", self.rules(chat, Some(name)))))
            }
            (ToolChoice::Auto, Some(Constraint::JsonSchema(schema))) if offered && self.form != Form::Bare => {
                let schema = crate::constraint::compact(schema);
                let answer = format!("answer: %json {schema}");
                Some(Constraint::Lark(format!("start: calls | answer\n{answer}\n{calls}\n{}", self.rules(chat, None))))
            }
            (_, constraint) => constraint.clone(),
        }
    }

    /// What follows the mark that opens a call, up to where plain text goes on.
    pub fn call_body(&self, chat: &Chat) -> Option<Constraint> {
        if chat.tools.is_empty() || chat.tool_choice == ToolChoice::None || self.form == Form::Bare {
            return None;
        }
        Some(Constraint::Lark(format!("start: body\n{}", self.rules(chat, None))))
    }

    fn rules(&self, chat: &Chat, only: Option<&str>) -> String {
        let tools = chat.tools.iter().map(|t| &t["function"]).filter(|f| only.is_none_or(|name| f["name"] == name));
        let objects = if self.form == Form::Functions { functions::rules(tools) } else { self.objects(tools) };
        let body = match self.form {
            Form::Tagged | Form::Functions => format!(r#"body: "\n"? object "\n"? {}"#, quoted(CLOSE)),
            Form::Listed if chat.one_call => r#"body: "[" object "]""#.to_owned(),
            Form::Listed => r#"body: "[" object (", " object)* "]""#.to_owned(),
            Form::Named => format!("body: object\nid: {} /[A-Za-z0-9]{{9}}/", quoted(CALL_ID)),
            Form::Bare => String::new(),
        };
        format!("{body}\n{objects}")
    }

    /// Rules of calls in JSON: `object`, and what it needs.
    fn objects<'a>(&self, tools: impl Iterator<Item = &'a Value>) -> String {
        let key = if self.form == Form::Bare { "parameters" } else { "arguments" };
        // A schema stands in a rule of its own.
        let (mut names, mut lines) = (Vec::new(), String::new());
        for (i, function) in tools.enumerate() {
            let schema = match &function["parameters"] {
                parameters @ Value::Object(_) => parameters.clone(),
                _ => json!({"type": "object"}),
            };
            let schema = crate::constraint::compact(&schema);
            let (head, tail) = if self.form == Form::Named {
                (format!("{} id? {}", function["name"], quoted(ARGS)), "")
            } else {
                (quoted(&format!("{{\"name\": {}, \"{key}\": ", function["name"])), "\"}\"")
            };
            lines.push_str(&format!("object_{i}: {head} arguments_{i} {tail}\narguments_{i}: %json {schema}\n"));
            names.push(format!("object_{i}"));
        }
        format!("object: {}\n{lines}", names.join(" | "))
    }

    /// Tells a model whose template does not, of tools: in its system message, and in messages it can read.
    pub fn teach(&self, tools: &[Value], untaught: Vec<ChatMessage>) -> Vec<ChatMessage> {
        let mut lesson = String::from("You can call functions. They are, one in a line:\n");
        for tool in tools {
            lesson.push_str(&format!("{}\n", tool["function"]));
        }
        lesson.push_str(&format!(
            "To call one, answer with\n{OPEN}\n{{\"name\": <its name>, \"arguments\": <its arguments>}}\n{CLOSE}"
        ));
        let mut messages: Vec<ChatMessage> = Vec::new();
        for message in untaught {
            let mut text = message.content;
            for call in message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
                let call = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
                text.push_str(&format!("\n{OPEN}\n{call}\n{CLOSE}"));
            }
            let role = if message.role == "tool" { "user" } else { &message.role };
            if message.role == "tool" {
                text = format!("<tool_response>\n{text}\n</tool_response>");
            }
            match messages.last_mut() {
                // Templates that know no tools often want user and assistant in turns.
                Some(last) if last.role == role && role == "user" => last.content.push_str(&format!("\n{text}")),
                _ => messages.push(ChatMessage::new(role, text.trim_start())),
            }
        }
        match messages.first_mut() {
            Some(first) if first.role == "system" => first.content.push_str(&format!("\n\n{lesson}")),
            _ => messages.insert(0, ChatMessage::new("system", lesson)),
        }
        messages
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Takes an answer's text piece by piece and tells it apart.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    /// `None` = calls are not looked for.
    form: Option<Form>,
    tools: Arc<[Value]>,
    thoughts: Option<(&'static str, &'static str)>,
    state: State,
    /// Text whose meaning is not known yet.
    held: String,
    /// Whether text beside blanks was told.
    said: bool,
    /// Blanks that come next belong to a mark before them.
    skips_blanks: bool,
    calls: u32,
    /// The open call as it stands, in case that it is none.
    raw: String,
}

#[derive(Clone, Debug)]
enum State {
    Say,
    Think,
    /// Between the mark that opens calls (or a call of a list) and the next call.
    Open {
        list: bool,
    },
    /// In a call.
    Call {
        scan: Scan,
        list: bool,
        told: bool,
    },
    /// Behind a tagged call.
    Close,
}

impl Reader {
    /// Whether a call was just opened, and nothing of it is there yet.
    pub fn at_call(&self) -> bool {
        matches!(self.state, State::Open { list: false }) && self.held.trim().is_empty()
    }

    /// Whether it is thinking.
    pub fn thinks(&self) -> bool {
        matches!(self.state, State::Think)
    }

    /// Calls so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// More text; what is clear of it goes into `delta`.
    pub fn push(&mut self, text: &str, delta: &mut Delta) {
        self.held.push_str(text);
        while self.step(delta) {}
    }

    /// The end: what was held is told as it stands.
    pub fn flush(&mut self, delta: &mut Delta) {
        let held = std::mem::take(&mut self.held);
        match &self.state {
            // A call that was cut short where nothing of it was told.
            State::Open { .. } if self.calls == 0 => {
                delta.text.push_str(&(std::mem::take(&mut self.raw) + &held));
            }
            State::Open { .. } => {}
            State::Say | State::Close => delta.text.push_str(&held),
            State::Think => delta.reasoning.push_str(&held),
            State::Call { told: false, .. } => delta.text.push_str(&std::mem::take(&mut self.raw)),
            State::Call { .. } => {}
        }
        self.state = State::Say;
    }

    /// One change of meaning; false when more text is needed.
    fn step(&mut self, delta: &mut Delta) -> bool {
        if self.skips_blanks {
            let blank = self.held.len() - self.held.trim_start().len();
            self.held.drain(..blank);
            if self.held.is_empty() {
                return false;
            }
            self.skips_blanks = false;
        }
        match &self.state {
            State::Say => self.say(delta),
            State::Think => {
                let close = self.thoughts.map_or("", |(_, close)| close);
                let (mut text, found) = self.until(&[close]);
                if found.is_some() {
                    text.truncate(text.trim_end().len());
                }
                delta.reasoning.push_str(&text);
                if found.is_some() {
                    self.state = State::Say;
                    self.skips_blanks = true;
                }
                found.is_some()
            }
            State::Open { list } => {
                let list = *list;
                self.open(list, delta)
            }
            State::Call { .. } => self.call(delta),
            State::Close => {
                let rest = self.held.trim_start();
                if rest.len() < CLOSE.len() && CLOSE.starts_with(rest) {
                    return false;
                }
                self.held = rest.strip_prefix(CLOSE).unwrap_or(rest).to_owned();
                self.state = State::Say;
                self.skips_blanks = true;
                true
            }
        }
    }

    fn say(&mut self, delta: &mut Delta) -> bool {
        if self.form == Some(Form::Bare) && !self.said && self.held.trim_start().starts_with('{') {
            self.state = State::Open { list: false };
            return true;
        }
        let opens = self.thoughts.filter(|_| !self.said && self.calls == 0).map(|(open, _)| open);
        let calls = self.form.map(|form| match form {
            Form::Tagged | Form::Functions => OPEN,
            Form::Bare => PYTHON,
            Form::Listed | Form::Named => LIST,
        });
        let marks: Vec<&'static str> = opens.into_iter().chain(calls).collect();
        let (mut text, found) = self.until(&marks);
        self.said |= !text.trim().is_empty();
        let Some(mark) = found else {
            delta.text.push_str(&text);
            return false;
        };
        self.raw = text.split_off(text.trim_end().len());
        self.raw.push_str(mark);
        delta.text.push_str(&text);
        self.skips_blanks = Some(mark) == opens;
        self.state = if self.skips_blanks { State::Think } else { State::Open { list: false } };
        true
    }

    /// Takes what stands before the first of `marks`, and that mark; without one, what cannot be the beginning of one.
    /// Blanks at the end wait: before a mark they belong to it.
    fn until(&mut self, marks: &[&'static str]) -> (String, Option<&'static str>) {
        let first = marks.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min();
        if let Some((at, mark)) = first {
            let rest = self.held.split_off(at + mark.len());
            let mut text = std::mem::replace(&mut self.held, rest);
            text.truncate(at);
            return (text, Some(mark));
        }
        if marks.is_empty() {
            return (std::mem::take(&mut self.held), None);
        }
        let begun = marks
            .iter()
            .flat_map(|mark| (1..mark.len()).rev().map(|n| &mark[..n]))
            .filter(|head| self.held.ends_with(head))
            .map(str::len)
            .max()
            .unwrap_or(0);
        let told = self.held[..self.held.len() - begun].trim_end().len();
        let rest = self.held.split_off(told);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// Where a call may begin.
    fn open(&mut self, list: bool, delta: &mut Delta) -> bool {
        let blank = self.held.len() - self.held.trim_start_matches([' ', '\n', '\t', '\r', ',', ';']).len();
        self.raw.extend(self.held.drain(..blank));
        let Some(first) = self.held.chars().next() else { return false };
        match (first, self.form) {
            ('[', Some(Form::Listed | Form::Named)) if !list => {
                self.raw.push(first);
                self.held.remove(0);
                self.state = State::Open { list: true };
                true
            }
            (']', _) if list => {
                self.held.remove(0);
                self.state = State::Say;
                self.skips_blanks = true;
                true
            }
            ('{', _) => {
                self.state = State::Call { scan: Scan::object(), list, told: false };
                true
            }
            ('<', Some(Form::Functions)) => self.function(delta),
            (_, Some(Form::Listed | Form::Named)) if !list => {
                // A name, and behind it the arguments.
                let Some(at) = self.held.find('{') else { return false };
                let name = self.held[..at].trim();
                let name = name.split_once(CALL_ID).map_or(name, |(name, _)| name);
                let name = name.trim_end_matches(ARGS).trim().to_owned();
                self.raw.extend(self.held.drain(..at));
                self.state = State::Call { scan: Scan::arguments(name), list: false, told: false };
                true
            }
            _ => {
                // No call: what stood there is text after all, unless calls came before.
                if self.calls == 0 {
                    self.held.insert_str(0, &self.raw);
                    self.form = None;
                }
                self.raw.clear();
                self.state = State::Say;
                true
            }
        }
    }

    /// A call of [`Form::Functions`], told when it is whole.
    fn function(&mut self, delta: &mut Delta) -> bool {
        let Some(end) = self.held.find(functions::CLOSE).map(|at| at + functions::CLOSE.len()) else { return false };
        let rest = self.held.split_off(end);
        let call = std::mem::replace(&mut self.held, rest);
        match functions::parse(&call, &self.tools) {
            Some((name, arguments)) => {
                delta.calls.push(CallDelta { index: self.calls, id: call_id(self.form), name, arguments });
                self.calls += 1;
                self.raw.clear();
                self.state = State::Close;
            }
            None => {
                self.held.insert_str(0, &(std::mem::take(&mut self.raw) + &call));
                self.form = None;
                self.state = State::Say;
            }
        }
        true
    }

    fn call(&mut self, delta: &mut Delta) -> bool {
        let State::Call { scan, list, told } = &mut self.state else { return false };
        let list = *list;
        let found = scan.push(&self.held);
        let taken = match &found {
            Found::More { .. } => self.held.len(),
            Found::End { taken, .. } => *taken,
            Found::Broken => 0,
        };
        self.raw.push_str(&self.held[..taken]);
        let rest = self.held.split_off(taken);
        self.held = rest;
        let known = scan.name().is_some_and(|name| self.tools.iter().any(|t| t["function"]["name"] == name));
        // A bare object that names no tool is an answer in JSON.
        let is_text =
            self.form == Some(Form::Bare) && scan.name().is_some() && !known && self.raw.starts_with(['{', ' ', '\n']);
        if found == Found::Broken && !*told || is_text {
            let raw = std::mem::take(&mut self.raw);
            self.held.insert_str(0, &raw);
            self.form = None;
            self.state = State::Say;
            return true;
        }
        if let Some(name) = scan.name().filter(|_| !*told) {
            let id = call_id(self.form);
            delta.calls.push(CallDelta { index: self.calls, id, name: name.to_owned(), arguments: String::new() });
            *told = true;
        }
        let index = self.calls;
        let mut tell = |arguments: String| match delta.calls.last_mut() {
            _ if arguments.is_empty() => {}
            Some(last) if last.index == index => last.arguments.push_str(&arguments),
            _ => delta.calls.push(CallDelta { index, arguments, ..CallDelta::default() }),
        };
        match found {
            Found::More { arguments } => {
                tell(arguments);
                false
            }
            Found::End { arguments, .. } => {
                tell(arguments);
                self.calls += 1;
                self.raw.clear();
                self.state = match self.form {
                    Some(Form::Tagged | Form::Functions) | None => State::Close,
                    Some(Form::Bare) => State::Open { list: false },
                    Some(Form::Listed | Form::Named) if list => State::Open { list: true },
                    Some(Form::Listed | Form::Named) => State::Say,
                };
                true
            }
            Found::Broken => {
                // Its name was told: it stands as it is, and what follows is text.
                self.state = State::Say;
                self.calls += 1;
                true
            }
        }
    }
}

/// Mistral's templates take nine letters and digits only.
fn call_id(form: Option<Form>) -> String {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let letters = |n: usize| (0..n).map(|_| LETTERS[rand::random_range(0..LETTERS.len())] as char).collect::<String>();
    if matches!(form, Some(Form::Listed | Form::Named)) { letters(9) } else { format!("call_{}", letters(24)) }
}

#[cfg(test)]
mod tests;
