//! The caller's machine, one story at a time.

use std::{collections::HashSet, sync::Arc};

use covey_call_core::{
    At, Body, CallId, Caller, Config, DeadCall, Frame, LaneId, Open, Output, Overdue, Placement, Request, Target, To,
};
use covey_domain::{ActorId, Error, ErrorKind, NodeId, Retry, error::RUNNING};

#[derive(Clone, Debug)]
struct Args;

impl Body for Args {
    fn size(&self) -> usize {
        7
    }
}

/// A caller, its clock, and what it wants done.
struct Desk {
    caller: Caller<Args, u16>,
    now: u64,
}

type Done = Vec<Output<Args, u16>>;

fn request() -> Request<Args> {
    Request {
        method: "work".into(),
        args: Args,
        key: String::new(),
        chain: "who".into(),
        traceparent: String::new(),
        timeout_ms: 0,
        run_timeout_ms: 0,
        retry: None,
        alone: false,
    }
}

fn at(node: &str, epoch: u64, address: u16) -> Placement<u16> {
    Placement::At(At { node: NodeId::from(node), epoch, address })
}

fn waits(why: &str) -> Placement<u16> {
    Placement::Waiting { why: why.into(), never: false, recovering: false }
}

fn died() -> Error {
    Error { detail: Some(RUNNING.into()), ..Error::new(ErrorKind::ActorDied, "it died") }
}

impl Desk {
    fn new() -> Self {
        Self { caller: Caller::new(Config::default(), 1), now: 1_000 }
    }

    /// With actor `a` on node `n`, epoch 1; gives the lane there.
    fn with_actor() -> (Self, LaneId) {
        let mut desk = Self::new();
        let first = desk.start("a", request(), 0);
        desk.done();
        desk.placed("a", at("n", 1, 0));
        let lane = desk.opened().pop().unwrap().0;
        assert!(desk.caller.succeeded(first));
        (desk, lane)
    }

    fn start(&mut self, actor: &str, request: Request<Args>, retries: u32) -> CallId {
        self.begin(Target::Actor(actor.into()), request, retries)
    }

    fn begin(&mut self, target: Target, request: Request<Args>, retries: u32) -> CallId {
        let id = self.caller.next_id();
        self.caller.start(self.now, id, target, request, retries);
        id
    }

    fn placed(&mut self, actor: &str, placement: Placement<u16>) {
        self.caller.placed(self.now, &actor.into(), placement);
    }

    fn failed(&mut self, id: CallId, error: Error) {
        self.caller.failed(self.now, id, error);
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        self.caller.handle_timeout(self.now);
    }

    fn done(&mut self) -> Done {
        std::iter::from_fn(|| self.caller.poll()).collect()
    }

    /// Calls that were sent, and over which lanes.
    fn opened(&mut self) -> Vec<(LaneId, Open<Args>)> {
        let opened = |output| match output {
            Output::Send(lane, Frame::Open(open)) => Some((lane, open)),
            _ => None,
        };
        self.done().into_iter().filter_map(opened).collect()
    }

    /// Calls that ended.
    fn ended(&mut self) -> Vec<(CallId, Result<u32, Error>)> {
        let ended = |output| match output {
            Output::Ended(id, end) => Some((id, end)),
            _ => None,
        };
        self.done().into_iter().filter_map(ended).collect()
    }
}

#[test]
fn what_was_lost_twice_or_has_its_last_try_is_sent_to_run_alone() {
    let sent = |retries, killed: &[bool]| {
        let (mut desk, _) = Desk::with_actor();
        let id = desk.start("a", request(), retries);
        desk.done();
        let mut epoch = 1;
        let mut each = |killed: bool| {
            let error = if killed { died() } else { Error::new(ErrorKind::ActorDied, "the worker is gone") };
            desk.failed(id, error);
            epoch += 1;
            // The head says where it is once nothing else holds it.
            desk.wait(1_001);
            desk.placed("a", at("n", epoch, 0));
            desk.wait(1_001);
            desk.opened().pop().map(|(_, open)| open.alone)
        };
        killed.iter().map(|killed| each(*killed)).collect::<Vec<_>>()
    };
    assert_eq!(sent(3, &[true, true]), [Some(false), Some(true)]);
    assert_eq!(sent(1, &[true, true]), [Some(true), None]);
    // A worker that is gone says nothing against the call.
    assert_eq!(sent(2, &[false, false, false]), [Some(false), Some(false), None]);
    assert_eq!(sent(9, &[true, false, false, true]), [Some(false), Some(false), Some(false), Some(true)]);
}

#[test]
fn a_call_that_kills_process_after_process_is_given_up_and_listed() {
    let (mut desk, _) = Desk::with_actor();
    let id = desk.start("a", request(), 9);
    for epoch in 2..=3 {
        desk.failed(id, died());
        desk.wait(1_001);
        desk.placed("a", at("n", epoch, 0));
        desk.wait(1_001);
    }
    desk.done();
    desk.failed(id, died());
    let done = desk.done();
    let [Output::Send(LaneId::HEAD, Frame::DeadLetter(dead)), Output::Ended(ended, Err(error))] = done.as_slice()
    else {
        panic!("{done:?}")
    };
    let DeadCall { method, bytes, attempts, .. } = dead;
    assert_eq!((method.as_str(), *bytes, *attempts, *ended), ("work", 7, 3, id));
    assert_eq!((error.kind, error.executed), (ErrorKind::FailedPrecondition, Some(true)));
}

#[test]
fn that_the_last_sending_did_not_run_says_nothing_of_those_before() {
    let (mut desk, lane) = Desk::with_actor();
    let id = desk.start("a", Request { key: "k".into(), ..request() }, 0);
    desk.done();
    desk.caller.lane_lost(desk.now, lane, &HashSet::new(), "it broke");
    desk.caller.cancel(desk.now, id, ErrorKind::Cancelled, "cancelled");
    let ended = desk.ended();
    assert!(matches!(ended.as_slice(), [(_, Err(error))] if error.executed.is_none()), "it may have run: {ended:?}");
    // One that never left did not.
    let id = desk.start("a", request(), 0);
    desk.caller.cancel(desk.now, id, ErrorKind::Cancelled, "cancelled");
    assert!(matches!(desk.ended().as_slice(), [(_, Err(error))] if error.executed == Some(false)));
}

#[test]
fn what_was_answered_in_part_is_not_sent_again() {
    let (mut desk, lane) = Desk::with_actor();
    let id = desk.start("a", Request { key: "k".into(), ..request() }, 5);
    assert!(desk.caller.item(id));
    desk.done();
    desk.caller.lane_lost(desk.now, lane, &HashSet::new(), "it broke");
    assert!(matches!(desk.ended().as_slice(), [(_, Err(error))] if error.executed.is_none()));
}

#[test]
fn a_call_that_raised_waits_and_goes_again() {
    let (mut desk, _) = Desk::with_actor();
    let retry = Retry { backoff_ms: 100, ..Retry::default() };
    let id = desk.start("a", Request { retry: Some(Arc::new(retry)), ..request() }, 1);
    desk.done();
    let raised = || Error { retry: true, ..Error::new(ErrorKind::Application, "ValueError") };
    desk.failed(id, raised());
    desk.wait(101);
    assert_eq!(desk.opened().pop().unwrap().1.call, id);
    desk.failed(id, raised());
    assert!(matches!(desk.ended().as_slice(), [(_, Err(error))] if error.kind == ErrorKind::Application));
}

#[test]
fn the_worker_of_a_call_whose_time_is_over_has_half_a_second_to_say_so() {
    let (mut desk, _) = Desk::with_actor();
    desk.wait(10_000);
    let quick = desk.start("a", Request { timeout_ms: 50, ..request() }, 0);
    assert!(desk.caller.succeeded(quick));
    assert_eq!(desk.caller.next_timeout(), None, "what is over has no timer");
    let id = desk.start("a", Request { timeout_ms: 50, ..request() }, 0);
    desk.done();
    desk.wait(50);
    assert!(desk.done().is_empty());
    desk.wait(500);
    let done = desk.done();
    assert!(
        matches!(done.as_slice(), [Output::Send(_, Frame::Cancel { call, .. }), Output::Ended(_, Err(error))]
            if *call == id && error.kind == ErrorKind::DeadlineExceeded),
        "{done:?}"
    );
}

#[test]
fn whoever_waits_is_told_why_each_reason_once() {
    let mut desk = Desk::new();
    desk.start("a", request(), 0);
    desk.placed("a", waits("no room"));
    desk.start("a", request(), 0);
    desk.wait(2_001);
    let told = |done: Done| {
        let each = done.into_iter().filter_map(|output| match output {
            Output::Overdue(Overdue { why, calls, .. }) => Some((why, calls)),
            _ => None,
        });
        each.collect::<Vec<_>>()
    };
    assert_eq!(told(desk.done()), [("no room".to_owned(), 2)]);
    desk.placed("a", waits("no room"));
    desk.wait(5_000);
    assert!(told(desk.done()).is_empty());
    desk.placed("a", waits("no gpu"));
    desk.wait(2_001);
    assert_eq!(told(desk.done()), [("no gpu".to_owned(), 2)]);
    assert_eq!(desk.caller.why_waiting(desk.now, &"a".into()), Some("no gpu".into()));
}

#[test]
fn who_watches_hears_once_of_a_place_or_of_none() {
    let mut desk = Desk::new();
    let (a, b) = (ActorId::from("a"), ActorId::from("b"));
    assert!(desk.caller.watch(desk.now, &a).is_none() && desk.caller.watch(desk.now, &b).is_none());
    desk.placed("a", at("n", 1, 0));
    desk.placed("a", at("n", 1, 0));
    desk.placed("b", Placement::Waiting { why: "needs 9 cpus".into(), never: true, recovering: false });
    let placed = |output| match output {
        Output::Placed(actor, result) => Some((actor, result.map_err(|e| e.kind))),
        _ => None,
    };
    let heard: Vec<_> = desk.done().into_iter().filter_map(placed).collect();
    assert_eq!(heard, [(a.clone(), Ok(())), (b, Err(ErrorKind::Unschedulable))]);
    assert!(matches!(desk.caller.watch(desk.now, &a), Some(Ok(()))));
}

#[test]
fn a_lane_that_no_new_call_takes_is_closed_once_nothing_uses_it() {
    let (mut desk, old) = Desk::with_actor();
    let id = desk.start("a", request(), 0);
    desk.done();
    // The same node under another address: what goes there takes a new lane, once the fence is back over the old one.
    desk.placed("a", at("n", 1, 1));
    let fence = desk.done().into_iter().find_map(|output| match output {
        Output::Send(_, Frame::Fence(fence)) => Some(fence),
        _ => None,
    });
    desk.caller.fence_back(desk.now, fence.unwrap());
    assert!(matches!(desk.done().as_slice(), [Output::Dial(new, _)] if *new != old));
    desk.wait(1_000);
    assert!(desk.done().is_empty(), "its call is not answered");
    assert!(desk.caller.succeeded(id));
    desk.wait(1_000);
    assert!(matches!(desk.done().as_slice(), [Output::Close(lane)] if *lane == old));
}

#[test]
fn a_message_goes_once_to_each_node_and_ends_with_how_many_heard_it() {
    let (mut desk, lane) = Desk::with_actor();
    for actor in ["b", "c"] {
        let id = desk.start(actor, request(), 0);
        desk.placed(actor, at("n", 4, 0));
        assert!(desk.caller.succeeded(id));
    }
    desk.done();
    let topic = || Target::Topic("news".into());
    let (sure, quick) = (desk.begin(topic(), request(), 1), desk.begin(topic(), request(), 0));
    assert!(matches!(desk.done().as_slice(), [Output::Send(LaneId::HEAD, Frame::Watch(topic))] if topic == "news"));
    let listeners = ["a", "b", "c"].map(|actor| (ActorId::from(actor), "hear".to_owned()));
    desk.caller.topic_told(desk.now, "news", listeners.to_vec());
    let done = desk.done();
    let [Output::Send(first, Frame::Open(one)), Output::Send(_, Frame::Open(other)), Output::Ended(over, Ok(3))] =
        done.as_slice()
    else {
        panic!("{done:?}")
    };
    assert_eq!((*first, *over, &one.to), (lane, quick, &To::Actor("a".into())));
    assert_eq!(one.also, [("b".into(), 4), ("c".into(), 4)]);
    assert_eq!((one.request.chain.as_str(), other.request.chain.as_str()), ("who", ""), "nobody waits for the second");
    // One has heard it, one raised, and one's mailbox was full: that one is tried again.
    assert!(!desk.caller.succeeded(one.call));
    desk.failed(one.call + 1, Error::new(ErrorKind::Application, "ValueError"));
    desk.failed(one.call + 2, Error::new(ErrorKind::Overloaded, "its mailbox is full"));
    assert!(desk.done().is_empty());
    desk.wait(10);
    let (_, again) = desk.opened().pop().unwrap();
    assert_eq!(again.to, To::Actor("c".into()));
    assert!(!desk.caller.succeeded(again.call));
    assert!(matches!(desk.ended().as_slice(), [(ended, Ok(3))] if *ended == sure));
    assert_eq!(desk.caller.all_calls(), [other.call, other.call + 1, other.call + 2]);
}

#[test]
fn what_needs_the_head_waits_for_it_as_long_as_it_keeps_sessions() {
    let (mut desk, _) = Desk::with_actor();
    let taken = desk.begin(Target::Model("m".into()), request(), 0);
    desk.done();
    desk.caller.head_lost(desk.now, &HashSet::new(), "it broke");
    assert!(matches!(desk.ended().as_slice(), [(id, Err(error))] if *id == taken && error.executed.is_none()));
    let model = desk.begin(Target::Model("m".into()), request(), 0);
    let elsewhere = desk.start("b", request(), 0);
    let near = desk.start("a", request(), 0);
    assert_eq!(desk.opened().len(), 2, "lanes go on, and what is for the head is put on its way");
    desk.wait(30_000);
    let ended = desk.ended();
    let failed: Vec<_> = ended.iter().map(|(id, end)| (*id, end.as_ref().unwrap_err().executed)).collect();
    assert_eq!(failed, [(elsewhere, Some(false)), (model, Some(false))]);
    let refused = desk.begin(Target::Model("m".into()), request(), 0);
    assert!(matches!(desk.ended().as_slice(), [(id, Err(_))] if *id == refused), "nobody waits any more");
    assert!(desk.caller.is_away() && desk.caller.is_open(near));
    desk.caller.head_back();
    let asked = desk.done();
    assert!(matches!(asked.as_slice(), [Output::Send(LaneId::HEAD, Frame::Locate(actor))] if *actor == "a".into()));
}

#[test]
fn a_worker_that_cannot_be_dialled_is_not_waited_for_behind_a_head_that_was_given_up() {
    let mut desk = Desk::new();
    let id = desk.start("a", request(), 0);
    desk.placed("a", at("n", 1, 0));
    let lane = desk.opened().pop().unwrap().0;
    desk.caller.head_lost(desk.now, &HashSet::new(), "it broke");
    desk.wait(30_000);
    desk.caller.lane_unreachable(desk.now, lane);
    let done = desk.done();
    let [.., Output::Close(closed), Output::Ended(ended, Err(error))] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((*closed, *ended, error.kind, error.executed), (lane, id, ErrorKind::Unavailable, Some(false)));
}

#[test]
fn a_listener_is_not_tried_again_for_a_message_that_was_cancelled() {
    let (mut desk, _) = Desk::with_actor();
    let message = desk.begin(Target::Topic("news".into()), request(), 1);
    desk.caller.topic_told(desk.now, "news", vec![("a".into(), "hear".into())]);
    let listener = desk.opened().pop().unwrap().1.call;
    desk.caller.cancel(desk.now, message, ErrorKind::Cancelled, "cancelled");
    desk.failed(listener, Error::new(ErrorKind::Overloaded, "its mailbox is full"));
    desk.wait(5_000);
    assert!(desk.opened().is_empty() && desk.caller.all_calls().is_empty());
}

#[test]
fn closing_ends_all_that_is_open_and_all_lanes() {
    let (mut desk, lane) = Desk::with_actor();
    let (sent, waiting) = (desk.start("a", request(), 3), desk.start("b", request(), 3));
    desk.done();
    desk.caller.close(desk.now, &Error::unavailable("closed"));
    let done = desk.done();
    let [Output::Ended(one, Err(_)), Output::Ended(two, Err(_)), Output::Close(closed)] = done.as_slice() else {
        panic!("{done:?}")
    };
    assert_eq!((*one, *two, *closed), (sent, waiting, lane));
    let late = desk.start("a", request(), 0);
    assert!(matches!(desk.ended().as_slice(), [(id, Err(_))] if *id == late));
    assert_eq!(desk.caller.next_timeout(), None);
}

#[test]
fn calls_have_a_bound() {
    let mut desk = Desk { caller: Caller::new(Config { calls_max: 2, ..Config::default() }, 1), now: 0 };
    let ids = [(); 3].map(|()| desk.start("a", request(), 0));
    assert!(
        matches!(desk.ended().as_slice(), [(id, Err(error))] if *id == ids[2] && error.kind == ErrorKind::Overloaded)
    );
    assert_eq!(desk.caller.all_calls(), ids[..2]);
}

#[test]
fn what_moves_twice_goes_to_where_it_is_at_last() {
    let (mut desk, _) = Desk::with_actor();
    desk.placed("a", at("m", 2, 0));
    let fence = desk.done().into_iter().find_map(|output| match output {
        Output::Send(_, Frame::Fence(fence)) => Some(fence),
        _ => None,
    });
    let id = desk.start("a", request(), 0);
    desk.placed("a", at("o", 3, 0));
    desk.caller.fence_back(desk.now, fence.unwrap());
    let done = desk.done();
    let [Output::Dial(_, to), Output::Send(_, Frame::Open(open))] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((to.node.as_str(), open.call, open.epoch), ("o", id, 3));
}

#[test]
fn with_retries_left_a_call_with_a_key_may_run_where_nobody_knows_of_it() {
    let (mut desk, lane) = Desk::with_actor();
    let id = desk.start("a", Request { key: "k".into(), ..request() }, 1);
    desk.done();
    desk.caller.lane_lost(desk.now, lane, &HashSet::new(), "it broke");
    desk.placed("a", at("m", 2, 0));
    assert_eq!(desk.opened().pop().unwrap().1.tried, 1, "where it may have run");
    // The second activation does not know what the first answered.
    desk.failed(id, Error::new(ErrorKind::ActorDied, "the activation that may have run it is gone"));
    desk.wait(1_001);
    desk.placed("a", at("m", 2, 0));
    desk.wait(1_001);
    let again = desk.opened().pop().unwrap().1;
    assert_eq!((again.call, again.tried), (id, 0));
}

#[test]
fn an_activation_that_is_over_is_not_called_again_whatever_the_head_says() {
    let (mut desk, _) = Desk::with_actor();
    let id = desk.start("a", request(), 0);
    desk.done();
    desk.failed(id, Error::new(ErrorKind::ActorDied, "it is not here").executed(Some(false)));
    desk.done();
    desk.placed("a", at("n", 1, 0));
    assert!(desk.done().is_empty(), "the head has not heard yet what its worker knows");
    desk.wait(5);
    assert!(matches!(desk.done().as_slice(), [Output::Send(LaneId::HEAD, Frame::Locate(_))]));
    desk.placed("a", at("n", 2, 0));
    let fence = desk.done().into_iter().find_map(|output| match output {
        Output::Send(_, Frame::Fence(fence)) => Some(fence),
        _ => None,
    });
    desk.caller.fence_back(desk.now, fence.unwrap());
    assert_eq!(desk.opened().pop().map(|(_, open)| (open.call, open.epoch)), Some((id, 2)));
}
