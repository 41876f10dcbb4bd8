//! What code in a process may ask of the cluster: the methods that the table of access opens to actors, for what is its own.
//!
//! The worker asks the head with a credential of its own, which opens more. This is where a process's request becomes one of
//! the worker's, so this is where it is checked, and where the isolation of the process is put on what it makes.

use std::collections::HashMap;

use bytes::Bytes;
use covey_domain::{
    ActorId, AgentKind, AgentSpec, Error, ErrorKind, Isolation,
    agent::{FUNCTIONS, PythonAgent, ToolSource},
    infer::InferRequest,
};
use covey_proto::{
    access::{Reach, actor_may},
    from_json, to_json,
    v1::{
        CreateActorRequest, CreateGangRequest, ListStoresReply, RegisterAgentRequest, SetReminderRequest, SubmitRequest,
    },
};
use parking_lot::Mutex;
use prost::Message;

/// Names of agents that the cluster has for itself.
const INTERNAL: &str = "covey.";

/// Methods that the worker answers itself.
const FETCH: &str = "FetchObject";
const CLOSE: &str = "ClosePool";
/// Pools that were checked and are remembered.
const POOLS_MAX: usize = 1_024;

/// One process, as far as that says what it may ask for.
pub(crate) struct Asker {
    /// How much the process is kept from: it makes nothing that is kept from less.
    level: Isolation,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Its actors, and the session that each lives for; empty = none.
    actors: HashMap<ActorId, String>,
    /// How many actors it has for each session.
    sessions: HashMap<String, usize>,
    /// Pools that it may use, as it says them, and as they are asked for.
    pools: HashMap<String, String>,
}

/// What of a pool says whose it is.
#[derive(serde::Deserialize)]
struct Pool {
    agent: String,
    #[serde(default)]
    session: String,
}

impl Asker {
    /// A process of this level, without actors.
    pub fn new(level: Isolation) -> Self {
        Self { level, known: Mutex::default() }
    }

    /// It has one more actor; `owner` is what the head says of whom that lives for.
    pub fn started(&self, actor: &ActorId, owner: &str) {
        let mut known = self.known.lock();
        let session = owner.strip_prefix("session:").unwrap_or_default().to_owned();
        *known.sessions.entry(session.clone()).or_default() += 1;
        if let Some(before) = known.actors.insert(actor.clone(), session) {
            known.leave(&before);
        }
    }

    /// It has one actor less.
    pub fn stopped(&self, actor: &ActorId) {
        let mut known = self.known.lock();
        if let Some(session) = known.actors.remove(actor) {
            known.leave(&session);
        }
    }

    /// The request as the worker makes it, where the process may ask for this.
    pub fn check(&self, method: &str, body: &Bytes) -> Result<Bytes, Error> {
        match method {
            FETCH => return Ok(body.clone()),
            CLOSE => return Ok(self.asked_pool(&String::from_utf8_lossy(body))?.into()),
            _ => {}
        }
        match actor_may(method) {
            Reach::None => Err(closed(format!("actors do not ask for {method}"))),
            Reach::All => Ok(body.clone()),
            Reach::Own => self.check_own(method, body),
        }
    }

    fn check_own(&self, method: &str, body: &Bytes) -> Result<Bytes, Error> {
        match method {
            "RegisterAgent" => {
                let mut request: RegisterAgentRequest = decode(body)?;
                let mut spec: AgentSpec = from_json("the agent", &request.spec)?;
                let isolation = self.level.of_made(spec.isolation)?;
                if self.level == Isolation::Strict
                    && let Some(what) = reaches_out(&spec)
                {
                    return Err(closed(format!("code without a network makes no agent with {what}")));
                }
                if isolation == spec.isolation {
                    return Ok(body.clone());
                }
                spec.isolation = isolation;
                request.spec = to_json(&spec);
                Ok(request.encode_to_vec().into())
            }
            "CreateActor" => {
                let mut actor: CreateActorRequest = decode(body)?;
                self.known.lock().makes(&actor.agent, &actor.session)?;
                actor.least = self.level.name().to_owned();
                Ok(actor.encode_to_vec().into())
            }
            "CreateGang" => {
                let (mut gang, known): (CreateGangRequest, _) = (decode(body)?, self.known.lock());
                for actor in &mut gang.actors {
                    known.makes(&actor.agent, &actor.session)?;
                    actor.least = self.level.name().to_owned();
                }
                Ok(gang.encode_to_vec().into())
            }
            "SetReminder" | "ForgetReminder" => {
                let reminder: SetReminderRequest = decode(body)?;
                match self.known.lock().actors.contains_key(reminder.actor.as_str()) {
                    true => Ok(body.clone()),
                    false => Err(closed(format!("`{}` is not an actor of this process", reminder.actor))),
                }
            }
            "Submit" => {
                let submit: SubmitRequest = decode(body)?;
                match submit.agent.starts_with(INTERNAL) {
                    true => Err(closed(format!("actors submit nothing to `{}`", submit.agent))),
                    false => Ok(body.clone()),
                }
            }
            // The head looks: it knows whose agents and tasks those are.
            _ => Ok(body.clone()),
        }
    }

    /// The pool as the worker asks for it, where the process may use it; `spec` is a `PoolSpec` as JSON.
    pub fn check_pool(&self, spec: &str) -> Result<String, Error> {
        let mut known = self.known.lock();
        if let Some(asked) = known.pools.get(spec) {
            return Ok(asked.clone());
        }
        let pool: Pool = from_json("the pool", spec.as_bytes())?;
        known.makes(&pool.agent, &pool.session)?;
        let asked = self.asked_pool(spec)?;
        if known.pools.len() >= POOLS_MAX {
            known.pools.clear();
        }
        known.pools.insert(spec.to_owned(), asked.clone());
        Ok(asked)
    }

    /// A pool of processes of this level: others have theirs.
    fn asked_pool(&self, spec: &str) -> Result<String, Error> {
        let mut pool: serde_json::Map<String, serde_json::Value> = from_json("the pool", spec.as_bytes())?;
        pool.insert("least".to_owned(), self.level.name().into());
        Ok(serde_json::Value::from(pool).to_string())
    }
}

/// What of an agent gets to the network, or has code run that does, whatever its processes are kept from.
fn reaches_out(spec: &AgentSpec) -> Option<&'static str> {
    match &spec.kind {
        AgentKind::A2a(_) => Some("an address elsewhere"),
        AgentKind::Llm(agent) => {
            let dialled = |tool: &ToolSource| matches!(tool, ToolSource::Mcp(server) if !server.url.is_empty());
            agent.tools.iter().any(dialled).then_some("an MCP server at a URL")
        }
        AgentKind::Python(PythonAgent { env, .. }) => (!env.pip.is_empty()).then_some("packages to install"),
        AgentKind::Native { .. } => None,
    }
}

impl Known {
    fn leave(&mut self, session: &str) {
        if let Some(count) = self.sessions.get_mut(session) {
            *count -= 1;
            if *count == 0 {
                self.sessions.remove(session);
                // Some of them may be for that session.
                self.pools.clear();
            }
        }
    }

    fn makes(&self, agent: &str, session: &str) -> Result<(), Error> {
        // Of the cluster's own they may make what runs their functions.
        if agent.starts_with(INTERNAL) && !agent.starts_with(FUNCTIONS) {
            return Err(closed(format!("actors make none of `{agent}`")));
        }
        // What lives for no session lives until it is stopped, as detached actors do.
        if session.is_empty() || self.sessions.contains_key(session) {
            return Ok(());
        }
        Err(closed("an actor makes others for its own session alone".to_owned()))
    }
}

/// The reply as the process sees it: secrets of workers' ports are for their callers, which a process is not.
pub(crate) fn shown(method: &str, reply: Bytes) -> Bytes {
    if method != "ListStores" {
        return reply;
    }
    let mut stores = ListStoresReply::decode(reply).unwrap_or_default();
    for port in stores.stores.iter_mut().filter_map(|store| store.port.as_mut()) {
        port.secret.clear();
    }
    stores.encode_to_vec().into()
}

/// A process's request to a model: not before others', with the turns of one caller whatever names it says, and it shares
/// beginnings of prompts with no caller.
pub(crate) fn ranked(mut request: InferRequest, process: u64) -> InferRequest {
    request.terms.caller = format!("actors/{process}");
    request.terms.priority = request.terms.priority.min(0);
    request.terms.tenant = format!("actors/{}", request.terms.tenant);
    request
}

fn decode<M: Message + Default>(body: &Bytes) -> Result<M, Error> {
    M::decode(body.clone()).map_err(|e| Error::invalid(format!("failed to read the request: {e}")))
}

fn closed(text: String) -> Error {
    Error::new(ErrorKind::PermissionDenied, text).hint("docs/security.md says what code in a process may ask for")
}

#[cfg(test)]
mod tests {
    use covey_proto::v1::{Store, WorkerPort};

    use super::*;

    fn process() -> Asker {
        of_level(Isolation::Default)
    }

    fn of_level(level: Isolation) -> Asker {
        let process = Asker::new(level);
        process.started(&"mine".into(), "session:session");
        process
    }

    fn check(method: &str, request: &impl Message) -> bool {
        process().check(method, &request.encode_to_vec().into()).is_ok()
    }

    #[test]
    fn a_process_has_the_turns_of_one_and_goes_before_nobody() {
        for (caller, priority) in [("alice", 9), ("bob", -1)] {
            let terms = serde_json::json!({"caller": caller, "tenant": caller, "priority": priority});
            let asked = serde_json::json!({"model": "m", "work": "chat", "messages": [], "terms": terms});
            let ranked = ranked(serde_json::from_value(asked).unwrap(), 7);
            assert_eq!((&*ranked.terms.caller, ranked.terms.priority), ("actors/7", priority.min(0)));
            assert_eq!(ranked.terms.tenant, format!("actors/{caller}"), "no key's");
        }
    }

    #[test]
    fn sessions_go_with_their_last_actor() {
        let process = process();
        process.started(&"other".into(), "session:session");
        process.started(&"other".into(), "session:session");
        let pool = r#"{"agent": "covey.function", "session": "session"}"#;
        assert!(process.check_pool(pool).is_ok());
        assert!(process.check_pool(r#"{"agent": "covey.job", "session": "session"}"#).is_err());
        assert!(process.check_pool(r#"{"agent": "A", "session": "another"}"#).is_err());
        process.stopped(&"mine".into());
        assert!(process.check_pool(pool).is_ok());
        process.stopped(&"other".into());
        process.stopped(&"other".into());
        assert!(process.check_pool(pool).is_err());
    }

    #[test]
    fn a_process_asks_for_its_own() {
        for method in ["AddKey", "RotateKey", "AddJoinToken", "SaveState", "DrainNode", "GetBlob", "ListTasks", "../x"]
        {
            assert!(!check(method, &()), "{method}");
        }
        let actor = |agent: &str, session: &str| CreateActorRequest {
            agent: agent.to_owned(),
            session: session.to_owned(),
            ..CreateActorRequest::default()
        };
        assert!(check("CreateActor", &actor("Mine", "session")) && check("CreateActor", &actor("Mine", "")));
        assert!(check("CreateActor", &actor("covey.function", "session")));
        assert!(
            !check("CreateActor", &actor("Mine", "another")) && !check("CreateActor", &actor("covey.job", "session"))
        );
        let gang = CreateGangRequest {
            actors: vec![actor("Mine", "session"), actor("Mine", "another")],
            ..CreateGangRequest::default()
        };
        assert!(!check("CreateGang", &gang));
        let reminder = |actor: &str| SetReminderRequest { actor: actor.to_owned(), ..SetReminderRequest::default() };
        assert!(check("SetReminder", &reminder("mine")) && !check("ForgetReminder", &reminder("other")));
        let submit = |agent: &str| SubmitRequest { agent: agent.to_owned(), ..SubmitRequest::default() };
        assert!(check("Submit", &submit("echo")) && !check("Submit", &submit("covey.job")));
    }

    fn register(process: &Asker, agent: &serde_json::Value) -> Option<serde_json::Value> {
        let request = RegisterAgentRequest { spec: to_json(agent), code: Bytes::new() };
        let asked = process.check("RegisterAgent", &request.encode_to_vec().into()).ok()?;
        Some(serde_json::from_slice(&RegisterAgentRequest::decode(asked).unwrap().spec).unwrap())
    }

    #[test]
    fn what_a_strict_process_makes_is_strict() {
        let kind = serde_json::json!({"type": "python", "code": {"from": "pickle", "digest": "d"}});
        let agent = |isolation: Option<&str>| match isolation {
            None => serde_json::json!({"name": "a", "kind": kind}),
            Some(level) => serde_json::json!({"name": "a", "kind": kind, "isolation": level}),
        };
        let strict = of_level(Isolation::Strict);
        assert_eq!(register(&strict, &agent(None)).unwrap()["isolation"], "strict");
        assert_eq!(register(&strict, &agent(Some("strict"))).unwrap()["isolation"], "strict");
        assert!(register(&strict, &agent(Some("default"))).is_none());
        assert!(register(&strict, &agent(Some("none"))).is_none());
        let usual = of_level(Isolation::Default);
        assert_eq!(register(&usual, &agent(None)).unwrap().get("isolation"), None, "it is the same definition");
        assert!(register(&usual, &agent(Some("strict"))).is_some() && register(&usual, &agent(Some("none"))).is_none());
        assert!(register(&of_level(Isolation::None), &agent(Some("none"))).is_some());
        // The head knows the agent's own level, and compares.
        let actor = CreateActorRequest { agent: "a".into(), least: "none".into(), ..CreateActorRequest::default() };
        let asked = strict.check("CreateActor", &actor.encode_to_vec().into()).unwrap();
        assert_eq!(CreateActorRequest::decode(asked).unwrap().least, "strict");
        let gang = CreateGangRequest { actors: vec![actor], ..CreateGangRequest::default() };
        let asked = strict.check("CreateGang", &gang.encode_to_vec().into()).unwrap();
        assert_eq!(CreateGangRequest::decode(asked).unwrap().actors[0].least, "strict");
        let spec = r#"{"agent": "covey.function", "least": "none", "retries": 3}"#;
        for _ in 0..2 {
            let pool = strict.check_pool(spec).unwrap();
            assert_eq!(strict.check("ClosePool", &Bytes::from(spec)).unwrap(), pool, "it is closed by the same name");
            let pool: serde_json::Value = serde_json::from_str(&pool).unwrap();
            assert_eq!((&pool["least"], &pool["retries"]), (&"strict".into(), &3.into()));
        }
    }

    #[test]
    fn a_strict_process_makes_nothing_that_has_a_network_for_it() {
        let strict = of_level(Isolation::Strict);
        let python = serde_json::json!({"type": "python", "code": {"from": "pickle", "digest": "d"},
            "env": {"pip": ["https://elsewhere/x.whl"]}});
        let dials = serde_json::json!({"type": "llm", "tools": [{"mcp": {"url": "https://elsewhere/mcp"}}]});
        let foreign = serde_json::json!({"type": "a2a", "url": "https://elsewhere"});
        for kind in [python, dials, foreign] {
            let agent = serde_json::json!({"name": "a", "kind": kind});
            assert!(register(&strict, &agent).is_none(), "{agent}");
            assert!(register(&process(), &agent).is_some(), "{agent}");
        }
        let runs = serde_json::json!({"type": "llm", "tools": [{"mcp": {"command": ["tool"]}}]});
        let agent = register(&strict, &serde_json::json!({"name": "a", "kind": runs})).unwrap();
        assert_eq!(agent["isolation"], "strict");
    }

    #[test]
    fn secrets_of_ports_are_not_shown() {
        let port = WorkerPort { secret: "s".into(), address: "a".into(), ..WorkerPort::default() };
        let reply = ListStoresReply { stores: vec![Store { port: Some(port), ..Store::default() }] };
        let shown = ListStoresReply::decode(shown("ListStores", reply.encode_to_vec().into())).unwrap();
        let port = shown.stores[0].port.as_ref().unwrap();
        assert_eq!((port.address.as_str(), port.secret.as_str()), ("a", ""));
    }
}
