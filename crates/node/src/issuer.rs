//! Credentials that the head makes for workers and jobs, and capabilities for single tasks. Nothing is kept of them: they say whom they are for and until when,
//! and a MAC under the head's own key proves that the head said so.

use std::{fs, io, path::Path};

use covey_domain::{NodeId, TaskId, secret::same};
use parking_lot::RwLock;
use rand::Rng as _;

use crate::home;

/// Whom a credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A worker that proved to have the key behind this id.
    Worker(NodeId),
    /// One job. It opens nothing once the task has ended, which the head checks.
    Job(TaskId),
}

const WORKER: &str = "cvw";
const JOB: &str = "cvt";
/// Begins no credential: a capability opens one task to who has a credential already, and nothing by itself.
const CAPABILITY: &str = "cvc";

/// Makes and checks credentials.
pub struct Issuer {
    key: RwLock<[u8; 32]>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").finish_non_exhaustive()
    }
}

impl Issuer {
    /// With the key kept in `path`, or a fresh one that is written there.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(body) => {
                let key = body.try_into().map_err(|_| io::Error::other("the key does not have 32 bytes"))?;
                Ok(Self { key: RwLock::new(key) })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let issuer = Self { key: RwLock::new([0; 32]) };
                issuer.rotate(path)?;
                Ok(issuer)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a fresh key: what was issued before opens nothing any more.
    pub fn rotate(&self, path: &Path) -> io::Result<()> {
        let fresh: [u8; 32] = rand::rng().random();
        home::write_private(path, &fresh)?;
        *self.key.write() = fresh;
        Ok(())
    }

    /// A credential that is good until `until_s`, seconds since 1970: `cvw_<node>.<until>.<mac>`.
    pub fn issue(&self, subject: &Subject, until_s: u64) -> String {
        let (prefix, id) = match subject {
            Subject::Worker(node) => (WORKER, node.as_str()),
            Subject::Job(task) => (JOB, task.as_str()),
        };
        let claim = format!("{prefix}_{id}.{until_s:x}");
        let mac = self.mac(&claim);
        format!("{claim}.{mac}")
    }

    /// Whom a credential is for, when this head made it and its time is not over at `now_s`.
    pub fn check(&self, credential: &str, now_s: u64) -> Option<Subject> {
        let (claim, mac) = credential.rsplit_once('.')?;
        let (subject, until) = claim.rsplit_once('.')?;
        let (prefix, id) = subject.split_once('_')?;
        let subject = match prefix {
            WORKER => Subject::Worker(id.into()),
            JOB => Subject::Job(id.into()),
            _ => return None,
        };
        let until = u64::from_str_radix(until, 16).ok()?;
        (now_s < until && same(mac, &self.mac(claim))).then_some(subject)
    }

    /// What opens one task to whoever shows it: it is handed on with the task's handle.
    pub fn capability(&self, task: &TaskId) -> String {
        self.mac(&format!("{CAPABILITY}_{task}"))
    }

    /// Whether this head made a capability, for this task.
    pub fn opens(&self, capability: &str, task: &TaskId) -> bool {
        same(capability, &self.capability(task))
    }

    /// Keyed BLAKE3, a MAC by its design (section 6.2 of its paper).
    fn mac(&self, claim: &str) -> String {
        blake3::keyed_hash(&self.key.read(), claim.as_bytes()).to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_good_for_its_subject_until_its_time_or_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("issuer.key");
        let issuer = Issuer::load_or_create(&path).unwrap();
        let (worker, job) = (Subject::Worker("12D3Koo".into()), Subject::Job("task-1".into()));
        let (shown, other) = (issuer.issue(&worker, 100), issuer.issue(&job, 100));
        assert_eq!(issuer.check(&shown, 99), Some(worker));
        assert_eq!(issuer.check(&other, 99), Some(job));
        assert_eq!(issuer.check(&shown, 100), None, "its time is over");
        for wrong in [
            shown.replace("12D3Koo", "12D3Kop"),
            shown.replace("cvw_", "cvt_"),
            shown.replace(".64.", ".65."),
            shown[..shown.len() - 1].to_owned(),
            String::new(),
            "cvw_.".into(),
        ] {
            assert_eq!(issuer.check(&wrong, 1), None, "{wrong}");
        }
        let again = Issuer::load_or_create(&path).unwrap();
        assert!(again.check(&shown, 1).is_some(), "the key is kept");
        let (task, other) = ("task-1".into(), "task-10".into());
        let capability = issuer.capability(&task);
        assert!(again.opens(&capability, &task) && !again.opens(&capability, &other) && !again.opens("", &task));
        assert_eq!(issuer.check(&format!("cvc_task-1.64.{capability}"), 1), None, "it is no credential");
        again.rotate(&path).unwrap();
        assert!(again.check(&shown, 1).is_none() && !again.opens(&capability, &task));
        assert!(Issuer::load_or_create(&path).unwrap().check(&shown, 1).is_none());
    }
}
