//! A caller in a simulated world: workers that run calls, a head that moves actors, lanes that break, a head that is away.
//! What the caller promises is held against what its user saw and what really ran. The same seed gives the same story.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use covey_call_core::{At, Body, CallId, Caller, Config, Frame, LaneId, Open, Output, Placement, Request, Target, To};
use covey_domain::{ActorId, Error, ErrorKind, NodeId, Retry, error::RUNNING};

#[derive(Clone, Debug)]
struct Args;

impl Body for Args {
    fn size(&self) -> usize {
        100
    }
}

type Address = u32;
type Wire = Frame<Args>;

const ACTORS: usize = 3;
const WORKERS: usize = 3;
/// Faults and new calls until then; what is open afterwards must end by itself.
const CALM_MS: u64 = 4_000;
const END_MS: u64 = 200_000;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.roll(100) < chance
    }
}

/// How an answer goes back: over a lane, as long as that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Via {
    lane: LaneId,
    life: u32,
}

#[derive(Clone, Debug)]
enum Answer {
    Item,
    Done,
    Failed(Error),
    Fence(u64),
    Place(ActorId, Placement<Address>),
}

#[derive(Debug)]
enum Event {
    Start,
    Cancel(CallId),
    Dialled(LaneId),
    Flush(LaneId),
    /// A frame reaches a worker, or the head.
    Arrive(Via, Wire),
    /// The head passes a frame on to a worker.
    Relayed(usize, Via, Wire),
    /// An answer reaches the caller.
    Answered(Via, CallId, Answer),
    HeadBack,
    Forgotten(Via),
    Move(usize),
    Stop {
        worker: usize,
        actor: usize,
        epoch: u64,
        kill: bool,
    },
    Stopped {
        actor: usize,
        memos: Memos,
    },
    Begin {
        worker: usize,
        actor: usize,
        epoch: u64,
        memos: Memos,
    },
    Begun {
        worker: usize,
        actor: usize,
        epoch: u64,
    },
    Finish {
        worker: usize,
        actor: usize,
        epoch: u64,
    },
    Wake,
}

type Memos = HashMap<String, Vec<(Via, CallId)>>;

struct Lane {
    worker: Option<usize>,
    life: u32,
    up: bool,
    waiting: VecDeque<Wire>,
    flushing: bool,
}

#[derive(Clone)]
struct Asked {
    via: Via,
    call: CallId,
    key: String,
}

#[derive(Default)]
struct Activation {
    epoch: u64,
    mailbox: VecDeque<Asked>,
    running: Option<Asked>,
    /// Who waits for the answer to a key; none once it is answered.
    memos: Memos,
    done: HashSet<String>,
    stopping: bool,
}

/// What the user did and saw, and what really ran.
#[derive(Default)]
struct Story {
    actor: usize,
    keyed: bool,
    retries: u32,
    ends: Vec<(u64, Result<u32, Error>)>,
    /// It must be over by then.
    until: u64,
    cancelled: bool,
    items: u32,
    runs: Vec<u64>,
}

struct World {
    seed: u64,
    dice: Dice,
    now: u64,
    number: u64,
    events: BTreeMap<(u64, u64), Event>,
    caller: Caller<Args, Address>,
    lanes: HashMap<LaneId, Lane>,
    /// No two messages of one way overtake each other.
    last: HashMap<(u8, u64, u32), u64>,
    workers: Vec<HashMap<usize, Activation>>,
    /// Where the head says that actors are; `None` while they move.
    places: Vec<(Option<usize>, u64)>,
    watched: BTreeSet<usize>,
    /// Where each worker listens; it changes at times.
    addresses: [Address; WORKERS],
    fences: HashMap<u64, usize>,
    stories: BTreeMap<CallId, Story>,
    retired: u32,
    unreachable: bool,
    /// No actor moves or dies, and the head is never away for longer than anybody waits.
    calm: bool,
}

fn actor(number: usize) -> ActorId {
    ActorId::from(format!("a{number}"))
}

fn number_of(actor: &ActorId) -> usize {
    actor.as_str()[1..].parse().unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            dice.roll(2);
        }
        let config = Config { patience_ms: 1_500, ..Config::default() };
        let head = Lane { worker: None, life: 0, up: true, waiting: VecDeque::new(), flushing: false };
        let mut world = Self {
            seed,
            unreachable: dice.percent(30),
            calm: true,
            now: 0,
            number: 0,
            events: BTreeMap::new(),
            caller: Caller::new(config, seed),
            lanes: HashMap::from([(LaneId::HEAD, head)]),
            last: HashMap::new(),
            workers: (0..WORKERS).map(|_| HashMap::new()).collect(),
            places: Vec::new(),
            watched: BTreeSet::new(),
            addresses: [0; WORKERS],
            fences: HashMap::new(),
            stories: BTreeMap::new(),
            retired: 0,
            dice,
        };
        for number in 0..ACTORS {
            let worker = world.dice.roll(WORKERS as u64) as usize;
            world.places.push((Some(worker), 1));
            world.workers[worker].insert(number, Activation { epoch: 1, ..Activation::default() });
        }
        for _ in 0..150 {
            let at = world.dice.roll(CALM_MS);
            world.at(at, Event::Start);
        }
        let moves = if world.dice.percent(30) { 0 } else { world.dice.roll(8) };
        world.calm = moves == 0;
        for _ in 0..moves {
            let (at, number) = (world.dice.roll(CALM_MS), world.dice.roll(ACTORS as u64) as usize);
            world.at(at, Event::Move(number));
        }
        for _ in 0..world.dice.roll(4) {
            let (at, lane) = (world.dice.roll(CALM_MS), world.dice.roll(6));
            // The lane that was opened as the how-manieth is not known yet: it is chosen when it breaks.
            world.at(at, Event::Forgotten(Via { lane: LaneId::HEAD, life: u32::MAX - lane as u32 }));
        }
        world
    }

    fn at(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.events.insert((at.max(self.now), self.number), event);
    }

    fn soon(&mut self, most: u64, event: Event) {
        let at = self.now + self.dice.roll(most);
        self.at(at, event);
    }

    /// In order with what went the same way before.
    fn in_order(&mut self, way: (u8, u64, u32), event: Event) {
        let delay = if self.dice.percent(5) { 60 } else { 4 };
        let at = (self.now + self.dice.roll(delay)).max(self.last.get(&way).copied().unwrap_or(0));
        self.last.insert(way, at);
        self.at(at, event);
    }

    fn answer(&mut self, via: Via, call: CallId, answer: Answer) {
        let lane = lane_number(via.lane);
        self.in_order((1, lane, via.life), Event::Answered(via, call, answer));
    }

    /// From a worker to the caller; what came by the head goes back by it.
    fn reply(&mut self, worker: usize, via: Via, call: CallId, answer: Answer) {
        if via.lane == LaneId::HEAD {
            // Over the worker's link, which is in order too.
            let _ = worker;
        }
        self.answer(via, call, answer);
    }

    fn run(mut self) {
        while let Some(((at, _), event)) = self.events.pop_first() {
            assert!(at < END_MS, "seed {}: the world does not come to rest", self.seed);
            self.now = at;
            if std::env::var("COVEY_STORY").is_ok() && !matches!(event, Event::Wake) {
                eprintln!("{at} {event:?}");
            }
            self.handle(event);
            self.carry_out();
        }
        self.judge();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Start => self.start(),
            Event::Cancel(call) => {
                self.stories.get_mut(&call).unwrap().cancelled = true;
                self.caller.cancel(self.now, call, ErrorKind::Cancelled, "cancelled");
            }
            Event::Wake => self.caller.handle_timeout(self.now),
            Event::Dialled(lane) => self.dialled(lane),
            Event::Flush(lane) => self.flush(lane),
            Event::Arrive(via, frame) => {
                let worker = self.lanes.get(&via.lane).filter(|lane| lane.life == via.life).map(|lane| lane.worker);
                match worker {
                    Some(Some(worker)) => self.at_worker(worker, via, frame),
                    Some(None) => self.at_head(via, frame),
                    None => {}
                }
            }
            Event::Relayed(worker, via, frame) => self.at_worker(worker, via, frame),
            Event::Answered(via, call, answer) => {
                if self.lanes.get(&via.lane).is_some_and(|lane| lane.life == via.life) {
                    self.hear(call, answer);
                }
            }
            Event::HeadBack => {
                if let Some(head) = self.lanes.get_mut(&LaneId::HEAD) {
                    head.up = true;
                }
                self.caller.head_back();
                self.soon(2, Event::Flush(LaneId::HEAD));
            }
            // A fault that was planned: some lane breaks, one in three times that to the head.
            Event::Forgotten(Via { life, .. }) if life > u32::MAX - 10 => {
                let mut lanes: Vec<_> = self.lanes.keys().copied().collect();
                lanes.sort_unstable();
                let nth = (u32::MAX - life) as usize;
                let lane = if nth < 2 { LaneId::HEAD } else { lanes[nth % lanes.len()] };
                self.breaks(lane);
            }
            Event::Forgotten(via) => {
                // A worker whose lane broke gives up what came over it and has not begun, unless it has a key.
                for activation in self.workers.iter_mut().flat_map(HashMap::values_mut) {
                    activation.mailbox.retain(|asked| asked.via != via || !asked.key.is_empty());
                }
            }
            Event::Move(actor) => self.moves(actor),
            Event::Stop { worker, actor, epoch, kill } => self.stop(worker, actor, epoch, kill),
            Event::Stopped { actor, memos } => {
                let worker = self.dice.roll(WORKERS as u64) as usize;
                let epoch = self.places[actor].1 + 1;
                self.in_order((2, worker as u64, 0), Event::Begin { worker, actor, epoch, memos });
            }
            Event::Begin { worker, actor, epoch, memos } => {
                let done = memos.into_keys().collect();
                self.workers[worker].insert(actor, Activation { epoch, done, ..Activation::default() });
                self.in_order((3, worker as u64, 0), Event::Begun { worker, actor, epoch });
            }
            Event::Begun { worker, actor, epoch } => {
                if self.dice.percent(20) {
                    self.addresses[worker] += 1;
                }
                self.places[actor] = (Some(worker), epoch);
                self.tell_place(actor);
            }
            Event::Finish { worker, actor, epoch } => self.finish(worker, actor, epoch),
        }
    }

    // The caller's user.

    fn start(&mut self) {
        let number = self.dice.roll(ACTORS as u64) as usize;
        let call = self.caller.next_id();
        let key = if self.dice.percent(30) { format!("k{call}") } else { String::new() };
        let retries = if self.dice.percent(20) { 2 } else { 0 };
        let timeout_ms = if self.dice.percent(10) { 20 + self.dice.roll(300) } else { 0 };
        let keyed = !key.is_empty();
        // The worker has half a second to end it itself.
        let until = if timeout_ms > 0 { self.now + timeout_ms + 500 } else { u64::MAX };
        self.stories.insert(call, Story { actor: number, keyed, retries, until, ..Story::default() });
        let request = Request {
            method: "work".to_owned(),
            args: Args,
            key,
            chain: String::new(),
            traceparent: String::new(),
            timeout_ms,
            run_timeout_ms: 0,
            retry: (retries > 0).then(|| Retry::default().into()),
            alone: false,
        };
        self.caller.start(self.now, call, Target::Actor(actor(number)), request, retries);
        if self.dice.percent(5) {
            self.soon(100, Event::Cancel(call));
        }
    }

    fn hear(&mut self, call: CallId, answer: Answer) {
        match answer {
            Answer::Item => {
                if self.caller.item(call) {
                    self.stories.get_mut(&call).unwrap().items += 1;
                }
            }
            Answer::Done => {
                if self.caller.succeeded(call) {
                    let now = self.now;
                    self.stories.get_mut(&call).unwrap().ends.push((now, Ok(0)));
                }
            }
            Answer::Failed(error) => self.caller.failed(self.now, call, error),
            Answer::Fence(fence) => self.caller.fence_back(self.now, fence),
            Answer::Place(actor, placement) => self.caller.placed(self.now, &actor, placement),
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.caller.poll() {
            match output {
                Output::Send(lane, frame) => {
                    let Some(lanes) = self.lanes.get_mut(&lane) else {
                        panic!("seed {}: a frame for a lane that is gone: {frame:?}", self.seed)
                    };
                    lanes.waiting.push_back(frame);
                    if lanes.up && !lanes.flushing {
                        lanes.flushing = true;
                        self.soon(3, Event::Flush(lane));
                    }
                }
                Output::Dial(lane, at) => {
                    let worker: usize = at.node.as_str()[1..].parse().unwrap();
                    let new =
                        Lane { worker: Some(worker), life: 0, up: false, waiting: VecDeque::new(), flushing: false };
                    assert!(self.lanes.insert(lane, new).is_none());
                    self.soon(20, Event::Dialled(lane));
                }
                Output::ToHead(lane) => {
                    let waiting = self.lanes.remove(&lane).unwrap().waiting;
                    let head = self.lanes.get_mut(&LaneId::HEAD).unwrap();
                    head.waiting.extend(waiting);
                    self.soon(3, Event::Flush(LaneId::HEAD));
                }
                Output::Close(lane) => {
                    self.lanes.remove(&lane);
                    self.retired += 1;
                }
                Output::DropWaiting => {
                    let head = self.lanes.get_mut(&LaneId::HEAD).unwrap();
                    head.waiting.retain(|frame| matches!(frame, Frame::DeadLetter(_) | Frame::Leave));
                }
                Output::Ended(call, end) => {
                    let now = self.now;
                    self.stories.get_mut(&call).unwrap().ends.push((now, end));
                }
                Output::Placed(..) | Output::Overdue(_) => {}
            }
        }
        if let Some(at) = self.caller.next_timeout() {
            // Wakes that come too often do nothing.
            if !self.events.range((self.now, 0)..=(at, u64::MAX)).any(|(_, event)| matches!(event, Event::Wake)) {
                self.at(at, Event::Wake);
            }
        }
    }

    // Lanes.

    fn dialled(&mut self, lane: LaneId) {
        if !self.lanes.contains_key(&lane) {
            return;
        }
        if self.unreachable && self.dice.percent(50) {
            return self.caller.lane_unreachable(self.now, lane);
        }
        self.lanes.get_mut(&lane).unwrap().up = true;
        self.soon(2, Event::Flush(lane));
    }

    fn flush(&mut self, lane: LaneId) {
        let Some(found) = self.lanes.get_mut(&lane).filter(|lane| lane.up) else { return };
        found.flushing = false;
        let (via, frames) = (Via { lane, life: found.life }, std::mem::take(&mut found.waiting));
        for frame in frames {
            self.in_order((0, lane_number(lane), via.life), Event::Arrive(via, frame));
        }
    }

    fn breaks(&mut self, lane: LaneId) {
        let Some(found) = self.lanes.get_mut(&lane).filter(|lane| lane.up) else { return };
        let via = Via { lane, life: found.life };
        let unsent: HashSet<CallId> = found.waiting.iter().flat_map(Frame::opens).collect();
        if lane == LaneId::HEAD {
            found.life += 1;
            found.up = false;
            found.flushing = false;
            found.waiting.retain(Frame::outlives_head);
            self.caller.head_lost(self.now, &unsent, "it broke");
            self.watched.clear();
            let most = if self.dice.percent(30) { 4_000 } else { 300 };
            self.calm &= most < 1_000;
            self.soon(most, Event::HeadBack);
        } else {
            self.lanes.remove(&lane);
            self.caller.lane_lost(self.now, lane, &unsent, "it broke");
        }
        self.soon(10, Event::Forgotten(via));
    }

    // The head.

    fn at_head(&mut self, via: Via, frame: Wire) {
        match frame {
            Frame::Locate(actor) => {
                self.watched.insert(number_of(&actor));
                let place = self.place_of(number_of(&actor));
                self.answer(via, 0, Answer::Place(actor, place));
            }
            Frame::Open(Open { to: To::Actor(ref of), epoch, call, .. }) => match self.places[number_of(of)] {
                (Some(worker), known) if known == epoch => {
                    self.in_order((2, worker as u64, 0), Event::Relayed(worker, via, frame));
                }
                _ => self.answer(via, call, Answer::Failed(gone().executed(Some(false)))),
            },
            Frame::Fence(fence) => {
                self.fences.insert(fence, WORKERS);
                for worker in 0..WORKERS {
                    self.in_order((2, worker as u64, 0), Event::Relayed(worker, via, Frame::Fence(fence)));
                }
            }
            Frame::Cancel { .. } | Frame::Credit { .. } | Frame::DeadLetter(_) | Frame::Leave | Frame::Watch(_) => {}
            Frame::Open(_) => unreachable!("no models here"),
        }
    }

    fn place_of(&self, number: usize) -> Placement<Address> {
        match self.places[number] {
            (Some(worker), epoch) => {
                Placement::At(At { node: NodeId::from(format!("w{worker}")), epoch, address: self.addresses[worker] })
            }
            (None, _) => Placement::Waiting { why: "it moves".into(), never: false, recovering: false },
        }
    }

    fn tell_place(&mut self, number: usize) {
        let head = &self.lanes[&LaneId::HEAD];
        if head.up && self.watched.contains(&number) {
            let via = Via { lane: LaneId::HEAD, life: head.life };
            let place = self.place_of(number);
            self.answer(via, 0, Answer::Place(actor(number), place));
        }
    }

    fn moves(&mut self, number: usize) {
        let (Some(worker), epoch) = self.places[number] else { return };
        self.places[number].0 = None;
        self.tell_place(number);
        let kill = self.dice.percent(40);
        self.in_order((2, worker as u64, 0), Event::Stop { worker, actor: number, epoch, kill });
    }

    // Workers.

    fn at_worker(&mut self, worker: usize, via: Via, frame: Wire) {
        match frame {
            Frame::Fence(fence) => match self.fences.get_mut(&fence) {
                Some(left) if via.lane == LaneId::HEAD => {
                    *left -= 1;
                    if *left == 0 {
                        self.reply(worker, via, fence, Answer::Fence(fence));
                    }
                }
                _ => self.reply(worker, via, fence, Answer::Fence(fence)),
            },
            Frame::Open(Open { call, to: To::Actor(of), epoch, tried, request, .. }) => {
                let number = number_of(&of);
                let found = self.workers[worker].get_mut(&number).filter(|a| a.epoch == epoch && !a.stopping);
                let Some(activation) = found else {
                    return self.reply(worker, via, call, Answer::Failed(gone().executed(Some(false))));
                };
                let (key, asked) = (request.key.clone(), Asked { via, call, key: request.key.clone() });
                if !key.is_empty() {
                    if activation.done.contains(&key) {
                        return self.reply(worker, via, call, Answer::Done);
                    }
                    if let Some(waiting) = activation.memos.get_mut(&key) {
                        waiting.push((via, call));
                        return;
                    }
                    if tried != 0 && tried != epoch {
                        return self.reply(worker, via, call, Answer::Failed(gone().executed(None)));
                    }
                    activation.memos.insert(key, vec![(via, call)]);
                }
                activation.mailbox.push_back(asked);
                self.next(worker, number);
            }
            Frame::Cancel { call, .. } => {
                for activation in self.workers[worker].values_mut() {
                    activation.mailbox.retain(|asked| asked.call != call);
                }
            }
            _ => {}
        }
    }

    fn next(&mut self, worker: usize, actor: usize) {
        let Some(activation) = self.workers[worker].get_mut(&actor).filter(|a| a.running.is_none()) else { return };
        let Some(asked) = activation.mailbox.pop_front() else { return };
        let (epoch, call) = (activation.epoch, asked.call);
        let via = asked.via;
        activation.running = Some(asked);
        self.stories.get_mut(&call).unwrap().runs.push(self.now);
        if self.dice.percent(20) {
            self.reply(worker, via, call, Answer::Item);
        }
        self.soon(12, Event::Finish { worker, actor, epoch });
    }

    fn finish(&mut self, worker: usize, actor: usize, epoch: u64) {
        let Some(activation) = self.workers[worker].get_mut(&actor).filter(|a| a.epoch == epoch) else { return };
        let Some(asked) = activation.running.take() else { return };
        let mut answered = vec![(asked.via, asked.call)];
        if !asked.key.is_empty() {
            answered = activation.memos.remove(&asked.key).unwrap_or_default();
            activation.done.insert(asked.key);
        }
        let stopping = activation.stopping;
        for (via, call) in answered {
            self.reply(worker, via, call, Answer::Done);
        }
        if stopping { self.stopped(worker, actor) } else { self.next(worker, actor) }
    }

    fn stop(&mut self, worker: usize, actor: usize, epoch: u64, kill: bool) {
        let Some(activation) = self.workers[worker].get_mut(&actor).filter(|a| a.epoch == epoch) else { return };
        activation.stopping = true;
        let (queued, memos) = (std::mem::take(&mut activation.mailbox), std::mem::take(&mut activation.memos));
        let running = if kill { activation.running.take() } else { None };
        let is_running = activation.running.clone();
        let mut memos = memos;
        if let Some(asked) = running {
            let died = Error { detail: Some(RUNNING.into()), ..gone() };
            let waiting = memos.remove(&asked.key).unwrap_or_else(|| vec![(asked.via, asked.call)]);
            for (via, call) in waiting {
                self.reply(worker, via, call, Answer::Failed(died.clone().executed(None)));
            }
        }
        for asked in queued {
            let waiting = memos.remove(&asked.key).unwrap_or_else(|| vec![(asked.via, asked.call)]);
            for (via, call) in waiting {
                self.reply(worker, via, call, Answer::Failed(gone().executed(Some(false))));
            }
        }
        match is_running {
            // Its answer is known when it ends.
            Some(_) => self.workers[worker].get_mut(&actor).unwrap().memos = memos,
            None => self.stopped(worker, actor),
        }
    }

    fn stopped(&mut self, worker: usize, actor: usize) {
        let Some(activation) = self.workers[worker].remove(&actor) else { return };
        // What it has answered goes with its state, half of the time.
        let kept = self.dice.percent(50);
        let memos = activation.done.into_iter().filter(|_| kept).map(|key| (key, Vec::new())).collect();
        self.in_order((3, worker as u64, 0), Event::Stopped { actor, memos });
    }

    // What must hold.

    fn judge(&self) {
        let seed = self.seed;
        assert!(self.caller.all_calls().is_empty(), "seed {seed}: calls have no end: {:?}", self.caller.all_calls());
        let mut first = BTreeMap::<usize, (u64, CallId)>::new();
        for (call, story) in &self.stories {
            let what = format!("seed {seed}, call {call}");
            let [(at, end)] = story.ends.as_slice() else { panic!("{what} ended {} times", story.ends.len()) };
            assert!(*at <= story.until, "{what} ended at {at}, its time was over at {}", story.until);
            assert!(story.items <= 1, "{what} was run again although it was answered in part");
            if story.retries == 0 {
                assert!(story.runs.len() <= 1, "{what} ran {} times, keyed {}", story.runs.len(), story.keyed);
            }
            match end {
                Ok(_) => assert!(!story.runs.is_empty(), "{what} was answered and never ran"),
                Err(e) if e.executed == Some(false) => assert!(story.runs.is_empty(), "{what} ran all the same: {e:?}"),
                Err(e)
                    if self.calm && story.keyed && !story.cancelled && story.until == u64::MAX && story.items == 0 =>
                {
                    panic!("{what} has a key, and its actor was always there: {e:?}")
                }
                Err(_) => {}
            }
            // What is tried again comes behind what was started meanwhile.
            if let Some(at) = story.runs.first().filter(|_| story.retries == 0) {
                let before = first.insert(story.actor, (*at, *call));
                if let Some((earlier, other)) = before {
                    assert!(earlier <= *at, "{what} ran before call {other}, which was started before it");
                }
            }
        }
    }
}

fn lane_number(lane: LaneId) -> u64 {
    // Its order among lanes is all that is known of it.
    format!("{lane:?}").bytes().filter(u8::is_ascii_digit).fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))
}

fn gone() -> Error {
    Error::new(ErrorKind::ActorDied, "it is not here")
}

#[test]
fn calls_keep_their_promises_in_every_world() {
    let seeds = std::env::var("COVEY_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let first = std::env::var("COVEY_SEED").ok().and_then(|text| text.parse().ok());
    let range = first.map_or(1..seeds + 1, |seed| seed..seed + 1);
    range.for_each(|seed| World::new(seed).run());
}
