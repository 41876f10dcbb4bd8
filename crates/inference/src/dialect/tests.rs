use super::*;

fn reader(form: Form, thinks: bool) -> Reader {
    Reader {
        form: Some(form),
        names: vec!["add".into(), "now".into()],
        thoughts: Some(THOUGHTS[0]),
        state: if thinks { State::Think } else { State::Say },
        held: String::new(),
        said: false,
        skips_blanks: thinks,
        calls: 0,
        raw: String::new(),
    }
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
fn listed_calls_are_read_in_both_forms() {
    let text = r#"[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]"#;
    let want = calls(&[("add", r#"{"a": 1}"#), ("now", "{}")]);
    assert_eq!(read(Form::Listed, false, text).2, want);
    for text in [
        r#"[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}"#,
        r#"[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]now{}"#,
    ] {
        assert_eq!(read(Form::Listed, false, text), (String::new(), String::new(), want.clone()), "{text}");
    }
    assert_eq!(call_id(Some(Form::Listed)).len(), 9);
}
