//! What code in a process may ask of the cluster: the methods that the table of access opens to actors, for what is its own.
//!
//! The worker asks the head with a credential of its own, which opens more. This is where a process's request becomes one of
//! the worker's, so this is where it is checked.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use covey_domain::{ActorId, Error, ErrorKind, infer::InferRequest};
use covey_proto::{
    access::{Reach, actor_may},
    from_json,
    v1::{CreateActorRequest, CreateGangRequest, ListStoresReply, SetReminderRequest, SubmitRequest},
};
use parking_lot::Mutex;
use prost::Message;

/// Names of agents that the cluster has for itself.
const INTERNAL: &str = "covey.";
/// Of these, what actors may make: functions of their own.
const FUNCTIONS: &str = "covey.function";

/// Methods that the worker answers itself.
const OWN: [&str; 2] = ["FetchObject", "ClosePool"];
/// Pools that were checked and are remembered.
const POOLS_MAX: usize = 1_024;

/// One process, as far as that says what it may ask for.
#[derive(Default)]
pub(crate) struct Asker(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Its actors, and the session that each lives for; empty = none.
    actors: HashMap<ActorId, String>,
    /// How many actors it has for each session.
    sessions: HashMap<String, usize>,
    /// Pools that it may use, as it says them.
    pools: HashSet<String>,
}

/// What of a pool says whose it is.
#[derive(serde::Deserialize)]
struct Pool {
    agent: String,
    #[serde(default)]
    session: String,
}

impl Asker {
    /// It has one more actor; `owner` is what the head says of whom that lives for.
    pub fn started(&self, actor: &ActorId, owner: &str) {
        let mut known = self.0.lock();
        let session = owner.strip_prefix("session:").unwrap_or_default().to_owned();
        *known.sessions.entry(session.clone()).or_default() += 1;
        if let Some(before) = known.actors.insert(actor.clone(), session) {
            known.leave(&before);
        }
    }

    /// It has one actor less.
    pub fn stopped(&self, actor: &ActorId) {
        let mut known = self.0.lock();
        if let Some(session) = known.actors.remove(actor) {
            known.leave(&session);
        }
    }

    /// Whether it may ask for this.
    pub fn check(&self, method: &str, body: &Bytes) -> Result<(), Error> {
        if OWN.contains(&method) {
            return Ok(());
        }
        match actor_may(method) {
            Reach::None => Err(closed(format!("actors do not ask for {method}"))),
            Reach::All => Ok(()),
            Reach::Own => self.check_own(method, body),
        }
    }

    fn check_own(&self, method: &str, body: &Bytes) -> Result<(), Error> {
        match method {
            "CreateActor" => {
                let actor: CreateActorRequest = decode(body)?;
                self.0.lock().makes(&actor.agent, &actor.session)
            }
            "CreateGang" => {
                let (gang, known): (CreateGangRequest, _) = (decode(body)?, self.0.lock());
                gang.actors.iter().try_for_each(|actor| known.makes(&actor.agent, &actor.session))
            }
            "SetReminder" | "ForgetReminder" => {
                let reminder: SetReminderRequest = decode(body)?;
                match self.0.lock().actors.contains_key(reminder.actor.as_str()) {
                    true => Ok(()),
                    false => Err(closed(format!("`{}` is not an actor of this process", reminder.actor))),
                }
            }
            "Submit" => {
                let submit: SubmitRequest = decode(body)?;
                match submit.agent.starts_with(INTERNAL) {
                    true => Err(closed(format!("actors submit nothing to `{}`", submit.agent))),
                    false => Ok(()),
                }
            }
            // The head looks: it knows whose agents and tasks those are.
            _ => Ok(()),
        }
    }

    /// Whether it may use this pool, a `PoolSpec` as JSON.
    pub fn check_pool(&self, spec: &str) -> Result<(), Error> {
        let mut known = self.0.lock();
        if known.pools.contains(spec) {
            return Ok(());
        }
        let pool: Pool = from_json("the pool", spec.as_bytes())?;
        known.makes(&pool.agent, &pool.session)?;
        if known.pools.len() >= POOLS_MAX {
            known.pools.clear();
        }
        known.pools.insert(spec.to_owned());
        Ok(())
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
        let process = Asker::default();
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

    #[test]
    fn secrets_of_ports_are_not_shown() {
        let port = WorkerPort { secret: "s".into(), address: "a".into(), ..WorkerPort::default() };
        let reply = ListStoresReply { stores: vec![Store { port: Some(port), ..Store::default() }] };
        let shown = ListStoresReply::decode(shown("ListStores", reply.encode_to_vec().into())).unwrap();
        let port = shown.stores[0].port.as_ref().unwrap();
        assert_eq!((port.address.as_str(), port.secret.as_str()), ("a", ""));
    }
}
