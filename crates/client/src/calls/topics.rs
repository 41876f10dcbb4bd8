//! Publishing: one copy of a message to each node that has listeners, and calls to those that have no place yet.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use covey_domain::{ActorId, Error, ErrorKind, caps};
use covey_proto::{
    payload_json,
    v1::{Also, CallFrame, CallOpen, Payload, TopicMembers, call_frame::Body, call_open},
};

use super::{
    CallEvent, Handler, Inner, NewCall, Open, Target, lane,
    place::{Place, State},
};

/// A listener whose mailbox is full is tried again after this time, doubled each time up to the last, while the message
/// must arrive.
const AGAIN_FIRST: Duration = Duration::from_millis(10);
const AGAIN_LAST: Duration = Duration::from_secs(1);
/// Times a message that must arrive is sent again when its listener dies under it.
const RETRIES: u32 = 16;

pub(super) enum Topic {
    /// The head was asked who listens; these wait for the answer.
    Asked(Vec<Publish>),
    Known(Arc<TopicMembers>),
}

/// A message to a topic.
pub(super) struct Publish {
    id: u64,
    args: Payload,
    chain: String,
    /// It must arrive: at least once, with the answers waited for.
    sure: bool,
}

impl Publish {
    /// Its call.
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// A listener, its activation, and the lane that leads there.
type Placed = (ActorId, u64, lane::Sender);

/// Answers that are still missing.
struct Gather {
    inner: std::sync::Weak<Inner>,
    id: u64,
    left: AtomicU32,
    reached: AtomicU32,
}

/// A message that one listener must hear.
struct Heard {
    actor: ActorId,
    method: String,
    args: Payload,
    gather: Arc<Gather>,
}

impl Gather {
    fn one(&self, reached: bool) {
        self.reached.fetch_add(u32::from(reached), Ordering::Relaxed);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(inner) = self.inner.upgrade()
        {
            inner.end(self.id, Ok(Some(payload_json(&self.reached.load(Ordering::Relaxed)))));
        }
    }
}

impl Inner {
    /// Publishes a message whose call is open already, once it is known who listens.
    pub(super) fn publish(self: &Arc<Self>, id: u64, topic: &str, call: &mut NewCall) -> Option<Error> {
        let publish = Publish {
            id,
            args: std::mem::take(&mut call.args),
            // The publisher's turn waits for its listeners only if the message must arrive.
            chain: if call.retries > 0 { std::mem::take(&mut call.chain) } else { String::new() },
            sure: call.retries > 0,
        };
        let mut state = self.state.lock();
        if let (false, Some(error)) = (state.topics.contains_key(topic), state.no_head()) {
            return Some(error);
        }
        match state.topics.get_mut(topic) {
            Some(Topic::Known(members)) => {
                let members = members.clone();
                let ends = self.send_out(&mut state, &members, publish);
                drop(state);
                self.finish(ends);
            }
            Some(Topic::Asked(waiting)) => waiting.push(publish),
            None => {
                state.topics.insert(topic.to_owned(), Topic::Asked(vec![publish]));
                let _ = state.head.send(CallFrame { id: 0, body: Some(Body::WatchTopic(topic.to_owned())) });
            }
        }
        None
    }

    /// The head says who listens.
    pub(super) fn topic_told(self: &Arc<Self>, members: TopicMembers) {
        let members = Arc::new(members);
        let mut state = self.state.lock();
        let before = state.topics.insert(members.topic.clone(), Topic::Known(members.clone()));
        let Some(Topic::Asked(waiting)) = before else { return };
        // Under the lock: what waited goes before what is published now.
        let ends: Vec<_> =
            waiting.into_iter().flat_map(|publish| self.send_out(&mut state, &members, publish)).collect();
        drop(state);
        self.finish(ends);
    }

    fn finish(&self, ends: Vec<(u64, Result<u32, Error>)>) {
        for (id, end) in ends {
            self.end(id, end.map(|count| Some(payload_json(&count))).map_err(|e| e.executed(Some(false))));
        }
    }

    /// Sends a message to its listeners; gives the calls that are over by that, which are ended without the lock.
    fn send_out(
        self: &Arc<Self>,
        state: &mut State,
        members: &TopicMembers,
        publish: Publish,
    ) -> Vec<(u64, Result<u32, Error>)> {
        let Publish { id, args, chain, sure } = publish;
        let count = members.members.len() as u32;
        if self.count.load(Ordering::Relaxed) + count as usize > caps::CALLS_OPEN_MAX {
            let error = Error::new(ErrorKind::Overloaded, format!("{} calls are open", caps::CALLS_OPEN_MAX));
            return vec![(id, Err(error))];
        }
        if count == 0 {
            return vec![(id, Ok(0))];
        }
        let gather = Arc::new(Gather {
            inner: Arc::downgrade(self),
            id,
            left: AtomicU32::new(count),
            reached: AtomicU32::new(0),
        });
        let mut groups: HashMap<(String, &str), Vec<Placed>> = HashMap::new();
        let mut ends = Vec::new();
        let retries = if sure { RETRIES } else { 0 };
        let open = |method: &str, actor: &ActorId, epoch| CallOpen {
            target: Some(call_open::Target::Actor(actor.to_string())),
            method: method.to_owned(),
            args: Some(args.clone()),
            epoch,
            chain: chain.clone(),
            ..CallOpen::default()
        };
        let insert = |number: u64, actor: &ActorId, method: &str, epoch| {
            let handler: Handler = if sure {
                let (actor, method) = (actor.clone(), method.to_owned());
                let heard = Heard { actor, method, args: args.clone(), gather: gather.clone() };
                self.listener(heard, AGAIN_FIRST)
            } else {
                Box::new(|_, _| {})
            };
            let (again, actor) = (Some(open(method, actor, epoch)), Some(actor.clone()));
            self.count.fetch_add(1, Ordering::Relaxed);
            self.open.insert(number, Open { actor, again, retries, ..Open::new(handler) });
        };
        for member in &members.members {
            let actor = ActorId::from(member.actor.as_str());
            match state.places.get(&actor) {
                Some(Place::At { at, lane }) if !lane.is_closed() => {
                    let group = groups.entry((at.node.clone(), &member.method)).or_default();
                    group.push((actor, at.epoch, lane.clone()));
                }
                _ => {
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    insert(number, &actor, &member.method, 0);
                    if let Err(error) = self.route(state, number, &actor, open(&member.method, &actor, 0)) {
                        ends.push((number, Err(error)));
                    }
                }
            }
        }
        for ((_, method), group) in groups {
            let first = self.next.fetch_add(group.len() as u64, Ordering::Relaxed);
            for (number, (actor, epoch, lane)) in (first..).zip(&group) {
                insert(number, actor, method, *epoch);
                self.open.sent(number, lane.clone(), *epoch);
            }
            let (actor, epoch, lane) = &group[0];
            let also = group[1..].iter().map(|(a, epoch, _)| Also { actor: a.to_string(), epoch: *epoch });
            let frame = CallOpen { also: also.collect(), ..open(method, actor, *epoch) };
            let _ = lane.send(CallFrame { id: first, body: Some(Body::Open(frame)) });
        }
        if !sure {
            // Nobody waits for the listeners.
            ends.push((id, Ok(count)));
        }
        ends
    }

    /// What is done with a listener's answer: one whose mailbox was full is called again after `pause`, while the message
    /// must arrive.
    fn listener(self: &Arc<Self>, heard: Heard, pause: Duration) -> Handler {
        let (weak, mut heard) = (Arc::downgrade(self), Some(heard));
        Box::new(move |_, event| {
            let CallEvent::End(end) = event else { return };
            let Some(heard) = heard.take() else { return };
            match end {
                Err(error) if error.kind == ErrorKind::Overloaded => {
                    let Some(inner) = weak.upgrade() else { return };
                    inner.runtime.clone().spawn(async move {
                        tokio::time::sleep(pause).await;
                        let target = Target::Actor(heard.actor.clone());
                        let call =
                            NewCall { retries: RETRIES, ..NewCall::new(target, &heard.method, heard.args.clone()) };
                        let id = inner.next.fetch_add(1, Ordering::Relaxed);
                        let handler = inner.listener(heard, (pause * 2).min(AGAIN_LAST));
                        inner.start(id, call, handler);
                    });
                }
                // What a listener's own code raised, it has heard.
                end => heard.gather.one(end.is_ok() || end.is_err_and(|e| e.kind == ErrorKind::Application)),
            }
        })
    }

    /// The next message asks anew who listens.
    pub(super) fn forget_topic(&self, topic: &str) {
        let mut state = self.state.lock();
        if let Some(Topic::Known(_)) = state.topics.get(topic) {
            state.topics.remove(topic);
        }
    }
}
