//! What an agent is: its card-worthy description, how it runs, what it needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ActorId, AgentName, Digest, Error, Isolation, ModelName, Resources, caps, depth, infer::Sampling, secret};

/// The agent that runs jobs. One with a level of isolation of its own has that behind a `.`.
const JOB: &str = "covey.job";

/// A kind of actor. Serialized as JSON on every wire and in the store; unknown fields are refused nowhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// Unique in the cluster; letters, digits, `-`, `_` and `.`.
    pub name: AgentName,
    /// The A2A card's description.
    #[serde(default)]
    pub description: String,
    /// How it runs.
    pub kind: AgentKind,
    /// What it can do; never empty once validated.
    #[serde(default)]
    pub skills: Vec<Skill>,
    /// What one actor takes from its node.
    #[serde(default)]
    pub resources: Resources,
    /// Labels a node must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// An actor on whose node alone it can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<ActorId>,
    /// A model the agent thinks with; nodes that hold it are preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Turns at once.
    #[serde(default = "one")]
    pub concurrency: u32,
    /// Restarts after crashes; `None` = no limit.
    #[serde(default)]
    pub max_restarts: Option<u32>,
    /// Bound on one turn, milliseconds, counted from its start: what it waited before is not in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Its tasks and actors wait this long for a node that could hold them before they fail, milliseconds; `None` =
    /// [`caps::SCHEDULE_TIMEOUT_MS`]. Where it is given calls wait as long; else they fail at once where no node could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule_timeout_ms: Option<u64>,
    /// Spread over nodes or fill one after the other.
    #[serde(default)]
    pub strategy: Strategy,
    /// Actors that tasks without an actor of their own may use at once; `None` = one per CPU of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<u32>,
    /// When an actor's state (`__snapshot__`) becomes durable.
    #[serde(default)]
    pub snapshot: Snapshot,
    /// A virtual actor that had nothing to do for this long goes to sleep, milliseconds.
    #[serde(default = "idle_ms")]
    pub idle_ms: u64,
    /// A call that comes out of one of the actor's own turns runs at once instead of waiting for that turn.
    #[serde(default)]
    pub reentrant: bool,
    /// How much its processes are kept from; `None` = as much as the worker that they are on says. A worker gives more than
    /// its own level where that is asked for, and never less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// How it shows itself to agent protocols.
    #[serde(default, skip_serializing_if = "Face::is_default")]
    pub a2a: Face,
}

/// Whether jobs are tasks of this agent.
pub fn is_job(agent: &str) -> bool {
    agent.strip_prefix(JOB).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The agent that runs jobs at this level.
pub fn job_agent(isolation: Option<Isolation>) -> String {
    isolation.map_or_else(|| JOB.to_owned(), |level| format!("{JOB}.{}", level.name()))
}

/// How an agent shows itself to A2A: what its card says, and what it will and will not do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Face {
    /// Answers can be streamed.
    pub streaming: bool,
    /// Webhooks are told of its tasks.
    pub push_notifications: bool,
    /// Whoever is known gets a card that says more.
    pub extended_card: bool,
    /// It may answer with a mere message, without a task. Its streams begin once that is known.
    pub messages: bool,
    /// The agent's own version; empty = Covey's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// What it speaks beside the protocol.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<Extension>,
    /// Media types it takes (`image/png`, `image/*`); others are refused. Empty = all, told as text and JSON.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub input_modes: Vec<String>,
    /// Others are not refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub any_input: bool,
    /// Media types it gives; empty = text and JSON.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub output_modes: Vec<String>,
    /// Who stands behind it: a name and an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<(String, String)>,
    /// Where it is described.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
    /// Its picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icon_url: Option<String>,
    /// Words to find it by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl Face {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Face {
    fn default() -> Self {
        Self {
            streaming: true,
            push_notifications: true,
            extended_card: true,
            messages: false,
            version: String::new(),
            extensions: Vec::new(),
            input_modes: Vec::new(),
            any_input: false,
            output_modes: Vec::new(),
            provider: None,
            documentation_url: None,
            icon_url: None,
            tags: Vec::new(),
        }
    }
}

/// An extension of A2A.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Extension {
    /// Its name.
    pub uri: String,
    /// In words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Whoever does not speak it is refused.
    pub required: bool,
}

/// When an actor's state becomes durable. It always does before sleep and before a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snapshot {
    /// At those times only.
    #[default]
    Idle,
    /// After each turn, before its answer is given.
    Turn,
    /// Also this often, milliseconds.
    Every(u64),
}

fn idle_ms() -> u64 {
    60_000
}

fn one() -> u32 {
    1
}

/// Placement wish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Least loaded node first.
    #[default]
    Spread,
    /// Fullest node that still fits first.
    Pack,
}

/// How the actors of a gang, which are placed all at once or not at all, lie to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GangStrategy {
    /// On few nodes, if that can be.
    #[default]
    Pack,
    /// On many nodes, if that can be.
    Spread,
    /// On one node.
    StrictPack,
    /// Each on a node of its own.
    StrictSpread,
}

/// Actors that are placed all at once or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gang {
    /// All of them; the first one's id names the gang.
    pub members: Vec<ActorId>,
    /// How they lie to each other.
    pub strategy: GangStrategy,
}

/// How an agent runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AgentKind {
    /// A prompt around a model.
    Llm(Box<LlmAgent>),
    /// A Python class in a child process of the worker.
    Python(PythonAgent),
    /// Rust code compiled into the worker, by its registered name.
    Native {
        /// Name in the worker's registry.
        implementation: String,
    },
    /// An agent elsewhere that speaks A2A.
    A2a(Foreign),
}

/// An agent elsewhere, behind an address that speaks A2A. What opens it is no part of this: see [`Pass`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Foreign {
    /// Its address, or that of its card.
    pub url: String,
    /// The keys one of which must have signed its card: a JWK set as JSON, or its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// Further origins to which the card may send its callers, `https://host:port`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

impl Foreign {
    /// Turns at once where nothing is said: they wait for others.
    pub const CONCURRENCY: u32 = 256;
}

/// What opens an agent elsewhere. The head keeps it apart from the spec, which everybody may read.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pass {
    /// Sent as the agent's card asks, else as `Authorization: Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Sent with every request.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl Pass {
    /// Nothing is needed.
    pub fn is_empty(&self) -> bool {
        self.token.is_none() && self.headers.is_empty()
    }

    /// Names of secrets that it refers to.
    pub fn secrets(&self) -> BTreeSet<&str> {
        self.headers.values().chain(&self.token).flat_map(|text| secret::names(text)).collect()
    }

    /// With the values of secrets.
    pub fn resolved(&self, value: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let token = self.token.as_ref().map(|text| secret::resolve(text, &value)).transpose()?;
        Ok(Self { token, headers: resolved(&self.headers, &value)? })
    }
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass").finish_non_exhaustive()
    }
}

fn resolved(
    texts: &BTreeMap<String, String>,
    value: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, Error> {
    texts.iter().map(|(name, text)| Ok((name.clone(), secret::resolve(text, &value)?))).collect()
}

/// A prompt around a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LlmAgent {
    /// System prompt.
    #[serde(default)]
    pub system: String,
    /// How tokens are drawn.
    #[serde(default)]
    pub sampling: Sampling,
    /// What it may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ToolSource>,
    /// What one turn may take.
    #[serde(default, skip_serializing_if = "Budget::is_default")]
    pub budget: Budget,
}

/// Where tools come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolSource {
    /// A skill of an agent of the cluster. Functions of a driver are skills of an agent made for them.
    Agent {
        /// Which agent.
        agent: AgentName,
        /// Which skill; its default one if nothing is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        skill: Option<String>,
        /// The tool's name; made of agent and skill if nothing is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// A server of the Model Context Protocol.
    Mcp(McpServer),
}

/// How a server of the Model Context Protocol is reached: by a process of its own on the worker, or by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct McpServer {
    /// Program and arguments; it speaks on its standard streams.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Environment of the program, beside the little that is passed on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// URL of a streamable HTTP endpoint.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// Headers of each request.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Names of the tools that may be called; empty = all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// How long it may take to answer a call, milliseconds; five minutes unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl LlmAgent {
    /// With the values of secrets.
    pub fn resolved(&self, value: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut agent = self.clone();
        for tool in &mut agent.tools {
            if let ToolSource::Mcp(server) = tool {
                server.env = resolved(&server.env, &value)?;
                server.headers = resolved(&server.headers, &value)?;
            }
        }
        Ok(agent)
    }
}

/// What one turn of a prompt around a model may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Budget {
    /// Requests to the model; in the last one it can call no tool. 8 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Tokens read and made, after which no tool is called any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

impl Budget {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A Python class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PythonAgent {
    /// Where the code comes from.
    pub code: PythonCode,
    /// `major.minor` the code was pickled with; a worker of another version refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// One process for each actor instead of many actors to a process.
    #[serde(default)]
    pub own_process: bool,
    /// What its process is started with.
    #[serde(default, skip_serializing_if = "PythonEnv::is_default")]
    pub env: PythonEnv,
}

/// What a Python process is started with, beside what its worker has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PythonEnv {
    /// Environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub vars: BTreeMap<String, String>,
    /// A zip in the blob store; unpacked, it is the working folder and importable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<Digest>,
    /// Packages, as pip takes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pip: Vec<String>,
}

impl PythonEnv {
    /// With the values of secrets.
    pub fn resolved(&self, value: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        Ok(Self { vars: resolved(&self.vars, value)?, ..self.clone() })
    }

    /// The worker's own.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where Python code comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum PythonCode {
    /// A cloudpickled class in the blob store.
    Pickle {
        /// Digest of the blob.
        digest: Digest,
    },
    /// Source text in the blob store, and the class in it.
    Source {
        /// Digest of the blob.
        digest: Digest,
        /// Name of the class.
        class: String,
    },
}

impl PythonCode {
    /// Digest of the blob that holds the code.
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Pickle { digest } | Self::Source { digest, .. } => digest,
        }
    }
}

/// One thing an agent can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skill {
    /// Method name; the id in the card.
    pub id: String,
    /// Human name.
    #[serde(default)]
    pub name: String,
    /// Docstring.
    #[serde(default)]
    pub description: String,
    /// JSON schema of the keyword arguments, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// Yields instead of returning.
    #[serde(default)]
    pub streaming: bool,
}

/// The agents that run functions have this name, or one that begins with it.
pub const FUNCTIONS: &str = "covey.function";

/// What people call a method: of a call that runs a function (`run:resize`) the function's own name.
pub fn known_as(method: &str) -> &str {
    method.split_once(':').map_or(method, |(_, function)| function)
}

impl AgentSpec {
    /// Of an actor that runs functions: the one that it was made for.
    pub fn function(&self) -> Option<&str> {
        let about = Some(self.description.as_str()).filter(|_| self.name.as_str().starts_with(FUNCTIONS));
        about?.strip_prefix("runs `")?.strip_suffix('`')
    }

    /// What is said of an actor that is made for this function; [`Self::function`] reads it.
    pub fn about_function(function: &str) -> String {
        format!("runs `{function}`")
    }

    /// How long what no node could hold waits for one, milliseconds.
    pub fn waits_ms(&self) -> u64 {
        self.schedule_timeout_ms.unwrap_or(caps::SCHEDULE_TIMEOUT_MS)
    }

    /// Checks names and numbers, and gives a prompt agent its only skill.
    pub fn validated(mut self) -> Result<Self, Error> {
        // The definition, its A2A section, the list of extensions, the extension.
        depth::check("the definition of an agent", &self, 4)?;
        let name = self.name.as_str();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > caps::AGENT_NAME_MAX || !name.chars().all(good) || name.starts_with('.') {
            return Err(Error::invalid(format!("agent name `{name}` is not usable"))
                .hint(format!("use 1 to {} letters, digits, `-`, `_` or `.`", caps::AGENT_NAME_MAX)));
        }
        if self.concurrency == 0 {
            return Err(Error::invalid(format!("agent `{name}` has concurrency = 0")).hint("use 1 or more"));
        }
        if matches!(self.kind, AgentKind::Llm(_)) && self.model.is_none() {
            return Err(Error::invalid(format!("agent `{name}` has no model")).hint("add `model = \"tiny\"`"));
        }
        if matches!(&self.kind, AgentKind::A2a(foreign) if foreign.url.is_empty()) {
            return Err(Error::invalid(format!("agent `{name}` has no address")).hint("add `url = \"https://…\"`"));
        }
        if self.skills.is_empty() {
            if let AgentKind::Python(_) = self.kind {
                return Err(Error::invalid(format!("agent `{name}` has no public method"))
                    .hint("add a method to the class; an agent file names them in `skills`"));
            }
            self.skills.push(Skill {
                id: "run".into(),
                name: "run".into(),
                description: self.description.clone(),
                input_schema: None,
                streaming: true,
            });
        }
        Ok(self)
    }

    /// The skill asked for, or the default: `run`, else the first.
    pub fn skill(&self, asked: Option<&str>) -> Result<&Skill, Error> {
        match asked {
            Some(id) => self.skills.iter().find(|s| s.id == id).ok_or_else(|| {
                let known: Vec<_> = self.skills.iter().map(|s| s.id.as_str()).collect();
                Error::not_found("skill", id).hint(format!("`{}` has: {}", self.name, known.join(", ")))
            }),
            None => self
                .skills
                .iter()
                .find(|s| s.id == "run")
                .or(self.skills.first())
                .ok_or_else(|| Error::invalid(format!("agent `{}` has no skills", self.name))),
        }
    }

    /// Names of secrets that the definition refers to: in variables of processes, and in headers of MCP servers.
    pub fn secrets(&self) -> BTreeSet<&str> {
        let texts: Vec<&String> = match &self.kind {
            AgentKind::Python(python) => python.env.vars.values().collect(),
            AgentKind::Llm(agent) => {
                let servers = agent.tools.iter().filter_map(|tool| match tool {
                    ToolSource::Mcp(server) => Some(server),
                    ToolSource::Agent { .. } => None,
                });
                servers.flat_map(|server| server.env.values().chain(server.headers.values())).collect()
            }
            AgentKind::A2a(_) | AgentKind::Native { .. } => Vec::new(),
        };
        texts.into_iter().flat_map(|text| secret::names(text)).collect()
    }

    /// Digest of the zip of the working folder a worker needs before it can start this agent.
    pub fn dir(&self) -> Option<&Digest> {
        match &self.kind {
            AgentKind::Python(python) => python.env.dir.as_ref(),
            AgentKind::Llm(_) | AgentKind::A2a(_) | AgentKind::Native { .. } => None,
        }
    }

    /// Digest of the code blob a worker needs before it can start this agent.
    pub fn code(&self) -> Option<&Digest> {
        match &self.kind {
            AgentKind::Python(python) => Some(python.code.digest()),
            AgentKind::Llm(_) | AgentKind::A2a(_) | AgentKind::Native { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_called_by_their_names() {
        assert_eq!((known_as("run:resize"), known_as("items"), known_as("run")), ("resize", "items", "run"));
        let mut spec = llm("covey.function");
        assert_eq!(spec.function(), None);
        spec.description = AgentSpec::about_function("resize");
        assert_eq!(spec.function(), Some("resize"));
        spec.name = AgentName::from("mine");
        assert_eq!(spec.function(), None, "what others say of themselves is theirs");
    }

    fn llm(name: &str) -> AgentSpec {
        serde_json::from_value(serde_json::json!({
            "name": name, "kind": {"type": "llm", "system": "be brief"}, "model": "tiny"
        }))
        .unwrap()
    }

    #[test]
    fn a_prompt_agent_gets_its_skill_and_bad_names_are_refused() {
        assert_eq!(llm("helper").validated().unwrap().skill(None).unwrap().id, "run");
        for name in ["", "a b", "../x", ".hidden", &"x".repeat(65)] {
            assert!(llm(name).validated().is_err(), "{name}");
        }
    }

    #[test]
    fn agents_of_before_say_nothing_of_isolation() {
        let before = r#"{"name":"a","kind":{"type":"native","implementation":"echo"},"concurrency":1}"#;
        let spec: AgentSpec = serde_json::from_str(before).unwrap();
        assert_eq!(spec.isolation, None);
        assert!(!serde_json::to_string(&spec).unwrap().contains("isolation"), "they stay the same definition");
        for level in Isolation::ALL {
            let spec = AgentSpec { isolation: Some(level), ..spec.clone() };
            let kept = serde_json::to_string(&spec).unwrap();
            assert!(kept.contains(&format!(r#""isolation":"{}""#, level.name())));
            assert_eq!(serde_json::from_str::<AgentSpec>(&kept).unwrap(), spec);
            assert!(is_job(&job_agent(Some(level))) && level.name().parse::<Isolation>() == Ok(level));
        }
        assert!(is_job(&job_agent(None)) && !is_job("covey.jobs") && !is_job("covey.function"));
    }

    #[test]
    fn an_unknown_skill_is_answered_with_the_known_ones() {
        let error = llm("helper").validated().unwrap().skill(Some("fly")).unwrap_err();
        assert_eq!(error.hint.unwrap(), "`helper` has: run");
    }
}
