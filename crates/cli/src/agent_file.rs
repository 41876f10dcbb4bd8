//! Agents declared in TOML files.
//!
//! ```toml
//! name = "helper"
//! description = "Answers in one line."
//! kind = "llm"                 # or "python", "native", "a2a"
//! model = "tiny"
//! system = "Be brief."
//! sampling = { temperature = 0.2, max_tokens = 64 }
//! budget = { steps = 4, tokens = 20000, ms = 60000 }
//! tools = [{ agent = { agent = "Searcher", skill = "find" } }, { mcp = { command = ["uvx", "mcp-server-time"] } }]
//! concurrency = 4
//! ```

use std::{collections::BTreeMap, fs, path::Path};

use covey_domain::{
    AgentKind, AgentSpec, Digest, Error, Isolation, Resources, Skill,
    agent::{
        Budget, Face, Foreign, LlmAgent, Pass, PythonAgent, PythonCode, Snapshot, Strategy, ToolSource, job_agent,
    },
    infer::Sampling,
};
use covey_head_node::Declared;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    description: String,
    kind: String,
    model: Option<String>,
    #[serde(default)]
    system: String,
    #[serde(default)]
    sampling: Sampling,
    #[serde(default)]
    tools: Vec<ToolSource>,
    #[serde(default)]
    budget: Budget,
    file: Option<String>,
    class: Option<String>,
    #[serde(default)]
    url: String,
    token: Option<String>,
    token_env: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    keys: Option<String>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    skills: Vec<Skill>,
    implementation: Option<String>,
    concurrency: Option<u32>,
    pool: Option<u32>,
    #[serde(default)]
    snapshot: Snapshot,
    idle_ms: Option<u64>,
    #[serde(default)]
    reentrant: bool,
    #[serde(default)]
    cpus: f64,
    #[serde(default)]
    memory_mib: u64,
    #[serde(default)]
    gpus: f64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    max_restarts: Option<u32>,
    timeout_ms: Option<u64>,
    schedule_timeout_ms: Option<u64>,
    #[serde(default)]
    strategy: Strategy,
    #[serde(default)]
    a2a: Face,
    isolation: Option<Isolation>,
}

/// Agents of all `*.toml` files in `dir`, in the order of their names, with their code.
pub(crate) fn read_dir(dir: &Path) -> Result<Vec<Declared>, Error> {
    let entries = fs::read_dir(dir)
        .map_err(|e| Error::invalid(format!("failed to read the agents folder `{}`: {e}", dir.display())))?;
    let mut files: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files.iter().map(|f| read(f)).collect()
}

fn read(path: &Path) -> Result<Declared, Error> {
    let wrong = |why: String| {
        Error::invalid(format!("failed to read agent file `{}`: {why}", path.display()))
            .hint("docs/agents.md shows the format")
    };
    let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
    let (mut code, mut pass) = (None, Pass::default());
    let kind = match file.kind.as_str() {
        "llm" => AgentKind::Llm(Box::new(LlmAgent {
            system: file.system,
            sampling: file.sampling,
            tools: file.tools,
            budget: file.budget,
        })),
        "native" => AgentKind::Native { implementation: file.implementation.unwrap_or_else(|| file.name.clone()) },
        "python" => {
            let (Some(source), Some(class)) = (file.file, file.class) else {
                return Err(wrong("a python agent needs `file` and `class`".into()));
            };
            let source = path.parent().unwrap_or(Path::new(".")).join(source);
            let body = fs::read(&source).map_err(|e| wrong(format!("`{}`: {e}", source.display())))?;
            let digest = Digest::of(&body);
            code = Some(body);
            AgentKind::Python(PythonAgent {
                code: PythonCode::Source { digest, class },
                version: None,
                own_process: false,
                env: Default::default(),
            })
        }
        "a2a" => {
            let token = match (file.token, file.token_env) {
                (Some(_), Some(_)) => return Err(wrong("`token` and `token_env` exclude each other".into())),
                (token, None) => token,
                (None, Some(name)) => {
                    Some(std::env::var(&name).map_err(|_| wrong(format!("the variable `{name}` is not set")))?)
                }
            };
            pass = Pass { token, headers: file.headers };
            AgentKind::A2a(Foreign { url: file.url, keys: file.keys, allow: file.allow })
        }
        other => return Err(wrong(format!("kind `{other}` is not known; llm, python, native and a2a are"))),
    };
    let is_a2a = matches!(kind, AgentKind::A2a(_));
    let spec = AgentSpec {
        name: file.name.into(),
        description: file.description,
        kind,
        skills: file.skills,
        resources: Resources {
            cpu_milli: (file.cpus * 1000.0) as u64,
            memory_bytes: file.memory_mib << 20,
            gpu_milli: (file.gpus * 1000.0) as u64,
            custom: BTreeMap::new(),
        },
        labels: file.labels,
        near: None,
        model: file.model.map(Into::into),
        concurrency: file.concurrency.unwrap_or(if is_a2a { Foreign::CONCURRENCY } else { 1 }),
        max_restarts: file.max_restarts,
        timeout_ms: file.timeout_ms,
        schedule_timeout_ms: file.schedule_timeout_ms,
        strategy: file.strategy,
        pool: file.pool,
        snapshot: file.snapshot,
        idle_ms: file.idle_ms.unwrap_or(60_000),
        reentrant: file.reentrant,
        isolation: file.isolation,
        a2a: file.a2a,
    };
    spec.validated().map(|spec| Declared { spec, code, pass }).map_err(|e| {
        let mut told = wrong(e.message);
        if e.hint.is_some() {
            told.hint = e.hint;
        }
        told
    })
}

/// Agents every head starts with.
pub(crate) fn builtin() -> Vec<Declared> {
    let skill = |id: &str, description: &str, streaming| Skill {
        id: id.into(),
        name: id.into(),
        description: description.into(),
        input_schema: None,
        streaming,
    };
    let native = |name: &str, description: &str, skills| AgentSpec {
        name: name.into(),
        description: description.into(),
        kind: AgentKind::Native { implementation: name.into() },
        skills,
        resources: Resources::default(),
        labels: BTreeMap::new(),
        near: None,
        model: None,
        concurrency: 64,
        max_restarts: None,
        timeout_ms: None,
        schedule_timeout_ms: None,
        strategy: Strategy::Spread,
        pool: None,
        snapshot: Snapshot::Idle,
        idle_ms: 60_000,
        reentrant: false,
        isolation: None,
        a2a: Face::default(),
    };
    let assistant = AgentSpec {
        kind: AgentKind::Llm(Default::default()),
        model: Some("tiny".into()),
        concurrency: 16,
        ..native("assistant", "Talks through the model `tiny`.", Vec::new())
    };
    let echo = native(
        "echo",
        "Streams your words back.",
        vec![skill("run", "Stream the words back.", true), skill("echo", "Return the value.", false)],
    );
    let counter = AgentSpec {
        concurrency: 1,
        pool: Some(1),
        snapshot: Snapshot::Idle,
        idle_ms: 60_000,
        reentrant: false,
        ..native(
            "counter",
            "Counts.",
            vec![
                skill("run", "Add a number.", false),
                skill("add", "Add a number.", false),
                skill("get", "The count.", false),
            ],
        )
    };
    let inbox = native(
        "inbox",
        "Holds messages until somebody takes them.",
        vec![skill("put", "Put a message.", false), skill("take", "Take all there are and all that come.", true)],
    );
    let job = |isolation: Option<Isolation>| AgentSpec {
        kind: AgentKind::Native { implementation: "job".into() },
        concurrency: 256,
        isolation,
        // A task that is lost is told so by its next attempt.
        ..native(&job_agent(isolation), "Runs commands.", vec![skill("run", "Run a command.", true)])
    };
    let jobs = Isolation::ALL.into_iter().map(Some).chain([None]).map(job);
    [assistant, echo, counter, inbox]
        .into_iter()
        .chain(jobs)
        .map(|spec| Declared { spec, code: None, pass: Pass::default() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_shown_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bad.toml"), "name = \"x\"\nkind = llm\n").unwrap();
        let error = read_dir(dir.path()).unwrap_err();
        assert!(error.message.contains("bad.toml") && error.message.contains("line 2"), "{}", error.message);
        fs::write(dir.path().join("bad.toml"), "name = \"x\"\nkind = \"llm\"\nmodle = \"tiny\"\n").unwrap();
        assert!(read_dir(dir.path()).unwrap_err().message.contains("modle"));
    }

    #[test]
    fn a_prompt_agent_is_read_and_the_built_in_ones_are_valid() {
        let dir = tempfile::tempdir().unwrap();
        let text = "name = \"h\"\nkind = \"llm\"\nmodel = \"tiny\"\nsystem = \"s\"\nsampling = { max_tokens = 9 }\n";
        fs::write(dir.path().join("h.toml"), text).unwrap();
        let Declared { spec, .. } = read_dir(dir.path()).unwrap().remove(0);
        assert!(matches!(&spec.kind, AgentKind::Llm(a) if a.sampling.max_tokens == Some(9)));
        for Declared { spec, .. } in builtin() {
            spec.validated().unwrap();
        }
    }
}
