//! Calls of tools by the tiny model, which was taught to choose among declared ones, and by force where it would not.

use std::path::PathBuf;

use covey_domain::infer::{Chat, ChatMessage, Constraint, Finish, InferEvent, Sampling, ToolChoice, Work};
use covey_inference::{Engine, Error, Model};
use serde_json::{Value, json};

struct Said {
    text: String,
    calls: Vec<(String, Value)>,
    finish: Finish,
}

fn ask(engine: &Engine, chat: Chat) -> Result<Said, Error> {
    let mut events = engine.ask(Work::Chat(chat)).unwrap();
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    loop {
        match events.blocking_recv().expect("an end")? {
            InferEvent::Delta(delta) => {
                text.push_str(&delta.text);
                for call in delta.calls {
                    if !call.name.is_empty() {
                        assert!(call.id.starts_with("call_"), "{call:?}");
                        calls.push((call.name, String::new()));
                    }
                    calls[call.index as usize].1.push_str(&call.arguments);
                }
            }
            InferEvent::Done { finish, .. } => {
                let calls =
                    calls.into_iter().map(|(name, json)| (name, serde_json::from_str(&json).unwrap())).collect();
                return Ok(Said { text, calls, finish });
            }
            other => panic!("{other:?}"),
        }
    }
}

fn tool(name: &str, properties: Value) -> Value {
    let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
    let parameters = json!({"type": "object", "properties": properties, "required": required,
        "additionalProperties": false});
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

fn chat(text: &str, tool_choice: ToolChoice) -> Chat {
    Chat {
        messages: vec![ChatMessage::new("user", text)],
        tools: vec![
            tool("weather", json!({"city": {"type": "string", "maxLength": 12}})),
            tool("timer", json!({"minutes": {"type": "integer", "minimum": 1, "maximum": 60}})),
        ],
        tool_choice,
        sampling: Sampling { max_tokens: Some(120), ..Sampling::default() },
        ..Chat::default()
    }
}

#[test]
fn tools_are_called_freely_by_force_and_not_at_all() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let engine = Engine::start("tiny", Model::load(&path).unwrap()).unwrap();
    let said = ask(&engine, chat("weather in Oslo", ToolChoice::Auto)).unwrap();
    assert_eq!((said.calls.len(), said.finish, said.text.as_str()), (1, Finish::ToolCalls, ""));
    assert_eq!(said.calls[0].0, "weather");
    assert_eq!(said.calls[0].1, json!({"city": "Oslo"}));
    // Arguments keep to the schema: this model was taught that minutes are text.
    let said = ask(&engine, chat("set a timer for 12 minutes", ToolChoice::Auto)).unwrap();
    assert!(said.calls[0].0 == "timer" && said.calls[0].1["minutes"].is_u64(), "{:?}", said.calls);
    for seed in 0..8 {
        let mut forced = chat("tell me a story", ToolChoice::Required);
        forced.sampling = Sampling { temperature: Some(1.2), seed: Some(seed), ..forced.sampling };
        forced.one_call = true;
        let said = ask(&engine, forced).unwrap();
        assert_eq!((said.calls.len(), said.finish), (1, Finish::ToolCalls), "{}", said.text);
    }
    let said = ask(&engine, chat("hello", ToolChoice::Function("timer".into()))).unwrap();
    assert_eq!(said.calls[0].0, "timer");
    assert!((1..=60).contains(&said.calls[0].1["minutes"].as_u64().unwrap()));
    let said = ask(&engine, chat("weather in Oslo", ToolChoice::None)).unwrap();
    assert!(said.calls.is_empty() && said.finish != Finish::ToolCalls);
    // A schema for answers, and tools beside it: either comes.
    let mut either = chat("weather in Oslo", ToolChoice::Auto);
    either.sampling.constraint = Some(Constraint::JsonSchema(json!({"enum": ["yes", "no"]})));
    let said = ask(&engine, either).unwrap();
    assert!(said.calls.len() == 1 || ["\"yes\"", "\"no\""].contains(&said.text.as_str()), "{}", said.text);
    let mut broken = chat("x", ToolChoice::Required);
    broken.tools = vec![json!({"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}})];
    assert!(matches!(ask(&engine, broken), Err(Error::Request(why)) if why.contains("constraint")));
}
