//! What the head decides when turns hang, processes do not start, runs raise, and workers lack what agents need.

use std::{collections::BTreeMap, sync::Arc};

use covey_cluster_core::head::{
    ActorReport, Command, CreateActor, Entry, Head, HeadConfig, Hello, LivingActor, Output, Owner, Route, Submission,
    Write,
};
use covey_domain::{
    ActorId, AgentSpec, Digest, Epoch, Error, ErrorKind, NodeId, Resources, Retry, TaskEvent, TaskId,
    agent::GangStrategy,
    event::{Outcome, Phase},
    task::TaskInput,
};

struct World {
    head: Head,
    now: u64,
    entries: u64,
    /// What was started and not stopped, and where tasks run.
    started: Vec<(ActorId, Epoch)>,
    run: Vec<(TaskId, u32, ActorId)>,
    events: Vec<TaskEvent>,
    /// Whether callers of the actor that waits were last told that no node could ever hold it.
    never: Option<bool>,
}

fn node() -> NodeId {
    "n".into()
}

fn world(cpus: u64, spec: &serde_json::Value) -> World {
    let head = Head::new(HeadConfig { backoff_ms: 100, backoff_max_ms: 1_000, ..HeadConfig::default() }, 7);
    let mut world = World {
        head,
        now: 1_000_000,
        entries: 0,
        started: Vec::new(),
        run: Vec::new(),
        events: Vec::new(),
        never: None,
    };
    let total = Resources { cpu_milli: cpus * 1000, ..Resources::default() };
    let hello = Hello { incarnation: 1, name: "n".into(), total, ..Hello::default() };
    world.head.joined(&node(), 1, hello, world.now).unwrap();
    let spec: AgentSpec = serde_json::from_value(spec.clone()).unwrap();
    world.head.register(spec, world.now).unwrap();
    world.head.open_session("s".into(), Digest::of(b"secret"), 1).unwrap();
    world.drain();
    world
}

fn native(more: serde_json::Value) -> serde_json::Value {
    let mut spec =
        serde_json::json!({"name": "a", "kind": {"type": "native", "implementation": "a"}, "skills": [{"id": "run"}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

impl World {
    fn drain(&mut self) {
        while let Some(output) = self.head.poll_output() {
            match output {
                Output::Send(_, Command::Start { actor, epoch, .. }) => self.started.push((actor, epoch)),
                Output::Send(_, Command::Stop { actor, .. }) => self.started.retain(|(a, _)| *a != actor),
                Output::Send(_, Command::Run { record, actor, .. }) => {
                    self.run.push((record.id.clone(), record.attempt, actor));
                }
                Output::Route(_, Route::Wait { never, .. }) => self.never = Some(never),
                Output::Write(Write::Event(event)) => self.events.push(event.event.clone()),
                _ => {}
            }
        }
    }

    fn submit(&mut self, id: &str, retry: Option<Retry>) {
        let submission = Submission {
            id: id.into(),
            context: "c".into(),
            caller: "x".into(),
            agent: "a".into(),
            skill: None,
            input: TaskInput { retry, ..TaskInput::default() }.into(),
            message_id: None,
            model: None,
            protocol: "test".into(),
            timeout_ms: None,
            looked_at: 0,
            tasks_max: usize::MAX,
            refused: None,
        };
        self.head.submit(submission, self.now).unwrap();
        self.drain();
    }

    fn actor(&mut self, id: &str) {
        self.actor_with(id, &serde_json::json!({}));
    }

    fn actor_with(&mut self, id: &str, overrides: &serde_json::Value) {
        let ask = CreateActor {
            id: id.into(),
            agent: "a".into(),
            name: None,
            get_if_exists: false,
            owner: Owner::Session("s".into()),
            init: None,
            overrides: overrides.as_object().unwrap().clone(),
            least: covey_domain::Isolation::None,
            keeps_labels: false,
        };
        self.head.create_actor(ask, self.now).unwrap();
        self.drain();
    }

    fn report(&mut self, report: ActorReport) {
        let (actor, epoch) = self.started.last().cloned().unwrap();
        self.report_of(&actor, epoch, report);
    }

    fn report_of(&mut self, actor: &ActorId, epoch: Epoch, report: ActorReport) {
        self.head.actor_report(&node(), actor, epoch, report, self.now);
        self.drain();
    }

    fn ends(&mut self, error: Error) {
        let (task, attempt, _) = self.run.last().cloned().unwrap();
        self.entries += 1;
        let events = vec![
            TaskEvent::StepFinished { step: attempt, finish: None, usage: None },
            TaskEvent::Finished { outcome: Outcome::Failed { error }, usage: BTreeMap::new() },
        ];
        let entry = Entry { number: self.entries, task, attempt, ts_ms: self.now, events: Ok(events) };
        self.head.entry(&node(), 1, entry, self.now).unwrap();
        self.drain();
    }

    fn after(&mut self, ms: u64) {
        self.now += ms;
        self.head.heard(&node(), 1, self.now);
        self.head.tick(self.now);
        self.drain();
    }

    fn state(&self, actor: &ActorId) -> (String, Option<String>) {
        let status = self.head.status();
        let actor = status.actors.iter().find(|a| a.id == *actor).unwrap();
        (actor.state.clone(), actor.why.clone())
    }

    fn told(&self) -> Vec<String> {
        let message = |event: &TaskEvent| match event {
            TaskEvent::Status { state: Phase::Queued, message } => message.clone(),
            _ => None,
        };
        self.events.iter().filter_map(message).collect()
    }

    fn ended(&self) -> Option<Outcome> {
        self.events.iter().find_map(|event| match event {
            TaskEvent::Finished { outcome, .. } => Some(outcome.clone()),
            _ => None,
        })
    }
}

fn spawn_failed() -> ActorReport {
    ActorReport::Died { error: Error::unavailable("failed to start Python: no room"), retryable: true }
}

#[test]
fn a_pool_whose_process_does_not_start_is_tried_with_growing_pauses_and_says_why() {
    let mut world = world(2, &native(serde_json::json!({"pool": 1, "schedule_timeout_ms": 10_000})));
    world.submit("t", None);
    let mut starts = Vec::new();
    for _ in 0..4 {
        let before = world.started.len();
        world.report(spawn_failed());
        let mut waited = 0;
        while world.started.len() == before {
            world.after(50);
            waited += 50;
        }
        starts.push(waited);
    }
    assert_eq!(starts, [100, 200, 400, 800]);
    assert_eq!(world.told(), ["failed to start Python: no room"], "once, however often it is tried");
    let pending = world.head.status().pending;
    assert!(pending.iter().any(|p| p.what == "1 tasks of a" && p.why.contains("no room")), "{pending:?}");
    world.report(ActorReport::Live);
    assert_eq!(world.run.len(), 1);
    assert_eq!(world.ended(), None);
}

#[test]
fn tasks_that_nobody_could_run_fail_after_the_schedule_timeout() {
    let mut world = world(1, &native(serde_json::json!({"labels": {"zone": "b"}, "schedule_timeout_ms": 5_000})));
    assert!(world.head.unservable(&"a".into()).unwrap().contains("needs label zone=b"));
    world.submit("t", None);
    world.actor("mine");
    assert!(world.told()[0].contains("needs label zone=b"));
    world.after(4_900);
    assert_eq!(world.ended(), None);
    world.after(200);
    let Some(Outcome::Failed { error }) = world.ended() else { panic!("it goes on") };
    assert_eq!(error.kind, ErrorKind::Unschedulable);
    let (state, why) = world.state(&"mine".into());
    assert_eq!(state, "dead");
    assert!(why.unwrap().contains("needs label zone=b"));
}

#[test]
fn what_waits_for_a_busy_cluster_waits_on() {
    let mut world =
        world(1, &native(serde_json::json!({"resources": {"cpu_milli": 1000}, "schedule_timeout_ms": 500})));
    world.actor("first");
    world.report(ActorReport::Live);
    world.actor("second");
    world.submit("t", None);
    world.after(60_000);
    assert_eq!(world.state(&"second".into()).0, "pending");
    assert_eq!(world.ended(), None);
    assert_eq!(world.told(), Vec::<String>::new());
}

#[test]
fn what_a_pool_does_not_use_goes_to_who_waits_for_it() {
    let one = serde_json::json!({"resources": {"cpu_milli": 1000}, "pool": 2});
    let failed = || Error::new(ErrorKind::Application, "it ends");
    // Whoever comes before the task has ended or after it.
    for before in [false, true] {
        let mut world = world(1, &native(one.clone()));
        world.submit("t", None);
        world.report(ActorReport::Live);
        if before {
            world.actor("mine");
            assert_eq!(world.started.len(), 1, "what has a task keeps its place");
        }
        world.ends(failed());
        if !before {
            world.actor("mine");
        }
        assert_eq!(world.started.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["mine"]);
        // What comes for the pool waits in its turn.
        world.submit("u", None);
        world.after(1_000);
        assert_eq!((world.started.len(), world.run.len()), (1, 1));
    }
}

#[test]
fn as_few_of_a_pool_end_as_are_in_the_way() {
    let one = serde_json::json!({"resources": {"cpu_milli": 1000}, "pool": 2});
    let mut world = world(3, &native(one));
    for (task, actor) in [("t", 0), ("u", 1)] {
        world.submit(task, None);
        let (id, epoch) = world.started[actor].clone();
        world.report_of(&id, epoch, ActorReport::Live);
    }
    for _ in 0..2 {
        world.ends(Error::new(ErrorKind::Application, "it ends"));
        world.run.pop();
    }
    world.actor("third");
    assert_eq!(world.started.len(), 3, "there was room");
    world.actor_with("fourth", &serde_json::json!({"resources": {"cpu_milli": 1000}}));
    assert_eq!(world.started.len(), 3);
    assert_eq!(world.started.iter().filter(|(id, _)| id.as_str().starts_with("pool")).count(), 1, "one went");
    // Nobody could ever have that much: nothing ends for it.
    world.actor_with("large", &serde_json::json!({"resources": {"cpu_milli": 4000}}));
    // Too much for all that is idle.
    world.actor_with("wide", &serde_json::json!({"resources": {"cpu_milli": 2000}}));
    assert_eq!(world.started.iter().filter(|(id, _)| id.as_str().starts_with("pool")).count(), 1);
}

#[test]
fn a_gang_has_the_room_of_what_is_idle() {
    let one = serde_json::json!({"resources": {"cpu_milli": 1000}, "pool": 2});
    let mut world = world(2, &native(one));
    world.submit("t", None);
    world.report(ActorReport::Live);
    let ask = |id: &str| CreateActor {
        id: id.into(),
        agent: "a".into(),
        name: None,
        get_if_exists: false,
        owner: Owner::Session("s".into()),
        init: None,
        overrides: serde_json::Map::new(),
        least: covey_domain::Isolation::None,
        keeps_labels: false,
    };
    world.head.create_gang(vec![ask("one"), ask("two")], GangStrategy::Pack, world.now).unwrap();
    world.drain();
    assert_eq!(world.started.len(), 1);
    world.ends(Error::new(ErrorKind::Application, "it ends"));
    assert_eq!(world.started.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn nothing_goes_to_a_stuck_actor_and_its_pool_grows_beside_it() {
    let mut world = world(2, &native(serde_json::json!({"pool": 1})));
    world.submit("one", None);
    world.report(ActorReport::Live);
    let hanging = world.started[0].clone();
    world.report(ActorReport::Stuck("it hangs".into()));
    world.ends(Error::new(ErrorKind::DeadlineExceeded, "too long"));
    assert_eq!(world.state(&hanging.0), ("stuck".into(), Some("it hangs".into())));
    world.submit("two", None);
    assert_eq!(world.started.len(), 2, "another one starts");
    world.report(ActorReport::Live);
    assert_eq!(world.run.last().unwrap().2, world.started[1].0);
    // It ended after all: it is one of the pool again.
    world.report_of(&hanging.0, hanging.1, ActorReport::Live);
    assert_eq!(world.state(&hanging.0), ("live".into(), None));
    world.submit("three", None);
    assert_eq!(world.run.last().unwrap().2, hanging.0);
}

#[test]
fn what_was_lost_twice_runs_alone() {
    let mut world = world(1, &native(serde_json::json!({"pool": 1, "concurrency": 4})));
    for id in ["a", "b", "c", "d"] {
        world.submit(id, None);
    }
    for _ in 0..2 {
        world.report(ActorReport::Live);
        assert_eq!(world.run.split_off(0).len(), 4);
        let error = Error::new(ErrorKind::ActorDied, "its process ended");
        world.report(ActorReport::Died { error, retryable: true });
    }
    world.report(ActorReport::Live);
    world.submit("new", None);
    let mut ran = Vec::new();
    while ran.len() < 5 {
        ran.push(world.run.len());
        world.ends(Error::new(ErrorKind::Application, "it ends"));
        world.run.remove(0);
    }
    assert_eq!((ran, world.run.len()), (vec![1; 5], 0));
}

#[test]
fn an_actor_whose_process_is_replaced_moves_and_starts_again() {
    let mut world = world(1, &native(serde_json::json!({})));
    world.actor("mine");
    world.report(ActorReport::Live);
    let (actor, epoch) = world.started[0].clone();
    world.report(ActorReport::Leaving("another hangs".into()));
    assert_eq!(world.state(&actor).0, "moving");
    world.report_of(&actor, epoch, ActorReport::Stopped { lost: None });
    assert_eq!(world.started.len(), 1);
    assert!(world.started[0].1 > epoch, "a new activation");
    assert_eq!(world.state(&actor), ("starting".into(), None));
    world.report(ActorReport::Live);
    assert_eq!(world.state(&actor), ("live".into(), None));
}

#[test]
fn why_an_actor_waits_is_told_as_long_as_it_does() {
    let mut world = world(1, &native(serde_json::json!({})));
    world.actor("mine");
    world.report(ActorReport::Live);
    let (actor, epoch) = world.started[0].clone();
    let moving = |why: &str| ("moving".to_owned(), Some(why.to_owned()));
    let hangs = "moving to another process: another hangs";
    world.report(ActorReport::Stuck("it hangs".into()));
    world.report(ActorReport::Leaving("another hangs".into()));
    assert_eq!(world.state(&actor), moving(hangs));
    // Its turn ends, and it moves nevertheless.
    world.report_of(&actor, epoch, ActorReport::Live);
    assert_eq!(world.state(&actor), moving(hangs));
    world.head.drain("n", 1_000, world.now).unwrap();
    world.report_of(&actor, epoch, ActorReport::Stopped { lost: None });
    let (state, why) = world.state(&actor);
    assert_eq!(state, "pending");
    assert!(!why.unwrap().is_empty());
}

#[test]
fn what_hung_in_one_life_does_not_hang_in_the_next() {
    let mut world = world(1, &native(serde_json::json!({})));
    world.actor("mine");
    world.report(ActorReport::Live);
    let (actor, epoch) = world.started[0].clone();
    world.report(ActorReport::Stuck("it hangs".into()));
    world.report(ActorReport::Leaving("another hangs".into()));
    world.report_of(&actor, epoch, ActorReport::Stopped { lost: None });
    world.report(ActorReport::Live);
    assert_eq!(world.state(&actor), ("live".into(), None));
    // That it was started again stays: nothing waits for that.
    world.report(ActorReport::Died { error: Error::new(ErrorKind::ActorDied, "it is gone"), retryable: true });
    world.after(1_000);
    world.report(ActorReport::Live);
    assert_eq!(world.state(&actor), ("live".into(), Some("restarted: it is gone".into())));
}

#[test]
fn a_move_without_state_is_a_restart() {
    for most in [0, 1] {
        let mut world = world(1, &native(serde_json::json!({"max_restarts": most})));
        world.actor("mine");
        world.report(ActorReport::Live);
        for round in 0..2 {
            let (actor, epoch) = world.started.last().cloned().unwrap();
            world.report(ActorReport::Leaving("another hangs".into()));
            let lost = Some("`A` has no `__snapshot__`".to_owned());
            world.report_of(&actor, epoch, ActorReport::Stopped { lost });
            let (state, why) = world.state(&actor);
            assert!(why.unwrap().contains("moved without its state: `A` has no `__snapshot__`"));
            if round == most {
                assert_eq!(state, "dead");
                break;
            }
            assert_eq!(state, "starting");
            world.report(ActorReport::Live);
        }
    }
}

#[test]
fn calls_wait_as_long_as_was_said() {
    for (said, never) in [(None, true), (Some(5_000), false)] {
        let mut world = world(1, &native(serde_json::json!({"labels": {"zone": "b"}, "schedule_timeout_ms": said})));
        world.actor("mine");
        assert_eq!(world.never, Some(never), "{said:?}");
    }
}

#[test]
fn who_had_a_place_has_its_room_back_before_those_that_wait() {
    let cpus = |milli: u64| serde_json::json!({"resources": {"cpu_milli": milli}});
    for crashed in [false, true] {
        let mut world = world(2, &native(serde_json::json!({})));
        world.actor_with("mine", &cpus(2_000));
        world.report(ActorReport::Live);
        let (actor, epoch) = world.started[0].clone();
        // They wait for longer, are smaller, and one is of the same shape.
        for (id, of) in [("small", 1_000), ("alike", 2_000), ("smaller", 500)] {
            world.actor_with(id, &cpus(of));
        }
        if crashed {
            let error = Error::new(ErrorKind::ActorDied, "its process is gone");
            world.report(ActorReport::Died { error, retryable: true });
        } else {
            world.report(ActorReport::Leaving("another hangs".into()));
            world.report_of(&actor, epoch, ActorReport::Stopped { lost: None });
        }
        let started: Vec<_> = world.started.iter().filter(|s| **s != (actor.clone(), epoch)).collect();
        assert_eq!(started.len(), 1, "{started:?}");
        assert!(started[0].0 == actor && started[0].1 > epoch, "{started:?}");
    }
}

#[test]
fn a_task_that_raises_what_was_named_is_tried_as_often_as_was_asked() {
    let mut world = world(1, &native(serde_json::json!({})));
    let retry = Retry { max: 7, on: vec!["builtins.OSError".into()], backoff_ms: 40, backoff_max_ms: 80 };
    world.submit("t", Some(retry));
    world.report(ActorReport::Live);
    for tried in 1..=7 {
        world.ends(Error { retry: true, ..Error::new(ErrorKind::Application, "OSError: no") });
        assert_eq!(world.run.len(), tried);
        world.after(81);
        assert_eq!(world.run.len(), tried + 1);
        assert!(world.told()[tried - 1].contains(&format!("{tried} of 7): OSError: no")));
    }
    assert_eq!(world.ended(), None);
    world.ends(Error { retry: true, ..Error::new(ErrorKind::Application, "OSError: the last") });
    assert!(matches!(world.ended(), Some(Outcome::Failed { error }) if error.message == "OSError: the last"));
}

#[test]
fn what_was_said_while_there_was_no_link_is_heard_with_the_hello() {
    let mut world = world(1, &native(serde_json::json!({"resources": {"cpu_milli": 1000}})));
    world.actor("mine");
    world.report(ActorReport::Live);
    let (actor, epoch) = world.started[0].clone();
    let mut link = 1;
    let mut back = |world: &mut World, said: Option<ActorReport>| {
        let living = LivingActor {
            actor: actor.clone(),
            epoch,
            agent: "a".into(),
            owner: "session:s".into(),
            starting: false,
            said,
        };
        link += 1;
        let total = Resources { cpu_milli: 1000, ..Resources::default() };
        let hello = Hello { incarnation: 1, name: "n".into(), total, actors: vec![living], ..Hello::default() };
        world.head.joined(&node(), link, hello, world.now).unwrap();
        world.drain();
        (world.head.status().nodes[0].free.cpu_milli, world.state(&actor).0)
    };
    // Each was heard, or was not, and is not so any more.
    assert_eq!(back(&mut world, Some(ActorReport::Waiting)), (1000, "live".into()));
    assert_eq!(back(&mut world, None), (0, "live".into()));
    assert_eq!(back(&mut world, Some(ActorReport::Stuck("it hangs".into()))), (0, "stuck".into()));
    assert_eq!(back(&mut world, None), (0, "live".into()));
    assert_eq!(back(&mut world, Some(ActorReport::Leaving("another hangs".into()))).1, "moving");
}

#[test]
fn cpus_that_are_lent_come_back_and_none_is_made_by_that() {
    let mut world = world(1, &native(serde_json::json!({"resources": {"cpu_milli": 1000}})));
    let free = |world: &World| world.head.status().nodes[0].free.cpu_milli;
    world.actor("outer");
    world.report(ActorReport::Live);
    let outer = world.started[0].clone();
    world.actor("inner");
    assert_eq!(world.started.len(), 1);
    world.report(ActorReport::Waiting);
    assert_eq!(world.started.len(), 2, "the inner one has the CPU");
    world.report(ActorReport::Live);
    // The outer one goes on while the inner one still has its CPU: it is owed.
    world.report_of(&outer.0, outer.1, ActorReport::Live);
    assert_eq!(free(&world), 0);
    world.head.stop_actor(&"inner".into(), false, world.now).unwrap();
    world.drain();
    assert_eq!(free(&world), 0, "the outer one has it again");
    world.report_of(&outer.0, outer.1, ActorReport::Waiting);
    assert_eq!(free(&world), 1000);
    world.head.stop_actor(&"outer".into(), false, world.now).unwrap();
    world.drain();
    assert_eq!(free(&world), 1000);
}

#[test]
fn specs_without_the_new_fields_are_read() {
    let spec: AgentSpec = serde_json::from_value(native(serde_json::json!({}))).unwrap();
    assert_eq!(spec.waits_ms(), covey_domain::caps::SCHEDULE_TIMEOUT_MS);
    assert!(!serde_json::to_string(&Arc::new(spec)).unwrap().contains("schedule_timeout"));
}

#[test]
fn what_is_made_is_no_less_isolated_than_who_makes_it() {
    use covey_domain::Isolation;
    let (default, strict) = (Isolation::Default, Isolation::Strict);
    let world = |own: Option<Isolation>| {
        let labels = serde_json::json!({"labels": {"node": "n"}, "isolation": own});
        world(1, &native(labels))
    };
    let ask = |least, overrides: serde_json::Value, keeps_labels| CreateActor {
        id: "actor-1".into(),
        agent: "a".into(),
        name: None,
        get_if_exists: false,
        owner: Owner::Session("s".into()),
        init: None,
        overrides: overrides.as_object().unwrap().clone(),
        least,
        keeps_labels,
    };
    let made = |own, least, overrides| {
        let mut world = world(own);
        let now = world.now;
        world.head.create_actor(ask(least, overrides, false), now).map(|info| info.spec.isolation)
    };
    let nothing = || serde_json::json!({});
    let says = |level: Isolation| serde_json::json!({"isolation": level});
    assert_eq!(made(None, Isolation::None, nothing()).unwrap(), None);
    assert_eq!(made(None, default, nothing()).unwrap(), None);
    assert_eq!(made(None, strict, nothing()).unwrap(), Some(strict));
    assert_eq!(made(None, strict, says(strict)).unwrap(), Some(strict));
    assert_eq!(made(None, default, says(strict)).unwrap(), Some(strict));
    assert_eq!(made(Some(strict), default, nothing()).unwrap(), Some(strict));
    for (own, least, overrides) in [
        (Some(default), strict, nothing()),
        (None, strict, says(default)),
        (Some(strict), strict, says(default)),
        (None, default, says(Isolation::None)),
        (Some(Isolation::None), default, nothing()),
    ] {
        assert_eq!(made(own, least, overrides).unwrap_err().kind, ErrorKind::PermissionDenied, "{own:?} by {least:?}");
    }
    // Who may not say where others' code goes: the labels of the agent hold.
    let mut world = world(None);
    let now = world.now;
    let moved = serde_json::json!({"labels": {"node": "other"}});
    let refused = world.head.create_actor(ask(Isolation::None, moved.clone(), true), now).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::PermissionDenied);
    let more = serde_json::json!({"labels": {"zone": "z"}});
    let info = world.head.create_actor(ask(Isolation::None, more, true), now).unwrap();
    assert_eq!(info.spec.labels, [("node", "n"), ("zone", "z")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    let driver = CreateActor { id: "actor-2".into(), ..ask(Isolation::None, moved, false) };
    let info = world.head.create_actor(driver, now).unwrap();
    assert_eq!(info.spec.labels["node"], "other", "a driver is its owner's");
}
