//! The Python stacks of a process, which it writes itself at a signal, whatever it is doing.
//!
//! They go to a file of their own and not to what the process prints, which is shown to drivers.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, time::Duration};

use covey_domain::Error;
use tokio::sync::Mutex;

/// Bytes of the stacks that are given, at most.
const STACK_BYTES_MAX: u64 = 1 << 20;
/// How often, and how long each time, it is looked whether a process has written its stacks.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// The file of one process; the process appends to it.
#[derive(Debug)]
pub(super) struct Stacks {
    /// Held by who asks: the file has what was asked for last.
    file: Mutex<File>,
}

impl Stacks {
    /// Makes the file anew, for this user alone.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Mutex::new(super::private_file(path)?) })
    }

    /// Asks process `pid` for its stacks and reads them.
    pub async fn ask(&self, pid: u32) -> Result<Vec<u8>, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to ask process {pid}: {e}"));
        let file = self.file.lock().await;
        file.set_len(0).map_err(|e| failed(&e))?;
        let process = rustix::process::Pid::from_raw(pid as i32).ok_or_else(|| failed(&"it has no id"))?;
        rustix::process::kill_process(process, rustix::process::Signal::USR1).map_err(|e| failed(&e))?;
        let length = || file.metadata().map_or(0, |about| about.len());
        let mut last = 0;
        for _ in 0..LOOKS {
            tokio::time::sleep(PAUSE).await;
            let now = length();
            if now > 0 && now == last {
                break;
            }
            last = now;
        }
        let mut text = vec![0; length().min(STACK_BYTES_MAX) as usize];
        file.read_exact_at(&mut text, 0).map_err(|e| failed(&e))?;
        Ok(text)
    }
}
