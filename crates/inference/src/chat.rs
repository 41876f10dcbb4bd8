//! The model's own chat template (Jinja, as Hugging Face writes them), rendered by minijinja.

use covey_domain::infer::{Chat, ChatMessage, ToolChoice};
use minijinja::{
    Environment, ErrorKind, Value as Jinja, context,
    value::{Kwargs, ValueKind},
};
use serde::Serialize as _;
use serde_json::{Value, ser};
use time::OffsetDateTime;

use crate::{Error, dialect::Dialect};

/// What a model brings: its template, and perhaps another one for conversations with tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    pub chat: String,
    pub tools: Option<String>,
}

impl Sources {
    /// From `chat_template` of `tokenizer_config.json`: one text, or a list of named ones.
    pub fn of_settings(value: &Value) -> Option<Self> {
        if let Some(text) = value.as_str() {
            return Some(Self { chat: text.to_owned(), tools: None });
        }
        let named = |name: &str| {
            let found = value.as_array()?.iter().find(|t| t["name"] == name)?;
            found["template"].as_str().map(str::to_owned)
        };
        let tools = named("tool_use");
        Some(Self { chat: named("default").or_else(|| tools.clone())?, tools })
    }
}

/// A compiled template and the special tokens it may name.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    /// Whether there is one for tools.
    for_tools: bool,
    bos: String,
    eos: String,
    pub dialect: Dialect,
}

impl Template {
    pub fn new(sources: &Sources, bos: String, eos: String, dialect: Dialect) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_function("strftime_now", now);
        environment.add_filter("tojson", to_json);
        // As Jinja has it: nothing is not iterable.
        environment.add_test("iterable", |value: &Jinja| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::String)
        });
        let wrong = |e: minijinja::Error| format!("chat template: {e}");
        environment.add_template_owned("chat", plain(&sources.chat)).map_err(wrong)?;
        if let Some(tools) = &sources.tools {
            environment.add_template_owned("tools", plain(tools)).map_err(wrong)?;
        }
        Ok(Self { environment, for_tools: sources.tools.is_some(), bos, eos, dialect })
    }

    /// The prompt that asks for the next assistant message.
    pub fn render(&self, chat: &Chat) -> Result<String, Error> {
        let offered = !chat.tools.is_empty() && chat.tool_choice != ToolChoice::None;
        let name = if offered && self.for_tools { "tools" } else { "chat" };
        let template = self.environment.get_template(name).map_err(|e| Error::Request(e.to_string()))?;
        let teach = offered && !self.dialect.knows_tools;
        let mut messages: Vec<ChatMessage> = chat.messages.iter().map(with_objects).collect();
        if teach {
            messages = self.dialect.teach(&chat.tools, messages);
        }
        if !self.dialect.knows_system {
            fold_system(&mut messages);
        }
        let tools = (offered && !teach).then_some(&chat.tools);
        template
            .render(context! {
                messages => messages,
                tools => tools,
                // SmolLM 3 has a name of its own for them.
                xml_tools => tools,
                add_generation_prompt => true,
                bos_token => self.bos,
                eos_token => self.eos,
                ..Jinja::from_serialize(&chat.template)
            })
            .map_err(|e| Error::Request(format!("the model's chat template refused the messages: {e}")))
    }
}

/// Templates that know no system message take it as the beginning of what the user says first.
fn fold_system(messages: &mut Vec<ChatMessage>) {
    if messages.len() > 1 && messages[0].role == "system" && messages[1].role == "user" {
        let system = messages.remove(0);
        messages[0].content.insert_str(0, &format!("{}\n\n", system.content));
    }
}

/// Without what only training needs, which minijinja does not know.
fn plain(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|n| at + n + 2) else { break };
        let word = rest[at + 2..end - 2].trim_matches(['-', ' ', '\n', '\t']);
        out.push_str(&rest[..at]);
        if !matches!(word, "generation" | "endgeneration") {
            out.push_str(&rest[at..end]);
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Templates want arguments of calls as objects; OpenAI's clients send them as text of JSON.
fn with_objects(message: &ChatMessage) -> ChatMessage {
    let mut message = message.clone();
    for call in message.extra.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = parsed;
        }
    }
    message
}

/// As `json.dumps(…, ensure_ascii=False)`: Jinja's own filter would write `<` as an escape, which no model was taught.
fn to_json(value: &Jinja, kwargs: Kwargs) -> Result<Jinja, minijinja::Error> {
    let wrong = |e: serde_json::Error| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string());
    let indent: Option<usize> = kwargs.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Jinja> = kwargs.get(ignored)?;
    }
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let blanks = " ".repeat(indent);
            let format = ser::PrettyFormatter::with_indent(blanks.as_bytes());
            value.serialize(&mut ser::Serializer::with_formatter(&mut out, format)).map_err(wrong)?;
        }
        None => value.serialize(&mut ser::Serializer::with_formatter(&mut out, Python)).map_err(wrong)?,
    }
    Ok(Jinja::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// Blanks where Python's `json.dumps` sets them.
struct Python;

impl ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// Now in UTC, by the parts of `strftime` that templates use.
fn now(format: &str) -> String {
    date(format, OffsetDateTime::now_utc())
}

fn date(format: &str, at: OffsetDateTime) -> String {
    let month = at.month().to_string();
    let parts = [
        ("%Y", at.year().to_string()),
        ("%m", format!("{:02}", u8::from(at.month()))),
        ("%d", format!("{:02}", at.day())),
        ("%-d", at.day().to_string()),
        ("%b", month[..3].to_owned()),
        ("%B", month),
        ("%H", format!("{:02}", at.hour())),
        ("%M", format!("{:02}", at.minute())),
    ];
    parts.iter().fold(format.to_owned(), |text, (part, value)| text.replace(part, value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(source: &str) -> Template {
        let tokenizer = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
        let sources = Sources { chat: source.into(), tools: None };
        Template::new(&sources, "<s>".into(), "</s>".into(), Dialect::new(&sources, &tokenizer, 0)).unwrap()
    }

    fn chat(messages: Value, tools: Value) -> Chat {
        Chat {
            messages: serde_json::from_value(messages).unwrap(),
            tools: serde_json::from_value(tools).unwrap(),
            ..Chat::default()
        }
    }

    #[test]
    fn templates_are_rendered_as_transformers_renders_them() {
        let source = "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}\
            {{ c.function.arguments | tojson }}{% endfor %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}\
            {{ tools[0] | tojson }}{{ extra }}{{ strftime_now('%Y') | length }}";
        let messages = json!([{"role": "assistant", "content": "x<y",
            "tool_calls": [{"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [\"<ä>\"]}"}}]}]);
        let mut chat = chat(messages, json!([{"type": "function", "function": {"name": "f"}}]));
        chat.template.insert("extra".into(), "!".into());
        // Keys stay in their order, nothing is escaped, blanks are Python's.
        let want = "<s>{\"b\": 1, \"a\": [\"<ä>\"]}x<y{\"type\": \"function\", \"function\": {\"name\": \"f\"}}!4";
        assert_eq!(template(source).render(&chat).unwrap(), want);
    }

    #[test]
    fn a_template_without_tools_is_told_of_them_in_words() {
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
        let messages = json!([{"role": "user", "content": "go"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "7"}, {"role": "user", "content": "and?"}]);
        let mut chat = chat(messages, tools);
        let text = template(source).render(&chat).unwrap();
        assert!(text.starts_with("[system]You can call functions."), "{text}");
        assert!(text.contains(r#"{"name":"f","parameters":{"type":"object"}}"#), "{text}");
        assert!(text.ends_with("[user]<tool_response>\n7\n</tool_response>\nand?"), "{text}");
        chat.tool_choice = ToolChoice::None;
        assert!(!template(source).render(&chat).unwrap().contains("functions"));
    }

    #[test]
    fn a_template_of_its_own_for_tools_and_one_without_system_messages() {
        let named =
            json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }}"}]);
        let sources = Sources::of_settings(&named).unwrap();
        let tokenizer = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
        let dialect = Dialect::new(&sources, &tokenizer, 0);
        let both = Template::new(&sources, String::new(), String::new(), dialect).unwrap();
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        assert_eq!(both.render(&chat(json!([]), json!([]))).unwrap(), "plain");
        assert_eq!(both.render(&chat(json!([]), tools)).unwrap(), "1");
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
            {{ messages[0].content }}";
        let talk = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]);
        assert_eq!(template(source).render(&chat(talk, json!([]))).unwrap(), "Be kind.\n\nHi");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        assert_eq!(date("%d %b %Y %H:%M", at(1_709_210_096)), "29 Feb 2024 12:34");
        assert_eq!(date("%-d %B %Y, %m", at(0)), "1 January 1970, 01");
    }
}
