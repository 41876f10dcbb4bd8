//! Secrets that the head keeps for agents, by name. Definitions refer to them (`secret://NAME`); values leave the head with the
//! start of what uses them, and in no other way.
//!
//! The file has mode 0600 and is not encrypted: a key for it would lie beside it.

use std::{collections::HashMap, path::PathBuf};

use covey_domain::{AgentSpec, Error, ErrorKind, TaskRecord, agent::Pass, caps, secret};
use covey_proto::v1::Payload;
use serde::{Deserialize, Serialize};

use crate::{callers, kept::Kept, now_ms};

/// One secret.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Secret {
    value: String,
    /// Workers may read it, for what their own settings refer to.
    workers: bool,
    /// When it was set, milliseconds since 1970.
    set_ms: u64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Secrets(Kept<Secret>);

/// What is told of a secret.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub name: String,
    pub workers: bool,
    pub set_ms: u64,
}

impl Secrets {
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        Kept::load(path).map(Self)
    }

    /// Sets it, or sets it anew. What runs keeps the value that it was started with.
    pub fn set(&self, name: &str, value: String, workers: bool) -> Result<(), Error> {
        secret::check_name(name)?;
        if value.is_empty() || value.len() > caps::SECRET_BYTES_MAX || value.contains('\0') {
            let text = format!("a secret has 1 to {} bytes, and none of them is 0", caps::SECRET_BYTES_MAX);
            return Err(Error::invalid(text));
        }
        self.0.change(|all| {
            if all.len() >= caps::SECRETS_MAX && !all.contains_key(name) {
                return Err(Error::new(ErrorKind::Overloaded, format!("the head keeps {} secrets", all.len()))
                    .hint("`covey secret rm` takes one away"));
            }
            all.insert(name.to_owned(), Secret { value, workers, set_ms: now_ms() });
            Ok(())
        })
    }

    /// Their names, and what else may be told.
    pub fn list(&self) -> Vec<Listed> {
        let listed = |(name, secret): (&String, &Secret)| Listed {
            name: name.clone(),
            workers: secret.workers,
            set_ms: secret.set_ms,
        };
        self.0.read().iter().map(listed).collect()
    }

    /// Takes it away. What runs keeps the value that it was started with.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.0.change(|all| all.remove(name).map(drop).ok_or_else(|| Error::not_found("secret", name)))
    }

    /// Its value.
    pub fn value(&self, name: &str) -> Option<String> {
        self.0.read().get(name).map(|secret| secret.value.clone())
    }

    /// Its value, if it is for workers.
    pub fn for_worker(&self, name: &str) -> Result<String, Error> {
        let all = self.0.read();
        let secret = all.get(name).ok_or_else(|| secret::missing(name))?;
        if !secret.workers {
            let error = Error::new(ErrorKind::PermissionDenied, format!("the secret `{name}` is not for workers"));
            return Err(error.hint("`covey secret set --workers` lets them read it"));
        }
        Ok(secret.value.clone())
    }

    /// Those that an agent, and what opens it, refer to. The worker says which one is missing.
    pub fn of_agent(&self, spec: &AgentSpec, pass: Option<&Pass>) -> HashMap<String, String> {
        let names = spec.secrets().into_iter().chain(pass.into_iter().flat_map(Pass::secrets));
        self.values(names)
    }

    /// Those that a job's variables may refer to. Only the owner's jobs do.
    pub fn of_job(&self, job: &TaskRecord) -> HashMap<String, String> {
        if job.caller.as_str() != callers::OWNER {
            return HashMap::new();
        }
        self.values(secret::names(&call_of(job)))
    }

    fn values<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> HashMap<String, String> {
        names.into_iter().filter_map(|name| Some((name.to_owned(), self.value(name)?))).collect()
    }
}

/// Whether the arguments of a native client's task have this text in them.
pub(crate) fn names(task: &TaskRecord, text: &str) -> bool {
    call_of(task).contains(text)
}

/// The arguments of a native client's task, as text.
fn call_of(task: &TaskRecord) -> String {
    let body = task.input.call.as_deref().and_then(payload).map(|payload| payload.body).unwrap_or_default();
    String::from_utf8_lossy(&body).into_owned()
}

/// The arguments of a native client's task.
fn payload(call: &str) -> Option<Payload> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(call).ok()?;
    prost::Message::decode(&*bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn secrets_are_kept_for_their_owner_alone_and_not_shown() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        let secrets = Secrets::load(path.clone()).unwrap();
        secrets.set("KEY", "s3cret".into(), false).unwrap();
        secrets.set("SHARED", "x".into(), true).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Secrets::load(path).unwrap();
        assert_eq!(again.value("KEY").as_deref(), Some("s3cret"));
        assert!(!format!("{again:?}").contains("s3cret"));
        assert_eq!(again.for_worker("KEY").unwrap_err().kind, ErrorKind::PermissionDenied);
        assert_eq!(again.for_worker("SHARED").unwrap(), "x");
        assert_eq!(again.for_worker("NONE").unwrap_err().kind, ErrorKind::FailedPrecondition);
        again.remove("KEY").unwrap();
        assert_eq!(again.list().into_iter().map(|l| l.name).collect::<Vec<_>>(), ["SHARED"]);
        assert_eq!(again.remove("KEY").unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::load(dir.path().join("secrets.json")).unwrap();
        let long = "x".repeat(caps::SECRET_BYTES_MAX + 1);
        for (name, value) in [("", "x"), ("a b", "x"), ("A", ""), ("A", "a\0b"), ("A", &long)] {
            assert!(secrets.set(name, value.to_owned(), false).is_err(), "{name}");
        }
        let full = |all: &mut BTreeMap<String, Secret>| {
            let secret = Secret { value: "x".into(), workers: false, set_ms: 0 };
            all.extend((0..caps::SECRETS_MAX).map(|n| (n.to_string(), secret.clone())));
            Ok(())
        };
        secrets.0.change(full).unwrap();
        assert_eq!(secrets.set("one-more", "x".into(), false).unwrap_err().kind, ErrorKind::Overloaded);
        secrets.set("7", "y".into(), false).unwrap();
    }
}
