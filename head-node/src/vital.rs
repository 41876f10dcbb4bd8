//! Tasks without which the head is none. Where one panics or ends by itself, and where the owner's loop stands still, the process
//! ends with the reason: a head that answers and does nothing is worse than one that is started again.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

/// How long the owner's loop may stand still.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How often the watchdog looks. It counts its own looks, so that a machine that slept is not taken for a loop that stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Ends the process: exit code 70, an internal error.
pub(crate) fn stop_process(why: &str) -> ! {
    tracing::error!(why, "the head cannot go on; the process ends");
    std::process::exit(70)
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason".to_owned())
}

/// Runs a task that must not end before `shutdown`.
pub(crate) fn spawn(name: &'static str, shutdown: CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        match AssertUnwindSafe(task).catch_unwind().await {
            Ok(()) if shutdown.is_cancelled() => {}
            Ok(()) => stop_process(&format!("`{name}` ended")),
            Err(panic) => stop_process(&format!("`{name}` panicked: {}", text_of(&*panic))),
        }
    });
}

/// Runs what a thread is for; it may end, and may not panic.
pub(crate) fn run_thread(name: &'static str, body: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(body)) {
        stop_process(&format!("`{name}` panicked: {}", text_of(&*panic)));
    }
}

/// Turns of the owner's loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The loop has turned.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn turns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the loop turns within `patience`.
    pub async fn beats(&self, patience: Duration) -> bool {
        let before = self.turns();
        let turned = async {
            while self.turns() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(patience, turned).await.is_ok()
    }

    /// Ends the process when the loop stands still. On a thread, so that it does not need the runtime that may be what stands.
    pub fn watch(&self, shutdown: CancellationToken) -> std::io::Result<()> {
        let pulse = self.clone();
        let watch = move || {
            let mut stalled = Stalled::default();
            while !shutdown.is_cancelled() {
                std::thread::sleep(LOOK_EVERY);
                if stalled.look(pulse.turns()) && !shutdown.is_cancelled() {
                    stop_process(&format!("the owner's loop did not turn for {} s", STALLED_AFTER.as_secs()));
                }
            }
        };
        std::thread::Builder::new().name("covey-watchdog".into()).spawn(watch).map(drop)
    }
}

/// Looks at a counter that should move.
#[derive(Debug, Default)]
struct Stalled {
    last: u64,
    looks: u64,
}

impl Stalled {
    /// Whether it has not moved for [`STALLED_AFTER`], each look counted as [`LOOK_EVERY`] however long ago the last one was.
    fn look(&mut self, turns: u64) -> bool {
        self.looks = if turns == self.last { self.looks + 1 } else { 0 };
        self.last = turns;
        LOOK_EVERY * self.looks as u32 >= STALLED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Which task panics in the process that a test starts.
    const CASE: &str = "COVEY_TEST_VITAL";

    #[test]
    fn a_vital_task_that_panics_or_ends_ends_the_process_with_its_reason() {
        for (case, said) in
            [("task", "`it` panicked: on purpose"), ("end", "`it` ended"), ("thread", "`it` panicked: 7")]
        {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "vital::tests::ends_the_process", "--ignored", "--nocapture"])
                .env(CASE, case)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(70), "{case}: {output:?}");
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(said), "{case}: {text}");
        }
    }

    #[tokio::test]
    #[ignore = "it ends its process; the test above runs it"]
    async fn ends_the_process() {
        let _ = tracing_subscriber::fmt().with_ansi(false).try_init();
        let shutdown = CancellationToken::new();
        match std::env::var(CASE).unwrap_or_default().as_str() {
            "task" => spawn("it", shutdown, async { panic!("on purpose") }),
            "end" => spawn("it", shutdown, async {}),
            _ => run_thread("it", || std::panic::panic_any(format!("{}", 7))),
        }
        std::future::pending::<()>().await;
    }

    #[test]
    fn a_loop_that_stands_is_told_from_a_machine_that_slept() {
        let mut stalled = Stalled::default();
        assert!((1..=3).all(|turn| !stalled.look(turn)), "it turns");
        // However long the machine slept between two looks, they are two.
        assert!((1..60).all(|_| !stalled.look(3)));
        assert!(stalled.look(3));
        assert!(!stalled.look(4));
    }
}
