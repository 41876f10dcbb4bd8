//! One Ed25519 key is a node's identity: its [`NodeId`] is the libp2p peer id of that key, so the node keeps its name
//! in both worlds.

use std::{fs, io, path::Path};

use covey_domain::NodeId;
use libp2p_identity::Keypair;

use crate::home;

/// The identity kept in `path`, or a fresh one that is written there.
pub fn load_or_create(path: &Path) -> io::Result<NodeId> {
    let key = match fs::read(path) {
        Ok(body) => Keypair::from_protobuf_encoding(&body).map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = Keypair::generate_ed25519();
            home::write_private(path, &key.to_protobuf_encoding().map_err(io::Error::other)?)?;
            key
        }
        Err(error) => return Err(error),
    };
    Ok(node_id(&key))
}

/// An identity for this process only.
pub fn ephemeral() -> NodeId {
    node_id(&Keypair::generate_ed25519())
}

fn node_id(key: &Keypair) -> NodeId {
    NodeId::from(key.public().to_peer_id().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let first = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap(), first);
        assert_ne!(ephemeral(), first);
    }
}
