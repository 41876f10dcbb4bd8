//! Where actors are, as far as the caller knows, and what waits for them.

use super::*;
use crate::{Placement, queue::Queue};

pub(super) enum Place<A> {
    /// Nowhere yet. What it did not run where it was before comes back over `left`.
    Waiting {
        since: Millis,
        why: String,
        /// Whoever calls has heard this reason already.
        told: bool,
        left: Option<LaneId>,
        queue: Queue,
    },
    /// On a worker.
    At { at: At<A>, lane: LaneId },
    /// About to be on another one, once the fence is back.
    Moving { fence: u64, to: At<A>, queue: Queue },
    /// Over.
    Gone(Error),
}

/// An activation that is not to be called.
pub(super) struct Stale {
    epoch: u64,
    /// Until the head has had time to notice; `None` where the worker said that it is over.
    until: Option<Millis>,
}

impl<B: Body, A: Clone + PartialEq> Caller<B, A> {
    // What is known.

    /// The node that an actor is on, as far as that is known.
    pub fn node_of(&self, actor: &ActorId) -> Option<NodeId> {
        match self.places.get(actor) {
            Some(Place::At { at, .. }) => Some(at.node.clone()),
            _ => None,
        }
    }

    /// Why an actor has had no place for as long as callers are told after, whether calls wait for it or not.
    pub fn why_waiting(&self, now: Now, actor: &ActorId) -> Option<String> {
        match self.places.get(actor) {
            Some(Place::Waiting { since, why, .. }) if now - since >= self.config.overdue_ms => Some(why.clone()),
            _ => None,
        }
    }

    // What happens.

    /// Somebody waits to hear that an actor has a place: tells it at once where that is known, else by [`Output::Placed`].
    pub fn watch(&mut self, now: Now, actor: &ActorId) -> Option<Result<(), Error>> {
        if !self.places.contains_key(actor) {
            self.locate(now, actor);
        }
        match self.places.get(actor) {
            Some(Place::At { .. }) => Some(Ok(())),
            Some(Place::Gone(error)) => Some(Err(error.clone())),
            Some(Place::Waiting { .. } | Place::Moving { .. }) | None => {
                self.watched.insert(actor.clone());
                None
            }
        }
    }

    /// What is known of this actor's place is dropped, and asked for again by the next call. After a stop, that call
    /// then hears of it even when it would reach the worker sooner than the stop.
    pub fn forget(&mut self, actor: &ActorId) {
        if let Some(Place::At { .. } | Place::Gone(_)) = self.places.get(actor) {
            self.places.remove(actor);
        }
    }

    /// The head says where an actor is.
    pub fn placed(&mut self, now: Now, actor: &ActorId, placement: Placement<A>) {
        let mut never = None;
        match placement {
            // The head has not heard yet what the worker knows already: ask again in a moment.
            Placement::At(at) if self.is_stale(now, actor, at.epoch) => {
                self.timers.set(now + self.config.stale_pause_ms, Timer::Ask(actor.clone()));
                return;
            }
            Placement::At(at) => self.is_at(now, actor, at),
            Placement::Waiting { why, never: true, .. } => {
                let error = Error::new(ErrorKind::Unschedulable, why).executed(Some(false));
                // A node that could hold it may join later: the next call asks again.
                let old = self.places.remove(actor);
                self.stale.remove(actor);
                self.refuse(now, old, &error);
                never = Some(error);
            }
            // What is known here may be newer.
            Placement::Waiting { recovering: true, .. } if self.stands(actor) => {}
            Placement::Waiting { why, .. } => {
                if self.wait(now, actor, &why) && self.has_calls(actor) {
                    self.tell_later(now, actor);
                }
            }
            Placement::Gone(error) => {
                let error = error.executed(Some(false));
                self.make_room();
                self.stale.remove(actor);
                let old = self.places.insert(actor.clone(), Place::Gone(error.clone()));
                self.refuse(now, old, &error);
            }
        }
        self.tell_watcher(actor, never);
    }

    fn is_at(&mut self, now: Now, actor: &ActorId, at: At<A>) {
        let over = match self.places.get_mut(actor) {
            Some(Place::At { at: known, .. }) if known.epoch >= at.epoch && known.address == at.address => return,
            Some(Place::Moving { to, .. }) => {
                *to = at;
                return;
            }
            Some(Place::At { lane, .. } | Place::Waiting { left: Some(lane), .. }) => Some(*lane),
            Some(Place::Waiting { left: None, .. } | Place::Gone(_)) | None => None,
        };
        match over.filter(|lane| self.is_up(*lane)) {
            Some(over) => self.fence(now, actor, over, at),
            None => self.settle(now, actor, at),
        }
    }

    /// A fence came back, or is not waited for any more.
    pub fn fence_back(&mut self, now: Now, fence: u64) {
        let Some((actor, _)) = self.fences.remove(&fence) else { return };
        match self.places.get(&actor) {
            // Not that of an earlier move, which came to nothing.
            Some(Place::Moving { fence: own, to, .. }) if *own == fence => {
                let to = to.clone();
                self.settle(now, &actor, to);
            }
            Some(_) | None => {}
        }
    }

    // Calls find their place.

    /// Sends a call to where its actor is, or keeps it until that is known.
    pub(super) fn route(&mut self, now: Now, id: CallId, actor: &ActorId) -> Result<(), Error> {
        let needs_head = match self.places.get(actor) {
            None | Some(Place::Waiting { .. } | Place::At { lane: LaneId::HEAD, .. }) => true,
            Some(Place::At { .. } | Place::Moving { .. } | Place::Gone(_)) => self.closed.is_some(),
        };
        // Nothing waits for a head that was given up.
        if let Some(error) = self.no_head(now).filter(|_| needs_head) {
            return Err(error);
        }
        if !self.places.contains_key(actor) {
            self.locate(now, actor);
        }
        let Some(call) = self.calls.get_mut(&id) else { return Ok(()) };
        let Some(request) = call.again.clone() else { return Ok(()) };
        match self.places.get_mut(actor) {
            Some(Place::At { at, lane }) => {
                let (epoch, mut over) = (at.epoch, *lane);
                if over != LaneId::HEAD && !self.lanes.contains(&over) {
                    let at = at.clone();
                    over = self.lane(now, &at);
                    self.places.insert(actor.clone(), Place::At { at, lane: over });
                }
                self.send(id, over, To::Actor(actor.clone()), epoch, request);
                Ok(())
            }
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => {
                call.lane = None;
                let is_first = queue.is_empty();
                queue.push(id, request.args.size())?;
                if is_first {
                    self.tell_later(now, actor);
                }
                Ok(())
            }
            Some(Place::Gone(error)) => Err(error.clone()),
            None => Err(Error::internal("an actor without a place")),
        }
    }

    /// Asks the head where an actor is; calls wait meanwhile.
    pub(super) fn locate(&mut self, now: Now, actor: &ActorId) {
        self.wait(now, actor, "asking the head where it is");
        self.ask(actor);
    }

    pub(super) fn ask(&mut self, actor: &ActorId) {
        self.outputs.push_back(Output::Send(LaneId::HEAD, Frame::Locate(actor.clone())));
    }

    /// Calls to the actor wait from now on. `true` when they did not before, or for another reason.
    fn wait(&mut self, now: Now, actor: &ActorId, reason: &str) -> bool {
        let (left, queue) = match self.places.get_mut(actor) {
            Some(Place::Waiting { why, .. }) if why == reason => return false,
            Some(Place::Waiting { why, told, .. }) => {
                reason.clone_into(why);
                *told = false;
                return true;
            }
            Some(Place::Moving { fence, queue, .. }) => {
                let (fence, queue) = (*fence, std::mem::take(queue));
                (self.fences.remove(&fence).map(|(_, lane)| lane), queue)
            }
            Some(Place::At { lane, .. }) => (Some(*lane), Queue::default()),
            Some(Place::Gone(_)) | None => (None, Queue::default()),
        };
        let waiting = Place::Waiting { since: now, why: reason.to_owned(), told: false, left, queue };
        self.places.insert(actor.clone(), waiting);
        true
    }

    /// The actor is somewhere: what waited for it goes there, oldest first.
    fn settle(&mut self, now: Now, actor: &ActorId, at: At<A>) {
        self.stale.remove(actor);
        self.make_room();
        let (lane, epoch) = (self.lane(now, &at), at.epoch);
        let waiting = match self.places.insert(actor.clone(), Place::At { at, lane }) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue,
            Some(Place::At { .. } | Place::Gone(_)) | None => Queue::default(),
        };
        for id in waiting.into_calls() {
            let request = self.calls.get(&id).and_then(|call| call.again.clone());
            if let Some(request) = request {
                self.send(id, lane, To::Actor(actor.clone()), epoch, request);
            }
        }
        self.tell_watcher(actor, None);
    }

    /// Forgets places that nothing waits for, where there are many. The same lane leads to the same worker when a place is asked
    /// for again, so order is kept.
    fn make_room(&mut self) {
        if self.places.len() > self.config.places_max {
            self.places.retain(|_, place| matches!(place, Place::Waiting { .. } | Place::Moving { .. }));
        }
    }

    /// What the old worker refused must be back here before anything new goes to the next one.
    fn fence(&mut self, now: Now, actor: &ActorId, over: LaneId, to: At<A>) {
        let fence = self.take_ids(1);
        let queue = match self.places.remove(actor) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue,
            Some(Place::At { .. } | Place::Gone(_)) | None => Queue::default(),
        };
        self.places.insert(actor.clone(), Place::Moving { fence, to, queue });
        self.fences.insert(fence, (actor.clone(), over));
        self.outputs.push_back(Output::Send(over, Frame::Fence(fence)));
        self.timers.set(now + self.config.fence_timeout_ms, Timer::Fence(fence));
    }

    /// Nothing will come of the calls that waited in this place.
    pub(super) fn refuse(&mut self, now: Now, place: Option<Place<A>>, error: &Error) {
        if let Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) = place {
            for id in queue.into_calls() {
                self.end(now, id, Err(error.clone()));
            }
        }
    }

    /// Takes a call out of the queue it waits in.
    pub(super) fn unqueue(&mut self, id: CallId) -> bool {
        let Some(actor) = self.calls.get(&id).and_then(|call| call.actor.clone()) else { return false };
        match self.places.get_mut(&actor) {
            Some(Place::Waiting { queue, .. } | Place::Moving { queue, .. }) => queue.remove(id),
            Some(Place::At { .. } | Place::Gone(_)) | None => false,
        }
    }

    // Who is told.

    /// Whoever watches the actor hears of it, when there is something to hear. `never` says why it has no place although
    /// it is not gone.
    fn tell_watcher(&mut self, actor: &ActorId, never: Option<Error>) {
        let result = match (never, self.places.get(actor)) {
            (Some(error), _) => Err(error),
            (None, Some(Place::At { .. })) => Ok(()),
            (None, Some(Place::Gone(error))) => Err(error.clone()),
            (None, Some(Place::Waiting { .. } | Place::Moving { .. }) | None) => return,
        };
        if self.watched.remove(actor) {
            self.outputs.push_back(Output::Placed(actor.clone(), result));
        }
    }

    /// Begun by the first call that waits, and by each new reason while one waits.
    fn tell_later(&mut self, now: Now, actor: &ActorId) {
        self.timers.set(now + self.config.overdue_ms, Timer::Overdue(actor.clone()));
    }

    /// Tells why an actor still has no place; each reason once.
    pub(super) fn overdue(&mut self, now: Now, actor: &ActorId) {
        if let Some(Place::Waiting { since, why, told, queue, .. }) = self.places.get_mut(actor)
            && now - *since >= self.config.overdue_ms
            && !queue.is_empty()
            && !*told
        {
            *told = true;
            let overdue = Overdue { actor: actor.clone(), why: why.clone(), calls: queue.len() };
            self.outputs.push_back(Output::Overdue(overdue));
        }
    }

    /// Whether calls wait for the actor's place.
    fn has_calls(&self, actor: &ActorId) -> bool {
        matches!(self.places.get(actor), Some(Place::Waiting { queue, .. }) if !queue.is_empty())
    }

    /// What is said of this actor's place may be older than what is known here.
    fn stands(&self, actor: &ActorId) -> bool {
        matches!(self.places.get(actor), Some(Place::At { lane, .. }) if self.is_up(*lane))
    }

    // Activations that are not to be called.

    /// The activation is not to be called, whatever the head still says: for good, or `until` then.
    pub(super) fn avoid(&mut self, actor: &ActorId, epoch: u64, until: Option<Millis>) {
        self.stale.insert(actor.clone(), Stale { epoch, until });
    }

    fn is_stale(&self, now: Now, actor: &ActorId, epoch: u64) -> bool {
        let waits = matches!(self.places.get(actor), Some(Place::Waiting { .. }));
        let avoided = |stale: &Stale| epoch <= stale.epoch && stale.until.is_none_or(|until| now < until);
        waits && self.stale.get(actor).is_some_and(avoided)
    }

    // Lanes.

    pub(super) fn is_up(&self, lane: LaneId) -> bool {
        lane == LaneId::HEAD || self.lanes.contains(&lane)
    }

    /// The lane to an activation's node, opened where there is none.
    fn lane(&mut self, now: Now, at: &At<A>) -> LaneId {
        if let Some((address, lane)) = self.to_node.get(&at.node)
            && *address == at.address
            && self.is_up(*lane)
        {
            return *lane;
        }
        self.last_lane += 1;
        let lane = LaneId(self.last_lane);
        self.lanes.insert(lane);
        if let Some((_, old)) = self.to_node.insert(at.node.clone(), (at.address.clone(), lane))
            && self.lanes.contains(&old)
        {
            self.timers.set(now + RETIRE_MS, Timer::Retire(old));
        }
        self.outputs.push_back(Output::Dial(lane, at.clone()));
        lane
    }

    /// Closes a lane that no new call takes, once nothing comes back over it. Places that are reached by it are asked for again.
    pub(super) fn retire(&mut self, now: Now, lane: LaneId) {
        if !self.lanes.contains(&lane) {
            return;
        }
        let is_used = self.calls.values().any(|call| call.lane == Some(lane))
            || self.fences.values().any(|(_, over)| *over == lane);
        if is_used {
            self.timers.set(now + RETIRE_MS, Timer::Retire(lane));
            return;
        }
        for place in self.places.values_mut() {
            if let Place::Waiting { left, .. } = place {
                *left = left.filter(|left| *left != lane);
            }
        }
        self.places.retain(|_, place| !matches!(place, Place::At { lane: at, .. } if *at == lane));
        self.lanes.remove(&lane);
        self.outputs.push_back(Output::Close(lane));
    }

    /// Calls on a lane go over the head from now on.
    pub(super) fn move_to_head(&mut self, from: LaneId) {
        let lanes = self.to_node.values_mut().map(|(_, lane)| lane);
        let places = self.places.values_mut().filter_map(|place| match place {
            Place::At { lane, .. } | Place::Waiting { left: Some(lane), .. } => Some(lane),
            Place::Waiting { left: None, .. } | Place::Moving { .. } | Place::Gone(_) => None,
        });
        let fences = self.fences.values_mut().map(|(_, lane)| lane);
        let calls = self.calls.values_mut().filter_map(|call| call.lane.as_mut());
        for lane in lanes.chain(places).chain(fences).chain(calls).filter(|lane| **lane == from) {
            *lane = LaneId::HEAD;
        }
    }

    // The head.

    /// Asks the head again for all that it told on its last stream.
    pub(super) fn ask_all(&mut self) {
        let is_over = |place: &Place<A>| matches!(place, Place::Gone(_));
        let mut actors: Vec<_> =
            self.places.iter().filter(|(_, place)| !is_over(place)).map(|(actor, _)| actor.clone()).collect();
        actors.sort_unstable();
        actors.iter().for_each(|actor| self.ask(actor));
        for topic in self.topics.keys() {
            self.outputs.push_back(Output::Send(LaneId::HEAD, Frame::Watch(topic.clone())));
        }
    }

    /// Nobody waits for places any more.
    pub(super) fn give_up_places(&mut self, now: Now, error: &Error) {
        let waits = |place: &Place<A>| matches!(place, Place::Waiting { .. });
        let mut actors: Vec<_> =
            self.places.iter().filter(|(_, place)| waits(place)).map(|(actor, _)| actor.clone()).collect();
        actors.sort_unstable();
        for actor in actors {
            let old = self.places.remove(&actor);
            self.refuse(now, old, error);
            self.tell_watcher(&actor, Some(error.clone()));
        }
    }
}
