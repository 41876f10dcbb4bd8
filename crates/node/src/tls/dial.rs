//! Connections to heads and workers, in the open or by TLS.

use std::{io, sync::Arc, time::Duration};

use covey_domain::{Error, NodeId};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{
    HEAD_NAME, Pin, node_name,
    pin::Pinned,
    provider,
    tunnel::{Stream, Tunnel},
};
use crate::Identity;

/// A tunnel gives up before this.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(30);

/// Whom a connection must reach.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    /// The head of the cluster with this authority. A node shows who it is.
    pub fn head(pin: Pin, identity: Option<&Arc<Identity>>) -> Result<Self, Error> {
        Self::new(pin, HEAD_NAME.to_owned(), identity)
    }

    /// A node of that cluster.
    pub fn node(pin: Pin, node: &NodeId, identity: Option<&Arc<Identity>>) -> Result<Self, Error> {
        Self::new(pin, node_name(node), identity)
    }

    fn new(pin: Pin, name: String, identity: Option<&Arc<Identity>>) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::internal(format!("failed to set up TLS: {e}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned::new(pin)));
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity.certificate.clone()),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(name).map_err(|e| Error::invalid(format!("not a node's name: {e}")))?;
        Ok(Self { config: Arc::new(config), name })
    }
}

/// A connection to `address` (`host:port`), with `tls` or in the open; `set` takes the endpoint's times and windows.
pub async fn dial(address: &str, tls: Option<Tls>, set: impl FnOnce(Endpoint) -> Endpoint) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Error::invalid(format!("`{address}` is not an address: {e}")).hint("use host:port"))?;
    let connector = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let at = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
            let tcp = TcpStream::connect(at).await?;
            // A small frame must not wait for the acknowledgement of the one before.
            tcp.set_nodelay(true)?;
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(tcp),
                Some(tls) => Box::new(TlsConnector::from(tls.config).connect(tls.name, tcp).await?),
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    set(endpoint).connect_with_connector(connector).await.map_err(|e| root(&e))
}

/// A connection to a node's port through a tunnel, which is what keeps others from reading along.
pub async fn dial_through(
    tunnel: Arc<dyn Tunnel>,
    node: &NodeId,
    set: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, Error> {
    let node = node.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let opening = tunnel.open(&node);
        async move { opening.await.map(TokioIo::new) }
    });
    // To find a way takes the tunnel longer than a dial; how long it may take is for it to say.
    let endpoint = set(Endpoint::from_static("http://node.covey.internal")).connect_timeout(TUNNEL_TIMEOUT);
    endpoint.connect_with_connector(connector).await.map_err(|e| root(&e))
}

fn root(error: &tonic::transport::Error) -> Error {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        why = inner.to_string();
        source = inner.source();
    }
    Error::unavailable(why)
}
