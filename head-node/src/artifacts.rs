//! Files that are too large for the log: on their way in, named by tasks, given out, and forgotten with the last task that
//! names them.

use std::{
    collections::HashMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use covey_artifacts::{Artifacts, Error as Lost, Upload};
use covey_domain::{
    Digest, Error, ErrorKind, caps,
    event::{Content, MediaSource},
};
use covey_gateway::ArtifactBody;
use covey_store::Store;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;

use crate::fresh_id;

/// An upload that gets nothing for so long is given up.
const UPLOAD_IDLE: Duration = Duration::from_secs(10 * 60);
/// A file that no task names may be on its way into a message for so long.
const UNUSED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Files that are deleted at once.
const DELETED_AT_ONCE: usize = 16;
/// Somebody who follows a link to where the bytes are does so at once.
const REDIRECT_FOR: Duration = Duration::from_secs(5 * 60);

/// Large files of this cluster.
#[derive(Debug)]
pub(crate) struct Files {
    place: Artifacts,
    store: Arc<Store>,
    /// Held while a file comes or is named; alone while files go, so that none goes that has just come again.
    going: tokio::sync::RwLock<()>,
    uploads: Mutex<HashMap<String, Slot>>,
}

/// None once it is over.
type Open = Arc<tokio::sync::Mutex<Option<Upload>>>;

#[derive(Debug)]
struct Slot {
    upload: Open,
    used: Instant,
}

fn lost(error: Lost) -> Error {
    match error {
        Lost::Digest => Error::invalid(error.to_string()),
        Lost::TooLarge => Error::new(ErrorKind::TooLarge, error.to_string()),
        Lost::NotFound => Error::new(ErrorKind::NotFound, "the file is not in the artifact store any more"),
        Lost::Damaged => {
            tracing::error!("a file of the artifact store is damaged");
            Error::internal(error.to_string()).hint("whoever made it has to make it again")
        }
        Lost::Place(_) | Lost::Store(_) => Error::unavailable(format!("the artifact store failed: {error}")),
    }
}

fn unread(error: covey_store::Error) -> Error {
    Error::internal(format!("failed to read or write what is in the artifact store: {error}"))
}

impl Files {
    pub fn new(place: Artifacts, store: Arc<Store>) -> Self {
        Self { place, store, going: Default::default(), uploads: Mutex::default() }
    }

    /// One piece of a file; gives the upload's name.
    pub async fn put(&self, name: String, digest: &str, body: &[u8], last: bool) -> Result<String, Error> {
        let (name, slot) = self.slot(name, digest)?;
        let mut open = slot.lock().await;
        let Some(upload) = open.as_mut() else {
            return Err(Error::new(ErrorKind::FailedPrecondition, "the upload is over").executed(Some(false)));
        };
        if let Err(error) = upload.write(body).await {
            if let Some(mut upload) = open.take() {
                upload.abort().await;
            }
            self.uploads.lock().remove(&name);
            return Err(lost(error));
        }
        if last && let Some(upload) = open.take() {
            self.uploads.lock().remove(&name);
            let _stays = self.going.read().await;
            let (digest, bytes) = upload.finish().await.map_err(lost)?;
            self.store.keep_artifact(&digest, bytes).await.map_err(unread)?;
        }
        Ok(name)
    }

    fn slot(&self, name: String, digest: &str) -> Result<(String, Open), Error> {
        let mut uploads = self.uploads.lock();
        uploads.retain(|_, slot| slot.used.elapsed() < UPLOAD_IDLE);
        if name.is_empty() {
            if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
                return Err(Error::invalid(format!("`{digest}` is no SHA-256 in hex")));
            }
            if uploads.len() >= caps::ARTIFACT_UPLOADS_MAX {
                let text = format!("{} files are on their way already", caps::ARTIFACT_UPLOADS_MAX);
                return Err(Error::new(ErrorKind::Overloaded, text).executed(Some(false)));
            }
            let name = fresh_id("upload");
            let upload = Arc::new(tokio::sync::Mutex::new(Some(self.place.upload(digest.into()))));
            uploads.insert(name.clone(), Slot { upload: upload.clone(), used: Instant::now() });
            return Ok((name, upload));
        }
        let slot = uploads.get_mut(&name).ok_or_else(|| Error::not_found("upload", &name))?;
        slot.used = Instant::now();
        Ok((name, slot.upload.clone()))
    }

    /// Bytes of a file, and how many it has in all.
    pub async fn read(&self, digest: &str, offset: u64, limit: u64) -> Result<(Bytes, u64), Error> {
        let digest = Digest::from(digest);
        let bytes = self.size(&digest).await?;
        let limit = limit.min(caps::ARTIFACT_CHUNK as u64);
        let range = offset.min(bytes)..offset.saturating_add(limit).min(bytes);
        let pieces = self.place.get(&digest, range).await.map_err(lost)?;
        let pieces: Vec<Bytes> = pieces.try_collect().await.map_err(lost)?;
        Ok((pieces.concat().into(), bytes))
    }

    /// How many bytes a file has.
    pub async fn size(&self, digest: &Digest) -> Result<u64, Error> {
        self.store.artifact(digest).await.map_err(unread)?.ok_or_else(|| Error::not_found("artifact", digest))
    }

    /// A file for the outside: where it is, if others can read it there, else its bytes.
    pub async fn give(&self, digest: &Digest, range: Range<u64>) -> Result<ArtifactBody, Error> {
        if let Some(link) = self.place.link(digest, REDIRECT_FOR).await {
            return Ok(ArtifactBody::Elsewhere(link.map_err(lost)?));
        }
        let bytes = self.place.get(digest, range).await.map_err(lost)?;
        Ok(ArtifactBody::Bytes(bytes.map_err(lost).boxed()))
    }

    /// Puts what is large of a message into the artifact store.
    pub async fn take(&self, content: &mut [Content]) -> Result<(), Error> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        for part in content {
            let Content::File { source, .. } = part else { continue };
            let _stays = self.going.read().await;
            let large = source.is_large();
            match source {
                MediaSource::Inline(text) if large => {
                    let body = STANDARD
                        .decode(text.as_bytes())
                        .map_err(|e| Error::invalid(format!("the bytes of a file are no base64: {e}")))?;
                    let bytes = body.len() as u64;
                    let digest = self.place.put(body.into()).await.map_err(lost)?;
                    self.store.keep_artifact(&digest, bytes).await.map_err(unread)?;
                    *source = MediaSource::Stored { digest, bytes };
                }
                MediaSource::Stored { digest, bytes } => {
                    *bytes = self.size(digest).await?;
                    // Its task does not name it yet.
                    self.store.keep_artifact(digest, *bytes).await.map_err(unread)?;
                }
                MediaSource::Inline(_) | MediaSource::Url(_) => {}
            }
        }
        Ok(())
    }

    /// Forgets some of the files that no task names any more; it is called again until there are none.
    pub async fn purge(&self) -> Result<usize, Error> {
        let _alone = self.going.write().await;
        let gone = self.store.forget_artifacts(UNUSED_FOR).await.map_err(unread)?;
        let count = gone.len();
        let deleted = futures::stream::iter(gone).map(|digest| {
            let place = self.place.clone();
            async move { place.delete(&digest).await }
        });
        let deleted = deleted.buffer_unordered(DELETED_AT_ONCE);
        let failed = deleted.filter_map(|result| async { result.err() }).collect::<Vec<_>>().await;
        if let Some(error) = failed.first() {
            // What is left behind costs room, nothing else.
            tracing::warn!(%error, count = failed.len(), "files that no task names are left in the artifact store");
        }
        Ok(count)
    }
}
