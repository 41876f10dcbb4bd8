//! The head's end: keeps reservations, joins circuits, tells nodes how their address looks from here, and is found on
//! the local network.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use covey_domain::Error;
use covey_node::{Identity, tls::MeshSource};
use futures::StreamExt as _;
use libp2p::{
    PeerId, Swarm, SwarmBuilder, allow_block_list,
    allow_block_list::AllowedPeers,
    connection_limits::{self, ConnectionLimits},
    core::upgrade::Version,
    identify, mdns, noise, relay,
    swarm::{NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle},
    yamux,
};
use tokio_util::sync::CancellationToken;

use crate::{IDLE, PROTOCOL, addresses, handed::Handed};

/// Reservations and circuits, together.
const RESERVATIONS_MAX: usize = 65_536;
const CIRCUITS_MAX: usize = 65_536;
/// Circuits to or from one node.
const CIRCUITS_PER_NODE_MAX: usize = 4_096;
/// Reservations are renewed before this ends.
const RESERVATION: Duration = Duration::from_secs(3600);
/// A circuit is cut after this; lanes over it are opened anew.
const CIRCUIT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Connections of one node.
const CONNECTIONS_PER_NODE_MAX: u32 = 8;
/// Handshakes under way.
const PENDING_MAX: u32 = 1_024;
/// Whoever was let in and is not connected for this long must ask again.
const ADMISSION: Duration = Duration::from_secs(60);

#[derive(NetworkBehaviour)]
struct Behaviour {
    // First, so that nothing else hears of strangers.
    admitted: allow_block_list::Behaviour<AllowedPeers>,
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    relay: relay::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// The relay of a cluster, fed by its head's port.
pub struct Relay {
    swarm: Swarm<Behaviour>,
    source: tokio::sync::mpsc::Receiver<covey_domain::NodeId>,
    /// Who was let in; when, as long as it is not connected.
    waiting: HashMap<PeerId, Instant>,
}

impl Relay {
    /// A relay for what comes in through the port at `listen`. With `announce` it answers mDNS queries there.
    pub fn new(identity: &Identity, source: MeshSource, listen: SocketAddr, announce: bool) -> Result<Self, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to start the mesh: {e}"));
        let MeshSource { connections, admitted } = source;
        let handed = |key: &libp2p::identity::Keypair| {
            let noise = noise::Config::new(key)?;
            let transport = Handed::new(connections);
            Ok(libp2p::Transport::upgrade(transport, Version::V1Lazy)
                .authenticate(noise)
                .multiplex(yamux::Config::default()))
        };
        let config = relay::Config {
            max_reservations: RESERVATIONS_MAX,
            max_reservations_per_peer: 4,
            reservation_duration: RESERVATION,
            reservation_rate_limiters: Vec::new(),
            max_circuits: CIRCUITS_MAX,
            max_circuits_per_peer: CIRCUITS_PER_NODE_MAX,
            max_circuit_duration: CIRCUIT,
            max_circuit_bytes: 0,
            circuit_src_rate_limiters: Vec::new(),
        };
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_established_per_peer(Some(CONNECTIONS_PER_NODE_MAX));
        let mut swarm = SwarmBuilder::with_existing_identity(identity.keypair().clone())
            .with_tokio()
            .with_other_transport(handed)
            .map_err(|e| failed(&e))?
            .with_behaviour(|key| {
                let peer = key.public().to_peer_id();
                let found = announce.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), peer));
                let mdns = found.transpose().unwrap_or_else(|error| {
                    tracing::warn!(%error, "this head cannot be found by mDNS");
                    None
                });
                Behaviour {
                    admitted: allow_block_list::Behaviour::default(),
                    limits: connection_limits::Behaviour::new(limits),
                    identify: identify::Behaviour::new(identify::Config::new(PROTOCOL.into(), key.public())),
                    relay: relay::Behaviour::new(peer, config),
                    mdns: mdns.into(),
                }
            })
            .map_err(|e| failed(&e))?
            .with_swarm_config(|c| c.with_idle_connection_timeout(IDLE))
            .build();
        swarm.listen_on(addresses::tcp(listen)).map_err(|e| failed(&e))?;
        Ok(Self { swarm, source: admitted, waiting: HashMap::new() })
    }

    /// Serves until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut sweep = tokio::time::interval(ADMISSION);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(node) = self.source.recv() => match addresses::peer(&node) {
                    Ok(peer) => {
                        self.swarm.behaviour_mut().admitted.allow_peer(peer);
                        if !self.swarm.is_connected(&peer) {
                            self.waiting.insert(peer, Instant::now());
                        }
                    }
                    Err(error) => tracing::debug!(%error, "not let in"),
                },
                _ = sweep.tick() => self.sweep(),
                event = self.swarm.select_next_some() => self.take(event),
            }
        }
    }

    fn take(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            // A circuit's ends are told the addresses at which the relay is reached; without one it takes none.
            SwarmEvent::NewListenAddr { address, .. } => self.swarm.add_external_address(address),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.swarm.remove_external_address(&address),
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                self.waiting.remove(&peer_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.waiting.insert(peer_id, Instant::now());
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "a connection to the mesh was refused");
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "the mesh listens no more on an address"),
            SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => tracing::debug!(?event, "relay"),
            _ => {}
        }
    }

    fn sweep(&mut self) {
        let gone: Vec<PeerId> =
            self.waiting.iter().filter(|(_, since)| since.elapsed() >= ADMISSION).map(|(peer, _)| *peer).collect();
        for peer in gone {
            self.waiting.remove(&peer);
            self.swarm.behaviour_mut().admitted.disallow_peer(peer);
        }
    }
}
