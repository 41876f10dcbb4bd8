//! The worker's own port: callers that know where an actor lives speak to it here, without the head.
//!
//! Nobody gets in without the secret that this worker made at its start and told the head alone.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use covey_actor_runtime::{Objects, Runtime};
use covey_client::objects;
use covey_domain::{Error, ErrorKind, caps};
use covey_mesh::Inbound;
use covey_node::{Identity, tls::Port};
use covey_proto::{
    Joiner, Weaver, to_status,
    v1::{
        CallBatch, Empty, LogsChunk, LogsRequest, ObjectChunk, ObjectName, UsageReply, WorkerPort,
        worker_server::{Worker, WorkerServer},
    },
};
use futures::stream::BoxStream;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::Config;

/// How often a log that is followed is looked at.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of one chunk of an object.
const CHUNK: usize = 1 << 20;
/// HTTP/2 flow control, bytes: of one stream, of a connection.
const WINDOWS: (u32, u32) = (8 << 20, 16 << 20);
/// Frames put into one message.
const BATCH_MAX: usize = 1_024;

struct Service {
    runtime: Runtime,
    objects: Objects,
    /// Of this worker.
    name: String,
    secret: String,
    shutdown: CancellationToken,
}

/// Serves until `shutdown` on `at`, by TLS alone once this worker has a certificate, and whoever comes through the mesh.
pub(crate) async fn serve(
    at: Option<SocketAddr>,
    mesh: Option<Inbound>,
    config: &Config,
    identity: &Identity,
    (name, runtime, objects): (String, Runtime, Objects),
    shutdown: CancellationToken,
) -> Result<Option<WorkerPort>, Error> {
    if at.is_none() && mesh.is_none() {
        return Ok(None);
    }
    let secret: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    let service =
        WorkerServer::new(Service { runtime, objects, name, secret: secret.clone(), shutdown: shutdown.clone() })
            .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
    // Beyond this machine nobody is spoken to in the open, whatever the head does.
    let closed = config.head.pin.is_some() || at.is_some_and(|at| !at.ip().is_loopback());
    let tls = if closed { identity.server_tls()?.map(Arc::new) } else { None };
    if closed && tls.is_none() {
        return Err(Error::internal("a worker without a certificate listens on this machine alone"));
    }
    let port = Port { plaintext: tls.is_none(), tls, mesh: None, windows: WINDOWS };
    let app = tonic::service::Routes::new(service).prepare();
    let pin = identity.pin().filter(|_| closed).map(|pin| pin.to_string()).unwrap_or_default();
    let mut told = WorkerPort { address: String::new(), secret, pin, mesh: mesh.is_some() };
    if let Some(mut inbound) = mesh {
        let (port, app, shutdown) = (port.clone(), app.clone(), shutdown.clone());
        tokio::spawn(async move {
            while let Some((node, stream)) = inbound.recv().await {
                tracing::debug!(%node, "a stream came through the mesh");
                tokio::spawn(covey_node::tls::serve_stream(stream, port.clone(), app.clone(), shutdown.clone()));
            }
        });
    }
    if let Some(at) = at {
        let listener = covey_node::listen::bind(at).await?;
        let bound = listener.local_addr().map_err(|e| Error::internal(e.to_string()))?;
        let host = match &config.advertise {
            Some(host) => host.clone(),
            None => covey_node::home::reachable(bound.ip()).unwrap_or(Ipv4Addr::LOCALHOST.into()).to_string(),
        };
        told.address = covey_node::home::with_port(&host, bound.port());
        tokio::spawn(covey_node::tls::serve(listener, port, app, shutdown));
    }
    Ok(Some(told))
}

impl Service {
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let shown = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let shown = shown.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
        if covey_domain::secret::same(shown, &self.secret) {
            return Ok(());
        }
        Err(to_status(&Error::new(ErrorKind::Unauthenticated, "this is not the worker's secret")))
    }
}

impl Service {
    /// Lines of a driver's actors as they are printed, until it goes or the worker does.
    fn printed(&self, request: &LogsRequest) -> BoxStream<'static, Result<LogsChunk, Status>> {
        let mut printed = self.runtime.printed(&request.session, request.fresh);
        let (node, shutdown) = (self.name.clone(), self.shutdown.clone());
        Box::pin(async_stream::stream! {
            while !shutdown.is_cancelled() {
                let (lines, left_out) = printed.read();
                if !lines.is_empty() || left_out > 0 {
                    yield Ok(LogsChunk { lines, left_out, node: node.clone(), ..LogsChunk::default() });
                }
                if shutdown.run_until_cancelled(printed.more()).await.is_none() {
                    return;
                }
            }
        })
    }
}

/// Writes an object's chunks to `draft` and compares what came with its name.
async fn take(
    first: ObjectChunk,
    mut chunks: Streaming<ObjectChunk>,
    draft: &std::path::Path,
    digest: &str,
) -> Result<(), Status> {
    let mut file = tokio::fs::File::create_new(draft).await?;
    file.write_all(&first.body).await?;
    while let Some(chunk) = chunks.message().await? {
        file.write_all(&chunk.body).await?;
    }
    file.flush().await?;
    let path = draft.to_owned();
    let found = tokio::task::spawn_blocking(move || objects::digest(&path)).await;
    if found.is_ok_and(|found| found.is_ok_and(|found| found == digest)) {
        return Ok(());
    }
    Err(to_status(&Error::invalid("the object does not have the digest that names it")))
}

#[tonic::async_trait]
impl Worker for Service {
    type CallsStream = BoxStream<'static, Result<CallBatch, Status>>;
    type ReadLogsStream = BoxStream<'static, Result<LogsChunk, Status>>;
    type GetObjectStream = BoxStream<'static, Result<ObjectChunk, Status>>;

    async fn put_object(&self, request: Request<Streaming<ObjectChunk>>) -> Result<Response<Empty>, Status> {
        self.check(&request)?;
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.unwrap_or_default();
        let name = first.name.clone().unwrap_or_default();
        self.objects.check_room().map_err(|e| to_status(&e))?;
        let draft = self.objects.draft(&name.session).map_err(|e| to_status(&e))?;
        let taken = take(first, chunks, &draft, &name.digest).await;
        let kept = taken
            .and_then(|()| self.objects.keep(&draft, &name.session, &name.digest).map(drop).map_err(|e| to_status(&e)));
        if kept.is_err() {
            let _ = tokio::fs::remove_file(&draft).await;
        }
        kept.map(|()| Response::new(Empty {}))
    }

    async fn read_logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        self.check(&request)?;
        let request = request.into_inner();
        if !request.session.is_empty() {
            return Ok(Response::new(self.printed(&request)));
        }
        let mut offset = self.runtime.log_tail(&request.actor, request.tail_bytes).map_err(|e| to_status(&e))?;
        let (runtime, shutdown) = (self.runtime.clone(), self.shutdown.clone());
        let chunks = async_stream::stream! {
            loop {
                // One that is over prints nothing that is not there by then.
                let follow = request.follow && !shutdown.is_cancelled() && runtime.prints(&request.actor);
                match runtime.log(&request.actor, offset) {
                    Ok((text, next)) if next != offset => {
                        offset = next;
                        if !text.is_empty() {
                            yield Ok(LogsChunk { text: text.into(), ..LogsChunk::default() });
                        }
                    }
                    Ok(_) if follow => tokio::time::sleep(FOLLOW_PAUSE).await,
                    Ok(_) => return,
                    Err(error) => {
                        yield Err(to_status(&error));
                        return;
                    }
                }
            }
        };
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn get_stack(&self, request: Request<LogsRequest>) -> Result<Response<LogsChunk>, Status> {
        self.check(&request)?;
        let text = self.runtime.stack(&request.into_inner().actor).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(LogsChunk { text: text.into(), ..LogsChunk::default() }))
    }

    async fn get_usage(&self, request: Request<Empty>) -> Result<Response<UsageReply>, Status> {
        self.check(&request)?;
        Ok(Response::new(self.runtime.usage()))
    }

    async fn get_object(&self, request: Request<ObjectName>) -> Result<Response<Self::GetObjectStream>, Status> {
        self.check(&request)?;
        let name = request.into_inner();
        let found = self.objects.find(&name.session, &name.digest).map_err(|e| to_status(&e))?;
        let path = found.ok_or_else(|| to_status(&Error::not_found("object", &name.digest)))?;
        let mut file = tokio::fs::File::open(path).await?;
        let chunks = async_stream::stream! {
            loop {
                let mut body = vec![0; CHUNK];
                match file.read(&mut body).await {
                    Ok(0) => return,
                    Ok(read) => {
                        body.truncate(read);
                        yield Ok(ObjectChunk { name: None, body: body.into() });
                    }
                    Err(error) => {
                        yield Err(error.into());
                        return;
                    }
                }
            }
        };
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn calls(&self, request: Request<Streaming<CallBatch>>) -> Result<Response<Self::CallsStream>, Status> {
        self.check(&request)?;
        let mut stream = request.into_inner();
        #[expect(
            clippy::disallowed_methods,
            reason = "answers to the calls that a client has open, a window each; a client that takes nothing is reset"
        )]
        let (tx, mut rx) = mpsc::unbounded_channel();
        let lane = self.runtime.lane(tx);
        tokio::spawn(async move {
            let mut joiner = Joiner::default();
            while let Ok(Some(batch)) = stream.message().await {
                match joiner.join(batch.frames) {
                    Ok(frames) => frames.into_iter().for_each(|frame| lane.take(frame)),
                    Err(error) => return tracing::warn!(%error, "a caller's stream was given up"),
                }
            }
        });
        let shutdown = self.shutdown.clone();
        let answers = async_stream::stream! {
            let (mut frames, mut weaver) = (Vec::new(), Weaver::default());
            loop {
                while let Some(batch) = weaver.message() {
                    yield Ok(batch);
                    // Small answers that came meanwhile go between the pieces of a large one.
                    while let Ok(frame) = rx.try_recv() {
                        weaver.push(frame);
                    }
                }
                let more = tokio::select! {
                    biased;
                    n = rx.recv_many(&mut frames, BATCH_MAX) => n,
                    () = shutdown.cancelled() => 0,
                };
                if more == 0 {
                    return;
                }
                weaver.extend(&mut frames);
            }
        };
        Ok(Response::new(Box::pin(answers)))
    }
}
