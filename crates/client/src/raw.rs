//! Unary methods by name, requests and replies as bytes: for those who pass on what others encoded.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::{Buf as _, BufMut as _, Bytes};
use covey_domain::{Error, ErrorKind, caps, error::STOPPING};
use covey_proto::{broke_off, from_status};
use prost::Message;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use crate::{
    Client,
    retry::{Backoff, Repeat},
};

/// A head that has not answered a verb after this time will not.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a try came to nothing.
struct Failed {
    error: Error,
    /// The head was not there, or went away meanwhile.
    away: bool,
    /// It cannot have been carried out.
    unsent: bool,
}

impl Client {
    /// Calls `method` of service `covey.v1.Covey`; `request` and the reply are encoded messages.
    ///
    /// A head that is away is waited for, as long as it keeps the sessions of drivers that are ([`caps::SESSION_GRACE_MS`]
    /// unless it says otherwise). Nothing is carried out twice by that: a request whose fate is not known is sent again
    /// only where the same again changes nothing more.
    pub async fn raw(&self, method: &str, request: Bytes) -> Result<Bytes, Error> {
        let path = PathAndQuery::try_from(format!("/covey.v1.Covey/{method}"))
            .map_err(|_| Error::invalid(format!("`{method}` is not the name of a method")))?;
        let (began, mut backoff, repeat) = (Instant::now(), Backoff::default(), Repeat::of(method));
        let mut maybe_done = false;
        loop {
            let failed = match self.try_once(method, path.clone(), request.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            if maybe_done && repeat == Repeat::Ends && failed.error.kind == ErrorKind::NotFound {
                // It ended by the request whose answer was lost.
                return Ok(Bytes::new());
            }
            let again = failed.away && (failed.unsent || repeat != Repeat::Never);
            let patience = Duration::from_millis(self.patience.load(Ordering::Relaxed));
            if !again || began.elapsed() >= patience {
                // A first try that did not reach the head says what one may not know: an address, a missing fingerprint.
                let error = match failed.away && again && !patience.is_zero() {
                    true => covey_call_core::head_away(began.elapsed().as_millis() as u64, Some(&failed.error.message)),
                    false => failed.error,
                };
                let known = failed.unsent && !maybe_done;
                return Err(if failed.away { error.executed(known.then_some(false)) } else { error });
            }
            maybe_done |= !failed.unsent;
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn try_once(&self, method: &str, path: PathAndQuery, request: Bytes) -> Result<Bytes, Failed> {
        let mut grpc = Grpc::new(self.service.clone())
            .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
        let work = async {
            let broke = |e| Error::unavailable(format!("the connection to the head broke: {e}"));
            grpc.ready().await.map_err(|e| Failed { error: broke(e), away: true, unsent: true })?;
            let reply = grpc.unary(Request::new(request), path, AsBytes).await.map_err(|status| {
                let (error, unsent) = (from_status(&status), never_dialled(&status));
                let away = unsent || broke_off(&status) || error.message == STOPPING;
                Failed { error, away, unsent }
            })?;
            Ok(reply.into_inner())
        };
        tokio::time::timeout(REPLY_TIMEOUT, work).await.unwrap_or_else(|_| {
            let text = format!("the head did not answer {method} within {} s", REPLY_TIMEOUT.as_secs());
            Err(Failed { error: Error::new(ErrorKind::DeadlineExceeded, text), away: false, unsent: false })
        })
    }

    /// A verb by its messages.
    pub(crate) async fn verb<R: Message + Default>(&self, method: &str, request: &impl Message) -> Result<R, Error> {
        let reply = self.raw(method, request.encode_to_vec().into()).await?;
        R::decode(reply).map_err(|e| Error::internal(format!("failed to read the reply to {method}: {e}")))
    }
}

/// No connection could be made for it.
fn never_dialled(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[derive(Clone, Copy, Default)]
struct AsBytes;

impl Codec for AsBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
