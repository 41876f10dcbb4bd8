//! Who is told what becomes of each call.

use covey_call_core::IdMap;
use covey_domain::Error;
use covey_proto::v1::Payload;
use covey_trace::Span;
use parking_lot::Mutex;

use super::{CallEvent, Handler};

/// Tables, so that readers of several streams and starters seldom meet at one lock.
const SHARDS: usize = 16;

/// How a call ended.
pub(super) type End = Result<Option<Payload>, Error>;

/// What whoever calls is to be told.
pub(super) enum Told {
    Items(u64, Vec<Payload>),
    End(u64, End),
}

struct Entry {
    /// `None` while it is told an item. It runs without locks: it takes those of its caller, who may hold them while he
    /// opens another call.
    handler: Option<Handler>,
    /// Came while the handler was told an item.
    end: Option<End>,
    span: Span,
}

/// Handlers by the number of their call.
#[derive(Default)]
pub(super) struct Handlers {
    shards: [Mutex<IdMap<Entry>>; SHARDS],
}

impl Handlers {
    fn shard(&self, id: u64) -> &Mutex<IdMap<Entry>> {
        &self.shards[id as usize % SHARDS]
    }

    pub fn insert(&self, id: u64, handler: Handler, span: Span) {
        self.shard(id).lock().insert(id, Entry { handler: Some(handler), end: None, span });
    }

    /// Tells each in its order. Nothing may be locked that a handler takes.
    pub fn tell(&self, told: Vec<Told>) {
        for one in told {
            match one {
                Told::Items(id, items) => self.items(id, items),
                Told::End(id, end) => self.end(id, end),
            }
        }
    }

    /// A call is over. While its handler is told an item, whoever does that tells it the end as well.
    pub fn end(&self, id: u64, end: End) {
        let over = {
            let mut shard = self.shard(id).lock();
            match shard.get_mut(&id) {
                Some(entry) if entry.handler.is_none() => {
                    entry.end.get_or_insert(end);
                    return;
                }
                _ => shard.remove(&id).map(|entry| (entry, end)),
            }
        };
        if let Some((entry, end)) = over {
            entry.over(id, end);
        }
    }

    /// Tells items of one call, and its end where that came meanwhile.
    fn items(&self, id: u64, items: Vec<Payload>) {
        let taken = self.shard(id).lock().get_mut(&id).and_then(|entry| entry.handler.take());
        let Some(mut handler) = taken else { return };
        items.into_iter().for_each(|item| handler(id, CallEvent::Item(item)));
        let over = {
            let mut shard = self.shard(id).lock();
            let Some(entry) = shard.get_mut(&id) else { return };
            entry.handler = Some(handler);
            match entry.end.take() {
                Some(end) => shard.remove(&id).map(|entry| (entry, end)),
                None => None,
            }
        };
        if let Some((entry, end)) = over {
            entry.over(id, end);
        }
    }

    pub fn contains(&self, id: u64) -> bool {
        self.shard(id).lock().contains_key(&id)
    }

    pub fn all(&self) -> Vec<u64> {
        let mut ids: Vec<_> = self.shards.iter().flat_map(|s| s.lock().keys().copied().collect::<Vec<_>>()).collect();
        ids.sort_unstable();
        ids
    }
}

impl Entry {
    fn over(mut self, id: u64, end: End) {
        if let Err(error) = &end {
            self.span.fail(error);
        }
        drop(self.span);
        if let Some(mut handler) = self.handler.take() {
            handler(id, CallEvent::End(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier, mpsc};

    use super::*;

    fn item(id: u64) -> Told {
        Told::Items(id, vec![Payload::default()])
    }

    #[test]
    fn items_of_several_calls_in_one_message_each_reach_their_own() {
        let (handlers, told) = (Handlers::default(), Arc::new(Mutex::new(Vec::new())));
        for id in [1, 2, 1 + SHARDS as u64] {
            let told = told.clone();
            handlers.insert(id, Box::new(move |id, _| told.lock().push(id)), Span::default());
        }
        let sent = [1, 1, 2, 1, 17, 17, 17, 2];
        handlers.tell(sent.into_iter().map(item).collect());
        assert_eq!(*told.lock(), sent);
        handlers.tell([3, 3, 1].into_iter().map(item).collect());
        assert_eq!(told.lock().len(), sent.len() + 1, "what is over is told to nobody");
    }

    /// A pool's handler takes the pool's lock, which the pool holds while it opens calls.
    #[test]
    fn a_handler_may_wait_for_a_lock_of_who_opens_calls() {
        let (handlers, own) = (Handlers::default(), Arc::new(Mutex::new(0)));
        let (inside, counted) = (Arc::new(Barrier::new(2)), own.clone());
        let told = inside.clone();
        let handler: Handler = Box::new(move |_, _| {
            told.wait();
            *counted.lock() += 1;
        });
        handlers.insert(1, handler, Span::default());
        std::thread::scope(|scope| {
            let held = own.lock();
            scope.spawn(|| handlers.tell(vec![item(1)]));
            inside.wait();
            // The same table.
            handlers.insert(1 + SHARDS as u64, Box::new(|_, _| {}), Span::default());
            drop(held);
        });
        assert_eq!(*own.lock(), 1);
    }

    #[test]
    fn an_end_that_comes_while_an_item_is_told_is_told_behind_it() {
        let handlers = Arc::new(Handlers::default());
        let (tx, rx) = mpsc::sync_channel(2);
        let inner = handlers.clone();
        let handler: Handler = Box::new(move |id, event| {
            if matches!(event, CallEvent::Item(_)) {
                inner.end(id, Ok(None));
            }
            tx.send(matches!(event, CallEvent::End(_))).unwrap();
        });
        handlers.insert(1, handler, Span::default());
        handlers.tell(vec![item(1)]);
        assert!(!handlers.contains(1));
        assert_eq!(rx.iter().take(2).collect::<Vec<_>>(), [false, true]);
        handlers.tell(vec![item(1), Told::End(1, Ok(None))]);
        assert!(rx.try_recv().is_err());
    }
}
