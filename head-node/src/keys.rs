//! Every secret that opens this head but callers' keys: the owner's, the cluster's join token, join tokens that were made
//! for a time, and the key that credentials of workers and jobs are issued with. And those that it keeps for agents.

use std::path::PathBuf;

use covey_domain::{Digest, Error, ErrorKind, NodeId, TaskId, caps};
use covey_node::{
    Credentials, Issuer,
    auth::{self, Principal},
    issuer::Subject,
    tls::NODE_CERTIFICATE_TTL,
};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{kept::Kept, now_ms, secrets::Secrets};

/// What was open with an admin key ends so long after another was made.
const ROTATED_AFTER: std::time::Duration = std::time::Duration::from_millis(500);
/// A join token that says nothing else is good for a day.
const JOIN_FOR_MS: u64 = 24 * 3_600_000;

/// What the head knows of a join token that was made for a time. Its name in the table is what it hashes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct JoinToken {
    once: bool,
    until_ms: u64,
    /// Whom it enrolled, where that is one alone.
    #[serde(default)]
    node: Option<NodeId>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Keys {
    own: RwLock<Credentials>,
    own_path: PathBuf,
    issuer: Issuer,
    issuer_path: PathBuf,
    joins: Kept<JoinToken>,
    /// What definitions refer to.
    pub secrets: Secrets,
    /// Cancelled when a secret is made anew.
    cuts: RwLock<Cuts>,
}

/// What ends with the admin key, and with the key that credentials are issued with.
#[derive(Debug, Default)]
struct Cuts {
    admin: CancellationToken,
    workers: CancellationToken,
}

impl Keys {
    /// `folder` is the head's own; `own` was read from `own_path`.
    pub fn load(own: Credentials, own_path: PathBuf, folder: &std::path::Path) -> Result<Self, Error> {
        let issuer_path = folder.join("issuer.key");
        let issuer = Issuer::load_or_create(&issuer_path)
            .map_err(|e| Error::internal(format!("failed to read or write `{}`: {e}", issuer_path.display())))?;
        let joins = Kept::load(folder.join("join-tokens.json"))?;
        let secrets = Secrets::load(folder.join("secrets.json"))?;
        Ok(Self { own: RwLock::new(own), own_path, issuer, issuer_path, joins, secrets, cuts: RwLock::default() })
    }

    /// Whose token it is.
    pub fn of(&self, token: &str) -> Option<Principal> {
        let known = auth::authenticate(&self.own.read(), &self.issuer, token, now_ms() / 1000);
        known.or_else(|| self.is_join_token(token).then_some(Principal::Join))
    }

    /// What is cancelled when this principal's credential opens nothing any more.
    pub fn cut(&self, principal: &Principal) -> CancellationToken {
        let cuts = self.cuts.read();
        match principal {
            Principal::Worker(_) | Principal::Job(_) => cuts.workers.clone(),
            // Enrolment is over at once.
            Principal::Admin | Principal::Join => cuts.admin.clone(),
        }
    }

    fn is_join_token(&self, token: &str) -> bool {
        if !token.starts_with("cvj_") {
            return false;
        }
        let hash = Digest::of(token.as_bytes());
        self.joins.read().get(hash.as_str()).is_some_and(|join| now_ms() < join.until_ms)
    }

    /// A token that enrols nodes for a time, or one node.
    pub fn add_join_token(&self, once: bool, for_ms: u64) -> Result<String, Error> {
        let (token, now) = (Credentials::fresh_key("cvj"), now_ms());
        let until_ms = now.saturating_add(if for_ms == 0 { JOIN_FOR_MS } else { for_ms });
        self.joins.change(|all| {
            all.retain(|_, join| now < join.until_ms);
            if all.len() >= caps::JOIN_TOKENS_MAX {
                let text = format!("{} join tokens are good now", all.len());
                return Err(Error::new(ErrorKind::Overloaded, text).hint("they go when their time is over"));
            }
            all.insert(Digest::of(token.as_bytes()).to_string(), JoinToken { once, until_ms, node: None });
            Ok(())
        })?;
        Ok(token)
    }

    /// A token enrols a node. One that is for one node is that node's from now on.
    pub fn enrols(&self, token: &str, node: &NodeId) -> Result<(), Error> {
        let hash = Digest::of(token.as_bytes()).to_string();
        if !self.joins.read().get(&hash).is_some_and(|join| join.once) {
            return Ok(());
        }
        self.joins.change(|all| {
            // Another enrolment may have come between the two looks.
            let Some(join) = all.get_mut(&hash) else { return Ok(()) };
            if join.node.get_or_insert_with(|| node.clone()) != node {
                let text = "the join token was for one node, and another one has used it";
                return Err(Error::new(ErrorKind::PermissionDenied, text).hint("`covey token --once` makes another"));
            }
            Ok(())
        })
    }

    /// What a worker shows from now on, and until when, seconds since 1970.
    pub fn for_worker(&self, node: &NodeId) -> (String, u64) {
        let until_s = now_ms() / 1000 + NODE_CERTIFICATE_TTL.as_secs();
        (self.issuer.issue(&Subject::Worker(node.clone()), until_s), until_s)
    }

    /// What a job shows while it runs.
    pub fn for_job(&self, task: &TaskId) -> String {
        let until_s = now_ms() / 1000 + NODE_CERTIFICATE_TTL.as_secs();
        self.issuer.issue(&Subject::Job(task.clone()), until_s)
    }

    /// What opens this task to whoever shows it.
    pub fn capability(&self, task: &TaskId) -> String {
        self.issuer.capability(task)
    }

    /// Whether a capability opens this task.
    pub fn opens(&self, capability: &str, task: &TaskId) -> bool {
        self.issuer.opens(capability, task)
    }

    /// Makes a secret anew. The new one, where there is one to tell.
    pub fn rotate(&self, what: &str) -> Result<String, Error> {
        let failed = |e: std::io::Error| Error::internal(format!("failed to write the new key: {e}"));
        let change = |change: fn(&mut Credentials) -> &mut String, prefix: &str| {
            let mut own = self.own.write();
            let mut next = own.clone();
            let fresh = Credentials::fresh_key(prefix);
            change(&mut next).clone_from(&fresh);
            next.write(&self.own_path).map_err(failed)?;
            *own = next;
            Ok(fresh)
        };
        match what {
            "admin" => {
                let fresh = change(|own| &mut own.admin_key, "cva")?;
                // Whoever asked is told first.
                let old = std::mem::take(&mut self.cuts.write().admin);
                tokio::spawn(async move {
                    tokio::time::sleep(ROTATED_AFTER).await;
                    old.cancel();
                });
                Ok(fresh)
            }
            "join" => {
                self.joins.change(|all| {
                    all.clear();
                    Ok(())
                })?;
                change(|own| &mut own.join_secret, "cvj")
            }
            "workers" => {
                self.issuer.rotate(&self.issuer_path).map_err(failed)?;
                std::mem::take(&mut self.cuts.write().workers).cancel();
                Ok(String::new())
            }
            _ => Err(Error::invalid(format!("`{what}` is no secret of a cluster")).hint("admin, join or workers")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(dir: &std::path::Path) -> Keys {
        let path = dir.join("credentials.json");
        let own = Credentials::load_or_create(&path, &"127.0.0.1:1".parse().unwrap()).unwrap();
        Keys::load(own, path, dir).unwrap()
    }

    #[test]
    fn a_join_token_is_for_a_time_and_for_one_node() {
        let dir = tempfile::tempdir().unwrap();
        let known = keys(dir.path());
        let (once, many) = (known.add_join_token(true, 0).unwrap(), known.add_join_token(false, 0).unwrap());
        let late = known.add_join_token(false, 0).unwrap();
        let over = |all: &mut std::collections::BTreeMap<String, JoinToken>| {
            all.get_mut(Digest::of(late.as_bytes()).as_str()).unwrap().until_ms = now_ms();
            Ok(())
        };
        known.joins.change(over).unwrap();
        let known = keys(dir.path());
        assert_eq!(known.of(&once), Some(Principal::Join), "it is kept");
        assert_eq!(known.of(&late), None, "its time is over");
        let (a, b) = (NodeId::from("a"), NodeId::from("b"));
        assert!(known.enrols(&once, &a).is_ok() && known.enrols(&once, &a).is_ok() && known.enrols(&once, &b).is_err());
        assert!(keys(dir.path()).enrols(&once, &b).is_err(), "who used it is kept");
        assert!(known.enrols(&many, &a).is_ok() && known.enrols(&many, &b).is_ok());
        let text = std::fs::read_to_string(dir.path().join("join-tokens.json")).unwrap();
        assert!(!text.contains(&once), "what is kept opens nothing");
    }

    #[tokio::test]
    async fn what_was_rotated_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let known = keys(dir.path());
        let own = known.own.read().clone();
        let (worker, _) = known.for_worker(&"n".into());
        let join = known.add_join_token(false, 0).unwrap();
        assert_eq!(known.of(&worker), Some(Principal::Worker("n".into())));
        let fresh = known.rotate("admin").unwrap();
        assert_eq!((known.of(&own.admin_key), known.of(&fresh)), (None, Some(Principal::Admin)));
        let fresh = known.rotate("join").unwrap();
        assert_eq!(
            (known.of(&own.join_secret), known.of(&join), known.of(&fresh)),
            (None, None, Some(Principal::Join))
        );
        let cut = known.cut(&Principal::Worker("n".into()));
        known.rotate("workers").unwrap();
        assert_eq!((known.of(&worker), cut.is_cancelled()), (None, true));
        assert!(known.rotate("nothing").is_err());
        assert_eq!(keys(dir.path()).of(&fresh), Some(Principal::Join), "the new one is kept");
    }
}
