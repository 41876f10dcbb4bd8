//! The ways to a worker's own port.

use std::sync::Arc;

use covey_domain::Error;
use covey_node::{
    Identity,
    tls::{Tls, Tunnel, dial, dial_through},
};
use covey_proto::v1::WorkerPort;
use tonic::transport::{Channel, Endpoint};

/// What this process has to reach workers with.
#[derive(Clone, Default)]
pub(crate) struct Roads {
    /// Shown to the workers that are dialled, by a node.
    pub identity: Option<Arc<Identity>>,
    /// For those that cannot be dialled.
    pub tunnel: Option<Arc<dyn Tunnel>>,
}

impl Roads {
    /// Dials a worker, at its address or, where that leads nowhere, through the mesh.
    pub async fn dial(&self, node: &str, port: &WorkerPort, set: fn(Endpoint) -> Endpoint) -> Result<Channel, Error> {
        let straight = match port.address.as_str() {
            "" => Err(Error::unavailable("it has no port of its own").hint("start it with --listen")),
            address => {
                let pin = (!port.pin.is_empty()).then(|| port.pin.parse()).transpose()?;
                let tls = pin.map(|pin| Tls::node(pin, &node.into(), self.identity.as_ref())).transpose()?;
                dial(address, tls, set).await
            }
        };
        match (straight, &self.tunnel) {
            (Err(_), Some(tunnel)) if port.mesh => dial_through(tunnel.clone(), &node.into(), set).await,
            (straight, _) => straight,
        }
    }
}
