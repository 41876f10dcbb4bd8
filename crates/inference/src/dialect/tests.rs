use super::*;

fn dialect(form: Form) -> Dialect {
    let thoughts = Some(THOUGHTS[0]);
    Dialect { form, knows_tools: true, knows_system: true, thoughts, marks: vec![], turns: vec![] }
}

fn reader(form: Form, thinks: bool) -> Reader {
    let parameters = json!({"properties": {"code": {"type": "string"}}});
    let tools = ["add", "now"].map(|name| json!({"function": {"name": name, "parameters": parameters}})).to_vec();
    dialect(form).reader(if thinks { "<think>\n" } else { "" }, &Chat { tools, ..Chat::default() })
}

/// What a text means, the same in whichever pieces it comes.
fn read(form: Form, thinks: bool, text: &str) -> (String, String, Vec<(String, String)>) {
    let mut all = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    for size in [1, 2, 3, 5, 7, 1000] {
        let mut reader = reader(form, thinks);
        let mut delta = Delta::default();
        let (mut said, mut thought) = (String::new(), String::new());
        let mut calls: Vec<(String, String)> = Vec::new();
        let mut take = |delta: &mut Delta| {
            said.push_str(&std::mem::take(&mut delta.text));
            thought.push_str(&std::mem::take(&mut delta.reasoning));
            for call in std::mem::take(&mut delta.calls) {
                if !call.name.is_empty() {
                    assert_eq!(call.index as usize, calls.len());
                    assert!(!call.id.is_empty());
                    calls.push((call.name, String::new()));
                }
                calls[call.index as usize].1.push_str(&call.arguments);
            }
        };
        for piece in chars.chunks(size) {
            reader.push(&piece.iter().collect::<String>(), &mut delta);
            take(&mut delta);
        }
        reader.flush(&mut delta);
        take(&mut delta);
        all.push((said, thought, calls));
    }
    let first = all.remove(0);
    for other in all {
        assert_eq!(first, other, "the pieces change the meaning");
    }
    first
}

fn calls(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect()
}

#[test]
fn tagged_calls_are_told_apart_from_what_is_said_and_thought() {
    let text = "<think>\nIs it \"<tool_call>\"?\n</think>\n\nI add. \n<tool_call>\n{\"name\": \"add\", \"arguments\": \
        {\"a\": \"}\\\"{\", \"b\": [1, {\"c\": 2}]}}\n</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call>";
    let (said, thought, called) = read(Form::Tagged, false, text);
    assert_eq!(thought, "Is it \"<tool_call>\"?");
    assert_eq!(said, "I add.");
    assert_eq!(called, calls(&[("add", r#"{"a": "}\"{", "b": [1, {"c": 2}]}"#), ("now", "{}")]));
    // Arguments first, arguments as text, a name of no tool, and text behind the call.
    let text = r#"<tool_call>{"arguments": {"x": 1}, "id": 7, "name": "other"}</tool_call> Done <b>"#;
    assert_eq!(read(Form::Tagged, false, text), ("Done <b>".into(), String::new(), calls(&[("other", r#"{"x": 1}"#)])));
    let text = r#"<tool_call>{"name": "add", "arguments": "{\"a\": 1}"}</tool_call>"#;
    assert_eq!(read(Form::Tagged, false, text).2, calls(&[("add", r#"{"a": 1}"#)]));
}

#[test]
fn a_prompt_may_have_opened_the_thoughts() {
    let told = read(Form::Tagged, true, "\nhm < 3\n</think>\n\nYes. ");
    assert_eq!(told, ("Yes. ".into(), "hm < 3".into(), vec![]));
    assert_eq!(read(Form::Tagged, true, "never ends </thi").1, "never ends </thi");
}

#[test]
fn what_is_no_call_is_text() {
    for text in
        ["<tool_call>nonsense</tool_call>", "a <tool", "1 < 2 <tool_call", "<tool_call>{\"x\": 1}</tool_call> b"]
    {
        assert_eq!(read(Form::Tagged, false, text), (text.into(), String::new(), vec![]), "{text}");
    }
    // Cut short inside: the name was told, and the arguments stand as far as they came.
    let text = r#"<tool_call>{"name": "add", "arguments": {"a": [1,"#;
    assert_eq!(read(Form::Tagged, false, text).2, calls(&[("add", r#"{"a": [1,"#)]));
}

#[test]
fn bare_objects_are_calls_of_known_tools_only() {
    let text = r#"{"name": "add", "parameters": {"a": 1}}; {"name": "now", "parameters": {}}"#;
    assert_eq!(read(Form::Bare, false, text).2, calls(&[("add", r#"{"a": 1}"#), ("now", "{}")]));
    let text = r#"<|python_tag|>{"name": "add", "parameters": {"a": 1}}"#;
    assert_eq!(read(Form::Bare, false, text), (String::new(), String::new(), calls(&[("add", r#"{"a": 1}"#)])));
    for text in [r#"{"name": "Ann", "age": 7}"#, r#"{"age": 7}"#, "{} and text", "no { call"] {
        assert_eq!(read(Form::Bare, false, text), (text.into(), String::new(), vec![]), "{text}");
    }
}

#[test]
fn grammars_of_all_forms_take_their_calls_and_nothing_else() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let Ok(crate::Model::Generate(model)) = crate::Model::load(&path) else { panic!("the tiny model makes text") };
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}, "code": {"type": "string"}},
        "required": ["a", "code"], "additionalProperties": false});
    let tools = vec![json!({"type": "function", "function": {"name": "add", "parameters": parameters}})];
    let json = |key: &str, a: &str| format!("{{\"name\": \"add\", \"{key}\": {{\"a\": {a}, \"code\": \"x < y\"}}}}");
    let marks = |a: &str| {
        format!("<function=add>\n<parameter=a>\n{a}\n</parameter>\n<parameter=code>\nx < y\n</parameter>\n</function>")
    };
    for (form, right, wrong) in [
        (Form::Tagged, format!("<tool_call>\n{}\n</tool_call>", json("arguments", "1")), json("arguments", "\"b\"")),
        (Form::Bare, json("parameters", "1"), json("arguments", "1")),
        (Form::Listed, format!("[TOOL_CALLS][{}]", json("arguments", "1")), json("arguments", "1")),
        (Form::Named, "[TOOL_CALLS]add[ARGS]{\"a\": 1, \"code\": \"x\"}".into(), "[TOOL_CALLS]add{}".into()),
        (
            Form::Named,
            "[TOOL_CALLS]add[CALL_ID]abcDEF123[ARGS]{\"a\": 1, \"code\": \"x\"}".into(),
            json("arguments", "1"),
        ),
        (Form::Functions, format!("<tool_call>\n{}\n</tool_call>", marks("1")), marks("1").replace("add", "sub")),
    ] {
        let dialect = dialect(form);
        let chat = Chat { tools: tools.clone(), tool_choice: ToolChoice::Required, one_call: true, ..Chat::default() };
        let constraint = dialect.whole(&chat).unwrap();
        let takes = |text: &str| {
            let mut matcher =
                model.constrain(&constraint).unwrap_or_else(|e| panic!("{form:?}: {e} in {constraint:?}"));
            let tokens = model.encode(text).unwrap();
            tokens.iter().all(|t| matcher.consume_token(*t).is_ok()) && matcher.is_accepting().unwrap()
        };
        assert!(takes(&right), "{form:?}: {right} by {constraint:?}");
        assert!(!takes(&wrong), "{form:?}: {wrong}");
        if let Some(body) = dialect.call_body(&Chat { tool_choice: ToolChoice::Auto, ..chat }) {
            model.constrain(&body).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        }
    }
}

#[test]
fn functions_have_their_arguments_between_marks() {
    let text = "I add.\n<tool_call>\n<function=add>\n<parameter=a>\n[1, 2]\n</parameter>\n<parameter=code>\nif a < 3 {\n  \"x\"\n}\n\
        </parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>";
    let (said, _, called) = read(Form::Functions, false, text);
    assert_eq!(said, "I add.");
    assert_eq!(called, calls(&[("add", r#"{"a":[1,2],"code":"if a < 3 {\n  \"x\"\n}"}"#), ("now", "{}")]));
    // A number that the schema calls text stays text; what never closes is told as it stands.
    let text = "<tool_call><function=add><parameter=code>7</parameter></function></tool_call>";
    assert_eq!(read(Form::Functions, false, text).2, calls(&[("add", r#"{"code":"7"}"#)]));
    for text in ["<tool_call>\n<function=add>\n<parameter=a>", "so <tool_call>\n"] {
        assert_eq!(read(Form::Functions, false, text), (text.into(), String::new(), vec![]));
    }
}

#[test]
fn listed_calls_are_read_in_both_forms() {
    let text = r#"[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]"#;
    let want = calls(&[("add", r#"{"a": 1}"#), ("now", "{}")]);
    assert_eq!(read(Form::Listed, false, text).2, want);
    for text in [
        r#"[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}"#,
        r#"[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]now{}"#,
    ] {
        for form in [Form::Listed, Form::Named] {
            assert_eq!(read(form, false, text), (String::new(), String::new(), want.clone()), "{text}");
        }
    }
    assert_eq!(call_id(Some(Form::Listed)).len(), 9);
}
