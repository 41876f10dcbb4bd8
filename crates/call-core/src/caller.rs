//! The caller's end of calls: one machine for all calls of a driver or of a worker's processes.
//!
//! What is promised, and how:
//! - Calls to one actor arrive in the order in which they were started. While an actor has no place they wait here; when it
//!   moves, a fence on the old lane brings back what that worker refused before new calls go out.
//! - What a worker refused without running it (`executed = false`) is placed again; it is never run twice by this.
//! - What was under way when a lane broke fails with `executed = None`, unless the call carries a key: then it is sent
//!   again, and the activation that has run it answers from memory, or one that began with its state. Any other does not run
//!   it, unless `retries` allow that.
//! - Each call has one end: an answer ([`Caller::succeeded`], where that says so), or an [`Output::Ended`].
//!
//! The shell calls [`Caller::poll`] until it gives nothing after each of its own calls, and [`Caller::handle_timeout`] at
//! [`Caller::next_timeout`].

mod losses;
mod places;
mod topics;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use covey_domain::{ActorId, Error, ErrorKind, Millis, NodeId, Retry, caps};

use crate::{
    At, Body, CallId, Frame, IdMap, LaneId, Now, Open, Output, Overdue, Request, Target, To,
    timers::{Key, Timer, Timers},
};
use places::{Place, Stale};
use topics::{Listening, Purpose, Topic};

/// How long things take until something else is done.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whoever calls is told after so long why an actor still has no place.
    pub overdue_ms: Millis,
    /// A fence that does not come back within this time was not heard.
    pub fence_timeout_ms: Millis,
    /// Pause before the head is asked again where an actor is that was not where it said.
    pub stale_pause_ms: Millis,
    /// A worker that has a call whose time is over has so long to say so.
    pub deadline_answer_ms: Millis,
    /// A worker whose lane broke is not called again within this time, unless the head places the actor anew.
    pub lost_pause_ms: Millis,
    /// How long what needs the head waits for it.
    pub patience_ms: Millis,
    /// Times one call is placed again before its refusal is believed.
    pub placed_max: u8,
    /// Places remembered; beyond it those of actors that nothing waits for are forgotten, and asked for again when needed.
    pub places_max: usize,
    /// Calls open at once.
    pub calls_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            overdue_ms: 2_000,
            fence_timeout_ms: 1_000,
            stale_pause_ms: 5,
            deadline_answer_ms: 500,
            lost_pause_ms: 1_000,
            patience_ms: 30_000,
            placed_max: 16,
            places_max: 100_000,
            calls_max: caps::CALLS_OPEN_MAX,
        }
    }
}

/// How often it is looked whether a lane that no new call takes is still used.
const RETIRE_MS: Millis = 1_000;

/// A call under way.
struct Call<B> {
    actor: Option<ActorId>,
    /// To send it again; `None` where that cannot be: it was answered in part, or it goes to a model.
    again: Option<Arc<Request<B>>>,
    /// Where it went; `None` while it waits.
    lane: Option<LaneId>,
    /// The activation that it was sent to last.
    epoch: u64,
    /// The activation that may have run it.
    tried: u64,
    alone: bool,
    /// Whether an earlier sending of it ran; `None` = nobody knows.
    ran: Option<bool>,
    /// Times it was placed again.
    placed: u8,
    retries: u32,
    /// Processes that died while it was running in them.
    killed: u32,
    /// Tries after exceptions.
    raised: u32,
    deadline: Option<Key>,
    purpose: Purpose,
}

/// The head cannot be reached.
struct Away {
    since: Millis,
    /// It has been away for so long that nobody waits for it any more.
    given_up: bool,
}

/// The caller's end.
pub struct Caller<B, A> {
    config: Config,
    next: u64,
    dice: u64,
    calls: IdMap<Call<B>>,
    places: HashMap<ActorId, Place<A>>,
    /// Lanes that stand, [`LaneId::HEAD`] aside.
    lanes: HashSet<LaneId>,
    /// The lane that new calls to a node take, and where it leads.
    to_node: HashMap<NodeId, (A, LaneId)>,
    last_lane: u64,
    /// For whom each fence is, and over which lane.
    fences: BTreeMap<u64, (ActorId, LaneId)>,
    /// Activations that are over, or not to be reached for a while.
    stale: HashMap<ActorId, Stale>,
    /// Actors whose place somebody waits to hear of.
    watched: HashSet<ActorId>,
    topics: BTreeMap<String, Topic<B>>,
    /// Messages whose listeners have not all answered.
    gathers: HashMap<CallId, topics::Gather>,
    /// Listeners that are tried again.
    again: HashMap<CallId, Listening<B>>,
    away: Option<Away>,
    closed: Option<Error>,
    timers: Timers,
    outputs: VecDeque<Output<B, A>>,
}

impl<B: Body, A: Clone + PartialEq> Caller<B, A> {
    /// No calls yet. `dice` is any number: pauses are drawn from it.
    pub fn new(config: Config, dice: u64) -> Self {
        Self {
            config,
            next: 1,
            dice,
            calls: IdMap::default(),
            places: HashMap::new(),
            lanes: HashSet::new(),
            to_node: HashMap::new(),
            last_lane: LaneId::HEAD.0,
            fences: BTreeMap::new(),
            stale: HashMap::new(),
            watched: HashSet::new(),
            topics: BTreeMap::new(),
            gathers: HashMap::new(),
            again: HashMap::new(),
            away: None,
            closed: None,
            timers: Timers::default(),
            outputs: VecDeque::new(),
        }
    }

    // What the shell carries out.

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<Output<B, A>> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub fn next_timeout(&self) -> Option<Now> {
        self.timers.first()
    }

    // What is known.

    /// Whether a call is not over yet.
    pub fn is_open(&self, call: CallId) -> bool {
        self.calls.contains_key(&call)
    }

    /// Open calls on an actor, oldest first.
    pub fn calls_on(&self, actor: &ActorId) -> Vec<CallId> {
        self.select(|call| call.actor.as_ref() == Some(actor))
    }

    /// All open calls, oldest first.
    pub fn all_calls(&self) -> Vec<CallId> {
        self.select(|_| true)
    }

    /// The head cannot be reached at this moment, or no more.
    pub fn is_away(&self) -> bool {
        self.away.is_some() || self.closed.is_some()
    }

    /// Why nothing can be called any more.
    pub fn closed(&self) -> Option<&Error> {
        self.closed.as_ref()
    }

    fn select(&self, wanted: impl Fn(&Call<B>) -> bool) -> Vec<CallId> {
        let mut found: Vec<_> = self.calls.iter().filter(|(_, call)| wanted(call)).map(|(id, _)| *id).collect();
        found.sort_unstable();
        found
    }

    // What happens.

    /// How long what needs the head waits for it from now on.
    pub fn set_patience(&mut self, patience_ms: Millis) {
        self.config.patience_ms = patience_ms;
    }

    /// A number for a call that is started next.
    pub fn next_id(&mut self) -> CallId {
        self.take_ids(1)
    }

    fn take_ids(&mut self, count: u64) -> u64 {
        self.next += count;
        self.next - count
    }

    /// A call whose number was drawn before does not start: the shell refuses it.
    pub fn refuse_start(&mut self, id: CallId, error: Error) {
        self.outputs.push_back(Output::Ended(id, Err(error.executed(Some(false)))));
    }

    /// Starts a call whose number was drawn before.
    pub fn start(&mut self, now: Now, id: CallId, target: Target, request: Request<B>, retries: u32) {
        if self.calls.len() >= self.config.calls_max {
            let many = Error::new(ErrorKind::Overloaded, format!("{} calls are open", self.config.calls_max));
            return self.refuse_start(id, many);
        }
        let timeout_ms = request.timeout_ms;
        let started = self.begin(now, id, target, request, retries);
        match started {
            Err(error) => self.end(now, id, Err(error.executed(Some(false)))),
            Ok(()) if timeout_ms > 0 => {
                let key = self.timers.set(now.saturating_add(timeout_ms), Timer::Deadline(id));
                match self.calls.get_mut(&id) {
                    Some(call) => call.deadline = Some(key),
                    None => self.timers.unset(key),
                }
            }
            Ok(()) => {}
        }
    }

    fn begin(&mut self, now: Now, id: CallId, target: Target, request: Request<B>, retries: u32) -> Result<(), Error> {
        let request = Arc::new(request);
        match target {
            Target::Topic(topic) => {
                self.calls.insert(id, Call::new(None, None, 0, Purpose::Asked));
                self.publish(now, id, topic, &request, retries > 0)
            }
            Target::Actor(actor) => {
                let again = Some(request);
                self.calls.insert(id, Call::new(Some(actor.clone()), again, retries, Purpose::Asked));
                self.route(now, id, &actor)
            }
            Target::Model(model) => {
                let call = Call::new(None, None, 0, Purpose::Asked);
                self.calls.insert(id, call);
                if let Some(error) = self.no_head(now) {
                    return Err(error);
                }
                self.send(id, LaneId::HEAD, To::Model(model), 0, request);
                Ok(())
            }
        }
    }

    /// An item of a call came. `false`: nobody waits for it.
    pub fn item(&mut self, id: CallId) -> bool {
        let Some(call) = self.calls.get_mut(&id) else { return false };
        // What has been answered in part is not sent again.
        call.again = None;
        matches!(call.purpose, Purpose::Asked)
    }

    /// A call has its answer. `false`: nobody waits for it.
    pub fn succeeded(&mut self, id: CallId) -> bool {
        match self.take(id).map(|call| call.purpose) {
            Some(Purpose::Asked) => true,
            Some(Purpose::Listener { message, .. }) => {
                self.heard(message, true);
                false
            }
            Some(Purpose::Nobody) | None => false,
        }
    }

    /// A call failed, by what its worker or the head says.
    pub fn failed(&mut self, now: Now, id: CallId, error: Error) {
        if error.retry {
            self.raised(now, id, error);
        } else if is_refusal(&error) {
            self.refused(now, id, error);
        } else if is_loss(&error) {
            self.lost(now, id, error);
        } else {
            self.end(now, id, Err(error));
        }
    }

    /// Ends a call, and tells its worker.
    pub fn cancel(&mut self, now: Now, id: CallId, kind: ErrorKind, why: &str) {
        if !self.calls.contains_key(&id) {
            return;
        }
        let queued = self.unqueue(id);
        if !queued {
            self.tell_worker(id, |call| Frame::Cancel { call, reason: why.to_owned() });
        }
        self.end(now, id, Err(Error::new(kind, why).executed(queued.then_some(false))));
    }

    /// Tells the worker of a call to stop it. Its end says whether its turn goes on all the same.
    pub fn cancel_there(&mut self, now: Now, id: CallId) {
        let Some(call) = self.calls.get(&id) else { return };
        let sent = call.lane.is_some();
        let queued = self.unqueue(id);
        if sent && !queued {
            self.tell_worker(id, |call| Frame::Cancel { call, reason: "cancelled".to_owned() });
        } else {
            let error = Error::new(ErrorKind::Cancelled, "cancelled").executed(queued.then_some(false));
            self.end(now, id, Err(error));
        }
    }

    /// The reader of a call has room for more items.
    pub fn credit(&mut self, id: CallId, items: u32) {
        self.tell_worker(id, |call| Frame::Credit { call, items });
    }

    /// The driver goes for good.
    pub fn leave(&mut self) {
        self.outputs.push_back(Output::Send(LaneId::HEAD, Frame::Leave));
    }

    /// Nothing is called any more: all that is open ends.
    pub fn close(&mut self, now: Now, error: &Error) {
        self.closed = Some(error.clone());
        for id in self.all_calls() {
            self.end(now, id, Err(error.clone().executed(None)));
        }
        self.places.clear();
        self.to_node.clear();
        self.fences.clear();
        self.topics.clear();
        self.gathers.clear();
        self.again.clear();
        self.stale.clear();
        self.watched.clear();
        self.timers.clear();
        let mut lanes: Vec<_> = self.lanes.drain().collect();
        lanes.sort_unstable();
        self.outputs.extend(lanes.into_iter().map(Output::Close));
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.timers.take(now) {
            match timer {
                Timer::Deadline(id) => self.late(now, id),
                Timer::DeadlineUnanswered(id) => self.cancel(now, id, ErrorKind::DeadlineExceeded, LATE),
                Timer::Retry(id) => self.retried(now, id),
                Timer::Listener(id) => self.listen_again(now, id),
                Timer::Overdue(actor) => self.overdue(now, &actor),
                Timer::Ask(actor) => self.ask(&actor),
                Timer::Fence(fence) => self.fence_back(now, fence),
                Timer::GiveUp(since) => self.give_up(now, since),
                Timer::Retire(lane) => self.retire(now, lane),
            }
        }
    }

    /// The time for a call is over. A worker that has it ends it itself, and knows whether its turn goes on.
    fn late(&mut self, now: Now, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        if call.lane.is_some() {
            call.deadline = Some(self.timers.set(now + self.config.deadline_answer_ms, Timer::DeadlineUnanswered(id)));
        } else {
            self.cancel(now, id, ErrorKind::DeadlineExceeded, LATE);
        }
    }

    // How a call travels and ends.

    /// Takes a call that is over.
    fn take(&mut self, id: CallId) -> Option<Call<B>> {
        let call = self.calls.remove(&id)?;
        if let Some(key) = call.deadline {
            self.timers.unset(key);
        }
        Some(call)
    }

    /// A call is over by this. That its last sending did not run says nothing of those before.
    fn end(&mut self, now: Now, id: CallId, mut end: Result<u32, Error>) {
        let Some(call) = self.take(id) else { return };
        if let Err(error @ Error { executed: Some(false), .. }) = &mut end {
            error.executed = call.ran;
        }
        match call.purpose {
            Purpose::Asked => {
                self.gathers.remove(&id);
                self.outputs.push_back(Output::Ended(id, end));
            }
            Purpose::Listener { .. } => self.listener_ended(now, id, call, end),
            Purpose::Nobody => {}
        }
    }

    fn send(&mut self, id: CallId, lane: LaneId, to: To, epoch: u64, request: Arc<Request<B>>) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        (call.lane, call.epoch) = (Some(lane), epoch);
        let (tried, alone, also) = (call.tried, call.alone || request.alone, Vec::new());
        let open = Open { call: id, to, epoch, tried, alone, also, request };
        self.outputs.push_back(Output::Send(lane, Frame::Open(open)));
    }

    /// Says something of a call where it is.
    fn tell_worker(&mut self, id: CallId, frame: impl FnOnce(CallId) -> Frame<B>) {
        if let Some(lane) = self.calls.get(&id).and_then(|call| call.lane) {
            self.outputs.push_back(Output::Send(lane, frame(id)));
        }
    }

    /// Why the head cannot be asked, now or ever.
    fn no_head(&self, now: Now) -> Option<Error> {
        let given_up = || {
            let away = self.away.as_ref().filter(|away| away.given_up)?;
            Some(crate::head_away(now - away.since, None).executed(Some(false)))
        };
        self.closed.clone().or_else(given_up)
    }

    /// The next number of a sequence that [`Self::new`] seeded (SplitMix64, Steele and others, 2014).
    fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.dice ^ (self.dice >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

const LATE: &str = "the time for this call ran out";

impl<B> Call<B> {
    fn new(actor: Option<ActorId>, again: Option<Arc<Request<B>>>, retries: u32, purpose: Purpose) -> Self {
        Self {
            actor,
            again,
            lane: None,
            epoch: 0,
            tried: 0,
            alone: false,
            ran: Some(false),
            placed: 0,
            retries,
            killed: 0,
            raised: 0,
            deadline: None,
            purpose,
        }
    }

    /// Exceptions after which it is tried again.
    fn retry(&self) -> Option<&Retry> {
        self.again.as_ref()?.retry.as_deref()
    }
}

/// The worker did not run it, and another place may.
fn is_refusal(error: &Error) -> bool {
    error.executed == Some(false) && matches!(error.kind, ErrorKind::ActorDied | ErrorKind::Unavailable)
}

/// It may have run; its actor is gone.
fn is_loss(error: &Error) -> bool {
    error.executed.is_none() && matches!(error.kind, ErrorKind::ActorDied | ErrorKind::Unavailable)
}

/// Processes died under a call time after time, or it has no other try. It may be why, or may have run beside what is: that is
/// told apart when nothing runs beside it.
pub fn alone(killed: u32, retries_left: u32) -> bool {
    killed >= caps::ALONE_AFTER || (killed > 0 && retries_left == 0)
}
