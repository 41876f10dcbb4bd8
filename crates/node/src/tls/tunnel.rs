//! Where there is no address to dial: who makes streams to nodes all the same, and how a port hands over connections
//! that belong to it.

use std::{future::Future, io, pin::Pin};

use covey_domain::NodeId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc,
};

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The future of a stream.
pub type Opening = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Makes streams to nodes by their ids. Whoever answers has proved to be that node, and nobody between can read along.
pub trait Tunnel: Send + Sync {
    /// A stream to a node's port.
    fn open(&self, node: &NodeId) -> Opening;
}

/// Connections that may wait to be taken over; more are cut off.
const QUEUE: usize = 64;

/// The end of the mesh that a head's port holds.
#[derive(Clone, Debug)]
pub struct MeshEntry {
    /// Who answers there.
    pub node: NodeId,
    pub(super) connections: mpsc::Sender<TcpStream>,
    admitted: mpsc::Sender<NodeId>,
}

/// The other end: connections that speak libp2p, and who may come in.
#[derive(Debug)]
pub struct MeshSource {
    /// Accepted connections, nothing read from them.
    pub connections: mpsc::Receiver<TcpStream>,
    /// Nodes that showed the cluster's credentials and are about to come.
    pub admitted: mpsc::Receiver<NodeId>,
}

impl MeshEntry {
    /// Both ends.
    pub fn new(node: NodeId) -> (Self, MeshSource) {
        let (connections, taken) = mpsc::channel(QUEUE);
        let (admitted, admissions) = mpsc::channel(QUEUE);
        (Self { node, connections, admitted }, MeshSource { connections: taken, admitted: admissions })
    }

    /// Lets a node in.
    pub fn admit(&self, node: NodeId) {
        // One that is not let in asks again.
        if self.admitted.try_send(node).is_err() {
            tracing::warn!("a node was not let into the mesh: too many wait");
        }
    }
}
