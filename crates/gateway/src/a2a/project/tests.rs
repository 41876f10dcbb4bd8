//! What readers of every kind are told of a log.

use covey_a2a::v1::part::Content as Held;
use covey_domain::{
    InterruptId,
    event::{Decision, Phase},
    log::Writer,
    task::TaskInput,
};

use proptest::prelude::*;

use super::*;
use crate::follow::tests::{check_every_place, logs};

fn record() -> Arc<TaskRecord> {
    Arc::new(TaskRecord {
        id: "t".into(),
        context: "c".into(),
        agent: "a".into(),
        skill: "run".into(),
        caller: "me".into(),
        message_id: Some("m".into()),
        model: None,
        protocol: "a2a".into(),
        input: Arc::new(TaskInput { content: vec![Content::Text("hi".into())], ..Default::default() }),
        state: TaskState::Completed,
        created_ms: 0,
        changed_ms: 0,
        timeout_ms: None,
        expires_ms: None,
        attempt: 1,
    })
}

fn begun() -> Vec<TaskEvent> {
    vec![
        TaskEvent::Started {
            agent: "a".into(),
            context: "c".into(),
            skill: "run".into(),
            model: None,
            protocol: "a2a".into(),
            parent: None,
            resumes: vec![],
        },
        TaskEvent::Status { state: Phase::Working, message: None },
    ]
}

/// A log of these events.
fn log_of(events: Vec<TaskEvent>) -> Vec<Envelope> {
    let entry = |(event, seq)| Envelope { task: "t".into(), seq, ts_ms: 0, sub: None, event, meta: Default::default() };
    events.into_iter().zip(1..).map(entry).collect()
}

/// The events of a log, and the projection at its end.
fn told_of(events: Vec<TaskEvent>) -> (Vec<v1::StreamResponse>, Projection) {
    let mut projection = Projection::new(record());
    let mut all = Vec::new();
    log_of(events).iter().for_each(|entry| all.extend(projection.take(entry)));
    (all, projection)
}

/// See [`check_every_place`]; `reads` makes a reader of a projection.
async fn told_the_same_from_every_place(events: Vec<TaskEvent>, reads: impl Fn(&mut Projection)) {
    let begin = |place| {
        let mut projection = match place {
            Some(bookmark) => Projection::resume(record(), bookmark),
            None => Projection::new(record()),
        };
        reads(&mut projection);
        projection
    };
    check_every_place(events, begin).await;
}

/// What a client makes of a stream.
fn gathered(events: &[v1::StreamResponse]) -> String {
    let mut text = String::new();
    for event in events {
        let Some(Payload::ArtifactUpdate(update)) = &event.payload else { continue };
        if !update.append {
            text.clear();
        }
        for part in &update.artifact.as_ref().unwrap().parts {
            if let Some(Held::Text(more)) = &part.content {
                text.push_str(more);
            }
        }
    }
    text
}

#[test]
fn chunks_of_a_stream_add_up_to_the_task_also_when_a_step_was_lost() {
    for lost in [false, true] {
        let mut events = begun();
        if lost {
            events.extend(Writer::new("t".into(), 1).text("half an ans"));
            events.push(TaskEvent::StepReset { step: 1 });
        }
        let mut writer = Writer::new("t".into(), 2);
        events.extend(writer.text("hello "));
        events.extend(writer.text("world"));
        events.extend(writer.finish(Outcome::Completed { finish: "stop".into(), result: None }, Default::default()));
        let (told, projection) = told_of(events);
        assert_eq!(gathered(&told), "hello world");
        let task = projection.task();
        assert_eq!(task.artifacts.len(), 1);
        assert_eq!(task.artifacts[0].parts, [text_part("hello world")]);
        assert_eq!(task.history.len(), 1);
        assert_eq!(task.status.unwrap().state(), v1::TaskState::Completed);
        assert!(projection.clone().into_task(Some(0)).history.is_empty());
        let old = covey_a2a::old::event(told.last().unwrap(), true);
        assert_eq!(
            (&old["kind"], &old["final"], &old["status"]["state"]),
            (&json!("status-update"), &json!(true), &json!("completed"))
        );
    }
}

#[tokio::test]
async fn a_reader_who_comes_back_is_told_the_same_from_every_place() {
    let mut events = begun();
    events.extend(Writer::new("t".into(), 1).text("half an ans"));
    events.push(TaskEvent::StepReset { step: 1 });
    let mut writer = Writer::new("t".into(), 2);
    events.extend(writer.text("hello "));
    events.extend(writer.data(json!({"n": 1})));
    events.push(TaskEvent::InterruptRaised {
        id: InterruptId::from("i"),
        kind: InterruptKind::Form { schema: json!({"type": "string"}) },
        prompt: "which one?".into(),
        options: vec![],
        response_schema: None,
        expires_at_ms: None,
        refused: None,
    });
    events.push(TaskEvent::Status { state: Phase::Waiting, message: None });
    let decision = Decision::Accept { payload: json!("the red one"), always: false };
    events.push(TaskEvent::InterruptResolved { id: "i".into(), decision, by: "me".into() });
    events.push(TaskEvent::Status { state: Phase::Working, message: None });
    events.extend(writer.text("world"));
    events.extend(writer.finish(Outcome::Completed { finish: "stop".into(), result: None }, Default::default()));
    told_the_same_from_every_place(events.clone(), |_| {}).await;
    told_the_same_from_every_place(events, Projection::only_tell).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn readers_of_any_log_are_told_the_same_from_every_place(events in logs()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(told_the_same_from_every_place(events.clone(), Projection::only_tell));
        runtime.block_on(told_the_same_from_every_place(events, Projection::show_all));
    }
}

#[tokio::test]
async fn who_declares_the_extension_gets_each_entry_in_one_form_or_the_other() {
    use covey_domain::event::{PlanEntry, ToolExec, ToolOutcome};
    let mut events = begun();
    let mut writer = Writer::new("t".into(), 1);
    events.push(TaskEvent::StepStarted { step: 1, name: "attempt 1".into() });
    events.extend(writer.thought("hm"));
    events.extend(writer.call("1", "search".into(), None, ToolExec::Server, None));
    let call = writer.call_id("1");
    events.push(TaskEvent::ToolCallArgsDelta { call: call.clone(), text: "{}".into() });
    events.push(TaskEvent::ToolCallReady { call, args_text: "{}".into(), args: Some(json!({})) });
    events.extend(writer.call_done("1", ToolOutcome::Ok { content: vec![], structured: None }));
    events.push(TaskEvent::StateSnapshot { value: json!({"n": 1}) });
    let entry = PlanEntry { id: "1".into(), text: "look".into(), status: "pending".into(), priority: "medium".into() };
    events.push(TaskEvent::PlanUpdated { entries: vec![entry] });
    events.push(TaskEvent::UiSurface { surface: "main".into(), content: json!({"uri": "ui://x"}) });
    events.extend(writer.text("found"));
    events.extend(writer.finish(Outcome::Completed { finish: "stop".into(), result: None }, Default::default()));
    let log = log_of(events.clone());
    let (mut plain, mut all) = (Projection::new(record()), Projection::new(record()));
    all.show_all();
    for entry in &log {
        let (short, long) = (plain.take(entry), all.take(entry));
        assert!(!long.is_empty(), "{entry:?} is told");
        if !short.is_empty() {
            assert_eq!(short, long);
            continue;
        }
        let Some(Payload::StatusUpdate(update)) = &long[0].payload else { panic!("an update") };
        let told = &update.metadata.as_ref().unwrap().0[EXTENSION_EVENTS];
        assert_eq!(serde_json::from_value::<Envelope>(told.clone()).unwrap(), *entry);
    }
    let task = plain.task();
    assert_eq!(task, all.task());
    told_the_same_from_every_place(events, |projection| {
        projection.only_tell();
        projection.show_all();
    })
    .await;
    let of = |id: &str| task.artifacts.iter().find(|a| a.artifact_id == id).unwrap().parts.clone();
    assert_eq!(of("t-answer"), [text_part("found")], "thoughts are no part of the answer");
    assert_eq!(of("t:ui:main"), [data_part(&json!({"uri": "ui://x"}))]);
}

#[test]
fn what_a_method_returns_is_one_whole_chunk() {
    let mut events = begun();
    let result = Some(json!({"n": 42}));
    let outcome = Outcome::Completed { finish: "stop".into(), result };
    events.push(TaskEvent::Finished { outcome, usage: Default::default() });
    let (told, projection) = told_of(events);
    let Some(Payload::ArtifactUpdate(update)) = &told[told.len() - 2].payload else { panic!("an artifact") };
    assert!(update.last_chunk && !update.append);
    assert_eq!(projection.task().artifacts[0].parts, [data_part(&json!({"n": 42}))]);
}

#[test]
fn questions_are_asked_in_the_status_and_stay_in_the_history() {
    let mut events = begun();
    events.push(TaskEvent::InterruptRaised {
        id: InterruptId::from("i"),
        kind: InterruptKind::Form { schema: json!({"type": "string"}) },
        prompt: "which one?".into(),
        options: vec![],
        response_schema: None,
        expires_at_ms: None,
        refused: None,
    });
    events.push(TaskEvent::Status { state: Phase::Waiting, message: None });
    let (told, mut projection) = told_of(events);
    let Some(Payload::StatusUpdate(update)) = &told.last().unwrap().payload else { panic!("a status") };
    let status = update.status.as_ref().unwrap();
    assert_eq!(status.state(), v1::TaskState::InputRequired);
    let asked = status.message.as_ref().unwrap();
    assert_eq!(asked.parts[0], text_part("which one?"));
    assert_eq!(asked.parts[1], data_part(&json!({"schema": {"type": "string"}})));
    let decision = Decision::Accept { payload: json!("the red one"), always: false };
    let parts = vec![Content::Text("the red one".into())];
    let answer = [
        TaskEvent::InterruptResolved { id: "i".into(), decision, by: "me".into() },
        TaskEvent::Status { state: Phase::Working, message: None },
        TaskEvent::Steered { parts, by: "me".into(), message_id: Some("m2".into()), answers: Some("i".into()) },
    ];
    for (event, seq) in answer.into_iter().zip(5..) {
        projection.take(&Envelope { task: "t".into(), seq, ts_ms: 0, sub: None, event, meta: Default::default() });
    }
    let task = projection.task();
    assert_eq!(task.status.unwrap().state(), v1::TaskState::Working);
    assert_eq!(task.history.len(), 3);
    assert_eq!((&task.history[1].parts, task.history[2].message_id.as_str()), (&asked.parts, "m2"));
}
