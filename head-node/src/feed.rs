//! Readers of task logs. A reader has its own cursor and reads recent events from memory, older ones from the store,
//! so a slow reader costs nothing and misses nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
    live: Arc<Mutex<HashMap<TaskId, Arc<Live>>>>,
    over: Arc<AtomicBool>,
}

struct Live {
    recent: Mutex<VecDeque<Arc<Envelope>>>,
    /// Number of the last durable event.
    last: watch::Sender<u64>,
}

impl Live {
    fn at(last: u64) -> Arc<Self> {
        Arc::new(Self { recent: Mutex::default(), last: watch::Sender::new(last) })
    }
}

impl Feed {
    pub fn new() -> Self {
        Self { live: Arc::default(), over: Arc::default() }
    }

    /// The head stops: readers are told so, and not more.
    pub fn stop(&self) {
        // Before the readers look, and before whoever is about to begin has looked.
        self.over.store(true, Ordering::SeqCst);
        for task in self.live.lock().values() {
            // Who waits looks again.
            task.last.send_modify(|_| {});
        }
    }

    /// A task that was found in the store, its log `last` long.
    pub fn restore(&self, task: &TaskId, last: u64) {
        self.live.lock().insert(task.clone(), Live::at(last));
    }

    /// Tasks whose first event comes soon, so that there is something to read.
    pub fn expect(&self, made: &[Arc<TaskRecord>]) {
        let mut live = self.live.lock();
        for task in made {
            live.entry(task.id.clone()).or_insert_with(|| Live::at(0));
        }
    }

    /// Shows durable events to their readers.
    pub fn publish(&self, events: &[Arc<Envelope>]) {
        for run in events.chunk_by(|one, other| one.task == other.task) {
            let [.., last] = run else { continue };
            let mut live = self.live.lock();
            let task = if last.event.is_terminal() {
                live.remove(&last.task).unwrap_or_else(|| Live::at(0))
            } else {
                live.entry(last.task.clone()).or_insert_with(|| Live::at(0)).clone()
            };
            drop(live);
            let mut recent = task.recent.lock();
            recent.extend(run.iter().cloned());
            let over = recent.len().saturating_sub(caps::FEED_EVENTS_MAX);
            recent.drain(..over);
            drop(recent);
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
        let live = self.live.lock().get(&task).cloned();
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
                    let first = recent.front().map_or(known + 1, |e| e.seq);
                    if cursor + 1 >= first {
                        from_store = false;
                        let skip = (cursor + 1 - first) as usize;
                        page.extend(recent.iter().skip(skip).take(caps::EVENT_PAGE_MAX).cloned());
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
