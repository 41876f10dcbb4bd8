//! Objects: values that many calls share, kept by workers under the digest of their bytes.
//!
//! An object is a file in the folder of a worker's store, in memory where the machine has such a file system. Whoever
//! runs on the same machine maps it; others get it over the worker's own port, once for each worker.

use std::{io, os::unix::fs::FileExt as _, path::Path, sync::mpsc, thread, time::Duration};

use covey_domain::{Error, caps};
use covey_proto::{
    from_status,
    v1::{ObjectChunk, ObjectName, Store, worker_client::WorkerClient},
};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use crate::{Bearer, Client};

/// The verb by which a process asks its worker for an object.
pub const FETCH_OBJECT: &str = "FetchObject";
/// Bytes of one chunk.
const CHUNK: usize = 1 << 20;
/// A worker that does not answer a dial within this time is not there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// BLAKE3 of a file, hex.
pub fn digest(path: &Path) -> io::Result<String> {
    Ok(blake3::Hasher::new().update_mmap(path)?.finalize().to_hex().to_string())
}

/// BLAKE3 of a file that is being written, on a thread of its own.
#[derive(Debug)]
pub struct Growing {
    told: mpsc::Sender<u64>,
    thread: thread::JoinHandle<io::Result<String>>,
}

impl Growing {
    /// Begins with nothing of the file at `path`.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let file = std::fs::File::open(path)?;
        let (told, news) = mpsc::channel();
        let thread = thread::Builder::new().name("covey-digest".into()).spawn(move || {
            let (mut hasher, mut buffer, mut at) = (blake3::Hasher::new(), vec![0; CHUNK], 0_u64);
            while let Ok(upto) = news.recv() {
                while at < upto {
                    let piece = &mut buffer[..(upto - at).min(CHUNK as u64) as usize];
                    file.read_exact_at(piece, at)?;
                    hasher.update(piece);
                    at += piece.len() as u64;
                }
            }
            Ok(hasher.finalize().to_hex().to_string())
        })?;
        Ok(Self { told, thread })
    }

    /// The first `bytes` are there.
    pub fn upto(&self, bytes: u64) {
        // A thread that has failed says so at the end.
        let _ = self.told.send(bytes);
    }

    /// The digest of what is there, hex.
    pub fn end(self) -> io::Result<String> {
        drop(self.told);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread of a digest ended")))
    }
}

/// The machine this process runs on, as far as files are concerned. `COVEY_MACHINE` sets it, where two that look alike
/// share no files.
pub fn machine() -> String {
    if let Ok(set) = std::env::var("COVEY_MACHINE") {
        return set;
    }
    let read = |path: &str| std::fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    // Containers share the boot id but not their mounts.
    let mounts = std::fs::read_link("/proc/self/ns/mnt").map(|p| p.display().to_string()).unwrap_or_default();
    format!("{}/{mounts}", read("/proc/sys/kernel/random/boot_id"))
}

/// A worker's own port, opened with its secret.
pub(crate) type Reached = WorkerClient<InterceptedService<Channel, Bearer>>;

impl Client {
    /// A connection to the port of the worker that keeps this store.
    pub(crate) async fn reach(&self, store: &Store) -> Result<Reached, Error> {
        let unreachable = |e: &dyn std::fmt::Display| {
            Error::unavailable(format!("failed to reach the objects of worker `{}`: {e}", store.node))
        };
        let port = store.port.clone().unwrap_or_default();
        let channel = self.roads.dial(&store.node, &port, |endpoint| endpoint.connect_timeout(DIAL_TIMEOUT)).await;
        let channel = channel.map_err(|e| Error { message: unreachable(&e.message).message, ..e })?;
        let service = InterceptedService::new(channel, Bearer::of(&port.secret)?);
        Ok(WorkerClient::new(service).max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX))
    }

    /// Sends the file at `path` to a worker's store.
    pub async fn put_file(&self, store: &Store, name: ObjectName, path: &Path) -> Result<(), Error> {
        let mut worker = self.reach(store).await?;
        let mut file = tokio::fs::File::open(path).await.map_err(|e| Error::internal(e.to_string()))?;
        let chunks = async_stream::stream! {
            let mut name = Some(name);
            loop {
                let mut body = vec![0; CHUNK];
                let read = file.read(&mut body).await.unwrap_or(0);
                if read == 0 && name.is_none() {
                    return;
                }
                body.truncate(read);
                yield ObjectChunk { name: name.take(), body: body.into() };
            }
        };
        worker.put_object(chunks).await.map_err(|s| from_status(&s))?;
        Ok(())
    }

    /// Gets an object from a worker's store into a new file at `path`. What comes is what the digest names, or nothing: whoever
    /// asked unpickles it.
    pub async fn get_file(&self, store: &Store, name: ObjectName, path: &Path) -> Result<(), Error> {
        let wanted = name.digest.clone();
        let mut worker = self.reach(store).await?;
        let mut chunks = worker.get_object(name).await.map_err(|s| from_status(&s))?.into_inner();
        let failed = |e: io::Error| Error::internal(format!("failed to write `{}`: {e}", path.display()));
        let mut file = tokio::fs::File::create_new(path).await.map_err(failed)?;
        while let Some(chunk) = chunks.next().await {
            file.write_all(&chunk.map_err(|s| from_status(&s))?.body).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        let own = path.to_owned();
        let found =
            tokio::task::spawn_blocking(move || digest(&own)).await.map_err(io::Error::other).and_then(|found| found);
        if found.map_err(failed)? == wanted {
            return Ok(());
        }
        Err(Error::internal(format!("what worker `{}` gave for object `{wanted}` is something else", store.node)))
    }
}
