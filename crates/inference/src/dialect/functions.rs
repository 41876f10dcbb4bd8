//! Calls as Qwen3-Coder writes them: `<function=name>`, and each argument as text between marks of its own.

use serde_json::{Map, Value};

pub(super) const OPEN: &str = "<function=";
pub(super) const CLOSE: &str = "</function>";

/// Name and arguments (as JSON) of a whole call; what is no text by the tool's schema is read as JSON.
pub(super) fn parse(call: &str, tools: &[Value]) -> Option<(String, String)> {
    let (name, mut rest) = call.trim_start().strip_prefix(OPEN)?.split_once('>')?;
    let tool = tools.iter().find(|t| t["function"]["name"] == name);
    let mut arguments = Map::new();
    while let Some((key, after)) = rest.split_once("<parameter=").and_then(|(_, after)| after.split_once('>')) {
        // A value may hold anything but its own end.
        let (value, after) = after.split_once("</parameter>").unwrap_or((after, ""));
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let kind = tool.map_or(&Value::Null, |t| &t["function"]["parameters"]["properties"][key]["type"]);
        let parsed = if kind == "string" { None } else { serde_json::from_str(value).ok() };
        arguments.insert(key.to_owned(), parsed.unwrap_or_else(|| value.into()));
        rest = after;
    }
    Some((name.to_owned(), Value::Object(arguments).to_string()))
}

/// Rules of a grammar for calls of `tools`: `object`, and what it needs.
pub(super) fn rules<'a>(tools: impl Iterator<Item = &'a Value>) -> String {
    let (mut names, mut lines) = (Vec::new(), String::new());
    for (i, function) in tools.enumerate() {
        let name = function["name"].as_str().unwrap_or_default();
        let none = Map::new();
        let properties = function["parameters"]["properties"].as_object().unwrap_or(&none);
        let required = function["parameters"]["required"].as_array();
        let mut parts = String::new();
        for key in properties.keys() {
            let needed = required.is_some_and(|all| all.iter().any(|r| r == key));
            let head = Value::from(format!("<parameter={key}>\n"));
            parts.push_str(&if needed { format!(" {head} value") } else { format!(" ({head} value)?") });
        }
        let head = Value::from(format!("{OPEN}{name}>\n"));
        lines.push_str(&format!("object_{i}: {head}{parts} {}\n", Value::from(CLOSE)));
        names.push(format!("object_{i}"));
    }
    let end = Value::from("\n</parameter>\n");
    format!("object: {}\n{lines}value[suffix={end}]: /(.|\\n)*/\n", names.join(" | "))
}
