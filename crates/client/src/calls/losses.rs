//! What becomes of calls whose worker, lane or head is lost.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use covey_domain::{Error, ErrorKind, caps, error::RUNNING};
use covey_proto::v1::{CallFrame, DeadLetter, call_frame::Body};
use parking_lot::Mutex;

use super::{
    Inner, head, lane,
    place::{Away, Place},
};
use crate::retry::head_away;

/// A worker whose lane broke is not called again within this time, unless the head places the actor anew.
const LOST_PAUSE: Duration = Duration::from_secs(1);
/// Times one call is placed again before its refusal is believed.
const PLACED_MAX: u8 = 16;

impl Inner {
    /// The method raised what its caller wants to be tried again.
    pub(super) fn raised(self: &Arc<Self>, id: u64, error: Error) {
        let Some(pause) = self.open.pause(id) else { return self.end(id, Err(error)) };
        let weak = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(pause).await;
            let Some(inner) = weak.upgrade() else { return };
            // Nothing, when the call was cancelled meanwhile. Its actor is where it was, for all that is known.
            let Some((actor, frame)) = inner.open.again(id, PLACED_MAX) else { return };
            let routed = {
                let mut state = inner.state.lock();
                inner.route(&mut state, id, &actor, frame)
            };
            if let Err(why) = routed {
                inner.end(id, Err(why.executed(Some(true))));
            }
        });
    }

    /// A call's actor died under it: it is sent again, if it may be, and if it is not what kills the actor.
    pub(super) fn lost(self: &Arc<Self>, id: u64, error: Error) {
        let killed = (error.detail.as_deref() == Some(RUNNING)).then(|| self.open.killed(id)).flatten();
        if let Some((attempts @ caps::POISON_AFTER.., actor, method, bytes)) = killed {
            let error_text = error.message.clone();
            let actor = actor.to_string();
            let letter = DeadLetter { actor, method, bytes, attempts, error: error_text, ..DeadLetter::default() };
            self.dead_letter(letter);
            let text =
                format!("{attempts} processes died while they ran this call, the last because {}", error.message);
            let given_up = Error::new(ErrorKind::FailedPrecondition, text).executed(Some(true));
            return self.end(id, Err(given_up.hint("it is not tried again; `covey dead-letters` lists such calls")));
        }
        if self.open.retry(id) { self.again(id, error) } else { self.end(id, Err(error)) }
    }

    /// Tells the head of a call that is not tried again.
    pub(super) fn dead_letter(&self, letter: DeadLetter) {
        let _ = self.state.lock().head.send(CallFrame { id: 0, body: Some(Body::DeadLetter(letter)) });
    }

    /// A worker did not run a call: its actor is not there any more, so it is looked for anew.
    pub(super) fn again(self: &Arc<Self>, id: u64, error: Error) {
        // An activation that its worker does not have is over. One that was not reached may be where it was.
        let over = error.kind == ErrorKind::ActorDied && error.executed == Some(false);
        let avoided = (!over).then(|| Instant::now() + LOST_PAUSE);
        self.replace(id, error, avoided);
    }

    /// The same; until then its activation is not called again, or for good.
    pub(super) fn replace(self: &Arc<Self>, id: u64, error: Error, avoided: Option<Instant>) {
        let Some((actor, frame)) = self.open.again(id, PLACED_MAX) else {
            return self.end(id, Err(error));
        };
        let result = {
            let mut state = self.state.lock();
            if let Some(Place::At { at, .. }) = state.places.get(&actor)
                && at.epoch <= frame.epoch
            {
                state.stale(&actor, frame.epoch, avoided);
                self.locate(&mut state, &actor);
            }
            self.route(&mut state, id, &actor, frame)
        };
        if let Err(error) = result {
            self.end(id, Err(error.executed(Some(false))));
        }
    }

    /// A lane broke. What never left is placed again; what did has an unknown end, unless it carries a key. `close` gives what
    /// it did not take.
    pub(super) fn lane_lost(self: &Arc<Self>, lane: &lane::Sender, close: impl FnOnce() -> Vec<CallFrame>, why: &str) {
        let error = Error::new(ErrorKind::ActorDied, format!("the connection to its worker broke: {why}"))
            .executed(Some(false));
        let unsent = {
            // Whoever opens a call holds this: new calls wait until the old ones are back.
            let mut state = self.state.lock();
            state.breaks(lane);
            close()
        };
        // The head hears of a worker's death as well; a worker that lives is where it was.
        let avoided = Some(Instant::now() + LOST_PAUSE);
        for id in unsent.iter().flat_map(opens) {
            self.replace(id, error.clone(), avoided);
        }
        for (id, keyed) in self.open.on_lane(lane) {
            if self.may_repeat(id, keyed) {
                self.replace(id, error.clone(), avoided);
            } else {
                self.end(id, Err(error.clone().executed(None)));
            }
        }
        self.broken(lane);
    }

    /// All calls of a lane that broke are back.
    pub(super) fn broken(self: &Arc<Self>, lane: &lane::Sender) {
        let fences = self.state.lock().broken(lane);
        for fence in fences {
            self.fenced(fence);
        }
    }

    /// Whether a call that may have run is sent again. With a key it is: where it was sent, it is answered from memory, and
    /// elsewhere it is not run.
    pub(super) fn may_repeat(&self, id: u64, keyed: bool) -> bool {
        if keyed {
            self.open.tried(id);
        }
        keyed || self.open.retry(id)
    }

    /// A worker cannot be dialled: what was sent to it goes through the head.
    pub(super) fn lane_to_head(&self, lane: &lane::Sender, close: impl FnOnce() -> Vec<CallFrame>) {
        // Whoever opens a call on an actor holds this.
        let mut state = self.state.lock();
        state.move_lane(lane);
        self.open.move_lane(lane, &state.head);
        for frame in close() {
            let _ = state.head.send(frame);
        }
    }

    /// The stream to the head broke. What it had not taken waits for the next; of what it took and nobody answered the end is
    /// unknown.
    pub(super) fn head_lost(self: &Arc<Self>, outgoing: &Mutex<head::Outgoing>, why: &Error) {
        let since = Instant::now();
        let lost = {
            // Nothing is sent while this is held, so that a call is either in what is left or with the head.
            let mut state = self.state.lock();
            state.away = Some(Away { since, given_up: false });
            let mut outgoing = outgoing.lock();
            let unsent = outgoing.cut();
            let waits: HashSet<u64> = unsent.iter().flat_map(opens).collect();
            outgoing.put_back(unsent.into_iter().filter(head::outlives));
            let mut lost = self.open.on_lane(&state.head);
            lost.retain(|(id, _)| !waits.contains(id));
            lost
        };
        let error = Error::unavailable(format!("the connection to the head broke: {}", why.message)).executed(None);
        for (id, keyed) in lost {
            if self.may_repeat(id, keyed) {
                // The actor is where it was, for all that is known.
                self.replace(id, error.clone(), Some(since));
            } else {
                self.end(id, Err(error.clone()));
            }
        }
        let head = self.state.lock().head.clone();
        self.broken(&head);
        let (weak, patience) = (Arc::downgrade(self), self.patience.load(Ordering::Relaxed));
        self.runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(patience)).await;
            if let Some(inner) = weak.upgrade() {
                inner.give_up(since);
            }
        });
    }

    /// The head has been away since then for longer than anybody waits.
    pub(super) fn give_up(&self, since: Instant) {
        let (failed, hooks, error) = {
            let mut state = self.state.lock();
            match &mut state.away {
                Some(away) if away.since == since => away.given_up = true,
                Some(_) | None => return,
            }
            let error = head_away(since.elapsed(), None).executed(Some(false));
            let (mut failed, hooks) = state.give_up(&error);
            let mut outgoing = self.outgoing.lock();
            let unsent = outgoing.unsent();
            failed.extend(unsent.iter().flat_map(opens).map(|id| (id, error.clone())));
            let stays = |frame: &CallFrame| matches!(frame.body, Some(Body::DeadLetter(_) | Body::Leave(_)));
            outgoing.put_back(unsent.into_iter().filter(stays));
            (failed, hooks, error)
        };
        for (id, error) in failed {
            self.end(id, Err(error));
        }
        hooks.into_iter().for_each(|hook| hook(Err(error.clone())));
    }

    /// There is a stream to the head again; `resumed`: by the same session.
    pub(super) fn head_back(&self, resumed: bool) {
        let mut state = self.state.lock();
        state.away = None;
        if !resumed {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
        state.ask_all();
    }
}

/// Ids of the calls that a frame opens.
fn opens(frame: &CallFrame) -> std::ops::Range<u64> {
    match &frame.body {
        Some(Body::Open(open)) => frame.id..frame.id + 1 + open.also.len() as u64,
        _ => 0..0,
    }
}
