//! The keys of a cluster, made at its head's first start and found by every tool of the same user.

use std::{fs, io, path::Path};

use covey_domain::{Error, ErrorKind};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::{
    home,
    private::{self, Private},
    tls::{Pin, PinnedAddress},
};

/// What opens a cluster. Stored as JSON, mode 0600, in `<home>/credentials.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// `host:port` of the head.
    pub address: String,
    /// May do everything.
    pub admin_key: String,
    /// May join as a worker, nothing else.
    pub join_secret: String,
    /// The cluster's authority, where its head is to be spoken to by TLS.
    #[serde(default)]
    pub pin: Option<Pin>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Fresh keys.
    pub fn fresh(address: &str) -> Self {
        let (admin_key, join_secret) = (Self::fresh_key("cva"), Self::fresh_key("cvj"));
        Self { address: address.to_owned(), admin_key, join_secret, pin: None }
    }

    /// A key of 192 random bits: `prefix_<hex>`.
    pub fn fresh_key(prefix: &str) -> String {
        let bytes: [u8; 24] = rand::rng().random();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("{prefix}_{hex}")
    }

    /// What `covey worker --join` takes: the secret and where to go.
    pub fn join_token(&self) -> String {
        format!("{}@{}", self.join_secret, self.pinned_address())
    }

    /// Where the head is, and by which fingerprint it is known.
    pub fn pinned_address(&self) -> PinnedAddress {
        PinnedAddress { address: self.address.clone(), pin: self.pin }
    }

    /// The keys in `path`, or fresh ones that are written there. The address is brought up to date.
    pub fn load_or_create(path: &Path, at: &PinnedAddress) -> io::Result<Self> {
        let mut credentials = match fs::read(path) {
            Ok(body) => serde_json::from_slice(&body).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::fresh(&at.address),
            Err(error) => return Err(error),
        };
        credentials.address.clone_from(&at.address);
        credentials.pin = at.pin;
        credentials.write(path)?;
        Ok(credentials)
    }

    /// Puts them into a file that only its owner can read.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let body = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        home::write_private(path, &body)
    }

    /// The one cluster of a driver of this user; all that there are, where it is not one.
    fn private() -> Result<(String, String), Vec<Private>> {
        let running = Private::running();
        match running.as_slice() {
            [one] => match one.credentials() {
                Some(found) => Ok((found.pinned_address().to_string(), found.admin_key)),
                None => Err(Vec::new()),
            },
            _ => Err(running),
        }
    }

    /// What a client on this machine uses, address and key: `COVEY_ADDRESS` (`host:port`, `host:port#fingerprint`) and
    /// `COVEY_TOKEN`, else the file of a head of this user, else the cluster that a driver of this user started for itself.
    pub fn find() -> Result<(String, String), Error> {
        let address = std::env::var("COVEY_ADDRESS").ok().filter(|a| !a.is_empty());
        let token = std::env::var("COVEY_TOKEN").ok().filter(|t| !t.is_empty());
        if let (Some(address), Some(token)) = (&address, &token) {
            return Ok((address.clone(), token.clone()));
        }
        let path = home::root().join("credentials.json");
        let Ok(body) = fs::read(&path) else {
            half(address.as_ref(), token.as_ref(), &path)?;
            return Self::private().map_err(|running| match running.as_slice() {
                [] => Error::new(ErrorKind::Unauthenticated, format!("no credentials in `{}`", path.display()))
                    .hint("start a cluster with `covey up`, or set COVEY_ADDRESS and COVEY_TOKEN"),
                many => Error::invalid(format!("{} clusters of drivers run here, choose one", many.len()))
                    .hint(private::shown(many)),
            });
        };
        let found: Self = serde_json::from_slice(&body).map_err(|e| {
            Error::invalid(format!("failed to read `{}`: {e}", path.display()))
                .hint("delete it and start the head again")
        })?;
        Ok((address.unwrap_or_else(|| found.pinned_address().to_string()), token.unwrap_or(found.admin_key)))
    }
}

/// Refuses the half of a pair: what it is completed with is in `path`, which is not there. Keys of other clusters would be wrong.
fn half(address: Option<&String>, token: Option<&String>, path: &Path) -> Result<(), Error> {
    let (there, lacks, prints) = match (address, token) {
        (Some(_), None) => ("COVEY_ADDRESS", "COVEY_TOKEN", "covey token --admin"),
        (None, Some(_)) => ("COVEY_TOKEN", "COVEY_ADDRESS", "covey token --address"),
        (None, None) | (Some(_), Some(_)) => return Ok(()),
    };
    let text = format!("{there} is set, {lacks} is not, and there are no credentials in `{}`", path.display());
    Err(Error::new(ErrorKind::Unauthenticated, text)
        .hint(format!("set {lacks} too: `{prints}` on the head's machine prints it")))
}

/// Splits a join token into secret and address.
pub fn parse_join_token(token: &str) -> Result<(String, PinnedAddress), Error> {
    match token.split_once('@') {
        Some((secret, address)) if secret.starts_with("cvj_") && address.contains(':') => {
            Ok((secret.to_owned(), address.parse()?))
        }
        _ => {
            Err(Error::invalid("this is not a join token").hint("`covey token` prints one, like cvj_…@127.0.0.1:7420"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_kept_private_and_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home/credentials.json");
        let first = Credentials::load_or_create(&path, &"127.0.0.1:1".parse().unwrap()).unwrap();
        let at: PinnedAddress = format!("127.0.0.1:2#{}", "5a".repeat(32)).parse().unwrap();
        let again = Credentials::load_or_create(&path, &at).unwrap();
        assert_eq!(first.admin_key, again.admin_key);
        assert_eq!(again.address, "127.0.0.1:2");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(parse_join_token(&again.join_token()).unwrap(), (again.join_secret, at));
        assert!(parse_join_token("nonsense").is_err());
    }
}
