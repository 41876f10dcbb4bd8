//! Readers of task logs. A reader has its own cursor and reads recent events from memory, older ones from the store,
//! so a slow reader costs nothing and misses nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use covey_domain::{Envelope, Error, TaskId, TaskRecord, caps};
use covey_store::Store;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::watch;

/// All tasks that have not ended.
#[derive(Clone)]
pub(crate) struct Feed {
    live: Arc<Mutex<HashMap<TaskId, Entry>>>,
    over: Arc<AtomicBool>,
    /// Bytes of the recent events of all tasks.
    held: Arc<AtomicUsize>,
}

enum Entry {
    /// Of before a restart, and nobody has asked for it since: how long its log is.
    Quiet(u64),
    Live(Arc<Live>),
}

struct Live {
    recent: Mutex<Recent>,
    /// Number of the last durable event.
    last: watch::Sender<u64>,
}

/// The last events of a task, as many as the bounds allow; without gaps, and up to the last durable one where there are any.
struct Recent {
    events: VecDeque<Arc<Envelope>>,
    bytes: usize,
    /// As of [`Feed`].
    held: Arc<AtomicUsize>,
}

impl Recent {
    fn extend(&mut self, run: &[Arc<Envelope>]) {
        let more = run.iter().map(|e| e.event.weight()).sum::<usize>();
        self.events.extend(run.iter().cloned());
        self.bytes += more;
        let mut all = self.held.fetch_add(more, Ordering::Relaxed) + more;
        // Who asks for what goes here reads it from the store.
        while (self.events.len() > caps::FEED_EVENTS_MAX
            || self.bytes > caps::FEED_TASK_BYTES_MAX
            || all > caps::FEED_BYTES_MAX)
            && let Some(oldest) = self.events.pop_front()
        {
            let less = oldest.event.weight();
            self.bytes -= less;
            all = self.held.fetch_sub(less, Ordering::Relaxed) - less;
        }
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Feed {
    pub fn new() -> Self {
        Self { live: Arc::default(), over: Arc::default(), held: Arc::default() }
    }

    fn begin(&self, last: u64) -> Arc<Live> {
        let recent = Recent { events: VecDeque::new(), bytes: 0, held: self.held.clone() };
        Arc::new(Live { recent: Mutex::new(recent), last: watch::Sender::new(last) })
    }

    /// The head stops: readers are told so, and not more.
    pub fn stop(&self) {
        // Before the readers look, and before whoever is about to begin has looked.
        self.over.store(true, Ordering::SeqCst);
        for entry in self.live.lock().values() {
            if let Entry::Live(task) = entry {
                // Who waits looks again.
                task.last.send_modify(|_| {});
            }
        }
    }

    /// So many tasks follow.
    pub fn reserve(&self, tasks: usize) {
        self.live.lock().reserve(tasks);
    }

    /// A task that was found in the store, its log `last` long.
    pub fn restore(&self, task: &TaskId, last: u64) {
        self.live.lock().insert(task.clone(), Entry::Quiet(last));
    }

    /// What readers of a task that is known share.
    fn wake(&self, entry: &mut Entry) -> Arc<Live> {
        match entry {
            Entry::Live(live) => live.clone(),
            Entry::Quiet(last) => {
                let live = self.begin(*last);
                *entry = Entry::Live(live.clone());
                live
            }
        }
    }

    /// Tasks whose first event comes soon, so that there is something to read.
    pub fn expect(&self, made: &[Arc<TaskRecord>]) {
        let mut live = self.live.lock();
        for task in made {
            live.entry(task.id.clone()).or_insert_with(|| Entry::Live(self.begin(0)));
        }
    }

    /// Shows durable events to their readers.
    pub fn publish(&self, events: &[Arc<Envelope>]) {
        for run in events.chunk_by(|one, other| one.task == other.task) {
            let [.., last] = run else { continue };
            let mut live = self.live.lock();
            let task = match live.get_mut(&last.task) {
                Some(Entry::Quiet(known)) => {
                    *known = last.seq;
                    None
                }
                Some(Entry::Live(task)) => Some(task.clone()),
                None if last.event.is_terminal() => None,
                None => {
                    let task = self.begin(0);
                    live.insert(last.task.clone(), Entry::Live(task.clone()));
                    Some(task)
                }
            };
            if last.event.is_terminal() {
                live.remove(&last.task);
            }
            drop(live);
            let Some(task) = task else { continue };
            task.recent.lock().extend(run);
            task.last.send_replace(last.seq);
        }
    }

    /// Events above `after`, up to the end of the task. Where the head stops before that, the last item says so: nobody
    /// takes a stream that was cut for one that has ended.
    pub fn subscribe(
        &self,
        store: Arc<Store>,
        task: TaskId,
        after: u64,
    ) -> BoxStream<'static, Result<Arc<Envelope>, Error>> {
        let live = self.live.lock().get_mut(&task).map(|entry| self.wake(entry));
        let over = self.over.clone();
        Box::pin(async_stream::stream! {
            let mut cursor = after;
            let mut last = live.as_ref().map(|l| l.last.subscribe());
            loop {
                if over.load(Ordering::SeqCst) {
                    yield Err(Error::unavailable(covey_domain::error::STOPPING));
                    return;
                }
                let mut page: Vec<Arc<Envelope>> = Vec::new();
                let mut from_store = true;
                if let Some(live) = &live {
                    let recent = live.recent.lock();
                    let known = *live.last.borrow();
                    let first = recent.events.front().map_or(known + 1, |e| e.seq);
                    if cursor + 1 >= first {
                        from_store = false;
                        let skip = (cursor + 1 - first) as usize;
                        page.extend(recent.events.iter().skip(skip).take(caps::EVENT_PAGE_MAX).cloned());
                    }
                }
                if from_store {
                    match store.events(&task, cursor).await {
                        Ok(events) => page = events,
                        Err(error) => {
                            yield Err(Error::internal(format!("failed to read events: {error}")));
                            return;
                        }
                    }
                }
                let empty = page.is_empty();
                for event in page {
                    cursor = event.seq;
                    let end = event.event.is_terminal();
                    yield Ok(event);
                    if end {
                        return;
                    }
                }
                if empty {
                    match &mut last {
                        // A task without readers' memory has ended, and the store has shown all of it.
                        None => return,
                        Some(last) => {
                            if last.wait_for(|n| *n > cursor || over.load(Ordering::SeqCst)).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use covey_domain::{
        TaskEvent,
        event::{Delta, Outcome},
    };

    use super::*;

    fn run(task: &str, from: u64, count: u64, bytes: usize) -> Vec<Arc<Envelope>> {
        let event = |seq| Envelope {
            task: task.into(),
            seq,
            ts_ms: 0,
            sub: None,
            event: TaskEvent::PartDelta { part: "p".into(), delta: Delta::Text("x".repeat(bytes)) },
            meta: Default::default(),
        };
        (from..from + count).map(|seq| Arc::new(event(seq))).collect()
    }

    /// Numbers of what is held of a task.
    fn held(feed: &Feed, task: &str) -> Vec<u64> {
        let Entry::Live(live) = &feed.live.lock()[&TaskId::from(task)] else { panic!("nobody asked for `{task}`") };
        live.recent.lock().events.iter().map(|e| e.seq).collect()
    }

    #[test]
    fn what_is_held_for_readers_has_a_bound_in_bytes_too() {
        let feed = Feed::new();
        for seq in 1..=100 {
            feed.publish(&run("t", seq, 1, 1 << 20));
        }
        assert_eq!(held(&feed, "t"), [98, 99, 100], "four MiB, and what an event takes beside its text");
        feed.publish(&run("t", 101, 1, caps::FEED_TASK_BYTES_MAX + 1));
        assert!(held(&feed, "t").is_empty(), "one that is larger than all is read from the store");
        feed.publish(&run("t", 102, 5_000, 0));
        assert_eq!(held(&feed, "t").len(), caps::FEED_EVENTS_MAX);
    }

    #[test]
    fn all_tasks_together_have_a_bound_and_an_end_gives_back() {
        let feed = Feed::new();
        let many = caps::FEED_BYTES_MAX / caps::FEED_TASK_BYTES_MAX + 8;
        for n in 0..many {
            feed.publish(&run(&format!("t{n}"), 1, 3, 1 << 20));
        }
        assert!(feed.held.load(Ordering::Relaxed) <= caps::FEED_BYTES_MAX);
        for n in 0..many {
            let outcome = Outcome::Rejected { reason: String::new() };
            let end = TaskEvent::Finished { outcome, usage: Default::default() };
            let end = Envelope { event: end, ..(*run(&format!("t{n}"), 4, 1, 0)[0]).clone() };
            feed.publish(&[Arc::new(end)]);
        }
        assert_eq!(feed.held.load(Ordering::Relaxed), 0);
    }
}
