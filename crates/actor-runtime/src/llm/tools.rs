//! All tools of one agent under their names.

use std::{collections::BTreeMap, sync::Arc};

use covey_domain::{Error, Isolation, agent::ToolSource, event::Content, infer::CallDelta, json};
use serde_json::{Map, Value, json as object};

use super::{CallLog, agents::AgentTool, mcp::Server};
use crate::{Outward, launch::Launcher};

/// Bytes of a tool's answer that the model is given.
const SAID_BYTES_MAX: usize = 64 << 10;

/// Bytes of a tool's answer that the log keeps.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// Tools that were found, and how they are declared to the model.
pub(crate) struct Tools {
    /// As OpenAI declares them.
    pub declared: Vec<Value>,
    known: BTreeMap<String, Tool>,
}

/// What a tool answered.
pub(crate) struct Said {
    /// As the model reads it.
    pub text: String,
    /// As the log keeps it.
    pub content: Vec<Content>,
    /// For programs, where the tool gives that too.
    pub structured: Option<Value>,
}

enum Tool {
    Agent(AgentTool),
    Mcp(Arc<Server>, String),
}

impl Tools {
    /// Asks the cluster and the servers what they offer.
    pub async fn find(
        sources: &[ToolSource],
        outward: &Arc<dyn Outward>,
        launcher: &Arc<Launcher>,
        isolation: Option<Isolation>,
    ) -> Result<Self, Error> {
        let mut tools = Self { declared: Vec::new(), known: BTreeMap::new() };
        let mut agents = None;
        for source in sources {
            match source {
                ToolSource::Agent { agent, skill, name } => {
                    if agents.is_none() {
                        agents = Some(super::agents::list(&**outward).await?);
                    }
                    let known = agents.as_deref().unwrap_or_default();
                    let spec =
                        known.iter().find(|a| a.name == *agent).ok_or_else(|| Error::not_found("agent", agent))?;
                    let skill = spec.skill(skill.as_deref())?;
                    let name = name.clone().unwrap_or_else(|| tool_name(agent.as_str(), &skill.id));
                    let about = if skill.description.is_empty() { &spec.description } else { &skill.description };
                    let tool = AgentTool::new(agent.as_str(), &skill.id, outward.clone());
                    let message = object!({"type": "object", "properties": {"message": {"type": "string"}},
                        "required": ["message"]});
                    let schema = skill.input_schema.clone().unwrap_or(message);
                    tools.add(name, about, schema, Tool::Agent(tool))?;
                }
                ToolSource::Mcp(config) => {
                    let server = Arc::new(Server::new(config.clone(), launcher.clone(), outward.clone(), isolation));
                    for (name, about, schema) in server.tools().await? {
                        if !config.only.is_empty() && !config.only.contains(&name) {
                            continue;
                        }
                        tools.add(name.clone(), &about, schema, Tool::Mcp(server.clone(), name))?;
                    }
                }
            }
        }
        Ok(tools)
    }

    fn add(&mut self, name: String, about: &str, schema: Value, tool: Tool) -> Result<(), Error> {
        if self.known.insert(name.clone(), tool).is_some() {
            return Err(Error::invalid(format!("two tools have the name `{name}`")).hint("give one another `name`"));
        }
        let function = object!({"name": name, "description": about, "parameters": schema});
        self.declared.push(object!({"type": "function", "function": function}));
        Ok(())
    }

    /// What a tool says to a call; long answers are cut, and are in the log as the model gets them.
    pub async fn call(
        &self,
        call: &CallDelta,
        log: CallLog<'_>,
        chain: &str,
        traceparent: &str,
    ) -> Result<Said, Error> {
        let tool = self.known.get(&call.name).ok_or_else(|| {
            let names: Vec<&str> = self.known.keys().map(String::as_str).collect();
            Error::not_found("tool", format!("{}`; there are `{}", call.name, names.join("`, `")))
        })?;
        let arguments: Map<String, Value> = serde_json::from_str(&call.arguments)
            .map_err(|e| Error::invalid(format!("the arguments are no JSON object: {e}")))?;
        let mut span = covey_trace::Span::begin(
            covey_trace::Kind::Inside,
            &format!("execute_tool {}", call.name),
            traceparent,
            &[("gen_ai.tool.name", &call.name), ("gen_ai.tool.call.id", &call.id)],
        );
        let said = match tool {
            Tool::Agent(tool) => tool.call(arguments, log, chain, &span.traceparent(traceparent)).await,
            Tool::Mcp(server, name) => server.call(name, arguments).await,
        };
        let mut said = said.inspect_err(|error| span.fail(error))?;
        if said.text.len() > SAID_BYTES_MAX {
            let text = &mut said.text;
            let end = (0..=SAID_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push_str("\n[cut: the answer was longer]");
            said.content.retain(|one| matches!(one, Content::File { .. }));
            said.content.insert(0, Content::Text(text.clone()));
            said.structured = None;
        }
        // The log keeps as much besides: data, and files that are small or in the store.
        if said.structured.as_ref().is_some_and(|value| json::weight(value) > KEPT_BYTES_MAX) {
            said.structured = None;
        }
        let mut kept = 0;
        said.content.retain(|one| {
            kept += one.weight();
            kept <= KEPT_BYTES_MAX
        });
        Ok(said)
    }
}

/// Letters, digits, `_` and `-`, as models know names of functions.
fn tool_name(agent: &str, skill: &str) -> String {
    let name = if skill == "run" { agent.to_owned() } else { format!("{agent}_{skill}") };
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}
