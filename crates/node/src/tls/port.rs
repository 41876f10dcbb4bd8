//! One port for everything: HTTP/1 and HTTP/2, in the open and by TLS, and libp2p, told apart by the first byte.

use std::{
    convert::Infallible,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use covey_domain::caps;
use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};

use super::{
    limits::{Connections, Counted, Paced, Requests, STALLED},
    offences::{Offences, is_violation, source_of},
    stalled::Streams,
    tunnel::MeshEntry,
};

/// A client that sends no request head, or does not finish its handshake, within this time is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// An HTTP/2 connection without a request open is closed after this time.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// Open requests have this long to end when the port closes.
const DRAIN: Duration = Duration::from_secs(2);
/// Bytes that HTTP/1 holds of one connection, each way.
const HTTP1_BUFFER: usize = 64 << 10;
/// First byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// First byte of a libp2p connection: the length of its `/multistream/1.0.0`.
const MULTISTREAM: u8 = 0x13;
/// What somebody is told who speaks plain HTTP where only TLS is spoken.
const SPEAK_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 35\r\n\r\nthis port speaks TLS: use https://\n";

/// In the extensions of each request that came by TLS: the certificate that the other side showed, if it showed one. Its
/// chain is verified.
#[derive(Clone, Debug)]
pub struct TlsPeer(pub Option<CertificateDer<'static>>);

/// In the extensions of each request of a connection that came by the network: from which address.
#[derive(Clone, Copy, Debug)]
pub struct CameFrom(pub IpAddr);

/// How a port is served.
#[derive(Clone)]
pub struct Port {
    /// TLS, when this node has a certificate.
    pub tls: Option<Arc<ServerConfig>>,
    /// Whether it is spoken to in the open too.
    pub plaintext: bool,
    /// Who takes over connections that speak libp2p.
    pub mesh: Option<MeshEntry>,
    /// HTTP/2 flow control, bytes: of one stream, of a connection.
    pub windows: (u32, u32),
}

/// Serves `app` until `shutdown`, then lets open requests end for two seconds. Requests that came by TLS carry
/// `x-forwarded-proto: https` and a [`TlsPeer`].
pub async fn serve<S, B>(listener: TcpListener, port: Port, app: S, shutdown: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Future + Send + 'static,
    B: hyper::body::Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (tracker, connections) = (TaskTracker::new(), Connections::new());
    let offences = Arc::new(Offences::default());
    loop {
        let (stream, from) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to be given back.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let source = source_of(from.ip());
        if source.is_some_and(|source| offences.bars(source, Instant::now())) {
            refused(from, "its connections broke the protocol");
            continue;
        }
        let Some(place) = connections.enter(from.ip()) else {
            refused(from, "there are too many connections");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (port, stop) = (port.clone(), shutdown.clone());
        let from_ip = CameFrom(from.ip());
        let app = app.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(from_ip);
            request
        });
        let offences = offences.clone();
        tracker.spawn(async move {
            let _place = place;
            let ended = match tokio::time::timeout(HEADER_TIMEOUT, open(stream, &port)).await {
                Ok(Ok(Opened::Plain(stream))) => serve_with(stream, port, app, stop, STALLED).await,
                Ok(Ok(Opened::Mesh)) => Ended::Well,
                Ok(Ok(Opened::Tls(stream))) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
                    let peer = TlsPeer(shown.map(|c| c.clone().into_owned()));
                    let app = app.map_request(move |mut request: Request<Incoming>| {
                        let https = hyper::header::HeaderValue::from_static("https");
                        request.headers_mut().insert("x-forwarded-proto", https);
                        request.extensions_mut().insert(peer.clone());
                        request
                    });
                    serve_with(stream, port, app, stop, STALLED).await
                }
                Ok(Err(why)) => refused(from, &why),
                Err(_) => refused(from, "nothing was said"),
            };
            if let (Ended::Offending, Some(source)) = (ended, source) {
                offences.count(source, Instant::now());
            }
        });
    }
    tracker.close();
    let _ = tokio::time::timeout(DRAIN, tracker.wait()).await;
}

fn refused(from: SocketAddr, why: &str) -> Ended {
    tracing::debug!(%from, why, "a connection was refused");
    Ended::Well
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// In any way but that.
    Well,
    /// By what its client sent, which is not HTTP.
    Offending,
}

enum Opened {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// It was handed over.
    Mesh,
}

async fn open(mut stream: TcpStream, port: &Port) -> Result<Opened, String> {
    let mut first = [0];
    if port.tls.is_some() || port.mesh.is_some() {
        stream.peek(&mut first).await.map_err(|e| e.to_string())?;
    }
    if let (Some(mesh), MULTISTREAM) = (&port.mesh, first[0]) {
        return mesh.connections.try_send(stream).map(|()| Opened::Mesh).map_err(|e| e.to_string());
    }
    let plain = first[0] != TLS_HANDSHAKE;
    match (&port.tls, plain) {
        (Some(tls), false) => match TlsAcceptor::from(tls.clone()).accept(stream).await {
            Ok(stream) => Ok(Opened::Tls(Box::new(stream))),
            Err(error) => Err(error.to_string()),
        },
        _ if port.plaintext => Ok(Opened::Plain(stream)),
        _ => {
            let _ = stream.write_all(SPEAK_TLS).await;
            Err("it does not speak TLS".to_owned())
        }
    }
}

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear which HTTP this is, and gives what was read.
async fn begin<I: AsyncRead + Unpin>(stream: &mut I) -> std::io::Result<(bool, Bytes)> {
    let mut first = BytesMut::with_capacity(PREFACE.len());
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let mut rest = (&mut first).limit(PREFACE.len());
        if stream.read_buf(&mut rest).await? == 0 {
            break;
        }
    }
    Ok((first.starts_with(PREFACE), first.freeze()))
}

/// Serves one connection until its end or `stop`; nothing is asked of it but HTTP. A client has a time for its first request,
/// for each head, between two requests, and to take what it is sent.
pub async fn serve_stream<I, S, B>(stream: I, port: Port, app: S, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: hyper::body::Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let _ = serve_with(stream, port, app, stop, STALLED).await;
}

/// The same, for readers who may take nothing for so long.
async fn serve_with<I, S, B>(mut stream: I, port: Port, app: S, stop: CancellationToken, patience: Duration) -> Ended
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: hyper::body::Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let began = tokio::select! {
        () = stop.cancelled() => return Ended::Well,
        began = tokio::time::timeout(HEADER_TIMEOUT, begin(&mut stream)) => began,
    };
    let Ok(Ok((is_http2, first))) = began else { return Ended::Well };
    let stream = TokioIo::new(Paced::new(stream, first));
    let requests = Requests::new();
    let count = requests.clone();
    let app = tower::service_fn(move |request: Request<Incoming>| {
        let open = count.begin();
        let answer = app.clone().call(request);
        async move { answer.await.map(|response| response.map(|body| Counted::new(body, open))) }
    });
    let mut server = auto::Builder::new(Streams { patience });
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HTTP1_BUFFER);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .initial_stream_window_size(port.windows.0)
        .initial_connection_window_size(port.windows.1)
        .max_header_list_size(caps::HEADER_BYTES_MAX as u32)
        .max_concurrent_streams(caps::HTTP2_STREAMS_MAX)
        .max_local_error_reset_streams(caps::HTTP2_RESETS_MAX);
    let server = if is_http2 { server.http2_only() } else { server.http1_only() };
    let connection = server.serve_connection_with_upgrades(stream, TowerToHyperService::new(app));
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return match ended {
            Err(error) if is_violation(&*error) => Ended::Offending,
            _ => Ended::Well,
        },
        // HTTP/1 has its own clock between two requests.
        () = requests.idle(HEADER_TIMEOUT, IDLE), if is_http2 => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(DRAIN, connection).await;
    Ended::Well
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::{Body, Frame};

    use super::*;
    use crate::tls;

    /// So many pieces of a body.
    struct Pieces(u32, usize);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if self.0 == 0 {
                return Poll::Ready(None);
            }
            self.0 -= 1;
            Poll::Ready(Some(Ok(Frame::data(vec![7; self.1].into()))))
        }
    }

    /// What a client gets of one answer whose window has `window` bytes, and opens it only where `reads`.
    async fn got(window: u32, pieces: (u32, usize), reads: bool) -> Result<usize, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let port = Port { tls: None, plaintext: true, mesh: None, windows: (1 << 20, 1 << 20) };
        let app = tower::service_fn(move |_: Request<Incoming>| async move {
            Ok::<_, Infallible>(Response::new(Pieces(pieces.0, pieces.1)))
        });
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve_with(stream, port, app, CancellationToken::new(), Duration::from_millis(100)).await;
        });
        let mut channel = tls::dial(&address, None, |e| e.initial_stream_window_size(window)).await.unwrap();
        let request = Request::get(format!("http://{address}/")).body(tonic::body::Body::empty()).unwrap();
        let mut body = channel.ready().await.unwrap().call(request).await.map_err(|e| e.to_string())?.into_body();
        let mut bytes = 0;
        if !reads {
            // Longer than its patience, and not for ever.
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            bytes += frame.map_err(|e| format!("{e:?}"))?.into_data().map_or(0, |data| data.len());
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn a_stream_whose_window_stays_closed_is_reset() {
        // Many pieces, a large one, and a window that never opens at all.
        for (window, pieces) in [(16 << 10, (1_000, 1_000)), (16 << 10, (1, 1_000_000)), (1, (1, 1_000_000))] {
            let cut = got(window, pieces, false).await.unwrap_err();
            assert!(cut.contains("CANCEL"), "{window} {pieces:?}: {cut}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_read_is_not() {
        for pieces in [(1_000, 1_000), (1, 1_000_000), (0, 0), (2, 70_000)] {
            let bytes = pieces.0 as usize * pieces.1;
            assert_eq!(got(16 << 10, pieces, true).await, Ok(bytes), "{pieces:?}");
        }
    }

    /// Says something to a port from an address, so many times on a connection each; gives how often the answer was a `200`.
    async fn answered(port: std::net::SocketAddr, from: &str, said: &[u8], times: usize) -> usize {
        let mut answered = 0;
        for _ in 0..times {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
            let Ok(mut stream) = socket.connect(port).await else { continue };
            let mut answer = Vec::new();
            let _ = stream.write_all(said).await;
            let _ = stream.read_to_end(&mut answer).await;
            answered += usize::from(answer.starts_with(b"HTTP/1.1 200"));
        }
        answered
    }

    #[tokio::test]
    async fn an_address_that_breaks_the_protocol_again_and_again_is_closed_to_and_others_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let port = Port { tls: None, plaintext: true, mesh: None, windows: (1 << 20, 1 << 20) };
        let app = tower::service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(Pieces(1, 2))) });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, port, app, stop.clone()));
        let ask = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        // Frames of HTTP/2 that are none, and a head of HTTP/1 that is none.
        let frames = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0xff; 64]].concat();
        for (from, wrong) in [("127.0.0.2", &frames[..]), ("127.0.0.3", b"GET / HTTP/9.9\r\n\r\n")] {
            assert_eq!(answered(address, from, wrong, 10).await, 0);
            assert_eq!(answered(address, from, ask, 1).await, 1, "{from}: some are forgiven");
            assert_eq!(answered(address, from, wrong, 60).await, 0);
            assert_eq!(answered(address, from, ask, 1).await, 0, "{from}: it goes on");
        }
        assert_eq!(answered(address, "127.0.0.4", ask, 60).await, 60, "another is not barred");
        answered(address, "127.0.0.1", &frames, 60).await;
        assert_eq!(answered(address, "127.0.0.1", ask, 1).await, 1, "nor is a proxy here");
        stop.cancel();
        serving.await.unwrap();
    }
}
