//! From `host:port` to libp2p's addresses and back.

use std::net::{IpAddr, SocketAddr};

use covey_domain::{Error, NodeId};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// The peer that a node is.
pub(crate) fn peer(node: &NodeId) -> Result<PeerId, Error> {
    node.as_str().parse().map_err(|_| Error::invalid(format!("`{node}` is not a node of the mesh")))
}

/// The node that a peer is.
pub(crate) fn node(peer: &PeerId) -> NodeId {
    NodeId::from(peer.to_string())
}

pub(crate) fn tcp(at: SocketAddr) -> Multiaddr {
    Multiaddr::from(at.ip()).with(Protocol::Tcp(at.port()))
}

/// The IP address and port that a TCP address begins with.
pub(crate) fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_there_and_back() {
        for text in ["10.0.0.7:7420", "[fe80::1]:9"] {
            let at: SocketAddr = text.parse().unwrap();
            assert_eq!(socket(&tcp(at)), Some(at));
        }
        assert_eq!(socket(&"/dns4/head/tcp/1".parse().unwrap()), None);
        assert!(peer(&NodeId::from("no such")).is_err());
    }
}
