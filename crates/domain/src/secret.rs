//! Secrets: how they are compared, and how definitions refer to those that the head keeps.
//!
//! A text that goes where a secret belongs (a variable, a header, a token) may say `secret://NAME` instead of the secret. The
//! text is what is stored, listed and logged; [`resolve`] puts the value in, as late as it can be.

use std::collections::BTreeSet;

use crate::{Error, ErrorKind, caps};

/// What a reference begins with.
pub const SCHEME: &str = "secret://";

/// Equality in a time that does not tell how much of a secret was right.
pub fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Refuses what is no name of a secret.
pub fn check_name(name: &str) -> Result<(), Error> {
    if !name.is_empty() && name.len() <= caps::SECRET_NAME_MAX && name.chars().all(is_of_name) {
        return Ok(());
    }
    Err(Error::invalid(format!("`{name}` is no name for a secret"))
        .hint(format!("1 to {} letters, digits, `_`, `-` or `.`", caps::SECRET_NAME_MAX)))
}

/// Names that a text refers to.
pub fn names(text: &str) -> BTreeSet<&str> {
    let name = |rest: &'_ str| rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
    text.split(SCHEME).skip(1).map(|rest| &rest[..name(rest)]).collect()
}

/// The text with the value of each secret in the place of its reference. `value` knows them.
pub fn resolve(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    let mut parts = text.split(SCHEME);
    let mut resolved = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        let (name, rest) = rest.split_at(rest.find(|c| !is_of_name(c)).unwrap_or(rest.len()));
        resolved += &value(name).ok_or_else(|| missing(name))?;
        resolved += rest;
    }
    Ok(resolved)
}

/// A text refers to a secret that is not there.
pub fn missing(name: &str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, format!("the cluster has no secret `{name}`"))
        .hint("`covey secret set NAME` makes one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same("ab", "ab") && !same("ab", "ac") && !same("a", "ab"));
    }

    #[test]
    fn references_become_values_wherever_they_stand() {
        let value = |name: &str| (name == "KEY" || name == "a.b-c_1").then(|| format!("<{name}>"));
        for (text, resolved) in [
            ("plain", "plain"),
            ("secret://KEY", "<KEY>"),
            ("Bearer secret://KEY", "Bearer <KEY>"),
            ("secret://KEY:secret://a.b-c_1/x", "<KEY>:<a.b-c_1>/x"),
            ("secret:/KEY", "secret:/KEY"),
            ("", ""),
        ] {
            assert_eq!(resolve(text, value).unwrap(), resolved, "{text}");
        }
        for text in ["secret://OTHER", "secret://", "secret://ä"] {
            assert_eq!(resolve(text, value).unwrap_err().kind, ErrorKind::FailedPrecondition, "{text}");
        }
    }

    #[test]
    fn a_value_is_not_read_again() {
        let value = |_: &str| Some("secret://KEY".to_owned());
        assert_eq!(resolve("secret://KEY", value).unwrap(), "secret://KEY");
    }

    #[test]
    fn names_are_found_and_checked() {
        assert_eq!(names("a secret://B:secret://A secret://B").into_iter().collect::<Vec<_>>(), ["A", "B"]);
        assert!(names("nothing").is_empty());
        assert!(check_name("OPENAI_API_KEY").is_ok());
        for wrong in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
