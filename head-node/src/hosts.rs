//! The names that this head is reached by. A request for another one is a page of another site whose name was pointed here
//! (DNS rebinding), or was sent to the wrong place.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use axum::http::{HeaderMap, header};

/// Names and addresses of a head.
pub(crate) struct Hosts {
    /// Whether only this machine gets here.
    near: bool,
    names: BTreeSet<String>,
}

impl Hosts {
    /// `told` are the hosts that others are told, `origins` are like `https://agents.example`.
    pub fn new<'a>(bound: &SocketAddr, told: impl IntoIterator<Item = &'a str>, origins: &[String]) -> Self {
        let own = ["localhost", "head.covey.internal"].into_iter().chain(told).map(str::to_ascii_lowercase);
        let origins =
            origins.iter().filter_map(|origin| origin.split_once("://")).map(|(_, rest)| host(rest).to_owned());
        Self { near: bound.ip().is_loopback(), names: own.into_iter().chain(origins).collect() }
    }

    /// Whether a request is for this head, and a page's request comes from one of its own.
    pub fn know(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let origin =
            text(header::ORIGIN).is_none_or(|o| o.split_once("://").is_some_and(|(_, rest)| self.is_ours(rest)));
        origin && text(header::HOST).is_some_and(|host| self.is_ours(host))
    }

    fn is_ours(&self, authority: &str) -> bool {
        let host = host(authority);
        // Nobody points an address elsewhere, as can be done with a name.
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => !self.near || ip.is_loopback() || self.names.contains(host),
            Err(_) => self.names.contains(host.to_ascii_lowercase().as_str()),
        }
    }
}

/// `host:port` without the port.
fn host(authority: &str) -> &str {
    let port = authority.rsplit_once(':').filter(|(_, port)| port.chars().all(|c| c.is_ascii_digit()));
    port.map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knows(hosts: &Hosts, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        hosts.know(&headers)
    }

    #[test]
    fn strangers_names_are_refused_on_loopback() {
        let near = Hosts::new(&([127, 0, 0, 1], 7420).into(), ["127.0.0.1"], &["https://agents.example".to_owned()]);
        for host in ["127.0.0.1:7420", "localhost", "LOCALHOST:1", "[::1]:7420", "agents.example"] {
            assert!(knows(&near, host, None), "{host}");
        }
        assert!(knows(&near, "localhost", Some("http://localhost:3000")));
        for host in ["evil.example:7420", "192.0.2.1:7420", "", "localhost.evil.example"] {
            assert!(!knows(&near, host, None), "{host}");
        }
        assert!(!knows(&near, "127.0.0.1:7420", Some("https://evil.example")));
        assert!(!knows(&near, "127.0.0.1:7420", Some("null")));
        assert!(!near.know(&HeaderMap::new()));
    }

    #[test]
    fn beyond_loopback_names_are_looked_at_too() {
        let far = Hosts::new(&([0, 0, 0, 0], 7420).into(), ["Head.example"], &[]);
        for host in ["head.example:7420", "Head.Example", "192.0.2.1:7420", "127.0.0.1:7420", "[2001:db8::1]:7420"] {
            assert!(knows(&far, host, None), "{host}");
        }
        assert!(!knows(&far, "evil.example:7420", None) && !knows(&far, "head.example", Some("https://evil.example")));
    }
}
