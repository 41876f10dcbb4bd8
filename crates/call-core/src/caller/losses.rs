//! What becomes of calls whose worker, lane or head is lost.

use super::*;
use crate::DeadCall;
use covey_domain::{agent::known_as, error::RUNNING};

impl<B: Body, A: Clone + PartialEq> Caller<B, A> {
    /// A worker cannot be dialled: what was sent to it goes through the head, unless nobody waits for that any more.
    pub fn lane_unreachable(&mut self, now: Now, lane: LaneId) {
        if !self.lanes.remove(&lane) {
            return;
        }
        let waiting = self.select(|call| call.lane == Some(lane));
        self.move_to_head(lane);
        match self.no_head(now) {
            None => self.outputs.push_back(Output::ToHead(lane)),
            Some(error) => {
                self.outputs.push_back(Output::Close(lane));
                waiting.into_iter().for_each(|id| self.end(now, id, Err(error.clone())));
            }
        }
    }

    /// A lane broke. What never left (`unsent`) is placed again; what did has an unknown end, unless it carries a key.
    pub fn lane_lost(&mut self, now: Now, lane: LaneId, unsent: &HashSet<CallId>, why: &str) {
        if !self.lanes.remove(&lane) {
            return;
        }
        let error = Error::new(ErrorKind::ActorDied, format!("the connection to its worker broke: {why}"));
        let error = error.executed(Some(false));
        // The head hears of a worker's death as well; a worker that lives is where it was.
        let avoided = Some(now + self.config.lost_pause_ms);
        // Oldest first, so that they keep their order where they go next.
        for id in self.select(|call| call.lane == Some(lane)) {
            if unsent.contains(&id) || self.may_repeat(id) {
                self.replace(now, id, error.clone(), avoided);
            } else {
                self.end(now, id, Err(error.clone().executed(None)));
            }
        }
        self.fences_back(now, lane);
    }

    /// The stream to the head broke. What it had not taken (`unsent`) goes over the next one; of what it took and nobody
    /// answered the end is unknown. Of the frames that wait the shell keeps those that [`Frame::outlives_head`]
    /// says: calls to actors are placed anew, behind older ones that come back by this.
    pub fn head_lost(&mut self, now: Now, unsent: &HashSet<CallId>, why: &str) {
        if self.away.is_some() {
            return;
        }
        self.away = Some(Away { since: now, given_up: false });
        let error = Error::unavailable(format!("the connection to the head broke: {why}")).executed(None);
        for id in self.select(|call| call.lane == Some(LaneId::HEAD)) {
            // The actor is where it was, for all that is known.
            let avoided = Some(now);
            if unsent.contains(&id) {
                self.relocate(now, id, avoided);
            } else if self.may_repeat(id) {
                self.replace(now, id, error.clone(), avoided);
            } else {
                self.end(now, id, Err(error.clone()));
            }
        }
        self.fences_back(now, LaneId::HEAD);
        self.timers.set(now.saturating_add(self.config.patience_ms), Timer::GiveUp(now));
    }

    /// There is a stream to the head again.
    pub fn head_back(&mut self) {
        self.away = None;
        self.ask_all();
    }

    /// The head has been away since then for longer than anybody waits.
    pub(super) fn give_up(&mut self, now: Now, since: Millis) {
        match &mut self.away {
            Some(away) if away.since == since => away.given_up = true,
            Some(_) | None => return,
        }
        let error = crate::head_away(now - since, None).executed(Some(false));
        self.give_up_places(now, &error);
        self.give_up_topics(now, &error);
        // Since the head is away nothing was taken of these.
        for id in self.select(|call| call.lane == Some(LaneId::HEAD)) {
            self.end(now, id, Err(error.clone()));
        }
        self.outputs.push_back(Output::DropWaiting);
    }

    /// Fences over a lane that broke come back when its calls are back.
    fn fences_back(&mut self, now: Now, lane: LaneId) {
        let back: Vec<_> = self.fences.iter().filter(|(_, (_, over))| *over == lane).map(|(fence, _)| *fence).collect();
        for fence in back {
            self.fence_back(now, fence);
        }
    }

    /// The method raised what its caller wants to be tried again. Nothing that happens to its lane meanwhile concerns it.
    pub(super) fn raised(&mut self, now: Now, id: CallId, error: Error) {
        let dice = self.roll();
        let pause = self.take_retry(id).then(|| self.calls.get_mut(&id)).flatten().and_then(|call| {
            call.lane = None;
            call.ran = Some(true);
            call.raised += 1;
            call.retry().map(|retry| retry.pause_ms(call.raised - 1, dice))
        });
        match pause {
            Some(pause) => drop(self.timers.set(now.saturating_add(pause), Timer::Retry(id))),
            None => self.end(now, id, Err(error)),
        }
    }

    /// The pause of a call that raised is over. Its actor is where it was, for all that is known.
    pub(super) fn retried(&mut self, now: Now, id: CallId) {
        let Some(actor) = self.calls.get(&id).and_then(|call| call.actor.clone()) else { return };
        if let Err(why) = self.route(now, id, &actor) {
            self.end(now, id, Err(why.executed(Some(false))));
        }
    }

    /// A call's actor died under it: it is sent again, if it may be, and if it is not what kills the actor.
    pub(super) fn lost(&mut self, now: Now, id: CallId, error: Error) {
        if let Some(call) = self.calls.get_mut(&id) {
            let running = error.detail.as_deref() == Some(RUNNING);
            call.ran = if running { Some(true) } else { call.ran.filter(|ran| *ran) };
        }
        if error.detail.as_deref() == Some(RUNNING)
            && let Some(dead) = self.killed(id, &error)
        {
            let attempts = dead.attempts;
            self.outputs.push_back(Output::Send(LaneId::HEAD, Frame::DeadLetter(dead)));
            let text =
                format!("{attempts} processes died while they ran this call, the last because {}", error.message);
            let given_up = Error::new(ErrorKind::FailedPrecondition, text).executed(Some(true));
            let given_up = given_up.hint("it is not tried again; `covey dead-letters` lists such calls");
            return self.end(now, id, Err(given_up));
        }
        if self.take_retry(id) { self.refused(now, id, error) } else { self.end(now, id, Err(error)) }
    }

    /// A process died while the call was running in it. Gives the call where it has been so often enough.
    fn killed(&mut self, id: CallId, error: &Error) -> Option<DeadCall> {
        let call = self.calls.get_mut(&id)?;
        call.killed += 1;
        let (request, actor) = (call.again.as_ref()?, call.actor.clone()?);
        (call.killed >= caps::POISON_AFTER).then(|| DeadCall {
            actor,
            method: known_as(&request.method).to_owned(),
            bytes: request.args.size(),
            attempts: call.killed,
            error: error.message.clone(),
        })
    }

    /// A worker did not run a call: its actor is not there any more, so it is looked for anew.
    pub(super) fn refused(&mut self, now: Now, id: CallId, error: Error) {
        // An activation that its worker does not have is over. One that was not reached may be where it was.
        let over = error.kind == ErrorKind::ActorDied && error.executed == Some(false);
        let avoided = (!over).then(|| now + self.config.lost_pause_ms);
        self.replace(now, id, error, avoided);
    }

    /// Places a call once more; until then its activation is not called again, or for good.
    fn replace(&mut self, now: Now, id: CallId, error: Error, avoided: Option<Millis>) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.placed = call.placed.saturating_add(1);
        if call.actor.is_none() || call.again.is_none() || call.placed > self.config.placed_max {
            return self.end(now, id, Err(error));
        }
        self.relocate(now, id, avoided);
    }

    /// The same, as often as it takes. A call to a model stays where it is.
    fn relocate(&mut self, now: Now, id: CallId, avoided: Option<Millis>) {
        let Some((Some(actor), epoch)) = self.calls.get(&id).map(|call| (call.actor.clone(), call.epoch)) else {
            return;
        };
        if matches!(self.places.get(&actor), Some(Place::At { at, .. }) if at.epoch <= epoch) {
            self.avoid(&actor, epoch, avoided);
            self.locate(now, &actor);
        }
        if let Err(error) = self.route(now, id, &actor) {
            self.end(now, id, Err(error.executed(Some(false))));
        }
    }

    /// Whether a call that may have run is sent again. With a key it is: where it was sent, it is answered from memory, and
    /// elsewhere it is not run.
    fn may_repeat(&mut self, id: CallId) -> bool {
        let Some(call) = self.calls.get_mut(&id) else { return false };
        call.ran = call.ran.filter(|ran| *ran);
        match &call.again {
            Some(request) if !request.key.is_empty() => {
                call.tried = call.epoch;
                true
            }
            Some(_) => self.take_retry(id),
            None => false,
        }
    }

    /// Takes one of the times a call may be sent again although it may have run.
    fn take_retry(&mut self, id: CallId) -> bool {
        match self.calls.get_mut(&id) {
            Some(call) if call.retries > 0 && call.again.is_some() => {
                call.retries -= 1;
                (call.placed, call.tried) = (0, 0);
                call.alone = alone(call.killed, call.retries);
                true
            }
            Some(_) | None => false,
        }
    }
}
