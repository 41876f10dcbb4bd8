//! Where actors are, as far as this caller knows, and what waits for them.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use covey_domain::{ActorId, Error, NodeId};
use covey_proto::v1::{At, CallFrame, CallOpen, Locate, WorkerPort, call_frame::Body};

use super::{Inner, lane, topics::Topic};
use crate::retry::head_away;

/// Places remembered; beyond it those of actors that nothing waits for are forgotten, and asked for again when needed.
const PLACES_MAX: usize = 100_000;

pub(super) enum Place {
    /// Nowhere yet.
    Waiting { since: Instant, why: String, queue: BTreeMap<u64, CallOpen> },
    /// On a worker.
    At { at: At, lane: lane::Sender },
    /// About to be on another one, once the fence is back.
    Moving { fence: u64, to: At, queue: BTreeMap<u64, CallOpen> },
    /// Over.
    Gone(Error),
}

/// The head cannot be reached.
pub(super) struct Away {
    pub since: Instant,
    /// It has been away for so long that nobody waits for it any more.
    pub given_up: bool,
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
    fences: HashMap<u64, ActorId>,
    /// Activations that refused a call as not theirs.
    stale: HashMap<ActorId, u64>,
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
            Place::At { lane, .. } => Some(lane),
            Place::Waiting { .. } | Place::Moving { .. } | Place::Gone(_) => None,
        });
        for lane in lanes.chain(places).filter(|lane| lane.same_channel(from)) {
            *lane = self.head.clone();
        }
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

    /// The activation is over, whatever the head still says.
    pub fn stale(&mut self, actor: &ActorId, epoch: u64) {
        self.stale.insert(actor.clone(), epoch);
    }

    pub fn is_stale(&self, actor: &ActorId, epoch: u64) -> bool {
        let waits = matches!(self.places.get(actor), Some(Place::Waiting { .. }));
        waits && self.stale.get(actor).is_some_and(|stale| epoch <= *stale)
    }

    pub fn ask(&self, actor: &ActorId) {
        let locate = Locate { actor: actor.to_string() };
        let _ = self.head.send(CallFrame { id: 0, body: Some(Body::Locate(locate)) });
    }

    /// Calls to the actor wait from now on. `true` when they did not before.
    pub fn wait(&mut self, actor: &ActorId, reason: &str) -> bool {
        match self.places.get_mut(actor) {
            Some(Place::Waiting { why, .. }) => {
                reason.clone_into(why);
                false
            }
            Some(Place::Moving { fence, queue, .. }) => {
                let (fence, queue) = (*fence, std::mem::take(queue));
                self.fences.remove(&fence);
                let waiting = Place::Waiting { since: Instant::now(), why: reason.to_owned(), queue };
                self.places.insert(actor.clone(), waiting);
                true
            }
            Some(Place::At { .. } | Place::Gone(_)) | None => {
                let waiting = Place::Waiting { since: Instant::now(), why: reason.to_owned(), queue: BTreeMap::new() };
                self.places.insert(actor.clone(), waiting);
                true
            }
        }
    }

    /// Why an actor still waits after `limit`, and how many calls wait for it.
    pub fn overdue(&self, actor: &ActorId, limit: Duration) -> Option<(String, usize)> {
        match self.places.get(actor) {
            Some(Place::Waiting { since, why, queue }) if since.elapsed() >= limit && !queue.is_empty() => {
                Some((why.clone(), queue.len()))
            }
            _ => None,
        }
    }

    /// The actor is somewhere; gives what waited for it, oldest first.
    pub fn settle(&mut self, actor: &ActorId, at: At, lane: lane::Sender) -> BTreeMap<u64, CallOpen> {
        self.stale.remove(actor);
        if self.places.len() > PLACES_MAX {
            // The same lane leads to the same worker when the place is asked for again, so order is kept.
            self.places.retain(|_, place| matches!(place, Place::Waiting { .. } | Place::Moving { .. }));
        }
        match self.places.insert(actor.clone(), Place::At { at, lane }) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue,
            Some(Place::At { .. } | Place::Gone(_)) | None => BTreeMap::new(),
        }
    }

    pub fn fence(&mut self, actor: &ActorId, fence: u64, to: At) {
        self.places.insert(actor.clone(), Place::Moving { fence, to, queue: BTreeMap::new() });
        self.fences.insert(fence, actor.clone());
    }

    pub fn moving_to(&mut self, actor: &ActorId, at: At) {
        if let Some(Place::Moving { to, .. }) = self.places.get_mut(actor) {
            *to = at;
        }
    }

    pub fn take_fence(&mut self, fence: u64) -> Option<(ActorId, At)> {
        let actor = self.fences.remove(&fence)?;
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
                queue.into_keys().map(|id| (id, error.clone())).collect()
            }
            Some(Place::At { .. } | Place::Gone(_)) | None => Vec::new(),
        }
    }

    /// Takes a call out of the queue it waits in.
    pub fn unqueue(&mut self, actor: &ActorId, id: u64) -> bool {
        match self.places.get_mut(actor) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue.remove(&id).is_some(),
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
        self.topics.clear();
    }
}
