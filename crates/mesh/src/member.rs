//! A node's end: a reservation at the head for whoever wants in, streams to others, holes where they can be punched.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use covey_domain::{Error, ErrorKind, NodeId};
use covey_node::{
    Identity,
    tls::{Opening, Stream, Tunnel},
};
use futures::{StreamExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder,
    connection_limits::{self, ConnectionLimits},
    core::transport::ListenerId,
    dcutr, identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, relay,
    swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};
use libp2p_stream::Control;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{
    compat::{Compat, FuturesAsyncReadCompatExt as _},
    sync::CancellationToken,
};

use crate::{IDLE, PROTOCOL, WORKER, addresses, admission::Admission};

/// Both ends dial each other this long before they make do with the circuit: a first SYN that came too early is sent
/// again after one second.
const PUNCH: Duration = Duration::from_millis(1_800);
/// A node that cannot be reached within this time is not there.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);
/// A head that does not answer within this time is asked again.
const ENTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the head was lost or let nobody in; doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(15);
/// Connections of one node, and handshakes under way: whoever reaches the port may begin one.
const CONNECTIONS_PER_NODE_MAX: u32 = 8;
const PENDING_MAX: u32 = 64;
/// Pause after a head said that it has no mesh.
const NO_MESH: Duration = Duration::from_secs(300);

/// The addresses of the relay, and who that is.
pub type Entered = Result<(Vec<SocketAddr>, NodeId), Error>;

/// Asks the head to let this node in.
pub type Enter = Arc<dyn Fn() -> BoxFuture<'static, Entered> + Send + Sync>;

/// Streams that others open to this node.
pub type Inbound = mpsc::Receiver<(NodeId, Compat<libp2p::Stream>)>;

#[derive(NetworkBehaviour)]
struct Behaviour {
    // First, so that nothing else hears of strangers.
    admission: Admission,
    limits: connection_limits::Behaviour,
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
    /// A stream opened now goes over a connection that stays: any may be picked, so none must be about to close.
    fn is_ready(&self) -> bool {
        match self.direct.is_empty() {
            true => self.settled && !self.relayed.is_empty(),
            false => self.used || self.relayed.is_empty(),
        }
    }

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
    enter: Enter,
    /// Keeps a reservation, so that others get through to this node.
    keeps: bool,
    /// The head, and where circuits through it begin once it is connected.
    relay: Option<(PeerId, Option<Multiaddr>)>,
    /// The reservation.
    circuit: Option<ListenerId>,
    /// To enter is the next thing to do.
    wanted: bool,
    pause: Duration,
}

/// A member's end of the mesh, before it listens.
fn swarm(key: Keypair) -> Result<Swarm<Behaviour>, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to start the mesh: {e}"));
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_NODE_MAX));
    let builder = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .map_err(|e| failed(&e))?
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|e| failed(&e))?
        .with_behaviour(|key, relay| Behaviour {
            admission: Admission::default(),
            limits: connection_limits::Behaviour::new(limits),
            identify: identify::Behaviour::new(identify::Config::new(PROTOCOL.into(), key.public())),
            relay,
            dcutr: dcutr::Behaviour::new(key.public().to_peer_id()),
            stream: libp2p_stream::Behaviour::new(),
        })
        .map_err(|e| failed(&e))?;
    Ok(builder.with_swarm_config(|c| c.with_idle_connection_timeout(IDLE)).build())
}

impl Member {
    /// Enters the mesh and stays in it until `shutdown`, through any number of losses of the head. Gives what others
    /// open to here.
    pub fn join(identity: &Identity, enter: Enter, shutdown: CancellationToken) -> Result<(Self, Inbound), Error> {
        Self::start(identity.keypair().clone(), enter, true, shutdown)
    }

    fn start(key: Keypair, enter: Enter, keeps: bool, shutdown: CancellationToken) -> Result<(Self, Inbound), Error> {
        let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to start the mesh: {e}"));
        let mut swarm = swarm(key)?;
        // Dials leave from the port that is listened on, so what the head sees of them is where others punch.
        swarm.listen_on(addresses::tcp((Ipv4Addr::UNSPECIFIED, 0).into())).map_err(|e| failed(&e))?;
        // Not every machine speaks it.
        let _ = swarm.listen_on(addresses::tcp((Ipv6Addr::UNSPECIFIED, 0).into()));
        let mut streams = swarm.behaviour().stream.new_control();
        let (commands, rx) = mpsc::channel(256);
        let (inbound, taken) = mpsc::channel(256);
        if keeps {
            let mut accepted = streams.accept(WORKER).map_err(|e| failed(&e))?;
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
        }
        let running = Running {
            swarm,
            commands: commands.downgrade(),
            peers: HashMap::new(),
            enter,
            keeps,
            relay: None,
            circuit: None,
            wanted: false,
            pause: Duration::ZERO,
        };
        tokio::spawn(running.run(rx, shutdown));
        Ok((Self { commands, streams }, taken))
    }
}

/// Somebody who opens streams and takes none, as a driver or a tool does. It enters the mesh when it first has to.
pub struct Visitor {
    key: Keypair,
    enter: Enter,
    member: OnceLock<Result<Member, Error>>,
}

impl Visitor {
    /// As itself: `enter` is given the id that it has.
    pub fn new(enter: impl Fn(NodeId) -> BoxFuture<'static, Entered> + Send + Sync + 'static) -> Self {
        let key = Keypair::generate_ed25519();
        let node = addresses::node(&key.public().to_peer_id());
        Self { key, enter: Arc::new(move || enter(node.clone())), member: OnceLock::new() }
    }
}

impl Tunnel for Visitor {
    fn open(&self, node: &NodeId) -> Opening {
        let started = self.member.get_or_init(|| {
            // It ends with the last who has a sender of its commands.
            Member::start(self.key.clone(), self.enter.clone(), false, CancellationToken::new())
                .map(|(member, _)| member)
        });
        match started {
            Ok(member) => member.open(node),
            Err(error) => {
                let error = io::Error::other(error.message.clone());
                Box::pin(async move { Err(error) })
            }
        }
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
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        // At the head, in this order: asked to be let in, let in, dialled; each may end with a pause.
        let mut entering = self.keeps.then(|| self.again());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                entered = async { entering.as_mut().expect("looked at before").await }, if entering.is_some() => {
                    entering = None;
                    if let Err(error) = entered.and_then(|(at, relay)| self.dial_relay(&at, &relay)) {
                        if error.kind == ErrorKind::FailedPrecondition {
                            self.pause = NO_MESH;
                        }
                        self.outside(&error.message);
                    }
                }
                event = self.swarm.select_next_some() => self.take(event),
            }
            if entering.is_none() && std::mem::take(&mut self.wanted) {
                entering = Some(self.again());
            }
        }
    }

    /// Enters once more; later, when it went wrong before.
    fn again(&mut self) -> BoxFuture<'static, Entered> {
        let (enter, wait) = (self.enter.clone(), self.pause);
        self.pause = if wait.is_zero() { RETRY_FIRST } else { (wait * 2).min(RETRY_LAST) };
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            let late = |_| Error::unavailable("the head does not answer");
            tokio::time::timeout(ENTER_TIMEOUT, enter()).await.map_err(late)?
        })
    }

    fn dial_relay(&mut self, at: &[SocketAddr], relay: &NodeId) -> Result<(), Error> {
        let peer = addresses::peer(relay)?;
        self.relay = Some((peer, None));
        let dial = DialOpts::peer_id(peer).addresses(at.iter().map(|at| addresses::tcp(*at)).collect());
        self.swarm.dial(dial.build()).map_err(|e| Error::unavailable(e.to_string()))
    }

    /// The head let this node in and is connected.
    fn inside(&mut self, relay: PeerId, at: &Multiaddr) {
        let circuit = at.clone().with_p2p(relay).unwrap_or_else(|at| at).with(Protocol::P2pCircuit);
        if self.keeps && self.circuit.is_none() {
            match self.swarm.listen_on(circuit.clone()) {
                Ok(listener) => self.circuit = Some(listener),
                Err(error) => tracing::warn!(%error, "others do not reach this node through the head"),
            }
        }
        self.relay = Some((relay, Some(circuit)));
        self.pause = Duration::ZERO;
        let waiting: Vec<PeerId> = self.peers.iter().filter(|(_, p)| !p.waiting.is_empty()).map(|(p, _)| *p).collect();
        waiting.into_iter().for_each(|peer| self.dial(peer));
    }

    /// The head is not connected, or let nobody in.
    fn outside(&mut self, why: &str) {
        tracing::debug!(why, "not in the mesh");
        self.relay = None;
        self.wanted = self.keeps;
        self.circuit = None;
        self.peers.retain(|_, peer| {
            let connected = !peer.direct.is_empty() || !peer.relayed.is_empty();
            if !connected {
                peer.answer(&Err(format!("the head did not bring the two together: {why}")));
            }
            connected
        });
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Reach(peer, answer) => {
                let known = self.peers.entry(peer).or_default();
                if known.is_ready() {
                    known.used |= known.direct.is_empty();
                    let _ = answer.send(Ok(()));
                    return;
                }
                // Who gave up does not keep others from trying.
                known.waiting.retain(|waiting| !waiting.is_closed());
                known.waiting.push(answer);
                if known.direct.is_empty() && known.relayed.is_empty() && known.waiting.len() == 1 {
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

    /// Opens a circuit, or waits until the head can be asked for one.
    fn dial(&mut self, peer: PeerId) {
        let Some((_, Some(circuit))) = &self.relay else {
            self.wanted |= self.relay.is_none();
            return;
        };
        let dial = DialOpts::peer_id(peer).addresses(vec![circuit.clone().with(Protocol::P2p(peer))]);
        match self.swarm.dial(dial.build()) {
            // Under way already.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                if let Some(mut known) = self.peers.remove(&peer) {
                    known.answer(&Err(error.to_string()));
                }
            }
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

    fn is_relay(&self, peer: &PeerId) -> bool {
        self.relay.as_ref().is_some_and(|(relay, _)| relay == peer)
    }

    fn take(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                if self.is_relay(&peer_id) {
                    self.inside(peer_id, endpoint.get_remote_address());
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
                    if known.is_ready() {
                        known.answer(&Ok(()));
                    } else {
                        for circuit in &known.relayed {
                            self.swarm.close_connection(*circuit);
                        }
                    }
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } if self.is_relay(&peer_id) => {
                self.outside("the connection to the head was closed");
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } if self.is_relay(&peer) => {
                self.outside(&error.to_string());
            }
            // Without a reservation the connection is of no use; a new one begins with asking to be let in.
            SwarmEvent::ListenerClosed { listener_id, .. } if self.circuit == Some(listener_id) => {
                self.circuit = None;
                if let Some((relay, _)) = self.relay {
                    let _ = self.swarm.disconnect_peer_id(relay);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Relay(relay::client::Event::ReservationReqAccepted {
                renewal: false,
                ..
            })) => tracing::info!("others reach this node through the head"),
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                if let Some(known) = self.peers.get_mut(&peer_id) {
                    known.direct.remove(&connection_id);
                    known.relayed.remove(&connection_id);
                    if num_established == 0 {
                        known.answer(&Err("the connection was closed".to_owned()));
                        self.peers.remove(&peer_id);
                    } else if known.is_ready() {
                        known.answer(&Ok(()));
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

#[cfg(test)]
mod tests {
    use libp2p::swarm::dial_opts::PeerCondition;

    use super::*;

    /// The address that a swarm listens on.
    async fn listening(swarm: &mut Swarm<Behaviour>) -> Multiaddr {
        swarm.listen_on(addresses::tcp((Ipv4Addr::LOCALHOST, 0).into())).unwrap();
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address;
            }
        }
    }

    /// What comes of a direct connection to `own`, as that sees it.
    async fn dialled(own: &mut Swarm<Behaviour>, by: &mut Swarm<Behaviour>, at: &Multiaddr) -> Result<(), String> {
        let to = DialOpts::peer_id(*own.local_peer_id()).addresses(vec![at.clone()]);
        by.dial(to.condition(PeerCondition::Always).allocate_new_port().build()).unwrap();
        loop {
            tokio::select! {
                event = own.select_next_some() => match event {
                    SwarmEvent::ConnectionEstablished { endpoint, .. } if endpoint.is_listener() => return Ok(()),
                    SwarmEvent::IncomingConnectionError { error, .. } => return Err(format!("{error:?}")),
                    _ => {}
                },
                _ = by.select_next_some() => {}
            }
        }
    }

    #[tokio::test]
    async fn strangers_get_no_connection_and_those_who_are_known_a_second_one() {
        let [mut own, mut stranger, mut known] = std::array::from_fn(|_| swarm(Keypair::generate_ed25519()).unwrap());
        let at = listening(&mut own).await;
        let refused = dialled(&mut own, &mut stranger, &at).await.unwrap_err();
        assert!(refused.contains("Stranger"), "{refused}");
        // This node dials it itself, as it does with whom the head brings it together; the other end knows of that.
        known.behaviour_mut().admission.expect(*own.local_peer_id());
        let there = listening(&mut known).await;
        own.dial(DialOpts::peer_id(*known.local_peer_id()).addresses(vec![there]).build()).unwrap();
        loop {
            tokio::select! {
                event = own.select_next_some() => {
                    if matches!(event, SwarmEvent::ConnectionEstablished { .. }) {
                        break;
                    }
                }
                _ = known.select_next_some() => {}
            }
        }
        dialled(&mut own, &mut known, &at).await.unwrap();
    }
}
