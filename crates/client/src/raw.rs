//! Unary methods by name, requests and replies as bytes: for those who pass on what others encoded.

use bytes::{Buf as _, BufMut as _, Bytes};
use covey_domain::{Error, ErrorKind, caps};
use covey_proto::from_status;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use crate::Client;

/// A head that has not answered a verb after this time will not.
const REPLY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

impl Client {
    /// Calls `method` of service `covey.v1.Covey`; `request` and the reply are encoded messages.
    pub async fn raw(&self, method: &str, request: Bytes) -> Result<Bytes, Error> {
        let path = PathAndQuery::try_from(format!("/covey.v1.Covey/{method}"))
            .map_err(|_| Error::invalid(format!("`{method}` is not the name of a method")))?;
        let mut grpc = Grpc::new(self.service.clone())
            .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
        let work = async {
            grpc.ready().await.map_err(|e| Error::unavailable(format!("the connection to the head broke: {e}")))?;
            let reply = grpc.unary(Request::new(request), path, AsBytes).await.map_err(|s| from_status(&s))?;
            Ok(reply.into_inner())
        };
        tokio::time::timeout(REPLY_TIMEOUT, work).await.unwrap_or_else(|_| {
            let text = format!("the head did not answer {method} within {} s", REPLY_TIMEOUT.as_secs());
            Err(Error::new(ErrorKind::DeadlineExceeded, text))
        })
    }
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
