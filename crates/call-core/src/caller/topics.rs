//! Publishing: one copy of a message to each node that has listeners, and calls to those that have no place yet.

use super::*;

/// A listener whose mailbox is full is tried again after this time, doubled each time up to the last, while the message
/// must arrive.
const AGAIN_FIRST_MS: Millis = 10;
const AGAIN_LAST_MS: Millis = 1_000;
/// Times a message that must arrive is sent again when its listener dies under it.
const RETRIES: u32 = 16;

/// Who waits for the end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Who started it.
    Asked,
    /// A message that must arrive: the call that published it, and the pause before a listener whose mailbox is full is
    /// tried again.
    Listener { message: CallId, pause: Millis },
    /// Nobody: a message that need not arrive.
    Nobody,
}

pub(super) enum Topic<B> {
    /// The head was asked who listens; these wait for the answer.
    Asked(Vec<Publish<B>>),
    /// Listeners, and the method of each.
    Known(Arc<Vec<(ActorId, String)>>),
}

/// A message to a topic.
pub(super) struct Publish<B> {
    id: CallId,
    request: Arc<Request<B>>,
    /// It must arrive: at least once, with the answers waited for.
    sure: bool,
}

/// Answers to a message that are still missing.
pub(super) struct Gather {
    left: usize,
    reached: u32,
}

/// A listener that is tried again.
pub(super) struct Listening<B> {
    actor: ActorId,
    request: Arc<Request<B>>,
    message: CallId,
    pause: Millis,
}

impl<B: Body, A: Clone + PartialEq> Caller<B, A> {
    /// Publishes a message whose call is open already, once it is known who listens.
    pub(super) fn publish(
        &mut self,
        now: Now,
        id: CallId,
        topic: String,
        request: &Arc<Request<B>>,
        sure: bool,
    ) -> Result<(), Error> {
        let publish = Publish { id, request: request.clone(), sure };
        match self.topics.get_mut(&topic) {
            Some(Topic::Known(members)) => {
                let members = members.clone();
                self.send_out(now, &members, publish);
            }
            Some(Topic::Asked(waiting)) => waiting.push(publish),
            None => {
                if let Some(error) = self.no_head(now) {
                    return Err(error);
                }
                self.topics.insert(topic.clone(), Topic::Asked(vec![publish]));
                self.outputs.push_back(Output::Send(LaneId::HEAD, Frame::Watch(topic)));
            }
        }
        Ok(())
    }

    /// The head says who listens, and by which method.
    pub fn topic_told(&mut self, now: Now, topic: &str, members: Vec<(ActorId, String)>) {
        let members = Arc::new(members);
        if self.topics.len() > self.config.places_max {
            // Those that are published to again are asked for again.
            self.topics.retain(|_, topic| matches!(topic, Topic::Asked(_)));
        }
        if let Some(Topic::Asked(waiting)) = self.topics.insert(topic.to_owned(), Topic::Known(members.clone())) {
            for publish in waiting {
                self.send_out(now, &members, publish);
            }
        }
    }

    /// The next message asks anew who listens: after an actor joined or left by another way than this caller.
    pub fn forget_topic(&mut self, topic: &str) {
        if let Some(Topic::Known(_)) = self.topics.get(topic) {
            self.topics.remove(topic);
        }
    }

    /// Nobody waits any more to hear who listens.
    pub(super) fn give_up_topics(&mut self, now: Now, error: &Error) {
        let asked: Vec<_> = self.topics.extract_if(.., |_, topic| matches!(topic, Topic::Asked(_))).collect();
        for (_, topic) in asked {
            if let Topic::Asked(waiting) = topic {
                waiting.into_iter().for_each(|publish| self.end(now, publish.id, Err(error.clone())));
            }
        }
    }

    /// Sends a message to its listeners.
    fn send_out(&mut self, now: Now, members: &[(ActorId, String)], publish: Publish<B>) {
        let Publish { id, request, sure } = publish;
        if !self.calls.contains_key(&id) {
            // It was cancelled, or its time was over.
            return;
        }
        let count = members.len();
        if self.calls.len() + count > self.config.calls_max {
            let many = Error::new(ErrorKind::Overloaded, format!("{} calls are open", self.config.calls_max));
            return self.end(now, id, Err(many.executed(Some(false))));
        }
        if count == 0 {
            return self.end(now, id, Ok(0));
        }
        let (purpose, retries) = match sure {
            true => (Purpose::Listener { message: id, pause: AGAIN_FIRST_MS }, RETRIES),
            false => (Purpose::Nobody, 0),
        };
        if sure {
            self.gathers.insert(id, Gather { left: count, reached: 0 });
        }
        // One copy for all listeners on a node that have the same method.
        let mut groups: BTreeMap<(LaneId, &str), Vec<(ActorId, u64)>> = BTreeMap::new();
        let mut alone = Vec::new();
        for (actor, method) in members {
            match self.places.get(actor) {
                Some(Place::At { at, lane }) if self.is_up(*lane) => {
                    groups.entry((*lane, method)).or_default().push((actor.clone(), at.epoch));
                }
                _ => alone.push((actor, method)),
            }
        }
        let call = |actor: &ActorId, request: &Arc<Request<B>>| {
            Call::new(Some(actor.clone()), Some(request.clone()), retries, purpose)
        };
        for ((lane, method), mut group) in groups {
            let request = Arc::new(said(&request, method, sure));
            let first = self.take_ids(group.len() as u64);
            for (number, (actor, epoch)) in (first..).zip(&group) {
                self.calls.insert(number, Call { lane: Some(lane), epoch: *epoch, ..call(actor, &request) });
            }
            let also = group.split_off(1);
            if let Some((actor, epoch)) = group.pop() {
                let to = To::Actor(actor);
                let open = Open { call: first, to, epoch, tried: 0, alone: false, also, request };
                self.outputs.push_back(Output::Send(lane, Frame::Open(open)));
            }
        }
        for (actor, method) in alone {
            let number = self.take_ids(1);
            self.calls.insert(number, call(actor, &Arc::new(said(&request, method, sure))));
            if let Err(error) = self.route(now, number, actor) {
                self.end(now, number, Err(error.executed(Some(false))));
            }
        }
        if !sure {
            // Nobody waits for the listeners.
            self.end(now, id, Ok(count as u32));
        }
    }

    /// What is done with a listener's end: one whose mailbox was full is called again after a pause.
    pub(super) fn listener_ended(&mut self, now: Now, id: CallId, call: Call<B>, end: Result<u32, Error>) {
        let Purpose::Listener { message, pause } = call.purpose else { return };
        match (end, call.actor, call.again) {
            (Err(error), Some(actor), Some(request))
                if error.kind == ErrorKind::Overloaded && self.gathers.contains_key(&message) =>
            {
                self.again.insert(id, Listening { actor, request, message, pause });
                self.timers.set(now + pause, Timer::Listener(id));
            }
            // What a listener's own code raised, it has heard.
            (end, ..) => self.heard(message, end.is_ok() || end.is_err_and(|e| e.kind == ErrorKind::Application)),
        }
    }

    pub(super) fn listen_again(&mut self, now: Now, id: CallId) {
        let Some(Listening { actor, request, message, pause }) = self.again.remove(&id) else { return };
        let purpose = Purpose::Listener { message, pause: (pause * 2).min(AGAIN_LAST_MS) };
        let number = self.take_ids(1);
        self.calls.insert(number, Call::new(Some(actor.clone()), Some(request), RETRIES, purpose));
        if let Err(error) = self.route(now, number, &actor) {
            self.end(now, number, Err(error.executed(Some(false))));
        }
    }

    /// One listener of a message has answered.
    pub(super) fn heard(&mut self, message: CallId, reached: bool) {
        let Some(gather) = self.gathers.get_mut(&message) else { return };
        gather.reached += u32::from(reached);
        gather.left -= 1;
        if gather.left == 0 {
            let reached = gather.reached;
            self.gathers.remove(&message);
            if self.take(message).is_some() {
                self.outputs.push_back(Output::Ended(message, Ok(reached)));
            }
        }
    }
}

/// The message as a listener with this method hears it. The publisher's turn waits for its listeners only if it must arrive.
fn said<B: Body>(request: &Request<B>, method: &str, sure: bool) -> Request<B> {
    Request {
        method: method.to_owned(),
        args: request.args.clone(),
        chain: if sure { request.chain.clone() } else { String::new() },
        key: String::new(),
        traceparent: String::new(),
        timeout_ms: 0,
        run_timeout_ms: 0,
        retry: None,
        alone: false,
    }
}
