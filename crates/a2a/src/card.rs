//! Cards: the extensions that are ours, and what a signature is over.

use serde_json::Value;

use crate::v1;

/// The extension by which a request names its model and sampling options.
pub const EXTENSION_MODEL: &str = "urn:covey:a2a:model:v1";
/// The extension of servers to which a message can be sent again: the same message id joins the task that it made.
pub const EXTENSION_ONCE: &str = "urn:covey:a2a:once:v1";

/// The extension by which a reader gets what A2A has no form for: entries of the task's log, in the metadata of updates.
pub const EXTENSION_EVENTS: &str = "urn:covey:a2a:events:v1";

/// Whether the card has an extension.
pub fn has(card: &v1::AgentCard, uri: &str) -> bool {
    card.capabilities.iter().flat_map(|c| &c.extensions).any(|e| e.uri == uri)
}

/// The card without its signatures in the form that is signed: RFC 8785 of what is not a default.
pub fn canonical(card: &v1::AgentCard) -> String {
    let card = v1::AgentCard { signatures: Vec::new(), ..card.clone() };
    let mut plain = serde_json::to_value(&card).unwrap_or_default();
    drop_empty(&mut plain);
    // RFC 8785 sorts by UTF-16 where this sorts by UTF-8: the same for names up to U+D7FF.
    plain.sort_all_objects();
    plain.to_string()
}

/// What is signed has no empty texts, lists and objects, so that it does not matter who writes them. Says whether nothing
/// is left.
fn drop_empty(value: &mut Value) -> bool {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !drop_empty(member));
            members.is_empty()
        }
        Value::Array(items) => {
            items.retain_mut(|item| !drop_empty(item));
            items.is_empty()
        }
        Value::String(text) => text.is_empty(),
        Value::Null => true,
        Value::Number(number) => {
            // Whole numbers are written as such, whatever they were made of.
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15) {
                *value = Value::from(whole as i64);
            }
            false
        }
        Value::Bool(_) => false,
    }
}
