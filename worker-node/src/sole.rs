//! One process a name: two workers with one identity would both take what is given to it. The head refuses the second one too
//! ([`covey_cluster_core::Head::joined`]); on one machine this tells it at once.

use std::{
    fs::{File, TryLockError},
    io::{self, Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use covey_domain::{Error, ErrorKind};

/// How long an earlier process of the name may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Locks a name for one head; the lock ends with this process, however it ends.
pub(crate) async fn lock(folder: &Path, name: &str, head: &str) -> Result<File, Error> {
    let failed = |e: io::Error| Error::internal(format!("failed to lock the name `{name}`: {e}"));
    covey_node::home::private_dir(folder).map_err(failed)?;
    let head: String = head.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = folder.join(format!("lock-{head}"));
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    let end = Instant::now() + ENDS_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let text = format!("another process of worker `{name}` (pid {}) runs here", pid.trim());
                return Err(Error::new(ErrorKind::AlreadyExists, text).hint("`--name` takes another name"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}
