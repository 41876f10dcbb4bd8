//! Heads on the local network, by mDNS.

use std::{collections::HashSet, net::SocketAddr, pin::pin, time::Duration};

use covey_domain::Error;
use covey_node::tls::{Pin, PinnedAddress, Tls, dial};
use futures::{Stream, StreamExt as _};
use libp2p::{
    SwarmBuilder, Transport as _,
    core::{muxing::StreamMuxerBox, transport::dummy::DummyTransport},
    mdns,
    swarm::SwarmEvent,
};

use crate::addresses::socket;

/// Nothing found for this long: say so, and ask those again who did not answer.
const HINT: Duration = Duration::from_secs(10);
/// Who was found and does not answer within this time is not the head.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// The head of the cluster with this authority, wherever on the local network it is; however long that takes.
pub async fn discover(pin: Pin) -> Result<PinnedAddress, Error> {
    let mut found = pin!(look()?);
    let mut tried = HashSet::new();
    tracing::info!("looking for the head on the local network");
    loop {
        match tokio::time::timeout(HINT, found.next()).await {
            Ok(Some(at)) if tried.insert(at) => {
                let head = PinnedAddress { address: at.to_string(), pin: Some(pin) };
                let tls = Tls::head(pin, None)?;
                match dial(&head.address, Some(tls), |e| e.connect_timeout(DIAL_TIMEOUT)).await {
                    Ok(_) => return Ok(head),
                    Err(error) => tracing::info!(address = head.address, %error, "found somebody else"),
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err(Error::unavailable("looking around on the network ended")),
            Err(_) => {
                tried.clear();
                tracing::warn!(
                    "no head found yet; does it listen beyond loopback, and does the network carry multicast?"
                );
            }
        }
    }
}

/// Addresses at which somebody answers who may be a head. Looks as long as it is read.
fn look() -> Result<impl Stream<Item = SocketAddr> + Send, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::unavailable(format!("failed to look around on the network: {e}"));
    let behaviour = |key: &libp2p::identity::Keypair| {
        let config = mdns::Config { query_interval: HINT, ..mdns::Config::default() };
        mdns::tokio::Behaviour::new(config, key.public().to_peer_id()).map_err(Into::into)
    };
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_other_transport(|_| DummyTransport::<(libp2p::PeerId, StreamMuxerBox)>::new().boxed())
        .map_err(|e| failed(&e))?
        .with_behaviour(behaviour)
        .map_err(|e| failed(&e))?
        .build();
    let found = swarm.filter_map(|event| async move {
        match event {
            SwarmEvent::Behaviour(mdns::Event::Discovered(found)) => Some(found),
            _ => None,
        }
    });
    Ok(found.flat_map(|found| {
        let sockets: Vec<SocketAddr> = found.iter().filter_map(|(_, address)| socket(address)).collect();
        futures::stream::iter(sockets)
    }))
}
