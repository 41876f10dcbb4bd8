//! Ways between nodes that cannot dial each other, by libp2p.
//!
//! A worker behind a NAT has no address that others could dial. It keeps a reservation at the head ([`Relay`]), through
//! which others open a circuit to it; over that circuit both ends agree to dial each other at the same moment, which
//! opens a hole in most NATs (DCUtR), and the direct connection takes the circuit's place. Where that fails the circuit
//! stays. Streams over either carry the same gRPC bytes as a TCP connection would ([`Member`] is a
//! [`Tunnel`](covey_node::tls::Tunnel)), from end to end encrypted by Noise for the very keys that are the node ids.
//!
//! [`discover`] finds heads on the local network.

mod addresses;
mod admission;
mod discover;
mod handed;
mod member;
mod relay;

pub use discover::discover;
pub use member::{Enter, Entered, Inbound, Member, Visitor};
pub use relay::Relay;

use libp2p::StreamProtocol;

/// Streams to a node's own port.
const WORKER: StreamProtocol = StreamProtocol::new("/covey/worker/1");
/// What nodes tell each other that they are.
const PROTOCOL: &str = "/covey/1";
/// A connection that nothing uses is closed after this time.
const IDLE: std::time::Duration = std::time::Duration::from_secs(60);
