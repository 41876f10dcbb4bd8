//! What holds actors together outlives the head: links, and gangs that wait for their places.

use std::{collections::BTreeMap, sync::Arc};

use covey_cluster_core::head::{
    ActorReport, Command, CreateActor, DeadLetter, Head, HeadConfig, Hello, LivingActor, Member, Output, Owner, Route,
    StoredActor, Write,
};
use covey_domain::{
    ActorId, AgentSpec, Digest, Epoch, Error, ErrorKind, Gang, Millis, NodeId, Resources, SessionId,
    agent::GangStrategy,
};
use proptest::prelude::*;

fn agent() -> AgentSpec {
    let spec = r#"{"name":"a","kind":{"type":"native","implementation":"echo"},"resources":{"cpu_milli":1000}}"#;
    serde_json::from_str::<AgentSpec>(spec).unwrap().validated().unwrap()
}

fn ask(id: &str, owner: Owner) -> CreateActor {
    CreateActor {
        id: id.into(),
        agent: "a".into(),
        name: None,
        get_if_exists: false,
        owner,
        init: None,
        overrides: Default::default(),
        least: covey_domain::Isolation::None,
        keeps_labels: false,
    }
}

/// What a worker runs: the epoch and the owner of each actor.
type Living = BTreeMap<ActorId, (Epoch, String)>;

/// A head, its disk and its workers: what is sent to them is done at once.
struct World {
    head: Head,
    now: Millis,
    term: u64,
    sessions: BTreeMap<SessionId, Digest>,
    owned: BTreeMap<ActorId, (SessionId, Arc<StoredActor>)>,
    detached: BTreeMap<ActorId, Arc<StoredActor>>,
    lives: BTreeMap<ActorId, (NodeId, Epoch)>,
    members: BTreeMap<NodeId, Member>,
    links: Vec<(ActorId, ActorId)>,
    gangs: BTreeMap<ActorId, Gang>,
    letters: Vec<DeadLetter>,
    /// CPUs of each worker, and what it runs.
    workers: BTreeMap<NodeId, (u64, Living)>,
    /// Where calls to each actor go, as clients were told last.
    routes: BTreeMap<ActorId, Route>,
}

impl World {
    fn new() -> Self {
        let mut head = Head::new(HeadConfig::default(), 1);
        head.set_term(1);
        head.register(agent(), 0).unwrap();
        head.open_session("s".into(), Digest::of(b"s"), 1).unwrap();
        let mut world = Self {
            head,
            now: 0,
            term: 1,
            sessions: BTreeMap::new(),
            owned: BTreeMap::new(),
            detached: BTreeMap::new(),
            lives: BTreeMap::new(),
            members: BTreeMap::new(),
            links: Vec::new(),
            gangs: BTreeMap::new(),
            letters: Vec::new(),
            workers: BTreeMap::new(),
            routes: BTreeMap::new(),
        };
        world.run();
        world
    }

    /// Carries out what the head says.
    fn run(&mut self) {
        while let Some(output) = self.head.poll_output() {
            match output {
                Output::Write(write) => self.write(write),
                Output::Route(actor, route) => drop(self.routes.insert(actor, route)),
                Output::Send(node, Command::Start { actor, epoch, owner, .. }) => {
                    if let Some((_, runs)) = self.workers.get_mut(&node) {
                        runs.insert(actor.clone(), (epoch, owner));
                        self.head.actor_report(&node, &actor, epoch, ActorReport::Live, self.now);
                    }
                }
                Output::Send(node, Command::Stop { actor, epoch, .. }) => {
                    if let Some((_, runs)) = self.workers.get_mut(&node) {
                        runs.remove(&actor);
                        self.head.actor_report(&node, &actor, epoch, ActorReport::Stopped { lost: None }, self.now);
                    }
                }
                _ => {}
            }
        }
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Session(id, Some(proof)) => drop(self.sessions.insert(id, proof)),
            Write::Session(id, None) => drop(self.sessions.remove(&id)),
            Write::Owned(id, Some(owned)) => drop(self.owned.insert(id, owned)),
            Write::Owned(id, None) => drop(self.owned.remove(&id)),
            Write::Actor(id, Some(actor)) => drop(self.detached.insert(id, actor)),
            Write::Actor(id, None) => drop(self.detached.remove(&id)),
            Write::OwnedLife(id, Some(life)) | Write::Activation(id, Some(life)) => drop(self.lives.insert(id, life)),
            Write::OwnedLife(id, None) | Write::Activation(id, None) => drop(self.lives.remove(&id)),
            Write::Member(id, Some(member)) => drop(self.members.insert(id, member)),
            Write::Member(id, None) => drop(self.members.remove(&id)),
            Write::Link(one, other, true) | Write::OwnedLink(one, other, true) => self.links.push((one, other)),
            Write::Link(one, other, false) | Write::OwnedLink(one, other, false) => {
                self.links.retain(|known| *known != (one.clone(), other.clone()));
            }
            Write::Gang(name, Some(gang)) => drop(self.gangs.insert(name, (*gang).clone())),
            Write::Gang(name, None) => drop(self.gangs.remove(&name)),
            Write::DeadLetter(letter) => self.letters.push((*letter).clone()),
            _ => {}
        }
    }

    /// A worker says hello, with what it runs.
    fn join(&mut self, node: &str, cpus: u64) {
        let id = NodeId::from(node);
        let (_, runs) = self.workers.entry(id.clone()).or_insert((cpus, BTreeMap::new()));
        let living = runs.iter().map(|(actor, (epoch, owner))| LivingActor {
            actor: actor.clone(),
            epoch: *epoch,
            agent: "a".into(),
            owner: owner.clone(),
            starting: false,
            said: None,
        });
        let total = Resources { cpu_milli: 1_000 * cpus, ..Resources::default() };
        let actors = living.collect();
        let hello = Hello { incarnation: 1, name: node.into(), total, actors, ..Hello::default() };
        self.head.joined(&id, self.term, hello, self.now).unwrap();
        self.run();
    }

    /// The head dies, and another one reads what it wrote. No worker is back yet.
    fn restart(&mut self) {
        self.term += 1;
        let mut head = Head::new(HeadConfig::default(), self.term);
        head.set_term(self.term);
        head.restore_agent(agent());
        let now = self.now;
        self.members.clone().into_iter().for_each(|(id, member)| head.restore_member(id, member, now));
        for (id, (node, epoch)) in self.lives.clone() {
            head.restore_activation(id, node, epoch, now);
        }
        for (id, actor) in &self.detached {
            head.restore_actor(id.clone(), (**actor).clone(), Owner::Detached, false, now);
        }
        self.sessions.clone().into_iter().for_each(|(id, proof)| head.restore_session(id, proof, now));
        for (id, (session, actor)) in self.owned.clone() {
            head.restore_owned(id, session, (*actor).clone(), false, now);
        }
        self.gangs.clone().into_iter().for_each(|(name, gang)| head.restore_gang(name, gang));
        self.links.clone().into_iter().for_each(|(one, other)| head.restore_link(one, other));
        self.letters.clone().into_iter().for_each(|letter| head.restore_dead_letter(letter));
        self.head = head;
        self.head.open_session("s".into(), Digest::of(b"s"), self.term).unwrap();
        self.tick(1);
    }

    /// All workers are back.
    fn back(&mut self) {
        let all: Vec<_> = self.workers.iter().map(|(id, (cpus, _))| (id.to_string(), *cpus)).collect();
        all.iter().for_each(|(id, cpus)| self.join(id, *cpus));
    }

    fn tick(&mut self, ms: Millis) {
        self.now += ms;
        for node in self.workers.keys() {
            self.head.heard(node, self.term, self.now);
        }
        self.head.tick(self.now);
        self.run();
    }

    fn session(&self) -> Owner {
        Owner::Session("s".into())
    }

    fn create(&mut self, id: &str, owner: Owner) {
        self.head.create_actor(ask(id, owner), self.now).unwrap();
        self.run();
    }

    fn gang(&mut self, ids: &[&str], owner: &Owner) {
        let asks = ids.iter().map(|id| ask(id, owner.clone())).collect();
        self.head.create_gang(asks, GangStrategy::Pack, self.now).unwrap();
        self.run();
    }

    fn link(&mut self, one: &str, other: &str) {
        self.head.link(&one.into(), &other.into()).unwrap();
        self.run();
    }

    fn stop(&mut self, id: &str, drain: bool) {
        self.head.stop_actor(&id.into(), drain, self.now).unwrap();
        self.run();
    }

    /// `gone` where nothing is known of it.
    fn state(&self, id: &str) -> &'static str {
        self.head.actor(&id.into()).map_or("gone", |info| info.state)
    }

    fn states(&self, ids: &[&str]) -> Vec<&'static str> {
        ids.iter().map(|id| self.state(id)).collect()
    }
}

#[test]
fn linked_actors_end_together_under_the_next_head() {
    let mut world = World::new();
    world.join("n", 8);
    let session = world.session();
    for (id, owner) in [("one", session.clone()), ("two", session.clone()), ("three", Owner::Detached)] {
        world.create(id, owner);
    }
    world.create("alone", session);
    world.link("one", "two");
    world.link("two", "three");
    world.restart();
    world.back();
    assert_eq!(world.states(&["one", "two", "three", "alone"]), ["live"; 4]);
    world.stop("one", false);
    assert_eq!(world.states(&["one", "two", "three", "alone"]), ["dead", "dead", "dead", "live"]);
    assert_eq!((world.links.len(), world.owned.len(), world.detached.len()), (0, 1, 0));
    world.restart();
    world.back();
    assert_eq!(world.states(&["one", "two", "three", "alone"]), ["gone", "gone", "gone", "live"]);
}

#[test]
fn a_gentle_end_is_no_cause_and_takes_its_links_along() {
    let mut world = World::new();
    world.join("n", 8);
    for id in ["calm", "stays"] {
        world.create(id, Owner::Detached);
    }
    world.link("calm", "stays");
    world.stop("calm", true);
    assert!(world.links.is_empty());
    world.restart();
    world.back();
    assert_eq!(world.states(&["calm", "stays"]), ["gone", "live"]);
}

/// The machine lost its power between the two writes of one end.
#[test]
fn what_ended_before_takes_its_linked_actors_along() {
    for lost in ["one", "two"] {
        let mut world = World::new();
        world.join("n", 8);
        let session = world.session();
        world.create("one", session);
        world.create("two", Owner::Detached);
        world.link("one", "two");
        world.owned.remove(&ActorId::from(lost));
        world.detached.remove(&ActorId::from(lost));
        world.lives.remove(&ActorId::from(lost));
        world.restart();
        world.back();
        assert!(world.states(&["one", "two"]).iter().all(|state| ["dead", "gone"].contains(state)), "{lost}");
        assert!(world.links.is_empty() && world.owned.is_empty() && world.detached.is_empty());
    }
}

#[test]
fn a_virtual_actor_keeps_its_links_while_it_sleeps_and_over_a_restart() {
    let mut world = World::new();
    world.join("n", 8);
    world.create("lasting", Owner::Detached);
    let woken = ActorId::from("a/1");
    world.head.wake(&woken, 0);
    world.run();
    world.link("a/1", "lasting");
    let epoch = world.lives[&woken].1;
    world.workers.get_mut(&NodeId::from("n")).unwrap().1.remove(&woken);
    world.head.actor_report(&"n".into(), &woken, epoch, ActorReport::Slept, 0);
    world.run();
    world.restart();
    world.back();
    assert_eq!(world.states(&["a/1", "lasting"]), ["gone", "live"], "asleep is not over");
    world.head.wake(&woken, world.now);
    world.run();
    world.stop("a/1", false);
    assert_eq!(world.state("lasting"), "dead");
}

#[test]
fn what_a_worker_has_not_brought_back_yet_ends_with_what_it_is_linked_to() {
    let mut world = World::new();
    world.join("n", 8);
    world.create("lasting", Owner::Detached);
    world.head.wake(&"a/1".into(), 0);
    world.run();
    world.link("a/1", "lasting");
    world.restart();
    world.stop("lasting", false);
    world.back();
    assert_eq!(world.states(&["a/1", "lasting"]), ["gone", "dead"]);
    assert!(world.workers[&NodeId::from("n")].1.is_empty(), "its worker was told to stop it");
}

#[test]
fn a_gang_that_waits_is_placed_at_once_or_not_at_all_by_the_next_head() {
    for owner in [Owner::Session("s".into()), Owner::Detached] {
        let mut world = World::new();
        world.join("n", 1);
        world.join("m", 1);
        world.create("holds", Owner::Detached);
        world.gang(&["g1", "g2"], &owner);
        assert_eq!(world.states(&["g1", "g2"]), ["pending"; 2]);
        world.restart();
        world.back();
        world.tick(20_000);
        assert_eq!(world.states(&["holds", "g1", "g2"]), ["live", "pending", "pending"]);
        // The same request again makes no other: its answer may have been lost with the head.
        world.gang(&["g1", "g2"], &owner);
        world.create("takes", Owner::Detached);
        assert_eq!(world.state("takes"), "live", "a gang that waits takes no place");
        world.stop("takes", false);
        world.restart();
        world.back();
        world.stop("holds", false);
        assert_eq!(world.states(&["g1", "g2"]), ["live"; 2]);
        assert!(world.gangs.is_empty(), "the store has it no more");
        // From now on each is placed by itself.
        world.restart();
        world.back();
        assert_eq!(world.states(&["g1", "g2"]), ["live"; 2]);
    }
}

#[test]
fn a_gang_whose_members_ended_is_forgotten() {
    let mut world = World::new();
    world.join("n", 1);
    world.gang(&["g1", "g2"], &Owner::Detached);
    assert_eq!(world.gangs.len(), 1);
    world.stop("g1", false);
    world.restart();
    assert_eq!(world.state("g2"), "pending");
    world.stop("g2", false);
    world.restart();
    assert!(world.gangs.is_empty());
}

/// The first of several workers is back: what fits none but another one is not told that it never will.
#[test]
fn nobody_is_told_never_before_the_workers_had_their_time() {
    let mut world = World::new();
    world.join("m", 1);
    world.join("n", 2);
    world.create("holds", Owner::Detached);
    let session = world.session();
    world.gang(&["g1", "g2", "g3"], &session);
    world.restart();
    world.join("m", 1);
    assert!(matches!(&world.routes["g1"], Route::Wait { never: false, .. }), "{:?}", world.routes);
    world.join("n", 2);
    world.stop("holds", false);
    assert_eq!(world.states(&["g1", "g2", "g3"]), ["live"; 3]);
    // One that is not back in time counts no more.
    world.gang(&["h1", "h2", "h3"], &session);
    world.restart();
    world.workers.remove(&NodeId::from("n"));
    world.join("m", 1);
    for _ in 0..40 {
        world.tick(500);
    }
    assert!(matches!(&world.routes["h1"], Route::Wait { never: true, .. }), "{:?}", world.routes);
}

#[test]
fn dead_letters_are_kept_the_newest_of_them() {
    let mut world = World::new();
    let letter = |n: u64| DeadLetter {
        at_ms: n,
        agent: "a".into(),
        actor: None,
        task: None,
        method: "m".into(),
        bytes: 1,
        attempts: 3,
        error: Error::new(ErrorKind::ActorDied, "x".repeat(1 << 20)),
    };
    for n in 0..1_200 {
        world.head.dead_letter(letter(n));
        world.run();
    }
    world.restart();
    let all = world.head.dead_letters();
    assert_eq!((all.len(), all[0].at_ms, all[999].at_ms), (1_000, 200, 1_199));
    assert!(all[0].error.message.len() < 5_000);
}

#[derive(Clone, Debug)]
enum Step {
    Gang(u8, bool),
    Create(bool),
    Link(u8, u8),
    Stop(u8, bool),
    Wait(u16),
    Restart,
    Back,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..4_u8, any::<bool>()).prop_map(|(n, detached)| Step::Gang(n, detached)),
        any::<bool>().prop_map(Step::Create),
        (any::<u8>(), any::<u8>()).prop_map(|(one, other)| Step::Link(one, other)),
        (any::<u8>(), any::<bool>()).prop_map(|(id, drain)| Step::Stop(id, drain)),
        (0..3_000_u16).prop_map(Step::Wait),
        Just(Step::Restart),
        Just(Step::Back),
    ]
}

proptest! {
    /// Whatever happens: a gang has all its places or none, who is linked to what was ended has ended, and what the store has of
    /// both is what the head knows.
    #[test]
    fn gangs_and_links_are_whole(steps in proptest::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        world.join("n", 2);
        world.join("m", 2);
        let (mut made, mut gangs, mut links) = (Vec::<String>::new(), Vec::<Vec<String>>::new(), Vec::new());
        let mut away = false;
        for step in steps {
            let owner = |detached| if detached { Owner::Detached } else { Owner::Session("s".into()) };
            let pick = |n: u8, made: &[String]| made.get(usize::from(n) % made.len().max(1)).cloned();
            match step {
                Step::Gang(count, detached) => {
                    let ids: Vec<_> = (0..count).map(|n| format!("g{}-{n}", gangs.len())).collect();
                    world.gang(&ids.iter().map(String::as_str).collect::<Vec<_>>(), &owner(detached));
                    made.extend(ids.clone());
                    gangs.push(ids);
                }
                Step::Create(detached) => {
                    let id = format!("c{}", made.len());
                    world.create(&id, owner(detached));
                    made.push(id);
                }
                Step::Link(one, other) => {
                    let Some((one, other)) = pick(one, &made).zip(pick(other, &made)) else { continue };
                    if world.head.link(&one.as_str().into(), &other.as_str().into()).is_ok() {
                        links.push((one, other));
                    }
                }
                Step::Stop(id, drain) => {
                    let Some(id) = pick(id, &made) else { continue };
                    let alive = !["dead", "gone"].contains(&world.state(&id));
                    if alive && drain {
                        links.retain(|(one, other)| *one != id && *other != id);
                    }
                    if alive {
                        world.stop(&id, drain);
                    }
                }
                Step::Wait(ms) => world.tick(ms.into()),
                Step::Restart => {
                    world.restart();
                    away = true;
                }
                Step::Back => {
                    world.back();
                    away = false;
                }
            }
            world.run();
            let over = |id: &String| ["dead", "gone"].contains(&world.state(id));
            for (one, other) in &links {
                prop_assert_eq!(over(one), over(other), "{} and {}", one, other);
            }
            for gang in &gangs {
                let waits = |id: &&String| world.state(id) == "pending";
                let alive: Vec<_> = gang.iter().filter(|id| !over(id)).collect();
                let waiting = alive.iter().filter(|id| waits(id)).count();
                // While its workers are away, who had a place is waited for.
                prop_assert!(away || waiting == 0 || waiting == alive.len(), "{:?}", world.states(
                    &gang.iter().map(String::as_str).collect::<Vec<_>>()));
            }
            let known = links.iter().filter(|(one, _)| !over(one)).map(|(one, other)| {
                let (one, other) = (ActorId::from(one.as_str()), ActorId::from(other.as_str()));
                if one < other { (one, other) } else { (other, one) }
            });
            let known: std::collections::BTreeSet<_> = known.collect();
            prop_assert_eq!(known, world.links.iter().cloned().collect::<std::collections::BTreeSet<_>>());
        }
    }
}
