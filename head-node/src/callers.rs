//! Keys of callers that do not own the cluster: each sees some agents, and its own tasks. The head keeps what keys hash to.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use covey_domain::{AgentName, CallerId, Digest, Error, ErrorKind, caps};
use covey_gateway::Caller;
use covey_node::Credentials;
use serde::{Deserialize, Serialize};

use crate::{kept::Kept, now_ms};

/// Whoever runs the cluster, and its workers in that name.
pub(crate) const OWNER: &str = "admin";

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
}

/// All callers' keys.
#[derive(Debug)]
pub(crate) struct Callers(Kept<Key>);

impl Callers {
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        Kept::load(path).map(Self)
    }

    /// Who comes with `Authorization: Bearer <key>`, and whether it may use models.
    pub fn of(&self, authorization: Option<&str>) -> Option<(Caller, bool)> {
        let (scheme, key) = authorization?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let hash = Digest::of(key.trim().as_bytes());
        let all = self.0.read();
        let (name, key) = all.iter().find(|(_, known)| known.hash == hash)?;
        let agents = (!key.agents.is_empty()).then(|| key.agents.clone());
        Some((Caller { id: CallerId::from(name.as_str()), agents }, key.models))
    }

    /// A key for a caller that has none; it is told this once.
    pub fn add(&self, name: &str, agents: BTreeSet<AgentName>, models: bool) -> Result<String, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if name.is_empty() || name.len() > caps::AGENT_NAME_MAX || !name.chars().all(good) || name == OWNER {
            return Err(Error::invalid(format!("`{name}` is no name for a caller"))
                .hint(format!("1 to {} letters, digits, `-`, `_`, `.` or `@`; not `{OWNER}`", caps::AGENT_NAME_MAX)));
        }
        let key = Credentials::fresh_key("cvk");
        let known = Key { hash: Digest::of(key.as_bytes()), agents: Arc::new(agents), models, made_ms: now_ms() };
        self.0.change(|all| {
            if all.contains_key(name) {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("caller `{name}` has a key"))
                    .hint("remove that one first: its tasks stay"));
            }
            all.insert(name.to_owned(), known);
            Ok(())
        })?;
        Ok(key)
    }

    /// A caller's key opens nothing any more; its tasks stay.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.0.change(|all| all.remove(name).map(drop).ok_or_else(|| Error::not_found("caller", name)))
    }

    /// Names, and what is known of their keys.
    pub fn list(&self) -> Vec<(String, Key)> {
        self.0.read().iter().map(|(name, key)| (name.clone(), key.clone())).collect()
    }
}

/// Whether a path is there for callers that do not own the cluster. What is not named is not.
pub(crate) fn is_open(path: &str, models: bool) -> bool {
    let under = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    let a2a = path == "/"
        || path.starts_with("/.well-known/")
        || ["/a2a", "/lf.a2a.v1.A2AService", "/a2a.v1.A2AService", "/v1/push-notifications"].into_iter().any(under);
    a2a || (models && path.starts_with("/v1/") && !under("/v1/cluster"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_what_it_is_for_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("callers.json");
        let callers = Callers::load(path.clone()).unwrap();
        let key = callers.add("alice", ["echo".into()].into(), false).unwrap();
        assert!(
            callers.add("alice", BTreeSet::new(), true).is_err()
                && callers.add("admin", BTreeSet::new(), true).is_err()
        );
        let with = |callers: &Callers, key: &str| callers.of(Some(&format!("Bearer {key}")));
        let again = Callers::load(path.clone()).unwrap();
        let (caller, models) = with(&again, &key).unwrap();
        assert_eq!((caller.id.as_str(), models), ("alice", false));
        assert!(caller.may_ask(&"echo".into()) && !caller.may_ask(&"other".into()));
        assert!(with(&again, "cvk_0").is_none() && again.of(None).is_none() && again.of(Some(&key)).is_none());
        assert!(!std::fs::read_to_string(path).unwrap().contains(&key), "what is kept opens nothing");
        again.remove("alice").unwrap();
        assert!(with(&again, &key).is_none() && again.remove("alice").is_err());
    }

    #[test]
    fn paths_are_closed_unless_they_are_named() {
        for path in ["/", "/a2a", "/a2a/echo", "/.well-known/agent-card.json", "/lf.a2a.v1.A2AService/SendMessage"] {
            assert!(is_open(path, false), "{path}");
        }
        let owners =
            ["/covey.v1.Covey/Submit", "/covey.v1.Link/Open", "/metrics", "/v1/cluster", "/v1/cluster/x", "/a2ab"];
        for path in owners {
            assert!(!is_open(path, true), "{path}");
        }
        assert!(is_open("/v1/chat/completions", true) && !is_open("/v1/chat/completions", false));
    }
}
