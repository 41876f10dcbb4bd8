//! Connections that somebody else accepted, as a libp2p transport: the head has one port for everything.

use std::{
    collections::VecDeque,
    future::{Pending, Ready, ready},
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::{
    Multiaddr, Transport,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

use crate::addresses::{socket, tcp};

/// A transport that only listens.
pub(crate) struct Handed {
    connections: mpsc::Receiver<TcpStream>,
    listener: Option<(ListenerId, SocketAddr)>,
    /// Tells this machine's addresses, where the port listens on all of them.
    interfaces: Option<IfWatcher>,
    events: VecDeque<TransportEvent<Ready<io::Result<Compat<TcpStream>>>, io::Error>>,
}

impl Handed {
    pub fn new(connections: mpsc::Receiver<TcpStream>) -> Self {
        Self { connections, listener: None, interfaces: None, events: VecDeque::new() }
    }
}

impl Transport for Handed {
    type Output = Compat<TcpStream>;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Compat<TcpStream>>>;
    type Dial = Pending<io::Result<Compat<TcpStream>>>;

    /// Says on which address the port listens; there can be one.
    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        let Some(at) = socket(&address) else { return Err(TransportError::MultiaddrNotSupported(address)) };
        self.listener = Some((id, at));
        if at.ip().is_unspecified() {
            self.interfaces = Some(IfWatcher::new().map_err(TransportError::Other)?);
        } else {
            self.events.push_back(TransportEvent::NewAddress { listener_id: id, listen_addr: address });
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let ours = self.listener.is_some_and(|(listener, _)| listener == id);
        if ours {
            (self.listener, self.interfaces) = (None, None);
        }
        ours
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let Some((listener_id, at)) = self.listener else { return Poll::Pending };
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        while let Some(interfaces) = &mut self.interfaces {
            let Poll::Ready(event) = interfaces.poll_if_event(cx) else { break };
            let (net, up) = match event {
                Ok(IfEvent::Up(net)) => (net, true),
                Ok(IfEvent::Down(net)) => (net, false),
                Err(error) => return Poll::Ready(TransportEvent::ListenerError { listener_id, error }),
            };
            if net.addr().is_ipv4() != at.is_ipv4() {
                continue;
            }
            let listen_addr = tcp(SocketAddr::new(net.addr(), at.port()));
            return Poll::Ready(match up {
                true => TransportEvent::NewAddress { listener_id, listen_addr },
                false => TransportEvent::AddressExpired { listener_id, listen_addr },
            });
        }
        match self.connections.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.listener = None;
                Poll::Ready(TransportEvent::ListenerClosed { listener_id, reason: Ok(()) })
            }
            Poll::Ready(Some(stream)) => {
                let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?)));
                Poll::Ready(match ends {
                    Ok((local, remote)) => TransportEvent::Incoming {
                        listener_id,
                        upgrade: ready(Ok(stream.compat())),
                        local_addr: tcp(local),
                        send_back_addr: tcp(remote),
                    },
                    Err(error) => TransportEvent::ListenerError { listener_id, error },
                })
            }
        }
    }
}
