//! Texts that people are shown: in terminals, pages and logs, where control characters do things.

use std::fmt::Write as _;

use crate::{Error, caps};

/// Refuses a name that could not be shown as it is: an empty one, one that is too long, one with control characters, line breaks or
/// characters that nobody sees.
pub fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let most = caps::SHOWN_NAME_MAX;
    if name.is_empty() {
        return Err(Error::invalid(format!("{what} is empty")));
    }
    if name.len() > most {
        let begin: String = name.chars().take(32).map(visible).collect();
        return Err(Error::invalid(format!("{what} `{begin}…` has {} bytes, the limit is {most}", name.len())));
    }
    if name.chars().any(breaks) {
        let name: String = name.chars().map(visible).collect();
        return Err(Error::invalid(format!(
            "{what} `{name}` has control characters, line breaks or invisible characters"
        )));
    }
    Ok(())
}

/// Writes `text` with control characters, but for line ends and tabs, as the escapes that stand for them: a terminal shows them
/// and does nothing.
pub fn write_plain(out: &mut String, text: &str) {
    for c in text.chars() {
        if acts(c) {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
}

/// JSON text of which a terminal does nothing else than to show it: what would act is written as JSON's own escapes, so that
/// it is read as the same value.
pub fn plain_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // They stand in strings alone.
        if acts(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a terminal may do something else than to show the character.
fn acts(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character of a name would do more than be seen, or less: one that is invisible makes two names look the same.
fn breaks(c: char) -> bool {
    acts(c)
        || matches!(c, '\n' | '\t' | '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{ad}')
}

fn visible(c: char) -> char {
    if breaks(c) { char::REPLACEMENT_CHARACTER } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_is_shown_is_read_as_it_was() {
        let value = serde_json::json!({"a\u{9b}": ["\u{1b}[2J", "x\u{202e}y\n\t", "\u{7f}", "名前 😀"]});
        let shown = plain_json(&value.to_string());
        assert!(!shown.chars().any(acts), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn names_that_do_things_are_refused() {
        for good in ["w1", "a b", "zürich", "名前", &"n".repeat(caps::SHOWN_NAME_MAX)] {
            check_name("the name", good).unwrap();
        }
        let long = "é".repeat(caps::SHOWN_NAME_MAX);
        for bad in [
            "",
            "a\nnode fake",
            "\u{1b}[2J",
            "a\tb",
            "\u{9b}1m",
            "a\u{202e}b",
            "\u{2028}",
            "\0",
            "a\u{200b}b",
            "\u{feff}a",
            &long,
        ] {
            let error = check_name("the name", bad).unwrap_err();
            assert!(!error.message.chars().any(breaks), "{error}");
        }
    }

    #[test]
    fn a_terminal_shows_what_it_would_do() {
        let mut out = String::new();
        write_plain(&mut out, "one\ttwo\n\u{1b}]0;title\u{7}\r\u{9b}é");
        assert_eq!(out, "one\ttwo\n\\u{1b}]0;title\\u{7}\\r\\u{9b}é");
    }
}
