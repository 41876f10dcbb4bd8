//! Requests to a model and what comes back. One shape for every protocol, engine and upstream.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{ModelName, NodeId};

/// How tokens are drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Most new tokens; the model's room by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 or absent = greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus mass, (0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Candidates kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Candidates less likely than this times the likeliest are left out, [0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Taken from the logits of tokens that were made already, [-2, 2].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Taken from the logits of tokens for each time they were made, [-2, 2].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens of prompt and answer; 1 = off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// Added to the logits of single tokens, [-100, 100].
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub logit_bias: std::collections::BTreeMap<u32, f64>,
    /// Same seed, same answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Answers to make, each with dice of its own (seed, seed + 1, …); 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Tells the logarithm of each token's probability, and of so many likeliest ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
    /// What the answer must look like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// Goes on after the model's own end of answer, up to `max_tokens`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_eos: bool,
    /// Texts that end the answer and are not part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

impl Sampling {
    /// The same with `options` put over it; says what is wrong with them.
    pub fn over(&self, options: &serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let mut merged = serde_json::to_value(self).map_err(|e| e.to_string())?;
        for (name, value) in options {
            merged[name] = value.clone();
        }
        let made: Self = serde_json::from_value(merged).map_err(|e| e.to_string())?;
        let known = serde_json::to_value(&made).map_err(|e| e.to_string())?;
        match options.iter().find(|(name, value)| known.get(name.as_str()).is_none() && is_said(value)) {
            Some((name, _)) => Err(format!("no sampling option `{name}`")),
            None => Ok(made),
        }
    }
}

/// An option that says something is there when it is read back.
fn is_said(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => true,
    }
}

/// What an answer must look like. The model can make nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// JSON that this JSON Schema allows; `{"type": "object"}` for any object.
    JsonSchema(Value),
    /// Text that this regular expression (of Rust's syntax, without anchors and look-around) matches as a whole.
    Regex(String),
    /// Text of a context-free grammar in Lark's syntax, from the rule `start`.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// One message of a chat. Content is text; other fields pass to the chat template as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text.
    #[serde(default)]
    pub content: String,
    /// Files of pictures in base64, before the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Whatever else the template may read (`tool_calls`, `name`).
    #[serde(flatten)]
    pub extra: serde_json::Map<String, Value>,
}

impl ChatMessage {
    /// A message with nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// What the model said and which tools it calls, as OpenAI writes calls.
    pub fn calling(content: impl Into<String>, calls: &[CallDelta]) -> Self {
        let mut message = Self::new("assistant", content);
        if !calls.is_empty() {
            let calls = calls.iter().map(|call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            });
            message.extra.insert("tool_calls".into(), calls.collect());
        }
        message
    }

    /// What a tool said to the call of this id.
    pub fn of_tool(call: impl Into<String>, content: impl Into<String>) -> Self {
        let mut message = Self::new("tool", content);
        message.extra.insert("tool_call_id".into(), Value::String(call.into()));
        message
    }
}

/// A request to one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferRequest {
    /// Which model.
    pub model: ModelName,
    /// What is asked.
    #[serde(flatten)]
    pub work: Work,
    /// How it is ranked.
    #[serde(default, skip_serializing_if = "Terms::is_default")]
    pub terms: Terms,
    /// What another worker made of it before it was lost: the answer goes on behind that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<Made>,
}

/// Brings a model into a worker's memory, or out of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOrder {
    /// Which.
    pub model: ModelName,
    /// Which worker.
    pub node: NodeId,
}

/// What was made of one choice, by the tokens of its deltas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Which answer, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub choice: u32,
    /// Its tokens, all of which its reader was told.
    pub tokens: Vec<u32>,
    /// Why it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Finish>,
}

/// How a request is ranked among others of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Turns are fair between callers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub caller: String,
    /// Beginnings of prompts are shared within a tenant only: else one could measure what another has asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Higher goes first; 0 by default.
    pub priority: i32,
    /// Milliseconds from its arrival at the model until it fails with what it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Terms {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A raw prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text, tokenized by the model's tokenizer with its special tokens.
    Text(String),
    /// Tokens of the model's vocabulary, as they are.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What is asked of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "lowercase")]
pub enum Work {
    /// Messages in, one assistant message out.
    Chat(Chat),
    /// Text in, its continuation out.
    Complete {
        /// Raw prompt, no template.
        prompt: Prompt,
        /// How tokens are drawn.
        #[serde(default)]
        sampling: Sampling,
    },
    /// Texts in, one unit vector each out.
    Embed {
        /// Texts; each is cut at the model's length.
        texts: Vec<String>,
    },
    /// Speech in, its text out, piece by piece.
    Transcribe(Speech),
    /// A question and texts in, how well each text answers it out: vectors of one number.
    Rank {
        /// The question.
        query: String,
        /// Texts; question and text together are cut at the model's length.
        texts: Vec<String>,
    },
}

/// Speech that wants to be text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Speech {
    /// A file of sound, in base64.
    pub sound: String,
    /// Which language is spoken, as ISO 639-1; found out if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// English comes out, whatever went in.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub translate: bool,
    /// What was said before, or names that may come.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prompt: String,
    /// 0 = greedy.
    pub temperature: f64,
}

/// A conversation that wants its next message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Chat {
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call, as OpenAI declares them (`{"type": "function", "function": {…}}`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    /// Whether it must call one.
    #[serde(skip_serializing_if = "ToolChoice::is_auto")]
    pub tool_choice: ToolChoice,
    /// At most one call in an answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub one_call: bool,
    /// More names that the model's chat template reads (`enable_thinking`).
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub template: serde_json::Map<String, Value>,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Whether a model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It does not.
    None,
    /// It must.
    Required,
    /// It must call this one.
    Function(String),
}

impl ToolChoice {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it, or a stop text did.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// It calls tools and waits for what they say.
    ToolCalls,
}

/// Tokens counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    pub input: u64,
    /// Tokens made.
    #[serde(default)]
    pub output: u64,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// How likely a token was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its text; a part of a character shows as U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability, before temperature.
    pub logprob: f32,
    /// The likeliest tokens of its place, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<(String, f32)>,
}

/// More of an answer. Some field beside `choice` is not empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delta {
    /// Which answer, from 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub choice: u32,
    /// More of its text.
    pub text: String,
    /// More of what the model thinks before it answers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    /// More of its calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallDelta>,
    /// Where it was said in a sound: beginning and end, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<(f32, f32)>,
    /// The tokens of this piece, where asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// All tokens that were made since the last delta of this answer, told or held back: with them another worker can
    /// go on from here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u32>,
}

/// More of a call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallDelta {
    /// Which call of the answer, from 0.
    pub index: u32,
    /// Its id; in its first piece only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The function; in its first piece only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// More of the arguments, a JSON object in the end.
    pub arguments: String,
}

impl CallDelta {
    /// Puts more of some calls to `calls`, where those are whole as far as they came.
    pub fn gather(calls: &mut Vec<Self>, more: Vec<Self>) {
        for call in more {
            match calls.iter_mut().find(|c| c.index == call.index) {
                Some(begun) => begun.arguments.push_str(&call.arguments),
                None => calls.push(call),
            }
        }
    }
}

impl InferEvent {
    /// Text of the only answer.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Delta(Delta { text: text.into(), ..Delta::default() })
    }
}

/// What comes back, in order; exactly one `Done` ends a request that did not fail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum InferEvent {
    /// More of an answer.
    Delta(Delta),
    /// One of several answers has ended. With one answer only `Done` comes.
    Ended {
        /// Which answer.
        choice: u32,
        /// Why.
        finish: Finish,
    },
    /// A sound was understood; what was said comes next.
    Heard {
        /// Its language, as ISO 639-1.
        language: String,
        /// Its length, seconds.
        seconds: f32,
    },
    /// Vectors, row-major; `data.len() = texts * dims`.
    Vectors {
        /// Length of each vector.
        dims: usize,
        /// All numbers.
        data: Vec<f32>,
    },
    /// The end.
    Done {
        /// Why.
        finish: Finish,
        /// Tokens.
        usage: Usage,
    },
}
