//! Where actors are, as far as this caller knows, and what waits for them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use covey_domain::{ActorId, Error, NodeId};
use covey_proto::{
    CallQueue,
    v1::{At, CallFrame, CallOpen, Locate, WorkerPort, call_frame::Body},
};

use super::{Inner, lane, topics::Topic};
use crate::retry::head_away;

/// Places remembered; beyond it those of actors that nothing waits for are forgotten, and asked for again when needed.
const PLACES_MAX: usize = 100_000;

pub(super) enum Place {
    /// Nowhere yet. What it did not run where it was before comes back over `left`.
    Waiting {
        since: Instant,
        why: String,
        /// Whoever is told has heard this reason already.
        told: bool,
        left: Option<lane::Sender>,
        queue: CallQueue,
    },
    /// On a worker.
    At { at: At, lane: lane::Sender },
    /// About to be on another one, once the fence is back.
    Moving { fence: u64, to: At, queue: CallQueue },
    /// Over.
    Gone(Error),
}

/// The head cannot be reached.
pub(super) struct Away {
    pub since: Instant,
    /// It has been away for so long that nobody waits for it any more.
    pub given_up: bool,
}

/// An activation that is not to be called.
struct Stale {
    epoch: u64,
    /// Until the head has had time to notice; `None` where the worker said that it is over.
    until: Option<Instant>,
}

pub(super) struct State {
    pub head: lane::Sender,
    pub away: Option<Away>,
    /// The driver goes for good.
    pub left: bool,
    pub closed: Option<Error>,
    pub places: HashMap<ActorId, Place>,
    /// Address and lane of each worker.
    pub lanes: HashMap<NodeId, (Option<WorkerPort>, lane::Sender)>,
    /// For whom each is, and over which lane.
    fences: HashMap<u64, (ActorId, lane::Sender)>,
    /// Lanes that broke, and whose calls are not all back yet.
    breaking: Vec<lane::Sender>,
    /// Activations that are over, or not to be reached for a while.
    stale: HashMap<ActorId, Stale>,
    /// Who listens to what.
    pub topics: HashMap<String, Topic>,
    /// Called once an actor has a place, or never will.
    pub hooks: HashMap<ActorId, Vec<Hook>>,
}

pub(super) type Hook = Box<dyn FnOnce(Result<(), Error>) + Send>;

impl State {
    pub fn new(head: lane::Sender) -> Self {
        Self {
            head,
            away: None,
            left: false,
            closed: None,
            places: HashMap::new(),
            lanes: HashMap::new(),
            fences: HashMap::new(),
            breaking: Vec::new(),
            stale: HashMap::new(),
            topics: HashMap::new(),
            hooks: HashMap::new(),
        }
    }

    /// A call that goes through the head, to a model.
    pub fn to_head(&self, inner: &Inner, id: u64, frame: CallOpen) -> Result<(), Error> {
        if let Some(error) = self.no_head() {
            return Err(error);
        }
        inner.open.sent(id, self.head.clone(), 0);
        let _ = self.head.send(CallFrame { id, body: Some(Body::Open(frame)) });
        Ok(())
    }

    /// Why the head cannot be asked, now or ever.
    pub fn no_head(&self) -> Option<Error> {
        let given_up = || {
            self.away
                .as_ref()
                .filter(|away| away.given_up)
                .map(|away| head_away(away.since.elapsed(), None).executed(Some(false)))
        };
        self.closed.clone().or_else(given_up)
    }

    /// Asks the head again for all that it told on its last stream.
    pub fn ask_all(&self) {
        for (actor, place) in &self.places {
            match place {
                Place::Waiting { .. } | Place::At { .. } | Place::Moving { .. } => self.ask(actor),
                Place::Gone(_) => {}
            }
        }
        for topic in self.topics.keys() {
            let _ = self.head.send(CallFrame { id: 0, body: Some(Body::WatchTopic(topic.clone())) });
        }
    }

    /// Calls on `from` go to the head from now on.
    pub fn move_lane(&mut self, from: &lane::Sender) {
        let lanes = self.lanes.values_mut().map(|(_, lane)| lane);
        let places = self.places.values_mut().filter_map(|place| match place {
            Place::At { lane, .. } | Place::Waiting { left: Some(lane), .. } => Some(lane),
            Place::Waiting { left: None, .. } | Place::Moving { .. } | Place::Gone(_) => None,
        });
        let fences = self.fences.values_mut().map(|(_, lane)| lane);
        for lane in lanes.chain(places).chain(fences).filter(|lane| lane.same_channel(from)) {
            *lane = self.head.clone();
        }
    }

    /// A lane broke: from now until [`Self::broken`] its calls come back.
    pub fn breaks(&mut self, lane: &lane::Sender) {
        self.breaking.push(lane.clone());
    }

    /// All calls of a lane that broke are back; gives the fences that waited for that.
    pub fn broken(&mut self, lane: &lane::Sender) -> Vec<u64> {
        self.breaking.retain(|one| !one.same_channel(lane));
        let over = self.fences.iter().filter(|(_, (_, over))| over.same_channel(lane));
        over.map(|(fence, _)| *fence).collect()
    }

    /// Whether calls may still come back over this lane.
    pub fn may_return(&self, lane: &lane::Sender) -> bool {
        !lane.is_closed() || self.breaking.iter().any(|one| one.same_channel(lane))
    }

    /// What is said of this actor's place may be older than what is known here.
    pub fn holds_still(&self, actor: &ActorId) -> bool {
        matches!(self.places.get(actor), Some(Place::At { lane, .. }) if !lane.is_closed())
    }

    /// Nothing waits for the head any more: gives what did, to be ended with `error`.
    pub fn give_up(&mut self, error: &Error) -> (Vec<(u64, Error)>, Vec<Hook>) {
        let waits = |place: &Place| matches!(place, Place::Waiting { .. });
        let actors: Vec<_> = self.places.iter().filter(|(_, p)| waits(p)).map(|(actor, _)| actor.clone()).collect();
        let (mut failed, mut hooks) = (Vec::new(), Vec::new());
        for actor in actors {
            failed.extend(self.refuse(&actor, error, false));
            hooks.extend(self.hooks.remove(&actor).into_iter().flatten());
        }
        let asked = self.topics.extract_if(|_, topic| matches!(topic, Topic::Asked(_)));
        for (_, topic) in asked {
            if let Topic::Asked(waiting) = topic {
                failed.extend(waiting.iter().map(|publish| (publish.id(), error.clone())));
            }
        }
        (failed, hooks)
    }

    /// The activation is not to be called, whatever the head still says: for good, or `until` then.
    pub fn stale(&mut self, actor: &ActorId, epoch: u64, until: Option<Instant>) {
        self.stale.insert(actor.clone(), Stale { epoch, until });
    }

    pub fn is_stale(&self, actor: &ActorId, epoch: u64) -> bool {
        let waits = matches!(self.places.get(actor), Some(Place::Waiting { .. }));
        let avoided = |stale: &Stale| epoch <= stale.epoch && stale.until.is_none_or(|until| Instant::now() < until);
        waits && self.stale.get(actor).is_some_and(avoided)
    }

    pub fn ask(&self, actor: &ActorId) {
        let locate = Locate { actor: actor.to_string() };
        let _ = self.head.send(CallFrame { id: 0, body: Some(Body::Locate(locate)) });
    }

    /// Calls to the actor wait from now on. `true` when they did not before, or for another reason.
    pub fn wait(&mut self, actor: &ActorId, reason: &str) -> bool {
        match self.places.get_mut(actor) {
            Some(Place::Waiting { why, .. }) if why == reason => false,
            Some(Place::Waiting { why, told, .. }) => {
                reason.clone_into(why);
                *told = false;
                true
            }
            Some(Place::Moving { fence, queue, .. }) => {
                let (fence, queue) = (*fence, std::mem::take(queue));
                let left = self.fences.remove(&fence).map(|(_, lane)| lane);
                self.waits(actor, reason, left, queue)
            }
            Some(Place::At { lane, .. }) => {
                let left = Some(lane.clone());
                self.waits(actor, reason, left, CallQueue::default())
            }
            Some(Place::Gone(_)) | None => self.waits(actor, reason, None, CallQueue::default()),
        }
    }

    fn waits(&mut self, actor: &ActorId, reason: &str, left: Option<lane::Sender>, queue: CallQueue) -> bool {
        let (since, why) = (Instant::now(), reason.to_owned());
        let waiting = Place::Waiting { since, why, told: false, left, queue };
        self.places.insert(actor.clone(), waiting);
        true
    }

    /// Whether calls wait for the actor's place.
    pub fn has_calls(&self, actor: &ActorId) -> bool {
        matches!(self.places.get(actor), Some(Place::Waiting { queue, .. }) if !queue.is_empty())
    }

    /// Why an actor still waits after `limit`, and how many calls wait for it; each reason once.
    pub fn overdue(&mut self, actor: &ActorId, limit: Duration) -> Option<(String, usize)> {
        match self.places.get_mut(actor) {
            Some(Place::Waiting { since, why, told, queue, .. })
                if since.elapsed() >= limit && !queue.is_empty() && !*told =>
            {
                *told = true;
                Some((why.clone(), queue.len()))
            }
            _ => None,
        }
    }

    /// Why an actor still has no place after `limit`, whether calls wait for it or not.
    pub fn why_waiting(&self, actor: &ActorId, limit: Duration) -> Option<String> {
        match self.places.get(actor) {
            Some(Place::Waiting { since, why, .. }) if since.elapsed() >= limit => Some(why.clone()),
            _ => None,
        }
    }

    /// The actor is somewhere; gives what waited for it, oldest first.
    pub fn settle(&mut self, actor: &ActorId, at: At, lane: lane::Sender) -> CallQueue {
        self.stale.remove(actor);
        if self.places.len() > PLACES_MAX {
            // The same lane leads to the same worker when the place is asked for again, so order is kept.
            self.places.retain(|_, place| matches!(place, Place::Waiting { .. } | Place::Moving { .. }));
        }
        match self.places.insert(actor.clone(), Place::At { at, lane }) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue,
            Some(Place::At { .. } | Place::Gone(_)) | None => CallQueue::default(),
        }
    }

    /// The actor will be at `to` once `fence` is back over `lane`.
    pub fn fence(&mut self, actor: &ActorId, fence: u64, to: At, lane: lane::Sender) {
        let queue = match self.places.remove(actor) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue,
            Some(Place::At { .. } | Place::Gone(_)) | None => CallQueue::default(),
        };
        self.places.insert(actor.clone(), Place::Moving { fence, to, queue });
        self.fences.insert(fence, (actor.clone(), lane));
    }

    pub fn moving_to(&mut self, actor: &ActorId, at: At) {
        if let Some(Place::Moving { to, .. }) = self.places.get_mut(actor) {
            *to = at;
        }
    }

    pub fn take_fence(&mut self, fence: u64) -> Option<(ActorId, At)> {
        let (actor, _) = self.fences.remove(&fence)?;
        match self.places.get(&actor) {
            Some(Place::Moving { to, .. }) => Some((actor, to.clone())),
            _ => None,
        }
    }

    /// Nothing will come of the calls that wait; gives them with the error.
    pub fn refuse(&mut self, actor: &ActorId, error: &Error, for_good: bool) -> Vec<(u64, Error)> {
        let old = if for_good {
            self.places.insert(actor.clone(), Place::Gone(error.clone()))
        } else {
            // A node that could hold it may join later: the next call asks again.
            self.places.remove(actor)
        };
        match old {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => {
                queue.into_calls().map(|id| (id, error.clone())).collect()
            }
            Some(Place::At { .. } | Place::Gone(_)) | None => Vec::new(),
        }
    }

    /// Takes a call out of the queue it waits in.
    pub fn unqueue(&mut self, actor: &ActorId, id: u64) -> bool {
        match self.places.get_mut(actor) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue.remove(id),
            Some(Place::At { .. } | Place::Gone(_)) | None => false,
        }
    }

    /// Who waits to hear of the actor's place, when there is something to hear.
    /// `never` says why it has no place although it is not gone.
    pub fn news(&mut self, actor: &ActorId, never: Option<Error>) -> Option<(Vec<Hook>, Result<(), Error>)> {
        let result = match (never, self.places.get(actor)) {
            (Some(error), _) => Err(error),
            (None, Some(Place::At { .. })) => Ok(()),
            (None, Some(Place::Gone(error))) => Err(error.clone()),
            (None, Some(Place::Waiting { .. } | Place::Moving { .. }) | None) => return None,
        };
        self.hooks.remove(actor).map(|hooks| (hooks, result))
    }

    pub fn close(&mut self, error: &Error) {
        self.closed = Some(error.clone());
        self.places.clear();
        self.lanes.clear();
        self.fences.clear();
        self.breaking.clear();
        self.topics.clear();
    }
}
