//! Who may do what: a bearer token becomes a [`Principal`].

use covey_domain::{CallerId, secret::same};

use crate::Credentials;

/// What a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Everything, as this caller.
    Admin(CallerId),
    /// Joining as a worker.
    Worker,
}

/// The principal of `Authorization: Bearer <token>`, compared in constant time.
pub fn authenticate(credentials: &Credentials, authorization: Option<&str>) -> Option<Principal> {
    let (scheme, token) = authorization?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let admin = same(token.trim(), &credentials.admin_key);
    let worker = same(token.trim(), &credentials.join_secret);
    if admin {
        Some(Principal::Admin(CallerId::from("admin")))
    } else if worker {
        Some(Principal::Worker)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_keys_open() {
        let keys = Credentials::fresh("x:1");
        let bearer = |t: &str| authenticate(&keys, Some(&format!("Bearer {t}")));
        assert!(matches!(bearer(&keys.admin_key), Some(Principal::Admin(_))));
        assert_eq!(bearer(&keys.join_secret), Some(Principal::Worker));
        assert_eq!(bearer("nope"), None);
        assert_eq!(authenticate(&keys, Some(&keys.admin_key)), None);
        assert_eq!(authenticate(&keys, None), None);
    }
}
