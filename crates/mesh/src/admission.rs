//! Who may connect to a member. The head lets nodes into the mesh, and its relay opens circuits for those alone; a member goes by
//! that. Whoever came through a circuit of the head may open a direct way beside it; nobody else who dials this node's port
//! gets past the handshake that tells who it is.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm, dummy,
    },
};

/// Refuses connections of those who did not come through the head.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// How many connections there are to each peer: through the head, dialled by this node, or beside one of those.
    connected: HashMap<PeerId, usize>,
}

#[cfg(test)]
impl Admission {
    /// As if the peer had come through the head.
    pub fn expect(&mut self, peer: PeerId) {
        self.connected.insert(peer, 1);
    }
}

/// The peer was not brought here by the head.
#[derive(Debug)]
pub(crate) struct Stranger(PeerId);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node `{}` did not come through the head", self.0)
    }
}

impl std::error::Error for Stranger {}

impl NetworkBehaviour for Admission {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let through_head = local.iter().any(|part| part == Protocol::P2pCircuit);
        if through_head || self.connected.contains_key(&peer) {
            return Ok(dummy::ConnectionHandler);
        }
        Err(ConnectionDenied::new(Stranger(peer)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(connection) => {
                *self.connected.entry(connection.peer_id).or_default() += 1;
            }
            FromSwarm::ConnectionClosed(connection) if connection.remaining_established == 0 => {
                self.connected.remove(&connection.peer_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
