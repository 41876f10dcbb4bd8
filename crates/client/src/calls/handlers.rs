//! Calls under way, by id.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::Arc,
    time::Duration,
};

use covey_domain::{ActorId, Error, Retry, agent::known_as, caps};
use covey_proto::v1::{CallFrame, CallOpen, Payload, call_frame::Body};
use covey_trace::Span;
use parking_lot::Mutex;

use super::{CallEvent, Handler, lane};

/// Tables, so that readers of several streams and starters seldom meet at one lock.
const SHARDS: usize = 16;

/// How a call ended.
pub(super) type End = Result<Option<Payload>, Error>;

pub(super) struct Open {
    /// `None` while it is told an item. It runs without locks: it takes those of its caller, who may hold them while he
    /// opens another call.
    pub handler: Option<Handler>,
    /// Came while the handler was told an item.
    pub end: Option<End>,
    pub actor: Option<ActorId>,
    /// To place it again, if it goes to an actor.
    pub again: Option<CallOpen>,
    /// Where it went; `None` while it waits.
    pub lane: Option<lane::Sender>,
    pub placed: u8,
    pub retries: u32,
    /// Processes that died while it was running in them.
    pub killed: u32,
    /// Exceptions after which it is tried again, and pauses.
    pub retry: Option<Arc<Retry>>,
    /// Tries after exceptions.
    pub tried: u32,
    pub span: Span,
}

impl Open {
    /// A call that was sent nowhere yet.
    pub fn new(handler: Handler) -> Self {
        Self {
            handler: Some(handler),
            end: None,
            actor: None,
            again: None,
            lane: None,
            placed: 0,
            retries: 0,
            killed: 0,
            retry: None,
            tried: 0,
            span: Span::default(),
        }
    }
}

#[derive(Default)]
pub(super) struct OpenCalls {
    shards: [Mutex<HashMap<u64, Open>>; SHARDS],
}

impl OpenCalls {
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Open>> {
        &self.shards[id as usize % SHARDS]
    }

    pub fn insert(&self, id: u64, open: Open) {
        self.shard(id).lock().insert(id, open);
    }

    /// A call is over; gives it for its handler to be told, unless that is told an item at this moment: then whoever does
    /// that has the end as well.
    pub fn end(&self, id: u64, end: End) -> Option<(Open, End)> {
        let mut shard = self.shard(id).lock();
        match shard.get_mut(&id) {
            Some(open) if open.handler.is_none() => {
                open.end.get_or_insert(end);
                None
            }
            _ => Some((shard.remove(&id)?, end)),
        }
    }

    /// A call went over `lane`, to this activation (0 = to a model).
    pub fn sent(&self, id: u64, lane: lane::Sender, epoch: u64) {
        if let Some(open) = self.shard(id).lock().get_mut(&id) {
            open.lane = Some(lane);
            if let Some(again) = &mut open.again {
                again.epoch = epoch;
            }
        }
    }

    pub fn queued(&self, id: u64) {
        if let Some(open) = self.shard(id).lock().get_mut(&id) {
            open.lane = None;
        }
    }

    pub fn lane(&self, id: u64) -> Option<lane::Sender> {
        self.shard(id).lock().get(&id).and_then(|open| open.lane.clone())
    }

    pub fn actor(&self, id: u64) -> Option<ActorId> {
        self.shard(id).lock().get(&id).and_then(|open| open.actor.clone())
    }

    /// Tells an item to a call's handler, and those that follow it in `frames`; gives the call when its end came meanwhile. The
    /// items of one call are told by one task, that of its lane.
    pub fn items(&self, id: u64, first: Payload, frames: &mut std::vec::IntoIter<CallFrame>) -> Option<(Open, End)> {
        let mut handler = {
            let mut shard = self.shard(id).lock();
            let open = shard.get_mut(&id)?;
            // What has been answered in part is not placed again.
            open.again = None;
            open.handler.take()?
        };
        handler(id, CallEvent::Item(first));
        while matches!(frames.as_slice(), [CallFrame { id: of, body: Some(Body::Item(_)) }, ..] if *of == id)
            && let Some(CallFrame { body: Some(Body::Item(item)), .. }) = frames.next()
        {
            handler(id, CallEvent::Item(item));
        }
        let mut shard = self.shard(id).lock();
        let open = shard.get_mut(&id)?;
        open.handler = Some(handler);
        let end = open.end.take()?;
        Some((shard.remove(&id)?, end))
    }

    /// The actor and the frame of a call that may be placed once more.
    pub fn again(&self, id: u64, most: u8) -> Option<(ActorId, CallOpen)> {
        let mut shard = self.shard(id).lock();
        let open = shard.get_mut(&id)?;
        open.placed += 1;
        if open.placed > most {
            return None;
        }
        Some((open.actor.clone()?, open.again.clone()?))
    }

    /// The activation it was sent to may have run it: that one answers from memory, and another must not run it again.
    pub fn tried(&self, id: u64) {
        if let Some(again) = self.shard(id).lock().get_mut(&id).and_then(|open| open.again.as_mut()) {
            again.tried = again.epoch;
        }
    }

    /// Takes one of the times a call may be sent again although it may have run.
    pub fn retry(&self, id: u64) -> bool {
        let mut shard = self.shard(id).lock();
        match shard.get_mut(&id) {
            Some(Open { retries, placed, killed, again: Some(again), .. }) if *retries > 0 => {
                *retries -= 1;
                *placed = 0;
                again.tried = 0;
                again.alone = alone(*killed, *retries);
                true
            }
            _ => false,
        }
    }

    /// Takes one of the tries of a call that raised what is worth another, and gives the pause before it. Nothing that
    /// happens to its lane meanwhile concerns it.
    pub fn pause(&self, id: u64) -> Option<Duration> {
        if !self.retry(id) {
            return None;
        }
        let mut shard = self.shard(id).lock();
        let open = shard.get_mut(&id)?;
        open.lane = None;
        open.tried += 1;
        open.retry.as_ref().map(|retry| pause(retry, open.tried - 1))
    }

    /// A process died while the call was running in it: how many did so far, and what was called with how many bytes.
    pub fn killed(&self, id: u64) -> Option<(u32, ActorId, String, u64)> {
        let mut shard = self.shard(id).lock();
        let open = shard.get_mut(&id)?;
        open.killed += 1;
        let frame = open.again.as_ref()?;
        let bytes = frame.args.as_ref().map_or(0, covey_proto::size_of);
        Some((open.killed, open.actor.clone()?, known_as(&frame.method).to_owned(), bytes as u64))
    }

    /// Calls that went over `lane`, oldest first, and whether each may be sent again.
    pub fn on_lane(&self, lane: &lane::Sender) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            for (id, open) in &*shard.lock() {
                if open.lane.as_ref().is_some_and(|l| l.same_channel(lane)) {
                    found.push((*id, open.again.as_ref().is_some_and(|o| !o.key.is_empty())));
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// What went over `lane` goes over another.
    pub fn move_lane(&self, from: &lane::Sender, to: &lane::Sender) {
        for shard in &self.shards {
            for open in shard.lock().values_mut() {
                if open.lane.as_ref().is_some_and(|l| l.same_channel(from)) {
                    open.lane = Some(to.clone());
                }
            }
        }
    }

    pub fn contains(&self, id: u64) -> bool {
        self.shard(id).lock().contains_key(&id)
    }

    /// Calls to an actor, oldest first.
    pub fn on_actor(&self, actor: &ActorId) -> Vec<u64> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().iter().filter(|(_, o)| o.actor.as_ref() == Some(actor)).map(|(id, _)| *id));
        }
        found.sort_unstable();
        found
    }

    pub fn all(&self) -> Vec<u64> {
        let mut ids: Vec<_> = self.shards.iter().flat_map(|s| s.lock().keys().copied().collect::<Vec<_>>()).collect();
        ids.sort_unstable();
        ids
    }
}

/// Processes died under a call time after time, or it has no other try. It may be why, or may have run beside what is: that is
/// told apart when nothing runs beside it.
pub(crate) fn alone(killed: u32, retries_left: u32) -> bool {
    killed >= caps::ALONE_AFTER || (killed > 0 && retries_left == 0)
}

/// A pause of `retry`, drawn at random.
pub(crate) fn pause(retry: &Retry, tried: u32) -> Duration {
    // The standard library's own source of numbers that nobody can foresee.
    Duration::from_millis(retry.pause_ms(tried, RandomState::new().hash_one(tried)))
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};

    use super::*;

    /// Items of calls with these ids come, in one message.
    fn items(calls: &OpenCalls, ids: &[u64]) -> Option<(Open, End)> {
        let item = |id: &u64| CallFrame { id: *id, body: Some(Body::Item(Payload::default())) };
        let mut frames = ids.iter().map(item).collect::<Vec<_>>().into_iter();
        let mut ended = None;
        while let Some(CallFrame { id, body: Some(Body::Item(first)) }) = frames.next() {
            ended = calls.items(id, first, &mut frames).or(ended);
        }
        ended
    }

    #[test]
    fn items_of_several_calls_in_one_message_each_reach_their_own() {
        let (calls, told) = (OpenCalls::default(), Arc::new(Mutex::new(Vec::new())));
        for id in [1, 2, 1 + SHARDS as u64] {
            let told = told.clone();
            calls.insert(id, Open::new(Box::new(move |id, _| told.lock().push(id))));
        }
        let sent = [1, 1, 2, 1, 17, 17, 17, 2];
        assert!(items(&calls, &sent).is_none());
        assert_eq!(*told.lock(), sent);
        assert!(items(&calls, &[3, 3, 1]).is_none(), "what is over is told to nobody");
        assert_eq!(told.lock().len(), sent.len() + 1);
    }

    /// A pool's handler takes the pool's lock, which the pool holds while it opens calls.
    #[test]
    fn a_handler_may_wait_for_a_lock_of_who_opens_calls() {
        let (calls, own) = (OpenCalls::default(), Arc::new(Mutex::new(0)));
        let (inside, counted) = (Arc::new(Barrier::new(2)), own.clone());
        let told = inside.clone();
        let handler: Handler = Box::new(move |_, _| {
            told.wait();
            *counted.lock() += 1;
        });
        calls.insert(1, Open::new(handler));
        std::thread::scope(|scope| {
            let held = own.lock();
            scope.spawn(|| calls.items(1, Payload::default(), &mut Vec::new().into_iter()));
            inside.wait();
            // The same table.
            calls.insert(1 + SHARDS as u64, Open::new(Box::new(|_, _| {})));
            drop(held);
        });
        assert_eq!(*own.lock(), 1);
    }

    #[test]
    fn what_was_lost_twice_or_has_its_last_try_is_sent_to_run_alone() {
        let sent = |retries, killed: &[bool]| {
            let calls = OpenCalls::default();
            let (actor, again) = (Some("a".into()), Some(CallOpen::default()));
            calls.insert(1, Open { actor, again, retries, ..Open::new(Box::new(|_, _| {})) });
            let each = killed.iter().map(|killed| {
                killed.then(|| calls.killed(1));
                calls.retry(1).then(|| calls.again(1, 16).unwrap().1.alone)
            });
            each.collect::<Vec<_>>()
        };
        assert_eq!(sent(3, &[true, true, true]), [Some(false), Some(true), Some(true)]);
        assert_eq!(sent(1, &[true, true]), [Some(true), None]);
        // A worker that is gone says nothing against the call.
        assert_eq!(sent(2, &[false, false, false]), [Some(false), Some(false), None]);
        assert_eq!(sent(9, &[true, false, false, true]), [Some(false), Some(false), Some(false), Some(true)]);
    }

    #[test]
    fn an_end_that_comes_while_an_item_is_told_is_told_behind_it() {
        let calls = Arc::new(OpenCalls::default());
        let (tx, rx) = mpsc::sync_channel(2);
        let inner = calls.clone();
        let handler: Handler = Box::new(move |id, event| {
            if matches!(event, CallEvent::Item(_)) {
                assert!(inner.end(id, Ok(None)).is_none());
            }
            tx.send(matches!(event, CallEvent::End(_))).unwrap();
        });
        calls.insert(1, Open::new(handler));
        let (mut open, end) = items(&calls, &[1]).expect("its end came");
        assert!(!calls.contains(1));
        open.handler.take().unwrap()(1, CallEvent::End(end));
        assert_eq!(rx.iter().take(2).collect::<Vec<_>>(), [false, true]);
        assert!(calls.end(1, Ok(None)).is_none() && items(&calls, &[1]).is_none());
    }
}
