//! A node's end: a reservation at the head for whoever wants in, streams to others, holes where they can be punched.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use covey_domain::{Error, ErrorKind, NodeId};
use covey_node::{
    Identity,
    tls::{Opening, Stream, Tunnel},
};
use futures::{StreamExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, dcutr, identify,
    multiaddr::Protocol,
    noise, relay,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};
use libp2p_stream::Control;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{
    compat::{Compat, FuturesAsyncReadCompatExt as _},
    sync::CancellationToken,
};

use crate::{IDLE, PROTOCOL, WORKER, addresses, relay::at};

/// Both ends dial each other this long before they make do with the circuit: a first SYN that came too early is sent
/// again after one second.
const PUNCH: Duration = Duration::from_millis(1_800);
/// A node that cannot be reached within this time is not there.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);
/// Pause after the head was lost or let nobody in; doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(15);
/// Pause after a head said that it has no mesh.
const NO_MESH: Duration = Duration::from_secs(300);

/// Asks the head to let this node in; gives the addresses of its relay, and who that is.
pub type Enter = Arc<dyn Fn() -> BoxFuture<'static, Result<(Vec<SocketAddr>, NodeId), Error>> + Send + Sync>;

/// Streams that others open to this node.
pub type Inbound = mpsc::Receiver<(NodeId, Compat<libp2p::Stream>)>;

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    relay: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    stream: libp2p_stream::Behaviour,
}

/// This node in the mesh. Clones share it; it leaves with the last of them or at shutdown.
#[derive(Clone)]
pub struct Member {
    commands: mpsc::Sender<Command>,
    streams: Control,
}

enum Command {
    /// Have a connection to a node over which a stream may be opened.
    Reach(PeerId, oneshot::Sender<Result<(), String>>),
    /// The time to punch a hole to a node is over.
    Settle(PeerId),
    /// Somebody opened a stream to here.
    Used(PeerId),
}

/// Connections to one node.
#[derive(Default)]
struct Peer {
    direct: HashSet<ConnectionId>,
    relayed: HashSet<ConnectionId>,
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
    /// The circuit is what there is.
    settled: bool,
    /// Streams may go over the circuit, so it is not closed under them.
    used: bool,
}

impl Peer {
    fn answer(&mut self, outcome: &Result<(), String>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(outcome.clone());
        }
    }
}

struct Running {
    swarm: Swarm<Behaviour>,
    commands: mpsc::WeakSender<Command>,
    peers: HashMap<PeerId, Peer>,
    relay: Option<(PeerId, Vec<Multiaddr>)>,
}

impl Member {
    /// Enters the mesh and stays in it until `shutdown`, through any number of losses of the head. Gives what others
    /// open to here.
    pub fn join(identity: &Identity, enter: Enter, shutdown: CancellationToken) -> Result<(Self, Inbound), Error> {
        let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to start the mesh: {e}"));
        let mut swarm = SwarmBuilder::with_existing_identity(identity.keypair().clone())
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .map_err(|e| failed(&e))?
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .map_err(|e| failed(&e))?
            .with_behaviour(|key, relay| Behaviour {
                identify: identify::Behaviour::new(identify::Config::new(PROTOCOL.into(), key.public())),
                relay,
                dcutr: dcutr::Behaviour::new(key.public().to_peer_id()),
                stream: libp2p_stream::Behaviour::new(),
            })
            .map_err(|e| failed(&e))?
            .with_swarm_config(|c| c.with_idle_connection_timeout(IDLE))
            .build();
        // Dials leave from the port that is listened on, so what the head sees of them is where others punch.
        swarm.listen_on(addresses::tcp((Ipv4Addr::UNSPECIFIED, 0).into())).map_err(|e| failed(&e))?;
        // Not every machine speaks it.
        let _ = swarm.listen_on(addresses::tcp((Ipv6Addr::UNSPECIFIED, 0).into()));
        let mut streams = swarm.behaviour().stream.new_control();
        let mut accepted = streams.accept(WORKER).map_err(|e| failed(&e))?;
        let (commands, rx) = mpsc::channel(256);
        let (inbound, taken) = mpsc::channel(256);
        let weak = commands.downgrade();
        tokio::spawn(async move {
            // Drained without a pause: what finds this task busy is dropped.
            while let Some((peer, stream)) = accepted.next().await {
                let Some(commands) = weak.upgrade() else { return };
                let _ = commands.try_send(Command::Used(peer));
                if inbound.try_send((addresses::node(&peer), stream.compat())).is_err() {
                    tracing::warn!(node = %peer, "a stream was refused: too many wait to be served");
                }
            }
        });
        let running = Running { swarm, commands: commands.downgrade(), peers: HashMap::new(), relay: None };
        tokio::spawn(running.run(rx, enter, shutdown));
        Ok((Self { commands, streams }, taken))
    }
}

impl Tunnel for Member {
    fn open(&self, node: &NodeId) -> Opening {
        let (commands, mut streams, peer) = (self.commands.clone(), self.streams.clone(), addresses::peer(node));
        Box::pin(async move {
            let opening = async {
                let peer = peer.map_err(io::Error::other)?;
                let (tx, rx) = oneshot::channel();
                commands.send(Command::Reach(peer, tx)).await.map_err(|_| io::Error::other("the mesh is closed"))?;
                let reached = rx.await.map_err(|_| io::Error::other("the mesh is closed"))?;
                reached.map_err(|why| io::Error::new(io::ErrorKind::NotConnected, why))?;
                let stream = streams.open_stream(peer, WORKER).await.map_err(io::Error::other)?;
                Ok(Box::new(stream.compat()) as Box<dyn Stream>)
            };
            tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        })
    }
}

impl Running {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, enter: Enter, shutdown: CancellationToken) {
        let mut pause = RETRY_FIRST;
        let mut entering = Some(enter());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                entered = async { entering.as_mut().expect("looked at before").await }, if entering.is_some() => {
                    entering = None;
                    let listening = entered.and_then(|(at, relay)| self.reserve(&at, &relay));
                    if let Err(error) = listening {
                        tracing::debug!(%error, "not in the mesh yet");
                        if error.kind == ErrorKind::FailedPrecondition {
                            pause = NO_MESH;
                        }
                        entering = Some(again(&enter, &mut pause));
                    }
                }
                event = self.swarm.select_next_some() => match event {
                    SwarmEvent::ListenerClosed { addresses, .. } if addresses.iter().all(is_circuit) => {
                        tracing::debug!("the reservation at the head ended");
                        if entering.is_none() {
                            entering = Some(again(&enter, &mut pause));
                        }
                    }
                    SwarmEvent::Behaviour(BehaviourEvent::Relay(relay::client::Event::ReservationReqAccepted { renewal, .. })) => {
                        if !renewal {
                            tracing::info!("others reach this node through the head");
                        }
                        pause = RETRY_FIRST;
                    }
                    event => self.take(event),
                },
            }
        }
    }

    /// Asks the relay to keep a place for this node.
    fn reserve(&mut self, at_sockets: &[SocketAddr], relay: &NodeId) -> Result<(), Error> {
        let peer = addresses::peer(relay)?;
        let relays: Vec<Multiaddr> = at_sockets.iter().map(|address| at(*address, peer)).collect();
        let first = relays.first().ok_or_else(|| Error::unavailable("the head's name has no address"))?;
        let circuit = first.clone().with(Protocol::P2pCircuit);
        self.swarm.listen_on(circuit).map_err(|e| Error::unavailable(e.to_string()))?;
        self.relay = Some((peer, relays));
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Reach(peer, answer) => {
                let known = self.peers.entry(peer).or_default();
                if !known.direct.is_empty() || (known.settled && !known.relayed.is_empty()) {
                    known.used |= known.direct.is_empty();
                    let _ = answer.send(Ok(()));
                    return;
                }
                known.waiting.push(answer);
                if known.relayed.is_empty() && known.waiting.len() == 1 {
                    self.dial(peer);
                }
            }
            Command::Settle(peer) => self.settle(peer),
            Command::Used(peer) => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.used |= known.direct.is_empty();
                }
            }
        }
    }

    fn dial(&mut self, peer: PeerId) {
        let failed = match &self.relay {
            None => Some("the head has not let this node in yet".to_owned()),
            Some((_, relays)) => {
                let circuits = relays.iter().map(|r| r.clone().with(Protocol::P2pCircuit).with(Protocol::P2p(peer)));
                let dial = DialOpts::peer_id(peer).addresses(circuits.collect()).build();
                self.swarm.dial(dial).err().map(|e| e.to_string())
            }
        };
        if let (Some(why), Some(known)) = (failed, self.peers.get_mut(&peer)) {
            known.answer(&Err(why));
        }
    }

    /// Makes do with the circuit.
    fn settle(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get_mut(&peer).filter(|p| p.direct.is_empty() && !p.relayed.is_empty()) else {
            return;
        };
        if !known.settled {
            tracing::info!(node = %peer, "no direct way; its streams go through the head");
        }
        known.settled = true;
        known.used |= !known.waiting.is_empty();
        known.answer(&Ok(()));
    }

    fn take(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                if self.relay.as_ref().is_some_and(|(relay, _)| *relay == peer_id) {
                    return;
                }
                let known = self.peers.entry(peer_id).or_default();
                if endpoint.is_relayed() {
                    known.relayed.insert(connection_id);
                    let commands = self.commands.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(PUNCH).await;
                        if let Some(commands) = commands.upgrade() {
                            let _ = commands.send(Command::Settle(peer_id)).await;
                        }
                    });
                } else {
                    known.direct.insert(connection_id);
                    tracing::info!(node = %peer_id, "a direct way was opened");
                    known.answer(&Ok(()));
                    if !known.used {
                        for circuit in &known.relayed {
                            self.swarm.close_connection(*circuit);
                        }
                    }
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                if let Some(known) = self.peers.get_mut(&peer_id) {
                    known.direct.remove(&connection_id);
                    known.relayed.remove(&connection_id);
                    if num_established == 0 {
                        known.answer(&Err("the connection was closed".to_owned()));
                        self.peers.remove(&peer_id);
                    }
                }
            }
            // A dial for a hole may fail while the circuit stands.
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                if let Some(known) = self.peers.get_mut(&peer).filter(|p| p.direct.is_empty() && p.relayed.is_empty()) {
                    known.answer(&Err(error.to_string()));
                    self.peers.remove(&peer);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id, result: Err(error) })) => {
                tracing::debug!(node = %remote_peer_id, %error, "no hole");
                self.settle(remote_peer_id);
            }
            _ => {}
        }
    }
}

/// Enters once more, later.
fn again(enter: &Enter, pause: &mut Duration) -> BoxFuture<'static, Result<(Vec<SocketAddr>, NodeId), Error>> {
    let (enter, wait) = (enter.clone(), *pause);
    *pause = (*pause * 2).clamp(RETRY_FIRST, RETRY_LAST);
    Box::pin(async move {
        tokio::time::sleep(wait).await;
        enter().await
    })
}

fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|p| p == Protocol::P2pCircuit)
}
