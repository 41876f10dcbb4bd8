//! Keys of callers that do not own the cluster: each sees some agents, and its own tasks. The head keeps what keys hash to.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use covey_domain::{AgentName, CallerId, Digest, Error, ErrorKind, TaskState, caps};
use covey_gateway::Caller;
use covey_node::Credentials;
use covey_store::TaskFilter;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{Shared, kept::Kept, now_ms, owner::Input};

/// Whoever runs the cluster.
pub(crate) const OWNER: &str = "admin";
/// Whose tasks those are that actors submit. Workers see them, and the owner of the cluster.
pub(crate) const ACTORS: &str = "actors";
/// Who has only a join token.
pub(crate) const NOBODY: &str = "nobody";

/// Whether a caller sees the tasks of another.
pub(crate) fn sees(caller: &CallerId, tasks_of: &CallerId) -> bool {
    caller == tasks_of || (!tasks_of.as_str().is_empty() && seen_too(caller) == tasks_of.as_str())
}

/// Whose tasks a caller sees beside its own; empty = nobody's.
pub(crate) fn seen_too(caller: &CallerId) -> &'static str {
    if caller.as_str() == OWNER { ACTORS } else { "" }
}

const RESERVED: [&str; 3] = [OWNER, ACTORS, NOBODY];

/// What the head knows of a caller's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Key {
    /// Of the key. Keys are 192 random bits, so that nobody finds one by trying.
    hash: Digest,
    /// Agents that are there for the caller; none named = all.
    pub agents: Arc<BTreeSet<AgentName>>,
    /// The OpenAI API is there too.
    pub models: bool,
    /// When it was made, milliseconds since 1970.
    pub made_ms: u64,
    /// It opens nothing from then on.
    #[serde(default)]
    pub until_ms: Option<u64>,
}

/// All callers' keys.
#[derive(Debug)]
pub(crate) struct Callers {
    kept: Kept<Key>,
    /// Cancelled when a key opens nothing any more, of those that were shown.
    cuts: Mutex<HashMap<String, CancellationToken>>,
    /// Names whose keys were taken back since the last look, and once more after that.
    gone: Mutex<[Vec<CallerId>; 2]>,
}

impl Callers {
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        Ok(Self { kept: Kept::load(path)?, cuts: Mutex::default(), gone: Mutex::default() })
    }

    /// Whose key it is, and what is cancelled when it opens nothing any more.
    pub fn of(&self, token: &str) -> Option<(Caller, CancellationToken)> {
        let hash = Digest::of(token.as_bytes());
        let all = self.kept.read();
        let (name, key) = all.iter().find(|(_, known)| known.hash == hash)?;
        if key.until_ms.is_some_and(|until| until <= now_ms()) {
            return None;
        }
        let agents = (!key.agents.is_empty()).then(|| key.agents.clone());
        let caller = Caller { id: CallerId::from(name.as_str()), agents, models: key.models, priority: 0 };
        let mut cuts = self.cuts.lock();
        let cut = match cuts.get(name) {
            Some(cut) => cut.clone(),
            None => cuts.entry(name.clone()).or_default().clone(),
        };
        Some((caller, cut))
    }

    /// A key for a caller that has none; it is told this once.
    pub fn add(&self, name: &str, agents: BTreeSet<AgentName>, models: bool, for_ms: u64) -> Result<String, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if name.is_empty() || name.len() > caps::AGENT_NAME_MAX || !name.chars().all(good) || RESERVED.contains(&name) {
            return Err(Error::invalid(format!("`{name}` is no name for a caller")).hint(format!(
                "1 to {} letters, digits, `-`, `_`, `.` or `@`; not {}",
                caps::AGENT_NAME_MAX,
                RESERVED.join(", ")
            )));
        }
        let key = Credentials::fresh_key("cvk");
        let made_ms = now_ms();
        let until_ms = (for_ms > 0).then(|| made_ms.saturating_add(for_ms));
        let known = Key { hash: Digest::of(key.as_bytes()), agents: Arc::new(agents), models, made_ms, until_ms };
        self.kept.change(|all| {
            if all.contains_key(name) {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("caller `{name}` has a key"))
                    .hint("remove that one first: its tasks stay"));
            }
            all.insert(name.to_owned(), known);
            Ok(())
        })?;
        Ok(key)
    }

    /// A caller's key opens nothing any more, and what it has open ends; its tasks stay as they are when that is done.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.kept.change(|all| all.remove(name).map(drop).ok_or_else(|| Error::not_found("caller", name)))?;
        self.cut(name);
        self.gone.lock()[0].push(name.into());
        Ok(())
    }

    /// Callers whose keys are gone since not long ago: what they asked for at that very moment may have begun behind it.
    fn gone(&self) -> Vec<CallerId> {
        let mut gone = self.gone.lock();
        let fresh = std::mem::take(&mut gone[0]);
        let mut all = std::mem::replace(&mut gone[1], fresh.clone());
        all.extend(fresh);
        all.retain(|caller| !self.is_known(caller));
        all
    }

    /// It is one whose key is gone at the next look too.
    fn not_over(&self, caller: &CallerId) {
        let mut gone = self.gone.lock();
        if !gone[0].contains(caller) {
            gone[0].push(caller.clone());
        }
    }

    fn cut(&self, name: &str) {
        if let Some(cut) = self.cuts.lock().remove(name) {
            cut.cancel();
        }
    }

    /// Callers whose keys' time was over at `now`, and was not at `before`. What they have open ends.
    pub fn ended(&self, before: u64, now: u64) -> Vec<CallerId> {
        let ended = |key: &Key| key.until_ms.is_some_and(|until| before < until && until <= now);
        let all: Vec<String> = self.kept.read().iter().filter(|(_, k)| ended(k)).map(|(n, _)| n.clone()).collect();
        all.iter().for_each(|name| self.cut(name));
        let all: Vec<_> = all.iter().map(|name| CallerId::from(name.as_str())).collect();
        self.gone.lock()[0].extend(all.iter().cloned());
        all
    }

    /// Whether a caller may be told of its tasks: it owns the cluster, or has a key that is good.
    pub fn is_known(&self, caller: &CallerId) -> bool {
        let good = |key: &Key| key.until_ms.is_none_or(|until| now_ms() < until);
        RESERVED.contains(&caller.as_str()) || self.kept.read().get(caller.as_str()).is_some_and(good)
    }

    /// Names, and what is known of their keys.
    pub fn list(&self) -> Vec<(String, Key)> {
        self.kept.read().iter().map(|(name, key)| (name.clone(), key.clone())).collect()
    }
}

/// How often keys are looked at whose time may be over.
const LOOK: Duration = Duration::from_millis(500);
/// Tasks that are ended at once.
const PAGE: u32 = 1_000;

/// Ends what belongs to keys whose time is over.
pub(crate) async fn watch(shared: Shared) {
    let (mut every, mut before) = (tokio::time::interval(LOOK), 0);
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = every.tick() => {}
        }
        let now = now_ms();
        for caller in shared.callers.ended(before, now) {
            tracing::info!(%caller, "the time of a caller's key is over");
            end(&shared, &caller).await;
        }
        for caller in shared.callers.gone() {
            end(&shared, &caller).await;
        }
        before = now;
    }
}

/// Ends the tasks of a caller whose key opens nothing any more. Its webhooks find out by themselves. What the store has no room to keep
/// now is tried again.
pub(crate) async fn end(shared: &Shared, caller: &CallerId) {
    if let Err(error) = end_all(shared, caller).await {
        tracing::debug!(%error, %caller, "tasks of a caller without a key could not be ended yet");
        shared.callers.not_over(caller);
    }
}

async fn end_all(shared: &Shared, caller: &CallerId) -> Result<(), Error> {
    let unfinished = [TaskState::Submitted, TaskState::Working, TaskState::InputRequired, TaskState::AuthRequired];
    for state in unfinished {
        let filter = TaskFilter { state: state.name(), caller: caller.as_str(), ..TaskFilter::default() };
        let mut before = String::new();
        loop {
            let page = shared.store.tasks(filter, &before, PAGE).await.map_err(|e| Error::internal(e.to_string()))?;
            if page.lacks {
                return Err(Error::new(ErrorKind::StorageFull, "the tables have no room for all tasks yet"));
            }
            for task in &page.records {
                let why = "the caller's key was taken back".to_owned();
                match shared.owner.ask(|tx| Input::CancelTask(task.id.clone(), OWNER.to_owned(), why, tx)).await? {
                    Err(error) if matches!(error.kind, ErrorKind::StorageFull | ErrorKind::Overloaded) => {
                        return Err(error);
                    }
                    // One that has ended meanwhile is what is wanted.
                    Ok(_) | Err(_) => {}
                }
            }
            let Some((_, last)) = page.next else { break };
            before = last.to_string();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_what_it_is_for_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("callers.json");
        let callers = Callers::load(path.clone()).unwrap();
        let key = callers.add("alice", ["echo".into()].into(), false, 0).unwrap();
        assert!(
            callers.add("alice", BTreeSet::new(), true, 0).is_err()
                && callers.add("admin", BTreeSet::new(), true, 0).is_err()
        );
        let with = |callers: &Callers, key: &str| callers.of(key);
        let again = Callers::load(path.clone()).unwrap();
        let (caller, cut) = with(&again, &key).unwrap();
        assert_eq!((caller.id.as_str(), caller.models), ("alice", false));
        assert!(caller.may_ask(&"echo".into()) && !caller.may_ask(&"other".into()));
        assert!(with(&again, "cvk_0").is_none() && again.of("").is_none());
        let late = again.add("late", BTreeSet::new(), true, 3_600_000).unwrap();
        let over = |all: &mut std::collections::BTreeMap<String, Key>| {
            all.get_mut("late").unwrap().until_ms = Some(now_ms());
            Ok(())
        };
        let (_, ends) = with(&again, &late).unwrap();
        again.kept.change(over).unwrap();
        assert_eq!(again.ended(0, now_ms()), [CallerId::from("late")]);
        assert!(ends.is_cancelled() && !again.is_known(&"late".into()));
        assert!(again.of(&late).is_none(), "its time is over");
        assert!(!std::fs::read_to_string(path).unwrap().contains(&key), "what is kept opens nothing");
        assert!(again.is_known(&"alice".into()) && again.is_known(&OWNER.into()) && !cut.is_cancelled());
        again.remove("alice").unwrap();
        assert!(cut.is_cancelled(), "what is open ends");
        assert!(with(&again, &key).is_none() && again.remove("alice").is_err());
    }
}
