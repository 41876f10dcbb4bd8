//! Answers under a constraint are what it allows, at any temperature and also for a model that knows nothing of it.

use std::path::PathBuf;

use covey_domain::infer::{Chat, ChatMessage, Constraint, Finish, InferEvent, Sampling, Work};
use covey_inference::{Engine, Error, Model};
use serde_json::{Value, json};

fn tiny() -> Engine {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    Engine::start("tiny", Model::load(&path).unwrap()).unwrap()
}

fn ask(engine: &Engine, constraint: Constraint, sampling: Sampling) -> Result<(Vec<String>, Finish), Error> {
    let sampling = Sampling { constraint: Some(constraint), max_tokens: Some(300), ..sampling };
    let messages = vec![ChatMessage::new("user", "Say anything about the river and the moon")];
    let mut texts = vec![String::new(); sampling.n.unwrap_or(1) as usize];
    let mut events = engine.ask(Work::Chat(Chat { messages, sampling, ..Chat::default() })).unwrap();
    loop {
        match events.blocking_recv().expect("an end")? {
            InferEvent::Delta(delta) => texts[delta.choice as usize].push_str(&delta.text),
            InferEvent::Ended { .. } => {}
            InferEvent::Done { finish, .. } => return Ok((texts, finish)),
            InferEvent::Vectors { .. } | InferEvent::Heard { .. } => panic!("text was asked for"),
        }
    }
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: Some(1.3), seed: Some(seed), ..Sampling::default() }
}

#[test]
fn json_follows_its_schema() {
    let engine = tiny();
    let schema = json!({
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["x"], "additionalProperties": false}},
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "kind": {"enum": ["river", "moon"]},
            "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "minItems": 1, "maxItems": 3},
            "good": {"type": "boolean"}
        },
        "required": ["name", "kind", "places", "good"],
        "additionalProperties": false
    });
    for seed in 0..15 {
        let sampling = if seed == 0 { Sampling::default() } else { Sampling { n: Some(2), ..warm(seed) } };
        let (texts, finish) = ask(&engine, Constraint::JsonSchema(schema.clone()), sampling).unwrap();
        assert_eq!(finish, Finish::Stop);
        for text in texts {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("seed {seed}: {e} in {text}"));
            assert!(value["name"].as_str().unwrap().chars().count() <= 8, "{text}");
            assert!(value["kind"] == "river" || value["kind"] == "moon", "{text}");
            assert!(value["good"].is_boolean() && value.as_object().unwrap().len() == 4, "{text}");
            let places = value["places"].as_array().unwrap();
            assert!((1..=3).contains(&places.len()), "{text}");
            assert!(places.iter().all(|p| p["x"].as_u64().is_some_and(|x| x < 100)), "{text}");
        }
    }
}

#[test]
fn expressions_choices_and_grammars_hold() {
    let engine = tiny();
    for seed in 0..10 {
        let (texts, _) = ask(&engine, Constraint::Regex("[a-c]{3}-[0-9]{2,4}".into()), warm(seed)).unwrap();
        let (letters, digits) = texts[0].split_once('-').unwrap();
        assert!(letters.len() == 3 && letters.chars().all(|c| ('a'..='c').contains(&c)), "{texts:?}");
        assert!((2..=4).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_digit()), "{texts:?}");
        let all = vec!["red \"wine\"".to_owned(), "green".into(), "größer".into()];
        let (texts, finish) = ask(&engine, Constraint::Choice(all.clone()), warm(seed)).unwrap();
        assert!(all.contains(&texts[0]) && finish == Finish::Stop, "{texts:?}");
        let lark = "start: sum\nsum: NUMBER (\"+\" NUMBER)~1..4\nNUMBER: /[1-9][0-9]?/";
        let (texts, _) = ask(&engine, Constraint::Lark(lark.into()), warm(seed)).unwrap();
        assert!(texts[0].split('+').all(|n| (1..100).contains(&n.parse::<u32>().unwrap())), "{texts:?}");
    }
}

#[test]
fn a_wrong_constraint_is_refused_and_the_engine_lives() {
    let engine = tiny();
    for wrong in [
        Constraint::Regex("(".into()),
        Constraint::JsonSchema(json!({"type": "no such type"})),
        Constraint::Lark("start: missing".into()),
    ] {
        let error = ask(&engine, wrong, Sampling::default()).unwrap_err();
        assert!(matches!(&error, Error::Request(why) if why.contains("constraint is wrong")), "{error}");
    }
    assert_eq!(ask(&engine, Constraint::Choice(vec!["yes".into()]), Sampling::default()).unwrap().0, ["yes"]);
}
