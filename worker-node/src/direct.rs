//! The worker's own port: callers that know where an actor lives speak to it here, without the head.
//!
//! Nobody gets in without the secret that this worker made at its start and told the head alone.

use std::{net::SocketAddr, time::Duration};

use covey_actor_runtime::Runtime;
use covey_domain::{Error, ErrorKind, caps};
use covey_proto::{
    to_status,
    v1::{
        CallBatch,
        worker_server::{Worker, WorkerServer},
    },
};
use futures::stream::BoxStream;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Frames put into one message.
const BATCH_MAX: usize = 1_024;

/// Where callers reach this worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Direct {
    /// `host:port`; empty = only through the head.
    pub address: String,
    /// What they must show.
    pub secret: String,
}

struct Service {
    runtime: Runtime,
    secret: String,
    shutdown: CancellationToken,
}

/// Listens on `at` and serves until `shutdown`; `advertise` is the host that callers are told.
pub(crate) async fn serve(
    at: SocketAddr,
    advertise: Option<String>,
    runtime: Runtime,
    shutdown: CancellationToken,
) -> Result<Direct, Error> {
    let listener = TcpListener::bind(at)
        .await
        .map_err(|e| Error::new(ErrorKind::AlreadyExists, format!("failed to listen on `{at}`: {e}")))?;
    let bound = listener.local_addr().map_err(|e| Error::internal(e.to_string()))?;
    let address = match advertise {
        Some(host) => format!("{host}:{}", bound.port()),
        None => bound.to_string(),
    };
    let secret: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    let service = WorkerServer::new(Service { runtime, secret: secret.clone(), shutdown: shutdown.clone() })
        .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
    let incoming = futures::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    return Some((Ok::<_, std::io::Error>(stream), listener));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to be given back.
                    tracing::warn!(%error, "failed to accept a caller");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    tokio::spawn(async move {
        let server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned());
        if let Err(error) = server.await {
            tracing::error!(%error, "the worker's own port failed");
        }
    });
    Ok(Direct { address, secret })
}

#[tonic::async_trait]
impl Worker for Service {
    type CallsStream = BoxStream<'static, Result<CallBatch, Status>>;

    async fn calls(&self, request: Request<Streaming<CallBatch>>) -> Result<Response<Self::CallsStream>, Status> {
        let shown = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let shown = shown.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
        if !covey_node::auth::same(shown, &self.secret) {
            return Err(to_status(&Error::new(ErrorKind::Unauthenticated, "this is not the worker's secret")));
        }
        let mut stream = request.into_inner();
        let (tx, mut rx) = mpsc::unbounded_channel();
        let lane = self.runtime.lane(tx);
        tokio::spawn(async move {
            while let Ok(Some(batch)) = stream.message().await {
                batch.frames.into_iter().for_each(|frame| lane.take(frame));
            }
        });
        let shutdown = self.shutdown.clone();
        let answers = async_stream::stream! {
            let mut frames = Vec::new();
            loop {
                let more = tokio::select! {
                    biased;
                    n = rx.recv_many(&mut frames, BATCH_MAX) => n,
                    () = shutdown.cancelled() => 0,
                };
                if more == 0 {
                    return;
                }
                for frames in covey_proto::split(std::mem::take(&mut frames)) {
                    yield Ok(CallBatch { frames });
                }
            }
        };
        Ok(Response::new(Box::pin(answers)))
    }
}
