//! What is accepted can be read.

use std::collections::BTreeMap;

use covey_domain::{
    Error as DomainError, ErrorKind,
    event::{Choice, Decision, Delta, InterruptKind, Outcome, PartKind, Refusal, ToolOutcome},
    infer::Usage,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn numbers() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(f64::MAX), Just(f64::MIN), Just(f64::MIN_POSITIVE), Just(5e-324), Just(-0.0), Just(1e308)]
            .prop_map(Value::from),
    ]
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        numbers(),
        any::<String>().prop_map(Value::from)
    ];
    let small = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    });
    // And as deep as may be, or one level more.
    (
        small,
        prop_oneof![
            Just(0),
            Just(caps::JSON_DEPTH_MAX - 4),
            Just(caps::JSON_DEPTH_MAX),
            Just(caps::JSON_DEPTH_MAX + 1)
        ],
        any::<bool>(),
    )
        .prop_map(|(value, levels, lists)| {
            (0..levels).fold(value, |inner, _| if lists { json!([inner]) } else { json!({"type": inner}) })
        })
}

fn contents() -> impl Strategy<Value = Vec<Content>> {
    let source = prop_oneof![
        any::<String>().prop_map(MediaSource::Inline),
        any::<String>().prop_map(MediaSource::Url),
        (any::<String>(), any::<u64>())
            .prop_map(|(digest, bytes)| MediaSource::Stored { digest: digest.into(), bytes }),
    ];
    let content = prop_oneof![
        any::<String>().prop_map(Content::Text),
        values().prop_map(Content::Data),
        (any::<String>(), any::<Option<String>>(), source).prop_map(|(mime, name, source)| Content::File {
            mime,
            name,
            source
        }),
    ];
    proptest::collection::vec(content, 0..3)
}

fn events_with() -> impl Strategy<Value = TaskEvent> {
    let value = || values();
    prop_oneof![
        value().prop_map(|value| TaskEvent::PartDelta { part: "p".into(), delta: Delta::Data(value) }),
        any::<String>().prop_map(|text| TaskEvent::PartDelta { part: "p".into(), delta: Delta::Text(text) }),
        value().prop_map(|value| TaskEvent::StateSnapshot { value }),
        value().prop_map(|patch| TaskEvent::StateDelta { patch }),
        value().prop_map(|content| TaskEvent::UiSurface { surface: "s".into(), content }),
        value().prop_map(|content| TaskEvent::SourceCited { source: "s".into(), content }),
        value().prop_map(|value| TaskEvent::Custom { name: "c".into(), value }),
        value().prop_map(|value| TaskEvent::PartClosed { part: "p".into(), len: u64::MAX, citations: vec![value] }),
        value().prop_map(|value| TaskEvent::ToolCallReady {
            call: "c".into(),
            args_text: String::new(),
            args: Some(value)
        }),
        value().prop_map(|value| TaskEvent::ToolCallProgress {
            call: "c".into(),
            status: String::new(),
            content: Some(value),
            progress: Some((0, u64::MAX)),
        }),
        (contents(), proptest::option::of(values())).prop_map(|(content, structured)| TaskEvent::ToolCallDone {
            call: "c".into(),
            outcome: ToolOutcome::Ok { content, structured },
            message: "m".into(),
        }),
        (value(), value()).prop_map(|(schema, value)| TaskEvent::InterruptRaised {
            id: "i".into(),
            kind: InterruptKind::Form { schema },
            prompt: String::new(),
            options: vec![Choice { id: "1".into(), label: String::new(), kind: String::new() }],
            response_schema: Some(value),
            expires_at_ms: Some(u64::MAX),
            refused: Some(Refusal { question: "h".into(), why: "no".into() }),
        }),
        value().prop_map(|value| TaskEvent::InterruptRaised {
            id: "i".into(),
            kind: InterruptKind::Custom { value },
            prompt: String::new(),
            options: vec![],
            response_schema: None,
            expires_at_ms: None,
            refused: None,
        }),
        value().prop_map(|payload| TaskEvent::InterruptResolved {
            id: "i".into(),
            decision: Decision::Accept { payload, always: true },
            by: "me".into(),
        }),
        contents().prop_map(|parts| TaskEvent::Steered { parts, by: "me".into(), message_id: None, answers: None }),
        contents().prop_map(|parts| TaskEvent::ArtifactChunk {
            artifact: "a".into(),
            name: None,
            parts,
            append: true,
            last: false
        }),
        (value(), prop_oneof![Just("stop"), Just("message")]).prop_map(|(result, finish)| TaskEvent::Finished {
            outcome: Outcome::Completed { finish: finish.into(), result: Some(result) },
            usage: BTreeMap::from([("m".into(), Usage { input: u64::MAX, output: 0 })]),
        }),
        any::<String>().prop_map(|message| TaskEvent::Finished {
            outcome: Outcome::Failed { error: DomainError::new(ErrorKind::Application, message) },
            usage: BTreeMap::new(),
        }),
        any::<String>().prop_map(|name| TaskEvent::PartOpened {
            message: "m".into(),
            part: "p".into(),
            kind: PartKind::Data { name },
        }),
    ]
}

/// Values that JSON does not tell apart, put together: a missing value and `null`.
fn plain(batch: &Batch) -> Value {
    let events: Vec<_> = batch.events.iter().map(|event| serde_json::to_value(&**event).unwrap()).collect();
    let made: Vec<_> = batch.made.iter().map(|record| serde_json::to_value(&**record).unwrap()).collect();
    let mut all = json!([made, events, batch]);
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|_, value| !value.is_null());
                fields.values_mut().for_each(strip);
            }
            Value::Array(all) => all.iter_mut().for_each(strip),
            // The last digit of a fraction may be read as its neighbour; that seldom reaches the seventh.
            Value::Number(number) if number.is_f64() => *value = json!(format!("{:.6e}", number.as_f64().unwrap())),
            _ => {}
        }
    }
    strip(&mut all);
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// The poison rule: whatever the doors take is read back as it was, from the log and from the tables.
    #[test]
    fn what_is_taken_is_read_as_it_was_written(content in contents(), option in values(), event in events_with()) {
        let input = TaskInput { content, sampling: serde_json::Map::from_iter([("o".to_owned(), option)]), ..TaskInput::default() };
        let record = Arc::new(TaskRecord { input: Arc::new(input), ..(*record("t", TaskState::Working)).clone() });
        let envelope = Arc::new(Envelope { event, ..(*super::event("t", 1)).clone() });
        let made = if record.input.check().is_ok() { vec![record] } else { vec![] };
        let events = if envelope.event.check().is_ok() { vec![envelope] } else { vec![] };
        let batch = Batch { made, events, ..Batch::default() };
        let text = batch.encode().unwrap().text;
        let read = Batch::decode(text.as_bytes()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(plain(&read), plain(&batch));
        for event in &batch.events {
            // A worker sends it so.
            let json = serde_json::to_vec(&event.event).unwrap();
            prop_assert!(TaskEvent::read(&json).is_ok());
        }
        let (salvaged, broken) = salvage::batch(text.as_bytes(), &serde_json::from_str::<u8>("x").unwrap_err());
        prop_assert!(broken.is_empty());
        prop_assert_eq!(plain(&salvaged), plain(&batch));
    }
}

#[test]
fn a_batch_that_cannot_be_read_gives_what_of_it_can() {
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let with = |id: &str, value: &Value| {
        let input = TaskInput { content: vec![Content::Data(value.clone())], ..TaskInput::default() };
        Arc::new(TaskRecord { input: Arc::new(input), ..(*record(id, TaskState::Working)).clone() })
    };
    let said = |id: &str, seq, value: &Value| {
        Arc::new(Envelope { event: TaskEvent::StateSnapshot { value: value.clone() }, ..(*event(id, seq)).clone() })
    };
    let batch = Batch {
        made: vec![with("good", &json!(1)), with("bad", &deep)],
        events: vec![
            said("good", 1, &json!(1)),
            said("cut", 2, &deep),
            said("good", 2, &json!(2)),
            said("cut", 3, &json!(1)),
        ],
        cursors: vec![("n".into(), 1, 2)],
        states: vec![state("a/1", b"s", 1)],
        tasks: vec![TaskChange::of(&record("good", TaskState::Working))],
        ..Batch::default()
    };
    let text = batch.encode().unwrap().text;
    assert!(Batch::decode(text.as_bytes()).is_err());
    let (read, broken) = Batch::decode_or_salvage(text.as_bytes());
    let of = |what: &str| broken.iter().filter(|b| b.what == what).map(|b| b.task.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!((of("a task"), of("events of a task")), (vec!["bad".into()], vec!["cut".into()]));
    assert_eq!(read.made.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["good", "bad"]);
    assert_eq!(read.made[1].input, Arc::default(), "it is known, without what it was asked with");
    assert_eq!(read.events.iter().map(|e| (e.task.as_str(), e.seq)).collect::<Vec<_>>(), [("good", 1), ("good", 2)]);
    assert_eq!((read.cursors, read.states, read.tasks), (batch.cursors, batch.states, batch.tasks));
}

/// Of a batch with something of every kind only what cannot be read is missing.
#[test]
fn a_record_that_cannot_be_read_costs_nothing_of_other_kinds() {
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let input = TaskInput { content: vec![Content::Data(deep)], ..TaskInput::default() };
    let made = vec![Arc::new(TaskRecord { input: Arc::new(input), ..(*record("bad", TaskState::Working)).clone() })];
    let batch = Batch { made, term: Some(3), ..full() };
    let (read, broken) = Batch::decode_or_salvage(batch.encode().unwrap().text.as_bytes());
    assert_eq!(broken.len(), 1, "{broken:?}");
    // A batch is written without its tasks and events.
    assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&batch).unwrap());
}
