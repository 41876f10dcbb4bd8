//! Tasks at the edges of the head's memory: what has ended, what cannot be taken, what is too much for one verb.

use std::collections::BTreeMap;

use covey_cluster_core::{
    Head, HeadConfig, Output,
    head::{ActorReport, Command, Entry, Hello, Stored, Submission, Submitted, Write},
};
use covey_domain::{
    AgentSpec, Envelope, Error, ErrorKind, NodeId, Resources, TaskEvent, TaskId, TaskRecord, TaskState, caps,
    event::{Content, Outcome},
    task::TaskInput,
};
use serde_json::{Value, json};

fn spec(more: Value) -> AgentSpec {
    let mut spec = json!({"name": "a", "kind": {"type": "native", "implementation": "echo"}, "pool": 1});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn head() -> Head {
    let mut head = Head::new(HeadConfig::default(), 1);
    head.register(spec(json!({})), 0).unwrap();
    head
}

fn ask(id: &str, message: &str, looked_at: u64) -> Submission {
    Submission {
        id: id.into(),
        context: "c".into(),
        caller: "me".into(),
        agent: "a".into(),
        skill: None,
        input: Default::default(),
        message_id: Some(message.into()),
        model: None,
        protocol: "test".into(),
        timeout_ms: None,
        looked_at,
        tasks_max: usize::MAX,
        refused: None,
    }
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!([inner]))
}

fn outputs(head: &mut Head) -> Vec<Output> {
    std::iter::from_fn(|| head.poll_output()).collect()
}

fn events(outputs: &[Output]) -> Vec<&Envelope> {
    outputs.iter().filter_map(|o| if let Output::Write(Write::Event(e)) = o { Some(&**e) } else { None }).collect()
}

fn ends(outputs: &[Output]) -> usize {
    events(outputs).iter().filter(|e| e.event.is_terminal()).count()
}

/// A head with a worker whose actor runs task `t`, which message `m` made.
fn running() -> (Head, NodeId, u32) {
    let (mut head, node) = (head(), NodeId::from("n"));
    let total = Resources { cpu_milli: 4_000, ..Resources::default() };
    head.joined(&node, 1, Hello { incarnation: 1, name: "n".into(), total, ..Hello::default() }, 0).unwrap();
    assert!(matches!(head.submit(ask("t", "m", 0), 0), Ok(Submitted::Made(_))));
    let start = outputs(&mut head).into_iter().find_map(|o| match o {
        Output::Send(_, Command::Start { actor, epoch, .. }) => Some((actor, epoch)),
        _ => None,
    });
    let (actor, epoch) = start.expect("an actor is started");
    head.actor_report(&node, &actor, epoch, ActorReport::Live, 0);
    let run = outputs(&mut head).into_iter().find_map(|o| match o {
        Output::Send(_, Command::Run { record, .. }) => Some(record.attempt),
        _ => None,
    });
    (head, node, run.expect("the task runs"))
}

#[test]
fn a_message_is_known_when_its_task_has_ended_and_who_looked_too_early_looks_again() {
    let mut head = head();
    let Ok(Submitted::Made(first)) = head.submit(ask("t", "m", 0), 0) else { panic!("it is new") };
    assert_eq!(head.submit(ask("u", "m", 0), 0), Ok(Submitted::Runs(first)));
    let known = head.submit(ask("t", "other", 0), 0).unwrap_err();
    assert_eq!(known.kind, ErrorKind::AlreadyExists, "an id is given once");
    head.cancel_task(&"t".into(), "me", "enough", 1).unwrap();
    assert_eq!(head.submit(ask("u", "m", 0), 1), Ok(Submitted::Ended("t".into())));
    // Many end; the memory has the last of them.
    for n in 0..caps::MESSAGE_IDS_RECENT_MAX {
        let id = format!("t{n}");
        head.submit(ask(&id, &id, 1), 1).unwrap();
        head.cancel_task(&TaskId::from(id), "me", "enough", 1).unwrap();
        outputs(&mut head);
    }
    assert_eq!(head.ended(), caps::MESSAGE_IDS_RECENT_MAX as u64 + 1);
    // Whoever looked at the disk before the first had ended cannot have seen it there, and it is not here any more.
    assert_eq!(head.submit(ask("u", "m", 0), 1), Ok(Submitted::LookAgain));
    assert_eq!(head.submit(ask("u", "t0", 0), 1), Ok(Submitted::Ended("t0".into())));
    assert!(matches!(head.submit(ask("u", "new", 1), 1), Ok(Submitted::Made(_))));
}

#[test]
fn an_entry_that_cannot_be_taken_is_taken_once_and_fails_its_task_alone() {
    let too_deep = Ok(vec![TaskEvent::StateSnapshot { value: nested(70) }]);
    for broken in [Err(Error::invalid("failed to read an event")), too_deep] {
        let (mut head, node, attempt) = running();
        head.submit(ask("next", "m2", 0), 1).unwrap();
        outputs(&mut head);
        let entry = Entry { number: 1, task: "t".into(), attempt, ts_ms: 1, events: broken };
        head.entry(&node, 1, entry.clone(), 1).expect("the link goes on");
        let done = outputs(&mut head);
        let end = events(&done).into_iter().find(|e| e.task.as_str() == "t" && e.event.is_terminal());
        let Some(TaskEvent::Finished { outcome: Outcome::Failed { error }, .. }) = end.map(|e| &e.event) else {
            panic!("it fails")
        };
        assert!(error.message.contains("cannot be kept"), "{error:?}");
        let durable = |o: &Output| matches!(o, Output::Send(_, Command::Durable { number: 1, .. }));
        assert!(done.iter().any(durable), "the worker need not send it again");
        let next =
            |o: &Output| matches!(o, Output::Send(_, Command::Run { record, .. }) if record.id.as_str() == "next");
        assert!(done.iter().any(next), "its turn goes to another");
        head.entry(&node, 1, entry, 1).unwrap();
        assert!(events(&outputs(&mut head)).is_empty(), "it is not taken twice");
    }
}

#[test]
fn what_is_too_deep_is_refused_in_requests_messages_and_definitions() {
    let mut head = head();
    let content = vec![Content::Data(nested(65))];
    let input = TaskInput { content: content.clone(), ..TaskInput::default() };
    let refused = head.submit(Submission { input: input.into(), ..ask("t", "m", 0) }, 0).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    head.submit(ask("t", "m", 0), 0).unwrap();
    assert_eq!(head.say(&"t".into(), "me", None, content, 0).unwrap_err().kind, ErrorKind::InvalidArgument);
    head.say(&"t".into(), "me", None, vec![Content::Data(nested(64))], 0).unwrap();
    let skill = json!({"id": "run", "name": "run", "description": "", "input_schema": nested(100)});
    let refused = head.register(spec(json!({"name": "b", "skills": [skill]})), 0).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
}

#[test]
fn many_orphans_and_deadlines_are_done_in_steps_and_all_of_them() {
    const COUNT: usize = 5_000;
    let mut head = head();
    for n in 0..COUNT {
        let record = TaskRecord {
            id: format!("t{n}").into(),
            context: "c".into(),
            agent: "a".into(),
            skill: "run".into(),
            caller: "me".into(),
            message_id: None,
            model: None,
            protocol: "test".into(),
            input: Default::default(),
            state: TaskState::Working,
            created_ms: 0,
            changed_ms: 0,
            timeout_ms: Some(60_000),
            expires_ms: None,
            attempt: 1,
        };
        let events = vec![TaskEvent::StepStarted { step: 1, name: "attempt 1".into() }];
        head.restore(Stored { record, events, broken: None }, 0);
    }
    let (mut queued, mut steps, mut most, mut more) = (0, 0, 0, true);
    while more {
        more = head.tick(5_000);
        let done = outputs(&mut head);
        let reset = events(&done).iter().filter(|e| matches!(e.event, TaskEvent::StepReset { .. })).count();
        (queued, steps, most) = (queued + reset, steps + 1, most.max(reset));
    }
    // The tick that ends the wait for their workers does two steps.
    assert!(queued == COUNT && steps > 5 && most <= 1_024, "{queued} in {steps} steps of {most}");
    let (mut ended, mut more) = (0, true);
    while more {
        more = head.tick(61_000);
        ended += ends(&outputs(&mut head));
    }
    assert_eq!(ended, COUNT);
    assert_eq!(head.status().tasks, BTreeMap::from([("failed".to_owned(), COUNT as u64)]));
}

#[test]
fn a_task_that_cannot_be_read_whole_fails_with_the_reason() {
    let mut head = head();
    let Ok(Submitted::Made(record)) = head.submit(ask("t", "m", 0), 0) else { panic!("it is new") };
    let log: Vec<_> = events(&outputs(&mut head)).into_iter().map(|e| e.event.clone()).collect();
    let mut later = self::head();
    outputs(&mut later);
    let broken = Some("recursion limit exceeded".to_owned());
    later.restore(Stored { record: (*record).clone(), events: log, broken }, 0);
    let done = outputs(&mut later);
    let written = events(&done);
    assert!(matches!(&written[0].event, TaskEvent::Finished { outcome: Outcome::Failed { error }, .. }
        if error.message.contains("recursion limit")));
    assert_eq!((written.len(), written[0].seq), (1, 2));
}
