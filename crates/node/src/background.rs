//! Threads for what takes long: a large request is parsed, answered and written there. The kernel gives them the processor after all
//! who have short work, so that what one caller sends does not stand before what others wait for.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Their niceness: beside a thread of the usual priority one of these has a tenth of a processor, and it is preempted.
const NICE: i32 = 10;

/// A runtime of such threads. They end with it; what runs there is dropped then.
#[derive(Debug)]
pub struct Background(Option<Runtime>);

impl Background {
    /// Starts as many threads as the runtime that this is called on has.
    pub fn start() -> io::Result<Self> {
        let threads = Handle::current().metrics().num_workers();
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("covey-long")
            .on_thread_start(yield_to_others)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn.
    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Background {
    /// Waits for nobody, as it may be dropped on a runtime.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// This thread has a lower priority from now on.
pub fn yield_to_others() {
    // Linux takes the calling thread for the process with this id.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_threads_have_a_lower_priority_and_others_keep_theirs() {
        let before = rustix::process::getpriority_process(None).unwrap();
        let background = Background::start().unwrap();
        let there = background.handle().spawn(async { rustix::process::getpriority_process(None).unwrap() });
        assert_eq!(there.await.unwrap(), (before + NICE).min(NICE.max(before)));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
    }
}
