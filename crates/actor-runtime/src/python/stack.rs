//! The Python stacks of a process, which it prints itself at a signal, whatever it is doing.

use std::{path::Path, time::Duration};

use covey_domain::Error;

/// Bytes of the stacks that are given, at most.
const STACK_BYTES_MAX: usize = 1 << 20;
/// How often, and how long each time, it is looked whether a process has printed its stacks.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// Asks process `pid` for its stacks and reads them from what it prints.
pub(crate) async fn stack(pid: u32, log: &Path) -> Result<Vec<u8>, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::internal(format!("failed to ask process {pid}: {e}"));
    let length = || std::fs::metadata(log).map_or(0, |about| about.len());
    let before = length();
    let process = rustix::process::Pid::from_raw(pid as i32).ok_or_else(|| failed(&"it has no id"))?;
    rustix::process::kill_process(process, rustix::process::Signal::USR1).map_err(|e| failed(&e))?;
    let mut last = before;
    for _ in 0..LOOKS {
        tokio::time::sleep(PAUSE).await;
        let now = length();
        if now > before && now == last {
            break;
        }
        last = now;
    }
    let read = crate::output::read(log, before, STACK_BYTES_MAX);
    read.map(|(bytes, _)| crate::output::plain(&bytes)).map_err(|e| failed(&e))
}
