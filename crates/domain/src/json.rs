//! JSON that a stranger wrote. Text of many tiny values takes up to two hundred times its own bytes when it is a tree of values, so
//! that what fits into a message might not fit into a process. How much it will take is seen in the text, before it is read.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, caps};

/// An item of an array or a member of an object, bytes.
pub const ITEM: usize = size_of::<Value>();
/// What an array has beside itself: room for the first items.
pub const ARRAY: usize = 4 * ITEM;
/// What an object has beside itself: room for the first members and their names, and its index.
pub const OBJECT: usize = 4 * (ITEM + 32) + 64;
/// The least text that may be too much.
const SHORT: usize = caps::JSON_MEMORY_MAX / OBJECT;

/// About how many bytes of memory JSON text takes as a tree of values, strings aside. Text that is no JSON has a weight too.
pub fn weigh(text: &[u8]) -> usize {
    let (mut total, mut rest) = (ITEM, text.iter());
    while let Some(byte) = rest.next() {
        total += match byte {
            b',' => ITEM,
            b'[' => ARRAY,
            b'{' => OBJECT,
            b'"' => {
                while let Some(inside) = rest.next() {
                    match inside {
                        b'"' => break,
                        b'\\' => drop(rest.next()),
                        _ => {}
                    }
                }
                0
            }
            _ => 0,
        };
    }
    total
}

/// About how many bytes of memory a tree of values takes.
pub fn weight(value: &Value) -> usize {
    ITEM + match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(members) => members.iter().map(|(name, value)| name.len() + ITEM + weight(value)).sum(),
    }
}

/// Refuses text that would take more than [`caps::JSON_MEMORY_MAX`] when it is read; `what` names it.
pub fn check(what: &str, text: &[u8]) -> Result<(), Error> {
    if text.len() > SHORT && weigh(text) > caps::JSON_MEMORY_MAX { Err(too_much(what)) } else { Ok(()) }
}

/// Why [`check`] refuses, also for other forms of the same values.
pub fn too_much(what: &str) -> Error {
    let most = caps::JSON_MEMORY_MAX >> 20;
    Error::invalid(format!("{what} has too many values: they would take more than {most} MiB of memory"))
        .hint("send what is larger as text or as a file (`covey.File` in Python)")
}

/// A value from text that a stranger wrote; `what` names it.
pub fn read<T: DeserializeOwned>(what: &str, text: &[u8]) -> Result<T, Error> {
    check(what, text)?;
    serde_json::from_slice(text).map_err(|e| Error::invalid(format!("failed to read {what}: {e}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `count` times the same item in an array.
    fn many(item: &str, count: usize) -> Vec<u8> {
        format!("[{}]", vec![item; count].join(",")).into_bytes()
    }

    #[test]
    fn text_of_many_tiny_values_is_refused_and_as_much_text_is_not() {
        for item in ["0", "{\"a\":0}", "[0]", "{\"\":[{}]}", "\"\"", "\n[\n]"] {
            let text = many(item, 2_000_000);
            let refused = read::<Value>("the answer", &text).expect_err(item);
            assert!(refused.message.contains("the answer has too many values"), "{refused}");
            read::<Value>("the answer", &many(item, 50_000)).expect(item);
        }
        let words = serde_json::to_vec(&"[{,\"\\".repeat(4_000_000)).unwrap();
        read::<Value>("the answer", &words).unwrap();
    }

    /// What is counted by hand: a container has room for its first item.
    fn counted(value: &Value) -> usize {
        match value {
            Value::Array(items) => {
                ARRAY + items.len().saturating_sub(1) * ITEM + items.iter().map(counted).sum::<usize>()
            }
            Value::Object(members) => {
                OBJECT + members.len().saturating_sub(1) * ITEM + members.values().map(counted).sum::<usize>()
            }
            _ => 0,
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<i64>().prop_map(Value::from), any::<String>().prop_map(Value::from)];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                proptest::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_weight_is_never_less_than_what_the_values_take(value in values()) {
            for text in [serde_json::to_vec(&value).unwrap(), serde_json::to_vec_pretty(&value).unwrap()] {
                prop_assert!(weigh(&text) >= counted(&value), "{}", String::from_utf8_lossy(&text));
            }
        }

        #[test]
        fn noise_has_a_weight(text: Vec<u8>) {
            weigh(&text);
        }
    }
}
