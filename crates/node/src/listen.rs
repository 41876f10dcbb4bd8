//! Where a node listens, as its user says it: an address, or a name of this machine.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
};

use covey_domain::{Error, ErrorKind};
use tokio::net::TcpListener;

/// A host to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The address that is bound.
    pub ip: IpAddr,
    /// The name that was given, where it was one.
    pub name: Option<String>,
}

impl std::str::FromStr for Host {
    type Err = String;

    /// An address (in brackets or not), or a name that is looked up. Of several addresses of a name the first IPv4 one is
    /// taken, or the first one where there is none.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self { ip, name: None });
        }
        if text.is_empty() || text.contains(|c: char| !c.is_alphanumeric() && !matches!(c, '.' | '-' | '_')) {
            return Err("it is neither an address nor a name; the port is an option of its own".to_owned());
        }
        // Of numbers alone: an address that has a mistake. A resolver would read `127.1` as one, too.
        if text.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return Err("it is not a whole address, like 127.0.0.1".to_owned());
        }
        let found = (text, 0).to_socket_addrs().map_err(|e| format!("no address is known for this name ({e})"))?;
        let found: Vec<IpAddr> = found.map(|at| at.ip()).collect();
        let ip = found.iter().find(|ip| ip.is_ipv4()).or(found.first());
        let ip = *ip.ok_or_else(|| "no address is known for this name".to_owned())?;
        Ok(Self { ip, name: Some(text.to_owned()) })
    }
}

/// `host:port`, where the host is what [`Host`] takes; an IPv6 address stands in brackets. Port 0 takes a free one.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let forms = "write HOST:PORT, like 127.0.0.1:0 or [::1]:0; port 0 takes a free one";
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("it has no port; {forms}"));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("it has no port; {forms}"))?;
    let port = port.parse().map_err(|_| format!("`{port}` is not a port; {forms}"))?;
    let host: Host = host.parse().map_err(|why| format!("`{host}`: {why}"))?;
    Ok(SocketAddr::new(host.ip, port))
}

/// Listens there, or says why it cannot.
pub async fn bind(at: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(at).await.map_err(|error| {
        let text = format!("failed to listen on `{at}`: {error}");
        match error.kind() {
            io::ErrorKind::AddrInUse => Error::new(ErrorKind::AlreadyExists, text).hint("port 0 takes a free one"),
            io::ErrorKind::AddrNotAvailable => Error::invalid(text)
                .hint(format!("`{}` is no address of this machine; 0.0.0.0 takes all that it has", at.ip())),
            io::ErrorKind::PermissionDenied => {
                Error::new(ErrorKind::PermissionDenied, text).hint("ports below 1024 need privileges")
            }
            _ => Error::invalid(text),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_names() {
        for (text, ip) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("0.0.0.0", "0.0.0.0")] {
            assert_eq!(text.parse(), Ok(Host { ip: ip.parse().unwrap(), name: None }));
        }
        let near: Host = "localhost".parse().unwrap();
        assert!(near.ip.is_loopback() && near.name.as_deref() == Some("localhost"));
        for wrong in ["", "127.0.0", "127.0.0.1:7420", "http://x", "nonesuch.invalid", "a b", "256.0.0.1"] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert_eq!(address("127.0.0.1:5"), Ok(SocketAddr::from(([127, 0, 0, 1], 5))));
        assert_eq!(address("[::1]:0"), Ok("[::1]:0".parse().unwrap()));
        assert!(address("localhost:0").unwrap().ip().is_loopback());
        for wrong in ["localhost", "::1", "127.0.0.1", "localhost:x", "localhost:65536", ":5", "nonesuch.invalid:0"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_listened_on_says_why() {
        let elsewhere = bind(SocketAddr::from(([192, 0, 2, 1], 0))).await.unwrap_err();
        assert_eq!(elsewhere.kind, ErrorKind::InvalidArgument);
        let taken = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let again = bind(taken.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(again.kind, ErrorKind::AlreadyExists);
    }
}
