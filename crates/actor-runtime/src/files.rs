//! Files that are too large for a message, to and from the cluster's artifact store.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use covey_domain::{
    Digest, Error, ErrorKind, caps,
    event::{Content, MediaSource},
};
use covey_proto::v1::{GetArtifactReply, GetArtifactRequest, PutArtifactReply, PutArtifactRequest};
use prost::Message;

use crate::Outward;

async fn verb<R: Message + Default>(outward: &dyn Outward, name: &str, request: &impl Message) -> Result<R, Error> {
    let reply = outward.verb(name.to_owned(), request.encode_to_vec().into()).await?;
    R::decode(reply).map_err(|e| Error::internal(format!("failed to read the reply to {name}: {e}")))
}

async fn fetch(outward: &dyn Outward, digest: &Digest, bytes: u64) -> Result<Vec<u8>, Error> {
    if bytes > caps::MESSAGE_BYTES_MAX as u64 {
        let text =
            format!("a file of {bytes} bytes is too large for a message: {} is the limit", caps::MESSAGE_BYTES_MAX);
        return Err(Error::new(ErrorKind::TooLarge, text).hint("send a link"));
    }
    let mut body = Vec::new();
    while (body.len() as u64) < bytes {
        let (digest, offset) = (digest.to_string(), body.len() as u64);
        let request = GetArtifactRequest { digest, offset, limit: caps::ARTIFACT_CHUNK as u64 };
        let reply: GetArtifactReply = verb(outward, "GetArtifact", &request).await?;
        if reply.body.is_empty() {
            return Err(Error::internal("a file of the artifact store is shorter than it was"));
        }
        body.extend_from_slice(&reply.body);
    }
    Ok(body)
}

async fn keep(outward: &dyn Outward, body: &[u8]) -> Result<MediaSource, Error> {
    let digest = Digest::of(body);
    let mut upload = String::new();
    let mut pieces = body.chunks(caps::ARTIFACT_CHUNK).peekable();
    while let Some(piece) = pieces.next() {
        let (body, last) = (piece.to_vec().into(), pieces.peek().is_none());
        let request = PutArtifactRequest { upload, digest: digest.to_string(), body, last };
        upload = verb::<PutArtifactReply>(outward, "PutArtifact", &request).await?.upload;
    }
    Ok(MediaSource::Stored { digest, bytes: body.len() as u64 })
}

/// Content with the bytes of its files, for somebody who cannot look into the artifact store.
pub(crate) async fn with_bytes(outward: &dyn Outward, content: &[Content]) -> Result<Vec<Content>, Error> {
    let mut all = content.to_vec();
    for part in &mut all {
        if let Content::File { source, .. } = part
            && let MediaSource::Stored { digest, bytes } = source
        {
            *source = MediaSource::Inline(STANDARD.encode(fetch(outward, digest, *bytes).await?));
        }
    }
    Ok(all)
}

/// Content whose large files are in the artifact store.
pub(crate) async fn stored(outward: &dyn Outward, mut content: Vec<Content>) -> Result<Vec<Content>, Error> {
    for part in &mut content {
        if let Content::File { source, .. } = part
            && source.is_large()
            && let MediaSource::Inline(text) = source
        {
            let body = STANDARD
                .decode(text.as_bytes())
                .map_err(|e| Error::invalid(format!("the bytes of a file are no base64: {e}")))?;
            *source = keep(outward, &body).await?;
        }
    }
    Ok(content)
}
