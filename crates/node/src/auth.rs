//! Who comes: a bearer token becomes a [`Principal`]. What a principal may do is the head's table of access.

use covey_domain::{NodeId, TaskId, secret::same};

use crate::{Credentials, Issuer, issuer::Subject};

/// Whose credential it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Whoever runs the cluster.
    Admin,
    /// A node that is to be enrolled, by the cluster's own join token.
    Join,
    /// A worker that was enrolled.
    Worker(NodeId),
    /// A job that runs, if it still does.
    Job(TaskId),
}

/// The token of `Authorization: Bearer <token>`.
pub fn bearer(authorization: Option<&str>) -> Option<&str> {
    let (scheme, token) = authorization?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The principal of a bearer token, compared in constant time.
pub fn authenticate(credentials: &Credentials, issuer: &Issuer, token: &str, now_s: u64) -> Option<Principal> {
    let admin = same(token, &credentials.admin_key);
    let join = same(token, &credentials.join_secret);
    match (admin, join) {
        (true, _) => Some(Principal::Admin),
        (_, true) => Some(Principal::Join),
        _ => issuer.check(token, now_s).map(|subject| match subject {
            Subject::Worker(node) => Principal::Worker(node),
            Subject::Job(task) => Principal::Job(task),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_keys_open() {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::load_or_create(&dir.path().join("issuer.key")).unwrap();
        let keys = Credentials::fresh("x:1");
        let of = |token: &str| authenticate(&keys, &issuer, token, 1);
        assert_eq!(of(&keys.admin_key), Some(Principal::Admin));
        assert_eq!(of(&keys.join_secret), Some(Principal::Join));
        assert_eq!(of(&issuer.issue(&Subject::Worker("n".into()), 2)), Some(Principal::Worker("n".into())));
        assert_eq!(of(&issuer.issue(&Subject::Job("t".into()), 2)), Some(Principal::Job("t".into())));
        assert_eq!(of(&issuer.issue(&Subject::Job("t".into()), 1)), None);
        assert_eq!(of("nope"), None);
        assert_eq!(bearer(Some("Bearer  x ")), Some("x"));
        assert_eq!(bearer(Some("bearer x")), Some("x"));
        assert_eq!((bearer(Some("x")), bearer(None), bearer(Some("Basic x"))), (None, None, None));
    }
}
