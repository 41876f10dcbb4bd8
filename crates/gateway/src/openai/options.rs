//! Fields that requests for text share, checked: OpenAI's, and what vLLM and its clients added.

use covey_domain::{
    Error,
    infer::{Chat, Constraint, Sampling, Terms, ToolChoice},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Failed;
use crate::Caller;

/// Answers to one request, at most.
const CHOICES_MAX: u32 = 128;

/// Likeliest tokens told for each token, at most.
const TOP_LOGPROBS_MAX: u64 = 20;

/// Functions of one request, at most.
const TOOLS_MAX: usize = 128;

#[derive(Deserialize)]
pub(super) struct Options {
    model: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    seed: Option<u64>,
    stop: Option<OneOrMany>,
    min_p: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    #[serde(default)]
    logit_bias: Option<std::collections::BTreeMap<String, f64>>,
    response_format: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    #[serde(default)]
    ignore_eos: bool,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    logprobs: Option<Value>,
    top_logprobs: Option<u8>,
    /// As vLLM's: lower goes first.
    priority: Option<i32>,
}

#[derive(Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl Options {
    /// What the answer must look like: OpenAI's `response_format`, or vLLM's `guided_*`.
    fn constraint(&self) -> Result<Option<Constraint>, Error> {
        let guided = [
            self.guided_json.clone().map(Constraint::JsonSchema),
            self.guided_regex.clone().map(Constraint::Regex),
            self.guided_choice.clone().map(Constraint::Choice),
            self.guided_grammar.clone().map(Constraint::Lark),
        ];
        let mut all: Vec<Constraint> = guided.into_iter().flatten().collect();
        all.extend(self.response_format.as_ref().map(|f| format(f, &f["json_schema"])).transpose()?.flatten());
        if all.len() > 1 {
            return Err(Error::invalid("only one of `response_format` and `guided_*` may be given"));
        }
        Ok(all.pop())
    }

    pub fn split(self, caller: &Caller) -> Result<(String, Sampling, Reply), Failed> {
        let check = |ok: bool, why: &str| if ok { Ok(()) } else { Err(Error::invalid(why)) };
        check((1..=CHOICES_MAX).contains(&self.n.unwrap_or(1)), "`n` must be between 1 and 128")?;
        let logprobs = match &self.logprobs {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(u64::from(self.top_logprobs.unwrap_or(0))),
            Some(other) => {
                Some(other.as_u64().ok_or_else(|| Error::invalid("`logprobs` must be true, false or a number"))?)
            }
        };
        check_draw(self.temperature, self.top_p, logprobs)?;
        let within = |x: Option<f64>, from: f64, to: f64| x.is_none_or(|x| (from..=to).contains(&x));
        check(within(self.min_p, 0.0, 1.0), "`min_p` must be between 0 and 1")?;
        check(within(self.presence_penalty, -2.0, 2.0), "`presence_penalty` must be between -2 and 2")?;
        check(within(self.frequency_penalty, -2.0, 2.0), "`frequency_penalty` must be between -2 and 2")?;
        check(within(self.repetition_penalty, 0.01, 10.0), "`repetition_penalty` must be between 0.01 and 10")?;
        let constraint = self.constraint()?;
        let mut logit_bias = std::collections::BTreeMap::new();
        for (token, by) in self.logit_bias.unwrap_or_default() {
            let id = token
                .parse()
                .map_err(|_| Error::invalid(format!("`logit_bias` has `{token}`, which is no token id")))?;
            check((-100.0..=100.0).contains(&by), "`logit_bias` must be between -100 and 100")?;
            logit_bias.insert(id, by);
        }
        let model = self.model.filter(|m| !m.is_empty()).ok_or_else(|| Error::invalid("`model` is missing"))?;
        let sampling = Sampling {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            stop: self.stop.map(OneOrMany::into_vec).unwrap_or_default(),
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias,
            constraint,
            n: self.n.filter(|n| *n > 1),
            logprobs: logprobs.map(|n| n as u8),
            ignore_eos: self.ignore_eos,
        };
        let reply = Reply {
            stream: self.stream,
            usage: self.stream_options.is_some_and(|o| o.include_usage),
            choices: self.n.unwrap_or(1),
            terms: caller.terms(self.priority.map_or(0, i32::saturating_neg)),
        };
        Ok((model, sampling, reply))
    }
}

/// What all endpoints know of how tokens are drawn.
pub(super) fn check_draw(temperature: Option<f64>, top_p: Option<f64>, logprobs: Option<u64>) -> Result<(), Error> {
    let check = |ok: bool, why: &str| if ok { Ok(()) } else { Err(Error::invalid(why)) };
    check(temperature.is_none_or(|t| (0.0..=100.0).contains(&t)), "`temperature` must be between 0 and 100")?;
    check(top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "`top_p` must be above 0 and at most 1")?;
    check(logprobs.is_none_or(|n| n <= TOP_LOGPROBS_MAX), "`top_logprobs` must be at most 20")
}

/// How an answer goes back.
pub(super) struct Reply {
    pub stream: bool,
    pub usage: bool,
    /// Answers to each prompt.
    pub choices: u32,
    /// How the model ranks it.
    pub terms: Terms,
}

/// What an answer must look like by a format's `type` and the object that has its schema.
pub(super) fn format(format: &Value, holder: &Value) -> Result<Option<Constraint>, Error> {
    match format["type"].as_str() {
        None if format.is_null() => Ok(None),
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint::JsonSchema(json!({"type": "object"})))),
        Some("json_schema") if holder["schema"].is_object() => {
            Ok(Some(Constraint::JsonSchema(holder["schema"].clone())))
        }
        Some("json_schema") => Err(Error::invalid("a format of type json_schema has no `schema`")),
        _ => Err(Error::invalid("a format's `type` must be text, json_object or json_schema")),
    }
}

/// What a conversation says about tools and templates.
#[derive(Deserialize)]
pub(super) struct ChatOptions {
    #[serde(default)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning_effort: Option<String>,
    /// As vLLM's: more names for the template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

impl ChatOptions {
    /// Puts them into a conversation.
    pub fn into_chat(self, chat: Chat) -> Result<Chat, Error> {
        let tools = tools(self.tools.unwrap_or_default())?;
        let tool_choice = tool_choice(self.tool_choice.as_ref(), &tools)?;
        let mut template = self.chat_template_kwargs.unwrap_or_default();
        effort(self.reasoning_effort.as_deref(), &mut template);
        Ok(Chat { tools, tool_choice, one_call: self.parallel_tool_calls == Some(false), template, ..chat })
    }
}

/// Templates know whether to think, and some how hard.
pub(super) fn effort(effort: Option<&str>, template: &mut Map<String, Value>) {
    if let Some(effort) = effort {
        template.entry("enable_thinking").or_insert((effort != "none").into());
        template.entry("reasoning_effort").or_insert(effort.into());
    }
}

/// Functions, all of them with a name of their own.
pub(super) fn tools(tools: Vec<Value>) -> Result<Vec<Value>, Error> {
    if tools.len() > TOOLS_MAX {
        return Err(Error::invalid(format!("`tools` has {} entries; at most {TOOLS_MAX} are served", tools.len())));
    }
    let mut names = std::collections::BTreeSet::new();
    for tool in &tools {
        if tool["type"] != "function" {
            return Err(Error::invalid(format!("a tool of type {} is not served; functions are", tool["type"])));
        }
        let name = tool["function"]["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::invalid("a function in `tools` has no name"))?;
        if !names.insert(name) {
            return Err(Error::invalid(format!("`tools` has the function `{name}` twice")));
        }
        if !matches!(tool["function"]["parameters"], Value::Object(_) | Value::Null) {
            return Err(Error::invalid(format!("`parameters` of the function `{name}` are no JSON Schema")));
        }
    }
    Ok(tools)
}

/// `auto`, `none`, `required`, or one function, by name in either of OpenAI's two shapes.
pub(super) fn tool_choice(choice: Option<&Value>, tools: &[Value]) -> Result<ToolChoice, Error> {
    let choice = match choice {
        None | Some(Value::Null) => return Ok(ToolChoice::Auto),
        Some(choice) => choice,
    };
    let named = choice["function"]["name"].as_str().or(choice["name"].as_str());
    let choice = match (choice.as_str(), named) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::None,
        (Some("required"), _) => ToolChoice::Required,
        (None, Some(name)) => ToolChoice::Function(name.to_owned()),
        _ => return Err(Error::invalid("`tool_choice` must be auto, none, required, or name one function")),
    };
    match &choice {
        ToolChoice::Function(name) if !tools.iter().any(|t| t["function"]["name"] == name.as_str()) => {
            Err(Error::invalid(format!("`tool_choice` names `{name}`, which is not among `tools`")))
        }
        ToolChoice::Required if tools.is_empty() => {
            Err(Error::invalid("`tool_choice` is required, and there are no `tools`"))
        }
        _ => Ok(choice),
    }
}
