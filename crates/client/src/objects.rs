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
/// What names of files begin with that are lent to a call.
const LENT: &str = "lent-";
/// Bytes of one chunk.
const CHUNK: usize = 1 << 20;
/// A worker that does not answer a dial within this time is not there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// BLAKE3 of a file, hex.
pub fn digest(path: &Path) -> io::Result<String> {
    Ok(blake3::Hasher::new().update_mmap(path)?.finalize().to_hex().to_string())
}

/// What an object begins with.
const MAGIC: &[u8] = b"COVEYOB1";
/// Parts of an object begin at multiples of this.
const ALIGN: u64 = 64;
/// Parts that an object may have.
const PARTS_MAX: u32 = 1 << 20;

/// A copy of an object's head and pickle, if the file is what its digest names. Whoever can write to the folder can change the
/// file at any time, so what is unpickled is what was compared: this copy, and nothing that is mapped.
pub fn checked(path: &Path, wanted: &str) -> io::Result<Vec<u8>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is not what its digest names");
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    let mut begin = [0; 12];
    file.read_exact_at(&mut begin, 0).map_err(|_| damaged())?;
    let count = u32::from_le_bytes([begin[8], begin[9], begin[10], begin[11]]);
    if !begin.starts_with(MAGIC) || count == 0 || count > PARTS_MAX {
        return Err(damaged());
    }
    let lengths = 12 + 8 * u64::from(count);
    let mut pickle = [0; 8];
    file.read_exact_at(&mut pickle, 12).map_err(|_| damaged())?;
    let end = lengths.next_multiple_of(ALIGN).checked_add(u64::from_le_bytes(pickle)).filter(|end| *end <= size);
    let mut head = vec![0; end.ok_or_else(damaged)? as usize];
    file.read_exact_at(&mut head, 0)?;
    let (mut hasher, mut buffer, mut at) = (blake3::Hasher::new(), vec![0; CHUNK], head.len() as u64);
    hasher.update(&head);
    while at < size {
        let piece = &mut buffer[..(size - at).min(CHUNK as u64) as usize];
        file.read_exact_at(piece, at)?;
        hasher.update(piece);
        at += piece.len() as u64;
    }
    // The lengths were read twice; those that are compared are those that are used.
    if hasher.finalize().to_hex().as_str() != wanted || head[12..20] != pickle || head[..12] != begin {
        return Err(damaged());
    }
    Ok(head)
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
        #[expect(clippy::disallowed_methods, reason = "a number for each piece of a file that is written")]
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

    /// Gets an object from a worker's store into a new file at `path`. What comes is what the digest names, or nothing. What was
    /// lent to a call has no digest: it is data, its pickle travels with the call.
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
        if wanted.starts_with(LENT) {
            return Ok(());
        }
        let own = path.to_owned();
        let found =
            tokio::task::spawn_blocking(move || digest(&own)).await.map_err(io::Error::other).and_then(|found| found);
        if found.map_err(failed)? == wanted {
            return Ok(());
        }
        Err(Error::internal(format!("what worker `{}` gave for object `{wanted}` is something else", store.node)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object of a pickle and a buffer, as Python writes it.
    fn object() -> Vec<u8> {
        let parts: [&[u8]; 2] = [b"a pickle", &[7; 300]];
        let mut all = MAGIC.to_vec();
        all.extend(2_u32.to_le_bytes());
        parts.iter().for_each(|part| all.extend((part.len() as u64).to_le_bytes()));
        for part in parts {
            all.resize(all.len().next_multiple_of(ALIGN as usize), 0);
            all.extend(part);
        }
        all
    }

    #[test]
    fn an_object_with_any_byte_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o");
        let whole = object();
        std::fs::write(&path, &whole).unwrap();
        let name = digest(&path).unwrap();
        assert_eq!(checked(&path, &name).unwrap(), whole[..72], "its head and the pickle");
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x80;
            std::fs::write(&path, changed).unwrap();
            assert!(checked(&path, &name).is_err(), "byte {at}");
        }
        for size in 0..whole.len() {
            std::fs::write(&path, &whole[..size]).unwrap();
            assert!(checked(&path, &name).is_err(), "{size} bytes");
        }
    }
}
