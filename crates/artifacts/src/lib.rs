//! Where files are that are too large for the log: a folder, or a bucket that speaks S3. The only door to either.
//!
//! A file lies under the SHA-256 of its bytes. It is there whole or not at all, and in a folder it is on disk when
//! [`Upload::finish`] returns. Who needs which file is not known here.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use covey_domain::{Digest, caps};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    GetOptions, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
    signer::Signer as _,
};
use sha2::{Digest as _, Sha256};

/// Bytes of one part of an upload: at least what S3 wants.
const PART_BYTES: usize = 8 << 20;

/// Why a file cannot be kept or given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such place.
    #[error("`{0}` is no place for artifacts; a folder is, or s3://bucket/prefix")]
    Place(String),
    /// The bytes are not those that were announced.
    #[error("the file is not what its digest says")]
    Digest,
    /// The bytes that are kept are not those that were put there.
    #[error("the file is damaged: its bytes are not those of its digest")]
    Damaged,
    /// More than one file may have.
    #[error("the file is larger than {} bytes", caps::ARTIFACT_BYTES_MAX)]
    TooLarge,
    /// It is not there.
    #[error("there is no such file")]
    NotFound,
    /// The folder or the bucket failed.
    #[error(transparent)]
    Store(object_store::Error),
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound,
            other => Self::Store(other),
        }
    }
}

/// A place for files. Clones share it.
#[derive(Clone, Debug)]
pub struct Artifacts {
    store: Arc<dyn ObjectStore>,
    bucket: Option<Arc<AmazonS3>>,
    folder: Option<Arc<LocalFileSystem>>,
    prefix: Path,
}

/// A file on its way in.
#[derive(Debug)]
pub struct Upload {
    place: Artifacts,
    digest: Digest,
    hash: Sha256,
    bytes: u64,
    waiting: Vec<u8>,
    parts: Option<Box<dyn MultipartUpload>>,
}

impl Artifacts {
    /// `s3://bucket/prefix`, with keys, region and endpoint from the environment (`AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …); else a folder, which is made.
    pub fn open(place: &str) -> Result<Self, Error> {
        Self::open_with(place, std::env::vars())
    }

    /// The same with these variables as the environment.
    pub fn open_with(place: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let Some(rest) = place.strip_prefix("s3://") else {
            if place.contains("://") {
                return Err(Error::Place(place.to_owned()));
            }
            let path = PathBuf::from(place);
            std::fs::create_dir_all(&path)
                .map_err(|e| Error::Store(object_store::Error::Generic { store: "folder", source: Box::new(e) }))?;
            let folder = Arc::new(LocalFileSystem::new_with_prefix(&path)?.with_automatic_cleanup(true));
            return Ok(Self { store: folder.clone(), bucket: None, folder: Some(folder), prefix: Path::default() });
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(Error::Place(place.to_owned()));
        }
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        for (name, value) in variables.into_iter().filter(|(name, _)| name.starts_with("AWS_")) {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                // Who names a plain address means it.
                let plain = matches!(key, AmazonS3ConfigKey::Endpoint) && value.starts_with("http://");
                builder = builder.with_config(key, value);
                builder = if plain { builder.with_allow_http(true) } else { builder };
            }
        }
        let bucket = Arc::new(builder.build()?);
        Ok(Self { store: bucket.clone(), bucket: Some(bucket), folder: None, prefix: Path::from(prefix) })
    }

    /// Two letters of the digest make a folder, so that none is too full.
    fn path(&self, digest: &Digest) -> Path {
        let name = digest.as_str();
        self.prefix.clone().join(name.get(..2).unwrap_or("00")).join(name)
    }

    /// Begins a file whose bytes have this digest (SHA-256, hex).
    pub fn upload(&self, digest: Digest) -> Upload {
        Upload { place: self.clone(), digest, hash: Sha256::new(), bytes: 0, waiting: Vec::new(), parts: None }
    }

    /// Keeps a file that is in memory; gives its digest.
    pub async fn put(&self, body: Bytes) -> Result<Digest, Error> {
        let digest = Digest::of(&body);
        self.write(&digest, body).await?;
        Ok(digest)
    }

    async fn write(&self, digest: &Digest, body: Bytes) -> Result<(), Error> {
        self.store.put(&self.path(digest), PutPayload::from_bytes(body)).await?;
        self.settle(digest).await
    }

    /// A folder's file is on disk after this, with its name. A bucket's was when it was taken.
    async fn settle(&self, digest: &Digest) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let path = folder.path_to_filesystem(&self.path(digest))?;
        let synced = tokio::task::spawn_blocking(move || {
            std::fs::File::open(&path)?.sync_all()?;
            path.ancestors().skip(1).take(2).try_for_each(|folder| std::fs::File::open(folder)?.sync_all())
        });
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            Error::Store(object_store::Error::Generic { store: "folder", source })
        };
        synced.await.map_err(|e| failed(Box::new(e)))?.map_err(|e| failed(Box::new(e)))
    }

    /// Bytes of a file in `range`, as they are read. Where that is all of it, they are compared with the digest, and what is read
    /// last is given only when they are right.
    pub async fn get(
        &self,
        digest: &Digest,
        range: std::ops::Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        if range.is_empty() {
            // Stores refuse to read nothing.
            self.store.head(&self.path(digest)).await?;
            return Ok(futures::stream::empty().boxed());
        }
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let found = self.store.get_opts(&self.path(digest), options).await?;
        let whole = found.range.start == 0 && found.range.end == found.meta.size;
        let bytes = found.into_stream().map(|bytes| bytes.map_err(Error::from)).boxed();
        Ok(if whole { checked(bytes, digest.clone()) } else { bytes })
    }

    /// Where anybody can read a file for so long without asking us, if the place can tell.
    pub async fn link(&self, digest: &Digest, ttl: Duration) -> Option<Result<String, Error>> {
        let bucket = self.bucket.as_ref()?;
        // The standard's own word for reading.
        let url = bucket.signed_url("GET".parse().ok()?, &self.path(digest), ttl).await;
        Some(url.map(|url| url.to_string()).map_err(Error::from))
    }

    /// Forgets a file. Idempotent.
    pub async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        match self.store.delete(&self.path(digest)).await.map_err(Error::from) {
            Err(Error::NotFound) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The same bytes, and an error in the place of the last ones where all are not those of `digest`.
fn checked(
    bytes: BoxStream<'static, Result<Bytes, Error>>,
    digest: Digest,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let state = (bytes, Sha256::new(), None::<Bytes>, digest);
    futures::stream::try_unfold(state, |(mut bytes, mut hash, mut kept, digest)| async move {
        loop {
            match bytes.try_next().await? {
                Some(piece) => {
                    hash.update(&piece);
                    if let Some(last) = kept.replace(piece) {
                        return Ok(Some((last, (bytes, hash, kept, digest))));
                    }
                }
                None if Digest::of_hash(hash.clone()) != digest => return Err(Error::Damaged),
                None => return Ok(kept.take().map(|last| (last, (bytes, hash, None, digest)))),
            }
        }
    })
    .boxed()
}

impl Upload {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// More bytes.
    pub async fn write(&mut self, body: &[u8]) -> Result<(), Error> {
        self.bytes += body.len() as u64;
        if self.bytes > caps::ARTIFACT_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        self.hash.update(body);
        self.waiting.extend_from_slice(body);
        while self.waiting.len() > PART_BYTES {
            let rest = self.waiting.split_off(PART_BYTES);
            let part = std::mem::replace(&mut self.waiting, rest);
            self.part(part).await?;
        }
        Ok(())
    }

    async fn part(&mut self, part: Vec<u8>) -> Result<(), Error> {
        if self.parts.is_none() {
            self.parts = Some(self.place.store.put_multipart(&self.place.path(&self.digest)).await?);
        }
        if let Some(parts) = &mut self.parts {
            parts.put_part(part.into()).await?;
        }
        Ok(())
    }

    /// The file is there whole after this; one whose digest is another is not.
    pub async fn finish(mut self) -> Result<(Digest, u64), Error> {
        if Digest::of_hash(self.hash.clone()) != self.digest {
            self.abort().await;
            return Err(Error::Digest);
        }
        let rest = std::mem::take(&mut self.waiting);
        if self.parts.is_none() {
            self.place.write(&self.digest, rest.into()).await?;
            return Ok((self.digest, self.bytes));
        }
        self.part(rest).await?;
        if let Some(mut parts) = self.parts.take() {
            parts.complete().await?;
        }
        self.place.settle(&self.digest).await?;
        Ok((self.digest, self.bytes))
    }

    /// Nothing is left of it after this.
    pub async fn abort(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            // What is left behind costs room, nothing else.
            let _ = parts.abort().await;
        }
    }
}
