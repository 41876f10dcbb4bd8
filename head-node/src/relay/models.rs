//! Requests to models: which worker takes one, and which takes it over when that worker is lost.
//!
//! A request goes where its beginning was seen before, because the worker's prefix cache may still have it, unless others
//! are much less busy there. Beginnings are compared by the bytes of the request, whose messages come first. While an
//! answer streams through, its tokens are remembered; another worker then goes on behind them, and the reader notices
//! nothing (only a model that makes text is asked again, or one that has told no vectors yet).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use covey_domain::{
    Error, ErrorKind, NodeId,
    infer::{InferEvent, InferRequest, Made, ModelOrder},
};
use covey_proto::{
    from_json,
    v1::{CallEnd, CallFrame, CallOpen, Payload, call_frame::Body},
};

use super::{Call, Place, State};

/// Bytes of a request that are compared at once.
const CHUNK: usize = 256;

/// Beginnings that are remembered, over all models.
const CHUNKS_MAX: usize = 262_144;

/// Bytes of a request that are looked at.
const LOOKED_AT_MAX: usize = 128 << 10;

/// Requests by which the worker that knows a beginning may be busier than the least busy one.
const PATIENCE: usize = 8;

/// Requests that a worker without the model in memory counts as: so many must be waiting elsewhere before it loads it.
const LOAD_WORTH: usize = 8;

/// How long a request waits for a model that no worker has, while there is no worker or the head has just begun: workers
/// dial again within that time.
pub(super) const MODEL_PATIENCE: Duration = Duration::from_secs(3);

/// Workers that one request is tried at.
const TRIES_MAX: usize = 4;

/// Where beginnings of requests were seen.
#[derive(Default)]
pub(super) struct Beginnings {
    seen: HashMap<u64, NodeId>,
    order: VecDeque<u64>,
}

impl Beginnings {
    /// Hashes of ever longer beginnings.
    fn chain(model: &str, body: &[u8]) -> Vec<u64> {
        let mut hasher = DefaultHasher::new();
        model.hash(&mut hasher);
        let looked_at = &body[..body.len().min(LOOKED_AT_MAX)];
        let chunks = looked_at.chunks_exact(CHUNK);
        chunks
            .map(|chunk| {
                hasher.write(chunk);
                hasher.finish()
            })
            .collect()
    }

    fn longest(&self, chain: &[u64]) -> Option<&NodeId> {
        chain.iter().rev().find_map(|hash| self.seen.get(hash))
    }

    /// A request went to `node`. Who knew its beginning first stays the one to ask, while it is among those that `can`.
    fn remember(&mut self, chain: Vec<u64>, node: &NodeId, can: impl Fn(&NodeId) -> bool) {
        for hash in chain {
            match self.seen.get_mut(&hash) {
                Some(known) if can(known) => {}
                Some(known) => *known = node.clone(),
                None => {
                    self.seen.insert(hash, node.clone());
                    self.order.push_back(hash);
                }
            }
        }
        while self.order.len() > CHUNKS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
    }
}

/// A request that waits for a model.
pub(super) struct Awaited {
    pub call: u64,
    model: String,
    open: CallOpen,
}

/// A request to a model that is under way.
pub(super) struct ModelCall {
    pub node: NodeId,
    pub model: String,
    /// As it came; nothing where it cannot be asked again.
    open: Option<CallOpen>,
    /// Workers that had it.
    tried: Vec<NodeId>,
    made: Vec<Made>,
    told_vectors: bool,
    /// Its last event has passed.
    done: bool,
}

impl ModelCall {
    /// Takes note of what passes; false when the reader knows it already.
    pub fn passes(&mut self, item: &Payload) -> bool {
        match covey_proto::infer_event(item) {
            // Servers elsewhere tell no tokens: nobody can go on behind what they said.
            Ok(InferEvent::Delta(delta)) if delta.tokens.is_empty() => self.open = None,
            Ok(InferEvent::Delta(delta)) => self.choice(delta.choice).tokens.extend(delta.tokens),
            Ok(InferEvent::Ended { choice, finish }) => self.choice(choice).ended = Some(finish),
            Ok(InferEvent::Vectors { .. }) => return !std::mem::replace(&mut self.told_vectors, true),
            Ok(InferEvent::Done { .. }) => self.done = true,
            // A sound is not heard from the middle on.
            Ok(InferEvent::Heard { .. }) => self.open = None,
            // Who reads it will find the same.
            Err(_) => {}
        }
        true
    }

    fn choice(&mut self, choice: u32) -> &mut Made {
        let at = self.made.iter().position(|m| m.choice == choice).unwrap_or_else(|| {
            self.made.push(Made { choice, ..Made::default() });
            self.made.len() - 1
        });
        &mut self.made[at]
    }
}

impl State {
    /// Passes a request for a model, or an order about it, to a worker.
    pub(super) fn open_model(&mut self, call: u64, (origin, id): (u64, u64), model: String, open: CallOpen) {
        let body = open.args.as_ref().map(|args| args.body.clone()).unwrap_or_default();
        let (node, again) = if open.method == "infer" {
            (self.pick(&model, &body, &[]), Some(open.clone()))
        } else {
            let order = from_json::<ModelOrder>("the order", &body);
            let linked = order.and_then(|o| match self.links.contains_key(&o.node) {
                true => Ok(o.node),
                false => Err(Error::not_found("worker", o.node)),
            });
            (linked, None)
        };
        let node = match node {
            Ok(node) => node,
            Err(error) => {
                self.calls.insert(call, Call { origin, id, place: Place::Nowhere });
                let may_come = self.links.is_empty() || self.began.elapsed() < MODEL_PATIENCE;
                if again.is_some() && may_come {
                    return self.awaited.push(Awaited { call, model, open });
                }
                return self.fail(call, error.executed(Some(false)));
            }
        };
        let place = ModelCall {
            node: node.clone(),
            model,
            open: again,
            tried: Vec::new(),
            made: Vec::new(),
            told_vectors: false,
            done: false,
        };
        self.calls.insert(call, Call { origin, id, place: Place::Model(Box::new(place)) });
        self.send_model(call, &node, open);
    }

    /// Workers told of models: requests that waited for one go there.
    pub(super) fn models_came(&mut self) {
        for Awaited { call, model, open } in std::mem::take(&mut self.awaited) {
            // Whoever was cancelled has no call any more.
            if let Some(Call { origin, id, .. }) = self.calls.get(&call) {
                self.open_model(call, (*origin, *id), model, open);
            }
        }
    }

    /// A request has waited long enough.
    pub(super) fn give_up(&mut self, call: u64) {
        let Some(at) = self.awaited.iter().position(|a| a.call == call) else { return };
        let Awaited { model, .. } = self.awaited.swap_remove(at);
        if let Err(error) = self.pick(&model, &[], &[]) {
            self.fail(call, error.executed(Some(false)));
        }
    }

    fn send_model(&mut self, call: u64, node: &NodeId, open: CallOpen) {
        if let (Some(link), Some(Call { place: Place::Model(known), .. })) =
            (self.links.get_mut(node), self.calls.get(&call))
        {
            *link.model_calls.entry(known.model.clone()).or_default() += 1;
        }
        self.to_node(node, CallFrame { id: call, body: Some(Body::Open(open)) });
    }

    /// A worker cannot answer (any more). True when another one goes on, or nothing was missing.
    pub(super) fn elsewhere(&mut self, call: u64) -> bool {
        let Some(Call { origin, id, place: Place::Model(known) }) = self.calls.get_mut(&call) else { return false };
        let (origin, id) = (*origin, *id);
        if known.done {
            self.forget(call);
            self.answer(
                origin,
                id,
                CallEnd { result: Some(covey_proto::v1::call_end::Result::Done(Default::default())) },
            );
            return true;
        }
        known.tried.push(known.node.clone());
        let (Some(mut open), model, tried, made) =
            (known.open.clone(), known.model.clone(), known.tried.clone(), known.made.clone())
        else {
            return false;
        };
        let body = open.args.as_ref().map(|args| args.body.clone()).unwrap_or_default();
        if tried.len() >= TRIES_MAX {
            return false;
        }
        let (Ok(node), Ok(mut request)) =
            (self.pick(&model, &body, &tried), from_json::<InferRequest>("the model request", &body))
        else {
            return false;
        };
        let tokens: usize = made.iter().map(|m| m.tokens.len()).sum();
        tracing::info!(%model, from = %tried[tried.len() - 1], to = %node, tokens, "an answer goes on elsewhere");
        request.made = made;
        open.args = Some(covey_proto::payload_json(&request));
        self.leave_model(call);
        if let Some(Call { place: Place::Model(known), .. }) = self.calls.get_mut(&call) {
            known.node = node.clone();
        }
        self.send_model(call, &node, open);
        true
    }

    /// A request is no more at its worker.
    pub(super) fn leave_model(&mut self, call: u64) {
        let Some(Call { place: Place::Model(known), .. }) = self.calls.get(&call) else { return };
        if let Some(count) = self.links.get_mut(&known.node).and_then(|l| l.model_calls.get_mut(&known.model)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Whether a worker's failure to answer lies with the worker and not with the request: another may do better.
    pub(super) fn is_of_the_worker(error: &Error) -> bool {
        matches!(
            error.kind,
            ErrorKind::Unavailable | ErrorKind::ActorDied | ErrorKind::Cancelled | ErrorKind::Overloaded
        )
    }

    /// The worker that takes a request: the one that knows its beginning, unless others are much less busy.
    fn pick(&mut self, model: &str, body: &[u8], without: &[NodeId]) -> Result<NodeId, Error> {
        let Self { links, beginnings, .. } = self;
        let mut loads: Vec<(usize, &NodeId)> = Vec::new();
        let mut known = HashSet::new();
        for (node, link) in &*links {
            for m in &link.models {
                known.insert(m.name.as_str());
                if m.name == model && !without.contains(node) {
                    let load = link.model_calls.get(model).copied().unwrap_or(0);
                    loads.push((load + if m.loaded { 0 } else { LOAD_WORTH }, node));
                }
            }
        }
        let Some((least, idlest)) = loads.iter().min().copied() else {
            let mut known: Vec<_> = known.into_iter().collect();
            known.sort_unstable();
            let hint = match known.as_slice() {
                [] => "no worker has a model; put one into a worker's models folder".to_owned(),
                _ => format!("served: {}", known.join(", ")),
            };
            return Err(Error::not_found("model", model).hint(hint));
        };
        let chain = Beginnings::chain(model, body);
        let knows = beginnings.longest(&chain);
        let near = loads.iter().find(|(load, node)| Some(*node) == knows && *load <= least + PATIENCE);
        let chosen = near.map_or(idlest, |(_, node)| node).clone();
        beginnings.remember(chain, &chosen, |node| loads.iter().any(|(_, able)| *able == node));
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        link_service::Over,
        queue::{self, Reader},
        relay::{CLIENT, Direct, LINK, Relay},
    };
    use covey_domain::status::ModelStatus;
    use covey_proto::v1::{HeadFrame, call_open::Target, head_frame};

    struct World {
        relay: Relay,
        origin: u64,
        answers: Reader<CallFrame>,
        workers: Vec<(NodeId, Reader<HeadFrame>)>,
    }

    fn model(loaded: bool) -> ModelStatus {
        ModelStatus {
            name: "m".into(),
            family: "llama".into(),
            task: "generate".into(),
            loaded,
            bytes: 1,
            memory: 0,
            engine: None,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "nobody sends to it")]
    fn wake() -> tokio::sync::mpsc::UnboundedSender<crate::owner::Input> {
        tokio::sync::mpsc::unbounded_channel().0
    }

    fn world(loaded: &[bool]) -> World {
        let relay = Relay::new(wake(), std::time::Duration::ZERO);
        let (tx, answers) = queue::queue(CLIENT);
        let origin = relay.origin(tx);
        let workers = loaded
            .iter()
            .enumerate()
            .map(|(i, loaded)| {
                let node = NodeId::from(format!("w{i}"));
                let (tx, rx) = queue::queue(LINK);
                relay.link(&node, i as u64, tx, Over::default(), vec![model(*loaded)], Direct::default());
                (node, rx)
            })
            .collect();
        World { relay, origin, answers, workers }
    }

    impl World {
        fn ask(&self, id: u64, text: &str) {
            let body = format!("{{\"model\":\"m\",\"work\":\"complete\",\"prompt\":\"{text}\",\"sampling\":{{}}}}");
            let open = CallOpen {
                method: "infer".into(),
                args: Some(Payload { body: body.into(), ..Payload::default() }),
                target: Some(Target::Model("m".into())),
                ..CallOpen::default()
            };
            self.relay.take_from_origin(self.origin, CallFrame { id, body: Some(Body::Open(open)) });
        }

        /// Requests that worker `i` got since it was asked last: ids and bodies.
        fn got(&mut self, i: usize) -> Vec<(u64, InferRequest)> {
            let mut all = Vec::new();
            while let Ok(frame) = self.workers[i].1.try_recv() {
                if let Some(head_frame::Body::Call(CallFrame { id, body: Some(Body::Open(open)) })) = frame.body {
                    all.push((id, from_json("a request", &open.args.unwrap().body).unwrap()));
                }
            }
            all
        }

        fn say(&self, i: usize, call: u64, event: &InferEvent) {
            let body = Some(Body::Item(covey_proto::infer_payload(event)));
            self.relay.take_from_worker(&self.workers[i].0, CallFrame { id: call, body });
        }
    }

    fn delta(choice: u32, tokens: &[u32]) -> InferEvent {
        let text = "x".to_owned();
        InferEvent::Delta(covey_domain::infer::Delta { choice, text, tokens: tokens.into(), ..Default::default() })
    }

    #[test]
    fn requests_go_where_their_beginning_is_known_until_that_is_too_busy() {
        let mut world = world(&[true, true, false]);
        let system = |c: char| c.to_string().repeat(600);
        world.ask(0, &system('a'));
        let first = usize::from(world.got(0).is_empty());
        assert_eq!(world.got(1).len(), first);
        // Another beginning goes to the idle one, the same beginning to the same worker.
        world.ask(1, &system('b'));
        assert_eq!(world.got(1 - first).len(), 1);
        for id in 2..6 {
            world.ask(id, &format!("{}{id}", system('a')));
        }
        assert_eq!(world.got(first).len(), 4);
        for id in 6..40 {
            world.ask(id, &format!("{}{id}", system('a')));
        }
        let counts: Vec<usize> = (0..3).map(|i| world.got(i).len()).collect();
        assert!(counts.iter().all(|n| *n > 0), "the queue got long enough for all, a load included: {counts:?}");
        assert!(counts[2] < counts[first], "{counts:?}");
    }

    #[test]
    fn an_answer_without_tokens_is_not_asked_for_twice() {
        let mut world = world(&[true, true]);
        world.ask(7, "hello");
        let at = usize::from(world.got(0).is_empty());
        world.say(at, 2, &InferEvent::text("from a server elsewhere"));
        world.relay.drop_link(&world.workers[at].0.clone(), at as u64);
        assert!(world.got(1 - at).is_empty(), "its reader would hear it twice");
        let told: Vec<_> = std::iter::from_fn(|| world.answers.try_recv().ok()).collect();
        assert!(matches!(told.last(), Some(CallFrame { body: Some(Body::End(_)), .. })));
    }

    #[tokio::test]
    async fn a_request_waits_for_the_first_worker_and_not_for_ever() {
        let mut world = world(&[]);
        world.ask(7, "hello");
        assert!(world.answers.try_recv().is_err(), "a worker may come");
        let (tx, rx) = queue::queue(LINK);
        let node = NodeId::from("w0");
        world.relay.link(&node, 0, tx, Over::default(), Vec::new(), Direct::default());
        world.workers.push((node.clone(), rx));
        assert!(world.got(0).is_empty());
        world.relay.models(&node, vec![model(true)]);
        assert_eq!(world.got(0).len(), 1);
        world.relay.drop_link(&node, 0);
        assert!(matches!(world.answers.try_recv().unwrap().body, Some(Body::End(_))), "it was under way");
        world.ask(8, "hello");
        let call = world.relay.state.lock().awaited[0].call;
        world.relay.state.lock().give_up(call);
        let end = world.answers.try_recv().unwrap();
        assert!(end.id == 8 && matches!(end.body, Some(Body::End(_))));
    }

    #[test]
    fn what_a_full_worker_refuses_another_is_asked() {
        let mut world = world(&[true, true]);
        world.ask(7, "hello");
        let at = usize::from(world.got(0).is_empty());
        let refuse = |world: &World, i: usize, call: u64| {
            let full = Error::new(ErrorKind::Overloaded, "the model's queue is full");
            let end = CallEnd { result: Some(covey_proto::v1::call_end::Result::Failure(full.into())) };
            world.relay.take_from_worker(&world.workers[i].0, CallFrame { id: call, body: Some(Body::End(end)) });
        };
        refuse(&world, at, 2);
        let again = world.got(1 - at);
        assert_eq!(again.len(), 1);
        assert!(world.answers.try_recv().is_err(), "its reader has heard nothing of it");
        refuse(&world, 1 - at, again[0].0);
        let end = world.answers.try_recv().unwrap();
        assert!(matches!(
            end.body,
            Some(Body::End(CallEnd { result: Some(covey_proto::v1::call_end::Result::Failure(_)) }))
        ));
    }

    #[test]
    fn an_answer_goes_on_at_another_worker_behind_what_was_told() {
        let mut world = world(&[true, true]);
        world.ask(7, "hello");
        let at = usize::from(world.got(0).is_empty());
        // Nothing was consumed from the other queue by looking.
        let call = 1 + 1;
        world.say(at, call, &delta(0, &[1, 2]));
        world.say(at, call, &delta(1, &[9]));
        world.say(at, call, &InferEvent::Ended { choice: 1, finish: covey_domain::infer::Finish::Stop });
        world.say(at, call, &delta(0, &[3]));
        world.relay.drop_link(&world.workers[at].0.clone(), at as u64);
        let again = world.got(1 - at);
        assert_eq!(again.len(), 1);
        let (again_call, request) = &again[0];
        let mut made = request.made.clone();
        made.sort_by_key(|m| m.choice);
        assert_eq!(made[0], Made { choice: 0, tokens: vec![1, 2, 3], ended: None });
        assert_eq!(made[1].tokens, [9]);
        assert!(made[1].ended.is_some());
        // What the lost worker still says is not heard.
        world.say(at, call, &delta(0, &[4]));
        world.say(1 - at, *again_call, &delta(0, &[5]));
        let told = std::iter::from_fn(|| world.answers.try_recv().ok()).count();
        assert_eq!(told, 5, "every piece once");
        // What came without tokens cannot be gone on with, and nobody is left anyway: then it fails.
        world.relay.drop_link(&world.workers[1 - at].0.clone(), 1 - at as u64);
        let end = world.answers.try_recv().unwrap();
        assert!(matches!(end.body, Some(Body::End(_))));
    }
}
